"""A spec made into the objects that a search works with."""

from __future__ import annotations

from collections.abc import Mapping

from dagrow import check, data, edits, losses, scores, select
from dagrow.data import Dataset
from dagrow.growth import Plan
from dagrow.graph import Architecture
from dagrow.spec import Named, Spec
from dagrow.train import OPTIMIZERS, SCHEDULES
from dagrow.trials import Recipe


def dataset(spec: Spec) -> Dataset:
    """The spec's data, in the shape its model reads. Raises DataError, UnknownName."""
    found = data.load(spec.data.source, spec.data.options, spec.data.split, spec.data.normalise, spec.folder)
    data.check_batch(found, spec.data.batch)
    shape = (spec.model.input or {}).get("shape")
    return found if shape is None else found.reshaped(tuple(shape))


def make_plan(spec: Spec) -> Plan:
    """Checks everything that can be checked before anything is trained. Raises SpecError, DataError."""
    check.check_names(spec)
    found = dataset(spec)
    arch: Architecture = check.build(spec, found.input_shape, found.outputs)
    loss = losses.get(spec.train.loss, found.task)
    optimizer = _made(OPTIMIZERS, spec.train.optimizer)
    scorer, options = _made(scores.REGISTRY, spec.score.by)
    chooser = _made(select.REGISTRY, spec.select)
    if "verify" in chooser[1].model_fields and "verify" not in chooser[1].model_fields_set:
        chooser = (chooser[0], chooser[1].model_copy(update={"verify": max(1, spec.score.verify)}))
    return Plan(
        spec, arch, found, Recipe(*optimizer, loss, spec.data.batch, spec.train.clip), _made(SCHEDULES, spec.train.schedule),
        tuple(_made(edits.REGISTRY, e) for e in spec.edits), scorer(options), chooser,
    )


def _made(registry, named: Named) -> tuple[type, object]:
    cls = registry.get(named.name)
    options: Mapping = named.options
    return cls, cls.Options(**options)
