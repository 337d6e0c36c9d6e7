"""What scorers of new units share: the sources' design matrix, the readers' view of new units, the refitted fan-out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dagrow.measure import Pass, Units, propagate
from dagrow.measure.carrying import Unsupported, check, unit_order
from dagrow.measure.features import call, design, template, with_units
from dagrow.measure.layout import dim, shaped, space, width
from dagrow.measure.parents import LARGE, parents
from dagrow.scores import Block, Proposal
from dagrow.scores.aims import power, refit
from dagrow.scores.balance import balanced

# A design matrix may have this many values: 160 MB in fp64.
MOST_VALUES = 2e7
# A variance of this share of a mean square is that of a constant.
CONSTANT = 1e-10
# Values of new units that are carried to their readers at a time.
AT_ONCE = 2e6


@dataclass
class Sources:
    """The stacked sources of new units, seen at the writers' places: `x` [rows, places, fan-in (+ 1)], columns of writer w at `spans[w]`."""

    seen: Pass
    x: Tensor
    spans: dict[str, slice]
    constant: bool
    memo: dict = field(default_factory=dict, repr=False)

    @property
    def gram(self) -> Tensor:
        """E[h h^T] over rows and places: [fan-in (+ 1), fan-in (+ 1)]."""
        if "gram" not in self.memo:
            x = self.x.flatten(0, 1)
            self.memo["gram"] = (x.T @ x).double() / len(x)
        return self.memo["gram"]

    def born(self, form: Units, alpha: Tensor) -> dict[str, Tensor]:
        """Pre-activations of units with fan-in rows `alpha` [units, fan-in (+ 1)]: writer -> [rows, units, *positions]."""
        found = {}
        for w, source in zip(form.writers, form.sources, strict=True):
            x, node = self.seen.values[source], form.frame.nodes[w]
            weight = alpha[:, self.spans[w]].to(x.dtype)
            module = with_units(node, x.shape[1:], len(alpha))
            bias = alpha[:, -1].to(x.dtype) if self.constant and w == form.writers[0] else None
            found[w] = call(module, x, weight.reshape(len(alpha), *form.frame.params[f"{w}.weight"][1:]), bias)
        return found

    def blocks(self, form: Units, alpha: Tensor, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> list[Block]:
        """Fan-in rows as newborn entries of the writers' weights and biases."""
        made = []
        for w in form.writers:
            weight = shapes[f"{w}.weight"]
            made.append(Block(f"{w}.weight", 0, alpha[:, self.spans[w]].reshape(len(alpha), *weight[1:]).to(dtype)))
            if f"{w}.bias" in shapes:
                bias = alpha[:, -1] if self.constant and w == form.writers[0] else torch.zeros(len(alpha))
                made.append(Block(f"{w}.bias", 0, bias.to(dtype)))
        return made


def sources_of(seen: Pass, form: Units) -> Sources:
    """Raises Unsupported for grouped writers and readers, and for writers that work at different positions."""
    # New layers of other kernels, and over other strides, have writers of the same names.
    key, last = (form.writers, form.sources, [form.frame.nodes[w].attrs for w in form.writers]), seen.memo.get("sources")
    if last is None or last[0] != key:  # kept for the next number of units only: they are large
        last = seen.memo["sources"] = key, _sources_of(seen, form)
    return last[1]


def _sources_of(seen: Pass, form: Units) -> Sources:
    check(form.frame, form)
    fan_in = sum(math.prod(form.frame.params[f"{w}.weight"][1:]) for w in form.writers)
    places = seen.spread(space(form.frame.shapes[form.writers[0]], form.frame.nodes[form.writers[0]]), fan_in + 1)
    parts, spans, start = [], {}, 0
    for w, source in zip(form.writers, form.sources, strict=True):
        part = design(form.frame.nodes[w], seen.values[source], places)
        part = part.double() if part.numel() <= LARGE else part
        spans[w] = slice(start, start + part.shape[2])
        start += part.shape[2]
        parts.append(part)
    first = form.frame.nodes[form.writers[0]]
    constant = bool(getattr(first.attrs, "bias", False))
    if constant:
        parts.append(torch.ones(*parts[0].shape[:2], 1, dtype=parts[0].dtype))
    moments = shared_gram(seen, form)
    known = {} if moments is None else {"gram": moments if constant else moments[:-1, :-1]}
    return Sources(seen, torch.cat(parts, 2), spans, constant, known)


def shared_gram(seen: Pass, form: Units) -> Tensor | None:
    """E[h h^T] of the sources of new units, and a constant, where a span has them: what feeds them feeds trained units as well.

    Of the same span whichever site comes first: a span that no site has asked for yet is made.
    """
    nodes = seen.arch.nodes
    if any(w not in nodes or nodes[w].attrs != form.frame.nodes[w].attrs for w in form.writers):
        return None
    if parents(seen.arch, form.writers[0]) != form.writers or form.sources != tuple(nodes[w].inputs[0] for w in form.writers):
        return None
    if ("moments", form.writers) not in seen.memo:
        try:
            seen.span(form.writers[0])
        except torch.linalg.LinAlgError:  # NaN in the network's own values
            return None
    return seen.memo.get(("moments", form.writers))


def head(seen: Pass, form: Units, values: float = MOST_VALUES) -> Pass:
    """The first rows of the pass, as many as keep the design matrix of `form` below `values` values."""
    fan_in = sum(math.prod(form.frame.params[f"{w}.weight"][1:]) for w in form.writers) + 1
    positions = math.prod(space(form.frame.shapes[form.writers[0]], form.frame.nodes[form.writers[0]]))
    rows = max(16, int(values // (positions * fan_in)))
    return seen.head(rows)


def reader_view(
    form: Units, born: dict[str, Tensor], follows: dict[str, Tensor] | None = None, *, fit: bool = False, seen: Pass | None = None
) -> dict[str, Tensor]:
    """What each reader sees of the new units: reader -> design matrix [rows, positions, units * channels of one * kernel].

    With `seen`, at the places of the reader's target that its solves look at.
    """
    first = born[form.writers[0]]
    order = unit_order(form.frame, form, width(first.shape[1:], form.frame.nodes[form.writers[0]]))
    places = {r: seen.places(t) if seen is not None else None for r, t in zip(form.readers, form.targets, strict=True)}
    each = len(first) if fit or not len(first) else max(1, int(AT_ONCE // max(first[0].numel(), 1)))  # statistics are of all rows
    parts = []
    for rows in (slice(k, k + each) for k in range(0, max(len(first), 1), max(each, 1))):
        arrived = propagate(form.frame, form, {w: b[rows] for w, b in born.items()}, follows=follows, fit=fit)
        at = {r: None if p is None else p[rows] for r, p in places.items()}
        parts.append({r: design(form.frame.nodes[r], ordered(x, form, r, order), at[r]) for r, x in arrived.items()})
    return parts[0] if len(parts) == 1 else {r: torch.cat([part[r] for part in parts]) for r in parts[0]}


def ordered(x: Tensor, form: Units, reader: str, order: dict[str, Tensor]) -> Tensor:
    """What `reader` is given of new units, unit by unit; `order`: unit_order."""
    return x.index_select(dim(form.frame.nodes[reader]), order[reader]) if reader in order else x


# The sources of a map carried along the path, so many values at a time: 32 MB in fp32; and so many rows times positions in all.
CARRIED = 8e6
MOMENT_CELLS = 2**15


def linear_moments(form: Units, sources: Sources, seen: Pass) -> dict[str, Tensor]:
    """N = E[h v-perp] per reader: [fan-in (+ 1), target units, kernel], summed over positions.

    The sources stand in for the new units themselves, carried along the path without its activations, and the
    reader's own weight gradient gives the moments: one product for any kernel, stride, pooling or flatten between.
    """
    size = sources.x.shape[2]
    order = unit_order(form.frame, form, size)
    eye = torch.eye(size, dtype=torch.float64)
    each = max(1, int(CARRIED // (size * max(math.prod(space(form.frame.shapes[w], form.frame.nodes[w])) for w in form.writers))))
    widest = max(math.prod(space(form.frame.shapes[n], form.frame.nodes[n])) for n in (*form.writers, *form.readers))
    most, total = min(seen.rows, max(16, MOMENT_CELLS // widest)), {}
    for start in range(0, most, each):
        rows = slice(start, min(start + each, most))
        part = replace(sources, seen=_Rows({s: seen.values[s][rows] for s in form.sources}))
        arrived = propagate(form.frame, form, part.born(form, eye), linear=True)
        for r, target in zip(form.readers, form.targets, strict=True):
            x, node = ordered(arrived[r], form, r, order), form.frame.nodes[r]
            module, v = template(node, x.shape[1:]), shaped(seen.bottleneck(target)[rows], node, space(form.frame.shapes[r], node))
            weight = torch.zeros(module.weight.shape, dtype=x.dtype, requires_grad=True)
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(call(module, x, weight, None), weight, v)
            total[r] = total[r] + grad.double() if r in total else grad.double()
    return {r: g.flatten(1).unflatten(1, (size, -1)).permute(1, 0, 2) / most for r, g in total.items()}


@dataclass
class _Rows:
    """Some rows of the sources: all that `Sources.born` asks of a pass."""

    values: dict[str, Tensor]


def column_blocks(form: Units, units: int, omega: dict[str, Tensor], dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> list[Block]:
    """Fan-out (as `reader_view` lays out its columns) as newborn columns of the readers' weights."""
    made, order = [], unit_order(form.frame, form, units)
    for r in form.readers:
        weight = shapes[f"{r}.weight"]
        columns = omega[r].reshape(weight[0], -1, *weight[2:])
        if r in order:
            columns = columns[:, order[r].argsort()]
        made.append(Block(f"{r}.weight", 1, columns.to(dtype)))
    return made


def proposal_of(form: Units, sources: Sources, seen: Pass, alpha: Tensor) -> Proposal:
    """A full proposal from fan-ins: scaled to unit pre-activations, statistics measured, fan-out refitted.

    The targets' parents give way to the new units (`shift`): what they can make of a unit is theirs already.
    """
    alpha = alpha / scale_of(sources, alpha)
    follows: dict[str, Tensor] = {}
    view = reader_view(form, sources.born(form, alpha), follows, fit=True, seen=seen)
    shapes = {**form.frame.params, **form.frame.buffers}
    omega, shift = refit(form, seen, view)
    blocks = sources.blocks(form, alpha, torch.float64, shapes) + column_blocks(form, len(alpha), omega, torch.float64, shapes)
    blocks += [Block(param, 0, values.double()) for param, values in follows.items() if param in shapes]
    finite = all(bool(torch.isfinite(t).all()) for t in (*(b.values for b in blocks), *shift.values()))
    return balanced(form, seen, Proposal("ok" if finite else "nonfinite", units=len(alpha), blocks=tuple(blocks), shift=shift))


def scale_of(sources: Sources, alpha: Tensor) -> Tensor:
    """Standard deviation of each unit's pre-activation, summed over its writers: [units, 1]; its size where it is a constant."""
    alpha, mean = alpha.detach(), sources.x.mean((0, 1), dtype=torch.float64)
    size, variance = (((alpha @ moment) * alpha).sum(1) for moment in (sources.gram, sources.gram - torch.outer(mean, mean)))
    # Differences of this share are rounding: divided by it, weights would be of 1e15.
    variance = torch.where(variance > CONSTANT * size, variance, size).clamp(min=0)
    return torch.where(variance > 0, variance, 1.0).sqrt().clamp(min=1e-12).unsqueeze(1)


__all__ = [
    "Sources", "Unsupported", "column_blocks", "head", "linear_moments", "ordered", "power", "proposal_of", "reader_view", "scale_of", "sources_of",
]
