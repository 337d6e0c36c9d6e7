"""Table P6: a whole search divided by the same training steps without growth, and where the rest of its time goes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

import dagrow.growth
import dagrow.spec
from dagrow import api
from dagrow.compiler import initialise
from dagrow.epochs import epochs_in
from dagrow.graph import Architecture
from dagrow.measure import Gathering
from dagrow.planning import make_plan
from dagrow.standing import Plan
from dagrow.store import Event, Run
from dagrow.trials import Bench, Recipe

# stage -> (where, name): what is timed while a search runs. What is called inside another stage counts as that one's own.
STAGES = {
    "training": (Recipe, "epoch"), "gathering": (Gathering, "collect"), "measuring": (dagrow.growth, "measure"),
    "proposing": (dagrow.growth, "race"), "benches": (dagrow.growth, "Bench"), "trials": (Bench, "make"),
    "evaluating": (dagrow.growth, "evaluate"), "journal": (Run, "commit"),
}


class Watch:
    """CPU seconds of each call, by stage. A stage inside another belongs to the outer one: an epoch of a trial is the trial's."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.open = False

    def around(self, stage: str, work: Callable) -> Callable:
        def timed(*given, **named):
            if self.open:
                return work(*given, **named)
            self.open, begin = True, time.process_time()
            try:
                return work(*given, **named)
            finally:
                self.calls[stage].append(time.process_time() - begin)
                self.open = False

        return timed

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        with ExitStack() as stack:
            for stage, (where, name) in STAGES.items():
                stack.enter_context(mock.patch.object(where, name, self.around(stage, getattr(where, name))))
            yield self


def searched(plan: Plan, folder: Path) -> tuple[float, float, dict[str, list[float]], list[Event]]:
    """(CPU seconds, elapsed seconds, CPU seconds of each call by stage, events) of a search. Reading the data is not in them."""
    marks = []
    with Watch().watching() as watch:
        api.search(plan.spec, out=folder, listen=lambda row: marks.append((time.process_time(), time.perf_counter())))
    with Run.open(folder) as run:
        events = list(run.events())
    return marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1], watch.calls, events


def replayed(plan: Plan, events: list[Event]) -> tuple[list[float], float, int]:
    """(CPU seconds of each, elapsed seconds, steps) of the epochs of a search on its architectures, with nothing between them."""
    recipe, cpu, elapsed, steps = plan.recipe, [], 0.0, 0
    arch, weights, moments = None, {}, {}
    for number, event in enumerate(e for e in events if e.kind == "epoch" for _ in range(epochs_in(e))):
        now = Architecture.from_dict(event.payload["architecture"])
        if arch is None or now.to_dict() != arch.to_dict():
            arch, moments = now, {slot: {} for slot in recipe.optimizer.slots}
            weights = initialise(arch, plan.spec.seed)
        fold = plan.data.train_val if event.payload["phase"] == "final" and plan.spec.train.final_on == "train+val" else plan.data.train
        begin = time.process_time(), time.perf_counter()
        weights, moments, report = recipe.epoch(arch, weights, moments, fold, lambda _: recipe.options.lr, plan.spec.seed, ("replay", number))
        cpu.append(time.process_time() - begin[0])
        elapsed, steps = elapsed + time.perf_counter() - begin[1], steps + report.steps
    return cpu, elapsed, steps


def extra_of_gathering(events: list[Event], during: list[float], plain: list[float]) -> float:
    """CPU seconds that the epochs right before a decision took beyond the same ones replayed, at the speed the others had."""
    units = [e for e in events if e.kind in ("epoch", "step", "final", "done")]
    kinds = [e.kind for e in units for _ in range(epochs_in(e) if e.kind == "epoch" else 1)]
    last = [after == "step" for kind, after in pairwise(kinds) if kind == "epoch"]
    sums = [[sum(s for s, mine in zip(side, last, strict=True) if mine == which) for side in (during, plain)] for which in (False, True)]
    (others, others_plain), (these, these_plain) = sums
    return these - these_plain * (others / others_plain if others_plain else 1.0)


def stretches(events: list[Event]) -> list[int]:
    """Epochs before the first decision, between two, and after the last."""
    counts = [0]
    for event in events:
        if event.kind == "epoch":
            counts[-1] += epochs_in(event)
        elif event.kind == "step":
            counts.append(0)
    return counts


def whole(name: str, spec, rounds: int, sets: tuple[str, ...] = (), folder: str | None = None) -> dict:
    """A row of the table: medians over rounds, each a search and its epochs again. folder: where paths in `spec` start."""
    plan = make_plan(api.checked_of(dagrow.spec.load(spec, sets, folder=folder)))
    kept, shares, events, steps = {"ratio": [], "ratio_elapsed": [], "seconds": []}, [], [], 0
    for number in range(rounds + 1 if rounds > 1 else 1):
        with tempfile.TemporaryDirectory(prefix="scoring-") as place:
            cpu, elapsed, calls, events = searched(plan, Path(place) / "run")
        plain, plain_elapsed, steps = replayed(plan, events)
        if number or rounds == 1:  # the first round warms up
            for key, value in (("ratio", cpu / sum(plain)), ("ratio_elapsed", elapsed / plain_elapsed), ("seconds", cpu)):
                kept[key].append(value)
            seconds = {stage: sum(each) for stage, each in calls.items()}
            seconds["other"] = cpu - sum(seconds.values())
            extra = extra_of_gathering(events, calls["training"], plain)
            seconds["gathering"], seconds["training"] = seconds["gathering"] + extra, seconds["training"] - extra
            shares.append({stage: value / cpu for stage, value in seconds.items()})
    decisions = [e for e in events if e.kind == "step"]
    return {
        "bench": "p6", "spec": name, "ratio": statistics.median(kept["ratio"]), "lowest": min(kept["ratio"]), "highest": max(kept["ratio"]),
        "ratio_elapsed": statistics.median(kept["ratio_elapsed"]), "seconds": statistics.median(kept["seconds"]), "steps": steps,
        "decisions": len(decisions), "edits": sum(e.payload["edit"] != "null" for e in decisions), "stretches": stretches(events),
        "rows": len(plan.data.train.x), "shares": {stage: statistics.median(s[stage] for s in shares) for stage in shares[-1]},
        "rounds": rounds,
    }
