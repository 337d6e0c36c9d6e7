"""More units on any axis, at weights where the network computes what it did: also where units are normalised together.

A layer norm gives its old outputs when newborns carry the mean of the old units, its scale is multiplied by sqrt(C / C')
and its eps by C / C'; a softmax when a unit is cloned and the logit of each copy gains the log of its share. Each op says
what it needs (Op.steady); the rewrite that follows from it is run once on random values before it is claimed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dagrow.compiler import initialise
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, Refusal, Rewrite, preserving, resize
from dagrow.graph.axes import Axis
from dagrow.graph.node import run
from dagrow.measure.passes import materialise
from dagrow.measure.recasts import SAME, doubled
from dagrow.ops import Steady
from dagrow.rng import stream

# Clones that are mixed have (1 ± this) / 2 of what one had.
UNEVEN = 0.2
Values = Mapping[str, Tensor]


def grown(arch: Architecture, name: str, units: int) -> Rewrite | Refusal:
    """`units` more on the axis `name`. Where there are weights that keep the function, the rewrite has them (Rewrite.keeps)."""
    known = arch.memo.setdefault("grown", {})
    if (name, units) not in known:
        known[name, units] = _grown(arch, arch.axes[name], units)
    return known[name, units]


def _grown(arch: Architecture, axis: Axis, units: int) -> Rewrite | Refusal:
    plain = resize(arch, {axis.id: (*range(axis.size), *(-1,) * units)})
    if isinstance(plain, Refusal):
        return plain
    if plain.zero is not None:
        return plain if keeps(arch, plain) else replace(plain, zero=None)
    made = _steadied(arch, axis, plain, units) if axis.mixes else None
    return made if made is not None and keeps(arch, made) else plain


def _steadied(arch: Architecture, axis: Axis, plain: Rewrite, units: int) -> Rewrite | None:
    """The rewrite at the values that the ops which mix the axis ask for; None where they ask for none, or for different things."""
    needs: dict[str, Steady] = {}
    for name in axis.mixes:
        node, wide = plain.arch.nodes[name], plain.arch.shapes
        need = node.rule.steady(arch.nodes[name].attrs, node.attrs, arch.shapes[node.inputs[0]], wide[node.inputs[0]])
        if need is None:
            return None
        needs[name] = need
    if len({need.newborn for need in needs.values()}) > 1:
        return None
    copies = next(iter(needs.values())).newborn == "copy"
    rewrite = resize(arch, {axis.id: (*range(axis.size), *(k % axis.size for k in range(units)))}) if copies else plain
    try:
        made = rewrite.arch.replace({n: Node(v.op, v.inputs, needs[n].attrs, v.tied) for n, v in rewrite.arch.nodes.items() if n in needs})
    except GraphError:
        return None
    settle = _copied(arch, axis, rewrite, needs) if copies else _at_the_mean(arch, axis, rewrite, needs)
    return Rewrite(made, rewrite.moves, None, settle)


def _at_the_mean(arch: Architecture, axis: Axis, rewrite: Rewrite, needs: Mapping[str, Steady]):
    """Newborns carry the mean of the stream: what writes it, or adds to it, has the mean of its entries there."""
    asked, names = set(needs), arch.formed.locals
    own = {full: (needs[n], local) for n in needs for local, full in names[n].items()}
    # Behind the norm a newborn is 0 whatever it is multiplied by: its reads are free, and learn.
    free = {(u.param, u.axis) for u in axis.reads if _behind(arch, axis, u.node, asked)}
    reads = {(u.param, u.axis) for u in axis.reads}

    def settle(old: Values, made: Values) -> Values:
        found: dict[str, Tensor] = {}
        for move in rewrite.moves:
            value = found.get(move.param, made[move.param])
            born = torch.tensor([k for k, o in enumerate(move.index) if o < 0], dtype=torch.long, device=value.device)
            if move.param in own:
                need, local = own[move.param]
                factor = need.scale.get(local, 1.0)
                value = value.clone() if local in need.zero or factor != 1.0 else value
                if factor != 1.0:
                    there = torch.tensor([k for k, o in enumerate(move.index) if o >= 0], dtype=torch.long, device=value.device)
                    value.index_copy_(move.axis, there, value.index_select(move.axis, there) * factor)
                if local in need.zero:
                    value.index_fill_(move.axis, born, 0.0)
            elif (move.param, move.axis) in reads:
                value = value if (move.param, move.axis) in free else value.index_fill(move.axis, born, 0.0)
            elif value.is_floating_point():
                there = torch.tensor([k for k, o in enumerate(move.index) if o >= 0], dtype=torch.long, device=value.device)
                mean = value.index_select(move.axis, there).mean(move.axis, keepdim=True)
                value = value.index_copy(move.axis, born, mean.expand(*(len(born) if k == move.axis else n for k, n in enumerate(value.shape))))
            found[move.param] = value
        return found

    return settle


def _behind(arch: Architecture, axis: Axis, reader: str, mixing: set[str]) -> bool:
    """Whether all that the reader sees of the axis comes through a node that mixes it."""
    carrying = {u.node for u in (*axis.writes, *axis.follows)}
    todo, seen = [i for i in arch.nodes[reader].inputs if i in carrying or i in mixing], set()
    while todo:
        name = todo.pop()
        if name in mixing or name in seen:
            continue
        if any(u.node == name for u in axis.writes):
            return False
        seen.add(name)
        todo.extend(i for i in arch.nodes[name].inputs if i in carrying or i in mixing)
    return bool(seen) or any(i in mixing for i in arch.nodes[reader].inputs)


def _copied(arch: Architecture, axis: Axis, rewrite: Rewrite, needs: Mapping[str, Steady]):
    """Clones everywhere; the logit of each copy gains the log of its share."""
    names = arch.formed.locals
    logits = {names[n][local] for n in needs for local in needs[n].logits}
    if not all(need.logits for need in needs.values()):
        logits |= {u.param for u in axis.follows if u.param and u.node in {w.node for w in axis.writes}}

    def settle(old: Values, made: Values) -> Values:
        found: dict[str, Tensor] = {}
        for move in rewrite.moves:
            if move.param in logits:
                more = parts_of(move.index, UNEVEN).log().to(made[move.param])
                found[move.param] = made[move.param] + more.view([-1 if k == move.axis else 1 for k in range(made[move.param].dim())])
        return found

    return settle


def parts_of(index: Sequence[int], uneven: float = 0.0) -> Tensor:
    """What each new index has of the whole that those from the same old one share, 1 for a newborn: [len(index)], fp64.

    With `uneven` clones have more or less than equal parts: those with equal ones learn the same.
    """
    count, seen, turn = Counter(index), {}, []
    for old in index:
        seen[old] = seen.get(old, -1) + 1
        turn.append(seen[old] if old >= 0 else 0)
    size = torch.tensor([1.0 if old < 0 else float(count[old]) for old in index], dtype=torch.float64)
    tilt = torch.where(size > 1, 2 * torch.tensor(turn, dtype=torch.float64) / (size - 1).clamp(min=1) - 1, 0.0)
    return (1 + uneven * tilt) / size


def keeps(arch: Architecture, rewrite: Rewrite) -> bool:
    """Whether the rewritten network computes what the old one does: both are run on random values, in double precision."""
    weights = _random(arch, 0)
    one, two = _run(arch, weights), _run(rewrite.arch, preserving(rewrite, weights, _random(rewrite.arch, 1)))
    gap = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
    size = max(float(a.abs().max()) for a in one)
    return math.isfinite(gap) and gap <= SAME * max(size, 1.0)


def _random(arch: Architecture, number: int) -> dict[str, Tensor]:
    """Fresh values; what is the same for all units at the start (biases of 0, scales of 1) is not, for it would hide what is wrong.

    The others stay as they are: larger ones would saturate what follows, and hide as much.
    """
    made = {}
    for name, value in doubled(initialise(arch, number)).items():
        if value.is_floating_point() and (value.dim() < 2 or bool((value == value.flatten()[0]).all())):
            value = value + (torch.rand(value.shape, dtype=torch.float64, generator=stream(number, "keeps", name)) - 0.5) / 2
        made[name] = value
    return made


def _run(arch: Architecture, weights: Values) -> list[Tensor]:
    # Between 0 and 1: whole numbers, where an embedding looks them up, are then in its vocabulary.
    x = {n: torch.rand(3, *arch.shapes[n], dtype=torch.float64, generator=stream(0, "keeps", "rows", n)) for n in arch.inputs}
    with torch.no_grad():
        values = run(arch.nodes, arch.order, materialise(arch, weights), x)
    return [values[o] for o in arch.outputs]
