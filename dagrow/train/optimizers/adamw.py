"""AdamW."""

from __future__ import annotations

import torch

from dagrow.registry import Options as BaseOptions
from dagrow.train.flat import Flat
from dagrow.train.optimizers import REGISTRY, Decay, Optimizer, Rate, Share


@REGISTRY.register("adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (none on biases and norms); bias correction by each element's own age."""

    class Options(BaseOptions):
        lr: Rate = 1e-3
        betas: tuple[Share, Share] = (0.9, 0.999)
        eps: Rate = 1e-8
        weight_decay: Decay = 0.01

    slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0, "step": 0.0}

    @staticmethod
    def update(options: AdamW.Options, flat: Flat, lr: float) -> None:
        first, second = options.betas
        mean, square = flat.state["exp_avg"], flat.state["exp_avg_sq"]
        mean.lerp_(flat.grads, 1 - first)
        square.mul_(second).addcmul_(flat.grads, flat.grads, value=1 - second)
        if options.weight_decay:
            flat.values[: flat.decayed].mul_(1 - lr * options.weight_decay)
        size = flat.by_age(lambda t: lr / (1 - first**t))
        scale = flat.by_age(lambda t: (1 - second**t) ** -0.5)
        root = torch.sqrt(square, out=flat.scratch).mul_(scale).add_(options.eps)
        flat.values.sub_(torch.div(mean, root, out=root).mul_(size))
