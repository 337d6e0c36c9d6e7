"""A changed architecture, and transfer, which carries the old one's tensors along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dagrow.errors import GraphError
from dagrow.graph.architecture import Architecture


@dataclass(frozen=True)
class Move:
    """How one axis of one parameter or buffer is filled: index[new] = old, or -1 for a newborn."""

    param: str
    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Rewrite:
    """A changed architecture and what happens to the tensors of the old one.

    Parameters of `arch` the old one lacks are fresh; parameters `arch` lacks are dropped. zero: the (parameter, axis)
    slots whose newborn entries must be 0 to keep the function; None where zeros alone do not keep it. settle: where more is
    needed than zeros, (old tensors, tensors carried over with those zeros) -> the tensors that must differ from the latter.
    """

    arch: Architecture
    moves: tuple[Move, ...]
    zero: tuple[tuple[str, int], ...] | None
    settle: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]] | None = field(default=None, repr=False, compare=False)

    @property
    def keeps(self) -> bool:
        """Whether there are values of the newborns at which the function is that of the old network."""
        return self.zero is not None or self.settle is not None


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite cannot be, and the nodes it is about."""

    reason: str
    nodes: tuple[str, ...] = ()


def transfer(rewrite: Rewrite, old: Mapping[str, Tensor], newborn: Mapping[str, Tensor] | float) -> dict[str, Tensor]:
    """Tensors for every parameter and buffer of `rewrite.arch`: moved from `old`, or newborn.

    newborn: a number (optimizer moments, steps), or tensors of the new shapes (a fresh initialisation). With a number,
    buffers `old` does not hold are left out. Raises GraphError where a tensor of `old` has not the old shape.
    """
    arch = rewrite.arch
    moves: dict[str, list[Move]] = {}
    for move in rewrite.moves:
        moves.setdefault(move.param, []).append(move)
    like = next((t for t in old.values() if t.is_floating_point()), torch.empty(0))
    number = not isinstance(newborn, Mapping)
    made: dict[str, Tensor] = {}
    for name, shape in {**arch.params, **arch.buffers}.items():
        if name in old:
            made[name] = _moved(name, shape, old[name], moves.get(name, []), newborn if number else newborn.get(name))
        elif not number:
            made[name] = newborn[name].detach().clone()
        elif name in arch.params:
            made[name] = like.new_full(shape, newborn)
    return made


def preserving(rewrite: Rewrite, old: Mapping[str, Tensor], newborn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`transfer`, with the newborns set so that the network computes what it did before. Raises GraphError where none do so."""
    if not rewrite.keeps:
        raise GraphError("this rewrite changes the function of the network")
    made = transfer(rewrite, old, newborn)
    born = {(m.param, m.axis): [k for k, source in enumerate(m.index) if source < 0] for m in rewrite.moves}
    for name, axis in rewrite.zero or ():
        if name not in old:
            made[name] = torch.zeros_like(made[name])
        elif born.get((name, axis)):
            made[name].index_fill_(axis, torch.tensor(born[name, axis], device=made[name].device), 0)
    return made if rewrite.settle is None else {**made, **rewrite.settle(old, made)}


def _moved(name: str, shape: tuple[int, ...], value: Tensor, moves: list[Move], newborn: Tensor | float | None) -> Tensor:
    value = value.detach()
    born = []
    for move in moves:
        index = torch.tensor(move.index, device=value.device)
        if max(move.index) >= value.shape[move.axis]:
            raise GraphError(f"{name} is {list(value.shape)}, its axis {move.axis} is too short for the rewrite")
        value = value.index_select(move.axis, index.clamp(min=0))
        if min(move.index) < 0:
            born.append((move.axis, (index < 0).nonzero().flatten()))
    if not moves:
        value = value.clone()
    if tuple(value.shape) != shape:
        raise GraphError(f"{name} is {list(value.shape)} after the rewrite, it should be {list(shape)}")
    for axis, places in born:
        if isinstance(newborn, Tensor):
            fill = newborn.detach().to(value.device, value.dtype).index_select(axis, places)
            value.index_copy_(axis, places, fill)
        elif newborn is None:
            raise GraphError(f"no newborn values for {name}")
        else:
            value.index_fill_(axis, places, newborn)
    return value
