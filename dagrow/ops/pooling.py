"""Pooling over space."""

from __future__ import annotations

import math

from dagrow.errors import GraphError
from dagrow.ops import MOST_VALUES, REGISTRY, Example, Op, Paddings, Sizes, need_rank, spread
from dagrow.registry import Options

MAPS = "[channels, length] or [channels, height, width]"


class PoolOptions(Options):
    """stride: None, as far as the kernel reaches. ceil: a last window may reach over the edge."""

    kernel: Sizes = 2
    stride: Sizes | None = None
    padding: Paddings = 0
    ceil: bool = False


class MaxOptions(PoolOptions):
    dilation: Sizes = 1


class MeanOptions(PoolOptions):
    count_include_pad: bool = True


class Pool(Op):
    shorthand = "kernel"
    Options = PoolOptions

    @classmethod
    def build(cls, attrs, shape):
        need_rank(cls.name, shape, (2, 3), MAPS)
        space = len(shape) - 1
        kernel, padding = (spread(cls.name, k, getattr(attrs, k), space) for k in ("kernel", "padding"))
        dilation = spread(cls.name, "dilation", getattr(attrs, "dilation", 1), space)
        stride = kernel if attrs.stride is None else spread(cls.name, "stride", attrs.stride, space)
        for size, k, p, d in zip(shape[1:], kernel, padding, dilation, strict=True):
            if size + 2 * p < d * (k - 1) + 1:
                raise GraphError(f"{cls.name}: a kernel of {attrs.kernel} does not fit {list(shape)}")
            if p > k // 2:
                raise GraphError(f"{cls.name}: padding is half the kernel at most, not {attrs.padding}")
        return cls.module(attrs, space, kernel, stride, padding)


@REGISTRY.register("max_pool")
class MaxPool(Pool):
    """The largest value in each window."""

    nonnegative = "inherited"
    Options = MaxOptions
    examples = (
        Example({}),
        Example({"kernel": (3, 2), "stride": (1, 2), "padding": (1, 0), "ceil": True}, (2, 7, 7)),
        Example({"kernel": 3, "dilation": 2, "stride": 1, "padding": 1}, (3, 9)),
    )

    @staticmethod
    def module(attrs, space, kernel, stride, padding):
        from torch import nn

        return (nn.MaxPool1d, nn.MaxPool2d)[space - 1](kernel, stride, padding, attrs.dilation, ceil_mode=attrs.ceil)


@REGISTRY.register("avg_pool")
class AvgPool(Pool):
    """The mean of each window; zeros around it count where `count_include_pad`."""

    nonnegative = "inherited"
    Options = MeanOptions
    examples = (
        Example({}),
        Example({"kernel": 3, "stride": 2, "padding": 1, "ceil": True, "count_include_pad": False}, (3, 8)),
        Example({"kernel": (2, 3), "padding": (0, 1)}, (2, 7, 7)),
    )

    @staticmethod
    def module(attrs, space, kernel, stride, padding):
        from torch import nn

        return (nn.AvgPool1d, nn.AvgPool2d)[space - 1](kernel, stride, padding, attrs.ceil, attrs.count_include_pad)


@REGISTRY.register("adaptive_avg_pool")
class AdaptiveAvgPool(Op):
    """The means of as many windows as `size` says, however large the input."""

    shorthand = "size"
    examples = (Example({"size": 1}, (2, 7, 7)), Example({"size": (3, 2)}, (2, 7, 7)), Example({"size": 4}, (3, 9)))

    class Options(Options):
        size: Sizes

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        need_rank("adaptive_avg_pool", shape, (2, 3), MAPS)
        size = list(spread("adaptive_avg_pool", "size", attrs.size, len(shape) - 1))
        if math.prod([shape[0], *size]) > MOST_VALUES:
            raise GraphError(f"adaptive_avg_pool: {[shape[0], *size]} has more than {MOST_VALUES:,} values")
        if len(size) == 1:
            return lambda x: functional.adaptive_avg_pool1d(x, size)
        return lambda x: functional.adaptive_avg_pool2d(x, size)


class GlobalOptions(Options):
    """No options."""


@REGISTRY.register("global_avg_pool")
class GlobalAvgPool(Op):
    """The mean over all positions: [channels, …] to [channels]."""

    nonnegative = "inherited"
    Options = GlobalOptions

    @staticmethod
    def build(attrs, shape):
        need_rank("global_avg_pool", shape, (2, 3), MAPS)
        return lambda x: x.flatten(2).mean(2)


@REGISTRY.register("global_max_pool")
class GlobalMaxPool(Op):
    """The largest value over all positions: [channels, …] to [channels]."""

    nonnegative = "inherited"
    Options = GlobalOptions

    @staticmethod
    def build(attrs, shape):
        need_rank("global_max_pool", shape, (2, 3), MAPS)
        return lambda x: x.flatten(2).amax(2)
