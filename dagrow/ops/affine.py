"""linear, token_linear, conv1d, conv2d: a weight times the input, plus a bias."""

from __future__ import annotations

from typing import Literal

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Example, Op, Paddings, Size, Sizes, need_rank, spread
from dagrow.registry import Options

MAP_TO_VECTOR = "put global_avg_pool or flatten between them"


@REGISTRY.register("linear")
class Linear(Op):
    """y = W x + b on a vector; `width` units. transposed: the weight is stored as [in, out], to be tied to that of a linear the other way."""

    role = "affine"
    shorthand = "width"
    examples = tuple(Example(attrs, (5,), axes={"stem": 6, "op": attrs["width"]}) for attrs in ({"width": 4}, {"width": 4, "bias": False}, {"width": 1}))

    class Options(Options):
        width: Size
        bias: bool = True
        transposed: bool = False

    @classmethod
    def variant(cls, attrs):
        return Transposed if attrs.transposed else cls

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        need_rank("linear", shape, (1,), "a vector", MAP_TO_VECTOR)
        return nn.Linear(shape[0], attrs.width, bias=attrs.bias)

    @staticmethod
    def resize(attrs, params, made, shape):
        return attrs.model_copy(update={"width": params["weight"][0]})


class Transposed(Linear):
    """Not affine in the sense of scoring: its units are the columns of its weight, and as a rule another node's too."""

    role = "other"

    @staticmethod
    def build(attrs, shape):
        from dagrow.modules import TransposedLinear

        need_rank("linear", shape, (1,), "a vector", MAP_TO_VECTOR)
        return TransposedLinear(shape[0], attrs.width, attrs.bias)

    @staticmethod
    def resize(attrs, params, made, shape):
        return attrs.model_copy(update={"width": params["weight"][1]})


@REGISTRY.register("token_linear")
class TokenLinear(Op):
    """The same linear map at every token: [..., features] to [..., width]."""

    role = "affine"
    channels = -1
    shorthand = "width"
    examples = (
        Example({"width": 4}, (3, 5), last=True, axes={"stem": 6, "op": 4}),
        Example({"width": 1, "bias": False}, (2, 3, 5), last=True, axes={"stem": 6, "op": 1}),
    )

    class Options(Options):
        width: Size
        bias: bool = True

    resize = Linear.resize

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        need_rank("token_linear", shape, (2, 3), "[tokens, features] or [height, width, features]", "for a vector use linear")
        return nn.Linear(shape[-1], attrs.width, bias=attrs.bias)


class ConvOptions(Options):
    channels: Size
    kernel: Sizes = 3
    stride: Sizes = 1
    padding: Literal["same"] | Paddings = "same"
    groups: Size = 1
    bias: bool = True
    dilation: Sizes = 1


class Conv(Op):
    role = "affine"
    shorthand = "channels"
    dimensions = 0

    @classmethod
    def build(cls, attrs, shape):
        from torch import nn

        space = cls.dimensions
        need_rank(cls.name, shape, (space + 1,), f"[channels, {', '.join('hw'[-space:])}]")
        kernel, stride, dilation = (spread(cls.name, k, getattr(attrs, k), space) for k in ("kernel", "stride", "dilation"))
        if attrs.padding == "same" and not all(k % 2 for k in kernel):
            raise GraphError(f"{cls.name}: padding 'same' needs an odd kernel, not {attrs.kernel}", fix="set padding to a number")
        if shape[0] % attrs.groups or attrs.channels % attrs.groups:
            raise GraphError(
                f"{cls.name}: {attrs.groups} groups must divide the input's {shape[0]} channels and the {attrs.channels} channels made"
            )
        # 'same' is k // 2 on both sides: it keeps the size at stride 1 and is what strided conv nets mean by it.
        same = tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True))
        padding = same if attrs.padding == "same" else spread(cls.name, "padding", attrs.padding, space)
        for size, k, p, d in zip(shape[1:], kernel, padding, dilation, strict=True):
            if size + 2 * p < d * (k - 1) + 1:
                spaced = f", dilated by {attrs.dilation}," if attrs.dilation != 1 else ""
                raise GraphError(f"{cls.name}: a kernel of {attrs.kernel}{spaced} does not fit {list(shape)} with padding {p}")
        module = (nn.Conv1d, nn.Conv2d)[space - 1]
        return module(shape[0], attrs.channels, kernel, stride, padding, dilation, attrs.groups, bias=attrs.bias)

    @staticmethod
    def resize(attrs, params, made, shape):
        out, fan_in, *_ = params["weight"]
        return attrs.model_copy(update={"channels": out, "groups": shape[0] // fan_in})


@REGISTRY.register("conv1d")
class Conv1d(Conv):
    """Convolution over [channels, length]."""

    Options = ConvOptions
    dimensions = 1
    examples = (
        Example({"channels": 4}, (3, 9), axes={"stem": 6, "op": 4}),
        Example({"channels": 6, "groups": 6}, (3, 9)),
        Example({"channels": 12, "groups": 6}, (3, 9), axes={"stem": 6, "op": 2}),
        # Two groups: channels of the stem within a group, the groups, and channels of the op within a group.
        Example({"channels": 8, "groups": 2, "bias": False}, (3, 9), axes={"stem": 3, "stem~1": 2, "op": 4}),
        Example({"channels": 4, "dilation": 2, "stride": 2}, (3, 9), axes={"stem": 6, "op": 4}),
    )


@REGISTRY.register("conv2d")
class Conv2d(Conv):
    """Convolution over [channels, height, width]; `groups` equal to the input's channels makes it depthwise."""

    Options = ConvOptions
    dimensions = 2
    examples = (
        Example({"channels": 4}, (2, 7, 7), axes={"stem": 6, "op": 4}),
        Example({"channels": 4, "stride": 2, "padding": 0, "kernel": 2, "bias": False}, (2, 7, 7), axes={"stem": 6, "op": 4}),
        Example({"channels": 6, "groups": 6}, (2, 7, 7)),
        Example({"channels": 12, "groups": 6, "kernel": 1}, (2, 7, 7), axes={"stem": 6, "op": 2}),
        Example({"channels": 4, "groups": 2, "stride": 2}, (2, 7, 7), axes={"stem": 3, "stem~1": 2, "op": 2}),
        Example({"channels": 1}, (2, 7, 7), axes={"stem": 6, "op": 1}),
        Example({"channels": 4, "kernel": (1, 5), "stride": (2, 1), "dilation": (1, 2)}, (2, 7, 7), axes={"stem": 6, "op": 4}),
        Example({"channels": 6, "groups": 6, "kernel": (3, 2), "padding": (2, 1)}, (2, 5, 4)),
    )
