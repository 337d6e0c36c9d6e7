"""A rewrite rule applied at one place: the network with its nodes in the place of the matched ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from dagrow.edits.patterns import Pattern
from dagrow.edits.putting import Put, Unfit
from dagrow.edits.wiring import fresh_name
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node

Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Replaced:
    """The network with a rule applied.

    names: node of the replacement -> its name there. new: those of them that the network did not have. copied: new
    parameters and buffers -> those whose values they take over. end: what took the place of the pattern's end.
    """

    arch: Architecture
    names: Mapping[str, str]
    new: tuple[str, ...]
    copied: Mapping[str, str]
    end: str


@dataclass(frozen=True)
class Replacement:
    """Nodes to put in the place of a pattern's; `end` serves the readers of the pattern's end."""

    pattern: Pattern
    nodes: Mapping[str, Put]
    end: str

    @cached_property
    def going(self) -> frozenset[str]:
        """Nodes of the pattern that are neither named nor read, straight or through others."""
        stays, todo = set(), [i for p in self.nodes.values() for i in p.inputs or ()]
        todo += [i for n, p in self.nodes.items() if p.inputs is None for i in self.pattern.nodes[n].named]
        while todo:
            name = todo.pop()
            if name in self.pattern.nodes and name not in stays and name not in self.nodes:
                stays.add(name)
                todo.extend(self.pattern.nodes[name].named)
        return frozenset(n for n, w in self.pattern.nodes.items() if n not in stays and n not in self.nodes and not w.free and w.ops != ("input",))

    @cached_property
    def altered(self) -> frozenset[str]:
        """Nodes of the pattern that stay and give something else: those that are named with a change, and what reads them."""
        reads = {n: w.named for n, w in self.pattern.nodes.items()} | {n: p.inputs for n, p in self.nodes.items() if p.inputs is not None}
        found = {n for n, p in self.nodes.items() if n not in self.pattern.nodes or p.changes}
        while more := {n for n, inputs in reads.items() if n not in found and not found.isdisjoint(inputs)}:
            found |= more
        return frozenset(found & set(self.pattern.nodes))

    def apply(self, arch: Architecture, bound: Mapping[str, str], rule: str) -> Replaced:
        """`arch` with the replacement in the place of the nodes `bound` (name in the pattern -> node). Raises Unfit."""
        self._not_read_from_outside(arch, bound)
        prefix = fresh_name(arch, rule)
        made = {name: put.attrs(arch, bound, self.nodes) for name, put in self.nodes.items()}
        names = {name: bound.get(name, f"{prefix}.{name}") for name in self.nodes}
        whole = self._built(arch, bound, names, made)
        # Parameters that go on under their name must have their shape: a node with others is a new one.
        other = [name for name, node in bound.items() if not _goes_on(arch, whole, node)]
        copied: dict[str, str] = {}
        if other:
            names |= {name: f"{prefix}.{name}" for name in other}
            whole = self._built(arch, bound, names, made)
            for name in other:
                copied |= _alike(arch, bound[name], whole, names[name])
        wrong = next((n for n in arch.nodes if n in whole.nodes and not _goes_on(arch, whole, n)), None)
        if wrong is not None:
            shapes = [list(a.shapes[n]) for a, n in ((whole, names[self.end]), (arch, bound[self.pattern.end]))]
            raise Unfit(f"{self.end!r} gives {shapes[0]}, {bound[self.pattern.end]} gave {shapes[1]}: {wrong} would need other weights", self.end)
        for name, put in self.nodes.items():
            node = whole.nodes.get(names[name])
            if put.init == "identity" and node is not None and whole.shapes[names[name]] != whole.shapes[node.inputs[0]]:
                shapes = [list(whole.shapes[n]) for n in (node.inputs[0], names[name])]
                raise Unfit(f"{name!r} cannot be the identity: it reads {shapes[0]} and makes {shapes[1]}", name)
        return Replaced(whole, names, tuple(n for n in names.values() if n not in arch.nodes), copied, names[self.end])

    def _built(self, arch: Architecture, bound: Mapping[str, str], names: Mapping[str, str], made: Mapping[str, tuple[str, object]]) -> Architecture:
        now = {**bound, **names}
        moved = {bound[p]: full for p, full in names.items() if p in bound and bound[p] != full}
        goes, comes = bound[self.pattern.end], names[self.end]
        inside = {now[n] for n in (*self.pattern.nodes, *self.nodes)}
        nodes: dict[str, Node] = {}
        for name, node in arch.nodes.items():
            where = moved if moved.get(name, name) in inside else {**moved, goes: comes}
            nodes[moved.get(name, name)] = Node(node.op, tuple(where.get(i, i) for i in node.inputs), node.attrs, node.tied)
        for name, put in self.nodes.items():
            old, (op, attrs) = arch.nodes[bound[name]] if name in bound else None, made[name]
            inputs = tuple(now[i] for i in put.inputs) if put.inputs is not None else tuple(moved.get(i, i) for i in old.inputs)
            nodes[names[name]] = Node(op, inputs, attrs, old.tied if old is not None and op == old.op and bound[name] == names[name] else ())
        outputs = tuple(comes if o == goes else o for o in arch.outputs)
        alive = _leading(nodes, outputs)
        lost = next((i for i in arch.inputs if i not in alive), None)
        if lost is not None:
            raise Unfit(f"the network would no longer read {lost!r}")
        try:
            whole = Architecture({n: v for n, v in nodes.items() if n in alive}, outputs)
            shapes = whole.shapes
        except GraphError as error:
            local = next((name for name, full in names.items() if full == error.node), None)
            raise Unfit(error.message.replace(repr(error.node), repr(local)) if local else error.message, local, error.fix) from None
        if any(arch.shapes[o] != shapes[n] for o, n in zip(arch.outputs, outputs, strict=True)):
            raise Unfit(f"the network's output would be {list(shapes[comes])} instead of {list(arch.shapes[goes])}", self.end)
        return whole

    def _not_read_from_outside(self, arch: Architecture, bound: Mapping[str, str]) -> None:
        """Nodes that go, or become others, may feed nothing but the pattern; its end's readers are served."""
        for name, node in bound.items():
            if name == self.pattern.end or name not in self.going | self.altered:
                continue
            outside = next((r for r in arch.consumers[node] if r not in bound.values()), "the output" if node in arch.outputs else None)
            if outside is not None:
                raise Unfit(f"{node}, its {name!r}, also feeds {outside}, outside of the pattern, and does not stay as it is")


def _leading(nodes: Mapping[str, Node], outputs: Iterable[str]) -> set[str]:
    """The nodes that lead to an output."""
    alive, todo = set(), list(outputs)
    while todo:
        name = todo.pop()
        if name not in alive:
            alive.add(name)
            todo.extend(nodes[name].inputs)
    return alive


def _tensors(arch: Architecture, node: str) -> Tensors:
    """local name -> (full name, shape) of the node's parameters and buffers."""
    return {local: (full, (arch.params if full in arch.params else arch.buffers)[full]) for local, full in arch.formed.locals[node].items()}


def _goes_on(old: Architecture, new: Architecture, node: str) -> bool:
    """Whether the node's tensors are the same ones before and after, by name and shape, or it has none any more."""
    after = _tensors(new, node) if node in new.nodes else {}
    return not after or after == _tensors(old, node)


def _alike(old: Architecture, was: str, new: Architecture, now: str) -> dict[str, str]:
    """New full name -> old full name of tensors with the same local name and shape."""
    before = _tensors(old, was)
    return {full: before[local][0] for local, (full, shape) in _tensors(new, now).items() if local in before and before[local][1] == shape}
