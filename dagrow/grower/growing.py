"""Grower: growth inside the user's own training loop, on the user's own model and optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dagrow import export
from dagrow.compiler import compile_architecture
from dagrow.criteria import LossFunction
from dagrow.errors import BudgetError, UsageError
from dagrow.graph import Architecture
from dagrow.grower import carrying, grounds, saving
from dagrow.grower.deciding import Measured, Policy, Sight, Weights, configured
from dagrow.grower.decision import FEWEST, Budget, Decision
from dagrow.grower.grounds import Ground
from dagrow.grower.live import Live
from dagrow.grower.overhearing import Ear, Recollection
from dagrow.importing import from_torch
from dagrow.propose import Limits, Scored
from dagrow.scoring import Scores, table
from dagrow.train import OPTIMIZERS, outputs
from dagrow.trials import Recipe

OUT = Decision(False, "out of steps", note="all edits of the budget are made")


class Grower:
    """Grows `model` while its user trains it: the same object goes on, with more (or fewer) parameters, and `optimizer` knows them.

    model: any nn.Module that `dagrow.from_torch` can trace, with one tensor in and one out, batch first. optimizer: any of
    torch.optim but LBFGS, holding every parameter of the model that requires a gradient. example_input: a batch for tracing;
    None: the first rows seen. edits: names, or {name: options} as in a spec. budget: {params, macs, steps}, hard limits.
    every: optimizer steps between two decisions of `step`. score: {by, rows, verify, alpha, race, window}. opaque: paths or
    classes of modules to keep whole. seed: of all of the Grower's draws; torch's own random state is left alone.

    Frozen parameters (requires_grad=False) stay as they are: nothing is grown there. Learning rate schedulers and gradient
    scalers go on as before. Not for DistributedDataParallel, nor for a model inside torch.compile: give the model itself.

    Raises UsageError, UnknownName, BudgetError (the model is over the budget already), and what `from_torch` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        example_input: Tensor | None = None,
        *,
        edits: str | Mapping | Iterable[str | Mapping] = ("widen", "deepen"),
        budget: Mapping[str, int | None] | None = None,
        every: int | None = None,
        score: Mapping[str, Any] | None = None,
        opaque: str | type | Iterable[str | type] = (),
        seed: int = 0,
    ):
        if not isinstance(model, nn.Module):
            what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
            raise UsageError(f"the model is {what}, not a torch.nn.Module")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
            raise UsageError(f"the model is wrapped in {type(model).__name__}", fix="give the model itself (model.module, or what was compiled)")
        if every is not None and (not isinstance(every, int) or every < 1):
            raise UsageError(f"every={every!r}: it is a number of steps")
        if example_input is not None and not isinstance(example_input, Tensor):
            raise UsageError(f"example_input is a {type(example_input).__name__}, not a tensor", fix="a Grower takes a model of one tensor: wrap it, or grow a part")
        carrying.check(optimizer, model.named_parameters())
        self.model, self.optimizer, self.every, self.seed = model, optimizer, every, seed
        self.budget: Budget = configured("budget", Budget, budget or {})
        self.policy = Policy.of(edits, score, seed)
        self.history: list[Decision] = []
        self.taken = 0  # optimizer steps
        self._opaque, self._live, self._ground, self._decided = (opaque,) if isinstance(opaque, (str, type)) else tuple(opaque), None, None, 0
        self._example = example_input
        self._ear, self._batch = Ear(model) if every is not None else None, 0
        self._memory = Recollection(-(-4 * self.policy.score.rows // 3), self.policy.score.window)
        if self._ear is not None:
            self._listen()
        if example_input is not None:
            self._know(example_input)

    # -- the network ------------------------------------------------------------------------------------------------

    @property
    def architecture(self) -> Architecture:
        """The network's graph, as a value."""
        if self._live is None:
            raise UsageError("the model has not been traced yet", fix="give example_input, or call grow once")
        return self._live.arch

    @property
    def params(self) -> int:
        """Trainable parameters of the model."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _know(self, example: Tensor) -> Live:
        """The model as an architecture, traced when it is first needed."""
        if self._live is None:
            live = Live.known(self.model) or Live.of(self.model, self._traced(example))
            arch = live.arch
            if len(arch.inputs) != 1 or len(arch.outputs) != 1:
                what = f"{len(arch.inputs)} inputs and {len(arch.outputs)} outputs"
                raise UsageError(f"the model has {what}; a Grower takes one tensor in and one out", fix="grow the part of it that has one of each")
            over = [f"{k} {now:,} of {limit:,}" for k, now, limit in self._spent(arch) if limit is not None and now > limit]
            if over:
                raise BudgetError(f"the model is over the budget already: {', '.join(over)}")
            self._live, self._example = live, example[:2].detach().cpu()
        return self._live

    def _traced(self, example: Tensor):
        like = next(self.model.parameters())
        return from_torch(self.model, example.to(like.device, like.dtype if example.is_floating_point() else None), opaque=self._opaque)

    def _spent(self, arch: Architecture) -> list[tuple[str, int, int | None]]:
        return [("params", self.params, self.budget.params), ("macs", arch.macs, self.budget.macs)]

    def _weights(self) -> Weights:
        live = self._live
        if not live.packed:
            return live.weights()
        # the import takes apart what the user's own modules hold in one
        found = self._traced(self._example)
        if found.arch != live.arch:
            raise UsageError("the model is no longer the one that was traced", fix="change its modules through its Grower only, or make another Grower")
        return {n: t.detach().to("cpu", torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype, copy=True) for n, t in found.weights.items()}

    def _limits(self, arch: Architecture) -> Limits:
        """For what the architecture counts; the model may have frozen parameters, and some outside the graph."""
        params = self.budget.params
        return Limits(None if params is None else params - self.params + arch.size, self.budget.macs)

    # -- decisions --------------------------------------------------------------------------------------------------

    def grow(self, data: Iterable | tuple[Tensor, Tensor], loss_fn: LossFunction, held: Iterable | tuple[Tensor, Tensor] | None = None) -> Decision:
        """One decision, now: the model grows by the best edit, or stays as it is.

        data: a loader of (inputs, targets) batches, of which the first are taken, or (x, y). loss_fn(output, target) -> the
        mean over the rows; nn.CrossEntropyLoss, nn.MSELoss and their functions are known exactly, of others derivatives and
        values are taken. held: rows that the model is not trained on, in the same form, to tell signal from noise; None: a
        quarter of the rows is kept out of the fit, which the model may have been trained on.

        The model, the optimizer and torch's random state are as before where nothing is changed, or something is raised.
        """
        if self._spent_up:
            return self._note(OUT)
        ground = self._rows(data, loss_fn, held)
        return self._note(ground) if isinstance(ground, Decision) else self._decide(ground)

    @property
    def steps(self) -> int:
        """Edits made."""
        return sum(d.changed for d in self.history)

    @property
    def _spent_up(self) -> bool:
        return self.budget.steps is not None and self.steps >= self.budget.steps

    def _rows(self, data: Any, loss_fn: LossFunction, held: Any) -> Ground | Decision:
        found = grounds.rows_of(data, held, self.policy.score.rows, self.seed, self._path())
        if isinstance(found, Decision):
            return found
        self._know(found[0].x[:2])
        return grounds.told(*found, self._outputs, loss_fn)

    def _outputs(self, x: Tensor) -> Tensor:
        """The network's outputs now, in evaluation mode."""
        return outputs(compile_architecture(self._live.arch, self._weights()), x)

    def _path(self) -> tuple[int | str, ...]:
        return "grower", self._decided

    def _sight(self, ground: Ground) -> Sight:
        live = self._live
        group, family = self.optimizer.param_groups[0], "sgd" if isinstance(self.optimizer, torch.optim.SGD) else "adamw"
        rule = OPTIMIZERS.get(family)
        recipe = Recipe(rule, rule.Options(), ground.loss, max(2, min(ground.batch, len(ground.train))))
        frozen = frozenset(n for n, t in live.tensors().items() if isinstance(t, nn.Parameter) and not t.requires_grad)
        return Sight(
            live.arch, self._weights(), ground.train, ground.held, ground.loss, recipe, float(group["lr"]), self._limits(live.arch), self.policy,
            self._path(), ground.told, ground.sure, frozen,
        )

    def _decide(self, ground: Ground) -> Decision:
        sight, self._ground = self._sight(ground), ground
        taken, parts, note, status = sight.choose()
        said = {"note": f"{note}; {ground.note}", "status": status}
        if taken is None:
            return self._note(Decision(False, **said))
        before = self.params
        reset = self._become(sight, taken, parts)
        if reset:
            said["note"] += f"; the optimizer's state of {', '.join(reset)} begins anew"
        return self._note(Decision(
            True, edit="+".join(dict.fromkeys(p.candidate.edit for p in parts)), where=", ".join(p.candidate.where for p in parts),
            units=sum(p.candidate.units or 0 for p in parts), predicted=sum(p.gain.nats for p in parts),
            stderr=sum(p.gain.stderr**2 for p in parts) ** 0.5, checked=taken.checked, held=taken.held, held_stderr=taken.held_stderr,
            added=self.params - before, **said,
        ))  # fmt: skip

    def _note(self, decision: Decision) -> Decision:
        macs = self._live.arch.macs if self._live is not None else 0
        decision = Decision(**{**asdict(decision), "params": self.params, "macs": macs, "step": self.taken})
        self._decided += 1
        self.history.append(decision)
        return decision

    def _become(self, sight: Sight, taken: Measured, parts: list[Scored]) -> list[str]:
        """The model and its optimizer, across the edit; the parameters whose optimizer state could not go along."""
        live = self._live
        tensors = live.tensors()
        slots = carrying.slots_of(self.optimizer, live.arch, tensors)
        weights, moved = sight.carried(taken, parts, slots, carrying.fills(slots))
        ahead = live.planned(taken.arch, weights)
        state = carrying.carried(self.optimizer, ahead.change, tensors, moved, sight.squares(taken.arch, weights))
        live.put(ahead)
        carrying.take(self.optimizer, taken.arch, state, live.tensors(), live.names)
        return state.reset

    # -- along the way ----------------------------------------------------------------------------------------------

    def step(self, loss: Tensor | None = None, *, backward: bool = True, update: bool = True, scaler: Any = None) -> Decision | None:
        """One optimizer step, and every `every` of them a decision; None while there is none.

        loss.backward(), then optimizer.step(): what stands for both in the loop; zeroing gradients stays with the user. backward
        False: the user has called it (loss may be left out); update False: the optimizer's step as well. scaler: a
        torch.amp.GradScaler, through which all goes, or with which the user has scaled the loss.

        No targets are needed: rows are the inputs that passed through the model in the last steps, and what is known of the loss
        is its derivatives in the outputs, so any loss will do (reinforcement learning too) that is a mean over the rows. A quarter
        of the rows, the latest, are those it is tested on. How far the loss falls is asked of a quadratic model of it, with
        the curvature that the loss's own graph has: coarser than `grow`, and gains are in the units of the loss.
        """
        if self._ear is None:
            raise UsageError("this Grower decides only when it is asked to", fix="say how often: Grower(..., every=200)")
        if backward:
            if loss is None:
                raise UsageError("step() needs the loss", fix="grower.step(loss), or backward=False where loss.backward() was called")
            self._ear.understand(loss)
            (loss if scaler is None else scaler.scale(loss)).backward()
        self._batch = self._memory.add(self._ear.take(), 1.0 if scaler is None else scaler.get_scale()) or self._batch
        if update:
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
                scaler.update()
        self.taken += 1
        try:
            return None if self.taken % self.every else self._due()
        finally:
            self._listen()

    def _listen(self) -> None:
        """The ear is open for the steps before a decision that hold the rows it wants."""
        left = self.every - self.taken % self.every
        self._ear.open = left <= max(self.policy.score.window, -(-self._memory.rows // self._batch) if self._batch else 0)

    def _due(self) -> Decision:
        found = self._memory.all()
        self._memory.clear()
        if self._spent_up:
            return self._note(OUT)
        if found is None or len(found[0]) < FEWEST:
            return self._note(grounds.too_few(0 if found is None else len(found[0])))
        self._know(found[0][:2])
        ground = grounds.heard(*found, self._outputs)
        return self._note(ground) if isinstance(ground, Decision) else self._decide(ground)

    # -- what there is ----------------------------------------------------------------------------------------------

    def score(
        self, data: Any = None, loss_fn: LossFunction | None = None, held: Any = None, *, top: int | None = None, verify: int | None = None
    ) -> Scores:
        """Where the model lacks capacity now: its candidate edits, best first, as `dagrow.score` gives them. Changes nothing.

        data, loss_fn, held: as `grow` takes them; None: the rows of the last decision.
        """
        if data is not None:
            ground = self._rows(data, loss_fn, held)
        elif self._ground is None:
            raise UsageError("there are no rows to score on", fix="grower.score(loader, loss_fn)")
        else:
            ground = self._ground.again(self._outputs)
        if isinstance(ground, Decision):
            raise UsageError(f"these rows cannot be scored on: {ground.note}")
        sight, verify = self._sight(ground), self.policy.score.verify if verify is None else verify
        raced = sight.scored(price_first=False, tried=verify)
        return table(
            raced, sight.bench(raced.scored), top=top, verify=verify, alpha=self.policy.score.alpha, held_rows=len(ground.held),
            losses=tuple(float(ground.loss.nats(self._outputs(f.x), f.y)) for f in (ground.train, ground.held)),
        )

    def export(self, form: str = "torchscript", path: str | os.PathLike = "model.pt", **options: Any) -> tuple[Path, float]:
        """Writes the network in a format (`dagrow formats`); (path, largest difference in a clean process). Raises ExportError, UsageError."""
        arch, weights = self.architecture, self._weights()
        meta = {"params": arch.size, "macs": arch.macs, "input_shape": list(arch.shapes[arch.inputs[0]]), "task": "any"}
        nothing = nn.Identity()
        bundle = export.Bundle(arch, compile_architecture(arch, weights).eval(), nothing, nothing, self._example, meta)
        return Path(path), export.save(bundle, form, path, configured(f"format {form!r}", export.REGISTRY.get(form).Options, options))

    def save(self, path: str | os.PathLike) -> None:
        """Model, optimizer state and history into one safetensors file, whole or not at all. UsageError where it cannot be written."""
        saving.write(path, self._known(), self.optimizer, {"history": [asdict(d) for d in self.history], "taken": self.taken})

    def load(self, path: str | os.PathLike) -> None:
        """The model, made anew by its class, and the optimizer become those that were saved. Raises RunError for another file."""
        found = saving.read(path)
        live = self._known()
        with saving.understood(path):
            self._history(saving.restore(found, live, self.optimizer))

    def _history(self, more: Mapping[str, Any]) -> None:
        self.history = [Decision(**d) for d in more["history"]]
        self.taken, self._decided = int(more["taken"]), len(self.history)

    def _known(self) -> Live:
        if self._live is None:
            raise UsageError("the model has not been traced yet", fix="give example_input")
        return self._live

    def __repr__(self) -> str:
        return f"Grower({type(self.model).__name__}, {self.params} params, {self.steps} edits in {len(self.history)} decisions)"


__all__ = ["Grower"]
