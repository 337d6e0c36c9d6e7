"""dagrow.compiler: modules equal to running the nodes, names that come back, nothing left in fx's caches."""

from __future__ import annotations

import copy
import json
import linecache
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from random_networks import random_network, random_weights, rows_for
from torch.fx import graph_module as fx_graph_module

from dagrow import compiler
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node
from dagrow.graph.node import build, run


def small() -> Architecture:
    return Architecture({
        "x": Node.of("input", shape=(4,)), "body.r0.fc": Node.of("linear", "x", width=3),
        "body.r0.norm": Node.of("batchnorm", "body.r0.fc"),
        "graph": Node.of("relu", "body.r0.norm"), "head": Node.of("linear", "graph", width=2),
    })


def by_nodes(arch: Architecture, weights: dict, x: torch.Tensor, training: bool) -> torch.Tensor:
    """The output by calling each node's own module: no fx."""
    modules = {}
    for name in arch.order:
        if arch.nodes[name].op != "input":
            module = modules[name] = build(arch.nodes[name], [arch.shapes[i] for i in arch.nodes[name].inputs], name)
            if isinstance(module, torch.nn.Module):
                own = {k[len(name) + 1:]: v for k, v in weights.items() if k.startswith(name + ".")}
                module.load_state_dict({k: v for k, v in own.items() if k in module.state_dict()})
                module.train(training)
    torch.manual_seed(0)
    return run(arch.nodes, arch.order, modules, {arch.inputs[0]: x})[arch.outputs[0]]


@pytest.mark.parametrize("seed", range(25))
def test_a_module_computes_what_its_nodes_do(seed):
    arch = random_network(seed)
    weights = random_weights(arch, seed)
    x = rows_for(arch, 5, seed)
    module = compiler.compile_architecture(arch, weights)
    assert torch.equal(module.eval()(x), by_nodes(arch, weights, x, training=False))
    module.train()
    torch.manual_seed(0)
    assert torch.equal(module(x), by_nodes(arch, weights, x, training=True))


@pytest.mark.parametrize("seed", range(10))
def test_names_and_weights_come_back(seed):
    arch = random_network(seed)
    weights = random_weights(arch, seed)
    module = compiler.compile_architecture(arch, weights)
    back = compiler.weights_of(module)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], weights[k]) for k in weights)
    assert compiler.parameters_by_name(module).keys() == arch.params.keys()
    assert {compiler.plain_name(k) for k in module.state_dict()} == weights.keys()
    assert {n: compiler.plain_name(compiler.prefixed_name(n)) for n in arch.nodes} == {n: n for n in arch.nodes}


def test_weights_are_cloned_both_ways():
    weights = compiler.initialise(small(), 0)
    before = {k: v.clone() for k, v in weights.items()}
    module = compiler.compile_architecture(small(), weights)
    back = compiler.weights_of(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert all(torch.equal(weights[k], before[k]) and torch.equal(back[k], before[k]) for k in before)
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())


def test_dtypes_of_the_weights_are_kept():
    weights = {k: v.double() if v.is_floating_point() else v for k, v in compiler.initialise(small(), 0).items()}
    module = compiler.compile_architecture(small(), weights)
    assert {k: v.dtype for k, v in compiler.weights_of(module).items()} == {k: v.dtype for k, v in weights.items()}
    assert module(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("head.bias"), "'head.bias' is missing"),
    (lambda w: w.update({"tail.bias": torch.zeros(2)}), "'tail.bias' belongs to no node"),
    (lambda w: w.update({"head.weight": torch.zeros(2, 4)}), r"'head.weight' has shape \[2, 4\], the network needs \[2, 3\]"),
    (lambda w: w.clear(), "and 4 more"),
])
def test_weights_that_do_not_fit_are_refused(change, message):
    weights = compiler.initialise(small(), 0)
    change(weights)
    with pytest.raises(GraphError, match=message):
        compiler.compile_architecture(small(), weights)


def test_initial_values_depend_on_seed_name_and_shapes_only():
    arch = small()
    values = compiler.initialise(arch, 3)
    assert values.keys() == {**arch.params, **arch.buffers}.keys()
    assert all(tuple(values[k].shape) == s for k, s in {**arch.params, **arch.buffers}.items())
    longer = arch.replace({"mid": Node.of("tanh", "graph"), "head": Node.of("linear", "mid", width=2)})
    again = compiler.initialise(longer, 3)
    assert all(torch.equal(values[k], again[k]) for k in values)
    (one,) = compiler.initialise(arch, 3, only=["head.weight"]).items()
    assert one[0] == "head.weight" and torch.equal(one[1], values["head.weight"])
    assert not torch.equal(compiler.initialise(arch, 4)["head.weight"], values["head.weight"])
    assert not torch.equal(compiler.initialise(arch, (3, "step", 1))["head.weight"], values["head.weight"])
    with pytest.raises(GraphError, match="head.wait"):
        compiler.initialise(arch, 3, only=["head.wait"])


def test_initialising_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    weights = compiler.initialise(small(), 0)
    compiler.compile_architecture(small(), weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_several_inputs_and_outputs():
    arch = Architecture({
        "a.b": Node.of("input", shape=(3,)), "a_n_b": Node.of("input", shape=(3,)),
        "sum": Node.of("add", "a.b", "a_n_b"), "y": Node.of("linear", "sum", width=2), "z": Node.of("identity", "sum"),
    }, outputs=["y", "z"])
    module = compiler.compile_architecture(arch, compiler.initialise(arch, 0))
    a, b = torch.randn(2, 4, 3)
    y, z = module(a, b)
    assert y.shape == (4, 2) and torch.equal(z, a + b)
    assert module.meta["values"]["z"] == module.meta["values"]["sum"]


def test_torchscript_and_copies_equal_eager():
    for seed in range(8):
        arch = random_network(seed)
        module = compiler.compile_architecture(arch, random_weights(arch, seed)).eval()
        x = rows_for(arch, 4, seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            with compiler.with_source(module):
                program = torch.jit.script(module)
        assert torch.equal(program(x), module(x))
        assert torch.equal(copy.deepcopy(module)(x), module(x))


def cached() -> tuple[int, int]:
    return len(fx_graph_module._loader.eval_cache), sum("eval_with_key" in str(k) for k in linecache.cache)


def test_compiling_leaves_nothing_in_the_caches():
    arch = small()
    weights = compiler.initialise(arch, 0)
    before = cached()
    for _ in range(2000):
        compiler.compile_architecture(arch, weights)
    module = copy.deepcopy(compiler.compile_architecture(arch, weights))
    with compiler.with_source(module):
        assert cached() != before
    assert cached() == before


def test_a_failing_forward_prints_nothing(capfd):
    arch = Architecture({"x": Node.of("input", shape=(3,)), "y": Node.of("input", shape=(3,)), "sum": Node.of("add", "x", "y")})
    module = compiler.compile_architecture(arch, {})
    with pytest.raises(RuntimeError):
        module(torch.zeros(2, 3), torch.zeros(2, 4))
    assert capfd.readouterr().err == ""


def test_a_deployed_network_leaves_the_given_one_training():
    module = compiler.compile_architecture(small(), compiler.initialise(small(), 0))
    deployed = compiler.Deployed(torch.nn.Identity(), module, torch.nn.Identity(), probabilities=True)
    out = deployed(torch.randint(0, 5, (6, 4)))
    assert torch.allclose(out.sum(1), torch.ones(6)) and not out.requires_grad
    assert module.training and all(p.requires_grad for p in module.parameters())


@pytest.mark.slow
def test_thousands_of_compiles_leave_little_behind():
    """The whole figure, 10,000, is tools/bench_compile.py --leak 10000; what is kept is kept in caches of bounded size, full by now."""
    tool = Path(__file__).resolve().parent.parent / "tools" / "bench_compile.py"
    done = subprocess.run([sys.executable, str(tool), "--leak", "2000", "--json"], capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert row["mb"] <= 50 and row["sources"] == 0, row
