"""What every op must do: in a small network around it, its traced axes are real ones.

Runs for each registered op on vectors, sequences and maps, wherever it fits; a new op is tested the moment it exists.
"""

from __future__ import annotations

import axis_oracles as oracles
import pytest

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node
from dagrow.graph.axes import Use

SHAPES = {1: (5,), 2: (3, 9), 3: (2, 7, 7)}
WIDTH = 6
# More than the defaults say.
EXAMPLES = {
    "conv1d": [{"channels": 4}, {"channels": 6, "groups": 6}, {"channels": 12, "groups": 6}, {"channels": 8, "groups": 2, "bias": False}],
    "conv2d": [
        {"channels": 4}, {"channels": 4, "stride": 2, "padding": 0, "kernel": 2, "bias": False}, {"channels": 6, "groups": 6},
        {"channels": 12, "groups": 6, "kernel": 1}, {"channels": 4, "groups": 2, "stride": 2}, {"channels": 1},
    ],
    "linear": [{"width": 4}, {"width": 4, "bias": False}, {"width": 1}],
}  # fmt: skip
# (op, attributes) -> the axes of the network around it. Ops left out keep the axis of their input, whole and alone.
STEM = {"stem": WIDTH}
AXES = {
    ("conv", 4, 1): {**STEM, "op": 4}, ("conv", 6, 6): STEM, ("conv", 12, 6): {**STEM, "op": 2}, ("conv", 1, 1): {**STEM, "op": 1},
    # Two groups: channels of the stem within a group, the groups, and channels of the op within a group.
    ("conv", 8, 2): {"stem": 3, "stem~1": 2, "op": 4}, ("conv", 4, 2): {"stem": 3, "stem~1": 2, "op": 2},
    ("linear", 4): {**STEM, "op": 4}, ("linear", 1): {**STEM, "op": 1}, ("concat",): {**STEM, "other": WIDTH},
}  # fmt: skip


def around(op: str, rank: int, attrs: dict) -> Architecture:
    """input -> stem -> op -> tanh -> (flatten ->) head, with as many stems as the op takes inputs."""
    stem = {"width": WIDTH} if rank == 1 else {"channels": WIDTH}
    kind = ("linear", "conv1d", "conv2d")[rank - 1]
    nodes = {"x": Node.of("input", shape=SHAPES[rank]), "stem": Node.of(kind, "x", **stem)}
    inputs = ["stem"]
    if ops.REGISTRY.get(op).fewest > 1:
        nodes["other"] = Node.of(kind, "x", **stem)
        inputs.append("other")
    nodes["op"] = Node.of(op, *inputs, **attrs)
    nodes["act"] = Node.of("tanh", "op")
    nodes["flat"] = Node.of("flatten", "act")
    nodes["head"] = Node.of("linear", "flat", width=3)
    arch = Architecture(nodes)
    arch.derived  # noqa: B018  traces, and so raises where it does not fit
    return arch


def examples(op: str) -> list[dict]:
    if op in EXAMPLES:
        return EXAMPLES[op]
    fields = ops.REGISTRY.get(op).Options.model_fields
    return [{name: WIDTH for name, field in fields.items() if field.is_required()}]


def cases() -> list:
    found = []
    for op in ops.REGISTRY:
        if op == "input":
            continue
        fits = 0
        for attrs in examples(op):
            for rank in SHAPES:
                try:
                    arch = around(op, rank, attrs)
                except GraphError as error:
                    assert error.node, error
                else:
                    fits += 1
                    found.append(pytest.param(op, attrs, arch, id=f"{op}-{rank}d-{'-'.join(f'{k}{v}' for k, v in attrs.items())}"))
        assert fits, f"{op} fits nowhere: give it EXAMPLES"
    return found


CASES = cases()
each_op = pytest.mark.parametrize(("op", "attrs", "arch"), CASES)


@each_op
def test_axes_are_those_expected(op, attrs, arch):
    key = (op.rstrip("12d"), *(attrs.get(k, 1) for k in ("channels", "groups"))) if op.startswith("conv") else (op, *attrs.values())
    expected = AXES.get(key, AXES.get((op, attrs.get("width")), STEM))
    assert {name: axis.size for name, axis in arch.axes.items()} == expected
    assert not arch.derived.opaque


@each_op
def test_shapes_and_macs_are_real(op, attrs, arch):
    oracles.shapes_and_macs_are_real(arch)


@each_op
def test_permuting_an_axis_keeps_the_function(op, attrs, arch):
    for axis in arch.axes:
        oracles.permuting_keeps_the_function(arch, axis)


@each_op
def test_widening_keeps_the_function_where_zeros_are_named(op, attrs, arch):
    kept = [oracles.widening_keeps_the_function(arch, axis) for axis in arch.axes]
    assert all(k or arch.axes[a].mixes for k, a in zip(kept, arch.axes, strict=True))


@each_op
def test_pruning_is_masking(op, attrs, arch):
    for axis in arch.axes:
        oracles.pruning_is_masking(arch, axis)


@each_op
def test_resizing_goes_back_to_the_same_bits(op, attrs, arch):
    for axis in arch.axes:
        oracles.resizing_goes_back(arch, axis)


@each_op
def test_every_move_matters(op, attrs, arch):
    for axis in arch.axes:
        oracles.every_move_matters(arch, axis)


@each_op
def test_every_slot_has_a_use(op, attrs, arch):
    for axis in arch.axes.values():
        uses = [(u.param, u.axis) for u in (*axis.writes, *axis.reads, *axis.follows) if u.param]
        assert sorted(set(uses)) == sorted((s.param, s.axis) for s in axis.slots)
        assert axis.writes and axis.reads


def test_uses_of_a_depthwise_convolution():
    axis = around("conv2d", 3, {"channels": 6, "groups": 6}).axes["stem"]
    assert axis.writes == (Use("stem", "stem.weight", 0, 1),)
    assert axis.reads == (Use("head", "head.weight", 1, 1),)
    assert Use("op", "op.weight", 0, 1) in axis.follows and Use("act", None, None, 1) in axis.follows
