"""layernorm, groupnorm, instancenorm: normalisation of each sample by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import REGISTRY, Example, Op, Size, Steady, need_rank
from dagrow.registry import Options

Eps = pydantic.Field(1e-5, gt=0, le=1)


@REGISTRY.register("layernorm")
class LayerNorm(Op):
    """Layer normalisation over the last `dims` dimensions (Ba, Kiros and Hinton 2016)."""

    examples = (
        Example({}), Example({"affine": False}), Example({"bias": False}, (5, 4), last=True), Example({"dims": 2}, (2, 7, 7)),
        Example({}, (5, 4), last=True), Example({"eps": 1e-3}, (3, 3, 4), last=True),
    )  # fmt: skip

    class Options(Options):
        dims: int = pydantic.Field(1, strict=True, ge=1, le=3)
        eps: float = Eps
        affine: bool = True
        bias: bool = True

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        if len(shape) < attrs.dims:
            raise GraphError(f"layernorm over {attrs.dims} dimensions does not fit {list(shape)}")
        return nn.LayerNorm(shape[-attrs.dims :], attrs.eps, attrs.affine, attrs.bias)

    @staticmethod
    def steady(attrs, grown, old, new):
        """Units at the mean of the others are 0 behind it, and leave the sum of squares as it is, over more units."""
        if attrs.dims != 1 or not attrs.affine:
            return None
        less = old[-1] / new[-1]
        return Steady("mean", grown.model_copy(update={"eps": grown.eps * less}), {"weight": less**0.5}, ("bias",))


@REGISTRY.register("groupnorm")
class GroupNorm(Op):
    """Group normalisation: each of `groups` runs of channels with all its positions (Wu and He 2018)."""

    shorthand = "groups"
    grids: ClassVar[Mapping[str, tuple[int, int]]] = {"groups": (0, 1)}
    examples = (
        # Whole groups come and go by themselves, channels within a group mix.
        Example({"groups": 3}, (3, 9), axes={"stem": 3, "stem~1": 2}), Example({"groups": 2, "affine": False}, (2, 7, 7), axes={"stem": 2, "stem~1": 3}),
        Example({"groups": 1}, (3, 9), axes={"stem": 1, "stem~1": 6}), Example({"groups": 6}, (3, 9)),
    )  # fmt: skip

    class Options(Options):
        groups: Size
        eps: float = Eps
        affine: bool = True

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        need_rank("groupnorm", shape, (1, 2, 3), "a vector, [channels, length] or [channels, height, width]")
        if shape[0] % attrs.groups:
            raise GraphError(f"groupnorm: {attrs.groups} groups must divide the {shape[0]} channels")
        if math.prod(shape) == attrs.groups:
            raise GraphError(f"groupnorm: {attrs.groups} groups of {list(shape)} have one value each, and nothing to normalise it by")
        return nn.GroupNorm(attrs.groups, shape[0], attrs.eps, attrs.affine)


@REGISTRY.register("instancenorm")
class InstanceNorm(Op):
    """Each channel over its positions (Ulyanov, Vedaldi and Lempitsky 2016), with the sample's own statistics always."""

    examples = (Example({}), Example({"affine": False}, (2, 7, 7)))

    class Options(Options):
        eps: float = Eps
        affine: bool = True

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        need_rank("instancenorm", shape, (2, 3), "[channels, length] or [channels, height, width]")
        return (nn.InstanceNorm1d, nn.InstanceNorm2d)[len(shape) - 2](shape[0], attrs.eps, affine=attrs.affine)
