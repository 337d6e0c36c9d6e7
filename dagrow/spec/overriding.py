"""`--set a.b=c`: a value put into the tree, where the schema has such a path."""

from __future__ import annotations

from collections.abc import Sequence

from dagrow.errors import SpecError
from dagrow.spec.canonical import spread
from dagrow.spec.describing import schema
from dagrow.spec.explaining import did_you_mean
from dagrow.spec.reading import read
from dagrow.spec.tree import Place, Source, Tree


class _NoSuchPath(Exception):
    def __init__(self, message: str, hint: str | None = None):
        self.message, self.hint = message, hint


def override(tree: Tree, sets: Sequence[str], source: Source) -> Tree:
    """The tree with every `a.b=c` applied in turn; what cannot be applied is reported and left."""
    sets = [sets] if isinstance(sets, str) else sets
    full = schema() if sets else {}
    for text in sets:
        place = Place(label=f"--set {text}"[:200])
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals:
            source.report(place, "there is no =", f"write --set {path[:80] or 'a.b'}=VALUE")
            continue
        if not path or not all(path.split(".")):
            source.report(place, "there is no path before the =", "write --set a.b=VALUE")
            continue
        leaf = _value(value, place, source)
        if leaf is None:
            continue
        try:
            tree = _put(tree, path.split("."), leaf, full, "")
        except _NoSuchPath as error:
            source.report(place, error.message, error.hint or _elsewhere(path, full))
    return tree


def _value(text: str, place: Place, source: Source) -> Tree | None:
    """A YAML scalar or flow value; a pattern need not be quoted a second time for the shell's sake."""
    text = text.strip()
    if text.startswith("*"):
        return Tree(text, place)
    if not text:
        return Tree(None, place)
    try:
        return _at(read(text, Source(text, "value")), place)
    except SpecError as error:
        problem = error.problems[0]
        source.report(place, f"the value: {problem.message}", problem.hint)
        return None


def _at(tree: Tree, place: Place) -> Tree:
    value = tree.value
    if isinstance(value, dict):
        value = {k: _at(v, place) for k, v in value.items()}
    elif isinstance(value, list):
        value = [_at(v, place) for v in value]
    return Tree(value, place, dict.fromkeys(tree.keys, place))


def _put(tree: Tree | None, path: list[str], leaf: Tree, schema: dict, where: str) -> Tree:
    """`tree` with `leaf` at `path`; `schema` says what may be there, {} that anything may."""
    if not path:
        return leaf
    if "x-key" in schema and tree is not None:
        tree = spread(tree, schema["x-key"])
    branch = _branch(schema, "array" if tree is not None and isinstance(tree.value, list) else "object")
    if schema and branch is None:
        wanted = _branch(schema, "array")
        if wanted is None:
            raise _NoSuchPath(f"{where or 'the spec'!s} is a single value: it has nothing called {path[0]!r}", f"write --set {where}=VALUE")
        tree, branch = Tree([], leaf.place), wanted
    if tree is None or not isinstance(tree.value, (dict, list)):
        tree = Tree({}, leaf.place)
    if isinstance(tree.value, list):
        return _put_in_list(tree, path, leaf, (branch or {}).get("items", {}), where)
    branch = branch or {}
    # a name may hold dots: the longest one that is there wins
    size = next((k for k in range(len(path), 0, -1) if ".".join(path[:k]) in tree.value), 1)
    key, rest = ".".join(path[:size]), path[size:]
    known = branch.get("properties", {})
    if key in known:
        below = known[key]
    else:
        more = branch.get("additionalProperties", not branch)
        existing = branch.get("x-existing")
        if more is False or (existing and key not in tree.value):
            noun = existing or "key"
            raise _NoSuchPath(f"there is no {noun} {key!r}{f' in {where}' if where else ''}", did_you_mean(key, tree.value if existing else known, "") or None)
        below = more if isinstance(more, dict) else {}
    made = _put(tree.get(key), rest, leaf, below, f"{where}.{key}" if where else key)
    return tree.having(key, made, leaf.place if key not in tree.value else tree.key(key))


def _put_in_list(tree: Tree, path: list[str], leaf: Tree, schema: dict, where: str) -> Tree:
    rows = [spread(row, listed=True) if "x-key" in schema else row for row in tree.value]
    names = [str(row.get("name").value) if row.get("name") is not None else "" for row in rows]
    if path[0].isdigit() and len(path[0]) < 9:
        place = int(path[0])
    elif path[0] in names:
        place = names.index(path[0])
    else:
        raise _NoSuchPath(f"{where} has no entry {path[0]!r}", did_you_mean(path[0], [n for n in names if n] or [str(k) for k in range(len(rows))]))
    if place >= len(rows):
        raise _NoSuchPath(f"{where} has {len(rows)} entries, counted from 0", f"write --set '{where}=[…]' to replace the list")
    rows[place] = _put(rows[place], path[1:], leaf, schema, f"{where}.{path[0]}")
    return Tree(rows, tree.place)


def _branch(schema: dict, kind: str) -> dict | None:
    """The alternative of a schema that holds mappings, or lists."""
    for one in schema.get("anyOf", [schema]):
        if one.get("type") == kind:
            return one
    return None


def _elsewhere(path: str, schema: dict) -> str | None:
    """Where the schema has a field of that last name."""
    last = path.split(".")[-1]
    found = [p for p in _paths(schema, "") if p.split(".")[-1] == last]
    return f"did you mean {found[0]}?" if found else None


def _paths(schema: dict, where: str) -> list[str]:
    branch = _branch(schema, "object") or {}
    rows = []
    for key, below in branch.get("properties", {}).items():
        path = f"{where}.{key}" if where else key
        rows += [path, *_paths(below, path)]
    return rows
