"""What a forward being traced works on: tensors in two runs of different numbers of rows, and sizes that depend on that number."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagrow.importing.errors import ImportingError

# Sizes that differ between runs of so many rows depend on the batch.
ROWS = (2, 3)
# What the two runs cannot tell, a test for more than 32 rows or rows // 4, is asked of these, too.
OTHERS = (*range(4, 18), 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000, 1023, 1024, 1025, 4096, 65536, 2**20)


class Rows(int):
    """A size that depends on the number of rows: `sizes` in the two runs, `others` for OTHERS. Sums and products of it stay such sizes."""

    sizes: tuple[int, int]
    others: tuple[int, ...]

    def __new__(cls, sizes: tuple[int, int], others: tuple[int, ...] | None = None):
        made = super().__new__(cls, sizes[0])
        made.sizes = sizes
        slope = sizes[1] - sizes[0]
        made.others = tuple(sizes[0] + (n - ROWS[0]) * slope for n in OTHERS) if others is None else others
        return made

    @property
    def times(self) -> int | None:
        """How many times the number of rows it is; None where it is no multiple of it."""
        count, rest = divmod(self.sizes[0], ROWS[0])
        return count if not rest and self.sizes[1] == count * ROWS[1] else None

    def __hash__(self):
        return hash(self.sizes)

    def __repr__(self):
        return f"{self.times} · rows" if self.times not in (1, None) else "rows"


def sized(pair: Sequence[int]) -> int:
    """One size out of those in the two runs."""
    return int(pair[0]) if pair[0] == pair[1] else Rows((int(pair[0]), int(pair[1])))


def in_run(value: Any, run: int):
    """A size in one of the runs."""
    return value.sizes[run] if isinstance(value, Rows) else value


def _everywhere(function: Callable, self: Rows, other: Any, turned: bool = False) -> list:
    """What a function of two sizes gives in the two runs, and for OTHERS."""
    mine = (*self.sizes, *self.others)
    theirs = (*other.sizes, *other.others) if isinstance(other, Rows) else (other,) * len(mine)
    return [function(b, a) if turned else function(a, b) for a, b in zip(mine, theirs, strict=True)]


def _arithmetic(name: str) -> None:
    function = getattr(operator, name)

    def method(self, other, turned=False):
        if not isinstance(other, (int, float)):
            return NotImplemented
        made = _everywhere(function, self, other, turned)
        if len(set(made)) == 1:
            return made[0]
        if made[0] == made[1] or not all(type(p) is int for p in made):
            raise ImportingError("it computes with the number of rows")
        return Rows((made[0], made[1]), tuple(made[2:]))

    setattr(Rows, f"__{name}__", method)
    setattr(Rows, f"__r{name}__", lambda self, other: method(self, other, turned=True))


def _comparison(name: str) -> None:
    function = getattr(operator, name)

    def method(self, other):
        if not isinstance(other, (int, float)):
            return NotImplemented
        made = _everywhere(function, self, other)
        if len(set(made)) > 1:
            raise ImportingError("what it does depends on the number of rows")
        return made[0]

    setattr(Rows, f"__{name}__", method)


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
    _arithmetic(_name)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _comparison(_name)


class Tree(NamedTuple):
    """A call of an aten function; arguments may be trees, held tensors, leaves, sizes and plain values. item: which of several results."""

    name: str
    args: tuple
    kwargs: tuple[tuple[str, Any], ...] = ()
    item: int | None = None


class Leaf(NamedTuple):
    """A tensor of the user's: a parameter or buffer by its name, or a constant made in forward (name None)."""

    name: str | None
    tensor: Tensor


@dataclass(eq=False)
class Held:
    """A tensor of the user's forward: its values in the two runs, and what makes it.

    node: the node whose output it is, with the batch first, while the user's tensor has it at dimension `batch`.
    form: where it is no node's output: how it is computed from held tensors, or from the user's parameters alone (a Leaf is one).
    narrow: what it was before it was expanded without a change of values. mixed: whether it is one for all rows of a batch.
    path: of the user's module that computes it, where it waits for what reads it.
    """

    values: tuple[Tensor, Tensor]
    node: str | None = None
    batch: int = 0
    form: Tree | Leaf | None = None
    narrow: Held | None = None
    mixed: bool = False
    path: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the user's tensor; those that depend on the number of rows are `Rows`."""
        return tuple(map(sized, zip(self.values[0].shape, self.values[1].shape, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The node's output without the batch."""
        shape = list(self.values[0].shape)
        del shape[self.batch]
        return tuple(shape)

    @property
    def own(self) -> bool:
        """Whether it is made of the user's parameters and constants alone."""
        return self.node is None and not any(True for _ in held_in(self.form))

    def first(self, run: int) -> Tensor:
        """Its value with the batch first."""
        return self.values[run].movedim(self.batch, 0) if self.batch else self.values[run]


def held_in(form: Any):
    """The held tensors that a form is computed from."""
    if isinstance(form, Held):
        if form.node is not None:
            yield form
        else:
            yield from held_in(form.form)
    elif isinstance(form, Tree):
        for value in (*form.args, *(v for _, v in form.kwargs)):
            yield from held_in(value)
    elif isinstance(form, (tuple, list)) and not isinstance(form, Leaf):
        for value in form:
            yield from held_in(value)


def batch_dim(sizes: Sequence[int]) -> int | None:
    """The dimension of the batch; None where there is none, or where it is part of a larger one."""
    found = [k for k, n in enumerate(sizes) if isinstance(n, Rows)]
    return found[0] if len(found) == 1 and sizes[found[0]].times == 1 else None


def mapped(value: Any, change: Callable[[Any], Any]):
    """The value with `change` applied inside of lists, tuples, dicts and slices."""
    if isinstance(value, (list, tuple)) and not isinstance(value, (Leaf, Tree)):
        made = [mapped(v, change) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else list(made) if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(mapped(value.start, change), mapped(value.stop, change), mapped(value.step, change))
    return change(value)


def equal(one: Tensor, other: Tensor) -> bool:
    """To the bit; NaN equals NaN."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
