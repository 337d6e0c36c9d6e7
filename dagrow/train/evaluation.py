"""What a network does on a fold, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dagrow.errors import UsageError
from dagrow.inputs import Inputs, scored
from dagrow.losses import Loss
from dagrow.train.epoch import Rows


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside the block; every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# Rows are evaluated at most so many, and no fewer than the other, at a time: as many as have so many input values.
MOST_AT_ONCE, FEWEST_AT_ONCE, INPUT_VALUES = 4096, 128, 2**16


def at_once(x: Tensor | Inputs) -> int:
    """Rows of `x` to evaluate at a time: maps inside a network take many times the memory of its input."""
    return min(MOST_AT_ONCE, max(FEWEST_AT_ONCE, INPUT_VALUES // max(1, x[0].numel())))


def outputs(model: nn.Module, x: Tensor | Inputs, batch: int | None = None) -> Tensor:
    """The network's (first) output on the rows of x, [n, q], in eval mode, without gradients. batch: rows at a time; None: by their size."""
    if not len(x):
        raise UsageError("cannot evaluate on 0 rows")
    with eval_mode(model), torch.no_grad():
        return torch.cat([scored(model, part) for part in x.split(at_once(x) if batch is None else batch)])


def evaluate(model: nn.Module, fold: Rows, loss: Loss, batch: int | None = None) -> dict[str, float]:
    """{"loss": nats per sample, and "accuracy" or "r2"}; the model is left as it was found."""
    return loss.metrics(outputs(model, fold.x, batch), fold.y)
