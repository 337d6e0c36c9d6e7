"""What modules and functions of torch become: one entry each, found by the module's class or the function's name.

An entry takes an `Ask` and returns held tensors (a list where torch gives several); it raises Unfit where it does not fit,
and then an expression of aten functions stands in. Everything is tried on values: an entry cannot be silently wrong.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from dagrow.importing.building import Builder
from dagrow.importing.errors import Unfit
from dagrow.importing.values import Held, Leaf

Entry = Callable[["Ask"], Any]
LAYERS: dict[type[nn.Module], Entry] = {}
FUNCTIONS: dict[str, Entry] = {}


class Work(Protocol):
    """The lowering that asks (lowering.Lowering), as entries see it. names: id of a tensor of the user's -> its name."""

    names: Mapping[int, str]
    build: Builder

    def solid(self, value: Held) -> Held:
        """The value as a node's output."""

    def placed(self, result: Held, form: Any, hint: str) -> Held:
        """The value as computed by an expression, in a node of its own where the batch is a dimension of its own."""

    def renamed(self, form: Any) -> Any:
        """An expression with the user's tensors under their names."""

    def dropping(self, p: float) -> float:
        """What a dropout that is written as a function drops in training."""


@dataclass
class Ask:
    """One call: of a module (then its class' name) or of a function by its name, with arguments in which tensors are held."""

    lowering: Work
    name: str
    module: nn.Module | None
    args: tuple
    kwargs: Mapping[str, Any]
    result: Any

    def bound(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """The arguments after the first, by their names: from the module's attributes, or as the function was called."""
        if self.module is not None:
            return {k: getattr(self.module, k, v) for k, v in {**dict.fromkeys(names), **defaults}.items()}
        every = [*names, *defaults]
        rest = self.args[1:]
        if len(rest) > len(every):
            raise Unfit(f"{self.name} with {len(self.args)} arguments")
        given = {**defaults, **dict(zip(every, rest, strict=False)), **{k: v for k, v in self.kwargs.items() if k in every}}
        strange = [k for k in self.kwargs if k not in every and k not in ("input", "inplace", "self")]
        missing = [k for k in names if k not in given]
        if strange or missing:
            raise Unfit(f"{self.name}: {', '.join(strange + missing)}")
        return given

    @property
    def first(self) -> Any:
        """The first argument as it was given."""
        if self.args:
            return self.args[0]
        return next((self.kwargs[k] for k in ("input", "x", "self") if k in self.kwargs), None)

    @property
    def x(self) -> Held:
        """The first argument, as a node's output. Raises Unfit."""
        return self.solid(self.first)

    @property
    def map(self) -> Held:
        """The first argument, its batch first. Raises Unfit."""
        x = self.x
        if x.batch:
            raise Unfit("its batch does not come first")
        return x

    def solid(self, value: Any) -> Held:
        if not isinstance(value, Held):
            raise Unfit("not a tensor of the network")
        return self.lowering.solid(value)

    def tensors(self, *locals_: str) -> dict[str, Leaf]:
        """The module's parameters and buffers under their names, those that are None left out."""
        found = {k: getattr(self.module, k) for k in locals_}
        return {k: self.leaf(t) for k, t in found.items() if t is not None}

    def leaf(self, value: Any) -> Leaf:
        """A tensor of the user's. Raises Unfit for what is computed."""
        if isinstance(value, Held):
            if not isinstance(value.form, Leaf):
                raise Unfit("a parameter that is computed")
            return value.form
        if isinstance(value, Tensor):
            return Leaf(self.lowering.names.get(id(value)), value)
        raise Unfit("not a parameter")

    def node(self, op: str, inputs: Sequence[Held], attrs: Mapping | None = None, tensors: Mapping[str, Leaf] | None = None, *, hint: str | None = None,
             expected: Held | None = None, batch: int | None = None, near: bool = False) -> Held:  # fmt: skip
        """A node that gives what was asked for (or `expected`); see Builder.node."""
        wanted = self.result if expected is None else expected
        batch = inputs[0].batch if batch is None else batch
        hint = hint or (None if self.module is not None else op)
        return self.lowering.build.node(op, inputs, attrs or {}, tensors, expected=wanted, batch=batch, hint=hint, near=near)


def layer(*kinds: type[nn.Module]) -> Callable[[Entry], Entry]:
    def join(entry: Entry) -> Entry:
        LAYERS.update(dict.fromkeys(kinds, entry))
        return entry

    return join


def function(*names: str) -> Callable[[Entry], Entry]:
    def join(entry: Entry) -> Entry:
        FUNCTIONS.update(dict.fromkeys(names, entry))
        return entry

    return join


def mapping_of(module: nn.Module) -> Entry | None:
    """The entry of a module's class, or of the class of torch's that it inherits all it does from; a forward of its own is followed."""
    if "forward" in vars(module):
        return None
    for kind in type(module).__mro__:
        if kind in LAYERS:
            return LAYERS[kind]
        if any(callable(v) and k not in ("__init__", "extra_repr", "reset_parameters") for k, v in vars(kind).items()):
            return None
    return None


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
