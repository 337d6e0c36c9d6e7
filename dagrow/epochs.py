"""The epochs of a search: at which rate, and what the last one before a decision gathers for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from dagrow.data import Fold
from dagrow.measure import Gathering, Pass
from dagrow.standing import Network, Plan, State, load_network
from dagrow.store import Event, Run
from dagrow.train import EpochReport, Moments, steps_per_epoch

# Epochs are committed together until they have made so many optimizer steps, or taken so many MACs to train: about a second.
UNIT_STEPS = 500
UNIT_WORK = 5_000_000_000


def rate_at(plan: Plan, state: State, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of the epoch after `state`, which has `steps`."""
    rule, options = plan.schedule
    done = (state.epoch + step / max(steps, 1)) / max(state.epochs, 1)
    return rule.rate(options, plan.recipe.options.lr, state.phase, done, state.updates + step)


def leads_to_a_decision(plan: Plan, state: State) -> bool:
    """Whether, as far as can be told ahead, a decision comes right after the epoch after `state`."""
    budget = plan.spec.budget
    return state.phase == "growth" and state.epoch == state.epochs - 1 and state.step < budget.steps and state.nulls < budget.patience


def goes_on(begun: State, state: State) -> bool:
    """Whether the unit of work that began at `begun` and has come to `state` takes another epoch: by counts alone, never by the clock."""
    done = state.updates - begun.updates >= UNIT_STEPS or state.work - begun.work >= UNIT_WORK
    return state.epoch < state.epochs and not done


def behind(state: State, network: Network, report: EpochReport) -> State:
    """`state` with an epoch behind it."""
    work = state.work + 3 * network.arch.macs * report.samples
    mark = report.nats if state.mark is None else state.mark
    return replace(state, epoch=state.epoch + 1, trained=state.trained + 1, updates=state.updates + report.steps, work=work, mark=mark)


def epochs_in(event: Event) -> int:
    """How many epochs an event of that kind holds; in runs without a list of losses it is one."""
    return len(event.payload["losses"]) if "losses" in event.payload else 1


def epoch_after(
    plan: Plan, state: State, network: Network, fold: Fold, gather: bool
) -> tuple[dict[str, Tensor], Moments, EpochReport, Gathering | None]:
    """The epoch after `state`, from values to values: (weights, moments, report, what it gathered where it was to)."""
    recipe, score, path = plan.recipe, plan.spec.score, ("epoch", state.trained)
    steps, watch = steps_per_epoch(len(fold.x), recipe.batch), None
    if gather and score.when == "training":
        watch = Gathering(
            network.arch, recipe.loss, rows=score.rows, window=score.window, batch=recipe.batch, samples=len(fold.x), seed=plan.spec.seed, path=path
        )
    weights, moments, report = recipe.epoch(
        network.arch, network.weights, network.moments, fold, lambda k: rate_at(plan, state, k, steps), plan.spec.seed, path, watch
    )
    return weights, moments, report, watch


def last_of_growth(events: Sequence[Event]) -> tuple[Event, Event, str] | None:
    """(the last epochs of growth, the event they began from, the prefix of its state and network there); None before the first.

    After an extension growth goes on from what a "final" event holds as "before_".
    """
    units = [e for e in events if "state" in e.payload]
    at = next((k for k in range(len(units) - 1, 0, -1) if units[k].kind == "epoch" and units[k].payload["phase"] == "growth"), None)
    if at is None:
        return None
    if units[at - 1].payload["state"]["phase"] == "growth":
        return units[at], units[at - 1], ""
    return units[at], next(e for e in reversed(units[:at]) if e.kind == "final"), "before_"


def gathered_again(plan: Plan, run: Run, state: State, fold: Fold) -> Pass | None:
    """What the epoch that led to `state` gathered, by computing its unit of work again, to the same bits, from the event that began from.

    None where no epoch led there directly, or where a run from before this was done has dropped what it began from.
    """
    found = last_of_growth(run.events()) if plan.spec.score.when == "training" else None
    if found is None:
        return None
    reached, begun, prefix = found
    after = State.from_dict(reached.payload["state"])
    there = {f"{prefix}weights", f"{prefix}moments"} & set(begun.blobs) <= set(run.kept(begun))
    if (after.step, after.trained) != (state.step, state.trained) or "status" in reached.payload or not there:
        return None
    at, network, watch = State.from_dict(begun.payload[f"{prefix}state"]), load_network(run, begun, prefix), None
    for left in reversed(range(epochs_in(reached))):
        weights, moments, report, watch = epoch_after(plan, at, network, fold, gather=not left)
        at, network = behind(at, network, report), Network(network.arch, weights, moments)
    return watch.collect(network.weights)
