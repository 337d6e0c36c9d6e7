"""reshape, permute, part, slice, pad, mean: the same values laid out otherwise, fewer or more of them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import MOST, REGISTRY, Dim, Example, Op, dimension
from dagrow.registry import Options

Extent = Annotated[int, pydantic.Field(strict=True, ge=-1, le=MOST)]
Place = Annotated[int, pydantic.Field(strict=True, ge=-MOST, le=MOST)]
Amount = Annotated[int, pydantic.Field(strict=True, ge=-(2**10), le=2**10)]
MOST_DIMS = 8


@REGISTRY.register("reshape")
class Reshape(Op):
    """The values in their order under another `shape`, which leaves out the batch; one size may be -1: what is left."""

    nonnegative = "inherited"
    examples = (
        Example({"shape": (2, 3)}, (5,), axes={"stem": 2, "stem~1": 3}),
        Example({"shape": (6, 3, 3)}, (3, 9)),
        Example({"shape": (-1, 6)}, (3, 9), last=True),
        Example({"shape": (-1, 49)}, (2, 7, 7)),
        Example({"shape": (7, 7, 3, 2)}, (7, 7, 2), last=True, axes={"stem": 3, "stem~1": 2}),
    )

    class Options(Options):
        shape: tuple[Extent, ...]

        @pydantic.field_validator("shape")
        @classmethod
        def _possible(cls, value):
            if not 1 <= len(value) <= MOST_DIMS or 0 in value or value.count(-1) > 1:
                raise ValueError(f"1 to {MOST_DIMS} sizes, each at least 1, one of them -1 at most")
            return value

    @staticmethod
    def build(attrs, shape):
        total, known = math.prod(shape), math.prod(n for n in attrs.shape if n != -1)
        if total % known or (-1 not in attrs.shape and total != known):
            raise GraphError(f"reshape: {list(shape)} has {total} values, they do not fit {list(attrs.shape)}")
        wanted = [n if n != -1 else total // known for n in attrs.shape]
        return lambda x: x.reshape([-1, *wanted])

    @staticmethod
    def resize(attrs, params, made, shape):
        return attrs.model_copy(update={"shape": tuple(-1 if n == -1 else m for n, m in zip(attrs.shape, made, strict=True))})


@REGISTRY.register("permute")
class Permute(Op):
    """The dimensions in another `order`, the batch first: [0, 2, 1] swaps the two of a sequence."""

    nonnegative = "inherited"
    shorthand = "order"
    examples = (Example({"order": (0, 2, 1)}, (3, 9)), Example({"order": (0, 2, 3, 1)}, (2, 7, 5)), Example({"order": (0, -1, 1, 2)}, (7, 5, 2), last=True))

    class Options(Options):
        order: tuple[Dim, ...]

        @pydantic.field_validator("order")
        @classmethod
        def _all(cls, value):
            made = tuple(d % len(value) for d in value) if value else ()
            if not 2 <= len(made) <= MOST_DIMS + 1 or made[0] or sorted(made) != list(range(len(made))):
                raise ValueError("each dimension once, the batch's 0 first, as in [0, 2, 1]")
            return made

    @staticmethod
    def build(attrs, shape):
        if len(attrs.order) != len(shape) + 1:
            raise GraphError(f"permute: {list(attrs.order)} orders {len(attrs.order)} dimensions, the batch among them; the input is {list(shape)}")
        return lambda x: x.permute(attrs.order)


@REGISTRY.register("part")
class Part(Op):
    """One of `of` equal parts along dimension `dim`: number `index`, from 0. What chunk gives."""

    examples = (
        # The parts that nobody reads, and units within a part.
        Example({"of": 2, "index": 1}, axes={"stem": 1, "stem~1": 3}),
        Example({"of": 3, "index": 0, "dim": -1}, (3, 9)),
        Example({"of": 3, "index": 0, "dim": -1}, (3, 9), last=True, axes={"stem": 2, "stem~1": 2}),
    )

    class Options(Options):
        of: Annotated[int, pydantic.Field(strict=True, ge=1, le=MOST)]
        index: Annotated[int, pydantic.Field(strict=True, ge=0, lt=MOST)] = 0
        dim: Dim = 1

        @pydantic.model_validator(mode="after")
        def _inside(self):
            if self.index >= self.of:
                raise ValueError(f"parts are numbered 0 to {self.of - 1}")
            return self

    @staticmethod
    def build(attrs, shape):
        dim = dimension("part", attrs.dim, shape)
        if shape[dim - 1] % attrs.of:
            raise GraphError(f"part: dimension {dim} of {list(shape)} has no {attrs.of} equal parts")
        # That the parts are equal must be in what is traced: chunk does not say so.
        return lambda x: x.unflatten(dim, [attrs.of, -1]).select(dim, attrs.index)

    @staticmethod
    def resize(attrs, params, made, shape):
        dim = dimension("part", attrs.dim, shape) - 1
        of = shape[dim] // made[dim] if made[dim] else attrs.of
        # Which of the parts that nobody reads went is not known, and makes no difference: they are told apart by their labels.
        return attrs.model_copy(update={"of": of, "index": min(attrs.index, max(of - 1, 0))})


@REGISTRY.register("slice")
class Slice(Op):
    """The indices from `start` to before `stop` along dimension `dim`; negative ones count from the end."""

    examples = (Example({"start": 1, "dim": 2}, (3, 9)), Example({"stop": -2, "dim": -1}, (2, 7, 5)), Example({"start": 1, "stop": 3}, (4, 5), last=True))

    class Options(Options):
        start: Place = 0
        stop: Place | None = None
        dim: Dim = 1

    @staticmethod
    def build(attrs, shape):
        dim = dimension("slice", attrs.dim, shape)
        size = shape[dim - 1]
        start, stop = attrs.start, size if attrs.stop is None else attrs.stop
        start, stop = start + size if start < 0 else start, stop + size if stop < 0 else stop
        if not 0 <= start < stop <= size:
            raise GraphError(f"slice: from {attrs.start} to {attrs.stop} is nothing, or outside dimension {dim} of {list(shape)}")
        return lambda x: x.narrow(dim, start, stop - start)

    @staticmethod
    def resize(attrs, params, made, shape):
        """A head or a tail keeps its length's meaning; what lies between two others begins where it did, and the trace says whether that is right."""
        dim = dimension("slice", attrs.dim, shape) - 1
        size, length = shape[dim], made[dim]
        if attrs.stop is None:
            return attrs.model_copy(update={"start": size - length if attrs.start >= 0 else -length})
        if attrs.start == 0:
            return attrs.model_copy(update={"stop": length if attrs.stop > 0 else length - size})
        if (attrs.start < 0) == (attrs.stop < 0):
            ends = {"stop": attrs.start + length} if attrs.start > 0 else {"start": attrs.stop - length}
            return attrs.model_copy(update=ends)
        return attrs


@REGISTRY.register("pad")
class Pad(Op):
    """Values around: `amounts` as in torch, (before, after) for the last dimension, then the one before it; negative ones cut off."""

    shorthand = "amounts"
    examples = (
        Example({"amounts": (2, 0)}, (3, 9)),
        Example({"amounts": (1, 2, 0, 1), "mode": "reflect"}, (2, 7, 5)),
        Example({"amounts": (1, 1), "mode": "replicate"}, (3, 9)),
        Example({"amounts": (-1, 1, 0, 2, 1, 1), "value": 0.5}, (2, 7, 5)),
        Example({"amounts": (1, 2)}, (3, 9), last=True),
    )

    class Options(Options):
        amounts: tuple[Amount, ...]
        mode: Literal["constant", "reflect", "replicate"] = "constant"
        value: float = pydantic.Field(0.0, ge=-1e6, le=1e6)

        @pydantic.field_validator("amounts")
        @classmethod
        def _pairs(cls, value):
            if len(value) % 2 or not 2 <= len(value) <= 2 * MOST_DIMS:
                raise ValueError("two numbers for each dimension, the last one's first")
            return value

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        pairs = len(attrs.amounts) // 2
        if pairs > len(shape):
            raise GraphError(f"pad: {pairs} pairs of amounts, {list(shape)} has {len(shape)} dimensions behind the batch")
        if attrs.mode != "constant" and (pairs != len(shape) - 1 or min(attrs.amounts) < 0):
            raise GraphError(f"pad: {attrs.mode} pads each dimension of space, none by less than 0; {list(shape)} has {len(shape) - 1}")
        after = [n + sum(attrs.amounts[2 * k : 2 * k + 2]) if k < pairs else n for k, n in enumerate(reversed(shape))]
        if min(after) < 1:
            raise GraphError(f"pad: {list(attrs.amounts)} leaves nothing of {list(shape)}")
        if attrs.mode == "constant":
            return lambda x: functional.pad(x, attrs.amounts, "constant", attrs.value)
        return lambda x: functional.pad(x, attrs.amounts, attrs.mode)


@REGISTRY.register("mean")
class Mean(Op):
    """The mean over the dimensions `dims`, which go, or stay with size 1 where `keep`."""

    nonnegative = "inherited"
    shorthand = "dims"
    examples = (
        Example({"dims": (2,)}, (3, 9)),
        Example({"dims": (1,)}, (3, 9), last=True),
        Example({"dims": (2, 3), "keep": True}, (2, 7, 5)),
        Example({"dims": (-1,), "keep": True}, (2, 7, 5)),
        Example({"dims": (1,)}, (2, 7, 5)),
    )

    class Options(Options):
        dims: tuple[Dim, ...]
        keep: bool = False

        @pydantic.field_validator("dims", mode="before")
        @classmethod
        def _one(cls, value):
            return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

        @pydantic.field_validator("dims")
        @classmethod
        def _once(cls, value):
            if not value or 0 in value or len(set(value)) < len(value):
                raise ValueError("one dimension or several, each once, not the batch's 0")
            return value

    @staticmethod
    def build(attrs, shape):
        dims = sorted({dimension("mean", d, shape) for d in attrs.dims})
        if len(dims) == len(shape) and not attrs.keep:
            raise GraphError(f"mean over {list(attrs.dims)} leaves no dimension of {list(shape)}", fix="set keep: true")
        return lambda x: x.mean(dims, keepdim=attrs.keep)
