"""What a resized architecture would cost, without building it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dagrow.graph.architecture import Architecture
from dagrow.graph.resizing import MOST


class Cost(NamedTuple):
    """Trainable parameters, and MACs of one forward of one sample."""

    size: int
    macs: int


def resized_cost(arch: Architecture, axis: str, units: int) -> Cost | None:
    """The cost of `arch` once `axis` has `units` units; None where only `resize` can tell, which may also refuse.

    MACs of an affine node go with the entries of its weight, as long as the positions stay; where all that lives on the axis
    lists its units plainly, one label an index, resizing can change no structure.
    """
    derived = arch.derived
    found = derived.axes.get(axis)
    if found is None or units < 2 or found.size < 2 or found.bilinear:
        return None
    number = derived.number(axis)
    if not _at_units(arch, axis):
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in found.slots:
        table = derived.tables[slot.param, slot.axis]
        if table.codes.shape[1] != 1:
            return None
        carried = int(np.count_nonzero(table.codes[:, 0] >> 32 == number)) if len(table.axes) > 1 else sum(c for a, c in table.groups if a)
        shape = shapes.get(slot.param) or derived.shape(slot.param)
        length = shape[slot.axis] + carried // found.size * (units - found.size)
        if carried % found.size or length > MOST:
            return None
        shapes[slot.param] = (*shape[: slot.axis], length, *shape[slot.axis + 1 :])
    size, macs = arch.size, arch.macs
    for param, shape in shapes.items():
        before, after = math.prod(derived.shape(param)), math.prod(shape)
        size += after - before if param in derived.params else 0
        for name in derived.owners[param]:
            node = arch.nodes[name]
            affine = node.rule.role == "affine"
            if node.tied or (derived.macs[name] and not affine) or getattr(node.attrs, "groups", 1) != 1:
                return None
            if affine and param == f"{name}.weight":
                macs += derived.macs[name] * after // before - derived.macs[name]
    return Cost(size, macs)


def _at_units(arch: Architecture, axis: str) -> bool:
    """Whether all that counts MACs is affine and has the axis as its units or among what it sums over: no number of positions changes."""
    places = arch.derived.places(axis)
    for name, dim in places:
        for reader in (name, *arch.consumers[name]):
            node = arch.nodes[reader]
            if not arch.derived.macs[reader]:
                continue
            last = len(arch.shapes[name])
            if node.rule.role != "affine" or dim != (last if node.rule.channels == -1 else node.rule.channels):
                return False
    return True
