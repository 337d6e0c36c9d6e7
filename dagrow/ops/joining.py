"""input, add, concat, identity, flatten: how tensors enter, meet and change shape."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Op, Size, need_equal
from dagrow.registry import Options

MOST_VALUES = 2**28


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

    fewest, most = 2, None
    role = "sum"
    Options = Plain

    @staticmethod
    def build(attrs, *shapes):
        need_equal("add", shapes)
        return lambda *xs: reduce(add, xs)


@REGISTRY.register("concat")
class Concat(Op):
    """Tensors one after another along the features or channels."""

    fewest, most = 2, None
    Options = Plain

    @staticmethod
    def build(attrs, *shapes):
        import torch

        if len({(len(s), s[1:]) for s in shapes}) > 1:
            raise GraphError(f"concat needs inputs that differ in channels only, it is given {', '.join(str(list(s)) for s in shapes)}")
        return lambda *xs: torch.cat(xs, 1)


@REGISTRY.register("identity")
class Identity(Op):
    """The tensor as it is."""

    role = "sum"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        return lambda x: x


@REGISTRY.register("flatten")
class Flatten(Op):
    """[channels, …] to a vector, channels slowest."""

    Options = Plain

    @staticmethod
    def build(attrs, shape):
        return lambda x: x.flatten(1)
