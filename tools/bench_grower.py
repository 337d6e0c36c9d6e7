#!/usr/bin/env python3
"""Growth in the user's own loop: what newborns get, and continual learning.

    newborns    digits 64-16-16-10 under torch.optim.Adam, 8 units more after some epochs: the ratio of newborn entries' gradients, and of
                their updates, to the incumbents' in the same tensors, by what the newborns' second moment starts from
    continual   permuted digits (pixels and labels), 64-32-32-10, batches of 16, one pass over each task: accuracy before each
                update, over the first ten tasks and the last ten, and the share of dead units
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dagrow.grower import Grower, carrying

FILLS = ("zero", "mean", "measured")


class Net(nn.Module):
    """Three layers in plain PyTorch."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def _fill_of(kind: str):
    """What newborns' second moment starts from: `carrying._fill`, or less."""
    true = carrying._fill
    if kind == "measured":
        return true
    if kind == "mean":
        return lambda state, born, squares: true(state, born, None)
    return lambda state, born, squares: None


def newborns(kind: str, layer: str, before: int, seed: int) -> dict:
    """One run: ratios at 1, 10 and 50 steps after the edit, and the training loss 300 steps after."""
    torch.manual_seed(seed)
    x, y = digits()
    order = torch.randperm(len(x))
    train, held = order[:1347], order[1347:]
    model = Net(16)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    batches = torch.Generator().manual_seed(seed)

    def step() -> None:
        rows = train[torch.randint(len(train), (64,), generator=batches)]
        adam.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        adam.step()

    for _ in range(before):
        step()
    true, carrying._fill = carrying._fill, _fill_of(kind)
    try:
        grower = Grower(model, adam, x[:2], edits=[{"widen": {"where": layer, "units": 8}}], seed=seed, score={"alpha": 0.9})
        decision = grower.grow((x[train], y[train]), functional.cross_entropy, (x[held], y[held]))
    finally:
        carrying._fill = true
    row = {"fill": kind, "layer": layer, "before": before, "seed": seed, "changed": decision.changed}
    after = {"first": "second", "second": "last"}[layer]
    parts = [(f"{layer}.weight", 0), (f"{layer}.bias", 0), (f"{after}.weight", 1)]
    for k in range(1, 301):
        named = dict(model.named_parameters())
        old = {n: named[n].detach().clone() for n, _ in parts}
        step()
        if k in (1, 10, 50) and decision.changed:
            for what, of in (("gradient", {n: named[n].grad for n, _ in parts}), ("update", {n: named[n].detach() - old[n] for n, _ in parts})):
                row[f"{what} {k}"] = _ratio(of, parts)
    with torch.no_grad():
        row["loss 300"] = float(functional.cross_entropy(model(x[train]), y[train]))
    return row


def _ratio(of: dict, parts: list[tuple[str, int]]) -> float:
    """Root mean square of newborn entries over that of the incumbents, the mean over tensors in the logarithm."""
    logs = []
    for name, axis in parts:
        old, new = of[name].split([16, of[name].shape[axis] - 16], axis)
        logs.append(float((new.square().mean().sqrt() / old.square().mean().sqrt().clamp(min=1e-30)).log()))
    return float(torch.tensor(logs).mean().exp())


def continual(kind: str, tasks: int, seed: int, every: int = 56, units: tuple[int, ...] = (2, 4, 8)) -> dict:
    """Online accuracy over permuted tasks: sgd, adam, or grow: sgd with growth and pruning within 1.1 times the parameters."""
    torch.manual_seed(seed)
    x, y = digits()
    model, start = Net(32), time.perf_counter()
    size = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3) if kind.startswith("adam") else torch.optim.SGD(model.parameters(), 0.03)
    grower = None
    if kind.endswith("grow"):
        grower = Grower(
            model, optimizer, x[:2], edits=[{"widen": {"units": units}}, {"prune": {"units": units, "min": 8}}], budget={"params": int(1.1 * size)},
            every=every, score={"rows": 384}, seed=seed,
        )
    accuracy = []
    for task in range(tasks):
        pixels, labels = torch.randperm(64), torch.randperm(10)
        order, right = torch.randperm(len(x)), 0
        for rows in order[:1792].split(16):
            given, wanted = x[rows][:, pixels], labels[y[rows]]
            optimizer.zero_grad()
            out = model(given)
            right += int((out.argmax(1) == wanted).sum())
            loss = functional.cross_entropy(out, wanted)
            if grower is None:
                loss.backward()
                optimizer.step()
            else:
                grower.step(loss)
        accuracy.append(100 * right / 1792)
    with torch.no_grad():
        first = torch.relu(model.first(x[:, pixels]))
        second = torch.relu(model.second(first))
    dead = torch.cat([(h > 0).float().mean(0) < 0.01 for h in (first, second)]).float().mean()
    return {
        "kind": kind, "seed": seed, "tasks": tasks, "first": statistics.mean(accuracy[:10]), "last": statistics.mean(accuracy[-10:]), "dead": 100 * float(dead),
        "params": sum(p.numel() for p in model.parameters()), "start": size, "edits": grower.steps if grower else 0, "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["newborns", "continual"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--kinds", nargs="*", default=["sgd", "sgd-grow", "adam", "adam-grow"])
    parser.add_argument("--json", action="store_true", help="one object per line and nothing else")
    given = parser.parse_args()
    if given.what == "newborns":
        rows = [newborns(k, layer, b, s) for k in FILLS for layer in ("first", "second") for b in (100, 600) for s in range(given.seeds)]
    else:
        rows = [continual(k, given.tasks, s) for k in given.kinds for s in range(given.seeds)]
    if given.json:
        for row in rows:
            print(json.dumps(row))
        return
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row.get("kind") or f"{row['fill']}, {row['layer']} after {row['before']}", []).append(row)
    for name, found in groups.items():
        numbers = [k for k, v in found[0].items() if isinstance(v, float | int) and k not in ("seed", "before", "tasks")]
        print(f"{name:26s}", "  ".join(f"{k} {statistics.median(r[k] for r in found if k in r):.3g}" for k in numbers))


if __name__ == "__main__":
    main()
