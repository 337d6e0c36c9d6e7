"""A Spec against the registries and the data: names, options, wiring, shapes, budget; every problem at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagrow import spec as specs
from dagrow.check import code
from dagrow.check.names import SECTIONS, Choice, Section, choices_of
from dagrow.check.network import fits, network_of
from dagrow.errors import DagrowError, Interrupted, Problem, SpecError
from dagrow.spec import Spec
from dagrow.spec.tree import Path, gathered

if TYPE_CHECKING:
    from torch import Tensor

    from dagrow.data import Dataset
    from dagrow.graph import Architecture

__all__ = ["SECTIONS", "Checked", "Choice", "Section", "build", "check", "check_names", "load"]


@dataclass(frozen=True)
class Checked:
    """A spec that can be run. `choices`: section name -> its choices (SECTIONS); `data` for the shape the network reads.

    weights: those the seed network begins with, where it was imported; None: fresh ones. notes: what to know of the import.
    """

    spec: Spec
    choices: Mapping[str, tuple[Choice, ...]]
    architecture: Architecture
    data: Dataset
    weights: Mapping[str, Tensor] | None = None
    notes: tuple[str, ...] = ()


def load(source, sets: Sequence[str] = (), data: Dataset | None = None, *, allow_code: bool = False) -> Checked:
    """`spec.load` and `check` in one, so that what is wrong with the text and with the names in it is reported together."""
    made, origin = specs.attempt(source, sets)
    if not origin.problems:
        return check(made, data, allow_code=allow_code)
    problems = list(origin.problems)
    if made is not None:
        problems += choices_of(made)[1]
    raise SpecError(gathered(problems), origin.file)


def check(spec: Spec, data: Dataset | None = None, *, allow_code: bool = False, seed: Architecture | None = None) -> Checked:
    """The spec with its choices, its seed network and its data (loaded unless given). Raises SpecError with all problems.

    allow_code: whether code that the spec names (model.py) may run. seed: the seed network, where it is known already.
    """
    choices, problems = choices_of(spec)
    weights, notes = None, ()
    if spec.model.py is not None and not allow_code and seed is None:
        code.imported_of(spec, None, False, problems)
        _raise(spec, problems)
    if data is None and choices["source"] and choices["split"]:
        data = _data(spec, problems)
    arch = None
    if data is not None:
        if spec.model.py is None:
            arch = network_of(spec, data.input_shape, data.outputs, problems)
        else:
            found = code.imported_of(spec, data, True, problems) if allow_code else None
            arch, weights = (found.arch, found.weights) if found is not None else (seed, None)
            if found is not None:
                notes = tuple(found.notes())
                fits(spec, arch, data.outputs, problems)
        problems += _task(spec, data)
    elif spec.model.input and spec.model.py is None:
        arch = network_of(spec, None, None, problems)
    if arch is not None and not problems:
        problems += _edits(spec, choices["edits"], arch)
    _raise(spec, problems)
    return Checked(spec, choices, arch, data.reshaped(arch.shapes["input"]), weights, notes)


def check_names(spec: Spec) -> Mapping[str, tuple[Choice, ...]]:
    """Section name -> the registered classes chosen there, with their options. Raises SpecError: unknown names, bad options."""
    choices, problems = choices_of(spec)
    _raise(spec, problems)
    return choices


def build(spec: Spec, input_shape: Sequence[int] | None = None, outputs: int | None = None) -> Architecture:
    """The seed network, for data of that shape and number of outputs (where given). Raises SpecError with all problems."""
    problems: list[Problem] = []
    arch = network_of(spec, input_shape, outputs, problems)
    _raise(spec, problems)
    return arch


def _raise(spec: Spec, problems: Sequence[Problem]) -> None:
    if problems:
        raise SpecError(gathered(problems), spec.file)


def _data(spec: Spec, problems: list[Problem]) -> Dataset | None:
    from dagrow import data

    path: Path = ("data", "options", "path") if "path" in spec.data.options else ("data", "source")
    try:
        made = data.load(spec.data.source, spec.data.options, spec.data.split, spec.data.normalise, spec.folder)
        path = ("data", "batch")
        data.check_batch(made, spec.data.batch)
    except Interrupted:
        raise
    except DagrowError as error:
        problems.append(spec.problem_at(path, error.message, error.fix))
        return None
    return made


def _edits(spec: Spec, chosen: Sequence[Choice], arch: Architecture) -> list[Problem]:
    """Edits whose options cannot be meant for this network, and different ones that go by one name."""
    found, names = [], {}
    for k, edit in enumerate(chosen):
        found += [spec.problem_at(("edits", k, *r.at), r.message, r.fix) for r in edit.rule.remarks(arch, edit.options) if r.wrong]
        name = edit.rule.known_as(edit.options)
        if name != edit.name and name in names:
            found.append(spec.problem_at(("edits", k), f"{name} is there twice", "give each a name of its own: name: …"))
        names[name] = k
    return found


def _task(spec: Spec, data: Dataset) -> list[Problem]:
    """A loss or metric that is for the other task."""
    other = {"classification": ("mse", "val.r2"), "regression": ("cross_entropy", "val.accuracy")}[data.task]
    rows = [(("train", "loss"), spec.train.loss)] + [(("objectives", k, "metric"), o.metric) for k, o in enumerate(spec.objectives)]
    return [spec.problem_at(path, f"{value} does not fit {data.task}", "loss: auto takes the one that fits" if path[0] == "train" else "take val.loss")
            for path, value in rows if value in other]
