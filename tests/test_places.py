"""Solves that look at some of a map's positions, against those that look at all."""

from __future__ import annotations

from dataclasses import replace

import torch
from seen_networks import LOSSES, close, evidence_for, fold_for, of, sites_of, weights_for

from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.measure import Evidence, Pass, features, flat, measure
from dagrow.measure.features import design
from dagrow.scores import REGISTRY
from dagrow.scores.valuer import value


def scorer(name: str):
    return REGISTRY.get(name)(REGISTRY.get(name).Options())


def wide(rows: int = 12) -> Evidence:
    """A convolutional network whose maps have more positions than a solve is given here."""
    nodes = {
        "x": of("input", shape=(2, 12, 12)), "c": of("conv2d", "x", channels=3, kernel=3), "a": of("tanh", "c"),
        "d": of("conv2d", "a", channels=4, kernel=3), "b": of("tanh", "d"), "g": of("global_avg_pool", "b"), "y": of("linear", "g", width=3),
    }  # fmt: skip
    return evidence_for(Architecture(nodes), rows=rows)


def some(seen: Pass, cells: int) -> Pass:
    return replace(seen, memo={"modules": seen.modules}, cells=cells)


def test_features_at_places_are_rows_of_the_features():
    seen = some(wide().train, 12 * 20)
    for node in ("c", "d"):
        places, x = seen.places(node), seen.values[seen.arch.nodes[node].inputs[0]]
        assert places.shape == (12, 20) and all(len(set(row)) == 20 and max(row) < 144 for row in places.tolist())
        whole = features(seen.arch.nodes[node], x)
        close(design(seen.arch.nodes[node], x, places), torch.stack([w[p] for w, p in zip(whole, places, strict=True)]), 1e-12)
    assert some(wide().train, 12 * 144).places("d") is None and wide().train.places("y") is None


def test_solves_on_some_places_come_near_those_on_all():
    whole = wide(rows=60).train
    part = some(whole, 60 * 48)
    for target in ("c", "d"):
        v, left, near = flat(whole.v[target], whole.arch.nodes[target]), whole.bottleneck(target), part.bottleneck(target)
        assert float((near - left).norm()) < 0.2 * float(left.norm()) and left.shape == near.shape == v.shape


def test_units_solved_on_some_places_gain_what_units_solved_on_all_gain():
    arch = wide(2).arch
    x = fold_for(arch, "classification", 300).x
    teacher = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.conv2d(x, teacher, padding=1).relu().mean((2, 3)).argmax(1)
    seen = measure(arch, weights_for(arch), Fold(x, y), Fold(x, y), LOSSES["classification"], rows=300, seed=0, path=()).train
    for _, _, site in sites_of(arch, "widen"):
        gains = []
        for one in (some(seen, 300 * 144), some(seen, 300 * 36)):
            evidence = Evidence(arch, seen.weights, one, one)
            gains.append(value(evidence, site, scorer("natural").propose(evidence, site, 2, (0,))).nats)
        assert gains[1] > 0.7 * gains[0] > 0, site.key
