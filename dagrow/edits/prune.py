"""prune: fewer units where units are."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.widen import Count, numbers, units_of
from dagrow.graph import Architecture, Cost, Refusal, Rewrite, resize, resized_cost
from dagrow.measure.sites import Drop, Site
from dagrow.scores import Proposal


@REGISTRY.register("prune")
class Prune(Edit):
    """Removes units of an axis, wherever it lives; the survivors make up for what they can."""

    class Options(EditOptions):
        units: tuple[Count, ...] | Count = pydantic.Field(1, description="units to remove at once; a list offers each")
        min: Count = pydantic.Field(1, description="the fewest units an axis keeps")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for axis in arch.axes.values():
            form = units_of(arch, axis)
            if form is None or not options.covers(*form.writers):
                continue
            spare = axis.size - options.min
            units = sorted({u for u in numbers(options.units) if u <= spare})
            if units:
                columns = tuple(arch.derived.units(axis.id, f"{r}.weight", 1) for r in form.readers)
                yield Site("prune", axis.id, Drop(axis.id, axis.size, form.readers, columns), tuple(units), (axis.id, axis.size))

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        return resized_cost(arch, site.detail[0], len(proposal.keep)) or super().price(arch, site, proposal)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return resize(arch, {site.detail[0]: proposal.keep})
