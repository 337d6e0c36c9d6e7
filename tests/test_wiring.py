"""Each edit by name: where it applies, how one undoes another, and the wiring they share."""

from __future__ import annotations

import re

import pytest
import torch
from seen_networks import NETWORKS, close, done, fold_for, of, proposed, run, sites_of, weights_for

from dagrow.applying import Part, apply
from dagrow.edits import REGISTRY
from dagrow.edits.widen import units_of
from dagrow.edits.wiring import add_to, fresh_name, joins, stride_between, without
from dagrow.graph import Architecture, Refusal
from dagrow.scores import Proposal


@pytest.mark.parametrize("kind", ["deepen", "connect"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_remove_undoes_a_branch_bit_for_bit(kind, name):
    arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
    remove, undone = REGISTRY.get("remove"), 0
    for part, _ in proposed(arch, kind):
        grown = done(arch, part, weights)
        new = [n for n in grown.arch.nodes if n not in arch.nodes]
        back = [s for s in remove.match(grown.arch, remove.Options()) if s.where in new]
        assert len(back) == 1, (part.site.key, [s.where for s in back])
        cut = apply(grown.arch, grown.full, {}, {}, [Part(remove, remove.Options(), back[0], Proposal())], (0,))
        assert cut.arch.same_form(arch) and cut.arch == arch
        assert cut.full.keys() == weights.keys() and all(torch.equal(cut.full[n], w) for n, w in weights.items())
        undone += 1
    assert undone or not sites_of(arch, kind)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_prune_undoes_widen_bit_for_bit(name):
    arch, weights = NETWORKS[name], weights_for(NETWORKS[name])
    prune = REGISTRY.get("prune")
    for part, _ in proposed(arch, "widen"):
        axis, size = part.site.detail
        if part.site.form.trial:  # the edit kit undoes those
            continue
        grown = done(arch, part, weights)
        back = next(s for s in prune.match(grown.arch, prune.Options()) if s.where == part.site.where)
        cut = apply(grown.arch, grown.full, {}, {}, [Part(prune, prune.Options(), back, Proposal(keep=tuple(range(size))))], (0,))
        assert cut.arch == arch and all(torch.equal(cut.full[n], w) for n, w in weights.items())


@pytest.mark.parametrize("kind", ["deepen", "connect"])
def test_branches_can_be_added_to_what_branches_made(kind):
    """Ten in a row, wherever they go: names stay free, the graph valid, the function kept."""
    arch, weights = NETWORKS["residual"], weights_for(NETWORKS["residual"])
    x = fold_for(arch, "classification", 5).x
    before = run(arch, weights, x)
    for step in range(6):
        found = sites_of(arch, kind)
        if not found:
            break
        edit, options, site = found[(5 * step + 1) % len(found)]
        made = apply(arch, weights, {}, {}, [Part(edit, options, site, Proposal(units=2))], (0, step))
        arch, weights = made.arch, made.weights(0.0)
        close(run(arch, weights, x), before, 1e-10)
        assert all(re.fullmatch(r"[a-z0-9_.]+", n) for n in arch.nodes)


@pytest.mark.parametrize(("kind", "where", "expected"), [
    ("widen", "h1", {"h1"}), ("widen", "h*", {"h1", "h2"}), ("prune", "h2", {"h2"}), ("connect", "y", {"x -> y", "a1 -> y"}),
    ("deepen", "h1", {"x -> h1"}),
])  # fmt: skip
def test_where_says_where(kind, where, expected):
    assert {s.where for _, _, s in sites_of(NETWORKS["mlp"], kind, where=where)} == expected


def test_limits_of_widen_and_prune():
    arch = NETWORKS["mlp"]
    assert [s.units for _, _, s in sites_of(arch, "widen", max=5, units=(1, 2, 8))] == [(1,), (1, 2)]
    assert [s.where for _, _, s in sites_of(arch, "widen", max=3)] == []
    assert [(s.where, s.units) for _, _, s in sites_of(arch, "prune", min=2, units=(1, 2, 3))] == [("h1", (1, 2)), ("h2", (1,))]
    assert sites_of(arch, "prune", min=4) == []


def test_a_residual_stream_can_be_joined_anywhere():
    places = {s.where for _, _, s in sites_of(NETWORKS["residual"], "deepen")}
    assert {"x -> back", "a -> back", "c -> y"} <= places or {"x -> back", "c -> y"} <= places
    assert "x -> stem" in places


def test_several_targets_of_one_sum_are_one_place():
    assert {t for _, t, _ in joins(NETWORKS["shared"])} == {"a", "b", "up"}
    # Where the first cannot be joined as a whole, the next stands for the sum.
    assert {t for _, t, _ in joins(NETWORKS["grouped"])} == {"up", "side", "y"}


def test_no_branch_closes_a_cycle():
    for arch in NETWORKS.values():
        for edit, _, site in sites_of(arch, "deepen", "connect"):
            assert edit.rewrite(arch, site, Proposal(units=1)).arch.order


def test_strides_between_maps():
    assert stride_between((3,), (9,)) == 1 and stride_between((3,), (9, 2)) is None
    assert stride_between((1, 8, 8), (4, 4, 4)) == 2 and stride_between((1, 7, 7), (4, 4, 4)) == 2
    assert stride_between((1, 9), (4, 3)) == 4 and stride_between((1, 9), (4, 4)) is None and stride_between((1, 4, 4), (1, 8, 8)) is None
    assert stride_between((1, 8, 6), (1, 4, 6)) is None


def test_a_branch_over_a_stride_fits():
    nodes = {
        "x": of("input", shape=(1, 7, 7)), "c": of("conv2d", "x", channels=2, kernel=3, stride=2), "a": of("relu", "c"),
        "d": of("conv2d", "a", channels=2), "g": of("global_avg_pool", "d"), "y": of("linear", "g", width=2),
    }  # fmt: skip
    arch = Architecture(nodes)
    for kind, place in (("deepen", "x -> c"), ("connect", "x -> d")):
        site = next(s for _, _, s in sites_of(arch, kind) if s.where == place)
        made = REGISTRY.get(kind).rewrite(arch, site, Proposal(units=3)).arch
        assert made.shapes["d"] == arch.shapes["d"]


def test_new_names_are_free():
    nodes = {"x": of("input", shape=(2,)), "h1.in": of("linear", "x", width=2), "h2": of("linear", "h1.in", width=2), "h4": of("relu", "h2")}
    arch = Architecture(nodes)
    assert fresh_name(arch, "h") == "h3" and fresh_name(arch, "x") == "x1"


def test_a_sum_that_reads_a_target_alone_takes_the_branch_in():
    arch = NETWORKS["shared"]
    made = add_to(arch, "up", {"new": of("linear", "sum", width=3)}, "new")
    assert made.nodes["y"].inputs == ("up", "side", "new") and len(made.nodes) == len(arch.nodes) + 1
    # The stem is read elsewhere too: a sum of its own, which all its readers read.
    arch = NETWORKS["residual"]
    made = add_to(arch, "stem", {"new": of("linear", "x", width=5)}, "new")
    assert made.nodes["sum1"].inputs == ("stem", "new") and made.nodes["a"].inputs == ("sum1",)
    assert made.nodes["join"].inputs == ("sum1", "back")
    # The output of the network goes to the sum.
    arch = NETWORKS["linear"]
    made = add_to(arch, "y", {"new": of("linear", "x", width=3)}, "new")
    assert made.outputs == ("sum1",)
    assert without(made, "sum1", "new") == arch


def test_what_cannot_be_taken_away_is_refused():
    arch = Architecture({"x": of("input", shape=(2,)), "a": of("linear", "x", width=2), "y": of("add", "a", "a")})
    assert isinstance(without(arch, "y", "a"), Refusal)
    # The input would be read no more.
    ends = {"x": of("input", shape=(2,)), "z": of("input", shape=(2,))}
    arch = Architecture({**ends, "a": of("linear", "x", width=2), "b": of("linear", "z", width=2), "y": of("add", "a", "b")})
    refused = without(arch, "y", "a")
    assert isinstance(refused, Refusal) and "input" in refused.reason
    assert sites_of(arch, "remove") == []


def test_an_axis_of_groups_is_no_place_for_units():
    arch = NETWORKS["grouped"]
    assert arch.axes["up~1"].size == 2 and units_of(arch, arch.axes["up~1"]) is None
    for axis in NETWORKS["depthwise"].axes.values():
        form = units_of(NETWORKS["depthwise"], axis)
        assert form is None or "dw" not in form.writers
    form = units_of(NETWORKS["depthwise"], NETWORKS["depthwise"].axes["up"])
    assert form.writers == ("up",) and form.path == ("a", "dw", "n", "b") and form.readers == ("down",)
    form = units_of(NETWORKS["residual"], NETWORKS["residual"].axes["stem"])
    assert form.writers == ("stem", "back") and form.readers == ("mid", "y") and form.sources == ("x", "b")
