"""bypass: a layer in series is left out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.wiring import rewired
from dagrow.graph import Architecture, Refusal, Rewrite
from dagrow.measure.sites import Recast, Site
from dagrow.scores import Proposal


@REGISTRY.register("bypass")
class Bypass(Edit):
    """Leaves out a layer, with the norm and the activation behind it, whose output has the shape of its input.

    What that costs is measured by running the network without it: nothing where the layer does nothing.
    """

    preserves = False

    class Options(EditOptions):
        """`where` is matched against the layer's name."""

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for name in arch.order:
            if arch.nodes[name].rule.role == "affine" and options.covers(name):
                for end in _ends(arch, name):
                    made = _made(arch, name, end, None)
                    if isinstance(made, Rewrite) and made.arch.size < arch.size:
                        where = name if end == name else f"{name} .. {end}"
                        yield Site("bypass", where, Recast(arch, False, partial(_made, arch, name, end)), (1,), (name, end))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return _made(arch, *site.detail, proposal) if site.detail else Refusal("no layer was named")


def _ends(arch: Architecture, name: str) -> Iterator[str]:
    """The layer itself, and the activation behind it and its norm: each where shapes agree."""
    shape = arch.shapes[arch.nodes[name].inputs[0]]
    if arch.shapes[name] == shape:
        yield name
    while len(arch.consumers[name]) == 1 and name not in arch.outputs:
        (name,) = arch.consumers[name]
        if arch.nodes[name].rule.role == "activation" and arch.shapes[name] == shape:
            yield name
        if arch.nodes[name].rule.role != "norm":
            break


def _made(arch: Architecture, name: str, end: str, proposal: Proposal | None) -> Rewrite | Refusal:
    if name not in arch.nodes or end not in arch.nodes or end in arch.outputs:
        return Refusal("this layer cannot be left out", (name,))
    made = rewired(arch, end, arch.nodes[name].inputs[0])
    return made if isinstance(made, Refusal) else Rewrite(made, (), None)
