#!/usr/bin/env python3
"""What one growth step costs on a large DAG, in training steps: the row on growth steps of BENCHMARKS.md.

    python tools/bench_dag.py [--nodes 2 5 10 20 50 100 200] [--rounds 5] [--profile] [--json] [--peer PYTHON]

A random DAG of n hidden nodes of width 8 on the flat digits: each node sums linear maps of 1 to 3 earlier ones and takes a
ReLU; what nothing reads is mapped to the 10 classes. It is trained for a few epochs. Then one whole growth step over all
places where units, layers and connections may be added: measure by a pass of its own over 1,024 rows, screen, score the
best sites, try the best few by real forwards as the greedy chooser does, rewrite, compile. It is divided by a plain
training step (batch 128, compiled network, AdamW). Medians; one thread; CPU time, which other processes disturb less.

--peer: beside gromo, where a Python that has it is named: the same number of hidden nodes in a GrowingGraphNetwork, one
growth step of its own (bench_dag_peer.py), in its own training steps. It takes long: --peer-nodes, --peer-limit.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import numpy
import torch

from dagrow import data, losses
from dagrow.compiler import compile_architecture, initialise, parameters_by_name, weights_of
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture, Node
from dagrow.measure import measure
from dagrow.measure.evidence import subsample
from dagrow.propose import Limits, Proposed, propose
from dagrow.scores import REGISTRY as SCORERS
from dagrow.select import REGISTRY as CHOOSERS
from dagrow.select import Done
from dagrow.train import Session, train_epoch
from dagrow.train.optimizers import REGISTRY as OPTIMIZERS
from dagrow.trials import Bench, Recipe

ROWS, BATCH, WIDTH = 1024, 128, 8
# A node that is not read yet is drawn first once there are so many of them: else a third of all would lead to the output only.
LOOSE = 8


def random_dag(nodes: int, seed: int = 0, width: int = WIDTH) -> Architecture:
    """The network above; its input is [64]."""
    draw, made, loose = random.Random(seed), ["x"], []
    found = {"x": Node.of("input", shape=(64,))}

    def summed(name: str, inputs: list[str], units: int) -> str:
        for k, i in enumerate(inputs):
            found[f"{name}.in{k}"] = Node.of("linear", i, width=units, bias=not k)
        if len(inputs) == 1:
            return f"{name}.in0"
        found[f"{name}.sum"] = Node.of("add", *(f"{name}.in{k}" for k in range(len(inputs))))
        return f"{name}.sum"

    for k in range(nodes):
        inputs = [draw.choice(loose)] if len(loose) >= LOOSE else []
        others = [n for n in made if n not in inputs]
        inputs += draw.sample(others, min(len(others), draw.randint(1, 3) - len(inputs)))
        last = summed(f"n{k}", inputs, width)
        found[f"n{k}.act"] = Node.of("relu", last)
        loose = [n for n in loose if n not in inputs] + [f"n{k}.act"]
        made.append(f"n{k}.act")
    summed("y", loose, 10)
    return Architecture(found)


class Stages:
    """Seconds of each stage, one round after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, began: float) -> float:
        now = time.process_time()
        self.seconds.setdefault(name, []).append(now - began)
        return now

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(s) for name, s in self.seconds.items()}


def renamed(arch: Architecture, number: int, *tensors: dict) -> list:
    """The network and its tensors under names of their own: nothing that an earlier round has worked out is known of it."""
    nodes = {f"r{number}.{n}": Node(v.op, tuple(f"r{number}.{i}" for i in v.inputs), v.attrs) for n, v in arch.nodes.items()}
    return [Architecture(nodes), *({f"r{number}.{n}": t for n, t in held.items()} for held in tensors)]


def growth_step(arch: Architecture, weights: dict, moments: dict, dataset: data.Dataset, recipe: Recipe, number: int, stages: Stages) -> Proposed:
    """One growth step; `number` makes its draws its own, as in a search."""
    arch, weights, *state = renamed(arch, number, weights, *moments.values())
    moments = dict(zip(moments, state, strict=True))
    compile_architecture(arch, weights)  # it has been trained
    path, loss = ("decide", number, 0), recipe.loss
    began = last = time.process_time()
    edits = [(EDITS.get(name), EDITS.get(name).Options()) for name in ("widen", "deepen", "connect")]
    scorer = SCORERS.get("natural")(SCORERS.get("natural").Options())
    evidence = measure(arch, weights, dataset.train, dataset.val, loss, rows=ROWS, seed=0, path=path)
    last = stages("measure", last)
    screening = scorer.screen

    def timed(*args):
        start = time.process_time()
        made = screening(*args)
        screens.append(time.process_time() - start)
        return made

    screens: list[float] = []
    scorer.screen = timed
    scored = propose(evidence, edits, scorer, Limits(), alpha=0.05, key=(0, *path))
    now = time.process_time()
    stages.seconds.setdefault("screen", []).append(sum(screens))
    stages.seconds.setdefault("match and score", []).append(now - last - sum(screens))
    last = now
    rows = subsample(dataset.train, ROWS, 0, *path, "rows")
    bench = Bench(arch, weights, moments, scored, recipe, Limits(), dataset.train, rows, dataset.val, 1e-3, 0, path)
    greedy, made, outcomes = CHOOSERS.get("greedy"), {}, []
    options = greedy.Options()
    while True:
        asked = greedy.ask(options, (0, number), {}, [s.candidate for s in scored[: scored.valued]], outcomes)
        if isinstance(asked, Done):
            break
        for trial in asked.trials:
            made[trial] = bench.make(trial)
            outcomes.append(made[trial].outcome)
    last = stages(f"try {len(outcomes)}", last)
    taken = made[asked.choice] if asked.choice else None
    if taken is not None:
        compile_architecture(taken.arch, taken.weights)
    stages("compile", last)
    stages("total", began)
    return scored


def training_step(arch: Architecture, weights: dict, fold, rounds: int) -> float:
    """Seconds of a plain step: the median of `rounds` medians of 30."""
    model, loss = compile_architecture(arch, weights), losses.get("cross_entropy")
    x, y, medians = fold.x[:BATCH], fold.y[:BATCH], []
    with Session(OPTIMIZERS.get("adamw"), None, parameters_by_name(model), None) as session:
        model.train()
        for _ in range(rounds + 1):
            seconds = []
            for _ in range(30):
                start = time.process_time()
                session.zero_grads()
                loss.mean(model(x), y).backward()
                session.step(1e-3)
                seconds.append(time.process_time() - start)
            medians.append(statistics.median(seconds))
    return statistics.median(medians[1:])


def measured(nodes: int, rounds: int, epochs: int, dataset: data.Dataset) -> dict:
    arch, loss = random_dag(nodes), losses.get("cross_entropy", "classification")
    recipe = Recipe(OPTIMIZERS.get("adamw"), OPTIMIZERS.get("adamw").Options(), loss, BATCH)
    model = compile_architecture(arch, initialise(arch, 0))
    with Session(recipe.optimizer, recipe.options, parameters_by_name(model), None) as session:
        for k in range(epochs):
            report = train_epoch(model, session, dataset.train, loss, batch=BATCH, rates=lambda _: 1e-3, seed=0, path=("epoch", k))
        moments = session.moments()
    weights, stages = weights_of(model), Stages()
    before = training_step(arch, weights, dataset.train, rounds)
    for number in range(rounds + 1):
        scored = growth_step(arch, weights, moments, dataset, recipe, number, stages)
        if not number:
            stages = Stages()  # the first warms up
    step = (before + training_step(arch, weights, dataset.train, rounds)) / 2
    total, shares = stages.seconds["total"], stages.medians()
    return {
        "nodes": nodes, "params": arch.size, "train_nats": report.nats, "sites": len(scored) - 1, "valued": scored.valued - 1,
        "signal": sum(s.candidate.verdict == "grow" for s in scored[: scored.valued]), "best": scored[1].candidate.key if len(scored) > 1 else "",
        "step_ms": 1e3 * step, "growth_ms": 1e3 * shares["total"], "steps": shares.pop("total") / step, "lowest": min(total) / step, "highest": max(total) / step,
        "stages": {name: s / step for name, s in shares.items()}, "rounds": rounds,
    }


def line(row: dict, profile: bool) -> str:
    if "peer" in row and "steps" not in row:
        return f"gromo: {row['peer']}"
    if "peer" in row:
        times = f"({row['growth_ms']:,.0f} ms / {row['step_ms']:.2f} ms)"
        return f"gromo: n = {row['nodes']:>3}: {row['steps']:,.0f} of its training steps  {times}  {row['sites']} sites"
    text = (
        f"n = {row['nodes']:>3}: {row['steps']:.1f} training steps [{row['lowest']:.1f}, {row['highest']:.1f}]  "
        f"({row['growth_ms']:.0f} ms / {row['step_ms']:.2f} ms)  {row['sites']} candidates, {row['valued']} scored in full, {row['signal']} signal"
    )
    return text + ("\n         " + ", ".join(f"{name} {s:.1f}" for name, s in row["stages"].items()) if profile else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 5, 10, 20, 50, 100, 200])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 (default 5), after one that warms up")
    parser.add_argument("--epochs", type=int, default=5, help="trained before the growth step")
    parser.add_argument("--profile", action="store_true", help="training steps that each stage takes")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has gromo")
    parser.add_argument("--peer-nodes", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--peer-limit", type=float, default=300, help="seconds for each number of nodes")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("at least 5 rounds")
    torch.set_num_threads(1)
    raw = data.load("digits", {}, {"test": 0.25, "val": 0.15})
    dataset = raw.reshaped((64,))
    rows = (measured(n, options.rounds, options.epochs, dataset) for n in options.nodes)
    peers = (peer(options.peer, n, options.peer_limit, dataset) for n in (options.peer_nodes if options.peer else ()))
    for row in chain(rows, peers):
        print(json.dumps(row) if options.json else line(row, options.profile))
        sys.stdout.flush()


def peer(python: str, nodes: int, limit: float, dataset: data.Dataset) -> dict:
    """gromo's figures for `nodes` hidden nodes, from a process of its own."""
    script = Path(__file__).resolve().parent / "bench_dag_peer.py"
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        numpy.savez(rows, x=dataset.train.x, y=dataset.train.y, held_x=dataset.val.x, held_y=dataset.val.y)
        try:
            done = subprocess.run([python, str(script), str(nodes), str(rows)], capture_output=True, text=True, timeout=limit, check=True)
        except subprocess.TimeoutExpired:
            return {"peer": f"n = {nodes}: more than {limit:.0f} s", "nodes": nodes}
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            return {"peer": f"n = {nodes}: failed: {said[-1] if said else error}", "nodes": nodes}
    return {"peer": "gromo", **json.loads(done.stdout.splitlines()[-1])}


if __name__ == "__main__":
    main()
