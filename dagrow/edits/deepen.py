"""deepen: a hidden node between two tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import pydantic
from torch import Tensor

from dagrow import ops
from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.branch import Branch, Frame, hidden
from dagrow.edits.widen import Count, numbers, units_of
from dagrow.edits.wiring import Joins, add_to, fresh_name, joins
from dagrow.graph import Architecture, Cost, Refusal, Rewrite
from dagrow.measure.grid import Grid, Several
from dagrow.measure.layout import last, width
from dagrow.measure.sites import Site, Units
from dagrow.scores import Proposal

Kind = Literal["dense", "depthwise"]


def listed(value) -> tuple:
    """One, or those of a list."""
    return value if isinstance(value, tuple) else (value,)


@REGISTRY.register("deepen")
class Deepen(Edit):
    """Adds a hidden layer beside what is there: from any tensor, through new units, into any later pre-activation.

    `op`: dense is a linear map or a convolution; depthwise, for maps, looks at one unit at a time between two maps of kernel 1.
    """

    preserves = True
    undone_by = ("remove",)
    examples = ({"act": ("tanh", "gelu"), "kernel": (1, 3)}, {"op": ("depthwise",), "act": "tanh"})

    class Options(EditOptions):
        """`where` is matched against the target's name."""

        units: tuple[Count, ...] | Count = pydantic.Field(4, description="units of the new layer; a list offers each")
        act: tuple[str, ...] | str = pydantic.Field("relu", description="activation of the new units; a list offers each")
        kernel: tuple[Count, ...] | Count = pydantic.Field(3, description="kernel of a new convolution (odd); a list offers each")
        op: tuple[Kind, ...] | Kind = pydantic.Field("dense", description="what the new layer is: dense or depthwise; a list offers each")

        @pydantic.field_validator("act")
        @classmethod
        def _activation(cls, value):
            for name in listed(value):
                if name not in ops.REGISTRY or ops.REGISTRY.get(name).role != "activation":
                    raise ValueError(f"{name!r} is not an activation")
            return value

        @pydantic.field_validator("kernel")
        @classmethod
        def _odd(cls, value):
            if any(kernel % 2 == 0 for kernel in listed(value)):
                raise ValueError("the kernel of a new convolution must be odd")
            return value

        @pydantic.field_validator("act", "kernel", "op")
        @classmethod
        def _some(cls, value):
            if value == ():
                raise ValueError("an empty list offers nothing")
            return value

    @staticmethod
    def match(arch: Architecture, options) -> Grid | Several:
        # A second hidden layer between the same tensors would be the first one, wider: offered once, by widen.
        known = set()
        for axis in arch.axes.values():
            form = units_of(arch, axis)
            if form is not None and len(form.writers) == 1:
                known |= {(form.sources[0], p) for t in form.targets for p in arch.meeting[t]}
        found, units = joins(arch).but(known, options.covers), tuple(sorted(set(numbers(options.units))))
        kinds, acts, kernels = (tuple(dict.fromkeys(listed(v))) for v in (options.op, options.act, options.kernel))
        grids = [
            _grid(arch, found, units, Layer(kind, act, kernel), _said(options, kind, act, kernel), kernel == kernels[0])
            for kind, act, kernel in product(kinds, acts, kernels)
        ]
        return grids[0] if len(grids) == 1 else Several(*grids)

    @staticmethod
    def price(arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        return _branch(arch, site.detail, proposal.units).added_to(arch)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        name = fresh_name(arch, "h")
        nodes = _branch(arch, site.detail, proposal.units).named(name, site.detail[0])
        return Rewrite(add_to(arch, site.detail[1], nodes, f"{name}.out"), (), ((f"{name}.out.weight", 1),))

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        return None if proposal.shift else ("remove", f"{fresh_name(arch, 'h')}.out", Proposal())


class Layer(NamedTuple):
    """What a new hidden layer is made of."""

    kind: str
    act: str
    kernel: int


def _said(options, kind: str, act: str, kernel: int) -> str:
    """Which of those that lists offer, behind the names of the tensors."""
    chosen = ((options.op, kind), (options.act, act), (options.kernel, f"kernel {kernel}"))
    said = ", ".join(value for given, value in chosen if isinstance(given, tuple))
    return f" ({said})" if said else ""


def _grid(arch: Architecture, found: Joins, units: tuple[int, ...], layer: Layer, said: str, first: bool) -> Grid:
    name, strides = fresh_name(arch, "h"), found.strides
    # Only convolutions have a kernel, and look at one unit at a time.
    if layer.kind == "depthwise" or not first:
        mapped = [arch.nodes[t].rule.channels == 1 and len(arch.shapes[t]) > 1 for t in found.targets]
        strides = strides * np.array(mapped, np.int64).reshape(-1, 1)

    def make(source: str, target: str, stride: int) -> Site:
        detail = (source, target, stride, layer)
        # A depthwise convolution of one unit is an ordinary one.
        branch = _branch(arch, detail, 2 if layer.kind == "depthwise" else 1)
        path = tuple(f"{name}.{n}" for n in branch.nodes[1:-1])
        form = Units(Frame(arch, branch, name, source), (f"{name}.in",), (source,), path, (f"{name}.out",), (target,))
        return Site("deepen", f"{source} -> {target}{said}", form, units, detail)

    return Grid("deepen", Units, arch, found.sources, found.targets, strides, make, said)


def _branch(arch: Architecture, detail: tuple, units: int) -> Branch:
    source, target, stride, layer = detail
    node, shape = arch.nodes[target], arch.shapes[target]
    tokens = last(node, shape)
    return hidden(arch.shapes[source], width(shape, node), stride, units, layer.act, layer.kernel, tokens, layer.kind == "depthwise")
