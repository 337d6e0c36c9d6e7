"""Calls of the user's as expressions of aten functions: under the name they have, or as the aten calls they come down to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dagrow.importing.errors import Unfit
from dagrow.importing.values import Held, Leaf, Rows, Tree, equal, in_run, mapped
from dagrow.ops.call import DTYPES, WORD, arguments_of
from dagrow.recorded import NUMBERS

ATEN = {"view": "reshape", "truediv": "div", "floordiv": "floor_divide", "and": "bitwise_and", "or": "bitwise_or", "invert": "bitwise_not", "mod": "remainder", "T": "numpy_T"}
# Where tensors lie and how is the machine's affair.
PLACES = ("layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "inplace", "_stacklevel")
MOST_CONSTANT = 2**20
FAR = 2**62


def expression(name: str, function: Callable, args: tuple, kwargs: Mapping, result: Any) -> Any:
    """A tree that gives the values of `result`, or a list of trees that give those of a list, to the bit. Raises Unfit."""
    for way in (_named, _narrow, _captured):
        try:
            made = way(name, function, args, kwargs, result)
            if _gives(made, result):
                return made
        except Unfit:
            continue
    raise Unfit(f"{name} is no expression of aten functions")


def _gives(form: Any, result: Any) -> bool:
    if isinstance(result, (list, tuple)):
        return isinstance(form, list) and len(form) == len(result) and all(map(_gives, form, result))
    if not isinstance(result, Held) or not isinstance(form, (Tree, Held, Leaf)):
        return False
    made = [value_of(form, run) for run in (0, 1)]
    return all(isinstance(m, Tensor) and equal(m, v) for m, v in zip(made, result.values, strict=True))


def value_of(form: Any, run: int) -> Any:
    """What a form comes to in one of the runs."""
    memo: dict[int, Any] = {}

    def value(part: Any) -> Any:
        if isinstance(part, Held):
            return part.values[run]
        if isinstance(part, Leaf):
            return part.tensor
        if isinstance(part, Tree):
            key = part.name, id(part.args)
            if key not in memo:
                with torch.no_grad():
                    memo[key] = getattr(torch.ops.aten, part.name)(*map(value, part.args), **{k: value(v) for k, v in part.kwargs})
            return memo[key] if part.item is None else memo[key][part.item]
        if isinstance(part, (list, tuple)):
            return [value(v) for v in part]
        return in_run(part, run)

    try:
        return value(form)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise Unfit(str(error)) from None


def _named(name: str, function: Callable, args: tuple, kwargs: Mapping, result: Any) -> Any:
    """The aten function of the same name, with the same arguments."""
    name = ATEN.get(name, name)
    known = arguments_of(name) if WORD.match(name) else None
    named = tuple((k, v) for k, v in kwargs.items() if k not in PLACES)
    if name == "einsum" and len(args) > 1 and not isinstance(args[1], (list, tuple)):
        args = (args[0], list(args[1:]))
    if known is None or any(k not in known for k, _ in named):
        raise Unfit(f"there is no aten function {name}")
    made = Tree(name, tuple(map(_plain, args)), tuple((k, _plain(v)) for k, v in named))
    return [made._replace(item=k) for k in range(len(result))] if isinstance(result, (list, tuple)) else made


def _plain(value: Any) -> Any:
    """A value that a tree may hold."""
    if isinstance(value, (Held, Leaf, Tree, bool, int, float, str, type(None), torch.dtype)):
        return value
    if isinstance(value, nn.Parameter | Tensor):
        return Leaf(None, value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    raise Unfit(f"a {type(value).__name__} among the arguments")


class _Watch(TorchDispatchMode):
    """Writes down the aten calls that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            raise Unfit(f"{func} writes into its arguments")
        self.calls.append((func.overloadpacket.__name__, args, kwargs or {}, made))
        return made


def _narrow(name: str, function: Callable, args: tuple, kwargs: Mapping, result: Any) -> Any:
    """`_captured`, where what is spread over a larger size is left to what reads it: sizes that are not named need not change."""
    return _captured(name, function, args, kwargs, result, plain=("lift_fresh", "alias", "expand"))


def _captured(name: str, function: Callable, args: tuple, kwargs: Mapping, result: Any, plain: tuple[str, ...] = ("lift_fresh", "alias")) -> Any:
    """The aten calls that the function makes, put together; those of `plain` stand for what they are given."""
    watched, ends, sources = [], [], []
    for run in (0, 1):
        seen: dict[int, tuple[Tensor, Any]] = {}

        def given(value, run=run, seen=seen):
            if isinstance(value, Held):
                seen[id(value.values[run])] = value.values[run], value
                return value.values[run]
            return in_run(value, run)

        positional, named = mapped(args, given), mapped(dict(kwargs), given)
        watch = _Watch()
        try:
            with torch.no_grad(), watch:
                ends.append(function(*positional, **named))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise Unfit(str(error)) from None
        watched.append(watch.calls)
        sources.append(seen)
    if [c[0] for c in watched[0]] != [c[0] for c in watched[1]]:
        raise Unfit("it does not do the same with other numbers of rows")
    known: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    alive: list[Any] = []
    for run in (0, 1):
        known[run].update({key: held for key, (_, held) in sources[run].items()})
    for (called, args0, kwargs0, made0), (_, args1, kwargs1, made1) in zip(*watched, strict=True):
        # Views of tensors that share an id with one that is gone would be taken for it: all are held.
        alive += [made0, made1, args0, args1]
        if called == "_to_copy":
            called, args0, args1 = "to", (args0[0], kwargs0["dtype"]), (args1[0], kwargs1["dtype"])
            kwargs0 = {}
        if called in ("view", "_unsafe_view"):
            called = "reshape"  # nodes need not lie in memory as the user's tensors do
        if called in plain:
            form = _joined(args0[0], args1[0], known)
        elif arguments_of(called) is None:
            form = None
        else:
            positional = tuple(_joined(a, b, known) for a, b in zip(args0, args1, strict=True))
            form = Tree(called, positional, tuple((k, _joined(v, kwargs1[k], known)) for k, v in kwargs0.items() if k not in PLACES))
        parts = isinstance(made0, (list, tuple))
        for k, (a, b) in enumerate(zip(made0 if parts else [made0], made1 if parts else [made1], strict=True)):
            if isinstance(a, Tensor):
                known[0][id(a)] = known[1][id(b)] = form._replace(item=k) if parts and isinstance(form, Tree) else form
    return _joined(ends[0], ends[1], known)


def _joined(one: Any, other: Any, known: tuple[dict[int, Any], dict[int, Any]]) -> Any:
    """One value out of those in the two runs."""
    if isinstance(one, Tensor):
        if id(one) in known[0]:
            found = known[0][id(one)]
            if found is None:
                raise Unfit("a tensor that no aten function of tensors makes")
            return found
        if not equal(one.detach(), other.detach()) or one.numel() > MOST_CONSTANT:
            raise Unfit("a tensor made for a number of rows")
        return Leaf(None, one)
    if isinstance(one, (list, tuple)):
        return [_joined(a, b, known) for a, b in zip(one, other, strict=True)]
    if type(one) is int and type(other) is int and one != other:
        return Rows((one, other))
    if one != other:
        raise Unfit("a number that depends on the rows")
    return _plain(one)


class Steps:
    """A tree as the steps of a `call`: its inputs, its tensors, its steps."""

    def __init__(self, form: Tree):
        self.inputs: list[Held] = []
        self.own: dict[str, Leaf] = {}
        self.steps: list[tuple] = []
        self._made: dict[Any, tuple] = {}
        self._forms: list[Any] = []
        end = self.form(form)
        if end[0] == "item":
            self._step("end", ("alias", (end,), ()))
        if not self.inputs:
            raise Unfit("it is made of parameters alone")

    def form(self, form: Any) -> Any:
        """How a form is written in a step."""
        if isinstance(form, Held):
            return self._held(form)
        if isinstance(form, Leaf):
            return self._leaf(form)
        if isinstance(form, Tree):
            return self._tree(form)
        if isinstance(form, Rows):
            if not form.times:
                raise Unfit("a size that is no multiple of the number of rows")
            return ("batch", form.times)
        if isinstance(form, (list, tuple)):
            return ("list", *map(self.form, form))
        if isinstance(form, torch.dtype):
            kind = str(form).removeprefix("torch.")
            if kind not in DTYPES:
                raise Unfit(f"values of {kind}")
            return ("dtype", kind)
        if type(form) is int:
            return max(-FAR, min(FAR, form))  # as far as a slice may go
        if isinstance(form, float):
            return form if math.isfinite(form) else ("float", next(k for k in NUMBERS if k == str(form)))
        return form

    def _held(self, held: Held) -> Any:
        if held.mixed:
            raise Unfit("it depends on all rows of a batch together")
        if held.node is None:
            return self.form(held.form)
        at = next((k for k, x in enumerate(self.inputs) if x.node == held.node), None)
        if at is None:
            at = len(self.inputs)
            self.inputs.append(held)
        read: tuple = ("in", at)
        kind = held.values[0].dtype
        if not kind.is_floating_point:
            # Whole numbers may be handed on as floating ones.
            read = self._step(("whole", held.node), ("to", (read, self.form(kind)), ()))
        if not held.batch:
            return read
        return self._step(("moved", held.node, held.batch), ("movedim", (read, 0, held.batch), ()))

    def _leaf(self, leaf: Leaf) -> tuple:
        for name, known in self.own.items():
            if known.tensor is leaf.tensor:
                return ("own", name)
        name = f"w{len(self.own)}"
        self.own[name] = leaf
        return ("own", name)

    def _tree(self, tree: Tree) -> tuple:
        self._forms.append(tree)  # so that ids stay theirs
        key = (tree.name, id(tree.args))
        args, kwargs = tuple(map(self.form, tree.args)), tuple((k, self.form(v)) for k, v in tree.kwargs)
        step = self._step(key, (tree.name, args, kwargs))
        return step if tree.item is None else ("item", step[1], tree.item)

    def _step(self, key: Any, step: tuple) -> tuple:
        if key not in self._made:
            self.steps.append(step)
            self._made[key] = ("step", len(self.steps) - 1)
        return self._made[key]

    @property
    def attrs(self) -> dict:
        own = tuple(
            (name, tuple(leaf.tensor.shape), str(leaf.tensor.dtype).removeprefix("torch."), isinstance(leaf.tensor, nn.Parameter))
            for name, leaf in self.own.items()
        )
        return {"steps": tuple(self.steps), "own": own}
