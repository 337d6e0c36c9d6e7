"""resize: widen, prune, permute and clone units in one; and transfer, which carries tensors along."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dagrow.errors import GraphError, nearest
from dagrow.graph.architecture import Architecture
from dagrow.graph.axes import Axis, Derived, Table
from dagrow.graph.node import Node
from dagrow.graph.zeros import numbers_stay, zero_slots

MOST = 2**20


@dataclass(frozen=True)
class Move:
    """How one axis of one parameter or buffer is filled: index[new] = old, or -1 for a newborn."""

    param: str
    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Rewrite:
    """A changed architecture and what happens to the tensors of the old one.

    Parameters of `arch` the old one lacks are fresh; parameters `arch` lacks are dropped. zero: the (parameter, axis)
    slots whose newborn entries must be 0 to keep the function; None where zeros alone do not keep it. settle: where more is
    needed than zeros, (old tensors, tensors carried over with those zeros) -> the tensors that must differ from the latter.
    """

    arch: Architecture
    moves: tuple[Move, ...]
    zero: tuple[tuple[str, int], ...] | None
    settle: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]] | None = field(default=None, repr=False, compare=False)

    @property
    def keeps(self) -> bool:
        """Whether there are values of the newborns at which the function is that of the old network."""
        return self.zero is not None or self.settle is not None


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite cannot be, and the nodes it is about."""

    reason: str
    nodes: tuple[str, ...] = ()


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
        index = _place(old, new.derived.tables[param, axis], changed)
        if index is None:
            return Refusal(f"the units of {param} axis {axis} change their structure", _nodes(derived, wanted))
        if not np.array_equal(index, np.arange(len(old.codes))):
            moves.append(Move(param, axis, tuple(index.tolist())))
    zero = zero_slots(arch, wanted)
    return Rewrite(new, tuple(moves), zero if zero is None or numbers_stay(arch, new) else None)


def transfer(rewrite: Rewrite, old: Mapping[str, Tensor], newborn: Mapping[str, Tensor] | float) -> dict[str, Tensor]:
    """Tensors for every parameter and buffer of `rewrite.arch`: moved from `old`, or newborn.

    newborn: a number (optimizer moments, steps), or tensors of the new shapes (a fresh initialisation). With a number,
    buffers `old` does not hold are left out. Raises GraphError where a tensor of `old` has not the old shape.
    """
    arch = rewrite.arch
    moves: dict[str, list[Move]] = {}
    for move in rewrite.moves:
        moves.setdefault(move.param, []).append(move)
    like = next((t for t in old.values() if t.is_floating_point()), torch.empty(0))
    number = not isinstance(newborn, Mapping)
    made: dict[str, Tensor] = {}
    for name, shape in {**arch.params, **arch.buffers}.items():
        if name in old:
            made[name] = _moved(name, shape, old[name], moves.get(name, []), newborn if number else newborn.get(name))
        elif not number:
            made[name] = newborn[name].detach().clone()
        elif name in arch.params:
            made[name] = like.new_full(shape, newborn)
    return made


def preserving(rewrite: Rewrite, old: Mapping[str, Tensor], newborn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`transfer`, with the newborns set so that the network computes what it did before. Raises GraphError where none do so."""
    if not rewrite.keeps:
        raise GraphError("this rewrite changes the function of the network")
    made = transfer(rewrite, old, newborn)
    born = {(m.param, m.axis): [k for k, source in enumerate(m.index) if source < 0] for m in rewrite.moves}
    for name, axis in rewrite.zero or ():
        if name not in old:
            made[name] = torch.zeros_like(made[name])
        elif born.get((name, axis)):
            made[name].index_fill_(axis, torch.tensor(born[name, axis], device=made[name].device), 0)
    return made if rewrite.settle is None else {**made, **rewrite.settle(old, made)}


def _moved(name: str, shape: tuple[int, ...], value: Tensor, moves: list[Move], newborn: Tensor | float | None) -> Tensor:
    value = value.detach()
    born = []
    for move in moves:
        index = torch.tensor(move.index, device=value.device)
        if max(move.index) >= value.shape[move.axis]:
            raise GraphError(f"{name} is {list(value.shape)}, its axis {move.axis} is too short for the rewrite")
        value = value.index_select(move.axis, index.clamp(min=0))
        if min(move.index) < 0:
            born.append((move.axis, (index < 0).nonzero().flatten()))
    if not moves:
        value = value.clone()
    if tuple(value.shape) != shape:
        raise GraphError(f"{name} is {list(value.shape)} after the rewrite, it should be {list(shape)}")
    for axis, places in born:
        if isinstance(newborn, Tensor):
            fill = newborn.detach().to(value.device, value.dtype).index_select(axis, places)
            value.index_copy_(axis, places, fill)
        elif newborn is None:
            raise GraphError(f"no newborn values for {name}")
        else:
            value.index_fill_(axis, places, newborn)
    return value


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
    for attribute, (place, dim) in rule.grids.items():
        source = node.inputs[place]
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


def _place(old: Table, new: Table, keep: Mapping[int, np.ndarray]) -> np.ndarray | None:
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
    _, where = _codes(np.concatenate([old.codes, mapped]))
    size = len(old.codes)
    times = np.concatenate([_occurrence(where[:size]), _occurrence(_codes(new.codes)[1])])
    key = where * (len(where) + 1) + times
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


def _codes(rows: np.ndarray) -> tuple[int, np.ndarray]:
    """(how many distinct rows, the number of each row's kind). The order of axes within a row does not matter; of two units
    of one axis, as where a channel shuffle leads groups into groups, it says which is which."""
    if rows.shape[1] == 1:
        kinds, where = np.unique(rows[:, 0], return_inverse=True)
    else:
        laid = np.take_along_axis(rows, np.argsort(rows >> 32, 1, kind="stable"), 1)
        kinds, where = np.unique(laid, axis=0, return_inverse=True)
    return len(kinds), where.reshape(-1)


def _occurrence(kinds: np.ndarray) -> np.ndarray:
    """For each place, how often its kind came before."""
    order = np.argsort(kinds, kind="stable")
    laid = kinds[order]
    start = np.flatnonzero(np.r_[True, laid[1:] != laid[:-1]]) if len(laid) else np.empty(0, int)
    made = np.empty(len(kinds), np.int64)
    made[order] = np.arange(len(laid)) - np.repeat(start, np.diff(np.r_[start, len(laid)]))
    return made
