"""The screen: what it says of one site against the textbook formula, and what becomes of the sites it leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from seen_networks import LOSSES, NETWORKS, RANDOM, evidence_for, fold_for, of, sites_of, weights_for

from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture
from dagrow.measure import measure
from dagrow.measure.parents import parents
from dagrow.measure import flat
from dagrow.propose import Limits, places, propose
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores.screen import FLOOR, RIDGE, linear_shares, screen

NATURAL = SCORERS.get("natural")(SCORERS.get("natural").Options(starts=2, steps=2))
VECTORS = ("mlp", "residual", "shared")


def wide(layers: int = 5) -> Architecture:
    """Enough places that most are screened out."""
    nodes, made = {"x": of("input", shape=(6,))}, ["x"]
    for k in range(layers):
        nodes[f"l{k}"] = of("linear", made[-1], width=5)
        nodes[f"a{k}"] = of("tanh", f"l{k}")
        made.append(f"a{k}")
    return Architecture({**nodes, "y": of("linear", made[-1], width=3)})


def listed(*kinds: str, **options):
    return [(EDITS.get(k), EDITS.get(k).Options(**options)) for k in kinds]


def missing(seen, target):
    """(v-perp E^-1/2 [rows, units]) from scratch, in double precision."""
    x = torch.cat([seen.values[seen.arch.nodes[p].inputs[0]].double() for p in parents(seen.arch, target)] + [torch.ones(seen.rows, 1)], 1)
    v, probe = (flat(g[target], seen.arch.nodes[target]).double().flatten(0, 1) for g in (seen.v, seen.probe))
    free = v - x @ torch.linalg.lstsq(x, v, driver="gelsd").solution
    values, vectors = torch.linalg.eigh(probe.T @ probe / seen.rows)
    return free @ (vectors * (values + RIDGE * values[-1]) ** -0.5) @ vectors.T


def whitened(x, ridge):
    x = x.double() - x.double().mean(0)
    gram = x.T @ x / len(x)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(gram + ridge * torch.linalg.eigvalsh(gram)[-1] * torch.eye(len(gram))), x.T, upper=False).T


def new_part(seen, x, target):
    """The share of each column's energy that the target's parents cannot make."""
    own = torch.cat([seen.values[seen.arch.nodes[p].inputs[0]].double() for p in parents(seen.arch, target)], 1)
    own = own - own.mean(0)
    left = x - own @ torch.linalg.lstsq(own, x, driver="gelsd").solution
    return (left.square().mean(0) / x.square().mean(0)).clamp(min=FLOOR)


def by_hand(seen, sources, targets, ridge, together=False):
    """Squared singular values of the moment of sources whitened one by one (and then together), and the part of their sum that every row makes with itself."""
    x = torch.cat([whitened(seen.values[s], ridge) for s in sources], 1)
    x = whitened(x, ridge) if together else x / new_part(seen, x, targets[0]).sqrt()
    t = torch.cat([missing(seen, target) for target in targets], 1)
    chance = float((x.square().sum(1) * t.square().sum(1)).sum()) / seen.rows**2
    return torch.linalg.svdvals(x.T @ t / seen.rows).square(), chance


@pytest.mark.parametrize("name", VECTORS)
def test_a_connection_is_worth_half_its_natural_gradient_squared(name):
    evidence = evidence_for(NETWORKS[name], rows=200)
    (at,) = places(evidence.arch, listed("connect"))
    found = screen(evidence, at.sites, 1e-2)
    assert len(found) == len(at.sites) > 0
    for site, gain in zip(at.sites, found, strict=True):
        squares, chance = by_hand(evidence.train, [site.form.source], [site.form.target], 1e-2)
        assert gain == pytest.approx(max(float(squares.sum()) - chance, 0.0) / 2, rel=0.02, abs=1e-4), site.key


@pytest.mark.parametrize("units", [1, 2, 3])
def test_new_units_of_an_axis_are_worth_what_so_many_directions_are(units):
    evidence = evidence_for(NETWORKS["residual"], rows=200)
    (at,) = places(evidence.arch, listed("widen", units=units))
    for site, gain in zip(at.sites, screen(evidence, at.sites, 1e-2), strict=True):
        acts = [site.form.frame.nodes[n] for n in site.form.path if site.form.frame.nodes[n].rule.role == "activation"]
        firsts = dict.fromkeys(evidence.arch.meeting[t][0] for t in site.form.targets)
        squares, chance = by_hand(evidence.train, dict.fromkeys(site.form.sources), firsts, 1e-2, together=True)
        shrink = max(0.0, 1 - chance / float(squares.sum())) / 2
        expected = max(share * float(squares[: math.ceil(units / each)].sum()) for each, share in min(map(linear_shares, acts))) * shrink
        assert gain == pytest.approx(expected, rel=1e-3, abs=1e-6), site.key


def test_linear_shares_are_those_of_the_textbook():
    ((one, half), (two, whole)) = linear_shares(of("relu", "x"))
    assert (one, two) == (1, 2) and half == pytest.approx(0.5, abs=1e-6) and whole == pytest.approx(1.0, abs=1e-9)
    ((_, same), (_, again)) = linear_shares(of("tanh", "x"))
    assert same == pytest.approx(again, rel=1e-9) and 0.9 < same < 1


def test_a_layer_beside_a_linear_map_is_worth_its_even_part():
    """|x| cannot be made linearly, noise not at all: the one site stands out for the one and not for the other."""
    arch = Architecture({"x": of("input", shape=(4,)), "y": of("linear", "x", width=2)})
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = torch.randn(600, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gains = {}
    for name, y in (("bent", x[:, :2].abs() + 0.3 * noise), ("noise", noise)):
        solved = torch.linalg.lstsq(torch.cat([x, torch.ones(600, 1)], 1), y).solution
        weights = weights_for(arch) | {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}
        evidence = measure(arch, weights, Fold(x, y), Fold(x, y), LOSSES["regression"], rows=999, seed=0, path=())
        (at,) = places(arch, listed("deepen", units=4))
        (gains[name],) = screen(evidence, at.sites, 1e-2)
    assert gains["bent"] > 0.1 > 10 * gains["noise"]


def test_maps_and_readers_in_groups_are_left_to_the_scorer():
    for name in ("conv", "depthwise", "grouped"):
        evidence = evidence_for(NETWORKS[name], rows=40)
        for at in places(evidence.arch, listed("widen", "deepen", "connect")):
            for site, gain in zip(at.sites, screen(evidence, at.sites, 1e-2) if len(at.sites) else (), strict=True):
                if site.form.trial:
                    assert math.isnan(gain)
                    continue
                targets = site.form.targets if hasattr(site.form, "targets") else (site.form.target,)
                assert math.isnan(gain) or all(len(evidence.arch.shapes[t]) == 1 for t in targets)
                assert not math.isnan(gain) or name != "mlp"


def test_a_dead_source_and_a_dead_target_gain_nothing():
    arch = wide()
    weights = weights_for(arch)
    weights["l1.weight"], weights["l1.bias"] = torch.zeros_like(weights["l1.weight"]), torch.zeros_like(weights["l1.bias"])
    weights["l3.weight"] = torch.zeros_like(weights["l3.weight"])  # nothing before it has a gradient
    evidence = evidence_for(arch, weights=weights)
    for at in places(arch, listed("widen", "deepen", "connect")):
        gains = screen(evidence, at.sites, 1e-2)
        assert np.isfinite(gains).all()
        for site, gain in zip(at.sites, gains, strict=True):
            if site.where.startswith("a1 -> ") or site.where.endswith((" -> l0", " -> l1", " -> l2")):
                assert gain == 0, site.key


def test_the_blocks_of_the_product_do_not_matter(monkeypatch):
    evidence = evidence_for(wide(), rows=60)
    (at,) = places(evidence.arch, listed("connect"))
    whole = screen(evidence, at.sites, 1e-2)
    monkeypatch.setattr("dagrow.scores.screen.BLOCK", 1)
    evidence.memo.clear()
    np.testing.assert_allclose(screen(evidence, at.sites, 1e-2), whole, rtol=1e-4, atol=1e-7)


def test_only_the_best_are_scored_in_full_and_the_rest_stand_behind():
    evidence = evidence_for(wide(), rows=100)
    edits = listed("widen", "deepen", "connect", "prune")
    full = propose(evidence, edits, NATURAL, Limits(), alpha=0.05, key=(0,), refine=10**6)
    found = propose(evidence, edits, NATURAL, Limits(), alpha=0.05, key=(0,), refine=5)
    growing = [s for s in found[1 : found.valued] if s.candidate.verdict != "shrink"]
    assert found.tested == len(growing) == 5 and full.tested == len(full) - 1 - 5 > 30
    assert {s.candidate.key for s in found} == {s.candidate.key for s in full} and len(found) == len(full)
    left = found[found.valued :]
    assert all(s.reason == "screened" and s.candidate.verdict == "noise" and s.part is None for s in left)
    assert [s.candidate.index for s in found] == list(range(len(found)))
    gains = [s.candidate.gain for s in left]
    assert gains == sorted(gains, reverse=True)
    # Scored in full are those of which most is expected, with the same result as without a screen, and prices are exact.
    alone = {s.candidate.key: s.candidate for s in full}
    for s in growing:
        assert s.candidate.gain == alone[s.candidate.key].gain
    for s in left:
        assert (s.candidate.params, s.candidate.macs) == (alone[s.candidate.key].params, alone[s.candidate.key].macs)
    expected = {site.key: g for at in places(evidence.arch, edits[:3]) for site, g in zip(at.sites, NATURAL.screen(evidence, at.sites), strict=True)}
    ranked = sorted(expected, key=expected.__getitem__, reverse=True)
    # Five places for three edits: five times a sixth is none sure for each, so the best of all.
    assert {s.candidate.key for s in growing} == set(ranked[:5])
    found = propose(evidence, edits, NATURAL, Limits(), alpha=0.05, key=(0,), refine=12)
    full = {s.candidate.key for s in found[1 : found.valued] if s.candidate.verdict != "shrink"}
    assert len(full) == 12
    for kind in ("widen", "deepen", "connect"):
        assert {k for k in ranked if k.startswith(kind)} & full >= set([k for k in ranked if k.startswith(kind)][:2])


def test_few_sites_and_scorers_without_a_screen_are_scored_in_full():
    evidence = evidence_for(wide(), rows=40)
    for scorer, refine in ((NATURAL, 999), (RANDOM, 3)):
        found = propose(evidence, listed("connect"), scorer, Limits(), alpha=0.05, key=(0,), refine=refine)
        assert found.valued == len(found) > 5 and not any(s.reason == "screened" for s in found)


def test_only_some_sites():
    evidence = evidence_for(wide(), rows=40)
    edits = listed("widen", "deepen", "connect")
    keys = frozenset({"widen l1", "connect x -> l2", "deepen a0 -> y", "connect nowhere -> l2"})
    found = propose(evidence, edits, NATURAL, Limits(), alpha=0.05, key=(0,), only=keys)
    assert {s.candidate.key for s in found[1:]} == keys - {"connect nowhere -> l2"} and found.tested == 3
    found = propose(evidence, edits, NATURAL, Limits(), alpha=0.05, key=(0,), only=keys, banned=frozenset({"widen l1"}))
    assert {s.candidate.key for s in found[1:]} == {"connect x -> l2", "deepen a0 -> y"}
    assert len(propose(evidence, edits, NATURAL, Limits(), alpha=0.05, key=(0,), only=frozenset())) == 1


def test_what_does_not_fit_is_not_among_the_best():
    arch = wide()
    evidence = evidence_for(arch, rows=60)
    limits = Limits(arch.size + 26, None)
    found = propose(evidence, listed("widen", "deepen", "connect"), NATURAL, limits, alpha=0.05, key=(0,), refine=5)
    for s in found[1:]:
        assert (s.candidate.verdict == "too dear") == (s.candidate.params > 26), s.candidate
    assert found.tested == 5 and found.valued < len(found)


def test_an_edit_listed_twice_offers_a_site_once_in_bulk_too():
    arch = wide()
    twice = [(EDITS.get("connect"), EDITS.get("connect").Options(where=w)) for w in ("l*", "**")]
    keys = [site.key for at in places(arch, twice) for site in at]
    assert len(keys) == len(set(keys)) and set(keys) == {s.key for _, _, s in sites_of(arch, "connect")}


def test_folds_are_not_looked_at_to_choose():
    """The held-out rows decide what is signal: the screen may not see them."""
    arch = wide()
    one, two = (evidence_for(arch, rows=60, seed=0) for _ in range(2))
    other = fold_for(arch, "classification", 60, 9)
    two.held = measure(arch, two.weights, other, other, LOSSES["classification"], rows=60, seed=1, path=()).held
    for at in places(arch, listed("widen", "deepen", "connect")):
        np.testing.assert_array_equal(screen(one, at.sites, 1e-2), screen(two, at.sites, 1e-2))
