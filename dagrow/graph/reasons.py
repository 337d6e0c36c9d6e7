"""Why axes are as they are: which node made two things one axis, and which node fixed a size. The trace again, looked at after each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dagrow.graph.architecture import Architecture
from dagrow.graph.axes import FIND, Derived
from dagrow.graph.collecting import uncollected
from dagrow.graph.node import Node
from dagrow.graph.trace import Labelled, Trace

Spot = tuple[str, int]  # a parameter or buffer, and one of its dimensions


@dataclass(frozen=True)
class Tie:
    """What made places one axis: `kind` is sum, gate, contraction, kernels, shared or op; `members`: the nodes that come together."""

    kind: str
    node: str
    why: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Fixed:
    """A dimension of a parameter or buffer that is of one size for good, or `count` of its `size` indices.

    kind: input, output, kernel, option, meets, no rule, opaque or op. node: where it became fixed; op: the node's op, or what it
    runs that there is no rule for.
    """

    param: str
    axis: int
    count: int
    size: int
    kind: str
    node: str
    op: str
    why: str


@dataclass(frozen=True)
class Reasons:
    """ties: axis -> what holds it together; fixed: in the order of the network."""

    ties: Mapping[str, tuple[Tie, ...]]
    fixed: tuple[Fixed, ...]


def reasons(arch: Architecture) -> Reasons:
    """Traces the network once more, slowly, and remembers."""
    if "reasons" not in arch.memo:
        with uncollected():
            arch.memo["reasons"] = _Looking(arch).told()
    return arch.memo["reasons"]


class _Looking(Trace):
    """Follows one index of each place: the first unit of each axis there, and the first index that is fixed."""

    def __init__(self, arch: Architecture):
        super().__init__(FIND)
        self.arch, self.whole = arch, arch.derived
        self.units, self.first = _indices(self.whole)
        self.groups: dict[str, list[set[Spot]]] = {}
        self.ties: dict[str, list[Tie]] = {}
        self.fixed: dict[Spot, Fixed] = {}
        self.stiff: dict[str, dict[int, str]] = {}  # node -> dimension of its output -> why it is fixed
        self.new: set[str] = set()

    def told(self) -> Reasons:
        self.network(self.arch.nodes, self.arch.order, self.arch.outputs)
        self._fix(None)
        for axis, found in self.whole.axes.items():
            ties, read = self.ties.setdefault(axis, []), {u.param for u in found.reads}
            for param in dict.fromkeys(s.param for s in found.slots):
                owners = self.whole.owners[param]
                # One that reads the axis by it brings those along whose units they are.
                whose = tuple(u.node for u in found.writes if u.node not in owners)[:1] if param in read else ()
                if len(owners) > 1:
                    ties.append(Tie("shared", owners[0], f"{param} is shared by {', '.join(owners)}", (*whose, *owners)))
        place = {spot: k for k, spot in enumerate(self.first)}
        return Reasons({a: tuple(t) for a, t in self.ties.items()}, tuple(sorted(self.fixed.values(), key=lambda f: place[f.param, f.axis])))

    def _follow(self, node: Node, made, inputs: list[Labelled]) -> Labelled:
        before = set(self.leaves)
        out = super()._follow(node, made, inputs)
        self.new = set(self.leaves) - before
        self._join(node)
        self._fix(node)
        self.stiff[self.node] = {d: self._why_stiff(node, inputs, d, len(out.shape)) for d in range(1, len(out.shape)) if self._is_fixed(out.labels[d])}
        return out

    def _is_fixed(self, label) -> bool:
        return label is None or not len(label) or not any(self.cells.atoms(c) for c in label[:1].tolist() + label[-1:].tolist())

    # What comes together

    def _join(self, node: Node) -> None:
        for axis, spots in self.units.items():
            known = self.groups.setdefault(axis, [])
            fresh = [{s} for s in spots if s[0] in self.new]
            if len(known) + len(fresh) < 2:
                known += fresh
                continue
            atoms = [(g, set().union(*(self.cells.atoms(int(self.leaves[p].labels[k][spots[p, k]])) for p, k in g))) for g in (*known, *fresh)]
            merged: list[tuple[list[set[Spot]], set[int]]] = []
            for group, held in atoms:
                touching = [m for m in merged if not m[1].isdisjoint(held)]
                merged = [m for m in merged if m[1].isdisjoint(held)]
                merged.append(([g for m in touching for g in m[0]] + [group], held.union(*(m[1] for m in touching))))
            for parts, _ in merged:
                self._tie(axis, node, [p for p in parts if p in known], [p for p in parts if p not in known])
            self.groups[axis] = [set().union(*parts) for parts, _ in merged]

    def _tie(self, axis: str, node: Node, old: list[set[Spot]], own: list[set[Spot]]) -> None:
        found, name = self.whole.axes[axis], self.node
        reads = {(u.param, u.axis) for u in found.reads if u.node == name}
        kernels = [s for g in own for s in g if len(self.leaves[s[0]].shape) > 1 and s not in reads]
        if len(old) < 2 and not (old and kernels):
            return
        members = [self._members(axis, g) for g in old] + ([name] if kernels else [])
        members = tuple(dict.fromkeys(members))
        if len(members) < 2:
            return
        listed = ", ".join(members)
        if node.rule.role == "sum":
            kind, why = "sum", f"{node.op} {name} adds them"
        elif name in found.bilinear:
            kind, why = "contraction", f"{node.op} {name} sums over their products"
        elif name in found.gates:
            kind, why = "gate", f"{node.op} {name} multiplies them"
        elif kernels and node.rule.role == "affine":
            kind, why = "kernels", f"{node.op} {name} has a kernel for each"
        else:
            kind, why = "op", f"{node.op} {name} takes them index by index"
        self.ties.setdefault(axis, []).append(Tie(kind, name, f"{why}: {listed}", members))

    def _members(self, axis: str, group: set[Spot]) -> str:
        """The node a group goes by: the first that writes the axis there, or else that has a parameter on it."""
        nodes = [u.node for u in self.whole.axes[axis].writes if (u.param, u.axis) in group]
        return min(nodes or [self.whole.owners[p][0] for p, _ in group], key=self.arch.place.__getitem__)

    # What is fixed

    def _fix(self, node: Node | None) -> None:
        for (param, k), (index, count) in self.first.items():
            if index is None or (param, k) in self.fixed or param not in self.leaves:
                continue
            leaf = self.leaves[param]
            label = leaf.labels[k]
            if label is not None and len(label) and self.cells.atoms(int(label[index])):
                continue
            name = self.node if node is not None else self.arch.outputs[0]
            last = "the network's output" if len(self.arch.outputs) == 1 else "an output of the network"
            kind, op, why = self._why(node, name, param, k) if node is not None else ("output", self.arch.nodes[name].op, last)
            self.fixed[param, k] = Fixed(param, k, count, leaf.shape[k], kind, name, op, why)

    def _why(self, node: Node, name: str, param: str, k: int) -> tuple[str, str, str]:
        foreign = next((op for op, nodes in self.opaque.items() if name in nodes), None)
        if foreign is not None:
            return ("opaque", foreign, f"{name} is {foreign}, kept as it is") if node.rule.closed else ("no rule", foreign, f"{name} runs {foreign}, which has no rule")
        size, own = self.leaves[param].shape[k], param in self.new
        if own and hasattr(node.attrs, "kernel") and k >= 2:
            return "kernel", node.op, f"the kernel of {name}"
        if own and k == size == 1 and getattr(node.attrs, "groups", 1) > 1:
            return "kernel", node.op, f"each kernel of {name} reads one channel"
        if own and k == 0 and hasattr(node.attrs, "vocabulary"):
            return "option", node.op, f"the vocabulary of {name}"
        beside = next((f for (p, _), f in self.fixed.items() if p != param and p in self.locals[name].values() and f.size == size), None)
        if own and beside is not None and k == 0:
            return beside.kind, beside.op, f"it goes with {beside.param} {beside.axis}: {beside.why}"
        held = [(i, d, why) for i in dict.fromkeys(node.inputs) for d, why in self._stiff_of(i).items() if self.arch.shapes[i][d - 1] == size]
        if held:
            i, _, why = held[0]
            if why == INPUT:
                return "input", node.op, f"{name} reads the network's input" if own else f"{node.op} {name} meets the network's input"
            return "meets", node.op, f"{name} reads {i}: {why}" if own else f"{node.op} {name} meets {i}: {why}"
        option = next((o for o in type(node.attrs).model_fields if own and size > 1 and getattr(node.attrs, o) == size and not isinstance(getattr(node.attrs, o), bool)), None)
        return ("option", node.op, f"the {option} of {name}") if option is not None else ("op", node.op, f"{node.op} {name} fixes it")

    def _stiff_of(self, name: str) -> Mapping[int, str]:
        if self.arch.nodes[name].op == "input":
            return {d: INPUT for d in range(1, len(self.arch.shapes[name]) + 1)}
        return self.stiff[name]

    def _why_stiff(self, node: Node, inputs: list[Labelled], d: int, rank: int) -> str:
        foreign = next((op for op, nodes in self.opaque.items() if self.node in nodes), None)
        if foreign is not None:
            return f"{self.node} runs {foreign}"
        held = [(self._stiff_of(i), x) for i, x in zip(node.inputs, inputs, strict=True)]
        same = next((s[d] for s, x in held if d in s and len(x.shape) == rank), None)
        return same or next((next(iter(s.values())) for s, _ in held if s), None) or f"{node.op} {self.node} keeps no units there"


INPUT = "the network's input"


def _indices(whole: Derived) -> tuple[dict[str, dict[Spot, int]], dict[Spot, tuple[int | None, int]]]:
    """(axis -> spot -> index of its first unit there, spot -> (its first index of no axis, how many there are))."""
    units: dict[str, dict[Spot, int]] = {axis: {} for axis in whole.axes}
    first: dict[Spot, tuple[int | None, int]] = {}
    for param, shape in {**whole.params, **whole.buffers}.items():
        for k, size in enumerate(shape):
            table = whole.tables.get((param, k))
            if table is None:
                first[param, k] = (0 if size else None, size)
                continue
            bare = (table.codes < 0).all(1).nonzero()[0]
            first[param, k] = (int(bare[0]) if len(bare) else None, len(bare))
            for axis in whole.axes:
                here = (table.codes == whole.number(axis) << 32).any(1).nonzero()[0]
                if len(here):
                    units[axis][param, k] = int(here[0])
    return units, first
