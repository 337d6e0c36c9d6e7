"""The best few by score, tried for real; the best measured one wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic

from dagrow import registry
from dagrow.select import REGISTRY, Candidate, Chooser, Done, Trial, Try, best, label, proposable, proven, trial_of

# Nats per sample that single precision leaves of a function that is kept.
ROUNDING = 1e-6


@REGISTRY.register("greedy")
class Greedy(Chooser):
    """Try the best-scored candidates, take the one with the largest measured gain, or none.

    Of those that only a trial can tell about, a few are fine-tuned beside them, in turn from step to step.
    """

    class Options(registry.Options):
        """verify: how many trials of growth (where none pays, of shrinking; and of what needs a trial) a step may make.
        bundle: how many candidates at different places are applied together; the bundle of the best is tried first,
        the best single ones beside it. epochs: fine-tuning in a trial; 0 searches along the line only.
        tolerance: nats per sample that shrinking may cost. alpha: the level at which the gain of what needs a trial has to
        stand out, on held-out rows and shared among those tried; score.alpha unless given.
        """

        verify: Annotated[int, pydantic.Field(ge=1, le=1000)] = 3
        bundle: Annotated[int, pydantic.Field(ge=1, le=1000)] = 1
        epochs: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 0
        tolerance: Annotated[float, pydantic.Field(ge=0)] = 0.0
        alpha: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.05

    examples = ({}, {"bundle": 3, "verify": 2}, {"epochs": 1, "tolerance": 0.05})

    @staticmethod
    def looks(options):
        return max(options.verify, options.bundle), options.bundle

    @staticmethod
    def ask(options, key, state, candidates, outcomes):
        grown, missing = _split(_plan(options, proposable(candidates, ["grow"])), outcomes)
        untold = _in_turn(proposable(candidates, ["trial"]), key[1] * options.verify, options.verify)
        told, more = _split([trial_of(c, options.epochs) for c in untold], outcomes)
        if missing or more:
            return Try((*missing, *more))
        tried = [*grown, *told]
        winner = best([*grown, *proven(told, options.alpha)])
        if winner is not None and winner.gain > 0:
            return Done(winner.trial, _note(candidates, winner, len(tried)))
        # Nothing grows. What shrinks at no cost is worth having: the most parameters saved, then the best gain.
        shrinking = [Trial(c.index, options.epochs) for c in proposable(candidates, ["shrink"])[: options.verify]]
        shrunk, missing = _split(shrinking, outcomes)
        if missing:
            return Try(missing)
        harmless = [o for o in shrunk if o.usable and o.gain >= -max(options.tolerance, ROUNDING)]
        if harmless:
            winner = min(harmless, key=lambda o: (candidates[o.trial.index].params, -o.gain, o.trial.index))
            return Done(winner.trial, _note(candidates, winner, len(tried) + len(shrunk)))
        count = len(tried) + len(shrunk)
        return Done(None, f"none of {count} tried pays" if count else "no candidate beats noise inside the budget")


def _plan(options, ranked: Sequence[Candidate]) -> tuple[Trial, ...]:
    """The bundle of the best at different places, where there are two or more, then the best single ones."""
    places: dict[str, int] = {}
    for c in ranked:
        places.setdefault(c.where, c.index)
    together = tuple(places.values())[: options.bundle]
    trials = [Trial(together[0], options.epochs, together)] if len(together) > 1 else []
    # One single trial at least: a bundle may be over the budget where each of its members is not.
    singles = max(1, options.verify - len(trials))
    return (*trials, *(Trial(c.index, options.epochs) for c in ranked[:singles]))


def _in_turn(found: Sequence[Candidate], start: int, count: int) -> list[Candidate]:
    """`count` of them from place `start` on, round and round: nothing says which is best."""
    return [found[(start + k) % len(found)] for k in range(min(count, len(found)))]


def _split(trials, outcomes):
    """The outcomes of `trials`, and the trials that have none yet."""
    done = {o.trial.members: o for o in outcomes}
    return [done[t.members] for t in trials if t.members in done], tuple(t for t in trials if t.members not in done)


def _note(candidates, winner, count: int) -> str:
    names = " + ".join(label(candidates[i]) for i in winner.trial.members)
    return f"{names}: {winner.gain:+.4g} nats, the best of {count} tried"
