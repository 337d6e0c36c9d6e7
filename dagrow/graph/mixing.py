"""Ops that mix the units of an axis: normalisation over it, softmax, what picks or orders by value; and tables looked up."""

from __future__ import annotations

from dagrow.graph.labels import Label
from dagrow.graph.moves import find
from dagrow.graph.rules import base, reduce, rule
from dagrow.graph.trace import Labelled, Trace

__all__ = ["find"]


@rule("native_layer_norm")
def layer_norm(trace: Trace, outs, func, x, normalised, weight=None, bias=None, *_):
    """The last dimensions, which scale and shift go along with, are mixed."""
    first = len(x.shape) - len(normalised)
    for parameter in (weight, bias):
        if isinstance(parameter, Labelled):
            for label, other in zip(x.labels[first:], parameter.labels, strict=True):
                trace.cells.unify(label, other)
    for label in x.labels[first:]:
        trace.mark("mixes", label)
    statistics = (*x.labels[:first], *[None] * len(normalised))
    return [x.labels, statistics, statistics]


@rule("_fused_rms_norm")
def rms_norm(trace: Trace, outs, func, x, normalised, weight=None, *_):
    return layer_norm(trace, outs, func, x, normalised, weight)[:2]


@rule("native_group_norm")
def group_norm(trace: Trace, outs, func, x, weight, bias, batch, channels, space, groups, *_):
    """What lies within a group is mixed, whole groups stand for themselves."""
    for parameter in (weight, bias):
        if isinstance(parameter, Labelled):
            trace.cells.unify(x.labels[1], parameter.labels[0])
    size = channels // groups
    # One group is a group; channels that are groups each are not split further.
    cut = trace.cells.grid if size > 1 else trace.cells.split
    trace.mark("mixes", cut(x.labels[1], (groups, size))[1])
    for label in x.labels[2:]:
        trace.mark("mixes", label)
    return [x.labels]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(trace: Trace, outs, func, x, dim, *_, **__):
    trace.mark("mixes", x.labels[dim] if x.labels else None)
    return [x.labels]


@rule("topk", "sort", "max", "min", "median", "kthvalue", "mode", "nanmedian")
def picked(trace: Trace, outs, func, x, *args, **kwargs):
    """Values chosen or ordered by value: whose they are is no longer known. Nothing is said of their places: if they are read, all is fixed."""
    if len(outs) == 1:
        return reduce(trace, outs, func, x)
    name = base(func)
    given = kwargs.get("dim", args[1] if name in ("topk", "kthvalue") and len(args) > 1 else args[0] if name not in ("topk", "kthvalue") and args else -1)
    dim = given % len(x.shape) if x.shape else 0
    if x.shape:
        trace.mark("mixes", x.labels[dim])
    kept = len(outs[0]) == len(x.shape)
    labels = tuple(None if k == dim else label for k, label in enumerate(x.labels) if kept or k != dim)
    return [labels]


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def running(trace: Trace, outs, func, x, dim, *_, **__):
    """The order along `dim` matters, so it stays."""
    if not x.shape:
        return [x.labels] * len(outs)
    dim %= len(x.shape)
    trace.give_up(func, [x.labels[dim]])
    return [tuple(None if k == dim else label for k, label in enumerate(x.labels))] * len(outs)


@rule("embedding")
def embedding(trace: Trace, outs, func, table, places, *_, **__):
    """Which rows there are is fixed by who asks for them."""
    trace.cells.freeze(table.labels[0])
    trace.mark_slots("writes", table.labels[1], table)
    return [(*places.labels, table.labels[1])]


@rule("glu")
def glu(trace: Trace, outs, func, x, dim=-1):
    """One half gates the other: the same units in both."""
    dim %= len(x.shape)
    halves, half = trace.cells.split(x.labels[dim], (2, x.shape[dim] // 2))
    trace.cells.freeze(halves)
    trace.mark("gates", half)
    return [tuple(half if k == dim else label for k, label in enumerate(x.labels))]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math",
)  # fmt: skip
def attention(trace: Trace, outs, func, q, k, v, *args, **kwargs):
    """Of [batch, heads, tokens, width]: heads and all before them side by side, width summed over between q and k."""
    cells = trace.cells
    tensors = [a for a in [*args, *kwargs.values()] if isinstance(a, Labelled)]
    before: list[Label] = []
    for d in range(len(q.shape) - 2):
        same = all(x.shape[d] == q.shape[d] for x in (k, v))
        for x in (q, k, v) if not same else ():
            cells.freeze(x.labels[d])
        for x in (k, v) if same else ():
            cells.unify(q.labels[d], x.labels[d])
        before.append(None if not same or any(x.labels[d] is None for x in (q, k, v)) else q.labels[d])
    cells.unify(q.labels[-1], k.labels[-1])
    cells.unify(k.labels[-2], v.labels[-2])
    trace.mark("bilinear", q.labels[-1] if k.labels[-1] is not None else None)
    # Tokens have their places in masks.
    for label in (q.labels[-2], k.labels[-2], *(label for x in tensors for label in x.labels)):
        cells.freeze(label)
    batch, queries, width = q.shape[:-2], q.shape[-2], q.shape[-1]
    size = 1
    for n in batch:
        size *= n
    trace.count(size * queries * k.shape[-2] * (width + v.shape[-1]))
    return [(*before, None, v.labels[-1])]
