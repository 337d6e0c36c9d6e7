"""Ops that shape, join, pool and convolve: the same numbers as torch's own, and what a resize makes of sizes in their options."""

from __future__ import annotations

import itertools
import random

import axis_oracles as oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, Refusal, resize, transfer

X = torch.randn(3, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
L = X[:, :, 0]


def made(op: str, *inputs: Tensor, **attrs) -> Tensor:
    """The op's output in eval mode; parameters 0.1, 0.2, ..."""
    module = ops.REGISTRY.get(op).build(Node.of(op, **attrs).attrs, *(tuple(x.shape[1:]) for x in inputs))
    if isinstance(module, nn.Module):
        fill(module.double().eval())
    with torch.no_grad():
        return module(*inputs)


def fill(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.arange(1, parameter.numel() + 1, dtype=parameter.dtype).view(parameter.shape) / 10)
    return module


def of(module: nn.Module) -> nn.Module:
    return fill(module.double().eval())


SAME = [
    ("sigmoid", {}, X, nn.Sigmoid()), ("elu", {"alpha": 0.5}, X, nn.ELU(0.5)), ("selu", {}, X, nn.SELU()), ("mish", {}, X, nn.Mish()),
    ("softplus", {"beta": 2.0, "threshold": 3.0}, X, nn.Softplus(2.0, 3.0)), ("hardswish", {}, X, nn.Hardswish()),
    ("hardsigmoid", {}, X, nn.Hardsigmoid()), ("relu6", {}, X, nn.ReLU6()), ("hardtanh", {"low": -0.5, "high": 2.0}, X, nn.Hardtanh(-0.5, 2.0)),
    ("gelu", {"approximate": "tanh"}, X, nn.GELU("tanh")), ("gelu", {}, X, nn.GELU()), ("silu", {}, X, nn.SiLU()),
    ("prelu", {}, X, nn.PReLU(4)), ("prelu", {"shared": True}, X, nn.PReLU()),
    ("conv2d", {"channels": 6, "kernel": (3, 5), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1), "groups": 2}, X,
     nn.Conv2d(4, 6, (3, 5), (1, 2), (2, 0), (2, 1), 2)),
    ("conv2d", {"channels": 3, "kernel": [3, 3], "dilation": 2}, X, nn.Conv2d(4, 3, 3, padding=2, dilation=2)),
    ("conv1d", {"channels": 3, "kernel": 2, "padding": 0, "dilation": 3}, L, nn.Conv1d(4, 3, 2, dilation=3)),
    ("conv_transpose1d", {"channels": 3}, L, nn.ConvTranspose1d(4, 3, 2, 2)),
    ("conv_transpose2d", {"channels": 6, "kernel": (3, 2), "stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "groups": 2, "bias": False}, X,
     nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, False)),
    ("conv_transpose2d", {"channels": 2, "stride": 1, "dilation": 2}, X, nn.ConvTranspose2d(4, 2, 2, dilation=2)),
    ("max_pool", {}, X, nn.MaxPool2d(2)), ("max_pool", {"kernel": 3, "stride": 2, "padding": 1, "ceil": True}, L, nn.MaxPool1d(3, 2, 1, ceil_mode=True)),
    ("max_pool", {"kernel": (3, 2), "stride": 1, "dilation": (2, 1)}, X, nn.MaxPool2d((3, 2), 1, dilation=(2, 1))),
    ("avg_pool", {"kernel": 3, "stride": 2, "padding": 1, "ceil": True}, X, nn.AvgPool2d(3, 2, 1, True)),
    ("avg_pool", {"kernel": 3, "padding": 1, "count_include_pad": False}, L, nn.AvgPool1d(3, padding=1, count_include_pad=False)),
    ("adaptive_avg_pool", {"size": (4, 3)}, X, nn.AdaptiveAvgPool2d((4, 3))), ("adaptive_avg_pool", {"size": 5}, L, nn.AdaptiveAvgPool1d(5)),
    ("upsample", {"scale": 2}, X, nn.Upsample(scale_factor=2)), ("upsample", {"scale": (3, 2), "mode": "bilinear"}, X, nn.Upsample(scale_factor=(3, 2), mode="bilinear")),
    ("upsample", {"size": 9, "mode": "bilinear", "align_corners": True}, X, nn.Upsample((9, 9), mode="bilinear", align_corners=True)),
    ("upsample", {"scale": 3, "mode": "linear"}, L, nn.Upsample(scale_factor=3, mode="linear")),
    ("flatten", {}, X, nn.Flatten()), ("reshape", {"shape": (2, 2, -1)}, X, nn.Unflatten(1, (2, 2))), ("reshape", {"shape": (4, 48)}, X, nn.Flatten(2)),
    ("pad", {"amounts": (1, 2, 0, 3), "mode": "reflect"}, X, nn.ReflectionPad2d((1, 2, 0, 3))), ("pad", {"amounts": (4, 0)}, L, nn.ConstantPad1d((4, 0), 0.0)),
    ("pad", {"amounts": (1, 2, 0, 3), "mode": "replicate"}, X, nn.ReplicationPad2d((1, 2, 0, 3))),
    ("pad", {"amounts": (-1, 1, 0, 0, 2, 2), "value": 0.5}, X, nn.ConstantPad3d((-1, 1, 0, 0, 2, 2), 0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs", "x", "reference"), SAME, ids=[f"{k}-{row[0]}" for k, row in enumerate(SAME)])
def test_an_op_computes_what_torch_does(op, attrs, x, reference) -> None:
    with torch.no_grad():
        expected = of(reference)(x)
    found = made(op, x, **attrs)
    assert torch.equal(found, expected.view(found.shape)) and found.numel() == expected.numel()


def test_joins_and_cuts() -> None:
    y, gate = X.flip(0), X[:, :, :1, :1]
    assert torch.equal(made("mul", X, gate), X * gate) and torch.equal(made("mul", gate, X, y), gate * X * y)
    assert torch.equal(made("sub", X, gate), X - gate) and torch.equal(made("sub", X, y), X - y)
    assert torch.equal(made("matmul", X, y.mT), X @ y.mT) and torch.equal(made("scale", X, by=-0.3), X * -0.3)
    for dim in (1, 2, 3, -1, -3):
        assert torch.equal(made("concat", X, y, X, dim=dim), torch.cat([X, y, X], dim))
    assert torch.equal(made("permute", X, order=(0, -1, 1, 2)), X.permute(0, 3, 1, 2))
    assert torch.equal(made("mean", X, dims=2), X.mean(2)) and torch.equal(made("mean", X, dims=(-1, 2), keep=True), X.mean((2, 3), keepdim=True))
    assert torch.equal(made("mean", X, dims=(1, 2, 3), keep=True), X.mean((1, 2, 3), keepdim=True))


@given(st.integers(1, 3), st.integers(-9, 9), st.none() | st.integers(-9, 9))
def test_a_slice_is_pythons_or_refused(dim: int, start: int, stop: int | None) -> None:
    size = X.shape[dim]
    index = [slice(None)] * 4
    index[dim] = slice(start, stop)
    inside = -size <= start <= size and (stop is None or -size <= stop <= size)
    try:
        assert torch.equal(made("slice", X, start=start, stop=stop, dim=dim - 4), X[tuple(index)])
    except GraphError:
        assert not X[tuple(index)].numel() or not inside


@given(st.integers(1, 3), st.integers(1, 8))
def test_parts_are_chunks(dim: int, of: int) -> None:
    for index in range(of):
        if X.shape[dim] % of:
            with pytest.raises(GraphError, match="no .* equal parts"):
                made("part", X, of=of, index=index, dim=dim)
        else:
            assert torch.equal(made("part", X, of=of, index=index, dim=dim), X.chunk(of, dim)[index])


WRONG = [
    ("reshape", {"shape": (5, 5)}, (4, 6)), ("reshape", {"shape": (-1, 5)}, (4, 6)), ("permute", {"order": (0, 2, 1)}, (4,)),
    ("part", {"of": 5}, (4, 6)), ("part", {"of": 2, "dim": 4}, (4, 6)), ("slice", {"start": 4}, (4, 6)), ("slice", {"stop": 9}, (4, 6)),
    ("slice", {"start": 2, "stop": 2}, (4, 6)), ("pad", {"amounts": (1,) * 6}, (4, 6)), ("pad", {"amounts": (-3, -3)}, (4, 6)),
    ("pad", {"amounts": (1, 1, 1, 1), "mode": "reflect"}, (4, 6)), ("pad", {"amounts": (9, 9), "mode": "reflect"}, (4, 6)),
    ("mean", {"dims": (1, 2)}, (4, 6)), ("mean", {"dims": (3,)}, (4, 6)), ("upsample", {"scale": 2}, (4,)), ("upsample", {"scale": 2, "mode": "bilinear"}, (4, 6)),
    ("upsample", {"scale": (2, 3)}, (4, 6)), ("conv2d", {"channels": 2, "kernel": (3, 3, 5)}, (4, 6, 8)), ("conv2d", {"channels": 2, "dilation": 5, "padding": 0}, (4, 6, 8)),
    ("conv2d", {"channels": 2, "kernel": (3, 2)}, (4, 6, 8)), ("max_pool", {"kernel": 3, "padding": 2}, (4, 6, 8)), ("avg_pool", {"kernel": 7}, (4, 6, 8)),
    ("conv_transpose1d", {"channels": 2, "output_padding": 2}, (4, 6)), ("conv_transpose1d", {"channels": 2, "padding": 100}, (4, 6)),
    ("conv_transpose2d", {"channels": 3, "groups": 2}, (4, 6, 8)), ("concat", {"dim": 3}, (4, 6)), ("matmul", {}, (4, 6)), ("matmul", {}, (6,)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs", "shape"), WRONG, ids=[f"{k}-{row[0]}" for k, row in enumerate(WRONG)])
def test_what_does_not_fit_is_refused_by_name(op, attrs, shape) -> None:
    count = max(1, ops.REGISTRY.get(op).fewest)
    with pytest.raises(GraphError) as caught:
        _ = Architecture({"x": Node.of("input", shape=shape), "op": Node.of(op, *["x"] * count, **attrs)}).shapes
    assert caught.value.node == "op"


IMPOSSIBLE = [
    ("reshape", {"shape": ()}), ("reshape", {"shape": (-1, -1)}), ("reshape", {"shape": (0,)}), ("permute", {"order": (1, 0)}), ("permute", {"order": (0, 1, 1)}),
    ("part", {"of": 2, "index": 2}), ("pad", {"amounts": (1, 2, 3)}), ("mean", {"dims": ()}), ("mean", {"dims": (0,)}), ("mean", {"dims": (1, 1)}),
    ("upsample", {}), ("upsample", {"scale": 2, "size": 3}), ("upsample", {"scale": 2, "align_corners": True}), ("hardtanh", {"low": 1.0, "high": 1.0}),
    ("conv2d", {"channels": 2, "kernel": True}), ("conv2d", {"channels": 2, "padding": -1}), ("conv2d", {"channels": 2, "kernel": (3, 0)}), ("scale", {"by": float("inf")}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs"), IMPOSSIBLE, ids=[f"{k}-{row[0]}" for k, row in enumerate(IMPOSSIBLE)])
def test_options_that_mean_nothing(op, attrs) -> None:
    with pytest.raises(ValidationError):
        Node.of(op, "x", **attrs)


def test_equal_options_have_equal_digests() -> None:
    def digest(**attrs) -> str:
        return Architecture({"x": Node.of("input", shape=(2, 8, 8)), "op": Node.of("conv2d", "x", channels=4, **attrs)}).digest

    assert digest(kernel=(3, 3), stride=[1, 1], dilation=(1, 1)) == digest() != digest(kernel=(3, 1))
    # As it was before there were sizes for each dimension and dilation: runs that are on disk have it.
    assert digest(kernel=5, padding=2) == "97ea521a9654bafaaf63dd3e0afd40956ef1e3b8deb5d7a3944fb439c0516f11"


# Sizes in options when units come and go


def keeps(arch: Architecture, axis: str, index: list[int]) -> bool:
    """Whether the network computes what it did, newborns read by zeros, pruned units masked. True where it is refused."""
    weights, x = oracles.weights_for(arch, 0), oracles.rows(arch)
    rewrite = resize(arch, {axis: index})
    if isinstance(rewrite, Refusal):
        return True
    tensors = transfer(rewrite, weights, oracles.weights_for(rewrite.arch, 1))
    if rewrite.zero is not None:
        return oracles.distance(oracles.output(rewrite.arch, oracles.zeroed(rewrite, tensors), x), oracles.output(arch, weights, x)) <= 1e-10
    for use in arch.axes[axis].reads:
        units = arch.derived.units(axis, use.param, use.axis)
        dead = [k for k, unit in enumerate(units) if unit >= 0 and unit not in index]
        weights[use.param] = weights[use.param].index_fill(use.axis, torch.tensor(dead, dtype=torch.long), 0)
    return oracles.distance(oracles.output(rewrite.arch, tensors, x), oracles.output(arch, weights, x)) <= 1e-10


def cut(start: int, stop: int | None, both: bool) -> Architecture:
    """Three layers of 4 one after another, cut from start to stop; the whole is read elsewhere, or by the same node."""
    nodes = {"x": Node.of("input", shape=(3,))} | {n: Node.of("linear", "x", width=4) for n in "abc"}
    nodes |= {"all": Node.of("concat", *"abc"), "cut": Node.of("slice", "all", start=start, stop=stop)}
    if both:
        return Architecture(nodes | {"join": Node.of("concat", "cut", "all"), "y": Node.of("linear", "join", width=2)})
    return Architecture(nodes | {"y": Node.of("linear", "cut", width=2), "z": Node.of("linear", "all", width=2)}, ["y", "z"])


def test_a_slice_stays_on_its_units_or_the_resize_is_refused() -> None:
    draw = random.Random(0)
    for start, stop, both in itertools.product((0, 2, 4, 8, -8), (3, 4, 8, None, -4), (False, True)):
        try:
            arch = cut(start, stop, both)
            _ = arch.axes
        except GraphError:
            continue
        for axis in arch.axes:
            size = arch.axes[axis].size
            more = draw.randint(0, size)
            for index in ([*range(more), -1, *range(more, size)], [k for k in range(size) if k != more % size], draw.sample(range(size), size)):
                assert not index or keeps(arch, axis, index), (start, stop, both, axis, index)


@pytest.mark.parametrize(("start", "stop", "wide"), [(0, 4, (0, 5)), (0, 8, (0, 9)), (0, -8, (0, -8)), (8, None, (9, None)), (-4, None, (-4, None)), (-12, None, (-13, None))])
def test_heads_and_tails_follow_their_units(start, stop, wide) -> None:
    rewrite = oracles.done(resize(cut(start, stop, False), {"a": [0, 1, 2, 3, -1]}))
    attrs = rewrite.arch.nodes["cut"].attrs
    assert (attrs.start, attrs.stop) == wide


@pytest.mark.parametrize(("start", "stop", "name", "sizes"), [(2, 8, "a", (2, 2)), (0, 10, "c", (2, 2)), (9, None, "c", (1, 3))])
def test_units_that_are_cut_apart_come_and_go_separately(start, stop, name, sizes) -> None:
    arch = cut(start, stop, True)
    assert (arch.axes[name].size, arch.axes[f"{name}~1"].size) == sizes
    for axis in (name, f"{name}~1"):
        size = arch.axes[axis].size
        assert all(keeps(arch, axis, index) for index in ([*range(size), -1], [-1, *range(size)], list(range(size))[::-1], list(range(1, size))) if index)


def test_shuffled_channels() -> None:
    """ShuffleNet's: groups and channels within a group change places; half of them go on alone (Ma et al. 2018)."""
    arch = Architecture({
        "x": Node.of("input", shape=(3, 5, 5)), "stem": Node.of("conv2d", "x", channels=8), "group": Node.of("conv2d", "stem", channels=8, kernel=1, groups=2),
        "grid": Node.of("reshape", "group", shape=(2, 4, 5, 5)), "turn": Node.of("permute", "grid", order=(0, 2, 1, 3, 4)),
        "flat": Node.of("reshape", "turn", shape=(8, 5, 5)), "left": Node.of("part", "flat", of=2), "right": Node.of("part", "flat", of=2, index=1),
        "deep": Node.of("conv2d", "right", channels=4, groups=4), "join": Node.of("concat", "left", "deep"),
        "pool": Node.of("global_avg_pool", "join"), "head": Node.of("linear", "pool", width=2),
    })  # fmt: skip
    assert not arch.derived.opaque and len(arch.axes) >= 2
    oracles.all_oracles(arch)
    oracles.compiling_keeps_the_function(arch)


def test_squeeze_and_excite() -> None:
    """A gate [channels, 1, 1] on a map (Hu et al. 2018): the trunk is one axis with the gate, the squeezed units another."""
    arch = Architecture({
        "x": Node.of("input", shape=(3, 5, 5)), "stem": Node.of("conv2d", "x", channels=6), "mean": Node.of("mean", "stem", dims=(2, 3), keep=True),
        "down": Node.of("conv2d", "mean", channels=2, kernel=1), "act": Node.of("relu", "down"), "up": Node.of("conv2d", "act", channels=6, kernel=1),
        "gate": Node.of("sigmoid", "up"), "out": Node.of("mul", "gate", "stem"), "pool": Node.of("global_avg_pool", "out"), "head": Node.of("linear", "pool", width=2),
    })  # fmt: skip
    assert {n: a.size for n, a in arch.axes.items()} == {"stem": 6, "down": 2}
    assert arch.axes["stem"].gates == ("out",) and {u.node for u in arch.axes["stem"].writes} == {"stem", "up"}
    oracles.all_oracles(arch)
    assert oracles.widening_keeps_the_function(arch, "stem")


def test_a_u_net() -> None:
    """Down, up by a transposed convolution and by interpolation, skips joined by concat (Ronneberger et al. 2015)."""
    arch = Architecture({
        "x": Node.of("input", shape=(2, 8, 8)), "a": Node.of("conv2d", "x", channels=4), "ra": Node.of("relu", "a"), "down": Node.of("max_pool", "ra"),
        "b": Node.of("conv2d", "down", channels=6), "rb": Node.of("relu", "b"), "up": Node.of("conv_transpose2d", "rb", channels=3),
        "large": Node.of("upsample", "rb", scale=2, mode="bilinear"), "skip": Node.of("concat", "ra", "up", "large"), "c": Node.of("conv2d", "skip", channels=2, kernel=1),
    })  # fmt: skip
    assert {n: a.size for n, a in arch.axes.items()} == {"a": 4, "b": 6, "up": 3}
    oracles.all_oracles(arch)
    oracles.compiling_keeps_the_function(arch)


def test_padded_channels_of_a_residual_trunk() -> None:
    """The shortcut without parameters (He et al. 2016, option A): the map is thinned out, its channels are filled up with zeros."""
    arch = Architecture({
        "x": Node.of("input", shape=(2, 8, 8)), "a": Node.of("conv2d", "x", channels=4), "b": Node.of("conv2d", "a", channels=8, stride=2),
        "thin": Node.of("avg_pool", "a", kernel=1, stride=2), "wide": Node.of("pad", "thin", amounts=(0, 0, 0, 0, 2, 2)), "sum": Node.of("add", "b", "wide"),
        "pool": Node.of("global_avg_pool", "sum"), "head": Node.of("linear", "pool", width=2),
    })  # fmt: skip
    for axis, found in arch.axes.items():
        size = found.size
        for index in (list(range(size))[::-1], [*range(size), -1], list(range(1, size))):
            assert not index or keeps(arch, axis, index)


@pytest.mark.parametrize(("left", "right", "kept"), [("tanh", "tanh", True), ("sigmoid", "tanh", True), ("tanh", "sigmoid", True), ("sigmoid", "sigmoid", False)])
def test_a_product_is_silenced_on_a_side_that_can_be(left, right, kept) -> None:
    """Zeros before a sigmoid are halves after it: they have to be on the other side, or there is none."""
    arch = Architecture({
        "x": Node.of("input", shape=(4, 3)), "q": Node.of("token_linear", "x", width=5), "k": Node.of("token_linear", "x", width=5),
        "fq": Node.of(left, "q"), "fk": Node.of(right, "k"), "turned": Node.of("permute", "fk", order=(0, 2, 1)), "dots": Node.of("matmul", "fq", "turned"),
        "flat": Node.of("flatten", "dots"), "head": Node.of("linear", "flat", width=2),
    })  # fmt: skip
    assert arch.axes["q"].bilinear == ("dots",)
    assert oracles.widening_keeps_the_function(arch, "q") is kept
    oracles.permuting_keeps_the_function(arch, "q")


def test_causal_convolutions() -> None:
    """A temporal convolutional net's layer (Bai et al. 2018): no output sees later inputs."""
    arch = Architecture({
        "x": Node.of("input", shape=(2, 16)), "a": Node.of("conv1d", "x", channels=3, kernel=1), "pad": Node.of("pad", "a", amounts=(8, 0)),
        "b": Node.of("conv1d", "pad", channels=3, kernel=3, dilation=4, padding=0), "sum": Node.of("add", "a", "b"), "c": Node.of("conv1d", "sum", channels=2, kernel=1),
    })  # fmt: skip
    oracles.all_oracles(arch)
    weights, x = oracles.weights_for(arch, 0), oracles.rows(arch)
    later = {"x": torch.cat([x["x"][..., :9], x["x"][..., 9:] + 1], 2)}
    assert torch.equal(oracles.output(arch, weights, x)[..., :9], oracles.output(arch, weights, later)[..., :9])
    assert not torch.equal(oracles.output(arch, weights, x), oracles.output(arch, weights, later))
    assert torch.equal(F.pad(x["x"], (8, 0)), made("pad", x["x"], amounts=(8, 0)))
