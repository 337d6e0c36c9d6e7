"""merge: two units that do nearly the same become one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pydantic
import torch
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.shares import Shared, activations, columns_of, fed, given_over, kept_units, shared
from dagrow.edits.widen import Count, numbers
from dagrow.graph import Architecture, Cost, Refusal, Rewrite, resized_cost
from dagrow.measure import Pass
from dagrow.measure.sites import Recast, Site
from dagrow.scores import Proposal


@REGISTRY.register("merge")
class Merge(Edit):
    """Removes the unit that another does best without: the other takes over what it added, scaled by least squares.

    Where `prune` lets all survivors make up for a unit, here one does, so that it also works where units meet as products.
    Nothing is lost where one unit is a multiple of another, as clones are.
    """

    preserves = False
    examples = ({"units": 2},)

    class Options(EditOptions):
        units: tuple[Count, ...] | Count = pydantic.Field(1, description="units to remove at once; a list offers each")
        min: Count = pydantic.Field(1, description="the fewest units an axis keeps")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for axis in arch.axes.values():
            share = shared(arch, axis)
            if share is None or not options.covers(axis.id, *(u.node for u in axis.writes)):
                continue
            units = tuple(sorted({u for u in numbers(options.units) if u <= axis.size - options.min}))
            if units:
                yield Site("merge", axis.id, Recast(arch, False, partial(kept_units, arch, axis.id), plan=partial(_plan, axis.id, share)), units, (axis.id,))

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        return resized_cost(arch, site.detail[0], len(proposal.keep or ())) or super().price(arch, site, proposal)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return kept_units(arch, site.detail[0], proposal)


def _plan(axis: str, share: Shared, seen: Pass, units: int) -> Proposal:
    """One after another the pair of units that loses least, by what is left of one without the other where they are added up."""
    arch, found = seen.arch, seen.arch.axes[axis]
    size, moments, sizes = found.size, [], []
    for slot, carrier in zip(share.slots, share.carriers, strict=True):
        h = fed(arch, found, share, seen.weights) if carrier is None else activations(seen, found, *carrier)
        if h is None:
            return Proposal("unsupported", f"units of {axis} have more places in {carrier[0] if carrier else axis} than others")
        moments.append(h @ h.T / h.shape[1])
        weight = seen.weights[slot[0]].double().movedim(slot[1], 0)
        sizes.append(torch.stack([weight[there].square().sum() for there in columns_of(arch, found, slot)]))
    if not all(bool(torch.isfinite(m).all()) for m in moments):
        return Proposal("nonfinite", "its units are not numbers")
    loss = sum(_left(m, s) for m, s in zip(moments, sizes, strict=True))
    pairs, gone, holds = [], set(), set()
    for _ in range(units):
        allowed = loss.clone()
        allowed[torch.eye(size, dtype=torch.bool)] = torch.inf
        for u in gone:
            allowed[u] = allowed[:, u] = torch.inf
        for u in holds:  # what others left to it stays
            allowed[:, u] = torch.inf
        stays, goes = divmod(int(allowed.argmin()), size)
        if not torch.isfinite(allowed[stays, goes]):
            return Proposal("unsupported", f"{axis} has no {units} pairs")
        if float(allowed[goes, stays]) == float(allowed[stays, goes]) and goes < stays and goes not in holds and stays not in holds:
            stays, goes = goes, stays  # of two equal ones the first stays
        pairs.append((stays, goes, [float(_times(m)[stays, goes]) for m in moments]))
        gone.add(goes)
        holds.add(stays)
    return given_over(arch, axis, share, seen.weights, pairs)


def _times(moment: Tensor) -> Tensor:
    """[stays, goes]: by least squares the one that goes is so many times the one that stays."""
    return moment / moment.diagonal().clamp(min=1e-300).unsqueeze(1)


def _left(moment: Tensor, size: Tensor) -> Tensor:
    """[stays, goes]: the mean square of what is left of the one that goes, times that of its weights."""
    power = moment.diagonal()
    return (power - moment.square() / power.clamp(min=1e-300).unsqueeze(1)).clamp(min=0) * size
