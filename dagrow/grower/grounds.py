"""What a decision rests on: rows with their targets, or rows with what was heard of their loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dagrow.criteria import LocalQuadratic, LossFunction, curvature_root, loss_of
from dagrow.data import Fold
from dagrow.grower.decision import FEWEST, Decision
from dagrow.grower.rows import HELD, gathered, split
from dagrow.losses import Loss

Outputs = Callable[[Tensor], Tensor]  # the network as it is now, on rows


@dataclass(frozen=True)
class Ground:
    """Rows to fit on and rows held out. batch: of a training step. told: whether the loss can be trained on; sure: whether its
    curvature is known. A Decision in its place says why there is none."""

    train: Fold
    held: Fold
    loss: Loss
    batch: int
    note: str
    told: bool = True
    sure: bool = True

    def again(self, outputs: Outputs) -> Ground | Decision:
        """The same rows for the network as it is now: what was heard is about its outputs."""
        if self.told:
            return self
        x, y = (torch.cat(ts) for ts in ((self.train.x, self.held.x), (self.train.y, self.held.y)))
        return _about(x, y[:, 0], lambda out: y[:, 2:], self.sure, self.note, outputs)


def too_few(rows: int) -> Decision:
    return Decision(False, "too few rows" if rows else "no rows", note=f"{rows} rows to fit on; a decision takes {FEWEST} in all")


def rows_of(data: Any, held: Any, rows: int, seed: int, path: tuple[int | str, ...]) -> tuple[Fold, Fold, int, str] | Decision:
    """(rows to fit on, held-out rows, the size of a batch, a note), from what `Grower.grow` is given."""
    train, batch = gathered(data, rows if held is not None else -(-4 * rows // 3), seed, path)
    if held is not None:
        kept, note = gathered(held, rows, seed, (*path, "held"))[0], "held-out rows as given"
    else:
        train, kept = split(train, seed, path) if len(train) else (train, train)
        note = f"{HELD:.0%} of the rows held out of the fit; the model may have been trained on them"
    if len(train) < FEWEST * (1 - HELD) or len(kept) < FEWEST * HELD:
        return too_few(len(train))
    return train, kept, batch, note


def told(train: Fold, held: Fold, batch: int, note: str, outputs: Outputs, loss_fn: LossFunction) -> Ground | Decision:
    """Rows with their targets, and a loss."""
    out = outputs(train.x)
    if not bool(out.isfinite().all()):
        return Decision(False, "nonfinite", note="the model's outputs are not finite")
    loss = loss_of(loss_fn, out, train.y)
    value = float(loss.mean(out, train.y))
    return Ground(train, held, loss, batch, note) if math.isfinite(value) else Decision(False, "nonfinite", note=f"the loss on the rows is {value}")


def heard(x: Tensor, v: Tensor, curvature: Tensor | None, outputs: Outputs) -> Ground | Decision:
    """Rows with v, minus the gradient of their loss in the output, and its curvature, oldest first; the latest are held out."""
    if not bool(v.isfinite().all()):
        return Decision(False, "nonfinite", note="the gradients heard are not finite")
    known = curvature is not None and float(curvature.abs().max()) > 0
    bend = curvature if known else v.flatten(1).square()
    note = "rows of the last steps, tested on the latest" + "; the loss's curvature is not known, so that what is new begins silent" * (not known)
    return _about(x, v, lambda out: curvature_root(bend, v, out), known, note, outputs)


def _about(x: Tensor, v: Tensor, root: Callable[[Tensor], Tensor], sure: bool, note: str, outputs: Outputs) -> Ground | Decision:
    """Derivatives as a loss about the present network's outputs. root: outputs -> of the curvature."""
    out = outputs(x)
    if not bool(out.isfinite().all()):
        return Decision(False, "nonfinite", note="the model's outputs are not finite")
    y, fitted = LocalQuadratic.recorded(v, out, root(out)), len(x) - int(len(x) * HELD)
    return Ground(Fold(x[:fitted], y[:fitted]), Fold(x[fitted:], y[fitted:]), LocalQuadratic(), max(2, fitted // 8), note, False, sure)


__all__ = ["Ground", "heard", "rows_of", "told", "too_few"]
