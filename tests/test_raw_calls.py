"""What raw torch calls do to axes, whole networks in plain torch among them, each as one node. Against brute force."""

from __future__ import annotations

import axis_oracles as oracles
import pytest
import torch
import torch.nn.functional as F
from models import MODELS
from test_mixing import sizes, transformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dagrow import ops
from dagrow.graph import Architecture, Node
from dagrow.graph.mixing import find
from dagrow.graph.recording import BATCH, Recorder
from dagrow.graph.trace import Labelled, Trace
from dagrow.registry import Options

of = Node.of
RAW: dict[str, object] = {}


class Raw(ops.Op):
    """A function, or what makes a module, by its name in RAW."""

    fewest, most = 1, 3

    class Options(Options):
        what: str

    @staticmethod
    def build(attrs, *shapes):
        made = RAW[attrs.what]
        return made() if isinstance(made, type) else made


@pytest.fixture
def raw():
    """Adds to RAW what is given and makes a node that runs it."""
    ops.REGISTRY.register("test_raw")(Raw)

    def node(what, function, *inputs) -> Node:
        RAW[what] = function
        return of("test_raw", *inputs, what=what)

    yield node
    ops.REGISTRY._classes.pop("test_raw")


def around(raw, what, function, shape, last=False, width=6) -> Architecture:
    """x -> stem -> the function -> flatten -> head."""
    kind = "token_linear" if last else ("linear", "conv1d", "conv2d")[len(shape) - 1]
    stem = of(kind, "x", **{"width" if "linear" in kind else "channels": width})
    return Architecture({
        "x": of("input", shape=shape), "stem": stem, "op": raw(what, function, "stem"), "flat": of("flatten", "op"), "y": of("linear", "flat", width=3),
    })  # fmt: skip


# One call. What it does to the six units of what it reads: each for itself, mixed, or frozen and told.

EACH, MIXES, FROZEN = "each", "mixes", "frozen"
CALLS = {
    "softmax": (lambda x: x.softmax(1), MIXES), "log_softmax": (lambda x: x.log_softmax(1), MIXES), "normalize": (lambda x: F.normalize(x, dim=1), MIXES),
    "layer_norm": (lambda x: F.layer_norm(x, x.shape[1:]), MIXES), "rms_norm": (lambda x: F.rms_norm(x, x.shape[1:]), MIXES),
    "groups": (lambda x: F.group_norm(x, x.shape[1]), EACH), "cosine": (lambda x: F.cosine_similarity(x, 2 * x + 1, 1).unsqueeze(1), MIXES),
    "standard": (lambda x: (x - torch.var_mean(x, 1, keepdim=True)[1]) / torch.var_mean(x + 1, 1, keepdim=True)[0], MIXES), "top": (lambda x: x.topk(2, 1)[0], MIXES),
    "largest": (lambda x: x - x.max(1, keepdim=True)[0], MIXES), "median": (lambda x: x - x.median(1, keepdim=True)[0], MIXES),
    "product": (lambda x: x * x.prod(1, keepdim=True), MIXES), "logsumexp": (lambda x: x - x.logsumexp(1, True), MIXES),
    "spread": (lambda x: x + x.mean(1, keepdim=True).expand_as(x), MIXES), "places": (lambda x: x.topk(2, 1)[1].to(x.dtype), FROZEN),
    "sorted places": (lambda x: x.argsort(1).to(x.dtype), FROZEN), "running": (lambda x: x.cumsum(1), FROZEN),
    "picked": (lambda x: x.gather(1, torch.zeros_like(x[:, :1], dtype=torch.int64)), FROZEN), "chosen": (lambda x: x[:, torch.tensor([0, 2])], FROZEN),
    "relu6": (F.relu6, EACH), "clamp": (lambda x: x.clamp(-1, 1), EACH), "hardswish": (F.hardswish, EACH), "hardsigmoid": (F.hardsigmoid, EACH),
    "logsigmoid": (F.logsigmoid, EACH), "masked": (lambda x: x.masked_fill(x > 0, 0.5), EACH), "interleaved": (lambda x: x.repeat_interleave(2, 1), EACH),
    "twice": (lambda x: torch.cat([x, -x], 1), EACH), "swish": (lambda x: x * x.sigmoid(), EACH), "in place": (lambda x: x.clone().mul_(2), EACH),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)], ids=["vector", "sequence", "map"])
@pytest.mark.parametrize("what", CALLS)
def test_what_a_raw_call_does(raw, what, shape):
    function, expected = CALLS[what]
    arch = around(raw, what, function, shape)
    if expected == FROZEN:
        assert not arch.axes and arch.derived.opaque
        return
    assert sizes(arch) == {"stem": 6} and not arch.derived.opaque
    assert bool(arch.axes["stem"].mixes) == (expected == MIXES)
    oracles.permuting_keeps_the_function(arch, "stem")
    assert oracles.widening_keeps_the_function(arch, "stem") == (expected == EACH)


@pytest.mark.parametrize("what", [w for w in CALLS if w not in ("top", "places", "chosen")])
def test_of_one_unit_nothing_wrong_is_claimed(raw, what):
    """What is told apart by its size is not, with one unit: less may be known of it."""
    arch = around(raw, what, CALLS[what][0], (3, 4), width=1)
    for axis in arch.axes:
        assert oracles.widening_keeps_the_function(arch, axis) != bool(arch.axes[axis].mixes)


def test_gated_halves_and_norms_of_each_sample(raw):
    gated = around(raw, "glu", lambda x: F.glu(x, 1), (5,))
    assert sizes(gated) == {"stem": 3} and gated.axes["stem"].gates == ("op",)
    oracles.permuting_keeps_the_function(gated, "stem")
    assert oracles.widening_keeps_the_function(gated, "stem")
    # Over the features of each token: these are mixed, although the op that runs is that of a batch norm.
    tokens = around(raw, "instance", F.instance_norm, (4, 3), last=True)
    assert tokens.axes["stem"].mixes == ("op",) and not oracles.widening_keeps_the_function(tokens, "stem")


# What goes on with a part of the units: the sizes of the axes there are then.
PARTS = {
    "some, mixed": (lambda x: x[:, :4].mean(1, keepdim=True), [2, 4]), "others, mixed": (lambda x: x[:, :3].sum(1, keepdim=True) - x[:, 3:].sum(1, keepdim=True), [3, 3]),
    "some twice": (lambda x: torch.cat([x, x[:, :2]], 1).mean(1, keepdim=True), [2, 4]), "cut": (lambda x: F.pad(x, (-2, 0)).mean(1, keepdim=True), [2, 4]),
    "halves": (lambda x: torch.tanh(x[:, :3]) * x[:, 3:], [3]), "every other": (lambda x: x[:, ::2].amax(1, keepdim=True), [3, 3]),
    "one": (lambda x: x - x[:, :1], [5]), "rolled": (lambda x: x.roll(1, 1).mean(1, keepdim=True), [6]),
}  # fmt: skip


@pytest.mark.parametrize("what", PARTS)
def test_units_that_go_on_are_not_those_that_do_not(raw, what):
    function, expected = PARTS[what]
    arch = around(raw, what, function, (5,))
    assert sorted(sizes(arch).values()) == expected and not arch.derived.opaque
    for axis in arch.axes:
        oracles.permuting_keeps_the_function(arch, axis)


@pytest.mark.parametrize(("what", "function"), [
    ("ends", lambda x: x.flatten(1)[:, 1:-1]), ("middle", lambda x: x.flatten(1)[:, 4:13]), ("turned", lambda x: x.flatten(1).roll(1, 1)),
    ("heads", lambda x: x.flatten(1).unflatten(1, (3, 8)).flatten(1)[:, :13]),
])  # fmt: skip
def test_units_with_several_indices_go_on_alike_or_are_others(raw, what, function):
    arch = around(raw, what, lambda x: function(x).cos(), (3, 4))
    for axis in arch.axes:
        oracles.permuting_keeps_the_function(arch, axis)


def test_weights_that_are_flattened_are_still_read_and_written(raw):
    class Flattened(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(5, 2, 3))

        def forward(self, x):
            return F.linear(torch.tanh(F.linear(x, self.first.flatten(0, 1))), self.second.flatten(1))

    arch = Architecture({"x": of("input", shape=(4,)), "op": raw("flattened", Flattened, "x"), "y": of("linear", "op", width=2)})
    assert sorted(sizes(arch).values()) == [2, 3, 5]
    rows, columns = (next(x for x in arch.axes.values() if x.size == n) for n in (2, 3))
    for axis, k in ((rows, 0), (columns, 1)):
        assert [(u.param, u.axis) for u in axis.writes] == [("op.first", k)] and [(u.param, u.axis) for u in axis.reads] == [("op.second", k + 1)]


class Computed(nn.Module):
    """A linear map whose weight is worked out of parameters; None in their shapes is the fan-in."""

    def __init__(self, fan_in, weight, *shapes):
        super().__init__()
        self.weight, self.parts = weight, nn.ParameterDict({f"p{k}": torch.randn([n or fan_in for n in s]) for k, s in enumerate(shapes)})

    def forward(self, x):
        return F.linear(x, self.weight(*self.parts.values()))


WEIGHTS = {
    "low rank added": (lambda w, b, a: w + b @ a, [(5, None), (5, 2), (2, None)], {"0", "2"}, True),
    "low rank": (lambda b, a: b @ a, [(5, 2), (2, None)], {"1"}, True), "squashed": (lambda w: 2 * w.tanh() / 3, [(5, None)], {"0"}, True),
    "scaled": (lambda g, w: g * w, [(5, 1), (5, None)], {"1"}, True), "positive": (lambda w: w.exp(), [(5, None)], {"0"}, False),
    "softmax": (lambda w: w.softmax(1), [(5, None)], {"0"}, False), "normalised": (lambda w: w / w.norm(dim=1, keepdim=True), [(5, None)], {"0"}, False),
}  # fmt: skip


class Worked(ops.Op):
    """A linear map with a weight of WEIGHTS."""

    class Options(Options):
        what: str

    @staticmethod
    def build(attrs, shape):
        weight, shapes, *_ = WEIGHTS[attrs.what]
        return Computed(shape[0], weight, *shapes)


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_worked_out_of_others(what):
    ops.REGISTRY.register("test_worked")(Worked)
    try:
        arch = Architecture({
            "x": of("input", shape=(4,)), "stem": of("linear", "x", width=6), "act": of("sigmoid", "stem"),
            "op": of("test_worked", "act", what=what), "y": of("linear", "op", width=3),
        })  # fmt: skip
        _, _, reads, kept = WEIGHTS[what]
        assert {u.param.removeprefix("op.parts.p") for u in arch.axes["stem"].reads} == reads
        oracles.permuting_keeps_the_function(arch, "stem")
        assert oracles.widening_keeps_the_function(arch, "stem") == kept
    finally:
        ops.REGISTRY._classes.pop("test_worked")


def test_a_scale_that_follows_the_width_changes_the_function(raw):
    def attend(q, k, v, **scale):
        return F.scaled_dot_product_attention(*(x.unflatten(2, (2, -1)).transpose(1, 2) for x in (q, k, v)), **scale).transpose(1, 2).flatten(2)

    for name, function in (("follows", attend), ("stays", lambda q, k, v: attend(q, k, v, scale=0.5))):
        nodes = {"x": of("input", shape=(5, 4)), **{n: of("token_linear", "x", width=6) for n in "qkv"}}
        nodes |= {"op": raw(name, function, *"qkv"), "flat": of("flatten", "op"), "y": of("linear", "flat", width=2)}
        arch = Architecture(nodes)
        assert sizes(arch) == {"q": 2, "q~1": 3, "v": 3}
        assert oracles.widening_keeps_the_function(arch, "q~1") == (name == "stays")
        assert oracles.widening_keeps_the_function(arch, "v")


def test_fused_attention_of_the_cpu():
    """The kernel that is not taken apart: the same axes, and MACs by the closed form."""
    q, k, v = (torch.randn(BATCH, 3, 5, 4) for _ in range(3))
    recipe = Recorder().record(of("identity", "x"), "op", F.scaled_dot_product_attention, [q, k, v])
    assert [s.func.overloadpacket.__name__ for s in recipe.steps] == ["_scaled_dot_product_flash_attention_for_cpu"]
    trace = Trace(find)
    inputs = [Labelled(tuple(t.shape), (None, trace.cells.fresh(3), None, trace.cells.fresh(4))) for t in (q, k, v)]
    made = trace.alone(of("identity", "x"), recipe, inputs).values[""]
    heads, widths = ([trace.cells.find(x.labels[d]).tolist() for x in (*inputs, made)] for d in (1, 3))
    assert heads[0] == heads[1] == heads[2] == heads[3] and widths[0] == widths[1] != widths[2] == widths[3]
    assert trace.macs[""] == 3 * 5 * 5 * (4 + 4) and [m.kind for m in trace.marks] == ["bilinear"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, k, v)
    assert counter.get_total_flops() == 2 * BATCH * trace.macs[""]


# Whole networks


class Block(nn.Module):
    """The transformer block as people write it, with an embedding before and a head behind."""

    def __init__(self, fused=False):
        super().__init__()
        self.t, self.n1, self.n2, self.norm = nn.Linear(3, 8), nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.proj = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        self.up, self.down, self.y, self.fused = nn.Linear(8, 5), nn.Linear(5, 8), nn.Linear(8, 3), fused

    def forward(self, x):
        t = self.t(x)
        h = self.n1(t)
        q, k, v = (f(h).view(*h.shape[:2], 2, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1) @ v
        t = t + self.proj(seen.transpose(1, 2).flatten(2))
        return self.y(self.norm(t + self.down(F.gelu(self.up(self.n2(t))))).mean(1))


class Fused(Block):
    def __init__(self):
        super().__init__(True)


@pytest.mark.parametrize("kind", [Block, Fused])
def test_a_block_of_raw_torch_has_the_axes_of_the_ops(raw, kind):
    arch, ours = Architecture({"x": of("input", shape=(5, 3)), "y": raw(kind.__name__, kind, "x")}), transformer()
    slots = {frozenset((s.param.split(".", 1)[1], s.axis) for s in x.slots) for x in arch.axes.values()}
    assert slots == {frozenset((s.param, s.axis) for s in x.slots) for x in ours.axes.values()}
    assert arch.macs == ours.macs and not arch.derived.opaque
    for axis in arch.axes:
        oracles.permuting_keeps_the_function(arch, axis)


# The sizes of all the axes there are, by thought.
AXES = {
    "resnet20": [4] * 4 + [8] * 4 + [16] * 4, "densenet": [4] * 6 + [8, 10] + [16] * 6, "mobilenetv2": [8, 12, 16, 32, 32, 48, 48, 64],
    "seresnet": [2, 4, 4, 8, 8, 16, 16, 16], "inception": [2, 2, 4, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8], "unet": [4] * 4 + [8] * 5 + [16] * 2,
    "vit": [4] * 6 + [16, 32, 32], "tcn": [8, 8, 8, 12, 12], "mixer": [8, 8, 12, 16, 16], "convnext": [8, 12, 32, 32, 48], "autoencoder": [4, 16],
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_axes_of_networks_in_plain_torch(raw, name):
    def build(*_) -> nn.Module:
        model = MODELS[name].build()
        # Segments of names that begin with a digit are not allowed.
        for part in list(model.modules()):
            part._modules = {f"_{k}" if k.isdigit() else k: v for k, v in part._modules.items()}
        return model

    made = raw(name, type(name, (), {"__new__": build}), "x")
    arch = Architecture({"x": of("input", shape=tuple(MODELS[name].example(1).shape[1:])), "y": made})
    assert sorted(sizes(arch).values()) == AXES[name] and not arch.derived.opaque
