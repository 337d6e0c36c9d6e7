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
from dagrow.graph.node import Module, run
from dagrow.inputs import by_name
from dagrow.measure.kept import Values, read_by_affine
from dagrow.measure.parents import affine_nodes
from dagrow.measure.passes import Pass, materialise
from dagrow.rng import stream

# Without a floor, directions go by the few rows that a converged network is unsure of. On an mlp of bench_truth.py (4 seeds, second-order
# values, rank correlation with line search): .87 without, .90 with .02, .97 with .1, whose candidates reach 15% less than those without.
FLOOR = 0.02
# What a pass keeps of its rows may have this many values, 120 MB in single precision; the held-out one half as many.
MOST_VALUES = 3e7
FEWEST_ROWS = 32
# Design matrices of one site's sources and targets, products with them, and candidates compared: 80 MB.
WORK_VALUES = 2e7
# A pass is made of so many rows at a time: of as many as all nodes' values are 8 MB of, and no fewer than these.
CHUNK_VALUES, FEWEST_CHUNK = 2**21, 64


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
    values: dict[str, Tensor] = by_name(arch.inputs, fold.x)
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        for name in arch.order:
            node = arch.nodes[name]
            if node.op == "input":
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
    widest, kept = max((math.prod(arch.shapes[n]) for n in affine_nodes(arch)), default=0), kept_values(arch)
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
        values = run(arch.nodes, arch.order, materialise(arch, weights), by_name(arch.inputs, held.x))
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
        values = run(arch.nodes, arch.order, modules, by_name(arch.inputs, fold.x))
    values = Values(arch, modules, {n: values[n] for n in read_by_affine(arch)})
    return Pass(arch, weights, values, {}, {}, float(loss.nats(values[arch.outputs[0]], fold.y)), {"modules": modules}, fold.y, loss)


# Rows enough for so many multiply-accumulates of the whole network, and never fewer than these.
LINE_WORK, LINE_ROWS = 3e7, 128


def enough(arch: Architecture, rows: int) -> int:
    """How many of so many rows a line through the network looks at."""
    return min(rows, max(LINE_ROWS, int(LINE_WORK / max(arch.macs, 1))))
