"""mul, sub, scale, matmul: tensors multiplied and subtracted."""

from __future__ import annotations

from functools import reduce
from operator import mul

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Example, Op, Shape
from dagrow.registry import Options


class Plain(Options):
    """No options."""


def need_broadcast(op: str, shapes: tuple[Shape, ...]) -> None:
    """Equally many dimensions, each of one size or of 1."""
    if len({len(s) for s in shapes}) > 1 or any(len({*sizes} - {1}) > 1 for sizes in zip(*shapes, strict=True)):
        given = ", ".join(str(list(s)) for s in shapes)
        fix = "reshape the smaller to [channels, 1, 1]" if len({len(s) for s in shapes}) > 1 else None
        raise GraphError(f"{op} needs inputs of one shape, up to dimensions of size 1, it is given {given}", fix=fix)


@REGISTRY.register("mul")
class Mul(Op):
    """The product of two or more tensors; dimensions of size 1 spread, so that [channels, 1, 1] gates a map (Hu et al. 2018)."""

    fewest, most = 2, None
    Options = Plain

    @staticmethod
    def build(attrs, *shapes):
        need_broadcast("mul", shapes)
        return lambda *xs: reduce(mul, xs)


@REGISTRY.register("sub")
class Sub(Op):
    """The first tensor less the second; dimensions of size 1 spread."""

    fewest, most = 2, 2
    Options = Plain

    @staticmethod
    def build(attrs, *shapes):
        need_broadcast("sub", shapes)
        return lambda x, y: x - y


@REGISTRY.register("scale")
class Scale(Op):
    """x times the constant `by`."""

    shorthand = "by"
    examples = (Example({"by": 0.5}),)

    class Options(Options):
        by: float = pydantic.Field(ge=-1e6, le=1e6)

    @staticmethod
    def build(attrs, shape):
        return lambda x: x * attrs.by


@REGISTRY.register("matmul")
class Matmul(Op):
    """The matrix product of [..., n, k] and [..., k, m]: [..., n, m]."""

    fewest, most = 2, 2
    Options = Plain
    # As many tokens as features; the columns of the second are units, those of the first meet its tokens.
    examples = (Example({}, (6, 5), last=True, axes={"stem1": 6}),)

    @staticmethod
    def build(attrs, *shapes):
        import torch

        x, y = shapes
        if len(x) < 2 or len(x) != len(y) or x[:-2] != y[:-2] or x[-1] != y[-2]:
            raise GraphError(f"matmul needs [..., n, k] and [..., k, m], it is given {list(x)} and {list(y)}")
        return torch.matmul
