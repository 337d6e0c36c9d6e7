"""Training: against torch's optimizers, element by element, and to the same bits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dagrow import losses
from dagrow.errors import UsageError
from dagrow.rng import stream
from dagrow.train import OPTIMIZERS, SCHEDULES, Session, eval_mode, evaluate, outputs, steps_per_epoch, train_epoch

ADAMW, SGD = OPTIMIZERS.get("adamw"), OPTIMIZERS.get("sgd")
CE, MSE = losses.get("cross_entropy"), losses.get("mse")


def fold(n=70, inputs=6, classes=3, dtype=torch.float32):
    g = stream(0, "fold")
    return SimpleNamespace(x=torch.randn(n, inputs, generator=g, dtype=dtype), y=torch.randint(0, classes, (n,), generator=g))


def network(dtype=torch.float32, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(dropout), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    return model.to(dtype)


def params(model):
    return dict(model.named_parameters())


def run(model, optimizer=ADAMW, options=None, moments=None, epochs=(0,), data=None, batch=16, lr=1e-2, clip=None):
    """Epochs each in a session of their own; the moments after."""
    reports = []
    for epoch in epochs:
        with Session(optimizer, options, params(model), moments) as session:
            reports.append(
                train_epoch(model, session, data or fold(), CE, batch=batch, rates=lambda _: lr, seed=1, path=("train", epoch), clip=clip)
            )
            moments = session.moments()
    return reports, moments


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


TWINS = [
    (ADAMW, {"weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
    (ADAMW, {"betas": [0.5, 0.9], "eps": 1e-3}, torch.optim.AdamW, {"betas": (0.5, 0.9), "eps": 1e-3}),
    (SGD, {}, torch.optim.SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.0, "weight_decay": 0.02}, torch.optim.SGD, {"weight_decay": 0.02}),
    (SGD, {"nesterov": True, "weight_decay": 0.02}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
]


@pytest.mark.parametrize(("ours", "options", "theirs", "kwargs"), TWINS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_uniform_steps_equal_torchs(ours, options, theirs, kwargs, clip):
    a, b = network(torch.float64), network(torch.float64)
    matrices = [p for p in b.parameters() if p.ndim > 1]
    vectors = [p for p in b.parameters() if p.ndim <= 1]
    reference = theirs([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.03, **kwargs)
    data = fold(dtype=torch.float64)
    with Session(ours, ours.Options(**options), params(a)) as session:
        for step in range(40):
            lr = 0.03 / (1 + step)
            for group in reference.param_groups:
                group["lr"] = lr
            session.zero_grads()
            reference.zero_grad()
            CE.mean(a(data.x), data.y).backward()
            CE.mean(b(data.x), data.y).backward()
            if clip is not None:
                session.clip(clip)
                torch.nn.utils.clip_grad_norm_(list(b.parameters()), clip)
            session.step(lr)
            reference.step()
        moments = session.moments()
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        # Absolutely, too: batch norm makes the first bias's gradient pure rounding, which Adam scales up to steps.
        if name != "0.bias":
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10, msg=name)
        assert moments["step"][name].eq(40).all()


@pytest.mark.parametrize("optimizer", [ADAMW, SGD])
def test_elements_of_two_ages_equal_two_optimizers(optimizer):
    """Rows 0-2 are 50 updates old, rows 3-4 newborn: to the bit what each would be in a session of its own."""
    g = stream(4, "ages")
    whole = nn.Parameter(torch.randn(5, 9, generator=g))
    old, new = nn.Parameter(whole[:3].detach().clone()), nn.Parameter(whole[3:].detach().clone())
    with Session(optimizer, None, {"p": old}) as session:
        for _ in range(50):
            session.flat.grads.normal_(generator=g)
            session.step(1e-3)
        moments = session.moments()
    with torch.no_grad():
        whole[:3] = old
    joint = {slot: {"p": torch.cat([named["p"], torch.full((2, 9), optimizer.slots[slot])])} for slot, named in moments.items()}
    a, b, c = (Session(optimizer, None, {"p": p}, m) for p, m in ((whole, joint), (old, moments), (new, None)))
    for _ in range(20):
        for session in (a, b, c):
            session.zero_grads()
        whole.grad.normal_(generator=g)
        old.grad.copy_(whole.grad[:3])
        new.grad.copy_(whole.grad[3:])
        for session in (a, b, c):
            session.step(1e-2)
    assert torch.equal(whole, torch.cat([old, new]))
    ma, mb, mc = a.moments(), b.moments(), c.moments()
    for slot in optimizer.slots:
        assert torch.equal(ma[slot]["p"], torch.cat([mb[slot]["p"], mc[slot]["p"]]))
    assert ma["step"]["p"][:, 0].tolist() == [70, 70, 70, 20, 20]


def test_a_newborns_first_adam_step_has_the_size_of_the_learning_rate():
    p = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    age = torch.tensor([5000.0, 5000.0, 300.0, 0.0], dtype=torch.float64)[:, None].expand(4, 3)
    moments = {"step": {"p": age}, "exp_avg_sq": {"p": (age > 0) * 1.0}, "exp_avg": {"p": (age > 0) * 0.1}}
    with Session(ADAMW, None, {"p": p}, moments) as session:
        p.grad.copy_(torch.tensor([[2.0, -1e-3, 50.0]]).expand(4, 3))
        session.step(0.01)
    torch.testing.assert_close(p[3], torch.tensor([-0.01, 0.01, -0.01], dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", [ADAMW, SGD])
def test_bits_do_not_depend_on_what_else_is_in_the_buffer(optimizer):
    g = stream(6, "group")
    values = {name: torch.randn(shape, generator=g) for name, shape in (("a", (3, 5)), ("b", (7,)), ("c", (33, 2)), ("d", ()))}
    grads = {name: [torch.randn(v.shape, generator=g) for _ in range(9)] for name, v in values.items()}

    def trained(names):
        ps = {name: nn.Parameter(values[name].clone()) for name in names}
        with Session(optimizer, None, ps) as session:
            for step in range(9):
                for name, p in ps.items():
                    p.grad.copy_(grads[name][step])
                session.step(1e-2)
        return {name: p.detach() for name, p in ps.items()}

    together = trained("dcba")
    for name in values:
        assert torch.equal(trained(name)[name], together[name])


def test_resumed_from_state_by_name_ends_with_the_same_bits():
    whole, first, second = (network(dropout=0.3) for _ in range(3))
    reports, moments = run(whole, epochs=range(4), clip=1.0)
    again, _ = run(network(dropout=0.3), epochs=range(4), clip=1.0)
    assert reports == again
    _, half = run(first, epochs=(0, 1), clip=1.0)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    rest, final = run(second, epochs=(2, 3), moments={s: {n: v.clone() for n, v in named.items()} for s, named in half.items()}, clip=1.0)
    assert rest == reports[2:]
    assert same(whole.state_dict(), second.state_dict())
    assert all(same(moments[slot], final[slot]) for slot in moments)


def test_one_session_over_many_epochs_equals_one_each():
    a, b = network(), network()
    run(a, epochs=range(3))
    with Session(ADAMW, None, params(b)) as session:
        for epoch in range(3):
            train_epoch(b, session, fold(), CE, batch=16, rates=lambda _: 1e-2, seed=1, path=("train", epoch))
    assert same(a.state_dict(), b.state_dict())


def test_the_global_generator_is_neither_used_nor_moved():
    a, b = network(dropout=0.5), network(dropout=0.5)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    run(a)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    run(b)
    assert same(a.state_dict(), b.state_dict())


def test_seed_and_path_decide_the_order():
    seen = []
    for seed, path in ((1, ("t", 0)), (1, ("t", 0)), (1, ("t", 1)), (2, ("t", 0))):
        model = nn.Linear(1, 3)
        rows = []
        model.register_forward_pre_hook(lambda _, args, rows=rows: rows.extend(args[0][:, 0].tolist()))
        data = SimpleNamespace(x=torch.arange(50.0)[:, None], y=torch.zeros(50, dtype=torch.int64))
        with Session(SGD, None, params(model)) as session:
            train_epoch(model, session, data, CE, batch=7, rates=lambda _: 1e-3, seed=seed, path=path)
        seen.append(rows)
    # 7 batches of 7; the last, of one row, is left out.
    assert all(len(set(rows)) == 49 for rows in seen)
    assert seen[0] == seen[1] and seen[0] != seen[2] and seen[0] != seen[3]


@pytest.mark.parametrize(
    ("rows", "batch", "steps"), [(10, 5, 2), (11, 5, 2), (12, 5, 3), (3, 5, 1), (1, 5, 1), (4, 1, 4), (1, 1, 1), (6, 5, 1), (0, 5, 0)]
)
def test_number_of_steps(rows, batch, steps):
    assert steps_per_epoch(rows, batch) == steps
    if rows:
        model = nn.Linear(6, 3)
        with Session(SGD, None, params(model)) as session:
            report = train_epoch(model, session, fold(rows), CE, batch=batch, rates=lambda _: 0.01, seed=0, path=())
        assert report.steps == steps and report.finite


def test_training_learns_and_the_report_says_so():
    data = fold(200)
    data.y = (data.x[:, 0] * data.x[:, 1] > 0).long() + (data.x[:, 2] > 1)
    model = network()
    before = evaluate(model, data, CE)
    reports, _ = run(model, epochs=range(40), data=data)
    after = evaluate(model, data, CE)
    assert after["loss"] < 0.5 < before["loss"] and after["accuracy"] > 0.85
    assert reports[-1].loss == reports[-1].nats < reports[0].loss
    assert reports[0].samples == 200 and reports[0].steps == 13 and reports[0].finite


def test_regression_reports_nats():
    g = stream(3, "regression")
    x = torch.randn(100, 4, generator=g)
    data = SimpleNamespace(x=x, y=x[:, :2] * 0.5 + 0.1 * torch.randn(100, 2, generator=g))
    model = nn.Linear(4, 2)
    with Session(ADAMW, None, params(model)) as session:
        for epoch in range(60):
            report = train_epoch(model, session, data, MSE, batch=32, rates=lambda _: 0.02, seed=0, path=(epoch,))
    assert report.nats == pytest.approx(math.log(report.loss))  # (2 outputs / 2) ln
    found = evaluate(model, data, MSE)
    assert found["r2"] > 0.95 and found["loss"] == pytest.approx(report.nats, abs=0.1)


@pytest.mark.parametrize("where", ["x", "weight", "running_var", "moment", "rate"])
def test_what_is_not_finite_is_reported(where):
    model, data, moments, lr = network(), fold(), None, 1e-2
    if where == "x":
        data.x[3, 2] = math.nan
    elif where == "weight":
        model[6].weight.data[0, 0] = math.inf
    elif where == "running_var":
        model[1].running_var[0] = math.nan
    elif where == "moment":
        moments = {"exp_avg_sq": {"0.weight": torch.full((7, 6), math.inf)}}
    else:
        lr = 1e38
    reports, _ = run(model, moments=moments, data=data, lr=lr)
    assert not reports[0].finite
    assert run(network())[0][0].finite


def test_closed_parameters_are_tensors_of_their_own():
    model = network()
    session = Session(ADAMW, None, params(model))
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    assert all(p.data_ptr() % 64 == 0 for p in model.parameters())
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    session.close()
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(values)
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())
    assert same(values, {name: p.detach() for name, p in model.named_parameters()})


def test_frozen_and_shared_parameters():
    model = network()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    moments = {"exp_avg": {"0.weight": torch.full((7, 6), 3.0)}}
    named = {**params(model), "twin.weight": model[4].weight}
    with Session(ADAMW, None, named, moments) as session:
        train_epoch(model, session, fold(), CE, batch=16, rates=lambda _: 0.1, seed=0, path=())
        after = session.moments()
    assert torch.equal(model[0].weight, frozen) and torch.equal(after["exp_avg"]["0.weight"], moments["exp_avg"]["0.weight"])
    assert torch.equal(after["exp_avg"]["twin.weight"], after["exp_avg"]["4.weight"])
    assert after["step"]["4.weight"].eq(steps_per_epoch(70, 16)).all()


def test_a_session_that_cannot_be_is_refused():
    model = network()
    with pytest.raises(UsageError, match="'0.weight'.*\\[2\\]"):
        Session(ADAMW, None, params(model), {"step": {"0.weight": torch.zeros(2)}})
    for step in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="no counts"):
            Session(ADAMW, None, params(model), {"step": {"0.weight": torch.full((7, 6), step)}})
    # What was refused left the parameters as they were.
    assert all(p.grad is None for p in model.parameters()) and len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 8
    with pytest.raises(UsageError, match="no parameter"):
        Session(ADAMW, None, {})
    model[0].double()
    with pytest.raises(UsageError, match="dtype"):
        Session(ADAMW, None, params(model))
    with pytest.raises(UsageError, match="0 rows"):
        evaluate(network(), fold(0), CE)
    model = network()
    with Session(SGD, None, params(model)) as session, pytest.raises(UsageError, match="0 rows"):
        train_epoch(model, session, fold(0), CE, batch=4, rates=lambda _: 0.1, seed=0, path=())


def test_evaluation_leaves_the_model_as_it_was():
    model = network(dropout=0.5)
    model.train()
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    data = fold()
    first = evaluate(model, data, CE)
    assert evaluate(model, data, CE) == first
    assert evaluate(model, data, CE, batch=11)["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert model.training and model[3].training and not model[1].training
    assert same(model.state_dict(), state)
    assert not outputs(model, data.x).requires_grad
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert model.training and not model[1].training


def test_cosine_decays_in_the_final_phase_only():
    cosine = SCHEDULES.get("cosine")
    options = cosine.Options(end=0.1, warmup=4)
    assert [cosine.rate(options, 2.0, "growth", p) for p in (0, 0.5, 1)] == [2.0] * 3
    assert cosine.rate(options, 2.0, "final", 0.0) == 2.0
    assert cosine.rate(options, 2.0, "final", 0.5) == pytest.approx(1.1)
    assert cosine.rate(options, 2.0, "final", 1.0) == pytest.approx(0.2) == cosine.rate(options, 2.0, "final", 7.0)
    assert cosine.rate(cosine.Options(), 2.0, "final", 1.0) == 0.0
    assert [cosine.rate(options, 2.0, "growth", 0.0, step) for step in (0, 1, 3, 4)] == [0.5, 1.0, 2.0, 2.0]


def test_options_are_checked():
    for lr in (0, -1.0, True, "1", math.inf, 1e300):
        with pytest.raises(ValueError):
            SGD.Options(lr=lr)
    for bad in ({"weight_decay": -1}, {"momentum": 1.0}, {"lrate": 1}):
        with pytest.raises(ValueError):
            SGD.Options(**bad)
    with pytest.raises(ValueError, match="nesterov"):
        SGD.Options(nesterov=True, momentum=0)
    assert ADAMW.Options(betas=[0.8, 0.9]).betas == (0.8, 0.9)
