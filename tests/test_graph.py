"""dagrow.graph: architectures as values, their axes, resize and transfer."""

from __future__ import annotations

import random

import axis_oracles as oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_network
from torch import nn

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, Refusal, resize, transfer
from dagrow.graph.axes import Slot, Use
from dagrow.registry import Options

of = Node.of


def mlp(**changed) -> Architecture:
    return Architecture({
        "x": of("input", shape=(4,)), "hidden": of("linear", "x", width=3), "act": of("tanh", "hidden"), "y": of("linear", "act", width=2),
    } | changed)  # fmt: skip


def residual() -> Architecture:
    """A stem, a residual block, a depthwise convolution, a concat with a repeat, and a head on the flattened maps."""
    return Architecture({
        "x": of("input", shape=(2, 6, 6)), "stem": of("conv2d", "x", channels=4), "norm": of("batchnorm", "stem"),
        "act": of("gelu", "norm"), "inner": of("conv2d", "act", channels=3), "tanh": of("tanh", "inner"),
        "outer": of("conv2d", "tanh", channels=4),
        "join": of("add", "act", "outer"), "deep": of("conv2d", "join", channels=4, groups=4),
        "both": of("concat", "deep", "x", "inner", "deep"), "pool": of("max_pool", "both"), "flat": of("flatten", "pool"),
        "head": of("linear", "flat", width=3),
    })  # fmt: skip


# Architectures


def test_shapes_sizes_and_macs():
    arch = residual()
    assert arch.shapes["both"] == (13, 6, 6) and arch.shapes["flat"] == (117,)
    assert arch.params["outer.weight"] == (4, 3, 3, 3) and arch.buffers["norm.running_mean"] == (4,)
    assert arch.size == sum(torch.Size(s).numel() for s in arch.params.values())
    oracles.shapes_and_macs_are_real(arch)


def test_digest_form_and_dict():
    arch = residual()
    assert Architecture.from_dict(arch.to_dict()) == arch
    renamed = mlp()
    other = Architecture({f"n.{k}": of(v.op, *(f"n.{i}" for i in v.inputs), **v.attrs.model_dump()) for k, v in renamed.nodes.items()})
    assert other != renamed and other.same_form(renamed)
    assert not renamed.same_form(mlp(hidden=of("linear", "x", width=4)))


@pytest.mark.parametrize(("change", "node"), [
    ({"y": of("conv2d", "act", channels=2)}, "y"),
    ({"act": of("add", "hidden", "x")}, "act"),
    ({"act": of("max_pool", "hidden")}, "act"),
    ({"act": of("tanh", "hiden")}, "act"),
    ({"y": of("linear", "act", "x", width=2)}, "y"),
])  # fmt: skip
def test_what_does_not_fit_is_told_with_its_node(change, node):
    with pytest.raises(GraphError) as caught:
        _ = mlp(**change).shapes
    assert caught.value.node == node and node in str(caught.value)


def test_cycles_dead_ends_and_names():
    with pytest.raises(GraphError, match="cycle"):
        mlp(hidden=of("linear", "act", width=3))
    with pytest.raises(GraphError, match="ends"):
        mlp(stray=of("relu", "x"))
    with pytest.raises(GraphError, match="cannot name"):
        mlp(**{"a-b": of("relu", "x")})
    with pytest.raises(GraphError, match="no input"):
        Architecture({})


# Axes


def test_axes_of_a_chain():
    axis = mlp().axes["hidden"]
    assert axis.size == 3
    assert axis.slots == (Slot("hidden.weight", 0), Slot("hidden.bias", 0), Slot("y.weight", 1))
    assert axis.writes == (Use("hidden", "hidden.weight", 0, 1),) and axis.reads == (Use("y", "y.weight", 1, 1),)
    assert axis.follows == (Use("hidden", "hidden.bias", 0, 1), Use("act", None, None, 1))


def test_axes_of_a_residual_network():
    arch = residual()
    assert {n: a.size for n, a in arch.axes.items()} == {"stem": 4, "inner": 3}
    stem, inner = arch.axes.values()
    assert [u.node for u in stem.writes] == ["stem", "outer"] and [u.node for u in stem.reads] == ["inner", "head"]
    assert [u.node for u in inner.writes] == ["inner"] and [u.node for u in inner.reads] == ["outer", "head"]
    columns = arch.derived.units("inner", "head.weight", 1)
    assert columns == (-1,) * 54 + tuple(k for k in range(3) for _ in range(9)) + (-1,) * 36
    assert not arch.derived.opaque


def test_a_square_residual_weight_is_read_and_written():
    arch = Architecture({
        "x": of("input", shape=(4,)), "a": of("linear", "x", width=3), "b": of("linear", "a", width=3), "s": of("add", "a", "b"),
        "y": of("linear", "s", width=2),
    })  # fmt: skip
    (axis,) = arch.axes.values()
    assert Use("b", "b.weight", 0, 1) in axis.writes and Use("b", "b.weight", 1, 1) in axis.reads
    assert oracles.done(resize(arch, {"a": (0, -1, 1, 2)})).zero == (("b.weight", 1), ("y.weight", 1))
    oracles.all_oracles(arch)


def test_inputs_and_outputs_are_fixed():
    arch = Architecture({
        "x": of("input", shape=(4,)), "a": of("linear", "x", width=4), "s": of("add", "a", "x"), "y": of("linear", "s", width=2),
    })  # fmt: skip
    assert not arch.axes


def test_tied_weights_are_one_leaf():
    arch = Architecture({
        "x": of("input", shape=(4,)), "a": of("linear", "x", width=4), "act": of("tanh", "a"),
        "b": Node("linear", ("act",), ops.REGISTRY.get("linear").Options(width=4), (("weight", "a.weight"),)),
        "y": of("linear", "b", width=2),
    })  # fmt: skip
    assert "b.weight" not in arch.params and Architecture.from_dict(arch.to_dict()) == arch
    # Written as b's output it is a's output too, and read by b as the network's input is by a.
    assert not arch.axes


@pytest.mark.parametrize("arch", [mlp(), residual()], ids=["mlp", "residual"])
def test_oracles(arch):
    oracles.all_oracles(arch)
    for axis in arch.axes:
        oracles.every_move_matters(arch, axis)


# Ops that no network has yet, for what only they show.


@pytest.fixture
def extra_ops():
    """mul, q·k, the mean over channels, and a sum that the trace does not know."""

    class Plain(Options):
        pass

    def op(name, function, count):
        kind = type(name, (ops.Op,), {"Options": Plain, "fewest": count, "most": count, "__doc__": "For tests."})
        kind.build = staticmethod(lambda attrs, *shapes: function)
        ops.REGISTRY.register(name)(kind)
        return name

    names = [
        op("test_mul", lambda a, b: a * b, 2),
        op("test_scores", lambda q, k: q @ k.transpose(1, 2), 2),
        op("test_transpose", lambda x: x.clone().transpose_(1, 2), 1),
        op("test_center", lambda x: x - x.mean(1, keepdim=True), 1),
        op("test_cumsum", lambda x: x.cumsum(1), 1),
        op("test_half", lambda x: x[:, : x.shape[1] // 2], 1),
        op("test_flip", lambda x: x.flip(1), 1),
        op("test_shuffle", lambda x: nn.functional.pixel_shuffle(x, 2), 1),
        op("test_groups", lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), 1),
        op("test_stack", lambda a, b: torch.stack([a, b], 2).flatten(1, 2), 2),
    ]
    yield
    for name in names:
        del ops.REGISTRY._classes[name]


def two_branches(op: str, *more: tuple[str, Node]) -> Architecture:
    return Architecture({
        "x": of("input", shape=(5,)), "a": of("linear", "x", width=6), "b": of("linear", "x", width=6), "op": of(op, "a", "b"),
        "act": of("tanh", "op"), "y": of("linear", "act", width=2),
    })  # fmt: skip


def one_branch(op: str) -> Architecture:
    return Architecture({
        "x": of("input", shape=(5,)), "a": of("linear", "x", width=6), "op": of(op, "a"), "act": of("tanh", "op"),
        "y": of("linear", "act", width=2),
    })  # fmt: skip


def test_gates(extra_ops):
    arch = two_branches("test_mul")
    (axis,) = arch.axes.values()
    assert axis.gates == ("op",) and not axis.mixes and [u.node for u in axis.writes] == ["a", "b"]
    oracles.all_oracles(arch)


def test_bilinear_zeroes_one_side(extra_ops):
    arch = Architecture({
        "x": of("input", shape=(2, 5)), "q": of("conv1d", "x", channels=4), "k": of("conv1d", "x", channels=4),
        "qt": of("test_transpose", "q"), "kt": of("test_transpose", "k"), "s": of("test_scores", "qt", "kt"),
        "f": of("flatten", "s"), "y": of("linear", "f", width=2),
    })  # fmt: skip
    (axis,) = arch.axes.values()
    assert axis.bilinear == ("s",) and axis.size == 4 and not axis.reads
    assert oracles.done(resize(arch, {"q": (0, 1, 2, 3, -1)})).zero == (("q.weight", 0), ("q.bias", 0))
    oracles.shapes_and_macs_are_real(arch)
    oracles.permuting_keeps_the_function(arch, "q")
    oracles.resizing_goes_back(arch, "q")
    assert oracles.widening_keeps_the_function(arch, "q")


def test_what_mixes_is_not_claimed_to_be_kept(extra_ops):
    arch = one_branch("test_center")
    assert arch.axes["a"].mixes == ("op",)
    oracles.permuting_keeps_the_function(arch, "a")
    assert not oracles.widening_keeps_the_function(arch, "a")


def test_what_is_not_understood_is_frozen_and_told(extra_ops):
    arch = one_branch("test_cumsum")
    assert not arch.axes and arch.derived.opaque == {"aten.cumsum.default": ("op",)}


def test_slices_and_flips(extra_ops):
    arch = one_branch("test_half")
    # The half that is read, and the half nothing reads.
    assert {n: a.size for n, a in arch.axes.items()} == {"a": 3, "a~1": 3}
    # Of four units the slice takes two, of which one was not in it.
    refused = resize(arch, {"a": (0,)})
    assert isinstance(refused, Refusal) and "structure" in refused.reason
    oracles.permuting_keeps_the_function(arch, "a")
    arch = one_branch("test_flip")
    assert arch.axes["a"].size == 6
    oracles.all_oracles(arch)


def test_stacked_and_shuffled(extra_ops):
    arch = two_branches("test_stack")
    # Unit k of both stands in one row of the stack.
    assert {n: a.size for n, a in arch.axes.items()} == {"a": 6}
    oracles.all_oracles(arch)
    arch = Architecture({
        "x": of("input", shape=(2, 4, 4)), "a": of("conv2d", "x", channels=12), "op": of("test_shuffle", "a"),
        "b": of("conv2d", "op", channels=4), "g": of("test_groups", "b"), "p": of("global_avg_pool", "g"), "y": of("linear", "p", width=2),
    })  # fmt: skip
    # Three channels of 2 x 2 pixels each; two groups of two, which the reshape fixes.
    sizes = {n: a.size for n, a in arch.axes.items()}
    assert sizes["a"] == 3 and arch.shapes["op"] == (3, 8, 8) and not arch.derived.opaque
    for axis in arch.axes:
        oracles.permuting_keeps_the_function(arch, axis)
    wide = oracles.done(resize(arch, {"a": (0, -1, 1, 2)}))
    assert wide.arch.shapes["a"] == (16, 4, 4) and wide.arch.shapes["op"] == (4, 8, 8)
    assert oracles.widening_keeps_the_function(arch, "a")
    oracles.resizing_goes_back(arch, "a")


# Resize


def test_an_axis_of_newborns_but_one():
    arch = residual()
    rewrite = oracles.done(resize(arch, {"inner": (-1, -1, 0, -1, -1)}))
    assert rewrite.arch.axes["inner"].size == 5 and rewrite.zero is None
    weights, fresh = oracles.weights_for(arch, 0), oracles.weights_for(rewrite.arch, 1)
    made = transfer(rewrite, weights, fresh)
    assert torch.equal(made["inner.weight"][2], weights["inner.weight"][0])
    assert torch.equal(made["inner.weight"][[0, 1, 3, 4]], fresh["inner.weight"][[0, 1, 3, 4]])
    new, old = (torch.tensor(a.derived.units("inner", "head.weight", 1)) for a in (rewrite.arch, arch))
    born = (new >= 0) & (new != 2)
    assert torch.equal(made["head.weight"][:, born], fresh["head.weight"][:, born])
    assert torch.equal(made["head.weight"][:, new == 2], weights["head.weight"][:, old == 0])
    assert torch.equal(made["head.weight"][:, new < 0], weights["head.weight"][:, old < 0])


def test_several_axes_at_once():
    arch, x = residual(), oracles.rows(residual())
    weights = oracles.weights_for(arch, 0)
    rewrite = oracles.done(resize(arch, {"stem": (3, -1, 0, 1, 2), "inner": (2, 1, -1, -1, 0)}))
    assert rewrite.zero == (("inner.weight", 1), ("head.weight", 1), ("outer.weight", 1))
    made = oracles.zeroed(rewrite, transfer(rewrite, weights, oracles.weights_for(rewrite.arch, 1)))
    assert oracles.distance(oracles.output(rewrite.arch, made, x), oracles.output(arch, weights, x)) <= 1e-10
    one = oracles.done(resize(arch, {"stem": (3, -1, 0, 1, 2)}))
    two = oracles.done(resize(one.arch, {"inner": (2, 1, -1, -1, 0)}))
    assert two.arch == rewrite.arch


def test_a_clone_keeps_the_function_once_its_reads_are_shared():
    arch, x = residual(), oracles.rows(residual())
    weights = oracles.weights_for(arch, 0)
    index = (0, 1, 1, 2, 3, 1)
    rewrite = oracles.done(resize(arch, {"stem": index}))
    assert rewrite.zero is None
    made = transfer(rewrite, weights, 0.0)
    for use in arch.axes["stem"].reads:
        units = rewrite.arch.derived.units("stem", use.param, use.axis)
        share = torch.tensor([1 / index.count(index[u]) if u >= 0 else 1 for u in units], dtype=torch.float64)
        made[use.param] *= share.view(-1, *[1] * (made[use.param].dim() - use.axis - 1))
    assert oracles.distance(oracles.output(rewrite.arch, made, x), oracles.output(arch, weights, x)) <= 1e-10


@pytest.mark.parametrize(("keep", "reason"), [
    ({"hiden": (0,)}, "did you mean 'hidden'"),
    ({"hidden": ()}, "without units"),
    ({"hidden": (0, 3)}, "there is no 3"),
    ({"hidden": (0, -2)}, "there is no -2"),
    ({"hidden": (0, 1.5)}, "whole numbers"),
    ({"hidden": "012"}, "whole numbers"),
    ({"hidden": 3}, "whole numbers"),
    ({"hidden": (0, 2**70)}, "there is no"),
    ({"hidden": range(-1, 2**20)}, "more than 1048576"),
])  # fmt: skip
def test_refusals(keep, reason):
    refused = resize(mlp(), keep)
    assert isinstance(refused, Refusal) and reason in refused.reason


def test_flattened_axes_are_bounded_too():
    refused = resize(residual(), {"stem": (0, *(-1,) * (2**17 - 1))})
    assert isinstance(refused, Refusal) and "head.weight" in refused.reason


def test_a_depthwise_convolution_does_not_shrink_to_one_channel():
    refused = resize(residual(), {"stem": (1,)})
    assert isinstance(refused, Refusal) and "structure" in refused.reason and "stem" in refused.nodes


def test_nothing_changed():
    arch = mlp()
    for keep in ({}, {"hidden": range(3)}):
        rewrite = oracles.done(resize(arch, keep))
        assert rewrite.arch == arch and rewrite.moves == () and rewrite.zero == ()


# Transfer


def test_transfer_of_moments():
    arch = residual()
    rewrite = oracles.done(resize(arch, {"inner": (2, -1, 0)}))
    steps = {name: torch.full(shape, 5.0) for name, shape in arch.params.items()}
    made = transfer(rewrite, steps, 0.0)
    assert made.keys() == rewrite.arch.params.keys()
    assert made["inner.bias"].tolist() == [5, 0, 5]
    assert (made["outer.weight"][:, 1] == 0).all() and (made["outer.weight"][:, [0, 2]] == 5).all()
    assert made["stem.weight"] is not steps["stem.weight"]
    made["stem.weight"].zero_()
    assert steps["stem.weight"].sum() > 0


def test_transfer_of_whole_newborn_parameters():
    arch = mlp()
    weights = oracles.weights_for(arch, 0)
    rewrite = oracles.done(resize(arch, {"hidden": (0, 1)}))
    del weights["y.bias"]
    assert torch.equal(transfer(rewrite, weights, {"y.bias": torch.ones(2)})["y.bias"], torch.ones(2))
    filled = transfer(rewrite, weights, 3.0)["y.bias"]
    assert filled.tolist() == [3, 3] and filled.dtype == torch.float64


def test_transfer_refuses_what_is_not_of_the_old_shape():
    rewrite = oracles.done(resize(mlp(), {"hidden": (0, 1)}))
    for shape in ((1, 4), (3, 5)):
        with pytest.raises(GraphError, match="hidden.weight"):
            transfer(rewrite, {**oracles.weights_for(mlp(), 0), "hidden.weight": torch.ones(shape)}, 0.0)


# Size one, and networks at random


def ones(kind: str) -> Architecture:
    if kind == "vector":
        return Architecture({
            "x": of("input", shape=(1,)), "a": of("linear", "x", width=1), "n": of("batchnorm", "a"), "b": of("linear", "n", width=1),
            "s": of("add", "n", "b"), "f": of("flatten", "s"), "y": of("linear", "f", width=1),
        })  # fmt: skip
    shape, conv = ((1, 6), "conv1d") if kind == "sequence" else ((1, 6, 6), "conv2d")
    return Architecture({
        "x": of("input", shape=shape), "a": of(conv, "x", channels=1), "n": of("batchnorm", "a"), "b": of(conv, "n", channels=1),
        "s": of("add", "n", "b"), "p": of("max_pool", "s"), "c": of("concat", "p", "p"), "g": of("global_avg_pool", "c"),
        "d": of(conv, "p", channels=1), "f": of("flatten", "d"), "e": of("global_max_pool", "d"), "h": of("concat", "f", "g", "e"),
        "y": of("linear", "h", width=1),
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["vector", "sequence", "map"])
def test_axes_of_one_unit(kind):
    arch = ones(kind)
    assert {n: a.size for n, a in arch.axes.items()} == ({"a": 1} if kind == "vector" else {"a": 1, "d": 1})
    oracles.all_oracles(arch)
    wide = oracles.done(resize(arch, {a: (0, -1, -1) for a in arch.axes})).arch
    assert {n: a.slots for n, a in wide.axes.items()} == {n: a.slots for n, a in arch.axes.items()}


def network_at_random(seed: int) -> Architecture:
    draw = random.Random(seed)
    rank = draw.choice([1, 2, 3])
    nodes: dict[str, Node] = {}
    shape = {1: (draw.randint(1, 4),), 2: (draw.randint(1, 3), 8), 3: (draw.randint(1, 3), 6, 6)}[rank]

    def put(op: str, *inputs: str, **attrs) -> str:
        name = f"n{len(nodes)}.{op}"
        nodes[name] = of(op, *inputs, **attrs)
        return name

    conv = f"conv{rank - 1}d"
    made = {put("input", shape=shape): shape[0]}
    (first,) = made
    for _ in range(draw.randint(2, 9)):
        source = draw.choice(list(made))
        channels = made[source]
        choice = draw.choice(["affine", "affine", "elementwise", "add", "concat", "grouped", "residual"])
        if choice == "grouped" and rank > 1 and channels > 1:
            groups = draw.choice([channels, channels, *[g for g in range(2, channels) if channels % g == 0]])
            out = groups * draw.choice([1, 1, 2])
            made[put(conv, source, channels=out, groups=groups)] = out
        elif choice == "elementwise":
            made[put(draw.choice(["batchnorm", "tanh", "gelu", "silu", "leaky_relu", "dropout", "identity"]), source)] = channels
        elif choice == "add":
            others = [n for n, c in made.items() if c == channels]
            made[put("add", source, *draw.choices(others, k=draw.randint(1, 2)))] = channels
        elif choice == "concat" and channels < 12:
            other = draw.choice(list(made))
            made[put("concat", source, other, source)] = 2 * channels + made[other]
        else:
            out = channels if choice == "residual" else draw.randint(1, 5)
            bias = draw.random() < 0.7
            if rank == 1:
                last = put("linear", source, width=out, bias=bias)
            else:
                last = put(conv, source, channels=out, kernel=draw.choice([1, 3]), bias=bias)
            made[last] = out
            if choice == "residual":
                made[put("add", source, last)] = out
    used = {i for node in nodes.values() for i in node.inputs}
    last = put("concat", *[n for n in nodes if n not in used], draw.choice(list(made)))
    if rank > 1:
        pooled = put(draw.choice(["max_pool", "avg_pool"]), last)
        last = put("concat", put("flatten", pooled), put(draw.choice(["global_avg_pool", "global_max_pool"]), last))
    put("linear", put("tanh", put("linear", last, width=3)), width=2)
    del first
    return Architecture(nodes)


@given(st.integers(0, 2**32 - 1))
def test_networks_at_random(seed):
    arch = network_at_random(seed)
    oracles.all_oracles(arch, seed)
    assert not arch.derived.opaque
    assert not any(a.mixes or a.bilinear or a.gates for a in arch.axes.values())


def live_units(arch: Architecture) -> dict[str, list[bool]]:
    """Which rows of each weight are free to go, by following units through these few ops by hand."""
    up: dict[tuple, tuple] = {}

    def root(unit: tuple) -> tuple:
        while unit in up:
            unit = up[unit]
        return unit

    def unite(a: tuple, b: tuple) -> None:
        # "" sorts first: what is tied to the fixed is fixed.
        a, b = sorted((root(a), root(b)))
        if a != b:
            up[b] = a

    fixed, units = ("", 0), {}
    for name in arch.order:
        node, given = arch.nodes[name], [units[i] for i in arch.nodes[name].inputs]
        groups = getattr(node.attrs, "groups", 1)
        if node.op == "input":
            units[name] = [fixed] * arch.shapes[name][0]
        elif node.rule.role == "affine" and groups == 1:
            units[name] = [(name, k) for k in range(arch.shapes[name][0])]
        elif node.rule.role == "affine":
            # One unit in every group may as well be read within the groups, which are then fixed: so the trace takes it.
            units[name] = [fixed] * groups if len(set(given[0])) == 1 else given[0]
        elif node.op == "add":
            for other in given[1:]:
                for a, b in zip(given[0], other, strict=True):
                    unite(a, b)
            units[name] = given[0]
        elif node.op == "concat":
            units[name] = [u for one in given for u in one]
        elif node.op == "flatten":
            positions = arch.shapes[name][0] // len(given[0])
            units[name] = [u for u in given[0] for _ in range(positions)]
        else:
            units[name] = given[0]
    for unit in units[arch.outputs[0]]:
        unite(unit, fixed)
    writers = [n for n in arch.order if arch.nodes[n].rule.role == "affine"]
    return {n: [root(u) != fixed for u in units[n]] for n in writers}


@given(st.integers(0, 2**32 - 1))
def test_nothing_is_frozen_that_could_move(seed):
    arch = network_at_random(seed)
    for name, node in arch.nodes.items():
        # Groups of several channels have axes of their own, see the op kit.
        if getattr(node.attrs, "groups", 1) > 1 and not node.attrs.groups == node.attrs.channels == arch.shapes[node.inputs[0]][0]:
            return
    for name, live in live_units(arch).items():
        found = [False] * len(live)
        for axis in arch.axes:
            found = [f or u >= 0 for f, u in zip(found, arch.derived.units(axis, f"{name}.weight", 0), strict=True)]
        assert found == live, name


@given(st.integers(0, 2**32 - 1))
def test_all_axes_at_random(seed):
    """Every axis pruned, permuted and widened at once, back and forth."""
    draw = random.Random(seed)
    arch = network_at_random(seed)
    keep = {}
    for name, axis in arch.axes.items():
        index = draw.sample(range(axis.size), axis.size)
        index.insert(draw.randint(0, axis.size), -1)
        keep[name] = index
    there = oracles.done(resize(arch, keep))
    back = oracles.done(resize(there.arch, {n: [index.index(k) for k in range(arch.axes[n].size)] for n, index in keep.items()}))
    weights = oracles.weights_for(arch, seed)
    born = transfer(there, weights, oracles.weights_for(there.arch, seed))
    oracles.same(arch, weights, back.arch, transfer(back, born, 0.0))
    x = oracles.rows(arch)
    kept = oracles.output(there.arch, oracles.zeroed(there, born), x)
    assert oracles.distance(kept, oracles.output(arch, weights, x)) <= oracles.TOLERANCE


@pytest.mark.parametrize("seed", range(30))
def test_what_is_known_without_tracing_is_what_tracing_tells(seed):
    arch = random_network(seed)
    formed, derived = arch.formed, arch.derived
    for name in ("shapes", "params", "buffers", "macs", "size", "locals"):
        assert getattr(formed, name) == getattr(derived, name), name
    assert list(formed.params) == list(derived.params) and list(formed.buffers) == list(derived.buffers)
