"""match + score + value + price + budget -> candidates, the null edit always first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from dagrow.applying import Part
from dagrow.graph import Architecture, Refusal
from dagrow.measure import Evidence
from dagrow.measure.sites import Site
from dagrow.scores import Proposal, Scorer, serving
from dagrow.scores.valuer import Gain, scaled, value
from dagrow.select import Candidate

NULL = Candidate(0, "null", "-", None, 0.0, 0.0, 0.0, 0, 0, "null", "null -")


@dataclass(frozen=True)
class Limits:
    """The hard budget: trainable parameters, and MACs of one forward of one sample. None: no limit."""

    params: int | None = None
    macs: int | None = None

    def admit(self, arch: Architecture) -> bool:
        return (self.params is None or arch.size <= self.params) and (self.macs is None or arch.macs <= self.macs)


@dataclass(frozen=True)
class Scored:
    """A candidate with what it would take to make it real; `reason` says why it cannot be, where it cannot."""

    candidate: Candidate
    part: Part | None = None
    gain: Gain = Gain()
    reason: str = ""


def sites(arch: Architecture, edits: Sequence[tuple[type, object]]) -> Iterator[tuple[type, object, Site]]:
    """Every site of every edit of the spec; an edit listed twice offers a site once."""
    seen = set()
    for edit, options in edits:
        for site in edit.match(arch, options):
            if site.key not in seen:
                seen.add(site.key)
                yield edit, options, site


def fitting(arch: Architecture, edit: type, site: Site, units: int, limits: Limits) -> tuple[int, Architecture] | Refusal:
    """(units, architecture) at `units` units, or the most below that fit the budget; Refusal where none do."""
    made = edit.rewrite(arch, site, Proposal(units=units))
    if isinstance(made, Refusal) or limits.admit(made.arch):
        return made if isinstance(made, Refusal) else (units, made.arch)
    dear = Refusal("over the budget")
    for fewer in _guesses(arch, made.arch, units, limits):
        made = edit.rewrite(arch, site, Proposal(units=fewer))
        if not isinstance(made, Refusal) and limits.admit(made.arch):
            return fewer, made.arch
    return dear


def _guesses(arch: Architecture, big: Architecture, units: int, limits: Limits) -> Iterator[int]:
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
) -> list[Scored]:
    """All candidates, best gain first behind the null edit.

    A growing candidate's verdict is "grow" where its site's gain is signal on held-out rows: z above the normal quantile
    of 1 - alpha / m for m growing sites. With `price_first` what cannot fit is not scored.
    """
    pricing, found = _Pricing(evidence, scorer, limits, key, price_first), {}
    for edit, options, site in sites(evidence.arch, edits):
        for units in site.units if site.key not in banned else ():
            made = pricing.grown(edit, options, site, units) if site.form.grows else pricing.shrunk(edit, options, site, units)
            found[made.candidate.key, made.candidate.units] = made
    last = ("unsupported", "too dear")
    order = sorted(
        _judge(list(found.values()), alpha), key=lambda s: (s.candidate.verdict in last, -s.candidate.gain, s.candidate.params, s.candidate.key)
    )
    numbered = [replace(s, candidate=replace(s.candidate, index=k)) for k, s in enumerate(order, start=1)]
    return [Scored(NULL), *numbered]


@dataclass(frozen=True)
class _Pricing:
    """Makes one site at one size into a candidate."""

    evidence: Evidence
    scorer: Scorer
    limits: Limits
    key: tuple[int | str, ...]
    price_first: bool

    def grown(self, edit: type, options: object, site: Site, units: int) -> Scored:
        fit = fitting(self.evidence.arch, edit, site, units, self.limits)
        dear = fit.reason if isinstance(fit, Refusal) else ""
        if dear:
            full = edit.rewrite(self.evidence.arch, site, Proposal(units=units))
            if isinstance(full, Refusal):
                return self._out(edit, site, units, "unsupported", full.reason)
            if self.price_first:
                return self._out(edit, site, units, "too dear", dear, full.arch)
            fit = units, full.arch
        units, made = fit
        proposal, gain = self._valued(site, units)
        if gain.status != "ok":
            return self._out(edit, site, units, "unsupported", proposal.reason or gain.status)
        if proposal.units < units:  # the evidence holds no more directions than that
            units, made = proposal.units, edit.rewrite(self.evidence.arch, site, proposal).arch
        part = Part(edit, options, site, scaled(site, proposal, gain.amplitude))
        return self._in(part, units, "too dear" if dear else "noise", made, gain, dear)

    def shrunk(self, edit: type, options: object, site: Site, units: int) -> Scored:
        proposal, gain = self._valued(site, units)
        made = edit.rewrite(self.evidence.arch, site, proposal) if gain.status == "ok" else Refusal(proposal.reason or gain.status)
        if isinstance(made, Refusal):
            return self._out(edit, site, units, "unsupported", made.reason)
        return self._in(Part(edit, options, site, proposal), units, "shrink", made.arch, gain)

    def _valued(self, site: Site, units: int) -> tuple[Proposal, Gain]:
        rule = serving(self.scorer, site.form)
        if rule is None:
            return Proposal("unsupported", "no scorer serves such a site"), Gain(status="unsupported")
        proposal = rule.propose(self.evidence, site, units, self.key)
        return proposal, value(self.evidence, site, proposal)

    def _in(self, part: Part, units: int, verdict: str, made: Architecture, gain: Gain, reason: str = "") -> Scored:
        return Scored(self._candidate(part.edit, part.site, units, verdict, made, gain), part, gain, reason)

    def _out(self, edit: type, site: Site, units: int, verdict: str, reason: str, made: Architecture | None = None) -> Scored:
        return Scored(self._candidate(edit, site, units, verdict, made or self.evidence.arch, Gain()), None, Gain(), reason)

    def _candidate(self, edit: type, site: Site, units: int, verdict: str, made: Architecture, gain: Gain) -> Candidate:
        arch = self.evidence.arch
        return Candidate(
            0, edit.name, site.where, units, gain.nats, gain.stderr, gain.z, made.size - arch.size, made.macs - arch.macs, verdict, site.key
        )


def _judge(found: list[Scored], alpha: float) -> list[Scored]:
    """A site is noise until its largest proposal has shown itself to be signal: one test a site, at alpha / sites."""
    heads: dict[str, Scored] = {}
    for s in found:
        if s.candidate.verdict == "noise" and (s.candidate.key not in heads or s.candidate.gain > heads[s.candidate.key].candidate.gain):
            heads[s.candidate.key] = s
    bar = NormalDist().inv_cdf(1 - alpha / max(len(heads), 1))
    signal = {key for key, s in heads.items() if s.gain.z > bar and s.gain.nats > 0}
    return [
        replace(s, candidate=replace(s.candidate, verdict="grow")) if s.candidate.verdict == "noise" and s.candidate.key in signal and s.gain.nats > 0 else s
        for s in found
    ]
