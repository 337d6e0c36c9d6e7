"""remove: a branch that an edit could have added, taken away."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.joined import parts, without_part
from dagrow.edits.wiring import without
from dagrow.graph import Architecture, Refusal, Rewrite
from dagrow.measure.parents import free_parents
from dagrow.measure.sites import Cut, Recast, Site
from dagrow.scores import Proposal


@REGISTRY.register("remove")
class Remove(Edit):
    """Removes one branch of a sum, with the nodes that only it needed; the other branches make up for what they can.

    Or one of the tensors that a concat joins: what that costs is measured by running the network without it.
    """

    preserves = False

    class Options(EditOptions):
        """`where` is matched against the branch's last node."""

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for total in arch.order:
            node = arch.nodes[total]
            if node.rule.role != "sum" or len(node.inputs) < 2:
                continue
            for branch in node.inputs:
                if arch.nodes[branch].rule.role != "affine" or arch.consumers[branch] != (total,) or not options.covers(branch):
                    continue
                left = without(arch, total, branch)
                if isinstance(left, Refusal):
                    continue
                survivors = tuple(p for p in free_parents(arch, branch) if p != branch and p in left.nodes)
                yield Site("remove", branch, Cut(branch, survivors), (1,), (total, branch))
        for concat, branch in parts(arch):
            if options.covers(branch) and isinstance(without_part(arch, concat, branch), Rewrite):
                form = Recast(arch, False, partial(_unjoined, arch, concat, branch))
                yield Site("remove", f"{branch} from {concat}", form, (1,), (concat, branch))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        if site.form.settles:
            return without_part(arch, *site.detail) if site.detail else Refusal("no branch was named")
        made = without(arch, *site.detail)
        return made if isinstance(made, Refusal) else Rewrite(made, (), None)


def _unjoined(arch: Architecture, concat: str, branch: str, proposal: Proposal) -> Rewrite | Refusal:
    return without_part(arch, concat, branch)
