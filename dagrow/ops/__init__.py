"""The vocabulary of architectures: one file per family of ops, each found by name.

An op is `Options` (what YAML may say) and `build` (a torch module, or a function of tensors). Shapes, parameters,
MACs, axes and function preservation follow from running it (dagrow.graph). Shapes leave out the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import pydantic

from dagrow.errors import GraphError
from dagrow.registry import Options, Registry

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
# Large enough for any layer that fits a machine, small enough that no product of a few overflows.
Size = Annotated[int, pydantic.Field(strict=True, ge=1, le=2**20)]
REGISTRY = Registry("op", __name__, verb="ops")


class Example(NamedTuple):
    """An op as the contract tests try it: input x -> stem (one for each input of the op) -> op -> tanh -> flatten -> head.

    attrs: the op's options. shape: of x; empty: a vector, a sequence and a map, wherever the op fits. last: the stems are
    token_linear, not convolutions. axes: sizes of all the axes there must be, by name; None: the stem's alone.
    """

    attrs: Mapping[str, object]
    shape: Shape = ()
    last: bool = False
    axes: Mapping[str, int] | None = None


class Op:
    """What every op provides. Class variables say how it takes part in scoring; the rest is traced.

    role: "affine" (a weight times its input plus a bias; axis 0 of `weight` and dimension `channels` of the output are its
    units), "activation" (elementwise, no parameters), "norm" (batch normalisation), "sum" (the plain sum of its inputs)
    or "other". channels: the dimension of the output, batch included, that an affine op's units lie on: 1, or -1 where
    they come last. examples: what the contract tests try, where the defaults alone would not say enough.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = 1
    shorthand: ClassVar[str | None] = None
    role: ClassVar[Literal["affine", "activation", "norm", "sum", "other"]] = "other"
    channels: ClassVar[Literal[1, -1]] = 1
    examples: ClassVar[tuple[Example, ...]] = ()

    @classmethod
    def variant(cls, attrs) -> type[Op]:
        """The class that speaks for a node with `attrs`: this one, or one of another role."""
        return cls

    @staticmethod
    def build(attrs, *shapes: Shape) -> nn.Module | Callable:
        """The module, or a function of the input tensors. Raises GraphError where the shapes do not fit."""
        raise NotImplementedError

    @staticmethod
    def resize(attrs, params: Mapping[str, Shape], made: Shape, *shapes: Shape):
        """`attrs` again once the node's own parameters have the shapes `params` (local names), its output `made` and its
        inputs `shapes`.

        Only an op with an attribute that holds a size needs one. `made` is empty where only units of an affine op change.
        """
        return attrs


def need_rank(op: str, shape: Shape, ranks: tuple[int, ...], what: str, fix: str | None = None) -> None:
    if len(shape) not in ranks:
        raise GraphError(f"{op} needs {what}, it is given {list(shape)}", fix=fix)


def need_equal(op: str, shapes: tuple[Shape, ...]) -> None:
    if len(set(shapes)) > 1:
        raise GraphError(f"{op} needs inputs of one shape, it is given {', '.join(str(list(s)) for s in shapes)}")
