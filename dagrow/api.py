"""dagrow from Python: search, resume, load, score. The command line calls these and prints."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import torch
from torch import Tensor, nn

from dagrow import check, export, report
from dagrow import spec as specs
from dagrow.compiler import Deployed, compile_architecture
from dagrow.data import Dataset
from dagrow.errors import RunError, UsageError
from dagrow.graph import Architecture
from dagrow.growth import Network, Plan, Search, load_network
from dagrow.planning import make_plan
from dagrow.select import Trial
from dagrow.spec import Spec
from dagrow.store import Event, Run, graceful, manifest, manifest_difference
from dagrow.train import evaluate

if TYPE_CHECKING:
    import numpy as np

STOPPING = "\nstopping after the work in progress; once more to stop at once\n"
Listener = Callable[[dict[str, Any]], None]
Architecture._repr_html_ = lambda self: report.html(self)


def event_row(event: Event, plan: Plan) -> dict[str, Any]:
    """An event for people and programs: its flat values, what is left of the budget, without the network itself."""
    hidden = ("architecture", "before_architecture", "state", "before_state")
    row = {"event": event.kind, **{k: v for k, v in event.payload.items() if k not in hidden}, "seconds": event.times.get("seconds", 0.0)}
    state, budget = event.payload.get("state", {}), plan.spec.budget
    row |= {"epoch": state.get("epoch"), "epochs": state.get("epochs"), "trained": state.get("trained")}
    row["left"] = {
        "steps": max(0, budget.steps - state.get("step", 0)),
        **({"params": budget.params - event.payload["params"]} if budget.params is not None else {}),
        **({"macs": budget.macs - event.payload["macs"]} if budget.macs is not None else {}),
    }
    return row


class Grown:
    """A run read from its folder: the network it reports, its history, its data. Shows itself in a notebook."""

    def __init__(self, folder: str | os.PathLike, plan: Plan | None = None):
        with Run.open(folder) as run:
            self.folder = run.folder
            self._run, self._events = run, [e for e in run.events() if "state" in e.payload]
        if not self._events:
            raise RunError(f"{folder}: this run has not begun", fix=f"go on with `dagrow resume {folder}`")
        self._plan = plan

    @cached_property
    def plan(self) -> Plan:
        if self._plan is not None:
            return self._plan
        plan = make_plan(check.check(spec_of(self._run)))
        began = [e.payload["now"] for e in self._run.events() if e.kind == "different"][-1:] or [self._run.manifest]
        if began[0].get("data", plan.data.digest) != plan.data.digest:
            fix = "put the data back as it was; exported files hold what they need"
            raise RunError(f"{self.folder}: the data is no longer what this run was trained on", fix=fix)
        return plan

    @property
    def data(self) -> Dataset:
        return self.plan.data

    @property
    def finished(self) -> bool:
        return self._events[-1].kind == "done"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per committed event: epochs, decisions, the end."""
        return [event_row(e, self.plan) for e in self._events]

    @cached_property
    def network(self) -> Network:
        """The network the run reports: the final one, or the present one of an unfinished run."""
        return load_network(self._run, self._events[-1])

    @property
    def architecture(self) -> Architecture:
        return self.network.arch

    @cached_property
    def model(self) -> nn.Module:
        """The trained network as a torch module in eval mode: preprocessed inputs -> logits or standardised predictions."""
        return compile_architecture(self.network.arch, self.network.weights).eval()

    @cached_property
    def deployed(self) -> nn.Module:
        """From raw rows to what is reported, preprocessing and scaling included: what exports hold."""
        return Deployed(self.data.encoder, self.model, self.data.decoder)

    def at(self, step: int | str | None = None) -> Network:
        """The network at decision `step` (trained up to it), the one of the best decision ("best"), or the one reported (None)."""
        if step is None:
            return self.network
        decisions = {e.payload["step"]: e for e in self._events if e.kind == "step"}
        if step == "best":
            best = self._events[-1].payload["state"]["best"]
            event = next(e for e in self._events if e.seq == best["seq"]) if best else self._events[-1]
            return load_network(self._run, event, "before_" if "before_weights" in event.blobs else "")
        if step not in decisions:
            raise UsageError(f"there is no step {step!r}", fix=f"steps are {min(decisions)} to {max(decisions)}, or best" if decisions else "this run made no decision")
        return load_network(self._run, decisions[step], "before_")

    def growing(self) -> Network:
        """The network as it stood when growth ended (or stands now): before any held-out row was trained on."""
        last = next((e for e in reversed(self._events) if e.kind == "final"), self._events[-1])
        return load_network(self._run, last)

    def evaluate(self, step: int | str | None = None) -> dict[str, Any]:
        """{fold: {"loss", "accuracy" or "r2"}, "params", "macs"}."""
        network = self.at(step)
        module = compile_architecture(network.arch, network.weights)
        scores = {name: evaluate(module, fold, self.plan.recipe.loss) for name, fold in self.data.folds.items()}
        return {**scores, "params": network.arch.size, "macs": network.arch.macs}

    def predict(self, rows: Tensor | np.ndarray | str | os.PathLike) -> Tensor:
        """Reported outputs [n, outputs] (logits, or predictions in the target's units) for raw rows, or for those of a csv or npz file."""
        raw = self.data.read(rows) if isinstance(rows, str | os.PathLike) else torch.as_tensor(rows)
        if tuple(raw.shape[1:]) != tuple(self.data.schema.shape) or not raw.dim():
            raise UsageError(f"rows of shape {list(raw.shape)}, the data's are {['n', *self.data.schema.shape]}".replace("'", ""))
        with torch.no_grad():
            return torch.cat([self.deployed(part) for part in raw.split(4096)])

    def export(self, name: str = "torchscript", path: str | os.PathLike | None = None, **options: Any) -> tuple[Path, float]:
        """Writes the network in a format; (path, largest difference in a clean process). Raises ExportError, UsageError."""
        kind = export.REGISTRY.get(name)
        target = Path(path) if path is not None else self.folder / "exports" / f"{self.plan.spec.name}{kind.suffix}"
        if path is None:
            target.parent.mkdir(exist_ok=True)
        try:
            chosen = kind.Options(**options)
        except pydantic.ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise UsageError(f"{name}: {wrong}", fix=f"its options are {', '.join(kind.Options.model_fields)}") from None
        return target, export.save(self.bundle(), name, target, chosen)

    def bundle(self) -> export.Bundle:
        data, arch = self.data, self.architecture
        meta = {
            "name": self.plan.spec.name, "task": data.task, "classes": data.classes, "features": data.features, "params": arch.size,
            "macs": arch.macs, "input_shape": list(data.schema.shape), "dagrow": manifest("", "")["dagrow"],
            "spec": (self.folder / "spec.yaml").read_text(),
        }
        return export.Bundle(arch, self.model, data.encoder, data.decoder, data.raw, meta)

    def _repr_html_(self) -> str:
        rows = [{**r, "val_loss": r.get("val_loss"), "train_loss": r.get("train_loss", r.get("epoch_loss"))} for r in self.history]
        return report.html(self.architecture, self.plan.spec.name) + report.history_html(rows)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"Grown({str(self.folder)!r}, {state}, {len(self.architecture.nodes)} nodes, {self.architecture.size} params)"


def spec_of(run: Run, sets: Sequence[str] = ()) -> Spec:
    """The spec a run follows: the one it began with, the budgets it was extended by, and `sets`. Paths start where they did."""
    before = [s for e in run.events() if e.kind == "extended" for s in e.payload["sets"]]
    return specs.load(run.spec, [*before, *sets], folder=run.manifest.get("folder"))


def _refuse_smaller(run: Run, plan: Plan) -> None:
    """A run is extended, not cut back: its networks would be over the budget already."""
    for key in ("params", "macs"):
        limit, largest = getattr(plan.spec.budget, key), max((e.payload[key] for e in run.events() if key in e.payload), default=0)
        if limit is not None and largest > limit:
            message = f"--set budget.{key}={limit}: this run has a network of {largest:,} {key} already"
            raise UsageError(message, fix=f"allow {largest} or more, or start another run")


def checked_of(source: str | os.PathLike | Mapping | Spec, sets: Sequence[str] = ()) -> check.Checked:
    """The spec with its data and seed network. Raises SpecError with everything that is wrong."""
    if isinstance(source, Spec):
        source = source if not sets else specs.load(source.to_dict(), sets, source.folder)
        return check.check(source)
    return check.load(source, sets)


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
    listen: Listener | None = None,
) -> Grown:
    """Grows a network as `spec` (a path, YAML text or a dict) says, and returns the finished run.

    out: the run's folder; None: a free one under runs/. sets: overrides such as "budget.steps=4". listen: called with one
    row per committed event. Ctrl-C stops after the work in progress with everything committed. Raises SpecError, DataError,
    RunError, NothingFits, ExportError, Interrupted.

    >>> import dagrow
    >>> run = dagrow.search({"name": "demo", "data": {"source": "wine", "batch": 32}, "model": {"layers": ["linear 3"]},
    ...                      "train": {"epochs": {"first": 2, "between": 1, "final": 1}}, "budget": {"steps": 1}}, out=folder)
    >>> run.finished, run.model(run.data.test.x).shape[1]
    (True, 3)
    """
    checked = checked_of(spec, [*_listed(sets), *([f"seed={seed}"] if seed is not None else [])])
    plan, found = make_plan(checked), checked.spec
    check_device(device)
    folder = Path(out) if out is not None else free_folder(found.name)
    about = manifest(found.digest, plan.data.digest, device) | {"folder": str(found.folder.absolute()) if found.folder else None}
    with Run.create(folder, found.to_dict(), about, force) as run:
        return _grow(plan, run, device, listen)


def resume(
    folder: str | os.PathLike, *, sets: Sequence[str] = (), accept_different: bool = False, listen: Listener | None = None
) -> Grown:
    """Goes on with an interrupted run, to the same bits; with `sets` of budget.…, extends it (a finished one too).

    Raises RunError where data, versions, threads or machine differ from those it began with, unless `accept_different`.
    """
    sets = _listed(sets)
    wrong = [s for s in sets if not s.startswith("budget.")]
    if wrong:
        raise UsageError(f"--set {wrong[0]}: a run in progress keeps its spec; only budget.… may change", fix="start another run with `dagrow search`")
    with Run.open(folder, write=True) as run:
        plan = make_plan(check.check(spec_of(run, sets)))  # refused before anything is written
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
                raise RunError(f"{folder}: not the machine, versions or data it {'went on' if len(known) > 1 else 'began'} with: {rows}", fix="go on all the same with --accept-different")
            run.commit("different", {"now": now})
        if sets:
            run.commit("extended", {"sets": list(sets)})
        return _grow(plan, run, device, listen)


def _grow(plan: Plan, run: Run, device: str, listen: Listener | None) -> Grown:
    tell = listen or (lambda row: None)
    with graceful(STOPPING if sys.stderr is not None and sys.stderr.isatty() else "") as stopping:
        work = Search(plan, run, device)
        stopping.check(_saved(run))
        for event in work.events():
            if event.kind != "done":
                tell(event_row(event, plan))
            stopping.check(_saved(run))
        work.tidy()
        done, paths = Grown(run.folder, plan), {}
        for form in plan.spec.export:
            try:
                paths[form.name] = str(done.export(form.name, **form.options)[0])
            finally:
                stopping.check(_saved(run))  # Ctrl-C reaches the process that compares, too: that is no failed export
    end = done.history[-1]
    tell({**end, "run": str(run.folder), "seconds": sum(row["seconds"] for row in done.history), "exports": paths})
    return done


def _saved(run: Run) -> str:
    return f"stopped; everything finished so far is saved\n  go on with: dagrow resume {run.folder}"


def _short(value: object) -> str:
    """A digest is told apart by its first characters."""
    return repr(value) if not isinstance(value, str) or len(value) <= 24 else f"{value[:10]}…"


def check_device(device: str) -> None:
    """Raises UsageError unless torch can compute there now."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}", fix="leave out --device to compute on the CPU") from None


def load(folder: str | os.PathLike) -> Grown:
    """A run from its folder.

    >>> dagrow.load(finished).architecture.inputs
    ('input',)
    """
    return Grown(folder)


@dataclass(frozen=True)
class Row:
    """One candidate edit: gain ± stderr in nats per sample as predicted, `checked` as measured by real forwards (None: not
    among the best few), what it adds, the verdict (grow, noise, too dear, unsupported, shrink) and what speaks against it."""

    edit: str
    where: str
    units: int | None
    gain: float
    stderr: float
    z: float
    checked: float | None
    params: int
    macs: int
    verdict: str
    reason: str = ""


def score(source: str | os.PathLike | Mapping | Spec | Grown, *, sets: Sequence[str] = (), top: int | None = None, listen: Listener | None = None) -> list[Row]:
    """Where the network lacks capacity: its candidate edits, best first.

    source: a run (its folder or what `load` gave), scored as growth left it, or a spec, whose seed network is trained for
    train.epochs.first first. Raises as `search` does.
    """
    sets = _listed(sets)
    if sets and (isinstance(source, Grown) or _is_folder(source)):
        raise UsageError(f"--set {sets[0]}: a run keeps its spec", fix="score the spec, or leave out --set")
    if isinstance(source, Grown):
        return _scored(source.plan, source.growing(), source._events[-1].payload["state"]["step"], top)
    if _is_folder(source):
        return score(Grown(source), top=top)
    plan = make_plan(checked_of(source, sets))
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", {}, {}) as run, graceful() as stopping:
        work = Search(plan, run)
        while work.network is None or work.state.epoch < work.state.epochs:
            event = work.advance()
            (listen or (lambda row: None))(event_row(event, plan))
            stopping.check("stopped; nothing was kept")
        return _scored(plan, work.network, 0, top)


def _is_folder(source: object) -> bool:
    return isinstance(source, str | os.PathLike) and os.path.isdir(source)


def _scored(plan: Plan, network: Network, step: int, top: int | None) -> list[Row]:
    work = Search.standing(plan, network, step)
    found = work.candidates(price_first=False)
    bench = work.bench(found)
    shown = found[1:] if top is None else found[1 : top + 1]
    best = [s.candidate.index for s in shown if s.part is not None][: plan.spec.score.verify]
    checked = {i: bench.make(Trial(i)) for i in best}
    rows = []
    for s in shown:
        c = s.candidate
        measured = checked.get(c.index)
        made = measured is not None and measured.arch is not None and math.isfinite(measured.checked)
        reason = s.reason or (measured.outcome.status if measured is not None and measured.outcome.status != "ok" else "")
        number = measured.checked if made else None
        rows.append(Row(c.edit, c.where, c.units, c.gain, c.stderr, c.z, number, c.params, c.macs, c.verdict, reason))
    return rows
