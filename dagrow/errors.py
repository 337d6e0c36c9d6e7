"""Every error dagrow raises on purpose. A leaf: imports nothing of dagrow.

An error a user can cause says where, what was found, what was expected and, where there is one, the fix.
The command line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import copyreg
import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class DagrowError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 2

    def __init__(self, message: str, *, fix: str | None = None):
        super().__init__(message if fix is None else f"{message}\n  {fix}")
        self.message = message
        self.fix = fix

    def __reduce__(self):
        # By its state: subclasses take other arguments than Exception keeps, and errors travel between processes.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: `line` and `column` count from 1; `excerpt` is the offending source line."""

    message: str
    line: int | None = None
    column: int | None = None
    excerpt: str | None = None
    width: int = 1
    hint: str | None = None

    def render(self, file: str) -> str:
        place = file if self.line is None else f"{file}:{self.line}:{self.column}"
        rows = [f"{place}  {self.message}"]
        if self.excerpt is not None and self.line is not None:
            margin = f"{self.line:>4} | "
            rows.append(margin + self.excerpt)
            caret = " " * (len(margin) - 2) + "| " + " " * ((self.column or 1) - 1) + "^" * max(1, self.width)
            rows.append(caret + (f" {self.hint}" if self.hint else ""))
        elif self.hint:
            rows.append(f"     | {self.hint}")
        return "\n".join(rows)


class SpecError(DagrowError):
    """Everything wrong with a spec, at once. Nothing was run."""

    def __init__(self, problems: Iterable[Problem], file: str = "spec"):
        self.problems = tuple(problems)
        self.file = file
        count = len(self.problems)
        text = "\n".join(p.render(file) for p in self.problems)
        super().__init__(f"{text}\n{count} error{'s' if count != 1 else ''}. Nothing was run.")


class DataError(DagrowError):
    """Data that cannot be used: a missing file or column, NaN, one class, too few rows."""


class UsageError(DagrowError):
    """A command or call that cannot be meant."""


class UnknownName(DagrowError):
    """A name that no registry holds; `suggestion` is the nearest one that is held, if any is near."""

    def __init__(self, noun: str, name: str, known: Iterable[str], listing: str | None = None):
        self.noun, self.name = noun, name
        self.suggestion = nearest(name, known)
        where = f"  ({listing})" if listing else ""
        hint = f"did you mean {self.suggestion!r}?{where}" if self.suggestion else (listing and f"see: {listing}")
        super().__init__(f"unknown {noun} {name!r}", fix=hint)


class GraphError(DagrowError):
    """An architecture that cannot be: a cycle, a shape that does not fit, a name that may not be used."""

    def __init__(self, message: str, *, node: str | None = None, fix: str | None = None):
        self.node = node
        super().__init__(message, fix=fix)


class BudgetError(DagrowError):
    """A budget smaller than the seed network."""


class NothingFits(DagrowError):
    """No edit can fit the budget at step 0."""

    exit_code = 3


class RunError(DagrowError):
    """A run folder that cannot be used: another run, another spec, damaged, locked, read-only."""

    exit_code = 4


class ExportError(DagrowError):
    """An export whose outputs differ from the network's."""

    exit_code = 5


class Interrupted(DagrowError):
    """Stopped by a signal, with everything up to the last committed piece of work on disk."""

    def __init__(self, signum: int, message: str):
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(message)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a typo most likely meant, or None."""
    found = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return found[0] if found else None
