"""Normalisation, softmax, attention and experts as ops: the axes of networks made of them, and what they compute."""

from __future__ import annotations

import axis_oracles as oracles
import pytest
import torch
import torch.nn.functional as F

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, resize

of = Node.of


def sizes(arch: Architecture) -> dict[str, int]:
    return {name: axis.size for name, axis in arch.axes.items()}


# Networks of ops


def attending(width: int = 6, heads: int = 2, **options) -> dict[str, Node]:
    """A block on "t": norm, attention, residual; norm, feed-forward, residual, as "out"."""
    return {
        "n1": of("layernorm", "t"), **{k: of("token_linear", "n1", width=width) for k in "qkv"}, "attn": of("attention", "q", "k", "v", heads=heads, **options),
        "proj": of("token_linear", "attn", width=8), "r1": of("add", "t", "proj"), "n2": of("layernorm", "r1"),
        "up": of("token_linear", "n2", width=5), "act": of("gelu", "up"), "down": of("token_linear", "act", width=8), "out": of("add", "r1", "down"),
    }  # fmt: skip


def transformer(**options) -> Architecture:
    return Architecture({
        "x": of("input", shape=(5, 3)), "t": of("token_linear", "x", width=8), **attending(**options), "norm": of("layernorm", "out"),
        "pool": of("mean", "norm", dims=(1,)), "y": of("linear", "pool", width=3),
    })  # fmt: skip


def vit() -> Architecture:
    return Architecture({
        "x": of("input", shape=(1, 6, 6)), "patch": of("conv2d", "x", channels=8, kernel=2, stride=2, padding=0),
        "flat": of("reshape", "patch", shape=(8, 9)), "tokens": of("permute", "flat", order=(0, 2, 1)), "cls": of("class_token", "tokens"),
        "t": of("position", "cls"), **attending(), "norm": of("layernorm", "out"), "first": of("slice", "norm", dim=1, stop=1),
        "vec": of("flatten", "first"), "y": of("linear", "vec", width=3),
    })  # fmt: skip


def mixer() -> Architecture:
    return Architecture({
        "x": of("input", shape=(4, 3)), "t": of("token_linear", "x", width=6), "n1": of("layernorm", "t"), "across": of("permute", "n1", order=(0, 2, 1)),
        "up": of("token_linear", "across", width=5), "act": of("gelu", "up"), "down": of("token_linear", "act", width=4),
        "back": of("permute", "down", order=(0, 2, 1)), "r": of("add", "t", "back"), "n2": of("layernorm", "r"), "up2": of("token_linear", "n2", width=7),
        "act2": of("gelu", "up2"), "down2": of("token_linear", "act2", width=6), "r2": of("add", "r", "down2"),
        "pool": of("mean", "r2", dims=(1,)), "y": of("linear", "pool", width=3),
    })  # fmt: skip


def squeeze_excite() -> Architecture:
    return Architecture({
        "x": of("input", shape=(2, 5, 5)), "stem": of("conv2d", "x", channels=6), "act": of("relu", "stem"), "pool": of("global_avg_pool", "act"),
        "less": of("linear", "pool", width=2), "relu": of("relu", "less"), "more": of("linear", "relu", width=6), "gate": of("sigmoid", "more"),
        "wide": of("reshape", "gate", shape=(6, 1, 1)), "gated": of("mul", "act", "wide"), "norm": of("groupnorm", "gated", groups=3),
        "flat": of("flatten", "norm"), "y": of("linear", "flat", width=3),
    })  # fmt: skip


def convnext() -> Architecture:
    return Architecture({
        "x": of("input", shape=(2, 8, 8)), "stem": of("conv2d", "x", channels=4), "depth": of("conv2d", "stem", channels=4, kernel=7, groups=4),
        "last": of("permute", "depth", order=(0, 2, 3, 1)), "norm": of("layernorm", "last", eps=1e-6), "up": of("token_linear", "norm", width=6),
        "act": of("gelu", "up"), "down": of("token_linear", "act", width=4), "scale": of("layer_scale", "down", dim=-1, start=0.5),
        "first": of("permute", "scale", order=(0, 3, 1, 2)), "join": of("add", "stem", "first"), "pool": of("global_avg_pool", "join"),
        "y": of("linear", "pool", width=3),
    })  # fmt: skip


def mixture() -> Architecture:
    return Architecture({
        "x": of("input", shape=(4,)), "words": of("embedding", "x", vocabulary=7, width=6), "norm": of("layernorm", "words"),
        "moe": of("moe", "norm", experts=3, hidden=4), "join": of("add", "words", "moe"), "vec": of("flatten", "join"), "y": of("linear", "vec", width=3),
    })  # fmt: skip


BLOCK = {"q": 2, "q~1": 3, "v": 3, "up": 5}
NETWORKS = {
    "transformer": (transformer, {"t": 8, **BLOCK}), "causal": (lambda: transformer(causal=True, scale=0.3), {"t": 8, **BLOCK}),
    "one head": (lambda: transformer(heads=1), {"t": 8, "q": 1, "q~1": 6, "v": 6, "up": 5}),
    "heads of one": (lambda: transformer(heads=6), {"t": 8, "q": 6, "q~1": 1, "v": 1, "up": 5}),
    "vit": (vit, {"patch": 8, **BLOCK}), "mixer": (mixer, {"t": 6, "up": 5, "up2": 7}),
    "squeeze-excite": (squeeze_excite, {"stem": 3, "stem~1": 2, "less": 2}), "convnext": (convnext, {"stem": 4, "up": 6}),
    "mixture": (mixture, {"words": 6, "moe": 3, "moe~1": 4}),
}  # fmt: skip
each_network = pytest.mark.parametrize("name", NETWORKS)


@each_network
def test_axes_of_a_network(name):
    build, expected = NETWORKS[name]
    arch = build()
    assert sizes(arch) == expected and not arch.derived.opaque
    assert Architecture.from_dict(arch.to_dict()) == arch
    oracles.all_oracles(arch)
    for axis in arch.axes:
        # Biases of keys add the same to all of a query's scores.
        if not (arch.axes[axis].bilinear or any(u.param == "k.bias" for u in arch.axes[axis].follows)):
            oracles.every_move_matters(arch, axis)


@each_network
def test_a_network_compiles_to_the_same(name):
    oracles.compiling_keeps_the_function(NETWORKS[name][0]())


def test_what_mixes_and_what_does_not():
    mixes = {name: {a: x.mixes for a, x in build().axes.items() if x.mixes} for name, (build, _) in NETWORKS.items()}
    assert mixes["transformer"] == {"t": ("n1", "n2", "norm")} and mixes["squeeze-excite"] == {"stem~1": ("norm",)}
    assert mixes["mixture"] == {"words": ("norm",), "moe": ("moe",)}
    block = transformer()
    assert block.axes["q~1"].bilinear == ("attn",) and {u.node for u in block.axes["q"].writes} == {"q", "k", "v"}
    assert [(u.node, u.param) for u in block.axes["v"].reads] == [("proj", "proj.weight")]
    assert squeeze_excite().axes["stem"].gates == ("gated",)


def test_heads_come_and_go_from_one_head():
    arch = transformer(heads=1)
    two = oracles.done(resize(arch, {"q": (0, -1), "v": (*range(6), -1)}))
    assert two.arch.nodes["attn"].attrs.heads == 2 and two.arch.shapes["v"] == (5, 14) and two.zero is not None
    back = oracles.done(resize(two.arch, {"q": (0,), "v": tuple(range(6))}))
    assert back.arch == arch
    # A width of another size keeps the scale it had, and says so only as long as it differs.
    wide = oracles.done(resize(arch, {"q~1": (*range(6), -1, -1)})).arch
    assert wide.nodes["attn"].attrs == of("attention", heads=1, base=6).attrs
    assert oracles.done(resize(wide, {"q~1": tuple(range(6))})).arch == arch


def test_attention_is_torchs():
    arch = transformer(heads=3, causal=True)
    weights, x = oracles.weights_for(arch, 0), oracles.rows(arch)
    values = oracles.values_of(arch, weights, x)
    q, k, v = (values[n].unflatten(2, (3, -1)).transpose(1, 2) for n in "qkv")
    assert torch.allclose(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2), values["attn"], rtol=0, atol=1e-12)


def test_a_mixture_is_its_chosen_experts():
    module = ops.REGISTRY.get("moe").build(of("moe", "x", experts=4, hidden=3, width=2).attrs, (5,)).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    chosen = module.router(x).topk(2, 1)
    for row in range(7):
        total = torch.zeros(2, dtype=torch.float64)
        for share, e in zip(chosen.values[row].softmax(0), chosen.indices[row], strict=True):
            up, bias = module.up.unflatten(0, (4, 3))[e], module.up_bias.unflatten(0, (4, 3))[e]
            total += share * (F.gelu(x[row] @ up.T + bias) @ module.down[e] + module.down_bias[e])
        assert torch.allclose(module(x)[row], total, rtol=0, atol=1e-12)


def test_expected_macs_of_a_mixture():
    arch = mixture()
    tokens, features, experts, hidden, top = 4, 6, 3, 4, 2
    assert arch.formed.macs["moe"] == tokens * (features * experts + top * (2 * features * hidden + 2 * features))
    assert transformer().formed.macs["attn"] == 2 * 5 * 5 * 6


@pytest.mark.parametrize(("op", "attrs", "shape"), [
    ("layernorm", {"dims": 3}, (4, 3)), ("groupnorm", {"groups": 4}, (6, 2)), ("groupnorm", {"groups": 6}, (6,)), ("instancenorm", {}, (6,)), ("softmax", {"dim": 0}, (6,)),
    ("softmax", {"dim": 3}, (6, 2)), ("layer_scale", {"dim": -3}, (6, 2)), ("class_token", {}, (6,)), ("moe", {"experts": 2, "hidden": 2, "act": "softmax"}, (6,)),
    ("embedding", {"vocabulary": 3, "width": 2}, (2, 2, 2)),
])  # fmt: skip
def test_what_does_not_fit_is_told(op, attrs, shape):
    with pytest.raises(GraphError) as caught:
        _ = Architecture({"x": of("input", shape=shape), "op": of(op, "x", **attrs), "f": of("flatten", "op"), "y": of("linear", "f", width=2)}).shapes
    assert caught.value.node == "op"


def test_heads_that_do_not_divide_are_told():
    with pytest.raises(GraphError, match="4 heads must divide the 6 features"):
        _ = transformer(heads=4).shapes
