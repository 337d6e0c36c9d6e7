"""Given edits at given steps: a growth schedule from the literature, or a baseline."""

from __future__ import annotations

from typing import Annotated

import pydantic

from dagrow import globs, registry
from dagrow.select import REGISTRY, Chooser, Done, Trial, Try, label, proposable


class Entry(registry.Options):
    """At `step` (from 0), the best-scored candidate of kind `edit` at a place that `where` matches."""

    step: Annotated[int, pydantic.Field(ge=0)]
    edit: str
    where: str = "**"
    units: Annotated[int, pydantic.Field(ge=1)] | None = None


@REGISTRY.register("schedule")
class Schedule(Chooser):
    """Make the edits the spec lists, at the steps it lists; several at one step are made together.

    Scores rank the candidates that an entry matches and say nothing else: one that does not beat noise is made too.
    What is outside the budget or unsupported is not, nor is an entry that nothing matches: the note says so. What needs a
    trial is fine-tuned for an epoch, to see that it can be made.
    """

    class Options(registry.Options):
        """steps: `{step, edit, where: "**", units: any}` in any order."""

        steps: tuple[Entry, ...] = ()

    conclusive = False
    examples = (
        {},
        {"steps": [{"step": s, "edit": e} for s in range(8) for e in ("widen", "deepen")]},
        {"steps": [{"step": 1, "edit": "widen", "where": "body.*", "units": 4}]},
    )

    @staticmethod
    def ask(options, key, state, candidates, outcomes):
        ranked = proposable(candidates, ["grow", "noise", "shrink", "trial"])
        chosen, notes = [], []
        for entry in options.steps:
            if entry.step != key[1]:
                continue
            found = [c for c in ranked if _meets(entry, c) and c.index not in chosen]
            if found:
                chosen.append(found[0].index)
                notes.append(label(found[0]))
            else:
                notes.append(_missing(entry, candidates))
        if not notes:
            return Done(None, "nothing is scheduled")
        if not chosen:
            return Done(None, "; ".join(notes))
        untold = any(candidates[k].verdict == "trial" for k in chosen)
        choice = Trial(chosen[0], int(untold), tuple(chosen) if len(chosen) > 1 else ())
        if untold and not outcomes:
            return Try((choice,))
        failed = [o.status for o in outcomes if not o.usable]
        return Done(None if failed else choice, "; ".join([*notes, *failed]))


def _meets(entry: Entry, candidate) -> bool:
    here = candidate.edit == entry.edit and globs.matches(entry.where, candidate.where)
    return here and entry.units in (None, candidate.units)


def _missing(entry: Entry, candidates) -> str:
    """Why nothing was found for `entry`."""
    asked = f"{entry.edit} {entry.where}" + (f" ({entry.units})" if entry.units else "")
    near = [c for c in candidates if _meets(entry.model_copy(update={"units": None}), c)]
    offered = ", ".join(f"{label(c)} {c.verdict}" for c in near[:4])
    return f"no candidate for {asked}" + (f"; there is {offered}" if offered else "")
