"""What scorers of new units share: the sources' design matrix, the readers' view of new units, the refitted fan-out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagrow.measure import Pass, Units, features, flat, propagate
from dagrow.measure.features import Unsupported, call, grouped, template
from dagrow.scores import Block, Proposal

# A design matrix may have this many values: 160 MB in fp64.
MOST_VALUES = 2e7


def power(matrix: Tensor, exponent: float, ridge: float) -> Tensor:
    """(matrix + ridge * its largest eigenvalue) ** exponent, symmetric; zero where the matrix is zero."""
    values, vectors = torch.linalg.eigh(matrix)
    top = values[-1].clamp(min=0)
    if not torch.isfinite(top) or top <= 0:
        return torch.zeros_like(matrix)
    return (vectors * (values.clamp(min=0) + ridge * top) ** exponent) @ vectors.T


@dataclass
class Sources:
    """The stacked sources of new units: `x` [rows, positions, fan-in (+ 1)], columns of writer w at `spans[w]`."""

    x: Tensor
    spans: dict[str, slice]
    space: tuple[int, ...]
    constant: bool

    def born(self, form: Units, alpha: Tensor) -> dict[str, Tensor]:
        """Pre-activations of units with fan-in rows `alpha` [units, fan-in (+ 1)]: writer -> [rows, units, *positions]."""
        found = {}
        for w in form.writers:
            z = self.x[..., self.spans[w]] @ alpha[:, self.spans[w]].T
            if self.constant and w == form.writers[0]:
                z = z + alpha[:, -1]
            found[w] = z.transpose(1, 2).unflatten(2, self.space) if self.space else z.squeeze(1)
        return found

    def blocks(self, form: Units, alpha: Tensor, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> list[Block]:
        """Fan-in rows as newborn entries of the writers' weights and biases."""
        made = []
        for w in form.writers:
            weight = shapes[f"{w}.weight"]
            made.append(Block(f"{w}.weight", 0, alpha[:, self.spans[w]].reshape(len(alpha), *weight[1:]).to(dtype)))
            if f"{w}.bias" in shapes:
                bias = alpha[:, -1] if self.constant and w == form.writers[0] else torch.zeros(len(alpha))
                made.append(Block(f"{w}.bias", 0, bias.to(dtype)))
        return made


def sources_of(seen: Pass, form: Units) -> Sources:
    """Raises Unsupported for grouped writers and readers, and for writers that work at different positions."""
    if any(grouped(form.frame.nodes[r]) for r in form.readers):
        raise Unsupported("it is read in groups")
    parts, spans, start = [], {}, 0
    for w, source in zip(form.writers, form.sources, strict=True):
        node = form.frame.nodes[w]
        if grouped(node):
            raise Unsupported(f"{w} reads its input in groups")
        part = features(node, seen.values[source].double())
        if parts and part.shape[1] != parts[0].shape[1]:
            raise Unsupported("its writers work at different positions")
        spans[w] = slice(start, start + part.shape[2])
        start += part.shape[2]
        parts.append(part)
    first = form.frame.nodes[form.writers[0]]
    constant = bool(getattr(first.attrs, "bias", False))
    if constant:
        parts.append(torch.ones(*parts[0].shape[:2], 1, dtype=torch.float64))
    space = tuple(form.frame.shapes[form.writers[0]][1:])
    return Sources(torch.cat(parts, 2), spans, space, constant)


def head(seen: Pass, form: Units, values: float = MOST_VALUES) -> Pass:
    """The first rows of the pass, as many as keep the design matrix of `form` below `values` values."""
    fan_in = sum(math.prod(form.frame.params[f"{w}.weight"][1:]) for w in form.writers) + 1
    space = math.prod(form.frame.shapes[form.writers[0]][1:])
    rows = max(16, int(values // (space * fan_in)))
    return seen.head(rows)


def reader_view(form: Units, born: dict[str, Tensor], follows: dict[str, Tensor] | None = None, *, fit: bool = False) -> dict[str, Tensor]:
    """What each reader sees of the new units: reader -> design matrix [rows, positions, units * channels of one * kernel]."""
    arrived = propagate(form.frame, form, born, follows=follows, fit=fit)
    order = unit_order(form, next(iter(born.values())).shape[1])
    return {r: features(form.frame.nodes[r], x[:, order[r]] if r in order else x) for r, x in arrived.items()}


def unit_order(form: Units, units: int) -> dict[str, Tensor]:
    """For each reader the channels that carry `units` new units, unit by unit; readers that are given them so are left out.

    A unit that a concat puts in twice has channels in two places; pooled before one of them, not as many in both.
    """
    meet = (n for n in form.path if form.frame.nodes[n].rule.role == "other" and len(form.frame.nodes[n].inputs) > 1)
    if not any(sum(i in form.writers or i in form.path for i in form.frame.nodes[n].inputs) > 1 for n in meet):
        return {}
    # Two units, each alone in a row: where they arrive shows the pattern for any number.
    alone = {w: torch.eye(2).view(2, 2, *[1] * len(s)).expand(2, 2, *s) for w in form.writers for s in [form.frame.shapes[w][1:]]}
    order = {}
    for r, x in propagate(form.frame, form, alone, linear=True).items():
        owner = x.flatten(2).sum(2).argmax(0).tolist() if x.dim() > 2 else x.argmax(0).tolist()
        places, start = [[] for _ in range(units)], 0
        while start < len(owner):
            size = next((k for k in range(start, len(owner)) if owner[k]), len(owner)) - start
            first = start // 2 * units
            for unit in range(units):
                places[unit] += range(first + unit * size, first + (unit + 1) * size)
            start += 2 * size
        order[r] = torch.tensor([c for channels in places for c in channels])
    return order


def linear_moments(form: Units, sources: Sources, seen: Pass) -> dict[str, Tensor]:
    """N = E[h v-perp] per reader: [fan-in (+ 1), target units, kernel], summed over positions.

    The sources stand in for the new units themselves, carried along the path without its activations, and the
    reader's own weight gradient gives the moments: one product for any kernel, stride, pooling or flatten between.
    """
    size = sources.x.shape[2]
    moments = {}
    arrived = propagate(form.frame, form, sources.born(form, torch.eye(size, dtype=torch.float64)), linear=True)
    order = unit_order(form, size)
    for r, target in zip(form.readers, form.targets, strict=True):
        x = arrived[r][:, order[r]] if r in order else arrived[r]
        node = form.frame.nodes[r]
        module = template(node, x.shape[1:])
        v = seen.bottleneck(target)
        weight = torch.zeros(module.weight.shape, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(call(module, x, weight, None), weight, _shaped(v, form, r))
        moments[r] = grad.flatten(1).unflatten(1, (size, -1)).permute(1, 0, 2) / seen.rows
    return moments


def _shaped(v: Tensor, form: Units, reader: str) -> Tensor:
    """[rows, positions, units] -> the layout of the reader's output."""
    space = tuple(form.frame.shapes[reader][1:])
    return v.transpose(1, 2).unflatten(2, space) if space else v.squeeze(1)


@dataclass
class Aim:
    """What new columns into one target should explain: `v` = E^-1/2 v-perp, [rows * positions, target units].

    `weight` [rows * positions] is where the curvature lies (its mean over rows is 1): features and curvature are far from
    independent in a trained network, whose curvature lives on the few rows it is unsure of.
    """

    v: Tensor
    weight: Tensor
    metric: Tensor
    rows: int

    def gram(self, h: Tensor) -> Tensor:
        """The features' Gram matrix as curvature weighs it, damped: [..., columns, columns].

        The damping goes by the features alone: those active only on rows without curvature promise nothing, not everything.
        """
        scale = h.square().sum(-2).mean(-1) / self.rows
        return damped(h.transpose(-1, -2) @ (h * self.weight.unsqueeze(-1)) / self.rows, scale)

    def whitened(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Columns `h` [..., rows * positions, columns] in the metric of their Gram matrix, transposed, and their energy per row."""
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(self.gram(h)), h.transpose(-1, -2), upper=False)
        return half, half.square().sum(-2)

    def gains(self, half: Tensor, energy: Tensor) -> Tensor:
        """Nats gained by whitened columns with their fan-out solved for, less what chance gives.

        Chance is the part of the squared slope that every row makes with itself: a unit that is active on a few lucky
        rows has nothing else.
        """
        slope = half @ self.v / self.rows
        chance = (energy * self.v.square().sum(1)).sum(-1) / self.rows**2
        return (slope.square().sum((-1, -2)) - chance) / 2

    def rows_of(self, first: int, last: int) -> Aim:
        """The aim on some of the rows."""
        each = len(self.v) // self.rows
        part = slice(first * each, last * each)
        return replace(self, v=self.v[part], weight=self.weight[part], rows=last - first)

    def step(self, h: Tensor) -> Tensor:
        """The Newton step of columns `h` in the fan-out, in the metric of `v`: [columns, target units]."""
        return torch.linalg.solve(self.gram(h), h.T @ self.v / self.rows)

    def gain_of(self, h: Tensor, step: Tensor) -> Tensor:
        """Nats gained on these rows by a step found on others."""
        moved = h @ step
        return ((moved * self.v).sum() - (moved.square().sum(1) * self.weight).sum() / 2) / self.rows

    def less(self, h: Tensor) -> Aim:
        """The aim that is left once the columns `h` [rows * positions, columns] have taken their step."""
        return replace(self, v=self.v - (h * self.weight.unsqueeze(1)) @ self.step(h))


def aims(form: Units, seen: Pass) -> list[Aim]:
    """One per reader, in their order."""
    made = []
    for target in form.targets:
        if ("aim", target) not in seen.memo:
            metric = power(seen.curvature(target), -0.5, 1e-2)
            probe = flat(seen.probe[target]).double().flatten(0, 1) @ metric
            weight = probe.square().sum(1) / probe.shape[1]
            weight = weight * seen.rows / weight.sum().clamp(min=1e-300)
            seen.memo["aim", target] = Aim(seen.bottleneck(target).flatten(0, 1) @ metric, weight, metric, seen.rows)
        made.append(seen.memo["aim", target])
    return made


def refit(form: Units, seen: Pass, view: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fan-out fitted to the real activations: reader -> [target units, units * kernel].

    A damped Newton step in the new columns; the curvature of a column is that of the target on the rows it is active on.
    """
    fitted = {}
    for r, aim in zip(form.readers, aims(form, seen), strict=True):
        h = view[r].flatten(0, 1)
        fitted[r] = aim.metric @ aim.step(h).T
    return fitted


def damped(matrix: Tensor, scale: Tensor, ridge: float = 1e-2) -> Tensor:
    """matrix + ridge * scale on its diagonal."""
    scale = scale.clamp(min=1e-30)
    return matrix + (ridge * scale)[..., None, None] * torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def column_blocks(form: Units, units: int, omega: dict[str, Tensor], dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> list[Block]:
    """Fan-out (as `reader_view` lays out its columns) as newborn columns of the readers' weights."""
    made, order = [], unit_order(form, units)
    for r in form.readers:
        weight = shapes[f"{r}.weight"]
        columns = omega[r].reshape(weight[0], -1, *weight[2:])
        if r in order:
            columns = columns[:, order[r].argsort()]
        made.append(Block(f"{r}.weight", 1, columns.to(dtype)))
    return made


def proposal_of(form: Units, sources: Sources, seen: Pass, alpha: Tensor) -> Proposal:
    """A full proposal from fan-ins: scaled to unit pre-activations, statistics measured, fan-out refitted."""
    alpha = alpha / scale_of(form, sources, alpha)
    follows: dict[str, Tensor] = {}
    view = reader_view(form, sources.born(form, alpha), follows, fit=True)
    shapes = {**form.frame.params, **form.frame.buffers}
    blocks = sources.blocks(form, alpha, torch.float64, shapes) + column_blocks(form, len(alpha), refit(form, seen, view), torch.float64, shapes)
    blocks += [Block(param, 0, values) for param, values in follows.items() if param in shapes]
    finite = all(bool(torch.isfinite(b.values).all()) for b in blocks)
    return Proposal("ok" if finite else "nonfinite", units=len(alpha), blocks=tuple(blocks))


def scale_of(form: Units, sources: Sources, alpha: Tensor) -> Tensor:
    """Standard deviation of each unit's pre-activation, summed over its writers: [units, 1]."""
    total = sum(z.flatten(2) if z.dim() > 2 else z.unsqueeze(2) for z in sources.born(form, alpha).values())
    return total.std((0, 2), unbiased=False).clamp(min=1e-12).unsqueeze(1)


__all__ = [
    "Aim", "Sources", "Unsupported", "aims", "column_blocks", "damped", "flat", "head", "linear_moments", "power", "proposal_of", "reader_view", "refit", "scale_of", "sources_of",
]
