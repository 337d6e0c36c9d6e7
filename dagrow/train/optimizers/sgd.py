"""Stochastic gradient descent."""

from __future__ import annotations

import pydantic

from dagrow.registry import Options as BaseOptions
from dagrow.train.flat import Flat
from dagrow.train.optimizers import REGISTRY, Decay, Optimizer, Rate, Share


@REGISTRY.register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (plain or Nesterov) and L2 weight decay (none on biases and norms)."""

    class Options(BaseOptions):
        lr: Rate = 0.05
        momentum: Share = 0.9
        nesterov: bool = pydantic.Field(False, strict=True)
        weight_decay: Decay = 0.0

        @pydantic.model_validator(mode="after")
        def _nesterov_needs_momentum(self):
            if self.nesterov and not self.momentum:
                raise ValueError("nesterov needs momentum > 0")
            return self

    slots = {"momentum_buffer": 0.0, "step": 0.0}

    @staticmethod
    def update(options: SGD.Options, flat: Flat, lr: float) -> None:
        grads, buffer = flat.grads, flat.state["momentum_buffer"]
        if options.weight_decay:
            grads[: flat.decayed].add_(flat.values[: flat.decayed], alpha=options.weight_decay)
        buffer.mul_(options.momentum).add_(grads)
        direction = grads.add_(buffer, alpha=options.momentum) if options.nesterov else buffer
        flat.values.sub_(direction, alpha=lr)
