"""Randomness without state: every draw in the program comes from `stream(seed, *path)`.

The path says what the draw is for, so a lost piece of work is computed again to the same bits,
whatever was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the purpose `path` under `seed`; differs for 1 and "1"."""
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def stream(seed: int, *path: int | str) -> torch.Generator:
    """A fresh CPU generator for the purpose `path`: the same arguments, the same draws."""
    import torch

    return torch.Generator().manual_seed(seed_of(seed, *path))


@contextmanager
def torch_seeded(seed: int, *path: int | str) -> Iterator[None]:
    """torch's global generator seeded from our stream inside the block (dropout, module initialisation), restored after."""
    import torch

    with torch.random.fork_rng(devices=[]):
        # Without an accelerator torch.manual_seed keeps a call stack for each kind there might be, at every call, for ever.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed_of(seed, *path))
        yield
