"""Rewrites without a linear form: applied, then valued by directional derivatives in what they bring along.

Derivatives are taken by running the rewritten network's own ops in double precision, from the first node that computes
something else up to where the new part joins the old network again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from dagrow.compiler import initialise, owner_of
from dagrow.graph import Architecture, Move, Rewrite, transfer
from dagrow.graph.node import infer
from dagrow.measure.layout import flat, shaped, space
from dagrow.measure.proposals import Proposal

if TYPE_CHECKING:
    from dagrow.measure.passes import Pass

Values = dict[str, Tensor]
Key = tuple[int | str, ...]
# What the stored activations' single precision leaves of a function that is kept.
ROUNDING = 1e-4


def initial(seen: Pass) -> Values:
    """New parameters start from their ops' own initial values."""
    return {}


@dataclass(frozen=True)
class Swap:
    """Anything else: the network becomes `frame`, of which `nodes` are new or of another op.

    New nodes have new names, and with them new parameters; the others go over by name, along `moves` where there are
    any (without newborn entries). `start(seen)` gives values of new parameters and buffers ("node.local") at which the
    function stays; those it leaves out are freshly initialised. `end` of the frame takes the place of `target` of the
    present network, None those of the outputs: there the derivatives meet what is missing.
    """

    grows: ClassVar[bool] = True
    trial: ClassVar[bool] = True  # what its derivatives do not show, a trial may
    rowwise: ClassVar[bool] = False  # what is missing is told by all rows together
    settles: ClassVar[bool] = False
    frame: Architecture = field(repr=False, compare=False)
    nodes: tuple[str, ...]
    end: str | None = None
    target: str | None = None
    moves: tuple[Move, ...] = field(default=(), repr=False)
    start: Callable[[Pass], Values] = field(default=initial, repr=False, compare=False)

    @property
    def outgoing(self) -> frozenset[tuple[str, int]]:
        """All new parameters: the amplitude takes them from where they start to where they are proposed to be."""
        return frozenset((p, 0) for p in self.frame.params if owner_of(self.frame, p) in self.nodes)

    def begin(self, seen: Pass, key: Key) -> Values:
        """Starting values of all new parameters and buffers; random ones are drawn from `key`."""
        new = [s for s in (*self.frame.params, *self.frame.buffers) if s not in seen.weights]
        return _double({**initialise(self.frame, key, only=new), **self.start(seen)})

    def keeps(self, seen: Pass, begin: Values) -> bool | None:
        """Whether the function stays at the start, by running both networks; None where that is not a number."""
        outputs = zip(self.frame.outputs, seen.arch.outputs, strict=True)
        gaps = [self._gap(seen, begin, end, target) for end, target in ([self._ends(seen)] if self.end or self.target else outputs)]
        return max(gaps) <= ROUNDING if all(map(math.isfinite, gaps)) else None

    def _gap(self, seen: Pass, begin: Values, end: str, target: str) -> float:
        """How far the frame's `end` is from the present `target`, relative to the latter."""
        old = _Part(seen, seen.arch, target, _double(seen.weights), self._other(seen.arch, self.frame))({})
        gap, size = float((self._part(seen, begin, end)({}) - old).norm()), float(old.norm())
        return gap / size if size else (math.inf if gap else 0.0) if math.isfinite(gap) else math.nan

    def gradient(self, seen: Pass, target: str) -> Tensor:
        """What is missing at the target: its bottleneck, less what each unit's own scale and shift could do about it.

        Those are in the parents' span anyway; where that is left out (grouped convolutions) or approximate (large
        maps), a scale and a shift elsewhere must not pass for something new. [rows, positions, units], fp64.
        """
        node = seen.arch.nodes[target]
        if node.rule.role != "affine":
            return flat(seen.v[target], node).double()
        if ("missing", target) not in seen.memo:
            v, z = seen.bottleneck(target).double(), flat(_Part(seen, seen.arch, target, _double(seen.weights), {target})({}), node)
            v, z = v - v.mean((0, 1)), z - z.mean((0, 1))
            seen.memo["missing", target] = v - z * ((v * z).sum((0, 1)) / z.square().sum((0, 1)).clamp(min=1e-300))
        return seen.memo["missing", target]

    def tested(self, seen: Pass, changes: Values) -> Tensor:
        """Each row's slope: its parents are left as they are."""
        return sum((c * self.gradient(seen, t)).sum((1, 2), dtype=torch.float64) for t, c in changes.items())

    def effect(self, seen: Pass, proposal: Proposal) -> dict[str, Tensor]:
        """The Jacobian at the proposal's start times its step, by forward-mode differentiation."""
        start, there = ({b.param: b.values.double() for b in blocks} for blocks in (proposal.start, proposal.blocks))
        part, theta = self._part(seen, start), self._theta(start)
        step = {p: there[p] - t for p, t in theta.items()}
        _, change = torch.func.jvp(part, (theta,), (step,))
        place = self.place(seen)
        return {place: flat(change, seen.arch.nodes[place])}

    def pull(self, seen: Pass, begin: Values) -> Values:
        """For each new parameter minus the gradient of the mean loss, as far as it is missing."""
        out, back = torch.func.vjp(self._part(seen, begin), self._theta(begin))
        return {p: g / seen.rows for p, g in back(self._missing(seen, out))[0].items()}

    def pulls(self, seen: Pass, begin: Values) -> tuple[Tensor, Tensor]:
        """(s, t) for each row and new parameter: the pull of what is missing and of the probe, [rows, parameters] each."""
        place, part, theta = self.place(seen), self._part(seen, begin), self._theta(begin)
        probe = seen.probe[place].double()

        def one(given: Values, v: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
            _, back = torch.func.vjp(lambda t: part(t, {n: x.unsqueeze(0) for n, x in given.items()}).squeeze(0), theta)
            return tuple(torch.cat([g.flatten() for g in back(c)[0].values()]) for c in (v, probe))

        with warnings.catch_warnings():
            # Some ops have no batched derivative, and are run row by row: slower, and no different.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return torch.func.vmap(one, chunk_size=256)(part.given, self._missing(seen, probe), probe)

    def _missing(self, seen: Pass, like: Tensor) -> Tensor:
        """What is missing at the place, in its own layout."""
        place = self.place(seen)
        node = seen.arch.nodes[place]
        return shaped(self.gradient(seen, place), node, space(like.shape[1:], node))

    def place(self, seen: Pass) -> str:
        """Where gradients are known that `end` can be compared with: an affine node that adds to the target, or the output."""
        target = self._ends(seen)[1]
        return _summand(seen.arch, target) or target

    def _ends(self, seen: Pass) -> tuple[str, str]:
        return self.end or self.frame.outputs[0], self.target or seen.arch.outputs[0]

    def _theta(self, begin: Values) -> Values:
        return {p: begin[p] for p in self.frame.params if (p, 0) in self.outgoing}

    def _part(self, seen: Pass, begin: Values, end: str | None = None) -> _Part:
        """The frame from what is as before to its end (or `end`), as a function of the new parameters."""
        new = [s for s in (*self.frame.params, *self.frame.buffers) if s not in seen.weights and s not in begin]
        fresh = {**initialise(self.frame, 0, only=new), **begin}
        weights = _double(transfer(Rewrite(self.frame, self.moves, None), seen.weights, fresh))
        return _Part(seen, self.frame, end or self._ends(seen)[0], weights, self._other(self.frame, seen.arch))

    def _other(self, one: Architecture, two: Architecture) -> set[str]:
        """The nodes of `one` that are not the same in `two`, or have other weights."""
        moved = {owner_of(self.frame, m.param) for m in self.moves}
        return {n for n, node in one.nodes.items() if n in moved or node != two.nodes.get(n)}


class _Part:
    """A network from stored activations (`given`) to `end`: all that depends on the nodes in `other`, run again in eval mode."""

    def __init__(self, seen: Pass, arch: Architecture, end: str, weights: Values, other: set[str]):
        self.nodes, self.end, self.weights = arch.nodes, end, weights
        after = set()
        for n in arch.order:
            if n in other or after.intersection(arch.nodes[n].inputs):
                after.add(n)
        needed, waiting = set(), [end]
        while waiting:
            n = waiting.pop()
            if n in after and n not in needed:
                needed.add(n)
                waiting.extend(arch.nodes[n].inputs)
        self.todo = [n for n in arch.order if n in needed]
        read = dict.fromkeys([end, *(i for n in self.todo for i in arch.nodes[n].inputs)])
        self.given = {n: seen.values[n].double() for n in read if n not in needed}
        _, self.modules = infer(arch.nodes, arch.order)
        self.slots = {n: arch.formed.locals[n] for n in self.todo}

    def __call__(self, theta: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None) -> Tensor:
        """The end's value with `theta` in place of those weights."""
        values = dict(self.given if given is None else given)
        for n in self.todo:
            module, inputs = self.modules[n], tuple(values[i] for i in self.nodes[n].inputs)
            if isinstance(module, nn.Module):
                held = {local: theta.get(slot, self.weights[slot]) for local, slot in self.slots[n].items()}
                values[n] = torch.func.functional_call(module, held, inputs)
            else:
                values[n] = module(*inputs)
        return values[self.end]


def _summand(arch: Architecture, name: str) -> str | None:
    """An affine node whose change is a change of `name`, whole and alone; None where there is none."""
    node = arch.nodes[name]
    if node.rule.role == "affine":
        return name
    alone = (i for i in node.inputs if i not in arch.outputs and arch.consumers[i] == (name,)) if node.rule.role == "sum" else ()
    return next(filter(None, (_summand(arch, i) for i in alone)), None)


def _double(values: Mapping[str, Tensor]) -> Values:
    return {n: t.detach().double() if t.is_floating_point() else t.detach() for n, t in values.items()}

