"""Rows for networks of several inputs, and how networks are called. Of several outputs the first is the one that is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dagrow.errors import UsageError


class Inputs:
    """The same rows of several inputs: tensors [n, ...], in the order of the network's inputs, cut and moved as one tensor is.

    >>> import torch
    >>> from dagrow.inputs import Inputs
    >>> x = Inputs(torch.zeros(5, 3), torch.zeros(5, 2, 8, 8))
    >>> len(x), [tuple(t.shape) for t in x[:2].tensors]
    (5, [(2, 3), (2, 2, 8, 8)])

    Raises UsageError where they have not as many rows.
    """

    def __init__(self, *tensors: Tensor):
        if not tensors or len({len(t) for t in tensors}) > 1:
            raise UsageError(f"inputs of {', '.join(str(len(t)) for t in tensors) or 'no'} rows: each needs the same")
        self.tensors = tensors

    def _each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        made = object.__new__(Inputs)  # of one row, taken by its number, nothing is left to count
        made.tensors = tuple(change(t) for t in self.tensors)
        return made

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows) -> Inputs:
        return self._each(lambda t: t[rows])

    def index_select(self, dim: int, rows: Tensor) -> Inputs:
        return self._each(lambda t: t.index_select(dim, rows))

    def split(self, rows: int) -> tuple[Inputs, ...]:
        return tuple(self[k : k + rows] for k in range(0, len(self), rows))

    def chunk(self, parts: int) -> tuple[Inputs, ...]:
        return tuple(Inputs(*t) for t in zip(*(t.chunk(parts) for t in self.tensors), strict=True))

    def to(self, *args, **kwargs) -> Inputs:
        return self._each(lambda t: t.to(*args, **kwargs))

    def double(self) -> Inputs:
        return self._each(lambda t: t.double() if t.is_floating_point() else t)

    def numel(self) -> int:
        return sum(t.numel() for t in self.tensors)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device


def by_name(names: Iterable[str], x: Tensor | Inputs) -> dict[str, Tensor]:
    """input node -> its rows. Raises UsageError where there are not as many tensors as inputs."""
    names, tensors = tuple(names), x.tensors if isinstance(x, Inputs) else (x,)
    if len(names) != len(tensors):
        raise UsageError(
            f"the network has {len(names)} inputs ({', '.join(names)}), it is given {len(tensors)}",
            fix="give several as dagrow.inputs.Inputs(first, second, ...)",
        )
    return dict(zip(names, tensors, strict=True))


def scored(model: Callable, x: Tensor | Inputs) -> Tensor:
    """model(x), the first of several outputs: the one that losses and gains are about."""
    made = model(*x.tensors) if isinstance(x, Inputs) else model(x)
    return made[0] if isinstance(made, tuple) else made
