"""Ways of choosing among candidates: one file per chooser, each found by name.

A chooser is a set of pure functions around a plain JSON state, so replay gives the same choices. It asks, the engine
answers: `ask` says which candidates to try, or that it is done; the engine applies each, searches along its line or
fine-tunes it, measures the gain and asks again with the outcomes of the step so far; `tell` makes the next step's state.
Gains and standard errors are in nats per sample, positive is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

from dagrow.registry import Options, Registry

REGISTRY = Registry("chooser", __name__, verb="choosers")
Key = tuple[int, int]  # (seed, step): all that a chooser's draws may depend on


@dataclass(frozen=True)
class Candidate:
    """One priced proposal. Candidate 0 of every list is the null edit: verdict "null", gain 0.

    verdict: "grow" (beats noise), "noise", "too dear" (outside the hard budget), "unsupported", "null", "shrink" (its gain
    is minus what it costs) or "trial" (no estimate says what it gains: never taken without a trial). `gain` and `stderr` are estimates; `params` and `macs` are changes.
    """

    index: int
    edit: str
    where: str
    units: int | None
    gain: float
    stderr: float
    z: float
    params: int
    macs: int
    verdict: str
    key: str


@dataclass(frozen=True)
class Trial:
    """Apply candidate `index` - with all of `bundle`, of which it is the first, where that is not empty -
    search along the line (`epochs` 0) or fine-tune for `epochs`, and measure."""

    index: int
    epochs: int = 0
    bundle: tuple[int, ...] = ()

    @property
    def members(self) -> tuple[int, ...]:
        """Every candidate applied."""
        return self.bundle or (self.index,)

    def to_dict(self) -> dict[str, Any]:
        return {"index": self.index, "epochs": self.epochs, "bundle": list(self.bundle)}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Trial:
        return Trial(int(value["index"]), int(value["epochs"]), tuple(int(i) for i in value["bundle"]))


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: `gain` and `stderr` mean something where `status` is "ok" only."""

    trial: Trial
    gain: float
    stderr: float
    status: str = "ok"

    @property
    def usable(self) -> bool:
        return self.status == "ok" and math.isfinite(self.gain)

    def to_dict(self) -> dict[str, Any]:
        """JSON: a number that is not finite becomes None."""
        number = {k: (v if math.isfinite(v) else None) for k, v in (("gain", self.gain), ("stderr", self.stderr))}
        return {"trial": self.trial.to_dict(), **number, "status": self.status}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Outcome:
        gain, stderr = (math.nan if value[k] is None else float(value[k]) for k in ("gain", "stderr"))
        return Outcome(Trial.from_dict(value["trial"]), gain, stderr, str(value["status"]))


@dataclass(frozen=True)
class Try:
    """Trials to make, in any order; then ask again."""

    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Done:
    """The step's choice; None is the null edit. `note` says why, in a line."""

    choice: Trial | None
    note: str


class Chooser:
    """What every chooser provides. All functions are pure but `publish`.

    conclusive: whether choosing the null edit says that nothing pays (a random chooser's rejection does not), so that
    the loop may count it towards its patience. examples: options the contract kit runs the chooser with.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    conclusive: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @staticmethod
    def init(options, horizon: int = 1, kinds: Sequence[str] = ()) -> dict[str, Any]:
        """The first state: a plain JSON value. `horizon` is budget.steps, `kinds` the names of all edits."""
        return {}

    @staticmethod
    def looks(options) -> tuple[int, int] | None:
        """(how many places are tried, best estimates first, how many of them may be taken at once); None: it may be any."""
        return None

    @staticmethod
    def ask(options, key: Key, state, candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> Try | Done:
        """What to try next, or the choice, given the `outcomes` of this step's trials so far.

        Every trial asked for must come back as an outcome, in any order, with some status.
        """
        raise NotImplementedError

    @staticmethod
    def tell(options, state, candidates: Sequence[Candidate], outcomes: Sequence[Outcome], choice: Trial | None) -> dict[str, Any]:
        """The next step's state, given all outcomes of this step; `state` itself is left as it is."""
        return state

    @staticmethod
    def publish(state, folder: Path) -> None:
        """Write what others may want to see of the state into the run's folder; may be called again at any time."""


def proposable(candidates: Iterable[Candidate], verdicts: Iterable[str]) -> list[Candidate]:
    """The candidates with one of `verdicts` and a finite estimate, best gain first; the cheaper, then the earlier of equals."""
    allowed = set(verdicts)
    found = [c for c in candidates if c.verdict in allowed and c.index != 0 and math.isfinite(c.gain)]
    return sorted(found, key=lambda c: (-c.gain, c.params, c.index))


def trial_of(candidate: Candidate, epochs: int) -> Trial:
    """Fine-tuning for `epochs`; for an epoch at least where only a trial can tell: such a change pays once weights have followed it."""
    return Trial(candidate.index, max(1, epochs) if candidate.verdict == "trial" else epochs)


def proven(outcomes: Sequence[Outcome], alpha: float) -> list[Outcome]:
    """The usable outcomes whose gain stands out from its standard error: one-sided, at `alpha` shared among all of them."""
    bar = NormalDist().inv_cdf(1 - alpha / max(len(outcomes), 1))
    return [o for o in outcomes if o.usable and math.isfinite(o.stderr) and o.gain > max(bar * o.stderr, 0.0)]


def best(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The usable outcome with the largest gain, the earliest of equals."""
    return max((o for o in outcomes if o.usable), key=lambda o: (o.gain, -o.trial.index), default=None)


def label(candidate: Candidate) -> str:
    """`widen hidden (4)`: the candidate in a note."""
    return " ".join(filter(None, (candidate.edit, candidate.where, candidate.units is not None and f"({candidate.units})")))
