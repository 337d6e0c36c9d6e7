"""What a node runs: the aten ops of its module, recorded once per form of node, on the meta device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dagrow.errors import GraphError
from dagrow.graph.node import LOCAL, Module, Node, apply, built

BATCH = 2
Shape = tuple[int, ...]


class Ref(NamedTuple):
    """A tensor of a recipe: inputs first, then leaves, then what the steps make."""

    number: int


class Step(NamedTuple):
    """One aten op with `Ref` for tensors; the references and shapes of its outputs, and which of these anything reads."""

    func: Callable
    args: list
    kwargs: dict
    outs: tuple[int, ...]
    shapes: list[Shape]
    read: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What the node's module runs in eval mode on inputs of given shapes, batch first.

    leaves: (local name, shape, whether trained). consts: tensors made or held outside of them, with their shapes.
    """

    leaves: tuple[tuple[str, Shape, bool], ...]
    consts: Mapping[int, Shape]
    steps: tuple[Step, ...]
    out: int
    shape: Shape


_RECIPES: OrderedDict[tuple, Recipe] = OrderedDict()
_MOST_RECIPES = 4096


def recipe(node: Node, name: str, shapes: list[Shape]) -> Recipe:
    """The node's recipe for inputs of `shapes` (without the batch). Raises GraphError with the node."""
    key = (node.rule, node.attrs, *shapes)
    known = _RECIPES.get(key)
    if known is None:
        known = _recorded(node, name, shapes)
        _RECIPES[key] = known
        if len(_RECIPES) > _MOST_RECIPES:
            _RECIPES.popitem(last=False)
    return known


def _recorded(node: Node, name: str, shapes: list[Shape]) -> Recipe:
    module = built(node, shapes, name)
    inputs = [torch.empty((BATCH, *s), device="meta") for s in shapes]
    with torch.no_grad():
        try:
            return Recorder().record(node, name, module, inputs)
        except GraphError:
            # Perhaps only because it makes tensors of its own; the mode that puts them on the meta device takes twice the time.
            with torch.device("meta"):
                return Recorder().record(node, name, module, inputs)


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, int]] = {}
        self.consts: dict[int, Shape] = {}
        self.steps: list[Step] = []
        self.used = 0

    def record(self, node: Node, name: str, module: Module, inputs: list[Tensor]) -> Recipe:
        for tensor in inputs:
            self.add(tensor)
        leaves = []
        if isinstance(module, nn.Module):
            module.eval()
            for local, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if not all(map(LOCAL.match, local.split("."))):
                    raise GraphError(f"{name!r}: {ascii(local)[:80]} cannot name a parameter", node=name)
                self.add(tensor)
                leaves.append((local, tuple(tensor.shape), isinstance(tensor, nn.Parameter)))
        with self:
            made = apply(node, name, module, inputs)
        if not isinstance(made, Tensor) or not made.dim() or made.shape[0] != BATCH:
            raise GraphError(f"{name!r}: {node.op} does not make one tensor with the batch first", node=name)
        out = self.ref(made).number
        read = {out, *(number for step in self.steps for number in _numbers([step.args, *step.kwargs.values()]))}
        steps = tuple(step._replace(read=tuple(n in read for n in step.outs)) for step in self.steps)
        return Recipe(tuple(leaves), self.consts, steps, out, tuple(made.shape))

    def add(self, tensor: Tensor) -> int:
        # The tensor is held, so that its id stays its own.
        self.known[id(tensor)] = (tensor, self.used)
        self.used += 1
        return self.used - 1

    def ref(self, tensor: Tensor) -> Ref:
        if id(tensor) not in self.known:
            self.consts[self.add(tensor)] = tuple(tensor.shape)
        return Ref(self.known[id(tensor)][1])

    def refs(self, value):
        if isinstance(value, Tensor):
            return self.ref(value)
        return [self.refs(v) for v in value] if isinstance(value, (tuple, list)) else value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Before running: an op in place may change the shape of its argument.
        given, named = self.refs(args), {k: self.refs(v) for k, v in (kwargs or {}).items()}
        made = _result(func, args, kwargs or {})
        outs = [t for t in (made if isinstance(made, (tuple, list)) else (made,)) if isinstance(t, Tensor)]
        if outs:
            self.steps.append(Step(func, given, named, tuple(self.add(t) for t in outs), [tuple(t.shape) for t in outs]))
        return made


# Most of torch's kernels for the meta device are Python; on this many numbers those of the CPU take a tenth of their time.
_SMALL = 2**14
_PLAIN = {"mm", "addmm", "bmm", "baddbmm", "native_batch_norm", "_native_batch_norm_legit_no_training", "native_layer_norm", "native_group_norm", "_softmax"}


def _result(func, args, kwargs):
    """What the op makes of tensors on the meta device: of small ones by computing it, on zeros, where that is sure to have no other effect."""
    given: list[Tensor] = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    # Elementwise ops keep the strides of what they are given, and whether a view of the result is possible depends on those.
    plain = func.overloadpacket.__name__ in _PLAIN or (torch.Tag.pointwise in func.tags and all(t.is_contiguous() for t in given))
    small = plain and given and all(t.dtype is torch.float32 for t in given) and sum(t.numel() for t in given) <= _SMALL
    if not small or func._schema.is_mutable or any(isinstance(v, (list, tuple)) and v and isinstance(v[0], Tensor) for v in args) or "out" in kwargs:
        return func(*args, **kwargs)
    made = func(*(_zeros(v) for v in args), **{k: _zeros(v) for k, v in kwargs.items()})
    return tuple(map(_emptied, made)) if isinstance(made, (tuple, list)) else _emptied(made)


def _zeros(value):
    return torch.zeros(value.shape, device="cpu") if isinstance(value, Tensor) else value


def _emptied(value):
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _numbers(value) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, list):
        for v in value:
            yield from _numbers(v)
