"""Several targets of the same new units: the curvature of all of them at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from seen_networks import NETWORKS, close, evidence_for, of, sites_of

from dagrow.graph import Architecture
from dagrow.measure.parents import parents
from dagrow.scores import REGISTRY
from dagrow.scores import units as module
from dagrow.scores.balance import balanced
from dagrow.scores.valuer import quadratic

COUPLED = {
    "residual": NETWORKS["residual"],
    "dense": Architecture({
        "x": of("input", shape=(4,)), "s": of("linear", "x", width=3), "a": of("relu", "s"), "m": of("linear", "a", width=3), "b": of("tanh", "m"),
        "cat": of("concat", "a", "b"), "y": of("linear", "cat", width=3),
    }),
    "maps": Architecture({
        "x": of("input", shape=(2, 5, 5)), "s": of("conv2d", "x", channels=3, kernel=3), "a": of("relu", "s"), "m": of("conv2d", "a", channels=3, kernel=3),
        "t": of("add", "s", "m"), "c": of("tanh", "t"), "g": of("global_avg_pool", "c"), "y": of("linear", "g", width=3),
    }),
}  # fmt: skip
NATURAL = REGISTRY.get("natural")


def coupled(name: str, monkeypatch):
    """(evidence, site, the proposal with every target solved for alone, the same balanced) of sites with targets in several sums."""
    evidence = evidence_for(COUPLED[name], rows=200)
    monkeypatch.setattr(module, "balanced", lambda form, seen, proposal: proposal)
    for _, _, site in sites_of(COUPLED[name], "widen"):
        if len({parents(evidence.arch, t) for t in site.form.targets}) > 1:
            alone = NATURAL(NATURAL.Options()).propose(evidence, site, 2, (0,))
            yield evidence, site, alone, balanced(site.form, evidence.train, alone)


@pytest.mark.parametrize("name", list(COUPLED))
def test_no_other_proportion_between_the_targets_gains_more(name, monkeypatch):
    tried = 0
    for evidence, site, alone, both in coupled(name, monkeypatch):
        best = quadratic(evidence, site, both).nats
        assert best >= quadratic(evidence, site, alone).nats * (1 - 1e-3) > 0
        for reader in site.form.readers:
            group = parents(evidence.arch, reader)
            for factor in (0.0, 0.7, 1.4):
                blocks = tuple(replace(b, values=b.values * factor) if b.param == f"{reader}.weight" and b.axis == 1 else b for b in both.blocks)
                shift = {n: x * factor if n.rpartition(".")[0] in group else x for n, x in both.shift.items()}
                assert quadratic(evidence, site, replace(both, blocks=blocks, shift=shift)).nats <= best * (1 + 1e-3)
        tried += 1
    assert tried


def test_one_target_is_left_as_it_is(monkeypatch):
    evidence = evidence_for(NETWORKS["mlp"])
    for _, _, site in sites_of(NETWORKS["mlp"], "widen"):
        alone = NATURAL(NATURAL.Options()).propose(evidence, site, 2, (0,))
        assert balanced(site.form, evidence.train, alone) is alone


def test_only_proportions_are_said(monkeypatch):
    """The largest share is 1: how far all of it goes is the valuer's to say."""
    for _, site, alone, both in coupled("residual", monkeypatch):
        ratios = []
        for a, b in zip(alone.blocks, both.blocks, strict=True):
            if (a.param, a.axis) in site.form.outgoing:
                ratio = b.values / a.values
                close(ratio, ratio.flatten()[0].expand_as(ratio), 1e-9)
                ratios.append(float(ratio.flatten()[0]))
            else:
                assert torch.equal(a.values, b.values)
        assert max(map(abs, ratios)) == pytest.approx(1) and len(ratios) > 1
