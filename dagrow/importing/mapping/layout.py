"""Reshaping, permuting, joining, cutting, padding, upsampling."""

from __future__ import annotations

import torch
from torch import nn

from dagrow.importing.errors import Unfit
from dagrow.importing.mapping import Ask, function, layer
from dagrow.importing.mapping.elementwise import inner, same
from dagrow.importing.values import Held, Leaf, Rows, Tree, batch_dim


@layer(nn.Flatten, nn.Unflatten)
@function("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def laid_out(ask: Ask):
    """The same values in their order under another shape."""
    held = ask.first
    if isinstance(held, Held) and held.sizes == ask.result.sizes:
        return same(ask)
    x, sizes = ask.x, ask.result.sizes
    at = batch_dim(sizes)
    if at is None or x.batch != at or (at and x.sizes[:at] != sizes[:at]):
        raise Unfit("the batch moves")
    shape = tuple(n for k, n in enumerate(sizes) if k != at)
    if not shape:
        raise Unfit("it leaves no dimension")
    pooled = pool_of(ask, x, shape)
    if pooled is not None:
        return pooled
    if len(shape) == 1 and len(x.shape) > 1 and not at:
        return ask.node("flatten", [x])
    return ask.node("reshape", [x], {"shape": shape})


def pool_of(ask: Ask, x: Held, shape: tuple[int, ...]) -> Held | None:
    """Where what is flattened is a map pooled down to one position: the pooling that leaves vectors."""
    build = ask.lowering.build
    node = build.nodes[x.node]
    if x.batch or len(shape) != 1 or node.op != "adaptive_avg_pool" or node.attrs.size != 1:
        return None
    source = build.made.get(node.inputs[0])
    try:
        with build.attempt():
            return ask.node("global_avg_pool", [source]) if source is not None else None
    except Unfit:
        return None


@function("permute", "transpose", "movedim", "swapaxes", "t", "T", "mT", "numpy_T", "moveaxis", "swapdims")
def permuted(ask: Ask):
    x = ask.x
    dims = x.values[0].dim()
    order = order_of(ask, dims)
    at = order.index(x.batch)
    wanted = [0, *(inner(x, d) for d in order if d != x.batch)]
    if wanted == list(range(dims)):
        return Held(ask.result.values, x.node, at)
    return ask.node("permute", [x], {"order": tuple(wanted)}, batch=at)


def order_of(ask: Ask, dims: int) -> list[int]:
    """Which dimension each one of the result was: tried on tensors with one dimension of size 2 each."""
    name, rest = ask.name, (*ask.args[1:], *ask.kwargs.values())
    turned = {"T": lambda x: x.permute(*range(dims - 1, -1, -1)), "mT": lambda x: x.mT}
    turned["numpy_T"] = turned["T"]
    work = turned.get(name) or (lambda x: getattr(x, name)(*rest))
    where = [list(work(torch.empty([2 if k == d else 1 for k in range(dims)])).shape).index(2) for d in range(dims)]
    return [where.index(k) for k in range(dims)]


@function("expand", "broadcast_to")
def expanded(ask: Ask):
    """Waits for what reads it: most spread what is narrower by themselves."""
    held = ask.first
    if not isinstance(held, Held) or held.node is None:
        raise Unfit("not a node's output")
    sizes = ask.result.sizes
    return Held(ask.result.values, form=Tree("expand", (held, list(sizes))), narrow=held if len(sizes) == len(held.sizes) else None)


@function("cat", "concat", "concatenate")
def joined(ask: Ask):
    parts, dim = list(ask.first if ask.first is not None else ask.kwargs["tensors"]), ask.bound(dim=0)["dim"]
    token = class_token(ask, parts, dim)
    if token is not None:
        return token
    found = [ask.solid(p) for p in parts]
    if len({x.batch for x in found}) > 1:
        raise Unfit("their batches lie elsewhere")
    if len(found) == 1:
        return found[0]
    return ask.node("concat", found, {"dim": inner(found[0], dim)})


def class_token(ask: Ask, parts: list, dim: int) -> Held | None:
    """A parameter, the same for every row, before the tokens."""
    if len(parts) != 2 or not all(isinstance(p, Held) for p in parts) or not parts[0].own or not isinstance(parts[0].form, Tree):
        return None
    form = parts[0].form
    leaf = form.args[0] if form.name in ("expand", "repeat", "tile", "broadcast_to") else None
    leaf = leaf.form if isinstance(leaf, Held) else leaf
    x = ask.solid(parts[1])
    if not isinstance(leaf, Leaf) or leaf.name is None or dim % 3 != 1 or x.batch or len(x.shape) != 2 or parts[0].sizes[1] != 1:
        return None
    return ask.node("class_token", [x], {}, {"weight": leaf}, hint=leaf.name.rpartition(".")[2])


@function("chunk", "split", "tensor_split", "split_with_sizes")
def cut(ask: Ask):
    x = ask.x
    given = ask.bound("how", dim=0) if "chunks" not in ask.kwargs else {"dim": ask.kwargs.get("dim", 0)}
    dim, place, made = inner(x, given["dim"]), 0, []
    lengths = [h.values[0].shape[given["dim"]] for h in ask.result]
    for k, (length, held) in enumerate(zip(lengths, ask.result, strict=True)):
        if len(set(lengths)) == 1 and len(lengths) > 1:
            op, attrs = "part", {"of": len(lengths), "index": k, "dim": dim}
        else:
            op, attrs = "slice", {"start": place, "stop": place + length if k + 1 < len(lengths) else None, "dim": dim}
        made.append(ask.node(op, [x], attrs, expected=held, batch=x.batch) if len(lengths) > 1 else x)
        place += length
    return made


@function("getitem")
def indexed(ask: Ask):
    """Slices without steps of dimensions other than the batch's, and numbers, which drop a dimension."""
    held, places = ask.args
    if isinstance(held, (list, tuple)):
        return held[places]
    x = ask.solid(held)
    places = list(places) if isinstance(places, tuple) else [places]
    dims = x.values[0].dim()
    if any(not isinstance(p, (int, slice, type(Ellipsis))) or isinstance(p, (bool, Rows)) for p in places):
        raise Unfit("an index that is no slice")
    if Ellipsis in places:
        at = places.index(Ellipsis)
        places[at : at + 1] = [slice(None)] * (dims - len(places) + 1)
    places += [slice(None)] * (dims - len(places))
    numbers = [d for d, p in enumerate(places) if isinstance(p, int)]
    if len(numbers) > 1:
        raise Unfit("several numbers")
    for d, p in enumerate(places):
        if isinstance(p, slice) and p != slice(None):
            x = sliced(ask, x, d, p)
    if not numbers:
        return x if x.node != held.node else same(ask)
    d = numbers[0]
    at = x.batch - (d < x.batch)
    steps = {"steps": (("select", (("in", 0), inner(x, d), places[d]), ()),)}
    return ask.node("call", [x], steps, batch=at, hint="select")


def sliced(ask: Ask, x: Held, dim: int, place: slice) -> Held:
    size = x.values[0].shape[dim]
    if place.step not in (None, 1) or any(isinstance(v, Rows) or not isinstance(v, (int, type(None))) for v in (place.start, place.stop)):
        raise Unfit("a slice with steps")
    start, stop, _ = place.indices(size)
    if (start, stop) == (0, size):
        return x
    expected = Held(tuple(v.narrow(dim, start, stop - start) for v in x.values))
    # Ends as the user counts them: from the end where they do.
    attrs = {"start": place.start or 0, "stop": place.stop if stop < size else None, "dim": inner(x, dim)}
    return ask.node("slice", [x], attrs, expected=expected, batch=x.batch, hint="slice")


@function("narrow")
def narrowed(ask: Ask):
    given = ask.bound("dim", "start", "length")
    return sliced(ask, ask.x, given["dim"] % ask.x.values[0].dim(), slice(given["start"], given["start"] + given["length"]))


@layer(nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d)
def pad_layer(ask: Ask):
    kind = type(ask.module).__name__.lower()
    mode = next((m for m in ("reflect", "replicat") if kind.startswith(m)), "constant")
    mode = "replicate" if mode == "replicat" else mode
    return ask.node("pad", [ask.map], {"amounts": tuple(ask.module.padding), "mode": mode, "value": float(getattr(ask.module, "value", 0.0))})


@function("pad")
def pad(ask: Ask):
    given = ask.bound("pad", mode="constant", value=None)
    amounts = tuple(given["pad"])
    if not any(amounts):
        return same(ask)
    return ask.node("pad", [ask.map], {"amounts": amounts, "mode": given["mode"], "value": float(given["value"] or 0.0)})


@layer(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@function("interpolate", "upsample")
def upsampled(ask: Ask):
    given = ask.bound(size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None, antialias=False)
    x = ask.map
    attrs = {"mode": given["mode"], "align_corners": bool(given["align_corners"])}
    scale = given["scale_factor"]
    if scale is not None:
        found = (scale,) if isinstance(scale, (int, float)) else tuple(scale)
        if any(k != int(k) for k in found):
            raise Unfit("a scale that is no whole number")
        attrs["scale"] = tuple(map(int, found)) if len(found) > 1 else int(found[0])
    else:
        attrs["size"] = given["size"] if isinstance(given["size"], int) else tuple(given["size"])
    return ask.node("upsample", [x], attrs)
