"""What can be wrong with a model that is to be imported."""

from __future__ import annotations

import linecache
import os
import traceback

import torch

from dagrow.errors import DagrowError

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TORCH = os.path.dirname(os.path.abspath(torch.__file__))


class ImportingError(DagrowError):
    """A model that cannot be imported. place: "file:line" of the user's code, where it is known."""

    def __init__(self, message: str, *, fix: str | None = None, place: str | None = None):
        self.place = place
        super().__init__(message, fix=fix)


class Unfit(Exception):
    """This way of importing something does not fit; there may be another."""


def place_of(error: BaseException) -> tuple[str, str] | None:
    """("file:line", the source line) of the user's code in which an error came up."""
    for row in reversed(traceback.extract_tb(error.__traceback__)):
        file = os.path.abspath(row.filename)
        if not file.startswith((HERE + os.sep, TORCH + os.sep)) and not row.filename.startswith("<") and os.sep + "contextlib.py" not in file:
            return f"{row.filename}:{row.lineno}", (row.line or linecache.getline(row.filename, row.lineno or 0)).strip()
    return None


def located(error: ImportingError, cause: BaseException, path: str = "") -> ImportingError:
    """The error with the place in the user's code."""
    found = place_of(cause)
    if error.place is not None or found is None:
        return error
    place, line = found
    return ImportingError(f"{place}: {error.message}\n    {line}", fix=error.fix, place=place)
