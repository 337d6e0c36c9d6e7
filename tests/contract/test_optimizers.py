"""What every registered optimizer and schedule must do; a new one is tested the moment it exists."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dagrow.registry import Options
from dagrow.rng import stream
from dagrow.train import OPTIMIZERS, SCHEDULES, Session

optimizers = pytest.mark.parametrize("name", OPTIMIZERS.names())
schedules = pytest.mark.parametrize("name", SCHEDULES.names())


def parameters():
    g = stream(0, "kit")
    shapes = {"w": (5, 9), "b": (5,), "k": (3, 2, 3, 3), "scale": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=g)) for name, shape in shapes.items()}


def updates(session, params, count, seed=1, start=0, lr=1e-2):
    for step in range(start, start + count):
        session.zero_grads()
        for name, p in params.items():
            p.grad.copy_(torch.randn(p.shape, generator=stream(seed, name, step)))
        session.step(lr)


def bits(params):
    return {name: p.detach().clone() for name, p in params.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@optimizers
def test_declaration(name):
    optimizer = OPTIMIZERS.get(name)
    assert issubclass(optimizer.Options, Options) and optimizer.Options().lr > 0
    assert optimizer.slots["step"] == 0.0 and all(math.isfinite(fill) for fill in optimizer.slots.values())
    assert OPTIMIZERS.summary(name)


@optimizers
def test_state_goes_round_by_name_to_the_bit(name):
    optimizer, params = OPTIMIZERS.get(name), parameters()
    with Session(optimizer, None, params) as session:
        fresh = session.moments()
        updates(session, params, 7)
        moments = session.moments()
    for slot, fill in optimizer.slots.items():
        assert {n: v.shape for n, v in moments[slot].items()} == {n: p.shape for n, p in params.items()}
        assert all(value.eq(fill).all() for value in fresh[slot].values())
    with Session(optimizer, None, params, moments) as session:
        again = session.moments()
    assert all(equal(moments[slot], again[slot]) for slot in optimizer.slots)


@optimizers
def test_interrupted_is_uninterrupted(name):
    optimizer, whole, parts, moments = OPTIMIZERS.get(name), parameters(), parameters(), None
    with Session(optimizer, None, whole) as session:
        updates(session, whole, 12)
        expected = session.moments()
    for start in (0, 5):
        with Session(optimizer, None, parts, moments) as session:
            updates(session, parts, 5 if start == 0 else 7, start=start)
            moments = session.moments()
    assert equal(bits(whole), bits(parts))
    assert all(equal(expected[slot], moments[slot]) for slot in optimizer.slots)


@optimizers
def test_elements_do_not_mix(name):
    """Each element's update depends on its own gradient and state only: newborns beside it change no bit."""
    optimizer, params = OPTIMIZERS.get(name), parameters()
    with Session(optimizer, None, params) as session:
        updates(session, params, 6)
        moments = session.moments()
    w = params["w"].detach()
    order = torch.tensor([4, 0, 3, 1, 2])
    grown = nn.Parameter(torch.cat([w[order], torch.ones(2, 9)]))
    moved = {slot: {"w": torch.cat([named["w"][order], torch.full((2, 9), optimizer.slots[slot])])} for slot, named in moments.items()}
    alone = nn.Parameter(w.clone())
    with Session(optimizer, None, {"w": alone}, moments) as a, Session(optimizer, None, {"w": grown}, moved) as b:
        for step in range(6):
            gradient = torch.randn(5, 9, generator=stream(3, step))
            alone.grad.copy_(gradient)
            grown.grad.copy_(torch.cat([gradient[order], torch.ones(2, 9)]))
            a.step(1e-2)
            b.step(1e-2)
        after = b.moments()
    assert torch.equal(alone.detach()[order], grown.detach()[:5])
    assert after["step"]["w"][:, 0].tolist() == [12.0] * 5 + [6.0] * 2


@optimizers
def test_it_goes_downhill_and_newborns_train(name):
    optimizer = OPTIMIZERS.get(name)
    target = torch.randn(6, 4, generator=stream(5, "target"))
    p = nn.Parameter(torch.zeros(6, 4))
    moments = {slot: {"p": torch.full((6, 4), fill)} for slot, fill in optimizer.slots.items()}
    moments["step"]["p"][:4] = 1000
    with Session(optimizer, None, {"p": p}, moments) as session:
        for _ in range(100):
            session.zero_grads()
            (p - target).square().sum().backward()
            session.step(1e-2)
        assert session.finite()
    assert (p - target).square().sum(1).lt(target.square().sum(1)).all()


@optimizers
def test_no_decay_on_vectors(name):
    optimizer = OPTIMIZERS.get(name)
    if "weight_decay" not in optimizer.Options.model_fields:
        pytest.skip("has no weight decay")
    params = parameters()
    before = bits(params)
    with Session(optimizer, optimizer.Options(weight_decay=0.1), params) as session:
        session.zero_grads()
        session.step(1e-2)
    for key, p in params.items():
        assert torch.equal(p.detach(), before[key]) == (p.ndim < 2)
        assert (p.detach().abs() <= before[key].abs()).all()


@optimizers
def test_a_rate_of_zero_changes_no_weight(name):
    optimizer, params = OPTIMIZERS.get(name), parameters()
    before = bits(params)
    with Session(optimizer, None, params) as session:
        updates(session, params, 3, lr=0.0)
    assert equal(bits(params), before)


@optimizers
def test_nonfinite_gradients_are_seen(name):
    params = parameters()
    with Session(OPTIMIZERS.get(name), None, params) as session:
        session.zero_grads()
        params["k"].grad.view(-1)[3] = math.nan
        session.step(1e-2)
        assert not session.finite()


@schedules
def test_schedule(name):
    schedule = SCHEDULES.get(name)
    options = schedule.Options(warmup=3)
    for phase in ("growth", "final"):
        rates = [schedule.rate(options, 0.1, phase, k / 20) for k in range(21)]
        assert rates[0] == pytest.approx(0.1)
        assert all(math.isfinite(rate) and 0 <= rate <= 0.1 + 1e-12 for rate in rates)
        warm = [schedule.rate(options, 0.1, phase, 0.0, step) for step in range(5)]
        assert warm == sorted(warm) and warm[0] == pytest.approx(0.1 / 3) and warm[2] == warm[4] == rates[0]
    assert SCHEDULES.summary(name)
