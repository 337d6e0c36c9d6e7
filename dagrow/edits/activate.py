"""activate: another activation in the place of one."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic

from dagrow import ops
from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.graph import Architecture, Node, Refusal, Rewrite
from dagrow.measure.sites import Site, Swap
from dagrow.scores import Proposal


@REGISTRY.register("activate")
class Activate(Edit):
    """Puts another activation in the place of one: the function changes at once, so each takes a trial."""

    preserves = False

    class Options(EditOptions):
        """`where` is matched against the activation's name."""

        to: tuple[str, ...] = pydantic.Field(("gelu", "silu", "relu"), min_length=1, description="the activations to offer")

        @pydantic.field_validator("to")
        @classmethod
        def _activations(cls, value):
            for name in value:
                if name not in ops.REGISTRY or ops.REGISTRY.get(name).role != "activation":
                    raise ValueError(f"{name!r} is not an activation")
            return value

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for name in arch.order:
            node = arch.nodes[name]
            if node.rule.role == "activation" and options.covers(name):
                for op in dict.fromkeys(options.to):
                    if op != node.op:
                        yield Site("activate", f"{name} -> {op}", Swap(_built(arch, name, op), (name,)), (1,), (name, op))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return Rewrite(_built(arch, *site.detail), (), None)


def _built(arch: Architecture, name: str, op: str) -> Architecture:
    return arch.replace({name: Node.of(op, *arch.nodes[name].inputs)})
