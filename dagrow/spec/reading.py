"""YAML text to a Tree, within limits that are checked on parse events, before anything is built from them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import yaml

from dagrow.errors import Problem, SpecError, nearest
from dagrow.spec.scalars import resolve
from dagrow.spec.tree import MOST_BYTES, MOST_DEPTH, MOST_NODES, Place, Source, Tree, printable

HINTS = {
    "cannot start any token": "quote the text, or indent with spaces where there is a tab",
    "mapping values are not allowed": "one 'key: value' a line; quote text that holds ': '",
    "could not find expected ':'": "a key is followed by ': '",
    "expected <block end>": "the lines of one mapping or list start in one column",
    "expected ',' or": "a { or [ is not closed, or a comma is missing",
}


class Refused(Exception):
    """Ends reading at a place."""

    def __init__(self, place: Place, message: str, hint: str | None = None):
        super().__init__(message)
        self.place, self.message, self.hint = place, message, hint


def read_file(path: Path, file: str) -> str:
    """The text of a regular file of at most 256 KiB; SpecError otherwise. Neither a pipe nor a device is waited on."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        near = None
        try:
            near = nearest(path.name, (p.name for p in path.parent.glob("*.y*ml")))
        except (OSError, ValueError):
            pass
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([Problem(f"cannot be read: {reason}", hint=f"did you mean {path.with_name(near)}?" if near else None)], file) from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            held = next((path / name for name in ("run.db", "spec.yaml") if (path / name).is_file()), None)
            hint = f"to go on with the run it holds: dagrow resume {path}" if held and held.name == "run.db" else f"did you mean {held}?" if held else None
            raise SpecError([Problem("cannot be read: a folder, not a spec", hint=hint)], file)
        if not stat.S_ISREG(mode):
            raise SpecError([Problem("cannot be read: not a regular file")], file)
        with os.fdopen(os.dup(handle), "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise SpecError([Problem(f"cannot be read: {error.strerror}")], file) from None
    finally:
        os.close(handle)
    try:
        text = data[:MOST_BYTES].decode("utf-8-sig") if len(data) <= MOST_BYTES else " " * len(data)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise SpecError([Problem("not UTF-8 text", line, column)], file) from None
    return text


def read(text: str, source: Source) -> Tree:
    """The tree of one YAML document. Raises SpecError with line and column."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MOST_BYTES:
        raise SpecError([Problem(f"too large: a spec has at most {MOST_BYTES // 1024} KiB", 1, 1)], source.file)
    try:
        tree = _Composer(text, source).document()
    except Refused as found:
        source.report(found.place, found.message, found.hint)
    except yaml.YAMLError as error:
        source.report(*_explain(error, text, source))
    except (ValueError, OverflowError, RecursionError, IndexError) as error:
        # the scanner's own slips, such as an escape beyond the last code point
        source.report(Place(1, 1), f"cannot be read as YAML: {printable(str(error))[:80]}")
    source.stop()
    return tree


class _Composer:
    def __init__(self, text: str, source: Source):
        self.events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self.source = source
        self.nodes = 0

    def document(self) -> Tree:
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise Refused(Place(1, 1), "the spec is empty", "a spec starts with: dagrow: 1")
        if event.tags:
            raise Refused(_place(event), "a spec has no tags", "leave out the %TAG line")
        tree = self.value(next(self.events), 1)
        next(self.events)
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise Refused(_place(event), "a second document", "a spec is one document: leave out the ---")
        return tree

    def value(self, event: yaml.Event, depth: int) -> Tree:
        place = _place(event)
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise Refused(place, f"too many values: a spec has at most {MOST_NODES:,}")
        if depth > MOST_DEPTH:
            raise Refused(place, f"nested too deep: a spec is at most {MOST_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            text = "*" + event.anchor
            raise Refused(place, f"an unquoted * starts a YAML alias, and a spec has none: {printable(text)[:80]}", f'quote it: "{printable(text)[:80]}"')
        if event.anchor is not None:
            raise Refused(place, "an unquoted & starts a YAML anchor, and a spec has none", "use a macro, or quote the text")
        if event.tag is not None:
            raise Refused(place, f"a spec has no tags: {printable(event.tag)[:80]}", "leave the tag out; quote text that starts with !")
        if isinstance(event, yaml.ScalarEvent):
            return Tree(self.scalar(event, place), place)
        return self.sequence(place, depth) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(place, depth)

    def scalar(self, event: yaml.ScalarEvent, place: Place):
        if event.style is not None:
            return event.value
        try:
            return resolve(event.value)
        except ValueError as error:
            raise Refused(place, str(error)) from None

    def sequence(self, place: Place, depth: int) -> Tree:
        rows = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            rows.append(self.value(event, depth + 1))
        return Tree(rows, place)

    def mapping(self, place: Place, depth: int) -> Tree:
        tree = Tree({}, place)
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            at = _place(event)
            if not isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                raise Refused(at, "a key is text, not a list or mapping")
            self.value(event, depth + 1)
            key = event.value
            if key == "<<" and event.style is None:
                raise Refused(at, "a spec has no merges (<<)", "use a macro")
            if key in tree.value:
                first = tree.keys[key].line
                self.source.report(at, f"the key {printable(key)[:80]!r} is there twice", f"the first is in line {first}")
            tree.value[key], tree.keys[key] = self.value(next(self.events), depth + 1), at
        return tree


def _place(event: yaml.Event) -> Place:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Place(start.line + 1, start.column + 1, max(1, width))


def _explain(error: yaml.YAMLError, text: str, source: Source) -> tuple[Place, str, str | None]:
    """(place, message, hint) of a syntax error."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", 0)
        before = text[:position]
        line = before.count("\n") + 1
        shown = getattr(error, "character", "")
        shown = f"U+{shown:04X}" if isinstance(shown, int) else printable(str(shown))
        return Place(line, position - (before.rfind("\n") + 1) + 1), f"the character {shown} cannot stand in YAML", "leave it out, or escape it in double quotes"
    if str(error.context or "").startswith("while scanning an alias"):
        mark = error.context_mark
        line = source.lines[mark.line] if mark.line < len(source.lines) else "*"
        end = next((k for k in range(mark.column, len(line)) if line[k] in " ,]}#"), len(line))
        word = printable(line[mark.column : end]) or "*"
        return Place(mark.line + 1, mark.column + 1, len(word)), "an unquoted * starts a YAML alias", f'quote it: "{word}"'
    message = printable(" ".join(str(error.problem or error.context or "cannot be read as YAML").split()))[:160]
    hint = next((hint for part, hint in HINTS.items() if part in message), None)
    return Place(mark.line + 1, mark.column + 1), f"not YAML: {message}", hint
