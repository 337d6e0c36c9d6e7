"""Running a model's forward on stand-ins for tensors: what it calls is told to a listener, as it happens.

torch.fx finds the calls; the stand-ins know their values in two runs of different numbers of rows, so sizes are plain numbers
(a test of one is no obstacle), and those that depend on the batch are told apart.
"""

from __future__ import annotations

import builtins
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from dagrow.importing.errors import HERE, TORCH, ImportingError
from dagrow.importing.memory import overlap
from dagrow.importing.values import Held, Leaf, Rows, mapped

AS_THEY_ARE = "dagrow follows one path for all inputs: choose by torch.where, or keep the module whole with opaque=[{path!r}]"
KNOWN = ("dtype", "device", "layout", "is_cuda", "requires_grad", "itemsize", "names", "is_sparse", "is_quantized", "is_meta", "grad", "grad_fn", "is_leaf")


class Listener(Protocol):
    """Who is told of the calls, and makes held tensors (or lists of them) of their results in the two runs."""

    def layer(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> Any: ...

    def unknown(self, path: str, module: nn.Module, args: tuple, kwargs: dict, reason: str) -> Any: ...

    def attempt(self) -> AbstractContextManager[None]: ...

    def function(self, path: str, name: str, function: Callable, args: tuple, kwargs: dict) -> Any: ...


class Stand(fx.Proxy):
    """A stand-in for a tensor."""

    def __init__(self, held: Held, tracer: Tracer):
        super().__init__(None, tracer)
        self.held, self.stale = held, False
        tracer.stands.append(weakref.ref(self))

    def __repr__(self) -> str:
        return f"Stand({', '.join(map(str, self.held.sizes))})"

    def __format__(self, form: str) -> str:
        return repr(self)

    def __getattr__(self, name: str):
        held, tracer = self.held, self.tracer
        value = getattr(held.values[0], name)  # AttributeError as for a tensor
        if name == "shape":
            return Shape(held.sizes)
        if name in KNOWN or not (isinstance(value, Tensor) or callable(value)):
            return value
        if isinstance(value, Tensor):
            return tracer.told(name, lambda x: getattr(x, name), (self,), {})
        return lambda *args, **kwargs: tracer.method(name, (self, *args), kwargs)

    def __iter__(self):
        return iter(tracer_parts(self))

    def __len__(self) -> int:
        return self.held.sizes[0]

    def __bool__(self):
        raise ImportingError("what it does depends on the values of a tensor", fix=self.tracer.way_out())

    def __setitem__(self, place, value):
        whole = f", or keep the module whole with opaque=[{self.tracer.path!r}]" if self.tracer.path else ""
        raise ImportingError("it writes into a part of a tensor", fix=f"make a new tensor (torch.cat, torch.where, F.pad) instead{whole}")

    def __contains__(self, value):
        return bool(self)

    __int__ = __float__ = __index__ = __bool__

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found: list[Tracer] = []
        mapped((args, kwargs or {}), lambda v: found.append(v.tracer) if isinstance(v, Stand) else None)
        tracer, name = found[0], getattr(function, "__name__", str(function))
        if torch.overrides.is_tensor_method_or_property(function):
            return tracer.method(name, args, kwargs or {})
        return tracer.told(name, function, args, kwargs or {})


def stands_in(value: Any) -> list[bool]:
    """Whether the parts of a structure are stand-ins."""
    found: list[bool] = []
    mapped(value, lambda v: found.append(isinstance(v, Stand)))
    return found


def tracer_parts(stand: Stand) -> list:
    """The parts of a tensor along its first dimension."""
    size = stand.held.sizes[0]
    if isinstance(size, Rows):
        raise ImportingError("it goes through the rows of the batch one by one", fix=stand.tracer.way_out())
    return [stand[k] for k in range(size)]


class Shape(tuple):
    """torch.Size with sizes that may depend on the batch."""

    def numel(self) -> int:
        total = 1
        for size in self:
            total = size * total
        return total


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul"):
    # Stand-ins are the user's tensors by name: what changes in place changes under every name.
    def _inplace(self, other, _plain=_name[1:]):
        return self.tracer.written(self, self.tracer.method(f"__{_plain}__", (self, other), {}))

    setattr(Stand, f"__{_name}__", _inplace)


class Tracer(fx.Tracer):
    """Traces `root` on held inputs. leaf: whether a module is told of whole."""

    def __init__(self, listener: Listener, leaf: Callable[[str, nn.Module], bool]):
        super().__init__()
        self.listener, self.leaf = listener, leaf
        self.scopes: list[str] = [""]
        self.silent = False
        self.names: dict[int, tuple[str, Tensor]] = {}
        self.stands: list[weakref.ref[Stand]] = []

    @property
    def path(self) -> str:
        """Of the module that is being traced."""
        return self.scopes[-1]

    def way_out(self) -> str:
        return AS_THEY_ARE.format(path=self.path) if self.path else "dagrow follows one path for all inputs: choose by torch.where instead"

    def follow(self, root: nn.Module, inputs: Sequence[Held]) -> Any:
        """What the forward of `root` makes of the inputs: held tensors in the user's structure."""
        self.names = {id(t): (name, t) for name, t in [*root.named_parameters(), *root.named_buffers()]}
        self._inputs = [Stand(x, self) for x in inputs]
        with _guarded():
            self.trace(root)
        return self._made

    # -- what torch.fx calls -----------------------------------------------------------------------------------------

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        return root_fn, [self.root, *self._inputs]

    def create_arg(self, a):
        return a

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):
        self._made = self._held(args[0])

    def create_proxy(self, kind, target, args, kwargs, name=None, type_expr=None, proxy_factory_fn=None):
        return self.told(target.__name__.strip("_"), target, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self.silent or not isinstance(attr_val, Tensor) or id(attr_val) not in self.names:
            return attr_val
        name, tensor = self.names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = Stand(Held((tensor.detach(),) * 2, form=Leaf(name, tensor)), self)
        return parameter_proxy_cache[name]

    def call_module(self, m, forward, args, kwargs):
        if self.silent:
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(m)
        except NameError:
            raise ImportingError(f"a {type(m).__name__} is made in forward", fix="make it in __init__, so that it is part of the model") from None
        self.scopes.append(path)
        try:
            if not self.leaf(path, m):
                return self._through(path, m, forward, args, kwargs)
            place = next((a for a in (*args, *kwargs.values()) if isinstance(a, Stand)), None)
            if place is None:
                return forward(*args, **kwargs)
            self._graded()
            made = self._standing(lambda: self.listener.layer(path, m, self._held(args), self._held(kwargs)))
            return self.written(place, made) if getattr(m, "inplace", False) and isinstance(made, Stand) else made
        finally:
            self.scopes.pop()

    def _through(self, path: str, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """What is called inside of a module; one of torch's own that cannot be followed is told of whole."""
        if not type(m).__module__.startswith("torch.nn."):
            return forward(*args, **kwargs)
        args, kwargs = mapped(args, _real), mapped(dict(kwargs), _real)  # torch asks whether its masks are tensors
        if isinstance(m, nn.Sequential) or not all(type(part).__module__.startswith("torch.nn.") for part in m.modules()):
            return forward(*args, **kwargs)
        try:
            with self.listener.attempt():
                return forward(*args, **kwargs)
        except ImportingError as error:
            reason = error.message
        return self._standing(lambda: self.listener.unknown(path, m, self._held(args), self._held(kwargs), reason))

    # -- calls -------------------------------------------------------------------------------------------------------

    def method(self, name: str, args: tuple, kwargs: dict) -> Any:
        """A method of tensors, in place or not."""
        plain = name.strip("_") if name.startswith("__") else name
        if plain == "size":
            sizes = Shape(args[0].held.sizes)
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return sizes if dim is None else sizes[dim]
        if plain == "numel":
            return Shape(args[0].held.sizes).numel()
        if plain in ("item", "tolist", "numpy", "__array__", "nonzero", "unique", "bool"):
            raise ImportingError(f"{plain}() makes what it does depend on the values of a tensor", fix=self.way_out())
        if plain == "expand_as":
            return self.method("expand", (args[0], *args[1].held.sizes), {})
        made = self.told(plain.removesuffix("_"), lambda x, *rest, **named: getattr(x, name)(*rest, **named), args, kwargs)
        return self.written(args[0], made) if plain.endswith("_") else made

    def told(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        """A function of tensors, one of them at least a stand-in."""
        if kwargs.get("out") is not None:
            raise ImportingError(f"{name}(…, out=…) writes into a tensor", fix="use what it returns")
        self._graded()
        inplace = kwargs.get("inplace") is True or (name.endswith("_") and not name.startswith("_"))
        made = self._standing(lambda: self.listener.function(self.path, name.removesuffix("_"), function, self._held(args), self._held(kwargs)))
        return self.written(args[0], made) if inplace and args and isinstance(args[0], Stand) else made

    def _graded(self) -> None:
        if not torch.is_grad_enabled():
            raise ImportingError("it computes without gradients (torch.no_grad)", fix="use detach()" + (f", or keep the module whole: opaque=[{self.path!r}]" if self.path else ""))

    def written(self, stand: Stand, made: Stand) -> Stand:
        """`stand` has been overwritten with what was made."""
        if stand.held.own:
            raise ImportingError("it changes a buffer or parameter as it runs", fix=self.way_out())
        for other in (ref() for ref in self.stands):
            if other is not None and other is not stand and overlap(other.held.values[0], stand.held.values[0]):
                other.stale = True
        stand.held = made.held
        return stand

    def _held(self, value):
        return mapped(value, self._current)

    def _current(self, value):
        """What a stand-in holds; of a view that has been written through none of the names of what was there is followed."""
        if not isinstance(value, Stand):
            return value
        if value.stale:
            fix = "write x = f(x) where it is changed in place, or keep the module whole with opaque=[…]"
            raise ImportingError("it reads a tensor that was written into by way of another view of it", fix=fix)
        return value.held

    def _standing(self, work: Callable[[], Any]):
        with self._quiet():
            made = work()
        return mapped(made, self._shown)

    def _shown(self, value):
        if not isinstance(value, Held):
            return value
        constant = isinstance(value.form, Leaf) and value.form.name is None and value.node is None
        return value.form.tensor if constant else Stand(value, self)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Modules that run inside the block are not traced."""
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before


def _real(value: Any) -> Any:
    """A buffer of the user's as it is."""
    leaf = value.held.form if isinstance(value, Stand) and value.held.node is None else None
    return leaf.tensor if isinstance(leaf, Leaf) and not isinstance(leaf.tensor, nn.Parameter) else value


def _users(code: CodeType) -> bool:
    """Whether it is the user's code that asks, and not torch's on its own account."""
    return code.co_name == "is_tensor" or not code.co_filename.startswith((HERE + os.sep, TORCH + os.sep))


@contextmanager
def _guarded() -> Iterator[None]:
    """Inside the block functions of autograd with a backward of their own are refused (torch.fx does not see them), and for the user's
    code a stand-in is a torch.Tensor, and its len a size like others. Not by its class: torch's own C++ would take its memory for a tensor's."""
    apply, ask, count = torch.autograd.Function.__dict__["apply"], builtins.isinstance, builtins.len

    def size(thing):
        return thing.held.sizes[0] if type(thing) is Stand else count(thing)

    def is_one(thing, kinds):
        if type(thing) is Stand and _users(sys._getframe(1).f_code):
            return Tensor in (kinds if type(kinds) is tuple else (kinds,)) or ask(thing, kinds)
        return ask(thing, kinds)

    def guard(cls, *args, **kwargs):
        found: list[Tracer] = []
        mapped((args, kwargs), lambda v: found.append(v.tracer) if isinstance(v, Stand) else None)
        if found:
            path = found[0].path
            fix = f"keep its module whole: opaque=[{path!r}]" if path else "put it into a module of its own, and keep that whole with opaque=[…]"
            raise ImportingError(f"{cls.__name__} has a backward of its own", fix=fix)
        return apply.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply, builtins.isinstance, builtins.len = classmethod(guard), is_one, size
    try:
        yield
    finally:
        torch.autograd.Function.apply, builtins.isinstance, builtins.len = apply, ask, count
