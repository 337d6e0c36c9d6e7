"""pydantic's errors in the words of a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pydantic

from dagrow.errors import nearest
from dagrow.registry import Misfit
from dagrow.spec.tree import MOST_PROBLEMS, Path

# Comparing with more names than these takes long, and a spec that has them is no spec.
MOST_KNOWN = 300
PLAIN = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "text", "bool_type": "true or false",
    "bool_parsing": "true or false", "int_parsing": "a whole number", "float_parsing": "a number", "int_from_float": "a whole number",
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping", "tuple_type": "a list", "list_type": "a list",
    "finite_number": "a finite number",
}
BOUNDS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "less than"),
}


def did_you_mean(name: str, known: Iterable[str], else_: str | None = None) -> str | None:
    """The hint for a name that is not known."""
    known = list(known)[:MOST_KNOWN]
    near = nearest(str(name)[:80], known)
    if near:
        return f"did you mean {near!r}?"
    return else_ if else_ is not None or not known else f"known: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}"


def shown(value: object) -> str:
    """A value as messages show it, short."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def phrases(error: pydantic.ValidationError, owner: str, fields: Callable[[Path], Iterable[str]]) -> list[tuple[Path, str, str | None, bool]]:
    """(path, message, hint, whether the key is at fault) of each error; `fields(path)` names the keys known at a path.

    Of the branches of a union, only the first error of each path is told.
    """
    rows: dict[tuple, tuple[Path, str, str | None, bool]] = {}
    for found in error.errors(include_url=False)[: 2 * MOST_PROBLEMS]:
        path, message, hint, key = _phrase(found, owner, fields)
        rows.setdefault((path, found["type"] == "missing" and str(found["loc"][-1])), (path, message, hint, key))
    # a misspelt key is not missing as well
    meant = {(path[:-1], hint) for path, _, hint, _ in rows.values() if hint}
    return [row for (path, missing), row in rows.items() if not missing or (path, f"did you mean {missing!r}?") not in meant]


def _phrase(found: Mapping, owner: str, fields: Callable[[Path], Iterable[str]]) -> tuple[Path, str, str | None, bool]:
    kind, path, value, context = found["type"], tuple(found["loc"]), found.get("input"), found.get("ctx", {})
    name = str(path[-1]) if path else owner
    if kind == "extra_forbidden":
        known = sorted(fields(path[:-1]))
        return path, f"unknown key {shown(name)} in {_parent(path, owner)}", did_you_mean(name, known, "" if known else "it has no options") or _known(known), True
    if kind == "missing":
        return path[:-1], f"{_parent(path, owner)} needs {name!r}", f"known: {', '.join(sorted(fields(path[:-1])))}", True
    # the members of a union put their own tags behind the field's path
    while len(path) > 1 and isinstance(path[-1], str) and (path[-1] in ("int", "str", "float", "bool") or "[" in path[-1] or "(" in path[-1]):
        path = path[:-1]
        name = str(path[-1])
    name = f"{path[-2]}[{name}]" if len(path) > 1 and isinstance(path[-1], int) else name
    if kind in PLAIN:
        return path, f"{name!r} is {PLAIN[kind]}, not {shown(value)}", None, False
    if kind in BOUNDS:
        bound, words = BOUNDS[kind]
        return path, f"{name!r} is {words} {context[bound]:,}, not {shown(value)}", None, False
    if kind in ("literal_error", "enum"):
        expected = context["expected"]
        choices = [part.strip("' ") for part in expected.replace(" or ", ", ").split(",")]
        return path, f"{name!r} is one of {', '.join(choices)}, not {shown(value)}", did_you_mean(value, choices, ""), False
    if kind == "value_error":
        error = context.get("error", found["msg"])
        if isinstance(error, Misfit):
            return path, str(error), error.fix, error.key
        return path, f"{name!r}: {error}", None, False
    message = found["msg"]
    return path, f"{name!r}: {message[:1].lower()}{message[1:]}, not {shown(value)}", None, False


def _known(known: list[str]) -> str:
    return f"known: {', '.join(known)}" if known else "it has no options"


def _parent(path: Path, owner: str) -> str:
    names = [str(p) for p in path[:-1]]
    return ".".join(names) if names else owner
