"""What a network does on a fold, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dagrow.errors import UsageError
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


def outputs(model: nn.Module, x: Tensor, batch: int = 4096) -> Tensor:
    """The network's outputs on the rows of x, [n, q], in eval mode, without gradients."""
    if not len(x):
        raise UsageError("cannot evaluate on 0 rows")
    with eval_mode(model), torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch)])


def evaluate(model: nn.Module, fold: Rows, loss: Loss, batch: int = 4096) -> dict[str, float]:
    """{"loss": nats per sample, and "accuracy" or "r2"}; the model is left as it was found."""
    return loss.metrics(outputs(model, fold.x, batch), fold.y)
