"""Elementwise activations."""

from __future__ import annotations

from typing import Literal

import pydantic

from dagrow.ops import REGISTRY, Example, Op
from dagrow.registry import Options


class Plain(Options):
    """No options."""


@REGISTRY.register("relu")
class Relu(Op):
    """max(x, 0)."""

    role = "activation"
    nonnegative = "always"
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
    """x Φ(x), exactly, or with tanh in the place of the error function (Hendrycks and Gimpel 2016)."""

    role = "activation"
    examples = (Example({}), Example({"approximate": "tanh"}))

    class Options(Options):
        approximate: Literal["none", "tanh"] = "none"

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        if attrs.approximate == "none":
            return functional.gelu
        return lambda x: functional.gelu(x, approximate=attrs.approximate)


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


@REGISTRY.register("sigmoid")
class Sigmoid(Op):
    """1 / (1 + exp(−x))."""

    role = "activation"
    nonnegative = "always"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        import torch

        return torch.sigmoid


@REGISTRY.register("elu")
class Elu(Op):
    """x where positive, `alpha` (exp(x) − 1) elsewhere (Clevert et al. 2016)."""

    role = "activation"

    class Options(Options):
        alpha: float = pydantic.Field(1.0, ge=0, le=1e3)

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        return nn.ELU(attrs.alpha)


@REGISTRY.register("selu")
class Selu(Op):
    """elu, scaled so that activations tend to mean 0 and variance 1 (Klambauer et al. 2017)."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.selu


@REGISTRY.register("softplus")
class Softplus(Op):
    """log(1 + exp(`beta` x)) / `beta`; x itself where `beta` x is above `threshold`."""

    role = "activation"
    nonnegative = "always"

    class Options(Options):
        beta: float = pydantic.Field(1.0, gt=0, le=1e3)
        threshold: float = pydantic.Field(20.0, ge=0, le=1e3)

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        return nn.Softplus(attrs.beta, attrs.threshold)


@REGISTRY.register("hardswish")
class Hardswish(Op):
    """x · relu6(x + 3) / 6 (Howard et al. 2019)."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.hardswish


@REGISTRY.register("hardsigmoid")
class Hardsigmoid(Op):
    """relu6(x + 3) / 6."""

    role = "activation"
    nonnegative = "always"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.hardsigmoid


@REGISTRY.register("relu6")
class Relu6(Op):
    """x between 0 and 6, the nearer of them elsewhere."""

    role = "activation"
    nonnegative = "always"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.relu6


@REGISTRY.register("mish")
class Mish(Op):
    """x · tanh(softplus(x)) (Misra 2019)."""

    role = "activation"
    Options = Plain

    @staticmethod
    def build(attrs, shape):
        from torch.nn import functional

        return functional.mish


@REGISTRY.register("hardtanh")
class Hardtanh(Op):
    """x between `low` and `high`, the nearer of them elsewhere."""

    role = "activation"

    class Options(Options):
        low: float = pydantic.Field(-1.0, ge=-1e6, le=1e6)
        high: float = pydantic.Field(1.0, ge=-1e6, le=1e6)

        @pydantic.model_validator(mode="after")
        def _ordered(self):
            if self.low >= self.high:
                raise ValueError("low lies below high")
            return self

    @staticmethod
    def build(attrs, shape):
        from torch import nn

        return nn.Hardtanh(attrs.low, attrs.high)
