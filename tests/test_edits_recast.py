"""Rewrites that set their own weights: closed forms against brute force, what they promise, and how they are priced."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_networks import LOSSES, NETWORKS, RANDOM, close, evidence_for, fold_for, made, of, run, sites_of, weights_for
from test_growth import WINE, plan_of, stopped, whole

from dagrow.applying import Part, apply
from dagrow.edits import REGISTRY
from dagrow.edits.shares import activations, shared
from dagrow.edits.steady import grown, keeps, parts_of
from dagrow.graph import Architecture, Refusal, Rewrite, preserving, resize
from dagrow.measure.sites import slopes_of
from dagrow.propose import Limits, propose
from dagrow.scores import Proposal, serving
from dagrow.scores.valuer import value


def stream(width: int = 4, eps: float = 0.1) -> Architecture:
    """A residual stream under two layer norms, read by the last one's reader and by nothing else."""
    return Architecture({
        "x": of("input", shape=(3,)), "emb": of("linear", "x", width=width), "n1": of("layernorm", "emb", eps=eps), "h": of("linear", "n1", width=5),
        "a": of("gelu", "h"), "o": of("linear", "a", width=width), "s": of("add", "emb", "o"), "n2": of("layernorm", "s", eps=eps),
        "y": of("linear", "n2", width=3),
    })  # fmt: skip


def only(arch: Architecture, kind: str, where: str, **options):
    edit = REGISTRY.get(kind)
    return next((edit, edit.Options(**options), s) for s in edit.match(arch, edit.Options(**options)) if s.where == where)


def offered(arch: Architecture, kind: str, **options) -> list[str]:
    return [site.where for _, _, site in sites_of(arch, kind, **options)]


def done(arch: Architecture, weights, kind: str, where: str, units: int = 1, rows: int = 40, **options):
    """(what it makes, what was proposed)"""
    edit, chosen, site = only(arch, kind, where, **options)
    proposal = serving(RANDOM, site.form).propose(evidence_for(arch, rows=rows, weights=weights), site, units, (0,))
    assert proposal.status in ("ok", "trial"), proposal
    return made(arch, weights, edit, chosen, site, proposal), proposal


# More units where they are normalised together


@settings(max_examples=8)
@given(st.integers(2, 6), st.integers(1, 5), st.floats(1e-6, 1.0))
def test_a_layer_norm_stays_when_its_stream_grows_by_the_mean(width, more, eps):
    arch = stream(width, eps)
    weights, rewrite = weights_for(arch), grown(arch, "emb", more)
    after = preserving(rewrite, weights, weights_for(rewrite.arch, 1))
    x = fold_for(arch, "classification", 6).x
    close(run(rewrite.arch, after, x), run(arch, weights, x), 1e-12)
    # The closed form: rows at the mean, sqrt(C / C') and C / C'.
    for name in ("emb.weight", "emb.bias", "o.weight", "o.bias"):
        assert torch.equal(after[name][:width], weights[name])
        close(after[name][width:], weights[name].mean(0, keepdim=True).expand_as(after[name][width:]), 1e-15)
    for norm in ("n1", "n2"):
        close(after[f"{norm}.weight"][:width], weights[f"{norm}.weight"] * math.sqrt(width / (width + more)), 1e-15)
        assert not after[f"{norm}.bias"][width:].any()
        close(rewrite.arch.nodes[norm].attrs.eps, eps * width / (width + more), 1e-15)
    # What reads behind a norm is free, so that it learns; nothing reads the stream itself.
    assert after["h.weight"][:, width:].abs().min() > 0 and after["y.weight"][:, width:].abs().min() > 0


def test_what_reads_the_stream_itself_is_zero():
    arch = stream()
    arch = arch.replace({"y": of("linear", "s", width=3), "n2": None})
    after = preserving(grown(arch, "emb", 2), weights_for(arch), weights_for(grown(arch, "emb", 2).arch, 1))
    assert not after["y.weight"][:, 4:].any() and after["h.weight"][:, 4:].abs().min() > 0


def test_no_claim_where_the_mean_does_not_stay_the_mean():
    """Behind an activation, and where a norm's output joins the stream again, newborns are not the mean of the others."""
    bent = stream().replace({"bent": of("tanh", "s"), "n2": of("layernorm", "bent")})
    post = stream().replace({"s": of("add", "n1", "o")})
    wide = Architecture({
        "x": of("input", shape=(3, 4)), "c": of("token_linear", "x", width=5), "n": of("layernorm", "c", dims=2), "f": of("flatten", "n"),
        "y": of("linear", "f", width=3),
    })  # fmt: skip
    for arch, axis in ((bent, "emb"), (post, "emb"), (wide, "c")):
        rewrite = grown(arch, axis, 2)
        assert isinstance(rewrite, Rewrite) and not rewrite.keeps
        _, _, site = only(arch, "widen", axis)
        assert "normalised together" in site.form.reason


def test_whole_groups_are_added_at_zero_and_channels_within_one_are_not():
    arch = ALL_GROUPS
    groups, inside = arch.axes
    assert grown(arch, groups, 2).zero == (("y.weight", 1),) and not grown(arch, inside, 1).keeps


ALL_GROUPS = Architecture({
    "x": of("input", shape=(2, 4, 4)), "c": of("conv2d", "x", channels=6, kernel=3), "n": of("groupnorm", "c", groups=3), "a": of("tanh", "n"),
    "g": of("global_avg_pool", "a"), "y": of("linear", "g", width=3),
})  # fmt: skip


@pytest.mark.parametrize(("top", "kept"), [(3, True), (9, True), (2, False)])
def test_an_expert_is_cloned_with_its_share_where_all_are_chosen(top, kept):
    arch = Architecture({"x": of("input", shape=(4,)), "m": of("moe", "x", experts=3, hidden=2, top=top), "b": of("tanh", "m"), "y": of("linear", "b", width=3)})
    weights, rewrite = weights_for(arch), grown(arch, "m", 2)
    assert rewrite.keeps == kept
    if kept:
        after = preserving(rewrite, weights, weights_for(rewrite.arch, 1))
        x = fold_for(arch, "classification", 6).x
        close(run(rewrite.arch, after, x), run(arch, weights, x), 1e-12)
        assert torch.equal(after["m.router.weight"][3:], weights["m.router.weight"][:2]) and torch.equal(after["m.down"][3:], weights["m.down"][:2])
        both = torch.stack([after["m.router.bias"][:2], after["m.router.bias"][3:]]) - weights["m.router.bias"][:2]
        close(both.exp().sum(0), torch.ones(2), 1e-12)
        assert torch.equal(after["m.router.bias"][2], weights["m.router.bias"][2]) and float((both[0] - both[1]).abs().min()) > 0.1


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=9), st.floats(0, 0.9))
def test_parts_add_up_to_one(index, uneven):
    parts = parts_of(index, uneven)
    assert bool((parts > 0).all())
    for old in set(index) - {-1}:
        close(sum(float(p) for p, o in zip(parts, index, strict=True) if o == old), 1.0, 1e-12)
    assert all(float(p) == 1.0 for p, o in zip(parts, index, strict=True) if o < 0)


def test_a_claim_is_tried_before_it_is_made():
    """A rewrite that only says so is found out."""
    arch = NETWORKS["mlp"]
    plain = resize(arch, {"h1": (*range(4), -1)})
    assert keeps(arch, plain) and not keeps(arch, Rewrite(plain.arch, plain.moves, ()))


# Units that stand for one another


@settings(max_examples=10)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 2**16), st.floats(0, 0.9))
def test_clones_share_what_one_did(name, seed, uneven):
    """Any units, any number of clones, equal shares or not."""
    arch, weights = NETWORKS[name], weights_for(NETWORKS[name], seed)
    x = fold_for(arch, "classification", 4).x
    for edit, options, site in sites_of(arch, "split", uneven=uneven):
        size = arch.axes[site.where].size
        index = (*range(size), *torch.randint(size, (3,), generator=torch.Generator().manual_seed(seed)).tolist())
        rewrite = edit.rewrite(arch, site, Proposal(units=3, keep=index))
        if isinstance(rewrite, Rewrite):
            wide = made(arch, weights, edit, options, site, Proposal("trial", units=3, keep=index))
            close(run(wide.arch, wide.full, x), run(arch, weights, x), 1e-12)


def test_what_cannot_be_shared_is_not_split():
    assert not {"emb", "n1", "n2"} & set(offered(stream(), "split")) and shared(stream(), stream().axes["emb"]) is None
    assert "enc" not in offered(NETWORKS["tied"], "split")  # the tied weight both writes and reads it
    assert ALL_GROUPS.axes.keys() - set(offered(ALL_GROUPS, "split")) == {"c~1"}


def test_one_side_of_a_product_is_divided():
    arch = NETWORKS["transformer"]
    axis = next(a for a in arch.axes.values() if a.bilinear)
    weights = weights_for(arch)
    rewrite = REGISTRY.get("split").rewrite(arch, only(arch, "split", axis.id)[2], Proposal(units=1, keep=(*range(axis.size), 0)))
    after = preserving(rewrite, weights, weights_for(rewrite.arch, 1))
    sides = {u.node for u in axis.writes}
    old = {w.item() for side in sides for w in weights[f"{side}.weight"].flatten()}
    divided = [side for side in sides if not {w.item() for w in after[f"{side}.weight"].flatten()} <= old]
    assert len(sides) == 2 and len(divided) == 1


def test_merge_finds_the_pair_that_loses_least():
    """Against trying every pair: what is left of one unit when the other stands for it, times its weights."""
    for name in ("mlp", "residual", "conv", "sequence"):
        arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
        evidence = evidence_for(arch, weights=weights)
        for _, _, site in sites_of(arch, "merge"):
            axis, share = arch.axes[site.where], shared(arch, arch.axes[site.where])
            proposal = site.form.plan(evidence.train, 1)
            (gone,) = set(range(axis.size)) - set(proposal.keep)
            losses = {}
            for stays, goes in itertools.permutations(range(axis.size), 2):
                losses[stays, goes] = 0.0
                for (param, dim), carrier in zip(share.slots, share.carriers, strict=True):
                    h = activations(evidence.train, axis, *carrier)
                    weight = weights[param].movedim(dim, 0)[[k for k, u in enumerate(arch.derived.units(axis.id, param, dim)) if u == goes]]
                    times = torch.linalg.lstsq(h[stays].unsqueeze(1), h[goes].unsqueeze(1)).solution
                    losses[stays, goes] += float((h[goes] - times * h[stays]).square().mean() * weight.square().sum())
            best = min(losses, key=losses.get)
            assert gone == best[1], (name, site.where)


@pytest.mark.parametrize(("act", "times"), [("relu", 2.5), ("tanh", 1.0), ("gelu", 1.0)])
def test_a_unit_that_is_a_multiple_of_another_costs_nothing(act, times):
    arch = Architecture({"x": of("input", shape=(4,)), "h": of("linear", "x", width=5), "a": of(act, "h"), "y": of("linear", "a", width=3)})
    weights = weights_for(arch)
    for n in ("h.weight", "h.bias"):
        weights[n][3] = times * weights[n][1]
    merged, proposal = done(arch, weights, "merge", "h")
    assert set(proposal.keep) in ({0, 1, 2, 4}, {0, 2, 3, 4})
    x = fold_for(arch, "classification", 7).x
    close(run(merged.arch, merged.full, x), run(arch, weights, x), 1e-12)


def test_merging_and_leaving_out_are_priced_by_real_forwards():
    """The gain is what the loss of the smaller network differs by, on the training rows."""
    for name in ("mlp", "transformer", "grouped"):
        arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
        evidence, fold = evidence_for(arch, rows=30, weights=weights), fold_for(arch, "classification", 30)
        for edit, options, site in sites_of(arch, "merge", "prune", "bypass"):
            if not site.form.settles:
                continue
            proposal = serving(RANDOM, site.form).propose(evidence, site, 1, (0,))
            if proposal.status != "ok":
                continue
            gain, smaller = value(evidence, site, proposal), made(arch, weights, edit, options, site, proposal)
            y, loss = evidence.train.y, LOSSES["classification"]
            each = [loss.each(run(a, w, fold.x), y, beta=evidence.train.beta) for a, w in ((arch, weights), (smaller.arch, smaller.full))]
            close(gain.nats, float((each[0] - each[1]).mean()), 1e-6)


def test_the_unit_left_out_is_the_one_the_network_is_best_without():
    """Of all units, where there are no more than are tried."""
    arch = stream()
    weights, edit = weights_for(arch), REGISTRY.get("prune")
    evidence = evidence_for(arch, weights=weights)
    _, _, site = only(arch, "prune", "emb")
    proposal = site.form.plan(evidence.train, 1)
    worth = {}
    for u in range(4):
        keep = tuple(k for k in range(4) if k != u)
        s, t = (x.mean() for x in _slopes(site, evidence.train, Proposal(units=1, keep=keep)))
        worth[keep] = float(s - t / 2)
    assert proposal.keep == max(worth, key=worth.get) and edit.rewrite(arch, site, proposal).arch.axes["emb"].size == 3


def _slopes(site, seen, proposal):
    s, t = slopes_of(site.form, seen, site.form.effect(seen, proposal))
    return s, t.square()


# Layers in series


CONVS = {
    "after": {"c": {"channels": 4, "kernel": 3, "stride": 2}, "d": {"channels": 3, "kernel": 1}},
    "before": {"c": {"channels": 4, "kernel": 1, "bias": False}, "d": {"channels": 3, "kernel": 3}},
    "unpadded": {"c": {"channels": 2, "kernel": 1}, "d": {"channels": 3, "kernel": 3, "padding": 0, "bias": False}},
}


@pytest.mark.parametrize("name", list(CONVS))
@pytest.mark.parametrize("norm", [False, True])
def test_two_convolutions_become_one(name, norm):
    if norm and name == "before":
        return  # a constant, and padding behind it: not folded, see below
    given = CONVS[name]
    arch = Architecture({
        "x": of("input", shape=(8, 6, 6)), "c": of("conv2d", "x", **given["c"]), **({"n": of("batchnorm", "c")} if norm else {}),
        "d": of("conv2d", "n" if norm else "c", **given["d"]), "b": of("tanh", "d"), "g": of("global_avg_pool", "b"), "y": of("linear", "g", width=3),
    })  # fmt: skip
    weights, x = weights_for(arch), fold_for(arch, "classification", 4).x
    edit = REGISTRY.get("fold")
    sites = list(edit.match(arch, edit.Options()))
    if not sites:  # the one map would be larger than the two
        assert name in ("before", "unpadded")
        return
    folded = made(arch, weights, edit, edit.Options(), sites[0], Proposal())
    assert set(arch.nodes) - set(folded.arch.nodes) >= {"c"} and folded.arch.size < arch.size
    close(run(folded.arch, folded.full, x), run(arch, weights, x), 1e-12)


def test_the_product_is_the_product():
    arch, weights = NETWORKS["stacked"], weights_for(NETWORKS["stacked"])
    folded, _ = done(arch, weights, "fold", "h + i")
    close(folded.full["i.weight"], weights["i.weight"] @ weights["h.weight"], 1e-15)
    close(folded.full["i.bias"], weights["i.weight"] @ weights["h.bias"], 1e-15)
    assert folded.arch.nodes["i"].inputs == ("g",) and "h" not in folded.arch.nodes
    assert offered(arch, "fold") == ["c + p", "p + n + q", "h + i"] and "p + n" in offered(arch, "fold", norms=True)


def test_what_is_not_one_linear_map_is_not_folded():
    padded = Architecture({
        "x": of("input", shape=(8, 5, 5)), "c": of("conv2d", "x", channels=9, kernel=1), "d": of("conv2d", "c", channels=2, kernel=3),
        "b": of("tanh", "d"), "g": of("global_avg_pool", "b"), "y": of("linear", "g", width=3),
    })  # fmt: skip
    assert offered(padded, "fold") == []  # the second pads with zeros, not with the first one's bias
    assert offered(padded.replace({"c": of("conv2d", "x", channels=9, kernel=1, bias=False)}), "fold") == ["c + d"]
    stacked = NETWORKS["stacked"]
    twice = stacked.replace({"also": of("linear", "h", width=4), "i2": of("add", "i", "also"), "b": of("tanh", "i2")})
    assert "h + i" not in offered(twice, "fold")
    assert offered(NETWORKS["mlp"], "fold") == [] and offered(stacked.replace({"h": of("linear", "g", width=2)}), "fold")[-1] == "p + n + q"


@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_an_inserted_layer_does_nothing_at_first(act):
    for name in ("conv", "residual", "tokens", "sequence"):
        arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
        x = fold_for(arch, "classification", 4).x
        for _, _, site in sites_of(arch, "insert", act=act):
            evidence = evidence_for(arch, rows=4, weights=weights)
            begin = site.form.begin(evidence.train, (0,))
            assert site.form.keeps(evidence.train, begin)
            close(run(site.form.frame, {**weights, **begin}, x), run(arch, weights, x), 1e-12)
            # In series where the identity can pass the activation, else beside the tensor.
            series = len(site.form.nodes) == 2
            assert series == (act == "relu" and _never_negative(arch, site.where))


def _never_negative(arch, name):
    for seed in range(20):
        weights = weights_for(arch, seed)
        evidence = evidence_for(arch, rows=20, weights=weights)
        if float(evidence.train.values[name].min()) < 0:
            return False
    return True


def test_a_layer_that_does_nothing_is_bypassed_for_nothing():
    arch = NETWORKS["mlp"]
    grew, _ = done(arch, weights_for(arch), "insert", "a2")
    edit, _, site = only(grew.arch, "bypass", "more1.in .. more1.act")
    start = site.form.frame
    weights = {**weights_for(arch), "more1.in.weight": torch.eye(3, dtype=torch.float64), "more1.in.bias": torch.zeros(3, dtype=torch.float64)}
    gain = value(evidence_for(start, weights=weights), site, Proposal(units=1))
    assert gain.nats == 0.0 and gain.stderr == 0.0 and gain.status == "ok"
    assert edit.rewrite(grew.arch, site, Proposal()).arch == arch


# Experts


@settings(max_examples=6)
@given(st.integers(2, 5), st.integers(2, 6), st.booleans(), st.integers(0, 99))
def test_experts_are_copies_whatever_the_router_says(experts, top, biased, seed):
    arch = Architecture({
        "x": of("input", shape=(4, 3)), "up": of("token_linear", "x", width=5, bias=biased), "a": of("gelu", "up"), "down": of("token_linear", "a", width=6, bias=biased),
        "m": of("mean", "down", dims=(1,)), "y": of("linear", "m", width=3),
    })  # fmt: skip
    weights, x = weights_for(arch, seed), fold_for(arch, "classification", 5).x
    edit, _, site = only(arch, "upcycle", "up .. down", experts=experts, top=top)
    rewrite = edit.rewrite(arch, site, Proposal())
    after = preserving(rewrite, weights, weights_for(rewrite.arch, seed + 1))
    close(run(rewrite.arch, after, x), run(arch, weights, x), 1e-12)
    # Condensed it is the mean of the experts, each by itself.
    wild = weights_for(rewrite.arch, seed)
    less = REGISTRY.get("condense")
    (back,) = less.match(rewrite.arch, less.Options())
    dense = made(rewrite.arch, wild, less, less.Options(), back, Proposal())
    up, down = wild["moe1.up"].view(experts, 5, 3), wild["moe1.down"]
    close(dense.full["ff1.up.weight"], up.mean(0), 1e-12)
    close(dense.full["ff1.down.weight"], down.mean(0).T, 1e-12)
    assert not less.rewrite(rewrite.arch, back, Proposal()).keeps


def test_only_plain_feed_forward_layers_become_experts():
    arch = NETWORKS["mlp"]
    assert offered(arch, "upcycle") == ["h1 .. h2"]  # behind the second there is a norm
    assert offered(arch.replace({"a1": of("leaky_relu", "h1", slope=0.3)}), "upcycle") == []  # an option that a mixture has not


# Carried along


def test_moments_of_what_was_divided_begin_anew():
    arch, weights = NETWORKS["mlp"], weights_for(NETWORKS["mlp"])
    moments = {"avg": {n: torch.rand(s, dtype=torch.float64) + 1 for n, s in arch.params.items()}}
    edit, options, site = only(arch, "split", "h1")
    part = Part(edit, options, site, Proposal("trial", units=1, keep=(0, 1, 2, 3, 2)))
    after = apply(arch, weights, moments, {"avg": -1.0}, [part], (0,))
    reads, writes = after.moments["avg"]["h2.weight"], after.moments["avg"]["h1.weight"]
    assert bool((reads[:, [2, 4]] == -1).all()) and torch.equal(reads[:, [0, 1, 3]], moments["avg"]["h2.weight"][:, [0, 1, 3]])
    assert torch.equal(writes, moments["avg"]["h1.weight"][[0, 1, 2, 3, 2]])
    assert torch.equal(after.moments["avg"]["y.weight"], moments["avg"]["y.weight"])


def test_two_edits_at_once_or_a_reason():
    arch, weights = NETWORKS["residual"], weights_for(NETWORKS["residual"])
    evidence, x = evidence_for(arch, weights=weights), fold_for(arch, "classification", 5).x
    parts = []
    for edit, options, site in (only(arch, "split", "stem"), only(arch, "split", "mid"), only(arch, "upcycle", "mid .. back")):
        parts.append(Part(edit, options, site, serving(RANDOM, site.form).propose(evidence, site, 1, (0,))))
    both = apply(arch, weights, {}, {}, parts[:2], (0,))
    close(run(both.arch, both.full, x), run(arch, weights, x), 1e-12)
    late = apply(arch, weights, {}, {}, [parts[2], parts[1]], (0,))  # the units are those of experts by then
    assert isinstance(late, Refusal) and late.reason


# In a search

RECASTS = WINE | {"edits": ["split", "merge", "insert", "fold", "bypass", {"upcycle": {"experts": 2}}, "condense", {"deepen": {"act": ["tanh", "relu"]}}], "budget": {"steps": 2}}


def test_a_search_over_them_stops_and_goes_on(tmp_path):
    plan = plan_of(RECASTS | {"select": {"by": "metropolis", "proposals": 2, "temperature": {"start": 5.0, "end": 5.0}}})
    one, two = whole(tmp_path / "whole", plan), stopped(tmp_path / "stopped", plan)
    assert one == two and any(p["edit"] != "null" for _, kind, p, _ in one if kind == "step")


def test_what_costs_nothing_is_taken_where_nothing_grows(tmp_path):
    """A linear map after another is folded away by the usual chooser, though single precision leaves something of the difference."""
    layers = {"layers": ["linear 6", "linear 4", "tanh", "linear 3"]}
    plan = plan_of(WINE | {"model": layers, "edits": ["fold"], "budget": {"steps": 1}, "train": WINE.get("train", {}) | {"epochs": {"first": 2, "between": 1, "final": 0}}})
    steps = [p for _, kind, p, _ in whole(tmp_path / "run", plan) if kind == "step"]
    assert [p["edit"] for p in steps] == ["fold"] and abs(steps[0]["val_loss"]) < 10


# What is offered


def test_grids_of_one_edit_keep_their_sites_apart():
    """Each variant has keys of its own, finds its sites, and prices what it makes."""
    edit = REGISTRY.get("deepen")
    options = edit.Options(act=("tanh", "relu"), kernel=(1, 3), op=("dense", "depthwise"))
    sites = edit.match(NETWORKS["conv"], options)
    keys = [s.key for s in sites]
    assert len(set(keys)) == len(keys) == len(sites) and [sites[k].key for k in range(len(sites))] == keys
    for grid in sites.parts:
        assert [grid.find(s.key) for s in grid] == list(range(len(grid)))
    assert {s.where.partition(" (")[2] for s in sites if s.detail[1] == "c2"} >= {"dense, tanh, kernel 1)", "depthwise, relu, kernel 3)"}
    # Vectors have no kernels: one site each for what kernels make no difference to.
    vectors = edit.match(NETWORKS["mlp"], options)
    assert len(vectors) == 2 * len(edit.match(NETWORKS["mlp"], edit.Options()))


class Again(REGISTRY.get("connect")):
    """A user's own edit that makes what `connect` makes, and calls it something else."""

    @classmethod
    def match(cls, arch, options):
        return [replace(site, edit="again") for site in REGISTRY.get("connect").match(arch, options)]


def test_a_network_is_offered_once_whatever_it_is_called():
    arch, connect = NETWORKS["residual"], REGISTRY.get("connect")
    evidence = evidence_for(arch, rows=60)
    twice = [(connect, connect.Options()), (Again, connect.Options(where="**"))]
    alone = propose(evidence, [(Again, connect.Options())], RANDOM, Limits(), alpha=0.05, key=(0,))
    both = propose(evidence, [*twice, (REGISTRY.get("widen"), REGISTRY.get("widen").Options())], RANDOM, Limits(), alpha=0.05, key=(0,))
    joined = [s for s in both[1:] if s.candidate.key.split()[0] in ("connect", "again")]
    assert len({s.candidate.where for s in joined}) == len(joined) == len(alone) - 1 > 3
    best = {s.candidate.where: max(s.candidate.gain, 0) for s in alone[1:]}
    assert all(s.candidate.gain >= best[s.candidate.where] - 1e-12 for s in joined)


@pytest.mark.parametrize(("name", "source", "target", "fit"), [
    ("conv", "p", "y", "global_avg_pool"), ("conv", "x", "y", "global_avg_pool"), ("tokens", "a", "y", "mean"), ("unet", "x", "o", None),
])  # fmt: skip
def test_tensors_of_other_kinds_are_connected_behind_their_mean(name, source, target, fit):
    arch = NETWORKS[name]
    found = {s.where: s for _, _, s in sites_of(arch, "connect", adapt=True) if s.form.trial}
    assert (f"{source} -> {target}" in found) == (fit is not None)
    if fit:
        (bridge,) = found[f"{source} -> {target}"].detail
        assert bridge.before.op == fit
        close(sum(p.numel() for n, p in weights_for(found[f"{source} -> {target}"].form.frame).items() if n.startswith("link1.")), arch.shapes[source][-1 if fit == "mean" else 0] * 3)
    assert not {s.where for _, _, s in sites_of(arch, "connect")} & set(found)


@pytest.mark.parametrize("name", ["concat", "twice", "unet"])
def test_a_part_that_is_joined_no_more_is_one_that_nobody_reads(name):
    arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
    x, found = fold_for(arch, "classification", 4).x, 0
    for edit, options, site in sites_of(arch, "remove"):
        if " from " in site.where:
            rewrite, unread = edit.rewrite(arch, site, Proposal()), dict(weights)
            for move in rewrite.moves:
                gone = [k for k in range(arch.params[move.param][move.axis]) if k not in move.index]
                unread[move.param] = unread[move.param].index_fill(move.axis, torch.tensor(gone), 0.0)
            smaller = made(arch, weights, edit, options, site, Proposal())
            close(run(smaller.arch, smaller.full, x), run(arch, unread, x), 1e-12)
            found += 1
    assert found >= 2


def test_the_page_on_edits_tells_all_of_them():
    page = (Path(__file__).parents[1] / "docs" / "edits.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(" `"): row for row in page.split("| edit |")[1].split("\n\n")[0].splitlines()[2:]}
    assert set(rows) == set(REGISTRY)
    for name, row in rows.items():
        edit = REGISTRY.get(name)
        *_, undone, options, _ = (set(cell.replace("`", "").replace(" ", "").split(",")) - {""} for cell in row.split("|"))
        assert undone == set(edit.undone_by) and options == set(edit.Options.model_fields) - {"where"}, name


def test_a_linear_layer_put_in_is_folded_away_to_the_bit():
    """The identity times a weight is the weight."""
    for name in ("mlp", "residual", "tokens"):
        arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
        for _, _, site in sites_of(arch, "insert", act="none"):
            reader = site.detail[1]
            begin = site.form.begin(evidence_for(arch, rows=4, weights=weights).train, (0,))
            fold = REGISTRY.get("fold")
            back = next((s for s in fold.match(site.form.frame, fold.Options()) if s.where == f"more1.in + {reader}"), None)
            if len(arch.consumers[site.where]) > 1 or f"{reader}.bias" not in arch.params:
                continue
            folded = made(site.form.frame, {**weights, **begin}, fold, fold.Options(), back, Proposal())
            assert folded.arch == arch and all(torch.equal(folded.full[n], w) for n, w in weights.items())
            break
        else:
            raise AssertionError(name)


def test_what_only_unscored_outputs_need_does_not_look_free():
    arch, weights = NETWORKS["ends"], weights_for(NETWORKS["ends"])
    both = arch.replace({"extra": of("linear", "a", width=4), "extra_act": of("tanh", "extra"), "aux": of("linear", "extra_act", width=2)})
    weights = weights_for(both)
    evidence = evidence_for(both, weights=weights)
    for kind, free in (("bypass", "extra .. extra_act"), ("merge", "extra")):
        _, _, site = only(both, kind, free)
        proposal = serving(RANDOM, site.form).propose(evidence, site, 1, (0,))
        assert proposal.status != "ok" or value(evidence, site, proposal).status == "unsupported"
    _, _, site = only(both, "merge", "k")
    assert value(evidence, site, serving(RANDOM, site.form).propose(evidence, site, 1, (0,))).status == "ok"
