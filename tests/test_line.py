"""Changes carried on through the rest of the network, against the grown network itself."""

from __future__ import annotations

import pytest
from seen_networks import LOSSES, NETWORKS, close, evidence_for, made, run, sites_of, weights_for

from dagrow.measure.onward import drops, onward
from dagrow.measure.sites import Drop, Link, Units
from dagrow.scores import REGISTRY, serving
from dagrow.scores.valuer import quadratic, value


def scorer(name: str):
    return REGISTRY.get(name)(REGISTRY.get(name).Options())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_change_carried_on_is_the_grown_networks_output(name):
    """From the targets on, whatever the amplitude: new units, what gives way to them, and what goes."""
    arch = NETWORKS[name]
    evidence = evidence_for(arch, rows=30)
    seen = evidence.train
    x = seen.values[arch.inputs[0]]
    for edit, options, site in sites_of(arch):
        rule = serving(scorer("natural"), site.form)
        proposal = rule.propose(evidence, site, 1, (0,))
        if proposal.status != "ok" or not isinstance(site.form, Units | Link | Drop):
            continue
        grown = made(arch, evidence.weights, edit, options, site, proposal)
        changes = site.form.effect(seen, proposal)

        def again(ahead, form=site.form, proposal=proposal):
            return form.effect(ahead, proposal)

        for amplitude in (1.0, 0.3) if site.form.grows else (1.0,):
            real = run(grown.arch, grown.weights(amplitude), x)
            close(onward(seen, changes, amplitude, again), real, 1e-8)
            drop, each = drops(seen, changes, amplitude, again)
            loss = LOSSES["classification"]
            assert drop == pytest.approx(float(loss.nats(run(arch, evidence.weights, x), seen.y) - loss.nats(real, seen.y)), abs=1e-9)
            assert drop == pytest.approx(float(each.mean()), abs=1e-9)


def test_the_line_goes_as_far_as_the_loss_falls():
    """Where the quadratic step is far too long, and where it is far too short."""
    arch = NETWORKS["mlp"]
    for factor in (0.02, 50.0):
        weights = weights_for(arch)
        weights["y.weight"] = weights["y.weight"] * factor
        evidence = evidence_for(arch, rows=200, weights=weights)
        for _, _, site in sites_of(arch, "widen"):
            proposal = scorer("natural").propose(evidence, site, 2, (0,))
            gain, first = value(evidence, site, proposal), quadratic(evidence, site, proposal)
            assert gain.quadratic == first.nats and gain.z == first.z
            changes = site.form.effect(evidence.train, proposal)
            found = {a: drops(evidence.train, changes, a)[0] for a in (gain.amplitude, first.amplitude, *(first.amplitude * 2.0**k for k in range(-6, 4)))}
            assert gain.nats == pytest.approx(max(found[gain.amplitude], 0.0), abs=1e-12)
            assert gain.nats >= 0.7 * max(found.values())
