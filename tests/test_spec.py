"""Reading specs: places, scalars, macros, overrides, and what must be refused."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrow import spec
from dagrow.errors import SpecError
from dagrow.spec.scalars import resolve

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))
BLOCK = """
dagrow: 1
name: example
data: {source: digits, split: {test: 0.25}, batch: 32}
macros:
  conv_block:
    params: {channels: 8, kernel: 3, act: relu}
    nodes:
      conv: {op: conv2d, in: $in, channels: $channels, kernel: $kernel}
      out: {op: $act, in: conv}
model:
  nodes:
    stem: {use: conv_block, in: input, channels: 4}
    body: {use: conv_block, in: stem, repeat: 2}
    pool: {op: global_avg_pool, in: body}
    head: {op: linear, in: pool, width: 10}
train: {optimizer: {name: adamw, lr: 1e-3}}
edits:
  - widen: {where: "body.*.conv", max: 32}
  - deepen
select: {by: metropolis, temperature: {start: 0.03}}
budget: {steps: 5, time: 10min, params: 20k, macs: 1.5M}
objectives: [{maximize: val.accuracy}, {minimize: params}]
"""
SMALL = {"data": "digits", "model": {"layers": ["linear 10"]}}


def refused(source, *sets: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        spec.load(source, sets)
    return caught.value


def model(text: str) -> str:
    return f"data: digits\nmodel:\n{text}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("+7", 7), ("-0", 0), ("0o17", 15), ("0x1F", 31), ("012", 12), ("", None), ("~", None),
        ("null", None), ("true", True), ("False", False), ("on", "on"), ("yes", "yes"), ("No", "No"), ("3:30", "3:30"), ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"), ("0b11", "0b11"), ("1e", "1e"), (".inf", float("inf")), ("-.inf", float("-inf")), ("y", "y"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value) -> None:
    assert resolve(text) == value and type(resolve(text)) is type(value)


def test_a_minimal_spec_has_defaults() -> None:
    made = spec.load(SMALL)
    assert [edit.name for edit in made.edits] == ["widen", "deepen", "prune"]
    assert (made.select.name, made.score.by.name, [form.name for form in made.export]) == ("greedy", "natural", ["torchscript"])
    assert made.budget.time is None and made.model.input is None and made.folder is None


def test_units_are_read() -> None:
    budget = spec.load(BLOCK).budget
    assert (budget.time, budget.params, budget.macs) == (600.0, 20_000, 1_500_000)
    assert spec.load(SMALL, ["budget.time=90s"]).budget.time == 90 and spec.load(SMALL, ["budget.time=2h"]).budget.time == 7200


def test_macros_and_repeats_expand_to_full_names() -> None:
    nodes = spec.load(BLOCK).model.nodes
    assert list(nodes) == ["stem.conv", "stem.out", "body.r0.conv", "body.r0.out", "body.r1.conv", "body.r1.out", "pool", "head"]
    assert nodes["stem.conv"].attrs == {"channels": 4, "kernel": 3} and nodes["body.r0.conv"].attrs["channels"] == 8
    assert nodes["body.r0.conv"].inputs == ("stem.out",) and nodes["body.r1.conv"].inputs == ("body.r0.out",) and nodes["pool"].inputs == ("body.r1.out",)


def test_macros_nest_and_take_several_inputs() -> None:
    made = spec.load(
        "data: digits\nmacros:\n  pair:\n    params: {side: input, wide: 4}\n    layers: [linear $wide, relu]\n"
        "  both:\n    params: {skip: null}\n    nodes:\n      inner: {use: pair, in: $in}\n      last: {op: add, in: [inner, $skip]}\n"
        "model:\n  nodes:\n    a: {op: linear, in: input, width: 4}\n    b: {use: both, in: a, skip: a}\n    c: {op: linear, in: b.inner, width: 10}\n"
        "    d: {op: add, in: [b, c]}\n"
    ).model.nodes
    assert made["b.inner.linear1"].inputs == ("a",) and made["b.inner.linear1"].positional == 4
    assert made["b.last"].inputs == ("b.inner.relu1", "a") and made["c"].inputs == ("b.inner.relu1",) and made["d"].inputs == ("b.last", "c")


def test_layers_are_a_chain_with_names_of_their_own() -> None:
    layers = ["linear 8 bias=false", "relu", {"op": "dropout", "p": 0.1}, {"linear": 4}, {"op": "linear", "width": 10, "name": "head"}]
    nodes = spec.load({"data": "digits", "model": {"layers": layers}}).model.nodes
    assert [(n, v.op, v.inputs) for n, v in nodes.items()] == [
        ("linear1", "linear", ("input",)), ("relu1", "relu", ("linear1",)), ("dropout1", "dropout", ("relu1",)),
        ("linear2", "linear", ("dropout1",)), ("head", "linear", ("linear2",)),
    ]  # fmt: skip
    assert nodes["linear1"].positional == 8 and nodes["linear1"].attrs == {"bias": False} and nodes["linear2"].positional == 4


@pytest.mark.parametrize("source", [BLOCK, SMALL, *SHIPPED], ids=lambda s: getattr(s, "stem", type(s).__name__))
def test_a_resolved_spec_reads_back_as_itself(source) -> None:
    made = spec.load(source)
    again = spec.load(json.loads(json.dumps(made.to_dict())))
    assert again == made and again.digest == made.digest and again.to_dict() == made.to_dict()


def test_a_digest_sees_every_value_but_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BLOCK)
    made = spec.load(tmp_path / "a.yaml")
    assert made == spec.load(BLOCK) and made.folder == tmp_path
    assert made.digest != spec.load(BLOCK, ["seed=1"]).digest


@pytest.mark.parametrize(
    ("path", "line", "text"),
    [
        (("model", "nodes", "head", "width"), "head:", "10}"), (("model", "nodes", "stem.conv", "channels"), "stem:", "4}"),
        (("model", "nodes", "body.r1.conv", "channels"), "params:", "8,"), (("model", "nodes", "pool", "in"), "pool:", "in: body"),
        (("model", "nodes", "head", "in", 0), "head:", "pool,"), (("train", "optimizer", "lr"), "train:", "1e-3"), (("train", "optimizer", "x"), "train:", "opt"),
        (("edits", 0, "where"), "widen:", '"body'), (("edits", 1), "- deepen", "deepen"), (("edits", 0, "name"), "widen:", "widen"),
        (("select", "temperature", "start"), "select:", "0.03"), (("select", "name"), "select:", "metropolis"),
        (("budget", "params"), "budget:", "20k"), (("budget", "patience"), "budget:", "budget"), (("data", "split", "test"), "data:", "0.25"),
        (("data", "options", "n"), "data:", "source"), (("data", "source"), "data:", "digits"), (("nowhere",), "dagrow: 1", "dagrow"),
    ],
)  # fmt: skip
def test_paths_lead_to_what_the_user_wrote(path: tuple, line: str, text: str) -> None:
    problem = spec.load(BLOCK).problem_at(path, "message")
    assert line in problem.excerpt and problem.excerpt[problem.column - 1 :].startswith(text), problem.render("f")
    assert problem.render("f").startswith(f"f:{problem.line}:{problem.column}  message")


def test_a_dict_has_paths_in_place_of_lines() -> None:
    error = refused({**SMALL, "budget": {"parms": 3, "steps": 1.5}})
    assert "budget.parms: unknown key 'parms' in budget" in str(error) and "did you mean 'params'?" in str(error)
    assert "budget.steps: 'steps' is a whole number, not 1.5" in str(error)


def test_all_errors_are_told_at_once_in_order() -> None:
    error = refused("data: {source: digits, batch: on, normalise: per_featur}\ntrian: 3\nseed: 1.5\nmodel: {layers: [linear 3 4]}\nbudget: {time: 3:30}\n")
    assert [p.line for p in error.problems] == [1, 1, 2, 3, 4, 5]
    assert [p.hint for p in error.problems][1:3] == ["did you mean 'per_feature'?", "did you mean 'train'?"]
    assert str(error).endswith("6 errors. Nothing was run.") and error.exit_code == 2


def test_the_caret_stands_under_the_culprit() -> None:
    rows = str(refused("data: digits\nmodel: {layers: [linear 8]}\nbudget: {setps: 3}\n")).splitlines()
    assert rows[0] == "spec:3:10  unknown key 'setps' in budget"
    at = rows[1].index("setps")
    assert rows[2][at : at + 5] == "^^^^^" and "did you mean 'steps'?" in rows[2]


WRONG = {
    "unquoted star": ("data: digits\nedits:\n  - widen: {where: *}\n", 3, "unquoted *", 'quote it: "*"'),
    "unquoted stars": ("edits:\n  - widen: {where: **}\n", 2, "unquoted *", 'quote it: "**"'),
    "unquoted glob": ("where: *.conv\nb: 1\n", 1, "unquoted *", 'quote it: "*.conv"'),
    "alias": ("where: *conv\nb: 1\n", 1, "unquoted *", 'quote it: "*conv"'),
    "anchor": ("a: &x 1\nb: 2\n", 1, "anchor", None),
    "tag": ("a: !!python/object/apply:os.system [ls]\nb: 1\n", 1, "tags", None),
    "own tag": ("a: !x 1\nb: 1\n", 1, "tags", None),
    "tag line": ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, "tags", None),
    "merge": ("a:\n  <<: {b: 1}\n", 2, "merges", None),
    "duplicate": ("data: x\ndata: y\n", 2, "'data' is there twice", "line 1"),
    "two documents": ("a: 1\n---\nb: 1\n", 2, "second document", None),
    "empty": ("\n", 1, "empty", None),
    "a list": ("- 1\n- 2\n", 1, "a spec is a mapping", None),
    "tab": ("a:\n\t- 1\n", 2, "not YAML", "spaces"),
    "open bracket": ("a: [1, 2\n", 2, "not YAML", "closed"),
    "list as a key": ("? [a, b]\n: 1\n", 1, "a key is text", None),
    "control character": ("a: 1\nb: \x00\n", 2, "cannot stand in YAML", None),
    "far escape": ('a: "\\UFFFFFFFF"\nb: 1\n', 1, "YAML", None),
    "endless number": (f"seed: {'9' * 5000}\nb: 1\n", 1, "digits", None),
    "no op": (model("  nodes:\n    a: {in: input}\n"), 4, "has no op", None),
    "no input": (model("  nodes:\n    a: {op: relu}\n"), 4, "does not say what it reads", None),
    "unknown macro": (model("  nodes:\n    a: {use: foo, in: input}\n"), 4, "unknown macro 'foo'", None),
    "a digit first": (model("  nodes:\n    1a: {op: relu, in: input}\n"), 4, "cannot name a node", "letters"),
    "named input": (model("  nodes:\n    input: {op: relu, in: input}\n"), 4, "'input' is the network's input", None),
    "parameter outside": (model("  nodes:\n    a: {op: $x, in: input}\n"), 4, "not inside a macro", None),
    "both": (model("  nodes: {a: {op: relu, in: input}}\n  layers: [relu]\n"), 4, "both nodes and layers", None),
    "no nodes": (model("  nodes: {}\n"), 3, "needs nodes or layers", None),
    "endless repeat": (
        f"data: digits\nmacros: {{m: {{layers: [relu]}}}}\nmodel:\n  nodes:\n    a: {{use: m, in: input, repeat: {2**63}}}\n", 5, "repeat is a whole", None,
    ),
    "self": ("data: digits\nmacros:\n  m: {nodes: {a: {use: m, in: $in}}}\nmodel: {nodes: {b: {use: m, in: input}}}\n", 3, "uses itself: m -> m", None),
    "typo in a macro": (
        "data: digits\nmacros:\n  m: {params: {channels: 2}, nodes: {conv: {op: conv2d, in: $in, channels: $chanels}}}\n"
        "model: {nodes: {b: {use: m, in: input}}}\n", 3, "no parameter '$chanels'", "'$channels'",
    ),
    "typo in an argument": (
        "data: digits\nmacros:\n  m: {params: {channels: 2}, nodes: {conv: {op: conv2d, in: $in, channels: $channels}}}\n"
        "model: {nodes: {b: {use: m, in: input, chanels: 3}}}\n", 4, "no parameter 'chanels'", "'channels'",
    ),
    "outside name in a macro": (
        "data: digits\nmacros:\n  m: {nodes: {a: {op: relu, in: stem}}}\nmodel: {nodes: {stem: {op: relu, in: input}, b: {use: m, in: stem}}}\n",
        3, "no node 'stem'", "$in",
    ),
    "metric": ("data: digits\nmodel: {layers: [relu]}\nobjectives: [{minimize: parms}]\n", 3, "unknown metric", "'params'"),
    "version": ("dagrow: 2\ndata: digits\nmodel: {layers: [relu]}\n", 1, "'dagrow' is one of 1", None),
    "option beside a source": ("data: {source: csv, path: a.csv}\nmodel: {layers: [relu]}\n", 1, "unknown key 'path' in data", "source: {name:"),
    "no model": ("data: digits\nseed: 1\n", 1, "the spec needs 'model'", None),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_has_a_place_and_a_reason(case: str) -> None:
    text, line, message, hint = WRONG[case]
    started = time.perf_counter()
    error = refused(text)
    assert time.perf_counter() - started < 0.1
    found = next((p for p in error.problems if message in p.message), None)
    assert found, str(error)
    assert found.line == line and (hint is None or hint in (found.hint or "")), str(error)


BOMBS = {
    "deep": "[" * 100_000, "deep mappings": "{a: " * 50_000, "deep blocks": "- " * 120_000, "wide": "[" + "a," * 120_000 + "]", "long": "a" * 300_000,
    "one word": "a: " + "b" * 262_000 + "\n", "comments": "#\n" * 130_000, "keys": "? " * 130_000, "one digit after the other": "a: " + "1" * 262_000 + "\n",
    "laughs": "a: &a [x]\n" + "".join(f"b{k}: &b{k} [*a,*a]\n" for k in range(2000)), "quotes": '"' * 262_000, "empty keys": ": " * 130_000,
    "indents": "".join(" " * k + "a:\n" for k in range(600)), "tabs": "\t" * 262_000, "colons": "a:" * 131_000 + "\n", "pipes": "a: |\n" + " b\n" * 80_000,
    "same keys": "a: 1\n" * 9_000, "bad keys": "".join(f"k{k}: 1\n" for k in range(9_000)),
    "macros": "data: x\nmacros:\n" + "".join(f"  m{k}: {{nodes: {{a: {{use: m{k + 1}, in: $in, repeat: 1000}}}}}}\n" for k in range(12))
    + "  m12: {layers: [relu]}\nmodel: {nodes: {a: {use: m0, in: input}}}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_soon(name: str) -> None:
    started = time.perf_counter()
    error = refused(BOMBS[name] + "\n")
    # a second is what a fuzzed spec may take; a shared machine is given some more
    assert time.perf_counter() - started < 3
    assert len(str(error)) < 50_000


HOSTILE = [
    "__import__('os').system('x')", "a;b", "a b", "a-b", "<script>", "${HOME}", "$(ls)", "a/../b", "\x1b[31mred", "‮gnp", "é", "a" * 65, ".a", "a.", "a..b",
    "1", "", "-", "a\nb", ".".join("a" * 17), "None()", "a=1", "forward()", "%s", "{0}", "ａ", "a\u200bb", "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_shown_harmlessly(name: str) -> None:
    error = refused({"data": "digits", "model": {"nodes": {name: {"op": "relu", "in": "input"}}}})
    assert "cannot name a node" in str(error)
    assert all(c.isprintable() or c == "\n" for c in str(error))


def test_files_that_are_none_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"a: 1\nb: \xff\n")
    (tmp_path / "big").write_bytes(b"#" * 300_000)
    (tmp_path / "spec.yaml").write_text(BLOCK)
    os.symlink("/dev/zero", tmp_path / "zero")
    for name, message in {
        "pipe": "not a regular file", "zero": "not a regular file", ".": "cannot be read", "latin": "not UTF-8", "big": "too large", "spce.yaml": "spec.yaml?",
        "no\0name": "cannot be read",
    }.items():  # fmt: skip
        started = time.perf_counter()
        assert message in str(refused(tmp_path / name))
        assert time.perf_counter() - started < 0.1


def test_what_is_no_spec_is_refused() -> None:
    loop: dict = {}
    loop["data"] = loop
    for source in (3, None, [1], loop, {"data": {1: 2}}, {"data": object()}, {"data": "x" * 300_000}, {"seed": 2**5000}, {"data": [1] * 30_000}):
        refused(source)


SETS = {
    "seed": "there is no =", "=3": "no path", "trian.epochs.first=3": "did you mean 'train'?", "steps=3": "did you mean budget.steps?",
    "bareword=x": "there is no key 'bareword'", "model.nodes.haed.width=3": "did you mean 'head'?", "macros.conv_blok.params.kernel=5": "'conv_block'",
    "edits.9.max=2": "2 entries", "edits.foo.max=2": "known: widen, deepen", "name.x=3": "single value", "data.spilt.test=0.5": "did you mean 'split'?",
    "budget.time=soon": "not a time", "seed=[1": "the value", "seed=-1": "at least 0", "train.epochs=3": "a mapping", "data.batch=true": "whole number",
    "budget.steps=99999999999999999999": "at most", "seed=9223372036854775808": "less than", "a..b=1": "no path", "budget.params=1e3": "whole number",
}  # fmt: skip


@pytest.mark.parametrize("text", SETS)
def test_bad_overrides_say_so(text: str) -> None:
    error = refused(BLOCK, text)
    assert SETS[text] in str(error) and f"--set {text}" in str(error)


def test_overrides_reach_every_part() -> None:
    made = spec.load(BLOCK, [
        "budget.steps=3", "edits.widen.max=8", "edits.1.where=**", "select.temperature.start=0.1", "train.optimizer.lr=0.1", "train.schedule=constant",
        "model.nodes.body.channels=5", "macros.conv_block.params.act=tanh", "data.source={name: csv, path: a.csv}", "train.epochs={first: 1, final: 2}",
        "score.by=random", "export=[pt2]", "budget.time=", "data.split.test=.5",
    ])  # fmt: skip
    assert made.budget.steps == 3 and made.budget.time is None and made.edits[0].options == {"where": "body.*.conv", "max": 8}
    assert made.edits[1].options == {"where": "**"} and made.select.options["temperature"] == {"start": 0.1} and made.train.optimizer.options == {"lr": 0.1}
    assert made.model.nodes["body.r1.conv"].attrs["channels"] == 5 and made.model.nodes["stem.out"].op == "tanh"
    assert (made.data.source, made.data.options) == ("csv", {"path": "a.csv"}) and (made.train.epochs.first, made.train.epochs.between) == (1, 2)
    assert made.train.schedule.name == "constant" and made.score.by.name == "random" and made.export[0].name == "pt2" and made.data.split == {"test": 0.5}


def test_overrides_reach_a_resolved_spec() -> None:
    resolved = spec.load(BLOCK).to_dict()
    made = spec.load(resolved, ["model.nodes.body.r0.conv.channels=6", "edits.deepen.where=stem", "select=greedy"])
    assert made.model.nodes["body.r0.conv"].attrs["channels"] == 6 and made.edits[1].options == {"where": "stem"} and made.select.name == "greedy"


def test_the_schema_knows_what_a_spec_may_say() -> None:
    made = spec.schema()
    assert {*spec.Spec.model_fields, "macros"} == set(made["properties"]) and "$defs" not in json.dumps(made)
    made["properties"].clear()
    assert spec.schema()["properties"]


def test_the_spec_in_the_readme_is_one() -> None:
    text = re.search(r"```yaml\n(dagrow: 1.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert text and spec.load(text[1]).model.nodes["join"].inputs == ("stem.out", "body.r1.out")


def test_reading_a_spec_imports_no_torch() -> None:
    code = "import sys\nfrom dagrow import spec\nspec.load({'data': 'digits', 'model': {'layers': ['linear 10']}})\nprint({'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


def quietly(source) -> None:
    """Reads it; nothing but a SpecError may come of it, soon."""
    started = time.perf_counter()
    try:
        made = spec.load(source)
    except SpecError as error:
        text = str(error)
        assert error.problems and all(c.isprintable() or c == "\n" for c in text), repr(text)
        if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
            assert all(p.line is not None and p.column is not None or p.message.startswith("and ") for p in error.problems), text
    else:
        assert spec.load(made.to_dict()) == made
    assert time.perf_counter() - started < 3


PIECES = list("{}[]:,-#&*!|>'\"%@`?\n\t $~.=<\\/") + ["a", "data", "model", "nodes", "op", "in", "use", "repeat", "1", "0x", "e5", ": ", "- ", "\n  ", "$in", "\x85"]


@given(st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=80).map("".join)))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    quietly(text + "\n")


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_a_damaged_spec_is_read_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    text = dice.choice([BLOCK, *(path.read_text() for path in SHIPPED)])
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text))
        end = min(len(text), start + dice.choice([0, 1, 1, 3, 20]))
        text = text[:start] + dice.choice(["", dice.choice(PIECES), text[dice.randrange(len(text)) :][:20], str(2 ** dice.randrange(70)), "null"]) + text[end:]
    quietly(text + "\n")


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["$in", "input", "conv_block", "linear 3", "20k", "3min"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["name", "by", "op", "use", "in", "nodes", "layers", "repeat", "x"]), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


@given(st.integers(0, 2**32), VALUES)
@settings(max_examples=300)
def test_any_value_anywhere_is_read_or_refused(seed: int, value) -> None:
    dice = random.Random(seed)
    tree = json.loads(json.dumps(spec.load(BLOCK).to_dict()))
    tree["macros"] = {"conv_block": {"params": {"channels": 8}, "nodes": {"conv": {"op": "conv2d", "in": "$in", "channels": "$channels"}}}}
    tree["model"]["nodes"]["again"] = {"use": "conv_block", "in": "head", "repeat": 2}
    at, step = tree, None
    while step is None or dice.random() < 0.75:
        step = dice.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[step], (dict, list)) or not at[step]:
            break
        parent, at = at, at[step]
    else:
        at, step = (parent, step) if isinstance(parent, (dict, list)) and at is parent[step] else (at, next(iter(at)) if isinstance(at, dict) else 0)
    at[step] = value
    quietly(tree)


@given(st.text(max_size=60), st.sampled_from([""] + [f"{p}=" for p in ("seed", "model", "edits.0", "train.optimizer", "macros.conv_block.nodes.conv.in", "budget")]))
@settings(max_examples=200)
def test_any_override_is_applied_or_refused(text: str, path: str) -> None:
    try:
        spec.load(BLOCK, [path + text])
    except SpecError as error:
        assert all(c.isprintable() or c == "\n" for c in str(error))
