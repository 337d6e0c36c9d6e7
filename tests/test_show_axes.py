"""Why axes are as they are: reasons against changed networks, nothing left out, and `dagrow show --axes`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import MODELS
from random_networks import random_network
from seen_networks import NETWORKS, of

import dagrow
from dagrow import cli
from dagrow.graph import Architecture, Node
from dagrow.graph.reasons import reasons
from dagrow.report.axes import axes_mermaid, axes_rows, described, fixed_counts, fixed_summary
from dagrow.showing import axes_named

any_network = st.one_of(st.sampled_from(sorted(NETWORKS)).map(NETWORKS.get), st.integers(0, 2**20).map(random_network))


@pytest.fixture(scope="module", params=["mobilenetv2", "vit", "shufflenet", "autoencoder"])
def imported(request):
    torch.manual_seed(0)
    return dagrow.from_torch(MODELS[request.param].build(), MODELS[request.param].example(2)).arch


def holds(arch: Architecture) -> None:
    """Every index of every parameter belongs to an axis or is fixed for a reason; the ties account for each axis being one."""
    told = reasons(arch)
    derived = arch.derived
    fixed = {(f.param, f.axis): f for f in told.fixed}
    assert len(fixed) == len(told.fixed)
    for param, shape in {**arch.params, **arch.buffers}.items():
        for k, size in enumerate(shape):
            table = derived.tables.get((param, k))
            bare = size if table is None else int((table.codes < 0).all(1).sum())
            assert (fixed[param, k].count if (param, k) in fixed else 0) == bare, (param, k)
    for f in told.fixed:
        assert f.node in arch.nodes and f.why and f.size == {**arch.params, **arch.buffers}[f.param][f.axis]
    assert set(told.ties) == set(arch.axes)
    for name, axis in arch.axes.items():
        group = {u.node: u.node for u in axis.writes}

        def root(n: str, group=group) -> str:
            while group.setdefault(n, n) != n:
                n = group[n]
            return n

        for tie in told.ties[name]:
            assert tie.node in arch.nodes and tie.why and len(set(tie.members)) > 1
            for other in tie.members[1:]:
                group[root(other)] = root(tie.members[0])
        assert len({root(u.node) for u in axis.writes}) <= 1, (name, told.ties[name])


@settings(max_examples=25)
@given(any_network)
def test_nothing_is_left_out(arch):
    holds(arch)
    for name in arch.axes:
        made = described(arch, name)
        assert [(x.param, x.axis) for x in made.lives] == [(s.param, s.axis) for s in arch.axes[name].slots]
        for x in made.lives:
            units = np.array(arch.derived.units(name, x.param, x.axis))
            assert int((units >= 0).sum()) == x.times * made.axis.size and (units[x.first], units[x.last]) != (-1, -1)


def test_nothing_is_left_out_of_networks_in_the_wild(imported):
    holds(imported)


@settings(max_examples=15)
@given(any_network)
def test_what_the_output_fixes_is_free_once_more_follows(arch):
    told = reasons(arch).fixed
    assume(len(arch.outputs) == 1)
    end = arch.outputs[0]
    more = Architecture({**arch.nodes, "more_act": of("tanh", end), "more": of("linear", "more_act", width=2)})
    after = {(f.param, f.axis): f for f in reasons(more).fixed}
    for f in told:
        if f.kind == "output":
            assert (f.param, f.axis) not in after or after[f.param, f.axis].count < f.count
        else:
            assert after[f.param, f.axis].why == f.why
    assert {f.param for f in told} >= {p for p, _ in after if not p.startswith("more")}


RESIDUAL, GATED = NETWORKS["residual"], NETWORKS["gated"]


def test_what_a_sum_joins_a_concat_leaves_apart():
    (tie,) = reasons(RESIDUAL).ties["stem"]
    assert (tie.kind, tie.node, tie.members) == ("sum", "join", ("stem", "back"))
    apart = RESIDUAL.replace({"join": of("concat", "stem", "back")})
    assert "back" in apart.axes and not reasons(apart).ties["stem"] and not reasons(apart).ties["back"]
    assert str(described(apart, "back").lives[-1]) == "y.weight 1[5..9]" and str(described(apart, "stem").lives[-1]) == "y.weight 1[0..4]"


def test_each_kind_of_tie():
    kinds = {
        "depthwise": ("up", "kernels", "dw", ("up", "dw")), "gated": ("c", "gate", "m", ("c", "up")), "shared": ("a", "sum", "sum", ("a", "b")),
    }  # fmt: skip
    for network, (axis, kind, node, members) in kinds.items():
        assert [(t.kind, t.node, t.members) for t in reasons(NETWORKS[network]).ties[axis]] == [(kind, node, members)]
    whole = NETWORKS["depthwise"].replace({"dw": of("conv2d", "a", channels=4, kernel=3)})
    assert not reasons(whole).ties["up"] and "dw" in whole.axes


def test_products_of_queries_and_keys():
    arch = Architecture({
        "x": of("input", shape=(5, 3)), "q": of("token_linear", "x", width=4), "k": of("token_linear", "x", width=4), "v": of("token_linear", "x", width=6),
        "att": of("attention", "q", "k", "v", heads=2), "y": of("token_linear", "att", width=2),
    })  # fmt: skip
    found = {(axis, t.kind, t.members) for axis, ties in reasons(arch).ties.items() for t in ties}
    assert any(kind == "contraction" and members == ("q", "k") for _, kind, members in found)
    assert any(members == ("q", "k", "v") for _, _, members in found)
    holds(arch)


def test_tied_parameters_say_so():
    arch = Architecture({
        "x": of("input", shape=(6,)), "enc": of("linear", "x", width=3), "act": of("tanh", "enc"),
        "dec": Node("linear", ("act",), of("linear", "act", width=6, transposed=True).attrs, (("weight", "enc.weight"),)),
    })  # fmt: skip
    assert [t.why for t in reasons(arch).ties["enc"] if t.kind == "shared"] == ["enc.weight is shared by enc, dec"]
    assert {(f.param, f.axis, f.kind) for f in reasons(arch).fixed} == {("enc.weight", 1, "input"), ("dec.bias", 0, "input")}


def test_reasons_of_what_is_fixed():
    arch = Architecture({
        "x": of("input", shape=(5,)), "words": of("embedding", "x", vocabulary=9, width=4), "pos": of("position", "words"),
        "out": of("token_linear", "pos", width=4), "mean": of("mean", "out", dims=(1,)), "y": of("linear", "mean", width=2),
    })  # fmt: skip
    found = {(f.param, f.axis): (f.kind, f.why) for f in reasons(arch).fixed}
    assert found["words.weight", 0] == ("option", "the vocabulary of words")
    assert found["y.weight", 0] == ("output", "the network's output")
    assert next(v for (p, k), v in found.items() if p.startswith("pos.") and k != 1)[0] in ("input", "meets")
    assert fixed_counts(arch) == dict(Counter(kind for kind, _ in found.values()))


def test_ops_without_a_rule_are_named():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.two(torch.fft.fft(self.one(x)).real)

    arch = dagrow.from_torch(Odd(), torch.randn(2, 4)).arch
    found = {(f.param, f.axis): f for f in reasons(arch).fixed}
    ops = list(arch.derived.opaque)
    assert ops and found["one.weight", 0].kind in ("no rule", "opaque") and found["one.weight", 0].op == ops[0] and ops[0] in found["one.weight", 0].why
    holds(arch)


@pytest.mark.parametrize("network, axis, widening", [("mlp", "h1", "zeros"), ("residual", "stem", "zeros"), ("gated", "c", "zeros")])
def test_widening_is_told_as_it_is(network, axis, widening):
    assert described(NETWORKS[network], axis).widening == widening


def test_a_layer_norm_needs_more_than_zeros():
    arch = Architecture({
        "x": of("input", shape=(5, 3)), "up": of("token_linear", "x", width=4), "norm": of("layernorm", "up"), "y": of("token_linear", "norm", width=2),
    })  # fmt: skip
    made = described(arch, "up")
    assert made.widening == "settled" and "mixed at norm" in made.because
    soft = arch.replace({"norm": of("softmax", "up", dim=-1)})
    assert described(soft, "up").widening in ("settled", "changes") and described(soft, "up").axis.mixes == ("norm",)


# The command

SPEC = """data: {source: digits}
model:
  nodes:
    stem: {op: conv2d, in: input, channels: 4}
    side: {op: conv2d, in: stem, channels: 4}
    join: {op: add, in: [stem, side]}
    flat: {op: flatten, in: join}
    head: {op: linear, in: flat, width: 10}
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    return str(tmp_path / "spec.yaml")


def command(capsys, *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(list(words))
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_axes(spec, capsys):
    code, out, _ = command(capsys, "show", spec, "--axes")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and lines[0] == "stem 4 units"
    assert "one axis: add join adds them: stem, side" in lines and "head: weight 1 (64 for each)" in out
    assert "the network's output: head.weight 0, head.bias 0" in lines and "stem reads the network's input: stem.weight 1" in lines
    assert "widening keeps the function with zeros in side.weight 1, head.weight 1" in lines
    code, named, _ = command(capsys, "show", spec, "--axes", "side")  # a node that holds the axis
    assert code == 0 and named.splitlines()[0] == out.splitlines()[0] and "fixed" not in named


def test_the_command_speaks_json(spec, capsys):
    _, out, _ = command(capsys, "show", spec, "--axes", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    axes, fixed = [r for r in rows if "frozen" not in r], [r for r in rows if "frozen" in r]
    assert [a["axis"] for a in axes] == ["stem"] and axes[0]["together"] == [
        {"kind": "sum", "node": "join", "why": "add join adds them: stem, side", "members": ["stem", "side"]}]
    assert {(f["frozen"], f["axis"], f["kind"]) for f in fixed} == {
        ("stem.weight", 1, "input"), *((f"{n}.weight", k, "kernel") for n in ("stem", "side") for k in (2, 3)), ("head.weight", 0, "output"), ("head.bias", 0, "output")}
    _, out, _ = command(capsys, "show", spec, "--json")
    assert json.loads(out)["nodes"][1]["name"] == "stem"
    _, out, _ = command(capsys, "check", spec, "--json")
    assert json.loads(out)["fixed"] == {"input": 1, "kernel": 4, "output": 2} and json.loads(out)["opaque"] == {}
    _, out, _ = command(capsys, "check", spec)
    assert "fixed dimensions of parameters: 1 by the network's input, 2 by its output, 4 of kernels" in out


def test_names_that_none_has(spec, capsys):
    code, _, err = command(capsys, "show", spec, "--axes", "sted")
    assert code == 2 and "no axis" in err and "'stem'" in err
    code, _, err = command(capsys, "show", spec, "stem")
    assert code == 2 and "--axes stem" in err


def test_axes_in_colour():
    text = axes_mermaid(RESIDUAL)
    assert "<br/>stem\"" in text and text.count("style ") == sum(1 for n in RESIDUAL.nodes if any((n, d) in RESIDUAL.derived.outputs for d in (1, 2, 3)))
    colours = {line.split("fill:")[1] for line in text.splitlines() if "style " in line}
    assert len(colours) == len(RESIDUAL.axes)


def test_patterns_name_axes():
    assert axes_named(RESIDUAL, ["st*", "mid"]) == ["stem", "mid"] and axes_named(RESIDUAL, []) is None
    assert axes_named(RESIDUAL, ["back"]) == ["stem", "mid"]
    assert len(axes_rows(RESIDUAL, ["mid"])) == 1 and fixed_summary(RESIDUAL) == "1 by the network's input, 2 by its output"


def test_what_the_readme_shows_is_what_is_printed(tmp_path, capsys):
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    (spec,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```\n\$ dagrow show spec\.yaml --axes (\S+) .*?\n(.*?)```", text, re.DOTALL)
    (tmp_path / "spec.yaml").write_text(spec)
    code, out, _ = command(capsys, "show", str(tmp_path / "spec.yaml"), "--axes", shown[0])
    assert code == 0 and out == shown[1]
