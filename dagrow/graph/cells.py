"""Cells: the units that indices of axes belong to, as a union-find.

A cell is 0 (frozen: batch, space, what is not understood), an atom (one unit; a class of a union-find), or a product
of atoms, major to minor (a flattened or grouped index that belongs to several units at once). An index goes when any
of its atoms goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

Label = np.ndarray | None
FROZEN = 0


class Units:
    """Union-find over atoms, products of atoms, and the birth (event, place) of each atom."""

    def __init__(self) -> None:
        self._up = np.arange(4096)
        self._event = np.full(4096, -1)
        self._place = np.zeros(4096, np.int64)
        self._composite = np.zeros(4096, bool)
        self._scratch = np.zeros(4096, np.int64)
        self._used = 1
        self.events = 0
        self.parts: dict[int, tuple[int, ...]] = {}
        self._products: dict[tuple[int, ...], int] = {}

    def _reserve(self, count: int) -> int:
        first, self._used = self._used, self._used + count
        size = len(self._up)
        if self._used > size:
            more = max(size, self._used - size)
            self._up = np.concatenate([self._up, np.arange(size, size + more)])
            self._event = np.concatenate([self._event, np.full(more, -1)])
            self._place = np.concatenate([self._place, np.zeros(more, np.int64)])
            self._composite = np.concatenate([self._composite, np.zeros(more, bool)])
            self._scratch = np.zeros(size + more, np.int64)
        return first

    def fresh(self, count: int) -> np.ndarray:
        """`count` new atoms, born together."""
        first = self._reserve(count)
        self._event[first : self._used] = self.events
        made = np.arange(count)
        self._place[first : self._used] = made
        self.events += 1
        return made + first

    def event(self, label: np.ndarray) -> np.ndarray:
        """The birth event of each raw (not yet found) atom; -1 for products and frozen cells."""
        return self._event[label]

    def composite(self, label: np.ndarray) -> np.ndarray:
        """Which of these (found) cells are products."""
        return self._composite[label]

    def _roots(self, label: np.ndarray) -> np.ndarray:
        root = self._up[label]
        while True:
            above = self._up[root]
            # On short arrays the quickest way to ask whether all are equal.
            if not np.count_nonzero(above != root):
                return root
            root = above

    def find(self, label: np.ndarray) -> np.ndarray:
        """The same cells by their one name: equal cells have equal names."""
        root = self._roots(label)
        self._up[label] = root
        many = self._composite[root]
        if np.count_nonzero(many):
            known = {cell: self._product(self.atoms(cell)) for cell in set(root[many].tolist())}
            root[many] = [known[cell] for cell in root[many].tolist()]
        return root

    def atoms(self, cell: int) -> tuple[int, ...]:
        """The distinct atoms of a cell, major to minor; none for a frozen one."""
        up = self._up
        while up[cell] != cell:
            cell = int(up[cell])
        if cell == FROZEN:
            return ()
        if not self._composite[cell]:
            return (cell,)
        return tuple(dict.fromkeys(a for part in self.parts[cell] for a in self.atoms(part)))

    def _product(self, atoms: tuple[int, ...]) -> int:
        if not atoms:
            return FROZEN
        if len(atoms) == 1:
            return atoms[0]
        known = self._products.get(atoms)
        if known is None:
            known = self._products[atoms] = self._reserve(1)
            self.parts[known] = atoms
            self._composite[known] = True
        return known

    def product(self, cells: Iterable[int]) -> int:
        """The cell that belongs to all units of these."""
        return self._product(tuple(dict.fromkeys(a for c in cells for a in self.atoms(c))))

    def freeze(self, label: Label) -> None:
        """Fixes these cells for good."""
        if label is None or not len(label):
            return
        root = self._roots(label)
        many = self._composite[root]
        if np.count_nonzero(many):
            for cell in np.unique(root[many]).tolist():
                self._up[list(self.atoms(cell))] = FROZEN
            root = root[~many]
        self._up[root] = FROZEN

    def unify(self, a: Label, b: Label) -> None:
        """Index by index, the two become the same cell."""
        if a is None or b is None:
            self.freeze(b if a is None else a)
            return
        if a is b:
            return
        found = self.find(np.concatenate((a, b)))
        a, b = found[: len(a)], found[len(a) :]
        differ = a != b
        count = np.count_nonzero(differ)
        if not count:
            return
        low, high = np.minimum(a, b), np.maximum(a, b)
        if count < len(low):
            low, high = low[differ], high[differ]
        if not np.count_nonzero(self._composite[found]):
            # At once, where every higher root goes to one lower root and none of these goes on.
            place = np.arange(count)
            self._scratch[high] = place
            self._scratch[low] = -1
            if not np.count_nonzero(self._scratch[high] != place):
                self._up[high] = low
                return
        for x, y in dict.fromkeys(zip(low.tolist(), high.tolist(), strict=True)):
            self._union(x, y)

    def _union(self, a: int, b: int) -> None:
        few, many = self.atoms(a), self.atoms(b)
        # x*s = x*t leaves s = t, and x = x*s leaves s fixed.
        shared = set(few) & set(many)
        few, many = [x for x in few if x not in shared], [x for x in many if x not in shared]
        if len(few) > len(many):
            few, many = many, few
        if len(few) == len(many):
            for x, y in zip(few, many, strict=True):
                self._up[max(x, y)] = min(x, y)
        elif len(few) == 1:
            # An atom turns out to be a product. Its births join the signature of the parts when axes are numbered.
            self.parts[few[0]] = tuple(many)
            self._composite[few[0]] = True
        else:
            self._up[few + many] = FROZEN

    def freeze_unborn(self, cells: np.ndarray, events: Iterable[int]) -> None:
        """Freezes those of the atoms that are the same as none other, or have no part in any born in `events`."""
        born = self._event[: self._used] >= 0
        slots = np.flatnonzero(born & np.isin(self._event[: self._used], list(events)))
        known = {a for cell in np.unique(self._roots(slots)).tolist() for a in self.atoms(cell)}
        born[cells] = False
        others = set(self._roots(np.flatnonzero(born)).tolist())
        for cell in np.unique(self._roots(cells)).tolist():
            self._up[[a for a in self.atoms(cell) if a not in known or (a == cell and a not in others)]] = FROZEN

    def number(self) -> Numbered:
        """Axes and ordinals in order of birth. Atoms with the same set of birth events form one axis."""
        every = np.arange(self._used)
        root = self._roots(every)
        self._up[: self._used] = root
        event, place, composite = self._event[: self._used], self._place[: self._used], self._composite[: self._used]
        start, count, atoms = self._spelled()
        born = (event >= 0) & (root != FROZEN) & ~composite[root]
        r, e = root[born], event[born]
        # The births of an atom that became a product: they join the signature of its parts, never the order.
        became = np.flatnonzero((event >= 0) & composite[root])
        whole = root[became]
        pairs = [r * self.events + e, atoms[ranges(start[whole], count[whole])] * self.events + event[became].repeat(count[whole])]
        owner, births = np.divmod(_distinct(np.concatenate(pairs)), max(1, self.events))
        signature = np.zeros(self._used, np.uint64)
        np.add.at(signature, owner, _mix(births))
        first = np.full(self._used, np.iinfo(np.int64).max)
        np.minimum.at(first, r, e * 2**32 + place[born])
        units = _distinct(r)
        units = units[np.argsort(first[units], kind="stable")]
        _, begin, group = np.unique(signature[units], return_index=True, return_inverse=True)
        rank = np.empty(len(begin), np.int64)
        rank[np.argsort(begin)] = np.arange(len(begin))
        codes = np.full(self._used, -1)
        axis = rank[group]
        laid = np.argsort(axis, kind="stable")
        sizes = np.bincount(axis, minlength=len(begin))
        codes[units[laid]] = axis[laid] * 2**32 + ranges(np.zeros(len(sizes), np.int64), sizes)
        # A product of which one atom is left, or none, is that.
        name = root.copy()
        name[composite & (count == 0)] = FROZEN
        one = np.flatnonzero(composite & (count == 1))
        name[one] = atoms[start[one]]
        return Numbered(name[root], codes, sizes.tolist(), start, count, atoms)

    def _spelled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`atoms` of all products at once: (where those of each cell start, how many, the atoms one after another)."""
        start, count = np.zeros((2, self._used), np.int64)
        if not self.parts:
            return start, count, np.zeros(0, np.int64)
        owners = np.fromiter(self.parts, np.int64, len(self.parts))
        count[owners] = [len(parts) for parts in self.parts.values()]
        sizes = count[owners]
        start[owners] = np.cumsum(sizes) - sizes
        parts = np.fromiter(chain.from_iterable(self.parts.values()), np.int64, int(sizes.sum()))
        flat, owner = self._up[parts], owners.repeat(sizes)
        while (many := self._composite[flat]).any():
            sizes = np.where(many, count[flat], 1)
            at = ranges(np.where(many, start[flat], 0), sizes)
            flat, owner = np.where(many.repeat(sizes), self._up[parts[at]], flat.repeat(sizes)), owner.repeat(sizes)
        flat, owner = flat[flat != FROZEN], owner[flat != FROZEN]
        _, first = np.unique(owner * self._used + flat, return_index=True)
        if len(first) < len(flat):
            first.sort()
            flat, owner = flat[first], owner[first]
        count = np.bincount(owner, minlength=self._used)
        start[owners] = np.cumsum(count[owners]) - count[owners]
        return start, count, flat


class Numbered(NamedTuple):
    """What all cells are in the end: the names of classes of atoms and of products (of two atoms at least; equal ones may have several);
    codes: of each atom axis * 2**32 + ordinal, -1 elsewhere; sizes of the axes; start, count: where in `atoms` those of each product are."""

    name: np.ndarray
    codes: np.ndarray
    sizes: list[int]
    start: np.ndarray
    count: np.ndarray
    atoms: np.ndarray


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of each, `count` of them."""
    return np.arange(count.sum()) + (start - np.cumsum(count) + count).repeat(count)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once; np.unique is ten times slower on millions of integers."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _mix(events: np.ndarray) -> np.ndarray:
    """Well spread 64-bit codes (splitmix64), so that sums of them tell sets of events apart."""
    with np.errstate(over="ignore"):
        z = (events.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
