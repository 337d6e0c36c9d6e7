"""The one valuer: any proposal's worth in nats per sample, from the change it makes at its targets.

With dz that change, s_i = sum dz . v and t_i = sum dz . probe over positions and targets of one row:
growing is worth max(mean s, 0)^2 / (2 mean t^2) at amplitude mean s / mean t^2; dropping, at amplitude 1, is worth
mean s - mean t^2 / 2: a second-order expansion of the loss in the Gauss-Newton metric. It is what rows are tested with, and where the
line starts: how far along dz the loss really falls is asked of the rest of the network, by a few forwards on a part of the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagrow.measure import Evidence, Pass, Site
from dagrow.measure.carrying import Unsupported
from dagrow.measure.evidence import enough
from dagrow.measure.onward import drops
from dagrow.measure.sites import slopes_of
from dagrow.scores import Block, Proposal

Changes = dict[str, Tensor]
# Forwards along the line, more only until one lowers the loss; and how many times as far as the last one may look.
STEPS = 3
MOST_STEPS = 5
FARTHEST = 4.0
# Rows are valued so many values of the widest node at a time.
AT_ONCE = 1e6


@dataclass(frozen=True)
class Gain:
    """`nats` per sample on the rows fitted, with its standard error; `held` and `z` on rows never trained on.

    `quadratic`: the second-order value that the line started from. `amplitude` multiplies the fan-out. status: ok, unsupported, nonfinite, or trial: a derivative says nothing.
    """

    nats: float = 0.0
    stderr: float = 0.0
    held: float = 0.0
    held_stderr: float = 0.0
    z: float = 0.0
    amplitude: float = 1.0
    status: str = "ok"
    quadratic: float = 0.0


def slopes(seen: Pass, site: Site, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """(s, t) per row: the form says what a change does, and what it is measured against."""
    return slopes_of(site.form, seen, site.form.effect(seen, proposal))


def _first(seen: Pass, site: Site, proposal: Proposal) -> tuple[Changes, Tensor, Tensor]:
    """(changes of at least the rows that a line looks at, s and t of all), some rows at a time where maps are large."""
    widest = max(math.prod(shape) for shape in seen.arch.shapes.values())
    rows = max(enough(seen.arch, seen.rows), int(AT_ONCE // widest)) if site.form.rowwise else seen.rows
    changes, found = None, []
    for part in seen.parts(rows):
        change = site.form.effect(part, proposal)
        found.append(slopes_of(site.form, part, change))
        changes = change if changes is None else changes
        del change
    s, t = (torch.cat(x) for x in zip(*found, strict=True))
    return changes, s, t


def stderr(x: Tensor) -> float:
    return float(x.std(unbiased=True) / len(x) ** 0.5) if len(x) > 1 else float("inf")


def value(evidence: Evidence, site: Site, proposal: Proposal) -> Gain:
    """Prices any proposal. Never raises for numbers: a value that is not finite comes back as a status."""
    return _valued(evidence, site, proposal, line=True)


def quadratic(evidence: Evidence, site: Site, proposal: Proposal) -> Gain:
    """The value to second order alone, without forwards."""
    return _valued(evidence, site, proposal, line=False)


def _valued(evidence: Evidence, site: Site, proposal: Proposal, line: bool) -> Gain:
    if proposal.status != "ok":
        return Gain(status=proposal.status)
    try:
        changes, s, t = _first(evidence.train, site, proposal)
        unseen = site.form.effect(evidence.held, proposal)
        hs, ht = slopes_of(site.form, evidence.held, unseen)
    except Unsupported:
        return Gain(status="unsupported")
    except torch.linalg.LinAlgError:  # NaN in the network's own values
        return Gain(status="nonfinite")
    curve = float((t**2).mean())
    if site.form.grows:
        amplitude = max(float(s.mean()), 0.0) / curve if curve > 0 else 0.0
        nats, error = amplitude * float(s.mean()) / 2, amplitude * stderr(s)
    else:
        amplitude, nats, error = 1.0, float(s.mean()) - curve / 2, stderr(s - t**2 / 2)
    tested = site.form.tested(evidence.held, unseen) if site.form.grows else hs
    first = stderr(tested)
    z = float(hs.mean()) / first if first > 0 else 0.0
    row = amplitude * hs - amplitude**2 * ht**2 / 2
    gain = Gain(nats, error, float(row.mean()), stderr(row), z, amplitude, quadratic=nats)
    if line and _finite(gain) and amplitude and evidence.train.loss is not None:
        if evidence.now is not None:
            changes = site.form.effect(evidence.now, proposal)
        gain = _along(evidence, site, proposal, gain, changes, unseen, float(s.mean()))
    return gain if _finite(gain) else Gain(status="nonfinite")


def _finite(gain: Gain) -> bool:
    return all(map(math.isfinite, (gain.nats, gain.stderr, gain.held, gain.held_stderr, gain.z, gain.amplitude)))


def _along(evidence: Evidence, site: Site, proposal: Proposal, gain: Gain, changes: Changes, unseen: Changes, slope: float) -> Gain:
    """The gain as real forwards find it: from the second-order step on, each next amplitude by the parabola through the last drop."""
    seen, held = evidence.now or evidence.train, evidence.held
    part, other = ({t: c[: enough(p.arch, p.rows)] for t, c in given.items()} for p, given in ((seen, changes), (held, unseen)))
    # Of several targets one may lie below another: what it gains is known when the network has been run so far.
    again = (lambda ahead: site.form.effect(ahead, proposal)) if site.form.rowwise and len(part) > 1 else None
    nats, amplitude, error, ahead = -math.inf, gain.amplitude, gain.stderr, gain.amplitude
    for step in range(MOST_STEPS if site.form.grows else 1):
        if step >= STEPS and nats > 0:
            break
        drop, each = drops(seen, part, ahead, again)
        if not math.isfinite(drop):
            ahead /= 8
            continue
        if drop > nats:
            nats, amplitude, error = drop, ahead, stderr(each)
        bend = 2 * (slope * ahead - drop) / ahead**2
        vertex = slope / bend if bend > 0 and slope > 0 else ahead * FARTHEST
        ahead = min(max(vertex, ahead / 32), ahead * FARTHEST)
    drop, each = drops(held, other, amplitude, again)
    if site.form.grows and nats <= 0:
        nats, amplitude = 0.0, gain.amplitude
    return replace(gain, nats=nats, stderr=error, held=drop, held_stderr=stderr(each), amplitude=amplitude)


def scaled(site: Site, proposal: Proposal, amplitude: float) -> Proposal:
    """The proposal with its fan-out, counted from where it starts, and what gives way to it times `amplitude`."""
    start = {(b.param, b.axis): b.values for b in proposal.start}

    def at(block: Block) -> Block:
        begin = start.get((block.param, block.axis), 0.0)
        return replace(block, values=begin + (block.values - begin) * amplitude)

    blocks = tuple(at(b) if (b.param, b.axis) in site.form.outgoing else b for b in proposal.blocks)
    shift = {n: change * amplitude for n, change in proposal.shift.items()} if site.form.grows else proposal.shift
    return replace(proposal, blocks=blocks, shift=shift)
