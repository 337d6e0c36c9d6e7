"""A user's own loss as a Loss: exactly where it is one of ours, else by its values and gradients, row by row.

Gains are then in the units of that loss, per row: nats where it is a negative log-likelihood.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dagrow.errors import UsageError
from dagrow.losses import LOSSES, Loss
from dagrow.rng import stream

LossFunction = Callable[[Tensor, Any], Tensor]
# Rounding, and what a loss that goes over its rows in another order adds to it.
AGREE = 1e-3


class Criterion(Loss):
    """`function(output, target)` -> the mean over the rows of a batch, a scalar that can be differentiated.

    The curvature is empirical: the second moment of each row's own gradient (`probe` is the cotangent whatever its kind). It
    overstates what a fitted network may still gain; how far the loss really falls is asked of real forwards.
    """

    name = "criterion"
    task = "any"

    def __init__(self, function: LossFunction):
        self.function = function

    def check(self, out: Tensor, y: Tensor) -> None:
        if len(out) != len(y):
            raise UsageError(f"the model gives {len(out)} rows for {len(y)} targets", fix="the first dimension of both is the batch")

    def mean(self, out: Tensor, y: Tensor) -> Tensor:
        value = self.function(out, y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"loss_fn gives {what}, not one number", fix='take the mean over the rows (reduction="mean")')
        return value.reshape(())

    def each(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        with torch.no_grad():
            try:
                return torch.vmap(lambda o, t: self.mean(o.unsqueeze(0), t.unsqueeze(0)), chunk_size=1024)(out, y)
            except RuntimeError:  # what vmap does not know, such as a branch on a value
                return torch.stack([self.mean(out[k : k + 1], y[k : k + 1]) for k in range(len(out))])

    def nats(self, out: Tensor, y: Tensor, *, beta: float = 1.0) -> Tensor:
        return self.each(out, y).mean()

    def cotangent(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        with torch.enable_grad():
            free = out.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.mean(free, y), free)
        return slope.mul_(-len(out))

    def probe(
        self, out: Tensor, y: Tensor, generator: torch.Generator, *, beta: float = 1.0, variance: float | None = None, floor: float = 0.0,
        kind: str = "empirical",
    ) -> Tensor:
        return self.cotangent(out, y)

    def metrics(self, out: Tensor, y: Tensor) -> dict[str, float]:
        return {"loss": float(self.nats(out.detach(), y))}


class LocalQuadratic(Loss):
    """What is known of a loss without its targets: each row to second order, about the output that its derivatives were taken at.

    `y` is [n, 2 + m, *output]: v, minus the gradient of the row's loss in its output; that output; and m tensors whose outer
    products add up to the curvature there, or the square root of its diagonal alone, where m is 1 (`recorded`).
    """

    name = "local_quadratic"
    task = "any"

    @staticmethod
    def recorded(v: Tensor, out: Tensor, root: Tensor) -> Tensor:
        return torch.cat([v.unsqueeze(1), out.detach().unsqueeze(1), root], 1)

    def check(self, out: Tensor, y: Tensor) -> None:
        if y.dim() != out.dim() + 1 or y.shape[:1] + y.shape[2:] != out.shape or y.shape[1] < 3:
            raise UsageError(f"derivatives {list(y.shape)} were recorded for an output {list(out.shape)}")

    def mean(self, out: Tensor, y: Tensor) -> Tensor:
        return self.each(out, y).mean()

    def each(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        y = y.to(out.dtype)
        step = (out - y[:, 1]).unsqueeze(1).flatten(2)
        along = step * y[:, 2:].flatten(2)
        bend = along.square().sum((1, 2)) if y.shape[1] == 3 else along.sum(2).square().sum(1)
        return bend / 2 - (step[:, 0] * y[:, 0].flatten(1)).sum(1)

    def nats(self, out: Tensor, y: Tensor, *, beta: float = 1.0) -> Tensor:
        return self.each(out, y).mean()

    def cotangent(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        return y[:, 0].clone()

    def probe(
        self, out: Tensor, y: Tensor, generator: torch.Generator, *, beta: float = 1.0, variance: float | None = None, floor: float = 0.0,
        kind: str = "rademacher",
    ) -> Tensor:
        self.check(out, y)
        root = y[:, 2:]
        drawn = out.shape if root.shape[1] == 1 else root.shape[:2]
        signs = torch.randint(0, 2, drawn, generator=generator).to(root.dtype).mul_(2).sub_(1)
        return signs * root[:, 0] if root.shape[1] == 1 else (signs.view(*signs.shape, *[1] * (root.dim() - 2)) * root).sum(1)

    def metrics(self, out: Tensor, y: Tensor) -> dict[str, float]:
        return {"loss": float(self.nats(out.detach(), y))}


# Outputs up to which a row's curvature is taken whole; beyond, its diagonal.
WHOLE = 32
PROBES = 16


def curvature_root(curvature: Tensor, v: Tensor, out: Tensor) -> Tensor:
    """Of each row's curvature [n, q, q] (any symmetric matrix: its absolute value is taken), or of its diagonal [n, q]: a root
    [n, m, *output], of it and a floor.

    A second-order expansion promises anything to a row without curvature, sure and wrong. The floor makes that a step as long as
    outputs are spread, for a row of mean slope: in whatever units loss and outputs are.
    """
    flat = out.flatten(1).double()
    spread = float((flat - flat.mean(0)).square().sum(1).mean().sqrt())
    floor = float(v.flatten(1).double().norm(dim=1).mean()) / max(spread, 1e-12)
    if curvature.dim() == 2:
        return (curvature.abs() + floor).sqrt().view(len(curvature), 1, *out.shape[1:])
    values, vectors = torch.linalg.eigh(curvature.double())
    root = (vectors * (values.abs() + floor).sqrt().unsqueeze(1)).transpose(1, 2)
    return root.to(curvature.dtype).reshape(len(root), -1, *out.shape[1:])


def curvature_of(slope: Tensor, out: Tensor) -> Tensor:
    """Second derivatives of a scalar loss in each row of `out`, from its gradient with its graph: [n, q, q] where q is WHOLE at
    most, else the diagonal [n, q] (exact where outputs do not meet in the loss). Rows are taken not to meet.
    """
    n, q = len(out), out[0].numel()
    if not slope.requires_grad:  # linear in the outputs
        return torch.zeros((n, q, q) if q <= WHOLE else (n, q), dtype=out.dtype, device=out.device)

    def back(cotangent: Tensor) -> Tensor:
        found = torch.autograd.grad(slope, out, cotangent.view_as(slope), retain_graph=True, allow_unused=True)[0]
        return torch.zeros(n, q, dtype=out.dtype, device=out.device) if found is None else found.detach().reshape(n, q)

    if q > WHOLE:  # Hutchinson 1989
        signs = torch.randint(0, 2, (PROBES, n, q), generator=stream(0, "curvature")).to(out).mul_(2).sub_(1)
        return sum(s * back(s) for s in signs) / PROBES
    columns = torch.eye(q, dtype=out.dtype, device=out.device)
    return torch.stack([back(c.expand(n, q)) for c in columns], 2)


def loss_of(function: LossFunction | nn.Module, out: Tensor, y: Any) -> Loss:
    """The Loss that `function` is, seen on a batch: cross entropy and squared error, with their defaults, exactly; else a Criterion.

    UsageError where it does not give one number, or gives a sum over rows; a warning where it is not the mean over rows
    for another reason (weights of classes, rows that are left out): gains are then those of its own gradient, about.
    """
    known = _known(function, out, y)
    if known is not None:
        return known
    if not callable(function):
        raise UsageError(f"loss_fn is a {type(function).__name__}, not a function", fix="give loss_fn(output, target) -> the mean over the batch's rows")
    loss = Criterion(function)
    out, y = out.detach()[:64], y[:64]
    loss.check(out, y)
    with torch.no_grad():
        whole, rows = float(loss.mean(out, y)), float(loss.each(out, y).mean())
    if abs(whole - rows) > AGREE * max(abs(whole), abs(rows)) and len(out) > 1:
        if abs(whole - rows * len(out)) <= AGREE * abs(whole):
            raise UsageError("loss_fn sums over the rows of a batch", fix='take their mean (reduction="mean")')
        warnings.warn(
            f"loss_fn is not the mean over a batch's rows: of {len(out)} rows it gives {whole:.4g}, the rows' own mean is {rows:.4g}", stacklevel=3
        )
    return loss


def _known(function: LossFunction | nn.Module, out: Tensor, y: Any) -> Loss | None:
    """One of the exact losses, where the function is it and the batch has the form it takes."""
    name = None
    if function is functional.cross_entropy:
        name = "cross_entropy"
    elif function is functional.mse_loss:
        name = "mse"
    elif type(function) is nn.CrossEntropyLoss:
        plain = function.weight is None and function.reduction == "mean" and not function.label_smoothing and function.ignore_index < 0
        name = "cross_entropy" if plain else None
    elif type(function) is nn.MSELoss:
        name = "mse" if function.reduction == "mean" else None
    if name is None or not isinstance(y, Tensor):
        return None
    try:
        LOSSES[name].check(out, y)
    except UsageError:
        return None
    return None if name == "cross_entropy" and bool((y < 0).any()) else LOSSES[name]


__all__ = ["Criterion", "LocalQuadratic", "LossFunction", "curvature_of", "curvature_root", "loss_of"]
