"""Column (d) of table T6: random edits at the schedule that the search found."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from tables_training import Contest, scores

from dagrow import check, registry
from dagrow.growth import Search
from dagrow.planning import make_plan
from dagrow.rng import stream
from dagrow.select import REGISTRY as CHOOSERS
from dagrow.select import Chooser, Done, Trial, Try
from dagrow.store import Run


class Draw(registry.Options):
    """What the search did at `step`: `count` edits at different places with about `units` units each, growing or not."""

    step: int
    count: int
    units: int
    grows: bool


@CHOOSERS.register("random_edits")
class RandomEdits(Chooser):
    """As many edits as listed at the steps listed, at places drawn evenly among the legal ones; the units nearest those listed."""

    class Options(registry.Options):
        draws: tuple[Draw, ...] = ()

    conclusive = False

    @staticmethod
    def ask(options, key, state, candidates, outcomes):
        draw = next((d for d in options.draws if d.step == key[1]), None)
        made = next((o for o in outcomes if o.usable), None)
        if draw is None or made is not None:
            return Done(made and made.trial, "at random" if made else "nothing is listed")
        places: dict[str, list] = {}
        for c in candidates:
            if c.verdict in (("grow", "noise") if draw.grows else ("shrink",)):
                places.setdefault(c.key, []).append(c)
        tried = {o.trial.members for o in outcomes}
        for attempt in range(100):
            order = torch.randperm(len(places), generator=stream(key[0], "random edits", key[1], attempt)).tolist()
            # Edits that cannot be made together, or that hurt, are drawn again; a bundle that never fits becomes smaller.
            count = max(1, draw.count - len(outcomes) // 5)
            found = [min(places[sorted(places)[k]], key=lambda c: (abs((c.units or 0) - draw.units), c.index)) for k in order[:count]]
            members = tuple(c.index for c in found)
            if members and members not in tried and len(outcomes) < 20:
                return Try((Trial(members[0], 0, members if len(members) > 1 else ()),))
        return Done(None, "no legal place left")


def random_edits(contest: Contest) -> dict:
    """(d) The same number of edits at the same steps, in random directions at random places, of the same number of units.

    The `schedule` chooser cannot draw places: it takes the best-scored candidate that an entry matches, and the places that
    the search found do not exist on another network. So a chooser of this file draws evenly among the legal sites of all the
    spec's edits (growing ones where the search grew, shrinking ones where it shrank) with `score: random`. All else is the
    search's own loop, so the rival shares its line search for the fan-out's size, its refusal of what hurts held-out rows
    (another place is drawn then), its choice of the best network seen, and its epochs between edits. No network may be larger
    than the largest the search had; the final phase is as long as makes the training MACs equal.
    """
    draws = []
    for row in contest.edits:
        count = len(row["where"].split(", "))
        units = max(1, round((row["units"] or 1) / count))
        draws.append({"step": row["step"], "count": count, "units": units, "grows": row["added_params"] > 0})
    plain = contest.spec.to_dict()
    plain["score"] = {**plain["score"], "by": "random"}
    plain["select"] = {"by": "random_edits", "draws": draws}
    plain["budget"] = {**plain["budget"], "steps": contest.steps}
    if contest.edits:
        plain["budget"]["params"] = contest.largest
    plan = make_plan(check.load(plain))
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", plain, {}) as run:
        search = Search(plan, run)
        for event in search.events():
            if event.kind == "final":
                each = 3 * search.network.arch.macs * len(contest.fold)
                search.state = replace(search.state, epochs=max(1, round((contest.work - search.state.work) / each)))
        network, state = search.network, search.state
        edits = sum(e.kind == "step" and e.payload["edit"] != "null" for e in run.events())
    return {
        **scores(contest, network.arch, network.weights), "params": network.arch.size, "macs": network.arch.macs,
        "epochs": state.trained, "work": state.work, "finite": True, "edits": edits,
    }
