"""What every op must do: in small networks around it, its traced axes are real ones.

Runs for each registered op and each of its `examples`, on vectors, sequences and maps wherever it fits; a new op is tested
the moment it exists. `alone` has nothing beside the op; in `among_others` there are two inputs and two outputs, what the op
reads is read elsewhere too, and branches of unequal length meet.
"""

from __future__ import annotations

import json
from functools import cache

import axis_oracles as oracles
import pytest

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node
from dagrow.graph.axes import Use

SHAPES = ((5,), (3, 9), (2, 7, 7))
WIDTH = 6
STEMS = ("stem", "stem1", "stem2", "stem3")
STEM = {"stem": WIDTH}


def stems(op: str, example: ops.Example, shape: tuple[int, ...], sources: tuple[str, ...]) -> dict[str, Node]:
    """One for each input that the op needs, reading the sources in turn."""
    count = 0 if example.bare else max(1, ops.REGISTRY.get(op).fewest)
    kind = "token_linear" if example.last else ("linear", "conv1d", "conv2d")[len(shape) - 1]
    size = {"width" if "linear" in kind else "channels": WIDTH}
    return {STEMS[k]: Node.of(kind, sources[k % len(sources)], **size) for k in range(count)}


def alone(op: str, example: ops.Example, shape: tuple[int, ...]) -> Architecture:
    """x -> stems -> op -> silu -> flatten -> head."""
    found = stems(op, example, shape, ("x",))
    return Architecture({
        "x": Node.of("input", shape=shape), **found, "op": Node.of(op, *(found or ("x",)), **example.attrs),
        "act": Node.of("silu", "op"), "flat": Node.of("flatten", "act"), "head": Node.of("linear", "flat", width=3),
    })


def among_others(op: str, example: ops.Example, shape: tuple[int, ...]) -> Architecture:
    """Stems on x and y in turn, a single one replaced by the sum of two; what the op makes and what it reads go on together where
    their shapes are equal; what it reads has an output of its own."""
    found = stems(op, example, shape, ("x", "y"))
    nodes = {"x": Node.of("input", shape=shape), "y": Node.of("input", shape=shape), **found}
    read = tuple(found) or ("x",)
    if len(read) == 1:
        twin = Node(nodes[read[0]].op, ("y",), nodes[read[0]].attrs) if found else Node.of("silu", "y")
        nodes |= {"twin": twin, "stems": Node.of("add", read[0], "twin")} if found else {"twin": twin}
        read = ("stems",) if found else read
    side = read[0] if found else "twin"
    nodes |= {"op": Node.of(op, *read, **example.attrs), "act": Node.of("silu", "op"), "side": Node.of("silu", side)}
    shapes = Architecture(nodes, ("act", "side")).shapes
    joined = shapes["act"] == shapes[side] and bool(found)
    if joined:
        nodes["join"] = Node.of("add", "act", side)
    nodes |= {
        "flat": Node.of("flatten", "join" if joined else "act"), "head": Node.of("linear", "flat", width=3),
        "sideflat": Node.of("flatten", "side"), "tail": Node.of("linear", "sideflat", width=2),
    }
    return Architecture(nodes, ("head", "tail"))


def twice(op: str, example: ops.Example, shape: tuple[int, ...]) -> Architecture:
    """Every input of the op is the same stem."""
    arch = alone(op, example, shape)
    node = arch.nodes["op"]
    nodes = {n: v for n, v in arch.nodes.items() if n not in STEMS[1:]}
    return Architecture(nodes | {"op": Node(op, ("stem",) * len(node.inputs), node.attrs)})


def examples(op: str) -> tuple[ops.Example, ...]:
    rule = ops.REGISTRY.get(op)
    required = {name: WIDTH for name, field in rule.Options.model_fields.items() if field.is_required()}
    return rule.examples or (ops.Example(required),)


@cache
def networks(op: str, k: int, surroundings) -> tuple[Architecture, ...]:
    """The example's networks, in each shape that the op fits."""
    example, found = examples(op)[k], []
    for shape in (example.shape,) if example.shape else SHAPES:
        try:
            arch = surroundings(op, example, shape)
            arch.derived  # noqa: B018  traces, and so raises where it does not fit
            found.append(arch)
        except GraphError as error:
            assert error.node and not example.shape, error
    assert found, f"{op} fits nowhere: give it examples"
    return tuple(found)


# What is closed is a module of a model that was imported, and tested with that.
OPS = [op for op in ops.REGISTRY if op != "input" and not ops.REGISTRY.get(op).closed]
EACH = [(op, k) for op in OPS for k in range(len(examples(op)))]
each_op = pytest.mark.parametrize(("op", "k"), EACH, ids=[f"{op}-{k}" for op, k in EACH])
SEVERAL = [(op, k) for op, k in EACH if ops.REGISTRY.get(op).fewest > 1]


@each_op
def test_axes_are_those_expected(op, k):
    for arch in networks(op, k, alone):
        expected = examples(op)[k].axes
        assert {name: axis.size for name, axis in arch.axes.items()} == (STEM if expected is None else expected)
        assert not arch.derived.opaque


@each_op
def test_its_axes_are_real(op, k):
    for arch in networks(op, k, alone):
        every_oracle(arch)
        for axis in arch.axes:
            oracles.every_move_matters(arch, axis)


@each_op
def test_its_axes_are_real_among_others(op, k):
    for arch in networks(op, k, among_others):
        every_oracle(arch)


@pytest.mark.parametrize(("op", "k"), SEVERAL, ids=[f"{op}-{k}" for op, k in SEVERAL])
def test_its_axes_are_real_where_it_reads_one_node_twice(op, k):
    for arch in networks(op, k, twice):
        every_oracle(arch)


def every_oracle(arch: Architecture) -> None:
    oracles.shapes_and_macs_are_real(arch)
    oracles.rows_do_not_meet(arch)
    for name, axis in arch.axes.items():
        oracles.permuting_keeps_the_function(arch, name)
        kept = oracles.widening_keeps_the_function(arch, name)
        # Zeros are enough unless units are summed, normalised, or contracted with each other.
        assert kept or axis.mixes or axis.bilinear
        oracles.pruning_is_masking(arch, name)
        oracles.resizing_goes_back(arch, name)
        uses = [(u.param, u.axis) for u in (*axis.writes, *axis.reads, *axis.follows) if u.param]
        assert sorted(set(uses)) == sorted((s.param, s.axis) for s in axis.slots)
        assert axis.writes


@each_op
def test_compiled_and_in_torchscript_it_is_the_same(op, k):
    for arch in networks(op, k, among_others):
        oracles.compiling_keeps_the_function(arch)


@pytest.mark.slow
@each_op
def test_exported_with_a_batch_of_any_size_it_is_the_same(op, k):
    for arch in networks(op, k, among_others):
        oracles.exporting_keeps_the_function(arch)


@each_op
def test_values_are_never_negative_where_it_says_so(op, k):
    claim = ops.REGISTRY.get(op).nonnegative
    for arch in networks(op, k, alone) if claim != "unknown" else ():
        node, weights = arch.nodes["op"], oracles.weights_for(arch, 0)
        given = {n: v.abs() if claim == "inherited" else v for n, v in oracles.values_of(arch, weights, oracles.rows(arch)).items() if n in node.inputs}
        entered = Architecture({**{n: Node.of("input", shape=arch.shapes[n]) for n in node.inputs}, "op": node})
        assert float(oracles.output(entered, weights, given).min()) >= 0


@each_op
def test_a_step_of_training_moves_every_parameter(op, k):
    for arch in networks(op, k, among_others):
        oracles.training_moves_everything(arch)


@each_op
def test_a_network_is_made_again_from_plain_values(op, k):
    for arch in networks(op, k, alone):
        assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


@each_op
def test_an_op_says_what_shapes_it_needs(op, k):
    """Inputs of any rank fit or are refused with the node's name: nothing else is raised."""
    node = Node.of(op, *STEMS[: max(1, ops.REGISTRY.get(op).fewest)], **examples(op)[k].attrs)
    for shape in ((1,), (6,), (7, 4), (1, 6), (3, 1, 1), (4, 5, 6), (2, 3, 4, 5)):
        # Written flat: an input has three dimensions at most.
        total = 1
        for n in shape:
            total *= n
        nodes = {"x": Node.of("input", shape=(total,))} | {s: Node.of("reshape", "x", shape=shape) for s in node.inputs}
        try:
            made = Architecture({**nodes, "op": node, "end": Node.of("flatten", "op")})
            assert made.derived.shapes["op"] == made.shapes["op"]
        except GraphError as error:
            assert error.node == "op", error


def test_uses_of_a_depthwise_convolution():
    axis = alone("conv2d", ops.Example({"channels": 6, "groups": 6}), SHAPES[2]).axes["stem"]
    assert axis.writes == (Use("stem", "stem.weight", 0, 1),)
    assert axis.reads == (Use("head", "head.weight", 1, 1),)
    assert Use("op", "op.weight", 0, 1) in axis.follows and Use("act", None, None, 1) in axis.follows
