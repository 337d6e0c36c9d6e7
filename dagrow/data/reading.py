"""Files of data, read with suspicion: what is not a plain, well-formed file of numbers and words is refused with its place."""

from __future__ import annotations

import csv
import io
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dagrow.errors import DataError, nearest

if TYPE_CHECKING:
    import numpy

LARGEST = 4 * 2**30  # bytes of one file or array
MOST_COLUMNS = 2**16
# What an empty cell may be written as. Not "nan": that is mostly a computation gone wrong, so it must be asked for.
MISSING_CELLS = ("", "NA", "N/A", "?", "null", "NULL")
UNNAMED = "''"


def confined(path: str, folder: Path | None) -> Path:
    """The file that a spec in `folder` (None: the working folder) means by `path`; DataError where it leads out of the folder."""
    home = Path(folder or ".").resolve()
    if "\0" in path or not path:
        raise DataError(f"{path!r} is no path", fix="give the path of a file, relative to the spec's folder")
    try:
        found = (home / path).resolve()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be followed: {error}") from error
    if not found.is_relative_to(home):
        raise DataError(f"{path}: leads out of the spec's folder", fix="put the file, not a link to it, into the spec's folder or below it")
    return found


def open_regular(path: Path, shown: str | None = None) -> BinaryIO:
    """`path` opened for reading if it is a regular file (no folder, pipe or device; never waits); DataError otherwise."""
    shown = shown or str(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        there = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        near = nearest(path.name, there)
        given = "paths are relative to the spec's folder" if shown != str(path) else f"looked for in {path.parent.absolute()}"
        hint = f"did you mean {near!r}?" if near else given
        raise DataError(f"{shown}: no such file", fix=hint) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST:
        os.close(handle)
        what = f"{state.st_size} bytes, at most {LARGEST} are read" if stat.S_ISREG(state.st_mode) else "not a regular file"
        raise DataError(f"{shown}: {what}", fix="give the path of a file that holds the data")
    return os.fdopen(handle, "rb")


@dataclass(frozen=True)
class Cells:
    """A csv file as text: `columns[i][j]` is row j of column `names[i]`, stripped; `lines[j]` its line, from 1."""

    shown: str
    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str, what: str = "column") -> tuple[str, ...]:
        if name not in self.names:
            near = nearest(name, self.names)
            hint = f"did you mean {near!r}?" if near else f"its columns: {', '.join(map(repr, self.names[:20]))}"
            raise DataError(f"{self.shown}:1: no {what} {name!r}", fix=hint)
        return self.columns[self.names.index(name)]

    def place(self, name: str, row: int) -> str:
        return f"{self.shown}:{self.lines[row]}, column {name or UNNAMED!r}"


def read_cells(path: Path, separator: str = ",", shown: str | None = None) -> Cells:
    """The csv file at `path`: UTF-8 (a byte-order mark is skipped), a header line, rows of as many cells; DataError otherwise."""
    shown = shown or str(path)
    with open_regular(path, shown) as file:
        data = file.read()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{shown}: UTF-16, expected UTF-8", fix="save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{shown}:{line}: byte {data[error.start]:#04x} is not UTF-8", fix="save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{shown}:{line}: a zero byte, expected text", fix="give a text file with separated columns")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    names: tuple[str, ...] = ()
    rows, lines = [], []
    start = 1
    try:
        for row in reader:
            if not row:
                pass
            elif not names:
                names = tuple(cell.strip() for cell in row)
                _check_header(names, shown, separator)
            elif len(row) != len(names):
                raise DataError(
                    f"{shown}:{start}: {len(row)} cells, the header names {len(names)} columns",
                    fix=f"put cells that hold a {separator!r} in double quotes" if len(row) > len(names) else "fill the row up",
                )
            else:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{shown}:{start}: {error}", fix='a quoted cell starts and ends with ", and a " inside it is doubled') from None
    if not names:
        raise DataError(f"{shown}: empty, expected a header line and rows", fix="the first line names the columns")
    if not rows:
        raise DataError(f"{shown}: a header line and no rows", fix="the first line names the columns, every other one is a row")
    columns = tuple(tuple(map(str.strip, column)) for column in zip(*rows, strict=True))
    return Cells(shown, names, columns, tuple(lines))


def _check_header(names: Sequence[str], shown: str, separator: str) -> None:
    if len(names) > MOST_COLUMNS:
        raise DataError(f"{shown}:1: {len(names)} columns, at most {MOST_COLUMNS} are read", fix="use an npz file for arrays")
    others = [s for s in (",", ";", "\t", "|") if s != separator and s in names[0]]
    if len(names) == 1 and others:
        raise DataError(f"{shown}:1: one column {names[0][:80]!r}", fix=f"did you mean separator: {others[0]!r}?")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{shown}:1: two columns named {name or UNNAMED!r}", fix="give every column its own name")
        seen.add(name)


def parse_numbers(cells: Sequence[str], missing: frozenset[str]) -> tuple[list[float], int | None]:
    """(numbers, None), NaN where a cell is in `missing`; or ([], row) of the first cell that is no number."""
    out = []
    for row, cell in enumerate(cells):
        try:
            out.append(float(cell))  # the common case first; float() also takes 1_000, which no csv means
            if "_" in cell:
                return [], row
        except ValueError:
            if cell not in missing:
                return [], row
            out.append(math.nan)
    if missing & {"nan", "NaN", "NAN", "inf", "-inf"}:
        out = [math.nan if cell in missing else value for cell, value in zip(cells, out, strict=True)]
    return out, None


def need_finite(cells: Cells, name: str, values: Sequence[float], missing: frozenset[str], empty_ok: bool) -> None:
    """DataError at the first value of the column that is infinite, or NaN without being missing (or missing, unless `empty_ok`)."""
    for row, value in enumerate(values):
        if math.isfinite(value):
            continue
        cell = cells.columns[cells.names.index(name)][row]
        if cell not in missing:
            fix = f"correct the cell, or leave it empty if the value is missing (or data.options.missing: [{cell!r}])"
            raise DataError(f"{cells.place(name, row)}: {cell!r} is not a finite number", fix=fix)
        if not empty_ok:
            raise DataError(f"{cells.place(name, row)}: no target ({cell!r})", fix="remove the rows whose target is not known")


def read_arrays(path: Path, keys: Sequence[str], shown: str | None = None) -> list[numpy.ndarray]:
    """The arrays `keys` of the npz file at `path`: numbers, booleans or text, never Python objects; DataError otherwise."""
    import numpy as np

    shown = shown or str(path)
    with open_regular(path, shown) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                held = [name.removesuffix(".npy") for name in archive.namelist()]
                for key in keys:
                    if key not in held:
                        near = nearest(key, held)
                        hint = f"did you mean {near!r}?" if near else f"it holds: {', '.join(map(repr, held[:20]))}"
                        raise DataError(f"{shown}: no array {key!r}", fix=hint)
                    _check_header_of(archive, f"{key}.npy" if f"{key}.npy" in archive.namelist() else key, shown)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return [np.asarray(arrays[key]) for key in keys]
        except DataError:
            raise
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{shown}: not a readable npz file: {error}", fix="write it with numpy.savez(path, x=…, y=…)") from error
        except MemoryError as error:
            raise DataError(f"{shown}: not enough memory to read it") from error


def _check_header_of(archive: zipfile.ZipFile, member: str, shown: str) -> None:
    """Refuse an array that claims more than the file holds before anything of its size is allocated."""
    from numpy.lib import format as npy

    size = archive.getinfo(member).file_size
    with archive.open(member) as file:
        version = npy.read_magic(file)
        shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    name = member.removesuffix(".npy")
    if dtype.hasobject or dtype.names or dtype.kind not in "biufUS":
        raise DataError(f"{shown}: array {name!r} is of {dtype}, expected numbers or text", fix="convert it with .astype(…)")
    if size > LARGEST or math.prod(shape) * dtype.itemsize > size:
        claim = f"array {name!r} claims to be {list(shape)} of {dtype}, the file holds {size} bytes"
        raise DataError(f"{shown}: {claim}", fix="write it again")


@dataclass(frozen=True)
class Schema:
    """What new rows look like: the columns of a table, or arrays of `shape` a row under `key`."""

    features: tuple[str, ...]
    shape: tuple[int, ...]
    categories: tuple[tuple[str, ...] | None, ...] | None = None
    separator: str = ","
    missing: tuple[str, ...] = MISSING_CELLS
    key: str = "x"

    def read(self, path: str | Path) -> numpy.ndarray:
        """Raw rows [n, *shape] from a .npz (array `key`, or its only one) or else a csv file whose header names the features.

        In a csv the order of columns is free and others (the target) are ignored; a category that was not known, or is
        missing, is all zeros. Numbers may be missing only where the source said how to fill them (csv).
        """
        path = Path(path)
        return self._read_npz(path) if path.suffix.lower() == ".npz" else self._read_csv(path)

    def _read_npz(self, path: Path) -> numpy.ndarray:
        (x,) = read_arrays(path, [self.key])
        if x.shape[1:] != self.shape or x.ndim == 0 or not len(x):
            raise DataError(f"{path}: {self.key!r} is {list(x.shape)}, expected [rows, {', '.join(map(str, self.shape))}]")
        check_numbers(x, str(path), self.key, missing_ok=self.categories is not None)
        return x

    def _read_csv(self, path: Path) -> numpy.ndarray:
        import numpy as np

        from dagrow.encoding import UNSEEN

        cells = read_cells(path, self.separator)
        missing = frozenset(self.missing)
        x = np.empty((len(cells.lines), len(self.features)))
        for i, name in enumerate(self.features):
            column = cells.column(name)
            known = self.categories[i] if self.categories else None
            if known is not None:
                codes = {text: float(code) for code, text in enumerate(known)} | {text: math.nan for text in missing}
                x[:, i] = [codes.get(cell, UNSEEN) for cell in column]
                continue
            values, bad = parse_numbers(column, missing)
            if bad is not None:
                raise DataError(f"{cells.place(name, bad)}: {column[bad]!r} is not a number")
            need_finite(cells, name, values, missing, empty_ok=True)
            x[:, i] = values
        x = x.reshape(len(x), *self.shape)
        check_numbers(x, str(path), "rows", missing_ok=self.categories is not None)
        return x


def check_numbers(x: numpy.ndarray, shown: str, key: str, missing_ok: bool = False) -> None:
    """DataError naming the first element of x that is NaN or infinite (NaN is fine where `missing_ok`), or x where it is no numbers."""
    import numpy as np

    if x.dtype.kind not in "biuf":
        raise DataError(f"{shown}: {key!r} is of {x.dtype}, expected numbers", fix="convert it with .astype(…) before saving")
    if x.dtype.kind != "f":
        return
    bad = np.isinf(x) if missing_ok else ~np.isfinite(x)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        more = f" ({int(bad.sum())} such in all)" if bad.sum() > 1 else ""
        where = f"row {at[0]}" + (f", column {at[1]}" if len(at) == 2 else f", element {list(at[1:])}" if len(at) > 2 else "")
        raise DataError(
            f"{shown}: {key}[{', '.join(map(str, at))}] ({where}, from 0) is {x[at]}{more}",
            fix="remove these rows, or fill the values in before saving (numpy.nan_to_num, scikit-learn's SimpleImputer)",
        )


