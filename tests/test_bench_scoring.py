"""The pieces of tools/bench_scoring.py run, and count right. No figure of cost is held to anything here."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "name": "tiny", "data": {"source": "wine", "batch": 32}, "model": {"layers": ["linear 3", "relu", "linear 3"]}, "export": [],
    "train": {"epochs": {"first": 2, "between": 1, "final": 1}}, "edits": [{"widen": {"units": 2}}], "budget": {"steps": 1},
}


@pytest.fixture(scope="module")
def tools():
    """The scripts' modules, by name."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import bench_scoring
        import scoring_cases
        import scoring_memory
        import scoring_search

        yield SimpleNamespace(bench=bench_scoring, cases=scoring_cases, memory=scoring_memory, search=scoring_search)
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_a_decision_in_training_steps(tools):
    bench = tools.bench.Bench(Namespace(threads=1, quick=True, rounds=5, images=None, peer=None))
    row = bench.decision(tools.cases.mlp(1, epochs=0), 40, bench="p2", edits="widen")
    assert (row["rows"], row["held"], row["candidates"]) == (40, 40, 1)
    assert row["per_batch"] == pytest.approx(row["decision_steps"] / (80 / 128)) and 0 < row["lowest"] <= row["per_batch"] <= row["highest"]
    assert "steps a batch" in tools.bench.line(row)


def test_both_conv_nets_have_the_shape_the_other_side_builds(tools):
    try:
        for make in tools.cases.CONV_NETS.values():
            case = make(epochs=0, rows=200)
            convs = [n.attrs for n in case.network.arch.nodes.values() if n.op == "conv2d"]
            assert [(a.channels, a.stride) for a in convs] == [c[:2] for c in case.shape["convs"]]
            assert case.epoch(4) == 1 and case.looking_at(16).plan.spec.score.rows == 16
        assert case.network.arch.size == 71786
    finally:
        tools.cases.tidy()


def test_a_whole_search_and_its_epochs_again(tools):
    row = tools.search.whole("tiny", TINY, 1)
    assert row["ratio"] > 0 and row["decisions"] == 1 and row["stretches"] == [2, sum(row["stretches"]) - 2]
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert min(row["shares"][stage] for stage in ("measuring", "proposing", "journal")) > 0


def test_what_gathering_costs_is_told_from_the_speed_of_the_other_epochs(tools):
    kinds = ("start", "epoch", "different", "step", "epoch", "final", "epoch", "done")
    events = [SimpleNamespace(kind=k, payload={"losses": [0.0, 0.0] if n == 1 else [0.0]}) for n, k in enumerate(kinds)]
    # The search ran at half the speed of the replay; the epoch before the decision took one second more than that.
    assert tools.search.extra_of_gathering(events, [2.0, 3.0, 2.0, 4.0], [1.0, 1.0, 1.0, 2.0]) == pytest.approx(1.0)


def test_a_stage_inside_another_is_the_outer_ones(tools):
    watch = tools.search.Watch()
    inner = watch.around("training", lambda: 1)
    assert watch.around("trials", inner)() == 1 and inner() == 1
    assert (len(watch.calls["trials"]), len(watch.calls["training"])) == (1, 1)


def test_the_peak_of_live_memory(tools):
    before = torch.zeros(2**20)

    def work() -> None:
        first = torch.zeros(2**20) + before  # 4 MiB, and 4 MiB for a moment
        del first
        torch.zeros(2**19)

    assert tools.memory.live_peak(work) == pytest.approx(8, abs=0.1)


def test_made_up_images_are_the_same_each_time(tools):
    (x, y), (again, _) = tools.cases.made_up(20), tools.cases.made_up(20)
    assert x.shape == (20, 3, 32, 32) and (x == again).all() and set(y) <= set(range(10))
