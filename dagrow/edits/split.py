"""split: a unit becomes two that share what it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import pydantic
import torch
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.shares import Shared, activations, columns_of, divided, given_over, shared
from dagrow.edits.widen import Count, numbers
from dagrow.graph import Architecture, Cost, Refusal, Rewrite, resized_cost
from dagrow.measure import Pass
from dagrow.measure.sites import Recast, Site
from dagrow.scores import Proposal


@REGISTRY.register("split")
class Split(Edit):
    """Clones the units that do most, each clone with its part of what the unit did: the function stays (Net2WiderNet).

    Chen, Goodfellow, Shlens 2016. Works wherever units are added up: vectors, maps, tokens, gates, and the products of
    attention, of which one side is divided. Units that are normalised together cannot share; `widen` has other ways there.
    """

    preserves = True
    undone_by = ("merge",)
    examples = ({"uneven": 0.0}, {"units": 2, "uneven": 0.25})

    class Options(EditOptions):
        units: tuple[Count, ...] | Count = pydantic.Field(1, description="units to split at once; a list offers each")
        max: Count | None = pydantic.Field(None, description="the most units an axis may have")
        uneven: float = pydantic.Field(0.2, ge=0, lt=1, description="clones have (1 ± uneven) / 2 of what the unit did; at 0 they are equal, and learn the same")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for axis in arch.axes.values():
            share = shared(arch, axis)
            if share is None or not options.covers(axis.id, *(u.node for u in axis.writes)):
                continue
            room = min((options.max or 2**20) - axis.size, axis.size)
            units = tuple(sorted({min(u, room) for u in numbers(options.units)} - {0}))
            if room > 0:
                form = Recast(
                    arch, True, partial(_made, arch, axis.id, share, options.uneven), "clones do what one did before: only training tells them apart",
                    partial(_plan, axis.id, share),
                )
                yield Site("split", axis.id, form, units, (axis.id, axis.size, options.uneven))

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        axis, size, _ = site.detail
        return resized_cost(arch, axis, size + proposal.units) or super().price(arch, site, proposal)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        axis, _, uneven = site.detail
        share = shared(arch, arch.axes[axis]) if axis in arch.axes else None
        return Refusal(f"there is no axis {axis!r} to split") if share is None else _made(arch, axis, share, uneven, proposal)

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        axis, size, uneven = site.detail
        index = _index(size, proposal)
        if uneven or len(set(index[size:])) < len(index) - size:
            return None  # thirds do not add up to the bit
        wide = divided(arch, axis, index, shared(arch, arch.axes[axis])).arch
        pairs = [(old, size + k, None) for k, old in enumerate(index[size:])]
        return "merge", axis, given_over(wide, axis, shared(wide, wide.axes[axis]), weights, pairs)


def _index(size: int, proposal: Proposal) -> tuple[int, ...]:
    return (*range(size), *(k % size for k in range(proposal.units))) if proposal.keep is None else tuple(proposal.keep)


def _made(arch: Architecture, axis: str, share: Shared, uneven: float, proposal: Proposal) -> Rewrite | Refusal:
    size = arch.axes[axis].size
    index = _index(size, proposal)
    if sorted(set(index)) != [*range(size)]:
        return Refusal(f"the units of {axis} are 0 to {size - 1}: each of them stays, and clones come from them")
    return divided(arch, axis, index, share, uneven)


def _plan(axis: str, share: Shared, seen: Pass, units: int) -> Proposal:
    """The units that do most: by the size of what they add, to first order in their spread."""
    arch, found = seen.arch, seen.arch.axes[axis]
    does = torch.zeros(found.size, dtype=torch.float64)
    for slot, carrier in zip(share.slots, share.carriers, strict=True):
        weight = seen.weights[slot[0]].double().movedim(slot[1], 0)
        size = torch.stack([weight[there].norm() for there in columns_of(arch, found, slot)])
        h = None if carrier is None else activations(seen, found, *carrier)
        does += size * (1.0 if h is None else h.std(1))
    most = torch.argsort(-torch.nan_to_num(does), stable=True)[:units].tolist()
    return Proposal(units=units, keep=(*range(found.size), *sorted(most)))
