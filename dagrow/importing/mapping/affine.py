"""Linear layers, convolutions, embeddings: as modules, and as functions of parameters."""

from __future__ import annotations

from torch import nn

from dagrow.importing.errors import Unfit
from dagrow.importing.mapping import Ask, function, layer
from dagrow.importing.values import Held, Leaf, Tree


def linear_of(ask: Ask, x: Held, tensors: dict[str, Leaf], hint: str | None = None, expected: Held | None = None) -> Held:
    """A linear layer on the last dimension: `linear` on vectors, `token_linear` on more."""
    attrs = {"width": tensors["weight"].tensor.shape[0], "bias": "bias" in tensors}
    if len(x.shape) == 1 and not x.batch:
        return ask.node("linear", [x], attrs, tensors, hint=hint, expected=expected)
    if x.batch == len(x.shape):
        raise Unfit("the batch comes last")
    # Of rows that lie elsewhere torch multiplies other blocks: sums in another order.
    return ask.node("token_linear", [x], attrs, tensors, hint=hint, expected=expected, near=bool(x.batch))


@layer(nn.Linear)
def linear_layer(ask: Ask):
    return linear_of(ask, ask.x, ask.tensors("weight", "bias"))


@function("linear")
def linear(ask: Ask):
    given, x = ask.bound("weight", bias=None), ask.x
    weight = given["weight"]
    bias = {} if given["bias"] is None else {"bias": ask.leaf(given["bias"])}
    turned = turned_leaf(weight)
    if turned is None:
        return linear_of(ask, x, {"weight": ask.leaf(weight), **bias}, hint="linear")
    if len(x.shape) != 1 or x.batch:
        raise Unfit("a transposed weight on tokens")
    attrs = {"width": turned.tensor.shape[1], "bias": bool(bias), "transposed": True}
    return ask.node("linear", [x], attrs, {"weight": turned, **bias}, hint="linear")


def turned_leaf(value: object) -> Leaf | None:
    """The user's matrix of which a held tensor is the transpose."""
    form = value.form if isinstance(value, Held) else None
    swaps = {"t": (), "numpy_T": (), "mT": (), "transpose": ((0, 1), (1, 0), (-1, -2), (-2, -1)), "permute": ([1, 0],)}
    if not isinstance(form, Tree) or form.name not in swaps or not form.args:
        return None
    leaf = form.args[0].form if isinstance(form.args[0], Held) else form.args[0]
    rest = form.args[1:] if form.name == "transpose" else form.args[1] if len(form.args) > 1 else ()
    fits = not swaps[form.name] or rest in swaps[form.name]
    return leaf if fits and isinstance(leaf, Leaf) and leaf.tensor.dim() == 2 else None


def spatial(value: object, space: int) -> object:
    """One number where all dimensions of space have the same."""
    if isinstance(value, int):
        return value
    found = tuple(value)
    return found[0] if len(set(found)) == 1 else found if len(found) == space else found * space


def padding_of(padding: object, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> object:
    """'same' where it is: half of an odd kernel."""
    space = len(kernel)
    amounts = (padding,) * space if isinstance(padding, int) else padding
    if isinstance(amounts, str):
        amounts = (0,) * space if amounts == "valid" else tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    amounts = tuple(amounts) * (space if len(amounts) == 1 else 1)
    if all(k % 2 and p == d * (k // 2) for k, p, d in zip(kernel, amounts, dilation, strict=True)):
        return "same"
    return spatial(amounts, space)


@layer(nn.Conv1d, nn.Conv2d)
def conv_layer(ask: Ask):
    m = ask.module
    if m.padding_mode != "zeros":
        raise Unfit("padding with something else than zeros")
    return conv_of(ask, ask.tensors("weight", "bias"), m.stride, m.padding, m.dilation, m.groups)


@function("conv1d", "conv2d")
def conv(ask: Ask):
    given = ask.bound("weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
    bias = {} if given["bias"] is None else {"bias": ask.leaf(given["bias"])}
    return conv_of(ask, {"weight": ask.leaf(given["weight"]), **bias}, given["stride"], given["padding"], given["dilation"], given["groups"])


def conv_of(ask: Ask, tensors: dict[str, Leaf], stride, padding, dilation, groups: int):
    channels, _, *kernel = tensors["weight"].tensor.shape
    space = len(kernel)
    spread = (dilation,) * space if isinstance(dilation, int) else tuple(dilation) * (space if len(dilation) == 1 else 1)
    attrs = {
        "channels": channels, "kernel": spatial(kernel, space), "stride": spatial(stride, space), "padding": padding_of(padding, tuple(kernel), spread),
        "groups": groups, "bias": "bias" in tensors, "dilation": spatial(spread, space),
    }
    return ask.node(f"conv{space}d", [ask.map], attrs, tensors)


@layer(nn.ConvTranspose1d, nn.ConvTranspose2d)
def transposed(ask: Ask):
    m = ask.module
    if len(ask.args) != 1 or ask.kwargs:
        raise Unfit("an output size of its own")
    space = len(m.kernel_size)
    given = {"kernel": m.kernel_size, "stride": m.stride, "padding": m.padding, "output_padding": m.output_padding, "dilation": m.dilation}
    attrs = {"channels": m.out_channels, "groups": m.groups, "bias": m.bias is not None, **{k: spatial(v, space) for k, v in given.items()}}
    return ask.node(f"conv_transpose{space}d", [ask.map], attrs, ask.tensors("weight", "bias"))


@layer(nn.Embedding)
def embedding(ask: Ask):
    m = ask.module
    if m.padding_idx is not None or m.max_norm is not None or m.scale_grad_by_freq or m.sparse:
        raise Unfit("an embedding with rules of its own")
    return ask.node("embedding", [ask.map], {"vocabulary": m.num_embeddings, "width": m.embedding_dim}, ask.tensors("weight"))
