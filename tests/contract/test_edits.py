"""The edit kit: what every registered edit keeps, over random architectures and those it may meet trouble in."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache

import axis_oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_network
from seen_networks import LOSSES, NETWORKS, RANDOM, close, done, evidence_for, fold_for, of, proposed, run, sites_of, weights_for

from dagrow.applying import Applied, Part, apply
from dagrow.compiler import compile_architecture, parameters_by_name, with_source
from dagrow.edits import REGISTRY
from dagrow.graph import Architecture, Refusal, Rewrite
from dagrow.measure.sites import Site
from dagrow.propose import NULL, Limits, propose, sites
from dagrow.scores import Proposal

each_edit = pytest.mark.parametrize("kind", list(REGISTRY))
few = settings(max_examples=5)


def _transformer(**layer):
    """Positions, layer norms, attention of two heads, and a feed-forward layer or a mixture of experts."""
    forward = {"down": of("moe", "n2", **layer)} if layer else {
        "up": of("token_linear", "n2", width=5), "act": of("gelu", "up"), "down": of("token_linear", "act", width=6),
    }  # fmt: skip
    return Architecture({
        "x": of("input", shape=(4, 3)), "emb": of("token_linear", "x", width=6), "pos": of("position", "emb"), "n1": of("layernorm", "pos"),
        "q": of("token_linear", "n1", width=4), "k": of("token_linear", "n1", width=4), "v": of("token_linear", "n1", width=6),
        "att": of("attention", "q", "k", "v", heads=2), "o": of("token_linear", "att", width=6), "s1": of("add", "pos", "o"),
        "n2": of("layernorm", "s1"), **forward, "s2": of("add", "s1", "down"), "n3": of("layernorm", "s2"), "cls": of("mean", "n3", dims=(1,)),
        "y": of("linear", "cls", width=3),
    })  # fmt: skip


def _groups():
    return Architecture({
        "x": of("input", shape=(2, 5, 5)), "c": of("conv2d", "x", channels=6, kernel=3), "n": of("groupnorm", "c", groups=3), "a": of("tanh", "n"),
        "g": of("global_avg_pool", "a"), "y": of("linear", "g", width=3),
    })  # fmt: skip


ALL = NETWORKS | {
    "transformer": _transformer(), "all_experts": _transformer(experts=2, hidden=3, top=2), "some_experts": _transformer(experts=3, hidden=2, top=2),
    "groups": _groups(),
}  # fmt: skip
any_network = st.one_of(
    st.sampled_from(sorted(ALL)).map(ALL.get), st.integers(0, 2**20).map(random_network),
    st.integers(0, 40).map(lambda s: with_branches(s)),
)  # fmt: skip


@lru_cache(64)
def with_branches(seed: int) -> Architecture:
    """A network that edits have made, so that there is something to remove."""
    arch = NETWORKS[sorted(NETWORKS)[seed % len(NETWORKS)]]
    for kind in ("deepen", "connect"):
        found = sites_of(arch, kind)
        if found:
            edit, _, site = found[seed // 3 % len(found)]
            arch = edit.rewrite(arch, site, Proposal(units=2)).arch
    return arch


@each_edit
def test_it_matches_somewhere(kind):
    """A new edit needs a network that it applies to."""
    every = ({}, *REGISTRY.get(kind).examples)
    assert any(sites_of(arch, kind, **given) for arch in [*ALL.values(), *map(with_branches, range(12))] for given in every)


@each_edit
@few
@given(arch=any_network)
def test_sites_have_keys_of_their_own_and_are_found_again(kind, arch):
    found = [site for _, _, site in sites_of(arch, kind)]
    assert all(isinstance(s, Site) and s.edit == kind and s.where for s in found)
    assert len({s.key for s in found}) == len(found)
    assert all(s.units and list(s.units) == sorted(set(s.units)) for s in found)
    again = [site for _, _, site in sites_of(Architecture.from_dict(arch.to_dict()), kind)]
    assert [(s.key, s.form, s.units, s.detail) for s in again] == [(s.key, s.form, s.units, s.detail) for s in found]
    narrow = [s for _, _, s in sites_of(arch, kind, where="no.such.node")]
    assert narrow == []


@each_edit
@few
@given(arch=any_network)
def test_the_graph_is_valid_and_the_change_is_what_was_predicted(kind, arch):
    for part, weights in proposed(arch, kind):
        rewrite = part.edit.rewrite(arch, part.site, part.proposal)
        assert isinstance(rewrite, Rewrite), rewrite
        made = done(arch, part, weights)
        assert made.arch == rewrite.arch == Architecture.from_dict(made.arch.to_dict())
        assert made.arch.shapes[made.arch.outputs[0]] == arch.shapes[arch.outputs[0]] and made.arch.inputs == arch.inputs
        assert sum(made.full[n].numel() for n in made.arch.params) == made.arch.size
        if part.site.form.trial and not part.site.form.settles:
            assert made.arch == part.site.form.frame
        elif part.site.form.grows:
            assert made.arch.size > arch.size and made.arch.macs > arch.macs
        else:
            assert made.arch.size < arch.size and made.arch.macs <= arch.macs
    if proposed(arch, kind):
        axis_oracles.shapes_and_macs_are_real(done(arch, *proposed(arch, kind)[-1]).arch)


@each_edit
@few
@given(arch=any_network)
def test_candidates_cost_what_they_say_and_no_more_than_there_is(kind, arch):
    edit = REGISTRY.get(kind)
    evidence = evidence_for(arch, rows=8)
    limits = Limits(arch.size + 25, arch.macs * 3)
    found = propose(evidence, [(edit, edit.Options())], RANDOM, limits, alpha=0.05, key=(0,))
    assert found[0].candidate == NULL and [s.candidate.index for s in found] == list(range(len(found)))
    assert len(found) - 1 == len({(s.candidate.key, s.candidate.units) for s in found[1:]})
    for s in found[1:]:
        c = s.candidate
        if s.part is None:
            assert c.verdict in ("too dear", "unsupported") and s.reason
            continue
        made = done(arch, s.part, evidence.weights)
        assert (made.arch.size - arch.size, made.arch.macs - arch.macs) == (c.params, c.macs), c
        assert limits.admit(made.arch) and c.units is not None
        grows, trial = s.part.site.form.grows, s.part.site.form.trial
        assert c.verdict in ((("grow", "trial") if trial else ("grow", "noise")) if grows else ("shrink",)) and (c.verdict != "trial" or s.reason)


@each_edit
@few
@given(arch=any_network)
def test_preservation_as_claimed(kind, arch):
    """Amplitude 0 keeps the function of what grows; so does zeroing the slots that the rewrite names, whatever else is there.

    A rewrite that names none keeps it where its newborns start, or is a swap that says it does not.
    """
    x = fold_for(arch, "classification", 5).x
    for part, weights in proposed(arch, kind):
        made = done(arch, part, weights)
        rewrite = part.edit.rewrite(arch, part.site, part.proposal)
        if part.edit.preserves:
            close(run(made.arch, made.weights(0.0) if part.site.form.grows else made.full, x), run(arch, weights, x), 1e-10)
        elif part.edit.preserves is False:
            assert not rewrite.keeps
        if part.site.form.settles:
            # What the rewrite itself keeps it keeps, from whatever the weights are; a trial starts there.
            if rewrite.keeps:
                close(run(made.arch, made.full, x), run(arch, weights, x), 1e-12)
            assert part.proposal.status == ("trial" if part.site.form.grows else "ok")
        elif part.site.form.grows and (part.proposal.start or not part.site.form.trial):
            close(run(made.arch, made.weights(0.0), x), run(arch, weights, x), 1e-10)
            assert (rewrite.zero is None) == bool(part.proposal.start)
        elif part.site.form.trial:
            assert rewrite.zero is None and part.proposal.status == "trial"
        if rewrite.zero is not None:
            wild = {n: w.clone() for n, w in made.full.items()}
            for name, axis in rewrite.zero:
                moved = next((m.index for m in rewrite.moves if (m.param, m.axis) == (name, axis)), None)
                born = [k for k, o in enumerate(moved) if o < 0] if moved else range(wild[name].shape[axis])
                wild[name].index_fill_(axis, torch.tensor(list(born), dtype=torch.long), 0.0)
            close(run(rewrite.arch, wild, x), run(arch, weights, x), 1e-10)


@each_edit
@few
@given(arch=any_network)
def test_everything_still_trains(kind, arch):
    """Every parameter of the grown network has a gradient wherever it had one before, and so do the newborns."""
    fold, loss = fold_for(arch, "classification", 30), LOSSES["classification"]

    def grads(arch, weights):
        model = compile_architecture(arch, weights).train()
        made = model(fold.x)
        first, *others = made if isinstance(made, tuple) else (made,)
        (loss.mean(first, fold.y) + sum(o.square().mean() for o in others)).backward()
        return {n: p.grad for n, p in parameters_by_name(model).items()}

    seen = grads(arch, weights_for(arch))
    for part, weights in proposed(arch, kind, smooth=True)[:3]:
        made = done(arch, part, weights)
        dying = any(node.op == "relu" for node in arch.nodes.values())
        found = grads(made.arch, made.full)
        if part.proposal.status == "trial":  # what starts at zero, or as copies, may hold back others: for one step
            found = grads(made.arch, {n: w - 0.1 * found[n] if n in found and found[n] is not None else w for n, w in made.full.items()})
        for n, g in found.items():
            assert g is not None and bool(torch.isfinite(g).all()), (part.site.key, n)
            # A bias before a batch norm has none; a ReLU may be dead on all rows.
            if not dying and (n not in seen or float(seen[n].abs().max()) > 1e-10):
                assert float(g.abs().max()) > 0, (part.site.key, n)


growing = pytest.mark.parametrize("kind", [k for k in REGISTRY if REGISTRY.get(k).undone_by])


@growing
@few
@given(arch=any_network)
def test_what_undoes_an_edit_gives_the_same_bits(kind, arch):
    """The edit that is named finds the place, and leaves the network that was there, names of new nodes aside."""
    for part, weights in proposed(arch, kind):
        made = done(arch, part, weights)
        found = part.edit.undo(arch, part.site, part.proposal, made.full)
        if found is None:
            rewrite = part.edit.rewrite(arch, part.site, part.proposal)
            assert rewrite.settle is not None, part.site.key  # what was scaled
            continue
        name, where, proposal = found
        assert name in part.edit.undone_by
        back = REGISTRY.get(name)
        site = next((s for s in back.match(made.arch, back.Options()) if s.where == where), None)
        assert site is not None, (part.site.key, name, where)
        again = apply(made.arch, made.full, {}, {}, [Part(back, back.Options(), site, proposal)], (0, "undo"))
        assert isinstance(again, Applied), (part.site.key, again)
        assert again.arch.same_form(arch), part.site.key
        names = dict(zip(again.arch.order, arch.order, strict=True)) if again.arch != arch else {n: n for n in arch.order}
        for node, old in names.items():
            for local, full in again.arch.formed.locals[node].items():
                assert torch.equal(again.full[full], weights[arch.formed.locals[old][local]]), (part.site.key, full)


@growing
def test_every_growing_edit_is_undone_somewhere(kind):
    edit = REGISTRY.get(kind)
    assert any(
        edit.undo(arch, part.site, part.proposal, done(arch, part, weights).full) is not None for arch in ALL.values() for part, weights in proposed(arch, kind)
    )


@each_edit
@settings(max_examples=2)
@given(arch=any_network)
def test_what_an_edit_makes_is_the_same_in_torchscript(kind, arch):
    x = fold_for(arch, "classification", 3).x
    for part, weights in proposed(arch, kind)[-1:]:
        made = done(arch, part, weights)
        model = compile_architecture(made.arch, made.full).eval()
        with warnings.catch_warnings(), with_source(model), torch.no_grad():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
            eager, scripted = model(x), torch.jit.script(model)(x)
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (scripted, eager)), strict=True):
            close(a, b, 1e-12)


@each_edit
@few
@given(arch=any_network)
def test_the_same_site_and_proposal_make_the_same_network(kind, arch):
    for part, weights in proposed(arch, kind)[:3]:
        one, two = done(arch, part, weights), done(arch, part, weights)
        assert one.arch == two.arch and all(torch.equal(one.full[n], two.full[n]) for n in one.full)


@each_edit
@few
@given(arch=any_network)
def test_what_cannot_be_is_refused_with_a_reason(kind, arch):
    for part, weights in proposed(arch, kind)[:2]:
        for units in (2**21,):
            if part.site.form.grows and hasattr(part.site.form, "writers"):
                try:
                    made = part.edit.rewrite(arch, part.site, Proposal(units=units))
                except ValueError as error:  # an op's own options refuse the size before anything is built
                    assert "less than or equal" in str(error)
                else:
                    assert isinstance(made, Refusal) and made.reason
        if part.proposal.keep is not None:
            size = max(part.proposal.keep) + 1
            for keep in ((), (0, 0, -2), (size + 100,), (0, 2**40), (-1,)):
                made = part.edit.rewrite(arch, part.site, replace(part.proposal, keep=keep))
                assert isinstance(made, Refusal) and made.reason, (part.site.key, keep)
        gone = Part(part.edit, part.options, Site(part.site.edit, "no.such", part.site.form, (1,), ()), part.proposal)
        refused = apply(arch, weights, {}, {}, [part, gone], (0,))
        assert isinstance(refused, Refusal) and refused.reason


@few
@given(arch=any_network)
def test_an_edit_listed_twice_offers_a_site_once(arch):
    listed = [(REGISTRY.get(k), REGISTRY.get(k).Options()) for k in (*REGISTRY, *REGISTRY)]
    keys = [site.key for _, _, site in sites(arch, listed)]
    assert len(keys) == len(set(keys)) and set(keys) == {s.key for _, _, s in sites_of(arch)}
