"""One epoch of training: the unit of work between two commits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dagrow.errors import UsageError
from dagrow.inputs import Inputs, scored
from dagrow.losses import Loss
from dagrow.rng import stream, torch_seeded
from dagrow.train.session import Session


class Rows(Protocol):
    """A fold of data: inputs [n, ...] (several: Inputs) and targets [n] or [n, outputs]."""

    x: Tensor | Inputs
    y: Tensor


class Observer(Protocol):
    """Looks on while an epoch trains, and leaves every bit of it as it is."""

    def forward(self, model: nn.Module, step: int, x: Tensor, y: Tensor) -> Tensor:
        """model(x) of the step (from 0), with its graph: what is in it may be looked at, and gradients as they come by."""


@dataclass(frozen=True)
class EpochReport:
    """loss: the training loss averaged over the samples as they were met, nats: the same per sample in nats;
    finite: whether the loss, the weights, the buffers and the optimizer's state are free of NaN and infinity."""

    loss: float
    nats: float
    steps: int
    samples: int
    finite: bool


def steps_per_epoch(rows: int, batch: int) -> int:
    """Optimizer steps in an epoch: a last batch of one row is left out, since batch norm cannot train on it."""
    return rows // batch + (rows % batch > (1 if rows > batch else 0))


def train_epoch(
    model: nn.Module,
    session: Session,
    fold: Rows,
    loss: Loss,
    *,
    batch: int,
    rates: Callable[[int], float],
    seed: int,
    path: tuple[int | str, ...],
    clip: float | None = None,
    observer: Observer | None = None,
) -> EpochReport:
    """Trains `model` in place, in train mode, for one pass over `fold` in an order drawn from (seed, *path).

    rates: step in this epoch, from 0 -> learning rate. clip: largest norm of the whole gradient. The same weights,
    state, seed and path give the same bits. What became of the numbers is in the report, not raised.
    """
    rows = len(fold.x)
    steps = steps_per_epoch(rows, batch) if batch >= 1 else 0
    if not steps:
        raise UsageError(f"cannot train on {rows} rows in batches of {batch}")
    order = torch.randperm(rows, generator=stream(seed, *path, "shuffle")).to(fold.x.device)
    total = torch.zeros((), dtype=torch.float64, device=fold.x.device)
    samples = outputs = 0
    model.train()
    with torch_seeded(seed, *path, "forward"):
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            session.zero_grads()
            x, y = fold.x.index_select(0, chosen), fold.y.index_select(0, chosen)
            out = scored(model, x) if observer is None else observer.forward(model, step, x, y)
            value = loss.mean(out, y)
            value.backward()
            if clip is not None:
                session.clip(clip)
            session.step(rates(step))
            # Read back once, at the end: a read per step would wait for the device.
            total.add_(value.detach(), alpha=len(chosen))
            samples += len(chosen)
            outputs = out.shape[1]
    mean = total.item() / samples
    buffers = all(bool(b.isfinite().all()) for b in model.buffers() if b.is_floating_point())
    finite = math.isfinite(mean) and buffers and session.finite()
    return EpochReport(loss=mean, nats=loss.nats_of(mean, outputs), steps=steps, samples=samples, finite=finite)
