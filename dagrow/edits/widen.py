"""widen: more units where units are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pydantic
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.steady import grown
from dagrow.graph import Architecture, Cost, Refusal, Rewrite, resize, resized_cost
from dagrow.graph.axes import Axis
from dagrow.measure.carrying import Unsupported, check
from dagrow.measure.features import grouped
from dagrow.measure.sites import Recast, Site, Units
from dagrow.scores import Proposal

Count = pydantic.conint(strict=True, ge=1, le=4096)


@REGISTRY.register("widen")
class Widen(Edit):
    """Adds units to an axis: rows where it is written, columns where it is read, and all that is coupled to it.

    Units, channels, features of tokens, heads and their width, groups, experts. Where units are only written and read, new ones
    are pointed by derivatives. Where they are gated, multiplied or normalised with one another each takes a trial, from
    weights at which the function is what it was, if there are such: so for residual streams under layer norms, and experts.
    """

    undone_by = ("prune",)
    examples = ({"units": (1, 3)},)

    class Options(EditOptions):
        """`where` is matched against the nodes that write the axis, and its name."""

        units: tuple[Count, ...] | Count = pydantic.Field(4, description="units to add at once (heads, groups, experts: no more than there are); a list offers each")
        max: Count | None = pydantic.Field(None, description="the most units an axis may have")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for axis in arch.axes.values():
            form, room = units_of(arch, axis), (options.max or 2**20) - axis.size
            if form is None:
                form, room = _as_it_is(arch, axis), min(room, axis.size)
                covered = options.covers(axis.id, *(u.node for u in axis.writes))
            else:
                covered = options.covers(*form.writers)
            units = sorted({min(u, room) for u in numbers(options.units)} - {0})
            if covered and form is not None and room > 0:
                yield Site("widen", axis.id, form, tuple(units), (axis.id, axis.size))

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        axis, size = site.detail
        return resized_cost(arch, axis, size + proposal.units) or super().price(arch, site, proposal)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        axis, size = site.detail
        if site.form.settles:
            return grown(arch, axis, proposal.units)
        return resize(arch, {axis: (*range(size), *(-1,) * proposal.units)})

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        made = Widen.rewrite(arch, site, proposal)
        if isinstance(made, Refusal) or made.settle is not None or proposal.shift:
            return None  # what a layer norm's scale was is known up to rounding, and so is what gave way
        return "prune", site.where, Proposal(units=proposal.units, keep=tuple(range(site.detail[1])))


def _as_it_is(arch: Architecture, axis: Axis) -> Recast | None:
    """The axis where no linear score applies to it; None where it cannot grow."""
    if isinstance(grown(arch, axis.id, 1), Refusal):
        return None
    ways = (("normalised together", axis.mixes), ("multiplied with others", axis.bilinear), ("gated", axis.gates))
    how = next((f"{way} by {nodes[0]}" for way, nodes in ways if nodes), "not only written and read by linear layers")
    return Recast(arch, True, lambda proposal: grown(arch, axis.id, proposal.units), f"its units are {how}")


def numbers(units: int | tuple[int, ...]) -> tuple[int, ...]:
    return (units,) if isinstance(units, int) else tuple(units)


def units_of(arch: Architecture, axis: Axis) -> Units | None:
    """The axis as a site for new units, where a linear score applies to it: only written and read. Worked out once."""
    known = arch.memo.setdefault("units_of", {})
    if axis.id not in known:
        known[axis.id] = _units_of(arch, axis)
    return known[axis.id]


def _units_of(arch: Architecture, axis: Axis) -> Units | None:
    if axis.bilinear or axis.gates or axis.mixes:
        return None
    writers, readers = affine_users(arch, axis.writes), affine_users(arch, axis.reads)
    if any(len(arch.derived.owners[s.param]) > 1 for s in axis.slots):
        return None  # what writes them here reads or writes something else there
    if not writers or not readers or any(sorted(arch.derived.units(axis.id, f"{w}.weight", 0)) != [*range(axis.size)] for w in writers):
        return None  # a unit in several rows: one of its group in each group of a convolution that reads it
    path = between(arch, writers, readers)
    # A depthwise convolution both carries the axis and has a row per unit: it follows, it does not write.
    writers = tuple(w for w in writers if not (w in path and grouped(arch.nodes[w])))
    path = between(arch, writers, readers)
    form = Units(arch, writers, tuple(arch.nodes[w].inputs[0] for w in writers), path, readers, readers, axis.id)
    try:
        check(arch, form)
    except Unsupported:
        return None
    return form


def affine_users(arch: Architecture, uses) -> tuple[str, ...]:
    """The nodes of these uses in topological order; none of them where one is not affine: what it does to a new unit is not solved for."""
    found = {u.node for u in uses}
    if any(arch.nodes[n].rule.role != "affine" for n in found):
        return ()
    return tuple(sorted(found, key=arch.place.__getitem__))


def between(arch: Architecture, writers: tuple[str, ...], readers: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes that carry new units from the writers to the readers' inputs, in topological order."""
    ahead, todo = set(), list(writers)
    while todo:
        for reader in arch.consumers[todo.pop()]:
            if reader not in readers and reader not in ahead:
                ahead.add(reader)
                todo.append(reader)
    behind, todo = set(), [arch.nodes[r].inputs[0] for r in readers]
    while todo:
        name = todo.pop()
        if name in ahead and name not in behind:
            behind.add(name)
            todo.extend(arch.nodes[name].inputs)
    return tuple(sorted(behind, key=arch.place.__getitem__))
