"""An autoencoder whose decoder uses the encoder's weights, transposed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class TiedAutoencoder(nn.Module):
    def __init__(self, inputs=12, hidden=16, code=4):
        super().__init__()
        self.enc1 = nn.Linear(inputs, hidden)
        self.enc2 = nn.Linear(hidden, code)
        self.dec2_bias = nn.Parameter(torch.zeros(hidden))
        self.dec1_bias = nn.Parameter(torch.zeros(inputs))

    def encode(self, x):
        return self.enc2(torch.tanh(self.enc1(x)))

    def decode(self, z):
        h = torch.tanh(F.linear(z, self.enc2.weight.t(), self.dec2_bias))
        return F.linear(h, self.enc1.weight.t(), self.dec1_bias)

    def forward(self, x):
        return self.decode(self.encode(x))


def build():
    return TiedAutoencoder()


def example(rows):
    return torch.randn(rows, 12)
