"""What passes through a model while its user trains it: inputs, and the gradients that come back to its output."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Heard:
    """One forward: its inputs [n, ...], and once the backward came by, the gradient of the loss in its output [n, ...]."""

    x: Tensor
    grad: Tensor | None = None


class Ear:
    """Listens at a model for as long as it lives; a deep copy of the model has a deaf one.

    Only forwards that a gradient comes back to count: what an agent does in its environment, or an evaluation, does not.
    """

    def __init__(self, model: nn.Module):
        self.open, self.heard = False, deque()
        ear = weakref.ref(self)
        self._handle = model.register_forward_hook(_Hook(ear), with_kwargs=True)

    def close(self) -> None:
        self._handle.remove()

    def listen(self, args: tuple, kwargs: dict, out: Tensor) -> None:
        if not self.open or not torch.is_grad_enabled() or not isinstance(out, Tensor) or not out.requires_grad:
            return
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if len(given) != 1 or not given[0].dim() or len(given[0]) != len(out):
            return
        heard = Heard(given[0].detach())
        self.heard.append(heard)
        out.register_hook(lambda g: setattr(heard, "grad", g.detach()))

    def take(self) -> list[Heard]:
        """The forwards since the last time that a gradient came back to."""
        found = [h for h in self.heard if h.grad is not None]
        self.heard.clear()
        return found


class _Hook:
    """Does not keep the ear alive, nor take it along into a copy of the model."""

    def __init__(self, ear: weakref.ref | None):
        self.ear = ear

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        ear = self.ear and self.ear()
        if ear is not None:
            ear.listen(args, kwargs, out)

    def __deepcopy__(self, memo: dict) -> _Hook:
        return _Hook(None)


class Recollection:
    """The last rows heard, a share of each step's: inputs, and v = minus the gradient of each row's loss in the output.

    The loss of a step is taken for the mean over the rows of all forwards that it went through.
    """

    def __init__(self, rows: int, window: int):
        self.rows, self.window = rows, window
        self.steps: deque[tuple[Tensor, Tensor]] = deque()

    def add(self, heard: list[Heard], scale: float) -> int:
        """Rows that the step gives."""
        if not heard:
            return 0
        x, g = torch.cat([h.x for h in heard]), torch.cat([h.grad for h in heard])
        share = -(-self.rows // self.window)
        # copies: a training loop may fill the same buffers again
        self.steps.append(tuple(_single(t[:share]) for t in (x, g * (-len(x) / scale))))
        held = sum(len(s[0]) for s in self.steps)
        while held - len(self.steps[0][0]) >= self.rows:
            held -= len(self.steps.popleft()[0])
        return len(self.steps[-1][0])

    def all(self) -> tuple[Tensor, Tensor] | None:
        """(x, v) of the rows, oldest first."""
        return None if not self.steps else tuple(torch.cat(ts) for ts in zip(*self.steps, strict=True))

    def clear(self) -> None:
        self.steps.clear()


def _single(t: Tensor) -> Tensor:
    t = t.detach().to("cpu", copy=True)
    return t.float() if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) else t


__all__ = ["Ear", "Recollection"]
