"""A spec's names and options against the registries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pydantic

from dagrow import ops
from dagrow.errors import Problem
from dagrow.registry import Options, Registry
from dagrow.spec import Named, ScoreSpec, Spec
from dagrow.spec.explaining import did_you_mean, phrases
from dagrow.spec.tree import PLACEHOLDER, Path

Rows = Mapping[str, tuple[str, tuple[str, ...], Options]]


@dataclass(frozen=True)
class Section:
    """One place of a spec that names registered things: which registry, and the (path, choice) pairs."""

    name: str
    module: str
    attribute: str
    chosen: Callable[[Spec], Sequence[tuple[Path, Named]]]
    also: tuple[str, ...] = ()

    @property
    def registry(self) -> Registry:
        return getattr(importlib.import_module(self.module), self.attribute)


def _each(key: str) -> Callable[[Spec], Sequence[tuple[Path, Named]]]:
    return lambda spec: [((key, k), named) for k, named in enumerate(getattr(spec, key))]


SECTIONS = (
    Section("source", "dagrow.data", "REGISTRY", lambda s: [(("data", "source"), Named(name=s.data.source, options=s.data.options))]),
    Section("optimizer", "dagrow.train", "OPTIMIZERS", lambda s: [(("train", "optimizer"), s.train.optimizer)]),
    Section("schedule", "dagrow.train", "SCHEDULES", lambda s: [(("train", "schedule"), s.train.schedule)]),
    Section("edits", "dagrow.edits", "REGISTRY", _each("edits")),
    Section("score", "dagrow.scores", "REGISTRY", lambda s: [(("score", "by"), s.score.by)], tuple(ScoreSpec.model_fields)),
    Section("select", "dagrow.select", "REGISTRY", lambda s: [(("select",), s.select)]),
    Section("export", "dagrow.export", "REGISTRY", _each("export")),
)


@dataclass(frozen=True)
class Choice:
    """A registered class with its validated options."""

    name: str
    rule: type
    options: Options


def choices_of(spec: Spec) -> tuple[dict[str, tuple[Choice, ...]], list[Problem]]:
    """The choices that can be made, and the problems of names and options, nodes included."""
    problems: list[Problem] = []
    choices: dict[str, tuple[Choice, ...]] = {}
    for section in SECTIONS:
        registry, made = section.registry, []
        for path, named in section.chosen(spec):
            if named.name == PLACEHOLDER:
                continue
            if named.name not in registry:
                problems.append(_unknown(spec, registry, named.name, path))
                continue
            rule = registry.get(named.name)
            options = options_of(spec, rule.Options, named.options, f"{registry.noun} {named.name!r}", path, problems, section.also)
            if options is not None:
                made.append(Choice(named.name, rule, options))
        choices[section.name] = tuple(made)
    from dagrow.data import Split

    split = options_of(spec, Split, spec.data.split, "data.split", ("data", "split"), problems)
    choices["split"] = (Choice("split", Split, split),) if split is not None else ()
    nodes_of(spec, problems)
    return choices, problems


def _unknown(spec: Spec, registry: Registry, name: str, path: Path) -> Problem:
    listing = f"  ({registry.listing})" if registry.listing else ""
    hint = did_you_mean(name, registry.names())
    return spec.problem_at(path if path[-1] == "op" else (*path, "name"), f"unknown {registry.noun} {name[:80]!r}", f"{hint}{listing}" if hint else listing.strip() or None)


def options_of(
    spec: Spec, model: type[Options], given: Mapping, owner: str, path: Path, problems: list[Problem],
    also: Iterable[str] = (), written: Mapping[str, str] = MappingProxyType({}),
) -> Options | None:
    """The options as an instance of `model`; None, with the problems noted, where they are not.

    `also`: keys that are known beside them; `written`: option -> the key it was written under.
    """
    try:
        return model.model_validate(dict(given))
    except pydantic.ValidationError as error:
        for loc, message, hint, key in phrases(error, owner, lambda at: _fields(model, at, also)):
            loc = tuple(written.get(step, step) for step in loc)
            problems.append(spec.problem_at((*path, *loc), message, hint, key=key))
        return None


def _fields(model: type, path: Path, also: Iterable[str]) -> Iterable[str]:
    """The keys an Options class knows at a path."""
    if not path:
        return (*model.model_fields, *also)
    for segment in path:
        field = model.model_fields.get(segment) if isinstance(segment, str) else None
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, pydantic.BaseModel)), None)
        if model is None:
            return ()
    return model.model_fields


def nodes_of(spec: Spec, problems: list[Problem]) -> Rows:
    """(op, inputs, options) of the nodes whose op and options are in order. torch need not be loaded to say which are not."""
    rows = {}
    for name, row in spec.model.nodes.items():
        path = ("model", "nodes", name)
        if row.op == PLACEHOLDER:
            continue
        if row.op not in ops.REGISTRY:
            problems.append(_unknown(spec, ops.REGISTRY, row.op, (*path, "op")))
            continue
        if row.op == "input":
            problems.append(spec.problem_at((*path, "op"), "a network has one input", "write model: {input: {shape: […]}}, and read 'input'"))
            continue
        rule, attrs = ops.REGISTRY.get(row.op), dict(row.attrs)
        if row.positional is not None:
            key = rule.shorthand
            if key is None or key in attrs:
                message = f"{row.op} takes no size" if key is None else f"{key!r} is there twice"
                problems.append(spec.problem_at((*path, "positional"), message, f"options: {', '.join(rule.Options.model_fields) or 'none'}"))
                continue
            attrs[key] = row.positional
        written = {rule.shorthand: "positional"} if row.positional is not None else {}
        options = options_of(spec, rule.Options, attrs, f"{name!r} ({row.op})", path, problems, written=written)
        if options is not None:
            rows[name] = (row.op, row.inputs, options)
    return rows
