"""Where the indices of a resized axis come from, by the labels before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dagrow.graph.axes import Table


def place(old: Table, new: Table, keep: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """Where each new index comes from: the k-th occurrence of a label set is the k-th occurrence of its old one."""
    if old.codes.shape[1] != new.codes.shape[1]:
        return None
    plain = _plain(old)
    if plain is not None and plain == _plain(new) and plain in keep:
        return keep[plain]
    mapped, born = new.codes.copy(), np.zeros(len(new.codes), bool)
    for a, index in keep.items():
        mine = (mapped >= 0) & (mapped >> 32 == a)
        source = index[mapped[mine] & 0xFFFFFFFF]
        lost = mine.copy()
        lost[mine] = source < 0
        born |= lost.any(1)
        mapped[mine] = a * 2**32 + np.maximum(source, 0)
    # Occurrences are counted by the new units: a clone starts again at the first.
    where = _kinds(np.concatenate([old.codes, mapped, new.codes]))
    size = len(old.codes)
    times = np.concatenate([_occurrence(where[:size]), _occurrence(where[size + len(mapped) :])])
    key = where[: len(times)] * (len(times) + 1) + times
    # Nothing that stays may be lost: each old index is wanted as often as its units are.
    wanted = np.ones(size, np.int64)
    for a, index in keep.items():
        mine = (old.codes >= 0) & (old.codes >> 32 == a)
        units = old.codes & 0xFFFFFFFF
        times_each = np.bincount(index[index >= 0], minlength=int(units[mine].max(initial=0)) + 1)
        wanted *= np.where(mine, times_each[np.where(mine, units, 0)], 1).prod(1)
    if wanted.sum() != len(born) - born.sum():
        return None
    order = np.argsort(key[:size])
    at = np.searchsorted(key[:size], key[size:], sorter=order).clip(max=size - 1)
    index = order[at]
    if (key[:size][index] != key[size:])[~born].any():
        return None
    return np.where(born, -1, index)


def _plain(table: Table) -> int | None:
    """The axis whose units are the indices, each once and in their order; None where it is not as simple as that."""
    first = int(table.codes[0, 0])
    if table.codes.shape[1] != 1 or first < 0 or first & 0xFFFFFFFF:
        return None
    return first >> 32 if np.array_equal(table.codes[:, 0], first + np.arange(len(table.codes))) else None


def _kinds(rows: np.ndarray) -> np.ndarray:
    """The number of each row's kind. The order of axes within a row does not matter; of two units
    of one axis, as where a channel shuffle leads groups into groups, it says which is which."""
    laid = rows if rows.shape[1] == 1 else np.take_along_axis(rows, np.argsort(rows >> 32, 1, kind="stable"), 1)
    _, where = np.unique(laid[:, 0], return_inverse=True)
    # Column after column; np.unique of whole rows is many times slower.
    for column in laid.T[1:]:
        more, which = np.unique(column, return_inverse=True)
        _, where = np.unique(where * len(more) + which, return_inverse=True)
    return where


def _occurrence(kinds: np.ndarray) -> np.ndarray:
    """For each place, how often its kind came before."""
    order = np.argsort(kinds, kind="stable")
    laid, places = kinds[order], np.arange(len(kinds))
    first = np.zeros(len(kinds), np.int64)
    first[1:] = np.where(laid[1:] != laid[:-1], places[1:], 0)
    made = np.empty(len(kinds), np.int64)
    made[order] = places - np.maximum.accumulate(first)
    return made
