"""A spec as read: plain values that remember where each was written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dagrow.errors import Problem, SpecError

MOST_BYTES = 256 * 1024
MOST_DEPTH = 32
MOST_NODES = 20_000
# Stands for a name that is missing or wrong and has been reported.
PLACEHOLDER = "?"
MOST_PROBLEMS = 50
WIDEST_EXCERPT = 160
Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]
BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Place:
    """Where a value was written: `line` and `column` from 1, or a `label` for what has no lines (a dict, a --set)."""

    line: int | None = None
    column: int | None = None
    width: int = 1
    label: str = ""


@dataclass
class Tree:
    """A scalar, a dict of trees or a list of trees, its place, and the places of a dict's keys."""

    value: Scalar | dict[str, Tree] | list[Tree]
    place: Place
    keys: dict[str, Place] = field(default_factory=dict)

    @property
    def plain(self):
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: tree.plain for key, tree in self.value.items()}
        if isinstance(self.value, list):
            return [tree.plain for tree in self.value]
        return self.value

    @property
    def kind(self) -> str:
        """What messages call it."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        return "nothing" if self.value is None else repr(self.value)[:80]

    def items(self) -> Iterator[tuple[str, Tree]]:
        return iter(self.value.items())

    def get(self, key: str) -> Tree | None:
        return self.value.get(key) if isinstance(self.value, dict) else None

    def key(self, key: str) -> Place:
        """The place of a key; the mapping's own where it is not known."""
        return self.keys.get(key, self.place)

    def without(self, *names: str) -> Tree:
        return Tree({k: v for k, v in self.value.items() if k not in names}, self.place, {k: p for k, p in self.keys.items() if k not in names})

    def having(self, key: str, tree: Tree, place: Place | None = None) -> Tree:
        """With `key` set to `tree`, in its old position where it had one."""
        return Tree({**self.value, key: tree}, self.place, {**self.keys, key: place or tree.place})


def mapping(place: Place, **values: Tree) -> Tree:
    return Tree(dict(values), place, {key: tree.place for key, tree in values.items()})


def plant(value, path: Path = (), left: list[int] | None = None) -> Tree:
    """A tree of plain Python values; SpecError for what a spec cannot hold, or too much of it."""
    left = [MOST_NODES, MOST_BYTES] if left is None else left
    place = Place(label=dotted(path))
    left[0] -= 1
    left[1] -= len(value) if isinstance(value, str) else 1
    if left[0] < 0 or left[1] < 0 or len(path) > MOST_DEPTH:
        raise _never(Place(label=place.label[:80]), f"too large: at most {MOST_NODES:,} values, {MOST_DEPTH} deep, {MOST_BYTES // 1024} KiB")
    if value is None or isinstance(value, (bool, int, float)) and type(value) in (bool, int, float):
        if type(value) is int and value.bit_length() > 1024:
            raise _never(place, f"a number of {value.bit_length()} bits is too long")
        return Tree(value, place)
    if isinstance(value, str):
        return Tree(str(value), place)
    if isinstance(value, os.PathLike):
        return Tree(os.fsdecode(value), place)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise _never(place, f"keys are text, not {type(key).__name__}")
        return Tree({k: plant(v, (*path, k), left) for k, v in value.items()}, place, {k: Place(label=dotted((*path, k))) for k in value})
    if isinstance(value, (list, tuple)):
        return Tree([plant(v, (*path, i), left) for i, v in enumerate(value)], place)
    raise _never(place, f"a {type(value).__name__} cannot stand in a spec", "text, numbers, true/false, null, lists and mappings can")


def _never(place: Place, message: str, hint: str | None = None) -> SpecError:
    return SpecError([Source().problem(place, message, hint)])


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(p) for p in path)


class Source:
    """What was read, for excerpts; collects problems."""

    def __init__(self, text: str = "", file: str = "spec"):
        self.file = printable(file)
        self.lines = BREAKS.split(text) if text else []
        self.problems: dict[Problem, None] = {}

    def problem(self, place: Place, message: str, hint: str | None = None) -> Problem:
        """The Problem at a place. Whatever a spec holds, what is printed of it is printable."""
        message = printable(message)
        hint = "\n".join(map(printable, hint.split("\n"))) if hint else None
        if place.line is None:
            return Problem(f"{printable(place.label)}: {message}" if place.label else message, hint=hint)
        line = self.lines[place.line - 1] if place.line <= len(self.lines) else ""
        if place.column > WIDEST_EXCERPT:
            return Problem(message, place.line, place.column, hint=hint)
        return Problem(message, place.line, place.column, printable(line[:WIDEST_EXCERPT]), min(place.width, WIDEST_EXCERPT), hint)

    def report(self, place: Place, message: str, hint: str | None = None) -> None:
        """Notes a problem; the same one at the same place (a macro used twice) once. Raises SpecError when there are too many."""
        self.problems[self.problem(place, message, hint)] = None
        if len(self.problems) >= 2 * MOST_PROBLEMS:
            self.stop()

    def stop(self) -> None:
        """Raises SpecError with what was noted, if anything."""
        if self.problems:
            raise SpecError(gathered(self.problems), self.file)


def gathered(problems: Iterable[Problem]) -> list[Problem]:
    """In the order of the file, each once, with a last line for those beyond the first fifty."""
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.line or 0, p.column or 0))
    more = len(ordered) - MOST_PROBLEMS
    return ordered if more <= 0 else [*ordered[:MOST_PROBLEMS], Problem(f"and {more} more problems, or more")]


def printable(text: str) -> str:
    """One character for one: escape codes and marks of direction become a dot, so a terminal shows what is there."""
    return "".join(c if c.isprintable() else "·" if c != "\t" else " " for c in text)
