"""Evidence gathered while training: the last steps of an epoch, seen from inside, instead of a pass of its own.

A step that is watched runs the same ops on the same batch, and the gradients of the pre-activations are picked up as the
step's own backward comes by: they cost nothing. The curvature probe is one more backward, without weight gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dagrow.compiler import prefixed_name
from dagrow.graph import Architecture
from dagrow.graph.node import Module, build, run
from dagrow.inputs import by_name, scored
from dagrow.losses import Loss
from dagrow.measure.evidence import FLOOR, affordable_rows
from dagrow.measure.parents import affine_nodes
from dagrow.measure.passes import Pass
from dagrow.rng import stream
from dagrow.train import steps_per_epoch


def shares(rows: int, window: int | None, batch: int, samples: int) -> dict[int, int]:
    """Step of an epoch over `samples` rows -> how many rows of its batch to gather, `rows` in all where there are so many.

    window: how many of the last steps to spread them over (more where their batches are too small); None: as few as hold them.
    """
    steps = steps_per_epoch(samples, batch)
    share = rows if window is None else math.ceil(rows / min(window, steps))
    found: dict[int, int] = {}
    for step in reversed(range(steps)):
        take = min(share, rows, min(batch, samples - step * batch))
        if take:
            found[step] = take
        rows -= take
    return found


@dataclass
class _Seen:
    """Of one step, the rows it gives: values and gradients as they came; `batch` is the number of rows it trained on."""

    batch: int
    y: Tensor
    values: dict[str, Tensor]
    probe: dict[str, Tensor]
    v: dict[str, Tensor] = field(default_factory=dict)


class Gathering:
    """Watches one epoch (train.Observer) and makes a Pass of its last steps. The weights it trains are the same bits as without.

    rows: at most so many, and what measure affords; batch, samples: of the epoch; seed, path: the epoch's; curvature: the
    kind of probe (losses.Loss.probe). In train mode batch norm goes by the batch's own statistics, and dropout drops.
    """

    def __init__(
        self, arch: Architecture, loss: Loss, *, rows: int, window: int | None, batch: int, samples: int, seed: int, path: tuple[int | str, ...],
        curvature: str = "rademacher",
    ):
        self.arch, self.loss, self.seed, self.path, self.curvature = arch, loss, seed, path, curvature
        self.shares = shares(affordable_rows(arch, rows), window, batch, samples)
        self._modules: dict[str, Module] = {}
        self._steps: list[_Seen] = []

    def forward(self, model: nn.Module, step: int, x: Tensor, y: Tensor) -> Tensor:
        """model(x), by the same ops in the same order; of a step in the window what is inside is kept."""
        rows = self.shares.get(step)
        if rows is None:
            return scored(model, x)
        arch = self.arch
        self._modules = self._modules or _modules(arch, model)
        values = run(arch.nodes, arch.order, self._modules, by_name(arch.inputs, x))
        out, zs = values[arch.outputs[0]], {n: values[n] for n in (*affine_nodes(arch), arch.outputs[0])}
        probe = torch.zeros_like(out)
        # The fold's residual variance is known when all its rows are: both cotangents are linear in what stands for it.
        probe[:rows] = self.loss.probe(
            out.detach()[:rows], y[:rows], stream(self.seed, *self.path, "probe", step), variance=1.0, floor=FLOOR, kind=self.curvature
        )
        back = torch.autograd.grad(out, list(zs.values()), probe, retain_graph=True, allow_unused=True)
        probes = {n: _first(g, rows) for n, g in zip(zs, back, strict=True) if g is not None}
        seen = _Seen(len(x), y[:rows], {n: _first(t, rows) for n, t in values.items()}, probes)
        for name, z in zs.items():
            z.register_hook(lambda g, name=name: seen.v.update({name: _first(g, rows)}))
        self._steps.append(seen)
        return out

    def collect(self, weights: Mapping[str, Tensor]) -> Pass | None:
        """What was gathered, on the CPU, as one fold under one likelihood; None where nothing was. `weights`: those at the end.

        The rows lie in random order, as in a pass of its own: who looks at the first of them sees all steps alike, not the
        oldest weights. What the steps kept is given up on the way, so that no more than one tensor is there twice.
        """
        steps, self._steps, self._modules = self._steps, [], {}
        if not steps:
            return None
        sizes = [len(s.y) for s in steps]
        places = torch.randperm(sum(sizes), generator=stream(self.seed, *self.path, "order")).split(sizes)
        values = {n: _dealt([s.values.pop(n) for s in steps], places) for n in self.arch.order}
        out, y = values[self.arch.outputs[0]], _dealt([s.y for s in steps], places)
        variance = self.loss.variance(out, y)
        each = [self.loss.per_sample(s.batch, out.shape[1]) / variance for s in steps]
        v, probe = {}, {}
        for n in dict.fromkeys((*affine_nodes(self.arch), self.arch.outputs[0])):
            v[n] = _scaled([s.v.pop(n, None) for s in steps], each, places, values[n])
            probe[n] = _scaled([s.probe.pop(n, None) for s in steps], [variance**-0.5] * len(steps), places, values[n])
        return Pass(self.arch, dict(weights), values, v, probe, float(self.loss.nats(out, y)), y=y, loss=self.loss)


def _first(t: Tensor, rows: int) -> Tensor:
    """The first rows, without the others behind them."""
    return t.detach() if rows == t.shape[0] else t.detach()[:rows].clone()


def _dealt(parts: list[Tensor], places: Sequence[Tensor]) -> Tensor:
    """The steps' rows in one tensor on the CPU, each at its place."""
    made = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    for part, rows in zip(parts, places, strict=True):
        made[rows] = part.cpu()
    return made


def _scaled(parts: list[Tensor | None], scales: list[float], places: Sequence[Tensor], like: Tensor) -> Tensor:
    """The steps' rows, each step's scaled; zeros where the loss does not reach the node."""
    if parts[0] is None:
        return torch.zeros_like(like)
    return _dealt([part * scale for part, scale in zip(parts, scales, strict=True)], places)


def _modules(arch: Architecture, model: nn.Module) -> dict[str, Module]:
    """Each node's part of the compiled `model`; what is a function there is built again."""
    parts = dict(model.named_modules())
    made = {}
    for name in arch.order:
        if name not in arch.inputs:
            node = arch.nodes[name]
            part = parts.get(prefixed_name(name))
            made[name] = build(node, [arch.shapes[i] for i in node.inputs], name) if part is None else part
    return made
