"""Calls of the user's forward become nodes: by the mapping for that module or function, as an expression, or kept whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dagrow.importing.building import Builder
from dagrow.importing.errors import ImportingError, Unfit
from dagrow.importing.expressions import Steps, expression
from dagrow.importing.mapping import FUNCTIONS, Ask, mapping_of
from dagrow.importing.memory import laid
from dagrow.importing.running import both
from dagrow.importing.values import ROWS, Held, Leaf, Rows, Tree, batch_dim, held_in, mapped
from dagrow.recorded import keep

DROPOUTS = {"dropout": False, "dropout1d": True, "dropout2d": True, "alpha_dropout": None, "feature_alpha_dropout": None, "dropout3d": None}
# In training these do what no expression of what they do in evaluation says.
FICKLE = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU)


@dataclass
class Lowering:
    """Makes nodes in `build`. opaque: paths and classes to keep whole. trained: for each functional dropout, its probability in training (0: off).

    kept: node -> why it is kept whole. folded: buffers of which only what they come to is held. moving: buffers that modules
    change in training.
    """

    build: Builder
    names: Mapping[int, str]
    opaque: Collection[str | type] = ()
    trained: list[float] | None = None
    dropouts: list[float] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    folded: set[str] = field(default_factory=set)
    moving: Collection[str] = ()

    # -- modules -----------------------------------------------------------------------------------------------------

    def whole(self, path: str, module: nn.Module) -> str | None:
        """Why a module is kept whole; None where it is not."""
        if path in self.opaque or any(isinstance(k, type) and isinstance(module, k) for k in self.opaque):
            return "as asked"
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return "a recurrent network"
        if isinstance(module, torch.jit.ScriptModule):
            return "a TorchScript module"
        if nn.utils.parametrize.is_parametrized(module):
            return "its parameters are parametrized"
        if isinstance(module, FICKLE) and type(module).__module__.startswith("torch.nn.") and mapping_of(module) is None:
            return "dagrow has no op for it"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "it has hooks"
        return None

    def leaf(self, path: str, module: nn.Module) -> bool:
        """Whether a module is looked at as one thing."""
        return self.whole(path, module) is not None or mapping_of(module) is not None

    def layer(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        self.build.path = path
        result = both(module, args, kwargs)
        reason = self.whole(path, module)
        if reason is None:
            ways = [lambda: mapping_of(module)(self._ask(type(module).__name__, module, args, kwargs, result))]
            if not isinstance(module, FICKLE) and not getattr(module, "dropout", 0):
                ways.append(lambda: self._expressed(type(module).__name__.lower(), module, args, kwargs, result))
            made, reason = self._first(ways)
            if reason is None:
                return laid(made, result)
        return self.keep_whole(path, module, args, kwargs, result, reason)

    def unknown(self, path: str, module: nn.Module, args: tuple, kwargs: dict, reason: str) -> Any:
        return self.keep_whole(path, module, args, kwargs, both(module, args, kwargs), reason)

    def attempt(self) -> AbstractContextManager[None]:
        return self.build.attempt()

    def keep_whole(self, path: str, module: nn.Module, args: tuple, kwargs: dict, result: Any, reason: str) -> Any:
        """A node for each tensor that the module makes."""
        build = self.build
        build.path = path
        key = keep(path, module)
        inputs: list[Held] = []

        def given(value):
            if isinstance(value, Held):
                solid = self.solid(value)
                if solid.batch:
                    solid = self._first_dim(solid)
                at = next((k for k, x in enumerate(inputs) if x.node == solid.node), len(inputs))
                if at == len(inputs):
                    inputs.append(solid)
                return ("in", at)
            if isinstance(value, (bool, int, float, str, type(None))) and not isinstance(value, Rows):
                return value
            raise ImportingError(f"{path or 'the model'} is kept whole ({reason}), but called with a {type(value).__name__}", fix="give it tensors and numbers alone")

        try:
            positional, named = tuple(map(given, args)), tuple((k, given(v)) for k, v in kwargs.items())
        except Unfit as error:
            raise ImportingError(f"{path or 'the model'} is kept whole ({reason}), but reads what no node makes: {error}") from None
        tensors = {f"module.{n}": Leaf(self.names.get(id(t)), t) for n, t in [*module.named_parameters(), *module.named_buffers()]}
        macs = _macs(module, args, kwargs)

        def node(held: Held, pick: tuple[int, ...]):
            batch = batch_dim(held.sizes)
            if batch is None:
                return held  # an error where it is used
            shape = Held(held.values, batch=batch).shape
            attrs = {"key": key, "args": positional, "kwargs": named, "pick": pick, "made": shape, "batch": batch, "macs": 0 if any(pick) else macs}
            made = build.node("opaque", inputs, attrs, tensors, expected=held, batch=batch)
            self.kept[made.node] = reason
            return made

        def walk(value, pick):
            if isinstance(value, Held):
                return node(value, pick)
            if isinstance(value, (list, tuple)):
                return tuple(walk(v, (*pick, k)) for k, v in enumerate(value))
            return value

        try:
            return walk(result, ())
        except Unfit as error:
            raise ImportingError(f"{path or 'the model'}, a {type(module).__name__}, cannot be kept whole: {error}") from None

    # -- functions ---------------------------------------------------------------------------------------------------

    def function(self, path: str, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        self.build.path = path
        if name in DROPOUTS:
            return self._dropout(name, function, args, kwargs)
        quiet = {"dropout_p": 0.0} if "dropout_p" in kwargs else {}  # what is random cannot be compared
        result = both(function, args, {**kwargs, **quiet})
        if not holds(result):
            return result  # a size, a type
        if not mapped_held((args, kwargs)):
            return self._of_parameters(name, function, args, kwargs, result)
        ways = [lambda: self._expressed(name, function, args, kwargs, result)]
        if name in FUNCTIONS:
            ways.insert(0, lambda: FUNCTIONS[name](self._ask(name, None, args, kwargs, result)))
        made, reason = self._first(ways)
        if reason is not None:
            raise ImportingError(f"dagrow has nothing for {name}: {reason}", fix=self.way_out())
        return laid(made, result)

    def way_out(self) -> str:
        path = self.build.path
        return f"keep the module whole: opaque=[{path!r}]" if path else "put it into a module of its own, and keep that whole with opaque=[…]"

    def dropping(self, p: float) -> float:
        """The probability in training of the dropout that comes next; `p` is that in the mode being followed."""
        number = len(self.dropouts)
        self.dropouts.append(p)
        if self.trained is None:
            return 0.0
        return self.trained[number] if number < len(self.trained) else p

    def _dropout(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        """On in training alone, as nearly all are: a node; never on: nothing."""
        p = float(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        on = bool(args[2] if len(args) > 2 else kwargs.get("training", True))
        p, whole = self.dropping(p if on else 0.0), DROPOUTS[name]
        if not p:
            return args[0]
        if whole is None or (self.trained is not None and on):
            raise ImportingError(f"dagrow has nothing for {name}{' that is on in evaluation' if whole is not None else ''}", fix="use nn.Dropout")
        try:
            x = self.solid(args[0])
            return self.build.node("dropout", [x], {"p": p, "channels": whole}, expected=x, batch=x.batch, hint="dropout")
        except Unfit as error:
            raise ImportingError(f"dropout: {error}") from None

    def _of_parameters(self, name: str, function: Callable, args: tuple, kwargs: dict, result: Any) -> Any:
        """A function of parameters, buffers and constants alone: it waits for what reads it."""
        form = self.renamed(expression(name, function, args, kwargs, result))
        leaves = list(leaves_in(form))
        constant = not any(isinstance(leaf.tensor, nn.Parameter) or leaf.name in self.moving for leaf in leaves)

        def held(value, part):
            if isinstance(value, Held):
                value.form = part.form if isinstance(part, Held) else part
                if constant and not any(isinstance(n, Rows) for n in value.sizes):
                    # What buffers come to, a part of a larger mask for one, is all that is needed of them.
                    self.folded.update(leaf.name for leaf in leaves if leaf.name)
                    value.form = Leaf(None, value.values[0].contiguous())
                return value
            return [held(v, p) for v, p in zip(value, part, strict=True)]

        return held(result, form)

    # -- ways --------------------------------------------------------------------------------------------------------

    def _first(self, ways: list[Callable[[], Any]]) -> tuple[Any, str | None]:
        """What the first way that fits makes, or why the last one does not."""
        reason = "nothing fits"
        for way in ways:
            try:
                with self.build.attempt():
                    return way(), None
            except Unfit as error:
                reason = str(error)
        return None, reason

    def _ask(self, name: str, module: nn.Module | None, args: tuple, kwargs: dict, result: Any) -> Ask:
        return Ask(self, name, module, args, kwargs, result)

    def _expressed(self, name: str, function: Callable, args: tuple, kwargs: dict, result: Any) -> Any:
        form = self.renamed(expression(name, function, args, kwargs, result))
        hint = "".join(c for c in name if c.isalnum() or c == "_").strip("_") or "call"

        def made(value, part):
            if isinstance(value, Held):
                return self.placed(value, part, hint)
            parts = [made(v, p) for v, p in zip(value, part, strict=True)]
            return type(value)(*parts) if hasattr(value, "_fields") else parts

        return made(result, form)

    def renamed(self, form: Any) -> Any:
        """With the user's names on the leaves."""
        if isinstance(form, Leaf):
            return form if form.name else Leaf(self.names.get(id(form.tensor)), form.tensor)
        if isinstance(form, Tree):
            return form._replace(args=tuple(map(self.renamed, form.args)), kwargs=tuple((k, self.renamed(v)) for k, v in form.kwargs))
        return [self.renamed(v) for v in form] if isinstance(form, list) else form

    def placed(self, result: Held, form: Any, hint: str) -> Held:
        """`result` as computed by `form`: by a node of its own where the batch is a dimension of its own, else by what reads it."""
        if isinstance(form, Held):
            return form
        sizes = result.sizes
        result.form, result.mixed, result.path = form, not any(isinstance(n, Rows) for n in sizes), self.build.path
        # What is no number of its own, a mask, goes into what reads it: nodes hand on floating values.
        return result if batch_dim(sizes) is None or not result.values[0].is_floating_point() else self.solid(result, hint)

    def solid(self, held: Held, hint: str = "call") -> Held:
        """A held tensor as a node's output; a node is made where it waits for one. Raises Unfit."""
        if held.node is not None:
            return held
        if held.form is None:
            raise Unfit("nothing makes it")
        batch = batch_dim(held.sizes)
        if batch is None:
            raise Unfit("the batch is not a dimension of its own")
        form = held.form if not batch else Tree("movedim", (held.form, batch, 0))
        if not isinstance(form, Tree):
            raise Unfit("it is a parameter")
        steps, reader = Steps(form), self.build.path
        self.build.path = reader if held.path is None else held.path  # named where it is computed: its reader may be a node itself
        try:
            made = self.build.node("call", steps.inputs, steps.attrs, steps.own if steps.own else None, expected=held, batch=batch, hint=hint)
        finally:
            self.build.path = reader
        self.build.undo.append(lambda: vars(held).update(node=None))
        held.node, held.batch = made.node, batch
        return held

    def _first_dim(self, held: Held) -> Held:
        """With the batch first in the user's tensor, too."""
        raise Unfit("its batch does not come first")


def holds(value: Any) -> bool:
    """Whether there is a tensor in it."""
    found: list[bool] = []
    mapped(value, lambda v: found.append(isinstance(v, Held)))
    return any(found)


def leaves_in(form: Any) -> Iterator[Leaf]:
    """The user's tensors that a form is computed from."""
    if isinstance(form, Leaf):
        yield form
    elif isinstance(form, Held):
        yield from leaves_in(form.form)
    elif isinstance(form, Tree):
        yield from leaves_in((*form.args, *(v for _, v in form.kwargs)))
    elif isinstance(form, (list, tuple)):
        for part in form:
            yield from leaves_in(part)


def mapped_held(value: Any) -> list[Held]:
    """The held tensors, made by nodes or of such, among arguments."""
    found: list[Held] = []
    mapped(value, lambda v: found.extend([v]) if isinstance(v, Held) and (v.node is not None or any(True for _ in held_in(v.form))) else None)
    return found


def _macs(module: nn.Module, args: tuple, kwargs: dict) -> int:
    """Of one row, as torch counts them."""
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*mapped(args, lambda v: v.values[0] if isinstance(v, Held) else v), **mapped(kwargs, lambda v: v.values[0] if isinstance(v, Held) else v))
        return counter.get_total_flops() // (2 * ROWS[0])
    except (RuntimeError, TypeError, ValueError):
        return 0
