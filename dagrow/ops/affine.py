"""linear, token_linear, conv1d, conv2d: a weight times the input, plus a bias."""

from __future__ import annotations

from typing import Literal

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Op, Size, need_rank
from dagrow.registry import Options

MAP_TO_VECTOR = "put global_avg_pool or flatten between them"


@REGISTRY.register("linear")
class Linear(Op):
    """y = W x + b on a vector; `width` units. transposed: the weight is stored as [in, out], to be tied to that of a linear the other way."""

    role = "affine"
    shorthand = "width"

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
    kernel: Size = 3
    stride: Size = 1
    padding: Literal["same"] | int = "same"
    groups: Size = 1
    bias: bool = True

    @pydantic.field_validator("padding")
    @classmethod
    def _not_negative(cls, value):
        if isinstance(value, int) and not 0 <= value <= 2**10:
            raise ValueError("padding is 'same' or a number from 0 to 1024")
        return value


class Conv(Op):
    role = "affine"
    shorthand = "channels"
    dimensions = 0

    @classmethod
    def build(cls, attrs, shape):
        from torch import nn

        space = cls.dimensions
        need_rank(cls.name, shape, (space + 1,), f"[channels, {', '.join('hw'[-space:])}]")
        if attrs.padding == "same" and attrs.kernel % 2 == 0:
            raise GraphError(f"{cls.name}: padding 'same' needs an odd kernel, not {attrs.kernel}", fix="set padding to a number")
        if shape[0] % attrs.groups or attrs.channels % attrs.groups:
            raise GraphError(
                f"{cls.name}: {attrs.groups} groups must divide the input's {shape[0]} channels and the {attrs.channels} channels made"
            )
        # 'same' is k // 2 on both sides: it keeps the size at stride 1 and is what strided conv nets mean by it.
        padding = attrs.kernel // 2 if attrs.padding == "same" else attrs.padding
        for size in shape[1:]:
            if size + 2 * padding < attrs.kernel:
                raise GraphError(f"{cls.name}: a kernel of {attrs.kernel} does not fit {list(shape)} with padding {padding}")
        module = (nn.Conv1d, nn.Conv2d)[space - 1]
        return module(shape[0], attrs.channels, attrs.kernel, attrs.stride, padding, groups=attrs.groups, bias=attrs.bias)

    @staticmethod
    def resize(attrs, params, made, shape):
        out, fan_in, *_ = params["weight"]
        return attrs.model_copy(update={"channels": out, "groups": shape[0] // fan_in})


@REGISTRY.register("conv1d")
class Conv1d(Conv):
    """Convolution over [channels, length]."""

    Options = ConvOptions
    dimensions = 1


@REGISTRY.register("conv2d")
class Conv2d(Conv):
    """Convolution over [channels, height, width]; `groups` equal to the input's channels makes it depthwise."""

    Options = ConvOptions
    dimensions = 2
