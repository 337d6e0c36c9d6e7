"""What new columns into a target should explain, and the Newton step that makes them explain it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagrow.measure import Pass, Units
from dagrow.measure.features import at
from dagrow.measure.parents import Span

# What is left of a column's spread when nothing is: what the parents' span is solved to.
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4}


def power(matrix: Tensor, exponent: float, ridge: float) -> Tensor:
    """(matrix + ridge * its largest eigenvalue) ** exponent, symmetric; zero where the matrix is zero."""
    values, vectors = torch.linalg.eigh(matrix)
    top = values[-1].clamp(min=0)
    if not torch.isfinite(top) or top <= 0:
        return torch.zeros_like(matrix)
    return (vectors * (values.clamp(min=0) + ridge * top) ** exponent) @ vectors.T


@dataclass
class Aim:
    """What new columns into one target should explain: `v` = E^-1/2 v-perp, [cells, target units]; cells are the rows' places.

    `weight` [cells] is where the curvature lies (its mean over rows is 1): features and curvature are far from independent in a
    trained network, whose curvature lives on the few rows it is unsure of. `span` is what the target's parents can make: only
    what is left of a column counts (`free`).
    """

    v: Tensor
    weight: Tensor
    metric: Tensor
    rows: int
    span: Span | None = None

    def free(self, h: Tensor) -> Tensor:
        """Columns [cells, columns] less what the parents can make of them, in the precision of `v`; zero where that is rounding.

        Rounding blown up to the size of a feature would be taken for one, and its step be of 1e15 and more.
        """
        h = h.to(self.v.dtype)
        if self.span is None:
            return h
        left, whole = self.span.free(h), h.detach()
        spread = len(h) ** 0.5 * whole.std(0, correction=0)
        most = torch.maximum(ROUNDING[self.span.dtype] * spread, 16 * torch.finfo(h.dtype).eps * whole.norm(dim=0))
        return left * ~(left.detach().norm(dim=0) <= most)

    def gram(self, h: Tensor) -> Tensor:
        """The features' Gram matrix as curvature weighs it, damped: [..., columns, columns].

        The damping goes by the features alone: those active only on rows without curvature promise nothing, not everything.
        """
        scale = h.square().sum(-2).mean(-1) / len(self.v)
        return damped((h.transpose(-1, -2) @ (h * self.weight.unsqueeze(-1)) / self.rows).double(), scale.double())

    def whitened(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Columns `h` [..., cells, columns] in the metric of their Gram matrix, transposed, and their energy per cell."""
        root = torch.linalg.cholesky(self.gram(h)).to(h.dtype)
        half = torch.linalg.solve_triangular(root, h.transpose(-1, -2), upper=False)
        return half, half.square().sum(-2)

    def gains(self, half: Tensor, energy: Tensor) -> Tensor:
        """Nats gained by whitened columns with their fan-out solved for, less what chance gives.

        Chance is the part of the squared slope that every row makes with itself: a unit that is active on a few lucky
        rows has nothing else.
        """
        slope = (half @ self.v).double() / self.rows
        chance = (energy * self.v.square().sum(1)).sum(-1, dtype=torch.float64) / self.rows**2
        return (slope.square().sum((-1, -2)) - chance) / 2

    def rows_of(self, first: int, last: int) -> Aim:
        """The aim on some of the rows; columns must be freed before."""
        each = len(self.v) // self.rows
        part = slice(first * each, last * each)
        return replace(self, v=self.v[part], weight=self.weight[part], rows=last - first, span=None)

    def step(self, h: Tensor) -> Tensor:
        """The Newton step of columns `h` in the fan-out, in the metric of `v`: [columns, target units]."""
        return torch.linalg.solve(self.gram(h), (h.T @ self.v).double() / self.rows)

    def gain_of(self, h: Tensor, step: Tensor) -> Tensor:
        """Nats gained on these rows by a step found on others."""
        moved = h @ step.to(h.dtype)
        return ((moved * self.v).sum() - (moved.square().sum(1) * self.weight).sum() / 2) / self.rows

    def less(self, h: Tensor) -> Aim:
        """The aim that is left once the columns `h` [cells, columns] have taken their step."""
        return replace(self, v=self.v - (h * self.weight.unsqueeze(1)) @ self.step(h).to(h.dtype))


def damped(matrix: Tensor, scale: Tensor, ridge: float = 1e-2) -> Tensor:
    """matrix + ridge * scale on its diagonal."""
    scale = scale.clamp(min=1e-30)
    return matrix + (ridge * scale)[..., None, None] * torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def aim_at(seen: Pass, target: str) -> Aim:
    """The aim of one target, on the places that its solves look at; made once for a pass."""
    known = seen.about(target)
    if ("aim", target) not in known:
        places = seen.places(target)
        metric = power(seen.curvature(target), -0.5, 1e-2)
        dtype = seen.span(target).dtype
        probe = at(seen.probe[target], seen.arch.nodes[target], places).to(dtype).flatten(0, 1) @ metric.to(dtype)
        weight = probe.square().sum(1) / probe.shape[1]
        weight = weight * seen.rows / weight.sum().clamp(min=1e-300)
        left = seen.bottleneck(target)
        share = 1.0
        if places is not None:  # sums over positions, from some of them
            share = left.shape[1] / places.shape[1]
            left = left.gather(1, places.unsqueeze(2).expand(-1, -1, left.shape[2]))
        known["aim", target] = Aim(left.to(dtype).flatten(0, 1) @ metric.to(dtype) * share, weight, metric, seen.rows, seen.span(target))
    return known["aim", target]


def aims(form: Units, seen: Pass) -> list[Aim]:
    """One per reader, in their order."""
    return [aim_at(seen, target) for target in form.targets]


def giving_way(seen: Pass, target: str, span: Span, h: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """What the target's parents lose when columns `h` [cells, columns] come in by `weight` [target units, columns]: what they could make of them."""
    if seen.groups(target):
        return seen.nearest(target, -h.double() @ weight.T)
    return span.as_weights(seen.arch, target, -span.solve(h) @ weight.T)


def refit(form: Units, seen: Pass, view: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Fan-out fitted to the real activations: reader -> [target units, units * kernel]; and how the targets' parents give way.

    A damped Newton step in the new columns; the curvature of a column is that of the target on the rows it is active on.
    """
    fitted, shift = {}, {}
    for r, target, aim in zip(form.readers, form.targets, aims(form, seen), strict=True):
        h = view[r].flatten(0, 1)
        fitted[r] = aim.metric @ aim.step(aim.free(h)).T
        for name, change in giving_way(seen, target, aim.span, h, fitted[r]).items():
            shift[name] = shift[name] + change if name in shift else change
    return fitted, shift
