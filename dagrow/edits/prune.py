"""prune: fewer units where units are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pydantic
import torch

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.shares import columns_of, kept_units
from dagrow.edits.widen import Count, affine_users, numbers, units_of
from dagrow.graph import Architecture, Cost, Refusal, Rewrite, resize, resized_cost
from dagrow.graph.axes import Axis
from dagrow.measure import Pass
from dagrow.measure.carrying import Unsupported
from dagrow.measure.features import grouped
from dagrow.measure.sites import Drop, Recast, Site, slopes_of
from dagrow.scores import Proposal

# Of units that only running the smaller network can tell apart so many are tried, those of the smallest weights.
TRIED = 8


@REGISTRY.register("prune")
class Prune(Edit):
    """Removes units of an axis, wherever it lives; the survivors make up for what they can.

    Units, channels, features of tokens, heads and their width, groups, experts. Where what they add up to is read by linear
    layers, those make up for the loss by least squares; elsewhere the units are left out one by one and the network is run.
    """

    preserves = False
    examples = ({"units": (1, 2)},)

    class Options(EditOptions):
        """`where` is matched against the nodes that write the axis, and its name."""

        units: tuple[Count, ...] | Count = pydantic.Field(1, description="units to remove at once; a list offers each")
        min: Count = pydantic.Field(1, description="the fewest units an axis keeps")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for axis in arch.axes.values():
            form = units_of(arch, axis)
            if not options.covers(*(form.writers if form is not None else (axis.id, *(u.node for u in axis.writes)))):
                continue
            spare = axis.size - options.min
            units = sorted({u for u in numbers(options.units) if u <= spare and (form is not None or _can_lose(arch, axis, u))})
            if units:
                yield Site("prune", axis.id, _form(arch, axis), tuple(units), (axis.id, axis.size))

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        return resized_cost(arch, site.detail[0], len(proposal.keep or ())) or super().price(arch, site, proposal)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return kept_units(arch, site.detail[0], proposal)


def _can_lose(arch: Architecture, axis: Axis, units: int) -> bool:
    """Whether the axis is one with so many less: what a group of one is cannot be told from no group."""
    known = arch.memo.setdefault("can_lose", {})
    if (axis.id, units) not in known:
        known[axis.id, units] = not isinstance(resize(arch, {axis.id: range(axis.size - units)}), Refusal)
    return known[axis.id, units]


def _form(arch: Architecture, axis: Axis) -> Drop | Recast:
    readers = _readers(arch, axis)
    if readers:
        return Drop(axis.id, axis.size, readers, tuple(arch.derived.units(axis.id, f"{r}.weight", 1) for r in readers))
    return Recast(arch, False, partial(kept_units, arch, axis.id), plan=partial(_plan, axis.id))


def _readers(arch: Architecture, axis: Axis) -> tuple[str, ...]:
    """The linear layers that read the axis, where nothing else does anything with several of its units; none otherwise."""
    form = units_of(arch, axis)
    if form is not None:
        return form.readers
    readers = () if axis.mixes or axis.bilinear else affine_users(arch, axis.reads)
    plain = {(f"{r}.weight", 1) for r in readers if not grouped(arch.nodes[r])}
    untied = all(len(arch.derived.owners[u.param]) == 1 for u in axis.reads)
    return readers if untied and plain == {(u.param, u.axis) for u in axis.reads} else ()


def _plan(axis: str, seen: Pass, units: int) -> Proposal:
    """Of the units of the smallest weights those that the network is best without, each left out alone."""
    arch, found = seen.arch, seen.arch.axes[axis]
    size = torch.zeros(found.size, dtype=torch.float64)
    for slot in found.slots:
        if slot.param in seen.arch.params:
            weight = seen.weights[slot.param].double().movedim(slot.axis, 0)
            size += torch.stack([weight[there].square().sum() for there in columns_of(arch, found, (slot.param, slot.axis))])
    small = torch.argsort(torch.nan_to_num(size), stable=True)[: max(units, TRIED)].tolist()
    made = {u: Proposal(units=1, keep=tuple(k for k in range(found.size) if k != u)) for u in small}
    refused = next((r for u in small if isinstance(r := kept_units(arch, axis, made[u]), Refusal)), None)
    if refused is not None:
        return Proposal("unsupported", refused.reason)
    form = Recast(arch, False, partial(kept_units, arch, axis))
    worth = {}
    for u in small:
        try:
            s, t = slopes_of(form, seen, form.effect(seen, made[u]))
        except Unsupported:
            continue
        worth[u] = float(s.mean() - t.square().mean() / 2)
    if len(worth) < units:
        return Proposal("unsupported", "its units change outputs that are not scored")
    goes = set(sorted(worth, key=lambda u: -worth[u])[:units])
    return Proposal(units=units, keep=tuple(k for k in range(found.size) if k not in goes))
