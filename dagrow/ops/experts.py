"""moe: a mixture of experts."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Example, Op, Size, Steady, need_rank
from dagrow.registry import Options

# Of all experts together; which expert each belongs to is followed one by one.
MOST_UNITS = 2**16


@REGISTRY.register("moe")
class Experts(Op):
    """A router chooses the `top` of `experts` two-layer networks for each sample or token, and averages what they make.

    The weights are the softmax of the chosen ones' logits (Shazeer et al. 2017; Fedus, Zoph and Shazeer 2022).
    [..., features] to [..., width] (if left out as many as the input's and `more`, which resizes write) over `hidden` units of
    each expert, with the activation `act` (a registered one). Equal logits at the limit are all chosen, as are all experts where there are not more
    than `top`; a single chosen one would have the weight 1 whatever its logit, and the router nothing to learn from. Here
    every expert is run; MACs are those of the chosen ones, which is what a deployment that runs only them needs.
    """

    examples = (
        Example({"experts": 3, "hidden": 4}, (5,), axes={"stem": 6, "op": 3, "op~1": 4, "op~2": 6}),
        Example({"experts": 2, "hidden": 3, "top": 3, "width": 5}, (5, 4), last=True, axes={"stem": 6, "op": 2, "op~1": 3, "op~2": 5}),
        Example({"experts": 2, "hidden": 2, "more": -2}, (5,), axes={"stem": 6, "op": 2, "op~1": 2, "op~2": 4}),
        Example({"experts": 3, "hidden": 1, "act": "tanh"}, (5, 4), last=True, axes={"stem": 6, "op": 3, "op~1": 1, "op~2": 6}),
    )

    class Options(Options):
        experts: Size
        hidden: Size
        top: int = pydantic.Field(2, strict=True, ge=2, le=2**20)
        width: Size | None = None
        more: int = pydantic.Field(0, strict=True, ge=-(2**20), le=2**20)
        act: Annotated[str, pydantic.Field(max_length=64)] = "gelu"

        @pydantic.model_validator(mode="after")
        def _fits(self):
            if self.experts * self.hidden > MOST_UNITS:
                raise ValueError(f"{self.experts} experts of {self.hidden} units have more than {MOST_UNITS:,}")
            if self.width is not None and self.more:
                raise ValueError("more is for where width is left out")
            return self

    @staticmethod
    def build(attrs, shape):
        need_rank("moe", shape, (1, 2, 3), "a vector, or features as the last dimension")
        if attrs.act not in REGISTRY or REGISTRY.get(attrs.act).role != "activation":
            raise GraphError(f"moe: {attrs.act!r} is no activation", fix="dagrow ops lists them")
        act = REGISTRY.get(attrs.act)
        width = shape[-1] + attrs.more if attrs.width is None else attrs.width
        if width < 1:
            raise GraphError(f"moe: {attrs.more} units more than {shape[-1]} are none")
        from dagrow.modules import Mixture

        return Mixture(shape[-1], attrs.experts, attrs.hidden, width, attrs.top, act.build(act.Options(), (attrs.hidden,)))

    @staticmethod
    def resize(attrs, params, made, shape):
        experts, hidden, width = params["down"]
        width = {"width": width} if attrs.width is not None else {"more": width - shape[-1]}
        return attrs.model_copy(update={"experts": experts, "hidden": hidden, **width})

    @staticmethod
    def macs(attrs, counted, shape):
        routing = math.prod(shape) * attrs.experts
        return routing + (counted - routing) * min(attrs.top, attrs.experts) // attrs.experts

    @staticmethod
    def steady(attrs, grown, old, new):
        """A clone shares what one had; where only some experts are chosen, clones would take each other's places."""
        if attrs.top < attrs.experts or grown.experts == attrs.experts:
            return None
        return Steady("copy", grown.model_copy(update={"top": max(attrs.top, grown.experts)}), logits=("router.bias",))
