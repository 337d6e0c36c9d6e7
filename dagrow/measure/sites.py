"""Where an edit would act, in terms a scorer understands. Edits and scorers meet only here.

Every form names nodes of `frame`, in which they exist with at least one unit: the present architecture for edits of what
is there; for edits that add nodes the rewritten one, or the present one beside the nodes that would be added, of which
only `nodes`, `shapes`, `params` and `buffers` can be asked. A *target* is a pre-activation of the present
architecture, the output of an affine node, whose gradient says what is missing there.

`effect` is the change a proposal makes at each target, to first order: target -> [rows, positions, units], fp64, and
`gradient` the part of v there that it is measured against. It is all that the valuer needs to know of a form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dagrow.graph import Architecture
from dagrow.measure.carrying import Unsupported, propagate
from dagrow.measure.features import call, template, with_units
from dagrow.measure.layout import flat, space
from dagrow.measure.parents import moved, parents
from dagrow.measure.proposals import Proposal
from dagrow.measure.recasts import Recast
from dagrow.measure.swaps import Swap

if TYPE_CHECKING:
    from dagrow.measure.passes import Pass


def _values(proposal: Proposal) -> dict[tuple[str, int], Tensor]:
    return {(b.param, b.axis): b.values.double() for b in proposal.blocks}


def given_way(seen: Pass, targets: tuple[str, ...], proposal: Proposal) -> dict[str, Tensor]:
    """What the proposal's shift of the targets' parents does: target -> [rows, positions, units]; of targets in one sum the first has it."""
    change, done = {}, set()
    for target in targets if proposal.shift else ():
        group = parents(seen.arch, target)
        made = moved(seen.arch, seen.values, target, proposal.shift) if group not in done else 0.0
        done.add(group)
        if isinstance(made, Tensor):
            node = seen.arch.nodes[target]
            change[target] = flat(made, node).expand(seen.rows, math.prod(space(seen.arch.shapes[target], node)), -1)
    return change


def slopes_of(form: Form, seen: Pass, changes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(s, t) per row: the changes times what they are measured against, and times the probe, summed over positions and targets."""
    s = t = torch.zeros(seen.rows, dtype=torch.float64)
    for target, change in changes.items():
        s = s + (change * form.gradient(seen, target)).sum((1, 2), dtype=torch.float64)
        t = t + (change * flat(seen.probe[target], seen.arch.nodes[target])).sum((1, 2), dtype=torch.float64)
    return s, t


class Growing:
    """What adds to a target is worth what it does about its bottleneck."""

    grows: ClassVar[bool] = True
    trial: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True  # whether effect and gradient of some rows are those of all, cut
    settles: ClassVar[bool] = False  # whether the rewrite, not the proposal, sets the newborns

    def gradient(self, seen: Pass, target: str) -> Tensor:
        """The part of v that the change is measured against: [rows, positions, units]."""
        return seen.bottleneck(target)

    def tested(self, seen: Pass, changes: dict[str, Tensor]) -> Tensor:
        """Per row, what its slope says once the row itself is left out of the parents' fit: its spread is that of their mean.

        The slope is a sum over rows of what is left of the change times what is missing, both less what the parents make of
        them; each row's part of the latter fit shrinks its own residual by its leverage (MacKinnon & White 1985, HC3).
        """
        total = torch.zeros(seen.rows, dtype=torch.float64)
        for target, change in changes.items():
            left = seen.bottleneck(target)
            if seen.places(target) is None:
                free = seen.left(target, change.flatten(0, 1).double()).view(left.shape)
                kept = (1 - seen.leverage(target)).clamp(min=1e-2).view(*left.shape[:2], -1)
                product = free * left
                total = total + ((product.sum(2) / kept[:, :, 0]) if kept.shape[2] == 1 else (product / kept).sum(2)).sum(1)
            else:  # of a large map no position weighs much
                total = total + (change * left).sum((1, 2), dtype=torch.float64)
        return total


class Shrinking:
    """What takes away from a target costs what the whole gradient says."""

    grows: ClassVar[bool] = False
    trial: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True
    settles: ClassVar[bool] = False
    outgoing: ClassVar[frozenset[tuple[str, int]]] = frozenset()

    def gradient(self, seen: Pass, target: str) -> Tensor:
        return flat(seen.v[target], seen.arch.nodes[target])


@dataclass(frozen=True)
class Units(Growing):
    """New units: rows of the `writers`, through the nodes of `path`, into columns of the `readers`.

    `sources[w]` feeds `writers[w]`; the columns of `readers[r]` add to the target `targets[r]`. `axis`: that of the frame
    on which they are, where the frame is an architecture.
    """

    frame: Architecture = field(repr=False, compare=False)
    writers: tuple[str, ...]
    sources: tuple[str, ...]
    path: tuple[str, ...]
    readers: tuple[str, ...]
    targets: tuple[str, ...]
    axis: str = ""

    @property
    def outgoing(self) -> frozenset[tuple[str, int]]:
        """The blocks of a proposal that the amplitude multiplies: the fan-out."""
        return frozenset((f"{r}.weight", 1) for r in self.readers)

    def effect(self, seen: Pass, proposal: Proposal) -> dict[str, Tensor]:
        dtype = seen.values[self.sources[0]].dtype
        values, born = {k: v.to(dtype) for k, v in _values(proposal).items()}, {}
        for w, source in zip(self.writers, self.sources, strict=True):
            x, rows = seen.values[source], values[f"{w}.weight", 0]
            module = with_units(self.frame.nodes[w], x.shape[1:], len(rows))
            born[w] = call(module, x, rows, values.get((f"{w}.bias", 0)))
        change = given_way(seen, self.targets, proposal)
        arrived = propagate(self.frame, self, born)
        for r, target in zip(self.readers, self.targets, strict=True):
            module = template(self.frame.nodes[r], arrived[r].shape[1:])
            made = flat(call(module, arrived[r], values[f"{r}.weight", 1], None), self.frame.nodes[r])
            change[target] = change[target] + made if target in change else made
        return change


@dataclass(frozen=True)
class Link(Growing):
    """A direct connection: the affine `node` maps `source` into the target."""

    frame: Architecture = field(repr=False, compare=False)
    node: str
    source: str
    target: str

    @property
    def outgoing(self) -> frozenset[tuple[str, int]]:
        return frozenset({(f"{self.node}.weight", 0)})

    def effect(self, seen: Pass, proposal: Proposal) -> dict[str, Tensor]:
        x, node = seen.values[self.source], self.frame.nodes[self.node]
        made = flat(call(template(node, x.shape[1:]), x, _values(proposal)[f"{self.node}.weight", 0].to(x.dtype), None), node)
        return {self.target: made + given_way(seen, (self.target,), proposal).get(self.target, 0.0)}


@dataclass(frozen=True)
class Drop(Shrinking):
    """Units of `axis` to remove. `columns[r]` says for each input channel of `readers[r]` which unit it carries, or -1."""

    axis: str
    size: int
    readers: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...] = field(repr=False)

    def carried(self, seen: Pass, place: int) -> Tensor:
        """The unit each column of the design matrix of `readers[place]` carries (channels times kernel), or -1."""
        weight = seen.weights[f"{self.readers[place]}.weight"]
        return torch.tensor(self.columns[place]).repeat_interleave(weight[0, 0].numel())

    def effect(self, seen: Pass, proposal: Proposal) -> dict[str, Tensor]:
        stays = torch.tensor([*proposal.keep, -1])
        change = {}
        for place, r in enumerate(self.readers):
            node, weight = seen.arch.nodes[r], seen.weights[f"{r}.weight"].double()
            x = seen.values[node.inputs[0]]
            after = (weight + proposal.shift.get(f"{r}.weight", torch.zeros(()))).flatten(1) * torch.isin(self.carried(seen, place), stays)
            lost = (after - weight.flatten(1)).view(weight.shape).to(x.dtype)
            change[r] = flat(call(template(node, x.shape[1:]), x, lost, None), node) + proposal.shift.get(f"{r}.bias", torch.zeros(())).to(x.dtype)
        return change


@dataclass(frozen=True)
class Cut(Shrinking):
    """A branch to remove: what `node` adds to the sum that `survivors` (affine nodes) feed too."""

    node: str
    survivors: tuple[str, ...]

    def effect(self, seen: Pass, proposal: Proposal) -> dict[str, Tensor]:
        lost = -flat(seen.values[self.node], seen.arch.nodes[self.node])
        for s in self.survivors:
            if f"{s}.weight" in proposal.shift:
                node = seen.arch.nodes[s]
                x = seen.values[node.inputs[0]]
                lost = lost + flat(call(template(node, x.shape[1:]), x, proposal.shift[f"{s}.weight"].to(x.dtype), None), node)
                lost = lost + proposal.shift.get(f"{s}.bias", torch.zeros(())).to(x.dtype)
        return {self.node: lost}


Form = Units | Link | Drop | Cut | Swap | Recast


@dataclass(frozen=True)
class Site:
    """One place where `edit` may act. `where` names it for people; (edit, where) is unique within an architecture.

    `units`: the numbers of units worth offering, ascending. `detail`: what the edit needs to rewrite.
    """

    edit: str
    where: str
    form: Form
    units: tuple[int, ...] = (1,)
    detail: tuple = ()

    @property
    def key(self) -> str:
        return f"{self.edit} {self.where}"


__all__ = ["Cut", "Drop", "Form", "Link", "Recast", "Site", "Swap", "Units", "Unsupported"]
