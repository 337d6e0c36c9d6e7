"""attention and softmax: weighted means whose weights depend on the sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Example, Op, Size, Steady, need_rank
from dagrow.registry import Options


@REGISTRY.register("attention")
class Attention(Op):
    """softmax(q kᵀ · scale) v in each of `heads` heads (Vaswani et al. 2017), of (q, k, v), each [tokens, features].

    A head takes a run of features of each. `scale`: if left out 1/√`base`, and `base`, if left out, the head width of queries
    and keys; a resize writes the old width there, so that the function stays. `causal`: a token sees those up to its own place.
    """

    fewest, most = 3, 3
    shorthand = "heads"
    grids: ClassVar[Mapping[str, tuple[int, int]]] = {"heads": (0, -1)}
    examples = (
        Example({"heads": 2}, (5, 4), last=True, axes={"stem": 2, "stem~1": 3, "stem2": 3}),
        Example({"heads": 1, "causal": True}, (5, 4), last=True, axes={"stem": 1, "stem~1": 6, "stem2": 6}),
        Example({"heads": 6, "scale": 0.3}, (5, 4), last=True, axes={"stem": 6, "stem~1": 1, "stem2": 1}),
    )

    class Options(Options):
        heads: Size = 1
        scale: float | None = pydantic.Field(None, gt=0, le=2**20)
        base: Size | None = None
        causal: bool = False

    @staticmethod
    def build(attrs, q, k, v):
        for shape in (q, k, v):
            need_rank("attention", shape, (2,), "[tokens, features] three times: queries, keys and values")
        if q[1] != k[1] or k[0] != v[0] or (attrs.causal and q[0] != k[0]):
            raise GraphError(f"attention: queries {list(q)}, keys {list(k)} and values {list(v)} do not fit each other")
        if q[1] % attrs.heads or v[1] % attrs.heads:
            raise GraphError(f"attention: {attrs.heads} heads must divide the {q[1]} features of queries and keys and the {v[1]} of values")
        from dagrow.modules import Attend

        width = q[1] // attrs.heads
        scale = 1 / math.sqrt(attrs.base or width) if attrs.scale is None else attrs.scale
        return Attend(attrs.heads, width, v[1] // attrs.heads, scale, attrs.causal)

    @staticmethod
    def pinned(attrs, q, k, v):
        return attrs if attrs.scale is not None else attrs.model_copy(update={"base": attrs.base or q[1] // attrs.heads})

    @staticmethod
    def resize(attrs, params, made, q, k, v):
        return attrs.model_copy(update={"base": None}) if attrs.base == q[1] // attrs.heads else attrs


@REGISTRY.register("softmax")
class Softmax(Op):
    """exp(x) over its sum along `dim` (the batch is 0): positive, adding up to one."""

    examples = (Example({}), Example({"dim": -1}, (3, 9)), Example({"dim": -1}, (5, 4), last=True))

    class Options(Options):
        dim: int = pydantic.Field(1, strict=True, ge=-4, le=4)

    @staticmethod
    def build(attrs, shape):
        if attrs.dim == 0 or not -len(shape) <= attrs.dim <= len(shape):
            raise GraphError(f"softmax along dimension {attrs.dim} does not fit {list(shape)} (the batch is 0)")
        return lambda x: x.softmax(attrs.dim)

    @staticmethod
    def steady(attrs, grown, old, new):
        return Steady("copy", grown)
