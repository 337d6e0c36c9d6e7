"""Specs against the registries and the data."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrow import check, ops, spec
from dagrow.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))


def refused(source, *sets: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        check.load(source, sets)
    return caught.value


def told(error: SpecError) -> dict[str, str | None]:
    return {p.message: p.hint for p in error.problems}


def network(nodes: dict, **more) -> dict:
    return {"data": "digits", "model": {"nodes": nodes, **more}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_what_ships_can_be_run(path: Path) -> None:
    checked = check.load(path)
    assert checked.architecture.size <= checked.spec.budget.params
    assert checked.architecture.shapes[checked.architecture.outputs[0]] == (checked.data.outputs,)
    assert {section.name for section in check.SECTIONS} <= set(checked.choices)
    # resolved, as a run keeps it, it makes the same network
    assert check.build(spec.load(checked.spec.to_dict()), checked.data.input_shape, checked.data.outputs) == checked.architecture


def test_a_choice_has_its_class_and_options() -> None:
    choices = check.check_names(spec.load({"data": "digits", "model": {"layers": ["linear 10"]}}, ["train.optimizer.lr=0.5"]))
    (optimizer,) = choices["optimizer"]
    assert optimizer.name == "adamw" and optimizer.options.lr == 0.5 and isinstance(optimizer.options, optimizer.rule.Options)
    assert [edit.name for edit in choices["edits"]] == ["widen", "deepen", "prune"] and choices["split"][0].options.test == 0.25


TYPOS = """data: {source: {name: two_spirals, nn: 3}, split: {tset: 0.2}}
model:
  layers: [linear 8, rellu, linear width=x, linear 2 biass=false, relu 3]
train: {optimizer: {name: adamm}, schedule: {name: cosine, edn: 0.5}}
edits: [widn, {name: deepen, foo: 3}]
select: {by: metropolis, temperature: {strt: 3}}
score: {by: natural, verfy: 3}
export: [torchscrpt]
trian: {}
"""


def test_every_typo_is_told_with_the_name_that_is_near() -> None:
    error = refused(TYPOS)
    hints = [(p.line, (p.hint or "").partition("?")[0]) for p in error.problems]
    assert [line for line, _ in hints] == [1, 1, 3, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9]
    near = ["n", "test", "relu", None, "bias", None, "adamw", "end", "widen", None, "start", "verify", "torchscript", "train"]
    for (line, hint), name in zip(hints, near, strict=True):
        assert name is None or hint == f"did you mean {name!r}", (line, hint)


def test_a_misspelt_option_is_not_missing_too() -> None:
    error = refused(network({"a": {"op": "linear", "in": "input", "widht": 10}}))
    assert [p.message for p in error.problems if "widht" in p.message or "needs" in p.message] == ["model.nodes.a.widht: unknown key 'widht' in 'a' (linear)"]


def test_misfits_show_how_values_came_there() -> None:
    text = (
        "data: digits\nmodel:\n  nodes:\n    stem: {op: conv2d, in: input, channels: 4}\n    body: {op: conv2d, in: stem, channels: 6}\n"
        "    head: {op: linear, in: body, width: 10}\n    side: {op: linear, in: stem, width: 10}\n    both: {op: add, in: [head, side]}\n"
    )
    error = refused(text)
    assert [p.line for p in error.problems] == [6, 7]
    assert "input[1,8,8] -> stem[4,8,8] -> body[6,8,8] -> head" in str(error) and "put global_avg_pool or flatten between them" in str(error)


def test_a_misfit_in_a_long_chain_is_abridged() -> None:
    error = refused({"data": "digits", "model": {"layers": [*["relu"] * 20, "linear 10"]}})
    assert "input[1,8,8] -> … -> relu18[1,8,8] -> relu19[1,8,8] -> relu20[1,8,8] -> linear1" in str(error)


GRAPHS = {
    "unknown input": (network({"stem": {"op": "flatten", "in": "input"}, "head": {"op": "linear", "in": "stme", "width": 10}}), "'head' reads 'stme'", "'stem'"),
    "cycle": (network({"a": {"op": "relu", "in": "c"}, "b": {"op": "relu", "in": "a"}, "c": {"op": "relu", "in": "b"}}), "a cycle: a -> b -> c -> a", None),
    "itself": (network({"a": {"op": "relu", "in": "a"}}), "a cycle: a -> a", None),
    "two ends": (network({"a": {"op": "relu", "in": "input"}, "b": {"op": "relu", "in": "input"}}), "2 ends (a, b)", "output: b"),
    "dead": (network({"a": {"op": "relu", "in": "input"}, "b": {"op": "flatten", "in": "input"}}, output="b"), "'a' does not lead to", None),
    "no such output": (network({"head": {"op": "flatten", "in": "input"}}, output="haed"), "the output 'haed' is not a node", "'head'"),
    "too many inputs": (network({"a": {"op": "relu", "in": ["input", "input"]}}), "relu takes 1 input, it has 2", "join them"),
    "too few": (network({"a": {"op": "add", "in": "input"}}), "add takes at least 2 inputs, it has 1", None),
    "a second input": (network({"a": {"op": "input", "in": [], "shape": [3]}}), "one input", None),
    "inside a node": (network({"a": {"op": "flatten", "in": "input"}, "a.b": {"op": "linear", "in": "a", "width": 10}}), "lies inside the node 'a'", None),
    "end of another size": (network({"a": {"op": "flatten", "in": "input"}, "b": {"op": "linear", "in": "a", "width": 9}}), "the data needs [10]", "width to 10"),
    "end of another kind": (network({"a": {"op": "conv2d", "in": "input", "channels": 10}}), "the data needs [10]", "linear 10"),
    "another input": (network({"a": {"op": "linear", "in": "input", "width": 10}}, input={"shape": [65]}), "the data's rows are [1, 8, 8]", None),
    "add of two shapes": (
        network({"a": {"op": "flatten", "in": "input"}, "b": {"op": "linear", "in": "a", "width": 10}, "c": {"op": "add", "in": ["a", "b"]}}),
        "one shape", None,
    ),
    "params": ({"data": "digits", "model": {"layers": ["flatten", "linear 10"]}, "budget": {"params": 649}}, "has 650 parameters, the budget allows 649", "650"),
    "macs": ({"data": "digits", "model": {"layers": ["flatten", "linear 10"]}, "budget": {"macs": 10}}, "has 640 MACs, the budget allows 10", None),
    "loss": ({"data": "diabetes", "model": {"layers": ["linear 1"]}, "train": {"loss": "cross_entropy"}}, "cross_entropy does not fit regression", "auto"),
    "metric": ({"data": "digits", "model": {"layers": ["flatten", "linear 10"]}, "objectives": [{"maximize": "val.r2"}]}, "val.r2 does not fit", None),
    "batch": ({"data": {"source": "wine", "batch": 1000}, "model": {"layers": ["linear 3"]}}, "data.batch is 1000", None),
    "no file": ({"data": {"source": {"name": "csv", "path": "no.csv", "target": "y"}}, "model": {"layers": ["linear 3"]}}, "no.csv", None),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_networks_that_cannot_be(case: str) -> None:
    source, message, hint = GRAPHS[case]
    error = refused(source)
    found = next((p for p in error.problems if message in p.message), None)
    assert found and (hint is None or hint in (found.hint or "")), str(error)
    assert error.exit_code == 2


def test_the_budget_is_where_it_was_written() -> None:
    error = refused("data: digits\nmodel: {layers: [flatten, linear 10]}\nbudget:\n  params: 100\n")
    assert (error.problems[0].line, error.problems[0].column) == (4, 11)


def test_an_input_may_flatten_the_rows() -> None:
    checked = check.load({"data": "digits", "model": {"input": {"shape": [64]}, "layers": ["linear 10"]}})
    assert checked.data.input_shape == (64,) and checked.architecture.size == 650


def test_a_macro_used_twice_tells_a_typo_once() -> None:
    error = refused(
        "data: digits\nmacros:\n  m: {nodes: {a: {op: rellu, in: $in}}}\nmodel:\n  nodes:\n    b: {use: m, in: input, repeat: 3}\n    f: {op: flatten, in: b}\n"
        "    c: {op: linear, in: f, width: 10}\n"
    )
    assert len(error.problems) == 1


SIZES = [0, -1, 1, 7, 2**20, 2**20 + 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**63 - 1, 2**63, 2**64, 10**30]
WHERE = [
    "data: digits\nmodel: {{layers: [flatten, linear {a}, linear {b}, linear 10]}}\n", "data: digits\nmodel: {{input: {{shape: [{a}, {b}]}}, layers: [flatten, linear 10]}}\n",
    "data: digits\nmodel: {{layers: [conv2d {a} kernel={b}, conv2d {b} kernel={a}, flatten, linear 10]}}\n",
    "data: digits\nmodel: {{layers: [conv2d 4 kernel=3 padding={a} stride={b}, flatten, linear 10]}}\n",
    "data: digits\nmodel: {{layers: [max_pool {a} stride={b}, conv2d {b} groups={a}, flatten, linear 10]}}\n",
    "data: {{source: {{name: friedman1, n: {a}, features: {b}}}}}\nmodel: {{layers: [linear 1]}}\n",
    "data: digits\nmacros: {{m: {{layers: [linear {a}]}}}}\nmodel: {{nodes: {{f: {{op: flatten, in: input}}, b: {{use: m, in: f, repeat: {b}}}}}}}\n",
    "data: {{source: digits, batch: {a}}}\nseed: {b}\nmodel: {{layers: [flatten, linear 10]}}\n",
    "data: digits\nmodel: {{layers: [flatten, linear 10]}}\nbudget: {{steps: {a}, params: {b}, macs: {a}, time: {b}, patience: {b}}}\n",
    "data: digits\nmodel: {{layers: [flatten, linear 10]}}\ntrain: {{epochs: {{first: {a}, final: {b}}}}}\nscore: {{verify: {a}, rows: {b}}}\n",
]  # fmt: skip


@given(st.integers(0, len(WHERE) - 1), st.sampled_from(SIZES), st.sampled_from(SIZES))
@settings(max_examples=200)
def test_absurd_sizes_are_refused_before_anything_is_allocated(where: int, a: int, b: int) -> None:
    text = WHERE[where].format(a=a, b=b)
    started = time.thread_time()
    try:
        made = spec.load(text)
        check.check_names(made)
        check.build(made, (1, 8, 8))
    except SpecError as error:
        assert all(p.line for p in error.problems)
    else:
        assert where != 0 or max(a, b) <= 2**20
    # of the processor; some 10 ms: the limit here only tells refusing from allocating
    assert time.thread_time() - started < 1


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_random_wiring_is_built_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    names = [f"n{k}" for k in range(dice.randint(1, 7))]
    nodes = {}
    for name in names:
        op = dice.choice([*ops.REGISTRY, "rellu"])
        row = {"op": op, "in": dice.sample(["input", *names], dice.randint(0, min(3, len(names))))}
        if op in ("linear", "conv1d", "conv2d"):
            row["width" if op == "linear" else "channels"] = dice.choice([1, 3, 10])
        nodes[name] = row
    made = spec.load({"data": "digits", "model": {"nodes": nodes, "output": names[-1]}})
    try:
        arch = check.build(made, dice.choice([(64,), (1, 8, 8), (2, 16)]))
    except SpecError as error:
        assert error.problems
    else:
        assert arch.order[-1] == names[-1] and arch.size >= 0
