"""What an affine node sees of its input, and what new units look like where they are read.

Layouts: an activation is [rows, channels, *positions]; `flat` makes it [rows, positions, channels].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from dagrow.errors import GraphError
from dagrow.graph import Architecture
from dagrow.graph.node import Module, Node
from dagrow.graph.node import build as build_node


def flat(x: Tensor) -> Tensor:
    """[rows, channels, *positions] -> [rows, positions, channels]."""
    return x.flatten(2).transpose(1, 2) if x.dim() > 2 else x.unsqueeze(1)


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
    if fan_in == shape[0] and x.dim() == 2:
        return x.unsqueeze(1)
    module = with_units(node, shape, fan_in)
    eye = torch.eye(fan_in, dtype=x.dtype, device=x.device).view(fan_in, *weight[1:])
    return flat(call(module, x, eye, None))


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
    if x.dim() == 2:
        return features(node, x)
    taps = _taps(node.op, node.attrs, tuple(x.shape[1:]))
    return _padded(x).index_select(1, taps.flatten()).view(len(x), *taps.shape)


def _padded(x: Tensor) -> Tensor:
    """[rows, values + 1]: the last is what padding reads."""
    return torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)


def at(x: Tensor, places: Tensor | None = None) -> Tensor:
    """`flat` at some positions of each row: [rows, places, channels]."""
    x = flat(x)
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


class Path(Protocol):
    """New units between their writers and their readers (sites.Units)."""

    path: tuple[str, ...]
    readers: tuple[str, ...]


class Unsupported(Exception):
    """New units cannot be carried along this path; `reason` says why. Never leaves the scorers."""


def propagate(
    frame: Architecture,
    form: Path,
    born: Mapping[str, Tensor],
    *,
    linear: bool = False,
    follows: dict[str, Tensor] | None = None,
    fit: bool = False,
) -> dict[str, Tensor]:
    """New units' values at each reader's input, given their pre-activations `born[writer]` ([rows, units, *positions]).

    Only the new units are computed; everything on the path acts on units one by one. `linear` leaves out activations
    and norms. With `fit`, batch-norm statistics of the newborns are measured here and put into `follows`
    ("node.local" -> values), so that the norm is the identity on them: exact in eval mode and no jump in train mode.
    Raises Unsupported where an op on the path does not act unit by unit.
    """
    values: dict[str, Tensor] = dict(born)
    follows = {} if follows is None else follows
    for name in form.path:
        node = frame.nodes[name]
        inputs = [values[i] for i in node.inputs if i in values]
        role = node.rule.role
        if role == "norm":
            values[name] = inputs[0]
            if fit:
                _fit_norm(name, node, inputs[0], follows)
        elif role == "activation" and linear:
            values[name] = inputs[0]
        elif role == "affine":
            if frame.shapes[name][0] != frame.shapes[node.inputs[0]][0]:
                raise Unsupported(f"{name} makes several channels of each")
            values[name] = _follow(name, node, inputs[0], follows)
        elif role == "sum":
            total = inputs[0]
            for other in inputs[1:]:
                total = total + other
            values[name] = total
        else:
            module = template(node, *(i.shape[1:] for i in inputs))
            if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
                raise Unsupported(f"{node.op} on the path mixes units")
            values[name] = module(*inputs)
    return {r: values[frame.nodes[r].inputs[0]] for r in form.readers}


def _fit_norm(name: str, node: Node, z: Tensor, follows: dict[str, Tensor]) -> None:
    over = [0, *range(2, z.dim())]
    mean, var = z.mean(over), z.var(over, unbiased=False)
    follows[f"{name}.running_mean"], follows[f"{name}.running_var"] = mean, var
    follows[f"{name}.weight"], follows[f"{name}.bias"] = (var + node.attrs.eps).sqrt(), mean


def _follow(name: str, node: Node, x: Tensor, follows: dict[str, Tensor]) -> Tensor:
    """A depthwise convolution passes a newborn on unchanged: its kernel is 1 in the middle."""
    shape = tuple(x.shape[1:])
    try:
        module = with_units(node, shape, shape[0], fan_in=1)
    except (GraphError, RuntimeError, ValueError) as error:
        raise Unsupported(f"{node.op} with groups of several channels") from error
    weight = torch.zeros(module.weight.shape, dtype=x.dtype, device=x.device)
    weight[(slice(None), 0, *(k // 2 for k in module.kernel_size))] = 1
    follows[f"{name}.weight"] = weight
    if module.bias is not None:
        follows[f"{name}.bias"] = torch.zeros(shape[0], dtype=x.dtype, device=x.device)
    return call(module, x, weight, None)
