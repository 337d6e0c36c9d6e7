"""Tied parameters: a node that holds another node's parameter under a local name of its own."""

from __future__ import annotations

from collections.abc import Mapping

from dagrow.errors import GraphError, nearest
from dagrow.graph.node import LOCAL, Node, shown


def node_of(nodes: Mapping[str, object], full: str) -> str | None:
    """The node that a parameter "node.local" belongs to; no node lies inside another, so there is at most one."""
    name = full.rpartition(".")[0]
    while name and name not in nodes:
        name = name.rpartition(".")[0]
    return name or None


def owners(nodes: Mapping[str, Node], name: str) -> tuple[str, ...]:
    """The nodes whose parameters `name` holds too: they come before it."""
    return tuple(dict.fromkeys(filter(None, (node_of(nodes, full) for _, full in nodes[name].tied))))


def check_ties(nodes: Mapping[str, Node], name: str) -> None:
    """Raises GraphError where what `name` is tied to cannot be; whether the parameters exist and fit shows once shapes are known."""
    held: set[str] = set()
    for tie in nodes[name].tied:
        local, full = tie if isinstance(tie, tuple) and len(tie) == 2 else (None, None)
        if not all(type(n) is str and len(n) < 2**11 and all(map(LOCAL.match, n.split("."))) for n in (local, full)):
            raise GraphError(f"{name!r}: {shown(local)} and {shown(full)} tie no parameter", node=name, fix="tied: {weight: other.weight}")
        owner = node_of(nodes, full)
        if owner is None:
            near = nearest(full.rpartition(".")[0], nodes)
            raise GraphError(
                f"{name!r}: its {local} is tied to {full!r}, which is of no node", node=name,
                fix=f"did you mean a parameter of {near!r}?" if near else None,
            )
        if owner == name or local in held:
            raise GraphError(f"{name!r}: its {local} is tied {'twice' if local in held else 'to the node itself'}", node=name)
        held.add(local)


def later(nodes: Mapping[str, Node], undone: set[str]) -> GraphError | None:
    """What is wrong where no order lets owners come first, though the edges have no cycle."""
    for name in (n for n in nodes if n in undone):
        for local, full in nodes[name].tied:
            owner = node_of(nodes, full)
            if owner in undone:
                own = f"{name}.{local}"
                return GraphError(
                    f"{name!r}: its {local} is tied to {full!r}, but {owner!r} comes after it: the first to run holds the parameter", node=name,
                    fix=f"tie {full} to {own} instead",
                )
    return None
