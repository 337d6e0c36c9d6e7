"""The small networks of known training length on which scores are held against the truth: a library, no script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dagrow import data, losses
from dagrow.compiler import initialise
from dagrow.data import Dataset, Fold
from dagrow.graph import Architecture, Node
from dagrow.losses import Loss
from dagrow.rng import stream
from dagrow.train import Moments
from dagrow.train.epoch import steps_per_epoch
from dagrow.train.optimizers.adamw import AdamW
from dagrow.trials import Recipe

STAGES = {"early": 50, "middle": 300, "converged": 3000}  # optimizer steps
RATE, BATCH = 3e-3, 64


@dataclass(frozen=True)
class Stage:
    """A network after some optimizer steps, and the folds it was trained on and is measured on."""

    arch: Architecture
    weights: dict[str, Tensor]
    moments: Moments
    recipe: Recipe
    train: Fold
    val: Fold
    test: Fold
    loss: Loss
    seed: int


def _mlp() -> Architecture:
    nodes, last = {"x": Node.of("input", shape=(64,))}, "x"
    for k in (1, 2, 3):
        nodes |= {f"h{k}": Node.of("linear", last, width=8), f"a{k}": Node.of("relu", f"h{k}")}
        last = f"a{k}"
    return Architecture({**nodes, "y": Node.of("linear", last, width=10)})


def _conv() -> Architecture:
    nodes, last = {"x": Node.of("input", shape=(1, 8, 8))}, "x"
    for name, channels, stride in (("stem", 4, 1), ("body", 8, 2), ("tail", 8, 1)):
        nodes |= {
            f"{name}.conv": Node.of("conv2d", last, channels=channels, kernel=3, stride=stride),
            f"{name}.norm": Node.of("batchnorm", f"{name}.conv"), f"{name}.out": Node.of("relu", f"{name}.norm"),
        }
        last = f"{name}.out"
    return Architecture({**nodes, "pool": Node.of("global_avg_pool", last), "head": Node.of("linear", "pool", width=10)})


def _regression() -> Architecture:
    return Architecture({
        "x": Node.of("input", shape=(10,)), "h1": Node.of("linear", "x", width=8), "a1": Node.of("tanh", "h1"),
        "h2": Node.of("linear", "a1", width=8), "a2": Node.of("tanh", "h2"), "y": Node.of("linear", "a2", width=1),
    })  # fmt: skip


def _digits(normalise: str) -> Callable[[int], Dataset]:
    return lambda seed: data.load("digits", split={"random_state": seed}, normalise=normalise)


def _friedman(seed: int) -> Dataset:
    return data.load("friedman1", {"n": 1000, "random_state": seed}, {"random_state": seed})


# name -> (the architecture, its data by the seed, which draws the split too)
NETS: dict[str, tuple[Callable[[], Architecture], Callable[[int], Dataset]]] = {
    "mlp": (_mlp, _digits("per_feature")), "conv": (_conv, _digits("per_channel")), "regression": (_regression, _friedman),
}


def trained(name: str, seed: int, steps: int, permuted: bool = False) -> Stage:
    """The network `name` after `steps` optimizer steps of AdamW at a constant rate.

    The seed draws initial values, batches and split (and the rows where the data are made up). permuted: the targets of
    every fold are dealt out anew among its rows, before training: nothing that can be learnt holds on other rows.
    """
    make, load = NETS[name]
    arch = make()
    loaded = load(seed).reshaped(arch.shapes[arch.inputs[0]])
    folds = {n: _dealt(fold, seed, n) if permuted else fold for n, fold in loaded.folds.items()}
    recipe = Recipe(AdamW, AdamW.Options(lr=RATE), losses.get("auto", loaded.task), BATCH)
    stage = Stage(arch, initialise(arch, seed), {}, recipe, **folds, loss=recipe.loss, seed=seed)
    weights, moments = more(stage, stage.weights, stage.moments, arch, steps, ("truth", "seed net"))
    return Stage(arch, weights, moments, recipe, **folds, loss=recipe.loss, seed=seed)


def more(
    stage: Stage, weights: dict[str, Tensor], moments: Moments, arch: Architecture, steps: int, path: tuple[int | str, ...]
) -> tuple[dict[str, Tensor], Moments]:
    """(weights, moments) after exactly `steps` more steps on the stage's training rows, by its recipe; batches go by `path`."""
    rows, batch = len(stage.train), stage.recipe.batch
    whole = steps_per_epoch(rows, batch)
    number = 0
    while steps:
        fold, take = stage.train, min(steps, whole)
        if take < whole:
            chosen = torch.randperm(rows, generator=stream(stage.seed, *path, "rest"))[: take * batch]
            fold = Fold(fold.x[chosen], fold.y[chosen])
        weights, moments, report = stage.recipe.epoch(arch, weights, moments, fold, lambda _: RATE, stage.seed, (*path, number))
        if report.steps != take or not report.finite:
            raise RuntimeError(f"{report.steps} steps of {take}, finite: {report.finite}")
        steps, number = steps - take, number + 1
    return weights, moments


def _dealt(fold: Fold, seed: int, name: str) -> Fold:
    order = torch.randperm(len(fold), generator=stream(seed, "truth", "permuted", name))
    return Fold(fold.x, fold.y[order])
