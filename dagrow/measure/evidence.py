"""Evidence: one forward and two backwards per fold, from which every site is scored.

Per sample, v = -dl_i/dz at each pre-activation z (sum reduction, nats), and a probe gradient whose second moment is
the Gauss-Newton curvature. The bottleneck is v less what the target's own parents could do about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dagrow import losses
from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.graph.node import Module, infer, run
from dagrow.measure.features import features, flat, grouped
from dagrow.rng import stream

# Without a floor, steps along what only confident rows see run away: on a small conv net at mid training the best four
# predictions, .24 to 1.2 nats, were of steps that real forwards found to lower nothing. With it some still are, but the
# edits made on that net in table T6 gave .95 of what was predicted (median; quartiles .84 and 1.70).
FLOOR = 0.1
# The widest design matrix may have this many values: 160 MB in fp64, and a few times that while its basis is made.
MOST_VALUES = 2e7
FEWEST_ROWS = 32
RANK = 1e-10  # of the largest eigenvalue: below it a direction is rounding


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


def affine_nodes(arch: Architecture) -> tuple[str, ...]:
    return tuple(n for n in arch.order if arch.nodes[n].rule.role == "affine")


def parents(arch: Architecture, target: str) -> tuple[str, ...]:
    """The affine nodes whose outputs do to the network what `target`'s does: all that only ever meet it in one sum.

    In the order the nodes were given: what edits add comes last, whatever it reads.
    """
    end = _end(arch, target)
    return tuple(n for n, node in arch.nodes.items() if node.rule.role == "affine" and _end(arch, n) == end)


def _end(arch: Architecture, name: str) -> str:
    """Where a change of `name` goes whole and alone: the last of the sums that are its only reader, one after another."""
    while name not in arch.outputs and len(arch.consumers[name]) == 1 and arch.nodes[arch.consumers[name][0]].rule.role == "sum":
        name = arch.consumers[name][0]
    return name


@dataclass
class Pass:
    """One fold seen through the network. `v` and `probe` are [rows, units, *positions] per affine node, and at the output."""

    arch: Architecture
    weights: Mapping[str, Tensor]
    values: dict[str, Tensor]
    v: dict[str, Tensor]
    probe: dict[str, Tensor]
    nats: float
    memo: dict = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return next(iter(self.values.values())).shape[0]

    def head(self, rows: int) -> Pass:
        """The first `rows` rows (they were drawn at random), as a pass of its own; cached."""
        if rows >= self.rows:
            return self
        if ("head", rows) not in self.memo:
            cut = [{n: t[:rows] for n, t in group.items()} for group in (self.values, self.v, self.probe)]
            self.memo["head", rows] = Pass(self.arch, self.weights, *cut, self.nats)
        return self.memo["head", rows]

    def parent_basis(self, target: str) -> Tensor:
        """Orthonormal columns spanning the parents' features and a constant: [rows * positions, rank], fp64."""
        group = parents(self.arch, target)
        if ("basis", group) not in self.memo:
            # What a grouped convolution could still do differs from unit to unit: it is left in.
            whole = [self.arch.nodes[p] for p in group if not grouped(self.arch.nodes[p])]
            parts = [features(n, self.values[n.inputs[0]]).flatten(0, 1).double() for n in whole]
            x = torch.cat([*parts, torch.ones(flat(self.v[target])[..., 0].numel(), 1, dtype=torch.float64)], 1)
            # Columns of one length first: a feature of tiny scale is as good a parent as any.
            x = x / x.norm(dim=0).clamp(min=1e-300)
            values, vectors = torch.linalg.eigh(x.T @ x)
            keep = values > RANK * values[-1]
            self.memo["basis", group] = (x @ vectors[:, keep]) / values[keep].sqrt()
        return self.memo["basis", group]

    def bottleneck(self, target: str) -> Tensor:
        """v less its projection on the parents' features: [rows, positions, units], fp64 (MATH: v-perp)."""
        if ("perp", target) not in self.memo:
            v = flat(self.v[target]).double()
            q = self.parent_basis(target)
            matrix = v.flatten(0, 1)
            self.memo["perp", target] = (matrix - q @ (q.T @ matrix)).view(v.shape)
        return self.memo["perp", target]

    def curvature(self, target: str) -> Tensor:
        """E = mean over rows of the probe gradients' outer products, summed over positions: [units, units], fp64."""
        if ("curvature", target) not in self.memo:
            p = flat(self.probe[target]).double().flatten(0, 1)
            self.memo["curvature", target] = p.T @ p / self.rows
        return self.memo["curvature", target]


@dataclass
class Evidence:
    """`train`: rows the proposals are fitted on; `held`: rows never trained on, which decide what is signal."""

    arch: Architecture
    weights: dict[str, Tensor]
    train: Pass
    held: Pass
    memo: dict = field(default_factory=dict)

    def head(self, rows: int) -> Evidence:
        """The same with at most `rows` training rows: what a race looks at first."""
        if rows >= self.train.rows:
            return self
        if ("head", rows) not in self.memo:
            self.memo["head", rows] = Evidence(self.arch, self.weights, self.train.head(rows), self.held)
        return self.memo["head", rows]


def observe(
    arch: Architecture, weights: Mapping[str, Tensor], fold: Fold, loss: losses.Loss, generator: torch.Generator, beta: float = 1.0,
    curvature: str = "rademacher",
) -> Pass:
    """One forward and two backwards over `fold`, in eval mode. `curvature`: the kind of probe (losses.Loss.probe)."""
    modules = materialise(arch, weights)
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
        cotangent = loss.cotangent(out.detach(), fold.y, beta=beta)
        probe = loss.probe(out.detach(), fold.y, generator, beta=beta, floor=FLOOR, kind=curvature)
        zs = list(found.values())
        first = torch.autograd.grad(out, zs, cotangent, retain_graph=True, allow_unused=True)
        second = torch.autograd.grad(out, zs, probe, allow_unused=True)
    zero = {n: torch.zeros_like(z) for n, z in found.items()}
    return Pass(
        arch, weights,
        {n: t.detach() for n, t in values.items()},
        {n: zero[n] if g is None else g for n, g in zip(found, first, strict=True)},
        {n: zero[n] if g is None else g for n, g in zip(found, second, strict=True)},
        float(loss.nats(out.detach(), fold.y)),
    )


def _width(arch: Architecture, name: str) -> int:
    """Values in one row of an affine node's design matrix: positions times fan-in."""
    return math.prod(arch.shapes[name][1:]) * math.prod(arch.params[f"{name}.weight"][1:])


def affordable_rows(arch: Architecture, rows: int) -> int:
    """`rows`, or fewer where the widest design matrix would hold more than MOST_VALUES."""
    widest = max((_width(arch, n) for n in affine_nodes(arch)), default=1)
    return min(rows, max(FEWEST_ROWS, int(MOST_VALUES // widest)))


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
    """Evidence from at most `rows` training rows and as many held-out ones; fewer where maps are large (MOST_VALUES).

    `seen`: training rows gathered already, in place of a pass of their own.
    """
    weights = dict(weights)
    rows = affordable_rows(arch, rows)
    train = subsample(train, rows, seed, *path, "rows")
    held = subsample(held, rows, seed, *path, "held")
    with torch.no_grad():
        values = run(arch.nodes, arch.order, materialise(arch, weights), {i: held.x for i in arch.inputs})
        beta = loss.calibrate(values[arch.outputs[0]], held.y)
    return Evidence(
        arch, weights,
        observe(arch, weights, train, loss, stream(seed, *path, "probe"), curvature=curvature) if seen is None else seen,
        observe(arch, weights, held, loss, stream(seed, *path, "probe-held"), beta, curvature),
    )
