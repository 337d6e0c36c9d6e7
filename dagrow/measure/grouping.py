"""What grouped convolutions among a target's parents could still do: each group for units of its own, from channels of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dagrow.graph import Architecture, Node
from dagrow.measure.features import design, grouped
from dagrow.measure.layout import last
from dagrow.measure.parents import RANK, RANK_LARGE, Span, parents, tied


@dataclass(frozen=True)
class Group:
    """Of a target's units those that the same groups make: `units`, a slice.

    `columns` [cells, rank] are orthonormal and span what the groups can make beyond the shared span. `back` [columns of their
    design matrices, rank] makes them of those of `parts` (parent, how many columns), less `shared` [columns of the shared one, rank].
    """

    units: slice
    parts: tuple[tuple[str, int], ...]
    columns: Tensor
    back: Tensor
    shared: Tensor

    def fit(self, x: Tensor) -> Tensor:
        """Of `x` [cells, the group's units], less what the shared span makes: [rank, units]."""
        return self.columns.T @ x


def grouped_parents(arch: Architecture, target: str) -> tuple[str, ...]:
    """The parents that read their channels in groups, and whose weights may change at will."""
    shape = arch.shapes[target]
    alike = (p for p in parents(arch, target) if last(arch.nodes[p], shape) == last(arch.nodes[target], shape))
    return tuple(p for p in alike if grouped(arch.nodes[p]) and not tied(arch, p))


def columns_of(arch: Architecture, target: str) -> int:
    """How many columns all groups have together."""
    return sum(arch.nodes[p].attrs.groups * math.prod(arch.params[f"{p}.weight"][1:]) for p in grouped_parents(arch, target))


def groups_of(arch: Architecture, values: Mapping[str, Tensor], target: str, places: Tensor | None, span: Span) -> dict[int, Group]:
    """First unit -> group, for all of the target's units; none where no parent is grouped."""
    found, names = {}, grouped_parents(arch, target)
    if not names:
        return found
    width = arch.shapes[target][0]
    each = {p: width // arch.nodes[p].attrs.groups for p in names}
    starts = sorted({k for step in each.values() for k in range(0, width + 1, step)})
    for first, end in pairwise(starts):
        x = [_design(arch.nodes[p], values[arch.nodes[p].inputs[0]], arch.params[f"{p}.weight"], first // each[p], places) for p in names]
        found[first] = _group(slice(first, end), tuple((p, d.shape[1]) for p, d in zip(names, x, strict=True)), torch.cat(x, 1), span)
    return found


def _design(node: Node, x: Tensor, weight: tuple[int, ...], number: int, places: Tensor | None) -> Tensor:
    """The design matrix of one group: that of a convolution of its channels alone, [cells, columns]."""
    part = x[:, number * weight[1] : (number + 1) * weight[1]]
    attrs = node.rule.resize(node.attrs, {"weight": (weight[0] // node.attrs.groups, *weight[1:])}, (), tuple(part.shape[1:]))
    return design(Node(node.op, (), attrs), part, places).flatten(0, 1)


def _group(units: slice, parts: tuple[tuple[str, int], ...], x: Tensor, span: Span) -> Group:
    x = x.to(span.dtype)
    norms = x.norm(dim=0).double()
    left = span.free(x)
    scale = torch.where(norms > 1e-150, 1 / norms, 0.0)
    left = left * scale.to(left.dtype)
    sizes, vectors = torch.linalg.eigh((left.T @ left).double())
    # Columns had length 1 before the shared part was taken out: what is left may be rounding altogether.
    keep = sizes > (RANK if span.dtype == torch.float64 else RANK_LARGE)
    back = vectors[:, keep] / sizes[keep].sqrt()
    columns = left @ back.to(left.dtype)
    back = back * scale.unsqueeze(1)
    return Group(units, parts, columns, back, span.solve(x @ back.to(x.dtype)))


def left_of(span: Span, groups: Mapping[int, Group], x: Tensor) -> Tensor:
    """`x` [cells, target units] less what all parents can make of it."""
    free = span.free(x)
    if groups:
        free = torch.cat([free[:, g.units] - g.columns @ g.fit(free[:, g.units]) for g in groups.values()], 1)
    return free


def leverage(span: Span, groups: Mapping[int, Group]) -> Tensor:
    """How much each cell weighs in its own fit, 0 to 1: [cells, 1], or [cells, target units] where units differ in that."""
    shared = span.leverage().unsqueeze(1)
    if not groups:
        return shared
    return torch.cat([(shared + g.columns.square().sum(1, keepdim=True)).expand(-1, g.units.stop - g.units.start) for g in groups.values()], 1)


def solved_by(arch: Architecture, span: Span, groups: Mapping[int, Group], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """All parents' weights that come nearest to `x` [cells, target units] together: of the shared span's design matrix
    [columns, target units], and of the grouped parents by name."""
    solved, made = span.solve(x), {}
    if not groups:
        return solved, made
    free = span.free(x)
    for g in groups.values():
        fit = g.fit(free[:, g.units]).double()
        solved[:, g.units] -= g.shared @ fit
        start, weights = 0, g.back @ fit
        for name, width in g.parts:
            shape = arch.params[f"{name}.weight"]
            whole = made.setdefault(f"{name}.weight", torch.zeros(shape, dtype=torch.float64))
            whole[g.units] = weights[start : start + width].T.reshape(-1, *shape[1:])
            start += width
    return solved, made
