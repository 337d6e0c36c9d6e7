"""fold: two linear maps, one straight after the other, become one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pydantic
import torch
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.wiring import rewired
from dagrow.graph import Architecture, Move, Refusal, Rewrite
from dagrow.measure.features import grouped
from dagrow.measure.parents import tied
from dagrow.measure.sites import Recast, Site
from dagrow.scores import Proposal


@dataclass(frozen=True)
class Chain:
    """`first`, then `norm` where there is one, then `second` where there is one: what is to become one linear map."""

    first: str
    norm: str | None
    second: str | None

    @property
    def kept(self) -> str:
        """The node that the whole is left to."""
        return self.second or self.first


@REGISTRY.register("fold")
class Fold(Edit):
    """Folds a linear map into the next where nothing, or a batch norm, stands between: the function stays, exactly, in eval mode.

    linear after linear, for vectors and tokens; a convolution before or after one of kernel 1. Only what gets smaller is folded.
    """

    preserves = True
    examples = ({"norms": True},)

    class Options(EditOptions):
        """`where` is matched against the names of the nodes that become one."""

        norms: bool = pydantic.Field(False, description="fold batch norms into the layer before them too: they are what helps training")

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        for chain in _chains(arch, options.norms):
            if options.covers(*(n for n in (chain.first, chain.norm, chain.second) if n)):
                made = _made(arch, chain)
                if isinstance(made, Rewrite) and made.arch.size < arch.size:
                    where = " + ".join(n for n in (chain.first, chain.norm, chain.second) if n)
                    yield Site("fold", where, Recast(arch, False, partial(_rewritten, arch, chain)), (1,), (chain,))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return _made(arch, *site.detail) if site.detail else Refusal("nothing to fold was named")


def _rewritten(arch: Architecture, chain: Chain, proposal: Proposal) -> Rewrite | Refusal:
    return _made(arch, chain)


def _chains(arch: Architecture, norms: bool) -> Iterator[Chain]:
    for first in arch.order:
        if arch.nodes[first].rule.role != "affine" or tied(arch, first):
            continue
        norm, end = None, _only_reader(arch, first)
        if end is not None and arch.nodes[end].rule.role == "norm" and not tied(arch, end) and _by_unit(arch, first):
            norm, end = end, _only_reader(arch, end)
            if norms:
                yield Chain(first, norm, None)
        if end is not None and arch.nodes[end].rule.role == "affine" and not tied(arch, end):
            yield Chain(first, norm, end)


def _only_reader(arch: Architecture, name: str) -> str | None:
    readers = arch.consumers[name]
    return readers[0] if len(readers) == 1 and name not in arch.outputs else None


def _by_unit(arch: Architecture, name: str) -> bool:
    """Whether a batch norm scales the node's units: dimension 1 holds them."""
    return arch.nodes[name].rule.channels == 1 or len(arch.shapes[name]) == 1


def _made(arch: Architecture, chain: Chain) -> Rewrite | Refusal:
    nodes, names = arch.nodes, arch.formed.locals
    if any(n is not None and n not in nodes for n in (chain.first, chain.norm, chain.second)):
        return Refusal("what was to be folded is gone", (chain.first,))
    first, second = nodes[chain.first], nodes.get(chain.second)
    bias = chain.norm is not None or any("bias" in names[n] for n in (chain.first, chain.second) if n)
    attrs = _joined(arch, chain, bias)
    if isinstance(attrs, Refusal):
        return attrs
    node = replace(second or first, inputs=first.inputs, attrs=attrs)
    if second is None:
        made = rewired(arch, chain.norm, chain.first, {chain.first: node})
    else:
        made = rewired(arch, chain.second, chain.second, {chain.second: node})
    if isinstance(made, Refusal):
        return made
    if any(n in made.nodes for n in (chain.first, chain.norm) if n and n != chain.kept):
        return Refusal("what was to be folded is read elsewhere", (chain.first,))
    weight = names[chain.kept]["weight"]
    # Of the right shape, to be filled with the product.
    moves = tuple(Move(weight, k, (0,) * n) for k, (n, o) in enumerate(zip(made.params[weight], arch.params[weight], strict=True)) if n != o)
    return Rewrite(made, moves, None, partial(_product, arch, chain, bias))


def _joined(arch: Architecture, chain: Chain, bias: bool):
    """The options of the one map that does what both do."""
    first, second = arch.nodes[chain.first], arch.nodes.get(chain.second)
    if second is None:
        return first.attrs.model_copy(update={"bias": True})
    vectors = len(arch.shapes[chain.first]) == 1 or (first.rule.channels == second.rule.channels == -1)
    if vectors:
        plain = all(isinstance(getattr(n.attrs, "width", None), int) and not getattr(n.attrs, "transposed", False) for n in (first, second))
        return second.attrs.model_copy(update={"bias": bias}) if plain else Refusal("these are not two plain linear maps", (chain.first, chain.second))
    if first.op != second.op or grouped(first) or grouped(second):
        return Refusal("these are not two plain convolutions", (chain.first, chain.second))
    units = arch.params[arch.formed.locals[chain.second]["weight"]][0]
    if _pointwise(arch, chain.second):
        return first.attrs.model_copy(update={"channels": units, "bias": bias})
    # Where the second pads, it pads with zeros, and not with what the first makes of nothing.
    constant = chain.norm is not None or "bias" in arch.formed.locals[chain.first]
    if _pointwise(arch, chain.first) and (second.attrs.padding == 0 or not constant):
        return second.attrs.model_copy(update={"bias": bias})
    return Refusal("neither has a kernel of 1, or what pads the second would change", (chain.first, chain.second))


def _pointwise(arch: Architecture, name: str) -> bool:
    """A convolution that looks at one position at a time, at each of them."""
    attrs, kernel = arch.nodes[name].attrs, arch.params[arch.formed.locals[name]["weight"]][2:]
    stride = (attrs.stride,) if isinstance(attrs.stride, int) else attrs.stride
    padding = (attrs.padding,) if isinstance(attrs.padding, (int, str)) else attrs.padding
    return set(kernel) == {1} and set(stride) == {1} and set(padding) <= {0, "same"}


def _product(arch: Architecture, chain: Chain, bias: bool, old: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = arch.formed.locals

    def of(node: str, local: str) -> Tensor | None:
        return old[names[node][local]].detach().double() if local in names[node] else None

    weight, constant = of(chain.first, "weight"), of(chain.first, "bias")
    constant = weight.new_zeros(len(weight)) if constant is None else constant
    if chain.norm is not None:
        scale = of(chain.norm, "weight") / (of(chain.norm, "running_var") + arch.nodes[chain.norm].attrs.eps).sqrt()
        constant = of(chain.norm, "bias") + (constant - of(chain.norm, "running_mean")) * scale
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if chain.second is not None:
        after, own = of(chain.second, "weight"), of(chain.second, "bias")
        constant = (after.flatten(2).sum(2) if after.dim() > 2 else after) @ constant + (0.0 if own is None else own)
        if weight.dim() == 2:
            weight = after @ weight
        elif _pointwise(arch, chain.second):
            weight = torch.einsum("oc,ci...->oi...", after.flatten(1), weight)
        else:
            weight = torch.einsum("oc...,ci->oi...", after, weight.flatten(1))
    found, like = {f"{chain.kept}.weight": weight}, next(iter(made.values()))
    if bias:
        found[f"{chain.kept}.bias"] = constant
    return {n: v.to(made.get(n, like)) for n, v in found.items()}
