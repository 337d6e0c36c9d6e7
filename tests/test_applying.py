"""Edits made real: weights, moments and statistics through them."""

from __future__ import annotations

import axis_oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_network, random_weights, rows_for
from seen_networks import LOSSES, NETWORKS, close, evidence_for, fold_for, made, of, run, sites_of, weights_for

from dagrow.applying import Applied, Part, apply, refresh_norms, settle_norms
from dagrow.compiler import compile_architecture, parameters_by_name
from dagrow.data import Fold
from dagrow.graph import Architecture, Refusal
from dagrow.scores import REGISTRY, Proposal, serving
from dagrow.train import OPTIMIZERS, Session, train_epoch

RANDOM = REGISTRY.get("random")(REGISTRY.get("random").Options())
ADAMW = OPTIMIZERS.get("adamw")


def parts_of(arch, weights, *kinds, units: int = 2, rows: int = 12, evidence=None) -> dict[str, Part]:
    """Site key -> the random scorer's (or, shrinking, the default's) part."""
    evidence = evidence or evidence_for(arch, rows=rows, weights=weights)
    found = {}
    for edit, options, site in sites_of(arch, *kinds):
        proposal = serving(RANDOM, site.form).propose(evidence, site, min(units, getattr(site.form, "size", units + 1) - 1), (0,))
        if proposal.status == "ok":
            found[site.key] = Part(edit, options, site, proposal)
    return found


def applied(arch, weights, *parts, moments=None, seed=(0, "newborn")) -> Applied:
    done = apply(arch, weights, moments or {}, ADAMW.slots, parts, seed)
    assert isinstance(done, Applied), done
    return done


@settings(max_examples=12)
@given(st.integers(0, 2**20))
def test_growth_changes_nothing_at_amplitude_0(seed):
    arch = random_network(seed)
    weights = {n: w.double() if w.is_floating_point() else w for n, w in random_weights(arch, seed).items()}
    x = rows_for(arch, 6, seed).double()
    before = run(arch, weights, x)
    parts = parts_of(arch, weights, "widen", "deepen", "connect")
    for part in list(parts.values())[seed % 3 :: 3]:
        grown = applied(arch, weights, part)
        close(run(grown.arch, grown.weights(0.0), x), before, 1e-10)
        assert not torch.allclose(run(grown.arch, grown.weights(1.0), x), before) or part.proposal.blocks[-1].values.abs().max() == 0


@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_was_there_keeps_its_bits(name):
    arch = NETWORKS[name]
    weights = weights_for(arch)
    copies = {n: w.clone() for n, w in weights.items()}
    for key, part in parts_of(arch, weights, "widen", "deepen", "connect").items():
        grown = applied(arch, weights, part)
        moves = part.edit.rewrite(arch, part.site, part.proposal).moves
        for values in (grown.full, grown.empty, grown.weights(0.3)):
            assert set(values) == {*grown.arch.params, *grown.arch.buffers}
            for n, w in weights.items():
                inside = values[n]
                for move in (m for m in moves if m.param == n):  # behind a concat or a flatten newborns do not come last
                    inside = inside.index_select(move.axis, torch.tensor([move.index.index(k) for k in range(w.shape[move.axis])]))
                assert torch.equal(inside, w), (key, n)
        assert all(torch.equal(copies[n], w) for n, w in weights.items())
        assert {n: tuple(w.shape) for n, w in grown.full.items()} == {**grown.arch.params, **grown.arch.buffers}


def test_the_amplitude_is_linear_in_the_fan_out_and_in_nothing_else():
    arch = NETWORKS["residual"]
    weights = weights_for(arch)
    for part in parts_of(arch, weights, "widen", "deepen", "connect").values():
        grown = applied(arch, weights, part)
        outgoing = {n for n, _ in part.site.form.outgoing}
        for n in grown.full:
            close(grown.weights(0.25)[n], grown.empty[n] * 0.75 + grown.full[n] * 0.25, 1e-12)
            assert torch.equal(grown.empty[n], grown.full[n]) or n in outgoing


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
@pytest.mark.parametrize("name", ["mlp", "conv", "depthwise", "residual"])
def test_moments_move_with_the_weights(name, rule):
    arch, optimizer = NETWORKS[name], OPTIMIZERS.get(rule)
    weights = {n: w.float() if w.is_floating_point() else w for n, w in weights_for(arch).items()}
    fold = fold_for(arch, "classification")
    fold = Fold(fold.x.float(), fold.y)
    model = compile_architecture(arch, weights)
    with Session(optimizer, optimizer.Options(), parameters_by_name(model), {}) as session:
        train_epoch(model, session, fold, LOSSES["classification"], batch=8, rates=lambda _: 1e-3, seed=0, path=("t",))
        moments = session.moments()
    for key, part in parts_of(arch, weights_for(arch)).items():
        done = apply(arch, weights, moments, optimizer.slots, [part], (0,))
        assert set(done.moments) == set(optimizer.slots)
        rewrite = part.edit.rewrite(arch, part.site, part.proposal)
        for slot, fill in optimizer.slots.items():
            assert {n: tuple(m.shape) for n, m in done.moments[slot].items()} == dict(done.arch.params), key
            for n, m in done.moments[slot].items():
                if n not in arch.params:
                    assert bool((m == fill).all())
                    continue
                expected = moments[slot][n]
                for move in (v for v in rewrite.moves if v.param == n):
                    index = torch.tensor(move.index)
                    born = (index < 0).nonzero().flatten()
                    expected = expected.index_select(move.axis, index.clamp(min=0)).index_fill(move.axis, born, fill)
                assert torch.equal(m, expected), (key, slot, n)
        model = compile_architecture(done.arch, done.full)
        with Session(optimizer, optimizer.Options(), parameters_by_name(model), done.moments) as session:
            report = train_epoch(model, session, fold, LOSSES["classification"], batch=8, rates=lambda _: 1e-3, seed=0, path=("t",))
            assert report.finite
            steps = session.moments()["step"]
        assert {float(s) for n, m in steps.items() for s in m.flatten()} <= {5.0, 10.0}


def test_the_parts_of_a_bundle_speak_of_the_network_before_it():
    """Neighbouring layers widened together are what they are one after the other."""
    arch = NETWORKS["mlp"]
    weights = weights_for(arch)
    parts = parts_of(arch, weights, "widen")
    one, two = parts["widen h1"], parts["widen h2"]
    both, back = applied(arch, weights, one, two), applied(arch, weights, two, one)
    assert both.arch == back.arch and both.arch.axes["h1"].size == 6 and both.arch.axes["h2"].size == 5
    for n in both.full:
        assert torch.equal(both.full[n], back.full[n]), n
    w = both.full["h2.weight"]
    close(w[:3, :4], weights["h2.weight"])
    blocks = {(b.param, b.axis): b.values for p in (one, two) for b in p.proposal.blocks}
    close(w[:3, 4:], blocks["h2.weight", 1])
    close(w[3:, :4], blocks["h2.weight", 0])
    assert torch.equal(w[3:, 4:], torch.zeros(2, 2, dtype=torch.float64))
    x = fold_for(arch, "classification").x
    close(run(both.arch, both.weights(0.0), x), run(arch, weights, x), 1e-10)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_bundles_add_up_to_first_order(name):
    """Two growing edits together change the output by the sum of what they change alone, for small amplitudes; or say why not."""
    arch = NETWORKS[name]
    weights, x = weights_for(arch), fold_for(arch, "classification", 8).x
    before = run(arch, weights, x)
    parts = parts_of(arch, weights, "widen", "deepen", "connect")
    worked, h = 0, 1e-6
    alone = {}
    for key, part in parts.items():
        grown = applied(arch, weights, part)
        alone[key] = run(grown.arch, grown.weights(h), x) - before
    pairs = [(i, j) for i in parts for j in parts if i < j][:: max(1, len(parts) // 4)]
    for one, two in pairs:
        done = apply(arch, weights, {}, {}, [parts[one], parts[two]], (0,))
        if isinstance(done, Refusal):
            assert done.reason
            continue
        worked += 1
        close((run(done.arch, done.weights(h), x) - before) / h, (alone[one] + alone[two]) / h, 1e-3)
    assert worked >= len(pairs) / 3, (worked, len(pairs))


def test_two_branches_into_one_target_are_two_branches():
    arch = NETWORKS["mlp"]
    weights = weights_for(arch)
    parts = parts_of(arch, weights, "connect", "deepen")
    chosen = [parts[k] for k in ("deepen x -> y", "deepen a2 -> y", "connect x -> y", "connect a1 -> y")]
    done = applied(arch, weights, *chosen)
    assert len(done.arch.nodes["sum1"].inputs) == 1 + len(chosen)
    x = fold_for(arch, "classification").x
    hidden = axis_oracles.values_of(arch, weights, {"x": x})
    effect = sum(p.site.form.effect(evidence_for(arch, weights=weights).train, p.proposal)["y"][:, 0] for p in chosen)
    close(run(done.arch, done.full, x), hidden["y"] + effect, 1e-9)


def test_parts_that_no_longer_fit_are_refused_with_a_reason():
    arch = NETWORKS["mlp"]
    weights = weights_for(arch)
    parts = parts_of(arch, weights)
    for keys in (("widen h1", "prune h1"), ("widen h1", "connect a1 -> y")):
        done = apply(arch, weights, {}, {}, [parts[k] for k in keys], (0,))
        assert isinstance(done, Refusal) and done.reason, keys
    wrong = Proposal(units=3, blocks=parts["widen h1"].proposal.blocks)
    done = apply(arch, weights, {}, {}, [Part(parts["widen h1"].edit, parts["widen h1"].options, parts["widen h1"].site, wrong)], (0,))
    assert isinstance(done, Refusal) and "newborns" in done.reason


def test_a_source_that_lost_units_is_not_read_as_if_it_had_them():
    arch = NETWORKS["mlp"]
    weights = weights_for(arch)
    parts = parts_of(arch, weights)
    (late,) = [p for k, p in parts.items() if k == "connect a1 -> y"]
    done = apply(arch, weights, {}, {}, [parts["prune h1"], late], (0,))
    assert isinstance(done, Refusal) and done.reason


def test_what_no_proposal_speaks_of_is_drawn_by_the_seed():
    arch = NETWORKS["mlp"]
    weights = weights_for(arch)
    edit, options, site = next(s for s in sites_of(arch, "deepen"))
    bare = [Part(edit, options, site, Proposal(units=2))]
    one, two, other = (apply(arch, weights, {}, {}, bare, (s, "n")) for s in (1, 1, 2))
    new = [n for n in one.full if n not in weights]
    assert new and all(torch.equal(one.full[n], two.full[n]) for n in one.full)
    assert any(not torch.equal(one.full[n], other.full[n]) for n in new)


def test_a_refusal_leaves_what_is_given_alone():
    arch = NETWORKS["conv"]
    weights = weights_for(arch)
    copies = {n: w.clone() for n, w in weights.items()}
    parts = list(parts_of(arch, weights).values())
    for part in parts:
        apply(arch, weights, {}, {}, [part, *parts], (0,))
    assert all(torch.equal(copies[n], w) for n, w in weights.items())


# Batch norm


NORMED = [n for n in NETWORKS if any(node.rule.role == "norm" for node in NETWORKS[n].nodes.values())]


@pytest.mark.parametrize("name", NORMED)
def test_fresh_statistics_keep_the_function_and_meet_the_batch(name):
    arch, task = NETWORKS[name], "classification"
    weights, fold = weights_for(arch), fold_for(arch, task, 200)
    refreshed = refresh_norms(arch, weights, fold)
    before = run(arch, weights, fold.x)
    close(run(arch, refreshed, fold.x), before, 1e-10)
    elsewhere = fold_for(arch, task, 50, 7).x
    close(run(arch, refreshed, elsewhere), run(arch, weights, elsewhere), 1e-10)
    close(refresh_norms(arch, refreshed, fold)["y.weight"], weights["y.weight"], 0)
    model = compile_architecture(arch, refreshed).train()
    with torch.no_grad():
        close(model(fold.x), before, 1e-8)
        stale = compile_architecture(arch, weights).train()(fold.x)
    assert float((stale - before).abs().max()) > 1e-2


@pytest.mark.parametrize("name", NORMED)
def test_newborns_through_batch_norm_do_not_jump_in_training(name):
    arch = NETWORKS[name]
    weights, fold = weights_for(arch), fold_for(arch, "classification", 100)
    weights = refresh_norms(arch, weights, fold)
    evidence = evidence_for(arch, rows=100, weights=weights)
    for part in parts_of(arch, weights, "widen", evidence=evidence).values():
        grown = applied(arch, weights, part)
        through = refresh_norms(grown.arch, grown.full, evidence.train.values and fold_of(evidence))
        model = compile_architecture(grown.arch, through).train()
        with torch.no_grad():
            trained = model(fold_of(evidence).x)
        close(trained, run(grown.arch, grown.full, fold_of(evidence).x), 1e-8)


def fold_of(evidence) -> Fold:
    (name,) = evidence.arch.inputs
    return Fold(evidence.train.values[name], torch.zeros(0))


def test_constant_channels_survive_fresh_statistics():
    nodes = {"x": of("input", shape=(3,)), "h": of("linear", "x", width=4), "n": of("batchnorm", "h"), "y": of("linear", "n", width=2)}
    arch = Architecture(nodes)
    weights = weights_for(arch)
    weights["h.weight"][0] = 0
    weights["n.weight"][1] = 0
    x = torch.randn(20, 3, dtype=torch.float64)
    refreshed = refresh_norms(arch, weights, Fold(x, x))
    assert all(bool(torch.isfinite(w).all()) for w in refreshed.values() if w.is_floating_point())
    close(run(arch, refreshed, x), run(arch, weights, x), 1e-8)


def test_one_edit_is_the_bundle_of_one():
    arch = NETWORKS["mlp"]
    weights = weights_for(arch)
    for part in parts_of(arch, weights).values():
        one = made(arch, weights, part.edit, part.options, part.site, part.proposal)
        two = applied(arch, weights, part)
        assert one.arch == two.arch and all(torch.equal(one.full[n], two.full[n]) for n in one.full)


def test_settled_statistics_are_those_of_the_rows_layer_by_layer():
    """As a forward in train mode over all rows at once finds them, with nothing else changed."""
    arch = NETWORKS["conv"]
    weights, fold = weights_for(arch), fold_for(arch, "classification", rows=50)
    settled = settle_norms(arch, weights, fold)
    model = compile_architecture(arch, weights).train()
    with torch.no_grad():
        made = model(fold.x)
    close(run(arch, settled, fold.x), made, 1e-9)
    assert {n for n in weights if not torch.equal(weights[n], settled[n])} == {"n1.running_mean", "n1.running_var"}
    again = settle_norms(arch, settled, fold)
    assert all(torch.equal(again[n], settled[n]) for n in settled)
    plain = NETWORKS["linear"]
    assert settle_norms(plain, weights_for(plain), fold_for(plain, "classification")).keys() == weights_for(plain).keys()
