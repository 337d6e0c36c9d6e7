"""What stands before a linear map where a tensor and a target differ in kind: pooling, or the mean over places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dagrow.edits.wiring import add_to, affine, fresh_name, joins
from dagrow.graph import Architecture, Node
from dagrow.measure import Pass
from dagrow.measure.layout import last, width
from dagrow.measure.sites import Site, Swap

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bridge:
    """From `source` through `before`, and a linear map of kernel 1, into `target`."""

    source: str
    target: str
    before: Node
    tokens: bool


def bridges(arch: Architecture, covers) -> Iterator[Bridge]:
    """All that no stride alone can bring together and pooling can; a branch may not close a cycle."""
    found = joins(arch)
    for t, target in enumerate(found.targets):
        if not covers(target):
            continue
        for s, source in enumerate(found.sources):
            if source == target or arch.below[target] >> arch.place[source] & 1 or found.strides[t, s]:
                continue
            before = _between(arch, source, target)
            if before is not None:
                yield Bridge(source, target, before, last(arch.nodes[target], arch.shapes[target]))


def _between(arch: Architecture, source: str, target: str) -> Node | None:
    have, want = arch.shapes[source], arch.shapes[target]
    tokens = any(last(arch.nodes[r], have) for r in arch.consumers[source] if arch.nodes[r].rule.role == "affine")
    if len(have) > 1 and len(want) == 1:
        return Node.of("mean", source, dims=tuple(range(1, len(have)))) if tokens else Node.of("global_avg_pool", source)
    if len(have) != len(want) or len(have) == 1 or tokens or last(arch.nodes[target], want):
        return None
    kernels = {s // t for s, t in zip(have[1:], want[1:], strict=True)}
    (kernel,) = kernels if len(kernels) == 1 else (0,)
    return Node.of("avg_pool", source, kernel=kernel) if kernel > 1 and all(s // kernel == t for s, t in zip(have[1:], want[1:], strict=True)) else None


def bridged(arch: Architecture, bridge: Bridge) -> tuple[Architecture, tuple[str, ...]]:
    """(the network with the connection, its new nodes: what adapts, the linear map, and the sum where there was none)."""
    name, want = fresh_name(arch, "link"), arch.shapes[bridge.target]
    units = width(want, arch.nodes[bridge.target])
    nodes = {f"{name}.fit": bridge.before, f"{name}.map": affine(want, f"{name}.fit", units, bias=False, tokens=bridge.tokens)}
    made = add_to(arch, bridge.target, nodes, f"{name}.map")
    return made, tuple(n for n in made.nodes if n not in arch.nodes)


def site_of(arch: Architecture, edit: str, bridge: Bridge) -> Site:
    frame, new = bridged(arch, bridge)
    form = Swap(frame, new, start=partial(_nothing, frame, new[1]))
    return Site(edit, f"{bridge.source} -> {bridge.target}", form, (1,), (bridge,))


def _nothing(frame: Architecture, name: str, seen: Pass) -> Mapping[str, Tensor]:
    return {f"{name}.weight": torch.zeros(frame.params[f"{name}.weight"], dtype=torch.float64)}
