"""Modules that write their work into the graph that holds them: expressions of aten functions, and modules kept whole.

Imported where an op is built: it needs torch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dagrow.errors import GraphError

MOST_VALUES = 2**28  # of one tensor
NUMBERS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


class Held:
    """What a recorded module holds, as its work sees it: the real thing here, proxies where a graph is written."""

    def __init__(self, module: nn.Module):
        self.module = module

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the module."""
        return getattr(self.module, name)

    def call(self, name: str, *args, **kwargs):
        """What a submodule makes of the arguments."""
        return getattr(self.module, name)(*args, **kwargs)


class Recorded(nn.Module):
    """A module whose `work` on what it holds and its inputs is recorded call by call, not as one call of a module."""

    def work(self, held: Held, *inputs):
        raise NotImplementedError

    def filled(self) -> None:
        """Called when its tensors have been replaced."""

    # Scripts hold what `work` has written into the graph around it.
    @torch.jit.ignore
    def forward(self, *inputs):
        return self.work(Held(self), *inputs)


def evaluated(steps: Sequence, held: Held | None, inputs: Sequence):
    """The result of the last of `steps`: (aten function, arguments, named arguments), as ops.call describes them."""
    made: list = []

    def value(form):
        if not isinstance(form, tuple):
            return form
        tag, *rest = form
        return READ[tag](rest, value, made, held, inputs)

    for name, args, kwargs in steps:
        made.append(getattr(torch.ops.aten, name)(*map(value, args), **{k: value(v) for k, v in kwargs}))
        for tensor in made[-1] if isinstance(made[-1], (tuple, list)) else made[-1:]:
            # Nodes run on the meta device, which takes no memory, before they run anywhere else.
            if isinstance(tensor, Tensor) and tensor.is_meta and tensor.numel() > MOST_VALUES:
                raise ValueError(f"{name} makes {tensor.numel():,} values, more than {MOST_VALUES:,}")
    return made[-1]


READ: Mapping[str, Callable] = {
    "in": lambda rest, value, made, held, inputs: inputs[rest[0]],
    "own": lambda rest, value, made, held, inputs: held.tensor(rest[0]),
    "step": lambda rest, value, made, held, inputs: made[rest[0]],
    "item": lambda rest, value, made, held, inputs: made[rest[0]][rest[1]],
    "batch": lambda rest, value, made, held, inputs: inputs[0].size(0) * rest[0] if rest[0] != 1 else inputs[0].size(0),
    "list": lambda rest, value, made, held, inputs: [value(v) for v in rest],
    "dtype": lambda rest, value, made, held, inputs: getattr(torch, rest[0]),
    "float": lambda rest, value, made, held, inputs: NUMBERS[rest[0]],
}


class Expression(Recorded):
    """Steps over inputs and tensors of its own. own: (name, shape, dtype, whether trained)."""

    def __init__(self, steps: Sequence, own: Sequence):
        super().__init__()
        self.steps = tuple(steps)
        for name, shape, dtype, trained in own:
            tensor = torch.zeros(shape, dtype=getattr(torch, dtype))
            if not trained:
                self.register_buffer(name, tensor)
                continue
            if tensor.is_floating_point() and tensor.numel():
                nn.init.normal_(tensor, std=0.02)
            self.register_parameter(name, nn.Parameter(tensor, tensor.is_floating_point()))

    def work(self, held: Held, *inputs):
        return evaluated(self.steps, held, inputs)


# Modules of imported networks that are kept whole, by their keys.
_KEPT: dict[str, nn.Module] = {}


def keep(path: str, module: nn.Module) -> str:
    """Remembers a copy of `module` for as long as the process lives; the key follows from its path, class and settings."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    rows = [path, kind, str(module)]
    rows += [f"{name} {list(t.shape)} {t.dtype}" for name, t in [*module.named_parameters(), *module.named_buffers()]]
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, tuple, type(None))) and k != "training"}
        rows.append(f"{name} {sorted(plain.items())!r}")
    key = f"{path}={kind}#{hashlib.sha256(chr(10).join(rows).encode()).hexdigest()[:16]}"
    if key not in _KEPT:
        _KEPT[key] = copy.deepcopy(module)
    return key


class Kept(Recorded):
    """A module that nothing is known of, with the arguments it is called with, which of its outputs is taken, and where that has its batch.

    On the meta device, where it may not run, it only says that it makes `made` (without the batch).
    """

    def __init__(self, key: str, args: Sequence, kwargs: Sequence, pick: Sequence[int], made: Sequence[int], batch: int = 0):
        super().__init__()
        if key not in _KEPT:
            name = key.partition("#")[0].replace("=", ", a ")
            raise GraphError(
                f"the module {name} is not here: it was kept whole when the model was imported",
                fix="import the model again with dagrow.from_torch; in a spec, model.py and --allow-code do so",
            )
        module = copy.deepcopy(_KEPT[key])
        device = torch.get_default_device()
        self.module = module.to(device) if device.type == "meta" else module
        self.args, self.kwargs, self.pick, self.made, self.batch = tuple(args), tuple(kwargs), tuple(pick), tuple(made), batch

    def work(self, held: Held, *inputs):
        def value(form):
            return READ[form[0]](form[1:], value, [], held, inputs) if isinstance(form, tuple) else form

        out = held.call("module", *map(value, self.args), **{k: value(v) for k, v in self.kwargs})
        for place in self.pick:
            out = out[place]
        return out.movedim(self.batch, 0) if self.batch else out

    def filled(self) -> None:
        for part in self.module.modules():
            if isinstance(part, nn.RNNBase):  # it holds its parameters a second time
                part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]

    @torch.jit.ignore
    def forward(self, *inputs):
        if inputs[0].is_meta:
            return inputs[0].new_empty((inputs[0].shape[0], *self.made), dtype=torch.get_default_dtype())
        return super().forward(*inputs)
