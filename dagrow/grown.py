"""A run read from its folder: its network, its history, its data."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from dagrow.planning import make_plan
from dagrow.spec import Spec
from dagrow.standing import Network, Plan, load_network
from dagrow.store import Event, Run, manifest
from dagrow.train import evaluate

if TYPE_CHECKING:
    import numpy as np


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

    def __init__(self, folder: str | os.PathLike, plan: Plan | None = None, *, allow_code: bool = False):
        with Run.open(folder) as run:
            self.folder = run.folder
            self._run, self._events = run, [e for e in run.events() if "state" in e.payload]
        if not self._events:
            raise RunError(f"{folder}: this run has not begun", fix=f"go on with `dagrow resume {folder}`")
        self._plan, self._code = plan, True if allow_code else None
        if allow_code and plan is None:
            _ = self.plan  # modules of the user's that are kept whole are there from now on

    @cached_property
    def plan(self) -> Plan:
        if self._plan is not None:
            return self._plan
        plan = planned(self._run, allow_code=self._code)
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
            fix = f"steps are {min(decisions)} to {max(decisions)}, or best" if decisions else "this run made no decision"
            raise UsageError(f"there is no step {step!r}", fix=fix)
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
        rows = [{**r, "train_loss": r.get("train_loss", loss)} for r in self.history for loss in r.get("losses", [r.get("epoch_loss")])]
        return report.html(self.architecture, self.plan.spec.name) + report.history_html(rows)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"Grown({str(self.folder)!r}, {state}, {len(self.architecture.nodes)} nodes, {self.architecture.size} params)"


def planned(run: Run, sets: Sequence[str] = (), *, allow_code: bool | None = None) -> Plan:
    """The plan a run follows. Where its seed network is code of the user's, that runs again and has to make the same network.

    allow_code: whether it may run; None: it need not. Raises SpecError where it may not, RunError where the network is another.
    """
    began = next((e for e in run.events() if e.kind == "start"), None)
    seed = Architecture.from_dict(began.payload["architecture"]) if began is not None else None
    plan = make_plan(check.check(spec_of(run, sets), allow_code=bool(allow_code), seed=seed if allow_code is None else None))
    if seed is not None and plan.spec.model.py is not None and plan.architecture.digest != seed.digest:
        raise RunError(f"{run.folder}: {plan.spec.model.py} makes another network than the one this run began with", fix="put the code back as it was")
    return plan


def spec_of(run: Run, sets: Sequence[str] = ()) -> Spec:
    """The spec a run follows: the one it began with, the budgets it was extended by, and `sets`. Paths start where they did."""
    before = [s for e in run.events() if e.kind == "extended" for s in e.payload["sets"]]
    return specs.load(run.spec, [*before, *sets], folder=run.manifest.get("folder"))
