"""Swaps: derivatives against finite differences and closed forms, what needs a trial, and searches that make some."""

from __future__ import annotations

import pytest
import torch
from seen_networks import LOSSES, NETWORKS, RANDOM, close, done, evidence_for, fold_for, nats, of, run, sites_of, weights_for
from test_growth import WINE, plan_of, stopped, whole

from dagrow.applying import Part, apply
from dagrow.compiler import compile_architecture
from dagrow.data import Fold
from dagrow.edits import Edit, EditOptions
from dagrow.graph import Architecture, Node, Refusal, Rewrite, resize
from dagrow.growth import Search
from dagrow.measure import Swap, flat, measure
from dagrow.measure.layout import last
from dagrow.measure.parents import affine_nodes
from dagrow.measure.sites import Site
from dagrow.propose import Limits, propose
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores import serving
from dagrow.scores.valuer import scaled, slopes, value
from dagrow.select import Trial
from dagrow.standing import Network

DERIVATIVE = SCORERS.get("derivative")(SCORERS.get("derivative").Options())
EXACT = SCORERS.get("derivative")(SCORERS.get("derivative").Options(ridge=1e-12))
STACKED = Architecture({
    "x": of("input", shape=(4,)), "h": of("linear", "x", width=5), "a": of("tanh", "h"), "b": of("gelu", "a"), "y": of("linear", "b", width=3),
})  # fmt: skip
BARE = Architecture({"x": of("input", shape=(3,)), "y": of("linear", "x", width=1)})


class Bend(Edit):
    """A user's own rule: tanh of each input, mapped to the output."""

    name = "bend"
    Options = EditOptions

    @staticmethod
    def match(arch, options):
        yield Site("bend", "y", Swap(bent(arch), ("curve", "out", "total"), start=lambda seen: {"out.weight": torch.zeros(seen.arch.shapes["y"][0], 3)}))

    @staticmethod
    def rewrite(arch, site, proposal):
        return Rewrite(site.form.frame, (), None)


def bent(arch):
    out = {"curve": of("tanh", "x"), "out": of("linear", "curve", width=arch.shapes["y"][0], bias=False), "total": of("add", "y", "out")}
    return Architecture({**arch.nodes, **out})


class Mix(Edit):
    """Another: the identity, free to mix units, between two activations; the function stays at values that are not zero."""

    name = "mix"
    Options = EditOptions

    @staticmethod
    def match(arch, options):
        frame = arch.replace({"mix": of("linear", "a", width=5), "b": Node.of("gelu", "mix")})
        yield Site("mix", "a", Swap(frame, ("mix",), start=lambda seen: {"mix.weight": torch.eye(5), "mix.bias": torch.zeros(5)}))

    @staticmethod
    def rewrite(arch, site, proposal):
        return Rewrite(site.form.frame, (), None)


def only(edit, arch):
    (site,) = edit.match(arch, edit.Options())
    return site


def proposed_at(evidence, site, scorer=DERIVATIVE):
    return scorer.propose(evidence, site, 1, (0, "test"))


def second_order(seen, site, proposal):
    """(gain, amplitude) of the line's second-order expansion, whatever the valuer makes of it."""
    s, t = (x.double() for x in slopes(seen, site, proposal))
    amplitude = float(s.mean() / t.square().mean())
    return amplitude * float(s.mean()) / 2, amplitude


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("edit, arch", [(Mix, STACKED), (Bend, BARE)])
def test_the_derivative_is_that_of_the_real_loss(edit, arch, task):
    if task == "classification" and arch is BARE:
        arch = BARE.replace({"y": of("linear", "x", width=3)})
    evidence, fold = evidence_for(arch, task, rows=60), fold_for(arch, task, 60)
    site, seen = only(edit, arch), evidence.train
    proposal = proposed_at(evidence, site)
    assert proposal.status == "ok", proposal.reason
    made = done(arch, Part(edit, EditOptions(), site, proposal), evidence.weights)
    close(run(made.arch, made.weights(0.0), fold.x), run(arch, evidence.weights, fold.x), 1e-12)
    variance, step = LOSSES[task].variance(seen.values["y"], fold.y), 1e-5
    there, back = (nats(made.arch, made.weights(a), fold, task, variance) for a in (step, -step))
    (target, change), = site.form.effect(seen, proposal).items()
    assert target == "y"
    predicted = float((change * flat(seen.v["y"], seen.arch.nodes["y"])).sum()) / seen.rows
    assert abs(predicted) > 1e-3
    assert predicted == pytest.approx((back - there) / (2 * step), rel=1e-6)
    moved = (run(made.arch, made.weights(step), fold.x) - run(made.arch, made.weights(-step), fold.x)) / (2 * step)
    close(change.squeeze(1), moved, 1e-7)


def test_pulls_are_each_rows_own():
    evidence = evidence_for(STACKED, rows=20)
    site, seen = only(Mix, STACKED), evidence.train
    begin = site.form.begin(seen, (0,))
    s, t = site.form.pulls(seen, begin)
    pull = site.form.pull(seen, begin)
    close(s.mean(0), torch.cat([pull[p].flatten() for p in ("mix.weight", "mix.bias")]), 1e-12)
    proposal = proposed_at(evidence, site)
    step = torch.cat([b.values.flatten() - a.values.flatten() for a, b in zip(proposal.start, proposal.blocks, strict=True)])
    rows = slopes(seen, site, proposal)
    close(s @ step, rows[0], 1e-10)
    close(t @ step, rows[1], 1e-10)


def least_squares(x, y):
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y).solution
    return {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}


def test_where_the_loss_is_quadratic_the_gain_is_what_real_forwards_find():
    """One output: the probe's square is the curvature itself; the present weights are at their optimum."""
    fold = fold_for(BARE, "regression", 80)
    fold = Fold(3 * fold.x, fold.y + 3 * torch.tanh(6 * fold.x[:, :1]))
    weights = least_squares(fold.x, fold.y)
    evidence = measure(BARE, weights, fold, fold, LOSSES["regression"], rows=10**6, seed=0, path=())
    site = only(Bend, BARE)
    proposal = proposed_at(evidence, site, EXACT)
    gain, amplitude = second_order(evidence.train, site, proposal)
    residual = fold.y - run(BARE, weights, fold.x)
    variance = float(residual.square().mean())
    curve = torch.tanh(fold.x)
    best = torch.linalg.lstsq(curve, residual).solution
    closed = float((residual.square() - (residual - curve @ best).square()).mean()) / (2 * variance)
    assert closed > 0.05 and gain == pytest.approx(closed, rel=1e-8) and amplitude == pytest.approx(1.0, rel=1e-8)
    assert value(evidence, site, proposal).nats == pytest.approx(closed, rel=0.2)
    made = done(BARE, Part(Bend, EditOptions(), site, proposal), weights)
    before, after = (nats(a, w, fold, "regression", variance) for a, w in ((BARE, weights), (made.arch, made.full)))
    assert before - after == pytest.approx(gain, rel=1e-8)
    # What present weights could do themselves is not counted: away from their optimum the gain is the same.
    away = {n: w + 0.1 for n, w in weights.items()}
    again = measure(BARE, away, fold, fold, LOSSES["regression"], rows=10**6, seed=0, path=())
    slope = float(slopes(again.train, site, proposal)[0].mean()) * float((fold.y - run(BARE, away, fold.x)).square().mean())
    assert slope == pytest.approx(float(slopes(evidence.train, site, proposal)[0].mean()) * variance, rel=1e-8)


def test_the_amplitude_counts_from_where_the_function_stays():
    evidence = evidence_for(STACKED, rows=60)
    site = only(Mix, STACKED)
    proposal = proposed_at(evidence, site)
    half = scaled(site, proposal, 0.5)
    one, two = (done(STACKED, Part(Mix, EditOptions(), site, p), evidence.weights) for p in (proposal, half))
    for n in one.full:
        close(one.weights(0.5)[n], two.full[n], 1e-12)
    close(two.empty["mix.weight"], torch.eye(5), 1e-12)


# What only a trial can tell


def reasons(arch, *kinds, task="classification", weights=None):
    evidence = evidence_for(arch, task, rows=60, weights=weights)
    return {site.key: serving(RANDOM, site.form).propose(evidence, site, 1, (0,)) for _, _, site in sites_of(arch, *kinds)}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_norm_brings_nothing_to_first_order(name):
    """Its scale and shift are in the span of the node's own weights, in groups and in one."""
    found = reasons(NETWORKS[name], "norm")
    assert all(p.status == "trial" and "present weights" in p.reason for p in found.values())
    plain = [n for n in affine_nodes(NETWORKS[name]) if n not in NETWORKS[name].outputs and not last(NETWORKS[name].nodes[n], NETWORKS[name].shapes[n])]
    assert found or not plain


@pytest.mark.parametrize("name", ["mlp", "conv", "shared"])
def test_another_activation_changes_the_function_at_once(name):
    found = reasons(NETWORKS[name], "activate")
    assert found and all(p.status == "trial" and "at once" in p.reason for p in found.values())


def test_nothing_new_is_nothing_to_differentiate():
    evidence = evidence_for(STACKED)
    idle = Swap(STACKED.replace({"same": of("identity", "a"), "b": of("gelu", "same")}), ("same",))
    assert proposed_at(evidence, Site("idle", "a", idle)).reason == "it brings no new parameters"
    # The same network with its units in another order: the weights go over along the moves.
    turned = resize(STACKED, {"h": (4, 3, 2, 1, 0)})
    order = Site("turn", "h", Swap(turned.arch, (), moves=turned.moves))
    assert turned.moves and proposed_at(evidence, order).reason == "it brings no new parameters"
    assert proposed_at(evidence, Site("turn", "h", Swap(turned.arch, (), moves=turned.moves[:1]))).reason == "it changes the function at once"


def test_what_is_not_a_number_is_said_to_be_none():
    weights = weights_for(STACKED)
    weights["h.weight"][0, 0] = float("nan")
    assert {p.status for p in reasons(STACKED, "norm", "activate", weights=weights).values()} == {"nonfinite"}


def test_gradients_are_known_at_an_output_of_any_kind():
    ends = {"relu": of("relu", "y"), "add": of("add", "y", "b")}
    for op, node in ends.items():
        arch = STACKED.replace({"y": of("linear", "b", width=5), "end": node}, ("end",))
        evidence, fold = evidence_for(arch, rows=20), fold_for(arch, "classification", 20)
        close(evidence.train.v["end"], LOSSES["classification"].cotangent(run(arch, evidence.weights, fold.x), fold.y), 1e-12)
        site = only(Mix, arch)
        assert site.form.place(evidence.train) == {"relu": "end", "add": "y"}[op]
        proposal = proposed_at(evidence, site)
        assert proposal.status == value(evidence, site, proposal).status == "ok" and second_order(evidence.train, site, proposal)[0] > 0


def test_many_new_parameters_go_along_the_gradient():
    evidence, site = evidence_for(STACKED, rows=60), only(Mix, STACKED)
    plain = SCORERS.get("derivative")(SCORERS.get("derivative").Options(most=3))
    proposal, pull = proposed_at(evidence, site, plain), site.form.pull(evidence.train, site.form.begin(evidence.train, (0,)))
    for a, b in zip(proposal.start, proposal.blocks, strict=True):
        close(b.values - a.values, pull[b.param], 1e-12)
    plain_gain, gain = (second_order(evidence.train, site, p)[0] for p in (proposal, proposed_at(evidence, site)))
    assert 0 < plain_gain < gain


def test_verdicts():
    """Signal grows; what is lost in noise, and what has no derivative, may be tried."""
    edits = [(Bend, EditOptions())]
    for planted, verdict in ((3.0, "grow"), (0.0, "trial")):
        train, held = (fold_for(BARE, "regression", 200, s) for s in (0, 1))
        train, held = (Fold(f.x, f.y + planted * torch.tanh(2 * f.x[:, :1])) for f in (train, held))
        evidence = measure(BARE, least_squares(train.x, train.y), train, held, LOSSES["regression"], rows=10**6, seed=0, path=())
        (found,) = propose(evidence, edits, RANDOM, Limits(), alpha=0.05, key=(0,))[1:]
        assert found.candidate.verdict == verdict and (found.candidate.params, found.candidate.macs) == (3, 3)
        assert found.reason == ("" if verdict == "grow" else "its derivative is lost in noise")
        (dear,) = propose(evidence, edits, RANDOM, Limits(BARE.size), alpha=0.05, key=(0,))[1:]
        assert dear.candidate.verdict == "too dear" and dear.part is None


# norm and activate


def test_a_norm_starts_from_what_it_measures():
    """Neither eval mode nor a batch's own statistics change the function; the node's bias is the norm's now."""
    arch = NETWORKS["sequence"]
    evidence = evidence_for(arch)
    for edit, options, site in sites_of(arch, "norm"):
        made = done(arch, Part(edit, options, site, serving(RANDOM, site.form).propose(evidence, site, 1, (0,))), evidence.weights)
        node = site.detail[0]
        assert f"{node}.bias" not in made.full and made.arch.size == arch.size + arch.shapes[node][0]
        x = fold_for(arch, "classification", 40).x
        with torch.no_grad():
            close(compile_architecture(made.arch, made.full).train()(x), run(arch, evidence.weights, x), 1e-10)
        assert not [s for _, _, s in sites_of(made.arch, "norm") if s.where == node]


def test_edits_that_need_what_a_norm_took_are_refused_with_it():
    arch = NETWORKS["mlp"]
    evidence = evidence_for(arch)
    parts = {}
    for edit, options, site in sites_of(arch, "norm", "widen"):
        parts[site.key] = Part(edit, options, site, serving(RANDOM, site.form).propose(evidence, site, 1, (0,)))
    both = apply(arch, evidence.weights, {}, {}, [parts["norm h1"], parts["widen h1"]], (0,))
    assert isinstance(both, Refusal) and both.reason and both.nodes


def test_unknown_activations_are_refused():
    for edit, _, _ in sites_of(STACKED, "activate")[:1]:
        with pytest.raises(ValueError, match="not an activation"):
            edit.Options(to=("linear",))
        assert [s.where for s in edit.match(STACKED, edit.Options(to=("tanh", "gelu", "tanh"), where="a"))] == ["a -> gelu"]


# Searches

SWAPS = WINE | {"edits": ["norm", {"activate": {"to": ["tanh"]}}], "budget": {"steps": 2}}
CHOOSERS = {
    "greedy": {"by": "greedy"}, "optuna": {"by": "optuna", "trials": 2, "startup": 1},
    "metropolis": {"by": "metropolis", "proposals": 2, "temperature": {"start": 5.0, "end": 5.0}},
    "schedule": {"by": "schedule", "steps": [{"step": 0, "edit": "norm"}, {"step": 1, "edit": "activate"}]},
}  # fmt: skip


@pytest.mark.parametrize("chooser", list(CHOOSERS))
def test_a_search_over_swaps_stops_and_goes_on(chooser, tmp_path):
    plan = plan_of(SWAPS | {"select": CHOOSERS[chooser]})
    one, two = whole(tmp_path / "whole", plan), stopped(tmp_path / "stopped", plan)
    assert one == two
    steps = [p for _, kind, p, _ in one if kind == "step"]
    assert len(steps) == 2 and steps[0]["trials"] > 0
    if chooser in ("schedule", "metropolis"):
        assert [p["edit"] for p in steps] == ["norm", "activate"] or chooser == "metropolis"
        assert any(p["edit"] != "null" for p in steps)
        ops = {row["op"] for row in one[-1][2]["architecture"]["nodes"].values()}
        assert ops & {"batchnorm", "tanh"}


def test_a_trial_of_a_swap_compares_with_the_parent_trained_as_long(tmp_path):
    plan = plan_of(SWAPS)
    weights = {n: w.float() for n, w in weights_for(plan.architecture).items()}
    work = Search.standing(plan, Network(plan.architecture, weights, {}))
    scored = work.candidates()
    assert {s.candidate.verdict for s in scored[1:]} == {"trial"} and all(s.reason for s in scored[1:])
    bench = work.bench(scored)
    for s in scored[1:]:
        at_once, tuned = (bench.make(Trial(s.candidate.index, epochs)) for epochs in (0, 2))
        assert at_once.outcome.status == tuned.outcome.status == "ok" and tuned.amplitude == 1.0
        if s.candidate.edit == "norm":
            assert abs(at_once.checked) < 1e-4
        assert tuned.outcome.gain != at_once.outcome.gain and tuned.outcome.stderr > 0
