"""match + price + budget + screen + score + value -> candidates, the null edit always first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import overload

import numpy as np

from dagrow.applying import Part
from dagrow.edits.sameness import meaning
from dagrow.graph import Architecture, Cost, Refusal, Rewrite
from dagrow.measure import Evidence
from dagrow.measure.grid import Grid
from dagrow.measure.sites import Site
from dagrow.offered import Places, named, places, sites
from dagrow.scores import Proposal, Scorer, serving
from dagrow.scores.valuer import Gain, scaled, value
from dagrow.select import Candidate

__all__ = ["NULL", "Limits", "Places", "Proposed", "Scored", "fitting", "places", "propose", "sites"]
NO_GAIN = Gain()
NULL = Candidate(0, "null", "-", None, 0.0, 0.0, 0.0, 0, 0, "null", "null -")


@dataclass(frozen=True)
class Limits:
    """The hard budget: trainable parameters, and MACs of one forward of one sample. None: no limit."""

    params: int | None = None
    macs: int | None = None

    def admit(self, arch: Architecture | Cost) -> bool:
        return (self.params is None or arch.size <= self.params) and (self.macs is None or arch.macs <= self.macs)


@dataclass(frozen=True)
class Scored:
    """A candidate with what it would take to make it real; `reason` says why it cannot be, where it cannot."""

    candidate: Candidate
    part: Part | None = None
    gain: Gain = NO_GAIN
    reason: str = ""


class Proposed(Sequence[Scored]):
    """All candidates, the null edit first. The first `valued` are those scored in full, and those that cannot be made;
    behind them, best first, are the sites that were screened out, each made into a candidate when it is asked for.

    `tested`: the sites whose gain was held against noise.
    """

    def __init__(self, head: list[Scored], tested: int, screened: _Screened | None = None):
        self._head, self._tail = head, screened
        self.tested = tested

    @property
    def valued(self) -> int:
        return len(self._head)

    def headed(self, head: list[Scored]) -> Proposed:
        """The same with other candidates before the sites that were screened out."""
        return Proposed(head, self.tested, self._tail)

    def __len__(self) -> int:
        return len(self._head) + (len(self._tail.order) if self._tail else 0)

    @overload
    def __getitem__(self, k: int) -> Scored: ...
    @overload
    def __getitem__(self, k: slice) -> list[Scored]: ...
    def __getitem__(self, k):
        if isinstance(k, slice):
            return [self[j] for j in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        k %= len(self)
        return self._head[k] if k < len(self._head) else self._tail.scored(k - len(self._head), k)


def fitting(arch: Architecture, edit: type, site: Site, units: int, limits: Limits) -> tuple[int, Cost] | Refusal:
    """(units, cost) at `units` units, or the most below that fit the budget; Refusal where none do."""
    cost = edit.price(arch, site, Proposal(units=units))
    if isinstance(cost, Refusal) or limits.admit(cost):
        return cost if isinstance(cost, Refusal) else (units, cost)
    for fewer in _guesses(arch, cost, units, limits):
        smaller = edit.price(arch, site, Proposal(units=fewer))
        if not isinstance(smaller, Refusal) and limits.admit(smaller):
            return fewer, smaller
    return Refusal("over the budget")


def _guesses(arch: Architecture, big: Cost, units: int, limits: Limits) -> Iterator[int]:
    """Cost grows with units nearly in proportion, so two guesses find the most that fit."""
    room = [(limits.params, arch.size, big.size), (limits.macs, arch.macs, big.macs)]
    fits = [units * (limit - now) // (then - now) for limit, now, then in room if limit is not None and then > now]
    guess = min([units - 1, *fits])
    for fewer in (guess, guess - 1):
        if fewer >= 1:
            yield fewer


def propose(
    evidence: Evidence,
    edits: Sequence[tuple[type, object]],
    scorer: Scorer,
    limits: Limits,
    *,
    alpha: float,
    key: tuple[int | str, ...],
    price_first: bool = True,
    banned: frozenset[str] = frozenset(),
    refine: int = 16,
    only: frozenset[str] | None = None,
) -> Proposed:
    """All candidates, best gain first behind the null edit.

    A growing candidate's verdict is "grow" where its site's gain is signal on held-out rows: z above the normal quantile
    of 1 - alpha / m for m growing sites. With `price_first` what cannot fit is not scored.

    Of more growing sites than `refine`, only so many are scored in full: the best by the scorer's screen, which sees the
    training rows only; those that it does not understand besides. The others are "noise" for the reason "screened", and m
    is the number scored in full: chosen without a look at the held-out rows, they are as many tests as there are of them,
    whatever they were chosen from. `banned`: keys of sites that are left out; `only`: those that are not.
    """
    pricing, found = _Pricing(evidence, scorer, limits, key, price_first), {}
    offered = places(evidence.arch, edits)
    if only is not None:
        offered = [p.but(np.intersect1d(p.chosen, named(p, only))) for p in offered]
    if banned:
        offered = [p.but(np.setdiff1d(p.chosen, named(p, banned))) for p in offered]
    chosen, screened = _screen(evidence, scorer, offered, pricing, refine)
    for at in chosen:
        for site in at:
            for units in site.units:
                made = (pricing.grown if site.form.grows else pricing.shrunk)(at.edit, at.options, site, units)
                found[made.candidate.key, made.candidate.units] = made
    last = ("unsupported", "too dear")
    judged, tested = _judge(_once(evidence.arch, list(found.values())), alpha)
    order = sorted(judged, key=lambda s: (s.candidate.verdict in last, -s.candidate.gain, s.candidate.params, s.candidate.key))
    numbered = [replace(s, candidate=replace(s.candidate, index=k)) for k, s in enumerate(order, start=1)]
    return Proposed([Scored(NULL), *numbered], tested, screened)


def _screen(evidence: Evidence, scorer: Scorer, offered: list[Places], pricing: _Pricing, refine: int) -> tuple[list[Places], _Screened | None]:
    """(what is scored in full, what is not), from the gains that the scorer expects of all sites at once."""
    growing = [at for at in offered if len(at.chosen) and at.sites[0].form.grows and not at.sites[0].form.settles]
    if sum(len(at.chosen) for at in growing) <= refine:
        return offered, None
    expected = {id(at): _expected(evidence, scorer, at) for at in growing}
    fits = {id(at): pricing.affordable(at) for at in growing}
    # Half of the places go to the best of each edit: what is expected of different edits compares less well than of one.
    sure = {k: _best(np.where(fits[k], e, np.nan), refine // (2 * len(growing))) for k, e in expected.items()}
    others = np.concatenate([np.where(fits[k] & ~sure[k], e, np.nan) for k, e in expected.items()])
    more = _best(others, refine - sum(int(s.sum()) for s in sure.values()))
    kept, left, start = [], [], 0
    for at in offered:
        if id(at) not in expected:
            kept.append(at)
            continue
        gains, stop = expected[id(at)], start + len(at.chosen)
        # What the scorer does not say is scored in full; what does not fit is priced, not scored.
        full = sure[id(at)] | more[start:stop] | ~np.isfinite(gains) | ~fits[id(at)]
        kept.append(at.but(at.chosen[full]))
        left.append((at.but(at.chosen[~full]), gains[~full]))
        start = stop
    return kept, _Screened.of(left, pricing)


def _best(gains: np.ndarray, count: int) -> np.ndarray:
    """Which are the `count` largest, of equals the first; not-a-number never is."""
    chosen = np.zeros(len(gains), bool)
    chosen[np.argsort(-gains, kind="stable")[:count]] = True
    return chosen & np.isfinite(gains)


def _expected(evidence: Evidence, scorer: Scorer, at: Places) -> np.ndarray:
    """What the scorer that serves these sites expects of each [sites]; NaN where it does not say."""
    rule = serving(scorer, at.sites[int(at.chosen[0])].form)
    found = None if rule is None else rule.screen(evidence, at.sites)
    return np.full(len(at.chosen), np.nan) if found is None else np.asarray(found, float)[at.chosen]


@dataclass(frozen=True)
class _Screened:
    """Sites that were not scored in full. `order` [sites, 2]: (which of `groups`, which of its sites), best first."""

    groups: list[tuple[Places, np.ndarray]]
    order: np.ndarray
    pricing: _Pricing

    @staticmethod
    def of(groups: list[tuple[Places, np.ndarray]], pricing: _Pricing) -> _Screened | None:
        gains = np.concatenate([gains for _, gains in groups])
        if not len(gains):
            return None
        sizes = [len(gains) for _, gains in groups]
        rows = np.stack([np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])], 1)
        return _Screened(groups, rows[np.argsort(-gains, kind="stable")], pricing)

    def scored(self, k: int, index: int) -> Scored:
        g, place = self.order[k].tolist()
        at, gains = self.groups[g]
        return self.pricing.screened(at.edit, at.sites[int(at.chosen[place])], max(float(gains[place]), 0.0), index)


@dataclass(frozen=True)
class _Pricing:
    """Makes one site at one size into a candidate."""

    evidence: Evidence
    scorer: Scorer
    limits: Limits
    key: tuple[int | str, ...]
    price_first: bool

    def affordable(self, at: Places) -> np.ndarray:
        """[sites]: whether a site is to be scored, as far as its price goes: at one of its sizes, or smaller, it fits."""
        if not self.price_first or self.limits == Limits():
            return np.ones(len(at.chosen), bool)

        def fits(k: int) -> bool:
            site = at.sites[k]
            return any(not isinstance(fitting(self.evidence.arch, at.edit, site, u, self.limits), Refusal) for u in site.units)

        if not isinstance(at.sites, Grid):
            return np.array([fits(k) for k in at.chosen.tolist()], bool)
        _, first, kind = np.unique(at.sites.kinds[at.chosen], return_index=True, return_inverse=True)
        return np.array([fits(int(at.chosen[k])) for k in first], bool)[kind.reshape(-1)]

    def screened(self, edit: type, site: Site, gain: float, index: int) -> Scored:
        """A candidate that was not scored in full, at the largest of its sizes that fits."""
        fit = next((f for u in reversed(site.units) if not isinstance(f := fitting(self.evidence.arch, edit, site, u, self.limits), Refusal)), None)
        units, cost = fit or (site.units[-1], None)
        return Scored(replace(self._candidate(edit, site, units, "noise", cost, Gain(gain)), index=index), reason="screened")

    def grown(self, edit: type, options: object, site: Site, units: int) -> Scored:
        fit = fitting(self.evidence.arch, edit, site, units, self.limits)
        dear = fit.reason if isinstance(fit, Refusal) else ""
        if dear:
            full = edit.price(self.evidence.arch, site, Proposal(units=units))
            if isinstance(full, Refusal):
                return self._out(edit, site, units, "unsupported", full.reason)
            if self.price_first:
                return self._out(edit, site, units, "too dear", dear, full)
            fit = units, full
        units, cost = fit
        proposal, gain = self._valued(site, units)
        if gain.status == "trial":
            return self._in(Part(edit, options, site, proposal), units, "too dear" if dear else "trial", cost, gain, dear or proposal.reason)
        if gain.status != "ok":
            return self._out(edit, site, units, "unsupported", proposal.reason or gain.status)
        if proposal.units < units:  # the evidence holds no more directions than that
            units, cost = proposal.units, edit.price(self.evidence.arch, site, proposal)
        part = Part(edit, options, site, scaled(site, proposal, gain.amplitude))
        return self._in(part, units, "too dear" if dear else "noise", cost, gain, dear)

    def shrunk(self, edit: type, options: object, site: Site, units: int) -> Scored:
        proposal, gain = self._valued(site, units)
        cost = edit.price(self.evidence.arch, site, proposal) if gain.status == "ok" else Refusal(proposal.reason or gain.status)
        if isinstance(cost, Refusal):
            return self._out(edit, site, units, "unsupported", cost.reason)
        return self._in(Part(edit, options, site, proposal), units, "shrink", cost, gain)

    def _valued(self, site: Site, units: int) -> tuple[Proposal, Gain]:
        rule = serving(self.scorer, site.form)
        if rule is None:
            return Proposal("unsupported", "no scorer serves such a site"), Gain(status="unsupported")
        proposal = rule.propose(self.evidence, site, units, self.key)
        return proposal, value(self.evidence, site, proposal)

    def _in(self, part: Part, units: int, verdict: str, cost: Cost, gain: Gain, reason: str = "") -> Scored:
        return Scored(self._candidate(part.edit, part.site, units, verdict, cost, gain), part, gain, reason)

    def _out(self, edit: type, site: Site, units: int, verdict: str, reason: str, cost: Cost | None = None) -> Scored:
        return Scored(self._candidate(edit, site, units, verdict, cost, Gain()), None, Gain(), reason)

    def _candidate(self, edit: type, site: Site, units: int, verdict: str, cost: Cost | None, gain: Gain) -> Candidate:
        arch = self.evidence.arch
        size, macs = cost or (arch.size, arch.macs)
        return Candidate(0, edit.name, site.where, units, gain.nats, gain.stderr, gain.z, size - arch.size, macs - arch.macs, verdict, site.key)


def _once(arch: Architecture, found: list[Scored]) -> list[Scored]:
    """Of candidates of different edits that lead to the same network the best: one edit does not offer a network twice."""
    groups: dict[tuple, list[Scored]] = {}
    for s in found:
        if s.part is not None:
            groups.setdefault((s.candidate.params, s.candidate.macs), []).append(s)
    gone: set[int] = set()
    for group in groups.values():
        if len({(s.part.edit, s.part.options) for s in group}) < 2:
            continue
        known: dict[tuple, Scored] = {}
        for s in sorted(group, key=lambda s: (s.gain.status != "ok", -s.candidate.gain)):
            made = s.part.edit.rewrite(arch, s.part.site, s.part.proposal)
            if isinstance(made, Rewrite) and known.setdefault(meaning(arch, made), s) is not s:
                gone.add(id(s))
    return [s for s in found if id(s) not in gone]


def _judge(found: list[Scored], alpha: float) -> tuple[list[Scored], int]:
    """A site is noise until its largest proposal has shown itself to be signal: one test a site, at alpha / sites; how many they are."""
    heads: dict[str, Scored] = {}
    for s in found:
        if s.candidate.verdict == "noise" and (s.candidate.key not in heads or s.candidate.gain > heads[s.candidate.key].candidate.gain):
            heads[s.candidate.key] = s
    bar = NormalDist().inv_cdf(1 - alpha / max(len(heads), 1))
    signal = {key for key, s in heads.items() if s.gain.z > bar and s.gain.nats > 0}
    judged = [_told(s, s.candidate.key in signal and s.gain.nats > 0) if s.candidate.verdict == "noise" else s for s in found]
    return judged, len(heads)


def _told(s: Scored, signal: bool) -> Scored:
    """With the verdict of its site's test; what derivatives cannot settle is left to a trial."""
    if signal:
        return replace(s, candidate=replace(s.candidate, verdict="grow"))
    if s.part is not None and s.part.site.form.trial:
        return replace(s, candidate=replace(s.candidate, verdict="trial"), reason="its derivative is lost in noise")
    return s
