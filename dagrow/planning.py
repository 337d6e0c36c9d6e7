"""A checked spec made into the objects that a search works with."""

from __future__ import annotations

from dagrow import losses
from dagrow.check import Checked, Choice
from dagrow.standing import Plan
from dagrow.trials import Recipe


def make_plan(checked: Checked) -> Plan:
    spec, choices = checked.spec, checked.choices
    optimizer, schedule, scorer, chooser = (_pair(choices[name][0]) for name in ("optimizer", "schedule", "score", "select"))
    shared = {"verify": max(1, spec.score.verify), "alpha": spec.score.alpha}
    given = {k: v for k, v in shared.items() if k in type(chooser[1]).model_fields and k not in chooser[1].model_fields_set}
    chooser = (chooser[0], chooser[1].model_copy(update=given))
    recipe = Recipe(*optimizer, losses.get(spec.train.loss, checked.data.task), spec.data.batch, spec.train.clip)
    edits = tuple(_pair(edit) for edit in choices["edits"])
    return Plan(spec, checked.architecture, checked.data, recipe, schedule, edits, scorer[0](scorer[1]), chooser, checked.weights, checked.notes)


def _pair(choice: Choice) -> tuple[type, object]:
    return choice.rule, choice.options
