"""Candidates: their order, their verdicts, and the budget."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from seen_networks import LOSSES, NETWORKS, evidence_for, fold_for, of, sites_of, weights_for

from dagrow.applying import Applied, apply
from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture, Refusal
from dagrow.measure import measure
from dagrow.propose import NULL, Limits, Scored, _judge, fitting, propose
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores import Proposal
from dagrow.scores.valuer import Gain, value
from dagrow.select import Candidate

NATURAL = SCORERS.get("natural")(SCORERS.get("natural").Options(starts=4, steps=5))
RANDOM = SCORERS.get("random")(SCORERS.get("random").Options())


def listed(*kinds: str, **options):
    return [(EDITS.get(k), EDITS.get(k).Options(**options)) for k in kinds or EDITS]


def test_the_null_edit_is_first_and_the_rest_best_first():
    evidence = evidence_for(NETWORKS["residual"], rows=100)
    found = propose(evidence, listed(), NATURAL, Limits(), alpha=0.05, key=(0,))
    assert found[0].candidate == NULL and found[0].part is None
    assert [s.candidate.index for s in found] == list(range(len(found)))
    gains = [s.candidate.gain for s in found[1 : found.valued] if s.candidate.verdict not in ("unsupported", "too dear")]
    assert gains == sorted(gains, reverse=True) and len(gains) > 5
    there = {kind for kind in EDITS if sites_of(NETWORKS["residual"], kind)}
    assert {s.candidate.edit for s in found[1:]} == there and len(there) > 6


def test_what_cannot_be_scored_says_why():
    found = propose(evidence_for(NETWORKS["multiplier"]), listed(), NATURAL, Limits(), alpha=0.05, key=(0,))
    reasons = {s.candidate.key: s.reason for s in found if s.candidate.verdict == "unsupported"}
    assert reasons and all(reasons.values())


@pytest.mark.parametrize("name", ["mlp", "conv", "concat", "sequence"])
def test_the_most_units_that_fit_are_offered(name):
    arch = NETWORKS[name]
    for edit, _, site in sites_of(arch, "widen", "deepen"):
        sizes = {}
        for u in range(1, 7):
            made = edit.rewrite(arch, site, Proposal(units=u)).arch
            sizes[u] = (made.size, made.macs)
        for params in range(arch.size, sizes[6][0] + 2, 3):
            limits = Limits(params, None)
            best = max((u for u in sizes if sizes[u][0] <= params), default=0)
            fit = fitting(arch, edit, site, 6, limits)
            assert (fit[0] if not isinstance(fit, Refusal) else 0) == best, (site.key, params)
        for u in (1, 3, 5):
            fit = fitting(arch, edit, site, 6, Limits(None, sizes[u][1]))
            assert fit[0] == u and fit[1] == sizes[u]
    assert isinstance(fitting(arch, edit, site, 6, Limits(1, 1)), Refusal)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_candidates_cost_what_they_say(name):
    """With the scorer that may have fewer directions than units were asked for."""
    arch = NETWORKS[name]
    evidence = evidence_for(arch, rows=30)
    found = propose(evidence, listed("widen", "deepen", units=(3, 8)), NATURAL, Limits(arch.size + 40), alpha=0.05, key=(0,))
    for s in found[1:]:
        if s.part is None:
            continue
        made = apply(arch, evidence.weights, {}, {}, [s.part], (0,))
        assert isinstance(made, Applied)
        assert (made.arch.size - arch.size, made.arch.macs - arch.macs) == (s.candidate.params, s.candidate.macs), s.candidate
        assert s.part.proposal.units == s.candidate.units and made.arch.size <= arch.size + 40
        if s.candidate.gain > 0:
            assert s.gain.amplitude > 0


def test_a_single_output_has_few_directions_and_says_so():
    nodes = {"x": of("input", shape=(3,)), "h": of("linear", "x", width=3), "a": of("tanh", "h"), "y": of("linear", "a", width=1)}
    arch = Architecture(nodes)
    evidence = evidence_for(arch, "regression")
    (_, s) = propose(evidence, listed("widen", units=8), NATURAL, Limits(), alpha=0.05, key=(0,))
    made = apply(arch, evidence.weights, {}, {}, [s.part], (0,))
    assert made.arch.axes["h"].size == 3 + s.candidate.units <= 11 and made.arch.size - arch.size == s.candidate.params


def test_the_proposals_fan_out_is_at_its_amplitude():
    evidence = evidence_for(NETWORKS["mlp"], rows=100)
    found = propose(evidence, listed("widen"), RANDOM, Limits(), alpha=0.05, key=(0,))
    for s in found[1:]:
        again = value(evidence, s.part.site, s.part.proposal)
        assert again.nats == pytest.approx(s.gain.nats, rel=1e-9)
        assert s.gain.nats == 0 or again.amplitude == pytest.approx(1.0, rel=1e-9)


def test_over_budget_is_too_dear_and_scored_only_if_asked():
    arch = NETWORKS["mlp"]
    evidence, tight = evidence_for(arch), Limits(arch.size + 1, None)
    found = propose(evidence, listed("widen", "prune"), NATURAL, tight, alpha=0.05, key=(0,))
    dear = [s for s in found if s.candidate.edit == "widen"]
    assert dear and all(s.candidate.verdict == "too dear" and s.part is None and s.candidate.params > 1 and s.reason for s in dear)
    assert all(s.candidate.verdict == "shrink" for s in found if s.candidate.edit == "prune")
    found = propose(evidence, listed("widen"), NATURAL, tight, alpha=0.05, key=(0,), price_first=False)
    assert all(s.candidate.verdict == "too dear" and s.part is not None for s in found[1:])


def test_sizes_that_come_to_the_same_are_offered_once():
    arch = NETWORKS["mlp"]
    evidence = evidence_for(arch)
    limits = Limits(arch.size + 20, None)
    found = propose(evidence, listed("widen", units=(2, 4, 6, 8)), NATURAL, limits, alpha=0.05, key=(0,))
    pairs = [(s.candidate.key, s.candidate.units) for s in found[1:]]
    assert len(pairs) == len(set(pairs))


def test_banned_sites_are_not_offered():
    evidence = evidence_for(NETWORKS["mlp"])
    found = propose(evidence, listed("widen"), NATURAL, Limits(), alpha=0.05, key=(0,), banned=frozenset({"widen h1"}))
    assert {s.candidate.key for s in found[1:]} == {"widen h2"}


def scored(key: str, units: int, gain: float, z: float, verdict: str = "noise") -> Scored:
    return Scored(Candidate(0, "widen", key, units, gain, 0.1, z, 5, 5, verdict, key), None, Gain(gain, 0.1, 0, 0, z))


def test_signal_is_judged_once_a_site_at_its_share_of_alpha():
    bar = NormalDist().inv_cdf(1 - 0.05 / 2)
    growth = [scored("a", 1, 0.1, 9.0), scored("a", 2, 0.2, bar + 0.01), scored("b", 1, 0.3, bar - 0.01)]
    found, tested = _judge([*growth, scored("c", 1, 0.4, 9.9, "shrink")], 0.05)
    assert [s.candidate.verdict for s in found] == ["grow", "grow", "noise", "shrink"] and tested == 2
    # The largest proposal speaks for the site: a smaller one with a better z does not.
    found, tested = _judge([scored("a", 1, 0.1, 9.0), scored("a", 2, 0.2, 1.0)], 0.05)
    assert [s.candidate.verdict for s in found] == ["noise", "noise"]
    found, tested = _judge([scored("a", 1, 0.0, 9.0)], 0.05)
    assert [s.candidate.verdict for s in found] == ["noise"]
    assert _judge([], 0.05) == ([], 0)


def test_the_same_key_proposes_the_same():
    one, two = (propose(evidence_for(NETWORKS["conv"]), listed(), NATURAL, Limits(), alpha=0.05, key=(4,)) for _ in range(2))
    assert [s.candidate for s in one] == [s.candidate for s in two]


def test_nothing_is_missing_where_the_model_is_right():
    """Linear data, a linear model at its optimum: no edit is signal."""
    arch = Architecture({"x": of("input", shape=(4,)), "y": of("linear", "x", width=2)})
    grown = 0
    for seed in range(10):
        fold, held = (fold_for(arch, "regression", 150, s) for s in (seed, seed + 50))
        solved = torch.linalg.lstsq(torch.cat([fold.x, torch.ones(150, 1)], 1), fold.y).solution
        weights = weights_for(arch) | {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}
        evidence = measure(arch, weights, fold, Fold(held.x, held.y), LOSSES["regression"], rows=999, seed=seed, path=())
        found = propose(evidence, listed("widen", "deepen", "connect"), NATURAL, Limits(), alpha=0.05, key=(seed,))
        grown += any(s.candidate.verdict == "grow" for s in found)
        assert all(math.isfinite(s.candidate.gain) for s in found)
    assert grown <= 3


def test_candidates_are_plain_values():
    assert replace(NULL, index=0) == NULL and NULL.verdict == "null" and NULL.gain == 0
