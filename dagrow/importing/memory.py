"""Which values of the user's forward lie in the same memory: what is written into one of them changes the others.

A value is computed from copies of others, so that it does not lie in their memory. What it would lie in is noted on the tensor:
`lies_in`, the value that the memory belongs to, and `cells`, the entries of that which are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dagrow.importing.values import Held


def note(made: Tensor, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Notes where `made` lies, if it lies in one of the copies that a function was given: (value, copy)."""
    for value, copy in copies:
        if not made.layout == copy.layout == torch.strided or made.untyped_storage().data_ptr() != copy.untyped_storage().data_ptr() or not copy.numel():
            continue
        made.lies_in = _home(value)
        cells = _cells(value)
        if made.dtype == copy.dtype and cells is not None:
            room = torch.full((copy.untyped_storage().nbytes() // copy.element_size(),), -1, device=copy.device)
            room.as_strided(copy.shape, copy.stride(), copy.storage_offset()).copy_(cells)
            made.cells = room.as_strided(made.shape, made.stride(), made.storage_offset())
        else:
            made.cells = None


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether what is written into one of two values changes the other."""
    if _home(one) is not _home(other):
        return False
    mine, theirs = _cells(one), _cells(other)
    return mine is None or theirs is None or bool(torch.isin(mine.flatten(), theirs.flatten()).any())


def laid(made: Any, result: Any) -> Any:
    """`made`, what nodes give, where `result`, the same as the user's function gives it, lies."""
    if isinstance(made, (list, tuple)) and isinstance(result, (list, tuple)):
        for one, other in zip(made, result, strict=False):
            laid(one, other)
    elif isinstance(made, Held) and isinstance(result, Held) and not overlap(made.values[0], result.values[0]):
        made.values = result.values
    return made


def _home(value: Tensor) -> Tensor:
    return getattr(value, "lies_in", value)


def _cells(value: Tensor) -> Tensor | None:
    return value.cells if hasattr(value, "lies_in") else torch.arange(value.numel(), device=value.device).view(value.shape)
