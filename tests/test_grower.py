"""Growth in the user's own loop: the same model object and optimizer go on."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import dagrow
from dagrow.compiler import compile_architecture
from dagrow.errors import BudgetError, DagrowError, ExportError, RunError, UnknownName, UsageError
from dagrow.graph import Architecture, Node
from dagrow.grower import carrying, growing
from dagrow.grower.live import Live
from dagrow.grower.wiring import Rewired
from dagrow.importing import Imported
from dagrow.trials import Bench

SCORE = {"rows": 512, "verify": 2, "by": {"natural": {"starts": 8, "steps": 10}}}


@pytest.fixture(scope="module")
def rows():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:700] / 16, dtype=torch.float32), torch.tensor(y[:700])


class Net(nn.Module):
    """As a user writes one."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 10)
        self.label = "mine"

    def forward(self, x):
        return self.head(self.body(x))

    def predict(self, x):
        return self(x).argmax(1)


class Maps(nn.Module):
    """With batch norm, dropout and a connection around a layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(4, 10)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(x)))
        return self.head(self.drop(x.mean((2, 3))))


class Tokens(nn.Module):
    """With parameters and buffers of its own, one with a leading 1, and a module that is kept whole."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(8, 6), nn.Parameter(torch.randn(1, 8, 6) / 10)
        self.attend, self.norm, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.LayerNorm(6), nn.Linear(6, 10)
        self.register_buffer("mask", torch.linspace(0.5, 1, 6))

    def forward(self, x):
        h = (self.embed(x.view(-1, 8, 8)) + self.place) * self.mask
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        return self.head(h.mean(1))


def trained(model, optimizer, x, y, steps=40, seed=0, step=None):
    model.train()
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,), generator=draws)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        if step is None:
            loss.backward()
            optimizer.step()
        else:
            step(loss)
    return model


def grown(rows, make=lambda p: torch.optim.Adam(p, 3e-3), model=None, edits=("widen",), **options):
    x, y = rows
    torch.manual_seed(0)
    model = Net() if model is None else model
    optimizer = make(model.parameters())
    trained(model, optimizer, x[:500], y[:500])
    grower = dagrow.Grower(model, optimizer, x[:2], edits=edits, score=SCORE, **options)
    return model, optimizer, grower


def decide(grower, rows, loss_fn=F.cross_entropy):
    x, y = rows
    return grower.grow((x[:500], y[:500]), loss_fn, (x[500:], y[500:]))


def held(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def agree(model, optimizer):
    """The optimizer holds every live parameter once, and no other."""
    assert sorted(map(id, held(optimizer))) == sorted(map(id, model.parameters()))
    assert set(map(id, optimizer.state)) <= set(map(id, model.parameters()))


def test_the_same_object_goes_on(rows):
    x, _ = rows
    model, optimizer, grower = grown(rows)
    before = {"id": id(model), "body": model.body, "relu": model.body[1], "head": model.head, "bias": model.head.bias, "out": model(x), "size": grower.params}
    decision = decide(grower, rows)
    assert decision.changed and decision.edit == "widen" and decision.status == "ok"
    assert id(model) == before["id"] and isinstance(model, Net) and type(model).__name__ == "Net" and model.label == "mine"
    assert model.body is before["body"] and model.body[1] is before["relu"] and model.head.bias is before["bias"]
    assert decision.params == grower.params == sum(p.numel() for p in model.parameters()) == before["size"] + decision.added == grower.architecture.size
    assert model.head.weight.shape[1] == model.body[2].out_features and model.body[0].out_features == model.body[2].in_features
    was = float(F.cross_entropy(before["out"][:500].detach(), rows[1][:500]))
    assert decision.checked > 0 and value(model, x[:500], rows[1][:500]) == pytest.approx(was - decision.checked, abs=1e-5)
    assert torch.equal(model.predict(x), model(x).argmax(1)) and torch.equal(model(x=x), model(x))
    assert set(model.state_dict()) == {f"{n}.{k}" for n in ("body.0", "body.2", "head") for k in ("weight", "bias")}
    agree(model, optimizer)


def test_new_layers_lie_under_grown_and_copies_stand_alone(rows):
    x, _ = rows
    model, optimizer, grower = grown(rows, edits=("deepen",))
    assert decide(grower, rows).changed
    assert {n.partition(".")[0] for n in model.state_dict()} == {"body", "head", "grown"}
    agree(model, optimizer)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x)) and not set(map(id, twin.parameters())) & set(map(id, model.parameters()))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert not twin(x).any() and model(x).any()
    wide = copy.deepcopy(model).double()
    assert all(p.dtype == torch.float64 for p in wide.parameters()) and torch.allclose(wide(x.double()), model(x).double(), atol=1e-5)
    made = Net()
    other = dagrow.Grower(made, torch.optim.Adam(made.parameters()), x[:2])
    assert not isinstance(made, Rewired) and other.steps == 0  # nothing of a model is touched before its first edit


def test_maps_with_batch_norm_and_dropout(rows):
    x, y = rows
    maps = x.view(-1, 1, 8, 8), y
    torch.manual_seed(0)
    model = Maps()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    trained(model, optimizer, *maps, steps=30)
    grower = dagrow.Grower(model, optimizer, maps[0][:2], edits=["widen"], score=SCORE)
    assert decide(grower, maps).changed
    assert model.conv2.out_channels == model.norm2.num_features == model.norm1.num_features == model.head.in_features or model.conv1.out_channels > 4
    assert all(m.training for m in model.modules())
    model.eval()
    assert not any(m.training for m in model.modules()) and torch.equal(model(maps[0]), model(maps[0]))
    agree(model, optimizer)
    trained(model, optimizer, *maps, steps=5)
    assert decide(grower, maps).status == "ok"


def test_parameters_and_buffers_of_the_model_itself(rows):
    x, y = rows
    torch.manual_seed(0)
    model = Tokens().double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rows = x.double(), y
    trained(model, optimizer, *rows)
    place = model.place
    grower = dagrow.Grower(model, optimizer, rows[0][:2], edits=["deepen"], score=SCORE)
    assert decide(grower, rows).changed and model.place is place
    network = compile_architecture(grower.architecture, grower._weights()).eval()
    assert torch.allclose(model.eval()(rows[0]), network(rows[0]), atol=1e-12)
    agree(model, optimizer)
    twin = copy.deepcopy(model).float()
    assert twin.mask.dtype == torch.float32 and torch.allclose(twin(x).double(), model(rows[0]), atol=1e-4)
    again = dagrow.Grower(twin, torch.optim.SGD(twin.parameters(), 0.1), x[:2])
    assert again.architecture == grower.architecture and torch.equal(again._weights()["head.weight"], twin.head.weight)
    with torch.no_grad():
        twin.place.zero_(), twin.mask.zero_()
    assert not torch.allclose(twin(x).double(), model(rows[0]), atol=1e-4)
    before = [p.detach().clone() for p in model.parameters()]
    trained(model, optimizer, *rows, steps=2)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_tensor_that_holds_several_nodes_is_taken_apart():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Parameter(torch.randn(6, 4))

        def forward(self, x):
            return F.linear(x, self.both[:3]) * F.linear(x, self.both[3:])

    model = Packed()
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [model.both]}], 0.1)
    linear = {n: Node.of("linear", "input", width=3, bias=False) for n in ("a", "b")}
    arch = Architecture({"input": Node.of("input", shape=(4,)), **linear, "out": Node.of("mul", "a", "b")})
    weights = {"a.weight": model.both.detach()[:3].clone(), "b.weight": model.both.detach()[3:].clone()}
    live = Live.of(model, Imported(arch, weights, dict.fromkeys(weights, "both"), dict.fromkeys(arch.nodes, "")))
    x = torch.randn(5, 4)
    before = model(x)
    plan = live.planned(arch, weights)
    live.put(plan)
    carrying.take(optimizer, arch, carrying.Carried(plan.change), live.tensors(), live.names)
    assert live.packed is False and torch.equal(model(x), before) and list(model.state_dict()) == ["grown.a.weight", "grown.b.weight"]
    assert len(optimizer.param_groups[0]["params"]) == 1 and [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in model.parameters()]


class Causal(nn.Module):
    """With a part of a mask, and numbers of places, that the nodes hold and the model does not."""

    def __init__(self):
        super().__init__()
        self.embed, self.places, self.head = nn.Linear(8, 6), nn.Embedding(8, 6), nn.Linear(6, 10)
        self.register_buffer("mask", torch.ones(16, 16).tril())

    def forward(self, x):
        h = self.embed(x.view(-1, 8, 8))
        h = h + self.places(torch.arange(h.shape[1]))
        near = (h @ h.transpose(1, 2)).masked_fill(self.mask[:8, :8] == 0, -9.0)
        return self.head((near.softmax(-1) @ h)[:, -1])


def test_what_the_nodes_hold_and_the_model_does_not(rows, tmp_path):
    model, optimizer, grower = grown(rows, model=Causal(), edits=("deepen",))
    assert decide(grower, rows).changed
    network = compile_architecture(grower.architecture, grower._weights()).eval()
    assert torch.allclose(model.eval()(rows[0]), network(rows[0]), atol=1e-5)
    agree(model, optimizer)
    trained(model, optimizer, *rows, steps=5)
    grower.save(tmp_path / "net.safetensors")
    fresh = Causal()
    again = dagrow.Grower(fresh, torch.optim.Adam(fresh.parameters(), 3e-3), rows[0][:2], edits=("deepen",), score=SCORE)
    again.load(tmp_path / "net.safetensors")
    assert torch.equal(fresh(rows[0]), model(rows[0])) and decide(again, rows) == decide(grower, rows)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.02), "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, 3e-3),
    "amsgrad": lambda p: torch.optim.AdamW(p, 3e-3, amsgrad=True), "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.02), "nadam": lambda p: torch.optim.NAdam(p, 3e-3), "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "adamax": lambda p: torch.optim.Adamax(p, 3e-3), "rprop": lambda p: torch.optim.Rprop(p, 1e-3), "asgd": lambda p: torch.optim.ASGD(p, 0.05),
    "radam": lambda p: torch.optim.RAdam(p, 3e-3), "adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_knows_every_live_parameter_and_no_dead_one(rows, name):
    model, optimizer, grower = grown(rows, OPTIMIZERS[name], edits=("widen", "deepen"))
    for _ in range(2):
        before = {n: (p, {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}) for n, p in model.named_parameters()}
        assert decide(grower, rows).changed
        agree(model, optimizer)
        for n, p in model.named_parameters():
            if n not in before:
                continue
            old, state = before[n]
            assert (p is old) == (p.shape == old.shape)
            for slot, value in state.items():
                if value.shape == old.shape and value.dim() and name != "adafactor":
                    moved = optimizer.state[p][slot]
                    assert moved.shape == p.shape and bool(moved.isfinite().all())
                    kept = moved[tuple(slice(s) for s in old.shape)]  # widening appends
                    assert torch.equal(kept, value), (n, slot)
                elif not value.dim() and (name != "adafactor" or p is old):
                    assert torch.equal(optimizer.state[p][slot], value), (n, slot)
        weights = [p.detach().clone() for p in model.parameters()]
        trained(model, optimizer, *rows, steps=3)
        assert all(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_newborns_updates_are_in_proportion_under_adam(rows):
    model, optimizer, grower = grown(rows, lambda p: torch.optim.Adam(p, 1e-3))
    x, y = rows
    trained(model, optimizer, x, y, steps=200)
    assert decide(grower, rows).changed
    where = next(n for n, p in model.named_parameters() if n.startswith("body") and p.shape[0] > 6 and p.dim() == 2)
    live = dict(model.named_parameters())[where]
    moments = optimizer.state[live]["exp_avg_sq"]
    assert not optimizer.state[live]["exp_avg"][6:].any() and bool((moments[6:] > 0).all())
    for _ in range(10):
        before = live.detach().clone()
        trained(model, optimizer, x, y, steps=1)
    size = (live.detach() - before).square().mean(1).sqrt()
    assert 0.3 < float(size[6:].mean() / size[:6].mean()) < 3


def test_groups_schedulers_and_named_parameters(rows):
    x, y = rows
    torch.manual_seed(0)
    model = Net()
    split = [[(n, p) for n, p in model.named_parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": split[0], "weight_decay": 0.1}, {"params": split[1], "weight_decay": 0.0}], 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    trained(model, optimizer, x, y)
    grower = dagrow.Grower(model, optimizer, x[:2], edits=["deepen"], score=SCORE)
    schedule.step()
    rate = optimizer.param_groups[0]["lr"]
    assert decide(grower, rows).changed
    agree(model, optimizer)
    live = dict(model.named_parameters())
    assert any(n.startswith("grown") for n in live)
    for k, group in enumerate(optimizer.param_groups):
        assert all((p.dim() > 1) == (k == 0) for p in group["params"]) and len(group["param_names"]) == len(group["params"])
        assert all(live[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
    schedule.step()
    assert optimizer.param_groups[1]["lr"] < rate


def test_an_optimizer_that_cannot_be_used_is_said_at_once():
    model = Net()
    with pytest.raises(UsageError, match="LBFGS"):
        dagrow.Grower(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(UsageError, match=r"does not hold.*head\.weight, head\.bias"):
        dagrow.Grower(model, torch.optim.SGD(model.body.parameters(), 0.1))
    with pytest.raises(UsageError, match="not a torch.optim"):
        dagrow.Grower(model, object())
    model.head.requires_grad_(False)
    dagrow.Grower(model, torch.optim.SGD(model.body.parameters(), 0.1))


def test_frozen_parameters_stay_and_are_not_grown(rows):
    x, _ = rows
    torch.manual_seed(0)
    model = Net()
    model.body[0].requires_grad_(False)
    before = model.body[0].weight.detach().clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    trained(model, optimizer, *rows)
    grower = dagrow.Grower(model, optimizer, x[:2], edits=["widen", "deepen", "prune"], score=SCORE)
    for _ in range(3):
        decide(grower, rows)
        trained(model, optimizer, *rows, steps=10)
        assert torch.equal(model.body[0].weight, before) and not model.body[0].weight.requires_grad
    assert grower.steps and all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("body.0"))


def test_the_budget_is_a_hard_limit(rows):
    x, _ = rows
    model, _, grower = grown(rows, edits=("widen", "deepen"), budget={"params": 700, "macs": 640, "steps": 4})
    for _ in range(6):
        decision = decide(grower, rows)
        assert decision.params <= 700 and decision.macs <= 640 and grower.steps <= 4
    assert grower.steps == 4 or not decision.changed
    with pytest.raises(BudgetError, match="over the budget"):
        dagrow.Grower(model, grower.optimizer, x[:2], budget={"params": 100})
    for wrong in ({"parms": 1}, {"params": -1}, {"params": "many"}):
        with pytest.raises(UsageError, match="budget"):
            dagrow.Grower(model, grower.optimizer, budget=wrong)


def untouched(model, optimizer, act):
    """`act` leaves model, optimizer and random state as they are."""
    before = [(p, p.detach().clone()) for p in model.parameters()], copy.deepcopy(optimizer.state_dict()), torch.get_rng_state(), type(model)
    buffers = [b.clone() for b in model.buffers()]
    found = act()
    assert all(a is b for a, (b, _) in zip(model.parameters(), before[0], strict=True)) and all(torch.equal(p, v) for p, v in before[0])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    state = optimizer.state_dict()
    assert state["param_groups"] == before[1]["param_groups"] and state["state"].keys() == before[1]["state"].keys()
    for k, slots in state["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(before[1]["state"][k][s])) for s, v in slots.items())
    assert torch.equal(torch.get_rng_state(), before[2]) and type(model) is before[3]
    return found


@pytest.mark.parametrize(
    ("data", "status"),
    [([], "no rows"), ((torch.zeros(1, 64), torch.zeros(1, dtype=torch.int64)), "too few rows"), ((torch.full((64, 64), torch.nan), None), "nonfinite")],
)
def test_rows_that_tell_nothing_are_a_status(rows, data, status):
    model, optimizer, grower = grown(rows)
    data = (data[0], torch.zeros(64, dtype=torch.int64)) if len(data) == 2 and data[1] is None else data
    decision = untouched(model, optimizer, lambda: grower.grow(data, F.cross_entropy))
    assert (decision.changed, decision.status) == (False, status) and grower.history == [decision]


def test_a_loss_that_is_not_a_number_is_a_status(rows):
    model, optimizer, grower = grown(rows)
    decision = untouched(model, optimizer, lambda: decide(grower, rows, lambda out, y: F.cross_entropy(out, y) * torch.nan))
    assert decision.status == "nonfinite"


@pytest.mark.parametrize("place", [(Bench, "make"), (growing.Live, "planned"), (growing.carrying, "carried")])
def test_an_exception_within_a_decision_changes_nothing(rows, monkeypatch, place):
    model, optimizer, grower = grown(rows)

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(*place, broken)

    def act():
        with pytest.raises(ZeroDivisionError):
            decide(grower, rows)

    untouched(model, optimizer, act)
    monkeypatch.undo()
    assert decide(grower, rows).changed


def test_what_cannot_be_a_batch_is_said(rows):
    x, y = rows
    _, _, grower = grown(rows)
    for data, what in [([{"x": x, "y": y}], "dict"), ([(x, y, y)], "3 things"), ([x], "Tensor"), (3, "loader"), ([(x, y[:5])], "not a row")]:
        with pytest.raises(UsageError, match=what):
            grower.grow(data, F.cross_entropy)
    with pytest.raises(UsageError, match="not a function"):
        grower.grow((x, y), "cross_entropy")
    with pytest.raises(UnknownName, match="widen"):
        dagrow.Grower(grower.model, grower.optimizer, edits=["wide"])
    with pytest.raises(UsageError, match="units"):
        dagrow.Grower(grower.model, grower.optimizer, edits=[{"widen": {"unit": 3}}])


def test_a_loader_is_split_and_a_loss_of_ones_own_will_do(rows):
    x, y = rows
    model, optimizer, grower = grown(rows, edits=("deepen",))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=50, shuffle=True)
    found = untouched(model, optimizer, lambda: grower.score(loader, lambda out, y: F.cross_entropy(out, y)))
    assert found[0].verdict == "grow" and found.rows == 512 and found.held_rows == 170
    decision = grower.grow(loader, lambda out, y: F.cross_entropy(out, y))
    assert decision.changed and "25%" in decision.note and decision.checked > 0
    assert grower.score()[0].edit == "deepen"


def test_growing_along_the_way_needs_no_targets(rows):
    x, y = rows
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    grower = dagrow.Grower(model, optimizer, edits=["widen", "deepen"], every=40, budget={"params": 2000}, score=SCORE)
    decisions = []
    trained(model, optimizer, x, y, steps=120, step=lambda loss: decisions.append(grower.step(loss)))
    made = [d for d in decisions if d is not None]
    assert [k + 1 for k, d in enumerate(decisions) if d] == [40, 80, 120] == [d.step for d in made]
    assert made[0].changed and made[0].predicted > 0 and made[0].params <= 2000 and "latest" in made[0].note
    agree(model, optimizer)
    assert len(grower.score()) and isinstance(repr(grower), str)
    twin = copy.deepcopy(model)  # hears nothing, and takes nothing of the Grower along
    twin(x[:3]).sum().backward()
    assert not grower._ear.heard


def test_the_quadratic_model_is_that_of_the_loss(rows):
    """What step says an edit brings is what it brings, within the trust that a second order expansion deserves."""
    x, y = rows
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    grower = dagrow.Grower(model, optimizer, edits=["widen", "deepen"], every=60, score=SCORE)
    draws, made = torch.Generator().manual_seed(0), []
    for k in range(1, 181):
        drawn = torch.randint(len(x), (32,), generator=draws)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[drawn]), y[drawn])
        before = value(model, x, y)
        decision = grower.step(loss, update=k % 60 != 0)  # the edit alone, without the optimizer's own step
        if decision is not None and decision.changed:
            made.append((before - value(model, x, y), decision.checked))
    assert len(made) >= 2 and all(0.3 * said < drop < 3 * said for drop, said in made), made


def value(model, x, y):
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def test_a_loss_whose_backward_was_called_already_is_less_known_and_nothing_jumps(rows):
    x, y = rows
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    grower = dagrow.Grower(model, optimizer, edits=["widen", "deepen", "prune"], every=30, score=SCORE)

    def step(loss):
        loss.backward()
        optimizer.step()
        before = model(x).detach()
        decision = grower.step(backward=False, update=False)
        if decision:
            assert torch.allclose(model(x).detach(), before, atol=1e-5) and "silent" in decision.note
        return decision

    made = []
    trained(model, optimizer, x, y, steps=60, step=lambda loss: made.append(step(loss)))
    assert any(d and d.changed for d in made)
    with pytest.raises(UsageError, match="needs the loss"):
        grower.step()
    with pytest.raises(UsageError, match="every"):
        dagrow.Grower(model, optimizer).step(torch.zeros(()))


def test_a_gradient_scaler_goes_on(rows):
    x, y = rows
    found = []
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        grower = dagrow.Grower(model, optimizer, edits=["deepen"], every=20, score=SCORE)
        made = []
        trained(model, optimizer, x, y, steps=25, step=lambda loss: made.append(grower.step(loss, scaler=scaler)))  # noqa: B023
        found.append(made[19])
    assert found[0].changed and found[0].predicted == pytest.approx(found[1].predicted, rel=1e-3)


def test_what_was_saved_goes_on_to_the_same_bits(rows, tmp_path):
    x, y = rows
    model, optimizer, grower = grown(rows, edits=("widen", "deepen"))
    for _ in range(2):
        decide(grower, rows)
        trained(model, optimizer, x, y, steps=5)
    grower.save(tmp_path / "net.safetensors")
    fresh = Net()
    adam = torch.optim.Adam(fresh.parameters(), 3e-3)
    again = dagrow.Grower(fresh, adam, x[:2], edits=("widen", "deepen"), score=SCORE)
    again.load(tmp_path / "net.safetensors")
    assert again.architecture == grower.architecture and again.history == grower.history and torch.equal(fresh(x), model(x))
    agree(fresh, adam)
    for m, o in ((model, optimizer), (fresh, adam)):
        trained(m, o, x, y, steps=5, seed=3)
    assert torch.equal(fresh(x), model(x))
    assert decide(again, rows) == decide(grower, rows) and torch.equal(fresh(x), model(x))
    (tmp_path / "no.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for wrong in ("no.safetensors", "missing.safetensors"):
        with pytest.raises(RunError):
            again.load(tmp_path / wrong)


def test_models_of_several_tensors_are_refused_and_tracing_is_said(rows):
    x, _ = rows

    class Two(Net):
        def forward(self, x):
            h = self.body(x)
            return self.head(h), h

    class Asks(Net):
        def forward(self, x):
            return self.head(self.body(x)) if x.sum() > 0 else self.head(self.body(-x))

    model = Net()
    for wrong in ({"x": x[:2]}, [x[:2]]):
        with pytest.raises(UsageError, match="not a tensor"):
            dagrow.Grower(model, torch.optim.SGD(model.parameters(), 0.1), wrong)
    for kind in (Two, Asks):
        model = kind()
        with pytest.raises(DagrowError):
            dagrow.Grower(model, torch.optim.SGD(model.parameters(), 0.1), x[:2])


@pytest.mark.slow
def test_exports(rows, tmp_path):
    _, _, grower = grown(rows)
    decide(grower, rows)
    path, difference = grower.export("torchscript", tmp_path / "net.pt")
    assert path.exists() and difference <= 1e-5


def test_exports_of_parametrized_modules(rows, tmp_path):
    x, norms = rows[0][:4], (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm)
    models = [nn.Sequential(norm(nn.Linear(64, 4)), nn.ReLU(), nn.Linear(4, 2)) for norm in norms]
    new, old = (dagrow.Grower(m, torch.optim.SGD(m.parameters(), 0.1), x) for m in models)
    assert new.export("torchscript", tmp_path / "net.pt")[1] <= 1e-5
    assert torch.allclose(torch.jit.load(tmp_path / "net.pt")(x), models[0].eval()(x), atol=1e-5) and len(list(models[0].parameters())) == 5
    with pytest.raises(ExportError, match="export pt2"):
        old.export("torchscript", tmp_path / "old.pt")


def test_what_raises_the_loss_at_once_by_more_than_it_brings_is_refused():
    from dagrow.grower.deciding import _sober
    from dagrow.select import Outcome, Trial
    from dagrow.trials import Measured

    def status(gain: float, checked: float, epochs: int = 1) -> str:
        return _sober(Measured(Outcome(Trial(1, epochs), gain, 0.01), checked=checked)).outcome.status

    assert status(0.085, -0.31) == status(-0.01, -0.02) == "raises the loss at once"
    assert status(0.085, -0.05) == status(0.0, -1e-6) == status(0.1, 0.2) == status(0.02, -0.3, epochs=0) == "ok"
