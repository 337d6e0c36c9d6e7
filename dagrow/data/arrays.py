"""Arrays saved by numpy."""

from __future__ import annotations

from typing import Literal

import pydantic

from dagrow.data import REGISTRY, Raw, Source, infer_task
from dagrow.data.reading import confined, read_arrays
from dagrow.errors import DataError
from dagrow.registry import Options


@REGISTRY.register("npz")
class Npz(Source):
    """Arrays `x` [rows, …] and `y` [rows] or [rows, outputs] of a file by numpy.savez; images keep their shape."""

    class Options(Options):
        path: str = pydantic.Field(min_length=1)
        x: str = "x"
        y: str = "y"
        task: Literal["auto", "classification", "regression"] = "auto"

    @staticmethod
    def load(options, folder):
        x, y = read_arrays(confined(options.path, folder), [options.x, options.y], options.path)
        for key, array in ((options.x, x), (options.y, y)):
            if array.ndim == 0 or not len(array):
                raise DataError(f"{options.path}: {key!r} is {list(array.shape)}, expected rows")
        if len(x) != len(y):
            raise DataError(f"{options.path}: {options.x!r} has {len(x)} rows, {options.y!r} {len(y)}", fix="they must be the same rows")
        if y.dtype.kind == "S":
            import numpy as np

            y = np.char.decode(y, "utf-8", "replace")
        task = infer_task(y) if options.task == "auto" else options.task
        return Raw(x[:, None] if x.ndim == 1 else x, y, task, where=options.path, reading={"key": options.x})
