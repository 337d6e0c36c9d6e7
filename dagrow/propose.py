"""match + score + value + price + budget -> candidates, the null edit always first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from dagrow.applying import Part
from dagrow.graph import Architecture, Refusal
from dagrow.measure import Evidence
from dagrow.measure.sites import Site, Units
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
    arch, found = evidence.arch, []
    for edit, options, site in sites(arch, edits):
        for units in sorted({min(u, max(site.units)) for u in site.units}):
            if site.key not in banned:
                found.append(_candidate(evidence, edit, options, site, units, scorer, limits, key, price_first))
    found = list({(s.candidate.key, s.candidate.units): s for s in found}.values())
    judged = _judge(found, alpha)
    order = sorted(judged, key=lambda s: (s.candidate.verdict in ("unsupported", "too dear"), -s.candidate.gain, s.candidate.params, s.candidate.key))
    numbered = [replace(s, candidate=replace(s.candidate, index=k)) for k, s in enumerate(order, start=1)]
    return [Scored(NULL), *numbered]


def _candidate(evidence, edit, options, site: Site, units: int, scorer, limits: Limits, key, price_first: bool) -> Scored:
    arch, reason = evidence.arch, ""
    made = arch
    growing = site.form.grows
    if growing:
        fit = fitting(arch, edit, site, units, limits)
        if isinstance(fit, Refusal):
            reason = fit.reason
            full = edit.rewrite(arch, site, Proposal(units=units))
            if isinstance(full, Refusal):
                return _refused(edit, site, units, "unsupported", full.reason)
            made = full.arch
            if price_first:
                return _refused(edit, site, units, "too dear", reason, made.size - arch.size, made.macs - arch.macs)
        else:
            units, made = fit
    rule = serving(scorer, site.form)
    if rule is None:
        return _refused(edit, site, units, "unsupported", f"no scorer for {type(site.form).__name__}")
    proposal = rule.propose(evidence, site, units, key)
    gain = value(evidence, site, proposal)
    if gain.status != "ok":
        return _refused(edit, site, units, "unsupported", proposal.reason or gain.status)
    if growing:
        if proposal.units < units and isinstance(site.form, Units):  # no more directions than that
            units, made = proposal.units, edit.rewrite(arch, site, proposal).arch
        proposal = scaled(site, proposal, gain.amplitude)
    else:
        shrunk = edit.rewrite(arch, site, proposal)
        if isinstance(shrunk, Refusal):
            return _refused(edit, site, units, "unsupported", shrunk.reason)
        made = shrunk.arch
    verdict = "too dear" if reason else ("noise" if growing else "shrink")
    candidate = Candidate(
        0, edit.name, site.where, units, gain.nats, gain.stderr, gain.z, made.size - arch.size, made.macs - arch.macs, verdict, site.key
    )
    return Scored(candidate, Part(edit, options, site, proposal), gain, reason)


def _refused(edit, site: Site, units: int, verdict: str, reason: str, params: int = 0, macs: int = 0) -> Scored:
    return Scored(Candidate(0, edit.name, site.where, units, 0.0, 0.0, 0.0, params, macs, verdict, site.key), None, Gain(), reason)


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
