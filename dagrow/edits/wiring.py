"""What edits share: where tensors may be joined, new names, adding to and taking from a sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, Refusal
from dagrow.measure.features import grouped, template
from dagrow.measure.layout import last
from dagrow.measure.parents import affine_nodes, parents


@dataclass(frozen=True)
class Joins:
    """Where a new branch may lead: from `sources[s]` into `targets[t]` where `strides[t, s]` is not 0, over that stride."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    strides: np.ndarray

    def but(self, excluded: Iterable[tuple[str, str]], covers: Callable[[str], bool]) -> Joins:
        """Without the pairs (source, target) `excluded`, and into targets that `covers` accepts only."""
        s, t = ({name: k for k, name in enumerate(names)} for names in (self.sources, self.targets))
        left = self.strides.copy()
        left[[not covers(target) for target in self.targets]] = 0
        for source, target in excluded:
            if source in s and target in t:
                left[t[target], s[source]] = 0
        return replace(self, strides=left)

    @property
    def pairs(self) -> np.ndarray:
        """[joins, 2]: places in `sources` and `targets`, target by target."""
        return np.argwhere(self.strides)[:, ::-1]

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """(source, target, stride)"""
        return ((self.sources[s], self.targets[t], int(self.strides[t, s])) for s, t in self.pairs.tolist())


def joins(arch: Architecture) -> Joins:
    """The tensors from which a new branch may lead into a pre-activation.

    Sources are what affine nodes read, and the inputs; a branch may not close a cycle; maps must match up to a stride.
    Of several targets that meet in one sum the first stands for all: the networks would be equal.
    """
    if "joins" not in arch.memo:
        arch.memo["joins"] = _joins(arch)
    return arch.memo["joins"]


def _joins(arch: Architecture) -> Joins:
    sources = tuple(dict.fromkeys([*(i for i in arch.inputs if _numbers(arch, i)), *(arch.nodes[a].inputs[0] for a in affine_nodes(arch))]))
    # One that is not grouped, if there is one: its parents' span is the larger.
    first = {group: next((p for p in group if not grouped(arch.nodes[p])), group[0]) for group in set(arch.meeting.values()) if group}
    targets = tuple(a for a in affine_nodes(arch) if first[arch.meeting[a]] == a)
    places, size = np.array([arch.place[s] for s in sources]), len(arch.nodes) // 8 + 1
    strides = np.zeros((len(targets), len(sources)), np.int64)
    laid = {t: (last(arch.nodes[t], arch.shapes[t]), arch.shapes[t]) for t in targets}
    read = {s: {last(arch.nodes[r], arch.shapes[s]) for r in arch.consumers[s] if arch.nodes[r].rule.role == "affine"} for s in sources}
    over = {
        (tokens, shape): np.array([(stride_between(arch.shapes[s], shape, tokens) or 0) if tokens in (read[s] or {tokens}) else 0 for s in sources])
        for tokens, shape in set(laid.values())
    }  # fmt: skip
    for t, target in enumerate(targets):
        banned = arch.below[target] | 1 << arch.place[target]
        free = np.unpackbits(np.frombuffer(banned.to_bytes(size, "little"), np.uint8), bitorder="little")[places] == 0
        strides[t] = free * over[laid[target]]
    return Joins(sources, targets, strides)


def _numbers(arch: Architecture, name: str) -> bool:
    """Whether an input holds numbers, which gradients could follow, and not the numbers of things."""
    return any(_follows(arch, reader, name) for reader in arch.consumers[name])


def _follows(arch: Architecture, reader: str, name: str) -> bool:
    """Whether a gradient comes back from the node: told by a run on no memory; what cannot run so says no."""
    node = arch.nodes[reader]
    with torch.device("meta"), torch.enable_grad():
        given = [torch.empty((2, *arch.shapes[i]), requires_grad=i == name) for i in node.inputs]
        try:
            made = template(node, *(arch.shapes[i] for i in node.inputs))(*given)
            slopes = torch.autograd.grad(made, given[node.inputs.index(name)], torch.ones_like(made), allow_unused=True) if made.requires_grad else (None,)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return False
    return slopes[0] is not None


def stride_between(source: tuple[int, ...], target: tuple[int, ...], tokens: bool = False) -> int | None:
    """The stride at which a 'same' convolution takes one map to the other's size; 1 for vectors, and for `tokens`
    [..., units] at the same places; None where none does."""
    if len(source) != len(target):
        return None
    if tokens:
        return 1 if source[:-1] == target[:-1] else None
    for stride in (1, 2, 4, 8):
        if all(-(-s // stride) == t for s, t in zip(source[1:], target[1:], strict=True)):
            return stride
    return None


def fresh_name(arch: Architecture, stem: str) -> str:
    """`stem` with the first number that no node's name begins with."""
    number, taken = 1, {n.partition(".")[0] for n in arch.nodes}
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def affine(
    shape: tuple[int, ...], source: str, units: int, *, kernel: int = 1, stride: int = 1, bias: bool = True, tokens: bool = False
) -> Node:
    """A linear node for vectors and, one by one, for tokens; a 'same' convolution for maps."""
    if len(shape) == 1 or tokens:
        return Node.of("token_linear" if len(shape) > 1 else "linear", source, width=units, bias=bias)
    return Node.of(f"conv{len(shape) - 1}d", source, channels=units, kernel=kernel, stride=stride, bias=bias)


def add_to(arch: Architecture, target: str, branch: dict[str, Node], end: str) -> Architecture:
    """`arch` with the branch's last node `end` added to `target`: through the sum that already reads it alone, or a new one."""
    readers = arch.consumers[target]
    changed: dict[str, Node | None] = dict(branch)
    if len(readers) == 1 and target not in arch.outputs and arch.nodes[readers[0]].op == "add":
        total = arch.nodes[readers[0]]
        changed[readers[0]] = replace(total, inputs=(*total.inputs, end))
        return arch.replace(changed)
    name = fresh_name(arch, "sum")
    for reader in set(readers):
        node = arch.nodes[reader]
        changed[reader] = replace(node, inputs=tuple(name if i == target else i for i in node.inputs))
    changed[name] = Node.of("add", target, end)
    return arch.replace(changed, tuple(name if o == target else o for o in arch.outputs))


def without(arch: Architecture, total: str, branch: str) -> Architecture | Refusal:
    """`arch` less the input `branch` of the sum `total`, and less whatever only that branch needed."""
    node = arch.nodes[total]
    left = tuple(i for i in node.inputs if i != branch)
    if not left or node.inputs.count(branch) != 1:
        return Refusal("nothing would be left of the sum", (total,))
    nodes = {n: v for n, v in arch.nodes.items() if n != total}
    outputs = arch.outputs
    if len(left) > 1:
        nodes = {n: (replace(v, inputs=left) if n == total else v) for n, v in arch.nodes.items()}
    else:
        nodes = {n: replace(v, inputs=tuple(left[0] if i == total else i for i in v.inputs)) for n, v in nodes.items()}
        outputs = tuple(left[0] if o == total else o for o in outputs)
    return _living(arch, nodes, outputs, branch)


def rewired(arch: Architecture, old: str, new: str, more: Mapping[str, Node] = MappingProxyType({})) -> Architecture | Refusal:
    """`arch` with what read `old` reading `new` instead, one of its nodes or of `more`, and less whatever nothing needs any more."""
    nodes = {n: replace(v, inputs=tuple(new if i == old else i for i in v.inputs)) for n, v in arch.nodes.items()}
    return _living(arch, {**nodes, **more}, tuple(new if o == old else o for o in arch.outputs), old)


def _living(arch: Architecture, nodes: Mapping[str, Node], outputs: tuple[str, ...], about: str) -> Architecture | Refusal:
    """The network of those nodes that the outputs need."""
    alive, todo = set(), list(outputs)
    while todo:
        name = todo.pop()
        if name not in alive:
            alive.add(name)
            todo.extend(nodes[name].inputs)
    if any(i not in alive for i in arch.inputs):
        return Refusal("the network would no longer read its input", (about,))
    try:
        made = Architecture({n: v for n, v in nodes.items() if n in alive}, outputs)
        made.shapes[made.outputs[0]]  # raises where shapes do not fit
    except GraphError as error:
        return Refusal(error.message, (about,))
    return made


__all__ = ["Joins", "add_to", "affine", "fresh_name", "joins", "parents", "rewired", "stride_between", "without"]
