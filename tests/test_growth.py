"""Whole searches, tiny ones: stopped anywhere, extended, gone wrong, out of budget."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from dagrow import check
from dagrow.errors import DagrowError, NothingFits
from dagrow.graph import Architecture
from dagrow.growth import Search
from dagrow.planning import make_plan
from dagrow.progress import line
from dagrow.standing import State, load_network
from dagrow.store import Run
from dagrow.trials import Recipe

WINE = {
    "name": "tiny", "data": {"source": "wine", "batch": 32}, "model": {"layers": ["linear 3", "relu", "linear 3"]},
    "train": {"optimizer": {"name": "adamw", "lr": 0.02}, "epochs": {"first": 3, "between": 1, "final": 2}},
    "score": {"by": {"name": "natural", "starts": 4, "steps": 4}, "rows": 96, "verify": 2},
    "edits": [{"widen": {"units": [1, 2]}}, {"deepen": {"units": 2}}, "connect", "prune", "remove"], "budget": {"steps": 3},
}  # fmt: skip
FRIEDMAN = WINE | {
    "data": {"source": {"name": "friedman1", "n": 160}, "batch": 32}, "model": {"layers": ["linear 3", "batchnorm", "gelu", "linear 1"]},
}  # fmt: skip
# What a bare linear model lacks here shows: about a quarter of the variance.
BARE = WINE | {
    "data": {"source": {"name": "friedman1", "n": 400}, "batch": 64}, "model": {"layers": ["linear 1"]},
    "train": {"optimizer": {"name": "adamw", "lr": 0.03}, "epochs": {"first": 6, "between": 2, "final": 2}},
    "score": {"rows": 300, "verify": 2}, "edits": [{"deepen": {"units": [1, 4]}}, {"widen": {"units": [1, 2]}}, "connect"],
}  # fmt: skip
CHOOSERS = {
    "greedy": {"by": "greedy"}, "bundles": {"by": "greedy", "bundle": 3, "epochs": 1}, "metropolis": {"by": "metropolis", "proposals": 3},
    "optuna": {"by": "optuna", "trials": 2, "startup": 1},
    "schedule": {"by": "schedule", "steps": [{"step": s, "edit": e} for s, e in ((0, "widen"), (1, "deepen"), (1, "connect"), (2, "prune"))]},
}  # fmt: skip

GROW_TWICE = "{by: schedule, steps: [{step: 0, edit: widen}, {step: 2, edit: widen}]}"


def plan_of(spec: dict, *sets: str):
    return make_plan(check.load(spec, sets))


def start(folder, plan) -> Run:
    return Run.create(folder, plan.spec.to_dict(), {"note": "test"})


def story(folder) -> list:
    """All that equal runs have in common: everything but the clock."""
    with Run.open(folder) as run:
        return [(e.seq, e.kind, e.payload, e.blobs) for e in run.events()]


def whole(folder, plan, **given) -> list:
    with start(folder, plan) as run:
        for _ in Search(plan, run, **given).events():
            pass
    return story(folder)


def stopped(folder, plan) -> list:
    """Stopped and opened again after every unit of work."""
    start(folder, plan).close()
    while True:
        with Run.open(folder, write=True) as run:
            work = Search(plan, run)
            if work.state.phase == "done":
                return story(folder)
            work.advance()


@pytest.mark.parametrize("chooser", list(CHOOSERS))
def test_stopped_at_every_unit_of_work_it_ends_the_same(chooser, tmp_path):
    plan = plan_of({"greedy": BARE, "optuna": FRIEDMAN, "bundles": BARE}.get(chooser, WINE) | {"select": CHOOSERS[chooser]})
    one, two = whole(tmp_path / "whole", plan), stopped(tmp_path / "stopped", plan)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a == b
    assert [k for _, k, _, _ in one][:1] == ["start"] and one[-1][1] == "done"
    assert any(k == "step" and p["edit"] != "null" for _, k, p, _ in one)


@pytest.mark.parametrize("steps, counts", [(1, [1] * 10), (8, [2, 1, 1, 1, 1, 2, 2]), (10**6, [3, 1, 1, 1, 4])])
def test_how_many_epochs_share_a_commit_changes_no_bit(steps, counts, tmp_path, monkeypatch):
    plan = plan_of(WINE, "budget.steps=3", "train.epochs.final=4", "budget.patience=9", "edits=[{widen: {units: [1, 2]}}]", f"select={GROW_TWICE}")
    plain = whole(tmp_path / "plain", plan)
    monkeypatch.setattr("dagrow.epochs.UNIT_STEPS", steps)
    events = whole(tmp_path / "a", plan)
    epochs = [p for _, k, p, _ in events if k == "epoch"]
    assert [len(p["losses"]) for p in epochs] == counts and all(p["losses"][-1] == p["epoch_loss"] for p in epochs)
    assert events[-1][3] == plain[-1][3] and [l for p in epochs for l in p["losses"]] == [l for _, k, p, _ in plain if k == "epoch" for l in p["losses"]]
    assert stopped(tmp_path / "b", plan) == events


def test_epochs_that_take_much_arithmetic_are_committed_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("dagrow.epochs.UNIT_WORK", 1)
    events = whole(tmp_path / "a", plan_of(WINE, "budget.steps=1"))
    assert all(len(p["losses"]) == 1 for _, k, p, _ in events if k == "epoch")


def test_without_epochs_before_a_decision_too(tmp_path):
    plan = plan_of(WINE | {"train": {**WINE["train"], "epochs": {"first": 0, "between": 0, "final": 1}}, "select": CHOOSERS["schedule"]})
    assert whole(tmp_path / "a", plan) == stopped(tmp_path / "b", plan)


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    plan = plan_of(WINE, "budget.steps=1")
    one, two = whole(tmp_path / "a", plan), whole(tmp_path / "b", plan)
    assert one == two
    other = whole(tmp_path / "c", plan_of(WINE, "budget.steps=1", "seed=1"))
    assert other[-1][3] != one[-1][3]


@pytest.mark.parametrize("chooser", ["bundles", "metropolis", "schedule"])
@pytest.mark.parametrize("limit", ["params", "macs"])
def test_the_budget_is_never_exceeded(chooser, limit, tmp_path):
    spec = BARE if chooser == "bundles" else WINE
    seed = plan_of(spec).architecture
    most = {"params": seed.size, "macs": seed.macs}[limit] + 40
    plan = plan_of(spec | {"select": CHOOSERS[chooser], "budget": {"steps": 4, limit: most}})
    events = whole(tmp_path / "run", plan)
    assert all(p[limit] <= most for _, _, p, _ in events if limit in p)
    assert max(p[limit] for _, _, p, _ in events if limit in p) > most - 40 or chooser == "metropolis"


def test_no_edit_that_fits_is_an_error_that_says_what_is_missing(tmp_path):
    seed = plan_of(WINE).architecture
    spec = WINE | {"edits": [{"widen": {"units": 2}}, {"deepen": {"units": 2}}], "budget": {"steps": 2, "params": seed.size + 1}}
    plan = plan_of(spec)
    with start(tmp_path / "run", plan) as run, pytest.raises(NothingFits, match="budget"):
        list(Search(plan, run).events())


def test_nothing_worth_adding_adds_nothing(tmp_path):
    """Linear data without noise to speak of, and a linear model: the null edit, and not one parameter."""
    spec = FRIEDMAN | {
        "model": {"layers": ["linear 1"]}, "edits": [{"deepen": {"units": [1, 2]}}, "connect"], "budget": {"steps": 3, "patience": 2},
        "train": {"optimizer": {"name": "sgd", "lr": 0.05}, "epochs": {"first": 30, "between": 1, "final": 1}},
    }  # fmt: skip
    plan = plan_of(spec)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(10, 1, generator=generator)

    def linear(fold):
        return replace(fold, y=(fold.x @ w + 0.5 * torch.randn(len(fold.x), 1, generator=generator)))

    data = replace(plan.data, train=linear(plan.data.train), val=linear(plan.data.val), test=linear(plan.data.test))
    events = whole(tmp_path / "run", replace(plan, data=data))
    steps = [p for _, k, p, _ in events if k == "step"]
    assert [p["edit"] for p in steps] == ["null", "null"]
    assert {p["params"] for _, _, p, _ in events if "params" in p} == {plan.architecture.size}
    assert "nothing paid" in next(p["note"] for _, k, p, _ in events if k == "final")


class Explosive(Recipe):
    """Training that blows up in the epochs of `when`."""

    when = ()

    def epoch(self, arch, weights, moments, fold, rates, seed, path, observer=None):
        weights, moments, report = super().epoch(arch, weights, moments, fold, rates, seed, path, observer)
        if path[0] == "epoch" and path[1] in self.when:
            weights = {n: w * float("nan") if w.is_floating_point() else w for n, w in weights.items()}
            report = replace(report, finite=False, nats=float("nan"))
        return weights, moments, report


def exploding(plan, *when: int):
    recipe = plan.recipe
    made = Explosive(recipe.optimizer, recipe.options, recipe.loss, recipe.batch, recipe.clip)
    object.__setattr__(made, "when", when)
    return replace(plan, recipe=made)


def test_a_diverged_edit_is_undone_and_not_offered_again(tmp_path):
    # Epochs 0 to 2 before the first edit, 3 after it.
    plan = exploding(plan_of(WINE | {"select": CHOOSERS["schedule"]}), 3)
    events = whole(tmp_path / "a", plan)
    at = next(i for i, (_, k, p, _) in enumerate(events) if k == "epoch" and p.get("status") == "diverged")
    step, gone, after = events[at - 1][2], events[at][2], events[at + 1]
    assert step["edit"] == "widen" and gone["undone"] == step["where"]
    assert gone["architecture"] == events[at - 2][2]["architecture"] and gone["params"] < step["params"]
    assert events[at][3]["weights"] == events[at - 2][3]["weights"]
    assert gone["state"]["banned"] == step["keys"] and gone["state"]["trained"] == 4
    assert after[1] == "epoch" and after[2].get("status") is None
    assert events[-1][1] == "done"
    for _, k, p, _ in events[at + 1 :]:
        assert not (k == "step" and set(p["keys"]) & set(step["keys"]) and p["state"]["banned"])
    assert stopped(tmp_path / "b", plan) == events


def test_a_final_phase_that_diverges_is_left_out(tmp_path):
    plan = exploding(plan_of(WINE, "budget.steps=1"), 4, 5)
    events = whole(tmp_path / "a", plan)
    settled = next(i for i, (_, k, _, _) in enumerate(events) if k == "final")
    assert events[settled + 1][2]["status"] == "diverged" and events[settled + 2][1] == "done"
    assert events[-1][3]["weights"] == events[settled][3]["weights"]
    assert stopped(tmp_path / "b", plan) == events


def test_divergence_before_any_edit_is_the_users_to_mend(tmp_path):
    plan = exploding(plan_of(WINE), 1)
    with start(tmp_path / "run", plan) as run, pytest.raises(DagrowError, match="diverged.*before any edit") as found:
        list(Search(plan, run).events())
    assert "lr" in found.value.fix


def test_a_learning_rate_out_of_all_proportion(tmp_path):
    plan = plan_of(FRIEDMAN, "train.optimizer={name: sgd, lr: 10000.0, momentum: 0.0}")
    with start(tmp_path / "run", plan) as run, pytest.raises(DagrowError, match="diverged"):
        list(Search(plan, run).events())


def extend(folder, plan_later, sets) -> list:
    with Run.open(folder, write=True) as run:
        run.commit("extended", {"sets": sets})
        for _ in Search(plan_later, run).events():
            pass
    return story(folder)


def test_a_finished_run_goes_on_where_growth_ended(tmp_path):
    schedule = {"by": "schedule", "steps": [{"step": s, "edit": "widen", "units": 1} for s in range(4)]}
    spec = WINE | {"select": schedule}
    long = whole(tmp_path / "long", plan_of(spec, "budget.steps=4"))
    first = whole(tmp_path / "short", plan_of(spec, "budget.steps=2"))
    both = extend(tmp_path / "short", plan_of(spec, "budget.steps=4"), ["budget.steps=4"])
    assert both[: len(first)] == first and both[len(first)][1] == "extended"
    grown = [(p["edit"], p["where"], p["params"], b["weights"]) for _, k, p, b in both if k == "step"]
    assert grown == [(p["edit"], p["where"], p["params"], b["weights"]) for _, k, p, b in long if k == "step"]
    assert both[-1][1] == "done" and both[-1][3]["weights"] == long[-1][3]["weights"]


def test_an_extension_may_be_stopped_at_every_unit_too(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        whole(folder, plan_of(WINE, "budget.steps=1"))
    later = plan_of(WINE, "budget.steps=3")
    a = extend(one, later, ["budget.steps=3"])
    with Run.open(two, write=True) as run:
        run.commit("extended", {"sets": ["budget.steps=3"]})
    stops = 0
    while True:
        with Run.open(two, write=True) as run:
            work = Search(later, run)
            if stops == 0:
                run.commit("different", {"now": {}})  # resumed elsewhere, and stopped at once
                stops += 1
                continue
            if work.state.phase == "done":
                break
            work.advance()
            stops += 1
    b = story(two)
    assert stops > 3 and b[-1][2]["params"] == a[-1][2]["params"]
    assert b[-1][3] == a[-1][3]


def test_an_extension_can_give_back_patience(tmp_path):
    spec = WINE | {"edits": [{"widen": {"where": "none.*"}}], "budget": {"steps": 9, "patience": 2}}
    first = whole(tmp_path / "run", plan_of(spec))
    assert sum(k == "step" for _, k, _, _ in first) == 2
    both = extend(tmp_path / "run", plan_of(spec, "budget.patience=3"), ["budget.patience=3"])
    assert sum(k == "step" for _, k, _, _ in both) == 5


def test_the_final_phase_starts_from_the_best_network_seen(tmp_path):
    edits = [{"widen": {"units": 2}}, {"deepen": {"units": 2}}, "connect", "prune"]
    spec = WINE | {"objectives": [{"minimize": "params"}], "select": CHOOSERS["schedule"], "edits": edits}
    plan = plan_of(spec)
    events = whole(tmp_path / "run", plan)
    final = next(p for _, k, p, _ in events if k == "final")
    assert final["params"] == plan.architecture.size and final["params_last"] > final["params"]
    assert f"the best network seen; the last has {final['params_last']}" in line({"event": "final", **final})
    assert events[final["kept"]][1] == "step" and events[final["kept"]][2]["step"] == 0
    assert events[-1][2]["params"] == plan.architecture.size


def test_the_time_budget_ends_growth(tmp_path):
    ticks = iter(range(10**6))
    plan = plan_of(WINE, "budget.steps=1000", "budget.time=30s", "budget.patience=1000")
    events = whole(tmp_path / "run", plan, clock=lambda: float(next(ticks)))
    assert events[-1][1] == "done" and "time" in next(p["note"] for _, k, p, _ in events if k == "final")
    assert sum(k == "step" for _, k, _, _ in events) < 30


def test_a_slow_machine_grows_too_and_cuts_the_final_phase(tmp_path):
    ticks = iter(range(10**6))
    plan = plan_of(WINE | {"select": CHOOSERS["schedule"]}, "budget.time=40s", "train.epochs.final=1000")
    events = whole(tmp_path / "run", plan, clock=lambda: float(next(ticks)))
    assert sum(k == "step" for _, k, _, _ in events) >= 2
    assert 0 < sum(k == "epoch" and p["phase"] == "final" for _, k, p, _ in events) <= 40


def test_what_was_pruned_from_disk_is_never_asked_for(tmp_path):
    """The networks a run may come back to are there, whatever is the best and the last."""
    plan = plan_of(WINE | {"select": CHOOSERS["metropolis"]}, "budget.steps=4")
    with start(tmp_path / "run", plan) as run:
        for event in Search(plan, run).events():
            state = State.from_dict(event.payload["state"])
            load_network(run, event)
            if state.best and state.best["seq"] < event.seq:
                load_network(run, run.events()[state.best["seq"]], "before_")
            for earlier in run.events():
                if earlier.kind == "step":
                    load_network(run, earlier, "before_")


def test_events_say_what_was_predicted_and_what_was_measured(tmp_path):
    events = whole(tmp_path / "run", plan_of(BARE))
    steps = [p for _, k, p, _ in events if k == "step"]
    made = [p for p in steps if p["edit"] != "null"]
    assert made
    for p in made:
        assert p["added_params"] == p["params"] - Architecture.from_dict(p["before_architecture"]).size
        assert {"predicted", "stderr", "z", "checked", "held", "held_stderr", "amplitude", "units", "where"} <= set(p)
    assert [p["step"] for p in steps] == list(range(len(steps)))


def test_a_search_left_in_the_middle_holds_every_finished_unit(tmp_path):
    plan = plan_of(WINE, "budget.steps=1")
    with start(tmp_path / "run", plan) as run:
        work = Search(plan, run).events()
        seen = [next(work), next(work)]
        with contextlib.suppress(StopIteration):
            work.close()
    assert [s[0] for s in story(tmp_path / "run")] == [e.seq for e in seen] == [0, 1]
