"""Shapes, parameters and MACs of a network, node by node: what can be known without following units from node to node."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dagrow.errors import GraphError
from dagrow.graph import mixing
from dagrow.graph.node import Node, Recent
from dagrow.graph.recording import BATCH, Recipe, recipe
from dagrow.graph.trace import Labelled, Trace

Shape = tuple[int, ...]
_MACS = Recent()


@dataclass(frozen=True)
class Formed:
    """Shapes of nodes leave out the batch. locals: node -> local name -> full, possibly tied name."""

    shapes: Mapping[str, Shape]
    params: Mapping[str, Shape]
    buffers: Mapping[str, Shape]
    size: int
    locals: Mapping[str, Mapping[str, str]]
    recipes: Mapping[str, tuple[Node, Recipe]] = field(repr=False, compare=False)

    @cached_property
    def macs(self) -> Mapping[str, int]:
        """Of one sample: worked out when first asked for."""
        runs = {name: _macs(node, made, [self.shapes[i] for i in node.inputs]) for name, (node, made) in self.recipes.items()}
        return {name: runs.get(name, 0) for name in self.shapes}


def formed_of(nodes: Mapping[str, Node], order: Iterable[str]) -> Formed:
    """Raises GraphError with the node where shapes do not fit."""
    shapes: dict[str, Shape] = {}
    leaves: dict[str, tuple[Shape, bool]] = {}
    recipes: dict[str, tuple[Node, Recipe]] = {}
    names: dict[str, dict[str, str]] = {}
    for name in order:
        node = nodes[name]
        names[name] = {}
        if node.op == "input":
            shapes[name] = tuple(node.attrs.shape)
            continue
        inputs = [shapes[i] for i in node.inputs]
        made = recipe(node, name, inputs)
        tied = dict(node.tied)
        for local, shape, trained in made.leaves:
            full = names[name][local] = tied.pop(local, f"{name}.{local}")
            if node.tied and full != f"{name}.{local}" and full not in leaves:
                fix = "tie it to the node that holds the parameter itself"
                raise GraphError(f"{name!r}: its {local} is tied to {full!r}, which is no parameter", node=name, fix=fix)
            known = leaves.setdefault(full, (shape, trained))
            if known != (shape, trained):
                kinds = "" if known[1] == trained else ", one of them trained, the other not"
                raise GraphError(f"{name!r}: its {local} is {list(shape)}, {full} is {list(known[0])}{kinds}", node=name)
        if tied:
            has = ", ".join(local for local, _, _ in made.leaves) or "none"
            raise GraphError(f"{name!r}: it has no parameter {next(iter(tied))!r} to tie", node=name, fix=f"its parameters: {has}")
        shapes[name], recipes[name] = tuple(made.shape[1:]), (node, made)
    params, buffers = ({n: shape for n, (shape, t) in leaves.items() if t is trained} for trained in (True, False))
    return Formed(shapes, params, buffers, sum(map(math.prod, params.values())), names, recipes)


def _macs(node: Node, made: Recipe, inputs: list[Shape]) -> int:
    """Of one node: those of its form, whatever its inputs mean."""
    key = (node.rule, node.attrs, *inputs)
    if key not in _MACS:
        trace = Trace(mixing.find)
        trace.alone(Node(node.op, node.inputs, node.attrs), made, [Labelled((BATCH, *s), (None,) * (len(s) + 1)) for s in inputs])
        _MACS.put(key, node.rule.macs(node.attrs, trace.macs[""], *inputs))
    return _MACS[key]
