"""opaque: a module of an imported network that is kept whole."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pydantic

from dagrow.ops import REGISTRY, Op, Size
from dagrow.ops.call import frozen
from dagrow.registry import Options

Count = Annotated[int, pydantic.Field(strict=True, ge=0, le=2**50)]


@REGISTRY.register("opaque")
class Opaque(Op):
    """A module kept as it is: trained and exported, never grown through. Importing a model makes it; a spec cannot."""

    most = None
    closed: ClassVar[bool] = True

    class Options(Options):
        """key: of the module among those kept. args, kwargs: what it is called with. pick: which of its outputs. made: that one's shape,
        without the batch, which it has at dimension `batch`."""

        key: Annotated[str, pydantic.Field(max_length=1024)]
        args: tuple[Any, ...] = (("in", 0),)
        kwargs: tuple[Any, ...] = ()
        pick: tuple[Annotated[int, pydantic.Field(strict=True, ge=0, le=1024)], ...] = ()
        made: tuple[Size, ...]
        batch: Annotated[int, pydantic.Field(strict=True, ge=0, le=8)] = 0
        macs: Count = 0

        @pydantic.field_validator("args")
        @classmethod
        def _plain(cls, value):
            return tuple(frozen(v, 0, frozenset()) for v in value)

        @pydantic.field_validator("kwargs")
        @classmethod
        def _named(cls, value):
            if not all(isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], str) and row[0].isidentifier() for row in value):
                raise ValueError("pairs of a name and a value")
            return tuple((row[0], frozen(row[1], 0, frozenset())) for row in value)

    @staticmethod
    def build(attrs, *shapes):
        from dagrow.recorded import Kept

        return Kept(attrs.key, attrs.args, attrs.kwargs, attrs.pick, attrs.made, attrs.batch)

    @staticmethod
    def called(attrs) -> str:
        """What it is called where it is said that it freezes what it touches."""
        return attrs.key.partition("=")[2].partition("#")[0] or "a module"

    @staticmethod
    def macs(attrs, counted, *shapes):
        return attrs.macs
