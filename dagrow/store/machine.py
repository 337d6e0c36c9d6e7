"""What a run's bits depend on besides its spec: the data, versions, threads and device."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

FORMAT = 1
PACKAGES = ("dagrow", "torch", "numpy", "scikit-learn", "optuna", "safetensors")


def manifest(spec_digest: str, data_digest: str, device: str = "cpu") -> dict[str, Any]:
    """A flat dict of JSON values; two equal manifests promise the same bits. Imports torch."""
    import torch

    found = {
        "format": FORMAT,
        "spec": spec_digest,
        "data": data_digest,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        # The kernels torch picks, and so the last bits, depend on the vector instructions it found.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }
    if torch.device(device).type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(torch.device(device))
    for package in PACKAGES:
        found[package] = _version(package)
    return found


def manifest_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two manifests differ, by key; a value that is not there is None."""
    return [(key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
