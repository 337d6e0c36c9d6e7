"""Tables in text files."""

from __future__ import annotations

import math
from typing import Literal

import pydantic

from dagrow.data import REGISTRY, Raw, Source, infer_task
from dagrow.data.reading import MISSING_CELLS, Cells, confined, need_finite, parse_numbers, read_cells
from dagrow.errors import DataError
from dagrow.registry import Options

MOST_CATEGORIES = 256


@REGISTRY.register("csv")
class Csv(Source):
    """A csv file with a header line; `target` names the column to predict.

    A column whose cells are all numbers is one number a row, any other (or one named in `categorical`) is one-hot.
    Cells in `missing` are missing: numbers get the median of the train rows, a missing category is a category.
    `drop`: columns to ignore. `task`: auto = classification where the target is text or whole numbers of few values.
    """

    class Options(Options):
        path: str = pydantic.Field(min_length=1)
        target: str
        task: Literal["auto", "classification", "regression"] = "auto"
        drop: tuple[str, ...] = ()
        categorical: tuple[str, ...] = ()
        missing: tuple[str, ...] = MISSING_CELLS
        separator: str = pydantic.Field(",", min_length=1, max_length=1, pattern=r'[^"\r\n ]')

    @staticmethod
    def load(options, folder):
        import numpy as np

        cells = read_cells(confined(options.path, folder), options.separator, options.path)
        target = options.target.strip()
        cells.column(target, "target")
        for name in (*options.drop, *options.categorical):
            cells.column(name)
        if target in options.drop:
            raise DataError(f"data.options.drop: {target!r} is the target", fix="drop other columns")
        features = tuple(n for n in cells.names if n != target and n not in options.drop)
        if not features:
            raise DataError(f"{options.path}: no column besides the target {target!r}", fix="give at least one feature")
        for name in features:
            if not name:
                number = cells.names.index(name) + 1
                raise DataError(f"{options.path}:1: column {number} has no name", fix="name it, or put data.options.drop: ['']")
        missing = frozenset(options.missing)
        columns, categories = zip(*(_feature(cells, n, missing, n in options.categorical) for n in features), strict=True)
        y = _target(cells, target, missing)
        task = infer_task(y) if options.task == "auto" else options.task
        reading = {"separator": options.separator, "missing": options.missing}
        return Raw(np.stack(columns, 1), y, task, features, categories=categories, where=options.path, reading=reading)


def _feature(cells: Cells, name: str, missing: frozenset[str], categorical: bool):
    """(column [n] float64, None for numbers or the categories that its codes count)."""
    import numpy as np

    column = cells.column(name)
    present = [cell for cell in column if cell not in missing]
    if not present:
        raise DataError(f"{cells.shown}: column {name!r} is empty in every row", fix=f"put data.options.drop: [{name!r}]")
    if not categorical:
        values, bad = parse_numbers(column, missing)
        if bad is None:
            need_finite(cells, name, values, missing, empty_ok=True)
            return np.array(values), None
        number = next((cell for cell in present if parse_numbers([cell], missing)[1] is None), None)
        if number is not None:
            raise DataError(
                f"{cells.place(name, bad)}: {column[bad]!r} is not a number, others of the column are ({number!r})",
                fix=f"correct it, put data.options.categorical: [{name!r}], or data.options.missing: [{column[bad]!r}] if it means missing",
            )
    known = tuple(sorted(set(present)))
    if len(known) > MOST_CATEGORIES:
        comma = all(cell.replace(",", "", 1).lstrip("+-").isdigit() for cell in known)
        fix = "write decimals with a point, not a comma" if comma else f"put data.options.drop: [{name!r}]"
        raise DataError(f"{cells.shown}: column {name!r} has {len(known)} categories, at most {MOST_CATEGORIES} are encoded", fix=fix)
    codes = {text: float(code) for code, text in enumerate(known)}
    return np.array([codes.get(cell, math.nan) for cell in column]), known


def _target(cells: Cells, name: str, missing: frozenset[str]):
    """The target [n]: float64, or text where a cell is no number."""
    import numpy as np

    column = cells.column(name)
    values, bad = parse_numbers(column, missing)
    if bad is None:
        need_finite(cells, name, values, missing, empty_ok=False)
        return np.array(values)
    for row, cell in enumerate(column):
        if cell in missing:
            raise DataError(f"{cells.place(name, row)}: no target ({cell!r})", fix="remove the rows whose target is not known")
    return np.array(column)
