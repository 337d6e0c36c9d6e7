"""Nodes of the architecture being imported, one after another, each tried on the values it is made from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from dagrow.errors import GraphError
from dagrow.graph import Node
from dagrow.graph.node import SEGMENT, tensors_of
from dagrow.graph.recording import recipe
from dagrow.importing.errors import ImportingError, Unfit
from dagrow.importing.values import Held, Leaf, batch_dim, equal
from dagrow.recorded import Recorded

MOST_SEGMENTS = 15
CLOSE = 1e-4


class Names:
    """The user's module paths as names that nodes may have, and further names beside them."""

    def __init__(self, model: nn.Module, taken: Sequence[str]):
        self.paths = {"": ""}
        self.taken: set[str] = set(taken)
        for path, _ in model.named_modules(remove_duplicate=False):
            if path:
                parent, _, last = path.rpartition(".")
                self.paths[path] = self._beside(self.paths[parent], last)
                self.taken.add(self.paths[path])
        self.nodes: set[str] = set()

    def _beside(self, scope: str, wanted: str) -> str:
        """`wanted`, as a segment may be written, inside `scope`, as nothing else is called."""
        segment = re.sub(r"[^A-Za-z0-9_]", "_", wanted)[:56] or "_"
        segment = segment if SEGMENT.match(segment) else f"_{segment}"
        if scope.count(".") >= MOST_SEGMENTS - 1:
            scope, _, last = scope.rpartition(".")
            segment = f"{last}_{segment}"[-56:]
            segment = segment if SEGMENT.match(segment) else f"_{segment[1:]}"
        name, number = f"{scope}.{segment}" if scope else segment, 1
        while name in self.taken:
            number += 1
            name = f"{scope}.{segment}_{number}" if scope else f"{segment}_{number}"
        return name

    def module(self, path: str) -> str:
        """For the node that a module becomes; a second call of it gets a name of its own."""
        name = self.paths[path]
        if name in self.nodes:
            scope, _, last = name.rpartition(".")
            name = self._beside(scope, last)
        return self._use(name)

    def function(self, path: str, wanted: str) -> str:
        """For a node that a function becomes which the module at `path` calls."""
        return self._use(self._beside(self.paths[path], wanted))

    def _use(self, name: str) -> str:
        self.taken.add(name)
        self.nodes.add(name)
        return name


class Finished(NamedTuple):
    """names: "node.local" -> the user's name. leads: "node.local" -> leading dimensions of size 1 that it lacks and the user's has."""

    nodes: dict[str, Node]
    weights: dict[str, Tensor]
    names: dict[str, str]
    leads: dict[str, int]


class Builder:
    """Collects nodes. modules: node -> the user's module path. differs: nodes that round otherwise than the user's code."""

    def __init__(self, names: Names):
        self.spoken = names
        self.nodes: dict[str, Node] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.leaves: dict[str, dict[str, Leaf]] = {}  # node -> local name -> the user's tensor
        self.leads: dict[int, int] = {}  # the user's tensor -> its leading dimensions of size 1 that nodes leave out
        self.modules: dict[str, str] = {}
        self.differs: list[str] = []
        self.made: dict[str, Held] = {}  # node -> its output, the batch first
        self.undo: list[Callable[[], None]] = []
        self.path = ""

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What the block has made is forgotten where it ends in an exception."""
        kept = ("nodes", "shapes", "made", "leaves", "leads", "modules", "differs")
        before = {k: getattr(self, k).copy() for k in kept}
        spoken, mark = (self.spoken.taken.copy(), self.spoken.nodes.copy()), len(self.undo)
        try:
            yield
        except BaseException:
            while len(self.undo) > mark:
                self.undo.pop()()
            for k, value in before.items():
                setattr(self, k, value)
            self.spoken.taken, self.spoken.nodes = spoken
            raise

    def input(self, name: str, values: tuple[Tensor, Tensor]) -> Held:
        try:
            self.nodes[name] = Node.of("input", shape=tuple(values[0].shape[1:]))
        except pydantic.ValidationError as error:
            raise ImportingError(f"rows of {list(values[0].shape[1:])}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        self.shapes[name] = tuple(values[0].shape[1:])
        self.made[name] = Held(values, name)
        return self.made[name]

    def node(
        self, op: str, inputs: Sequence[Held], attrs: Mapping, tensors: Mapping[str, Leaf] | None = None, *, expected: Held | None = None,
        batch: int = 0, hint: str | None = None, near: bool = False,
    ) -> Held:
        """A node of `op` that reads `inputs`, each of them a node's output, with the user's tensors under its local names.

        Tried in both runs in evaluation mode: it has to give the values of `expected` (which has its batch at `batch`) to the
        bit, or nearly so where `near`. The name is that of the module being imported, or `hint` beside it. Raises Unfit.
        """
        if any(x.node is None for x in inputs):
            raise Unfit("an input that no node makes")
        try:
            made = Node.of(op, *(x.node for x in inputs), **attrs)
            shapes = [self.shapes[x.node] for x in inputs]
            module = made.rule.build(made.attrs, *shapes)
        except (GraphError, pydantic.ValidationError, KeyError) as error:
            raise Unfit(str(error)) from None
        if op == "call":
            try:
                recipe(made, hint or op, shapes)
            except (GraphError, RuntimeError, TypeError, ValueError, IndexError) as error:
                raise Unfit(f"its sizes are not known beforehand: {str(error).splitlines()[0]}") from None
        name = self.spoken.module(self.path) if hint is None else self.spoken.function(self.path, hint)
        self._hold(name, made, module, tensors or {})
        values = self._run(name, module, inputs)
        if not isinstance(values[0], Tensor) or batch_dim(Held(values).sizes) != 0:
            raise Unfit("it does not make one tensor with the batch first")
        result = Held(tuple(v.movedim(0, batch) for v in values) if batch else values, name, batch)
        if expected is not None:
            still = any(isinstance(leaf.tensor, nn.Parameter) and not leaf.tensor.requires_grad for leaf in (tensors or {}).values())
            self._compare(name, result, expected, near or still)
            result.values = expected.values
        self.shapes[name] = tuple(values[0].shape[1:])
        self.modules[name] = self.path
        self.made[name] = result if not batch else Held((values[0], values[1]), name)
        return result

    def _hold(self, name: str, node: Node, module, tensors: Mapping[str, Leaf]) -> None:
        """Puts the user's tensors into the module; notes which they are."""
        places = {local: (held, key) for local, held, key in tensors_of(module)} if isinstance(module, nn.Module) else {}
        if set(places) != set(tensors):
            raise Unfit(f"{node.op} has other tensors: {sorted(set(places) ^ set(tensors))}")
        self.leaves[name] = {}
        for local, (held, key) in places.items():
            leaf, old = tensors[local], held[key]
            tensor = leaf.tensor.detach()
            lead = max(0, tensor.dim() - old.dim())
            if any(n != 1 for n in tensor.shape[:lead]):
                lead = 0
            tensor = tensor.reshape(tensor.shape[lead:])
            if tensor.shape != old.shape or isinstance(old, nn.Parameter) != isinstance(leaf.tensor, nn.Parameter):
                raise Unfit(f"{node.op}: {local} is {list(old.shape)}, not {list(tensor.shape)}")
            if self.leads.setdefault(id(leaf.tensor), lead) != lead:
                raise Unfit("it shares a tensor of another shape")
            self.leaves[name][local] = leaf
            # torch chooses kernels by what requires gradients, too.
            held[key] = nn.Parameter(tensor, tensor.is_floating_point()) if isinstance(old, nn.Parameter) else tensor.clone()
        if isinstance(module, Recorded):
            module.filled()
        self.nodes[name] = node

    def _run(self, name: str, module, inputs: Sequence[Held]) -> tuple[Tensor, Tensor]:
        if isinstance(module, nn.Module):
            module.eval()
        try:
            with torch.no_grad():
                # Copies, as the user's function got them: torch rounds otherwise on rows that lie apart.
                return tuple(module(*(x.values[run].clone().movedim(x.batch, 0) for x in inputs)) for run in (0, 1))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise Unfit(str(error)) from None

    def _compare(self, name: str, result: Held, expected: Held, near: bool) -> None:
        if all(map(equal, result.values, expected.values)):
            return
        if not near or any(a.shape != b.shape or not torch.allclose(a, b, rtol=CLOSE, atol=CLOSE) for a, b in zip(result.values, expected.values, strict=True)):
            raise Unfit(f"{self.nodes[name].op} gives other values")
        self.differs.append(name)

    def finished(self, outputs: Sequence[str]) -> Finished:
        """What leads to the outputs; the rest is forgotten. The first node to hold a tensor owns it, others are tied to it."""
        alive: set[str] = set()
        todo = [*outputs, *(n for n, node in self.nodes.items() if node.op == "input")]
        while todo:
            name = todo.pop()
            if name not in alive:
                alive.add(name)
                todo += self.nodes[name].inputs
        owners: dict[int, str] = {}
        made = Finished({}, {}, {}, {})
        for name, node in self.nodes.items():
            if name not in alive:
                continue
            tied = []
            for local, leaf in self.leaves.get(name, {}).items():
                key, full = id(leaf.tensor), f"{name}.{local}"
                if key in owners:
                    tied.append((local, owners[key]))
                    continue
                owners[key] = full
                lead = self.leads[key]
                made.weights[full] = leaf.tensor.detach().reshape(leaf.tensor.shape[lead:]).clone()
                if leaf.name is not None:
                    made.names[full] = leaf.name
                if lead:
                    made.leads[full] = lead
            made.nodes[name] = Node(node.op, node.inputs, node.attrs, tuple(tied))
        return made
