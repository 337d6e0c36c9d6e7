"""Pooling over space."""

from __future__ import annotations

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Op, Size, need_rank
from dagrow.registry import Options


class PoolOptions(Options):
    kernel: Size = 2
    stride: Size | None = None


class Pool(Op):
    shorthand = "kernel"
    Options = PoolOptions

    @classmethod
    def build(cls, attrs, shape):
        need_rank(cls.name, shape, (2, 3), "[channels, length] or [channels, height, width]")
        if min(shape[1:]) < attrs.kernel:
            raise GraphError(f"{cls.name}: a kernel of {attrs.kernel} does not fit {list(shape)}")
        return cls.module(len(shape) - 1)(attrs.kernel, attrs.stride or attrs.kernel)


@REGISTRY.register("max_pool")
class MaxPool(Pool):
    """The largest value in each window."""

    @staticmethod
    def module(space):
        from torch import nn

        return (nn.MaxPool1d, nn.MaxPool2d)[space - 1]


@REGISTRY.register("avg_pool")
class AvgPool(Pool):
    """The mean of each window."""

    @staticmethod
    def module(space):
        from torch import nn

        return (nn.AvgPool1d, nn.AvgPool2d)[space - 1]


class GlobalOptions(Options):
    """No options."""


@REGISTRY.register("global_avg_pool")
class GlobalAvgPool(Op):
    """The mean over all positions: [channels, …] to [channels]."""

    Options = GlobalOptions

    @staticmethod
    def build(attrs, shape):
        need_rank("global_avg_pool", shape, (2, 3), "[channels, length] or [channels, height, width]")
        return lambda x: x.flatten(2).mean(2)


@REGISTRY.register("global_max_pool")
class GlobalMaxPool(Op):
    """The largest value over all positions: [channels, …] to [channels]."""

    Options = GlobalOptions

    @staticmethod
    def build(attrs, shape):
        need_rank("global_max_pool", shape, (2, 3), "[channels, length] or [channels, height, width]")
        return lambda x: x.flatten(2).amax(2)
