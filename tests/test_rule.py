"""Rewrite rules of the user's own: patterns against brute force, what a replacement keeps, searches."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_networks import random_network
from seen_networks import NETWORKS, RANDOM, close, done, evidence_for, fold_for, nats, of, run, weights_for
from test_growth import WINE, plan_of, stopped, whole

from dagrow.applying import Part
from dagrow.compiler import compile_architecture, parameters_by_name
from dagrow.edits import REGISTRY
from dagrow.edits.patterns import ANY, MORE, Near, Pattern
from dagrow.edits.rule import BOTTLENECK, SMOOTHER, STRAIGHT
from dagrow.graph import Architecture
from dagrow.measure import flat
from dagrow.propose import Limits, propose
from dagrow.scores import serving

RULE = REGISTRY.get("rule")
CONV = Architecture({
    "x": of("input", shape=(2, 5, 5)), "conv": of("conv2d", "x", channels=4, kernel=3), "norm": of("batchnorm", "conv"), "act": of("relu", "norm"),
    "g": of("global_avg_pool", "act"), "y": of("linear", "g", width=3),
})  # fmt: skip


def rule(**options):
    return RULE.Options(**options)


def sites(arch: Architecture, **options):
    return list(RULE.match(arch, rule(**options)))


def only(arch: Architecture, **options):
    (site,) = sites(arch, **options)
    return site


def proposed(arch: Architecture, site, rows: int = 20):
    evidence = evidence_for(arch, rows=rows)
    return serving(RANDOM, site.form).propose(evidence, site, 1, (0,)), evidence.weights


def applied(arch: Architecture, **options):
    """(site, proposal, the rewritten network at amplitude 0, the old weights)"""
    site = only(arch, **options)
    proposal, weights = proposed(arch, site)
    return site, proposal, done(arch, Part(RULE, rule(**options), site, proposal), weights), weights


# Patterns

PATTERNS = (
    {"a": {"role": "activation"}},
    {"m": {"role": "affine"}, "a": {"role": "activation", "in": "m"}},
    {"x": None, "s": {"op": "add", "in": ["x", ANY]}},
    {"p": {"role": "activation"}, "q": {"role": "affine"}, "s": {"role": "sum", "in": ["p", "q"]}},
    {"x": {}, "m": {"role": "affine", "in": "x"}, "s": {"op": "add", "in": ["m", "x"]}},
    {"m": {"role": "affine"}, "s": {"op": "add", "in": ["m", MORE]}},
    {"x": {}, "c": {"op": "concat", "in": ["x", MORE]}},
    {"f": {"op": "conv2d", "kernel": [1, 3], "channels": {"max": 3}}},
)  # fmt: skip


def brute(match, arch: Architecture) -> set[tuple]:
    """Every assignment of nodes to the pattern's names under which each condition holds."""
    def holds(bound) -> bool:
        for name, row in match.items():
            row, node = row or {}, arch.nodes[bound[name]]
            given = row.get("op")
            if given is not None and node.op not in ([given] if isinstance(given, str) else given) or row.get("role", node.rule.role) != node.rule.role:
                return False
            if "kernel" in row and (node.attrs.kernel not in row["kernel"] or node.attrs.channels > row["channels"]["max"]):
                return False
            inputs = row.get("in")
            if inputs is None:
                continue
            inputs = [inputs] if isinstance(inputs, str) else inputs
            wanted = [bound.get(i, i) for i in inputs if i != MORE]
            if len(wanted) > len(node.inputs) or (len(wanted) < len(node.inputs) and MORE not in inputs):
                return False
            orders = itertools.permutations(node.inputs, len(wanted)) if node.rule.role == "sum" else [node.inputs[: len(wanted)]]
            if not any(all(w in (ANY, i) for w, i in zip(wanted, order, strict=True)) for order in orders):
                return False
        return True

    names = list(match)
    return {nodes for nodes in itertools.permutations(arch.nodes, len(names)) if holds(dict(zip(names, nodes, strict=True)))}


@pytest.mark.parametrize("match", PATTERNS)
@settings(max_examples=10)
@given(arch=st.one_of(st.sampled_from(sorted(NETWORKS)).map(NETWORKS.get), st.integers(0, 2**20).map(random_network)))
def test_patterns_are_found_where_brute_force_finds_them(match, arch):
    assume(len(arch.nodes) <= 16)
    faults: list = []
    pattern = Pattern.parse(match, faults)
    assert not faults
    found = pattern.find(arch, Near())
    assert {tuple(b[n] for n in match) for b in found} == brute(match, arch)
    assert len(found) == len({tuple(b.items()) for b in found})


def test_the_ways_to_lie_on_a_network_come_to_an_end():
    wide = {"x": of("input", shape=(2,)), **{f"a{k}": of("linear", "x", width=2) for k in range(40)}}
    wide["s"] = of("add", *[f"a{k}" for k in range(40)])
    match = {**{f"p{k}": {"op": "linear"} for k in range(6)}, "s": {"op": "add", "in": [*[f"p{k}" for k in range(6)], MORE]}}
    assert len(Pattern.parse(match, []).find(Architecture(wide), Near())) == 1000


# What a replacement keeps


def test_a_residual_bottleneck_starts_at_nothing_and_has_a_derivative():
    options = BOTTLENECK | {"match": {"conv": {"op": "conv2d"}, "norm": {"op": "batchnorm", "in": "conv"}, "act": {"op": "relu", "in": "norm"}}}
    site, proposal, made, weights = applied(CONV, **options)
    assert site.key == "rule bottleneck at act" and proposal.status == "ok"
    new = {n: v for n, v in made.arch.nodes.items() if n not in CONV.nodes}
    assert {n: (v.op, v.inputs) for n, v in new.items()} == {
        "bottleneck1.down": ("conv2d", ("act",)), "bottleneck1.mid": ("tanh", ("bottleneck1.down",)),
        "bottleneck1.up": ("conv2d", ("bottleneck1.mid",)), "bottleneck1.out": ("add", ("act", "bottleneck1.up")),
    }  # fmt: skip
    assert made.arch.shapes["bottleneck1.down"][0] == 2 and made.arch.nodes["g"].inputs == ("bottleneck1.out",)
    x = fold_for(CONV, "classification", 6).x
    close(run(made.arch, made.weights(0.0), x), run(CONV, weights, x), 1e-12)
    assert not torch.allclose(run(made.arch, made.full, x), run(CONV, weights, x))
    assert all(torch.equal(made.full[n], weights[n]) for n in weights)
    # It may be made again on what it made, once a decision; with once it is not.
    again = {s.where for s in RULE.match(made.arch, rule(**options))}
    assert again == {"bottleneck at act"} and not sites(made.arch, **options, once=True)
    two = only(made.arch, **options).form.frame
    assert two.nodes["bottleneck2.out"].inputs == ("act", "bottleneck2.up") and two.nodes["bottleneck1.out"].inputs == ("bottleneck2.out", "bottleneck1.up")


@pytest.mark.parametrize("options", [BOTTLENECK, SMOOTHER, STRAIGHT], ids=lambda o: o["name"])
def test_what_the_examples_promise(options):
    found = [(arch, site) for arch in NETWORKS.values() for site in sites(arch, **options)]
    assert len(found) >= 3
    for arch, site in found:
        proposal, weights = proposed(arch, site)
        assert proposal.status == ("trial" if options is SMOOTHER else proposal.status) and proposal.status in ("ok", "trial")
        made = done(arch, Part(RULE, rule(**options), site, proposal), weights)
        x = fold_for(arch, "classification", 6).x
        assert torch.allclose(run(made.arch, made.weights(0.0), x), run(arch, weights, x), rtol=1e-10, atol=1e-10) == (options is not SMOOTHER)


@pytest.mark.parametrize("options", [BOTTLENECK, STRAIGHT], ids=lambda o: o["name"])
def test_its_derivative_is_that_of_the_real_loss(options):
    """Where the change is felt through one affine node the slope is taken there, elsewhere at the output."""
    found = 0
    for arch in NETWORKS.values():
        for site in sites(arch, **options):
            evidence, fold = evidence_for(arch, rows=30), fold_for(arch, "classification", 30)
            proposal = serving(RANDOM, site.form).propose(evidence, site, 1, (0,))
            if proposal.status != "ok":
                continue
            made = done(arch, Part(RULE, rule(**options), site, proposal), evidence.weights)
            step = 1e-5
            there, back = (nats(made.arch, made.weights(a), fold, "classification") for a in (step, -step))
            ((target, change),) = site.form.effect(evidence.train, proposal).items()
            predicted = float((change * flat(evidence.train.v[target], arch.nodes[target]).double()).sum()) / 30
            assert predicted == pytest.approx((back - there) / (2 * step), rel=1e-4, abs=1e-8)
            found += target not in arch.outputs
    assert found >= 2


def test_what_claims_nothing_is_found_out():
    """The same residual branch, not started at zero, and a replacement that drops a node, change the function: each takes a trial."""
    loud = {**BOTTLENECK, "replace": {n: {k: v for k, v in row.items() if k != "init"} for n, row in BOTTLENECK["replace"].items()}}
    bare = {"name": "bare", "match": {"norm": {"op": "batchnorm"}, "act": {"op": "relu", "in": "norm"}}, "replace": {"norm": {}}}
    evidence = evidence_for(CONV, rows=30)
    for options in (bare, loud | {"match": {"act": {"op": "relu"}}}):
        found = propose(evidence, [(RULE, rule(**options))], RANDOM, Limits(), alpha=0.05, key=(0,))[1:]
        assert [(s.candidate.verdict, s.reason) for s in found] == [("trial", "it changes the function at once")]
    assert "act" not in only(CONV, **bare).form.frame.nodes


def test_a_node_with_another_shape_is_a_new_one_and_keeps_what_fits():
    options = {"name": "wider_kernel", "match": {"conv": {"op": "conv2d", "kernel": 3}}, "replace": {"conv": {"kernel": "conv.kernel + 2"}}}
    _, proposal, made, weights = applied(CONV, **options)
    frame = made.arch
    assert "conv" not in frame.nodes and frame.nodes["norm"].inputs == ("wider_kernel1.conv",)
    assert frame.params["wider_kernel1.conv.weight"][2:] == (5, 5) and frame.nodes["wider_kernel1.conv"].attrs.channels == 4
    assert torch.equal(made.full["wider_kernel1.conv.bias"], weights["conv.bias"]) and proposal.status == "trial"
    assert all(torch.equal(made.full[n], weights[n]) for n in frame.params if n in weights)


def test_what_follows_a_node_of_another_size_within_the_pattern_is_new_too():
    options = {
        "name": "thin", "match": {"conv": {"op": "conv2d"}, "norm": {"op": "batchnorm", "in": "conv"}, "act": {"op": "relu", "in": "norm"}},
        "replace": {"conv": {"channels": "conv.channels // 2"}, "back": {"op": "conv2d", "in": "act", "kernel": 1, "channels": "conv.channels"}},
    }  # fmt: skip
    _, _, made, weights = applied(CONV, **options)
    assert made.arch.shapes["thin1.norm"][0] == 2 and made.arch.nodes["act"].inputs == ("thin1.norm",) and made.arch.nodes["g"].inputs == ("thin1.back",)
    assert made.arch.params["y.weight"] == CONV.params["y.weight"] and torch.equal(made.full["y.weight"], weights["y.weight"])


def test_options_that_need_no_other_weights_keep_the_node():
    site, _, made, weights = applied(CONV, name="slow", match={"norm": {"op": "batchnorm"}}, replace={"norm": {"momentum": 0.01}})
    assert made.arch.nodes["norm"].attrs.momentum == 0.01 and made.arch.params == CONV.params and not site.form.outgoing
    assert all(torch.equal(made.full[n], w) for n, w in weights.items())


def test_what_others_read_stays_or_the_rule_does_not_apply():
    arch = CONV.replace({"side": of("global_avg_pool", "norm"), "both": of("add", "g", "side"), "y": of("linear", "both", width=3)})
    match = {"conv": {"op": "conv2d"}, "norm": {"op": "batchnorm", "in": "conv"}, "act": {"op": "relu", "in": "norm"}}
    drops = rule(name="r", match=match, replace={"act": {"op": "gelu", "in": "conv"}})
    stays = rule(name="r", match=match, replace={"act": {"op": "gelu", "in": "norm"}})
    assert not list(RULE.match(arch, drops)) and list(RULE.match(CONV, drops)) and list(RULE.match(arch, stays))
    (remark,) = RULE.remarks(arch, drops)
    assert "norm, its 'norm', also feeds side" in remark.message


def test_what_reads_a_changed_node_may_not_be_read_from_outside_either():
    """conv changes, norm stays and gives something else: what reads norm would not be what it was."""
    arch = CONV.replace({"side": of("global_avg_pool", "norm"), "both": of("add", "g", "side"), "y": of("linear", "both", width=3)})
    match = {"conv": {"op": "conv2d"}, "norm": {"op": "batchnorm", "in": "conv"}, "act": {"op": "relu", "in": "norm"}}
    options = rule(name="r", match=match, replace={"conv": {"kernel": 5}, "act": {"op": "gelu", "in": "norm"}})
    assert list(RULE.match(CONV, options)) and not list(RULE.match(arch, options))
    assert "norm, its 'norm', also feeds side" in next(iter(RULE.remarks(arch, options))).message


def test_every_output_is_looked_at():
    arch = Architecture({
        "x": of("input", shape=(4,)), "h": of("linear", "x", width=3), "a": of("tanh", "h"), "y": of("linear", "h", width=3), "z": of("gelu", "a"),
    }, ("y", "z"))  # fmt: skip
    site = only(arch, match={"a": {"op": "tanh"}}, replace={"a": {"op": "relu"}})
    assert proposed(arch, site)[0].reason == "it changes the function at once"
    kept = only(arch, match={"a": {"op": "tanh"}}, replace={"m": {"op": "linear", "in": "a", "width": "a.width", "init": "identity"}})
    assert proposed(arch, kept)[0].status in ("ok", "trial") and proposed(arch, kept)[0].reason != "it changes the function at once"


def test_sums_have_no_order_and_concats_have():
    net = {"x": of("input", shape=(3,)), "a": of("linear", "x", width=3), "t": of("tanh", "a"), "s": of("add", "t", "x"), "c": of("concat", "t", "s"), "y": of("linear", "c", width=2)}
    arch = Architecture(net)
    for order in (["t", "x"], ["x", "t"]):
        match = {"x": {"op": "input"}, "t": {"op": "tanh"}, "s": {"op": "add", "in": order}}
        assert len(sites(arch, match=match, replace={"s": {"op": "identity", "in": "t"}})) == 1
    for order, number in ((["t", "s"], 1), (["s", "t"], 0)):
        match = {"t": {"op": "tanh"}, "s": {"op": "add"}, "c": {"op": "concat", "in": order}}
        assert len(sites(arch, match=match, replace={"c": {"in": ["s", "t"]}})) == number


def test_an_input_is_never_lost():
    arch = Architecture({"x": of("input", shape=(3,)), "a": of("tanh", "x"), "s": of("add", "a", "x"), "y": of("linear", "s", width=2)})
    options = rule(match={"x": {"op": "input"}, "a": {"op": "tanh", "in": "x"}}, replace={"a": {"op": "relu"}})
    assert len(list(RULE.match(arch, options))) == 1
    two = Architecture({"x": of("input", shape=(3,)), "z": of("input", shape=(3,)), "s": of("add", "x", "z"), "y": of("linear", "s", width=2)})
    options = rule(match={"x": {}, "s": {"op": "add", "in": ["x", MORE]}}, replace={"s": {"op": "identity", "in": "x"}})
    assert not list(RULE.match(two, options)) and "no longer read" in next(iter(RULE.remarks(two, options))).message


PART = st.tuples(
    st.sampled_from(["layer", "layer", "relu", "gelu", "add", "batchnorm", "concat", "identity", "dropout"]), st.integers(0, 4),
    st.sampled_from([3, "b.channels", "b.channels", "max(1, b.channels // 2)", "a.channels * 2 - b.channels"]), st.sampled_from(["fresh", "zero", "identity"]),
)  # fmt: skip


def random_rule(arch: Architecture, parts, name: str):
    """A chain of new nodes from the activation behind an affine node, the last under `name`; each may read an earlier one besides."""
    map_ = any(node.op == "conv2d" for node in arch.nodes.values())
    layer, size = ("conv2d", "channels") if map_ else ("linear", "width")
    replace, known = {}, ["a", "b"]
    for k, (op, other, units, init) in enumerate(parts):
        row = {"op": layer if op == "layer" else op, "in": known[-1]}
        if op in ("add", "concat"):
            row["in"] = [known[-1], known[other % len(known)]]
        if op == "layer":
            row |= {size: units if map_ or units == 3 else units.replace("channels", "width"), "init": init, **({"kernel": 1} if map_ else {})}
        last = k == len(parts) - 1
        replace[name if last else f"n{k}"] = row
        known.append(f"n{k}")
    return rule(name="any", match={"a": {"op": layer}, "b": {"in": "a", "role": "activation"}}, replace=replace)


def joined(made) -> torch.Tensor:
    """Several outputs as one."""
    return torch.cat(made, 1) if isinstance(made, tuple) else made


@settings(max_examples=100)
@given(st.integers(0, 2**20), st.lists(PART, min_size=1, max_size=4), st.sampled_from(["end", "end", "b", "a"]), st.booleans())
def test_whatever_a_rule_says_it_makes_a_network_or_says_why_not(seed, parts, name, wide):
    """Random replacements: what is offered is a valid network with the same inputs and outputs, whose other weights go on."""
    arch = NETWORKS[sorted(NETWORKS)[seed % len(NETWORKS)]] if wide else random_network(seed)
    try:
        options = random_rule(arch, parts, name)
    except ValueError as error:
        assert error.errors()
        return
    weights = weights_for(arch)
    for site in RULE.match(arch, options):
        frame = site.form.frame
        assert frame == Architecture.from_dict(frame.to_dict()) and frame.inputs == arch.inputs
        assert [frame.shapes[o] for o in frame.outputs] == [arch.shapes[o] for o in arch.outputs]
        assert all(frame.params[n] == arch.params[n] for n in frame.params if n in arch.params)
        assert all(n.startswith("any1.") for n in set(frame.nodes) - set(arch.nodes))
        seen = evidence_for(arch, rows=30, weights=weights).train
        start = site.form.begin(seen, (0,))
        full = {n: start[n] if n in start else weights[n] for n in (*frame.params, *frame.buffers)}
        x = fold_for(arch, "classification", 40).x
        old, now = joined(compile_architecture(arch, weights).eval()(x)), joined(compile_architecture(frame, full).eval()(x))
        # What is told is told up to the rounding of single precision.
        assert not site.form.keeps(seen, start) or torch.allclose(now, old, rtol=1e-3, atol=1e-3)
        model = compile_architecture(frame, full).train()
        joined(model(fold_for(arch, "classification", 6).x)).square().sum().backward()
        assert all(p.grad is not None for p in parameters_by_name(model).values())
    for remark in RULE.remarks(arch, options):
        assert remark.message


# Searches

SEARCH = WINE | {"edits": [{"rule": {**STRAIGHT, "once": True}}, {"rule": SMOOTHER}], "budget": {"steps": 3}}


def test_a_search_over_rules_stops_and_goes_on(tmp_path):
    plan = plan_of(SEARCH | {"select": {"by": "schedule", "steps": [{"step": 0, "edit": "rule"}, {"step": 1, "edit": "rule"}, {"step": 2, "edit": "rule"}]}})
    one, two = whole(tmp_path / "whole", plan), stopped(tmp_path / "stopped", plan)
    assert one == two
    steps = [p for _, kind, p, _ in one if kind == "step"]
    made = [p["where"] for p in steps if p["edit"] == "rule"]
    assert made and all(w.split(" at ")[0] in ("straight", "smoother") for w in made) and len(set(made)) == len(made)
