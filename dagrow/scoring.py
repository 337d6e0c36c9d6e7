"""Where a network lacks capacity: its candidate edits as rows of plain numbers, and what all of them rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass

from torch import Tensor

from dagrow import edits
from dagrow.compiler import compile_architecture
from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.growth import Search
from dagrow.losses import Loss
from dagrow.measure import Pass
from dagrow.propose import Scored
from dagrow.racing import Raced
from dagrow.select import Candidate, trial_of
from dagrow.standing import Network, Plan
from dagrow.train import outputs
from dagrow.trials import Bench, Measured

# What is worth doing first; verdicts that are not named come before what cannot be done.
FIRST, LAST = ("grow",), ("noise", "shrink", "too dear", "unsupported")
TESTED = ("grow", "noise")


@dataclass(frozen=True)
class Row:
    """One candidate edit, in nats per sample; `gain` ± `stderr` is predicted on training rows.

    held ± held_stderr: what the same step is predicted to bring on rows never trained on; z: its slope there over the
    slope's standard error. checked ± checked_stderr: as measured by real forwards on the training rows; checked_held ±
    checked_held_stderr: on held-out rows (for what needs a trial, after an epoch of training, against the present network
    trained as long); None where it was not among the few tried. units: None for an edit that has no such number. params,
    macs: what it adds. verdict: grow, noise, trial (only one can tell), shrink, too dear or unsupported; reason: why.
    trial: "ok", or what the real forwards found wrong; empty: not tried.
    """

    edit: str
    where: str
    units: int | None
    gain: float
    stderr: float
    z: float
    checked: float | None
    params: int
    macs: int
    verdict: str
    reason: str = ""
    held: float = 0.0
    held_stderr: float = 0.0
    checked_stderr: float | None = None
    checked_held: float | None = None
    checked_held_stderr: float | None = None
    trial: str = ""

    @property
    def valued(self) -> bool:
        """Whether there is a prediction."""
        return bool(self.gain or self.stderr)

    @property
    def unseen(self) -> float:
        """What it brings on rows never trained on: as measured where it was tried, else as predicted."""
        return self.held if self.checked_held is None else self.checked_held

    @property
    def failed(self) -> str:
        """What real forwards found wrong with it; empty where they found nothing, or were not made."""
        return self.trial if self.trial != "ok" else ""


@dataclass(eq=False, repr=False, kw_only=True)
class Scores(list[Row]):
    """A list of rows, best first, and what all of them rest on.

    rows: training rows it took to tell the sites apart; rows_needed: training rows that would capture 85% of the best gain,
    None where nothing stands out (racing.Raced). held_rows: held-out rows tested on. bar: the z a site must exceed, of
    `sites` tested at level `alpha` together; signal: how many do. train_loss, val_loss: nats per sample of the network as
    it is. candidates: how many there are; the list may hold fewer.
    """

    found: InitVar[Iterable[Row]] = ()
    rows: int = 0
    held_rows: int = 0
    rows_needed: int | None = None
    alpha: float = 0.05
    bar: float = 0.0
    sites: int = 0
    signal: int = 0
    train_loss: float = math.nan
    val_loss: float = math.nan
    candidates: int = 0

    def __post_init__(self, found: Iterable[Row]) -> None:
        self.extend(found)

    @property
    def best(self) -> Row | None:
        """The edit to make: of those that stand out from noise and did not fail, the one with most gain, as measured where it was."""
        able = [r for r in self if r.verdict == "grow" and not r.failed]
        return max(able, key=lambda r: (False, r.gain) if r.checked is None else (True, r.checked), default=None)

    def objects(self) -> list[dict]:
        """One plain mapping for each row, with the numbers that all of them share."""
        shared = {"rows": self.rows, "rows_needed": self.rows_needed, "bar": self.bar, "sites": self.sites, "alpha": self.alpha}
        return [{**r.__dict__, **shared} for r in self]


def scored(
    plan: Plan, network: Network, step: int, top: int | None = None, verify: int | None = None, seen: Pass | None = None
) -> Scores:
    """The candidate edits of a network that stands at decision `step`, at most `top` of them; the best `verify` (None: as the
    spec says) are tried. seen: training rows gathered on the way there; None: they get a pass of their own."""
    verify = plan.spec.score.verify if verify is None else verify
    work = Search.standing(plan, network, step, seen)
    raced = work.raced(price_first=False, tried=verify)
    network = work.network  # with the batch-norm statistics that it was scored with
    return table(
        raced, work.bench(raced.scored), top=top, verify=verify, alpha=plan.spec.score.alpha, held_rows=min(len(plan.data.val.x), plan.spec.score.rows),
        losses=(work.evaluate(network, "train")["loss"], work.evaluate(network, "val")["loss"]),
    )


def table(raced: Raced, bench: Bench, *, top: int | None, verify: int, alpha: float, held_rows: int, losses: tuple[float, float]) -> Scores:
    """The candidates found, at most `top` of them, the best `verify` tried on `bench`. losses: on training and held-out rows."""
    found = raced.scored
    full = found[1 : found.valued]
    heads = _heads(full)
    shown = sorted(full, key=lambda s: _rank(s.candidate.verdict))[:top]
    shown += found[found.valued : None if top is None else found.valued + top - len(shown)]
    able = [s.candidate for s in shown if s.part is not None and s.candidate.verdict != "too dear"]
    tried = {c.index: bench.make(trial_of(c, 0)) for c in able[:verify]}
    paired = _Paired(bench.recipe.loss, bench.rows, bench.arch, bench.weights)
    return Scores(
        found=[_row(s, tried.get(s.candidate.index), heads.get(s.candidate.key), raced.bar, paired) for s in shown],
        rows=raced.rows, rows_needed=raced.rows_needed, held_rows=held_rows, alpha=alpha,
        bar=raced.bar, sites=found.tested, signal=sum(c.verdict == "grow" for c in heads.values()),
        train_loss=losses[0], val_loss=losses[1], candidates=len(found) - 1,
    )  # fmt: skip


def _rank(verdict: str) -> int:
    order = (*FIRST, "", *LAST)
    return order.index(verdict if verdict in order else "")


def _heads(found: Sequence[Scored]) -> dict[str, Candidate]:
    """site -> the candidate that it is judged by: its largest gain."""
    heads: dict[str, Candidate] = {}
    for c in (s.candidate for s in found):
        if c.verdict in TESTED and (c.key not in heads or c.gain > heads[c.key].gain):
            heads[c.key] = c
    return heads


@dataclass(frozen=True)
class _Paired:
    """Compares networks with the present one row by row."""

    loss: Loss
    rows: Fold
    arch: Architecture
    weights: Mapping[str, Tensor]

    def stderr(self, arch: Architecture, weights: Mapping[str, Tensor]) -> float:
        """Standard error of the drop in nats."""
        old, new = (outputs(compile_architecture(*pair), self.rows.x) for pair in ((self.arch, self.weights), (arch, weights)))
        variance = self.loss.variance(old, self.rows.y)
        change = self.loss.each(old, self.rows.y, variance=variance).double() - self.loss.each(new, self.rows.y, variance=variance).double()
        return float(change.std() / len(change) ** 0.5)


def _row(s: Scored, tried: Measured | None, head: Candidate | None, bar: float, paired: _Paired) -> Row:
    c, outcome = s.candidate, tried and tried.outcome
    status = "" if outcome is None else outcome.status
    made = {}
    if outcome is not None and outcome.trial.epochs and outcome.usable:
        made = {"checked_held": outcome.gain, "checked_held_stderr": outcome.stderr}
    elif outcome is not None and not outcome.trial.epochs and tried.arch is not None and math.isfinite(tried.checked):
        made = {"checked_held": tried.held, "checked_held_stderr": tried.held_stderr, "checked_stderr": paired.stderr(tried.arch, tried.weights)}
    why = s.reason or (_judged(c, head, bar) if head is not None and c.verdict in TESTED else "")
    units = c.units if "units" in edits.REGISTRY.get(c.edit).Options.model_fields else None
    return Row(
        c.edit, c.where, units, c.gain, c.stderr, c.z, tried.checked if "checked_stderr" in made else None, c.params, c.macs, c.verdict,
        "; ".join(filter(None, (why, status if status != "ok" else ""))), s.gain.held, s.gain.held_stderr, trial=status, **made,
    )  # fmt: skip


def _judged(c: Candidate, head: Candidate, bar: float) -> str:
    """How its site's test, which its largest proposal stands for, made a candidate what it is, where its own z does not say it."""
    if c.verdict == "noise" and (head.z > bar or c.gain <= 0):
        return "no gain"
    if c.verdict == "grow" and c.z > bar:
        return ""
    digits = 1 if f"{head.z:.1f}" != f"{bar:.1f}" else 4
    return ("" if head is c else f"judged at +{head.units}: ") + f"z {head.z:.{digits}f} {'>' if head.z > bar else '<'} {bar:.{digits}f}"


__all__ = ["Row", "Scores", "scored", "table"]
