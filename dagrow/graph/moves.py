"""Ops that only move values: reshaping, permuting, joining, slicing."""

from __future__ import annotations

import math

import numpy as np
import torch

from dagrow.graph.labels import Label, refine
from dagrow.graph.rules import base, broadcast, find, rule
from dagrow.graph.trace import Labelled, Trace

__all__ = ["find"]
# Positions of larger tensors are not worth listing.
MOST_POSITIONS = 2**24


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def view(trace: Trace, outs, func, x, *args, **kwargs):
    """Row-major: runs of axes with equal products match. A live axis of size one goes where it most likely belongs;
    a wrong guess shows as another structure once it is wider, and is refused there."""
    source, target = x.shape, outs[0]
    same = 0
    while same < min(len(source), len(target)) and source[-same - 1] == target[-same - 1]:
        same += 1
    first = len(source) - same
    if all(label is None for label in x.labels[:first]) and min(*source, *target, 2) > 1:
        # Nothing lives on what is laid out anew.
        return [(*[None] * (len(target) - same), *x.labels[first:])]
    found: list[Label] = []
    i = j = 0
    while j < len(target):
        one = i < len(source) and source[i] == 1
        if target[j] == 1 and not one and not (j + 1 < len(target) and i < len(source) and source[i] == target[j + 1] and _constant(trace, x.labels[i])):
            found.append(None)
            j += 1
            continue
        if one and target[j] != 1 and x.labels[i] is None:
            i += 1
            continue
        start, first = i, j
        have = want = 1
        if i < len(source):
            have, i = source[i], i + 1
        want, j = target[j], j + 1
        if want == 1 and have > 1:
            want, j = target[j], j + 1
        while have != want and (have < want and i < len(source) or want < have and j < len(target)):
            if have < want:
                have, i = have * source[i], i + 1
            else:
                want, j = want * target[j], j + 1
        if j == len(target):
            i = len(source)
        found += _laid_out(trace, x.labels[start:i], source[start:i], target[first:j])
    return [tuple(found)]


def _laid_out(trace: Trace, labels: tuple[Label, ...], source: tuple[int, ...], target: tuple[int, ...]) -> list[Label]:
    """The labels of axes of sizes `source` laid out, row-major, on `target`."""
    cells = trace.cells
    # Digit by digit where both sides are made of the same: heads keep their units where they are counted together with rows.
    digits = refine(source, target) if len(source) > 1 and len(target) > 1 and 1 not in (*source, *target) else None
    if digits is None:
        merged = labels[0] if len(source) == 1 else cells.merge(labels, source)
        return [merged] if len(target) == 1 else cells.split(merged, target)
    pieces = [p for label, sizes in zip(labels, digits[0], strict=True) for p in (cells.split(label, sizes) if len(sizes) > 1 else [label])]
    made = []
    for sizes in digits[1]:
        made.append(pieces[0] if len(sizes) == 1 else cells.merge(pieces[: len(sizes)], sizes))
        del pieces[: len(sizes)]
    return made


def _constant(trace: Trace, label: Label) -> bool:
    """Whether all indices belong to the one unit of an axis of size one, which was flattened with this one."""
    if label is None:
        return False
    cells = trace.cells.find(label)
    return bool(cells[0]) and bool((cells == cells[0]).all())


@rule("t", "transpose", "permute", "movedim", "swapaxes", "numpy_T")
def permute(trace: Trace, outs, func, x, *args, **kwargs):
    dims = len(x.shape)
    if base(func) == "permute":
        order = [d % dims for d in args[0]]
    else:
        order = list(range(dims))
        a, b = (args if args else (0, dims - 1))
        order[a], order[b] = order[b], order[a]
    return [tuple(x.labels[d] for d in order)]


@rule("unsqueeze")
def unsqueeze(trace: Trace, outs, func, x, dim):
    labels = list(x.labels)
    labels.insert(dim % len(outs[0]), None)
    return [tuple(labels)]


@rule("squeeze")
def squeeze(trace: Trace, outs, func, x, dims=None):
    dims = range(len(x.shape)) if dims is None else dims if isinstance(dims, list) else [dims]
    gone = {d % len(x.shape) for d in dims if x.shape[d] == 1}
    for d in gone:
        trace.cells.freeze(x.labels[d])
    return [tuple(label for k, label in enumerate(x.labels) if k not in gone)]


@rule("expand")
def expand(trace: Trace, outs, func, x, *args, **kwargs):
    """What is repeated takes on the units of what it meets."""
    more = len(outs[0]) - len(x.shape)
    made: list[Label] = [trace.loose(n) for n in outs[0][:more]]
    for label, before, after in zip(x.labels, x.shape, outs[0][more:], strict=True):
        if before != after:
            trace.cells.freeze(label)
        made.append(label if before == after else trace.loose(after))
    return [tuple(made)]


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def constant(trace: Trace, outs, func, x, *args, **kwargs):
    return [(None,) * len(outs[0])]


@rule("cat")
def cat(trace: Trace, outs, func, tensors, dim=0):
    shape = outs[0]
    dim %= len(shape)
    tensors = [x for x in tensors if len(x.shape) == len(shape)]
    labels = [None if k == dim else broadcast(trace, tensors, k, n, len(shape)) for k, n in enumerate(shape)]
    if any(x.labels[dim] is not None for x in tensors):
        labels[dim] = np.concatenate([np.zeros(x.shape[dim], np.int64) if x.labels[dim] is None else x.labels[dim] for x in tensors])
    return [tuple(labels)]


@rule("stack")
def stack(trace: Trace, outs, func, tensors, dim=0):
    dim %= len(outs[0])
    return cat(trace, outs, func, [Labelled(_put(x.shape, dim, 1), _put(x.labels, dim, None), x.leaf) for x in tensors], dim)


def _put(values: tuple, place: int, value) -> tuple:
    return (*values[:place], value, *values[place:])


@rule("constant_pad_nd")
def pad(trace: Trace, outs, func, x, amounts, value=0):
    labels = list(x.labels)
    for k in range(len(amounts) // 2):
        before, after = amounts[2 * k : 2 * k + 2]
        at = len(labels) - 1 - k
        if labels[at] is not None and (before or after):
            zeros = [np.zeros(max(n, 0), np.int64) for n in (before, after)]
            line = np.arange(max(-before, 0), len(labels[at]) - max(-after, 0))
            trace.cells.take(labels[at], line)
            kept = labels[at][line]
            labels[at] = np.concatenate([zeros[0], kept, zeros[1]])
    return [tuple(labels)]


@rule("unfold")
def unfold(trace: Trace, outs, func, x, dim, size, step):
    """Windows side by side are a grid, also where there is but one, or each has one index."""
    dim %= len(x.shape)
    if size != step or not size or x.shape[dim] % size:
        return move(trace, outs, func, x, dim, size, step)
    rows, columns = trace.cells.grid(x.labels[dim], (x.shape[dim] // size, size))
    return [(*_put(x.labels, dim, rows)[: dim + 1], *x.labels[dim + 1 :], columns)]


@rule(
    "select", "slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "flip", "roll", "narrow", "pixel_shuffle", "pixel_unshuffle",
    "diagonal", "channel_shuffle", "repeat",
)  # fmt: skip
def move(trace: Trace, outs, func, x, *args, **kwargs):
    """Any op on one tensor that only moves values: the real op runs on positions, and the index map is read off."""
    components = [[[] for _ in shape] for shape in outs]
    if math.prod(x.shape) > MOST_POSITIONS:
        for label in x.labels:
            trace.cells.freeze(label)
    else:
        for b, label in enumerate(x.labels):
            if label is None:
                continue
            # An axis of one index shows where it goes once it has two.
            single = len(label) == 1
            parts = _followed(trace, outs, func, x.shape, b, label.repeat(2) if single else label, args, kwargs)
            if parts is None:
                trace.cells.freeze(label)
                continue
            for out, k, order, part in parts:
                components[out][k].append((order, part[:1].repeat(outs[out][k]) if single else part))
    return [
        tuple(trace.cells.combine([p for _, p in sorted(parts, key=lambda c: c[0])], n) for parts, n in zip(found, shape, strict=True))
        for found, shape in zip(components, outs, strict=True)
    ]


def _followed(trace: Trace, outs, func, shape, b: int, label: np.ndarray, args, kwargs) -> list[tuple[int, int, int, np.ndarray]] | None:
    """Where axis b of the source goes: (output, its axis, how often the index changes along it, label there)."""
    single = len(label) != shape[b]
    shape = (*shape[:b], len(label), *shape[b + 1 :])
    place = torch.arange(len(label), device="cpu").view(-1, *[1] * (len(shape) - b - 1)).expand(shape)
    try:
        made = func(place.contiguous(), *args, **kwargs)
    except (RuntimeError, ValueError, IndexError):
        return None
    found = []
    for out, index in enumerate(t.numpy() for t in (made if isinstance(made, (tuple, list)) else (made,))):
        if index.ndim != len(outs[out]) or not index.size:
            return None
        along = [a for a in range(index.ndim) if (index != index.take([0], a)).any()]
        if single and len(along) != 1:
            return None
        if not along:
            trace.cells.take(label, index.flat[:1])
            trace.cells.freeze(label[index.flat[:1]])
        elif len(along) == 1:
            line = np.moveaxis(index, along[0], 0).reshape(index.shape[along[0]], -1)[:, 0]
            if not single:
                trace.cells.take(label, line)
            found.append((out, along[0], int((line[1:] != line[:-1]).sum()), label[line]))
        else:
            parts = _spread(trace, index, along, label)
            if parts is None:
                return None
            found += [(out, a, changes, part) for a, (changes, part) in zip(along, parts, strict=True)]
    return found


def _spread(trace: Trace, index: np.ndarray, along: list[int], label: np.ndarray) -> list[tuple[int, np.ndarray]] | None:
    """One axis laid out over several: each of those is a digit of it, if together they are a grid."""
    digits, firsts = [], []
    for a in along:
        lines = np.moveaxis(index, a, 0).reshape(index.shape[a], -1)
        _, first, digit = np.unique(lines, axis=0, return_index=True, return_inverse=True)
        digits.append(digit.reshape(-1))
        firsts.append(first)
    picks = [firsts[along.index(a)] if a in along else [0] for a in range(index.ndim)]
    grid = index[np.ix_(*picks)].reshape([len(f) for f in firsts])
    steps = [int(grid[(0,) * k + (1,) + (0,) * (grid.ndim - k - 1)]) for k in range(grid.ndim)]
    order = sorted(range(grid.ndim), key=lambda k: -steps[k])
    if not np.array_equal(grid.transpose(order).ravel(), np.arange(len(label))):
        return None
    parts: list[Label] = [None] * grid.ndim
    for k, part in zip(order, trace.cells.split(label, [grid.shape[k] for k in order]), strict=True):
        parts[k] = part
    zero = np.zeros(len(label), np.int64)
    return [(int((d[1:] != d[:-1]).sum()), (zero if p is None else p)[d]) for d, p in zip(digits, parts, strict=True)]
