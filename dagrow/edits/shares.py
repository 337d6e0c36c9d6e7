"""Units that stand for one another: where what they add up to is divided among clones, and what is left to the one that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dagrow.edits.steady import keeps, parts_of
from dagrow.graph import Architecture, Refusal, Rewrite, resize
from dagrow.graph.axes import Axis
from dagrow.measure import Pass, Proposal

CELLS = 4096  # rows and positions on which units are compared


def kept_units(arch: Architecture, axis: str, proposal: Proposal) -> Rewrite | Refusal:
    """The axis with the units that the proposal keeps."""
    if proposal.keep is None or len(set(proposal.keep)) < len(proposal.keep):
        return Refusal(f"the units of {axis} that stay have to be named, each once")
    return resize(arch, {axis: proposal.keep})


@dataclass(frozen=True)
class Shared:
    """Where the units of an axis are added up: `slots`, the (parameter, axis) by which one unit's part is scaled, and for each
    the (node, dimension of its output) that carries the units it scales; None where no node does, as within an expert."""

    slots: tuple[tuple[str, int], ...]
    carriers: tuple[tuple[str, int] | None, ...]


def shared(arch: Architecture, axis: Axis) -> Shared | None:
    """None where clones cannot share what they add up to: units that are mixed, or read by no parameter of their own."""
    known = arch.memo.setdefault("shared", {})
    if axis.id not in known:
        known[axis.id] = _shared(arch, axis)
    return known[axis.id]


def _shared(arch: Architecture, axis: Axis) -> Shared | None:
    if axis.mixes:
        return None
    if not axis.bilinear:
        carried: dict[tuple[str, int], tuple[str, int] | None] = {}
        for u in axis.reads:
            carried[u.param, u.axis] = next(((i, u.dim) for i in arch.nodes[u.node].inputs if _carries(arch, axis.id, i, u.dim)), None)
        if not carried or {(u.param, u.axis) for u in (*axis.writes, *axis.follows)} & set(carried):
            return None  # a tied weight: what divides the reads would divide the units
        made = Shared(tuple(carried), tuple(carried.values()))
        return made if None not in made.carriers or _exact(arch, axis, made) else None
    # One side of the product is divided, the other compared.
    nodes = list(dict.fromkeys(u.node for u in axis.writes))
    if axis.reads or len(nodes) != 2:
        return None
    slots = tuple(dict.fromkeys((u.param, u.axis) for u in (*axis.writes, *axis.follows) if u.node == nodes[0] and u.param))
    dim = next((u.dim for u in axis.writes if u.node == nodes[1]), None)
    if dim is None or not slots:
        return None
    made = Shared(slots, ((nodes[1], dim),) * len(slots))
    return made if _exact(arch, axis, made) else None  # what lies between a side and the product may not be linear


def _exact(arch: Architecture, axis: Axis, share: Shared) -> bool:
    rewrite = divided(arch, axis.id, (*range(axis.size), 0), share)
    return isinstance(rewrite, Rewrite) and keeps(arch, rewrite)


def _carries(arch: Architecture, axis: str, node: str, dim: int | None) -> bool:
    return (node, dim) in arch.derived.outputs and arch.derived.number(axis) in arch.derived.outputs[node, dim].axes


def divided(arch: Architecture, axis: str, index: Sequence[int], share: Shared, uneven: float = 0.0) -> Rewrite | Refusal:
    """The axis with clones: each has its part of what the one they come from added; with `uneven`, not all the same part."""
    made = resize(arch, {axis: index})
    if isinstance(made, Refusal):
        return made
    slots = set(share.slots)

    def settle(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for move in made.moves:
            if (move.param, move.axis) in slots:
                value = found.get(move.param, new[move.param])
                parts = parts_of(move.index, uneven).to(value.device, value.dtype)
                found[move.param] = value * parts.view([-1 if k == move.axis else 1 for k in range(value.dim())])
        return found

    return Rewrite(made.arch, made.moves, None, settle)


def places_of(arch: Architecture, axis: str, node: str, dim: int) -> np.ndarray:
    """Which unit of the axis each index along `dim` of a node's output carries; -1 for none."""
    codes, number = arch.derived.outputs[node, dim].codes, arch.derived.number(axis)
    return np.where((codes >= 0) & (codes >> 32 == number), codes & 0xFFFFFFFF, -1).max(1)


def activations(seen: Pass, axis: Axis, node: str, dim: int) -> Tensor | None:
    """The units' values where a node carries them: [units, cells], fp64; None where one has more places than another."""
    which = places_of(seen.arch, axis.id, node, dim)
    order = [np.flatnonzero(which == u) for u in range(axis.size)]
    if len({len(o) for o in order}) != 1 or not len(order[0]):
        return None
    value = seen.values[node].double().movedim(dim, 0)
    value = value.reshape(len(value), -1)
    value = value[:, torch.arange(0, value.shape[1], max(1, value.shape[1] * len(order[0]) // CELLS))]
    return value[torch.tensor(np.stack(order))].flatten(1)


def fed(arch: Architecture, axis: Axis, share: Shared, weights: Mapping[str, Tensor]) -> Tensor | None:
    """What makes the units, where no node carries them: the parameters by which nothing is shared, [units, values], fp64."""
    parts = []
    for slot in axis.slots:
        if (slot.param, slot.axis) not in share.slots and slot.param in arch.params:
            places, weight = columns_of(arch, axis, (slot.param, slot.axis)), weights[slot.param].detach().double().movedim(slot.axis, 0)
            parts.append([weight[there].flatten() for there in places])
    if any(len({len(row) for row in part}) != 1 for part in parts):
        return None
    return torch.cat([torch.stack(part) for part in parts], 1) if parts else None


def columns_of(arch: Architecture, axis: Axis, slot: tuple[str, int]) -> list[Tensor]:
    """For each unit its indices along a parameter's axis."""
    which = np.array(arch.derived.units(axis.id, *slot))
    return [torch.tensor(np.flatnonzero(which == u)) for u in range(axis.size)]


def given_over(
    arch: Architecture, axis: str, share: Shared, weights: Mapping[str, Tensor], pairs: Sequence[tuple[int, int, Sequence[float] | None]]
) -> Proposal:
    """Units that leave what they did to others: (who stays, who goes, how much of it the other has, slot by slot; None: all)."""
    found, gone = arch.axes[axis], {goes for _, goes, _ in pairs}
    shift: dict[str, Tensor] = {}
    for k, slot in enumerate(share.slots):
        places, weight = columns_of(arch, found, slot), weights[slot[0]].detach().double()
        more = shift.get(slot[0], torch.zeros_like(weight)).movedim(slot[1], 0)
        for stays, goes, times in pairs:
            more[places[stays]] += weight.movedim(slot[1], 0)[places[goes]] * (1.0 if times is None else times[k])
        shift[slot[0]] = more.movedim(0, slot[1])
    return Proposal(units=len(gone), keep=tuple(u for u in range(found.size) if u not in gone), shift=shift)
