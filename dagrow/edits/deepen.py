"""deepen: a hidden node between two tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic

from dagrow import ops
from dagrow.edits import REGISTRY, Edit, EditOptions
from dagrow.edits.widen import Count, numbers, units_of
from dagrow.edits.wiring import add_to, affine, fresh_name, joins, parents
from dagrow.graph import Architecture, Node, Refusal, Rewrite
from dagrow.measure.sites import Site, Units
from dagrow.scores import Proposal


@REGISTRY.register("deepen")
class Deepen(Edit):
    """Adds a hidden layer beside what is there: from any tensor, through new units, into any later pre-activation."""

    class Options(EditOptions):
        units: tuple[Count, ...] | Count = pydantic.Field(4, description="units of the new layer; a list offers each")
        act: str = pydantic.Field("relu", description="activation of the new units")
        kernel: Count = pydantic.Field(3, description="kernel of a new convolution (odd)")

        @pydantic.field_validator("act")
        @classmethod
        def _activation(cls, value):
            if value not in ops.REGISTRY or ops.REGISTRY.get(value).role != "activation":
                raise ValueError(f"{value!r} is not an activation")
            return value

        @pydantic.field_validator("kernel")
        @classmethod
        def _odd(cls, value):
            if value % 2 == 0:
                raise ValueError("the kernel of a new convolution must be odd")
            return value

    @staticmethod
    def match(arch: Architecture, options) -> Iterator[Site]:
        # A second hidden layer between the same tensors would be the first one, wider: offered once, by widen.
        known = set()
        for axis in arch.axes.values():
            form = units_of(arch, axis)
            if form is not None and len(form.writers) == 1:
                known |= {(form.sources[0], p) for t in form.targets for p in parents(arch, t)}
        for source, target, stride in joins(arch):
            if options.covers(target) and (source, target) not in known:
                detail = (source, target, stride, options.act, options.kernel)
                frame, name = _built(arch, detail, 1)
                form = Units(frame, (f"{name}.in",), (source,), (f"{name}.act",), (f"{name}.out",), (target,))
                yield Site("deepen", f"{source} -> {target}", form, tuple(sorted(set(numbers(options.units)))), detail)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        made, name = _built(arch, site.detail, proposal.units)
        return Rewrite(made, (), ((f"{name}.out.weight", 1),))


def _built(arch: Architecture, detail: tuple, units: int) -> tuple[Architecture, str]:
    source, target, stride, act, kernel = detail
    name = fresh_name(arch, "h")
    shape = arch.shapes[source]
    branch = {
        f"{name}.in": affine(shape, source, units, kernel=kernel, stride=stride),
        f"{name}.act": Node.of(act, f"{name}.in"),
        f"{name}.out": affine(shape, f"{name}.act", arch.shapes[target][0], bias=False),
    }
    return add_to(arch, target, branch, f"{name}.out"), name
