"""Every site of a network with what scorers promise for it and what real forwards find: the rows of table T3."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from truth_nets import Stage, more

from dagrow.applying import Applied, Part, apply, refresh_norms
from dagrow.compiler import compile_architecture, plain_name
from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture, Refusal
from dagrow.measure import Drop, Evidence, Link, Site, measure
from dagrow.measure.parents import parents
from dagrow.propose import sites
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores import Proposal, Scorer
from dagrow.scores.valuer import Gain, scaled, slopes, value
from dagrow.train import outputs
from dagrow.trials import AMPLITUDES

UNITS = 2
# Of the amplitude a scorer predicts, which is wrong by as much as its curvature is.
GRID = tuple(1e-3 * 256e3 ** (k / 26) for k in range(27))
GOLDEN = (math.sqrt(5) - 1) / 2
REFINED = 8  # steps of golden section: the amplitude to about 1%
BRANCHES, SETTLED = 3, 150  # what remove is tried on: the network with so many branches more, trained for so many steps
PATH = ("truth",)


@dataclass(frozen=True)
class Contender:
    """What is held against the truth: a scorer's candidates, and what is promised for them."""

    scorer: str
    curvature: str = "rademacher"
    published: bool = False
    forwards: bool = True

    def promised(self, scorer: Scorer, evidence: Evidence, site: Site, gain: Gain) -> float:
        if self.published:
            return scorer.predicted(evidence, site, UNITS)
        return gain.nats if self.forwards else gain.quadratic


# quadratic: natural's candidates by their second-order value alone. tiny: the published prediction; tiny+line: the same candidates under our valuer.
GROWING = {
    "natural": Contender("natural"), "quadratic": Contender("natural", forwards=False), "importance": Contender("natural", "importance"), "empirical": Contender("natural", "empirical"),
    "tiny": Contender("tiny", published=True), "tiny+line": Contender("tiny"), "random": Contender("random"),
}  # fmt: skip


def made(name: str) -> Scorer:
    cls = SCORERS.get(name)
    return cls(cls.Options())


def offered(arch: Architecture, **edits: Mapping) -> Iterator[tuple[type, object, Site]]:
    """Every site of the edits named, each with its options."""
    return sites(arch, [(EDITS.get(n), EDITS.get(n).Options(**o)) for n, o in edits.items()])


def gathered(stage: Stage, rows: int, curvature: str = "rademacher") -> Evidence:
    evidence = measure(stage.arch, stage.weights, stage.train, stage.val, stage.loss, rows=rows, seed=stage.seed, path=PATH, curvature=curvature)
    if evidence.train.rows != len(stage.train):
        raise RuntimeError(f"measured on {evidence.train.rows} rows, forwards are on {len(stage.train)}")
    return evidence


def real(stage: Stage, arch: Architecture, weights: Mapping[str, Tensor], fold: Fold | None = None) -> float:
    """Nats per sample by a forward of all training rows (regression: its residual variance fitted anew)."""
    fold = fold or stage.train
    return float(stage.loss.nats(outputs(compile_architecture(arch, weights), fold.x).double(), _wide(fold.y)))


def blind(arch: Architecture, site: Site) -> bool:
    """Whether all that new units would read is read by the target's parents already."""
    form = site.form
    sources, targets = ((form.source,), (form.target,)) if isinstance(form, Link) else (form.sources, form.targets)
    return all(set(sources) <= {arch.nodes[p].inputs[0] for p in parents(arch, t)} for t in targets)


# ---- growing

def growth_rows(stage: Stage, contenders: Mapping[str, Contender], after: int, rows: int) -> list[dict]:
    """A row for each site and contender: predicted, ls (the best drop along the line), checked (at the amplitudes that
    a search tries), amplitude, and after: the drop `after` training steps later, against the parent trained equally."""
    before = real(stage, stage.arch, stage.weights)
    later = None
    if after:
        later = real(stage, stage.arch, more(stage, stage.weights, stage.moments, stage.arch, after, (*PATH, "after"))[0])
    known: dict[str, Evidence] = {}
    tried: dict[tuple, tuple[Gain, dict]] = {}
    found = []
    for label, contender in contenders.items():
        evidence = known.setdefault(contender.curvature, None) or gathered(stage, rows, contender.curvature)
        known[contender.curvature] = evidence
        scorer = made(contender.scorer)
        for edit, options, site in offered(stage.arch, widen={"units": UNITS}, deepen={"units": UNITS}, connect={}):
            place = (contender.scorer, contender.curvature, site.key)
            if place not in tried:
                proposal = scorer.propose(evidence, site, UNITS, (stage.seed, *PATH))
                gain = value(evidence, site, proposal)
                tried[place] = gain, _line(stage, edit, options, site, proposal, gain, before, later, after)
            gain, line = tried[place]
            row = {"scorer": label, "site": site.key, "blind": blind(stage.arch, site), "status": gain.status, **line}
            if gain.status == "ok":
                row |= {"predicted": contender.promised(scorer, evidence, site, gain), "stderr": gain.stderr, "held": gain.held, "z": gain.z}
            found.append(row)
    return found


def _line(stage: Stage, edit: type, options, site: Site, proposal: Proposal, gain: Gain, before: float, later: float | None, after: int) -> dict:
    if gain.status != "ok":
        return {}
    part = Part(edit, options, site, scaled(site, proposal, gain.amplitude) if gain.amplitude > 0 else proposal)
    applied = apply(stage.arch, stage.weights, stage.moments, stage.recipe.optimizer.slots, [part], (stage.seed, *PATH, "newborn"))
    if not isinstance(applied, Applied):
        return {"refused": applied.reason}
    at = _along(stage, applied)
    coarse = max(0.0, *(before - at(a) for a in AMPLITUDES))
    amplitude, least = searched(at, before)
    row = {"checked": coarse, "ls": before - least, "amplitude": amplitude, "params": applied.arch.size - stage.arch.size}
    if later is not None:
        start = refresh_norms(applied.arch, applied.weights(amplitude), stage.train)
        weights, _ = more(stage, start, applied.moments, applied.arch, after, (*PATH, "after"))
        row["after"] = later - real(stage, applied.arch, weights)
    return row


def _along(stage: Stage, applied: Applied) -> Callable[[float], float]:
    """amplitude -> nats by a forward. Refreshed norms would not change it: they keep the function in eval mode."""
    model = compile_architecture(applied.arch, applied.full)
    live = {plain_name(n): t for n, t in (*model.named_parameters(), *model.named_buffers())}
    y = _wide(stage.train.y)

    def at(amplitude: float) -> float:
        with torch.no_grad():
            for name, w in applied.weights(amplitude).items():
                live[name].copy_(w)
        nats = float(stage.loss.nats(outputs(model, stage.train.x).double(), y))
        return nats if math.isfinite(nats) else math.inf

    return at


def searched(at: Callable[[float], float], zero: float) -> tuple[float, float]:
    """(amplitude, value) of the least value along a line: the best of a logarithmic grid, refined by golden section; 0 if none is lower."""
    values = [at(a) for a in GRID]
    best = min(range(len(GRID)), key=values.__getitem__)
    found = {0.0: zero, **dict(zip(GRID, values, strict=True))}
    low, high = math.log(GRID[max(best - 1, 0)]), math.log(GRID[min(best + 1, len(GRID) - 1)])
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    known = [at(math.exp(p)) for p in inner]
    for _ in range(REFINED):
        found |= {math.exp(p): v for p, v in zip(inner, known, strict=True)}
        if known[0] <= known[1]:
            high, inner = inner[1], [inner[1] - GOLDEN * (inner[1] - low), inner[0]]
            known = [at(math.exp(inner[0])), known[0]]
        else:
            low, inner = inner[0], [inner[1], inner[0] + GOLDEN * (high - inner[0])]
            known = [known[1], at(math.exp(inner[1]))]
    amplitude = min(found, key=lambda a: (found[a], a))
    return amplitude, found[amplitude]


# ---- shrinking

def shrink_rows(stage: Stage, rows: int, edit: str = "prune") -> list[dict]:
    """A row for each unit (prune) or branch (remove) that could go, and for each way of pricing it. drop: by a real forward after the
    survivors made up for what they could (negative: the loss rises); plain: the same without that.

    gram: the valuer's price of the compensated removal; magnitude: less the norm of the unit's fan-in; taylor: less the
    mean absolute first-order change (Molchanov et al. 2017), both of the removal without compensation.
    """
    evidence, before = gathered(stage, rows), real(stage, stage.arch, stage.weights)
    gram, found = made("gram"), []
    for kind, options, site in offered(stage.arch, **{edit: {}}):
        for name, one, finish in _single(site):
            proposal = gram.propose(evidence, one, 1, (stage.seed, *PATH))
            gain = value(evidence, one, proposal)
            row = {"site": f"{site.key} {name}".strip(), "status": gain.status}
            if gain.status == "ok":
                bare = replace(proposal, shift={})
                row["drop"], row["plain"] = (before - _after(stage, kind, options, site, finish(p)) for p in (proposal, bare))
                first, _ = slopes(evidence.train, one, bare)
                found.append({**row, "scorer": "gram", "predicted": gain.nats, "stderr": gain.stderr})
                found.append({**row, "scorer": "taylor", "predicted": -float(first.abs().mean())})
                if isinstance(site.form, Drop):
                    found.append({**row, "scorer": "magnitude", "predicted": -_norm(stage, site, name)})
            else:
                found.append({**row, "scorer": "gram"})
    return found


def branched(stage: Stage, rows: int) -> Stage:
    """The stage's network with the branches (deepen, connect) that natural promises most for, trained on."""
    evidence, scorer, parts = gathered(stage, rows), made("natural"), []
    for edit, options, site in offered(stage.arch, deepen={"units": UNITS}, connect={}):
        proposal = scorer.propose(evidence, site, UNITS, (stage.seed, *PATH))
        gain = value(evidence, site, proposal)
        if gain.status == "ok" and gain.nats > 0:
            parts.append((gain.nats, Part(edit, options, site, scaled(site, proposal, gain.amplitude))))
    best, grown = [], None
    for _, part in sorted(parts, key=lambda p: -p[0]):
        made_so = apply(stage.arch, stage.weights, stage.moments, stage.recipe.optimizer.slots, [*best, part], (stage.seed, *PATH, "newborn"))
        if len(best) < BRANCHES and not isinstance(made_so, Refusal):  # some edits take the place of others
            best, grown = [*best, part], made_so
    start = refresh_norms(grown.arch, grown.weights(), stage.train)
    weights, moments = more(stage, start, grown.moments, grown.arch, SETTLED, (*PATH, "branched"))
    return replace(stage, arch=grown.arch, weights=weights, moments=moments)


def _single(site: Site) -> Iterator[tuple[str, Site, Callable[[Proposal], Proposal]]]:
    """(unit, a site that offers this unit alone, its proposal -> the whole site's) for every unit of a site."""
    form = site.form
    if not isinstance(form, Drop):
        yield "", site, lambda proposal: proposal
        return
    for unit in range(form.size):
        columns = tuple(tuple(0 if c == unit else -1 for c in held) for held in form.columns)
        keep = tuple(u for u in range(form.size) if u != unit)
        yield str(unit), replace(site, form=replace(form, size=1, columns=columns)), lambda p, keep=keep: replace(p, keep=keep)


def _after(stage: Stage, edit: type, options, site: Site, proposal: Proposal) -> float:
    part = Part(edit, options, site, proposal)
    applied = apply(stage.arch, stage.weights, stage.moments, stage.recipe.optimizer.slots, [part], (stage.seed, *PATH, "newborn"))
    return real(stage, applied.arch, refresh_norms(applied.arch, applied.weights(), stage.train)) if isinstance(applied, Applied) else math.nan


def _norm(stage: Stage, site: Site, unit: str) -> float:
    axis = stage.arch.axes[site.form.axis]
    rows = [(u.node, stage.arch.derived.units(axis.id, f"{u.node}.weight", 0)) for u in axis.writes]
    mine = [stage.weights[f"{w}.weight"][[k for k, c in enumerate(units) if c == int(unit)]] for w, units in rows]
    return float(torch.cat([m.flatten() for m in mine]).double().norm())


def _wide(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y
