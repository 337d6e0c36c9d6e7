"""norm: a batch normalisation where there is none."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.wiring import fresh_name
from dagrow.graph import Architecture, Node, Refusal, Rewrite
from dagrow.measure.layout import last
from dagrow.measure.parents import tied
from dagrow.measure.passes import Pass
from dagrow.measure.sites import Site, Swap
from dagrow.scores import Proposal


@REGISTRY.register("norm")
class Norm(Edit):
    """Inserts a batch norm after an affine node: from its measured statistics, so that the function stays.

    The node's own bias goes: behind a norm it does nothing, the norm's takes over. What can be expressed stays the same,
    so to first order there is nothing to gain: a trial shows whether training goes better.
    """

    preserves = True

    class Options(EditOptions):
        """`where` is matched against the affine node's name."""

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for name in arch.order:
            node = arch.nodes[name]
            # A batch norm normalises each channel: of tokens it would be each place.
            if node.rule.role != "affine" or last(node, arch.shapes[name]) or tied(arch, name):
                continue
            if name not in arch.outputs and not _normed(arch, name) and options.covers(name):
                frame, norm = _built(arch, name)
                form = Swap(frame, (norm,), norm, name, start=lambda seen, name=name, norm=norm, frame=frame: _statistics(seen, frame, name, norm))
                yield Site("norm", name, form, (1,), (name,))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return Rewrite(_built(arch, *site.detail)[0], (), None)


def _normed(arch: Architecture, name: str) -> bool:
    """Whether a norm reads the node, alone or through sums."""
    return any(
        arch.nodes[r].rule.role == "norm" or (arch.nodes[r].rule.role == "sum" and _normed(arch, r)) for r in set(arch.consumers[name])
    )


def _built(arch: Architecture, name: str) -> tuple[Architecture, str]:
    norm, node = fresh_name(arch, "norm"), arch.nodes[name]
    changed = {r: Node(v.op, tuple(norm if i == name else i for i in v.inputs), v.attrs, v.tied) for r, v in arch.nodes.items() if name in v.inputs}
    if f"{name}.bias" in arch.params:
        changed[name] = Node(node.op, node.inputs, node.attrs.model_copy(update={"bias": False}), node.tied)
    return arch.replace({**changed, norm: Node.of("batchnorm", name)}), norm


def _statistics(seen: Pass, frame: Architecture, name: str, norm: str) -> dict[str, Tensor]:
    """The norm's values at which it undoes itself: what the network has trained goes on as it is."""
    z = seen.values[name].double()
    over = [0, *range(2, z.dim())]
    mean, var = z.mean(over), z.var(over, unbiased=False)
    bias = seen.weights[f"{name}.bias"].double() if f"{name}.bias" in seen.weights else 0.0
    return {
        f"{norm}.running_mean": mean - bias, f"{norm}.running_var": var, f"{norm}.weight": (var + frame.nodes[norm].attrs.eps).sqrt(),
        f"{norm}.bias": mean,
    }  # fmt: skip
