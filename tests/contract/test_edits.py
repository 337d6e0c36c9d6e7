"""The edit kit: what every registered edit keeps, over random architectures and those it may meet trouble in."""

from __future__ import annotations

from functools import lru_cache

import axis_oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_network
from seen_networks import LOSSES, NETWORKS, RANDOM, close, done, evidence_for, fold_for, proposed, run, sites_of, weights_for

from dagrow.applying import Part, apply
from dagrow.compiler import compile_architecture, parameters_by_name
from dagrow.edits import REGISTRY
from dagrow.graph import Architecture, Refusal, Rewrite
from dagrow.measure.sites import Site
from dagrow.propose import NULL, Limits, propose, sites
from dagrow.scores import Proposal

each_edit = pytest.mark.parametrize("kind", list(REGISTRY))
few = settings(max_examples=7)
any_network = st.one_of(
    st.sampled_from(sorted(NETWORKS)).map(NETWORKS.get), st.integers(0, 2**20).map(random_network),
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
    assert any(sites_of(arch, kind, **given) for arch in [*NETWORKS.values(), *map(with_branches, range(12))] for given in every)


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
        for n, g in grads(made.arch, made.full).items():
            assert g is not None and bool(torch.isfinite(g).all()), (part.site.key, n)
            # A bias before a batch norm has none; a ReLU may be dead on all rows.
            if not dying and (n not in seen or float(seen[n].abs().max()) > 1e-10):
                assert float(g.abs().max()) > 0, (part.site.key, n)


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
        gone = Part(part.edit, part.options, Site(part.site.edit, "no.such", part.site.form, (1,), ()), part.proposal)
        refused = apply(arch, weights, {}, {}, [part, gone], (0,))
        assert isinstance(refused, Refusal) and refused.reason


@few
@given(arch=any_network)
def test_an_edit_listed_twice_offers_a_site_once(arch):
    listed = [(REGISTRY.get(k), REGISTRY.get(k).Options()) for k in (*REGISTRY, *REGISTRY)]
    keys = [site.key for _, _, site in sites(arch, listed)]
    assert len(keys) == len(set(keys)) and set(keys) == {s.key for _, _, s in sites_of(arch)}
