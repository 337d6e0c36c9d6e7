"""Pooling and means."""

from __future__ import annotations

from torch import nn

from dagrow.importing.errors import Unfit
from dagrow.importing.mapping import Ask, function, layer
from dagrow.importing.mapping.affine import spatial
from dagrow.importing.mapping.elementwise import inner, same


@layer(nn.MaxPool1d, nn.MaxPool2d)
@function("max_pool1d", "max_pool2d", "boolean_dispatch")
def max_pool(ask: Ask):
    given = ask.bound("kernel_size", stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
    if given["return_indices"]:
        raise Unfit("indices are asked for")
    return pooled(ask, "max_pool", given, dilation=given["dilation"])


@layer(nn.AvgPool1d, nn.AvgPool2d)
@function("avg_pool1d", "avg_pool2d")
def avg_pool(ask: Ask):
    given = ask.bound("kernel_size", stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None)
    if given["divisor_override"] is not None:
        raise Unfit("a divisor of its own")
    x = ask.map
    space = len(x.shape) - 1
    kernel = given["kernel_size"]
    kernel = (kernel,) * space if isinstance(kernel, int) else tuple(kernel) * (space if len(kernel) == 1 else 1)
    if kernel == x.shape[1:] and given["padding"] in (0, (0,), (0, 0)):
        # All there is: whatever the size of the map. Where that rounds otherwise it stays a window.
        try:
            with ask.lowering.build.attempt():
                return ask.node("adaptive_avg_pool", [x], {"size": 1})
        except Unfit:
            pass
    return pooled(ask, "avg_pool", given, count_include_pad=given["count_include_pad"])


def pooled(ask: Ask, op: str, given: dict, **more: object):
    x = ask.map
    space = len(x.shape) - 1
    stride = given["stride"]
    attrs = {
        "kernel": spatial(given["kernel_size"], space), "padding": spatial(given["padding"], space), "ceil": bool(given["ceil_mode"]),
        "stride": None if stride in (None, [], ()) or spatial(stride, space) == spatial(given["kernel_size"], space) else spatial(stride, space),
        **{k: spatial(v, space) if k == "dilation" else v for k, v in more.items()},
    }
    return ask.node(op, [x], attrs)


@layer(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
@function("adaptive_avg_pool1d", "adaptive_avg_pool2d")
def adaptive(ask: Ask):
    size, x = ask.bound("output_size")["output_size"], ask.map
    space = len(x.shape) - 1
    size = (size,) * space if isinstance(size, int) else tuple(size)
    size = tuple(n if s is None else s for s, n in zip(size, x.shape[1:], strict=True))
    if size == x.shape[1:]:
        return same(ask)
    return ask.node("adaptive_avg_pool", [x], {"size": spatial(size, space)})


@function("mean")
def mean(ask: Ask):
    given, x = ask.bound("dim", keepdim=False, dtype=None), ask.x
    dims = [given["dim"]] if isinstance(given["dim"], int) else list(given["dim"])
    inside = sorted(inner(x, d) for d in dims)
    at = x.batch if given["keepdim"] else x.batch - sum(d % x.values[0].dim() < x.batch for d in dims)
    if not x.batch and not given["keepdim"] and inside == list(range(2, len(x.shape) + 1)) and inside:
        try:
            with ask.lowering.build.attempt():
                return ask.node("global_avg_pool", [x])
        except Unfit:
            pass
    rank = len(x.shape) + 1
    return ask.node("mean", [x], {"dims": tuple(d - rank if d == rank - 1 and d > 1 else d for d in inside), "keep": bool(given["keepdim"])}, batch=at)
