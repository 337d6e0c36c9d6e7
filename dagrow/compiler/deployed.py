"""A network with its preprocessing: from raw rows to what is reported. What exports hold and predictions use."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Deployed(nn.Module):
    """decoder(network(encoder(raw))) on copies of the three, on the CPU, in evaluation mode, without gradients.

    raw: [n, ...] of any dtype the encoder takes (it casts) -> [n, outputs]. `probabilities`: a softmax over them follows.
    """

    def __init__(self, encoder: nn.Module, network: nn.Module, decoder: nn.Module, probabilities: bool = False):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.network = copy.deepcopy(network)
        self.decoder = copy.deepcopy(decoder)
        self.probabilities = probabilities
        floats = [p.dtype for p in self.network.parameters() if p.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        self.cpu().eval().requires_grad_(False)

    def forward(self, raw: Tensor) -> Tensor:
        y = self.decoder(self.network(self.encoder(raw).to(self.dtype)))
        if self.probabilities:
            y = torch.softmax(y, 1)
        return y
