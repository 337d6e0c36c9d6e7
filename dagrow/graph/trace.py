"""The label trace: the network runs once on the meta device, and every aten op says which index belongs to which unit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dagrow.errors import GraphError
from dagrow.graph.labels import Cells, Label
from dagrow.graph.node import Module, Node, apply, build

BATCH = 2
_POOL: OrderedDict[tuple, list[Module]] = OrderedDict()
_POOL_SIZE = 1024


class Labelled(NamedTuple):
    """A tensor as rules see it. `leaf`: made of parameters only."""

    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    leaf: bool = False


class Mark(NamedTuple):
    """What an op does with some cells: kind is reads, writes, bilinear, gates or mixes; param and axis for the first two."""

    kind: str
    node: str
    cells: np.ndarray
    param: str | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Leaf:
    """A parameter or buffer of a node, under its (possibly tied) name."""

    name: str
    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    trainable: bool
    events: tuple[int, ...]


class Trace(TorchDispatchMode):
    """Runs nodes one by one; afterwards holds cells, marks, leaves, MACs and what it did not understand."""

    def __init__(self, find: Callable) -> None:
        """`find` gives the rule of an aten op (dagrow.graph.rules), or None."""
        super().__init__()
        self._find = find
        self.cells = Cells()
        self.node = ""
        self.marks: list[Mark] = []
        self.leaves: dict[str, Leaf] = {}
        self.locals: dict[str, dict[str, str]] = {}
        self.values: dict[str, Tensor] = {}
        self.macs: dict[str, int] = {}
        self.opaque: dict[str, dict[str, None]] = {}
        self._labels: dict[int, tuple[Tensor, Labelled]] = {}
        self._slots: dict[int, tuple[str, int]] = {}

    def labels(self, node: str) -> tuple[Label, ...]:
        """The labels of a node's output, batch first."""
        return self.labelled(self.values[node]).labels

    # Running

    def network(self, nodes: Mapping[str, Node], order: Iterable[str], outputs: Iterable[str]) -> Trace:
        """Traces a network; its inputs and outputs are frozen. Raises GraphError with the node."""
        used: dict[tuple, int] = {}
        with torch.device("meta"), torch.no_grad():
            for name in order:
                node = nodes[name]
                self.node, self.macs[name], self.locals[name] = name, 0, {}
                if node.op == "input":
                    self.values[name] = torch.empty((BATCH, *node.attrs.shape))
                    continue
                inputs = [self.values[i] for i in node.inputs]
                module = _module(node, name, [tuple(x.shape[1:]) for x in inputs], used)
                if isinstance(module, nn.Module):
                    self._enter(node, name, module)
                with self:
                    made = apply(node, name, module, inputs)
                self.values[name] = made
        for name in outputs:
            for label in self.labels(name):
                self.cells.freeze(label)
        return self

    def _enter(self, node: Node, name: str, module: nn.Module) -> None:
        tied = dict(node.tied)
        for local, tensor in [*module.named_parameters(), *module.named_buffers()]:
            full = self.locals[name][local] = tied.get(local, f"{name}.{local}")
            shape = tuple(tensor.shape)
            leaf = self.leaves.get(full)
            if leaf is None:
                labels = tuple(self.cells.fresh(n) for n in shape)
                events = tuple(range(self.cells.events - len(shape), self.cells.events))
                leaf = self.leaves[full] = Leaf(full, shape, labels, isinstance(tensor, nn.Parameter), events)
                self._slots.update((e, (full, k)) for k, e in enumerate(events))
            elif leaf.shape != shape:
                raise GraphError(f"{name!r}: its {local} is {list(shape)}, {full} is {list(leaf.shape)}", node=name)
            self._labels[id(tensor)] = (tensor, Labelled(shape, leaf.labels, True))

    def labelled(self, tensor: Tensor) -> Labelled:
        known = self._labels.get(id(tensor))
        if known is None:
            return Labelled(tuple(tensor.shape), (None,) * tensor.dim())
        return known[1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Before running: an op in place may change the shape of its argument.
        seen: list[Labelled] = []
        given, named = self._see(args, seen), {k: self._see(v, seen) for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        outs = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        if not outs:
            return out
        rule = self._find(func)
        if rule is not None:
            made = rule(self, [tuple(t.shape) for t in outs], func, *given, **named)
        else:
            if any(label is not None for x in seen for label in x.labels):
                self.opaque.setdefault(str(func), {})[self.node] = None
                for x in seen:
                    for label in x.labels:
                        self.cells.freeze(label)
            made = []
        leaf = bool(seen) and all(x.leaf for x in seen)
        for k, tensor in enumerate(outs):
            shape = tuple(tensor.shape)
            labels = made[k] if k < len(made) else (None,) * len(shape)
            if len(labels) != len(shape) or any(x is not None and len(x) != n for x, n in zip(labels, shape, strict=True)):
                raise RuntimeError(f"the rule for {func} labels {[x if x is None else len(x) for x in labels]}, the tensor is {shape}")
            self._labels[id(tensor)] = (tensor, Labelled(shape, tuple(labels), leaf))
        return out

    def _see(self, value, seen: list[Labelled]):
        if isinstance(value, Tensor):
            seen.append(self.labelled(value))
            return seen[-1]
        if isinstance(value, (tuple, list)):
            return [self._see(v, seen) for v in value]
        return value

    # What rules say

    def mark(self, kind: str, label: Label, param: str | None = None, axis: int | None = None) -> None:
        if label is not None and len(label):
            self.marks.append(Mark(kind, self.node, label, param, axis))

    def mark_slots(self, kind: str, label: Label) -> None:
        """Marks the slots of parameters that the raw cells of a label were born in."""
        if label is None:
            return
        events = self.cells.event(label)
        for event in np.unique(events).tolist():
            if event in self._slots:
                self.mark(kind, label[events == event], *self._slots[event])

    def slot(self, label: Label) -> tuple[str, int] | None:
        """The parameter and its axis that a raw label was born in."""
        return None if label is None or not len(label) else self._slots.get(int(self.cells.event(label[:1])[0]))

    def count(self, macs: int, leaf: bool = False) -> None:
        """Multiply-accumulates of the whole trace; those of one sample are kept."""
        self.macs[self.node] += macs if leaf else macs // BATCH


def _module(node: Node, name: str, shapes: list[tuple[int, ...]], used: dict[tuple, int]) -> Module:
    """The node's module on meta in eval mode; built once per form, but never twice the same in one trace."""
    key = (node.rule, node.attrs, *shapes)
    k = used[key] = used.get(key, -1) + 1
    pool = _POOL.get(key)
    if pool is None:
        pool = _POOL[key] = []
        if len(_POOL) > _POOL_SIZE:
            _POOL.popitem(last=False)
    if k < len(pool):
        return pool[k]
    module = build(node, shapes, name)
    if isinstance(module, nn.Module):
        module.eval()
    pool.append(module)
    return module

