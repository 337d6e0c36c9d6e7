"""A pass: one fold seen through the network, with what can be worked out from it alone, target by target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dagrow import losses
from dagrow.graph import Architecture
from dagrow.graph.node import Module, infer, tensors_of
from dagrow.measure.features import at
from dagrow.measure.grouping import Group, columns_of, groups_of, left_of, leverage, solved_by
from dagrow.measure.kept import Values
from dagrow.measure.layout import broad, flat, space
from dagrow.measure.parents import Span, free_parents, moved, parents, span_of
from dagrow.rng import stream

# What is worked out for targets that are not looked at now is forgotten where all of it has more values than this: 16 MB.
FOCUS_VALUES = 4e6
# A solve looks at no more than this many places of all rows together, and where candidates are only compared, at fewer.
CELLS = 2**14
SKETCH = 2**12
# Nor may its design matrix have more values than this: 32 MB in fp64.
CELL_VALUES = 4e6


def materialise(arch: Architecture, weights: Mapping[str, Tensor]) -> dict[str, Module]:
    """The nodes' modules in eval mode, holding `weights` (not copied, no gradients)."""
    _, modules = infer(arch.nodes, arch.order)
    for name, module in modules.items():
        if isinstance(module, torch.nn.Module):
            names = arch.formed.locals[name]
            for local, held, key in list(tensors_of(module)):
                value = weights[names[local]]
                held[key] = torch.nn.Parameter(value, requires_grad=False) if isinstance(held[key], torch.nn.Parameter) else value
    return modules


@dataclass
class Pass:
    """One fold seen through the network. `v` and `probe` of each affine node, and of the output, have the layout of what it makes.

    With the targets `y`, the loss and its inverse temperature `beta` changes can be carried on to the loss (onward).
    """

    arch: Architecture
    weights: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    v: dict[str, Tensor]
    probe: dict[str, Tensor]
    nats: float
    memo: dict = field(default_factory=dict)
    y: Tensor | None = None
    loss: losses.Loss | None = None
    beta: float = 1.0
    cells: int = CELLS
    whole: Pass | None = field(default=None, repr=False)
    first: int = 0

    @property
    def modules(self) -> dict[str, Module]:
        """The nodes' modules in eval mode, with the pass's weights."""
        if "modules" not in self.memo:
            self.memo["modules"] = materialise(self.arch, self.weights)
        return self.memo["modules"]

    @property
    def rows(self) -> int:
        return self.values[self.arch.inputs[0]].shape[0]

    def head(self, rows: int) -> Pass:
        """The first `rows` rows (they were drawn at random), as a pass of its own; cached."""
        if rows >= self.rows:
            return self
        if ("head", rows) not in self.memo:
            self.memo["head", rows] = self._cut(rows)
        return self.memo["head", rows]

    def sketch(self) -> Pass:
        """The pass on few rows and places of maps, to compare candidates on; what is missing stays what it is for all rows."""
        if self.cells <= SKETCH or all(self.places(n) is None and len(self.arch.shapes[n]) == 1 for n in self.v):
            return self
        if "sketch" not in self.memo:
            self.memo["sketch"] = replace(self._cut(min(self.rows, SKETCH // 16)), cells=SKETCH, whole=self)
        return self.memo["sketch"]

    def parts(self, rows: int) -> Iterator[Pass]:
        """So many rows at a time; what is missing in them is what it is for all rows."""
        if rows >= self.rows:
            yield self
            return
        for first in range(0, self.rows, rows):
            yield replace(self._cut(rows, first), whole=self, first=first)

    def focus(self, targets: Iterable[str]) -> None:
        """Forgets what was worked out for other targets, where it is large."""
        kept = {parents(self.arch, t) for t in targets}
        for seen in (self, *(p for key, p in self.memo.items() if key == "sketch" or key[0] == "head")):
            known = seen.memo.get("targets", {})
            for group in [g for g in known if g not in kept] if sum(map(_size, known.values())) > FOCUS_VALUES else ():
                del known[group]

    def about(self, target: str) -> dict:
        """Where to remember what is worked out for the target and its parents."""
        return self.memo.setdefault("targets", {}).setdefault(parents(self.arch, target), {})

    def _cut(self, rows: int, first: int = 0) -> Pass:
        span = slice(first, first + rows)
        values = self.values.rows(span) if isinstance(self.values, Values) else {n: t[span] for n, t in self.values.items()}
        groups = [values, *({n: t[span] for n, t in group.items()} for group in (self.v, self.probe))]
        y = None if self.y is None else self.y[span]
        return Pass(self.arch, self.weights, *groups, self.nats, {"modules": self.modules}, y, self.loss, self.beta, self.cells)

    def places(self, target: str) -> Tensor | None:
        """[rows, places]: the positions of each row of `target`'s map that solves look at; None: all of them.

        Maps have more positions than a solve needs: what is asked is how features go together, and neighbours say it twice.
        """
        columns = sum(math.prod(self.arch.params[self.arch.formed.locals[p]["weight"]][1:]) for p in parents(self.arch, target)) + 1
        columns = max(columns, columns_of(self.arch, target) + 1)
        return self.spread(space(self.arch.shapes[target], self.arch.nodes[target]), columns)

    def spread(self, positions: tuple[int, ...], columns: int) -> Tensor | None:
        """`places` for a map of such positions whose design matrix has so many columns."""
        size, most = math.prod(positions), max(1, int(min(self.cells, CELL_VALUES / columns)) // max(self.rows, 1))
        if size <= most:
            return None
        if ("places", positions, most) not in self.memo:
            # Steps of about .618 of the map, from a start of each row's own, lie evenly on it and never twice on one place.
            step = next(k for k in range(int(0.618 * size), size + 1) if math.gcd(k, size) == 1)
            first = torch.randint(size, (self.rows, 1), generator=stream(0, "places", *positions))
            self.memo["places", positions, most] = (first + step * torch.arange(most)) % size
        return self.memo["places", positions, most]

    def span(self, target: str) -> Span:
        """What the target's parents can make, on the rows' places."""
        known, key = self.about(target), ("span", self.places(target) is None, free_parents(self.arch, target))
        if key not in known:
            known[key] = span_of(self.arch, self.values, target, self.places(target))
            self.memo["moments", known[key].nodes] = known[key].moments
        return known[key]

    def groups(self, target: str) -> dict[int, Group]:
        """What its grouped parents can make beside that, unit by unit; empty where there are none."""
        known, key = self.about(target), ("groups", target, self.places(target) is None)
        if key not in known:
            known[key] = groups_of(self.arch, self.values, target, self.places(target), self.span(target))
        return known[key]

    def left(self, target: str, change: Tensor) -> Tensor:
        """`change` [cells, units] at the target less what its parents can make of it."""
        return left_of(self.span(target), self.groups(target), change)

    def leverage(self, target: str) -> Tensor:
        """How much each cell weighs in the parents' fit, 0 to 1: [cells, 1 or units]."""
        return leverage(self.span(target), self.groups(target))

    def nearest(self, target: str, change: Tensor) -> dict[str, Tensor]:
        """What the parents' parameters would have to gain to come nearest to `change` [cells, units]."""
        solved, made = solved_by(self.arch, self.span(target), self.groups(target), change)
        return self.span(target).as_weights(self.arch, target, solved) | made

    def bottleneck(self, target: str) -> Tensor:
        """v less what the parents could do about it, by least squares: [rows, positions, units] (v-perp; Verbockhaven et al. 2024)."""
        if self.whole is not None:
            return self.whole.bottleneck(target)[self.first : self.first + self.rows]
        known = self.about(target)
        if ("perp", target) not in known:
            v, places, node = self.v[target], self.places(target), self.arch.nodes[target]
            if places is None:
                made = flat(v, node).double()
                made = self.left(target, made.flatten(0, 1)).view(made.shape).to(v.dtype)
            else:
                made = flat(v - self._made(target, at(v, node, places).double().flatten(0, 1)), node)
            known["perp", target] = made
        return known["perp", target]

    def _made(self, target: str, wanted: Tensor) -> Tensor:
        """What the parents make on all positions with the weights that come nearest to `wanted` on some: [cells, units]."""
        solved, made = solved_by(self.arch, self.span(target), self.groups(target), wanted)
        weights = self.span(target).as_weights(self.arch, target, solved) | made
        made = moved(self.arch, self.values, target, {n: w for n, w in weights.items() if n.endswith(".weight")})
        return made + broad(solved[-1].to(self.v[target].dtype), self.arch.nodes[target], self.arch.shapes[target])

    def curvature(self, target: str) -> Tensor:
        """E = mean over rows of the probe gradients' outer products, summed over positions: [units, units], fp64."""
        if ("curvature", target) not in self.memo:
            p = flat(self.probe[target], self.arch.nodes[target]).flatten(0, 1)
            self.memo["curvature", target] = (p.T @ p).double() / self.rows
        return self.memo["curvature", target]


def _size(known: object) -> int:
    """Values in the tensors of what was worked out."""
    if isinstance(known, Tensor):
        return known.numel()
    return sum(map(_size, known.values() if isinstance(known, dict) else vars(known).values() if hasattr(known, "__dict__") else ()))
