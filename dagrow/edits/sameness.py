"""Whether two edits lead to the same network: the same nodes of the old one with the same units, and new ones alike but for their names."""

from __future__ import annotations

import warnings

import networkx as nx

from dagrow.graph import Architecture, Rewrite


def meaning(arch: Architecture, rewrite: Rewrite) -> tuple:
    """Equal for rewrites of `arch` that give the same network: old nodes go by their names, new ones by what they do."""
    made, graph = rewrite.arch, nx.DiGraph()
    for name, node in made.nodes.items():
        end = made.outputs.index(name) if name in made.outputs else -1
        graph.add_node(name, label=f"{name if name in arch.nodes else ''} {node.op} {node.attrs!r} {end} {node.tied}")
    for name, node in made.nodes.items():
        for i in dict.fromkeys(node.inputs):
            places = [k for k, j in enumerate(node.inputs) if j == i]
            graph.add_edge(i, name, label=str(len(places) if node.rule.role == "sum" else places))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The hashes produced for", UserWarning)
        form = nx.weisfeiler_lehman_graph_hash(graph, node_attr="label", edge_attr="label", iterations=max(3, len(made.nodes) // 2))
    moves = sorted((m.param, m.axis, m.index) for m in rewrite.moves if m.param in arch.params or m.param in arch.buffers)
    return form, tuple(moves)
