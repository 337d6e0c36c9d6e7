"""Which slots of newborn units must be zero for the network to go on computing what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dagrow.graph.node import Node, build
from dagrow.graph.recording import Step, recipe

if TYPE_CHECKING:
    from dagrow.graph.architecture import Architecture
    from dagrow.graph.axes import Axis

Slots = tuple[tuple[str, int], ...]


def zero_slots(arch: Architecture, wanted: Mapping[str, Sequence[int]]) -> Slots | None:
    """The (parameter, axis) slots whose newborns must be zero when axes get the units `wanted` (index[new] = old or -1).

    None where zeros are not enough. What is only read is zero where it is read. Where units are contracted with others, the
    writer of one side is, if nothing on the way makes something of nothing; both sides at zero would be a saddle.
    """
    found: dict[tuple[str, int], None] = {}
    for name, index in wanted.items():
        axis = arch.axes[name]
        if sorted(i for i in index if i >= 0) != list(range(axis.size)):
            return None
        if len(index) == axis.size:
            continue
        if axis.mixes:
            return None
        found.update(dict.fromkeys((u.param, u.axis) for u in axis.reads))
        if axis.bilinear:
            node = next((u.node for u in axis.writes if _silences(arch, axis, u.node)), None)
            if node is None:
                return None
            found.update(dict.fromkeys((u.param, u.axis) for u in (*axis.writes, *axis.follows) if u.node == node and u.param))
    return tuple(found)


def _silences(arch: Architecture, axis: Axis, writer: str) -> bool:
    """Whether all products of the axis' units vanish for a unit that `writer` makes zero."""
    number = arch.derived.number(axis.id)
    carrying = {n for (n, _), table in arch.derived.outputs.items() if number in table.axes}
    # A unit of a tied writer is zero in all of them; what else lives in its weights then does not matter.
    silent = {writer}
    for name in arch.order:
        node = arch.nodes[name]
        inputs = [i for i in node.inputs if i in carrying]
        if name in axis.bilinear:
            if not any(i in silent for i in inputs):
                return False
        elif inputs and name in carrying and all(i in silent for i in inputs) and _keeps_zero(node, tuple(arch.shapes[i] for i in node.inputs)):
            silent.add(name)
    return True


def numbers_stay(arch: Architecture, new: Architecture) -> bool:
    """Whether no number that a node calculates with follows a size, as where attention divides by the root of its width.

    `new` is `arch` at other sizes. Numbers are all that are no tensors in what the nodes run; whole ones only where the op is
    elementwise: elsewhere they are sizes and places.
    """
    for name, node in arch.nodes.items():
        before, after = ([a.shapes[i] for i in node.inputs] for a in (arch, new))
        if node.op == "input" or (before == after and arch.shapes[name] == new.shapes[name] and node == new.nodes[name]):
            continue
        # Steps without numbers may differ: a dimension of size 1 takes fewer of them to lay out.
        old, made = ([n for step in recipe(a.nodes[name], name, shapes).steps if (n := _numbers(step))] for a, shapes in ((arch, before), (new, after)))
        if old != made:
            return False
    return True


def _numbers(step: Step) -> tuple:
    kinds = (int, float, complex) if torch.Tag.pointwise in step.func.tags else (float, complex)
    found = [v for v in (*step.args, *step.kwargs.values()) if isinstance(v, kinds)]
    return (step.func, *found) if found else ()


def _keeps_zero(node: Node, shapes: tuple[tuple[int, ...], ...]) -> bool:
    return _nothing_of_nothing(node.rule, node.op, node.attrs, shapes)


@lru_cache(maxsize=1024)
def _nothing_of_nothing(rule: type, op: str, attrs: object, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether the op makes zeros of zeros in eval mode, whatever its parameters: here each is some number that is not zero."""
    with torch.device("cpu"), torch.random.fork_rng(devices=()), torch.no_grad():
        module = build(Node(op, (), attrs), shapes, op)
        if isinstance(module, nn.Module):
            module.eval()
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.fill_(0.7 if tensor.is_floating_point() else 1)
        made = module(*(torch.zeros((1, *s)) for s in shapes))
    return isinstance(made, Tensor) and not made.any()
