"""Tied parameters: one tensor under one name, in whatever is made of a network."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import replace

import axis_oracles as oracles
import pytest
import torch
from torch import nn

from dagrow import check, spec
from dagrow.compiler import compile_architecture, initialise, parameters_by_name, weights_of, with_source
from dagrow.errors import GraphError, SpecError
from dagrow.graph import Architecture, Node, Refusal, preserving, resize, resized_cost, transfer
from dagrow.graph.node import run
from dagrow.measure.passes import materialise
from dagrow.train import OPTIMIZERS
from dagrow.train.session import Session

of = Node.of


def tied(node: Node, **names: str) -> Node:
    return replace(node, tied=tuple(names.items()))


def autoencoder(width: int = 4) -> Architecture:
    """The owner lies deeper than who shares it: modules list the decoder first."""
    return Architecture({
        "x": of("input", shape=(6,)), "body.enc": of("linear", "x", width=width), "act": of("tanh", "body.enc"),
        "dec": tied(of("linear", "act", width=6, transposed=True), weight="body.enc.weight"),
    })


def twins() -> Architecture:
    """Two inputs through the same layer and norm; listed before what they share is."""
    return Architecture({
        "a": of("input", shape=(4,)), "b": of("input", shape=(4,)),
        "n2": tied(of("batchnorm", "h2"), **{k: f"n1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}),
        "h2": tied(of("linear", "b", width=3), weight="h1.weight", bias="h1.bias"),
        "h1": of("linear", "a", width=3), "n1": of("batchnorm", "h1"), "sum": of("add", "n1", "n2"), "act": of("relu", "sum"),
        "y": of("linear", "act", width=2),
    })


BOTH = pytest.mark.parametrize("arch", [autoencoder(), twins()], ids=["autoencoder", "twins"])


def rows(arch: Architecture, count: int = 7) -> list[torch.Tensor]:
    return [torch.randn(count, *arch.shapes[n], generator=torch.Generator().manual_seed(k)) for k, n in enumerate(arch.inputs)]


class HandAutoencoder(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weight = nn.Parameter(weights["body.enc.weight"].clone())
        self.up, self.down = nn.Parameter(weights["body.enc.bias"].clone()), nn.Parameter(weights["dec.bias"].clone())

    def forward(self, x):
        return torch.tanh(x @ self.weight.t() + self.up) @ self.weight + self.down


def test_sizes_count_a_tied_parameter_once():
    assert autoencoder().size == 4 * 6 + 4 + 6 and autoencoder().macs == 2 * 4 * 6
    assert set(autoencoder().params) == {"body.enc.weight", "body.enc.bias", "dec.bias"}
    assert twins().size == 4 * 3 + 3 + 6 + 8 and "h2.weight" not in twins().params and "n2.running_mean" not in twins().buffers


def test_outputs_and_gradients_are_those_of_a_module_by_hand():
    arch = autoencoder()
    weights = {k: v.double() for k, v in initialise(arch, 0).items()}
    network, hand, (x,) = compile_architecture(arch, weights), HandAutoencoder(weights), rows(arch)
    x = x.double()
    out = network(x)
    assert torch.allclose(out, hand(x), rtol=0, atol=1e-14)
    out.square().sum().backward()
    hand(x).square().sum().backward()
    grads = {n: p.grad for n, p in parameters_by_name(network).items()}
    for name, parameter in (("body.enc.weight", hand.weight), ("body.enc.bias", hand.up), ("dec.bias", hand.down)):
        assert torch.allclose(grads[name], parameter.grad, rtol=0, atol=1e-12), name


@BOTH
def test_one_object_one_name_one_moment(arch):
    weights = initialise(arch, 0)
    assert weights.keys() == {**arch.params, **arch.buffers}.keys()
    network = compile_architecture(arch, weights)
    named = parameters_by_name(network)
    assert named.keys() == arch.params.keys() and len({id(p) for p in named.values()}) == len(named)
    assert weights_of(network).keys() == weights.keys()
    assert sum(p.numel() for p in network.parameters()) == arch.size
    for made in (network, copy.deepcopy(network)):
        parts = dict(made.named_parameters(remove_duplicate=False))
        assert len(parts) > len(dict(made.named_parameters()))
        assert parameters_by_name(made).keys() == arch.params.keys()
    kind = OPTIMIZERS.get("adamw")
    with Session(kind, None, named) as session:
        assert {slot: set(held) for slot, held in session.moments().items()} == {slot: set(arch.params) for slot in kind.slots}
        network(*rows(arch)).square().sum().backward()
        session.step(1e-2)
    after = weights_of(network)
    assert all(not torch.equal(after[n], weights[n]) for n in arch.params)
    for name, buffer in arch.nodes.items():
        if buffer.op == "batchnorm":
            assert network.get_submodule(f"n_{name}").num_batches_tracked == 2  # both runs, on one buffer


@BOTH
def test_measuring_runs_the_same_tensors(arch):
    weights = initialise(arch, 0)
    network, given = compile_architecture(arch, weights).eval(), rows(arch)
    values = run(arch.nodes, arch.order, materialise(arch, weights), dict(zip(arch.inputs, given, strict=True)))
    assert torch.equal(values[arch.outputs[0]], network(*given))


@BOTH
def test_axes_hold_what_is_tied(arch):
    oracles.all_oracles(arch)
    for axis in arch.axes:
        oracles.every_move_matters(arch, axis)
        assert resized_cost(arch, axis, 7) is None  # only building it can tell


def test_resizing_moves_a_tied_parameter_once():
    arch, weights = autoencoder(), initialise(autoencoder(), 0)
    rewrite = resize(arch, {"body.enc": [0, -1, 1, 2, 3, -1]})
    assert [(m.param, m.axis) for m in rewrite.moves] == [("body.enc.weight", 0), ("body.enc.bias", 0)]
    assert rewrite.arch.nodes["dec"].tied == arch.nodes["dec"].tied and rewrite.arch.nodes["dec"].attrs.transposed
    made, (x,) = preserving(rewrite, weights, initialise(rewrite.arch, 1)), rows(arch)
    assert torch.allclose(compile_architecture(rewrite.arch, made)(x), compile_architecture(arch, weights)(x), atol=1e-6)
    moments = transfer(rewrite, {n: torch.ones(s) for n, s in arch.params.items()}, 0.0)
    assert moments.keys() == rewrite.arch.params.keys() and moments["body.enc.weight"].sum() == 24


@BOTH
def test_exports_are_equal(arch):
    network, given = compile_architecture(arch, initialise(arch, 0)).eval(), tuple(rows(arch))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        with with_source(network):
            program = torch.jit.script(network)
        file = io.BytesIO()
        torch.jit.save(program, file)
        file.seek(0)
        again = torch.jit.load(file)
    assert torch.equal(program(*given), network(*given)) and torch.equal(again(*given), network(*given))
    shapes = tuple({0: torch.export.Dim("rows")} for _ in given)
    exported = torch.export.export(network, given, dynamic_shapes=shapes).module()
    assert torch.equal(exported(*given), network(*given))


def test_networks_that_are_tied_otherwise_are_others():
    one = twins()
    loose = one.replace({"h2": of("linear", "b", width=3)})
    part = one.replace({"h2": tied(of("linear", "b", width=3), weight="h1.weight")})
    assert Architecture.from_dict(one.to_dict()) == one and len({one, loose, part}) == 3
    assert one.same_form(twins()) and not one.same_form(loose) and not one.same_form(part) and not part.same_form(loose)
    crossed = {"x": of("input", shape=(4,)), "a": of("linear", "x", width=4), "b": of("linear", "a", width=4), "c": of("linear", "b", width=4)}
    first, second = (Architecture(crossed | {"d": tied(of("linear", "c", width=4), weight=f"{o}.weight")}) for o in "ab")
    assert not first.same_form(second)


@pytest.mark.parametrize(("change", "message"), [
    ({"dec": {"weight": "body.enc.wait"}}, "'body.enc.wait', which is no parameter"),
    ({"dec": {"weight": "gone.weight"}}, "'gone.weight', which is of no node"),
    ({"dec": {"wait": "body.enc.weight"}}, "no parameter 'wait' to tie"),
    ({"dec": {"bias": "body.enc.bias"}}, r"its bias is \[6\], body.enc.bias is \[4\]"),
    ({"dec": {"weight": "dec.bias"}}, "tied to the node itself"),
    ({"dec": {}, "body.enc": {"weight": "dec.weight"}}, "'dec' comes after it"),
    ({"dec": {"weight": "body.enc.weight\nimport os"}}, "tie no parameter"),
    ({"dec": {"weight": 3}}, "tie no parameter"),
])
def test_ties_that_cannot_be_are_refused(change, message):
    arch = autoencoder()
    with pytest.raises(GraphError, match=message):
        _ = arch.replace({n: replace(arch.nodes[n], tied=tuple(t.items())) for n, t in change.items()}).shapes


def test_a_tie_to_what_is_tied_itself_and_between_parameter_and_buffer_are_refused():
    arch = twins()
    third = {"h3": tied(of("linear", "a", width=3), weight="h2.weight"), "sum": of("add", "n1", "n2", "h3")}
    with pytest.raises(GraphError, match="'h2.weight', which is no parameter\n.*holds the parameter itself"):
        _ = arch.replace(third).shapes
    with pytest.raises(GraphError, match="one of them trained, the other not"):
        _ = arch.replace({"n2": tied(of("batchnorm", "h2"), weight="n1.running_mean")}).shapes


def test_an_owner_is_not_taken_away():
    arch = twins()
    alone = {"n1": None, "h1": None, "sum": of("add", "n2", "b"), "a": None}
    with pytest.raises(GraphError, match="which is of no node"):
        arch.replace(alone)
    from dagrow.edits.wiring import without

    branches = arch.replace({
        "n1": None, "n2": None, "h2": replace(arch.nodes["h2"], inputs=("a",)), "b": None, "sum": of("add", "h1", "h2"),
    })
    refusal = without(branches, "sum", "h1")
    assert isinstance(refusal, Refusal) and "h1.weight" in refusal.reason
    left = without(branches, "sum", "h2")
    assert isinstance(left, Architecture) and left.size == branches.size


NODES = {
    "f": {"op": "flatten", "in": "input"}, "enc": {"op": "linear", "in": "f", "width": 8}, "a": {"op": "tanh", "in": "enc"},
    "dec": {"op": "linear", "in": "a", "width": 64, "transposed": True, "tied": {"weight": "enc.weight"}},
    "head": {"op": "linear", "in": "dec", "width": 10},
}


def checked(nodes, **more):
    return check.check(spec.load({"data": "digits", "model": {"nodes": nodes}, **more}))


def test_a_spec_ties_parameters():
    found = checked(NODES, budget={"params": 1234})
    assert found.architecture.size == 1234 and found.architecture.nodes["dec"].tied == (("weight", "enc.weight"),)
    assert spec.load(found.spec.to_dict()) == found.spec


def test_a_macro_ties_its_own_nodes():
    macro = {"nodes": {"enc": {**NODES["enc"], "in": "$in"}, "dec": {**NODES["dec"], "in": "enc"}}}
    nodes = {"f": NODES["f"], "b": {"use": "ae", "in": "f", "repeat": 2}, "head": {**NODES["head"], "in": "b"}}
    found = checked(nodes, macros={"ae": macro})
    assert [found.architecture.nodes[f"b.r{k}.dec"].tied for k in (0, 1)] == [(("weight", f"b.r{k}.enc.weight"),) for k in (0, 1)]


@pytest.mark.parametrize(("given", "message"), [
    ({"weight": "enx.weight"}, "did you mean a parameter of 'enc'"), ({"weight": "enc.wait"}, "which is no parameter"),
    ({"wait": "enc.weight"}, "no parameter 'wait'"), ("enc", "tied is a mapping"), ({"weight": 3}, "not 3"),
    ({"weight": "enc.bias"}, r"enc.bias is \[8\]"), ({"weight": "a b"}, "names no parameter"), ({"we ight": "enc.weight"}, "names no parameter"),
    ({"weight": "head.weight"}, "'head' comes after it"), ({"weight": "dec.weight"}, "to the node itself"),
])
def test_a_spec_that_ties_wrongly_says_where(given, message):
    with pytest.raises(SpecError, match=message) as caught:
        checked({**NODES, "dec": {**NODES["dec"], "tied": given}})
    assert "model.nodes.dec.tied" in str(caught.value)
