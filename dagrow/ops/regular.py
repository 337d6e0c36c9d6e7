"""batchnorm and dropout: ops that train and run differently."""

from __future__ import annotations

from typing import Annotated

import pydantic

from dagrow.ops import REGISTRY, Example, Op, need_rank
from dagrow.registry import Options


@REGISTRY.register("batchnorm")
class BatchNorm(Op):
    """Batch normalisation over features or channels (Ioffe and Szegedy 2015).

    momentum: None, statistics are the mean of all batches. affine: a scale and a shift are learned.
    """

    role = "norm"
    examples = (Example({}), Example({"affine": False, "momentum": None}))

    class Options(Options):
        eps: float = pydantic.Field(1e-5, gt=0, le=1)
        momentum: Annotated[float, pydantic.Field(gt=0, le=1)] | None = 0.1
        affine: bool = True

    @classmethod
    def variant(cls, attrs):
        return cls if attrs.affine and attrs.momentum is not None else Unusual

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        need_rank("batchnorm", shape, (1, 2, 3), "a vector, [channels, length] or [channels, height, width]")
        kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
        return kind(shape[0], eps=attrs.eps, momentum=attrs.momentum, affine=attrs.affine)


class Unusual(BatchNorm):
    """Has no scale and shift, or statistics of all batches there were: no norm that scoring knows."""

    role = "other"


@REGISTRY.register("dropout")
class Dropout(Op):
    """Zeroes each value, or whole `channels`, with probability `p` while training, rescaling the rest."""

    nonnegative = "inherited"
    role = "sum"
    shorthand = "p"

    class Options(Options):
        p: float = pydantic.Field(0.5, ge=0, lt=1)
        channels: bool = False

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        if not attrs.channels:
            return nn.Dropout(attrs.p)
        need_rank("dropout of channels", shape, (2, 3), "[channels, length] or [channels, height, width]")
        return (nn.Dropout1d, nn.Dropout2d)[len(shape) - 2](attrs.p)
