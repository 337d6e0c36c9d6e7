"""The label trace: what the ops that nodes run (recording) do to labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dagrow.errors import GraphError
from dagrow.graph.labels import Cells, Label
from dagrow.graph.node import Node
from dagrow.graph.recording import BATCH, Recipe, Ref, recipe

Shape = tuple[int, ...]


class Labelled(NamedTuple):
    """A tensor as rules see it. `leaf`: made of parameters only, of those in `held`: more than one name where of several tensors."""

    shape: Shape
    labels: tuple[Label, ...]
    leaf: bool = False
    held: tuple[str, ...] = ()


class Mark(NamedTuple):
    """What an op does with some cells: kind is reads, writes, bilinear, gates or mixes; param and axis for the first two."""

    kind: str
    node: str
    cells: np.ndarray
    param: str | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Leaf:
    """A parameter or buffer under its full (possibly tied) name."""

    name: str
    shape: Shape
    labels: tuple[Label, ...]
    trainable: bool


class Trace:
    """Labels a network node by node; afterwards holds cells, marks, leaves, MACs and what it did not understand."""

    def __init__(self, find: Callable) -> None:
        """`find` gives the rule of an aten op (dagrow.graph.rules), or None."""
        self._find = find
        self.cells = Cells()
        self.node = ""
        self.marks: list[Mark] = []
        self.leaves: dict[str, Leaf] = {}
        self.locals: dict[str, dict[str, str]] = {}
        self.values: dict[str, Labelled] = {}
        self.macs: dict[str, int] = {}
        self.opaque: dict[str, dict[str, None]] = {}
        self._slots: dict[int, tuple[str, int]] = {}
        self._loose: list[np.ndarray] = []

    def network(self, nodes: Mapping[str, Node], order: Iterable[str], outputs: Iterable[str]) -> Trace:
        """Traces a network; its inputs and outputs are frozen. Raises GraphError with the node."""
        for name in order:
            node = nodes[name]
            self.node, self.macs[name], self.locals[name] = name, 0, {}
            if node.op == "input":
                shape = (BATCH, *node.attrs.shape)
                self.values[name] = Labelled(shape, (None,) * len(shape))
            else:
                inputs = [self.values[i] for i in node.inputs]
                shapes = [x.shape[1:] for x in inputs]
                self.values[name] = self._follow(node, recipe(node, name, shapes), inputs)
                self.macs[name] = node.rule.macs(node.attrs, self.macs[name], *shapes)
        for name in outputs:
            for label in self.values[name].labels:
                self.cells.freeze(label)
        if self._loose:
            self.cells.freeze_unborn(np.concatenate(self._loose), self._slots)
        return self

    def alone(self, node: Node, made: Recipe, inputs: list[Labelled]) -> Trace:
        """Traces one node, named ""."""
        self.macs[""], self.locals[""] = 0, {}
        self.values[""] = self._follow(node, made, inputs)
        return self

    def _follow(self, node: Node, made: Recipe, inputs: list[Labelled]) -> Labelled:
        held = dict(enumerate([*inputs, *(self._leaf(node, *leaf) for leaf in made.leaves)]))
        if node.rule.closed:
            self.give_up(node.rule.called(node.attrs), [label for x in held.values() for label in x.labels], said=True)
            return Labelled(made.shape, (None,) * len(made.shape))
        held.update((k, Labelled(s, (None,) * len(s))) for k, s in made.consts.items())
        for step in made.steps:
            seen: list[Labelled] = []
            args = _look(step.args, held, seen)
            kwargs = dict(zip(step.kwargs, _look([*step.kwargs.values()], held, seen), strict=True))
            rule = self._find(step.func)
            labels = [] if rule is None else rule(self, step.shapes, step.func, *args, **kwargs)
            if any(step.read[len(labels) :]):
                # No rule, or one that says nothing of an output that is read.
                labels = []
                self.give_up(step.func, [label for x in seen for label in x.labels])
            leaf = bool(seen) and all(x.leaf for x in seen)
            names = () if not leaf else seen[0].held if len(seen) == 1 else tuple(dict.fromkeys(n for x in seen for n in x.held))
            if len(names) == 1 and len(seen) > 1:
                names *= 2  # as in w + w.T, where a dimension may be two of the parameter's
            for k, (number, shape) in enumerate(zip(step.outs, step.shapes, strict=True)):
                held[number] = Labelled(shape, labels[k] if k < len(labels) else (None,) * len(shape), leaf, names)
        return held[made.out]

    def _leaf(self, node: Node, local: str, shape: Shape, trainable: bool) -> Labelled:
        name = self.locals[self.node][local] = dict(node.tied).get(local, f"{self.node}.{local}")
        leaf = self.leaves.get(name)
        if leaf is None:
            self._slots.update((self.cells.events + k, (name, k)) for k in range(len(shape)))
            leaf = self.leaves[name] = Leaf(name, shape, tuple(self.cells.fresh(n) for n in shape), trainable)
        elif leaf.shape != shape:
            raise GraphError(f"{self.node!r}: its {local} is {list(shape)}, {name} is {list(leaf.shape)}", node=self.node)
        return Labelled(shape, leaf.labels, True, (name,))

    # For rules

    def give_up(self, func, labels: list[Label], said: bool = False) -> None:
        """What is not understood is frozen, and reported; `said`: though nothing could have been resized there."""
        live = [label for label in labels if label is not None]
        if live or said:
            self.opaque.setdefault(str(func), {})[self.node] = None
        for label in live:
            self.cells.freeze(label)

    def mark(self, kind: str, label: Label, param: str | None = None, axis: int | None = None) -> None:
        if label is not None and len(label):
            self.marks.append(Mark(kind, self.node, label, param, axis))

    def mark_slots(self, kind: str, label: Label, x: Labelled) -> None:
        """Marks the slots of parameters that the raw cells of a label of `x` were born in.

        Cells made on the way from the parameter, as where axes are flattened, mark all of its axes that they have a part in.
        """
        if label is None or not len(label):
            return
        events = self.cells.event(label)
        whole = not np.count_nonzero(events != events[0])
        for event in [int(events[0])] if whole else np.unique(events).tolist():
            mine = label if whole else label[events == event]
            if event in self._slots:
                self.mark(kind, mine, *self._slots[event])
            else:
                self._mark_parts(kind, mine, x)
        if len(x.held) > 1:
            # Of several: all of them.
            self._mark_parts(kind, label, x)

    def _mark_parts(self, kind: str, label: np.ndarray, x: Labelled) -> None:
        cells = self.cells
        parts = {a for cell in np.unique(label).tolist() for a in cells.atoms(cell)}
        for name in dict.fromkeys(x.held):
            for axis, own in enumerate(self.leaves[name].labels):
                if own is not None and any(not parts.isdisjoint(cells.atoms(cell)) for cell in own.tolist()):
                    self.mark(kind, own, name, axis)

    def loose(self, count: int) -> np.ndarray:
        """Cells that are frozen in the end unless they turn out to be the units of some parameter."""
        self._loose.append(self.cells.fresh(count))
        return self._loose[-1]

    def slot(self, label: Label) -> tuple[str, int] | None:
        """The parameter and its axis that a raw label was born in."""
        return None if label is None or not len(label) else self._slots.get(int(self.cells.event(label[:1])[0]))

    def count(self, macs: int, leaf: bool = False) -> None:
        """Multiply-accumulates of the whole trace; those of one sample are kept."""
        self.macs[self.node] += macs if leaf else macs // BATCH


def _look(values: list, held: Mapping[int, Labelled], seen: list[Labelled]) -> list:
    """With what is held in the place of each reference."""
    made = []
    for value in values:
        if isinstance(value, Ref):
            value = held[value.number]
            seen.append(value)
        made.append(_look(value, held, seen) if isinstance(value, list) else value)
    return made
