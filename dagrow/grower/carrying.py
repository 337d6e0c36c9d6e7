"""The user's optimizer across an edit: it holds every live parameter and no dead one, each in its group, with its state.

State tensors of a parameter's shape go along by the edit's moves. torch counts steps per tensor, not per element, so that a
newborn entry of an old tensor is taken for an old one: were its second moment 0, Adam's first steps would be many times
too large for it. It gets what the incumbents of its tensor have, times how much larger its gradient's square is than
theirs, both measured on the grown network: whatever the loss's scale, batch and decay, its updates are then in proportion.
Where there is a first moment, too, which starts at 0, it gets a quarter of that: its updates are then .5 to .9 of the
incumbents' at first and 1.1 to 2 of them after 50 steps (tools/bench_grower.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dagrow.errors import UsageError
from dagrow.graph import Architecture
from dagrow.grower.live import Change

# What state is per element: a mean or sum of squared gradients, of their sizes, or a number like the others'. The rest starts at 0.
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
SIZES = ("exp_inf",)
LIKE_OTHERS = ("acc_delta", "step_size")
FIRST, START = "exp_avg", 0.25
BORN = "newborn"

Slots = dict[str, dict[str, Tensor]]


def check(optimizer: object, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """UsageError unless `optimizer` is one of torch's that can lose and gain parameters, and holds all that train."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"the optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        fix = "use SGD, Adam, AdamW, RMSprop, Adagrad or another that keeps its state per parameter"
        raise UsageError("LBFGS keeps its history over all parameters laid end to end: none of it is left when one changes its shape", fix=fix)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in named if p.requires_grad and id(p) not in held]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        fix = "make it from model.parameters(), or freeze what it shall not train: parameter.requires_grad_(False)"
        raise UsageError(f"the optimizer does not hold these parameters of the model: {', '.join(missing[:5])}{more}", fix=fix)


def slots_of(optimizer: torch.optim.Optimizer, arch: Architecture, tensors: Mapping[str, Tensor]) -> Slots:
    """{slot: {"node.local": state}} of all state tensors of a parameter's shape, and a slot that marks newborn entries."""
    found: Slots = {BORN: {}}
    for full, p in tensors.items():
        shape = arch.params.get(full)
        if shape is None or math.prod(shape) != p.numel():  # a part of another tensor
            continue
        found[BORN][full] = torch.zeros(shape)
        for slot, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and value.shape == p.shape and p.dim():
                found.setdefault(slot, {})[full] = value.detach().view(shape)
    return found


def fills(slots: Slots) -> dict[str, float]:
    """What a newborn entry is until its value is known: marked in one slot, 0 in the others."""
    return {slot: float(slot == BORN) for slot in slots}


@dataclass
class Carried:
    """The optimizer's state as it will be, before anything is touched. reset: parameters whose state could not go along."""

    change: Change
    states: dict[nn.Parameter, dict] = field(default_factory=dict)
    reset: list[str] = field(default_factory=list)


def carried(
    optimizer: torch.optim.Optimizer, change: Change, tensors: Mapping[str, Tensor], moved: Slots, squares: Callable[[Iterable[str]], Mapping[str, Tensor]]
) -> Carried:
    """State for each parameter that takes another's place. tensors: "node.local" -> the parameter before; moved: `slots_of`
    after the edit's moves; squares: mean squared gradients of these parameters of the grown network."""
    made, wanted = Carried(change), []
    pairs = [(full, old, change.replaced[old]) for full, old in tensors.items() if isinstance(change.replaced.get(old), nn.Parameter)]
    for full, old, new in pairs:
        state = optimizer.state.get(old)
        if not state:
            continue
        fresh = {}
        for slot, value in state.items():
            if not isinstance(value, Tensor) or not value.dim():
                fresh[slot] = value.clone() if isinstance(value, Tensor) else value
            elif full in moved.get(slot, {}):
                fresh[slot] = moved[slot][full].to(value).contiguous().view(new.shape)
            else:  # rows and columns of a factored moment, for instance
                made.reset.append(full)
                break
        else:
            made.states[new] = fresh
            if bool(moved[BORN][full].any()) and any(s in fresh for s in (*SQUARES, *SIZES, *LIKE_OTHERS)):
                wanted.append((full, new))
    found = squares([full for full, _ in wanted]) if wanted else {}
    for full, new in wanted:
        squares_of = found.get(full)
        _fill(made.states[new], moved[BORN][full].bool().view(new.shape), None if squares_of is None else squares_of.view(new.shape))
    return made


def _fill(state: dict, born: Tensor, squares: Tensor | None) -> None:
    """Newborn entries in proportion to the incumbents of the same tensor, by their gradients' mean squares."""
    ratio = 1.0
    if squares is not None:
        new, old = (float(squares[part].double().mean()) if bool(part.any()) else 0.0 for part in (born, ~born))
        ratio = new / old if new > 0 and old > 0 else 1.0
    if FIRST in state:
        ratio *= START
    for slot, power in (*((s, 1.0) for s in SQUARES), *((s, 0.5) for s in SIZES), *((s, 0.0) for s in LIKE_OTHERS)):
        value = state.get(slot)
        if isinstance(value, Tensor) and value.shape == born.shape:
            there = born.to(value.device)
            old = value[~there]
            value[there] = (old.double().mean().to(value.dtype) if old.numel() else value.new_zeros(())) * ratio**power


def take(optimizer: torch.optim.Optimizer, arch: Architecture, made: Carried, live: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Puts the change into the optimizer. arch: the grown one; live: its "node.local" -> parameter; names: -> the model's own.

    A newborn parameter joins the group of the nearest parameter of the node it feeds or reads, of weights a weight's and
    of vectors a vector's: where weight decay differs, it is by these.
    """
    change = made.change
    homes = {full: _home(optimizer, change.parts.get(full)) for full in change.newborn}
    for group in optimizer.param_groups:
        kept = [(p, change.replaced.get(p, p)) for p in group["params"]]
        if "param_names" in group:
            group["param_names"] = [n for n, (_, new) in zip(group["param_names"], kept, strict=True) if new is not None]
        group["params"] = [new for _, new in kept if new is not None]
    for old in change.replaced:
        optimizer.state.pop(old, None)
    for new, state in made.states.items():
        optimizer.state[new] = state
    place = {id(p): k for k, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for full, p in change.newborn.items():
        k = homes[full] if homes[full] is not None else _nearest(arch, full, live, place)
        group = optimizer.param_groups[k]
        group["params"].append(p)
        if "param_names" in group:
            group["param_names"].append(names[full])


def _home(optimizer: torch.optim.Optimizer, part_of: nn.Parameter | None) -> int | None:
    return next((k for k, group in enumerate(optimizer.param_groups) for p in group["params"] if p is part_of), None)


def _nearest(arch: Architecture, full: str, live: Mapping[str, Tensor], place: Mapping[int, int]) -> int:
    """The group of the nearest parameter of the same kind, readers before sources; of any kind where there is none."""
    owner = next(n for n, local in arch.formed.locals.items() if full in local.values())
    seen, todo, other = {owner}, deque([owner]), None
    while todo:
        node = todo.popleft()
        for name in arch.formed.locals[node].values():
            k = place.get(id(live.get(name)))
            if k is not None and name != full:
                if (live[name].dim() > 1) == (live[full].dim() > 1):
                    return k
                other = k if other is None else other
        for near in (*arch.consumers[node], *arch.nodes[node].inputs):
            if near not in seen:
                seen.add(near)
                todo.append(near)
    return 0 if other is None else other


__all__ = ["Carried", "carried", "check", "fills", "slots_of", "take"]
