"""resize: widen, prune, permute and clone units in one."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dagrow.errors import GraphError, nearest
from dagrow.graph.architecture import Architecture
from dagrow.graph.axes import Axis, Derived, Table
from dagrow.graph.node import Node
from dagrow.graph.placing import place
from dagrow.graph.rewriting import Move, Refusal, Rewrite
from dagrow.graph.zeros import numbers_stay, zero_slots

MOST = 2**20


def resize(arch: Architecture, keep: Mapping[str, Sequence[int]]) -> Rewrite | Refusal:
    """Each axis of `keep` gets the units index[new] = old, -1 for a newborn; others stay.

    An old unit left out is pruned. One named twice is cloned: all copies get its weights, also where the axis is read,
    so the function changes unless the caller divides the reads. Order is free. Refused: an unknown axis, an index out
    of range, one that is empty or keeps no old unit, what is not a list of whole numbers, more than 2**20 indices anywhere,
    and what would change the structure of the axes (a depthwise convolution down to one channel is an ordinary one).
    """
    derived = arch.derived
    wanted: dict[str, tuple[int, ...]] = {}
    for name, index in keep.items():
        found = _index(derived, name, index)
        if isinstance(found, Refusal):
            return found
        wanted[name] = found
    numbers = {name: k for k, name in enumerate(derived.axes)}
    changed = {numbers[name]: np.array(index, np.int64) for name, index in wanted.items()}
    new = _rebuild(arch, {a: len(index) for a, index in changed.items()})
    if isinstance(new, Refusal):
        return new
    refusal = _compare(derived, new.derived, wanted)
    if refusal is not None:
        return refusal
    moves = []
    for (param, axis), old in derived.tables.items():
        if old.axes.isdisjoint(changed):
            continue
        index = place(old, new.derived.tables[param, axis], changed)
        if index is None:
            return Refusal(f"the units of {param} axis {axis} change their structure", _nodes(derived, wanted))
        if not np.array_equal(index, np.arange(len(old.codes))):
            moves.append(Move(param, axis, tuple(index.tolist())))
    zero = zero_slots(arch, wanted)
    return Rewrite(new, tuple(moves), zero if zero is None or numbers_stay(arch, new) else None)


def _index(derived: Derived, name: str, index: Sequence[int]) -> tuple[int, ...] | Refusal:
    axis = derived.axes.get(name)
    if axis is None:
        near = nearest(name, derived.axes)
        return Refusal(f"there is no axis {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    try:
        if len(index) > MOST:
            return Refusal(f"axis {name!r} would have more than {MOST} units", _nodes(derived, [name]))
        # True is a whole number to Python; a set has no order, and of a mapping nobody knows what is meant.
        odd = isinstance(index, (set, frozenset, Mapping)) or any(isinstance(i, bool) for i in index)
        found = None if odd else tuple(operator.index(i) for i in index)
    except OverflowError:
        return Refusal(f"axis {name!r} would have more than {MOST} units", _nodes(derived, [name]))
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None:
        return Refusal(f"the index of axis {name!r} is not a list of whole numbers", _nodes(derived, [name]))
    if not found:
        return Refusal(f"axis {name!r} would be left without units", _nodes(derived, [name]))
    if max(found) < 0 and min(found) == -1:
        return Refusal(f"axis {name!r} would keep none of its units: nothing would be left of what it was", _nodes(derived, [name]))
    if min(found) < -1 or max(found) >= axis.size:
        wrong = next(i for i in found if not -1 <= i < axis.size)
        return Refusal(f"axis {name!r} has units 0 to {axis.size - 1}, there is no {wrong}", _nodes(derived, [name]))
    return found


def _nodes(derived: Derived, names) -> tuple[str, ...]:
    return tuple(dict.fromkeys(u.node for n in names for u in derived.axes[n].writes))


def _size(table: Table, old: Sequence[int], new: Mapping[int, int]) -> int:
    """How many indices a label has once the axes have their new sizes."""
    total = 0
    for axes, count in table.groups:
        total += count * _ways(axes, [new.get(a, old[a]) for a in axes]) // _ways(axes, [old[a] for a in axes])
    return total


def _ways(axes: Sequence[int], sizes: Sequence[int]) -> int:
    """In how many ways each of the axes gives one unit; one that stands there twice gives two different ones."""
    return math.prod(size - axes[:k].count(a) for k, (a, size) in enumerate(zip(axes, sizes, strict=True)))


def _torn(derived: Derived, old: Sequence[int], new: Mapping[int, int]) -> Refusal | None:
    """A refusal where some of the units of an axis of another size were cut off: how many there would be is not known."""
    resized = {a for a, size in new.items() if size != old[a]}
    for (name, k), table in (*derived.tables.items(), *derived.outputs.items()):
        for axes, count in table.groups:
            if not resized.isdisjoint(axes) and count % _ways(axes, [old[a] for a in axes]):
                return Refusal(f"dimension {k} of {name} has some of the units only", (name,) if name in derived.shapes else derived.owners[name])
    return None


def _rebuild(arch: Architecture, new: Mapping[int, int]) -> Architecture | Refusal:
    """The same nodes with the attributes that follow from new sizes of axes."""
    derived = arch.derived
    old = [axis.size for axis in derived.axes.values()]
    torn = _torn(derived, old, new)
    if torn is not None:
        return torn
    params: dict[str, tuple[int, ...]] = {**derived.params, **derived.buffers}
    shapes = dict(derived.shapes)
    touched: set[str] = set()
    for (name, k), table in derived.tables.items():
        if not table.axes.isdisjoint(new):
            size = _size(table, old, new)
            if size > MOST:
                return Refusal(f"axis {k} of {name} would have {size} indices, more than {MOST}")
            params[name] = (*params[name][:k], size, *params[name][k + 1 :])
            touched.add(name)
    for (name, k), table in derived.outputs.items():
        if not table.axes.isdisjoint(new):
            shapes[name] = (*shapes[name][: k - 1], _size(table, old, new), *shapes[name][k:])
            touched.add(name)
    nodes = {}
    for name, node in arch.nodes.items():
        local = derived.locals[name]
        if touched.isdisjoint(local.values()) and touched.isdisjoint(node.inputs):
            continue
        attrs = _regrouped(derived, node, old, new)
        attrs = node.rule.resize(attrs, {k: params[full] for k, full in local.items()}, shapes[name], *(shapes[i] for i in node.inputs))
        if attrs != node.attrs:
            nodes[name] = type(node)(node.op, node.inputs, attrs, node.tied)
    try:
        made = arch.replace(nodes)
        wrong = [n for n in arch.nodes if made.shapes[n] != shapes[n]]
        found = {**made.params, **made.buffers}
        wrong += [n for n, local in derived.locals.items() if any(params[p] != found.get(p) for p in local.values())]
        if wrong:
            reason = f"the axes change their structure: {wrong[0]!r} would have another shape than they say"
            return Refusal(reason, tuple(dict.fromkeys(wrong)))
    except GraphError as error:
        return Refusal(error.message, (error.node,) if error.node else ())
    return made


def _regrouped(derived: Derived, node: Node, old: Sequence[int], new: Mapping[int, int]) -> object:
    """The node's attributes with its `grids` as the new sizes have them, and what is to stay as it is written out."""
    rule, found = node.rule, {}
    for attribute, (position, dim) in rule.grids.items():
        source = node.inputs[position]
        table = derived.outputs.get((source, dim % (len(derived.shapes[source]) + 1)))
        if table is not None and not table.axes.isdisjoint(new):
            found[attribute] = _size(_major(table, getattr(node.attrs, attribute), old), old, new)
    attrs = rule.pinned(node.attrs, *(derived.shapes[i] for i in node.inputs))
    return attrs.model_copy(update=found) if found else attrs


def _major(table: Table, rows: int, old: Sequence[int]) -> Table:
    """What is left of a label laid out in `rows` equal parts when each is one index: the axes that stay the same within a part."""
    laid = table.codes.reshape(rows, -1, table.codes.shape[1])
    kept = laid[:, 0].copy()
    for a in table.axes:
        mine = np.where(laid >> 32 == a, laid, -1).max(2)
        # Of two axes side by side the last is that within the parts, also where these have one index.
        ends = [next((c for c in row[::-1] if c >= 0), -1) >> 32 for row in laid[:, 0].tolist()]
        last = laid.shape[1] == 1 and old[a] == 1 and len(table.axes) > 1 and set(ends) == {a}
        if last or (mine != mine[:, :1]).any():
            kept[kept >> 32 == a] = -1
    counted = Counter(tuple(int(c) >> 32 for c in row if c >= 0) for row in kept.tolist())
    return Table(kept, tuple(counted.items()))


def _compare(old: Derived, new: Derived, wanted: Mapping[str, Sequence[int]]) -> Refusal | None:
    def structure(axis: Axis) -> tuple:
        return axis.slots, axis.writes, axis.reads, axis.bilinear, axis.gates, axis.mixes

    if list(old.axes) == list(new.axes):
        wrong = [
            n for n, axis in old.axes.items()
            if structure(axis) != structure(new.axes[n]) or new.axes[n].size != len(wanted.get(n, range(axis.size)))
        ]
    else:
        wrong = sorted(set(old.axes) ^ set(new.axes)) or list(old.axes)
    if wrong or old.tables.keys() != new.tables.keys():
        return Refusal(f"the axes change their structure ({', '.join(wrong[:4])})", tuple(n for n in _nodes(old, wanted)))
    return None
