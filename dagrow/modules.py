"""Modules that ops are made of and torch does not have. Imported where an op is built: it needs torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class TransposedLinear(nn.Module):
    """y = x W + b with the weight stored as [in, out], so that it may be the weight [out, in] of a linear layer that goes the other way."""

    def __init__(self, fan_in: int, width: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_in, width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        bound = 1 / math.sqrt(fan_in)  # as nn.Linear's
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.t(), self.bias)
