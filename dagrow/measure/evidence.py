"""Evidence: one forward and two backwards per fold, from which every site is scored.

Per sample, v = -dl_i/dz at each pre-activation z (sum reduction, nats), and a probe gradient whose second moment is
the Gauss-Newton curvature. The bottleneck is v less what the target's own parents could do about it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dagrow import losses
from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.graph.node import Module, infer, run
from dagrow.measure.features import at, flat
from dagrow.measure.kept import Values, read_by_affine
from dagrow.measure.parents import Span, affine_nodes, moved, parents, span_of
from dagrow.measure.sites import Units
from dagrow.rng import stream

# Without a floor, directions go by the few rows that a converged network is unsure of. On nets of table T3 (4 seeds, Spearman with
# line search, converged mlp): .87 without, .90 with .02, .97 with .1, whose candidates reach 15% less than those without.
FLOOR = 0.02
# What a pass keeps of its rows may have this many values, 120 MB in single precision; the held-out one half as many.
MOST_VALUES = 3e7
FEWEST_ROWS = 32
# What is worked out for targets that are not looked at now is forgotten where all of it has more values than this: 16 MB.
FOCUS_VALUES = 4e6
# Design matrices of one site's sources and targets, products with them, and candidates compared: 80 MB.
WORK_VALUES = 2e7
# A pass is made of so many rows at a time: of as many as all nodes' values are 8 MB of, and no fewer than these.
CHUNK_VALUES, FEWEST_CHUNK = 2**21, 64
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
            for local, _ in list(module.named_parameters()):
                module._parameters[local] = torch.nn.Parameter(weights[f"{name}.{local}"], requires_grad=False)
            for local, _ in list(module.named_buffers()):
                module._buffers[local] = weights[f"{name}.{local}"]
    return modules


@dataclass
class Pass:
    """One fold seen through the network. `v` and `probe` are [rows, units, *positions] per affine node, and at the output.

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
        columns = sum(math.prod(self.arch.params[f"{p}.weight"][1:]) for p in parents(self.arch, target)) + 1
        return self.spread(tuple(self.arch.shapes[target][1:]), columns)

    def spread(self, space: tuple[int, ...], columns: int) -> Tensor | None:
        """`places` for a map of positions `space` whose design matrix has so many columns."""
        size, most = math.prod(space), max(1, int(min(self.cells, CELL_VALUES / columns)) // max(self.rows, 1))
        if size <= most:
            return None
        if ("places", space, most) not in self.memo:
            # Steps of about .618 of the map, from a start of each row's own, lie evenly on it and never twice on one place.
            step = next(k for k in range(int(0.618 * size), size + 1) if math.gcd(k, size) == 1)
            first = torch.randint(size, (self.rows, 1), generator=stream(0, "places", *space))
            self.memo["places", space, most] = (first + step * torch.arange(most)) % size
        return self.memo["places", space, most]

    def span(self, target: str) -> Span:
        """What the target's parents can make, on the rows' places."""
        known, key = self.about(target), ("span", self.places(target) is None)
        if key not in known:
            known[key] = span_of(self.arch, self.values, target, self.places(target))
            self.memo["moments", known[key].nodes] = known[key].moments
        return known[key]

    def moments(self, form: Units) -> Tensor | None:
        """E[h h^T] of the sources of new units, and a constant, where a span has them: what feeds them feeds trained units as well.

        Of the same span whichever site comes first: a span that no site has asked for yet is made.
        """
        nodes = self.arch.nodes
        if any(w not in nodes or nodes[w].attrs != form.frame.nodes[w].attrs for w in form.writers):
            return None
        alike = parents(self.arch, form.writers[0]) == form.writers and form.sources == tuple(nodes[w].inputs[0] for w in form.writers)
        if not alike:
            return None
        if ("moments", form.writers) not in self.memo:
            try:
                self.span(form.writers[0])
            except torch.linalg.LinAlgError:  # NaN in the network's own values
                return None
        return self.memo.get(("moments", form.writers))

    def parent_basis(self, target: str) -> Tensor:
        """Orthonormal columns spanning the parents' features and a constant: [rows * places, rank], fp64."""
        return self.span(target).basis

    def bottleneck(self, target: str) -> Tensor:
        """v less what the parents could do about it, by least squares: [rows, positions, units] (MATH: v-perp)."""
        if self.whole is not None:
            return self.whole.bottleneck(target)[self.first : self.first + self.rows]
        known = self.about(target)
        if ("perp", target) not in known:
            v, span, places = self.v[target], self.span(target), self.places(target)
            if places is None:
                made = flat(v).double()
                made = span.free(made.flatten(0, 1)).view(made.shape).to(v.dtype)
            else:
                solved = span.solve(at(v, places).double().flatten(0, 1))
                made = flat(v - self._made(target, span, solved))
            known["perp", target] = made
        return known["perp", target]

    def _made(self, target: str, span: Span, solved: Tensor) -> Tensor:
        """What the parents' design matrix makes with weights `solved`, on all positions."""
        weights = span.as_weights(self.arch, target, solved)
        made = moved(self.arch, self.values, target, {n: w for n, w in weights.items() if n.endswith(".weight")})
        return made + solved[-1].to(self.v[target].dtype).view(1, -1, *[1] * (self.v[target].dim() - 2))

    def curvature(self, target: str) -> Tensor:
        """E = mean over rows of the probe gradients' outer products, summed over positions: [units, units], fp64."""
        if ("curvature", target) not in self.memo:
            p = flat(self.probe[target]).flatten(0, 1)
            self.memo["curvature", target] = (p.T @ p).double() / self.rows
        return self.memo["curvature", target]


def _size(known: object) -> int:
    """Values in the tensors of what was worked out."""
    if isinstance(known, Tensor):
        return known.numel()
    return sum(map(_size, known.values() if isinstance(known, dict) else vars(known).values() if hasattr(known, "__dict__") else ()))


@dataclass
class Evidence:
    """`train`: rows the proposals are fitted on; `held`: rows never trained on, which decide what is signal.

    `now`: training rows as the network sees them now, to say how far the loss falls: gathered ones were seen by earlier weights.
    """

    arch: Architecture
    weights: dict[str, Tensor]
    train: Pass
    held: Pass
    memo: dict = field(default_factory=dict)
    now: Pass | None = None

    def head(self, rows: int) -> Evidence:
        """The same with at most `rows` training rows: what a race looks at first."""
        if rows >= self.train.rows:
            return self
        if ("head", rows) not in self.memo:
            self.memo["head", rows] = Evidence(self.arch, self.weights, self.train.head(rows), self.held, now=self.now or self.train)
        return self.memo["head", rows]


def observe(
    arch: Architecture, weights: Mapping[str, Tensor], fold: Fold, loss: losses.Loss, generator: torch.Generator, beta: float = 1.0,
    curvature: str = "rademacher",
) -> Pass:
    """One forward and two backwards over `fold`, in eval mode, some rows at a time. `curvature`: the kind of probe (losses.Loss.probe)."""
    modules, rows = materialise(arch, weights), len(fold.x)
    every = sum(math.prod(arch.shapes[n]) for n in arch.order)
    size = min(rows, max(FEWEST_CHUNK, int(CHUNK_VALUES // every)))
    # A fold's residual variance is known when all its rows are: both cotangents are linear in what stands for it.
    variance = None if size >= rows else 1.0
    kept, v, probe = {}, {}, {}
    for start in range(0, rows, size):
        part = Fold(fold.x[start : start + size], fold.y[start : start + size])
        for whole, seen in zip((kept, v, probe), _observed(arch, modules, part, loss, generator, beta, curvature, variance), strict=True):
            for name, t in seen.items():
                if name not in whole:
                    whole[name] = t if size == rows else t.new_empty(rows, *t.shape[1:])
                if size < rows:
                    whole[name][start : start + size] = t
    out = kept[arch.outputs[0]]
    variance = loss.variance(out, fold.y) if variance else 1.0
    if variance != 1.0:
        for whole, scale in ((v, variance), (probe, variance if curvature == "empirical" else math.sqrt(variance))):
            for name in whole:  # not in place: of a sum's summands all may share one tensor
                whole[name] = whole[name] / scale
    return Pass(arch, weights, Values(arch, modules, kept), v, probe, float(loss.nats(out, fold.y)), {"modules": modules}, fold.y, loss, beta)


def _observed(
    arch: Architecture, modules: Mapping[str, Module], fold: Fold, loss: losses.Loss, generator: torch.Generator, beta: float, curvature: str,
    variance: float | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(values that are kept, v, probe) of some rows, with that residual variance, or their own."""
    values: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        for name in arch.order:
            node = arch.nodes[name]
            if node.op == "input":
                values[name] = fold.x
                continue
            made = modules[name](*(values[i] for i in node.inputs))
            if node.rule.role == "affine":
                if not made.requires_grad:
                    made = made.detach().requires_grad_()
                found[name] = made
            values[name] = made
        out = values[arch.outputs[0]]
        found.setdefault(arch.outputs[0], out if out.requires_grad else out.requires_grad_())
        cotangent = loss.cotangent(out.detach(), fold.y, beta=beta, variance=variance)
        probe = loss.probe(out.detach(), fold.y, generator, beta=beta, variance=variance, floor=FLOOR, kind=curvature)
        values, zs = {n: values[n].detach() for n in read_by_affine(arch)}, list(found.values())
        first = torch.autograd.grad(out, zs, cotangent, retain_graph=True, allow_unused=True)
        second = torch.autograd.grad(out, zs, probe, allow_unused=True)
    first, second = ({n: torch.zeros_like(z) if g is None else g for (n, z), g in zip(found.items(), grads, strict=True)} for grads in (first, second))
    return values, first, second


def kept_values(arch: Architecture) -> int:
    """Values that a pass keeps of one row: of every node that an affine one reads, and two gradients of every affine node's."""
    return sum(math.prod(arch.shapes[n]) for n in read_by_affine(arch)) + 2 * sum(math.prod(arch.shapes[n]) for n in affine_nodes(arch))


def affordable_rows(arch: Architecture, rows: int, share: float = 1.0) -> int:
    """`rows`, or fewer where a pass would keep more than a share of MOST_VALUES of them."""
    return min(rows, max(FEWEST_ROWS, int(share * MOST_VALUES // kept_values(arch))))


def bytes_needed(arch: Architecture, rows: int, held: int) -> int:
    """What measuring `rows` training and `held` held-out rows (or as many as are affordable) and scoring them takes at most, about, in bytes.

    It is what the passes keep, beside it what is missing at a target and what new units are there, and the work on one site.
    """
    seen = affordable_rows(arch, rows) + affordable_rows(arch, held, 0.5)
    widest, kept = max(math.prod(arch.shapes[n]) for n in affine_nodes(arch)), kept_values(arch)
    return 4 * int((kept + 2 * widest) * seen + min(WORK_VALUES, 16 * kept * seen))


def subsample(fold: Fold, rows: int, seed: int, *path: int | str) -> Fold:
    """At most `rows` rows, drawn by our stream."""
    if len(fold.x) <= rows:
        return fold
    chosen = torch.randperm(len(fold.x), generator=stream(seed, *path))[:rows]
    return Fold(fold.x[chosen], fold.y[chosen])


def measure(
    arch: Architecture, weights: Mapping[str, Tensor], train: Fold, held: Fold, loss: losses.Loss, *, rows: int, seed: int, path: tuple[int | str, ...],
    curvature: str = "rademacher", seen: Pass | None = None,
) -> Evidence:
    """Evidence from at most `rows` training rows and as many held-out ones; fewer where maps are large (affordable_rows).

    `seen`: training rows gathered already, in place of a pass of their own.
    """
    weights, all_rows = dict(weights), train
    train = subsample(train, affordable_rows(arch, rows), seed, *path, "rows")
    held = subsample(held, affordable_rows(arch, rows, 0.5), seed, *path, "held")
    with torch.no_grad():
        values = run(arch.nodes, arch.order, materialise(arch, weights), {i: held.x for i in arch.inputs})
        beta = loss.calibrate(values[arch.outputs[0]], held.y)
    return Evidence(
        arch, weights,
        observe(arch, weights, train, loss, stream(seed, *path, "probe"), curvature=curvature) if seen is None else seen,
        observe(arch, weights, held, loss, stream(seed, *path, "probe-held"), beta, curvature),
        now=None if seen is None else glance(arch, weights, subsample(all_rows, enough(arch, seen.rows), seed, *path, "now"), loss),
    )


def glance(arch: Architecture, weights: Mapping[str, Tensor], fold: Fold, loss: losses.Loss) -> Pass:
    """One forward over `fold`, in eval mode: a pass without gradients."""
    modules = materialise(arch, weights)
    with torch.no_grad():
        values = run(arch.nodes, arch.order, modules, {i: fold.x for i in arch.inputs})
    values = Values(arch, modules, {n: values[n] for n in read_by_affine(arch)})
    return Pass(arch, weights, values, {}, {}, float(loss.nats(values[arch.outputs[0]], fold.y)), {"modules": modules}, fold.y, loss)


# Rows enough for so many multiply-accumulates of the whole network, and never fewer than these.
LINE_WORK, LINE_ROWS = 3e7, 128


def enough(arch: Architecture, rows: int) -> int:
    """How many of so many rows a line through the network looks at."""
    return min(rows, max(LINE_ROWS, int(LINE_WORK / max(arch.macs, 1))))
