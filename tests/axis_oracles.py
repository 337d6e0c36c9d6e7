"""What it means for axes to be right, asked of any architecture. Not a test."""

from __future__ import annotations

import random
import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dagrow.compiler import Network, compile_architecture, with_source
from dagrow.graph import Architecture, Refusal, Rewrite, resize, transfer
from dagrow.graph.node import build, run

TOLERANCE = 1e-10


def weights_for(arch: Architecture, seed: int) -> dict[str, Tensor]:
    """Random fp64 values for every parameter and buffer; positive where a variance is."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in {**arch.params, **arch.buffers}.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        made[name] = value.abs() + 0.5 if name.endswith("var") else value
    return made


def rows(arch: Architecture, seed: int = 0, count: int = 16) -> dict[str, Tensor]:
    """Random rows for every input; whole numbers below the vocabulary where one reads them."""
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randn((count, *arch.shapes[n]), generator=generator, dtype=torch.float64) for n in arch.inputs}
    for name, values in made.items():
        words = [v for reader in arch.consumers[name] if (v := getattr(arch.nodes[reader].attrs, "vocabulary", None))]
        if words:
            made[name] = torch.randint(min(words), values.shape, generator=generator).double()
    return made


def values_of(arch: Architecture, weights: dict[str, Tensor], x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every node's output by its own real module in eval mode."""
    modules = {}
    for name in arch.order:
        node = arch.nodes[name]
        if node.op != "input":
            module = modules[name] = build(node, [arch.shapes[i] for i in node.inputs], name)
            if isinstance(module, nn.Module):
                module.double().eval()
                for local, tensor in [*module.named_parameters(), *module.named_buffers()]:
                    tensor.data = weights[dict(node.tied).get(local, f"{name}.{local}")].to(tensor.dtype)
    with torch.no_grad():
        return run(arch.nodes, arch.order, modules, dict(x))


def output(arch: Architecture, weights: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
    """The output; where there are several, their values one after another, [rows, values]."""
    return joined(arch, tuple(values_of(arch, weights, x)[name] for name in arch.outputs))


def joined(arch: Architecture, outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a network returns, as `output` gives it."""
    if len(arch.outputs) > 1:
        return torch.cat([y.flatten(1) for y in outputs], 1)
    return outputs[0] if isinstance(outputs, tuple) else outputs


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def done(result: Rewrite | Refusal) -> Rewrite:
    assert isinstance(result, Rewrite), result
    return result


def zeroed(rewrite: Rewrite, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the newborn entries of the slots `zero` names set to 0."""
    made = {name: t.clone() for name, t in tensors.items()}
    born = {(m.param, m.axis): [k for k, old in enumerate(m.index) if old < 0] for m in rewrite.moves}
    for param, axis in rewrite.zero:
        made[param].index_fill_(axis, torch.tensor(born.get((param, axis), []), dtype=torch.long), 0)
    return made


def shapes_and_macs_are_real(arch: Architecture) -> None:
    weights, x = weights_for(arch, 0), rows(arch, count=1)
    assert {n: tuple(v.shape[1:]) for n, v in values_of(arch, weights, x).items()} == dict(arch.shapes)
    for name, node in arch.nodes.items():
        if node.op != "input":
            given = [arch.shapes[i] for i in node.inputs]
            module = build(node, given, name)
            if isinstance(module, nn.Module):
                module.eval()
            # The counter does not know the CPU's fused attention.
            with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                module(*(torch.zeros(1, *s) for s in given))
            charged = node.rule.macs(node.attrs, counter.get_total_flops() // 2, *given)
            assert arch.formed.macs[name] == arch.derived.macs[name] == charged, name
    assert arch.macs == sum(arch.formed.macs.values())


def permuting_keeps_the_function(arch: Architecture, axis: str, seed: int = 0) -> None:
    weights, x, size = weights_for(arch, seed), rows(arch), arch.axes[axis].size
    order = random.Random(seed).sample(range(size), size)
    rewrite = done(resize(arch, {axis: order}))
    assert rewrite.zero == () and rewrite.arch == arch
    assert distance(output(arch, transfer(rewrite, weights, 0.0), x), output(arch, weights, x)) <= TOLERANCE


def widening_keeps_the_function(arch: Architecture, axis: str, seed: int = 0) -> bool:
    """Newborns among the old, everything but the zero slots random. False where zeros are not claimed to be enough."""
    draw = random.Random(seed)
    weights, x, size = weights_for(arch, seed), rows(arch), arch.axes[axis].size
    index = list(range(size))
    for _ in range(draw.randint(1, 3)):
        index.insert(draw.randint(0, len(index)), -1)
    rewrite = done(resize(arch, {axis: index}))
    assert rewrite.arch.axes[axis].size == len(index)
    tensors = transfer(rewrite, weights, weights_for(rewrite.arch, seed + 1))
    if rewrite.zero is None:
        return False
    assert distance(output(rewrite.arch, zeroed(rewrite, tensors), x), output(arch, weights, x)) <= TOLERANCE
    return True


def pruning_is_masking(arch: Architecture, axis: str, seed: int = 0, refused: bool = False) -> None:
    """Where units are only read, without them the network is the one with zeros where they are read. `refused`: or it is refused."""
    weights, x, size = weights_for(arch, seed), rows(arch), arch.axes[axis].size
    if size < 2:
        return
    draw = random.Random(seed)
    keep = sorted(draw.sample(range(size), draw.randint(1, size - 1)))
    rewrite = resize(arch, {axis: keep})
    if isinstance(rewrite, Refusal):
        # To one unit: what a group of one is cannot be told from no group.
        assert refused or len(keep) == 1 and "structure" in rewrite.reason, rewrite
        return
    assert rewrite.zero is None
    if arch.axes[axis].mixes or arch.axes[axis].bilinear:
        return
    masked = dict(weights)
    for use in arch.axes[axis].reads:
        dead = [k for k, unit in enumerate(arch.derived.units(axis, use.param, use.axis)) if unit >= 0 and unit not in keep]
        masked[use.param] = masked[use.param].index_fill(use.axis, torch.tensor(dead, dtype=torch.long), 0)
    made = output(rewrite.arch, transfer(rewrite, weights, 0.0), x)
    assert distance(made, output(arch, masked, x)) <= TOLERANCE


def resizing_goes_back(arch: Architecture, axis: str, seed: int = 0) -> None:
    draw = random.Random(seed)
    weights, size = weights_for(arch, seed), arch.axes[axis].size
    # Wider and back.
    index = list(range(size))
    for _ in range(draw.randint(1, 3)):
        index.insert(draw.randint(0, len(index)), -1)
    wide = done(resize(arch, {axis: index}))
    back = done(resize(wide.arch, {axis: [index.index(k) for k in range(size)]}))
    same(arch, weights, back.arch, transfer(back, transfer(wide, weights, 7.0), 9.0))
    # Narrower and back, in another order; what was pruned comes from the old tensors.
    keep = draw.sample(range(size), draw.randint(1, size))
    narrow = resize(arch, {axis: keep})
    if isinstance(narrow, Refusal):
        assert len(keep) == 1 and "structure" in narrow.reason, narrow
        return
    back = done(resize(narrow.arch, {axis: [keep.index(k) if k in keep else -1 for k in range(size)]}))
    same(arch, weights, back.arch, transfer(back, transfer(narrow, weights, 0.0), weights))


def same(arch: Architecture, weights: dict[str, Tensor], other: Architecture, tensors: dict[str, Tensor]) -> None:
    assert other == arch and tensors.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(tensors[name], value), name


def every_move_matters(arch: Architecture, axis: str, seed: int = 0) -> None:
    """Carried without one of its moves, a permuted network computes something else, unless its units are only summed up or do not show."""
    weights, x, size = weights_for(arch, seed), rows(arch, count=64), arch.axes[axis].size
    if size < 2:
        return
    rewrite = done(resize(arch, {axis: [*range(1, size), 0]}))
    assert {(m.param, m.axis) for m in rewrite.moves} == {(s.param, s.axis) for s in arch.axes[axis].slots}
    right = output(arch, weights, x)
    if not arch.axes[axis].reads or distance(right[:1].expand_as(right), right) <= 1e-6:
        return
    for left_out in rewrite.moves:
        partial = Rewrite(rewrite.arch, tuple(m for m in rewrite.moves if m != left_out), None)
        # A key's bias, under a softmax over keys, changes nothing whatever it is.
        idle = {**weights, left_out.param: torch.randn_like(weights[left_out.param])}
        changed = distance(output(arch, transfer(partial, weights, 0.0), x), right) > 1e-6
        assert changed or distance(output(arch, idle, x), right) <= TOLERANCE, left_out


def rows_do_not_meet(arch: Architecture, seed: int = 0) -> None:
    """In eval mode a row's output is its own, in a batch of any size."""
    weights, x = weights_for(arch, seed), rows(arch, seed, 5)
    whole = output(arch, weights, x)
    for part in (slice(0, 1), slice(1, 3), slice(2, 5)):
        assert distance(output(arch, weights, {n: v[part] for n, v in x.items()}), whole[part]) <= TOLERANCE


def compiled(arch: Architecture, weights: dict[str, Tensor], x: dict[str, Tensor]) -> tuple[Network, list[Tensor]]:
    """The network and its arguments."""
    return compile_architecture(arch, weights), [x[name] for name in arch.inputs]


def compiling_keeps_the_function(arch: Architecture, seed: int = 0) -> None:
    """Also as TorchScript, bit for bit, and out of plain values."""
    weights, x = weights_for(arch, seed), rows(arch)
    network, given = compiled(Architecture.from_dict(arch.to_dict()), weights, x)
    network.eval()
    with torch.no_grad(), warnings.catch_warnings():
        eager = joined(arch, network(*given))
        assert distance(eager, output(arch, weights, x)) <= TOLERANCE
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
        with with_source(network):
            program = torch.jit.script(network)
        # Twice: TorchScript optimises what it has seen run.
        for _ in range(2):
            assert torch.equal(joined(arch, program(*given)), eager)


def exporting_keeps_the_function(arch: Architecture, seed: int = 0) -> None:
    """By torch.export from two rows, for any number of them."""
    weights, x = weights_for(arch, seed), rows(arch)
    network, given = compiled(arch, weights, x)
    network.eval()
    with torch.no_grad():
        anyhow = ({0: torch.export.Dim("rows")},) * len(given)
        program = torch.export.export(network, tuple(v[:2].clone() for v in given), dynamic_shapes=anyhow).module()
        assert distance(joined(arch, program(*given)), output(arch, weights, x)) <= TOLERANCE


def training_moves_everything(arch: Architecture, seed: int = 0) -> None:
    """One step in train mode: every parameter has a gradient. One that is zero up to rounding is that of a parameter the output does not depend on."""
    weights, x = weights_for(arch, seed), rows(arch)
    network, given = compiled(arch, weights, x)
    network.train()
    held = [(m, m.p) for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    for module, _ in held:
        module.p = 0.0

    def run() -> Tensor:
        return joined(arch, network(*given))

    before = run()
    mixing = torch.randn(before.shape, generator=torch.Generator().manual_seed(seed), dtype=before.dtype)
    (before * mixing).sum().backward()
    still = []
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if parameter.grad.abs().max() <= 1e-9 * mixing.abs().sum():
            still.append((name, parameter))
    with torch.no_grad():
        for name, parameter in still:
            old = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=parameter.dtype))
            assert distance(run(), before) <= TOLERANCE, name
            parameter.copy_(old)
        for parameter in network.parameters():
            parameter.sub_(1e-3 * parameter.grad)
        assert distance(run(), before) > 0


def all_oracles(arch: Architecture, seed: int = 0) -> None:
    """What holds of any architecture; `compiling_keeps_the_function` and `training_moves_everything` take longer and are asked apart."""
    shapes_and_macs_are_real(arch)
    for axis in arch.axes:
        permuting_keeps_the_function(arch, axis, seed)
        widening_keeps_the_function(arch, axis, seed)
        pruning_is_masking(arch, axis, seed)
        resizing_goes_back(arch, axis, seed)
