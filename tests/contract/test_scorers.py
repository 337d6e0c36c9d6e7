"""The scorer kit: what every registered scorer keeps, whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch
from seen_networks import LOSSES, NETWORKS, evidence_for, fold_for, sites_of, weights_for

from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture, Node
from dagrow.measure import Evidence, Units, measure
from dagrow.propose import Limits, propose
from dagrow.scores import REGISTRY, Proposal
from dagrow.scores.valuer import Gain, value

each_scorer = pytest.mark.parametrize("name", list(REGISTRY))


def scorer(name: str):
    return REGISTRY.get(name)(REGISTRY.get(name).Options())


def served(name: str, arch: Architecture):
    return [site for _, _, site in sites_of(arch) if isinstance(site.form, REGISTRY.get(name).serves)]


def check(proposal: Proposal, gain: Gain, units: int) -> None:
    """Finite or a status, never NaN, never more than was asked."""
    if proposal.status != "ok":
        assert proposal.reason or proposal.status == "nonfinite"
        assert gain.status != "ok" and gain.nats == 0.0
        return
    assert all(bool(torch.isfinite(b.values).all()) for b in proposal.blocks) or gain.status == "nonfinite"
    numbers = (gain.nats, gain.stderr, gain.held, gain.held_stderr, gain.z, gain.amplitude)
    assert all(math.isfinite(n) for n in numbers), gain
    assert gain.status in ("ok", "unsupported", "nonfinite")
    assert proposal.units <= max(units, 8)


def single(weights):
    return {n: w.float() if w.is_floating_point() else w for n, w in weights.items()}


def shaken(kind: str, arch: Architecture, task: str) -> Evidence:
    """Evidence in single precision from rows that real data has, and worse."""
    rows = {"one row": 1, "two rows": 2, "three rows": 3, "few rows": 4}.get(kind, 40)
    train, held = (fold_for(arch, task, rows, seed) for seed in (0, 1))
    weights = weights_for(arch)

    def change(x):
        x = x.clone()
        if kind == "constant column":
            x[:, 0] = 3.0
        elif kind == "zeros":
            x.zero_()
        elif kind == "equal columns":
            x[:] = x[:, :1]
        elif kind == "equal rows":
            x[:] = x[:1]
        elif kind == "tiny":
            x *= 1e-30
        elif kind == "huge":
            x *= 1e30
        elif kind == "one large row":
            x[0] *= 1e6
        elif kind == "scales apart":
            x[:, :1] *= 1e12
        return x.float()

    if kind == "dead":
        weights = {n: -w.abs() if n.endswith("bias") else w * 1e-3 if n.endswith("weight") else w for n, w in weights.items()}
    if kind == "zero weights":
        weights = {n: w * 0 if not n.endswith("var") else w for n, w in weights.items()}
    if kind == "huge weights":
        weights = {n: w * 1e12 if n.endswith("weight") else w for n, w in weights.items()}
    if kind == "nan":
        weights = {n: w * math.nan if n.endswith("weight") and n.startswith(next(iter(arch.params))[:2]) else w for n, w in weights.items()}
    if kind == "lowest":
        weights = {n: w * 1e-38 if n.endswith("weight") else w for n, w in weights.items()}
    if kind == "highest":
        weights = {n: w * 1e38 if n.endswith("weight") else w for n, w in weights.items()}
    y = [f.y if task == "classification" else f.y.float() for f in (train, held)]
    if kind == "bf16":
        half = {n: w.bfloat16() if w.is_floating_point() else w for n, w in weights.items()}
        folds = [Fold(f.x.bfloat16(), v if task == "classification" else v.bfloat16()) for f, v in zip((train, held), y, strict=True)]
        return measure(arch, half, *folds, LOSSES[task], rows=1000, seed=0, path=())
    if kind == "one class" and task == "classification":
        y = [torch.zeros_like(v) for v in y]
    folds = [Fold(change(f.x), v) for f, v in zip((train, held), y, strict=True)]
    return measure(arch, single(weights), *folds, LOSSES[task], rows=1000, seed=0, path=())


KINDS = (
    "as it is", "constant column", "zeros", "equal columns", "equal rows", "tiny", "huge", "one large row", "scales apart", "one row",
    "two rows", "three rows", "few rows", "dead", "zero weights", "huge weights", "lowest", "highest", "nan", "one class", "bf16",
)  # fmt: skip


@each_scorer
@pytest.mark.filterwarnings("ignore:.*degrees of freedom.*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["mlp", "shared", "conv"])
def test_finite_or_a_status(name, kind, network):
    arch = NETWORKS[network]
    evidence = shaken(kind, arch, "regression" if network == "shared" else "classification")
    for site in served(name, arch):
        proposal = scorer(name).propose(evidence, site, 2, (0, "kit"))
        check(proposal, value(evidence, site, proposal), 2)


@each_scorer
@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_site_of_every_network_is_served_or_says_why_not(name, network):
    arch = NETWORKS[network]
    evidence = evidence_for(arch)
    for site in served(name, arch):
        for units in (1, 2):
            if getattr(site.form, "size", units + 1) > units:
                proposal = scorer(name).propose(evidence, site, units, (0, "kit"))
                check(proposal, value(evidence, site, proposal), units)
                if proposal.status == "ok" and site.form.grows:
                    assert {(b.param, b.axis) for b in proposal.blocks} >= site.form.outgoing


@each_scorer
@pytest.mark.parametrize("network", ["mlp", "conv", "linear", "shared"])
def test_the_same_key_gives_the_same_bits(name, network):
    arch = NETWORKS[network]
    one, two = evidence_for(arch), evidence_for(arch)
    for site in served(name, arch):
        a, b = (scorer(name).propose(e, site, 1, (3, "kit")) for e in (one, two))
        assert (a.status, a.units, a.keep) == (b.status, b.units, b.keep)
        assert all(torch.equal(p.values, q.values) for p, q in zip(a.blocks, b.blocks, strict=True))
        assert a.shift.keys() == b.shift.keys() and all(torch.equal(a.shift[n], b.shift[n]) for n in a.shift)
        assert value(one, site, a) == value(two, site, b)


@each_scorer
def test_asking_in_another_order_changes_nothing(name):
    arch = NETWORKS["mlp"]
    one, two = evidence_for(arch), evidence_for(arch)
    sites = served(name, arch)
    forth = {s.key: value(one, s, scorer(name).propose(one, s, 1, (0,))) for s in sites}
    back = {s.key: value(two, s, scorer(name).propose(two, s, 1, (0,))) for s in reversed(sites)}
    assert forth == back


@each_scorer
def test_evidence_is_left_as_it_is(name):
    arch = NETWORKS["conv"]
    evidence = evidence_for(arch)
    groups = [g for seen in (evidence.train, evidence.held) for g in (seen.values, seen.v, seen.probe, seen.weights)]
    before = [{n: t.clone() for n, t in g.items()} for g in groups]
    for site in served(name, arch):
        value(evidence, site, scorer(name).propose(evidence, site, 1, (0,)))
    assert all(torch.equal(g[n], t) for g, old in zip(groups, before, strict=True) for n, t in old.items())


# Is it signal?

LINEAR = Architecture({"x": Node.of("input", shape=(4,)), "y": Node.of("linear", "x", width=2)})
DIRECTION = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
ROWS = 120


def converged(seed: int, planted: float) -> Evidence:
    """A linear model at its optimum on train rows, with `planted` of what it cannot do in the targets."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * ROWS, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(2 * ROWS, 2, generator=generator, dtype=torch.float64) + planted * (x @ DIRECTION).abs().unsqueeze(1)
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(2 * ROWS, 1)], 1)[:ROWS], y[:ROWS]).solution
    weights = {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}
    train, held = Fold(x[:ROWS], y[:ROWS]), Fold(x[ROWS:], y[ROWS:])
    return measure(LINEAR, weights, train, held, LOSSES["regression"], rows=10**6, seed=seed, path=())


def grows(name: str, seed: int, planted: float) -> bool:
    deepen = EDITS.get("deepen")
    found = propose(converged(seed, planted), [(deepen, deepen.Options(units=1))], scorer(name), Limits(), alpha=0.05, key=(seed,))
    return any(s.candidate.verdict == "grow" for s in found)


growing = pytest.mark.parametrize("name", [n for n in REGISTRY if Units in REGISTRY.get(n).serves])


@growing
def test_no_signal_is_rarely_taken_for_signal(name):
    # At 5% false alarms, more than 8 of 60 happen once in 500 times.
    assert sum(grows(name, seed, 0.0) for seed in range(60)) <= 8


@growing
def test_planted_signal_is_seen(name):
    # A unit in a random direction has the right sign half the time.
    assert any(grows(name, seed, 2.0) for seed in range(12))
