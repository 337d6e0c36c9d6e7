"""Losses, in nats per sample: what training minimises, and the output cotangents that measuring sends backwards.

`out` is the network's output [n, q] (logits, or standardised predictions); `y` the targets: int64 classes [n], or floats [n, q].

Two numbers make a fold's likelihood honest, and every batch of that fold must be given the same two:
`beta`, the inverse softmax temperature (the likelihood is that of beta * logits), and `variance`, the residual variance
of the Gaussian (the fold's mean squared error). `Loss.calibrate` and `Loss.variance` fit them.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dagrow.errors import UnknownName, UsageError

# Held-out logits that separate the classes have no best finite beta, and those of a network that knows nothing may have
# a best beta below zero: outside these bounds the likelihood says nothing that scoring could use.
BETA_RANGE = (0.05, 20.0)
# Targets are standardised, so this is far below any residual variance that single precision can tell from zero.
VARIANCE_FLOOR = 1e-12
PROBES = ("rademacher", "importance", "empirical")


class Loss:
    """What every loss provides. `each` averages to `nats`; `cotangent` is minus the gradient of `each` summed over samples.

    `variance` None stands for the mean squared error of the rows given; a loss ignores the number it has no use for.
    All raise UsageError where `out` and `y` do not fit each other.
    """

    name: ClassVar[str]
    task: ClassVar[str]

    def check(self, out: Tensor, y: Tensor) -> None:
        """UsageError unless `out` and `y` fit: a mismatch would broadcast, and train to a wrong optimum in silence."""
        raise NotImplementedError

    def mean(self, out: Tensor, y: Tensor) -> Tensor:
        """The scalar that training minimises."""
        raise NotImplementedError

    def nats_of(self, mean: float, outputs: int) -> float:
        """Nats per sample from a value of `mean` averaged over samples, for a network with `outputs` outputs."""
        return mean

    def per_sample(self, rows: int, outputs: int) -> float:
        """What makes a gradient of `mean` over that many rows into the one that `cotangent` with a variance of 1 sends backwards."""
        return -float(rows)

    def each(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        """Nats of every sample, [n]: for paired differences and their standard errors."""
        raise NotImplementedError

    def nats(self, out: Tensor, y: Tensor, *, beta: float = 1.0) -> Tensor:
        """Mean nats per sample, a scalar."""
        raise NotImplementedError

    def cotangent(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        """v = -d each_i / d out_i per sample (sum reduction, never the batch mean), [n, q]."""
        raise NotImplementedError

    def probe(
        self, out: Tensor, y: Tensor, generator: torch.Generator, *, beta: float = 1.0, variance: float | None = None, floor: float = 0.0,
        kind: str = "rademacher",
    ) -> Tensor:
        """A random cotangent [n, q] whose second moment, per sample, is the Gauss-Newton matrix of `each` in `out`.

        floor: the share of a uniform distribution mixed into the network's own. A confident row has no curvature to second
        order, but a step of some size finds it; the floor stands for that. `generator` is a CPU generator; splitting the rows into batches draws the same numbers.

        kind: "rademacher", random signs; "importance", a label drawn more often where its cotangent is long (for squared
        error: random signs); "empirical", the true label's own cotangent, for comparison: its second moment is the empirical
        Fisher matrix, which is not the Gauss-Newton matrix (Kunstner et al. 2019), and knows no floor. UsageError for others.
        """
        raise NotImplementedError

    def calibrate(self, out: Tensor, y: Tensor) -> float:
        """The beta, within BETA_RANGE, under which the rows are likeliest, in double precision; 1 for regression."""
        return 1.0

    def variance(self, out: Tensor, y: Tensor) -> float:
        """The residual variance under which the rows are likeliest, in double precision; 1 for classification."""
        return 1.0

    def metrics(self, out: Tensor, y: Tensor) -> dict[str, float]:
        """{"loss": nats per sample, and "accuracy" or "r2"}; computed in double precision."""
        raise NotImplementedError


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits with class indices."""

    name = "cross_entropy"
    task = "classification"

    def check(self, out: Tensor, y: Tensor) -> None:
        if out.ndim != 2 or y.shape != out.shape[:1] or y.dtype != torch.int64:
            raise _mismatch(self.name, out, y, "logits [n, classes] and int64 classes [n]")

    def mean(self, out: Tensor, y: Tensor) -> Tensor:
        self.check(out, y)
        return functional.cross_entropy(out, y)

    def each(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        return functional.cross_entropy(out * beta, y, reduction="none")

    def nats(self, out: Tensor, y: Tensor, *, beta: float = 1.0) -> Tensor:
        return self.each(out, y, beta=beta).mean()

    def cotangent(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        with torch.no_grad():
            residual = torch.softmax(out * beta, 1).neg_()
            residual[torch.arange(len(y), device=y.device), y] += 1
            return residual.mul_(beta)

    def probe(
        self, out: Tensor, y: Tensor, generator: torch.Generator, *, beta: float = 1.0, variance: float | None = None, floor: float = 0.0,
        kind: str = "rademacher",
    ) -> Tensor:
        self.check(out, y)
        _check_probe(kind)
        if kind == "empirical":
            return self.cotangent(out, y, beta=beta)
        with torch.no_grad():
            p = torch.softmax(out * beta, 1)
            p = (1 - floor) * p + floor / p.shape[1]
            if kind == "importance":
                return _label_cotangent(p, generator).mul_(beta)
            spread = p.sqrt() * _signs(out, generator)
            return (spread - p * spread.sum(1, keepdim=True)).mul_(beta)

    def calibrate(self, out: Tensor, y: Tensor) -> float:
        """Newton's method on the mean nats, convex in beta, kept inside a shrinking bracket; nonfinite logits give 1."""
        self.check(out, y)
        z = out.detach().to("cpu", torch.float64)
        y = y.cpu()
        if not len(z) or not bool(z.isfinite().all()):
            return 1.0
        z = z - z.max(1, keepdim=True).values
        true = z.gather(1, y[:, None]).mean().item()

        def slope(beta: float) -> tuple[float, float]:
            p = torch.softmax(z * beta, 1)
            mean = (p * z).sum(1)
            return mean.mean().item() - true, ((p * z * z).sum(1) - mean * mean).mean().item()

        low, high = BETA_RANGE
        if slope(high)[0] < 0:
            return high
        if slope(low)[0] > 0:
            return low
        beta = 1.0
        for _ in range(100):
            first, second = slope(beta)
            if first > 0:
                high = beta
            elif first < 0:
                low = beta
            else:
                break
            ahead = beta - first / second if second > 0 else math.inf
            # Newton overshoots where the curvature dies away: halve the bracket (in its logarithm) instead.
            ahead = ahead if low < ahead < high else math.sqrt(low * high)
            done = abs(ahead - beta) <= 1e-12 * beta
            beta = ahead
            if done:
                break
        return beta

    def metrics(self, out: Tensor, y: Tensor) -> dict[str, float]:
        out = out.detach().double()
        return {"loss": self.nats(out, y).item(), "accuracy": (out.argmax(1) == y).double().mean().item()}


class MeanSquared(Loss):
    """Squared error of standardised targets; in nats, the Gaussian likelihood at its best residual variance.

    Nats per sample are (q/2) ln(mean squared error over rows and outputs): the constant (q/2) ln(2 pi e) is left out.
    """

    name = "mse"
    task = "regression"

    def check(self, out: Tensor, y: Tensor) -> None:
        if out.ndim != 2 or y.shape != out.shape or not y.is_floating_point():
            raise _mismatch(self.name, out, y, "predictions [n, outputs] and float targets of the same shape")

    def mean(self, out: Tensor, y: Tensor) -> Tensor:
        self.check(out, y)
        return functional.mse_loss(out, y)

    def nats_of(self, mean: float, outputs: int) -> float:
        return outputs / 2 * math.log(max(mean, VARIANCE_FLOOR)) if math.isfinite(mean) else math.nan

    def per_sample(self, rows: int, outputs: int) -> float:
        return -rows * outputs / 2

    def _variance(self, out: Tensor, y: Tensor) -> Tensor:
        return (y - out).square().mean().clamp_min(VARIANCE_FLOOR)

    def each(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        """With the variance held fixed: sum_j r_j^2 / (2 variance) + (q/2)(ln variance - 1)."""
        self.check(out, y)
        if variance is None:
            variance = self._variance(out.detach(), y).item()
        return (y - out).square().sum(1) / (2 * variance) + out.shape[1] / 2 * (math.log(variance) - 1)

    def nats(self, out: Tensor, y: Tensor, *, beta: float = 1.0) -> Tensor:
        self.check(out, y)
        return out.shape[1] / 2 * self._variance(out, y).log()

    def cotangent(self, out: Tensor, y: Tensor, *, beta: float = 1.0, variance: float | None = None) -> Tensor:
        self.check(out, y)
        with torch.no_grad():
            return (y - out) / (self._variance(out, y) if variance is None else variance)

    def probe(
        self, out: Tensor, y: Tensor, generator: torch.Generator, *, beta: float = 1.0, variance: float | None = None, floor: float = 0.0,
        kind: str = "rademacher",
    ) -> Tensor:
        self.check(out, y)
        _check_probe(kind)
        if kind == "empirical":
            return self.cotangent(out, y, variance=variance)
        with torch.no_grad():
            return _signs(out, generator) / (self._variance(out, y).sqrt() if variance is None else math.sqrt(variance))

    def variance(self, out: Tensor, y: Tensor) -> float:
        """The mean squared error over rows and outputs, at least VARIANCE_FLOOR; NaN or infinite where `out` is."""
        self.check(out, y)
        return self._variance(out.detach().double(), y.double()).item()

    def metrics(self, out: Tensor, y: Tensor) -> dict[str, float]:
        """r2 = 1 - SSE / SST per output, averaged; an output whose target is constant counts 1 if met exactly, else 0."""
        out, y = out.detach().double(), y.double()
        loss = self.nats(out, y).item()
        sse = (y - out).square().sum(0)
        sst = (y - y.mean(0)).square().sum(0)
        r2 = torch.where(sst > 0, 1 - sse / sst, (sse == 0).double())
        return {"loss": loss, "r2": r2.mean().item()}


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (CrossEntropy(), MeanSquared())}


def get(name: str, task: str | None = None) -> Loss:
    """The loss called `name`; "auto" is the one for `task` ("classification" | "regression").

    Raises UnknownName, or UsageError where the loss cannot be used for `task`.
    """
    if name == "auto" and task is not None:
        return next(loss for loss in LOSSES.values() if loss.task == task)
    if name not in LOSSES:
        raise UnknownName("loss", name, ("auto", *LOSSES))
    loss = LOSSES[name]
    if task is not None and loss.task != task:
        raise UsageError(
            f"loss {name!r} is for {loss.task}, the data is for {task}", fix=f"use {get('auto', task).name!r}, or leave it at 'auto'"
        )
    return loss


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    # randint is serial on the CPU, so the draws do not depend on the number of threads or on the batching.
    return torch.randint(0, 2, like.shape, generator=generator).to(like.device, like.dtype).mul_(2).sub_(1)


def _label_cotangent(p: Tensor, generator: torch.Generator) -> Tensor:
    """sqrt(p_c / q_c) (e_c - p) with c drawn from q_c ~ p_c |e_c - p|^2: its second moment is diag p - p p^T, and its length
    does not depend on c. Zero where p is certain."""
    wide = p.double()
    # |e_c - p|^2 = 1 - 2 p_c + |p|^2, without the cancellation.
    long = (1 - wide).square() + (wide.square().sum(1, keepdim=True) - wide.square()).clamp_min(0)
    mass = (wide * long).cumsum(1)
    drawn = torch.rand(len(p), 1, generator=generator, dtype=torch.float64).to(p.device)
    label = (mass <= drawn * mass[:, -1:]).sum(1, keepdim=True).clamp_max(p.shape[1] - 1)
    toward = (-wide).scatter_add(1, label, torch.ones_like(mass[:, :1]))
    return (toward * (mass[:, -1:] / long.gather(1, label).clamp_min(1e-300)).sqrt()).to(p.dtype)


def _check_probe(kind: str) -> None:
    if kind not in PROBES:
        raise UsageError(f"a probe of the kind {kind!r} is not known", fix=f"use one of {', '.join(PROBES)}")


def _mismatch(name: str, out: Tensor, y: Tensor, expected: str) -> UsageError:
    return UsageError(
        f"loss {name!r} is given an output {list(out.shape)} and targets {y.dtype} {list(y.shape)}; it takes {expected}",
        fix="make the network's last layer as wide as the data has outputs",
    )
