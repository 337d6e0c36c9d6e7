"""A branch that an edit would add: its nodes, what they cost, and how they look inside the network, before anything is rewired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from dagrow.edits.wiring import affine
from dagrow.graph import Architecture, Cost, Node

SOURCE = "x"
WHOLE = "link"  # the one node of a branch of one node bears the branch's name itself


@dataclass(frozen=True)
class Branch:
    """A branch as a network of its own, which reads `x`; its nodes' shapes, parameters and MACs do not depend on the rest."""

    alone: Architecture

    @cached_property
    def cost(self) -> Cost:
        return Cost(self.alone.size, self.alone.macs)

    def added_to(self, arch: Architecture) -> Cost:
        """The cost of `arch` with the branch added to one of its tensors: the sum itself is free."""
        return Cost(arch.size + self.cost.size, arch.macs + self.cost.macs)

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.alone.order[1:]

    def named(self, name: str, source: str) -> dict[str, Node]:
        """Its nodes under `name`, reading `source`."""
        return {
            _full(name, n): Node(node.op, tuple(source if i == SOURCE else _full(name, i) for i in node.inputs), node.attrs)
            for n, node in ((n, self.alone.nodes[n]) for n in self.nodes)
        }


def _full(name: str, local: str) -> str:
    return name if local == WHOLE else f"{name}.{local}"


@lru_cache(4096)
def link(shape: tuple[int, ...], width: int, stride: int, tokens: bool = False) -> Branch:
    """A direct connection from a tensor of `shape` to `width` units; `tokens`: units lie last."""
    node = affine(shape, SOURCE, width, stride=stride, bias=False, tokens=tokens)
    return Branch(Architecture({SOURCE: Node.of("input", shape=shape), WHOLE: node}))


@lru_cache(4096)
def hidden(shape: tuple[int, ...], width: int, stride: int, units: int, act: str, kernel: int, tokens: bool = False, depthwise: bool = False) -> Branch:
    """A hidden layer of `units` between a tensor of `shape` and `width` units; `tokens`: units lie last.

    depthwise: of a map, an inverted bottleneck (Sandler et al. 2018): the kernel looks at one unit at a time, between two activations.
    """
    nodes = {SOURCE: Node.of("input", shape=shape)}
    if depthwise:
        op = f"conv{len(shape) - 1}d"
        nodes["in"] = affine(shape, SOURCE, units)
        nodes["act"] = Node.of(act, "in")
        nodes["each"] = Node.of(op, "act", channels=units, kernel=kernel, stride=stride, groups=units)
        nodes["again"] = Node.of(act, "each")
    else:
        nodes["in"] = affine(shape, SOURCE, units, kernel=kernel, stride=stride, tokens=tokens)
        nodes["act"] = Node.of(act, "in")
    nodes["out"] = affine(shape, [*nodes][-1], width, bias=False, tokens=tokens)
    return Branch(Architecture(nodes))


@dataclass(frozen=True, eq=False)
class Frame:
    """`arch` and beside it a branch that reads `source`: all that scorers ask of an architecture with the branch's nodes."""

    arch: Architecture
    branch: Branch
    name: str
    source: str

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        return {**self.arch.nodes, **self.branch.named(self.name, self.source)}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {**self.arch.shapes, **{_full(self.name, n): self.branch.alone.shapes[n] for n in self.branch.nodes}}

    @cached_property
    def params(self) -> Mapping[str, tuple[int, ...]]:
        return {**self.arch.params, **self._with_names(self.branch.alone.params)}

    @cached_property
    def buffers(self) -> Mapping[str, tuple[int, ...]]:
        return {**self.arch.buffers, **self._with_names(self.branch.alone.buffers)}

    @cached_property
    def memo(self) -> dict:
        """For what others work out about it."""
        return {}

    def _with_names(self, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        found = {}
        for slot, shape in tensors.items():
            local, _, rest = slot.partition(".")  # no local name has a dot
            found[f"{_full(self.name, local)}.{rest}"] = shape
        return found
