"""A session: a network's parameters and an optimizer's state, flat while training, by name before and after.

While it is open the parameters and their gradients are views of two flat buffers. State goes in and comes out as
{slot: {parameter: tensor of its shape}}, a value that graph edits move like weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dagrow.errors import UsageError
from dagrow.train.flat import Flat
from dagrow.train.optimizers import Optimizer

Moments = dict[str, dict[str, Tensor]]

# Every parameter starts at a multiple of this many elements. The kernels then see the alignment a tensor of its own
# would have, and no element falls into the scalar tail of a vector loop, whose rounding differs: bits do not depend on
# what else is in the buffer.
ALIGN = 32


class Session:
    """Opened on the parameters to train; closed, they are ordinary tensors again. Usable in a `with`.

    optimizer: the class; options: its Options, or None for the defaults; params: name -> parameter (those that need no
    gradient are left alone; one parameter under two names is updated once); moments: state by name, None or missing
    entries for newborns. Raises UsageError where a moment's shape is not its parameter's, where step counts are
    negative or not finite, or where the parameters differ in dtype or device.
    """

    def __init__(
        self,
        optimizer: type[Optimizer],
        options,
        params: Mapping[str, nn.Parameter],
        moments: Mapping[str, Mapping[str, Tensor]] | None = None,
    ):
        self.optimizer, self.options = optimizer, optimizer.Options() if options is None else options
        given = moments or {}
        self._rest = {
            slot: {name: value.clone() for name, value in given.get(slot, {}).items() if name in params and not params[name].requires_grad}
            for slot in optimizer.slots
        }
        self._params = {name: p for name, p in params.items() if p.requires_grad}
        if not self._params:
            raise UsageError("the network has no parameter to train")
        kinds = {(p.dtype, p.device) for p in self._params.values()}
        if len(kinds) > 1:
            raise UsageError(f"parameters differ in dtype or device: {', '.join(sorted(f'{d} on {v}' for d, v in kinds))}")
        self._spans, size, decayed = self._layout()
        like = next(iter(self._params.values())).detach()
        with torch.no_grad():
            values, grads = like.new_zeros(size), like.new_zeros(size)
            state = {slot: self._gather(slot, given.get(slot, {}), fill, like.new_zeros(size)) for slot, fill in optimizer.slots.items()}
            self._steps = self._pad(state.pop("step"))
            ages, cohort = torch.unique(self._steps, return_inverse=True)
            for name, p in self._params.items():
                start, stop = self._spans[name]
                values[start:stop].copy_(p.detach().reshape(-1))
                p.data = values[start:stop].view(p.shape)
                p.grad = grads[start:stop].view(p.shape)
        self.flat = Flat(
            values=values,
            grads=grads,
            state=state,
            scratch=like.new_empty(size),
            decayed=decayed,
            ages=tuple(int(age) for age in ages.tolist()),
            cohort=cohort if len(ages) > 1 else None,
        )

    def _layout(self) -> tuple[dict[str, tuple[int, int]], int, int]:
        """Where each parameter lies, the buffers' length, and the length of the part that weight decay applies to."""
        spans: dict[int, tuple[int, int]] = {}
        size = decayed = 0
        for wanted in (True, False):
            for p in self._params.values():
                if (p.ndim >= 2) == wanted and id(p) not in spans:
                    spans[id(p)] = (size, size + p.numel())
                    size += -(-p.numel() // ALIGN) * ALIGN
            decayed = size if wanted else decayed
        return {name: spans[id(p)] for name, p in self._params.items()}, size, decayed

    def _gather(self, slot: str, named: Mapping[str, Tensor], fill: float, buffer: Tensor) -> Tensor:
        for name, p in reversed(self._params.items()):  # of two names for one parameter, the first one's state is kept
            start, stop = self._spans[name]
            value = named.get(name)
            if value is None:
                buffer[start:stop] = fill
            elif value.shape != p.shape:
                raise UsageError(f"{slot} of {name!r} has the shape {list(value.shape)}, the parameter {list(p.shape)}")
            else:
                buffer[start:stop].copy_(value.reshape(-1))
        return buffer

    def _pad(self, step: Tensor) -> Tensor:
        """Step counts with the padding given the age of some element, so that it makes no cohort of its own."""
        if not bool((step.isfinite() & (step >= 0)).all()):
            raise UsageError("the optimizer's state holds step counts that are no counts")
        used = torch.zeros(len(step), dtype=torch.bool, device=step.device)
        for start, stop in self._spans.values():
            used[start:stop] = True
        return torch.where(used, step, step[used][:1].sum())

    def zero_grads(self) -> None:
        self.flat.grads.zero_()

    def clip(self, norm: float) -> None:
        """Scales the gradients down to a Euclidean norm of at most `norm`; nothing is read back from the device."""
        # In double precision the sum hardly depends on the order of the parameters.
        length = torch.linalg.vector_norm(self.flat.grads, dtype=torch.float64)
        self.flat.grads.mul_((norm / (length + 1e-6)).clamp(max=1.0).to(self.flat.grads.dtype))

    def step(self, lr: float) -> None:
        """One update from the gradients at hand. A parameter that the loss does not reach has a gradient of 0."""
        with torch.no_grad():
            self.flat.taken += 1
            self.optimizer.update(self.options, self.flat, lr)

    def finite(self) -> bool:
        """Whether parameters and state hold no NaN and no infinity; waits for the device."""
        return all(bool(vector.isfinite().all()) for vector in (self.flat.values, *self.flat.state.values()))

    def moments(self) -> Moments:
        """The state by name, as tensors of their own."""
        flat = {**self.flat.state, "step": self._steps + self.flat.taken}
        named = {}
        for slot in self.optimizer.slots:
            named[slot] = {
                name: flat[slot][start:stop].clone().view(self._params[name].shape) for name, (start, stop) in self._spans.items()
            } | self._rest[slot]
        return named

    def close(self) -> None:
        """The parameters get storage of their own, and no gradient."""
        for p in {id(p): p for p in self._params.values()}.values():
            p.data = p.data.clone()
            p.grad = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
