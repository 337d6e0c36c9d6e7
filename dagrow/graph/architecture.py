"""Architecture: a DAG of nodes as an immutable value."""

from __future__ import annotations

import hashlib
import heapq
import json
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType

import networkx as nx

from dagrow import ops
from dagrow.errors import GraphError, nearest
from dagrow.graph.axes import Axis, Derived, derive
from dagrow.graph.forming import Formed, formed_of
from dagrow.graph.node import Node, check_name, shown
from dagrow.graph.ties import check_ties, later, node_of, owners


class Architecture:
    """A frozen DAG of named nodes. Equal digests mean equal networks with equal names.

    >>> from dagrow.graph import Architecture, Node
    >>> net = Architecture({"x": Node.of("input", shape=(4,)), "hidden": Node.of("linear", "x", width=3),
    ...                     "act": Node.of("relu", "hidden"), "y": Node.of("linear", "act", width=2)})
    >>> net.shapes["hidden"], net.size, net.macs
    ((3,), 23, 18)

    Raises GraphError: unknown op or input, a cycle, a name that may not be used, a shape that does not fit.
    """

    def __init__(self, nodes: Mapping[str, Node], outputs: str | Iterable[str] | None = None):
        self.nodes: Mapping[str, Node] = MappingProxyType(dict(nodes))
        self._check_nodes()
        used = {i for n in self.nodes.values() for i in n.inputs}
        if outputs is None:
            ends = [n for n in self.nodes if n not in used]
            if len(ends) != 1:
                listed = ", ".join(ends)
                raise GraphError(f"the network has {len(ends)} ends ({listed}); exactly one is the output", fix="say which: output: NAME")
            outputs = ends
        self.outputs: tuple[str, ...] = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        for name in self.outputs:
            if name not in self.nodes:
                raise GraphError(f"the output {shown(name)} is not a node", fix=_hint(name, self.nodes))
        alive = self._alive()
        dead = [n for n in self.nodes if n not in alive]
        if dead:
            raise GraphError(f"{dead[0]!r} does not lead to the output {', '.join(self.outputs)}", node=dead[0])

    def _check_nodes(self) -> None:
        for name, node in self.nodes.items():
            check_name(name)
            rule = node.rule
            if len(node.inputs) < rule.fewest or (rule.most is not None and len(node.inputs) > rule.most):
                wanted = f"{rule.fewest}" if rule.most == rule.fewest else f"at least {rule.fewest}"
                raise GraphError(f"{name!r}: {node.op} takes {wanted} inputs, it has {len(node.inputs)}", node=name)
            for i in node.inputs:
                if i not in self.nodes:
                    raise GraphError(f"{name!r}: its input {shown(i)} is not a node", node=name, fix=_hint(i, self.nodes))
            if node.tied:
                check_ties(self.nodes, name)
        for name in self.nodes:
            parent = name.rpartition(".")[0]
            while parent:
                if parent in self.nodes:
                    raise GraphError(f"{name!r} lies inside the node {parent!r}", node=name, fix="rename one of them")
                parent = parent.rpartition(".")[0]
        if not any(n.op == "input" for n in self.nodes.values()):
            raise GraphError("the network has no input")
        _ = self.order  # raises for a cycle

    def _alive(self) -> set[str]:
        seen, todo = set(), list(self.outputs)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo.extend(self.nodes[name].inputs)
        return seen

    @cached_property
    def graph(self) -> nx.MultiDiGraph:
        """The networkx graph: edges carry `position`, the place among the inputs."""
        graph = nx.MultiDiGraph()
        for name, node in self.nodes.items():
            graph.add_node(name, op=node.op, attrs=node.attrs)
        for name, node in self.nodes.items():
            for position, i in enumerate(node.inputs):
                graph.add_edge(i, name, position=position)
        return graph

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Topological, the owner of a tied parameter before those that share it; otherwise in the order the nodes were given."""
        names = tuple(self.nodes)
        number = {name: k for k, name in enumerate(names)}
        before = [(*node.inputs, *owners(self.nodes, name)) if node.tied else node.inputs for name, node in self.nodes.items()]
        waits = [len(b) for b in before]
        readers: list[list[int]] = [[] for _ in names]
        for k, needed in enumerate(before):
            for i in needed:
                readers[number[i]].append(k)
        ready = [k for k, count in enumerate(waits) if not count]  # ascending: a heap
        made = []
        while ready:
            k = heapq.heappop(ready)
            made.append(names[k])
            for reader in readers[k]:
                waits[reader] -= 1
                if not waits[reader]:
                    heapq.heappush(ready, reader)
        if len(made) < len(names):
            try:
                cycle = [edge[0] for edge in nx.find_cycle(self.graph)]
            except nx.NetworkXNoCycle:
                raise later(self.nodes, set(names) - set(made)) from None
            raise GraphError(f"a cycle: {' -> '.join([*cycle, cycle[0]])}", node=cycle[0])
        return tuple(made)

    @cached_property
    def place(self) -> Mapping[str, int]:
        """node -> its place in `order`."""
        return {name: k for k, name in enumerate(self.order)}

    @cached_property
    def below(self) -> Mapping[str, int]:
        """node -> the set of nodes that it leads to, as the bits of a number: bit `place[other]`."""
        found: dict[str, int] = {}
        for name in reversed(self.order):
            bits = 0
            for reader in self.consumers[name]:
                bits |= found[reader] | 1 << self.place[reader]
            found[name] = bits
        return found

    @cached_property
    def meeting(self) -> Mapping[str, tuple[str, ...]]:
        """node -> the affine nodes, itself among them where it is one, that only ever meet it in one sum, in the order they were given.

        A change of any of them goes whole and alone to the same place: the last of the sums that are its only reader,
        one after another.
        """
        ends: dict[str, str] = {}
        for name in reversed(self.order):
            readers = self.consumers[name]
            alone = name not in self.outputs and len(readers) == 1 and self.nodes[readers[0]].rule.role == "sum"
            ends[name] = ends[readers[0]] if alone else name
        groups: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            if node.rule.role == "affine":
                groups.setdefault(ends[name], []).append(name)
        settled = {end: tuple(group) for end, group in groups.items()}
        return {name: settled.get(ends[name], ()) for name in self.nodes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Who reads each node, once per edge."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name in self.order:
            for i in self.nodes[name].inputs:
                found[i].append(name)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def formed(self) -> Formed:
        """Shapes, parameters and MACs, which need no tracing."""
        return formed_of(self.nodes, self.order)

    @cached_property
    def derived(self) -> Derived:
        """Shapes, parameters, MACs and axes, by tracing (cached by digest)."""
        return derive(self.digest, self.nodes, self.order, self.outputs)

    @cached_property
    def memo(self) -> dict:
        """For what others work out about it: an architecture never changes."""
        return {}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """node -> shape of its output, without the batch."""
        return self.formed.shapes

    @property
    def params(self) -> Mapping[str, tuple[int, ...]]:
        """"node.local" -> shape of each trainable parameter."""
        return self.formed.params

    @property
    def buffers(self) -> Mapping[str, tuple[int, ...]]:
        """"node.local" -> shape of each buffer (batch-norm statistics)."""
        return self.formed.buffers

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self.derived.axes

    @property
    def size(self) -> int:
        """Trainable parameters."""
        return self.formed.size

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward of one sample."""
        return sum(self.formed.macs.values())

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(n for n, node in self.nodes.items() if node.op == "input")

    def replace(self, nodes: Mapping[str, Node | None], outputs: Iterable[str] | None = None) -> Architecture:
        """With these nodes changed or added, those mapped to None dropped."""
        changed = {n: nodes.get(n, node) for n, node in self.nodes.items()} | {n: v for n, v in nodes.items() if n not in self.nodes}
        return Architecture({n: v for n, v in changed.items() if v is not None}, self.outputs if outputs is None else outputs)

    def to_dict(self) -> dict:
        """Plain values, from which `from_dict` makes an equal architecture; `order` survives what sorts the keys of a mapping."""
        rows = {
            name: {"op": node.op, "in": list(node.inputs), **node.attrs.model_dump(mode="json", exclude_defaults=True)}
            for name, node in self.nodes.items()
        }
        for name, node in self.nodes.items():
            if node.tied:
                rows[name]["tied"] = dict(node.tied)
        return {"nodes": rows, "order": list(rows), "outputs": list(self.outputs)}

    @staticmethod
    def from_dict(data: Mapping) -> Architecture:
        """Raises GraphError where the values are not what `to_dict` gives."""
        nodes = {}
        try:
            for name in data.get("order", data["nodes"]):
                row = data["nodes"][name]
                attrs = {k: v for k, v in row.items() if k not in ("op", "in", "tied")}
                tied = tuple(row.get("tied", {}).items())
                nodes[name] = Node(row["op"], tuple(row["in"]), ops.REGISTRY.get(row["op"]).Options(**attrs), tied)
            outputs = data["outputs"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise GraphError(f"this describes no architecture: {type(error).__name__} {ascii(str(error))[:160]}") from None
        return Architecture(nodes, outputs)

    @cached_property
    def digest(self) -> str:
        """sha256 over names, ops, attributes, edges and their order."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    @cached_property
    def form(self) -> str:
        """The same for networks that differ in names only (Weisfeiler-Lehman); `same_form` settles collisions."""
        rounds = max(3, len(self.nodes) // 2)
        with warnings.catch_warnings():
            # networkx says on every call that 3.5 hashes otherwise than 3.4 did; forms are compared within a process.
            warnings.filterwarnings("ignore", "The hashes produced for", UserWarning)
            return nx.weisfeiler_lehman_graph_hash(_labelled(self), node_attr="label", edge_attr="label", iterations=rounds)

    def same_form(self, other: Architecture) -> bool:
        """Whether the two differ in names only."""
        if self.form != other.form:
            return False
        return nx.is_isomorphic(
            _labelled(self), _labelled(other),
            node_match=lambda a, b: a["label"] == b["label"], edge_match=lambda a, b: a["label"] == b["label"],
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Architecture({len(self.nodes)} nodes, {self.size} params, {self.macs} MACs)"


def _labelled(arch: Architecture) -> nx.DiGraph:
    """One labelled edge per pair of nodes: the positions at which one feeds the other (none for a sum, which has no order)."""
    graph = nx.DiGraph()
    for name, node in arch.nodes.items():
        end = arch.outputs.index(name) if name in arch.outputs else -1
        graph.add_node(name, label=f"{node.op} {node.attrs!r} {end}")
    for name, node in arch.nodes.items():
        for i in dict.fromkeys(node.inputs):
            places = [k for k, j in enumerate(node.inputs) if j == i]
            graph.add_edge(i, name, label=str(len(places) if node.rule.role == "sum" else places))
        for owner in owners(arch.nodes, name) if node.tied else ():
            ties = sorted((local, full[len(owner) :]) for local, full in node.tied if node_of(arch.nodes, full) == owner)
            read = graph.edges[owner, name]["label"] if graph.has_edge(owner, name) else ""
            graph.add_edge(owner, name, label=f"{read} {ties}")
    return graph


def _hint(name: str, known: Iterable[str]) -> str | None:
    found = nearest(name, known) if isinstance(name, str) and len(name) < 2**10 else None
    return f"did you mean {found!r}?" if found else None
