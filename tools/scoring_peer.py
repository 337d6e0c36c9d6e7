"""The other side of bench_scoring.py: gromo (the library of the TINY authors) doing the corresponding work on the same shapes.

    PYTHON tools/scoring_peer.py '{"bench": "decision", "shape": {...}, "data": "rows.npz", ...}'

Runs in a Python that has gromo and torch; it neither imports dagrow nor is imported by it. Each request is answered by JSON
lines on stdout. `seconds` are CPU time with one thread, as on the other side.

decision: statistics over the rows in batches (forward, backward, update), then compute_optimal_updates of every layer that
can grow; a plain training step (Adam) of the same net on the same batch is what they are counted in. Convolutions can grow
only where the layer before is a convolution without a pooling between, so fewer places are scored than by dagrow.
`line_search`: the passes of gromo's own line_search over the rows, for one place.
search: a growth loop as in gromo's tutorial for GrowingMLP, and its training epochs again without growth.
memory: the resident and live memory of a training epoch or of a decision.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings

import numpy as np
import torch
from gromo.containers.growing_mlp import GrowingMLP
from gromo.containers.sequential_growing_container import SequentialGrowingModel
from gromo.modules.conv2d_growing_module import FullConv2dGrowingModule, RestrictedConv2dGrowingModule
from gromo.modules.growing_normalisation import GrowingBatchNorm2d
from gromo.modules.linear_growing_module import LinearGrowingModule
from gromo.utils.utils import line_search
from scoring_memory import FEW, figures
from torch import nn
from torch.nn import functional as F

warnings.filterwarnings("ignore")  # of pseudo-inverses
KINDS = {"restricted": RestrictedConv2dGrowingModule, "full": FullConv2dGrowingModule}
UNITS = 4


class ConvNet(SequentialGrowingModel):
    """Convolution, batch norm, relu, perhaps a pooling, and so on; global average pooling and a linear layer at the end."""

    def __init__(self, shape: dict, kind: str):
        super().__init__(in_features=shape["input"][0], out_features=shape["outputs"], device=torch.device("cpu"))
        self.blocks, self.pools, channels, before = nn.ModuleList(), [], shape["input"][0], None
        for number, (width, stride, pooled) in enumerate(shape["convs"]):
            block = KINDS[kind](
                channels, width, 3, stride=stride, padding=1, previous_module=before, allow_growing=before is not None,
                post_layer_function=nn.Sequential(GrowingBatchNorm2d(width), nn.ReLU()), name=f"conv{number}", device=torch.device("cpu"),
            )
            self.blocks.append(block)
            self.pools.append(pooled)
            if before is not None:
                self._growable_layers.append(block)
            channels, before = width, None if pooled else block
        self.head = LinearGrowingModule(channels, shape["outputs"], name="head", device=torch.device("cpu"))
        self.set_growing_layers(scheduling_method="all")

    def forward(self, x):
        for block, pooled in zip(self.blocks, self.pools, strict=True):
            x = block(x)
            x = F.max_pool2d(x, 2) if pooled else x
        return self.head(x.mean((2, 3)))


def network(shape: dict, kind: str) -> SequentialGrowingModel:
    torch.manual_seed(0)
    if "convs" in shape:
        return ConvNet(shape, kind)
    return GrowingMLP(
        shape["input"][0], shape["outputs"], shape["width"], shape["depth"], activation=nn.ReLU(), flatten=False, device=torch.device("cpu")
    )


def batches(x, y, size: int) -> list:
    return list(zip(x.split(size), y.split(size), strict=True))


def train(model: nn.Module, parts: list, rate: float = 1e-3) -> int:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for x, y in parts:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return len(parts)


def statistics_of(model, parts: list) -> None:
    """As gromo.utils.training_utils.compute_statistics does."""
    model.init_computation()
    model.eval()
    for x, y in parts:
        model.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()
        model.update_computation()


def solve(model) -> None:
    model.compute_optimal_updates(maximum_added_neurons=UNITS)


def decide(model, parts: list) -> None:
    statistics_of(model, parts)
    solve(model)


def amplitude(model, parts: list) -> tuple[float, int]:
    """(amplitude of the selected update by gromo's line search, passes over the rows it took)."""
    passes = 0

    def loss(factor: float) -> float:
        nonlocal passes
        passes += 1
        model.set_scaling_factor(factor)
        with torch.no_grad():
            return float(np.mean([F.cross_entropy(model.extended_forward(x), y).item() for x, y in parts]))

    return line_search(loss)[0], passes


def seconds(work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def decision(asked: dict, x, y) -> dict:
    """Medians over interleaved rounds, everything in plain training steps."""
    parts, kind = batches(x, y, asked["shape"]["batch"]), asked.get("kind", "restricted")
    model, rows = network(asked["shape"], kind), {"statistics": [], "solve": [], "line": []}
    steps, passes = len(parts), 0
    for number in range(asked["rounds"] + 1):
        step = seconds(lambda: [train(model, parts) for _ in range(asked["epochs"])]) / steps / asked["epochs"]
        taken = {"statistics": seconds(lambda: statistics_of(model, parts)), "solve": seconds(lambda: solve(model)), "line": 0.0}
        if asked.get("line"):
            model.select_update(0)
            begin = time.process_time()
            _, passes = amplitude(model, parts)
            taken["line"] = time.process_time() - begin
        for layer in model._growing_layers:
            layer.delete_update()
        model.reset_computation()
        if number:
            for name, value in taken.items():
                rows[name].append(value / step)
    middle = {name: statistics.median(values) for name, values in rows.items()}
    ratios = [(a + b) / steps for a, b in zip(rows["statistics"], rows["solve"], strict=True)]
    return {
        "kind": kind, "sites": len(model._growing_layers), "rows": len(x), "steps": steps, "per_batch": statistics.median(ratios),
        "lowest": min(ratios), "highest": max(ratios), "moments_per_batch": middle["statistics"] / steps, "solve_steps": middle["solve"],
        "line_steps": middle["line"] if asked.get("line") else None, "line_passes": passes or None,
        "decision_steps": middle["statistics"] + middle["solve"] + middle["line"], "step_ms": 1e3 * step, "rounds": asked["rounds"],
    }


def grow(model, parts: list) -> None:
    """One growth step: the best place, at most UNITS units there, at the amplitude of a line search."""
    decide(model, parts)
    model.select_best_update()
    layer = model.currently_updated_layer
    model.set_scaling_factor(amplitude(model, parts)[0])
    model.apply_change(extension_size=int(layer.eigenvalues_extension.shape[0]))
    model.reset_computation()


def search(asked: dict, x, y) -> dict:
    """Runs of a growth loop against the same epochs without growth; a growth step after each stretch of epochs but the last."""
    parts, epochs, ratios, shares, sizes = batches(x, y, asked["shape"]["batch"]), asked["epochs"], [], [], []
    for number in range(asked["rounds"] + 1):
        model, sizes, growing, begin = network(asked["shape"], ""), [], 0.0, time.process_time()
        for stretch, count in enumerate(epochs):
            for _ in range(count):
                train(model, parts)
                sizes.append(model.layers[0].out_features)
            if stretch + 1 < len(epochs):
                growing += seconds(lambda model=model: grow(model, parts))
        whole, again, plain = time.process_time() - begin, 0.0, None
        for before, width in zip([None, *sizes], sizes, strict=False):
            plain = network(asked["shape"] | {"width": width}, "") if width != before else plain
            again += seconds(lambda plain=plain: train(plain, parts))
        if number:
            ratios.append(whole / again)
            shares.append(growing / whole)
    return {
        "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "deciding": statistics.median(shares),
        "epochs": sum(epochs), "edits": len(epochs) - 1, "width": sizes[-1], "rounds": asked["rounds"],
    }


def memory(asked: dict, x, y) -> dict:
    parts, kind = batches(x, y, asked["shape"]["batch"]), asked.get("kind", "restricted")
    model = network(asked["shape"], kind)
    work = {"train": train, "decision": decide}[asked["work"]]
    work(model, [(x[:FEW], y[:FEW])])
    model.reset_computation()
    return {"kind": kind, **figures(lambda: work(model, parts))}


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked.get("threads", 1))
    held = np.load(asked["data"])
    x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["y"])
    print(json.dumps({"bench": asked["bench"], **{"decision": decision, "search": search, "memory": memory}[asked["bench"]](asked, x, y)}))


if __name__ == "__main__":
    main()
