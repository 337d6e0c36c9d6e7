"""What passes through a model while its user trains it: inputs, and the gradients that come back to its output."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dagrow.criteria import curvature_of


@dataclass
class Heard:
    """One forward: its inputs [n, ...], its output, and once known, v and curvature of the loss in it, per row (`Recollection`)."""

    x: Tensor
    out: Tensor
    grad: Tensor | None = None
    curvature: Tensor | None = None


class Ear:
    """Listens at a model for as long as it lives; a deep copy of the model has a deaf one.

    Only forwards that a gradient comes back to count: what an agent does in its environment, or an evaluation, does not.
    """

    def __init__(self, model: nn.Module):
        self.open, self.heard = False, []
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
        heard = Heard(given[0].detach(), out)
        self.heard.append(heard)
        out.register_hook(lambda g: setattr(heard, "grad", g.detach()))

    def understand(self, loss: Tensor) -> None:
        """Takes the loss's first and second derivatives in the outputs, before its backward frees the graph."""
        if not self.heard:
            return
        try:
            slopes = torch.autograd.grad(loss, [h.out for h in self.heard], create_graph=True, allow_unused=True)
            for heard, slope in zip(self.heard, slopes, strict=True):
                if slope is not None:
                    heard.curvature = curvature_of(slope, heard.out)
        except RuntimeError:  # a loss that cannot be differentiated twice
            for heard in self.heard:
                heard.curvature = None

    def take(self) -> list[Heard]:
        """The forwards since the last time that a gradient came back to."""
        found, self.heard = [h for h in self.heard if h.grad is not None], []
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
    """The last rows heard, a share of each step's: inputs x; v, minus the gradient of each row's loss in the output; its curvature.

    The loss of a step is taken for the mean over the rows of all forwards that it went through.
    """

    def __init__(self, rows: int, window: int):
        self.rows, self.window = rows, window
        self.steps: deque[tuple[Tensor, Tensor, Tensor | None]] = deque()

    def add(self, heard: list[Heard], scale: float) -> int:
        """Rows that the step gives. scale: what the loss was multiplied by for its backward."""
        if not heard:
            return 0
        rows, share = sum(len(h.x) for h in heard), -(-self.rows // self.window)
        # spread over the batch, which may have an order
        taken = torch.arange(min(share, rows)) * rows // min(share, rows)
        x, g = (torch.cat(ts)[taken.to(ts[0].device)] for ts in zip(*((h.x, h.grad) for h in heard), strict=True))
        known = all(h.curvature is not None for h in heard)
        curvature = _single(torch.cat([h.curvature for h in heard])[taken.to(x.device)] * rows) if known else None
        self.steps.append((_single(x), _single(g * (-rows / scale)), curvature))
        held = sum(len(s[0]) for s in self.steps)
        while held - len(self.steps[0][0]) >= self.rows:
            held -= len(self.steps.popleft()[0])
        return len(self.steps[-1][0])

    def all(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """(x, v, curvature) of the rows, oldest first; no curvature where some step's is not known."""
        if not self.steps:
            return None
        x, v, curvature = zip(*self.steps, strict=True)
        return torch.cat(x), torch.cat(v), None if any(c is None for c in curvature) else torch.cat(curvature)

    def clear(self) -> None:
        self.steps.clear()


def _single(t: Tensor) -> Tensor:
    """A copy on the CPU, in single precision at least: a training loop may fill the same buffers again."""
    t = t.detach().to("cpu", copy=True)
    return t.float() if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) else t


__all__ = ["Ear", "Recollection"]
