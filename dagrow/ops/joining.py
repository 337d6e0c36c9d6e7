"""input, add, concat, identity, flatten: how tensors enter, meet and change shape."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import MOST_VALUES, REGISTRY, Dim, Example, Op, Size, dimension, need_equal
from dagrow.registry import Options


@REGISTRY.register("input")
class Input(Op):
    """Where data enters; `shape` without the batch."""

    fewest, most = 0, 0

    class Options(Options):
        shape: tuple[Size, ...]

        @pydantic.field_validator("shape")
        @classmethod
        def _fits(cls, value):
            if not 1 <= len(value) <= 3:
                raise ValueError("an input has 1 to 3 dimensions")
            if math.prod(value) > MOST_VALUES:
                raise ValueError(f"an input of {math.prod(value)} values is too large")
            return value

    @staticmethod
    def build(attrs):
        raise GraphError("an input is not computed")


class Plain(Options):
    """No options."""


@REGISTRY.register("add")
class Add(Op):
    """The sum of two or more tensors of one shape."""

    nonnegative = "inherited"
    fewest, most = 2, None
    role = "sum"
    Options = Plain

    @staticmethod
    def build(attrs, *shapes):
        need_equal("add", shapes)
        return lambda *xs: reduce(add, xs)


@REGISTRY.register("concat")
class Concat(Op):
    """Tensors one after another along the features or channels, or along dimension `dim`."""

    nonnegative = "inherited"
    fewest, most = 2, None

    class Options(Options):
        dim: Dim = 1

    examples = (Example({}, axes={"stem": 6, "stem1": 6}), Example({"dim": 2}, (3, 9)), Example({"dim": -1}, (2, 7, 5)))

    @staticmethod
    def build(attrs, *shapes):
        import torch

        dim = dimension("concat", attrs.dim, shapes[0])
        if len({(len(s), s[: dim - 1], s[dim:]) for s in shapes}) > 1:
            where = "channels" if dim == 1 else f"dimension {dim}"
            raise GraphError(f"concat needs inputs that differ in {where} only, it is given {', '.join(str(list(s)) for s in shapes)}")
        return lambda *xs: torch.cat(xs, dim)


@REGISTRY.register("identity")
class Identity(Op):
    """The tensor as it is."""

    nonnegative = "inherited"
    role = "sum"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        return lambda x: x


@REGISTRY.register("flatten")
class Flatten(Op):
    """[channels, …] to a vector, channels slowest."""

    nonnegative = "inherited"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        return lambda x: x.flatten(1)
