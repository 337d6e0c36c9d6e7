"""Rewrites that no derivative speaks of: what is cloned, merged, folded, or grows where units are normalised together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dagrow.compiler import initialise
from dagrow.graph import Architecture, Refusal, Rewrite, preserving, transfer
from dagrow.graph.node import run
from dagrow.measure.carrying import Unsupported
from dagrow.measure.layout import flat
from dagrow.measure.passes import materialise
from dagrow.measure.proposals import Proposal

if TYPE_CHECKING:
    from dagrow.measure.passes import Pass

Values = dict[str, Tensor]
# In double precision, relative to the largest value: what differs by less is the same.
SAME = 1e-11


def as_told(seen: Pass, units: int) -> Proposal:
    """There is nothing to choose but how many."""
    return Proposal(units=units)


@dataclass(frozen=True)
class Recast:
    """The network becomes `made(proposal).arch`, and the rewrite itself says what becomes of the weights.

    One that `grows` is left to a trial, for `reason`; where its rewrite keeps the function it starts from there. One that
    makes the network smaller is worth what running the network it makes finds: nothing where the function stays.
    `plan(seen, units)` chooses what a proposal holds beside their number: `keep`, the whole index of an axis (new -> old,
    -1 for a newborn), and `shift`. `frame` is the present architecture.
    """

    trial: ClassVar[bool] = True
    rowwise: ClassVar[bool] = True
    settles: ClassVar[bool] = True
    outgoing: ClassVar[frozenset[tuple[str, int]]] = frozenset()
    frame: Architecture = field(repr=False, compare=False)
    grows: bool
    made: Callable[[Proposal], Rewrite | Refusal] = field(repr=False, compare=False)
    reason: str = "no derivative says what it brings"
    plan: Callable[[Pass, int], Proposal] = field(default=as_told, repr=False, compare=False)

    def gradient(self, seen: Pass, target: str) -> Tensor:
        return flat(seen.v[target], seen.arch.nodes[target])

    def effect(self, seen: Pass, proposal: Proposal) -> dict[str, Tensor]:
        """What it changes at the output, by running both networks in double precision. Raises Unsupported where it is
        refused, and where it changes only outputs that are not scored: that would look free.
        """
        made = self.made(proposal)
        if isinstance(made, Refusal):
            raise Unsupported(made.reason)
        if "outputs" not in seen.memo:
            seen.memo["outputs"] = _outputs(seen, seen.arch, doubled(seen.weights))
        old = seen.memo["outputs"]
        change, *others = (b - a for a, b in zip(old, _outputs(seen, made.arch, recast_weights(seen.weights, made, proposal)), strict=True))
        if not _some(change, old[0]) and any(_some(c, a) for c, a in zip(others, old[1:], strict=True)):
            raise Unsupported("it changes outputs that are not scored")
        end = seen.arch.outputs[0]
        return {end: flat(change, seen.arch.nodes[end])}


def _some(change: Tensor, value: Tensor) -> bool:
    """More than rounding."""
    return bool((change.abs() > SAME * value.abs().max().clamp(min=1.0)).any())


def recast_weights(weights: Mapping[str, Tensor], rewrite: Rewrite, proposal: Proposal) -> Values:
    """The rewritten network's tensors, in double precision; newborns that the rewrite does not set are initial."""
    old = doubled(weights)
    for name, shift in proposal.shift.items():
        old[name] = old[name] + shift.double()
    return carried(rewrite, old, doubled(initialise(rewrite.arch, 0)))


class Nearest(Rewrite):
    """A rewrite whose `settle` gives what comes nearest to the old function, and not always the function itself."""

    @property
    def keeps(self) -> bool:
        return False


def carried(rewrite: Rewrite, old: Mapping[str, Tensor], newborn: Mapping[str, Tensor]) -> Values:
    """`transfer`, at the values that keep the function, or come nearest to it, where there are such."""
    if rewrite.keeps:
        return preserving(rewrite, old, newborn)
    made = transfer(rewrite, old, newborn)
    return made if rewrite.settle is None else {**made, **rewrite.settle(old, made)}


def doubled(values: Mapping[str, Tensor]) -> Values:
    return {n: t.detach().double() if t.is_floating_point() else t.detach() for n, t in values.items()}


def _outputs(seen: Pass, arch: Architecture, weights: Mapping[str, Tensor]) -> list[Tensor]:
    values = {n: seen.values[n].double() if seen.values[n].is_floating_point() else seen.values[n] for n in arch.inputs}
    with torch.no_grad():
        run(arch.nodes, arch.order, materialise(arch, weights), values)
    return [values[o] for o in arch.outputs]
