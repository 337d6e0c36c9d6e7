"""connect: a direct connection between two tensors."""

from __future__ import annotations

from collections.abc import Mapping

import pydantic
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.adapters import bridged, bridges, site_of
from dagrow.edits.branch import Branch, Frame, link
from dagrow.edits.wiring import add_to, fresh_name, joins
from dagrow.graph import Architecture, Cost, Refusal, Rewrite
from dagrow.measure.grid import Grid, Several
from dagrow.measure.layout import last, width
from dagrow.measure.sites import Link, Site
from dagrow.scores import Proposal


@REGISTRY.register("connect")
class Connect(Edit):
    """Adds a direct connection: a linear map (1x1 convolution on maps) from any tensor into a later pre-activation.

    Maps that differ in size meet by the convolution's stride; with `adapt` also behind a pooling, and maps and tokens meet
    vectors behind their mean over all places.
    """

    preserves = True
    undone_by = ("remove",)

    examples = ({"adapt": True},)

    class Options(EditOptions):
        """`where` is matched against the target's name."""

        adapt: bool = pydantic.Field(False, description="connect tensors of other kinds and sizes too, behind a pooling or a mean")

    @staticmethod
    def match(arch: Architecture, options) -> Grid | Several:
        already = [(arch.nodes[p].inputs[0], target) for target, group in arch.meeting.items() for p in group]
        found, name = joins(arch).but(already, options.covers), fresh_name(arch, "link")

        def make(source: str, target: str, stride: int) -> Site:
            frame = Frame(arch, _branch(arch, source, target, stride), name, source)
            return Site("connect", f"{source} -> {target}", Link(frame, name, source, target), (1,), (source, target, stride))

        grid = Grid("connect", Link, arch, found.sources, found.targets, found.strides, make)
        return Several(grid, [site_of(arch, "connect", b) for b in bridges(arch, options.covers)]) if options.adapt else grid

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        if site.form.trial:
            return super().price(arch, site, proposal)
        return _branch(arch, *site.detail).added_to(arch)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        if site.form.trial:
            return Rewrite(bridged(arch, *site.detail)[0], (), None) if site.detail else Refusal("no tensors to connect were named")
        source, target, stride = site.detail
        name = fresh_name(arch, "link")
        nodes = _branch(arch, source, target, stride).named(name, source)
        return Rewrite(add_to(arch, target, nodes, name), (), ((f"{name}.weight", 0),))

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        name = fresh_name(arch, "link")
        return None if proposal.shift else ("remove", f"{name}.map" if site.form.trial else name, Proposal())


def _branch(arch: Architecture, source: str, target: str, stride: int) -> Branch:
    node, shape = arch.nodes[target], arch.shapes[target]
    return link(arch.shapes[source], width(shape, node), stride, last(node, shape))
