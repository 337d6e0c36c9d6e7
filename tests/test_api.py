"""dagrow from Python: what a notebook does, what a run answers, and what is refused."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dagrow
from dagrow import errors
from dagrow.errors import DagrowError, RunError, SpecError, UsageError
from dagrow.graph import Architecture, Node
from dagrow.store import Run

# A bare linear model of a function that is not linear: the first edit pays, whatever the seed.
FRIEDMAN = {
    "name": "demo", "data": {"source": {"name": "friedman1", "n": 500}, "batch": 32}, "model": {"layers": ["linear 1"]},
    "train": {"optimizer": {"name": "adamw", "lr": 0.03}, "epochs": {"first": 6, "between": 1, "final": 1}}, "edits": [{"deepen": {"units": 2}}],
    "budget": {"steps": 2}, "export": [],
}  # fmt: skip
WINE = """
name: text
data: {source: wine, batch: 32}
model: {layers: [linear 3]}
train: {epochs: {first: 1, between: 1, final: 1}}
budget: {steps: 1}
export: []
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """Every test starts in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """One run for all tests that only look at it."""
    return dagrow.search(FRIEDMAN, tmp_path_factory.mktemp("module") / "run")


@pytest.mark.parametrize("name", ["dagrow", "dagrow.api", "dagrow.graph.architecture", "dagrow.importing", "dagrow.spec.loading", "dagrow.spec.describing"])
def test_examples_in_docstrings(name: str, place: Path, grown) -> None:
    found = doctest.testmod(importlib.import_module(name), extraglobs={"folder": place / "run", "finished": grown.folder, "dagrow": dagrow})
    assert found.attempted and not found.failed


def test_importing_dagrow_or_asking_for_help_imports_no_torch() -> None:
    script = """
import sys, dagrow, dagrow.errors, dagrow.cli
dir(dagrow)
try: dagrow.cli.main(["--help"])
except SystemExit as end: assert not end.code
try: dagrow.cli.main(["search", "--help"])
except SystemExit as end: assert not end.code
heavy = {"torch", "sklearn", "optuna", "numpy", "networkx"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=Path(dagrow.__file__).parents[1])


def test_a_search_can_be_repeated_in_the_same_process() -> None:
    one, two, third = dagrow.search(FRIEDMAN), dagrow.search(FRIEDMAN), dagrow.search(FRIEDMAN, sets="seed=1")
    assert [run.folder.name for run in (one, two, third)] == ["demo", "demo-2", "demo-3"]
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert third.plan.spec.seed == 1 and not torch.equal(one.predict(one.data.raw), third.predict(third.data.raw))
    assert callable(dagrow.search) and dagrow.load(one.folder).history == one.history


def test_a_path_a_text_and_a_dict_make_the_same_run(place: Path) -> None:
    Path("text.yaml").write_text(WINE)
    plain = {
        "name": "text", "data": {"source": "wine", "batch": 32}, "model": {"layers": ["linear 3"]},
        "train": {"epochs": {"first": 1, "between": 1, "final": 1}}, "budget": {"steps": 1}, "export": [],
    }  # fmt: skip
    prints = []
    for source in ("text.yaml", Path("text.yaml"), WINE, plain):
        with Run.open(dagrow.search(source).folder) as run:
            prints.append(run.fingerprint())
    assert len(set(prints)) == 1


def test_a_run_answers_what_it_is(grown) -> None:
    assert grown.finished and isinstance(grown.model, nn.Module) and not grown.model.training
    assert isinstance(grown.architecture, Architecture) and grown.architecture.size == sum(p.numel() for p in grown.model.parameters())
    assert any(row["event"] == "step" and row["edit"] == "deepen" for row in grown.history)
    facts = grown.evaluate()
    assert set(facts) == {"train", "val", "test", "params", "macs"} and set(facts["test"]) == {"loss", "r2"}
    end = grown.history[-1]
    assert facts["test"]["loss"] == pytest.approx(end["test_loss"]) and facts["params"] == end["params"] == grown.architecture.size
    assert grown.evaluate(0)["params"] < grown.evaluate(1)["params"]
    assert grown.evaluate("best")["params"] <= grown.evaluate()["params"]
    with pytest.raises(UsageError, match="steps are 0 to 1, or best"):
        grown.evaluate(99)


def test_it_predicts_from_tensors_arrays_and_files(grown, place: Path) -> None:
    raw = grown.data.raw
    expected = grown.predict(raw)
    assert expected.shape == (len(raw), 1)
    assert torch.equal(grown.predict(raw.numpy()), expected)
    np.savez("rows.npz", x=raw.numpy())
    assert torch.equal(grown.predict("rows.npz"), expected)
    # in the target's units, not in the standardised ones it was trained on
    assert 5 < float(expected.mean()) < 25
    for wrong in (torch.zeros(3, 5), torch.zeros(13), torch.tensor(1.0)):
        with pytest.raises(UsageError, match="rows of shape"):
            grown.predict(wrong)


def test_it_draws_itself(grown) -> None:
    for drawn in (grown._repr_html_(), grown.architecture._repr_html_()):
        assert "<svg" in drawn and "<script" not in drawn and "linear1" in drawn
    assert "finished" in repr(grown)


def test_what_is_exported_needs_no_dagrow(grown, place: Path) -> None:
    path, difference = grown.export("torchscript", "net.pt")
    assert difference < 1e-5 and torch.allclose(torch.jit.load(path)(grown.data.raw), grown.predict(grown.data.raw), atol=1e-5)
    for name, options, said in (
        ("onnx", {}, "dagrow formats"), ("torchscrpt", {}, "'torchscript'"), ("torchscript", {"frze": True}, "its options are output, freeze"),
        ("torchscript", {"output": "prob"}, "'logits' or 'probabilities'"), ("torchscript", {"output": "probabilities"}, "no probabilities"),
    ):  # fmt: skip
        with pytest.raises(UsageError if name == "torchscript" else DagrowError, match=said):
            grown.export(name, "other.pt", **options)
    assert os.listdir() == ["net.pt"]


def test_candidates_of_a_run_and_of_a_spec(grown) -> None:
    for source in (grown, grown.folder, str(grown.folder), FRIEDMAN):
        rows = dagrow.score(source)
        assert rows and all(row.edit == "deepen" and row.params > 0 for row in rows)
        assert [row.gain for row in rows] == sorted((row.gain for row in rows), reverse=True)
    assert rows[0].verdict == "grow" and rows[0].checked > 0 and rows[0].checked_stderr > 0 and rows[0].trial == "ok" and rows.best in rows
    assert rows.sites == rows.signal == 1 and rows.bar == pytest.approx(1.6449, abs=1e-4) and rows.alpha == 0.05 and rows.candidates == len(rows)
    assert rows.held_rows == 57 and 0 < rows.rows <= 318 and math.isfinite(rows.train_loss) and math.isfinite(rows.val_loss)
    assert [row["rows"] for row in rows.objects()] == [rows.rows] * len(rows)
    assert all(row.checked is None for row in dagrow.score(grown, verify=0))
    assert len(dagrow.score(FRIEDMAN, top=1)) == 1
    long = "{data: {source: wine, batch: 32}, model: {layers: [linear 3]}, train: {epochs: {first: 0}}, edits: [prune]" + " " * 400 + "}"
    assert dagrow.score(long) == []
    with pytest.raises(UsageError, match="a run keeps its spec"):
        dagrow.score(grown, sets=["seed=3"])


def test_an_architecture_is_usable_on_its_own() -> None:
    net = dagrow.Architecture({
        "x": dagrow.Node.of("input", shape=(4,)), "hidden": Node.of("linear", "x", width=3), "act": Node.of("relu", "hidden"),
        "y": Node.of("linear", "act", width=2),
    })  # fmt: skip
    wider = dagrow.resize(net, {"hidden": (0, 1, 2, -1)})
    assert wider.arch.size - net.size == 5 + 2 and wider.moves and net.shapes["hidden"] == (3,)


def test_an_unfinished_run_can_be_looked_at_and_gone_on_with(place: Path) -> None:
    seen = []

    class Enough(Exception):
        pass

    def listen(row):
        seen.append(row["event"])
        if row["event"] == "step":
            raise Enough

    with pytest.raises(Enough):
        dagrow.search(FRIEDMAN, "run", listen=listen)
    half = dagrow.load("run")
    assert not half.finished and "unfinished" in repr(half) and half.evaluate()["params"] and dagrow.score(half) and half._repr_html_()
    done, whole = dagrow.resume("run"), dagrow.search(FRIEDMAN, "whole")
    with Run.open(done.folder) as a, Run.open(whole.folder) as b:
        assert a.fingerprint() == b.fingerprint()


def test_a_finished_run_is_extended_but_not_cut_back(place: Path) -> None:
    run = dagrow.search(FRIEDMAN, "run")
    events, largest = len(run.history), max(row["params"] for row in run.history)
    for sets, said in (
        (["budget.params=3"], "seed network has"), ([f"budget.params={largest - 1}"], "already"), (["budget.macs=1"], "MACs"),
        (["budget.stps=3"], "'steps'"), (["budget.steps=x"], "not a number"), (["seed=3"], "keeps its spec"), ("seed=3", "keeps its spec"),
    ):  # fmt: skip
        with pytest.raises(DagrowError, match=said):
            dagrow.resume("run", sets=sets)
        assert len(dagrow.load("run").history) == events and dagrow.load("run").evaluate()["params"]
    more = dagrow.resume("run", sets=[f"budget.params={largest}", "budget.steps=3"])
    assert more.history[-1]["steps"] == 3 and len(more.history) > events


def test_data_that_changed_under_a_run(place: Path) -> None:
    rows = [f"{k % 7},{k % 5},{'u' if k % 3 else 'v'},{'yes' if k % 2 else 'no'}" for k in range(60)]
    Path("mine.csv").write_text("\n".join(["a,b,kind,y", *rows]))
    Path("mine.yaml").write_text(WINE.replace("source: wine", "source: {name: csv, path: mine.csv, target: y}").replace("linear 3", "linear 2"))
    dagrow.search("mine.yaml", "run")
    Path("mine.csv").write_text("\n".join(["a,b,kind,y", *rows, "0,0,u,yes"]))
    for refused in (lambda: dagrow.load("run").evaluate(), lambda: dagrow.load("run").predict("mine.csv"), lambda: dagrow.resume("run")):
        with pytest.raises(RunError, match="data"):
            refused()
    assert dagrow.load("run").architecture.size  # needs no data
    assert dagrow.resume("run", accept_different=True).evaluate() and dagrow.load("run").evaluate()
    Path("mine.csv").unlink()
    with pytest.raises(SpecError, match=r"mine\.csv: no such file"):
        dagrow.load("run").evaluate()


@pytest.mark.parametrize("source", [3, None, [1], {}, "", "  ", {"data": 3}, "\n", "nosuch.yaml"], ids=repr)
def test_what_is_no_spec_is_a_spec_error(source, place: Path) -> None:
    with pytest.raises(SpecError, match="Nothing was run"):
        dagrow.search(source)
    assert not os.listdir()


def test_nothing_is_overwritten(place: Path) -> None:
    dagrow.search(WINE, "run")
    with pytest.raises(RunError, match="already holds a run of this spec"):
        dagrow.search(WINE, "run")
    with pytest.raises(RunError, match="another spec"):
        dagrow.search(WINE, "run", seed=1)
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(RunError, match="not the folder of a run"):
            dagrow.search(WINE, "mine", force=force)
    assert os.listdir("mine") == ["thesis.txt"] and dagrow.load("run").plan.spec.seed == 0
    assert dagrow.search(WINE, "run", seed=1, force=True).plan.spec.seed == 1


def test_errors_travel_between_processes() -> None:
    try:
        dagrow.search({"data": "wine", "model": {"layers": ["linear 4"]}, "edits": ["widn"]})
    except SpecError as error:
        spec_error = error
    made = [
        spec_error, errors.UnknownName("op", "rellu", ["relu"], "dagrow ops"), errors.GraphError("no", node="a", fix="b"), errors.Interrupted(15, "x"),
        errors.RunError("a", fix="b"),
    ]  # fmt: skip
    for error in made:
        for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
            assert type(again) is type(error) and str(again) == str(error) and again.exit_code == error.exit_code
            assert vars(again) == vars(error)
    assert pickle.loads(pickle.dumps(spec_error)).problems == spec_error.problems and len(spec_error.problems) == 2
