"""The growth loop: train, find where expressive power is lacking, rewrite there, train on.

`Search.advance` does one unit of work - some epochs, a decision, a change of phase - from values to values, and commits it.
State inside a unit is never saved: a unit that was lost is computed again to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from dagrow.applying import settle_norms
from dagrow.compiler import compile_architecture, initialise
from dagrow.data import Fold
from dagrow.epochs import behind, epoch_after, epochs_in, gathered_again, goes_on, last_of_growth, leads_to_a_decision, rate_at
from dagrow.errors import DagrowError, NothingFits
from dagrow.graph import Architecture
from dagrow.measure import Pass, measure
from dagrow.measure.evidence import subsample
from dagrow.propose import Proposed, Scored
from dagrow.racing import Raced, race
from dagrow.select import Done, Trial
from dagrow.standing import Network, Plan, State, load_network
from dagrow.store import Event, Run
from dagrow.train import evaluate
from dagrow.trials import Bench, Measured

# Training has diverged when its loss is so many nats above where the stretch began.
DIVERGED = 2.0


class Search:
    """A search on disk. `events()` runs it to its end, yielding each committed event; it may be left at any time."""

    def __init__(self, plan: Plan, run: Run, device: str = "cpu", clock: Callable[[], float] = time.perf_counter):
        self.plan, self.run, self.device, self.clock = plan, run, device, clock
        self.spec, self.seed = plan.spec, plan.spec.seed
        self.folds = {name: fold.to(device) for name, fold in plan.data.folds.items()}
        self.state: State = State()
        self.network: Network | None = None
        history = run.events()
        at = next((e for e in reversed(history) if "state" in e.payload), None)
        if at is not None:
            self.state, self.network = State.from_dict(at.payload["state"]), load_network(run, at)
            if any(e.kind == "extended" for e in history[at.seq :]):
                self._grow_on()
        self.elapsed = sum(e.times.get("seconds", 0.0) for e in history)
        self._since: float | None = None
        self._seen: tuple[tuple[int, int], Pass | None] | None = None

    @classmethod
    def standing(cls, plan: Plan, network: Network, step: int = 0, seen: Pass | None = None) -> Search:
        """A search that stands at `network` and is only asked: it has no run to commit to. seen: rows gathered on the way there."""
        work = cls.__new__(cls)
        work.plan, work.spec, work.seed, work.device = plan, plan.spec, plan.spec.seed, "cpu"
        work.state, work.network = State(step=step), network
        work._seen = work._place(), seen
        return work

    # -- the loop ---------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        while self.state.phase != "done":
            yield self.advance()

    def advance(self) -> Event:
        """The next unit of work, committed."""
        # from the end of the last unit: writing it down, which takes as long as a short epoch, counts too
        began, before, state = self.clock() if self._since is None else self._since, self.network, self.state
        if before is None:
            return self._commit("start", self._begin(), began)
        if self.state.epoch < self.state.epochs and not self._late():
            return self._commit("epoch", self._epochs(began), began)
        if self.state.phase == "growth":
            reason = self._over()
            kind, row, before = ("final", self._settle(reason), before) if reason else ("step", *self._decide())
            return self._commit(kind, {**row, "before_state": state.to_dict()}, began, before)
        return self._commit("done", self._finish(), began)

    def _begin(self) -> dict:
        arch = self.plan.architecture
        self.network = Network(arch, dict(self.plan.weights) if self.plan.weights is not None else initialise(arch, self.seed), {})
        chooser, options = self.plan.chooser
        from_names = chooser.init(options, horizon=max(1, self.spec.budget.steps), kinds=tuple(sorted({e.name for e, _ in self.plan.edits})))
        self.state = State(epochs=self.spec.train.epochs.first, chooser=from_names)
        return {}

    def _over(self) -> str:
        """Why growth ends here; empty while it goes on."""
        budget, state = self.spec.budget, self.state
        if state.step >= budget.steps:
            return f"all {budget.steps} steps of the budget are done"
        if state.nulls >= budget.patience:
            return f"nothing paid {state.nulls} times in a row"
        return "the time that the final phase needs is all that is left" if self._late() else ""

    def _late(self, began: float = 0.0, epochs: int = 0) -> bool:
        """Whether another epoch would overrun budget.time, less, while the network grows, what the final phase is owed.

        began, epochs: when the unit of work in progress began, and how many epochs it has trained.
        """
        budget = self.spec.budget.time
        if budget is None:
            return False
        spent = self.clock() - began if epochs else 0.0
        each = spent / epochs if epochs else self._epoch_seconds()
        # Not more than half is owed: on a slow machine there would be no growth; the final phase is cut instead.
        owed = min(each * self.spec.train.epochs.final, budget / 2) if self.state.phase == "growth" else 0.0
        return self.elapsed + spent + each + owed >= budget

    def _grow_on(self) -> None:
        """After an extension growth goes on where it ended: from the network before the final phase."""
        settled = next((e for e in reversed(self.run.events()) if e.kind == "final"), None)
        if self.state.phase != "growth" and settled is not None:
            self.state, self.network = State.from_dict(settled.payload["before_state"]), load_network(self.run, settled, "before_")
        self.state = replace(self.state, nulls=0)

    # -- training ---------------------------------------------------------------------------------------------------

    def _epochs(self, began: float) -> dict:
        """Epochs up to the end of the unit of work; fewer where the time is up."""
        begun, losses, rows = self.state, [], 0
        while True:
            row = self._epoch()
            losses.append(row["epoch_loss"])
            rows += row["rows"]
            if "status" in row or not goes_on(begun, self.state) or self._late(began, len(losses)):
                return {**row, "rows": rows, "losses": losses}

    def _epoch(self) -> dict:
        state, self._seen = self.state, None
        fold = self._final_fold() if state.phase == "final" else self.folds["train"]
        weights, moments, report, watch = epoch_after(self.plan, state, self.network, fold, leads_to_a_decision(self.plan, state))
        ahead = behind(state, self.network, report)
        row = {"epoch_loss": report.nats, "phase": state.phase, "rows": report.samples}
        # Nats add up over the outputs of a regression; a classification's are those of one label.
        allowed = DIVERGED * (self.plan.data.outputs if self.plan.data.task == "regression" else 1)
        if report.finite and report.nats <= max(ahead.mark, 0.0) + allowed:
            self.state, self.network = ahead, Network(self.network.arch, weights, moments)
            if watch is not None:
                self._seen = self._place(), watch.collect(weights)
            return row
        return {**row, **self._roll_back(replace(ahead, mark=state.mark))}

    def _roll_back(self, state: State) -> dict:
        """A diverged epoch: the edit it followed is undone and not offered again; without one, the final phase is left out."""
        if not state.edited and state.phase == "growth":
            raise DagrowError(
                f"training diverged in epoch {state.trained} before any edit", fix="lower the learning rate (train.optimizer.lr), or set train.clip"
            )
        last = next(e for e in reversed(self.run.events()) if e.kind in ("step", "final"))
        self.network = load_network(self.run, last, "before_" if state.phase == "growth" else "")
        banned = (*state.banned, *last.payload["keys"]) if state.phase == "growth" else state.banned
        self.state = replace(state, epoch=0 if state.phase == "growth" else state.epochs, edited=False, banned=banned, mark=None)
        return {"status": "diverged", "undone": last.payload.get("where", "")}

    def _final_fold(self) -> Fold:
        return self.plan.data.train_val.to(self.device) if self.spec.train.final_on == "train+val" else self.folds["train"]

    def _epoch_seconds(self) -> float:
        """What an epoch takes, by those seen last."""
        seen = [e for e in self.run.events()[-8:] if e.kind == "epoch"]
        return sum(e.times["seconds"] for e in seen) / sum(epochs_in(e) for e in seen) if seen else 0.0

    # -- deciding ---------------------------------------------------------------------------------------------------

    def evaluate(self, network: Network, fold: str) -> dict[str, float]:
        data = self.plan.data.folds[fold]
        return evaluate(compile_architecture(network.arch, network.weights), data, self.plan.recipe.loss)

    def _place(self) -> tuple[int, int]:
        return self.state.step, self.state.trained

    def gathered(self) -> Pass | None:
        """The rows that the epoch before a decision gathered; None where they get a pass of their own.

        They live in memory only: where they were gathered in another process, that epoch is computed again.
        """
        if self._seen is None or self._seen[0] != self._place():
            self._seen = self._place(), gathered_again(self.plan, self.run, self.state, self.folds["train"])
        return self._seen[1]

    def candidates(self, price_first: bool = True) -> Proposed:
        """The present network's candidate edits, the null edit first."""
        return self.raced(price_first).scored

    def raced(self, price_first: bool = True, tried: int = 0) -> Raced:
        """The candidates, and how many rows it took to tell them apart: enough to know the best `tried`, or as many as the chooser tries."""
        state, score = self.state, self.spec.score
        path = ("decide", state.step, len(state.banned))
        seen, network = self.gathered(), self._settled(path)
        evidence = measure(
            network.arch, network.weights, self.plan.data.train, self.plan.data.val, self.plan.recipe.loss, rows=score.rows, seed=self.seed, path=path,
            seen=seen,
        )
        chooser, options = self.plan.chooser
        looked_at = chooser.looks(options) if score.race else None
        contenders, taken = (None, 1) if looked_at is None else looked_at
        return race(
            evidence, self.plan.edits, self.plan.scorer, self.plan.limits, alpha=score.alpha, key=(self.seed, *path),
            price_first=price_first, banned=frozenset(state.banned), contenders=contenders and max(contenders, tried), taken=taken,
        )

    def _settled(self, path: tuple[int | str, ...]) -> Network:
        """From here on the network has the batch-norm statistics of its own weights."""
        rows = subsample(self.plan.data.train, self.spec.score.rows, self.seed, *path, "rows")
        self.network = replace(self.network, weights=settle_norms(self.network.arch, self.network.weights, rows))
        return self.network

    def bench(self, scored: list[Scored]) -> Bench:
        network, path = self.network, ("decide", self.state.step, len(self.state.banned))
        lr = rate_at(self.plan, self.state, 0, 1)
        train = self.plan.data.train
        rows = subsample(train, self.spec.score.rows, self.seed, *path, "rows")
        return Bench(
            network.arch, network.weights, network.moments, scored, self.plan.recipe, self.plan.limits, train, rows, self.plan.data.val,
            lr, self.seed, path,
        )

    def _decide(self) -> tuple[dict, Network]:
        """(what the journal says, the network it was decided about)."""
        state, scored = self.state, self.candidates()
        before = self.network
        if state.step == 0:
            _refuse_if_all_too_dear(scored)
        chooser, options = self.plan.chooser
        bench, made, outcomes = self.bench(scored), {}, []
        key, shown = (self.seed, state.step), [s.candidate for s in scored[: scored.valued]]
        while True:
            asked = chooser.ask(options, key, state.chooser, shown, outcomes)
            if isinstance(asked, Done):
                break
            for trial in asked.trials:
                made[trial] = bench.make(trial)
                outcomes.append(made[trial].outcome)
        taken = self._taken(asked, bench, made)
        val, train = self.evaluate(before, "val"), self.evaluate(before, "train")
        row = {
            "step": state.step, "note": asked.note, "candidates": len(scored) - 1,
            "eligible": sum(c.verdict == "grow" for c in shown), "trials": len(outcomes),
            "train_loss": train["loss"], "val_loss": val["loss"], **_describe(scored, taken, before.arch),
        }
        null = taken is None
        self.network = before if null else Network(taken.arch, taken.weights, taken.moments)
        self.state = replace(
            state, step=state.step + 1, epoch=0, epochs=self.spec.train.epochs.between, edited=not null, mark=train["loss"],
            nulls=(state.nulls + 1 if chooser.conclusive else 0) if null else 0, work=state.work + bench.spent,
            chooser=chooser.tell(options, state.chooser, shown, outcomes, None if null else taken.outcome.trial),
            best=self._better(val, before, len(self.run.events())), val=val, banned=() if not null else state.banned,
        )
        return row, before

    def _taken(self, done: Done, bench: Bench, made: dict[Trial, Measured]) -> Measured | None:
        """The chosen network, or None for the null edit; what the chooser took untried is tried now."""
        if done.choice is None or done.choice.members == (0,):
            return None
        taken = made.get(done.choice) or bench.make(done.choice)
        return taken if taken.arch is not None and taken.outcome.status == "ok" else None

    def _better(self, val: dict[str, float], network: Network, seq: int) -> dict:
        """The best network seen at a decision by the first objective; `seq` is the event that will hold it."""
        worth = self._worth(val, network.arch)
        old = self.state.best
        return {"worth": worth, "seq": seq, "val": val} if old is None or worth > old["worth"] else old

    def _worth(self, val: dict[str, float], arch: Architecture) -> float:
        first = self.spec.objectives[0] if self.spec.objectives else None
        known = {"val.loss": val["loss"], "val.accuracy": val.get("accuracy"), "val.r2": val.get("r2"), "params": arch.size, "macs": arch.macs}
        number = known.get(first.metric) if first else None
        return -val["loss"] if number is None else (number if first.direction == "maximize" else -number)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _settle(self, reason: str) -> dict:
        """From growth to the final phase, with the best network seen."""
        val = self.evaluate(self.network, "val")
        best = self._better(val, self.network, len(self.run.events()))
        before = self.network
        if best["seq"] < len(self.run.events()):
            self.network = load_network(self.run, self.run.events()[best["seq"]], "before_")
        epochs = self.spec.train.epochs.final
        left = None if self.spec.budget.time is None else self.spec.budget.time - self.elapsed
        if left is not None and epochs * self._epoch_seconds() > left:
            # The schedule is laid out over the epochs there is time for.
            epochs = max(min(epochs, 1), int(left / self._epoch_seconds()))
        self.state = replace(
            self.state, phase="final", epoch=0, epochs=epochs, best=best, val=best["val"], edited=False,
            mark=self.evaluate(self.network, "train")["loss"], reason=reason,
        )
        return {"note": reason, "val_loss": val["loss"], "kept": best["seq"], "params_last": before.arch.size}

    def _finish(self) -> dict:
        scores = {fold: self.evaluate(self.network, fold) for fold in ("train", "test")}
        # Rows trained on in the final phase are no longer held out: their loss is the one before it.
        val = self.state.val if self.spec.train.final_on == "train+val" else self.evaluate(self.network, "val")
        self.state = replace(self.state, phase="done", val=val)
        return {
            "steps": self.state.step, "train_loss": scores["train"]["loss"], "val_loss": val["loss"], "test_loss": scores["test"]["loss"],
            **{f"test_{k}": v for k, v in scores["test"].items() if k != "loss"}, "work": self.state.work,
        }

    # -- on disk ----------------------------------------------------------------------------------------------------

    def _commit(self, kind: str, row: dict, began: float, before: Network | None = None) -> Event:
        """`before`: the network a decision began with, to roll back to and to come back to; equal tensors are stored once."""
        payload = {**row, **self.network.row(), "state": self.state.to_dict()}
        tensors = self.network.tensors()
        if before is not None:
            payload["before_architecture"] = before.arch.to_dict()
            tensors |= {f"before_{group}": named for group, named in (tensors if before is self.network else before.tensors()).items()}
        self._since = self.clock()
        seconds = self._since - began
        self.elapsed += seconds
        event = self.run.commit(kind, payload, tensors, {"seconds": seconds})
        if kind in ("step", "final", "done"):
            self.tidy()
        return event

    def tidy(self) -> None:
        """Drops tensors that nothing can ask for any more, and lets the chooser show its state. Safe to repeat.

        Kept: all of the last event, of the last decision and of the best one; of other decisions the network each began
        with; when growth is over, also all that its last epochs began from: after an extension they are gathered again.
        """
        events = self.run.events()
        whole = {next(e.seq for e in reversed(events) if e.blobs), (self.state.best or {}).get("seq")}
        whole.add(next((e.seq for e in reversed(events) if e.kind in ("step", "final")), None))
        if self.state.phase != "growth" and self.spec.score.when == "training" and (grown := last_of_growth(events)):
            whole.add(grown[1].seq)
        self.run.prune(lambda event: list(event.blobs) if event.seq in whole else [g for g in event.blobs if g == "before_weights"])
        self.plan.chooser[0].publish(self.state.chooser, self.run.folder)


def _refuse_if_all_too_dear(scored: list[Scored]) -> None:
    verdicts = [s.candidate.verdict for s in scored[1:]]
    if verdicts and all(v in ("too dear", "unsupported") for v in verdicts) and "too dear" in verdicts:
        cheapest = min((s.candidate for s in scored[1:] if s.candidate.verdict == "too dear"), key=lambda c: c.params)
        raise NothingFits(
            f"no edit fits the budget: the cheapest of {verdicts.count('too dear')}, {cheapest.edit} {cheapest.where}, "
            f"adds {cheapest.params} parameters and {cheapest.macs} MACs",
            fix="raise budget.params or budget.macs, or offer smaller edits (units)",
        )


def _describe(scored: list[Scored], taken: Measured | None, parent: Architecture) -> dict:
    """What the journal and the log say of a decision."""
    if taken is None:
        return {"edit": "null", "where": "-", "units": None, "keys": []}
    parts = [scored[i] for i in taken.outcome.trial.members]
    return {
        "edit": "+".join(dict.fromkeys(p.candidate.edit for p in parts)), "where": ", ".join(p.candidate.where for p in parts),
        "units": sum(p.candidate.units or 0 for p in parts), "keys": [p.candidate.key for p in parts],
        "predicted": sum(p.gain.nats for p in parts), "stderr": sum(p.gain.stderr**2 for p in parts) ** 0.5,
        "z": min(p.gain.z for p in parts), "checked": taken.checked, "held": taken.held, "held_stderr": taken.held_stderr,
        "amplitude": taken.amplitude, "added_params": taken.arch.size - parent.size, "added_macs": taken.arch.macs - parent.macs,
    }
