"""connect: a direct connection between two tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.branch import Branch, Frame, link
from dagrow.edits.wiring import add_to, fresh_name, joins
from dagrow.graph import Architecture, Cost, Refusal, Rewrite
from dagrow.measure.grid import Grid
from dagrow.measure.layout import last, width
from dagrow.measure.sites import Link, Site
from dagrow.scores import Proposal


@REGISTRY.register("connect")
class Connect(Edit):
    """Adds a direct connection: a linear map (1x1 convolution on maps) from any tensor into a later pre-activation."""

    undone_by = ("remove",)

    class Options(EditOptions):
        """`where` is matched against the target's name."""

    @staticmethod
    def match(arch: Architecture, options) -> Grid:
        already = [(arch.nodes[p].inputs[0], target) for target, group in arch.meeting.items() for p in group]
        found, name = joins(arch).but(already, options.covers), fresh_name(arch, "link")

        def make(source: str, target: str, stride: int) -> Site:
            frame = Frame(arch, _branch(arch, source, target, stride), name, source)
            return Site("connect", f"{source} -> {target}", Link(frame, name, source, target), (1,), (source, target, stride))

        return Grid("connect", Link, arch, found.sources, found.targets, found.strides, make)

    @staticmethod
    def price(arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        return _branch(arch, *site.detail).added_to(arch)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        source, target, stride = site.detail
        name = fresh_name(arch, "link")
        nodes = _branch(arch, source, target, stride).named(name, source)
        return Rewrite(add_to(arch, target, nodes, name), (), ((f"{name}.weight", 0),))

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        return None if proposal.shift else ("remove", fresh_name(arch, "link"), Proposal())


def _branch(arch: Architecture, source: str, target: str, stride: int) -> Branch:
    node, shape = arch.nodes[target], arch.shapes[target]
    return link(arch.shapes[source], width(shape, node), stride, last(node, shape))
