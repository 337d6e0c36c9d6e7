"""The shipped specs through `dagrow search`, shortened; a table of the user's own from the file to predictions."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest
import torch

import dagrow
from dagrow import cli

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "specs"
BRIEF = ("train.epochs={first: 3, between: 1, final: 2}", "budget.steps=2", "score.rows=256")
# Those of more than five seconds are slow.
SHIPPED = {"friedman1": (), "teacher-student": (), "spirals": ("data.source.n=600",), "digits": (), "digits-mlp": (), "rules": ()}
FAST = ("teacher-student", "friedman1", "digits-mlp", "spirals")


def command(*words: str) -> None:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        assert stop.code in (0, None)


def searched(spec: Path, folder: Path, capsys, *sets: str) -> tuple[dict, dagrow.Grown]:
    """`dagrow search --json`: (its last line, the run)."""
    command("search", spec, "-o", folder, "--json", *(word for one in sets for word in ("--set", one)))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return rows[-1], dagrow.load(folder)


def hold(end: dict, run: dagrow.Grown) -> None:
    """What is promised of every finished run: its last line, the budget, the exported file."""
    arch = run.architecture
    assert end["event"] == "done" and run.finished and (end["params"], end["macs"]) == (arch.size, arch.macs)
    limit = run.plan.spec.budget
    for row in run.history:
        assert limit.params is None or row["params"] <= limit.params
        assert limit.macs is None or row["macs"] <= limit.macs
    assert end["steps"] <= limit.steps
    score = "test_r2" if run.data.task == "regression" else "test_accuracy"
    assert {"train_loss", "val_loss", "test_loss", score, "seconds", "run"} <= end.keys()
    assert end["exports"]
    raw = run.data.raw
    with torch.no_grad():
        program = torch.jit.load(end["exports"]["torchscript"])
        assert torch.allclose(program(raw), run.predict(raw), rtol=1e-5, atol=1e-5)
        assert {n.removeprefix("network.") for n in program.state_dict() if n.startswith("network.")} == set(run.model.state_dict())
    assert [p.name for p in (run.folder / "exports").iterdir()] == [f"{run.plan.spec.name}.pt"]


def test_these_are_the_shipped_specs():
    assert {p.stem for p in SPECS.glob("*.yaml")} == {*SHIPPED, "breast-cancer"}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SHIPPED])
def test_a_shipped_spec_shortened(name, tmp_path, capsys):
    end, run = searched(SPECS / f"{name}.yaml", tmp_path / "run", capsys, *BRIEF, *SHIPPED[name])
    hold(end, run)
    decided = [row for row in run.history if row["event"] == "step"]
    assert decided and [row["step"] for row in decided] == list(range(len(decided)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_where_a_linear_model_does_nothing_is_added(tmp_path, capsys):
    end, run = searched(SPECS / "breast-cancer.yaml", tmp_path / "run", capsys)
    hold(end, run)
    assert {row["params"] for row in run.history} == {62}
    assert {row["edit"] for row in run.history if row["event"] == "step"} == {"null"}
    assert end["test_accuracy"] > 0.93


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_spec_is_one(tmp_path, capsys):
    (text,) = blocks("yaml")
    (tmp_path / "spec.yaml").write_text(text)
    command("check", tmp_path / "spec.yaml", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["params"] and all(facts["sites"].values())


def test_the_readmes_resize_runs():
    (text,) = [block for block in blocks("python") if "resize(" in block]
    names: dict = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["wider"].arch.size == names["net"].size + 7


def test_the_readmes_commands_are_there(capsys):
    found = set(re.findall(r"dagrow (?=[a-z])(\w+)(?= specs/| runs/| SPEC| RUN|`)", (ROOT / "README.md").read_text()))
    assert {"check", "search", "resume", "score", "eval", "export", "predict", "show"} <= found
    for verb in found:
        command(verb, "--help")


def write_table(path: Path, rows: int, target: bool = True) -> None:
    """Rooms: area and age (missing here and there), district and heating as words (missing too), and the price."""
    dice = random.Random(rows)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["area", "district", "age", "heating", *(["price"] if target else [])])
        for _ in range(rows):
            area, age, district, heating = dice.uniform(20, 150), dice.uniform(0, 90), dice.choice(["north", "east", "old town"]), dice.choice(["gas", "oil", ""])
            price = 3 * area * (2 if district == "old town" else 1) - age + (20 if heating == "gas" else 0) + dice.gauss(0, 5)
            row = [f"{area:.1f}", district, "" if dice.random() < 0.1 else f"{age:.0f}", heating]
            out.writerow([*row, *([f"{price:.1f}"] if target else [])])


TABLE = """
name: rooms
data: {source: {name: csv, path: rooms.csv, target: price}, batch: 32}
model: {layers: [linear 1]}
train: {optimizer: {name: adamw, lr: 0.03}, epochs: {first: 10, between: 4, final: 20}}
edits: [{deepen: {units: [2, 4]}}, {widen: {units: [1, 2]}}]
budget: {steps: 3, params: 120}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_table_from_the_file_to_predictions(tmp_path, capsys):
    write_table(tmp_path / "rooms.csv", 400)
    write_table(tmp_path / "new.csv", 7, target=False)
    (tmp_path / "rooms.yaml").write_text(TABLE)
    end, run = searched(tmp_path / "rooms.yaml", tmp_path / "run", capsys)
    hold(end, run)
    assert end["test_r2"] > 0.9 and end["params"] > run.history[0]["params"]

    command("predict", run.folder, tmp_path / "new.csv", "-o", tmp_path / "prices.csv")
    found = list(csv.DictReader((tmp_path / "prices.csv").open()))
    expected = run.predict(tmp_path / "new.csv")
    assert len(found) == 7
    assert torch.allclose(torch.tensor([[float(v) for v in row.values()] for row in found]), expected, rtol=1e-4)
    assert 20 < expected.mean() < 1000  # in the target's own units

    for form, name in (("torchscript", "rooms.pt"), ("pt2", "rooms.pt2")):
        command("export", run.folder, "-f", form, "-o", tmp_path / name)
        assert (tmp_path / name).stat().st_size and "largest difference" in capsys.readouterr().out
    rows = run.data.read(tmp_path / "new.csv")
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(tmp_path / "rooms.pt")(rows), expected, rtol=1e-5, atol=1e-3)
