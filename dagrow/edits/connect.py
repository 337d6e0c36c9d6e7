"""connect: a direct connection between two tensors."""

from __future__ import annotations

from collections.abc import Iterator

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.wiring import add_to, affine, fresh_name, joins, parents
from dagrow.graph import Architecture, Refusal, Rewrite
from dagrow.measure.sites import Link, Site
from dagrow.scores import Proposal


@REGISTRY.register("connect")
class Connect(Edit):
    """Adds a direct connection: a linear map (1x1 convolution on maps) from any tensor into a later pre-activation."""

    class Options(EditOptions):
        """`where` is matched against the target's name."""

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for source, target, stride in joins(arch):
            already = {arch.nodes[p].inputs[0] for p in parents(arch, target)}
            if source not in already and options.covers(target):
                frame, name = _built(arch, (source, target, stride))
                yield Site("connect", f"{source} -> {target}", Link(frame, name, source, target), (1,), (source, target, stride))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        made, name = _built(arch, site.detail)
        return Rewrite(made, (), ((f"{name}.weight", 0),))


def _built(arch: Architecture, detail: tuple) -> tuple[Architecture, str]:
    source, target, stride = detail
    name = fresh_name(arch, "link")
    node = affine(arch.shapes[source], source, arch.shapes[target][0], stride=stride, bias=False)
    return add_to(arch, target, {name: node}, name), name
