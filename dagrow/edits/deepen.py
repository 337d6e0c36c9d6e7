"""deepen: a hidden node between two tensors."""

from __future__ import annotations

from collections.abc import Mapping

import pydantic
from torch import Tensor

from dagrow import ops
from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.branch import Branch, Frame, hidden
from dagrow.edits.widen import Count, numbers, units_of
from dagrow.edits.wiring import add_to, fresh_name, joins
from dagrow.graph import Architecture, Cost, Refusal, Rewrite
from dagrow.measure.grid import Grid
from dagrow.measure.layout import last, width
from dagrow.measure.sites import Site, Units
from dagrow.scores import Proposal


@REGISTRY.register("deepen")
class Deepen(Edit):
    """Adds a hidden layer beside what is there: from any tensor, through new units, into any later pre-activation."""

    undone_by = ("remove",)

    class Options(EditOptions):
        units: tuple[Count, ...] | Count = pydantic.Field(4, description="units of the new layer; a list offers each")
        act: str = pydantic.Field("relu", description="activation of the new units")
        kernel: Count = pydantic.Field(3, description="kernel of a new convolution (odd)")

        @pydantic.field_validator("act")
        @classmethod
        def _activation(cls, value):
            if value not in ops.REGISTRY or ops.REGISTRY.get(value).role != "activation":
                raise ValueError(f"{value!r} is not an activation")
            return value

        @pydantic.field_validator("kernel")
        @classmethod
        def _odd(cls, value):
            if value % 2 == 0:
                raise ValueError("the kernel of a new convolution must be odd")
            return value

    @staticmethod
    def match(arch: Architecture, options) -> Grid:
        # A second hidden layer between the same tensors would be the first one, wider: offered once, by widen.
        known = set()
        for axis in arch.axes.values():
            form = units_of(arch, axis)
            if form is not None and len(form.writers) == 1:
                known |= {(form.sources[0], p) for t in form.targets for p in arch.meeting[t]}
        found, name, units = joins(arch).but(known, options.covers), fresh_name(arch, "h"), tuple(sorted(set(numbers(options.units))))

        def make(source: str, target: str, stride: int) -> Site:
            detail = (source, target, stride, options.act, options.kernel)
            frame = Frame(arch, _branch(arch, detail, 1), name, source)
            form = Units(frame, (f"{name}.in",), (source,), (f"{name}.act",), (f"{name}.out",), (target,))
            return Site("deepen", f"{source} -> {target}", form, units, detail)

        return Grid("deepen", Units, arch, found.sources, found.targets, found.strides, make)

    @staticmethod
    def price(arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        return _branch(arch, site.detail, proposal.units).added_to(arch)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        name = fresh_name(arch, "h")
        nodes = _branch(arch, site.detail, proposal.units).named(name, site.detail[0])
        return Rewrite(add_to(arch, site.detail[1], nodes, f"{name}.out"), (), ((f"{name}.out.weight", 1),))

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        return None if proposal.shift else ("remove", f"{fresh_name(arch, 'h')}.out", Proposal())


def _branch(arch: Architecture, detail: tuple, units: int) -> Branch:
    source, target, stride, act, kernel = detail
    node, shape = arch.nodes[target], arch.shapes[target]
    return hidden(arch.shapes[source], width(shape, node), stride, units, act, kernel, last(node, shape))
