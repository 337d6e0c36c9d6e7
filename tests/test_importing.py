"""Models of the user's own, imported: the same outputs, gradients and names; what is not known is kept whole or refused with its place."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from models import MODELS, proofs
from torch import nn

from dagrow.compiler import compile_architecture, parameters_by_name, with_source
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, Refusal, resize
from dagrow.importing import Imported, ImportingError, from_torch
from dagrow.importing.values import Rows


def network(made: Imported) -> nn.Module:
    return compile_architecture(made.arch, made.weights)


def same(made: Imported, model: nn.Module, *inputs: torch.Tensor, training: bool = False) -> None:
    """The same bits, of outputs and of all gradients."""
    grown, model = network(made).train(training), copy.deepcopy(model).train(training)
    torch.manual_seed(3)
    found = grown(*inputs)
    torch.manual_seed(3)
    wanted = model(*inputs)
    for a, b in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (found, wanted)), strict=True):
        assert torch.equal(a, b), (a - b).abs().max()
        (a * torch.linspace(-1, 1, a.numel()).view(a.shape)).sum().backward(retain_graph=True)
        (b * torch.linspace(-1, 1, b.numel()).view(b.shape)).sum().backward(retain_graph=True)
    known = dict(model.named_parameters())
    for name, parameter in parameters_by_name(grown).items():
        mine, theirs = parameter.grad, known[made.names[name]].grad
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert torch.allclose(mine, theirs.reshape(mine.shape), rtol=1e-5, atol=1e-7), name
    for name, buffer in model.named_buffers():
        full = next((k for k, v in made.names.items() if v == name), None)
        if full is not None:
            assert torch.equal(dict(plain_buffers(grown))[full], buffer), name


def plain_buffers(module: nn.Module):
    from dagrow.compiler import plain_name

    return [(plain_name(n), b) for n, b in module.named_buffers()]


def round_trip(made: Imported, model: nn.Module) -> None:
    """Names of the user's recover every tensor."""
    found, wanted = made.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())
    assert Architecture.from_dict(made.arch.to_dict()) == made.arch


class Of(nn.Module):
    """A model of a function, with modules and parameters by keyword."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def ops_of(made: Imported) -> list[str]:
    return [node.op for node in made.arch.nodes.values() if node.op != "input"]


@pytest.mark.parametrize("name", MODELS)
def test_networks_in_plain_pytorch_come_in_to_the_bit(name):
    torch.manual_seed(0)
    model = MODELS[name].build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    x = MODELS[name].example(4)
    before = copy.deepcopy(model.state_dict())
    made = from_torch(model, x)
    assert not made.kept and not made.unused and not made.differs and not made.arch.derived.opaque and made.arch.axes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    round_trip(made, model)
    same(made, model, x)
    same(made, model, MODELS[name].example(7))
    if not any(isinstance(m, nn.Dropout) for m in model.modules()):
        same(made, model, x, training=True)


CASES = {
    "method chains": (lambda m, x: m.b(torch.relu(m.a(x)).view(x.shape[0], -1)), lambda: {"a": nn.Linear(6, 4), "b": nn.Linear(4, 3)}, (5, 6), "linear relu linear"),
    "arithmetic": (lambda m, x: (m.a(x) * 2 - 1) / 3 + m.a(x).sigmoid() ** 2, lambda: {"a": nn.Linear(6, 4)}, (5, 6), None),
    "in place": (lambda m, x: inplace(m.a(x)), lambda: {"a": nn.Linear(6, 4)}, (5, 6), "linear scale call tanh scale add"),
    "gate": (lambda m, x: m.a(x) * torch.sigmoid(m.a(x).mean((2, 3), keepdim=True)), lambda: {"a": nn.Conv2d(3, 4, 3)}, (5, 3, 8, 8), None),
    "chunk": (lambda m, x: F.glu(m.a(x), 1) + gated(*m.a(x).chunk(2, 1)), lambda: {"a": nn.Linear(6, 8)}, (5, 6), None),
    "split": (lambda m, x: torch.cat(m.a(x).split([3, 5], 1)[::-1], 1), lambda: {"a": nn.Linear(6, 8)}, (5, 6), "linear slice slice concat"),
    "slices": (lambda m, x: m.a(x)[:, 1:-1, ..., ::2][..., None].squeeze(-1), lambda: {"a": nn.Conv1d(3, 4, 3)}, (5, 3, 9), None),
    "packed heads": (lambda m, x: packed(m, x), lambda: {"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8)}, (4, 5, 8), None),
    "batch elsewhere": (lambda m, x: m.a(x.transpose(0, 1)).relu().transpose(0, 1), lambda: {"a": nn.Linear(6, 4)}, (5, 7, 6), "token_linear relu"),
    "folded rows": (lambda m, x: torch.relu(m.a(x.view(-1, 6))).view(x.shape[0], 7, 4), lambda: {"a": nn.Linear(6, 4)}, (5, 7, 6), None),
    "a parameter added": (lambda m, x: x + m.pos, lambda: {"pos": nn.Parameter(torch.randn(1, 7, 6))}, (5, 7, 6), "position"),
    "a parameter for channels": (lambda m, x: m.a(x) * m.g.view(1, -1, 1, 1) + m.b[:, None, None], lambda: {"a": nn.Conv2d(3, 4, 3), "g": nn.Parameter(torch.randn(4)), "b": nn.Parameter(torch.randn(4))}, (5, 3, 8, 8), None),
    "a scale": (lambda m, x: m.g * x, lambda: {"g": nn.Parameter(torch.randn(6))}, (5, 6), "layer_scale"),
    "a class token": (lambda m, x: torch.cat([m.cls.expand(x.size(0), -1, -1), x], 1)[:, 0], lambda: {"cls": nn.Parameter(torch.randn(1, 1, 6))}, (5, 7, 6), None),
    "a buffer": (lambda m, x: torch.where(m.mask > 0, x, x.exp()) * m.a, lambda: {"mask": torch.randn(6), "a": nn.Parameter(torch.ones(1))}, (5, 6), None),
    "einsum": (lambda m, x: torch.einsum("bij,kj->bik", x, m.w), lambda: {"w": nn.Parameter(torch.randn(4, 6))}, (5, 7, 6), "call"),
    "normal": (lambda m, x: F.normalize(m.a(x), dim=1), lambda: {"a": nn.Linear(6, 4)}, (5, 6), None),
    "masked": (lambda m, x: (x * m.a).masked_fill(x > 0, float("-inf")).exp(), lambda: {"a": nn.Parameter(torch.ones(1))}, (5, 6), None),
    "activations": (lambda m, x: m.s(m.a(x)), lambda: {"a": nn.Linear(6, 4), "s": nn.Sequential(*ACTIVATIONS)}, (5, 6), None),
    "functional": (lambda m, x: functional(m, x), lambda: {"w": nn.Parameter(torch.randn(4, 3, 3, 3)), "b": nn.Parameter(torch.randn(4))}, (5, 3, 8, 8), None),
    "convolutions": (lambda m, x: m.s(x), lambda: {"s": nn.Sequential(*CONVOLUTIONS)}, (2, 4, 16, 16), None),
    "pools": (lambda m, x: m.s(x), lambda: {"s": nn.Sequential(nn.Conv2d(4, 4, 1), *POOLS)}, (2, 4, 16, 16), None),
    "norms": (lambda m, x: m.s(x), lambda: {"s": nn.Sequential(*NORMS)}, (3, 4, 6, 6), None),
    "upsampling": (lambda m, x: F.interpolate(m.u(m.t(x)), size=(9, 10), mode="bilinear"), lambda: {"t": nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), "u": nn.Upsample(scale_factor=2)}, (2, 3, 4, 4), "conv_transpose2d upsample upsample"),
    "multi-head": (lambda m, x: m.a(x, x, x)[0], lambda: {"a": nn.MultiheadAttention(8, 2, batch_first=True)}, (4, 5, 8), None),
    "an encoder layer": (lambda m, x: m.a(x), lambda: {"a": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)}, (4, 5, 8), None),
    "a table": (lambda m, x: m.e(x).mean(1), lambda: {"e": nn.Embedding(11, 6)}, "ids", None),
    "sizes": (lambda m, x: sizes(m, x), lambda: {"a": nn.Linear(6, 6)}, (5, 7, 6), None),
    "straight through": (lambda m, x: m.a(x) + (torch.round(m.a(x)) - m.a(x)).detach(), lambda: {"a": nn.Linear(6, 4)}, (5, 6), None),
    "one output twice": (lambda m, x: (m.a(x),) * 2, lambda: {"a": nn.Linear(6, 4)}, (5, 6), "linear identity"),
    "several outputs": (lambda m, x: (m.a(x), [m.b(x)][0]), lambda: {"a": nn.Linear(6, 4), "b": nn.Linear(6, 2)}, (5, 6), "linear linear"),
    "rows made in forward": (lambda m, x: torch.cat([m.a(x), x.new_zeros(x.shape[0], 2), torch.ones_like(x)], 1), lambda: {"a": nn.Linear(6, 4)}, (5, 6), None),
    "windows": (lambda m, x: windows(m.a(x)), lambda: {"a": nn.Linear(6, 6)}, (2, 4, 4, 6), None),
    "a language model": (lambda m, x: language(m, x), lambda: {"e": nn.Embedding(11, 8), "p": nn.Embedding(9, 8), "l": nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True), "mask": nn.Transformer.generate_square_subsequent_mask(9)}, "ids", None),
    "a table of what is computed": (lambda m, x: m.s(m.e((x * 9).flatten(1).long().clamp(0, 10))).mean(1), lambda: {"e": nn.Embedding(11, 6), "s": nn.Linear(6, 2)}, (5, 2, 3), "scale flatten call embedding token_linear mean"),
    "rows that lie apart": (lambda m, x: m.b(torch.relu(m.a(x))[:, -1]), lambda: {"a": nn.Linear(6, 7), "b": nn.Linear(7, 6)}, (5, 8, 6), None),
    "a table with padding": (lambda m, x: m.e(x).mean(1), lambda: {"e": nn.Embedding(11, 6, padding_idx=0)}, "ids", None),
    "named results": (lambda m, x: m.a(x).max(1)[0] + m.a(x).sort(1).values[:, 0] + torch.topk(m.a(x), 2, dim=1)[0].sum(1), lambda: {"a": nn.Linear(6, 4)}, (5, 7, 6), None),
    "casts": (lambda m, x: m.a(x.float().to(x.device).type_as(x)).cpu() * (x[:, :4] > 0).float(), lambda: {"a": nn.Linear(6, 4)}, (5, 6), None),
    "formats": (lambda m, x: (f"{x.shape} {x.mean()}", m.a(x))[1], lambda: {"a": nn.Linear(6, 4)}, (5, 6), "linear"),
    "unbound": (lambda m, x: sum(torch.relu(t) for t in m.a(x).unbind(1)), lambda: {"a": nn.Linear(6, 4)}, (5, 3, 6), None),
    "asks what it has": (lambda m, x: m.a(x) if isinstance(x, torch.Tensor) and torch.is_tensor(x) and not isinstance(x, (int, list)) else x, lambda: {"a": nn.Linear(6, 4)}, (5, 6), "linear"),
    "a checkpoint": (lambda m, x: torch.utils.checkpoint.checkpoint(m.a, x, use_reentrant=False), lambda: {"a": nn.Linear(6, 4)}, (5, 6), "linear"),
    "a dictionary of modules": (lambda m, x: m.d["b"](m.d["a"](x)), lambda: {"d": nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)})}, (5, 6), "linear linear"),
}  # fmt: skip
ACTIVATIONS = [
    nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.ELU(0.7), nn.SELU(), nn.Softplus(2.0), nn.Hardswish(), nn.Hardsigmoid(), nn.ReLU6(), nn.Mish(),
    nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.2), nn.PReLU(), nn.CELU(), nn.Softsign(), nn.LogSigmoid(), nn.Threshold(0.1, 0.2), nn.Softmax(1), nn.LogSoftmax(dim=1), nn.Identity(),
]  # fmt: skip
CONVOLUTIONS = [
    nn.Conv2d(4, 8, 3, padding="same"), nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=4), nn.Conv2d(8, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
    nn.Conv2d(6, 4, 2, padding_mode="reflect", padding=1), nn.PixelShuffle(2), nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(1, 4, 4),
]  # fmt: skip
POOLS = [nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.LPPool2d(2, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
NORMS = [
    nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([6, 6]), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None),
    nn.LocalResponseNorm(2), nn.Dropout2d(0.0),
]  # fmt: skip


def inplace(x):
    y = x
    x *= 3
    x += 1
    torch.tanh_(x)
    return y * 1 + x


def windows(x):
    b, h, w, c = x.shape
    parts = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c).softmax(1)
    return parts.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, c)


def language(m, ids):
    t = ids.size(1)
    x = m.l(m.e(ids) + m.p(torch.arange(t)), src_mask=m.mask[:t, :t])
    return F.linear(x, m.e.weight)


def gated(x, gate):
    return x * torch.sigmoid(gate)


def packed(m, x):
    b, n, c = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
    return m.out((attention @ v).transpose(1, 2).flatten(2))


def functional(m, x):
    x = F.conv2d(x, m.w, m.b, padding=1)
    return F.pad(F.max_pool2d(F.leaky_relu(x, 0.1), 2), (1, 1)).flatten(1)


def writes(m, x):
    y = x * 1
    y[:, 0] = 0
    return y


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


@torch.no_grad()
def without(m, x):
    return m.a(x)


def counts(m, x):
    m.count += 1
    return x + m.count


def sizes(m, x):
    assert x.dim() == 3 and x.shape[1] == 7 and len(x.shape) == 3
    if x.shape[2] > 5:
        for _ in range(x.size(1) // 3):
            x = m.a(x)
    return x.reshape(x.size(0), x.shape[1] * x.shape[2])


@pytest.mark.parametrize("case", CASES)
def test_what_people_write_comes_in(case):
    function, parts, shape, ops = CASES[case]
    torch.manual_seed(1)
    model = Of(function)
    for name, part in parts().items():
        model.register_buffer(name, part) if type(part) is torch.Tensor else setattr(model, name, part)
    x = torch.randint(0, 11, (4, 5)) if shape == "ids" else torch.randn(shape)
    made = from_torch(model, x)
    if ops is not None:
        assert " ".join(ops_of(made)) == ops
    round_trip(made, model)
    if not made.differs:
        same(made, model, x)
        if not any(isinstance(m, nn.Dropout | nn.MultiheadAttention) and getattr(m, "p", m) for m in model.modules()):
            same(made, model, x, training=True)
    with with_source(network(made).eval()) as module:
        scripted = torch.jit.script(module)
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (scripted(x), network(made).eval()(x))), strict=True):
        assert torch.equal(a, b)


def test_what_is_rounded_otherwise_is_said_and_near():
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
    x = torch.randn(4, 5, 8)
    made = from_torch(model, x)
    assert set(made.differs) and "rounded otherwise" in made.notes()[-1] and not made.kept
    assert torch.allclose(network(made).eval()(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    assert ops_of(made).count("attention") == 1 and ops_of(made).count("dropout") == 4  # of the weights, too, in the first
    round_trip(made, model)


def test_modules_called_twice_and_shared_parameters_are_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.out = nn.Embedding(7, 4), nn.BatchNorm1d(5), nn.Linear(4, 7, bias=False)
            self.out.weight = self.table.weight
            self.again = self.norm

        def forward(self, x):
            return self.out(self.again(torch.relu(self.norm(self.table(x)))))

    model, x = Tied(), torch.randint(0, 7, (3, 5))
    made = from_torch(model, x)
    assert made.arch.size == sum(p.numel() for p in model.parameters()) and dict(made.arch.nodes["out"].tied) == {"weight": "table.weight"}
    assert made.shared == {"out.weight": "table.weight", **{f"again.{n}": f"norm.{n}" for n in dict([*model.norm.named_parameters(), *model.norm.named_buffers()])}}
    round_trip(made, model)
    same(made, model, x)
    same(made, model, x, training=True)
    alike = Tied()
    alike.load_state_dict(made.state_dict())
    assert torch.equal(alike.eval()(x), model.eval()(x))


def test_what_forward_leaves_out_is_said_and_comes_back():
    model = Of(lambda m, x: m.a(x), a=nn.Linear(4, 2), unused=nn.Linear(3, 3))
    made = from_torch(model, torch.randn(3, 4))
    assert made.unused == ("unused.weight", "unused.bias") and "unused.weight" in made.notes()[0]
    round_trip(made, model)


def test_a_frozen_parameter_is_known_as_one():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    assert from_torch(model, torch.randn(3, 4)).frozen == {"_0.weight"}
    mixer = MODELS["mixer"].build().requires_grad_(False)
    made = from_torch(mixer, MODELS["mixer"].example(3))  # torch takes other kernels where nothing requires gradients
    assert not made.kept and made.frozen == set(made.names)


# -- kept whole ------------------------------------------------------------------------------------------------------


class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        if x.sum() > 0:
            return self.a(x)
        return -self.a(x)


class Hook:
    def __call__(self, module, inputs, output):
        return output * 2


class Parts(nn.Module):
    """Parts with numbers and keys for names, and one that does other things in training."""

    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 6)))
        self.table = nn.ModuleDict({"3x3": nn.Linear(6, 6), "1-1": Noise()})

    def forward(self, x):
        return self.table["1-1"](self.chain(x) + self.table["3x3"](x))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


def hooked():
    module = nn.Linear(6, 6)
    module.register_forward_hook(Hook())
    return module


KEPT = {
    "asked for": (lambda m, x: m.k(m.a(x)), lambda: {"a": nn.Linear(6, 6), "k": Chooses()}, ["k"], "as asked"),
    "its class asked for": (lambda m, x: m.k(m.a(x)), lambda: {"a": nn.Linear(6, 6), "k": Chooses()}, [Chooses], "as asked"),
    "recurrent": (lambda m, x: m.k(m.a(x))[0], lambda: {"a": nn.Linear(6, 6), "k": nn.LSTM(6, 5, batch_first=True)}, [], "recurrent"),
    "its last state": (lambda m, x: m.k(m.a(x))[1][-1], lambda: {"a": nn.Linear(6, 6), "k": nn.GRU(6, 5, 2, batch_first=True)}, [], "recurrent"),
    "weight norm": (lambda m, x: m.k(m.a(x)), lambda: {"a": nn.Linear(6, 6), "k": nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))}, [], "parametrized"),
    "parts of every name": (lambda m, x: m.k(m.a(x)), lambda: {"a": nn.Linear(6, 6), "k": Parts()}, "k", "as asked"),
    "spectral norm": (lambda m, x: m.k(m.a(x)), lambda: {"a": nn.Linear(6, 6), "k": nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))}, [], "parametrized"),
    "hooks": (lambda m, x: m.k(m.a(x)), lambda: {"a": nn.Linear(6, 6), "k": hooked()}, [], "hooks"),
    "two inputs": (lambda m, x: m.k(m.a(x), x), lambda: {"a": nn.Linear(6, 6), "k": nn.Bilinear(6, 6, 3)}, ["k"], "as asked"),
    "two calls": (lambda m, x: m.k(m.k(m.a(x))), lambda: {"a": nn.Linear(6, 6), "k": Chooses()}, ["k"], "as asked"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_whole_trains_and_is_frozen(case):
    function, parts, opaque, reason = KEPT[case]
    torch.manual_seed(0)
    model, x = Of(function, **parts()), torch.randn(4, 7, 6)
    made = from_torch(model, x, opaque=opaque)
    assert all(reason in why for why in made.kept.values()) and "never grown through" in made.notes()[0]
    kind = f"{type(model.k).__module__}.{type(model.k).__qualname__}"
    assert list(made.arch.derived.opaque) == [kind] and not made.arch.axes
    round_trip(made, model)
    same(made, model, x)
    same(made, model, x, training=True)
    grown = network(made).train()
    before = {n: p.detach().clone() for n, p in parameters_by_name(grown).items()}
    optimizer = torch.optim.SGD(grown.parameters(), 0.1)
    grown(x).square().mean().backward()
    optimizer.step()
    assert not any(torch.equal(p, before[n]) for n, p in parameters_by_name(grown).items())
    with torch.no_grad():  # it computes with what has been trained, though it may hold its tensors twice
        again = Imported(made.arch, {n: t.detach() for n, t in [*parameters_by_name(grown).items(), *plain_buffers(grown)]}, {}, {})
        assert torch.equal(network(again).eval()(x), grown.eval()(x))


def test_a_module_kept_whole_has_to_be_there():
    model = Of(lambda m, x: m.k(x), k=Chooses())
    plain = from_torch(model, torch.randn(3, 6), opaque=["k"]).arch.to_dict()
    plain["nodes"]["k"]["key"] = plain["nodes"]["k"]["key"].replace("k=", "gone=")
    with pytest.raises(GraphError, match=r"gone, a .*Chooses is not here(.|\n)*--allow-code"):
        Architecture.from_dict(plain).shapes  # noqa: B018


def test_a_layer_before_what_is_kept_whole_grows_up_to_it():
    model = Of(lambda m, x: m.k(m.b(torch.relu(m.a(x)))), a=nn.Linear(6, 9), b=nn.Linear(9, 6), k=Chooses())
    made = from_torch(model, torch.randn(3, 6), opaque=["k"])
    assert list(made.arch.axes) == ["a"]
    wider = resize(made.arch, {"a": (*range(9), -1)})
    assert not isinstance(wider, Refusal) and wider.arch.size == made.arch.size + 13


# -- refused ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "a test of values": (lambda m, x: x if x.mean() > 0 else -x, "depends on the values of a tensor", "torch.where"),
    "item": (lambda m, x: x * x.max().item(), "values of a tensor", "torch.where"),
    "rows one by one": (lambda m, x: torch.stack([r * 2 for r in x]), "rows of the batch one by one", "torch.where"),
    "writes into a part": (writes, "writes into a part", "torch.cat"),
    "a batch norm by hand": (lambda m, x: x - x.mean(0), "all rows of a batch", "opaque"),
    "a dictionary": (lambda m, x: {"y": x * 2}, "returns a mapping", "tuple of tensors"),
    "a number": (lambda m, x: 3, "returns a int", "tuple of tensors"),
    "the number of rows": (lambda m, x: x * 2 if x.shape[0] > 2 else x, "depends on the number of rows", None),
    "training": (lambda m, x: x * 2 if m.training else x * 3, "in training the model does other things", "opaque"),
    "a module of the moment": (lambda m, x: nn.Linear(6, 2)(x), "made in forward", "__init__"),
    "an error of its own": (lambda m, x: x @ torch.ones(5, 5), "fails on the example input", None),
    "the batch last": (lambda m, x: m.a(x).t(), "batch at dimension 1", None),
    "a batch norm without statistics": (lambda m, x: nn.functional.batch_norm(x, None, None, training=True), "depends on the other rows", "running statistics"),
    "tokens first": (lambda m, x: m.attend(x, x, x)[0], "depends on the other rows", "batch first"),
    "no gradients": (lambda m, x: m.a(x) + without(m, x), "without gradients", "detach()"),
    "zeros of its own": (lambda m, x: x + torch.zeros(x.shape[0], 6), "works with 2 rows, not with 3", "x.new_zeros"),
    "a backward of its own": (lambda m, x: Sign.apply(m.a(x)), "Sign has a backward of its own", "opaque"),
    "compiled": (None, "torch.compile has been applied", "_orig_mod"),
    "counts": (counts, "changes a buffer", None),
    "numpy": (lambda m, x: torch.as_tensor(x.numpy() * 2), "values of a tensor", None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_come_in_is_refused_with_its_line(case):
    function, message, way_out = REFUSED[case]
    model = Of(function, a=nn.Linear(6, 4), attend=nn.MultiheadAttention(6, 2))
    model.register_buffer("count", torch.zeros(6))
    if function is None:
        model._orig_mod = nn.Identity()
    with pytest.raises(ImportingError) as caught:
        from_torch(model, torch.randn(4, 5, 6) if case == "tokens first" else torch.randn(4, 6))
    text = str(caught.value)
    assert message in text, text
    assert way_out is None or way_out in text, text
    assert model.training
    if "returns" not in text and "other rows" not in text and function is not None and "an output" not in text and "in training" not in text:
        assert caught.value.place and caught.value.place.startswith(__file__) and "lambda" in text or "def " not in text


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Linear(4, 2), torch.randn(4), "batch of rows"), (nn.Linear(4, 2), {"x": torch.randn(2, 4)}, "mapping"), (nn.Linear(4, 2), "x", "not a tensor"),
        (nn.Linear(4, 2), torch.randn(0, 4), "batch of rows"), (nn.Linear(4, 2), torch.randn(2, 4, dtype=torch.complex64), "complex"), (nn.Linear(4, 2), [], "no example"), (3, torch.randn(2, 4), "no nn.Module"), (nn.Identity, torch.randn(2, 4), "is a class"),
        (nn.Linear(4, 2), torch.randn(2, 5), "fails on the example input"), (nn.Linear(4, 2), [torch.randn(2, 4), 3], "not a tensor"),
    ],
)  # fmt: skip
def test_wrong_examples_are_said(model, example, message):
    with pytest.raises(ImportingError, match=message):
        from_torch(model, example)


def test_opaque_names_a_module_there_is():
    with pytest.raises(ImportingError, match="no module 'heed'(.|\n)*did you mean 'head'"):
        from_torch(Of(lambda m, x: m.head(x), head=nn.Linear(4, 2)), torch.randn(2, 4), opaque=["heed"])


@pytest.mark.parametrize("name", ["a b", "x;import os", "0", "é", "n_x", "forward_", "input", "graph", "code", "a" * 100, "\x1b[31m", "from", "relu"])
def test_hostile_names_become_names_of_nodes(name):
    model = nn.Sequential()
    model.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    model.add_module("end", nn.Linear(4, 2))
    x = torch.randn(3, 4)
    made = from_torch(model, x)
    round_trip(made, model)
    same(made, model, x)



# -- what the example, or evaluation, does not show -------------------------------------------------------------------


def dropped(m, x):
    h = m.a(x)
    m.drop(h[:, :3])
    return h


def halves(m, x):
    h = m.a(x)
    one, other = h.chunk(2, 1)
    one += other
    return h


def through(m, x):
    h = m.a(x)
    h.detach().mul_(2)
    return h


UNSEEN = {
    "a constant of training": (lambda m, x: m.a(x) + torch.ones(6) * m.training, "first at 'add.w0'"),
    "noise of training": (lambda m, x: m.a(x) + torch.randn(6) * m.training, "first at 'add.w0'"),
    "a forward of its own": (lambda m, x: m.patched(x), "in training the model does other things"),
    "frozen by train": (lambda m, x: m.frozen(x), "'frozen.norm' stays in evaluation mode"),
    "a part dropped in place": (dropped, "written into by way of another view"),
    "a part summed in place": (halves, "written into by way of another view"),
    "past autograd": (through, "written into by way of another view"),
    "more than 32 rows": (lambda m, x: m.a(x) * 2 if x.shape[0] > 32 else m.a(x), "depends on the number of rows"),
    "a quarter of the rows": (lambda m, x: m.a(x) * (1 + x.shape[0] // 16), "computes with the number of rows"),
    "the lesser number": (lambda m, x: m.a(x) * min(x.shape[0], 6), "depends on the number of rows"),
    "a whole number": (lambda m, x: m.a(x) * 2 if int(x.shape[0]) > 8 else m.a(x), "outputs on 67 rows"),
    "the first rows": (lambda m, x: m.a(x)[:8], "outputs on 67 rows"),
    "pieces of eight": (lambda m, x: torch.cat([t * (1 + k) for k, t in enumerate(m.a(x).split(8))]), "outputs on 67 rows"),
    "some of the rows": (lambda m, x: m.a(x)[x[:, 0] > -9], "sizes are not known beforehand"),
    "no derivative": (lambda m, x: m.a(x).copy_(m.a(x) * 2), "has no gradients"),
}


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize("case", UNSEEN)
def test_what_neither_the_example_nor_evaluation_shows_is_refused(case):
    function, message = UNSEEN[case]
    model = Of(function, a=nn.Linear(6, 6), drop=nn.Dropout(0.5, inplace=True), patched=nn.Linear(6, 6), **({"frozen": Frozen()} if "frozen" in case else {}))
    model.patched.forward = lambda x: nn.functional.linear(x, model.patched.weight) * (2 if model.patched.training else 1)
    with pytest.raises(ImportingError, match=message):
        from_torch(model, torch.randn(4, 6))
    assert model.training


@pytest.mark.parametrize("example", [torch.randn(1, 6), torch.ones(4, 6), torch.zeros(4, 6)])
@pytest.mark.parametrize("mixing", [lambda x: x.flip(0), lambda x: x.roll(1, 0), lambda x: x.sort(0)[0]])
def test_rows_that_are_all_the_same_hide_nothing(example, mixing):
    with pytest.raises(ImportingError, match="depends on the other rows"):
        from_torch(Of(lambda m, x: mixing(m.a(x)), a=nn.Linear(6, 6)), example)


def test_statistics_that_training_changes_are_read_as_they_are():
    model = Of(lambda m, x: m.norm(m.a(x)) * m.norm.running_var.sqrt() * (1 + m.norm.num_batches_tracked), a=nn.Linear(6, 6), norm=nn.BatchNorm1d(6))
    x = torch.randn(4, 6)
    made = from_torch(model, x)
    grown, model = network(made).train(), model.train()
    for _ in range(2):
        assert torch.equal(grown(x), model(x))


def test_a_norm_by_itself_is_no_function_of_rows():
    with pytest.raises(ImportingError, match="in training mode"):
        from_torch(nn.BatchNorm1d(6), torch.randn(4, 6))
    volumes = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.BatchNorm3d(1), nn.Flatten())
    x = torch.randn(4, 2, 3, 3)
    made = from_torch(volumes, x)
    assert list(made.kept.values()) == ["dagrow has no op for it"]
    same(made, volumes, x, training=True)


def test_parts_written_into_one_by_one_come_in():
    """A unit of ShuffleNet with activations in place: the halves do not lie in one another."""

    def function(m, x):
        h = m.a(x)
        one, other = h[:, :3], h[:, 3:]
        return torch.cat([one, m.b(m.act(other))], 1)

    model, x = Of(function, a=nn.Linear(6, 6), b=nn.Linear(3, 3), act=nn.ReLU(inplace=True)), torch.randn(4, 6)
    made = from_torch(model, x)
    assert torch.equal(network(made).eval()(x), model.eval()(x))


def test_len_is_a_size():
    model, x = Of(lambda m, x: m.a(x).view(len(x), 2, 3), a=nn.Linear(6, 6)), torch.randn(4, 6)
    same(from_torch(model, x), model, x)


def test_what_forward_stores_is_no_stand_in():
    def function(m, x):
        h = m.a(x)
        if m.training:
            m.last = h
            m.seen.append(h)
        return h

    model = Of(function, a=nn.Linear(6, 6), seen=[])
    from_torch(model, torch.randn(4, 6))
    assert not hasattr(model, "last") and model.seen == []


# -- the number of rows ----------------------------------------------------------------------------------------------


def test_sizes_that_depend_on_the_rows_stay_so():
    rows = Rows((2, 3))
    assert (rows * 4).times == 4 and (4 * rows).times == 4 and rows // rows == 1 and rows * 6 // rows == 6 and (rows + rows).times == 2
    assert rows == Rows((2, 3)) and rows != 0 and rows > 0
    with pytest.raises(ImportingError, match="depends on the number of rows"):
        bool(rows == 2)


# -- call ------------------------------------------------------------------------------------------------------------


def test_an_expression_resizes_with_what_it_reads():
    model = Of(lambda m, x: m.b(torch.cat([torch.sin(m.a(x)), m.a(x) + 1], 1)), a=nn.Linear(4, 6), b=nn.Linear(12, 2))
    made = from_torch(model, torch.randn(3, 4))
    assert ops_of(made).count("call") == 2 and made.arch.axes["a"].size == 6
    for index in ((0, 1, 2, -1, 3, 4, 5), (5, 0), (3,)):
        rewrite = resize(made.arch, {"a": index})
        assert not isinstance(rewrite, Refusal) and rewrite.arch.params["b.weight"] == (2, 2 * len(index))


@pytest.mark.parametrize(
    ("function", "axes"),
    [
        (lambda m, x: m.b(F.normalize(m.a(x), dim=1)), {"a": 6}), (lambda m, x: m.b(torch.einsum("bi,ij->bj", m.a(x), m.w)), {"a": 6, "einsum": 6}),
        (lambda m, x: m.b(sum(p for p in (m.a(x), torch.sin(m.a(x))))), {"a": 6}), (lambda m, x: m.b(m.a(x)[:, None].expand(-1, 3, -1).mean(1)), {"a": 6}),
        (lambda m, x: m.b(m.a(x).view(-1, 2, 3).softmax(2).reshape(x.shape[0], 6)), {"a": 2, "a~1": 3}),
        (lambda m, x: m.b(torch.stack([m.a(x), m.a(x)], 1).amax(1)), {"a": 6}), (lambda m, x: m.b(F.glu(torch.cat([m.a(x)] * 2, 1), 1)), {"a": 6}),
    ],
)  # fmt: skip
def test_what_torch_spreads_by_itself_has_no_sizes(function, axes):
    made = from_torch(Of(function, a=nn.Linear(4, 6), b=nn.Linear(6, 2), w=nn.Parameter(torch.randn(6, 6))), torch.randn(3, 4))
    assert {name: axis.size for name, axis in made.arch.axes.items()} == axes
    for name, axis in made.arch.axes.items():
        assert not isinstance(resize(made.arch, {name: (*range(axis.size), -1)}), Refusal), name


BAD = [
    ["from_file", ["words"], []], ["load_library", ["words"], []], ["add_", [["in", 0], 1], []], ["add", [["in", 0], 1], [["out", ["in", 0]]]],
    ["add", [["in", 0], 1], [["x=__import__('os')", 1]]], ["_dispatch", [["in", 0]], []], ["item", [["in", 0]], []], ["__class__", [], []],
    ["sin", ["/etc/passwd"], []], ["sin", [["step", 0]], []], ["sin", [["own", "w9"]], []], ["sin", [["in", -1]], []], ["sin", [["eval", "1"]], []],
    ["sin", [2**70], []], ["sin", [float("nan")], []], ["randn", [["list", 3]], []], "sin", ["sin"], [3, [], []], ["sin", [["in", 0]], [["device", "cuda"]]],
]  # fmt: skip


@pytest.mark.parametrize("step", BAD, ids=str)
def test_a_call_runs_functions_of_tensors_and_nothing_else(step):
    with pytest.raises(ValueError, match="."):
        Node.of("call", "x", steps=[step])


@pytest.mark.parametrize("step", [
    ("view", (("in", 0), ("list", 2**40, 2**40, -1)), ()), ("expand", (("in", 0), ("list", 2**31, 2**31)), ()),
    ("new_empty", (("in", 0), ("list", 4)), ()), ("embedding_dense_backward", (("in", 0), ("in", 0), 4, 0, False), ()),
    ("mkldnn_rnn_layer", (("in", 0),), ()), ("quantized_lstm_cell", (("in", 0),), ()),
    ("special_laguerre_polynomial_l", (("in", 0), 2**62), ()), ("chunk", (("in", 0), 2**40), ()),
])  # fmt: skip
def test_a_call_that_could_end_the_process_is_refused(step):
    with pytest.raises(ValueError, match="."):
        Node.of("call", "x", steps=(step,))


def test_a_sum_with_its_own_transpose_is_zero_on_both_sides_for_new_units():
    for mixed in (lambda w: w + w.t(), lambda w: (w - w.t()).tanh()):
        made = from_torch(Of(lambda m, x: m.b(m.a(x) @ mixed(m.w)), a=nn.Linear(6, 5), b=nn.Linear(5, 3), w=nn.Parameter(torch.randn(5, 5))), torch.randn(4, 6))
        proofs.resized(made.arch, proofs.Tally())
        wide = resize(made.arch, {"a": (*range(5), -1)})
        assert {("matmul.w0", 0), ("matmul.w0", 1)} <= set(wide.zero)


def test_a_call_that_takes_the_machines_memory_is_refused():
    steps = [["repeat", [["in", 0], ["list", 1, 2**20]], []], ["repeat", [["step", 0], ["list", 1, 2**20]], []], ["mean", [["step", 1], ["list", 1], True], []]]
    with pytest.raises(GraphError, match="values, more than"):
        Architecture({"x": Node.of("input", shape=(3,)), "op": Node.of("call", "x", steps=steps)}).shapes  # noqa: B018


@pytest.mark.parametrize("name", ["forward", "training", "n_w", "a.b", "a b", "", "work", "steps", "_parameters", "__class__"])
def test_own_tensors_have_plain_names(name):
    with pytest.raises(ValueError, match="."):
        Node.of("call", "x", steps=[["mul", [["in", 0], ["own", name]], []]], own=[[name, [3], "float32", True]])


@pytest.mark.parametrize("attend", [
    lambda m, x: m.a(x[:, :2], x, x)[0], lambda m, x: m.a(x, x, x, key_padding_mask=x[:, :, 0] > 1.0)[0],
])  # fmt: skip
def test_a_tensor_that_is_given_twice_is_one(attend):
    """torch's attention asks whether keys are the values."""
    torch.manual_seed(0)
    model, x = Of(attend, a=nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(4, 5, 8)
    made = from_torch(model, x)
    assert torch.allclose(network(made).eval()(x), model.eval()(x), atol=1e-6)
