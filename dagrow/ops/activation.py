"""Elementwise activations."""

from __future__ import annotations

import pydantic

from dagrow.ops import REGISTRY, Op
from dagrow.registry import Options


class Plain(Options):
    """No options."""


@REGISTRY.register("relu")
class Relu(Op):
    """max(x, 0)."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        import torch

        return torch.relu


@REGISTRY.register("leaky_relu")
class LeakyRelu(Op):
    """x where positive, `slope` x elsewhere."""

    role = "activation"

    class Options(Options):
        slope: float = pydantic.Field(0.01, ge=0, lt=1)

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        return nn.LeakyReLU(attrs.slope)


@REGISTRY.register("gelu")
class Gelu(Op):
    """x Φ(x), exactly."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.gelu


@REGISTRY.register("silu")
class Silu(Op):
    """x · sigmoid(x)."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.silu


@REGISTRY.register("tanh")
class Tanh(Op):
    """tanh(x)."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        import torch

        return torch.tanh
