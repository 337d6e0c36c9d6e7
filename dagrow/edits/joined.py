"""Taking one tensor out of a concat, and with it what reads its units behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dagrow.edits.wiring import affine, fresh_name, rewired
from dagrow.graph import Architecture, Move, Refusal, Rewrite


def parts(arch: Architecture) -> Iterator[tuple[str, str]]:
    """(concat, one of its inputs): each that is joined once, along the dimension of units."""
    for name in arch.order:
        node = arch.nodes[name]
        if node.op == "concat" and _dim(arch, name) in (1, len(arch.shapes[name])):
            yield from ((name, i) for i in dict.fromkeys(node.inputs) if node.inputs.count(i) == 1)


def without_part(arch: Architecture, concat: str, branch: str) -> Rewrite | Refusal:
    """`arch` with the concat less `branch`, and less whatever only that needed; columns that read its units there are gone."""
    node = arch.nodes.get(concat)
    if node is None or node.inputs.count(branch) != 1:
        return Refusal(f"{branch} is not joined there", (concat,))
    left = tuple(i for i in node.inputs if i != branch)
    made = rewired(arch, concat, left[0]) if len(left) == 1 else rewired(arch, concat, concat, {concat: replace(node, inputs=left)})
    if isinstance(made, Refusal):
        return made
    moves = []
    for param, dim, keep in _kept(arch, concat, branch):
        if param in made.params or param in made.buffers:
            moves.append(Move(param, dim, keep))
    sizes = {(m.param, m.axis): len(m.index) for m in moves}
    known = {**arch.params, **arch.buffers}
    for param, shape in {**made.params, **made.buffers}.items():
        if param not in known or any(sizes.get((param, k), n) != m for k, (n, m) in enumerate(zip(known[param], shape, strict=True))):
            return Refusal(f"{param} would have to change in another way", (concat, branch))
    return Rewrite(made, tuple(moves), None)


def _kept(arch: Architecture, concat: str, branch: str) -> list[tuple[str, int, tuple[int, ...]]]:
    """(parameter, dimension, its indices that do not read the branch behind the concat): units of a map put there are followed."""
    name, shape, node = fresh_name(arch, "t"), arch.shapes[branch], arch.nodes[concat]
    tokens = len(shape) > 1 and _dim(arch, concat) == len(shape)
    between = affine(shape, branch, shape[-1] if tokens else shape[0], bias=False, tokens=tokens)
    traced = arch.replace({name: between, concat: replace(node, inputs=tuple(name if i == branch else i for i in node.inputs))})
    found = []
    for axis in traced.axes.values():
        if any(u.node == name for u in axis.writes):
            for slot in axis.slots:
                if not slot.param.startswith(f"{name}."):
                    units = traced.derived.units(axis.id, slot.param, slot.axis)
                    found.append((slot.param, slot.axis, tuple(k for k, u in enumerate(units) if u < 0)))
    return found


def _dim(arch: Architecture, concat: str) -> int:
    dim, size = arch.nodes[concat].attrs.dim, len(arch.shapes[concat])
    return dim if dim > 0 else size + 1 + dim
