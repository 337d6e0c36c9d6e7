"""A user's own loss as ours: the same derivatives where they can be compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dagrow.criteria import WHOLE, Criterion, LocalQuadratic, curvature_of, curvature_root, loss_of
from dagrow.errors import UsageError
from dagrow.losses import LOSSES
from dagrow.rng import stream

N, Q = 40, 5


def rows(q: int = Q):
    out = torch.randn(N, q, generator=stream(0, "out"), dtype=torch.float64)
    return out, torch.randint(q, (N,), generator=stream(0, "y")), torch.randn(N, q, generator=stream(0, "t"), dtype=torch.float64)


def test_what_is_known_is_exact_and_the_rest_a_criterion():
    out, y, t = rows()
    for function in (F.cross_entropy, nn.CrossEntropyLoss()):
        assert loss_of(function, out, y) is LOSSES["cross_entropy"]
    for function in (F.mse_loss, nn.MSELoss()):
        assert loss_of(function, out, t) is LOSSES["mse"]
    for function, target in ((nn.CrossEntropyLoss(label_smoothing=0.1), y), (F.mse_loss, t[:, :1].expand(-1, Q)), (nn.HuberLoss(), t), (F.cross_entropy, t.softmax(1))):
        assert isinstance(loss_of(function, out, target), Criterion | type(LOSSES["mse"]))
    maps = out.view(N // 4, Q, 2, 2)
    assert isinstance(loss_of(F.cross_entropy, maps, y[: N].view(N // 4, 2, 2)), Criterion)


def test_a_criterion_has_the_derivatives_of_the_exact_loss():
    out, y, _ = rows()
    exact, own = LOSSES["cross_entropy"], Criterion(lambda o, t: F.cross_entropy(o, t))
    assert torch.allclose(own.cotangent(out, y), exact.cotangent(out, y), atol=1e-14)
    assert torch.allclose(own.each(out, y), exact.each(out, y), atol=1e-14)
    assert float(own.nats(out, y)) == pytest.approx(float(exact.nats(out, y)), abs=1e-14)

    def branches(o, t):  # vmap cannot follow it
        return F.cross_entropy(o, t) if float(o.sum()) < 1e9 else o.sum()

    assert torch.allclose(Criterion(branches).each(out, y), exact.each(out, y), atol=1e-14)


def test_what_is_no_mean_over_rows_is_said():
    out, y, _ = rows()
    with pytest.raises(UsageError, match="sums over"):
        loss_of(nn.CrossEntropyLoss(reduction="sum"), out, y)
    with pytest.raises(UsageError, match="not one number"):
        loss_of(nn.CrossEntropyLoss(reduction="none"), out, y)
    with pytest.warns(UserWarning, match="not the mean"):
        loss_of(nn.CrossEntropyLoss(weight=torch.arange(1.0, Q + 1).double()), out, y)
    with pytest.raises(UsageError, match="40 rows for 39"):
        loss_of(lambda o, t: o.mean(), out, y[1:])


def curvature(function, out, target):
    free = out.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(free, target), free, create_graph=True)
    return slope, curvature_of(slope, free) * len(out)


def test_curvature_is_the_hessian_of_each_row():
    out, y, t = rows()
    p = out.softmax(1)
    _, found = curvature(F.cross_entropy, out, y)
    assert torch.allclose(found, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1), atol=1e-12)
    _, found = curvature(F.mse_loss, out, t)
    assert torch.allclose(found, 2 / Q * torch.eye(Q, dtype=torch.float64).expand(N, Q, Q), atol=1e-12)
    wide, _, goal = rows(WHOLE + 1)
    _, found = curvature(F.mse_loss, wide, goal)
    assert torch.allclose(found, torch.full_like(wide, 2 / (WHOLE + 1)), atol=1e-12)
    _, found = curvature(lambda o, t: (o * t).sum() / N, out, t)
    assert not found.any()


@pytest.mark.parametrize("q", [Q, WHOLE + 1])
def test_the_local_quadratic_is_the_loss_to_second_order_and_a_floor(q):
    out, _, t = rows(q)
    slope, bend = curvature(F.mse_loss, out, t)
    v = -slope.detach() * N
    y = LocalQuadratic.recorded(v, out, curvature_root(bend, v, out))
    loss, step = LocalQuadratic(), torch.randn(N, q, generator=stream(0, "step"), dtype=torch.float64) / 10
    floor = float(v.norm(dim=1).mean() / (out - out.mean(0)).square().sum(1).mean().sqrt())
    true = (out + step - t).square().mean(1) - (out - t).square().mean(1)
    assert torch.allclose(loss.each(out + step, y), true + floor / 2 * step.square().sum(1), atol=1e-12)
    assert torch.equal(loss.cotangent(out, y), v) and not loss.each(out, y).any()
    probes = torch.stack([loss.probe(out, y, stream(0, "probe", k)) for k in range(2000)])
    assert torch.allclose(probes.square().mean(0), torch.full_like(out, 2 / q + floor), rtol=0.2)


def test_a_step_for_a_row_sure_and_wrong_is_no_longer_than_outputs_are_spread():
    out, _, _ = rows()
    v = torch.ones_like(out)
    root = curvature_root(torch.zeros(N, Q, Q, dtype=torch.float64), v, out)
    curve = torch.einsum("nmi,nmj->nij", root, root)
    newton = torch.linalg.solve(curve, v)
    assert float(newton.norm(dim=1).max()) == pytest.approx(float((out - out.mean(0)).square().sum(1).mean().sqrt()))
