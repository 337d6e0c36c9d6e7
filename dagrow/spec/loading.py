"""A path, a text or a dict to a Spec."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import get_args

import pydantic

from dagrow.errors import SpecError
from dagrow.spec.canonical import canonical
from dagrow.spec.expanding import expand
from dagrow.spec.explaining import did_you_mean, phrases
from dagrow.spec.fields import Spec
from dagrow.spec.finding import locate
from dagrow.spec.overriding import override
from dagrow.spec.reading import read, read_file
from dagrow.spec.tree import MOST_PROBLEMS, Path, Place, Source, Tree, plant

ROOT = (*Spec.model_fields, "macros")


def load(source: str | os.PathLike | Mapping, sets: Sequence[str] = (), folder: str | os.PathLike | None = None) -> Spec:
    """The Spec of a YAML file (its path), a YAML text (it has a line break or starts with {) or a dict.

    `sets` are overrides "a.b=c", applied in turn before macros are expanded; `folder` is where relative paths start, instead
    of the file's folder. Raises SpecError with every problem found.

    >>> from dagrow import spec
    >>> small = spec.load({"data": "digits", "model": {"layers": ["linear 10"]}}, ["budget.params=2500"])
    >>> small.model.nodes["linear1"].positional, small.budget.params, small.select.name
    (10, 2500, 'greedy')
    """
    made, problems = attempt(source, sets)
    problems.stop()
    if folder is not None:
        made._folder = FilePath(folder)
    return made


def attempt(source: str | os.PathLike | Mapping, sets: Sequence[str] = ()) -> tuple[Spec | None, Source]:
    """(the Spec, or what could be read of it, or None; the source with the problems found so far)."""
    tree, origin, folder, name = _tree(source)
    if not isinstance(tree.value, dict):
        origin.report(tree.place, f"a spec is a mapping, not {tree.kind}", "a spec starts with: dagrow: 1")
        return None, origin
    tree = override(tree, sets, origin)
    unknown = [key for key in tree.value if key not in ROOT]
    for key in unknown:
        origin.report(tree.key(key), f"unknown key {key[:80]!r}", did_you_mean(key, ROOT))
    macros = tree.get("macros")
    tree = canonical(tree.without("macros", *unknown), origin)
    if tree.get("model") is not None:
        tree = tree.having("model", expand(tree.get("model"), macros, origin), tree.key("model"))
    if "name" not in tree.value and name:
        tree = tree.having("name", Tree(name, Place(1, 1) if origin.lines else Place()))
    return _validated(tree, origin, folder), origin


def _tree(source: str | os.PathLike | Mapping) -> tuple[Tree, Source, FilePath | None, str | None]:
    if isinstance(source, Mapping):
        return plant(dict(source)), Source(), None, None
    if not isinstance(source, (str, os.PathLike)):
        raise SpecError([Source().problem(Place(), f"a spec is a path, a YAML text or a dict, not a {type(source).__name__}")])
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        origin = Source(source)
        return read(source, origin), origin, None, None
    path = FilePath(os.fsdecode(source))
    text = read_file(path, Source(file=str(path)).file)
    origin = Source(text, str(path))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip(".-")[:64] or None
    return read(text, origin), origin, path.parent, name


def _validated(tree: Tree, origin: Source, folder: FilePath | None) -> Spec | None:
    """The Spec, its places attached. What is invalid is reported and, where there is a default, left out."""
    for turn in range(8):
        try:
            made = Spec.model_validate(tree.plain)
        except pydantic.ValidationError as error:
            # what fails after something was left out fails because of that
            for path, message, hint, key in phrases(error, "the spec", _fields) if turn == 0 else ():
                origin.report(locate(tree, path, key=key), message, hint)
            before = tree
            for row in error.errors(include_url=False)[:MOST_PROBLEMS]:
                tree = _pruned(tree, row["loc"][:-1] if row["type"] == "missing" else row["loc"])
            if tree is before:
                return None
        else:
            made._folder, made._tree, made._source = folder, tree, origin
            return made
    return None


def _pruned(tree: Tree, path: Path) -> Tree:
    """Without what is at `path`, so that the rest can be checked too; the same tree where nothing is there."""
    if not path or not isinstance(tree.value, dict) or path[0] not in tree.value:
        return tree
    child = tree.value[path[0]]
    inner = _pruned(child, path[1:])
    return tree.without(path[0]) if inner is child else tree.having(path[0], inner, tree.key(path[0]))


def _fields(path: Path) -> Iterable[str]:
    """The keys the fields know at a path."""
    model: type = Spec
    for segment in path:
        if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
            return ()
        field = model.model_fields.get(segment) if isinstance(segment, str) else None
        if field is None:
            return ()
        model = next((t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type) and issubclass(t, pydantic.BaseModel)), object)
    return model.model_fields if isinstance(model, type) and issubclass(model, pydantic.BaseModel) else ()
