"""Axes: which units of which parameters belong together, read off a label trace; with shapes and MACs."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dagrow.graph import mixing
from dagrow.graph.cells import Numbered
from dagrow.graph.collecting import uncollected
from dagrow.graph.labels import Label
from dagrow.graph.node import Node
from dagrow.graph.trace import Mark, Trace

Shape = tuple[int, ...]
# Importing `mixing` has added all rules.
FIND = mixing.find
_CACHE: OrderedDict[str, Derived] = OrderedDict()
# Tables in all that are held: some 500 bytes each, 60 to 200 of them in an architecture of 50 nodes.
_MOST_TABLES = 2**14
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Use:
    """Where a node uses an axis. `param` ("node.local") and its `axis`, None where no parameter is involved;
    `dim` is the dimension of the node's output (writes, follows) or of its input (reads), batch included."""

    node: str
    param: str | None
    axis: int | None
    dim: int | None


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer."""

    param: str
    axis: int


@dataclass(frozen=True)
class Axis:
    """Units that can only come and go together.

    id: the first node that writes it ("stem.conv"), with "~1" for the second born there. slots: every place it lives.
    writes: weights whose outputs are its units; reads: weights that sum over it; follows: what acts unit by unit (bias,
    batch norm, activations). bilinear, gates, mixes: nodes where activations meet by contraction, meet by product, or
    are summed or normalised over the axis.
    """

    id: str
    size: int
    slots: tuple[Slot, ...]
    writes: tuple[Use, ...]
    reads: tuple[Use, ...]
    follows: tuple[Use, ...]
    bilinear: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """The label of one axis of one tensor in terms of axes.

    codes: [n, k] int64, axis number · 2³² + ordinal of each atom of the index, major to minor, -1 where there is none.
    groups: (axis numbers of an index, how many indices have them).
    """

    codes: np.ndarray
    groups: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def axes(self) -> set[int]:
        return {a for key, _ in self.groups for a in key}


@dataclass(frozen=True)
class Derived:
    """What tracing an architecture tells. Shapes of nodes leave out the batch; MACs are those of one sample."""

    shapes: Mapping[str, Shape]
    params: Mapping[str, Shape]
    buffers: Mapping[str, Shape]
    macs: Mapping[str, int]
    size: int
    axes: Mapping[str, Axis]
    opaque: Mapping[str, tuple[str, ...]]
    # For resize: the axes' numbers are their places in `axes`; a table is missing where all is frozen.
    tables: Mapping[tuple[str, int], Table] = field(repr=False)
    outputs: Mapping[tuple[str, int], Table] = field(repr=False)
    locals: Mapping[str, Mapping[str, str]] = field(repr=False)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.axes)}

    def number(self, axis: str) -> int:
        """The axis' number in the tables."""
        return self._numbers[axis]

    def shape(self, param: str) -> Shape:
        """Of a parameter or buffer."""
        return self.params[param] if param in self.params else self.buffers[param]

    @cached_property
    def owners(self) -> Mapping[str, tuple[str, ...]]:
        """parameter or buffer -> the nodes that hold it: several where it is tied."""
        found: dict[str, tuple[str, ...]] = {}
        for name, local in self.locals.items():
            for full in local.values():
                found[full] = (*found.get(full, ()), name)
        return found

    @cached_property
    def _places(self) -> dict[int, list[tuple[str, int]]]:
        found: dict[int, list[tuple[str, int]]] = {}
        for place, table in self.outputs.items():
            for a in table.axes:
                found.setdefault(a, []).append(place)
        return found

    def places(self, axis: str) -> list[tuple[str, int]]:
        """(node, dimension of its output) that hold the axis."""
        return self._places.get(self.number(axis), [])

    def units(self, axis: str, param: str, dim: int) -> tuple[int, ...]:
        """Which unit of `axis` each index of dimension `dim` of a parameter belongs to; -1 for none."""
        number = self.number(axis)
        table = self.tables.get((param, dim))
        if table is None:
            return (-1,) * self.shape(param)[dim]
        mine = (table.codes >= 0) & (table.codes >> 32 == number)
        return tuple(np.where(mine, table.codes & 0xFFFFFFFF, -1).max(1).tolist())


def derive(digest: str, nodes: Mapping[str, Node], order: Iterable[str], outputs: Iterable[str]) -> Derived:
    """Traces the network, or takes it from the cache. Raises GraphError with the node where shapes do not fit."""
    with _LOCK:
        known = _CACHE.get(digest)
        if known is not None:
            _CACHE.move_to_end(digest)
            return known
    with uncollected():
        made = _read(Trace(FIND).network(nodes, order, outputs), nodes, tuple(order))
    with _LOCK:
        _CACHE[digest] = made
        held = sum(map(_tables_of, _CACHE.values()))
        while held > _MOST_TABLES and len(_CACHE) > 1:
            held -= _tables_of(_CACHE.popitem(last=False)[1])
    return made


def _tables_of(made: Derived) -> int:
    return len(made.tables) + len(made.outputs)


def _read(trace: Trace, nodes: Mapping[str, Node], order: tuple[str, ...]) -> Derived:
    seen = {name: trace.values[name].labels for name in order}
    keys: list[tuple] = [("slot", x.name, k) for x in trace.leaves.values() for k in range(len(x.shape))]
    labels: list[Label] = [label for x in trace.leaves.values() for label in x.labels]
    for name in order:
        keys += [("out", name, k) for k in range(len(seen[name]))]
        labels += seen[name]
    keys += [("mark", k) for k in range(len(trace.marks))]
    labels += [m.cells for m in trace.marks]
    sizes, tables = _tables(trace, keys, labels)

    slots: list[list[Slot]] = [[] for _ in sizes]
    for key, table in tables.items():
        if key[0] == "slot":
            for a in table.axes:
                slots[a].append(Slot(key[1], key[2]))
    marks: list[dict[str, list[Mark]]] = [{} for _ in sizes]
    for k, mark in enumerate(trace.marks):
        for a in tables[("mark", k)].axes if ("mark", k) in tables else ():
            marks[a].setdefault(mark.kind, []).append(mark)
    where: list[dict[str, int]] = [{} for _ in sizes]
    for key, table in tables.items():
        if key[0] == "out":
            for a in table.axes:
                where[a].setdefault(key[1], key[2])

    owners = {full: name for name, local in trace.locals.items() for full in local.values()}
    axes: dict[str, Axis] = {}
    rank = {name: k for k, name in enumerate(order)}
    for a, size in enumerate(sizes):
        axis = _axis(size, slots[a], marks[a], where[a], nodes, owners, rank)
        same = sum(1 for x in axes if x.split("~")[0] == axis.id)
        axis = axis if not same else Axis(**{**axis.__dict__, "id": f"{axis.id}~{same}"})
        axes[axis.id] = axis
    leaves = trace.leaves.values()
    return Derived(
        shapes={name: tuple(trace.values[name].shape[1:]) for name in order},
        params={x.name: x.shape for x in leaves if x.trainable},
        buffers={x.name: x.shape for x in leaves if not x.trainable},
        macs=trace.macs,
        size=sum(math.prod(x.shape) for x in leaves if x.trainable),
        axes=axes,
        opaque={op: tuple(found) for op, found in trace.opaque.items()},
        tables={key[1:]: t for key, t in tables.items() if key[0] == "slot"},
        outputs={key[1:]: t for key, t in tables.items() if key[0] == "out"},
        locals=trace.locals,
    )


def _axis(size, slots, marks, where, nodes, owners, rank) -> Axis:
    def uses(kind: str) -> tuple[Use, ...]:
        found = {}
        for m in marks.get(kind, ()):
            if kind == "reads":
                dim = next((where[i] for i in nodes[m.node].inputs if i in where), None)
            else:
                dim = where.get(m.node)
            found[Use(m.node, m.param, m.axis, dim)] = None
        return tuple(found)

    def at(kind: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.node for m in marks.get(kind, ())))

    writes, reads = uses("writes"), uses("reads")
    taken = {(u.param, u.axis) for u in (*writes, *reads)}
    follows = [Use(owners[s.param], s.param, s.axis, where.get(owners[s.param])) for s in slots if (s.param, s.axis) not in taken]
    active = {u.node for u in (*writes, *reads, *follows)}
    follows += [Use(n, None, None, d) for n, d in where.items() if n not in active]
    follows.sort(key=lambda u: rank[u.node])
    first = min((u.node for u in writes), key=rank.__getitem__, default=follows[0].node if follows else owners[slots[0].param])
    return Axis(first, size, tuple(slots), writes, reads, tuple(follows), at("bilinear"), at("gates"), at("mixes"))


def _tables(trace: Trace, keys: list[tuple], labels: list[Label]) -> tuple[list[int], dict[tuple, Table]]:
    """Sizes of the axes, and the table of every label that is not all frozen."""
    # What only passes values on hands on the label itself: one table serves all of them.
    distinct = {id(label): label for label in labels if label is not None and len(label)}
    if not distinct:
        return [], {}
    live = list(distinct.values())
    lengths = np.array([len(label) for label in live])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    known = trace.cells.number()
    cells = known.name[np.concatenate(live)]
    code, composite = known.codes[cells], trace.cells.composite(cells)
    mixed = np.logical_or.reduceat(composite, starts)

    which = np.arange(len(live)).repeat(lengths)
    pairs, counts = np.unique(which * 2**32 + np.where(code < 0, 2**32 - 1, code >> 32), return_counts=True)
    groups: list[list] = [[] for _ in live]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        k, a = divmod(pair, 2**32)
        groups[k].append(((a,) if a != 2**32 - 1 else (), count))
    inside = mixed[which]
    spelled = _spelled(known, cells[inside], composite[inside], lengths[mixed])
    tables: dict[int, Table] = {}
    for k, name in enumerate(distinct):
        rows = code[starts[k] : ends[k], None]
        if mixed[k]:
            rows, groups[k] = next(spelled)
        if any(signature for signature, _ in groups[k]):
            tables[name] = Table(rows, tuple(groups[k]))
    return known.sizes, {key: tables[id(label)] for key, label in zip(keys, labels, strict=True) if id(label) in tables}


def _spelled(known: Numbered, cells: np.ndarray, composite: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, list]]:
    """Of labels with products, laid one after another: the codes of the atoms side by side, major to minor, and the groups in order of
    appearance."""
    if not len(cells):
        return
    width = np.where(composite, known.count[cells], 1)
    rows = np.full((len(cells), width.max()), -1)
    rows[:, 0] = known.codes[cells]
    many = np.flatnonzero(composite)
    for k in range(rows.shape[1]):
        here = many[width[many] > k]
        rows[here, k] = known.codes[known.atoms[known.start[cells[here]] + k]]
    axes, ends = rows >> 32, np.cumsum(lengths)
    starts = ends - lengths
    # Most have the same axes all along: then one index stands for all.
    alike = np.logical_and.reduceat((axes == axes[starts.repeat(lengths)]).all(1), starts)
    for start, end, same in zip(starts.tolist(), ends.tolist(), alike.tolist(), strict=True):
        counted = Counter(tuple(a for a in row if a >= 0) for row in axes[start : start + 1 if same else end].tolist())
        yield rows[start:end, : width[start:end].max()], [(a, end - start if same else count) for a, count in counted.items()]
