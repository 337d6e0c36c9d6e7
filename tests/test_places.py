"""Solves that look at some of a map's positions, against those that look at all."""

from __future__ import annotations

from dataclasses import replace

import torch
from seen_networks import close, evidence_for, of, sites_of

from dagrow.graph import Architecture
from dagrow.measure import Evidence, Pass, features, flat
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
        v, left, near = flat(whole.v[target]), whole.bottleneck(target), part.bottleneck(target)
        assert float((near - left).norm()) < 0.2 * float(left.norm()) and left.shape == near.shape == v.shape
    evidence = Evidence(whole.arch, whole.weights, whole, whole)
    few = Evidence(whole.arch, whole.weights, part, part)
    for _, _, site in sites_of(whole.arch, "widen"):
        one, two = (value(e, site, scorer("natural").propose(e, site, 2, (0,))) for e in (evidence, few))
        assert two.nats > 0.8 * one.nats
