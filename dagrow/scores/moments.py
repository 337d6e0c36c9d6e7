"""The main directions of E[h v-perp] without the matrix itself: products with it from both sides, on a part of the rows.

The sources, carried along the path without its activations, are looked at once; what the readers' kernels make of a few
combinations of them costs a convolution of as few channels. Randomised subspace iteration (Halko, Martinsson & Tropp 2011,
algorithm 4.4) needs a few such products from each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dagrow.graph import Node
from dagrow.measure import Pass, Units, propagate
from dagrow.measure.carrying import unit_order
from dagrow.measure.features import call, template, unfolded
from dagrow.measure.layout import as_given, shaped, space, units_first, whole, width
from dagrow.rng import stream
from dagrow.scores.units import Sources, ordered

# Rows times positions that are looked at, and values of all sources there: 32 MB in single precision.
MOST_CELLS, MOST_VALUES = 2**15, 8e6
FEWEST_ROWS = 16
CARRIED = 1e6  # values at a time on the way to the readers, where pooling keeps places too
SPARE = 8  # directions beyond those that are asked for, so that these are good
ROUNDS = 3
# With fewer sources than so many for each direction that is asked for, the matrix itself is small.
FEW = 4


def main_directions(readers: Sequence[Reader], whiten: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(left singular vectors [sources, count], singular values) of all readers' moments beside each other, the sources by `whiten`.

    `readers` hold what is missing in the metric of its curvature.
    """
    wide = [r.units * r.width for r in readers]
    size = min(count + SPARE, len(whiten), sum(wide))
    generator = stream(0, "directions")
    kernels = [torch.randn(r.units, size, r.width, dtype=torch.float64, generator=generator) for r in readers]
    found = torch.zeros(0)
    for number in range(ROUNDS):
        signal = sum(r.forth(kernel) for r, kernel in zip(readers, kernels, strict=True))
        found, _ = torch.linalg.qr(whiten @ signal)
        parts = [r.back(whiten @ found) for r in readers]  # [units, size, width]
        if number < ROUNDS - 1:
            tall, _ = torch.linalg.qr(_beside(parts).T)
            kernels = [k.reshape(size, r.units, r.width).transpose(0, 1) for r, k in zip(readers, tall.T.split(wide, 1), strict=True)]
    u, sizes, _ = torch.linalg.svd(_beside(parts), full_matrices=False)
    return (found @ u)[:, :count], sizes[:count]


def _beside(parts: Sequence[Tensor]) -> Tensor:
    """[units, size, width] each -> [size, all units and widths]."""
    return torch.cat([p.transpose(0, 1).flatten(1) for p in parts], 1)


class Reader(Protocol):
    """What one reader sees of the sources, and what is missing behind it."""

    units: int
    width: int

    def forth(self, kernel: Tensor) -> Tensor:
        """[sources, l]: the sources' moments with the signals that `kernel` [units, l, width] makes of what is missing."""

    def back(self, mix: Tensor) -> Tensor:
        """[units, l, width]: moments of what is missing with combinations `mix` [sources, l] of the sources."""


@dataclass
class Seen:
    """A Reader on some rows. `x` [cells, sources], `v` in the layout of the reader's output; `each` values of one source in `space`."""

    node: Node
    x: Tensor
    v: Tensor
    each: int
    space: tuple[int, ...]

    @property
    def units(self) -> int:
        return width(self.v.shape[1:], self.node)

    @property
    def width(self) -> int:
        return self._kernel(1)[1] * math.prod(self._kernel(1)[2:])

    def _module(self, count: int) -> torch.nn.Module:
        return template(self.node, whole(count * self.each, self.space, self.node))

    def _kernel(self, count: int) -> tuple[int, ...]:
        return tuple(self._module(count).weight.shape)

    def forth(self, kernel: Tensor) -> Tensor:
        count = kernel.shape[1]
        x = torch.zeros(len(self.v), count * self.each, *self.space, dtype=self.x.dtype, requires_grad=True)
        weight = kernel.reshape(self._kernel(count)).to(x.dtype)
        with torch.enable_grad():
            (signal,) = torch.autograd.grad(call(self._module(count), as_given(x, self.node), weight, None), x, self.v)
        return (self.x.T @ cells(signal, count)).double() / len(self.v)

    def back(self, mix: Tensor) -> Tensor:
        count, rows = mix.shape[1], len(self.v)
        x = self.x @ mix.to(self.x.dtype)
        x = x.view(rows, self.each, -1, count).permute(0, 3, 1, 2).reshape(rows, count * self.each, *self.space)
        weight = torch.zeros(self._kernel(count), dtype=x.dtype, requires_grad=True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(call(self._module(count), as_given(x, self.node), weight, None), weight, self.v)
        return grad.reshape(self.units, count, -1).double() / rows


def cells(x: Tensor, count: int) -> Tensor:
    """[rows, count * each, *space] -> [rows * each * positions, count]."""
    if x.shape[1] == count:
        return x.flatten(2).transpose(1, 2).reshape(-1, count) if x.dim() > 2 else x
    return x.reshape(len(x), count, -1).transpose(1, 2).reshape(-1, count)


def readers_of(form: Units, sources: Sources, seen: Pass, metrics: Sequence[Tensor]) -> list[Seen]:
    """Each reader on as many of the pass's rows as are looked at; `metrics` [units, units] for what is missing."""
    size = sources.x.shape[2]
    order = unit_order(form.frame, form, size)
    widest = max(math.prod(space(form.frame.shapes[n], form.frame.nodes[n])) for n in (*form.writers, *form.readers))
    rows = min(seen.rows, max(FEWEST_ROWS, int(min(MOST_CELLS, MOST_VALUES / size) // widest)))
    each = max(1, int(CARRIED // (size * widest)))
    arrived = [_arrived(form, sources, seen, slice(k, min(k + each, rows)), order) for k in range(0, rows, each)]
    found = []
    for r, target, metric in zip(form.readers, form.targets, metrics, strict=True):
        x = [part.pop(r) for part in arrived]
        v = seen.bottleneck(target)[:rows] @ metric.to(x[0].dtype)
        node = form.frame.nodes[r]
        v = shaped(v, node, space(form.frame.shapes[r], node))
        found.append(Seen(node, torch.cat([cells(p, size) for p in x]), v, x[0].shape[1] // size, tuple(x[0].shape[2:])))
    return found


def _arrived(form: Units, sources: Sources, seen: Pass, rows: slice, order: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each reader is given of every source, as if it were a unit that no activation changed: [rows, sources * each, *space]."""
    nodes = form.frame.nodes
    size, born = sources.x.shape[2], {}
    for k, (w, source) in enumerate(zip(form.writers, form.sources, strict=True)):
        x, span = unfolded(nodes[w], seen.values[source][rows]), sources.spans[w]
        every = torch.zeros(*x.shape[:2], size, dtype=x.dtype) if len(form.writers) > 1 or sources.constant else x
        if every is not x:
            every[:, :, span] = x
            if sources.constant and not k:
                every[:, :, -1] = 1
        born[w] = shaped(every, nodes[w], space(form.frame.shapes[w], nodes[w]))
    arrived = propagate(form.frame, form, born, linear=True)
    return {r: units_first(ordered(x, form, r, order), nodes[r]) for r, x in arrived.items()}
