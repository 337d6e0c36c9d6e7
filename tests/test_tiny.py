"""TINY against what it claims: the best low-rank fit to the bottleneck, worth the sum of lambda^2 where activations are linear."""

from __future__ import annotations

import pytest
import torch
from seen_networks import close, evidence_for, of, sites_of
from torch import Tensor

from dagrow.graph import Architecture
from dagrow.measure import features
from dagrow.scores.tiny import Tiny
from dagrow.scores.valuer import slopes

TINY = Tiny(Tiny.Options(rank=1e-12))
LINEAR = {
    "chain": Architecture({"x": of("input", shape=(5,)), "h": of("linear", "x", width=3), "y": of("linear", "h", width=3)}),
    "two readers": Architecture({
        "x": of("input", shape=(5,)), "h": of("linear", "x", width=2), "a": of("linear", "h", width=4), "s": of("tanh", "a"),
        "z": of("linear", "s", width=3), "b": of("linear", "h", width=3), "y": of("add", "z", "b"),
    }),
    "conv": Architecture({
        "x": of("input", shape=(2, 5, 5)), "c": of("conv2d", "x", channels=2, kernel=3), "d": of("conv2d", "c", channels=3, kernel=3, stride=2),
        "f": of("flatten", "d"), "y": of("linear", "f", width=3),
    }),
}  # fmt: skip


def cases(kind: str):
    for arch in LINEAR.values():
        evidence = evidence_for(arch, rows=60)
        for _, _, site in sites_of(arch, kind):
            yield evidence, site


@pytest.mark.parametrize("kind", ["widen", "connect"])
@pytest.mark.parametrize("units", [1, 2])
def test_the_slope_is_the_sum_of_squared_singular_values(kind, units):
    found = 0
    for evidence, site in cases(kind):
        proposal = TINY.propose(evidence, site, units, (0,))
        s, _ = slopes(evidence.train, site, proposal)
        close(s.mean(), TINY.predicted(evidence, site, units), 1e-10)
        found += float(s.mean()) > 1e-6
    assert found


def reduced_rank(x: Tensor, v: Tensor, rank: int, seed: int) -> float:
    """The least E|v - x A B|^2 with A of `rank` columns, by alternating least squares from a random start."""
    a = torch.randn(x.shape[1], rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(500):
        b = torch.linalg.lstsq(x @ a, v).solution
        a = torch.linalg.pinv(x) @ v @ torch.linalg.pinv(b)
    b = torch.linalg.lstsq(x @ a, v).solution
    return float((v - x @ a @ b).square().sum() / len(x))


@pytest.mark.parametrize("units", [1, 2])
def test_no_fit_to_the_bottleneck_of_that_rank_is_closer(units):
    arch = Architecture({**dict(LINEAR["chain"].nodes), "t": of("tanh", "h"), "y": of("linear", "t", width=3)})
    evidence = evidence_for(arch, rows=60)
    (site,) = (s for _, _, s in sites_of(arch, "widen"))
    seen = evidence.train
    v = seen.bottleneck("y").flatten(0, 1)
    x = torch.cat([features(arch.nodes["h"], seen.values["x"]).flatten(0, 1), torch.ones(60, 1, dtype=torch.float64)], 1)
    left = float(v.square().sum() / 60) - TINY.predicted(evidence, site, units)
    close(min(reduced_rank(x, v, units, seed) for seed in range(3)), left, 1e-8)
    blocks = {(b.param, b.axis): b.values for b in TINY.propose(evidence, site, units, (0,)).blocks}
    made = x @ torch.cat([blocks["h.weight", 0], blocks["h.bias", 0][:, None]], 1).T @ blocks["y.weight", 1].T
    close((v - made).square().sum() / 60, left, 1e-10)
    # Neither side of a pair is larger than the other: |alpha|_S = |omega| = sqrt(lambda).
    close(blocks["y.weight", 1].square().sum(0), (made @ torch.linalg.pinv(blocks["y.weight", 1]).T).square().mean(0), 1e-9)


def test_a_connection_is_the_least_squares_map():
    """Over positions, where there are several: as many times, because moments are sums over them."""
    for evidence, site in cases("connect"):
        form, seen = site.form, evidence.train
        x = features(form.frame.nodes[form.node], seen.values[form.source]).flatten(0, 1)
        v = seen.bottleneck(form.target).flatten(0, 1)
        positions = len(x) // seen.rows
        (block,) = TINY.propose(evidence, site, 1, (0,)).blocks
        close(block.values.flatten(1).T, torch.linalg.lstsq(x, v, driver="gelsd").solution * positions, 1e-8)
