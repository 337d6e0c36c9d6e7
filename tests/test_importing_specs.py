"""Seed networks that are code of the user's: model: {py: module:function}, run only where that was allowed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import dagrow
from dagrow import check
from dagrow.api import resuming
from dagrow.errors import Interrupted, RunError, SpecError
from dagrow.spec import load

CODE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width, keep):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(13, width), nn.Tanh())
            self.memory = nn.GRUCell(width, width) if keep else nn.Identity()
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            return self.head(self.memory(self.body(x)))

    def build(width=4, keep=False):
        return Net(width, keep)

    def fails():
        raise ValueError("no such thing")

    def number():
        return 3

    def narrow():
        return nn.Linear(13, 2)

    def chooses():
        class Chooses(nn.Module):
            def forward(self, x):
                if x.sum() > 0:
                    return x[:, :3]
                return -x[:, :3]
        return Chooses()

    def stops():
        from dagrow.errors import Interrupted
        raise Interrupted(2, "interrupted")

    raise_on_import = False
"""
SPEC = """
data: {source: wine, batch: 32}
model: {py: "MODULE:build", args: {width: 4}}
train: {epochs: {first: 2, between: 1, final: 1}}
edits: [{widen: {units: [2]}}]
score: {rows: 64}
budget: {steps: 2}
export: []
"""


@pytest.fixture
def project(tmp_path, request):
    """A folder with a spec and a module of its own name beside it: modules stay loaded."""
    name = "net_" + "".join(c if c.isalnum() else "_" for c in request.node.name)[:40]
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "net.yaml").write_text(SPEC.replace("MODULE", name))
    yield tmp_path / "net.yaml", name
    sys.modules.pop(name, None)


def test_code_does_not_run_unless_allowed(project):
    path, name = project
    for work in (lambda: dagrow.search(path), lambda: dagrow.score(path), lambda: check.load(path)):
        with pytest.raises(SpecError, match=r"net.yaml:3:\d+  the seed network is code(.|\n)*--allow-code"):
            work()
    assert name not in sys.modules


def test_a_model_of_ones_own_is_grown_and_goes_on(project, tmp_path):
    path, name = project
    run = dagrow.search(path, tmp_path / "run", allow_code=True)
    assert run.finished and list(run.at(0).arch.nodes)[:2] == ["input", "body._0"] and run.architecture.size >= 71
    begun = dagrow.load(tmp_path / "run")
    assert begun.evaluate() == run.evaluate()  # its network is known without the code
    with pytest.raises(SpecError, match="--allow-code"):
        dagrow.resume(tmp_path / "run", sets=["budget.steps=3"])
    longer = dagrow.resume(tmp_path / "run", sets=["budget.steps=3"], allow_code=True)
    assert longer.finished and len([r for r in longer.history if r["event"] == "step"]) == 3
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE).replace("width=4, keep=False", "width, keep=False").replace("nn.Tanh", "nn.ReLU"))
    sys.modules.pop(name)
    with pytest.raises(RunError, match="another network than the one this run began with"):
        dagrow.resume(tmp_path / "run", sets=["budget.steps=4"], allow_code=True)


def test_ctrl_c_within_the_users_code_is_no_fault_of_the_spec(project):
    path, name = project
    path.write_text(path.read_text().replace(f"{name}:build", f"{name}:stops").replace(", args: {width: 4}", ""))
    with pytest.raises(Interrupted):
        check.load(path, allow_code=True)


def test_the_command_that_goes_on_lets_the_code_run(project):
    assert resuming("run", load(project[0])) == "dagrow resume run --allow-code"


def test_it_begins_with_the_weights_that_the_function_gives_and_they_follow_from_the_seed(project):
    path, _ = project
    one, again, other = (check.load(path, [f"seed={k}"], allow_code=True).weights for k in (0, 0, 1))
    assert one.keys() == again.keys() and all(torch.equal(one[k], again[k]) for k in one) and any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_a_run_with_a_module_kept_whole_asks_for_the_code_in_another_process(project, tmp_path):
    path, _ = project
    text = path.read_text().replace("width: 4", "width: 4, keep: true")
    path.write_text(text)
    dagrow.search(path, tmp_path / "run", allow_code=True)

    def ask(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "dagrow", "eval", str(tmp_path / "run"), "--json", *more], capture_output=True, text=True, check=False)

    without = ask()
    assert without.returncode == 2 and "--allow-code" in without.stderr and not without.stdout
    assert "test" in json.loads(ask("--allow-code").stdout)
    shown = subprocess.run([sys.executable, "-m", "dagrow", "check", str(path), "--allow-code"], capture_output=True, text=True, check=False)
    assert "frozen by torch.nn.modules.rnn.GRUCell: memory" in shown.stdout and "kept whole" in shown.stderr


WRONG = {
    "fails": r"fails: ValueError: no such thing \(.*\.py:\d+: raise ValueError",
    "number": "returned a int",
    "narrow": r"the network gives \[2\], the data needs \[3\]",
    "bild": "no function 'bild'(.|\n)*did you mean 'build'",
    "chooses": r"\.py:\d+: what it does depends on the values of a tensor\s+if x.sum\(\) > 0",
}


@pytest.mark.parametrize("function", WRONG)
def test_what_is_wrong_with_it_is_said_with_its_place(project, function):
    path, name = project
    path.write_text(path.read_text().replace(f"{name}:build", f"{name}:{function}").replace(", args: {width: 4}", ""))
    with pytest.raises(SpecError, match=WRONG[function]):
        check.load(path, allow_code=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"py": "no_such_module_of_mine:f"}, "No module named 'no_such_module_of_mine'"), ({"py": "os.system"}, "package.module:function"),
        ({"py": "a:b", "layers": ["linear 3"]}, "both py and layers"), ({"layers": ["linear 3"], "args": {}}, "args goes with py"),
        ({"py": "a b:c"}, "package.module:function"), ({"py": "../x:f"}, "package.module:function"), ({"py": "a:b", "args": 3}, "args"),
    ],
)  # fmt: skip
def test_wrong_words_are_said(model, message):
    with pytest.raises(SpecError, match=message):
        check.load({"data": "wine", "model": model}, allow_code=True)


def test_a_module_that_fails_or_leaves_is_the_users(project):
    path, name = project
    module = path.parent / f"{name}.py"
    for code, text in (("import sys\nsys.exit(3)\n", "SystemExit: 3"), ("def f(:\n", "SyntaxError"), ("import missing_part_of_it\n", "missing_part_of_it")):
        module.write_text(code)
        sys.modules.pop(name, None)
        with pytest.raises(SpecError, match=text):
            check.load(path, allow_code=True)


def test_another_module_of_that_name_is_not_taken_for_it(tmp_path):
    (tmp_path / "json.py").write_text("def build():\n    pass\n")
    (tmp_path / "net.yaml").write_text(SPEC.replace("MODULE", "json"))
    with pytest.raises(SpecError, match="another module 'json' is loaded already"):
        check.load(tmp_path / "net.yaml", allow_code=True)


def test_the_resolved_spec_says_the_same(project):
    path, _ = project
    made = load(path)
    assert load(made.to_dict(), folder=Path(path).parent) == made and "nodes" not in made.to_dict()["model"]
