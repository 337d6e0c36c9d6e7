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
MOST = 2**20
# Of one tensor, without the batch.
MOST_VALUES = 2**28
Size = Annotated[int, pydantic.Field(strict=True, ge=1, le=MOST)]
# A dimension as torch numbers them, with the batch at 0.
Dim = Annotated[int, pydantic.Field(strict=True, ge=-16, le=16)]
REGISTRY = Registry("op", __name__, verb="ops")


def _alike(least: int, most: int) -> Callable:
    def check(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        given = (value,) if isinstance(value, int) else value
        if not 1 <= len(given) <= 3 or not all(least <= n <= most for n in given):
            raise ValueError(f"a whole number from {least} to {most:,}, or one for each dimension of space")
        return given[0] if len(set(given)) == 1 else given

    return check


Whole = Annotated[int, pydantic.Field(strict=True)]
# One number for all dimensions of space, or one for each; equal ones become one, so that equal options have equal digests.
Sizes = Annotated[Whole | tuple[Whole, ...], pydantic.AfterValidator(_alike(1, MOST))]
Paddings = Annotated[Whole | tuple[Whole, ...], pydantic.AfterValidator(_alike(0, 2**10))]


class Example(NamedTuple):
    """An op as the contract tests try it: input x -> stem (one for each input of the op) -> op -> silu -> flatten -> head.

    attrs: the op's options. shape: of x; empty: a vector, a sequence and a map, wherever the op fits. last: the stems are
    token_linear, not convolutions. axes: sizes of all the axes there must be, by name; None: the stem's alone. The stems
    have 6 units and are called stem, stem1, stem2; bare: the op reads x itself (whole numbers, where it has a vocabulary).
    """

    attrs: Mapping[str, object]
    shape: Shape = ()
    last: bool = False
    axes: Mapping[str, int] | None = None
    bare: bool = False


class Steady(NamedTuple):
    """What an op that mixes the units of an axis needs to go on giving its old outputs when there are more of them.

    newborn: what new units must be: "mean", the mean of the old ones, or "copy", that of one of them, where the logit of each
    copy gains the log of its share. attrs: the op's options then. scale: local name -> the factor of its old entries; zero:
    its tensors whose newborn entries are 0. logits: its own tensors that are added to logits; none of them: the biases of
    what writes the axis.
    """

    newborn: Literal["mean", "copy"]
    attrs: object
    scale: Mapping[str, float] = {}
    zero: tuple[str, ...] = ()
    logits: tuple[str, ...] = ()


class Op:
    """What every op provides. Class variables say how it takes part in scoring; the rest is traced.

    role: "affine" (a weight times its input plus a bias; axis 0 of `weight` and dimension `channels` of the output are its
    units), "activation" (elementwise, no parameters), "norm" (batch normalisation), "sum" (the plain sum of its inputs)
    or "other". channels: the dimension of the output, batch included, that an affine op's units lie on: 1, or -1 where
    they come last. grids: attribute -> (input, dimension of it): the attribute says into how many equal parts, the major
    ones, that dimension is cut; a resize sets it from the axes. examples: what the contract tests try, where the defaults
    alone would not say enough. closed: nothing is known of what it does inside (`called` says what it is), and all that it
    touches stays as it is. nonnegative: whether its values never are below 0: "always", or where none of its inputs' are.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = 1
    shorthand: ClassVar[str | None] = None
    role: ClassVar[Literal["affine", "activation", "norm", "sum", "other"]] = "other"
    channels: ClassVar[Literal[1, -1]] = 1
    grids: ClassVar[Mapping[str, tuple[int, int]]] = {}
    examples: ClassVar[tuple[Example, ...]] = ()
    closed: ClassVar[bool] = False
    nonnegative: ClassVar[Literal["always", "inherited", "unknown"]] = "unknown"

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

    @staticmethod
    def pinned(attrs, *shapes: Shape):
        """`attrs` with the values that follow from the inputs' `shapes` written out, where they shall stay as they are in a resize."""
        return attrs

    @staticmethod
    def macs(attrs, counted: int, *shapes: Shape) -> int:
        """The MACs to be charged for one sample, where running the op takes `counted`."""
        return counted

    @staticmethod
    def steady(attrs, grown, old: Shape, new: Shape) -> Steady | None:
        """What keeps its old outputs when there are more units on an axis that it mixes; None: nothing does.

        Its options were `attrs` and are `grown` by then, its (first) input had shape `old` and has `new`.
        """
        return None


def need_rank(op: str, shape: Shape, ranks: tuple[int, ...], what: str, fix: str | None = None) -> None:
    if len(shape) not in ranks:
        raise GraphError(f"{op} needs {what}, it is given {list(shape)}", fix=fix)


def need_equal(op: str, shapes: tuple[Shape, ...]) -> None:
    if len(set(shapes)) > 1:
        raise GraphError(f"{op} needs inputs of one shape, it is given {', '.join(str(list(s)) for s in shapes)}")


def dimension(op: str, dim: int, shape: Shape) -> int:
    """`dim`, counted from the end where negative, as a number from 1 (0 is the batch). GraphError where `shape` has none such."""
    found = dim + len(shape) + 1 if dim < 0 else dim
    if not 1 <= found <= len(shape):
        raise GraphError(f"{op}: {list(shape)} has dimensions 1 to {len(shape)} behind the batch, not {dim}")
    return found


def spread(op: str, option: str, value: int | tuple[int, ...], space: int) -> tuple[int, ...]:
    """One number for each of `space` dimensions."""
    if isinstance(value, int):
        return (value,) * space
    if len(value) != space:
        raise GraphError(f"{op}: {option} is one number, or {space} of them, not {list(value)}")
    return tuple(value)
