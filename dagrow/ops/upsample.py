"""upsample: a sequence or a map made larger."""

from __future__ import annotations

import math
from typing import Literal

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import MOST_VALUES, REGISTRY, Example, Op, Sizes, need_rank, spread
from dagrow.registry import Options


@REGISTRY.register("upsample")
class Upsample(Op):
    """A sequence or a map `scale` times as large, or of a `size`: by the nearest value, or by linear or bilinear interpolation."""

    shorthand = "scale"
    examples = (
        Example({"scale": 2}),
        Example({"scale": (3, 2), "mode": "nearest"}, (2, 3, 4)),
        Example({"scale": 2, "mode": "bilinear"}, (2, 3, 4)),
        Example({"size": (5, 9), "mode": "bilinear", "align_corners": True}, (2, 3, 4)),
        Example({"size": 7, "mode": "linear"}, (2, 4)),
    )

    class Options(Options):
        scale: Sizes | None = None
        size: Sizes | None = None
        mode: Literal["nearest", "linear", "bilinear"] = "nearest"
        align_corners: bool = False

        @pydantic.model_validator(mode="after")
        def _one(self):
            if (self.scale is None) == (self.size is None):
                raise ValueError("say either scale or size")
            if self.align_corners and self.mode == "nearest":
                raise ValueError("align_corners is for linear and bilinear")
            return self

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        need_rank("upsample", shape, (2, 3), "[channels, length] or [channels, height, width]")
        space = len(shape) - 1
        if attrs.mode not in ("nearest", ("linear", "bilinear")[space - 1]):
            raise GraphError(f"upsample: {attrs.mode} is not for {list(shape)}", fix=f"mode: {('linear', 'bilinear')[space - 1]}")
        if attrs.size is not None:
            size, scale = list(spread("upsample", "size", attrs.size, space)), None
            made = size
        else:
            size, scale = None, [float(k) for k in spread("upsample", "scale", attrs.scale, space)]
            made = [n * int(k) for n, k in zip(shape[1:], scale, strict=True)]
        if math.prod([shape[0], *made]) > MOST_VALUES:
            raise GraphError(f"upsample: {list(shape)} would have {math.prod([shape[0], *made]):,} values, more than {MOST_VALUES:,}")
        corners = attrs.align_corners if attrs.mode != "nearest" else None
        return lambda x: functional.interpolate(x, size=size, scale_factor=scale, mode=attrs.mode, align_corners=corners)
