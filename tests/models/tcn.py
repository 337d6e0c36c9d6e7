"""A temporal convolutional network (Bai et al. 2018): dilated causal convolutions that pad on both sides and chop the end off."""

from __future__ import annotations

import torch
from torch import nn


class Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_inputs, n_outputs, kernel_size, dilation, dropout=0.1):
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.net = nn.Sequential(
            nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation), Chomp1d(padding), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv1d(n_outputs, n_outputs, kernel_size, padding=padding, dilation=dilation), Chomp1d(padding), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None
        self.relu = nn.ReLU()

    def forward(self, x):
        out = self.net(x)
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(out + res)


class TCN(nn.Module):
    def __init__(self, inputs=3, channels=(8, 8, 12), kernel_size=3, outputs=5):
        super().__init__()
        widths = (inputs, *channels)
        self.network = nn.Sequential(*(TemporalBlock(a, b, kernel_size, 2**i) for i, (a, b) in enumerate(zip(widths, channels))))
        self.linear = nn.Linear(channels[-1], outputs)

    def forward(self, x):
        y = self.network(x)
        return self.linear(y[:, :, -1])


def build():
    return TCN()


def example(rows):
    return torch.randn(rows, 3, 24)
