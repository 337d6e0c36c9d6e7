"""Racing the sites: as few training rows as the choice between them needs.

All sites are scored on the first eighth of the rows. A site is out when its gain lies below that of the best, or when it
can no longer stand out from noise; the rest are scored again on twice the rows, or at once on as many as they look like
needing. The race ends when no more sites are left than a chooser tries, or none. They are then proposed from all rows.

What is signal is decided on held-out rows, and all of them are there at every look: they are few, it is cheap to value a
proposal on them, and a test on half of them would only be a weaker one. Looking at them several times takes a correction.
A site is signal where it passes at any look; of alpha / sites each look before the last may spend a twentieth, and the
last has what is left (Haybittle 1971, Peto et al. 1976). The shares add up to alpha / sites whatever the looks have in
common and whatever ends the race, so the level holds by Bonferroni's inequality. It costs little: a race ends early where
the best site stands out by far (z above 3.5 for 12 sites), as a gain worth having does; a site that does not is tested on
all rows, at a bar of 2.7 where a single look has 2.6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from dagrow.applying import Part
from dagrow.measure import Evidence
from dagrow.propose import NULL, Limits, Proposed, Scored, places, propose
from dagrow.scores import Scorer

# A gain's interval is so many standard errors either way, and reaches up by what more rows could add: a proposal from n rows
# loses about (p + q) / (2 n) nats, p and q the fan-in and fan-out of a unit. On 24 small networks of four kinds, with 637 to
# 4,096 rows, the gain on all rows lay above that on a half to an eighth of them by .1 to .7 of this (medians by kind). With
# this upper end the race's best site was that of all rows on each, from .51 of the rows; without it on 23, from .32.
SPREAD = 1.5
# What z may be too low by, where it also grows as the root of the rows: as it does while the proposal is mostly noise.
HOPE = 1.0
# What a look before the last spends of alpha.
EARLY = 0.05
# The share of the best site's gain that rows_needed leaves.
LOST = 0.15
# The fewest training rows of a first look.
FEWEST = 64
# Below so many rows a race costs more time than it saves: a first look takes .3 to .4 of the time of all rows (some does not depend
# on rows, some goes to held-out ones), and the races that go on to the end pay for it. Time with a race over time without, at the
# four decisions of one search over up to 16 sites: .8 to 2.2 on 4,096 rows, .8 to 1.8 on 8,192, .4 to .9 on 16,384.
WORTHWHILE = 16384
GROWTH, LAST = ("grow", "noise", "trial"), ("unsupported", "too dear")
KINDS = (GROWTH, ("shrink",), ("too dear",))


@dataclass(frozen=True)
class Raced:
    """The candidates as `propose` gives them, and what the choice rests on.

    rows: training rows that proposals had to be fitted on to choose between the sites (how far each step lowers the loss is
    asked by forwards on `Evidence.now`, which may be more). rows_needed: rows that would capture all but LOST of the best
    site's gain; None where nothing stands out. reason: how the race ended, in a line. bar: the z that a site must exceed on
    all rows.
    """

    scored: Proposed
    rows: int
    rows_needed: int | None
    reason: str
    bar: float


def race(
    evidence: Evidence,
    edits: Sequence[tuple[type, object]],
    scorer: Scorer,
    limits: Limits,
    *,
    alpha: float,
    key: tuple[int | str, ...],
    banned: frozenset[str] = frozenset(),
    price_first: bool = True,
    first: int | None = None,
    contenders: int | None = 3,
    taken: int = 1,
    least: int = WORTHWHILE,
    refit: bool = True,
) -> Raced:
    """The candidates of `propose`, from as few rows as it takes to know the best places.

    first: training rows of the first look; None: an eighth. contenders: how many places a chooser tries; None: any, so
    that all sites are scored on all rows. taken: how many of them it makes at once: a site is out when it is behind so many
    by the intervals of their gains. least: with fewer rows than these, no more sites than contenders, or several made at
    once (which are seldom told apart early), there is no time to save, and the first look has all; 0: rows are saved whatever
    that takes. refit: those left when fewer rows were enough are proposed again from all that are there, the last look.

    A site that is out keeps the gain it had and comes behind those that are not; its verdict is "noise" at best, its reason
    "dropped after N rows": gains from few rows are not to be compared with gains from many.
    """
    rows, sites = evidence.train.rows, sum(len(p.chosen) for p in places(evidence.arch, edits))
    free = contenders is None or (least > 0 and (sites <= contenders or taken > 1 or rows < least))
    run = _Race([rows] if free else _ladder(rows // 8 if first is None else first, rows), alpha, contenders or 1, taken)

    def look(n: int, only: frozenset[str] | None = None) -> Proposed:
        return propose(
            evidence.head(n), edits, scorer, limits, alpha=run.level(n, only), key=key, price_first=price_first, banned=banned, only=only,
        )

    n = run.ladder[0]
    begun = look(n)
    run.begin(n, begun)
    while n < rows and not run.settled():
        n = run.next_after(n)
        run.take(n, look(n, run.alive()))
    if refit and n < rows and run.alive():
        run.take(rows, look(rows, run.alive()))
    return Raced(begun.headed(run.table()), n, run.rows_needed(), run.reason(n, evidence.held.rows), run.bar(run.ladder[-1]))


def _ladder(first: int, rows: int) -> list[int]:
    """The looks a race may have: all rows, and half of the next as long as that is at least `first`."""
    found = [rows]
    while (found[0] + 1) // 2 >= max(first, FEWEST):
        found.insert(0, (found[0] + 1) // 2)
    return found


def _ends(s: Scored, n: int) -> tuple[float, float]:
    """The interval that a gain from `n` rows leaves for one from all."""
    return s.gain.nats - SPREAD * s.gain.stderr, s.gain.nats + SPREAD * s.gain.stderr + freedom(s.part) / (2 * n)


def _head(found: Sequence[Scored]) -> Scored:
    """What a site is judged by: its largest proposal, of those that may be made where there are such."""
    return max(found, key=lambda s: (s.candidate.verdict not in LAST, s.gain.nats))


@dataclass
class _Race:
    """Where the race stands. `last`: site -> its candidates at its last look. `out`: site -> the rows at which it was dropped.

    Sites run against those of their kind: growth (`shown` has those that were signal at some look), shrinking, and what is
    too dear and only looked at. What is left to a trial is never out.
    """

    ladder: Sequence[int]
    alpha: float
    contenders: int
    taken: int
    last: dict[str, list[Scored]] = field(default_factory=dict)
    out: dict[str, int] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    tested: int = 0

    def share(self, n: int) -> float:
        """What a look at `n` rows spends of alpha."""
        return EARLY if n < self.ladder[-1] else 1 - EARLY * (len(self.ladder) - 1)

    def bar(self, n: int) -> float:
        """The z that a site must exceed at a look at `n` rows."""
        return NormalDist().inv_cdf(1 - self.alpha * self.share(n) / max(self.tested, 1))

    def level(self, n: int, only: frozenset[str] | None) -> float:
        """alpha for a look at `n` rows at some of the sites: each is held to the bar of all."""
        if only is None or not self.tested:
            return self.alpha * self.share(n)
        return self.alpha * self.share(n) * max(len(only & set(self.running(GROWTH))), 1) / self.tested

    def running(self, kind: Sequence[str]) -> dict[str, Scored]:
        """Site -> head, of the sites of a kind that are not out."""
        heads = {k: _head(found) for k, found in self.last.items() if k not in self.out}
        return {k: s for k, s in heads.items() if s.candidate.verdict in kind and s.part is not None and s.gain.status == "ok"}

    def alive(self) -> frozenset[str]:
        """Sites to look at again."""
        trials = {k for k, found in self.last.items() if any(s.gain.status == "trial" for s in found)}
        return frozenset(trials.union(*(self.running(kind) for kind in KINDS)))

    def begin(self, n: int, found: Proposed) -> None:
        """The first look."""
        self.tested = found.tested
        self.take(n, found[: found.valued])

    def take(self, n: int, found: Iterable[Scored]) -> None:
        """A look at `n` rows: who is signal, and who is out."""
        fresh: dict[str, list[Scored]] = {}
        for s in found:
            if s.candidate.index:
                fresh.setdefault(s.candidate.key, []).append(s)
        self.last |= fresh
        growth = self.running(GROWTH)
        self.shown |= {k for k, s in growth.items() if s.candidate.verdict == "grow"}
        if n == self.ladder[-1]:
            return
        hope = self.bar(self.ladder[-1]) * (n / self.ladder[-1]) ** 0.5 - HOPE
        self.out |= {k: n for k, s in growth.items() if k not in self.shown and s.gain.z < hope}
        for kind in KINDS:
            heads = self.running(kind)
            # A chooser looks at no growth but signal: what is not, or not yet, pushes nobody out.
            line = self._line([s for k, s in heads.items() if kind is not GROWTH or k in self.shown], n)
            self.out |= {k: n for k, s in heads.items() if _ends(s, n)[1] < line}

    def _line(self, heads: Sequence[Scored], n: int) -> float:
        """The gain that a site must be able to reach: the lower end of the places that are taken."""
        best: dict[str, float] = {}
        for s in heads:
            best[s.candidate.where] = max(best.get(s.candidate.where, -math.inf), _ends(s, n)[0])
        ends = sorted(best.values(), reverse=True)
        return ends[self.taken - 1] if len(ends) >= self.taken else -math.inf

    def settled(self) -> bool:
        """Whether no more places are left than are tried, the best of them signal."""
        kinds = [self.running(kind) for kind in KINDS]
        best = sorted(kinds[0], key=lambda k: -kinds[0][k].gain.nats)[: self.taken]
        return self.shown.issuperset(best) and all(len({s.candidate.where for s in heads.values()}) <= self.contenders for heads in kinds)

    def next_after(self, n: int) -> int:
        """The next look: the first to settle the race if things go on as they are; all rows where none does."""
        return next((m for m in self.ladder if m > n and self._settles(n, m)), self.ladder[-1])

    def _settles(self, n: int, m: int) -> bool:
        """Whether `m` rows would do, with gains as on `n`: z rises where that makes it signal, and stays where it does not."""
        ahead, more = replace(self, last=dict(self.last), out=dict(self.out), shown=set(self.shown)), (m / n) ** 0.5
        for kind in KINDS:
            for k, s in self.running(kind).items():
                ahead.last[k] = [replace(s, gain=replace(s.gain, stderr=s.gain.stderr / more))]
                if kind is GROWTH and s.gain.z * more > self.bar(m):
                    ahead.shown.add(k)
        ahead.take(m, ())
        return ahead.settled()

    # -- the answer -------------------------------------------------------------------------------------------------

    def table(self) -> list[Scored]:
        """All candidates as `propose` orders and numbers them, those that were dropped behind the others."""
        made = [self._judged(s) for found in self.last.values() for s in found]
        made.sort(key=lambda s: (s.candidate.verdict in LAST, s.candidate.key in self.out, -s.candidate.gain, s.candidate.params, s.candidate.key))
        return [Scored(NULL), *(replace(s, candidate=replace(s.candidate, index=k)) for k, s in enumerate(made, start=1))]

    def _judged(self, s: Scored) -> Scored:
        n, verdict = self.out.get(s.candidate.key), s.candidate.verdict
        if n is not None:
            reason = "; ".join(filter(None, (s.reason, f"dropped after {n:,} rows")))
            return replace(s, reason=reason, candidate=replace(s.candidate, verdict="noise" if verdict in ("grow", "shrink") else verdict))
        if verdict in GROWTH and s.candidate.key in self.shown and s.gain.nats > 0:
            return replace(s, reason="", candidate=replace(s.candidate, verdict="grow"))
        return s

    def winners(self) -> list[Scored]:
        """The heads of the sites that are signal and were not dropped, best first."""
        return sorted((s for k, s in self.running(GROWTH).items() if k in self.shown and s.gain.nats > 0), key=lambda s: -s.gain.nats)

    def rows_needed(self) -> int | None:
        """Rows that capture all but LOST of the best site's gain: (p + q) / (2 LOST gain), p and q the fan-in and fan-out of a unit."""
        best = next(iter(self.winners()), None)
        return None if best is None else math.ceil(freedom(best.part) / (2 * LOST * best.gain.nats))

    def reason(self, n: int, held: int) -> str:
        rows = f"all {n:,} rows" if n == self.ladder[-1] else f"{n:,} of {self.ladder[-1]:,} rows"
        if not self.tested:
            return f"{rows}: there is nothing to grow"
        count = len(self.winners())
        if count:
            return f"{rows}: {count} of {self.tested} sites stand{'s' * (count == 1)} out"
        # A step along a true gain of G nats has a slope of 2 G and, where the model is calibrated, a variance of as much.
        seen = self.bar(self.ladder[-1]) ** 2 / (2 * held)
        return f"{rows}: none of {self.tested} sites can pay; a gain of about {seen:.2g} nats would have stood out"


def freedom(part: Part) -> int:
    """p + q: the numbers in the fan-in and the fan-out of one new unit, or of one direction through a new connection."""
    blocks = part.proposal.blocks
    each = sum(b.values.numel() // b.values.shape[b.axis] for b in blocks)
    return each + (blocks[0].values.shape[0] if len(blocks) == 1 else 0)


__all__ = ["Raced", "race"]
