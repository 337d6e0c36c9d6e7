"""Preprocessing as part of the network: from raw rows to what the network reads, and from its output to what is reported.

scikit-learn fits (on the training rows only); what it found is held in the buffers of small modules that can be
scripted and exported, so an export takes raw rows of any dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy

# Codes of a categorical column count from 0. A cell that is missing is NaN in a raw row and MISSING after filling;
# a category that was not known gets UNSEEN. A code with no column of its own leaves all its columns 0.
MISSING, UNSEEN = -1.0, -2.0
CHUNK = 2**24  # elements fitted or encoded at once: bounds the memory of the float64 copy


class ArrayEncoder(nn.Module):
    """(x - mean) / scale for rows of numbers: [n, *raw_shape] (or any shape with as many elements a row) -> [n, *shape] float32.

    wide: compute in float64, for raw numbers that float32 cannot tell apart.
    """

    def __init__(self, mean: Tensor, scale: Tensor, raw_shape: Sequence[int], shape: Sequence[int], wide: bool):
        super().__init__()
        kind = torch.float64 if wide else torch.float32
        self.raw_shape = [int(s) for s in raw_shape]
        self.shape = [int(s) for s in shape]
        self.wide = wide
        self.register_buffer("mean", mean.to(kind).contiguous())
        self.register_buffer("scale", scale.to(kind).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float64 if self.wide else torch.float32).reshape([x.shape[0]] + self.raw_shape)
        x = (x - self.mean) / self.scale
        return x.reshape([x.shape[0]] + self.shape).to(torch.float32)

    def reshaped(self, shape: Sequence[int]) -> ArrayEncoder:
        return ArrayEncoder(self.mean, self.scale, self.raw_shape, shape, self.wide)


class TableEncoder(nn.Module):
    """Rows of a table: [n, columns], categories as codes, NaN where missing -> [n, *shape] float32.

    Encoded column j reads raw column `source[j]`. A number: NaN becomes `fill[j]`, then (x - mean[j]) / scale[j].
    A category (`is_code[j]`): NaN becomes MISSING, then 1 where it equals `category[j]`, else 0.
    """

    def __init__(self, source: Tensor, fill: Tensor, mean: Tensor, scale: Tensor, is_code: Tensor, category: Tensor, shape: Sequence[int]):
        super().__init__()
        self.shape = [int(s) for s in shape]
        self.register_buffer("source", source.to(torch.int64))
        self.register_buffer("is_code", is_code.to(torch.bool))
        for name, value in (("fill", fill), ("mean", mean), ("scale", scale), ("category", category)):
            self.register_buffer(name, value.to(torch.float64).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float64).index_select(1, self.source)
        x = torch.where(torch.isnan(x), self.fill, x)
        x = torch.where(self.is_code, (x == self.category).to(torch.float64), (x - self.mean) / self.scale)
        return x.reshape([x.shape[0]] + self.shape).to(torch.float32)

    def reshaped(self, shape: Sequence[int]) -> TableEncoder:
        return TableEncoder(self.source, self.fill, self.mean, self.scale, self.is_code, self.category, shape)


class Identity(nn.Module):
    """What a classifier reports are its logits."""

    def forward(self, y: Tensor) -> Tensor:
        return y


class ScaleDecoder(nn.Module):
    """y · scale + mean: standardised outputs [n, q] back in the units of the target."""

    def __init__(self, mean: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32).contiguous())
        self.register_buffer("scale", scale.to(torch.float32).contiguous())

    def forward(self, y: Tensor) -> Tensor:
        return y * self.scale + self.mean


def standardise(x: numpy.ndarray, normalise: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(mean, scale) of x [n, *shape], each of a shape that broadcasts against `shape`; scale 1 where x is constant.

    per_feature: one pair per element; per_channel: one per index of the first axis after the batch; global: one pair.
    """
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    shape = x.shape[1:]
    if normalise == "none":
        return np.zeros(shape), np.ones(shape)
    kept = {"per_feature": shape, "per_channel": shape[:1] + (1,) * (len(shape) - 1), "global": (1,) * len(shape)}[normalise]
    scaler = StandardScaler()
    low, high = np.full(math.prod(kept), np.inf), np.full(math.prod(kept), -np.inf)
    rows = max(1, CHUNK // max(1, math.prod(shape)))
    for start in range(0, len(x), rows):
        part = x[start : start + rows].astype(np.float64)
        if normalise == "per_channel":
            part = np.moveaxis(part, 1, -1)
        part = part.reshape(-1, math.prod(kept))
        scaler.partial_fit(part)
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
    # A constant becomes exactly 0: its mean is rounded, and a huge constant less its rounded mean is not small.
    return np.where(low == high, low, scaler.mean_).reshape(kept), scaler.scale_.reshape(kept)


def fit_array(x: numpy.ndarray, normalise: str) -> ArrayEncoder:
    """The encoder of rows like the training rows x [n, *shape], which hold no NaN."""
    mean, scale = standardise(x, normalise)
    wide = x.dtype.itemsize > 4 or (x.dtype.kind in "iu" and x.dtype.itemsize > 2)
    return ArrayEncoder(torch.from_numpy(mean), torch.from_numpy(scale), x.shape[1:], x.shape[1:], wide)


def fit_table(x: numpy.ndarray, categories: Sequence[Sequence[str] | None], normalise: str) -> TableEncoder:
    """The encoder of rows like the training rows x [n, columns] float64, NaN = missing.

    Numbers: the median for missing ones, then standardised (per_feature and per_channel: by column; global: all numbers
    by one mean and scale). Categories (codes, where `categories[column]` is not None): a column for each one that the
    training rows hold, also for "missing"; 0 or 1, never standardised. Columns come in the order of the table.
    """
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    numbers = [c for c, known in enumerate(categories) if known is None]
    coded = [c for c, known in enumerate(categories) if known is not None]
    columns: dict[int, list[tuple[float, float, float, bool, float]]] = {}
    if numbers:
        imputer = SimpleImputer(strategy="median", keep_empty_features=True)
        filled = imputer.fit_transform(x[:, numbers])
        mean, scale = (np.broadcast_to(v, len(numbers)) for v in standardise(filled, normalise))
        columns.update({c: [(imputer.statistics_[i], mean[i], scale[i], False, 0.0)] for i, c in enumerate(numbers)})
    if coded:
        onehot = OneHotEncoder(handle_unknown="ignore").fit(np.nan_to_num(x[:, coded], nan=MISSING))
        columns.update({c: [(MISSING, 0.0, 1.0, True, v) for v in onehot.categories_[i]] for i, c in enumerate(coded)})
    source = [c for c in range(len(categories)) for _ in columns[c]]
    encoded = [row for c in range(len(categories)) for row in columns[c]]
    fill, mean, scale, is_code, category = (torch.tensor(np.array(v)) for v in zip(*encoded, strict=True))
    return TableEncoder(torch.tensor(source), fill, mean, scale, is_code, category, [len(source)])


def fit_target(y: numpy.ndarray) -> ScaleDecoder:
    """The decoder of standardised targets like the training targets y [n, q]."""
    mean, scale = standardise(y, "per_feature")
    return ScaleDecoder(torch.from_numpy(mean), torch.from_numpy(scale))


def encode(encoder: nn.Module, x: numpy.ndarray) -> Tensor:
    """encoder(x) in chunks: [n, *shape] float32, contiguous."""
    rows = max(1, CHUNK // max(1, math.prod(x.shape[1:])))
    with torch.no_grad():
        return torch.cat([encoder(as_tensor(x[s : s + rows])) for s in range(0, len(x), rows)]).contiguous()


def as_tensor(x: numpy.ndarray) -> Tensor:
    """A copy of x as a tensor, in a dtype that torch computes with."""
    import numpy as np

    if x.dtype == np.float16 or x.dtype.kind not in "fiub" or x.dtype.itemsize > 8:
        x = x.astype(np.float32 if x.dtype == np.float16 else np.float64)
    elif x.dtype.kind == "u" and x.dtype.itemsize > 1:
        x = x.astype(np.int64 if x.dtype.itemsize < 8 else np.float64)
    return torch.from_numpy(np.array(x, order="C", dtype=x.dtype.newbyteorder("=")))
