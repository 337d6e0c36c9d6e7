"""Networks in plain PyTorch as people write them, none of them with dagrow in mind. Small widths, whole structures.

Each module has `build()`, a fresh network, and `example(rows)`, a batch that it takes.
"""

from __future__ import annotations

import importlib

NAMES = (
    "resnet20", "densenet", "mobilenetv2", "seresnet", "inception", "unet", "vit", "tcn", "mixer", "shufflenet", "convnext", "autoencoder",
)  # fmt: skip
MODELS = {name: importlib.import_module(f"{__name__}.{name}") for name in NAMES}
