"""A node of an architecture, the names it may have, and running a list of nodes."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph.collecting import uncollected

SEGMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
# Of the name of a parameter within its node: parts of a module kept whole may be numbered, or have keys such as 3x3.
LOCAL = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
Module = nn.Module | Callable[..., Tensor]


@dataclass(frozen=True)
class Node:
    """`op` of `inputs` (authoritative: add(a, a) has two edges) with `attrs`, an instance of the op's Options.

    tied: (local name, full name "owner.local") of each parameter or buffer that is another node's.
    """

    op: str
    inputs: tuple[str, ...] = ()
    attrs: object = None
    tied: tuple[tuple[str, str], ...] = field(default=())

    @staticmethod
    def of(op: str, *inputs: str, **attrs) -> Node:
        """A node from plain attributes: `Node.of("linear", "x", width=8)`."""
        return Node(op, tuple(inputs), ops.REGISTRY.get(op).Options(**attrs))

    @property
    def rule(self) -> type[ops.Op]:
        return ops.REGISTRY.get(self.op).variant(self.attrs)


def shown(name: object) -> str:
    """A name that may be anything, quoted, for a message: short, and nothing that a terminal or a page would act on."""
    text = ascii(str.__str__(name) if isinstance(name, str) else type(name).__name__)
    return text if len(text) <= 80 else f"{text[:76]}...{text[0]}"


def check_name(name: str) -> None:
    """Raises GraphError unless every dotted segment may stand in generated code (torch.fx executes names)."""
    # Exactly a string: a subclass may say one thing here and another in the generated code.
    segments = name.split(".") if type(name) is str else [""]
    if len(segments) > 16 or not all(SEGMENT.match(s) for s in segments):
        raise GraphError(
            f"{shown(name)} cannot name a node",
            fix="use letters, digits and _ (64 at most, no digit first), with dots between segments",
        )


def build(node: Node, shapes: Iterable[tuple[int, ...]], name: str) -> Module:
    """The node's module or function for inputs of `shapes`; GraphError names the node."""
    try:
        return node.rule.build(node.attrs, *shapes)
    except GraphError as error:
        raise GraphError(f"{name!r}: {error.message}", node=name, fix=error.fix) from None


def run(nodes: Mapping[str, Node], order: Iterable[str], modules: Mapping[str, Module], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Runs the nodes of `order` that `values` does not hold yet; fills `values` and returns it."""
    for name in order:
        if name not in values:
            values[name] = modules[name](*(values[i] for i in nodes[name].inputs))
    return values


def apply(node: Node, name: str, module: Module, inputs: list[Tensor]) -> Tensor:
    """The node's output; GraphError names the node where the inputs' shapes do not fit."""
    try:
        return module(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = ", ".join(str(list(x.shape[1:])) for x in inputs)
        raise GraphError(f"{name!r}: {node.op} does not fit {given}: {str(error).splitlines()[0]}", node=name) from None


@uncollected()
def infer(nodes: Mapping[str, Node], order: Iterable[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, Module]]:
    """(shapes without the batch, modules in eval mode on the meta device), by running real ops on no memory, each form of node once."""
    shapes: dict[str, tuple[int, ...]] = {}
    modules: dict[str, Module] = {}
    for name in order:
        node = nodes[name]
        if node.op == "input":
            shapes[name] = tuple(node.attrs.shape)
            continue
        inputs = tuple(shapes[i] for i in node.inputs)
        module = modules[name] = built(node, inputs, name)
        if isinstance(module, nn.Module):
            module.eval()
        key = (node.rule, node.attrs, inputs)
        if key not in _SHAPES:
            with torch.device("meta"), torch.no_grad():
                _SHAPES.put(key, tuple(apply(node, name, module, [torch.empty((2, *s)) for s in inputs]).shape[1:]))
        shapes[name] = _SHAPES[key]
    return shapes, modules


class Recent(dict):
    """The last few thousand entries that were put in."""

    def put(self, key, value) -> None:
        if len(self) >= 4096:
            self.pop(next(iter(self)), None)
        self[key] = value


_SHAPES, _BUILT = Recent(), Recent()
_TABLES = {dict, set, OrderedDict}


def built(node: Node, shapes: Iterable[tuple[int, ...]], name: str) -> Module:
    """`build` on the meta device: as quick as a copy where a node of the same form was built before. In training mode."""
    key = (node.rule, node.attrs, tuple(map(tuple, shapes)))
    if key not in _BUILT:
        with torch.device("meta"):
            _BUILT.put(key, build(node, key[2], name))
    made = _BUILT[key]
    return copied(made) if isinstance(made, nn.Module) else made


def tensors_of(module: nn.Module) -> Iterator[tuple[str, dict, str]]:
    """(local name, the dict that holds the tensor, its key there) of each parameter and buffer; one in two places has one local name."""
    first: dict[int, str] = {}
    for path, part in module.named_modules():
        for held in (part._parameters, part._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    yield first.setdefault(id(tensor), f"{path}.{key}" if path else key), held, key


def copied(module: nn.Module) -> nn.Module:
    """The module again, with the same tensors; they can be replaced, hooks added and its mode changed without a trace in the first."""
    made = object.__new__(type(module))
    # Parameters, buffers and hooks are entries of such tables.
    made.__dict__ = {key: (value.copy() if value else type(value)()) if type(value) in _TABLES else value for key, value in module.__dict__.items()}
    made.__dict__["_modules"] = {name: part if part is None else copied(part) for name, part in module._modules.items()}
    return made
