"""Networks that were not made for dagrow: imported exactly, every axis resized, trained, grown by score, exported."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch
from models import MODELS, NAMES
from models.proofs import Tally, resized, still
from models.tasks import task

import dagrow
from dagrow.compiler import compile_architecture, initialise, plain_name, weights_of, with_source
from dagrow.graph import Rewrite, resize, transfer

each_model = pytest.mark.parametrize("name", NAMES)


@cache
def imported(name: str):
    torch.manual_seed(0)
    model = MODELS[name].build()
    return model, dagrow.from_torch(model, MODELS[name].example(2))


@each_model
def test_the_import_is_exact(name):
    model, made = imported(name)
    network, x = compile_architecture(made.arch, made.weights), MODELS[name].example(5)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), model.eval()(x))


@each_model
def test_it_trains_to_the_same_bits(name):
    model, made = imported(name)
    x, y, loss_fn = task(name, MODELS[name].example(1), rows=16)
    network = compile_architecture(made.arch, made.weights).train()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    gradients = []
    for part in (model.train(), network):
        torch.manual_seed(1)
        loss_fn(part(x), y).backward()
        gradients.append({n: p.grad for n, p in part.named_parameters()})
        part.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    theirs, ours = gradients[0], {made.names[plain_name(n)]: g for n, g in gradients[1].items()}
    assert theirs.keys() == ours.keys()
    for n, g in theirs.items():
        assert torch.allclose(g, ours[n], rtol=1e-4, atol=1e-6), n


@each_model
def test_names_are_recovered(name):
    model, made = imported(name)
    assert set(made.names.values()) == {n for n, t in model.state_dict().items()}
    assert set(made.names) == {*made.arch.params, *made.arch.buffers}
    state = made.state_dict(weights_of(compile_architecture(made.arch, made.weights)))
    for n, t in model.state_dict().items():
        assert torch.equal(state[n], t), n


# The deep ones take a while: they are tried with the slow tests.
DEEP = ("resnet20", "densenet", "mobilenetv2", "inception", "unet")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in NAMES])
def test_every_axis_is_what_it_says(name):
    arch, tally = imported(name)[1].arch, Tally()
    resized(arch, tally)
    assert tally.axes and tally.widened == tally.axes, tally.refused


@each_model
def test_a_step_moves_what_it_moved_before_and_all_that_is_newborn(name):
    model, made = imported(name)
    x, y, loss_fn = task(name, MODELS[name].example(1), rows=64)
    keep = {a: (*range(axis.size), -1) for a, axis in made.arch.axes.items()}
    rewrite = resize(made.arch, keep)
    assert isinstance(rewrite, Rewrite), rewrite
    weights = transfer(rewrite, made.weights, initialise(rewrite.arch, 0))
    found = still(compile_architecture(rewrite.arch, weights), x, y, loss_fn)
    assert {made.names[plain_name(n)] for n in found} <= still(copy.deepcopy(model), x, y, loss_fn)


@each_model
def test_torchscript_is_the_same_function(name):
    made = imported(name)[1]
    network, x = compile_architecture(made.arch, made.weights).eval(), MODELS[name].example(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        with with_source(network):
            script = torch.jit.script(network)
        with torch.no_grad():
            assert torch.equal(script(x), network(x))


@pytest.mark.slow
@each_model
def test_it_grows_twice_by_score(name):
    torch.manual_seed(0)
    model = MODELS[name].build()
    x, y, loss_fn = task(name, MODELS[name].example(1), rows=256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    grower = dagrow.Grower(model, optimizer, MODELS[name].example(2), edits=("widen", "deepen", "connect"))
    sizes = [sum(p.numel() for p in model.parameters())]
    for _ in range(2):
        model.train()
        for part in torch.arange(len(x)).split(32):
            optimizer.zero_grad()
            loss_fn(model(x[part]), y[part]).backward()
            optimizer.step()
        found = grower.grow((x, y), loss_fn)
        assert found.changed and found.checked > 0, found
        sizes.append(sum(p.numel() for p in model.parameters()))
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert sizes[0] < sizes[1] < sizes[2]
