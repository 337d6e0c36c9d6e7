"""upcycle: a feed-forward layer becomes a mixture of experts; condense: a mixture becomes one feed-forward layer again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import pydantic
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.wiring import fresh_name, rewired
from dagrow.graph import Architecture, Node, Refusal, Rewrite
from dagrow.measure.layout import last
from dagrow.measure.parents import tied
from dagrow.measure.recasts import Nearest
from dagrow.measure.sites import Recast, Site
from dagrow.scores import Proposal

Values = Mapping[str, Tensor]


@REGISTRY.register("upcycle")
class Upcycle(Edit):
    """Makes a linear map, its activation and the next linear map the experts of a mixture, each a copy: the function stays.

    Komatsuzaki et al. 2023. For vectors and tokens. The router starts at random: which experts see what tells the copies apart.
    """

    preserves = True
    undone_by = ("condense",)
    examples = ({"experts": 2, "top": 2},)

    class Options(EditOptions):
        """`where` is matched against the names of the two linear maps."""

        experts: int = pydantic.Field(4, strict=True, ge=2, le=256, description="experts of the mixture")
        top: int = pydantic.Field(2, strict=True, ge=2, le=256, description="how many of them are chosen for each sample or token")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for up in arch.order:
            chain = _chain(arch, up)
            if chain and options.covers(chain[0], chain[2]):
                detail = (*chain, options.experts, options.top)
                form = Recast(arch, True, partial(_experts, arch, *detail), "its experts are copies: only training tells them apart")
                yield Site("upcycle", f"{chain[0]} .. {chain[2]}", form, (1,), detail)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return _experts(arch, *site.detail, proposal) if site.detail else Refusal("no layer was named")

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Values) -> tuple[str, str, Proposal] | None:
        up, _, down, *_ = site.detail
        biased = all("bias" in arch.formed.locals[n] for n in (up, down))
        return ("condense", fresh_name(arch, "moe"), Proposal(units=1)) if biased else None


@REGISTRY.register("condense")
class Condense(Edit):
    """Replaces a mixture of experts by one feed-forward layer, the mean of its experts: nothing is lost where they are the same."""

    preserves = False

    class Options(EditOptions):
        """`where` is matched against the mixture's name."""

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for name in arch.order:
            if arch.nodes[name].op == "moe" and not tied(arch, name) and options.covers(name):
                yield Site("condense", name, Recast(arch, False, partial(_dense, arch, name)), (1,), (name,))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return _dense(arch, *site.detail, proposal) if site.detail else Refusal("no mixture was named")


def _chain(arch: Architecture, up: str) -> tuple[str, str, str] | None:
    """(linear map, activation, linear map) from `up` on, each read by the next alone."""
    found, nodes = [up], arch.nodes
    for _ in range(2):
        readers = arch.consumers[found[-1]]
        if len(readers) != 1 or found[-1] in arch.outputs:
            return None
        found.append(readers[0])
    up, act, down = found
    linear = all(nodes[n].op in ("linear", "token_linear") and not getattr(nodes[n].attrs, "transposed", False) and not tied(arch, n) for n in (up, down))
    if not linear or nodes[act].rule.role != "activation" or nodes[act].attrs != nodes[act].rule.Options():
        return None
    return (up, act, down) if last(nodes[up], arch.shapes[up]) == last(nodes[down], arch.shapes[down]) else None


def _experts(arch: Architecture, up: str, act: str, down: str, experts: int, top: int, proposal: Proposal) -> Rewrite | Refusal:
    if up not in arch.nodes or _chain(arch, up) != (up, act, down):
        return Refusal("the layer is no longer there", (up, down))
    name, names = fresh_name(arch, "moe"), arch.formed.locals
    hidden, width = arch.shapes[up][-1], arch.shapes[down][-1]
    node = Node.of(
        "moe", arch.nodes[up].inputs[0], experts=experts, hidden=hidden, top=top, act=arch.nodes[act].op,
        width=None if width == arch.shapes[arch.nodes[up].inputs[0]][-1] else width,
    )  # fmt: skip
    made = rewired(arch, down, name, {name: node})

    def settle(old: Values, new: Values) -> dict[str, Tensor]:
        def of(node: str, local: str, like: Tensor) -> Tensor:
            return old[names[node][local]].detach() if local in names[node] else like.new_zeros(())

        inner, outer = (new[f"{name}.{local}"] for local in ("up", "down"))
        return {
            f"{name}.up": of(up, "weight", inner).repeat(experts, 1), f"{name}.up_bias": of(up, "bias", inner).expand(hidden).repeat(experts),
            f"{name}.down": of(down, "weight", outer).T.repeat(experts, 1, 1), f"{name}.down_bias": of(down, "bias", outer).expand(width).repeat(experts, 1),
        }  # fmt: skip

    return made if isinstance(made, Refusal) else Rewrite(made, (), None, settle)


def _dense(arch: Architecture, name: str, proposal: Proposal) -> Rewrite | Refusal:
    if name not in arch.nodes:
        return Refusal("the mixture is no longer there", (name,))
    node, stem = arch.nodes[name], fresh_name(arch, "ff")
    op = "linear" if len(arch.shapes[name]) == 1 else "token_linear"
    more = {
        f"{stem}.up": Node.of(op, *node.inputs, width=node.attrs.hidden), f"{stem}.act": Node.of(node.attrs.act, f"{stem}.up"),
        f"{stem}.down": Node.of(op, f"{stem}.act", width=arch.shapes[name][-1]),
    }  # fmt: skip
    made, experts, names = rewired(arch, name, f"{stem}.down", more), node.attrs.experts, arch.formed.locals[name]

    def settle(old: Values, new: Values) -> dict[str, Tensor]:
        def mean(local: str) -> Tensor:
            each = old[names[local]].detach().unflatten(0, (experts, -1)) if local.startswith("up") else old[names[local]].detach()
            return each[0] + (each - each[0]).mean(0)  # of equal ones to the bit

        return {
            f"{stem}.up.weight": mean("up"), f"{stem}.up.bias": mean("up_bias"), f"{stem}.down.weight": mean("down").T.contiguous(), f"{stem}.down.bias": mean("down_bias"),
        }  # fmt: skip

    return made if isinstance(made, Refusal) else Nearest(made, (), None, settle)
