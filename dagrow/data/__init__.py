"""Data by name: one file per family of sources. Train, validation and test rows, and the way from raw rows to the network.

Train rows carry the gradients; validation rows decide what is signal and what is accepted; test rows are reported once.
Preprocessing is fitted on train rows only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic

from dagrow.data.reading import Schema, check_numbers
from dagrow.errors import DataError, nearest
from dagrow.registry import Options, Registry

if TYPE_CHECKING:
    import numpy
    from torch import Tensor, nn

REGISTRY = Registry("source", __name__, verb="sources")
Task = Literal["classification", "regression"]
NORMALISE = ("per_feature", "per_channel", "global", "none")
SHOWN_ROWS = 64


class Source:
    """What every source provides."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]]

    @staticmethod
    def load(options, folder: Path | None) -> Raw:
        """All rows, as they are; files by paths inside `folder`. Raises DataError."""
        raise NotImplementedError


class Split(Options):
    """How rows are split, whatever the seed of the run is.

    test: fraction of all rows, by train_test_split(test_size=test, random_state=random_state); a source with test rows of
    its own ignores it. val: fraction of what is left, by train_test_split(test_size=val, random_state=random_state).
    stratify: every class in its share (classification).
    """

    test: float = pydantic.Field(0.25, gt=0, lt=1)
    val: float = pydantic.Field(0.15, gt=0, lt=1)
    random_state: int = pydantic.Field(0, ge=0, lt=2**32)
    stratify: bool = False


@dataclass(frozen=True, eq=False)
class Raw:
    """What a source gives. x [n, *shape] numbers, NaN = missing (tables only); y [n] labels, or numbers [n] or [n, outputs].

    features: a name per element of a row. categories: only for tables, per column: its categories (x holds their codes)
    or None for numbers. test: the last so many rows are the test rows. standardise: whether regression targets are.
    """

    x: numpy.ndarray
    y: numpy.ndarray
    task: Task
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    categories: tuple[tuple[str, ...] | None, ...] | None = None
    test: int = 0
    standardise: bool = True
    where: str = "data"
    reading: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows for the network: x [n, *input_shape] float32; y int64 [n] classes, or float32 [n, outputs] standardised targets."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device) -> Fold:
        return Fold(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Folds ready for the network. encoder: raw rows [n, …] of any dtype -> its input; decoder: its output -> what is reported
    (logits as they are; regression: in the units of the target). raw: the first raw test rows. target_scale [outputs]: how
    many units of the target one unit of the network's output is (1 for classification). digest: of raw rows and options.
    """

    task: Task
    train: Fold
    val: Fold
    test: Fold
    encoder: nn.Module
    decoder: nn.Module
    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...] | None
    features: tuple[str, ...]
    raw: Tensor
    digest: str
    target_scale: Tensor
    schema: Schema

    @property
    def train_val(self) -> Fold:
        import torch

        return Fold(torch.cat([self.train.x, self.val.x]), torch.cat([self.train.y, self.val.y]))

    def read(self, path: str | Path) -> Tensor:
        """Raw rows for `encoder` from a csv or npz file (Schema.read says how). Raises DataError."""
        from dagrow.encoding import as_tensor

        return as_tensor(self.schema.read(path))

    def reshaped(self, shape: tuple[int, ...]) -> Dataset:
        """The same data for a network that reads `shape`: flattened, unflattened, or with axes of size 1 more or fewer."""
        shape = tuple(int(s) for s in shape)
        if shape == self.input_shape:
            return self
        squeezed = [tuple(s for s in shape_ if s != 1) for shape_ in (shape, self.input_shape)]
        same = squeezed[0] == squeezed[1] or min(len(s) for s in squeezed) <= 1
        if math.prod(shape) != math.prod(self.input_shape) or not same:
            raise DataError(
                f"the network reads {list(shape)}, the data's rows are {list(self.input_shape)}",
                fix=f"put input: {{shape: {list(self.input_shape)}}}, or leave it out to take it from the data",
            )
        folds = {name: Fold(fold.x.reshape(-1, *shape), fold.y) for name, fold in self.folds.items()}
        return replace(self, encoder=self.encoder.reshaped(shape), input_shape=shape, **folds)

    @property
    def folds(self) -> dict[str, Fold]:
        return {"train": self.train, "val": self.val, "test": self.test}


def load(source: str, source_options: Mapping | Options | None = None, split: Mapping | Split | None = None,
         normalise: str = "per_feature", folder: Path | None = None) -> Dataset:
    """The data set `source`. Raises UnknownName, DataError. The same arguments and files give the same bits."""
    cls = REGISTRY.get(source)
    options = _options(cls.Options, source_options or {}, f"data.options of {source!r}")
    split = _options(Split, split or {}, "data.split")
    if normalise not in NORMALISE:
        near = nearest(normalise, NORMALISE)
        fix = near and f"did you mean {near!r}?"
        raise DataError(f"data.normalise is {normalise!r}, expected one of {', '.join(NORMALISE)}", fix=fix)
    raw = cls.load(options, folder)
    return prepare(raw, split, normalise, (source, options.model_dump(mode="json")))


def prepare(raw: Raw, split: Split, normalise: str = "per_feature", about: object = None) -> Dataset:
    """Raw rows checked, split, and encoded by what the train rows say. `about` enters the digest. Raises DataError."""
    import numpy as np
    import torch

    from dagrow import encoding

    check_numbers(raw.x, raw.where, "x", missing_ok=raw.categories is not None)
    if raw.x.ndim < 2 or len(raw.x) != len(raw.y) or 0 in raw.x.shape[1:]:
        raise DataError(f"{raw.where}: x is {list(raw.x.shape)} and y {list(raw.y.shape)}, expected as many rows, and columns in x")
    y, classes = _labels(raw) if raw.task == "classification" else (_targets(raw), None)
    train, val, test = _indices(raw, y, split)
    if classes is not None and len(np.unique(y[train])) < 2:
        raise DataError(f"{raw.where}: all {len(train)} train rows are of one class", fix="put data.split.stratify: true")
    shape = raw.x.shape[1:]
    with np.errstate(all="ignore"):  # what overflows is found in the folds
        if raw.categories is not None:
            encoder: nn.Module = encoding.fit_table(raw.x[train], raw.categories, normalise)
        else:
            encoder = encoding.fit_array(raw.x[train], normalise)
        decoder: nn.Module = encoding.Identity() if classes else encoding.fit_target(y[train] if raw.standardise else 0 * y[:1])
    if classes is not None:
        targets, scale = torch.from_numpy(y), torch.ones(len(classes))
    else:
        targets, scale = ((torch.from_numpy(y) - decoder.mean.double()) / decoder.scale.double()).float(), decoder.scale.clone()
    folds = [Fold(encoding.encode(encoder, raw.x[i]), targets[torch.from_numpy(i)].contiguous()) for i in (train, val, test)]
    for fold in folds:
        if not (fold.x.isfinite().all() and fold.y.isfinite().all()):
            raise DataError(f"{raw.where}: values beyond what float32 holds", fix="rescale them, or let data.normalise do so")
    features = raw.features or tuple(f"x{i}" for i in range(math.prod(shape)))
    schema = Schema(features, shape, raw.categories, **raw.reading)
    digest = _digest(raw, y, (about, split.model_dump(), normalise, classes, raw.categories, features, raw.test, raw.standardise))
    return Dataset(
        raw.task, *folds, encoder=encoder, decoder=decoder, input_shape=tuple(folds[0].x.shape[1:]),
        outputs=len(classes) if classes else y.shape[1], classes=classes, features=features,
        raw=encoding.as_tensor(raw.x[test[:SHOWN_ROWS]]), digest=digest, target_scale=scale, schema=schema,
    )


def check_batch(dataset: Dataset, batch: int) -> None:
    """DataError where a batch is larger than the train rows."""
    if batch > len(dataset.train):
        rows = len(dataset.train)
        raise DataError(f"data.batch is {batch}, there are {rows} train rows", fix=f"put data.batch: {rows} or less")


def infer_task(y: numpy.ndarray) -> Task:
    """What a target y [n] or [n, outputs] asks for: classification where it is text, booleans, or whole numbers of few different
    values (two, or up to 20 with at least 5 rows each on average); regression otherwise."""
    import numpy as np

    if y.dtype.kind in "USb":
        return "classification"
    if y.size != len(y) or not np.all(np.isfinite(y)) or np.any(y != np.round(y)):
        return "regression"
    return "classification" if len(np.unique(y)) <= max(2, min(20, len(y) // 5)) else "regression"


def _options(cls: type[Options], given, what: str):
    if isinstance(given, cls):
        return given
    try:
        return cls(**given)
    except pydantic.ValidationError as error:
        rows = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            near = nearest(key, cls.model_fields) if problem["type"] == "extra_forbidden" else None
            if near:
                message = f"did you mean {near!r}?"
            elif problem["type"] == "extra_forbidden":
                message = f"unknown; known: {', '.join(cls.model_fields) or 'none'}"
            else:
                message = problem["msg"]
            rows.append(f"{what}: {key!r}: {message}")
        raise DataError("\n".join(rows)) from None
    except TypeError:
        raise DataError(f"{what}: {given!r}, expected a mapping") from None


def _labels(raw: Raw) -> tuple[numpy.ndarray, tuple[str, ...]]:
    """(codes [n] int64, class names) of the labels."""
    import numpy as np

    y = raw.y.reshape(len(raw.y)) if raw.y.size == len(raw.y) else raw.y
    if y.ndim != 1:
        raise DataError(f"{raw.where}: y is {list(y.shape)}, expected one label a row", fix="for several numbers, put task: regression")
    if y.dtype.kind == "f":
        check_numbers(y, raw.where, "y")
        y = y.astype(np.int64) if np.all(y == np.round(y)) and np.all(np.abs(y) < 2**53) else y
    held, codes = np.unique(y, return_inverse=True)
    names = raw.classes or tuple(str(v) for v in held.tolist())
    if raw.classes:
        held, codes = np.arange(len(raw.classes)), y
    if len(np.unique(codes)) < 2:
        raise DataError(f"{raw.where}: every row is of the one class {names[int(codes[0])]!r}", fix="give rows of at least two classes")
    if len(held) > max(2, len(y) // 2):
        raise DataError(f"{raw.where}: {len(held)} classes in {len(y)} rows", fix="is it another target, or task: regression?")
    return codes.reshape(-1).astype(np.int64), names


def _targets(raw: Raw) -> numpy.ndarray:
    """The targets [n, outputs] float64."""
    import numpy as np

    if raw.y.dtype.kind not in "biuf":
        raise DataError(f"{raw.where}: targets are text, regression needs numbers", fix="put task: classification")
    if raw.y.ndim > 2 or raw.y.ndim == 2 and raw.y.shape[1] == 0:
        raise DataError(f"{raw.where}: y is {list(raw.y.shape)}, expected [rows] or [rows, outputs]")
    check_numbers(raw.y, raw.where, "y")
    y = raw.y.astype(np.float64).reshape(len(raw.y), -1)
    for column in range(y.shape[1]):
        if len(y) and np.all(y[:, column] == y[0, column]):
            raise DataError(f"{raw.where}: the target is {y[0, column]} in every row", fix="is it another column?")
    return y


def _indices(raw: Raw, y: numpy.ndarray, split: Split) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Row numbers of train, val and test."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    stratify = split.stratify and raw.task == "classification"
    if stratify:
        codes, counts = np.unique(y, return_counts=True)
        if counts.min() < 3:
            label = str(np.asarray(raw.y).reshape(-1)[np.flatnonzero(y == codes[counts.argmin()])[0]])
            raise DataError(
                f"{raw.where}: {counts.min()} rows of class {label!r}, data.split.stratify needs 3",
                fix="put data.split.stratify: false, or remove the class",
            )

    def divide(rows: numpy.ndarray, fraction: float) -> list[numpy.ndarray]:
        return train_test_split(rows, test_size=fraction, random_state=split.random_state, stratify=y[rows] if stratify else None)

    rows = np.arange(len(y))
    try:
        rest, test = (rows[: -raw.test], rows[-raw.test :]) if raw.test else divide(rows, split.test)
        train, val = divide(rest, split.val)
        if len(train) < 2 or not len(val) or not len(test):
            raise ValueError("a fold would be empty")
    except ValueError as error:
        raise DataError(
            f"{raw.where}: {len(y)} rows cannot be split into test {split.test} and val {split.val}: {error}", fix="give more rows"
        ) from None
    return train, val, test


def _digest(raw: Raw, y: numpy.ndarray, about: object) -> str:
    import numpy as np

    state = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for array in (raw.x, y):
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data if array.size else b"")
    return state.hexdigest()
