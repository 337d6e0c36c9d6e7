"""A change of pre-activations carried on through the rest of the network: what it does to the loss, by real forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from dagrow.measure.passes import Pass

def onward(seen: Pass, changes: Mapping[str, Tensor], amplitude: float) -> Tensor:
    """The network's output, in eval mode, with `amplitude` times `changes` added: target -> [rows, positions, units], of the first rows.

    What does not lie below a target is as it was seen.
    """
    seen = seen.head(len(next(iter(changes.values()))))
    values: dict[str, Tensor] = {}
    modules = seen.modules
    for name in seen.arch.order:
        node = seen.arch.nodes[name]
        if any(i in values for i in node.inputs):
            made = modules[name](*(values[i] if i in values else seen.values[i] for i in node.inputs))
        elif name in changes:
            made = seen.values[name]
        else:
            continue
        if name in changes:
            made = made + amplitude * changes[name].transpose(1, 2).reshape(made.shape).to(made.dtype)
        values[name] = made
    return values[seen.arch.outputs[0]]


def drops(seen: Pass, changes: Mapping[str, Tensor], amplitude: float) -> tuple[float, Tensor]:
    """(nats per sample that the change lowers the loss by, the same row by row with the residual variance held fixed)."""
    rows, loss = len(next(iter(changes.values()))), seen.loss
    y = seen.y[:rows]
    key = "before", rows, tuple(changes)
    if key not in seen.memo:  # by the same ops: the rows may have been seen in train mode, or at other weights
        seen.memo[key] = onward(seen, changes, 0.0)
    old, new = seen.memo[key], onward(seen, changes, amplitude)
    variance = loss.variance(old, y)
    each = [loss.each(out, y, beta=seen.beta, variance=variance).double() for out in (old, new)]
    return float(loss.nats(old, y, beta=seen.beta)) - float(loss.nats(new, y, beta=seen.beta)), each[0] - each[1]
