"""A real task for each network, made of the handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits


def task(name: str, example, rows: int = 512, seed: int = 0):
    """(x, y, loss function of outputs and targets) for the network whose `example` is given: the digits in the shape that it reads.

    Classification where it gives 10 outputs or fewer classes than that; the U-Net finds the strokes under noise, the autoencoder
    gives its input back.
    """
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))[:rows]
    pixels = torch.tensor(digits.data[order] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(digits.target[order])
    shape = example.shape[1:]
    if len(shape) == 3:
        images = F.interpolate(pixels.view(-1, 1, 8, 8), shape[1:], mode="bilinear")
        x = images.repeat(1, shape[0], 1, 1)
        if name == "unet":
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            return x + noise, torch.bucketize(images[:, 0], torch.tensor([-0.5, 0.5])), F.cross_entropy
    elif len(shape) == 2:
        x, labels = F.pad(pixels, (0, shape[0] * shape[1] - 64)).view(-1, *shape), labels % 5
    else:
        centred = pixels - pixels.mean(0)
        x = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[: shape[0]].T
        x = x / x.std(0)
        return x, x, F.mse_loss
    return x, labels, F.cross_entropy
