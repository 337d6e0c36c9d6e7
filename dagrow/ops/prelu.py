"""prelu: an activation that learns its slope."""

from __future__ import annotations

import pydantic

from dagrow.ops import REGISTRY, Example, Op
from dagrow.registry import Options


@REGISTRY.register("prelu")
class Prelu(Op):
    """x where positive, a learned slope times x elsewhere: one for each channel, or one for all (He et al. 2015)."""

    examples = (Example({}), Example({"shared": True}))

    class Options(Options):
        shared: bool = False
        start: float = pydantic.Field(0.25, ge=-1e3, le=1e3)

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        return nn.PReLU(1 if attrs.shared else shape[0], init=attrs.start)
