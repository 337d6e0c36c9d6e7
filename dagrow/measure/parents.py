"""What a target's own parents can do: the span of their features, and the step of their weights that makes a function in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dagrow.graph import Architecture
from dagrow.measure.features import call, design, grouped, template
from dagrow.measure.layout import broad, last, space

RANK = 1e-10  # of the largest eigenvalue: below it a direction is rounding
# A design matrix of more values is held in single precision, where what is rounding begins sooner.
LARGE, RANK_LARGE = 1e6, 1e-5
# Added to the Gram matrix of its columns of length 1: what they make of directions this small is rounding too.
RIDGE_LARGE = 1e-5


def affine_nodes(arch: Architecture) -> tuple[str, ...]:
    return tuple(n for n in arch.order if arch.nodes[n].rule.role == "affine")


def parents(arch: Architecture, target: str) -> tuple[str, ...]:
    """The affine nodes whose outputs do to the network what `target`'s does: all that only ever meet it in one sum.

    In the order the nodes were given: what edits add comes last, whatever it reads.
    """
    return arch.meeting[target]


def tied(arch: Architecture, name: str) -> bool:
    """Whether a parameter of the node is another node's too: what changes it changes both."""
    if "tied" not in arch.memo:
        held = [full for locals_of in arch.formed.locals.values() for full in locals_of.values()]
        arch.memo["tied"] = frozenset(full for full in held if held.count(full) > 1) if any(n.tied for n in arch.nodes.values()) else frozenset()
    return bool(arch.memo["tied"]) and not arch.memo["tied"].isdisjoint(arch.formed.locals[name].values())


def free_parents(arch: Architecture, target: str) -> tuple[str, ...]:
    """Those of its parents whose weights may change at will, and for all of the target's units alike.

    What a grouped convolution could still do differs from unit to unit, what a tied weight does shows elsewhere too, and
    units that lie on another dimension of the same sum are others: all that is left in what is missing.
    """
    if ("free", target) not in arch.memo:
        node, shape = arch.nodes[target], arch.shapes[target]
        arch.memo["free", target] = tuple(
            p for p in parents(arch, target)
            if not grouped(arch.nodes[p]) and not tied(arch, p) and last(arch.nodes[p], shape) == last(node, shape)
        )  # fmt: skip
    return arch.memo["free", target]


def end_of(arch: Architecture, name: str) -> str:
    """Where a change of `name` goes whole and alone: the last of the sums that are its only reader, one after another."""
    while name not in arch.outputs and len(arch.consumers[name]) == 1 and arch.nodes[arch.consumers[name][0]].rule.role == "sum":
        name = arch.consumers[name][0]
    return name


@dataclass(frozen=True)
class Span:
    """`columns` [cells, rank] span the parents' features and a constant; cells are the rows' places.

    They are orthonormal, or `inverse` [rank, rank] is that of their Gram matrix. `back` [columns of the design matrix, rank]
    makes them of the design matrix of `nodes`, whose last column is the constant's.
    """

    nodes: tuple[str, ...]
    columns: Tensor
    back: Tensor
    inverse: Tensor | None = None
    moments: Tensor | None = None  # E[x x^T] of the design matrix's rows, fp64

    @property
    def dtype(self) -> torch.dtype:
        return self.columns.dtype

    @property
    def basis(self) -> Tensor:
        """Orthonormal columns of the same span."""
        return self.columns if self.inverse is None else self.columns @ torch.linalg.cholesky(self.inverse).to(self.dtype)

    def leverage(self) -> Tensor:
        """How much each cell weighs in its own fit, 0 to 1: [cells]."""
        return self.basis.square().sum(1)

    def _fit(self, h: Tensor) -> Tensor:
        slope = self.columns.T @ h
        return slope if self.inverse is None else (self.inverse @ slope.double()).to(self.dtype)

    def free(self, h: Tensor) -> Tensor:
        """Columns `h` [cells, columns] less what the parents can make of them."""
        h = h.to(self.dtype)
        return torch.addmm(h, self.columns, self._fit(h), alpha=-1)

    def solve(self, h: Tensor) -> Tensor:
        """The parents' weights that come nearest to `h`: [columns of the design matrix, columns of h]."""
        return self.back @ self._fit(h.to(self.dtype)).double()

    def as_weights(self, arch: Architecture, target: str, solved: Tensor) -> dict[str, Tensor]:
        """`solved` [columns of the design matrix, target units] as values of the parents' parameters.

        The constant goes to the first bias there is; without one, to the mean of the norm that alone reads the target.
        """
        made, start = {}, 0
        for n in self.nodes:
            shape = arch.params[f"{n}.weight"]
            width = math.prod(shape[1:])
            made[f"{n}.weight"] = solved[start : start + width].T.reshape(shape)
            start += width
        node, shape = arch.nodes[target], arch.shapes[target]
        alike = (p for p in parents(arch, target) if not tied(arch, p) and last(arch.nodes[p], shape) == last(node, shape))
        holder = next((f"{n}.bias" for n in alike if f"{n}.bias" in arch.params), None)
        readers = arch.consumers[end_of(arch, target)]
        if holder is not None:
            made[holder] = solved[-1]
        elif len(readers) == 1 and arch.nodes[readers[0]].rule.role == "norm" and not last(node, shape):
            made[f"{readers[0]}.running_mean"] = -solved[-1]
        return made


def span_of(arch: Architecture, values: Mapping[str, Tensor], target: str, places: Tensor | None) -> Span:
    whole = free_parents(arch, target)
    parts = [design(arch.nodes[p], values[arch.nodes[p].inputs[0]], places).flatten(0, 1) for p in whole]
    rows = len(next(iter(values.values())))
    cells = rows * math.prod(space(arch.shapes[target], arch.nodes[target])) if places is None else places.numel()
    large = cells * sum(p.shape[1] for p in parts) > LARGE
    dtype = torch.float32 if large else torch.float64
    x = torch.cat([*(p.to(dtype) for p in parts), torch.ones(cells, 1, dtype=dtype)], 1)
    # Columns of one length first: a feature of tiny scale is as good a parent as any.
    norms = x.norm(dim=0).double()
    scale = torch.where(norms > 1e-150, 1 / norms, 0.0)
    x *= scale.to(dtype)
    gram = (x.T @ x).double()
    moments = gram * torch.outer(norms, norms) / cells
    if large:  # the inverse is all that is asked of it, and a basis would be as large again as the design matrix
        root, failed = torch.linalg.cholesky_ex(gram + RIDGE_LARGE * torch.eye(len(gram), dtype=gram.dtype))
        if not failed:
            return Span(whole, x, torch.diag(scale), torch.cholesky_inverse(root), moments)
    sizes, vectors = torch.linalg.eigh(gram)
    keep = sizes > (RANK_LARGE if large else RANK) * sizes[-1]
    back = vectors[:, keep] / sizes[keep].sqrt()
    return Span(whole, x @ back.to(dtype), back * scale.unsqueeze(1), moments=moments)


def moved(arch: Architecture, values: Mapping[str, Tensor], target: str, weights: Mapping[str, Tensor]) -> Tensor | float:
    """What the target's sum gains when its parents' parameters gain `weights`: [rows, units, *positions], or 0."""
    total: Tensor | float = 0.0
    for n in parents(arch, target):
        x = values[arch.nodes[n].inputs[0]]
        if f"{n}.weight" in weights:
            total = total + call(template(arch.nodes[n], x.shape[1:]), x, weights[f"{n}.weight"].to(x.dtype), None)
        if f"{n}.bias" in weights:
            total = total + broad(weights[f"{n}.bias"].to(x.dtype), arch.nodes[n], arch.shapes[n])
    for n in arch.consumers[end_of(arch, target)]:
        if f"{n}.running_mean" in weights:
            total = total - broad(weights[f"{n}.running_mean"].to(x.dtype), arch.nodes[n], arch.shapes[target])
    return total
