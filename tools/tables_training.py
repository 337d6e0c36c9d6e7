"""One finished search as the columns of table T6 see it, and how they train: by the search's own recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dagrow.compiler import compile_architecture, initialise
from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.rng import stream
from dagrow.spec import Spec
from dagrow.standing import Plan
from dagrow.train import SCHEDULES, evaluate


@dataclass(frozen=True)
class Contest:
    """One finished search to compare with. work: its training MACs; epochs: its epochs; edits: the decisions that were no
    null edits; largest: parameters of the largest network it had."""

    spec: Spec
    plan: Plan
    grown: Architecture
    work: int
    epochs: int
    steps: int
    edits: Sequence[Mapping]
    largest: int

    @property
    def fold(self) -> Fold:
        return self.plan.data.train_val if self.spec.train.final_on == "train+val" else self.plan.data.train

    @property
    def metric(self) -> str:
        return "accuracy" if self.plan.data.task == "classification" else "r2"

    @property
    def convolutional(self) -> bool:
        return any(node.op == "conv2d" for node in self.plan.architecture.nodes.values())

    @property
    def act(self) -> str:
        """The activation of static networks: the seed's, or else that of the hidden layers growth may add."""
        acts = [n.op for n in self.plan.architecture.nodes.values() if n.rule.role == "activation"]
        return acts[0] if acts else next((o.act for _, o in self.plan.edits if "act" in type(o).model_fields), "relu")



def train(contest: Contest, arch: Architecture, fold: Fold, work: float, path: tuple, most: float = math.inf) -> tuple[dict, dict]:
    """(weights, {"epochs", "work", "finite"}) of `arch` from a fresh start, trained for `work` MACs or `most` epochs."""
    recipe, seed, rows = contest.plan.recipe, contest.spec.seed, len(fold)
    wanted = max(int(min(work / (3 * arch.macs), most * rows)), min(recipe.batch, rows))
    parts = [rows] * (wanted // rows)
    if wanted % rows >= min(recipe.batch, rows):
        parts.append(wanted % rows)
    cosine = SCHEDULES.get("cosine")
    options = cosine.Options()
    weights, moments, done = initialise(arch, (seed, *path)), {slot: {} for slot in recipe.optimizer.slots}, 0
    for number, size in enumerate(parts):
        here = fold
        if size < rows:
            chosen = torch.randperm(rows, generator=stream(seed, *path, "part"))[:size]
            here = Fold(fold.x[chosen], fold.y[chosen])

        def rate(step: int, done: int = done) -> float:
            return cosine.rate(options, recipe.options.lr, "final", (done + step * recipe.batch) / sum(parts))

        after, moments, report = recipe.epoch(arch, weights, moments, here, rate, seed, (*path, number))
        done += report.samples
        if not report.finite:
            return weights, {"epochs": number, "work": 3 * arch.macs * done, "finite": False}
        weights = after
    return weights, {"epochs": round(sum(parts) / rows, 2), "work": 3 * arch.macs * done, "finite": True}


def scores(contest: Contest, arch: Architecture, weights: dict, fold: str = "test") -> dict[str, float]:
    """{"metric", "loss"} on a fold."""
    found = evaluate(compile_architecture(arch, weights), contest.plan.data.folds[fold], contest.plan.recipe.loss)
    return {"metric": found[contest.metric], "loss": found["loss"]}


def trained(contest: Contest, arch: Architecture, path: tuple, work: float | None = None, most: float = math.inf) -> dict:
    """A row of the table: `arch` trained and tested."""
    weights, report = train(contest, arch, contest.fold, contest.work if work is None else work, path, most)
    return {**scores(contest, arch, weights), "params": arch.size, "macs": arch.macs, **report}
