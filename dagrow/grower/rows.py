"""Rows for a decision: from tensors, or from the batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dagrow.data import Fold
from dagrow.errors import UsageError
from dagrow.rng import stream, torch_seeded

Path = tuple[int | str, ...]
# Where no held-out rows are given, so many of the rows are held out of the fit.
HELD = 0.25


def batch_of(batch: Any) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of one batch; UsageError where it is anything else than two tensors with a row each per sample."""
    if isinstance(batch, dict):
        fix = "wrap the loader: ((b['x'], b['y']) for b in loader), for a model of one tensor"
        raise UsageError(f"a batch is a dict with {', '.join(map(repr, list(batch)[:4]))}; it has to be (inputs, targets)", fix=fix)
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        what = f"{len(batch)} things: {', '.join(type(t).__name__ for t in batch)}" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise UsageError(f"a batch is {what}; it has to be two tensors, (inputs, targets)")
    x, y = batch
    if not x.dim() or not y.dim() or len(x) != len(y):
        raise UsageError(f"a batch has inputs {list(x.shape)} and targets {list(y.shape)}: not a row of each for every sample")
    return x, y


def gathered(data: Any, rows: int | None, seed: int, path: Path) -> tuple[Fold, int]:
    """(at most `rows` rows, all of them where None; the size of the first batch) of (x, y) or of a loader's batches, on the CPU.

    Rows of tensors are drawn at random; of a loader its first batches are taken, in the order that our seed gives it. The
    caller's random state stays as it is.
    """
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        x, y = batch_of(data)
        if rows is not None and len(x) > rows:
            chosen = torch.randperm(len(x), generator=stream(seed, *path, "rows"))[:rows]
            x, y = x[chosen.to(x.device)], y[chosen.to(y.device)]
        return Fold(_placed(x), _placed(y)), len(x)
    if not isinstance(data, Iterable):
        raise UsageError(f"the rows are a {type(data).__name__}", fix="give a loader of (inputs, targets) batches, or (x, y)")
    parts, count = [], 0
    with torch_seeded(seed, *path, "loader"):
        for batch in data:
            parts.append(batch_of(batch))
            count += len(parts[-1][0])
            if rows is not None and count >= rows:
                break
    if not count:
        return Fold(torch.empty(0), torch.empty(0)), 0
    x, y = (_placed(torch.cat(ts)[:rows]) for ts in zip(*parts, strict=True))
    return Fold(x, y), len(parts[0][0])


def split(fold: Fold, seed: int, path: Path) -> tuple[Fold, Fold]:
    """(rows to fit on, rows held out), at random."""
    order = torch.randperm(len(fold), generator=stream(seed, *path, "held"))
    held = int(len(fold) * HELD)
    return (Fold(fold.x[part], fold.y[part]) for part in (order[held:], order[:held]))


def _placed(t: Tensor) -> Tensor:
    """On the CPU, in single precision at least."""
    t = t.detach().cpu()
    return t.float() if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) else t


__all__ = ["HELD", "batch_of", "gathered", "split"]
