"""Activations, sums, products, dropout."""

from __future__ import annotations

import torch
from torch import nn

from dagrow.importing.errors import Unfit
from dagrow.importing.mapping import Ask, Entry, function, layer
from dagrow.importing.values import Held, Leaf, equal


def activation(op: str, **options: tuple[str, object]) -> Entry:
    """An entry for `op`, whose options are torch's of other names: option -> (torch's name, default)."""

    def entry(ask: Ask):
        given = ask.bound(**dict(options.values()))
        return ask.node(op, [ask.x], {option: given[name] for option, (name, _) in options.items()})

    return entry


ACTIVATIONS = (
    ("relu", nn.ReLU, {}), ("tanh", nn.Tanh, {}), ("sigmoid", nn.Sigmoid, {}), ("silu", nn.SiLU, {}), ("selu", nn.SELU, {}), ("mish", nn.Mish, {}),
    ("hardswish", nn.Hardswish, {}), ("hardsigmoid", nn.Hardsigmoid, {}), ("relu6", nn.ReLU6, {}),
    ("gelu", nn.GELU, {"approximate": ("approximate", "none")}), ("leaky_relu", nn.LeakyReLU, {"slope": ("negative_slope", 0.01)}),
    ("elu", nn.ELU, {"alpha": ("alpha", 1.0)}), ("softplus", nn.Softplus, {"beta": ("beta", 1.0), "threshold": ("threshold", 20.0)}),
    ("hardtanh", nn.Hardtanh, {"low": ("min_val", -1.0), "high": ("max_val", 1.0)}),
)  # fmt: skip
for _name, _kind, _options in ACTIVATIONS:
    function(_name)(layer(_kind)(activation(_name, **_options)))


@layer(nn.PReLU)
def prelu(ask: Ask):
    shared = ask.module.weight.numel() == 1
    return ask.node("prelu", [ask.map], {"shared": shared}, ask.tensors("weight"))


@layer(nn.Identity)
@function("contiguous", "clone", "to", "type_as", "float", "double", "cpu", "cuda", "type")
def same(ask: Ask):
    held = ask.first
    if not isinstance(held, Held) or not all(map(equal, held.values, ask.result.values)):  # of another dtype is another, too
        raise Unfit("it changes the values")
    return Held(ask.result.values, held.node, held.batch, held.form, held.narrow)


@layer(nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def dropout(ask: Ask):
    if not ask.module.p:
        return ask.first
    whole = not isinstance(ask.module, nn.Dropout)
    return ask.node("dropout", [ask.map if whole else ask.x], {"p": float(ask.module.p), "channels": whole})


@function("softmax")
@layer(nn.Softmax)
def softmax(ask: Ask):
    given, x = ask.bound(dim=None, _stacklevel=3, dtype=None), ask.x
    if given["dim"] is None or given.get("dtype") is not None:
        raise Unfit("softmax over an implicit dimension, or of another dtype")
    return ask.node("softmax", [x], {"dim": inner(x, given["dim"])})


def inner(x: Held, dim: int) -> int:
    """The dimension of the node's output that is dimension `dim` of the user's tensor. Raises Unfit for that of the batch."""
    dim %= x.values[0].dim()
    if dim == x.batch:
        raise Unfit("along the batch")
    return dim + 1 if dim < x.batch else dim


# -- two operands ----------------------------------------------------------------------------------------------------


def operands(ask: Ask) -> tuple[object, object]:
    """Both, before they were expanded where that changes nothing of the result."""
    if len(ask.args) != 2 or ask.kwargs:
        raise Unfit("not two operands")
    found = [v.narrow if isinstance(v, Held) and v.narrow is not None else v for v in ask.args]
    return found[0], found[1]


def number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parameter(value: object) -> Leaf | None:
    """The user's parameter or buffer that an operand is."""
    if isinstance(value, Held) and isinstance(value.form, Leaf):
        return value.form
    return Leaf(None, value) if isinstance(value, torch.Tensor) else None


@function("add", "iadd")
def add(ask: Ask):
    one, other = operands(ask)
    if any(number(v) and v == 0 for v in (one, other)):
        held = other if isinstance(other, Held) else one  # sum() begins with 0
        if isinstance(held, Held) and all(map(equal, held.values, ask.result.values)):
            return held
    for x, leaf in ((one, parameter(other)), (other, parameter(one))):
        if leaf is not None and isinstance(x, Held) and isinstance(leaf.tensor, nn.Parameter):
            x = ask.solid(x)
            if x.batch or leaf.name is None or tuple(leaf.tensor.shape[-len(x.shape) :]) != x.shape:
                raise Unfit("it spreads over tokens")
            return ask.node("position", [x], {}, {"weight": leaf}, hint=leaf.name.rpartition(".")[2])
    x, y = ask.solid(one), ask.solid(other)
    if x.batch != y.batch or x.shape != y.shape:
        raise Unfit("sums of different shapes")
    return ask.node("add", [x, y])


@function("sub")
def sub(ask: Ask):
    x, y = map(ask.solid, operands(ask))
    if x.batch != y.batch:
        raise Unfit("their batches lie elsewhere")
    return ask.node("sub", [x, y])


@function("mul")
def mul(ask: Ask):
    one, other = operands(ask)
    for x, factor in ((one, other), (other, one)):
        if number(factor) and isinstance(x, Held):
            x = ask.solid(x)
            return ask.node("scale", [x], {"by": float(factor)}, batch=x.batch)
        leaf = parameter(factor)
        if leaf is not None and isinstance(leaf.tensor, nn.Parameter) and isinstance(x, Held):
            return scaled(ask, ask.solid(x), leaf)
    x, y = ask.solid(one), ask.solid(other)
    if x.batch != y.batch:
        raise Unfit("their batches lie elsewhere")
    return ask.node("mul", [x, y])


def scaled(ask: Ask, x: Held, leaf: Leaf) -> Held:
    """Times a parameter with one value for each unit of one dimension."""
    sizes = leaf.tensor.shape
    wide = [k for k, n in enumerate(sizes) if n != 1]
    if leaf.name is None or x.batch or len(wide) != 1 or any(sizes[wide[0] + 1 :]) and len(sizes) > len(x.shape) + 1:
        raise Unfit("not one factor for each unit")
    dim = x.values[0].dim() - (len(sizes) - wide[0])
    return ask.node("layer_scale", [x], {"dim": dim if dim == 1 else dim - x.values[0].dim()}, {"weight": leaf}, hint=leaf.name.rpartition(".")[2])


@function("matmul", "bmm")
def matmul(ask: Ask):
    x, y = map(ask.solid, operands(ask))
    if x.batch or y.batch:
        raise Unfit("their batches do not come first")
    return ask.node("matmul", [x, y])
