"""The one valuer: any proposal's worth in nats per sample, from the change it makes at its targets.

With dz that change, s_i = sum dz . v and t_i = sum dz . probe over positions and targets of one row:
growing is worth max(mean s, 0)^2 / (2 mean t^2) at amplitude mean s / mean t^2; dropping, at amplitude 1, is worth
mean s - mean t^2 / 2: a second-order expansion of the loss in the Gauss-Newton metric.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagrow.measure import Evidence, Pass, Site, flat
from dagrow.measure.features import Unsupported
from dagrow.scores import Block, Proposal


@dataclass(frozen=True)
class Gain:
    """`nats` per sample on the rows fitted, with its standard error; `held` and `z` on rows never trained on.

    `amplitude` multiplies the fan-out. status: ok, unsupported, nonfinite, or trial: a derivative says nothing.
    """

    nats: float = 0.0
    stderr: float = 0.0
    held: float = 0.0
    held_stderr: float = 0.0
    z: float = 0.0
    amplitude: float = 1.0
    status: str = "ok"


def slopes(seen: Pass, site: Site, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """(s, t) per row: the form says what a change does, and what it is measured against."""
    s = t = torch.zeros(seen.rows, dtype=torch.float64)
    for target, change in site.form.effect(seen, proposal).items():
        s = s + (change * site.form.gradient(seen, target)).sum((1, 2), dtype=torch.float64)
        t = t + (change * flat(seen.probe[target])).sum((1, 2), dtype=torch.float64)
    return s, t


def stderr(x: Tensor) -> float:
    return float(x.std(unbiased=True) / len(x) ** 0.5) if len(x) > 1 else float("inf")


def value(evidence: Evidence, site: Site, proposal: Proposal) -> Gain:
    """Prices any proposal. Never raises for numbers: a value that is not finite comes back as a status."""
    if proposal.status != "ok":
        return Gain(status=proposal.status)
    try:
        s, t = slopes(evidence.train, site, proposal)
        hs, ht = slopes(evidence.held, site, proposal)
    except Unsupported:
        return Gain(status="unsupported")
    except torch.linalg.LinAlgError:  # NaN in the network's own values
        return Gain(status="nonfinite")
    curve, held_curve = float((t**2).mean()), float((ht**2).mean())
    if site.form.grows:
        amplitude = max(float(s.mean()), 0.0) / curve if curve > 0 else 0.0
        nats, error = amplitude * float(s.mean()) / 2, amplitude * stderr(s)
    else:
        amplitude, nats, error = 1.0, float(s.mean()) - curve / 2, stderr(s - t**2 / 2)
    row = amplitude * hs - amplitude**2 * ht**2 / 2
    held_error = stderr(row)
    first = stderr(hs)
    z = float(hs.mean()) / first if first > 0 else 0.0
    gain = Gain(nats, error, amplitude * float(hs.mean()) - amplitude**2 * held_curve / 2, held_error, z, amplitude)
    numbers = torch.tensor([gain.nats, gain.stderr, gain.held, gain.held_stderr, gain.z, amplitude])
    return gain if bool(torch.isfinite(numbers).all()) else Gain(status="nonfinite")


def scaled(site: Site, proposal: Proposal, amplitude: float) -> Proposal:
    """The proposal with its fan-out, counted from where it starts, and what gives way to it times `amplitude`."""
    start = {(b.param, b.axis): b.values for b in proposal.start}

    def at(block: Block) -> Block:
        begin = start.get((block.param, block.axis), 0.0)
        return replace(block, values=begin + (block.values - begin) * amplitude)

    blocks = tuple(at(b) if (b.param, b.axis) in site.form.outgoing else b for b in proposal.blocks)
    shift = {n: change * amplitude for n, change in proposal.shift.items()} if site.form.grows else proposal.shift
    return replace(proposal, blocks=blocks, shift=shift)
