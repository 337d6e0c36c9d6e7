"""A change of pre-activations carried on through the rest of the network: what it does to the loss, by real forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dagrow.graph import Architecture
from dagrow.measure.layout import shaped, space

if TYPE_CHECKING:
    from dagrow.measure.passes import Pass

Changes = Mapping[str, Tensor]


@dataclass
class Ahead(Mapping[str, Tensor]):
    """Rows of a pass as far as the changed network has been run: what a form needs of a pass to say its effect there."""

    arch: Architecture
    weights: Mapping[str, Tensor]
    seen: Mapping[str, Tensor]
    made: dict[str, Tensor]
    rows: int

    @property
    def values(self) -> Ahead:
        return self

    def __getitem__(self, name: str) -> Tensor:
        return self.made[name] if name in self.made else self.seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arch.order)

    def __len__(self) -> int:
        return len(self.arch.order)


def onward(seen: Pass, changes: Changes, amplitude: float, again: Callable[[Ahead], Changes] | None = None) -> Tensor:
    """The network's output, in eval mode, with `amplitude` times `changes` added: target -> [rows, positions, units], of the first rows.

    What does not lie below a target is as it was seen. again: what the changes are once other targets have changed; None: as given.
    """
    seen = seen.head(len(next(iter(changes.values()))))
    values: dict[str, Tensor] = {}
    ahead = Ahead(seen.arch, seen.weights, seen.values, values, seen.rows)
    modules = seen.modules
    for name in seen.arch.order:
        node = seen.arch.nodes[name]
        below = any(i in values for i in node.inputs)
        if below:
            made = modules[name](*(ahead[i] for i in node.inputs))
        elif name in changes:
            made = seen.values[name]
        else:
            continue
        if name in changes:
            change = (again(ahead) if again is not None and values and amplitude else changes)[name]
            made = made + amplitude * shaped(change, node, space(made.shape[1:], node)).to(made.dtype)
        values[name] = made
    return ahead[seen.arch.outputs[0]]


def drops(seen: Pass, changes: Changes, amplitude: float, again: Callable[[Ahead], Changes] | None = None) -> tuple[float, Tensor]:
    """(nats per sample that the change lowers the loss by, the same row by row with the residual variance held fixed)."""
    rows, loss = len(next(iter(changes.values()))), seen.loss
    y = seen.y[:rows]
    key = "before", rows, tuple(changes)
    if key not in seen.memo:  # by the same ops: the rows may have been seen in train mode, or at other weights
        seen.memo[key] = onward(seen, changes, 0.0)
    old, new = seen.memo[key], onward(seen, changes, amplitude, again)
    variance = loss.variance(old, y)
    each = [loss.each(out, y, beta=seen.beta, variance=variance).double() for out in (old, new)]
    return float(loss.nats(old, y, beta=seen.beta)) - float(loss.nats(new, y, beta=seen.beta)), each[0] - each[1]
