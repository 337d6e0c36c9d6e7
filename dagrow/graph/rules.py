"""What each aten op does to labels: pointwise, equations, and a few functions of their own (moves have their own file).

A rule takes (trace, shapes of the outputs, op, the op's own arguments with `Labelled` for tensors) and returns the
labels of each output. An op without a rule freezes what it touches (`Trace`), so a missing rule is never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch

from dagrow.graph.labels import Label
from dagrow.graph.trace import Labelled, Trace

RULES: dict[str, Callable] = {}
# Elementwise by nature though not tagged so, and copies.
POINTWISE = {
    "hardswish", "_prelu_kernel", "alias", "detach", "_to_copy", "lift_fresh", "contiguous", "native_dropout", "log_sigmoid_forward", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like",
}
LINEAR = {"add", "sub", "rsub", "neg", "clone", "alias", "detach", "_to_copy", "where"}
CONTRACTIONS = {
    "mm": "ij,jk->ik", "addmm": "*,ij,jk->ik", "bmm": "bij,bjk->bik", "baddbmm": "*,bij,bjk->bik",
    "mv": "ij,j->i", "addmv": "*,ij,j->i", "dot": "i,i->",
}


@cache
def find(func) -> Callable | None:
    """The rule of an aten op, None where there is none."""
    name = func.overloadpacket.__name__
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    rule = RULES.get(name)
    if rule is None and (torch.Tag.pointwise in func.tags or name in POINTWISE):
        return pointwise
    return rule


def rule(*names: str) -> Callable:
    def join(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, function))
        return function

    return join


@cache
def base(func) -> str:
    return func.overloadpacket.__name__.rstrip("_")


# Elementwise


def pointwise(trace: Trace, outs, func, *args, **kwargs) -> list[tuple[Label, ...]]:
    """Broadcasting unifies; an index broadcast against many is frozen. A product of activations is a gate."""
    shape = outs[0]
    tensors = [x for x in [*args, *kwargs.values()] if isinstance(x, Labelled)]
    labels = [broadcast(trace, tensors, k, n, len(shape)) for k, n in enumerate(shape)]
    moving = [x for x in tensors if not x.leaf and x.labels]
    if tensors and not moving and all(x.leaf for x in tensors) and not _nothing_of_nothing(func, args, kwargs):
        # A weight worked out of parameters that is something where they are zero.
        for label in labels:
            trace.mark("mixes", label)
    if len(moving) > 1 and base(func) not in LINEAR:
        for label in labels:
            trace.mark("gates", label)
    return [tuple(labels)] * len(outs)


def _nothing_of_nothing(func, args, kwargs) -> bool:
    """Whether an elementwise op makes zero where its tensors are: all of them, or the first, as in a quotient."""
    for others in (0.0, 1.0):
        values = iter([0.0])
        given, named = (_filled(part, values, others) for part in (args, kwargs))
        try:
            made = func(*given, **named)
        except (RuntimeError, TypeError):
            return False
        made = made[0] if isinstance(made, (tuple, list)) else made
        if not made.to(torch.float32).any():
            return True
    return False


def _filled(value, values, others: float):
    """With a number in the place of each tensor."""
    if isinstance(value, Labelled):
        return torch.full((1,) * len(value.shape), next(values, others), device="cpu")
    if isinstance(value, dict):
        return {k: _filled(v, values, others) for k, v in value.items()}
    return [_filled(v, values, others) for v in value] if isinstance(value, (tuple, list)) else value


def broadcast(trace: Trace, tensors: list[Labelled], k: int, size: int, dims: int) -> Label:
    found: list[Label] = []
    for x in tensors:
        at = k - dims + len(x.shape)
        if at >= 0:
            if x.shape[at] == size:
                found.append(x.labels[at])
            else:
                trace.cells.freeze(x.labels[at])
    for other in found[1:]:
        trace.cells.unify(found[0], other)
    return None if any(x is None for x in found) or not found else found[0]


# Contractions


@cache
def _equation(text: str) -> tuple[list[str], str, list[tuple[str, bool, list[tuple[int, int]]]]]:
    """(the terms, what is made, of each letter whether it is summed over and where it stands: factor, dimension)."""
    left, made = text.split("->")
    terms = left.split(",")
    places: dict[str, list[tuple[int, int]]] = {}
    for k, term in enumerate(t for t in terms if t != "*"):
        for d, letter in enumerate(term):
            places.setdefault(letter, []).append((k, d))
    return terms, made, [(letter, letter not in made, where) for letter, where in places.items()]


def contract(trace: Trace, outs, func, *args, **kwargs) -> list[tuple[Label, ...]]:
    """Same letter, same cells. Contracted with a parameter is a read, surviving on one a write; without one, bilinear."""
    terms, made, letters = _equation(CONTRACTIONS[base(func)])
    tensors = [x for x in args if isinstance(x, Labelled)]
    extra = tensors[0] if terms[0] == "*" else None
    factors = tensors if extra is None else tensors[1:]
    leaf, computed = any(x.leaf for x in factors), all(x.leaf for x in factors)
    labels: dict[str, Label] = {}
    macs = 1
    for letter, contracted, places in letters:
        held = [(factors[k], factors[k].labels[d]) for k, d in places]
        macs *= factors[places[0][0]].shape[places[0][1]]
        first, *others = [label for _, label in held]
        for other in others:
            trace.cells.unify(first, other)
        labels[letter] = None if any(label is None for _, label in held) else first
        for k, (x, label) in enumerate(held):
            # Where a weight is worked out of others, what surviving letters are shows where it is used; of two sides that are
            # contracted one writes, so that not both are zero.
            if x.leaf and (contracted or not computed):
                trace.mark_slots("reads" if contracted and not (computed and k) else "writes", label, x)
        if contracted and not leaf:
            trace.mark("bilinear", labels[letter])
    trace.count(macs, computed)
    result = tuple(labels[letter] for letter in made)
    if extra is not None:
        result = tuple(
            broadcast(trace, [extra, Labelled(outs[0], result)], k, n, len(outs[0])) for k, n in enumerate(outs[0])
        )
    return [result]


RULES.update(dict.fromkeys(CONTRACTIONS, contract))


@rule("convolution", "_convolution")
def convolution(trace: Trace, outs, func, x, w, b, stride, padding, dilation, transposed, out_padding, groups, *_):
    cells = trace.cells
    channels = x.labels[1]
    weight_in, weight_out = (w.labels[0], w.labels[1]) if transposed else (w.labels[1], w.labels[0])
    for label in (*x.labels[2:], *w.labels[2:]):
        cells.freeze(label)
    if groups == 1:
        cells.unify(channels, weight_in)
        if channels is not None:
            trace.mark_slots("reads", weight_in, w)
        trace.mark_slots("writes", weight_out, w)
        made = weight_out
    elif trace.slot(weight_in) is None or trace.slot(weight_out) is None:
        # A weight that was worked out from others.
        trace.give_up(func, [channels, weight_in, weight_out])
        made = None
    elif transposed:
        grid = groups, x.shape[1] // groups
        (group, inside), (weight_group, weight_inside) = cells.split(channels, grid), cells.split(weight_in, grid)
        cells.unify(group, weight_group)
        cells.unify(inside, weight_inside)
        trace.mark("reads", inside, *trace.slot(weight_in))
        trace.mark("writes", weight_out, *trace.slot(weight_out))
        made = cells.merge([group, weight_out], [groups, outs[0][1] // groups])
    else:
        size = outs[0][1] // groups
        group, inside = cells.split(channels, (groups, x.shape[1] // groups))
        weight_group, unit = cells.split(weight_out, (groups, size))
        cells.unify(group, weight_group)
        cells.unify(inside, weight_in)
        if inside is not None:
            trace.mark("reads", weight_in, *trace.slot(weight_in))
        trace.mark("writes", unit, *trace.slot(weight_out))
        made = weight_out
    if b is not None:
        cells.unify(made, b.labels[0])
    trace.count(math.prod(w.shape) * x.shape[0] * math.prod((x if transposed else Labelled(outs[0], ())).shape[2:]))
    return [(x.labels[0], made, *[None] * (len(outs[0]) - 2))]


# Normalisation, pooling, reduction


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm", "_batch_norm_no_update")
def batch_norm(trace: Trace, outs, func, x, *args, **kwargs):
    """Channels stand for themselves; what else is live, as in a norm of each sample by itself, is mixed."""
    for label in (x.labels[0], *x.labels[2:]):
        trace.mark("mixes", label)
    for other in (a for a in args if isinstance(a, Labelled)):
        trace.cells.unify(x.labels[1], other.labels[0])
    return [x.labels]


@rule("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d")
def pool2d(trace: Trace, outs, func, x, *args, **kwargs):
    return _over_space(trace, outs, x, 2)


@rule("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d")
def pool3d(trace: Trace, outs, func, x, *args, **kwargs):
    return _over_space(trace, outs, x, 3)


@rule("upsample_nearest1d")
def upsample1d(trace: Trace, outs, func, x, *args, **kwargs):
    return _over_space(trace, outs, x, 1)


RULES.update(upsample_linear1d=upsample1d, reflection_pad1d=upsample1d, replication_pad1d=upsample1d)
RULES.update(upsample_nearest2d=pool2d, upsample_bilinear2d=pool2d, reflection_pad2d=pool2d, replication_pad2d=pool2d)


def _over_space(trace: Trace, outs, x: Labelled, space: int):
    for label in x.labels[-space:]:
        trace.cells.freeze(label)
    return [(*x.labels[:-space], *[None] * space)] * len(outs)


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm", "prod", "any", "all", "nansum")
def reduce(trace: Trace, outs, func, x, *args, **kwargs):
    """What is reduced is mixed: a newborn on that axis changes the result."""
    dims = next((a for a in [*args, *kwargs.values()] if isinstance(a, list)), None) or range(len(x.shape))
    if base(func) in ("prod", "any", "all") and args and isinstance(args[0], int):
        dims = [args[0]]
    dims = {d % len(x.shape) for d in dims} if x.shape else set()
    for d in dims:
        trace.mark("mixes", x.labels[d])
    if len(outs[0]) == len(x.shape):
        return [tuple(None if k in dims else label for k, label in enumerate(x.labels))] * len(outs)
    return [tuple(label for k, label in enumerate(x.labels) if k not in dims)] * len(outs)
