"""embedding, position, class_token, layer_scale: learned tensors that enter token and other networks."""

from __future__ import annotations

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Example, Op, Size, need_rank
from dagrow.registry import Options

MOST_VALUES = 2**28


class Plain(Options):
    """No options."""


@REGISTRY.register("embedding")
class Embedding(Op):
    """A learned vector for each of `vocabulary` numbers: [...] to [..., width]. Its input is cast to whole numbers."""

    shorthand = "width"
    examples = (Example({"vocabulary": 7, "width": 4}, (5,), bare=True, axes={"op": 4}),)

    class Options(Options):
        vocabulary: Size
        width: Size

        @pydantic.model_validator(mode="after")
        def _fits(self):
            if self.vocabulary * self.width > MOST_VALUES:
                raise ValueError(f"a table of {self.vocabulary} times {self.width} values is too large")
            return self

    @staticmethod
    def build(attrs, shape):
        from dagrow.modules import Lookup

        need_rank("embedding", shape, (1, 2), "[tokens] or [height, width] of whole numbers")
        return Lookup(attrs.vocabulary, attrs.width)

    @staticmethod
    def resize(attrs, params, made, shape):
        return attrs.model_copy(update={"width": params["weight"][1]})


@REGISTRY.register("position")
class Position(Op):
    """A learned tensor of the input's shape is added: what tells tokens apart."""

    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from dagrow.modules import Position

        return Position(shape)


@REGISTRY.register("class_token")
class ClassToken(Op):
    """A learned token is put before the others: [tokens, features] to [tokens + 1, features]."""

    Options = Plain
    examples = (Example({}, (5, 4), last=True),)

    @staticmethod
    def build(attrs, shape):
        need_rank("class_token", shape, (2,), "[tokens, features]")
        from dagrow.modules import ClassToken

        return ClassToken(shape[1])


@REGISTRY.register("layer_scale")
class LayerScale(Op):
    """Each unit along `dim` (the batch is 0) times a learned number, at first `start` (Touvron et al. 2021)."""

    examples = (Example({}), Example({"dim": -1, "start": 0.1}, (5, 4), last=True))

    class Options(Options):
        dim: int = pydantic.Field(1, strict=True, ge=-4, le=4)
        start: float = pydantic.Field(1.0, ge=-(2**20), le=2**20)

    @staticmethod
    def build(attrs, shape):
        if attrs.dim == 0 or not -len(shape) <= attrs.dim <= len(shape):
            raise GraphError(f"layer_scale along dimension {attrs.dim} does not fit {list(shape)} (the batch is 0)")
        at = attrs.dim % (len(shape) + 1)
        from dagrow.modules import LayerScale

        return LayerScale(shape[at - 1], len(shape) - at, attrs.start)
