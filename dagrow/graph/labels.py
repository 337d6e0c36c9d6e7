"""Labels: which cell each index of an axis of a tensor is, and what laying axes out on one another does to them.

A label is an int64 array with one cell per index, or None where every index is frozen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dagrow.graph.cells import FROZEN, Label, Units


class Cells(Units):
    """Units, and what becomes of their labels where axes are merged, split or cut."""

    def merge(self, labels: Sequence[Label], sizes: Sequence[int]) -> Label:
        """The label of the axes flattened into one, the first slowest."""
        total, live = math.prod(sizes), []
        for k, label in enumerate(labels):
            if label is not None:
                before, after = math.prod(sizes[:k]), math.prod(sizes[k + 1 :])
                label = label if after == 1 else label.repeat(after)
                live.append(label if before == 1 else np.concatenate([label] * before))
        return self.combine(live, total)

    def combine(self, live: Sequence[np.ndarray], total: int) -> Label:
        """Index by index the product of several labels of `total` indices, the first major."""
        if len(live) < 2:
            return live[0] if live else None
        rows = zip(*(x.tolist() for x in map(self.find, live)), strict=True)
        memo: dict[tuple[int, ...], int] = {}
        made = np.empty(total, np.int64)
        for k, row in enumerate(rows):
            cell = memo.get(row)
            made[k] = memo.setdefault(row, self.product(row)) if cell is None else cell
        return made

    def take(self, label: np.ndarray, line: np.ndarray) -> None:
        """An op goes on with the indices `line` of an axis: units of which it takes other indices, or in another order, are others.

        The k-th index of a unit stands for the k-th of another (resizing), which is so where all are treated alike. Units that
        are not get births of their own; products of which some are missing are frozen.
        """
        if np.array_equal(line, np.arange(len(label))):
            return
        cells = self.find(label).tolist()
        times: dict[int, int] = {}
        ranks = []
        for cell in cells:
            ranks.append(times.get(cell, 0))
            times[cell] = ranks[-1] + 1
        got: dict[int, list[int]] = {cell: [] for cell in times}
        for k in line.tolist():
            got[cells[k]].append(ranks[k])
        alike: dict[tuple[int, ...], list[int]] = {}
        taken = {a for cell, places in got.items() if places for a in self.atoms(cell)}
        for cell, places in got.items():
            if cell != FROZEN and taken.issuperset(self.atoms(cell)):
                alike.setdefault(tuple(places), []).append(cell)
        found = [np.array(group) for group in alike.values()]
        if len(found) > 1 and any(self._composite[group].any() for group in found):
            for group in found:
                self.freeze(group)
        elif len(found) > 1 or len(taken) < len({a for cell in times for a in self.atoms(cell)}):
            for group in found:
                self.unify(group, self.fresh(len(group)))

    def split(self, label: Label, grid: Sequence[int]) -> list[Label]:
        """The labels of an axis laid out row-major on `grid`, one per axis of the grid.

        Atoms that turn out to be rows and columns become products of fresh atoms. What has no such form loses its
        major axis (frozen) and shares the rest.
        """
        if label is None:
            return [None] * len(grid)
        cells = self.find(label).reshape(grid)
        varies = [k for k, n in enumerate(grid) if n > 1 and np.count_nonzero(cells != cells.take([0], k))]
        found: list[Label] = [None] * len(grid)
        if not varies:
            if cells.size and cells.flat[0] == FROZEN:
                return found
            # One cell everywhere: it lives on an axis of size one if there is one to hold it.
            if 1 in grid:
                found[list(grid).index(1)] = label[:1]
            else:
                self.freeze(label)
            return found
        inner = cells[tuple(slice(None) if k in varies else 0 for k in range(len(grid)))]
        for k, part in zip(varies, self._split(inner), strict=True):
            found[k] = part
        return found

    def grid(self, label: Label, grid: tuple[int, int]) -> list[Label]:
        """`split` where the op itself says that there are rows and columns: one row, or one column, is an axis of size one."""
        if label is None or 1 not in grid:
            return self.split(label, grid)
        cells = self.find(label)
        if not np.count_nonzero(self._composite[cells]):
            if self._single(cells):
                return self._laid(cells, grid)
        else:
            factors = self._factors(cells)
            if factors is not None and [len(f) for f in factors] == list(grid):
                return factors
        return self.split(label, grid)

    def _split(self, cells: np.ndarray) -> list[Label]:
        """`split` for a grid of found cells that varies along each of its axes."""
        if cells.ndim == 1:
            return [cells]
        flat, grid = cells.ravel(), cells.shape
        factors = self._factors(flat)
        if factors is None:
            if not np.count_nonzero(self._composite[flat]) and self._single(flat):
                return self._laid(flat, grid)
            return self._share_rows(cells)
        for factor in factors:
            if len(factor) == 1:
                self.freeze(factor)
        factors = [f for f in factors if len(f) > 1]
        radix = refine(grid, [len(f) for f in factors])
        if radix is None:
            return self._share_rows(cells)
        pieces = [p for f, sizes in zip(factors, radix[1], strict=True) for p in self.split(f, sizes)]
        made, at = [], 0
        for sizes in radix[0]:
            made.append(self.merge(pieces[at : at + len(sizes)], sizes))
            at += len(sizes)
        return made

    def _single(self, cells: np.ndarray) -> bool:
        """Whether these are distinct atoms, where they are no products."""
        distinct = set(cells.tolist())
        return len(distinct) == len(cells) and FROZEN not in distinct

    def _laid(self, atoms: np.ndarray, grid: Sequence[int]) -> list[np.ndarray]:
        """The atoms turn out to be the products of the fresh ones of a grid."""
        made = [self.fresh(n) for n in grid]
        self._composite[atoms] = True
        self.parts.update(zip(atoms.tolist(), itertools.product(*(m.tolist() for m in made)), strict=True))
        return made

    def _share_rows(self, cells: np.ndarray) -> list[Label]:
        row = cells[0].ravel()
        self.unify(np.tile(row, len(cells)), cells.ravel())
        return [None, *self.split(row, cells.shape[1:])]

    def _factors(self, flat: np.ndarray) -> list[np.ndarray] | None:
        """The labels of which the cells are the row-major product, or None."""
        if np.count_nonzero(self._composite[flat]) < len(flat):
            return None
        rows = [self.atoms(c) for c in flat.tolist()]
        if len({len(r) for r in rows}) != 1:
            return None
        columns = np.array(rows)
        sizes = [len(set(c)) for c in columns.T.tolist()]
        if math.prod(sizes) != len(flat):
            return None
        factors = []
        for k, column in enumerate(columns.T):
            laid = np.moveaxis(column.reshape(sizes), k, 0).reshape(sizes[k], -1)
            if (laid != laid[:, :1]).any():
                return None
            factors.append(laid[:, 0].copy())
        return factors


def refine(a: Sequence[int], b: Sequence[int]) -> tuple[list[list[int]], list[list[int]]] | None:
    """How each digit of two mixed radix systems (major first) splits into digits of their common refinement, or None."""
    marks = sorted({math.prod(s[k:]) for s in (a, b) for k in range(len(s) + 1)})
    if any(y % x for x, y in pairwise(marks)):
        return None
    found = []
    for sizes in (a, b):
        digits = []
        for k, n in enumerate(sizes):
            low = math.prod(sizes[k + 1 :])
            inside = [m for m in marks if low <= m <= low * n]
            digits.append([y // x for x, y in pairwise(inside)][::-1] or [1])
        found.append(digits)
    return found[0], found[1]
