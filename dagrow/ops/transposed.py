"""conv_transpose1d, conv_transpose2d: convolutions that make maps larger."""

from __future__ import annotations

import math

from dagrow.errors import GraphError
from dagrow.ops import MOST_VALUES, REGISTRY, Example, Op, Paddings, Size, Sizes, need_rank, spread
from dagrow.registry import Options


class TransposedOptions(Options):
    channels: Size
    kernel: Sizes = 2
    stride: Sizes = 2
    padding: Paddings = 0
    output_padding: Paddings = 0
    dilation: Sizes = 1
    groups: Size = 1
    bias: bool = True


class Transposed(Op):
    # Not affine to scoring: a weight is [in, out / groups, kernel], and an output sees a part of the kernel only.
    shorthand = "channels"
    Options = TransposedOptions
    dimensions = 0

    @classmethod
    def build(cls, attrs, shape):
        from torch import nn

        space = cls.dimensions
        need_rank(cls.name, shape, (space + 1,), f"[channels, {', '.join('hw'[-space:])}]")
        if shape[0] % attrs.groups or attrs.channels % attrs.groups:
            raise GraphError(f"{cls.name}: {attrs.groups} groups must divide the input's {shape[0]} channels and the {attrs.channels} channels made")
        given = {k: spread(cls.name, k, getattr(attrs, k), space) for k in ("kernel", "stride", "padding", "output_padding", "dilation")}
        kernel, stride, padding, extra, dilation = given.values()
        made = []
        for n, k, s, p, e, d in zip(shape[1:], kernel, stride, padding, extra, dilation, strict=True):
            if e >= max(s, d):
                raise GraphError(f"{cls.name}: output_padding is below stride or dilation, not {attrs.output_padding}")
            made.append((n - 1) * s - 2 * p + d * (k - 1) + e + 1)
        if min(made) < 1:
            raise GraphError(f"{cls.name}: padding {attrs.padding} leaves nothing of {list(shape)}")
        if math.prod([attrs.channels, *made]) > MOST_VALUES:
            raise GraphError(f"{cls.name}: {[attrs.channels, *made]} has more than {MOST_VALUES:,} values")
        module = (nn.ConvTranspose1d, nn.ConvTranspose2d)[space - 1]
        return module(shape[0], attrs.channels, kernel, stride, padding, extra, groups=attrs.groups, bias=attrs.bias, dilation=dilation)

    @staticmethod
    def resize(attrs, params, made, shape):
        return attrs.model_copy(update={"channels": made[0], "groups": made[0] // params["weight"][1]})


@REGISTRY.register("conv_transpose1d")
class Transposed1d(Transposed):
    """Transposed convolution over [channels, length]: by default twice as long."""

    dimensions = 1
    examples = (
        Example({"channels": 4}, (3, 5), axes={"stem": 6, "op": 4}),
        Example({"channels": 4, "kernel": 3, "stride": 3, "padding": 1, "output_padding": 2, "bias": False}, (3, 5), axes={"stem": 6, "op": 4}),
        Example({"channels": 4, "groups": 2}, (3, 5), axes={"stem": 2, "stem~1": 3, "op": 2}),
        Example({"channels": 6, "groups": 6}, (3, 5), axes={"stem": 6, "op": 1}),
    )


@REGISTRY.register("conv_transpose2d")
class Transposed2d(Transposed):
    """Transposed convolution over [channels, height, width]: by default twice as high and wide."""

    dimensions = 2
    examples = (
        Example({"channels": 4}, (2, 3, 4), axes={"stem": 6, "op": 4}),
        Example({"channels": 3, "kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0)}, (2, 3, 4), axes={"stem": 6, "op": 3}),
        Example({"channels": 4, "dilation": 2, "stride": 1}, (2, 3, 4), axes={"stem": 6, "op": 4}),
    )
