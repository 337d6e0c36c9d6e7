"""What has to hold of any network that was imported: asked axis by axis, counted for the table. Not a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import axis_oracles as oracles
import torch
from torch import Tensor, nn

from dagrow.graph import Architecture, Refusal, Rewrite, resize, transfer


@dataclass
class Tally:
    """axes: how many were tried. kept: where zeros alone keep the function of the wider network. refused: "axis change: why"."""

    axes: int = 0
    units: int = 0
    widened: int = 0
    kept: int = 0
    pruned: int = 0
    refused: list[str] = field(default_factory=list)


def amounts(size: int) -> list[int]:
    """One unit, and a quarter of the axis."""
    return sorted({1, max(1, size // 4)})


def resized(arch: Architecture, tally: Tally) -> None:
    """Every axis permuted, wider and narrower by one and by a quarter; AssertionError where any of it is wrong."""
    weights, x = oracles.weights_for(arch, 0), oracles.rows(arch, count=4)
    before = oracles.output(arch, weights, x)
    for name, axis in arch.axes.items():
        tally.axes += 1
        tally.units += axis.size
        if axis.size > 1:
            oracles.permuting_keeps_the_function(arch, name)
        done = {"wider": True, "narrower": axis.size > 1}
        for kind, index in _indices(axis.size):
            rewrite = resize(arch, {name: index})
            if isinstance(rewrite, Refusal):
                done[kind] = False
                tally.refused.append(f"{name} {axis.size} -> {len(index)}: {rewrite.reason}")
                continue
            _goes_back(arch, weights, name, index, rewrite)
            oracles.shapes_and_macs_are_real(rewrite.arch)
            if rewrite.zero is not None:
                made = oracles.zeroed(rewrite, transfer(rewrite, weights, oracles.weights_for(rewrite.arch, 1)))
                assert oracles.distance(oracles.output(rewrite.arch, made, x), before) <= oracles.TOLERANCE, (name, index)
        tally.widened += done["wider"]
        tally.pruned += done["narrower"]
        wide = resize(arch, {name: (*range(axis.size), -1)})
        tally.kept += isinstance(wide, Rewrite) and wide.zero is not None


def _indices(size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for count in amounts(size):
        yield "wider", (*range(size // 2), *(-1,) * count, *range(size // 2, size))
        if count < size:
            yield "narrower", tuple(k for k in range(size) if not size // 3 <= k < size // 3 + count)


def _goes_back(arch: Architecture, weights: dict[str, Tensor], name: str, index: tuple[int, ...], rewrite: Rewrite) -> None:
    """The inverse gives the same network, bit for bit; what was pruned comes from the old tensors."""
    back = resize(rewrite.arch, {name: [index.index(k) if k in index else -1 for k in range(arch.axes[name].size)]})
    assert not isinstance(back, Refusal), (name, index, back)
    oracles.same(arch, weights, back.arch, transfer(back, transfer(rewrite, weights, 7.0), weights))


def still(network: nn.Module, x: Tensor, y: Tensor, loss_fn) -> set[str]:
    """The parameters that training cannot move: their gradient in train mode, in double precision, is rounding.

    There are such: a bias on the keys of attention, one that a layer norm takes out again.
    """
    network = network.double().train()
    torch.manual_seed(0)
    loss_fn(network(x.double()), y.double() if y.is_floating_point() else y).backward()
    gradients = {n: float(p.grad.abs().max()) for n, p in network.named_parameters()}
    return {n for n, g in gradients.items() if g <= 1e-12 * max(gradients.values())}
