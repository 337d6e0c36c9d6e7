"""batchnorm and dropout: ops that train and run differently."""

from __future__ import annotations

import pydantic

from dagrow.ops import REGISTRY, Op, need_rank
from dagrow.registry import Options


@REGISTRY.register("batchnorm")
class BatchNorm(Op):
    """Batch normalisation over features or channels (Ioffe and Szegedy 2015)."""

    role = "norm"

    class Options(Options):
        eps: float = pydantic.Field(1e-5, gt=0, le=1)
        momentum: float = pydantic.Field(0.1, gt=0, le=1)

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        need_rank("batchnorm", shape, (1, 2, 3), "a vector, [channels, length] or [channels, height, width]")
        return (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], eps=attrs.eps, momentum=attrs.momentum)


@REGISTRY.register("dropout")
class Dropout(Op):
    """Zeroes each value with probability `p` while training, rescaling the rest."""

    role = "sum"
    shorthand = "p"

    class Options(Options):
        p: float = pydantic.Field(0.5, ge=0, lt=1)

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        return nn.Dropout(attrs.p)
