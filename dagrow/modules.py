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


class Lookup(nn.Embedding):
    """An embedding that takes whole numbers of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.embedding(x.to(torch.int64), self.weight)


class Position(nn.Module):
    """x + weight, of the same shape but for the batch."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class ClassToken(nn.Module):
    """[batch, tokens, width] with the weight as its first token."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.weight.expand(x.shape[0], 1, -1), x], 1)


class LayerScale(nn.Module):
    """Each unit of the dimension with `after` dimensions behind it times its weight."""

    def __init__(self, units: int, after: int, start: float):
        super().__init__()
        self.after = after
        self.weight = nn.Parameter(torch.full((units,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view([-1] + [1] * self.after)


class Attend(nn.Module):
    """softmax(q kᵀ · scale) v in each head, of [batch, tokens, heads · width], [.., .., heads · width] and [.., .., heads · value].

    Heads lie before the batch and are cut by unfold: so their axis can be followed also where there is one head.
    """

    def __init__(self, heads: int, width: int, value: int, scale: float, causal: bool):
        super().__init__()
        self.heads, self.width, self.value, self.scale, self.causal = heads, width, value, scale, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.unfold(2, self.width, self.width).permute(2, 0, 1, 3).flatten(0, 1)
        k = k.unfold(2, self.width, self.width).permute(2, 0, 3, 1).flatten(0, 1)
        v = v.unfold(2, self.value, self.value).permute(2, 0, 1, 3).flatten(0, 1)
        scores = torch.bmm(q * self.scale, k)
        if self.causal:
            later = torch.ones(scores.shape[1], scores.shape[2], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        seen = torch.bmm(scores.softmax(-1), v)
        return seen.unflatten(0, (self.heads, -1)).permute(1, 2, 0, 3).flatten(2)


class Mixture(nn.Module):
    """Experts act(x upᵀ + up_bias) down + down_bias, averaged by the softmax of the router's `top` largest logits.

    up: [experts · hidden, features], expert by expert; up_bias alike. down: [experts, hidden, width]; down_bias: [experts, width].
    """

    def __init__(self, features: int, experts: int, hidden: int, width: int, top: int, act):
        super().__init__()
        self.hidden, self.top, self.act = hidden, min(top, experts), act
        self.router = nn.Linear(features, experts)
        self.up = self._drawn(features, experts * hidden, features)
        self.up_bias = self._drawn(features, experts * hidden)
        self.down = self._drawn(hidden, experts, hidden, width)
        self.down_bias = self._drawn(hidden, experts, width)

    @staticmethod
    def _drawn(fan_in: int, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        logits = self.router(rows)
        if self.top > 1:
            # By their values, not their places: what stands at a place is another expert once they are reordered.
            least = logits.topk(self.top, 1)[0].narrow(1, self.top - 1, 1)
            logits = logits.masked_fill(logits < least, float("-inf"))
        share = logits.softmax(1)
        inner = self.act(functional.linear(rows, self.up, self.up_bias))
        made = torch.bmm(inner.unfold(1, self.hidden, self.hidden).permute(1, 0, 2), self.down)
        made = torch.bmm(share.unsqueeze(1), made.permute(1, 0, 2)).squeeze(1) + torch.mm(share, self.down_bias)
        return made.view(x.shape[:-1] + made.shape[1:])
