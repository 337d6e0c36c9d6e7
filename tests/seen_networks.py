"""Small networks of every kind, in double precision, with evidence about them: for tests of measuring, scoring and editing. Not a test."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from dagrow import losses
from dagrow.applying import Applied, Part, apply
from dagrow.compiler import compile_architecture
from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture, Node, Refusal
from dagrow.measure import Evidence, Site, measure
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores import Proposal, serving

of = Node.of


def _mlp():
    return {
        "x": of("input", shape=(5,)), "h1": of("linear", "x", width=4), "a1": of("tanh", "h1"),
        "h2": of("linear", "a1", width=3, bias=False), "n2": of("batchnorm", "h2"), "a2": of("relu", "n2"),
        "y": of("linear", "a2", width=3),
    }  # fmt: skip


def _residual():
    return {
        "x": of("input", shape=(4,)), "stem": of("linear", "x", width=5), "a": of("gelu", "stem"), "mid": of("linear", "a", width=3),
        "b": of("tanh", "mid"), "back": of("linear", "b", width=5), "join": of("add", "stem", "back"), "c": of("relu", "join"),
        "y": of("linear", "c", width=3),
    }  # fmt: skip


def _concat():
    return {
        "x": of("input", shape=(2, 6, 6)), "l": of("conv2d", "x", channels=3, kernel=3), "r": of("conv2d", "x", channels=2, kernel=1),
        "al": of("tanh", "l"), "ar": of("silu", "r"), "cat": of("concat", "al", "ar"),
        "mix": of("conv2d", "cat", channels=4, kernel=3, stride=2), "am": of("tanh", "mix"), "g": of("global_avg_pool", "am"),
        "y": of("linear", "g", width=3),
    }  # fmt: skip


def _conv():
    return {
        "x": of("input", shape=(1, 6, 6)), "c1": of("conv2d", "x", channels=3, kernel=3, bias=False), "n1": of("batchnorm", "c1"),
        "a1": of("relu", "n1"), "p": of("max_pool", "a1", kernel=2), "c2": of("conv2d", "p", channels=4, kernel=3, padding=0),
        "a2": of("tanh", "c2"), "f": of("flatten", "a2"), "y": of("linear", "f", width=3),
    }  # fmt: skip


def _depthwise():
    return {
        "x": of("input", shape=(2, 5, 5)), "up": of("conv2d", "x", channels=4, kernel=1), "a": of("tanh", "up"),
        "dw": of("conv2d", "a", channels=4, kernel=3, groups=4), "n": of("batchnorm", "dw"), "b": of("relu", "n"),
        "down": of("conv2d", "b", channels=3, kernel=1), "c": of("tanh", "down"), "p": of("avg_pool", "c", kernel=2),
        "f": of("flatten", "p"), "y": of("linear", "f", width=3),
    }  # fmt: skip


def _shared():
    return {
        "x": of("input", shape=(4,)), "a": of("linear", "x", width=3), "b": of("linear", "x", width=3), "sa": of("tanh", "a"),
        "sb": of("relu", "b"), "sum": of("add", "sa", "sb"), "up": of("linear", "sum", width=3), "side": of("linear", "sa", width=3),
        "y": of("add", "up", "side"),
    }  # fmt: skip


def _sequence():
    return {
        "x": of("input", shape=(2, 9)), "c1": of("conv1d", "x", channels=3, kernel=3, stride=2, padding=1), "a": of("tanh", "c1"),
        "c2": of("conv1d", "a", channels=2, kernel=2, padding=1), "b": of("relu", "c2"), "f": of("flatten", "b"),
        "y": of("linear", "f", width=3),
    }  # fmt: skip


def _twice():
    """One tensor read at two places of a concat, once pooled."""
    return {
        "x": of("input", shape=(1, 4, 4)), "c": of("conv2d", "x", channels=3, kernel=3), "a": of("tanh", "c"), "f": of("flatten", "a"),
        "g": of("global_avg_pool", "a"), "cat": of("concat", "f", "g"), "y": of("linear", "cat", width=3),
    }  # fmt: skip


def _grouped():
    return {
        "x": of("input", shape=(2, 5, 5)), "up": of("conv2d", "x", channels=6, kernel=1), "a": of("tanh", "up"),
        "gr": of("conv2d", "a", channels=4, kernel=3, groups=2), "side": of("conv2d", "a", channels=4, kernel=1),
        "sum": of("add", "gr", "side"), "b": of("relu", "sum"), "g": of("global_avg_pool", "b"), "y": of("linear", "g", width=3),
    }  # fmt: skip


def _multiplier():
    return {
        "x": of("input", shape=(2, 5, 5)), "up": of("conv2d", "x", channels=3, kernel=1), "a": of("tanh", "up"),
        "dw": of("conv2d", "a", channels=6, kernel=3, groups=3), "g": of("global_max_pool", "dw"), "y": of("linear", "g", width=3),
    }  # fmt: skip


def _tokens():
    """A feed-forward block on a residual stream of tokens, and a flatten whose features lie token by token."""
    return {
        "x": of("input", shape=(3, 2)), "stem": of("token_linear", "x", width=4), "up": of("token_linear", "stem", width=5), "a": of("gelu", "up"),
        "down": of("token_linear", "a", width=4), "join": of("add", "stem", "down"), "f": of("flatten", "join"), "y": of("linear", "f", width=3),
    }  # fmt: skip


def _mixer():
    """Mixed over channels, then over tokens."""
    return {
        "x": of("input", shape=(4, 3)), "t": of("permute", "x", order=(0, 2, 1)), "t1": of("token_linear", "t", width=5), "ta": of("tanh", "t1"),
        "t2": of("token_linear", "ta", width=4), "back": of("permute", "t2", order=(0, 2, 1)), "s": of("add", "x", "back"),
        "c1": of("token_linear", "s", width=4), "ca": of("silu", "c1"), "c2": of("token_linear", "ca", width=3), "m": of("mean", "c2", dims=(1,)),
        "y": of("linear", "m", width=3),
    }  # fmt: skip


def _patches():
    """A map cut into tokens by a convolution; one of the tokens is read."""
    return {
        "x": of("input", shape=(1, 4, 4)), "cut": of("conv2d", "x", channels=4, kernel=2, stride=2, padding=0), "r": of("reshape", "cut", shape=(4, 4)),
        "t": of("permute", "r", order=(0, 2, 1)), "up": of("token_linear", "t", width=3), "a": of("tanh", "up"), "down": of("token_linear", "a", width=4),
        "s": of("add", "t", "down"), "first": of("part", "s", of=4, index=0), "f": of("flatten", "first"),
        "y": of("linear", "f", width=3),
    }  # fmt: skip


def _gated():
    """Squeeze and excite (Hu et al. 2018)."""
    return {
        "x": of("input", shape=(2, 4, 4)), "c": of("conv2d", "x", channels=4, kernel=3), "a": of("tanh", "c"), "g": of("global_avg_pool", "a"),
        "down": of("linear", "g", width=3), "b": of("relu", "down"), "up": of("linear", "b", width=4), "gate": of("sigmoid", "up"),
        "r": of("reshape", "gate", shape=(4, 1, 1)), "m": of("mul", "a", "r"), "d": of("conv2d", "m", channels=3, kernel=1), "e": of("tanh", "d"),
        "p": of("global_avg_pool", "e"), "y": of("linear", "p", width=3),
    }  # fmt: skip


def _inverted():
    """An inverted residual (Sandler et al. 2018)."""
    return {
        "x": of("input", shape=(2, 4, 4)), "stem": of("conv2d", "x", channels=2, kernel=1), "up": of("conv2d", "stem", channels=4, kernel=1, bias=False),
        "n1": of("batchnorm", "up"), "a1": of("relu6", "n1"), "dw": of("conv2d", "a1", channels=4, kernel=3, groups=4, bias=False),
        "n2": of("batchnorm", "dw"), "a2": of("silu", "n2"), "down": of("conv2d", "a2", channels=2, kernel=1, bias=False), "n3": of("batchnorm", "down"),
        "s": of("add", "stem", "n3"), "g": of("global_avg_pool", "s"), "y": of("linear", "g", width=3),
    }  # fmt: skip


def _unet():
    return {
        "x": of("input", shape=(1, 4, 4)), "c": of("conv2d", "x", channels=3, kernel=3), "a": of("tanh", "c"), "p": of("max_pool", "a"),
        "d": of("conv2d", "p", channels=4, kernel=3), "b": of("relu", "d"), "u": of("upsample", "b", scale=2), "e": of("conv2d", "b", channels=3, kernel=1),
        "eb": of("tanh", "e"), "t": of("conv_transpose2d", "eb", channels=2), "cat": of("concat", "a", "u", "t"),
        "o": of("conv2d", "cat", channels=3, kernel=1), "oa": of("tanh", "o"), "f": of("flatten", "oa"), "y": of("linear", "f", width=3),
    }  # fmt: skip


def _tied():
    """Decoded by the transposed weight; one linear map is used twice."""
    return {
        "x": of("input", shape=(4,)), "enc": of("linear", "x", width=3), "a": of("tanh", "enc"),
        "dec": replace(of("linear", "a", width=4, transposed=True), tied=(("weight", "enc.weight"),)),
        "h1": of("linear", "dec", width=4), "b": of("tanh", "h1"), "h2": replace(of("linear", "b", width=4), tied=(("weight", "h1.weight"),)),
        "c": of("relu", "h2"), "side": of("linear", "c", width=3), "d": of("tanh", "side"), "y": of("linear", "d", width=3),
    }  # fmt: skip


def _ends():
    """Several outputs, of which the first is scored."""
    return {
        "x": of("input", shape=(4,)), "h": of("linear", "x", width=4), "a": of("tanh", "h"), "k": of("linear", "a", width=3), "b": of("relu", "k"),
        "y": of("linear", "b", width=3), "aux": of("linear", "a", width=2), "z": of("linear", "b", width=2),
    }  # fmt: skip


def _stacked():
    """Linear maps one straight after another, once with a norm between."""
    return {
        "x": of("input", shape=(2, 5, 5)), "c": of("conv2d", "x", channels=4, kernel=3), "p": of("conv2d", "c", channels=3, kernel=1),
        "n": of("batchnorm", "p"), "q": of("conv2d", "n", channels=3, kernel=1), "a": of("relu", "q"), "g": of("global_avg_pool", "a"),
        "h": of("linear", "g", width=5), "i": of("linear", "h", width=4, bias=False), "b": of("relu", "i"), "y": of("linear", "b", width=3),
    }  # fmt: skip


def _transformer():
    """Attention and feed-forward on a residual stream of tokens (Vaswani et al. 2017, normalised first)."""
    return {
        "x": of("input", shape=(3, 2)), "stem": of("token_linear", "x", width=4), "p": of("position", "stem"), "n": of("layernorm", "p"),
        "q": of("token_linear", "n", width=4), "k": of("token_linear", "n", width=4), "v": of("token_linear", "n", width=4),
        "at": of("attention", "q", "k", "v", heads=2), "o": of("token_linear", "at", width=4), "s": of("add", "p", "o"), "m": of("layernorm", "s"),
        "up": of("token_linear", "m", width=3), "a": of("gelu", "up"), "down": of("token_linear", "a", width=4), "l": of("layer_scale", "down", dim=-1),
        "t": of("add", "s", "l"), "g": of("mean", "t", dims=(1,)), "y": of("linear", "g", width=3),
    }  # fmt: skip


def _words():
    """Numbers of things, not numbers."""
    return {
        "x": of("input", shape=(4,)), "e": of("embedding", "x", vocabulary=5, width=3), "h": of("token_linear", "e", width=4), "a": of("tanh", "h"),
        "k": of("token_linear", "a", width=2), "f": of("flatten", "k"), "y": of("linear", "f", width=3),
    }  # fmt: skip


def _linear():
    return {"x": of("input", shape=(4,)), "y": of("linear", "x", width=3)}


NETWORKS = {
    f.__name__[1:]: Architecture(f(), {_ends: ("y", "aux", "z")}.get(f))
    for f in (
        _mlp, _residual, _concat, _conv, _depthwise, _shared, _sequence, _twice, _grouped, _multiplier, _stacked, _linear,
        _tokens, _mixer, _patches, _gated, _inverted, _unet, _tied, _ends, _transformer, _words,
    )
}  # fmt: skip
RANDOM = SCORERS.get("random")(SCORERS.get("random").Options())
LOSSES = {"classification": losses.get("cross_entropy"), "regression": losses.get("mse")}


def weights_for(arch: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """Random values of a trained network's size, batch-norm statistics included."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in {**arch.params, **arch.buffers}.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        local = name.rpartition(".")[2]
        if local == "running_var":
            value = value.abs() + 0.5
        elif local == "num_batches_tracked":
            value = torch.zeros(shape, dtype=torch.int64)
        elif local == "weight" and len(shape) > 1:
            value = value * 1.2 / math.sqrt(math.prod(shape[1:]))
        elif local == "weight":
            value = value.abs() + 0.5
        else:
            value = value / 2
        made[name] = value
    return made


def fold_for(arch: Architecture, task: str, rows: int = 40, seed: int = 0) -> Fold:
    generator = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(rows, *arch.shapes[arch.inputs[0]], generator=generator, dtype=torch.float64)
    for reader in (arch.nodes[r] for r in arch.consumers[arch.inputs[0]]):
        if reader.op == "embedding":
            x = torch.randint(0, reader.attrs.vocabulary, x.shape, generator=generator)
    width = arch.shapes[arch.outputs[0]][0]
    if task == "classification":
        return Fold(x, torch.randint(0, width, (rows,), generator=generator))
    return Fold(x, torch.randn(rows, width, generator=generator, dtype=torch.float64))


def evidence_for(
    arch: Architecture, task: str = "classification", rows: int = 40, seed: int = 0, weights: dict[str, Tensor] | None = None
) -> Evidence:
    weights = weights_for(arch, seed) if weights is None else weights
    train, held = fold_for(arch, task, rows, seed), fold_for(arch, task, rows, seed + 1)
    return measure(arch, weights, train, held, LOSSES[task], rows=10**6, seed=seed, path=("test",))


def run(arch: Architecture, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The (first) output."""
    with torch.no_grad():
        made = compile_architecture(arch, weights).eval()(x)
    return made if isinstance(made, Tensor) else made[0]


def nats(arch: Architecture, weights: dict[str, Tensor], fold: Fold, task: str, variance: float | None = None) -> float:
    """Mean nats per sample with the residual variance held fixed: what measuring expands."""
    return float(LOSSES[task].each(run(arch, weights, fold.x), fold.y, variance=variance).mean())


def close(a, b, tolerance: float = 1e-9) -> None:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    gap = float((a - b).abs().max()) if a.numel() else 0.0
    assert gap <= tolerance * max(1.0, float(b.abs().max()) if b.numel() else 1.0), gap


def sites_of(arch: Architecture, *kinds: str, **options) -> list[tuple[type, object, Site]]:
    """(edit, its options, site) for every site of the edits named, or of all."""
    found = []
    for kind in kinds or tuple(EDITS):
        edit = EDITS.get(kind)
        chosen = edit.Options(**options)
        found += [(edit, chosen, site) for site in edit.match(arch, chosen)]
    return found


def made(arch: Architecture, weights: dict[str, Tensor], edit: type, options, site: Site, proposal: Proposal) -> Applied:
    """The site's edit made real."""
    found = apply(arch, weights, {}, {}, [Part(edit, options, site, proposal)], (0, "newborn"))
    assert isinstance(found, Applied), found
    return found


@lru_cache(64)
def proposed(arch: Architecture, kind: str, smooth: bool = False) -> list[tuple[Part, dict]]:
    """(part, weights) for every site: new units at random, anything else as the default scorer says.

    smooth: activations that an edit brings never die.
    """
    weights = weights_for(arch)
    evidence, found = evidence_for(arch, rows=8, weights=weights), []
    chosen = {"act": "tanh"} if smooth and "act" in EDITS.get(kind).Options.model_fields else {}
    every = [found for given in ({}, *EDITS.get(kind).examples) for found in sites_of(arch, kind, **{**given, **chosen})]
    for edit, options, site in every[:: 1 + len(every) // 24]:  # some of many
        units = min(2, getattr(site.form, "size", 3) - 1)
        proposal = serving(RANDOM, site.form).propose(evidence, site, units, (0,))
        assert proposal.status == "ok" or proposal.reason
        made = edit.rewrite(arch, site, proposal) if proposal.status in ("ok", "trial") else None
        if isinstance(made, Refusal):
            # A depthwise convolution down to one channel is an ordinary one.
            assert "structure" in made.reason and made.nodes and not site.form.grows
        elif made is not None:
            found.append((Part(edit, options, site, proposal), weights))
    return found


def done(arch, part, weights) -> Applied:
    made = apply(arch, weights, {}, {}, [part], (0, "kit"))
    assert isinstance(made, Applied), (part.site.key, made)
    return made
