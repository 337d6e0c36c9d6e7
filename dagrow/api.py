"""dagrow from Python: search, resume, load, score. The command line calls these and prints."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dagrow import check
from dagrow import spec as specs
from dagrow.errors import RunError, UsageError
from dagrow.export.files import check_place, placing
from dagrow.grown import Grown, event_row, planned
from dagrow.growth import Search
from dagrow.planning import make_plan
from dagrow.report import gains
from dagrow.scoring import Scores, scored
from dagrow.spec import Spec
from dagrow.standing import Plan
from dagrow.store import Run, graceful, manifest, manifest_difference

STOPPING = "\nstopping after the work in progress; once more to stop at once\n"
PLOTTED = 12  # candidates tried for a picture, unless told
Listener = Callable[[dict[str, Any]], None]


def _refuse_smaller(run: Run, plan: Plan) -> None:
    """A run is extended, not cut back: its networks would be over the budget already."""
    for key in ("params", "macs"):
        limit, largest = getattr(plan.spec.budget, key), max((e.payload[key] for e in run.events() if key in e.payload), default=0)
        if limit is not None and largest > limit:
            message = f"--set budget.{key}={limit}: this run has a network of {largest:,} {key} already"
            raise UsageError(message, fix=f"allow {largest} or more, or start another run")


def checked_of(source: str | os.PathLike | Mapping | Spec, sets: Sequence[str] = (), allow_code: bool = False) -> check.Checked:
    """The spec with its data and seed network. Raises SpecError with everything that is wrong."""
    if isinstance(source, Spec):
        source = source if not sets else specs.load(source.to_dict(), sets, source.folder)
        return check.check(source, allow_code=allow_code)
    return check.load(source, sets, allow_code=allow_code)


def _listed(sets: str | Sequence[str]) -> list[str]:
    return [sets] if isinstance(sets, str) else list(sets)


def free_folder(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, … that nothing lies in."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def search(
    spec: str | os.PathLike | Mapping | Spec,
    out: str | os.PathLike | None = None,
    *,
    sets: Sequence[str] = (),
    seed: int | None = None,
    device: str = "cpu",
    force: bool = False,
    allow_code: bool = False,
    listen: Listener | None = None,
) -> Grown:
    """Grows a network as `spec` (a path, YAML text or a dict) says, and returns the finished run.

    out: the run's folder; None: a free one under runs/. sets: overrides such as "budget.steps=4". listen: called with one
    row per committed event. allow_code: whether code that the spec names (model.py) may run. Ctrl-C stops after the work in progress with everything committed. Raises SpecError, DataError,
    RunError, NothingFits, ExportError, Interrupted.

    >>> import dagrow
    >>> run = dagrow.search({"name": "demo", "data": {"source": "wine", "batch": 32}, "model": {"layers": ["linear 3"]},
    ...                      "train": {"epochs": {"first": 2, "between": 1, "final": 1}}, "budget": {"steps": 1}}, out=folder)
    >>> run.finished, run.model(run.data.test.x).shape[1]
    (True, 3)
    """
    checked = checked_of(spec, [*_listed(sets), *([f"seed={seed}"] if seed is not None else [])], allow_code)
    plan, found = make_plan(checked), checked.spec
    check_device(device)
    folder = Path(out) if out is not None else free_folder(found.name)
    about = manifest(found.digest, plan.data.digest, device) | {"folder": str(found.folder.absolute()) if found.folder else None}
    with Run.create(folder, found.to_dict(), about, force) as run:
        return _grow(plan, run, device, listen)


def resume(
    folder: str | os.PathLike, *, sets: Sequence[str] = (), accept_different: bool = False, allow_code: bool = False, listen: Listener | None = None
) -> Grown:
    """Goes on with an interrupted run, to the same bits; with `sets` of budget.…, extends it (a finished one too).

    Raises RunError where data, versions, threads or machine differ from those it began with, unless `accept_different`.
    """
    sets = _listed(sets)
    wrong = [s for s in sets if not s.startswith("budget.")]
    if wrong:
        message = f"--set {wrong[0]}: a run in progress keeps its spec; only budget.… may change"
        raise UsageError(message, fix="start another run with `dagrow search`")
    with Run.open(folder, write=True) as run:
        plan = planned(run, sets, allow_code=allow_code)  # refused before anything is written
        if sets:
            _refuse_smaller(run, plan)
        device = run.manifest.get("device", "cpu")
        check_device(device)
        now = manifest(run.manifest["spec"], plan.data.digest, device) | {"folder": run.manifest.get("folder")}
        known = [run.manifest, *(e.payload["now"] for e in run.events() if e.kind == "different")]
        different = manifest_difference(known[-1], now)
        if different:
            if not accept_different:
                rows = "; ".join(f"{key} was {_short(old)}, is {_short(new)}" for key, old, new in different)
                message = f"{folder}: not the machine, versions or data it {'went on' if len(known) > 1 else 'began'} with: {rows}"
                raise RunError(message, fix="go on all the same with --accept-different")
            run.commit("different", {"now": now})
        if sets:
            run.commit("extended", {"sets": list(sets)})
        return _grow(plan, run, device, listen)


def _grow(plan: Plan, run: Run, device: str, listen: Listener | None) -> Grown:
    tell = listen or (lambda row: None)
    with graceful(STOPPING if sys.stderr is not None and sys.stderr.isatty() else "") as stopping:
        work = Search(plan, run, device)
        stopping.check(_saved(run, plan.spec))
        for event in work.events():
            if event.kind != "done":
                tell(event_row(event, plan))
            stopping.check(_saved(run, plan.spec))
        work.tidy()
        done, paths = Grown(run.folder, plan), {}
        for form in plan.spec.export:
            try:
                paths[form.name] = str(done.export(form.name, **form.options)[0])
            finally:
                stopping.check(_saved(run, plan.spec))  # Ctrl-C reaches the process that compares, too: that is no failed export
    end = done.history[-1]
    tell({**end, "run": str(run.folder), "seconds": sum(row["seconds"] for row in done.history), "exports": paths})
    return done


def _saved(run: Run, spec: Spec) -> str:
    return f"stopped; everything finished so far is saved\n  go on with: {resuming(run.folder, spec)}"


def resuming(folder: os.PathLike, spec: Spec) -> str:
    """The command that goes on with a run."""
    return f"dagrow resume {folder}{' --allow-code' if spec.model.py else ''}"


def _short(value: object) -> str:
    """A digest is told apart by its first characters."""
    return repr(value) if not isinstance(value, str) or len(value) <= 24 else f"{value[:10]}…"


def check_device(device: str) -> None:
    """Raises UsageError unless torch can compute there now."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}", fix="leave out --device to compute on the CPU") from None


def load(folder: str | os.PathLike, *, allow_code: bool = False) -> Grown:
    """A run from its folder. allow_code: import the user's own model (model.py in its spec) again, for modules that were kept whole.

    >>> dagrow.load(finished).architecture.inputs
    ('input',)
    """
    return Grown(folder, allow_code=allow_code)


def score(
    source: str | os.PathLike | Mapping | Spec | Grown, *, sets: Sequence[str] = (), top: int | None = None, verify: int | None = None,
    plot: str | os.PathLike | None = None, allow_code: bool = False, listen: Listener | None = None,
) -> Scores:
    """Where the network lacks capacity: a list of its candidate edits, best first (scoring.Row), with what they rest on
    (scoring.Scores: rows, rows_needed, bar, sites, alpha, train_loss, val_loss).

    source: a run (its folder or what `load` gave), scored as growth left it, or a spec, whose seed network is trained for
    train.epochs.first first. top: only so many. verify: how many of the best are tried by real forwards; None: as the
    spec says, or 12 for a plot. plot: a .png, .svg or .pdf file for a picture of predicted and checked gains. Raises as
    `search` does, and, before it computes, UsageError and DagrowError where the picture could not be made.
    """
    sets = _listed(sets)
    if plot is not None:
        gains.ready(plot)
        check_place(plot)
        verify = PLOTTED if verify is None else verify
    scores = _scores(source, sets, top, verify, allow_code, listen)
    if plot is not None:
        with placing(plot) as temporary:
            gains.draw(scores, temporary, gains.FORMATS[Path(plot).suffix.lower()])
    return scores


def _scores(
    source: str | os.PathLike | Mapping | Spec | Grown, sets: list[str], top: int | None, verify: int | None, allow_code: bool, listen: Listener | None
) -> Scores:
    if sets and (isinstance(source, Grown) or _is_folder(source)):
        raise UsageError(f"--set {sets[0]}: a run keeps its spec", fix="score the spec, or leave out --set")
    if _is_folder(source):
        source = Grown(source, allow_code=allow_code)
    if isinstance(source, Grown):
        return scored(source.plan, source.growing(), source._events[-1].payload["state"]["step"], top, verify)
    plan = make_plan(checked_of(source, sets, allow_code))
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", {}, {}) as run, graceful() as stopping:
        work = Search(plan, run)
        while work.network is None or work.state.epoch < work.state.epochs:
            event = work.advance()
            (listen or (lambda row: None))(event_row(event, plan))
            stopping.check("stopped; nothing was kept")
        return scored(plan, work.network, 0, top, verify, work.gathered())


def _is_folder(source: object) -> bool:
    return isinstance(source, str | os.PathLike) and os.path.isdir(source)
