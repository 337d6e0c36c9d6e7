"""insert: a layer in series that does nothing at first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import pydantic
import torch
from torch import Tensor

from dagrow import ops
from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.widen import Count
from dagrow.edits.wiring import affine, fresh_name
from dagrow.graph import Architecture, Node, Refusal, Rewrite
from dagrow.measure import Pass
from dagrow.measure.layout import last, width
from dagrow.measure.sites import Site, Swap
from dagrow.scores import Proposal

NONE = "none"
# What these make is never negative, and what those do to it leaves it so.


@REGISTRY.register("insert")
class Insert(Edit):
    """A layer in series, started so that the function stays (Net2DeeperNet; Chen, Goodfellow, Shlens 2016).

    Behind values that are never negative, the identity and a relu; elsewhere, or with another `act`, a residual branch
    x + W2 act(W1 x), its W2 zero; with `act: none` the identity alone. Pointed by derivatives where there are any, else left to a trial.
    """

    preserves = True
    undone_by = ("bypass", "remove")
    examples = ({"act": ("relu", "tanh", "none"), "kernel": 1},)

    class Options(EditOptions):
        """`where` is matched against the node that the layer comes after."""

        act: tuple[str, ...] | str = pydantic.Field("relu", description="activation of the new layer, or none: then it is linear; a list offers each")
        kernel: Count = pydantic.Field(3, description="kernel of a new convolution (odd)")

        @pydantic.field_validator("act")
        @classmethod
        def _activations(cls, value):
            for name in (value,) if isinstance(value, str) else value:
                if name != NONE and (name not in ops.REGISTRY or ops.REGISTRY.get(name).role != "activation"):
                    raise ValueError(f"{name!r} is not an activation")
            return value

        @pydantic.field_validator("kernel")
        @classmethod
        def _odd(cls, value):
            if value % 2 == 0:
                raise ValueError("the kernel of a new convolution must be odd")
            return value

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        acts = (options.act,) if isinstance(options.act, str) else tuple(dict.fromkeys(options.act))
        for after in arch.order:
            if arch.nodes[after].op == "input" or after in arch.outputs or not options.covers(after):
                continue
            reader = next((r for r in arch.consumers[after] if arch.nodes[r].rule.role == "affine"), None)
            if reader is None:
                continue
            for act in acts:
                frame, new = _built(arch, after, reader, act, options.kernel)
                form = Swap(frame, new, start=partial(_start, frame, new))
                yield Site("insert", f"{after} ({act})" if len(acts) > 1 else after, form, (1,), (after, reader, act, options.kernel))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return Rewrite(_built(arch, *site.detail)[0], (), None) if site.detail else Refusal("no node was named")

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        _, new = _built(arch, *site.detail)
        return ("remove", new[2], Proposal()) if len(new) > 2 else ("bypass", " .. ".join(new), Proposal(units=1))


def _built(arch: Architecture, after: str, reader: str, act: str, kernel: int) -> tuple[Architecture, tuple[str, ...]]:
    """(the network with the layer, its new nodes)."""
    name, shape, node = fresh_name(arch, "more"), arch.shapes[after], arch.nodes[reader]
    tokens, units = last(node, shape), width(shape, node)
    inner = affine(shape, after, units, kernel=kernel, tokens=tokens)
    made = {f"{name}.in": inner}
    if act != NONE:
        made[f"{name}.act"] = Node.of(act, f"{name}.in")
    if act != NONE and not (act == "relu" and _rectified(arch, after)):
        made[f"{name}.out"] = affine(shape, f"{name}.act", units, bias=False, tokens=tokens)
        made[f"{name}.sum"] = Node.of("add", after, f"{name}.out")
    end = list(made)[-1]
    for r in set(arch.consumers[after]):
        made[r] = replace(arch.nodes[r], inputs=tuple(end if i == after else i for i in arch.nodes[r].inputs))
    return arch.replace(made), tuple(n for n in made if n not in arch.nodes)


def _rectified(arch: Architecture, name: str) -> bool:
    """Whether its values are never negative."""
    rule = arch.nodes[name].rule
    return rule.nonnegative == "always" or (rule.nonnegative == "inherited" and all(_rectified(arch, i) for i in arch.nodes[name].inputs))


def _start(frame: Architecture, new: tuple[str, ...], seen: Pass) -> dict[str, Tensor]:
    if len(new) > 2:
        return {f"{new[2]}.weight": torch.zeros(frame.params[f"{new[2]}.weight"], dtype=torch.float64)}
    weight = torch.zeros(frame.params[f"{new[0]}.weight"], dtype=torch.float64)
    middle = tuple(k // 2 for k in weight.shape[2:])
    for unit in range(len(weight)):
        weight[(unit, unit, *middle)] = 1
    return {f"{new[0]}.weight": weight, f"{new[0]}.bias": torch.zeros(len(weight), dtype=torch.float64)}
