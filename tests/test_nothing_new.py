"""What the present weights can make already is no gain, in exact numbers and in rounded ones."""

from __future__ import annotations

import pytest
import torch
from seen_networks import LOSSES, fold_for, of, sites_of, weights_for

from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.measure import Evidence, measure
from dagrow.scores import REGISTRY
from dagrow.scores.aims import aim_at
from dagrow.scores.units import scale_of, sources_of
from dagrow.scores.valuer import value

NATURAL = REGISTRY.get("natural")(REGISTRY.get("natural").Options())
# No activation lies between a link's source and its target: it makes what its target's parent makes already.
LINEAR = {
    "narrow": {"x": of("input", shape=(1,)), "h": of("linear", "x", width=4), "y": of("linear", "h", width=3)},
    "wide": {"x": of("input", shape=(4,)), "h": of("linear", "x", width=6), "y": of("linear", "h", width=3)},
    "normed": {
        "x": of("input", shape=(3,)), "h": of("linear", "x", width=5), "n": of("batchnorm", "h"), "m": of("linear", "n", width=4, bias=False),
        "y": of("linear", "m", width=3),
    },
}  # fmt: skip


def evidence(nodes: dict, dtype: torch.dtype, task: str, shift: float = 0.0) -> Evidence:
    arch = Architecture(nodes)
    weights = {n: w.to(dtype) if w.is_floating_point() else w for n, w in weights_for(arch).items()}
    folds = [fold_for(arch, task, 60, seed) for seed in (0, 1)]
    train, held = (Fold((f.x + shift).to(dtype), f.y.to(dtype) if f.y.is_floating_point() else f.y) for f in folds)
    return measure(arch, weights, train, held, LOSSES[task], rows=100, seed=0, path=("test",))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("task", list(LOSSES))
@pytest.mark.parametrize("name", list(LINEAR))
def test_a_connection_that_the_parents_can_make_gains_nothing(name, task, dtype):
    seen, tried = evidence(LINEAR[name], dtype, task), 0
    for _, _, site in sites_of(seen.arch, "connect"):
        if name == "normed" and site.form.target == "y":
            continue  # the narrow layer between loses some of it: that is new
        proposal = NATURAL.propose(seen, site, 1, (0,))
        assert all(float(t.abs().max()) < 1e3 for t in (*(b.values for b in proposal.blocks), *proposal.shift.values())), site.key
        gain = value(seen, site, proposal)
        assert gain.status == "ok" and gain.nats == 0 and gain.z == 0, (site.key, gain)
        tried += 1
    assert tried


@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_what_is_new_stays_however_little_it_is(shift):
    """A part of 1e-3 of a column's spread is no rounding, whatever its mean."""
    seen = evidence(LINEAR["wide"], torch.float64, "regression", shift).train
    aim, noise = aim_at(seen, "y"), torch.randn(60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = seen.values["x"] @ torch.ones(4, 1, dtype=torch.float64)
    assert not aim.free(made).any()
    left = aim.free(made + 1e-3 * noise)
    torch.testing.assert_close(left, aim.span.free(1e-3 * noise), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_unit_that_is_a_constant_has_weights_of_a_features_size(dtype):
    """Of one input column and the constant one direction varies, one does not: divided by its rounding, its bias was 1e15."""
    nodes = {"x": of("input", shape=(1,)), "h": of("linear", "x", width=3), "a": of("tanh", "h"), "y": of("linear", "a", width=3)}
    seen, tried = evidence(nodes, dtype, "classification"), 0
    for _, _, site in sites_of(seen.arch, "widen", "deepen"):
        for units in (2, 4, 8):
            found = NATURAL.propose(seen, site, units, (0,))
            assert found.status == "ok"
            assert all(float(b.values.abs().max()) < 1e5 for b in found.blocks if (b.param, b.axis) not in site.form.outgoing), site.key
            tried += 1
    alone = scale_of(sources_of(seen.train, site.form), torch.tensor([[0.0] * 3 + [2.0], [0.0] * 4], dtype=torch.float64))
    assert alone.flatten().tolist() == [2.0, 1.0]
    assert tried
