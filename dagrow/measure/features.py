"""What an affine node sees of its input: its design matrix, as the node itself makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from dagrow.graph.node import Module, Node
from dagrow.graph.node import build as build_node
from dagrow.measure.layout import flat, width


def grouped(node: Node) -> bool:
    """Whether the affine node reads its channels in groups."""
    return getattr(node.attrs, "groups", 1) != 1


def kernel_shape(node: Node, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the weight of an affine node for an input of `shape`: (units, fan-in channels, *kernel)."""
    return tuple(template(node, shape).weight.shape)


def template(node: Node, *shapes: Sequence[int]) -> Module:
    """The node's module for inputs of `shapes`, without values (on meta); built once, and only ever called functionally."""
    return _template(node.op, node.attrs, tuple(tuple(s) for s in shapes))


@lru_cache(maxsize=4096)
def _template(op: str, attrs, shapes: tuple[tuple[int, ...], ...]) -> Module:
    with torch.device("meta"):
        return build_node(Node(op, (), attrs), shapes, op)


def features(node: Node, x: Tensor) -> Tensor:
    """The design matrix of an affine node: [rows, positions, fan-in], so that output = features @ weight.flatten(1).T + bias.

    The node itself makes it, with the identity for a weight: stride, padding and kernel need no second description.
    """
    shape = tuple(x.shape[1:])
    weight = kernel_shape(node, shape)
    fan_in = math.prod(weight[1:])
    if len(weight) == 2 and fan_in == width(shape, node):
        return flat(x, node)
    module = with_units(node, shape, fan_in)
    eye = torch.eye(fan_in, dtype=x.dtype, device=x.device).view(fan_in, *weight[1:])
    return flat(call(module, x, eye, None), node)


TAPS = 2**19  # entries that are looked up at a time: the numbers of their places take twice the memory of what is found there


@lru_cache(maxsize=512)
def _taps(op: str, attrs, shape: tuple[int, ...]) -> Tensor:
    """Which entry of an input of `shape` each entry of the design matrix is, and the entry after the last for padding."""
    size = math.prod(shape)
    numbers = torch.arange(1, size + 1, dtype=torch.float64).view(1, *shape)
    found = features(Node(op, (), attrs), numbers)[0].round().long() - 1
    return torch.where(found < 0, size, found)


def design(node: Node, x: Tensor, places: Tensor | None = None) -> Tensor:
    """`features` at some positions of each row: [rows, places, fan-in]; `places` [rows, places], None for all of them."""
    if places is None:
        return features(node, x)
    taps = _taps(node.op, node.attrs, tuple(x.shape[1:]))
    made = x.new_empty(*places.shape, taps.shape[1])
    each = max(1, TAPS // made[:1].numel()) if len(x) else 1
    for start in range(0, len(x), each):
        rows = slice(start, start + each)
        torch.gather(_padded(x[rows]), 1, taps[places[rows]].flatten(1), out=made[rows].flatten(1))
    return made


def unfolded(node: Node, x: Tensor) -> Tensor:
    """`features` by copying: faster where the fan-in is large."""
    if x.dim() == 2 or node.rule.channels == -1:
        return features(node, x)
    taps = _taps(node.op, node.attrs, tuple(x.shape[1:]))
    return _padded(x).index_select(1, taps.flatten()).view(len(x), *taps.shape)


def _padded(x: Tensor) -> Tensor:
    """[rows, values + 1]: the last is what padding reads."""
    return torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)


def at(x: Tensor, node: Node, places: Tensor | None = None) -> Tensor:
    """`flat` at some positions of each row: [rows, places, units]."""
    x = flat(x, node)
    return x if places is None else x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def with_units(node: Node, shape: Sequence[int], units: int, fan_in: int | None = None) -> nn.Module:
    """The affine node's module on meta with another number of units (and, grouped, another fan-in)."""
    weight = kernel_shape(node, shape) if fan_in is None else (0, fan_in, 0)
    attrs = node.rule.resize(node.attrs, {"weight": (units, *weight[1:])}, (), tuple(shape))
    return _template(node.op, attrs, (tuple(shape),))


def call(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """An affine module with these values in place of its own."""
    given = {"weight": weight}
    if module.bias is not None:
        given["bias"] = torch.zeros(weight.shape[0], dtype=x.dtype, device=x.device) if bias is None else bias
    return torch.func.functional_call(module, given, (x,))
