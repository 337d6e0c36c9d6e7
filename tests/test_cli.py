"""The command line: what a newcomer types, what programs read, and everything that is refused."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dagrow.cli import main
from dagrow.progress import line
from dagrow.store import Run

ROOT = Path(__file__).resolve().parent.parent
BASE = """name: tiny
data: {source: wine, batch: 32}
model: {layers: [linear 3, relu, linear 3]}
train: {optimizer: {name: adamw, lr: 0.02}, epochs: {first: 3, between: 1, final: 2}}
score: {by: {name: natural, starts: 4, steps: 4}, rows: 96, verify: 2}
edits: [{widen: {units: [1, 2]}}, {deepen: {units: 2}}, connect, prune, remove]
budget: {steps: 2}
export: []
"""
DONE = {
    "event": str, "run": str, "steps": int, "params": int, "macs": int, "train_loss": float, "val_loss": float, "test_loss": float,
    "test_accuracy": float, "seconds": float, "exports": dict,
}  # fmt: skip
SCORED = {"edit": str, "where": str, "gain": float, "stderr": float, "checked": (float, type(None)), "params": int, "macs": int, "verdict": str}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """Every test starts in a folder with one spec, base.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    return tmp_path


@pytest.fixture
def dagrow(capsys):
    """Runs a command here: (exit code, stdout, stderr); no traceback, whatever happens."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err and "a bug in dagrow: " not in err, err
        return end.value.code or 0, out, err

    return command


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that no test changes."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "base.yaml").write_text(BASE)
    with pytest.raises(SystemExit) as end:
        main(["search", str(folder / "base.yaml"), "-o", str(folder / "run"), "--quiet"])
    assert not end.value.code
    return folder / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def spec(text: str, *changes: tuple[str, str]) -> Path:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("wrong.yaml").write_text(text)
    return Path("wrong.yaml")


# -- what is there ---------------------------------------------------------------------------------------------------


def test_alone_it_shows_help(dagrow) -> None:
    code, out, err = dagrow()
    assert code == 2 and "Usage: dagrow" in out + err and "search" in out + err
    for arguments in (["--help"], ["-h"], ["search", "--help"]):
        code, out, _ = dagrow(*arguments)
        assert code == 0 and out.startswith("Usage: dagrow")


@pytest.mark.parametrize(
    ("verb", "name"),
    [("ops", "conv2d"), ("edits", "widen"), ("scores", "natural"), ("choosers", "metropolis"), ("sources", "csv"), ("formats", "torchscript")],
)
def test_registries_are_listed(verb: str, name: str, dagrow) -> None:
    code, out, _ = dagrow(verb)
    assert code == 0 and re.search(rf"^{name} +\S", out, re.MULTILINE) and all(re.match(r"\w+ +\S", line) for line in out.splitlines())


def test_the_schema_is_json(dagrow) -> None:
    code, out, _ = dagrow("schema")
    assert code == 0 and {"data", "model", "budget"} <= set(json.loads(out)["properties"])


def test_check_tells_nodes_axes_and_edits(dagrow) -> None:
    code, out, err = dagrow("check", "base.yaml")
    assert code == 0 and not err and os.listdir() == ["base.yaml"]
    for said in ("113 train, 20 val, 45 test", "linear width=3", "linear1  3 units", "legal edits: 1 widen, 2 deepen"):
        assert said in out
    code, out, err = dagrow("check", "base.yaml", "--json")
    (line,) = out.splitlines()
    row = json.loads(line)
    assert row["params"] == 54 and row["macs"] == 48 and row["edits"] == sum(row["sites"].values()) == 5 and not err
    assert [n["name"] for n in row["nodes"]] == ["input", "linear1", "relu1", "linear2"] and row["axes"] == {"linear1": 3}
    assert 2**10 < row["decision_bytes"] < 2**30
    assert sum(n["params"] for n in row["nodes"]) == 54 and row["nodes"][1]["shape"] == [3]


def test_patterns_that_match_nothing_are_told_and_are_no_error(dagrow) -> None:
    code, out, err = dagrow("check", "base.yaml", "--json", "--set", "edits=[{widen: {where: conv.*}}, {widen: {where: linear2}}, deepen, remove]")
    assert code == 0 and json.loads(out)["sites"] == {"widen": 0, "deepen": 2, "remove": 0}
    assert "'conv.*' matches no node" in err and "'linear2' matches linear2, and none of its 1 sites" in err and err.count("warning") == 2
    Path("where.yaml").write_text(BASE.replace("{units: [1, 2]}", '{where: "body.*"}'))
    assert "where.yaml:6:25" in dagrow("check", "where.yaml")[2]


# -- searching -------------------------------------------------------------------------------------------------------


def test_json_is_all_that_stdout_holds(dagrow) -> None:
    code, out, err = dagrow("search", "base.yaml", "-o", "run", "--json", "--set", "export=[torchscript]")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and not err and [row["event"] for row in rows].count("done") == 1
    done = rows[-1]
    assert done["event"] == "done" and all(isinstance(done[key], kind) for key, kind in DONE.items())
    assert done["run"] == str(Path("run").absolute()) and Path(done["exports"]["torchscript"]).is_file()
    assert sum(row["event"] == "step" for row in rows) == done["steps"] == 2 and {"candidates", "val_loss", "left"} <= set(rows[4])
    code, out, err = dagrow("resume", "run", "--json", "--set", "budget.steps=3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and not err and rows[-1]["event"] == "done" and rows[-1]["steps"] == 3
    assert all(isinstance(rows[-1][key], kind) for key, kind in DONE.items())


def test_one_plain_line_a_step_or_none(dagrow) -> None:
    code, out, err = dagrow("search", "base.yaml")
    assert code == 0 and re.findall(r"^step +(\d)", err, re.MULTILINE) == ["0", "1"] and "\x1b" not in out + err
    assert "test: accuracy" in out and f"run: {Path('runs/tiny').absolute()}" in out
    code, out, err = dagrow("search", "base.yaml", "--quiet")
    assert code == 0 and not err and f"run: {Path('runs/tiny-2').absolute()}" in out
    code, _, err = dagrow("resume", "runs/tiny", "--quiet")
    assert code == 0 and not err


def test_what_a_trial_brought_is_said() -> None:
    row = {
        "event": "step", "step": 1, "val_loss": 1.5, "edit": "norm", "where": "a", "units": 1, "added_params": 8, "predicted": 0.0, "stderr": 0.0, "checked": 0.0,
        "note": "norm a (1): +0.02646 nats, the best of 1 tried", "params": 50, "macs": 40,
    }  # fmt: skip
    assert "+0.02646 nats, the best of 1 tried" in line(row) and "predicted" not in line(row)
    assert "predicted +0.3000" in line(row | {"predicted": 0.3})


def test_a_regression_reports_r2(dagrow) -> None:
    sets = ["data.source=diabetes", "model={layers: [linear 1]}", "budget.steps=1", "edits=[deepen]"]
    code, out, _ = dagrow("search", "base.yaml", "-o", "run", "--json", *(a for s in sets for a in ("--set", s)))
    done = json.loads(out.splitlines()[-1])
    assert code == 0 and isinstance(done["test_r2"], float) and "test_accuracy" not in done
    assert "r2" in dagrow("eval", "run")[1]


def test_a_folder_that_holds_something_is_kept(dagrow, finished) -> None:
    before = files(finished)
    code, _, err = dagrow("search", finished.parent / "base.yaml", "-o", finished)
    assert code == 4 and f"dagrow resume {finished}" in err and "--force" in err
    code, _, err = dagrow("search", finished.parent / "base.yaml", "-o", finished, "--seed", 3)
    assert code == 4 and "another spec" in err and "-o" in err
    assert files(finished) == before
    Path("mine").mkdir()
    Path("mine/x").write_text("mine")
    for more in ([], ["--force"]):
        code, _, err = dagrow("search", "base.yaml", "-o", "mine", *more)
        assert code == 4 and "not the folder of a run" in err and files(Path("mine")) == {"x": b"mine"}
    assert dagrow("search", "base.yaml", "-o", "run", "--quiet", "--seed", "1")[0] == 0
    assert dagrow("search", "base.yaml", "-o", "run", "--quiet", "--force")[0] == 0 and '"seed":0' in json.dumps(Run.open("run").spec, separators=(",", ":"))


@pytest.mark.parametrize("out", ["base.yaml", "base.yaml/run", "/proc/nowhere/run", "/dev/null"])
def test_a_folder_that_cannot_be_made(out: str, dagrow) -> None:
    code, _, err = dagrow("search", "base.yaml", "-o", out)
    assert code == 4 and len(err.splitlines()) <= 3 and files(Path()) == {"base.yaml": BASE.encode()}


def test_nothing_fits_is_three_and_a_seed_too_large_is_two(dagrow) -> None:
    code, _, err = dagrow("search", "base.yaml", "-o", "run", "--set", "budget.params=55", "--set", "edits=[widen]")
    assert code == 3 and "no edit fits the budget" in err and "raise budget.params" in err
    code, _, err = dagrow("search", "base.yaml", "-o", "other", "--set", "budget.params=10")
    assert code == 2 and "the seed network has 54 parameters" in err and "54 or more" in err and not Path("other").exists()
    # what was refused can be gone on with
    assert dagrow("resume", "run", "--quiet", "--set", "budget.params=500")[0] == 0


# -- looking at a run ------------------------------------------------------------------------------------------------


def test_score_prints_a_table_or_json(dagrow, finished) -> None:
    for source in (finished, "base.yaml"):
        code, out, _ = dagrow("score", source, "--json", "--top", "2")
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 0 and len(rows) == 2 and all(isinstance(row[key], kind) for row in rows for key, kind in SCORED.items())
        assert isinstance(rows[0]["checked"], float) and all(row["verdict"] in ("grow", "noise", "trial", "too dear", "unsupported", "shrink") for row in rows)
        assert all(row["checked_stderr"] > 0 and row["sites"] >= 1 and row["bar"] > 1.6 and 0 < row["rows"] <= 96 and "rows_needed" in row for row in rows)
    code, out, err = dagrow("score", finished, "--top", "2")
    assert code == 0 and re.match(r"The network lacks capacity at |Nothing ", out) and "±" in out and not err
    assert "gain, nats" in out and "alpha 0.05" in out and "--top" in out and re.search(r"\d+ training rows told the sites apart, 20 held-out ones", out)
    assert "\x1b" not in out
    rows = [json.loads(line) for line in dagrow("score", finished, "--json", "--verify", "1")[1].splitlines()]
    assert [row["checked"] is None for row in rows].count(False) == 1


def test_score_draws_a_picture(dagrow, finished) -> None:
    code, out, err = dagrow("score", finished, "--plot", "gains.png", "--top", "4", "--json")
    assert code == 0 and "drawn in gains.png" in err and Path("gains.png").read_bytes().startswith(b"\x89PNG") and len(out.splitlines()) == 4
    assert sum(json.loads(line)["checked"] is not None for line in out.splitlines()) > 2  # more than the spec's two are tried
    assert sorted(os.listdir()) == ["base.yaml", "gains.png"]


def test_eval_predict_export_and_show(dagrow, finished) -> None:
    code, out, _ = dagrow("eval", finished)
    assert code == 0 and re.search(r"test +loss \d+\.\d+ nats +accuracy 0\.\d+", out) and "MACs" in out
    for step in ("0", "best"):
        code, out, _ = dagrow("eval", finished, "--step", step, "--json")
        assert code == 0 and set(json.loads(out)) == {"train", "val", "test", "params", "macs"}
    from sklearn.datasets import load_wine

    wine = load_wine()
    rows = ["what," + ",".join(reversed(wine.feature_names)), *("x," + ",".join(map(str, reversed(row))) for row in wine.data[:4])]
    Path("new.csv").write_text("\n".join(rows))
    np.savez("new.npz", x=wine.data[:4])
    code, out, _ = dagrow("predict", finished, "new.csv")
    assert code == 0 and out.splitlines()[0] == "prediction,p(class_0),p(class_1),p(class_2)" and len(out.splitlines()) == 5
    assert dagrow("predict", finished, "new.npz")[1] == out
    assert dagrow("predict", finished, "new.npz", "-o", "out.csv")[0] == 0 and Path("out.csv").read_text() == out
    code, out, _ = dagrow("show", finished)
    assert code == 0 and "linear width=3" in out
    for source in (finished, "base.yaml"):
        code, out, _ = dagrow("show", source, "--format", "mermaid")
        assert code == 0 and out.startswith("flowchart")
    code, out, _ = dagrow("export", finished, "-f", "torchscript", "-o", "net.pt")
    assert code == 0 and re.match(r"net\.pt: largest difference in a clean process \S+", out)


def test_rows_trained_on_at_the_end_are_not_shown_as_held_out(dagrow, finished) -> None:
    assert "held out" not in dagrow("eval", finished)[2]
    path = spec(BASE, ("final: 2}", "final: 2}, final_on: train+val"), ("steps: 2", "steps: 0"))
    assert dagrow("search", path, "-o", "run", "--quiet")[0] == 0
    assert "held out" in dagrow("eval", "run")[2] and "held out" not in dagrow("eval", "run", "--step", "best")[2]


def test_an_unfinished_run_is_shown_as_such(dagrow, place) -> None:
    from dagrow.api import search

    class Enough(Exception):
        pass

    def listen(row):
        if row["event"] == "step":
            raise Enough

    with pytest.raises(Enough):
        search("base.yaml", "run", listen=listen)
    for command in (["eval", "run"], ["score", "run", "--top", "1"], ["show", "run"]):
        code, out, err = dagrow(*command)
        assert code == 0 and out and ("not finished" in err) == (command[0] == "eval")
    assert dagrow("resume", "run", "--quiet")[0] == 0 and not dagrow("eval", "run")[2]


# -- what is wrong ---------------------------------------------------------------------------------------------------

NODES = "data: wine\nmodel:\n  nodes:\n    a: {op: OP}\n    head: {op: linear, in: HEAD, width: 3}\n"
WRONG = {
    "op": ([("relu", "rellu")], "wrong.yaml:3:28", "did you mean 'relu'"),
    "edit": ([("widen", "widn")], "wrong.yaml:6:10", "did you mean 'widen'"),
    "key": ([("budget:", "bugdet:")], "wrong.yaml:7:1", "did you mean 'budget'"),
    "option": ([("lr:", "lrr:")], "wrong.yaml:4:", "lr"),
    "source": ([("wine", "wein")], "wrong.yaml:2:16", "did you mean 'wine'"),
    "width": ([("linear 3]", "linear 4]")], "wrong.yaml:3:", "set width to 3"),
    "shape": ([("wine", "digits"), ("layers: [linear 3", "layers: [conv2d 3")], "wrong.yaml:3:", "flatten"),
    "star": ([("{units: [1, 2]}", "{where: *}")], "wrong.yaml:6:25", 'quote it: "*"'),
    "star with more": ([("{units: [1, 2]}", "{where: *.conv}")], "wrong.yaml:6:25", 'quote it: "*.conv"'),
    "loss": ([("train: {", "train: {loss: mse, ")], "wrong.yaml:4:", "loss: auto"),
    "batch": ([("batch: 32", "batch: 5000")], "wrong.yaml:2:29", "113 or less"),
    "budget": ([("steps: 2", "steps: 2, params: 10")], "wrong.yaml:7:", "54 or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_told_with_its_place_and_what_to_do(case: str, dagrow) -> None:
    changes, at, fix = WRONG[case]
    for verb in ("check", "search"):
        code, out, err = dagrow(verb, spec(BASE, *changes))
        assert code == 2 and not out and at in err and fix in err and err.rstrip().endswith("Nothing was run.")
    assert sorted(os.listdir()) == ["base.yaml", "wrong.yaml"]


def test_nodes_that_are_not_there_and_cycles(dagrow) -> None:
    code, _, err = dagrow("check", spec(NODES, ("OP", "relu, in: input"), ("HEAD", "aa")))
    assert code == 2 and "wrong.yaml:5:28  'head' reads 'aa'" in err and "did you mean 'a'" in err
    code, _, err = dagrow("check", spec(NODES, ("OP", "add, in: [input, head]"), ("HEAD", "a")))
    assert code == 2 and "a cycle: a -> head -> a" in err


def test_files_that_are_no_specs(dagrow) -> None:
    Path("binary.yaml").write_bytes(bytes(range(256)) * 4)
    Path("zeros.yaml").write_bytes(b"\0" * 100)
    Path("empty.yaml").write_text("")
    Path("text.yaml").write_text("hello\n")
    Path("folder").mkdir()
    os.mkfifo("pipe.yaml")
    for name, said in (
        ("binary.yaml", "binary.yaml:2:118  not UTF-8 text"), ("zeros.yaml", "U+0000"), ("empty.yaml", "the spec is empty"), ("text.yaml", "a spec is a mapping"),
        ("folder", "a folder, not a spec"), ("bas.yaml", "did you mean base.yaml?"), ("pipe.yaml", "not a regular file"),
    ):  # fmt: skip
        code, out, err = dagrow("search", name)
        assert code == 2 and not out and said in err and err.rstrip().endswith("Nothing was run.")
    assert not Path("runs").exists()


SETS = {
    "params=3": "did you mean budget.params?", "budget.parms=3": "did you mean 'params'?", "foo": "there is no =", "foo=1": "no key 'foo'", "=3": "no path",
    "seed=x": "whole number", "budget.steps=-1": "at least 0", "data.source=dgits": "did you mean 'digits'?", "edits.widn.max=3": "did you mean 'widen'?",
    "name=../../x": "name", "model.layers=[linear": "value",
}  # fmt: skip


@pytest.mark.parametrize("text", SETS)
def test_overrides_that_go_nowhere(text: str, dagrow) -> None:
    code, out, err = dagrow("search", "base.yaml", "--set", text)
    assert code == 2 and not out and f"--set {text}" in err and SETS[text] in err and os.listdir() == ["base.yaml"]


def test_overrides_that_work(dagrow) -> None:
    code, out, _ = dagrow("check", "base.yaml", "--json", "--set", "edits.widen.where=*", "--set", "budget.params=5k", "--set", "select.by=metropolis")
    assert code == 0 and json.loads(out)["edits"] == 5


CSV = {
    "missing": (None, "no such file"),
    "no target": (lambda rows: [row.rsplit(",", 1)[0] for row in rows], "no target 'y'"),
    "nan": (lambda rows: [*rows, "nan,1,u,yes"], "mine.csv:62, column 'a': 'nan' is not a finite number"),
    "no label": (lambda rows: [*rows, "1,1,u,"], "mine.csv:62, column 'y': no target"),
    "one class": (lambda rows: [re.sub(r"(yes|no)$", "yes", row) for row in rows], "the one class 'yes'"),
    "ragged": (lambda rows: [*rows[:9], "1,2", *rows[9:]], "mine.csv:10: 2 cells, the header names 4"),
    "quote": (lambda rows: [*rows, '"1,1,u,yes'], "mine.csv:62: unexpected end"),
    "separator": (lambda rows: [row.replace(",", ";") for row in rows], "did you mean separator: ';'?"),
    "few": (lambda rows: rows[:13], "data.batch is 16, there are 7 train rows"),
    "empty": (lambda rows: [], "empty, expected a header line"),
    "header": (lambda rows: rows[:1], "a header line and no rows"),
    "twins": (lambda rows: [rows[0].replace("b", "a"), *rows[1:]], "two columns named 'a'"),
}


@pytest.mark.parametrize("case", CSV)
def test_data_that_cannot_be_used(case: str, dagrow) -> None:
    change, said = CSV[case]
    rows = ["a,b,kind,y", *(f"{k % 7},{k % 5},{'u' if k % 3 else 'v'},{'yes' if k % 2 else 'no'}" for k in range(60))]
    if change is not None:
        Path("mine.csv").write_text("\n".join(change(rows)))
    path = spec(BASE, ("source: wine, batch: 32", "source: {name: csv, path: mine.csv, target: y}, batch: 16"), ("linear 3]", "linear 2]"))
    code, out, err = dagrow("search", path, "-o", "run")
    assert code == 2 and not out and said in err and "wrong.yaml:2:" in err and not Path("run").exists()


def test_numbers_that_are_none(dagrow) -> None:
    x = np.ones((60, 3))
    x[3, 1] = np.nan
    np.savez("mine.npz", x=x, y=np.arange(60) % 2)
    path = spec(BASE, ("source: wine, batch: 32", "source: {name: npz, path: mine.npz}, batch: 16"), ("linear 3]", "linear 2]"))
    code, _, err = dagrow("check", path)
    assert code == 2 and "x[3, 1]" in err and "nan" in err


USAGE = [
    (["nosuch"], 2, "No such command"), (["search"], 2, "Missing argument"), (["search", "base.yaml", "--nope"], 2, "No such option"),
    (["search", "base.yaml", "--seed", "-3"], 2, "--seed"), (["search", "base.yaml", "--seed", "x"], 2, "--seed"),
    (["search", "base.yaml", "--device", "gpu0"], 2, "leave out --device"), (["resume", "RUN", "--seed", "3"], 2, "No such option"),
    (["resume", "RUN", "--set", "seed=3"], 2, "keeps its spec"), (["resume", "RUN", "--set", "budget.stps=3"], 2, "did you mean 'steps'"),
    (["resume", "RUN", "--set", "budget.params=3"], 2, "54 or more"), (["resume", "nowhere"], 4, "no such run folder"),
    (["resume", "base.yaml"], 4, "not a run folder"), (["resume", "empty"], 4, "dagrow search"), (["eval", "nowhere"], 4, "no such run folder"),
    (["eval", "RUN", "--step", "99"], 2, "steps are 0 to 1, or best"), (["eval", "RUN", "--step", "-1"], 2, "or best"), (["eval", "RUN", "--step", "x"], 2, "or best"),
    (["export", "RUN", "-f", "onnx"], 2, "dagrow formats"), (["export", "RUN", "-f", "torchscrpt"], 2, "did you mean 'torchscript'?"),
    (["export", "RUN", "-o", "no/x.pt"], 2, "mkdir"), (["export", "RUN", "-o", "empty"], 2, "name a file"), (["predict", "RUN", "xyzzy.csv"], 2, "xyzzy.csv: no such file\n  looked for in /"),
    (["predict", "RUN", "empty"], 2, "not a regular file"), (["predict", "RUN", "few.csv"], 2, "no column 'alcohol'"), (["predict", "RUN", "wide.npz"], 2, "expected [rows, 13]"),
    (["show", "RUN", "--format", "svg"], 2, "text or mermaid"), (["show", "nowhere"], 2, "cannot be read"), (["show", "RUN", "--set", "seed=3"], 2, "keeps its spec"),
    (["score", "RUN", "--plot", "gains.jpg"], 2, "end its name in .png, .svg, .pdf"), (["score", "RUN", "--plot", "no/gains.svg"], 2, "mkdir"),
    (["score", "RUN", "--plot", "empty"], 2, "end its name"), (["score", "RUN", "--verify", "-1"], 2, "--verify"),
    (["score", "RUN", "--set", "seed=3"], 2, "keeps its spec"), (["score", "RUN", "--top", "0"], 2, "--top"), (["check", "RUN"], 2, "dagrow resume"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "said"), USAGE, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_commands_that_cannot_be_meant(arguments: list[str], code: int, said: str, dagrow, finished) -> None:
    Path("empty").mkdir()
    Path("few.csv").write_text("a,b\n1,2\n")
    np.savez("wide.npz", x=np.ones((3, 5)))
    before = files(finished)
    found, out, err = dagrow(*(str(finished) if a == "RUN" else a for a in arguments))
    assert found == code and not out and said in err and files(finished) == before and not os.listdir("empty")


def test_a_run_whose_folder_was_meddled_with(dagrow, place) -> None:
    assert dagrow("search", "base.yaml", "-o", "run", "--quiet")[0] == 0
    Path("run/spec.yaml").write_text("name: another\n")
    code, _, err = dagrow("resume", "run")
    assert code == 4 and "spec.yaml" in err and "put spec.yaml back" in err
    Path("run/run.db").write_bytes(b"not a database")
    for command in (["resume", "run"], ["eval", "run"], ["search", "base.yaml", "-o", "run"]):
        code, _, err = dagrow(*command)
        assert code == 4 and "run" in err


# -- processes -------------------------------------------------------------------------------------------------------

# Epochs this short are committed a hundred and more at a time: enough for a signal to come between two commits.
LONG = ["--set", "train.epochs.first=1500", "--set", "budget.steps=1"]
COMMAND = [sys.executable, "-m", "dagrow"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}


def fingerprint(folder: str | Path) -> str:
    with Run.open(folder) as run:
        return run.fingerprint()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """What a run that nobody stops comes to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "base.yaml").write_text(BASE)
    with pytest.raises(SystemExit):
        main(["search", str(folder / "base.yaml"), "-o", str(folder / "run"), "--quiet", *LONG])
    return fingerprint(folder / "run")


@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGINT", "SIGHUP"))])
def test_a_signal_ends_a_search_that_can_be_gone_on_with(name: str, whole: str, dagrow) -> None:
    process = subprocess.Popen(
        [*COMMAND, "search", "base.yaml", "-o", "run", "--json", *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=ENVIRONMENT
    )
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # so much, and it waits for us: it cannot be done before the signal
    for _ in range(4):
        assert json.loads(process.stdout.readline())
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name) and f"dagrow resume {Path('run').absolute()}" in err.decode() and b"Traceback" not in err
    assert all(json.loads(line)["event"] != "done" for line in out.splitlines())
    assert dagrow("resume", "run", "--quiet")[0] == 0 and fingerprint("run") == whole


def test_on_a_terminal_it_draws_and_leaves_the_terminal_clean(whole: str, dagrow) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "search", "base.yaml", "-o", "run", *LONG], stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT, start_new_session=True
    )
    os.close(slave)
    seen, sent, until = b"", False, time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([master], [], [], 0.2)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            seen += piece
        if b"nats" in seen and not sent:
            sent = True
            process.send_signal(signal.SIGINT)
    os.close(master)
    assert process.wait(30) == 130 and b"stopping after the work in progress" in seen and b"dagrow resume" in seen
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0  # the cursor is back
    assert b"Traceback" not in seen
    assert dagrow("resume", "run", "--quiet")[0] == 0 and fingerprint("run") == whole


def test_nobody_reads_on_and_a_terminal_without_utf8() -> None:
    process = subprocess.Popen([*COMMAND, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141
    done = subprocess.run([*COMMAND, "sources"], capture_output=True, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, check=True)
    assert b"\\xd7" in done.stdout and not done.stderr
