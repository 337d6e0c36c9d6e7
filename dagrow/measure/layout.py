"""Where an activation has its units and where its positions: an affine node's op says on which dimension its units lie.

[rows, units, *positions] behind a convolution, [rows, *positions, units] behind a linear map of tokens. The same holds of
what the node reads. Vectors are both. Everything that sums over units or positions works on the flat layout,
[rows, positions, units]. A node that is not affine is taken to have its units first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dagrow.graph.node import Node

Shape = tuple[int, ...]


def last(node: Node, shape: Sequence[int]) -> bool:
    """Whether units come after positions in what the node makes and reads; `shape` of either, without the batch."""
    return node.rule.channels == -1 and len(shape) > 1


def dim(node: Node) -> int:
    """The dimension of units, batch included."""
    return node.rule.channels


def width(shape: Sequence[int], node: Node) -> int:
    """How many units a tensor of `shape` (without the batch) has."""
    return shape[-1] if last(node, shape) else shape[0]


def space(shape: Sequence[int], node: Node) -> Shape:
    """The shape of its positions."""
    return tuple(shape[:-1]) if last(node, shape) else tuple(shape[1:])


def whole(units: int, positions: Sequence[int], node: Node) -> Shape:
    """The shape, without the batch, of so many units at positions of that shape."""
    return (*positions, units) if node.rule.channels == -1 else (units, *positions)


def flat(x: Tensor, node: Node) -> Tensor:
    """What `node` makes or reads -> [rows, positions, units]."""
    if x.dim() <= 2:
        return x.unsqueeze(1)
    return x.flatten(1, -2) if node.rule.channels == -1 else x.flatten(2).transpose(1, 2)


def shaped(x: Tensor, node: Node, positions: Sequence[int]) -> Tensor:
    """[rows, positions, units] -> the layout of `node`, positions of that shape: undoes `flat`."""
    if not positions:
        return x.squeeze(1)
    return x.unflatten(1, tuple(positions)) if node.rule.channels == -1 else x.transpose(1, 2).unflatten(2, tuple(positions))


def units_first(x: Tensor, node: Node) -> Tensor:
    """What `node` makes or reads -> [rows, units, *positions]."""
    return x.movedim(-1, 1) if node.rule.channels == -1 else x


def as_given(x: Tensor, node: Node) -> Tensor:
    """[rows, units, *positions] -> the layout of `node`: undoes `units_first`."""
    return x.movedim(1, -1) if node.rule.channels == -1 else x


def broad(constant: Tensor, node: Node, shape: Sequence[int]) -> Tensor:
    """A value for each unit, to be added to what `node` makes; `shape` of that, without the batch."""
    return constant if last(node, shape) else constant.view(1, -1, *[1] * (len(shape) - 1))
