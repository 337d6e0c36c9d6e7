"""New units carried from the nodes that write them to those that read them, alone: everything between acts on units one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from dagrow.errors import GraphError
from dagrow.graph import Architecture
from dagrow.graph.node import Node
from dagrow.measure.features import call, grouped, template, with_units
from dagrow.measure.layout import as_given, space, units_first, width
from dagrow.rng import stream

Shape = tuple[int, ...]


class Path(Protocol):
    """New units between their writers and their readers (sites.Units)."""

    writers: tuple[str, ...]
    path: tuple[str, ...]
    readers: tuple[str, ...]
    axis: str


class Unsupported(Exception):
    """New units cannot be carried along this path; `reason` says why. Never leaves the scorers."""


def propagate(
    frame: Architecture,
    form: Path,
    born: Mapping[str, Tensor],
    *,
    linear: bool = False,
    follows: dict[str, Tensor] | None = None,
    fit: bool = False,
) -> dict[str, Tensor]:
    """New units' values at each reader's input, given their pre-activations `born[writer]`, in the writer's layout.

    Only the new units are computed; everything on the path acts on units one by one. `linear` leaves out activations
    and norms. With `fit`, batch-norm statistics of the newborns are measured here and put into `follows`
    ("node.local" -> values), so that the norm is the identity on them: exact in eval mode and no jump in train mode.
    Raises Unsupported where an op on the path does not act unit by unit.
    """
    values: dict[str, Tensor] = dict(born)
    follows = {} if follows is None else follows
    shapes = carried_shapes(frame, form, width(born[form.writers[0]].shape[1:], frame.nodes[form.writers[0]]))
    for name in form.path:
        node = frame.nodes[name]
        inputs = [values[i] for i in node.inputs if i in values]
        role = node.rule.role
        if role == "norm":
            _needs_slot(frame, form, name)
            values[name] = inputs[0]
            if fit:
                _fit_norm(name, node, inputs[0], follows)
        elif role == "activation" and linear:
            values[name] = inputs[0]
        elif role == "affine":
            _needs_slot(frame, form, name)
            if width(frame.shapes[name], node) != width(frame.shapes[node.inputs[0]], node):
                raise Unsupported(f"{name} makes several channels of each")
            values[name] = _follow(name, node, inputs[0], follows)
        elif role == "sum":
            total = inputs[0]
            for other in inputs[1:]:
                total = total + other
            values[name] = total
        else:
            values[name] = _alone(name, node, inputs, shapes.get(name))
        if name in shapes and tuple(values[name].shape[1:]) != shapes[name]:
            raise Unsupported(f"{name} ({node.op}) does not act on units one by one")
    return {r: values[frame.nodes[r].inputs[0]] for r in form.readers}


def carried_shapes(frame: Architecture, form: Path, units: int) -> dict[str, Shape]:
    """What the nodes of the path make of so many units alone, without the batch; none where the axis is not of the architecture."""
    if not form.axis:
        return {}
    derived, size = frame.derived, frame.axes[form.axis].size
    known = frame.memo.setdefault("carried", {})
    if form.axis not in known:
        number = derived.number(form.axis)
        known[form.axis] = {n: _counts(derived, n, number) for n in form.path}
    return {
        n: tuple(units * c // size if c else s for c, s in zip(counts, frame.shapes[n], strict=True)) for n, counts in known[form.axis].items()
    }  # fmt: skip


def _counts(derived, name: str, number: int) -> tuple[int, ...]:
    """For each dimension of a node's output how many of its indices belong to units of the axis."""
    tables = (derived.outputs.get((name, d + 1)) for d in range(len(derived.shapes[name])))
    return tuple(0 if t is None else sum(count for key, count in t.groups if number in key) for t in tables)


def _needs_slot(frame: Architecture, form: Path, name: str) -> None:
    """Parameters on the path must belong to the units, one each: else they are trained values that new units would meet."""
    if form.axis and not any(s.param == f"{name}.weight" and s.axis == 0 for s in frame.axes[form.axis].slots):
        raise Unsupported(f"{name} mixes what is at one unit")


def _alone(name: str, node: Node, inputs: list[Tensor], shape: Shape | None) -> Tensor:
    """The op on the new units only, with the sizes it holds changed to theirs."""
    given = [tuple(i.shape[1:]) for i in inputs]
    try:
        attrs = node.attrs if shape is None else node.rule.resize(node.attrs, {}, shape, *given)
        module = template(Node(node.op, node.inputs, attrs), *given)
        if isinstance(module, nn.Module) and any(True for _ in (*module.parameters(), *module.buffers())):
            raise Unsupported(f"{name} ({node.op}) has parameters of its own for each unit, or mixes them")
        return module(*inputs)
    except (GraphError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise Unsupported(f"{name} ({node.op}) does not act on units one by one") from error


def _fit_norm(name: str, node: Node, z: Tensor, follows: dict[str, Tensor]) -> None:
    over = [0, *range(2, z.dim())]
    mean, var = z.mean(over), z.var(over, unbiased=False)
    follows[f"{name}.running_mean"], follows[f"{name}.running_var"] = mean, var
    follows[f"{name}.weight"], follows[f"{name}.bias"] = (var + node.attrs.eps).sqrt(), mean


def _follow(name: str, node: Node, x: Tensor, follows: dict[str, Tensor]) -> Tensor:
    """A depthwise convolution passes a newborn on unchanged: its kernel is 1 in the middle."""
    if not grouped(node):
        raise Unsupported(f"{name} mixes what is at one unit")
    shape = tuple(x.shape[1:])
    try:
        module = with_units(node, shape, shape[0], fan_in=1)
    except (GraphError, RuntimeError, ValueError) as error:
        raise Unsupported(f"{node.op} with groups of several channels") from error
    weight = torch.zeros(module.weight.shape, dtype=x.dtype, device=x.device)
    weight[(slice(None), 0, *(k // 2 for k in module.kernel_size))] = 1
    follows[f"{name}.weight"] = weight
    if module.bias is not None:
        follows[f"{name}.bias"] = torch.zeros(shape[0], dtype=x.dtype, device=x.device)
    return call(module, x, weight, None)


def check(frame: Architecture, form: Path) -> None:
    """Raises Unsupported where new units cannot be pointed by derivatives: read or written in groups, or not carried alone."""
    if any(grouped(frame.nodes[r]) for r in form.readers):
        raise Unsupported("it is read in groups")
    if any(grouped(frame.nodes[w]) for w in form.writers):
        raise Unsupported("a writer reads its input in groups")
    if len({math.prod(space(frame.shapes[w], frame.nodes[w])) for w in form.writers}) > 1:
        raise Unsupported("its writers work at different positions")
    if any(frame.nodes[n].rule.role in ("norm", "affine", "other") for n in form.path):
        propagate(frame, form, _drawn(frame, form)[0], linear=True)
        unit_order(frame, form, 2)


# Rows and values of each unit that show who depends on whom.
_SHOWN = 16


def unit_order(frame: Architecture, form: Path, units: int) -> dict[str, Tensor]:
    """For each reader the channels that carry `units` new units, unit by unit; readers that are given them so are left out.

    A unit that a concat puts in twice has channels in two places; pooled before one of them, not as many in both; behind
    a flatten of tokens the units of one token lie side by side. Raises Unsupported where what one unit does depends on others.
    """
    if all(frame.nodes[n].rule.role != "other" for n in form.path):
        return {}
    known = frame.memo.setdefault("unit order", {})
    key = form.writers, form.path, form.readers
    if key not in known:
        known[key] = _owners(frame, form)
    order = {}
    for r, owner in known[key].items():
        places, start = [[] for _ in range(units)], 0
        while start < len(owner):
            size = next((k for k in range(start, len(owner)) if owner[k]), len(owner)) - start
            first = start // 2 * units
            for unit in range(units):
                places[unit] += range(first + unit * size, first + (unit + 1) * size)
            start += 2 * size
        found = [c for channels in places for c in channels]
        if found != list(range(len(found))):
            order[r] = torch.tensor(found)
    return order


def _owners(frame: Architecture, form: Path) -> dict[str, list[int]]:
    """For each reader which of two units each channel carries: the one that it changes with."""
    versions = [propagate(frame, form, born, linear=True) for born in _drawn(frame, form)]
    found = {}
    for r in form.readers:
        node = frame.nodes[r]
        base, *others = (units_first(v[r], node) for v in versions)
        one, two = ((base != o).flatten(2).any(2).any(0) if base.dim() > 2 else (base != o).any(0) for o in others)
        if bool((one & two).any()) or not bool((one | two).all()):
            raise Unsupported(f"what one unit gives {r} depends on others")
        found[r] = two.long().tolist()
    return found


def _drawn(frame: Architecture, form: Path) -> list[dict[str, Tensor]]:
    """Two new units at random, the same with the first of them drawn again, and with the second."""
    generator, drawn = stream(0, "carrying"), {}
    for w in form.writers:
        positions = space(frame.shapes[w], frame.nodes[w])
        drawn[w] = torch.randn(2, 2, _SHOWN, *positions, dtype=torch.float64, generator=generator)  # [version, unit, rows, ...]
    return [
        {w: as_given(torch.stack([x[first, 0], x[second, 1]], 1), frame.nodes[w]) for w, x in drawn.items()} for first, second in ((0, 0), (1, 0), (0, 1))
    ]
