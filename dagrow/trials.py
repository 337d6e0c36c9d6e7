"""What a chooser asks for: apply candidates, search along the line or fine-tune, and measure by real forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import inf, isfinite

import torch
from torch import Tensor, nn

from dagrow.applying import Applied, apply, refresh_norms
from dagrow.compiler import compile_architecture, parameters_by_name, weights_of
from dagrow.data import Fold
from dagrow.graph import Architecture, Refusal
from dagrow.losses import Loss
from dagrow.propose import Limits, Scored
from dagrow.select import Outcome, Trial
from dagrow.train import Moments, Observer, Optimizer, Session, outputs, train_epoch

AMPLITUDES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Recipe:
    """How weights are trained, whatever the architecture: optimizer and its options, loss, batch, gradient clipping."""

    optimizer: type[Optimizer]
    options: object
    loss: Loss
    batch: int
    clip: float | None = None

    def epoch(
        self, arch: Architecture, weights: Mapping[str, Tensor], moments: Moments, fold: Fold, rates, seed: int, path: tuple,
        observer: Observer | None = None,
    ):
        """One epoch from values to values: (weights, moments, report)."""
        device = fold.x.device
        model = compile_architecture(arch, {n: w.to(device) for n, w in weights.items()})
        placed = {slot: {n: m.to(device) for n, m in named.items()} for slot, named in moments.items()}
        with Session(self.optimizer, self.options, parameters_by_name(model), placed) as session:
            report = train_epoch(
                model, session, fold, self.loss, batch=self.batch, rates=rates, seed=seed, path=path, clip=self.clip, observer=observer
            )
            after = session.moments()
        return {n: w.cpu() for n, w in weights_of(model).items()}, {s: {n: m.cpu() for n, m in named.items()} for s, named in after.items()}, report


@dataclass(frozen=True)
class Measured:
    """A trial made: the network it gives, and what it changed. `checked` on training rows, `held` on rows never trained on."""

    outcome: Outcome
    arch: Architecture | None = None
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    moments: Moments = field(default_factory=dict, repr=False)
    checked: float = 0.0
    held: float = 0.0
    held_stderr: float = 0.0
    amplitude: float = 1.0


@dataclass
class Bench:
    """Makes trials on one parent network, one after another; the parent is left as it is."""

    arch: Architecture
    weights: Mapping[str, Tensor]
    moments: Moments
    candidates: Sequence[Scored]
    recipe: Recipe
    limits: Limits
    train: Fold
    rows: Fold
    held: Fold
    lr: float
    seed: int
    path: tuple[int | str, ...]
    spent: int = 0

    def __post_init__(self) -> None:
        parent = compile_architecture(self.arch, self.weights)
        self._before = self._nats(parent)
        self._tuned: dict[int, Tensor] = {0: outputs(parent, self.held.x)}

    def _nats(self, model: nn.Module) -> float:
        """Mean nats on the training rows."""
        return float(self.recipe.loss.nats(outputs(model, self.rows.x), self.rows.y))

    def _held(self, model: nn.Module, epochs: int = 0) -> tuple[float, float]:
        """(drop, standard error) in nats on held-out rows against the parent trained for `epochs` more, paired by row."""
        loss, fold = self.recipe.loss, self.held
        if epochs not in self._tuned:
            tuned = self._fine_tune(self.arch, self.weights, self.moments, epochs)
            self._tuned[epochs] = outputs(compile_architecture(self.arch, tuned), fold.x)
        old, new = self._tuned[epochs], outputs(model, fold.x)
        variance = loss.variance(old, fold.y)
        change = loss.each(old, fold.y, variance=variance).double() - loss.each(new, fold.y, variance=variance).double()
        drop = float(loss.nats(old, fold.y)) - float(loss.nats(new, fold.y))
        return drop, float(change.std() / len(change) ** 0.5)

    def make(self, trial: Trial) -> Measured:
        """Any failure is an outcome with a status; nothing is raised for a candidate that does not work."""
        parts = [self.candidates[i].part for i in trial.members]
        if not any(parts):
            return Measured(Outcome(trial, 0.0, 0.0), self.arch, dict(self.weights), self.moments)
        applied = apply(
            self.arch, self.weights, self.moments, self.recipe.optimizer.slots, [p for p in parts if p], (self.seed, *self.path, "newborn")
        )
        if isinstance(applied, Refusal):
            return Measured(Outcome(trial, 0.0, 0.0, "refused"))
        if not self.limits.admit(applied.arch) and (applied.arch.size > self.arch.size or applied.arch.macs > self.arch.macs):
            return Measured(Outcome(trial, 0.0, 0.0, "too dear"))
        try:
            untold = any(p.proposal.status == "trial" for p in parts if p)
            return self._measured(trial, applied, any(p.site.form.grows for p in parts if p) and not untold)
        except (RuntimeError, ValueError) as error:  # a CPU out of memory is a plain RuntimeError
            return Measured(Outcome(trial, 0.0, 0.0, f"failed: {str(error).splitlines()[0][:80]}"))

    def _measured(self, trial: Trial, applied: Applied, grows: bool) -> Measured:
        amplitude = self._line(applied) if grows else 1.0
        weights = refresh_norms(applied.arch, applied.weights(amplitude), self.rows)
        model = compile_architecture(applied.arch, weights)
        gain = checked = self._before - self._nats(model)
        drop, error = held = self._held(model)
        if trial.epochs:
            tuned = self._fine_tune(applied.arch, weights, applied.moments, trial.epochs)
            gain, error = self._held(compile_architecture(applied.arch, tuned), trial.epochs)
        finite = all(bool(torch.isfinite(w).all()) for w in weights.values() if w.is_floating_point())
        status = "ok" if finite and torch.isfinite(torch.tensor([gain, error])).all() else "nonfinite"
        if status == "ok" and grows and not amplitude:
            status = "no step lowers the loss"
        if status == "ok" and grows and drop < -error:
            status = "worse on held-out rows"
        return Measured(Outcome(trial, gain, error, status), applied.arch, weights, applied.moments, checked, *held, amplitude)

    def _line(self, applied: Applied) -> float:
        """The fan-out's amplitude with the lowest loss on training rows, by real forwards; 0 where none lowers it."""
        model = compile_architecture(applied.arch, applied.full)
        live = parameters_by_name(model)

        @cache
        def loss(place: int) -> float:
            with torch.no_grad():
                for name, w in applied.weights(AMPLITUDES[place]).items():
                    if name in live:
                        live[name].copy_(w)
            found = self._nats(model)
            return found if isfinite(found) else inf

        # Its own amplitude, 1, is where the loss was lowest when each candidate was valued alone: seldom far from the best.
        place = AMPLITUDES.index(1.0)
        for way in (1, -1):
            while 0 <= place + way < len(AMPLITUDES) and loss(place + way) <= loss(place):
                place += way
        return AMPLITUDES[place] if loss(place) < self._before else 0.0

    def _fine_tune(self, arch: Architecture, weights, moments: Moments, epochs: int) -> dict[str, Tensor]:
        for epoch in range(epochs):
            weights, moments, report = self.recipe.epoch(
                arch, weights, moments, self.train, lambda _: self.lr, self.seed, (*self.path, "trial", epoch)
            )
            self.spent += 3 * arch.macs * report.samples
        return weights
