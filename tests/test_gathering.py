"""Evidence gathered from the last steps of training: what it must equal, what it must leave alone, and when it is used."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seen_networks import LOSSES, NETWORKS, close, fold_for, of, weights_for
from test_growth import BARE as BARE_GROWTH
from test_growth import WINE as WINE_GROWTH
from test_growth import exploding, plan_of, start, story, whole

from dagrow import check
from dagrow.compiler import compile_architecture, parameters_by_name
from dagrow.epochs import gathered_again, last_of_growth
from dagrow.errors import SpecError
from dagrow.graph import Architecture
from dagrow.growth import Search
from dagrow.measure import Gathering, measure
from dagrow.measure import gathering as module
from dagrow.measure.evidence import affordable_rows, kept_values, observe
from dagrow.measure.gathering import shares
from dagrow.measure.parents import affine_nodes
from dagrow.propose import propose
from dagrow.rng import stream
from dagrow.store import Run
from dagrow.train import OPTIMIZERS, steps_per_epoch
from dagrow.trials import Recipe

PLAIN = [name for name, arch in NETWORKS.items() if all(node.op != "batchnorm" for node in arch.nodes.values())]
NORMED = [name for name in NETWORKS if name not in PLAIN]
DROPPING = Architecture({
    "x": of("input", shape=(5,)), "h": of("linear", "x", width=6), "n": of("batchnorm", "h"), "a": of("relu", "n"),
    "d": of("dropout", "a", p=0.3), "y": of("linear", "d", width=3),
})  # fmt: skip
PATH = ("epoch", 7)


def recipe(task: str, batch: int, **options) -> Recipe:
    rule = OPTIMIZERS.get("adamw")
    return Recipe(rule, rule.Options(**{"weight_decay": 0.0, **options}), LOSSES[task], batch)


def gather(arch, weights, task, fold, *, rows=12, window=None, batch=8, lr=0.0, watched=True):
    """(weights after one epoch, its report, what it gathered)."""
    made = recipe(task, batch, lr=max(lr, 1e-9))
    watch = Gathering(arch, LOSSES[task], rows=rows, window=window, batch=batch, samples=len(fold.x), seed=3, path=PATH)
    after, moments, report = made.epoch(arch, weights, {}, fold, lambda _: lr, 3, PATH, watch if watched else None)
    return (after, moments, report), watch.collect(after) if watched else None


def in_order(seen):
    """What was gathered, its rows put back in the order of the steps."""
    places = torch.randperm(seen.rows, generator=stream(3, *PATH, "order"))
    groups = {name: {n: t[places] for n, t in getattr(seen, name).items()} for name in ("values", "v", "probe")}
    return replace(seen, **groups, y=seen.y[places], memo={})


def rows_of(fold, rows, window, batch):
    """[(step, the rows that the step gives)], from the order that the epoch draws."""
    order = torch.randperm(len(fold.x), generator=stream(3, *PATH, "shuffle"))
    return [(step, order[step * batch :][:count]) for step, count in sorted(shares(rows, window, batch, len(fold.x)).items())]


def test_the_first_rows_are_of_all_steps_alike():
    """Those who look at the first rows only would see nothing but the oldest weights, if they lay in the order of the steps."""
    arch = NETWORKS["linear"]
    fold = fold_for(arch, "classification", rows=640)
    _, seen = gather(arch, weights_for(arch), "classification", fold, rows=320, batch=32)
    chosen = rows_of(fold, 320, None, 32)
    step_of = {tuple(fold.x[row].tolist()): step for step, rows in chosen for row in rows}
    among = [step_of[tuple(x.tolist())] for x in seen.head(160).values["x"]]
    assert all(6 <= among.count(step) <= 26 for step, _ in chosen) and len(set(among)) == 10
    assert torch.equal(in_order(seen).values["x"], fold.x[torch.cat([rows for _, rows in chosen])])


@given(st.integers(1, 300), st.none() | st.integers(1, 40), st.integers(1, 40), st.integers(2, 400))
def test_the_last_steps_give_the_rows_asked_for(rows, window, batch, samples):
    steps = steps_per_epoch(samples, batch)
    if not steps:
        return
    sizes = [min(batch, samples - k * batch) for k in range(steps)]
    found = shares(rows, window, batch, samples)
    assert all(0 < count <= sizes[step] for step, count in found.items()) and sum(found.values()) <= rows
    assert sorted(found) == list(range(min(found), steps))
    if window is None:
        assert sum(found.values()) == min(rows, sum(sizes))
        assert sum(sizes[min(found) + 1 :]) < rows
    elif rows <= window * batch and window <= steps and len(set(sizes)) == 1:
        assert sum(found.values()) == rows and len(found) <= window and max(found.values()) == -(-rows // window)


def test_rows_are_those_that_measuring_affords():
    arch = NETWORKS["conv"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagrow.measure.evidence.MOST_VALUES", 40 * kept_values(arch))
        assert affordable_rows(arch, 64) == 40
        watch = Gathering(arch, LOSSES["classification"], rows=64, window=None, batch=8, samples=100, seed=0, path=())
        assert sum(watch.shares.values()) == 40


@pytest.mark.parametrize("task", list(LOSSES))
def test_a_gradient_of_the_batch_mean_becomes_one_of_a_sample(task):
    fold = fold_for(NETWORKS["linear"], task, rows=9)
    out = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = LOSSES[task]
    (mean,) = torch.autograd.grad(loss.mean(out, fold.y), out)
    close(mean * loss.per_sample(9, 3), loss.cotangent(out.detach(), fold.y, variance=1.0), 1e-14)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("task", list(LOSSES))
@pytest.mark.parametrize("name", PLAIN)
def test_without_steps_to_speak_of_it_is_a_pass_over_the_same_rows(name, task, window):
    arch, loss = NETWORKS[name], LOSSES[task]
    weights, fold = weights_for(arch), fold_for(arch, task, rows=30)
    seen = in_order(gather(arch, weights, task, fold, rows=12, window=window)[1])
    chosen = rows_of(fold, 12, window, 8)
    assert seen.rows == 12 and len(chosen) == (3 if window else 2)
    rows = torch.cat([part for _, part in chosen])

    class Drawn(type(loss)):
        """The probe of the whole fold, from the numbers that its steps draw."""

        def probe(self, out, y, generator, **given):
            given = given | {"variance": loss.variance(out, y)}
            parts = torch.split(torch.arange(len(y)), [len(part) for _, part in chosen])
            return torch.cat([
                loss.probe(out[k], y[k], stream(3, *PATH, "probe", step), **given) for (step, _), k in zip(chosen, parts, strict=True)
            ])  # fmt: skip

    own = observe(arch, weights, replace(fold, x=fold.x[rows], y=fold.y[rows]), Drawn(), stream(0))
    assert seen.values.keys() == own.values.keys() and seen.v.keys() == own.v.keys() == {*affine_nodes(arch), arch.outputs[0]}
    for ours, theirs in ((seen.values, own.values), (seen.v, own.v), (seen.probe, own.probe)):
        for n in theirs:
            close(ours[n], theirs[n], 1e-12)
            assert ours[n].dtype == theirs[n].dtype != torch.float32 and not ours[n].requires_grad
    assert seen.nats == pytest.approx(own.nats, rel=1e-12)
    assert all(torch.equal(seen.weights[n], weights[n]) for n in weights)


@pytest.mark.parametrize("task", list(LOSSES))
@pytest.mark.parametrize("name", NORMED)
def test_with_batch_norm_gradients_are_those_of_training(name, task):
    """Brute force: the derivative of the batch's summed nats in single pre-activations, by differences, in train mode."""
    arch, loss = NETWORKS[name], LOSSES[task]
    weights, fold = weights_for(arch), fold_for(arch, task, rows=8)
    seen = in_order(gather(arch, weights, task, fold, rows=5)[1])
    ((_, chosen),) = rows_of(fold, 8, None, 8)
    x, y = fold.x[chosen], fold.y[chosen]
    variance = loss.variance(seen.values[arch.outputs[0]], y[:5])
    for node in affine_nodes(arch):
        moved = torch.zeros_like(seen.v[node][0])

        def summed(place, size, node=node, moved=moved):
            model = compile_architecture(arch, weights)

            def push(_, __, z):
                shift = torch.zeros_like(z)
                shift[(1, *place)] = size
                return z + shift

            model.get_submodule(f"n_{node}").register_forward_hook(push)
            with torch.no_grad():
                return float(loss.each(model(x), y, variance=variance).sum())

        for place in {tuple(0 for _ in moved.shape), tuple(s - 1 for s in moved.shape)}:
            slope = (summed(place, 1e-6) - summed(place, -1e-6)) / 2e-6
            assert float(seen.v[node][(1, *place)]) == pytest.approx(-slope, abs=2e-7 * max(1.0, abs(slope)))


@pytest.mark.parametrize("task", list(LOSSES))
@pytest.mark.parametrize("name", [*NETWORKS, "dropping"])
def test_training_is_left_alone_to_the_bit(name, task):
    arch = NETWORKS.get(name, DROPPING)
    weights = {n: w.float() if w.is_floating_point() else w for n, w in weights_for(arch).items()}
    fold = fold_for(arch, task, rows=45)
    fold = replace(fold, x=fold.x.float(), y=fold.y.float() if task == "regression" else fold.y)
    (a, moments_a, report_a), seen = gather(arch, weights, task, fold, rows=20, window=2, lr=0.01)
    (b, moments_b, report_b), none = gather(arch, weights, task, fold, lr=0.01, watched=False)
    assert seen.rows == 20 and none is None and report_a == report_b
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(moments_a[s][n], moments_b[s][n]) for s in moments_a for n in moments_a[s])
    assert any(not torch.equal(a[n], weights[n]) for n in a)


def test_what_the_loss_does_not_reach_has_no_gradient():
    arch = Architecture({
        "x": of("input", shape=(3,)), "h": of("linear", "x", width=2), "d": of("relu", "h"), "y": of("linear", "d", width=3),
    })  # fmt: skip
    weights = weights_for(arch)
    weights["h.bias"] = weights["h.bias"] - 100  # every unit is off
    _, seen = gather(arch, weights, "classification", fold_for(arch, "classification", rows=16))
    assert not seen.v["h"].any() and not seen.probe["h"].any() and seen.v["y"].any()


def test_only_the_rows_asked_for_are_kept():
    arch = NETWORKS["mlp"]
    _, seen = gather(arch, weights_for(arch), "classification", fold_for(arch, "classification", rows=64), rows=6, window=3, batch=16)
    for group in (seen.values, seen.v, seen.probe):
        assert all(t.untyped_storage().nbytes() == 6 * t[0].numel() * t.element_size() for t in group.values())


WINE, BARE = (spec | {"score": {**spec["score"], "when": "training"}} for spec in (WINE_GROWTH, BARE_GROWTH))
DIGITS = {
    "name": "gathered", "data": {"source": {"name": "digits", "shape": "flat"}, "batch": 64, "normalise": "global"},
    "train": {"optimizer": {"name": "adamw", "lr": 0.003}, "epochs": {"first": 6, "between": 1, "final": 1}},
    "edits": [{"widen": {"units": [1, 2, 4]}}, {"deepen": {"units": [2, 4]}}, "connect"], "budget": {"steps": 1},
}  # fmt: skip


def ranks(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).argsort().argsort().double()


@pytest.mark.parametrize("layers", [["linear 8", "relu", "linear 8", "relu", "linear 10"], ["linear 12", "batchnorm", "relu", "linear 8", "tanh", "linear 10"]])
def test_it_tells_what_a_pass_of_its_own_tells(layers, tmp_path):
    plan = plan_of(DIGITS | {"model": {"layers": layers}})
    with start(tmp_path / "run", plan) as run:
        work = Search(plan, run)
        while work.network is None or work.state.epoch < work.state.epochs:
            work.advance()
        network, data, gains = work.network, plan.data, []
        for seen in (work.gathered(), None):
            evidence = measure(
                network.arch, network.weights, data.train, data.val, plan.recipe.loss, rows=1024, seed=0, path=("t",), seen=seen
            )
            found = propose(evidence, plan.edits, plan.scorer, plan.limits, alpha=0.05, key=(0, "t"))
            gains.append({(s.candidate.key, s.candidate.units): s.gain.nats for s in found if s.gain.nats})
    keys = sorted(set(gains[0]) & set(gains[1]))
    a, b = ([g[k] for k in keys] for g in gains)
    assert len(keys) > 12
    assert float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1]) > 0.85
    assert 0.75 < median(x / y for x, y in zip(a, b, strict=True)) < 1.33


# -- in a search --------------------------------------------------------------------------------------------------------


class Watching(Search):
    """Remembers what each decision was shown."""

    def candidates(self, *given, **named):
        self.shown = [*getattr(self, "shown", []), self.gathered()]
        return super().candidates(*given, **named)


def same(one, two) -> bool:
    groups = ((one.values, two.values), (one.v, two.v), (one.probe, two.probe), (one.weights, two.weights))
    return one.nats == two.nats and all(a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in groups)


def run_through(folder, plan, kind=Watching):
    with start(folder, plan) as run:
        work = kind(plan, run)
        for _ in work.events():
            pass
        return work


def test_resumed_before_a_decision_the_same_rows_are_gathered_again(tmp_path):
    plan = plan_of(BARE)
    shown = run_through(tmp_path / "whole", plan).shown
    assert len(shown) == 3 and all(seen.rows == min(300, len(plan.data.train)) for seen in shown)
    start(tmp_path / "stopped", plan).close()
    again = []
    while True:
        with Run.open(tmp_path / "stopped", write=True) as run:
            work = Watching(plan, run)
            if work.state.phase == "done":
                break
            work.advance()
            again += getattr(work, "shown", [])
    assert len(again) == len(shown) and all(same(a, b) for a, b in zip(again, shown, strict=True))
    assert story(tmp_path / "stopped") == story(tmp_path / "whole")


def test_the_evidence_is_the_one_gathered(tmp_path, monkeypatch):
    plan = plan_of(WINE, "budget.steps=1")
    used = []
    monkeypatch.setattr("dagrow.growth.measure", lambda *a, **k: used.append(k["seen"]) or measure(*a, **k))
    work = run_through(tmp_path / "a", plan)
    assert used == work.shown and used[0].rows == 96


def test_own_pass_and_no_epoch_before_a_decision_gather_nothing(tmp_path):
    assert run_through(tmp_path / "a", plan_of(WINE, "score.when=own_pass", "budget.steps=1")).shown == [None]
    work = run_through(tmp_path / "b", plan_of(WINE, "train.epochs.between=0", "budget.steps=2"))
    assert work.shown[0].rows == 96 and work.shown[1:] == [None]


def test_only_the_epoch_before_a_decision_is_watched(tmp_path, monkeypatch):
    made = []

    class Counted(Gathering):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            made.append(named["path"])

    monkeypatch.setattr("dagrow.epochs.Gathering", Counted)
    events = whole(tmp_path / "run", plan_of(WINE, "budget.steps=2", "train.epochs.between=2"))
    # Epochs 0 to 2 are before the first decision, 3 and 4 before the second; none follows 5 and 6.
    assert made == [("epoch", 2), ("epoch", 4)] and sum(k == "step" for _, k, _, _ in events) == 2


def test_after_an_epoch_that_diverged_the_next_one_is_watched(tmp_path):
    plan = exploding(plan_of(WINE | {"select": {"by": "schedule", "steps": [{"step": s, "edit": "widen"} for s in range(2)]}}, "budget.steps=2"), 3)
    work = run_through(tmp_path / "run", plan)
    assert len(work.shown) == 2 and all(seen is not None for seen in work.shown)
    assert work.shown[1].arch == work.shown[0].arch  # the edit was undone


def test_a_run_extended_gathers_from_the_last_epoch_of_growth(tmp_path):
    longer = run_through(tmp_path / "long", plan_of(BARE, "budget.steps=3")).shown
    run_through(tmp_path / "short", plan_of(BARE, "budget.steps=2"))
    later = plan_of(BARE, "budget.steps=3")
    with Run.open(tmp_path / "short", write=True) as run:
        run.commit("extended", {"sets": ["budget.steps=3"]})
        work = Watching(later, run)
        reached, begun, prefix = last_of_growth(run.events())
        assert (reached.kind, begun.seq, prefix) == ("epoch", reached.seq - 1, "")
        for _ in work.events():
            pass
    assert len(work.shown) == 1 and same(work.shown[0], longer[2])


def test_a_run_that_dropped_where_the_epoch_began_takes_a_pass_of_its_own(tmp_path):
    plan = plan_of(WINE, "budget.steps=1")
    with start(tmp_path / "run", plan) as run:
        work = Search(plan, run)
        while work.network is None or work.state.epoch < work.state.epochs:
            work.advance()
        assert gathered_again(plan, run, work.state, plan.data.train) is not None
        run.prune(lambda event: list(event.blobs) if event.seq == run.events()[-1].seq else [])
        assert gathered_again(plan, run, work.state, plan.data.train) is None


@pytest.mark.parametrize("setting", ["score.when=sometimes", "score.window=0", "score.window=some"])
def test_what_the_spec_may_say(setting):
    with pytest.raises(SpecError, match=setting.partition("=")[0].partition(".")[2]):
        check.load(WINE, [setting])
    assert plan_of(WINE_GROWTH).spec.score.when == "own_pass" and plan_of(WINE, "score.window=4").spec.score.window == 4


def test_the_module_needs_only_what_a_network_holds():
    """Functions of a compiled network, which has no modules for them, are built again."""
    arch = NETWORKS["residual"]
    model = compile_architecture(arch, weights_for(arch))
    made = module._modules(arch, model)
    assert set(made) == set(arch.order) - set(arch.inputs)
    held = {id(p) for n in affine_nodes(arch) for p in made[n].parameters()}
    assert held == {id(p) for p in parameters_by_name(model).values()}
