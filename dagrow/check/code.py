"""A seed network that is code of the user's: `model: {py: package.module:function}`, run only where that was allowed."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dagrow.errors import DagrowError, Interrupted, Problem, nearest
from dagrow.rng import torch_seeded
from dagrow.spec import Spec

if TYPE_CHECKING:
    from dagrow.data import Dataset
    from dagrow.importing import Imported

ALLOW = "run it with --allow-code if you trust that code (from Python: allow_code=True)"
ROWS = 4


class _Wrong(Exception):
    """What is wrong with the user's code, and a hint."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message, self.hint = message, hint


def imported_of(spec: Spec, data: Dataset | None, allowed: bool, problems: list[Problem]) -> Imported | None:
    """The network that spec.model.py gives, on rows of the data; None, with the problem noted, where there is none.

    Nothing of the user's is looked at unless `allowed`.
    """
    path = ("model", "py")
    if not allowed:
        problems.append(spec.problem_at(path, f"the seed network is code: {spec.model.py}", ALLOW))
        return None
    if data is None:
        return None
    try:
        return _imported(spec, data)
    except _Wrong as wrong:
        problems.append(spec.problem_at(path, wrong.message, wrong.hint))
    except Interrupted:
        raise
    except DagrowError as error:
        problems.append(spec.problem_at(path, " ".join(error.message.split()), error.fix))
    return None


def _imported(spec: Spec, data: Dataset) -> Imported:
    import torch

    from dagrow.importing import from_torch

    with _found_from(spec.folder):
        model = _made(spec)
    if not isinstance(model, torch.nn.Module):
        raise _Wrong(f"{spec.model.py} returned a {type(model).__name__}", "it has to return a torch.nn.Module")
    stated = (spec.model.input or {}).get("shape")
    rows = data.train.x[:ROWS]
    if stated is not None:
        rows = data.reshaped(tuple(stated)).train.x[:ROWS]
    return from_torch(model, rows, opaque=spec.model.opaque)


def _made(spec: Spec) -> object:
    """What the user's function returns, called with the spec's arguments; its draws follow from the spec's seed."""
    module_name, _, function_name = spec.model.py.partition(":")
    with torch_seeded(spec.seed, "model"):
        module = _called(lambda: _module(module_name, spec.folder), f"{module_name} cannot be imported")
        function = getattr(module, function_name, None)
        if not callable(function):
            near = nearest(function_name, [n for n, v in vars(module).items() if callable(v)])
            raise _Wrong(f"{module_name} has no function {function_name!r}", f"did you mean {near!r}?" if near else None)
        return _called(lambda: function(**spec.model.args), spec.model.py)


def _module(name: str, folder: Path | None) -> ModuleType:
    """The module, from the spec's folder where there is one of that name; an other one that is loaded already is not taken for it."""
    top, loaded = name.partition(".")[0], sys.modules.get(name.partition(".")[0])
    here = importlib.machinery.PathFinder.find_spec(top, [str(folder.absolute())]) if folder is not None else None
    if here is not None and loaded is not None:
        files = [os.path.realpath(f) if f else None for f in (here.origin, getattr(loaded, "__file__", None))]
        if files[0] != files[1]:
            raise _Wrong(f"another module {top!r} is loaded already: {files[1] or 'built in'}", "give yours another name")
    return importlib.import_module(name)


def _called(work: Callable[[], object], what: str) -> object:
    """What the user's code returns; _Wrong with the place where it fails."""
    try:
        return work()
    except (_Wrong, DagrowError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the user's code raises
        rows = [r for r in traceback.extract_tb(error.__traceback__) if not r.filename.startswith(("<", os.path.dirname(os.path.dirname(__file__))))]
        rows = [r for r in rows if os.sep + "importlib" + os.sep not in r.filename]
        place = f" ({rows[-1].filename}:{rows[-1].lineno}: {(rows[-1].line or '').strip()[:100]})" if rows else ""
        text = (str(error).strip() or "no message").splitlines()[0][:200]
        hint = "modules are looked for in the spec's folder, then as Python does" if isinstance(error, ModuleNotFoundError) and not rows else None
        raise _Wrong(f"{what}: {type(error).__name__}: {text}{place}", hint) from None


@contextmanager
def _found_from(folder: Path | None) -> Iterator[None]:
    """Modules are looked for in the folder first."""
    if folder is None:
        yield
        return
    entry = str(folder.absolute())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
