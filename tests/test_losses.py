"""Losses: nats, cotangents and probes against autograd and closed forms, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, r2_score

from dagrow import losses
from dagrow.errors import UnknownName, UsageError
from dagrow.rng import stream

CE, MSE = losses.get("cross_entropy"), losses.get("mse")


@pytest.fixture
def logits():
    g = stream(0, "losses")
    return 3 * torch.randn(40, 5, generator=g, dtype=torch.float64), torch.randint(0, 5, (40,), generator=g)


@pytest.fixture
def values():
    g = stream(1, "losses")
    y = torch.randn(40, 3, generator=g, dtype=torch.float64)
    return y + 0.3 * torch.randn(40, 3, generator=g, dtype=torch.float64), y


@pytest.mark.parametrize("beta", [1.0, 0.4, 7.0])
def test_cotangent_of_logits_is_minus_the_gradient_of_the_summed_nats(logits, beta):
    out, y = logits
    out.requires_grad_()
    gradient = torch.autograd.grad(CE.each(out, y, beta=beta).sum(), out)[0]
    torch.testing.assert_close(CE.cotangent(out, y, beta=beta), -gradient, rtol=1e-12, atol=1e-14)
    assert not CE.cotangent(out, y).requires_grad


@pytest.mark.parametrize("variance", [None, 0.25])
def test_cotangent_of_regression_is_minus_the_gradient_of_the_summed_nats(values, variance):
    out, y = values
    out.requires_grad_()
    gradient = torch.autograd.grad(MSE.each(out, y, variance=variance).sum(), out)[0]
    v = MSE.cotangent(out, y, variance=variance)
    torch.testing.assert_close(v, -gradient, rtol=1e-12, atol=1e-14)
    s2 = (y - out).square().mean() if variance is None else variance
    torch.testing.assert_close(v, (y - out) / s2)


def test_at_the_best_variance_regression_nats_have_the_same_gradient(values):
    """(q/2) ln(mean squared error), the profile likelihood: its gradient is that with the variance held there."""
    out, y = values
    out.requires_grad_()
    gradient = torch.autograd.grad(len(y) * MSE.nats(out, y), out)[0]
    torch.testing.assert_close(MSE.cotangent(out, y), -gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_second_moment_of_the_probe_of_logits(beta):
    """Exact over all sign vectors, per sample: beta^2 (diag p - p p^T), which is also the Hessian in the logits."""
    q = 4
    z = torch.tensor([[2.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    signs = torch.tensor([[1 if k >> j & 1 else -1 for j in range(q)] for k in range(2**q)], dtype=torch.float64)
    p = torch.softmax(beta * z[0], 0)
    expected = beta**2 * (torch.diag(p) - torch.outer(p, p))
    hessian = torch.autograd.functional.hessian(lambda o: CE.each(o, torch.tensor([0]), beta=beta).sum(), z)[0, :, 0]
    torch.testing.assert_close(hessian, expected)
    seen = torch.stack([_with_signs(CE, z, torch.tensor([0]), s, beta=beta)[0] for s in signs])
    torch.testing.assert_close(seen.T @ seen / len(seen), expected, rtol=1e-12, atol=1e-14)


def test_second_moment_of_the_probe_of_regression(values):
    out, y = values
    variance = MSE.variance(out, y)
    assert variance == pytest.approx((y - out).square().mean().item(), rel=1e-14)
    probe = MSE.probe(out, y, stream(3, "probe"))
    torch.testing.assert_close(probe.abs(), torch.full_like(probe, variance**-0.5))
    # Independent signs and a constant size: the second moment is I / variance, the Hessian at a fixed variance.
    hessian = torch.autograd.functional.hessian(lambda o: MSE.each(o, y[:1], variance=variance).sum(), out[:1])[0, :, 0]
    torch.testing.assert_close(hessian, torch.eye(3, dtype=torch.float64) / variance)
    torch.testing.assert_close(MSE.probe(out, y, stream(3, "probe"), variance=4.0).abs(), torch.full_like(probe, 0.5))


@pytest.mark.parametrize(("beta", "floor"), [(1.0, 0.0), (2.5, 0.0), (1.0, 0.1)])
def test_second_moment_of_an_importance_sampled_label(monkeypatch, beta, floor):
    """Exact over all labels, each at the share of the uniform draws that choose it: beta^2 (diag p - p p^T)."""
    q = 4
    z = torch.tensor([[2.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    p = (1 - floor) * torch.softmax(beta * z[0], 0) + floor / q
    mass = p * (1 - 2 * p + p.square().sum())
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), (mass / mass.sum()).cumsum(0)])
    seen = torch.zeros(q, q, dtype=torch.float64)
    for c in range(q):
        for inside in (1e-9, 0.5, 1 - 1e-9):  # the whole of a label's share is that label's
            draw = edges[c] + inside * (edges[c + 1] - edges[c])
            monkeypatch.setattr(torch, "rand", lambda *shape, draw=draw, **_: torch.full(shape, float(draw), dtype=torch.float64))
            v = CE.probe(z, torch.tensor([0]), stream(0), beta=beta, floor=floor, kind="importance")[0]
            expected = beta * (p[c] * mass.sum() / mass[c]).sqrt() * (torch.eye(q, dtype=torch.float64)[c] - p)
            torch.testing.assert_close(v, expected, rtol=1e-12, atol=1e-14)
        seen += (edges[c + 1] - edges[c]) * torch.outer(v, v)
    torch.testing.assert_close(seen, beta**2 * (torch.diag(p) - torch.outer(p, p)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 30.0, 1e4, math.nan])
def test_an_importance_sampled_label_of_a_certain_row_is_finite(size):
    """At p = (1 - 2e, e, e) the length is that of diag p - p p^T: sqrt(1 - |p|^2); nothing is left where p is one-hot."""
    z = torch.tensor([[size, 0.0, 0.0]])
    v = CE.probe(z, torch.tensor([0]), stream(0), kind="importance")
    p = torch.softmax(z.double(), 1)[0]
    wanted = (2 * torch.outer(p, p).triu(1).sum()).sqrt()  # 1 - |p|^2, without the cancellation
    assert math.isnan(size) or (bool(v.isfinite().all()) and v.double().norm() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-12))


def test_the_importance_sampled_label_comes_from_the_generator():
    n = 60_000
    z = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64).expand(n, 3)
    v = CE.probe(z, torch.zeros(n, dtype=torch.int64), stream(6, "probe"), kind="importance")
    p = torch.softmax(z[0], 0)
    torch.testing.assert_close(v.T @ v / n, torch.diag(p) - torch.outer(p, p), rtol=0, atol=5 / math.sqrt(n))


def test_the_empirical_probe_is_the_true_labels_cotangent(logits, values):
    out, y = logits
    expected = 2.5 * (torch.eye(5, dtype=torch.float64)[y] - torch.softmax(2.5 * out, 1))
    found = CE.probe(out, y, stream(0), beta=2.5, floor=0.1, kind="empirical")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    out, y = values
    torch.testing.assert_close(MSE.probe(out, y, stream(0), variance=4.0, kind="empirical"), (y - out) / 4)
    torch.testing.assert_close(MSE.probe(out, y, stream(0), kind="empirical"), (y - out) / (y - out).square().mean())


def test_kinds_of_probes_are_known_by_name(logits, values):
    assert torch.equal(MSE.probe(*values, stream(4), kind="importance"), MSE.probe(*values, stream(4)))
    assert torch.equal(CE.probe(*logits, stream(4), kind="rademacher"), CE.probe(*logits, stream(4)))
    assert not torch.equal(CE.probe(*logits, stream(4), kind="importance"), CE.probe(*logits, stream(4)))
    for loss, given in ((CE, logits), (MSE, values)):
        with pytest.raises(UsageError, match="fisher"):
            loss.probe(*given, stream(4), kind="fisher")


@pytest.mark.parametrize("loss", [CE, MSE])
def test_the_probe_has_mean_zero_and_the_right_covariance_from_the_generator(loss):
    n = 60_000
    out = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64).expand(n, 3)
    y = torch.zeros(n, dtype=torch.int64) if loss is CE else out + 1
    v = loss.probe(out, y, stream(5, "probe"))
    p = torch.softmax(out[0], 0)
    expected = torch.diag(p) - torch.outer(p, p) if loss is CE else torch.eye(3, dtype=torch.float64)
    assert v.mean(0).abs().max() < 5 / math.sqrt(n)
    torch.testing.assert_close(v.T @ v / n, expected, rtol=0, atol=5 / math.sqrt(n))


@pytest.mark.parametrize("kind", losses.PROBES)
@pytest.mark.parametrize("loss", [CE, MSE])
def test_the_probe_does_not_depend_on_the_batching(loss, kind, logits, values):
    out, y = logits if loss is CE else values
    whole = loss.probe(out, y, stream(9, "probe"), variance=1.0, kind=kind)
    g = stream(9, "probe")
    parts = [loss.probe(out[a:b], y[a:b], g, variance=1.0, kind=kind) for a, b in ((0, 7), (7, 8), (8, 40))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("true", [0.2, 1.0, 6.0])
def test_calibration_finds_the_temperature(true):
    g = stream(2, "calibrate")
    z = torch.randn(20_000, 4, generator=g, dtype=torch.float64)
    y = torch.multinomial(torch.softmax(true * z, 1), 1, generator=g)[:, 0]
    beta = CE.calibrate(z, y)
    assert beta == pytest.approx(true, rel=0.05)
    at = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(CE.each(z * at, y).mean(), at)[0]
    assert abs(slope.item()) < 1e-10
    assert CE.calibrate(z.float(), y) == pytest.approx(beta, rel=1e-4)


def test_calibration_is_bounded_and_never_fails():
    y = torch.tensor([0, 1, 2])
    eye = torch.eye(3)
    assert CE.calibrate(eye, y) == losses.BETA_RANGE[1]  # separated: no best beta
    assert CE.calibrate(-eye, y) == losses.BETA_RANGE[0]  # worse than nothing
    assert CE.calibrate(1e30 * eye, y) >= losses.BETA_RANGE[0]
    assert CE.calibrate(torch.zeros(3, 3), y) == 1.0
    assert CE.calibrate(torch.full((3, 3), 4.0), y) == 1.0
    assert CE.calibrate(eye * torch.nan, y) == 1.0
    assert CE.calibrate(1e6 * eye[[1, 1, 2]], y) == losses.BETA_RANGE[0]  # one confident mistake of three
    assert MSE.calibrate(eye, eye) == 1.0


def test_nats_and_metrics_agree_with_scikit_learn(logits, values):
    out, y = logits
    found = CE.metrics(out, y)
    assert found["loss"] == pytest.approx(log_loss(y.numpy(), torch.softmax(out, 1).numpy(), labels=range(5)), rel=1e-12)
    assert found["accuracy"] == accuracy_score(y.numpy(), out.argmax(1).numpy())
    assert CE.nats(out, y).item() == pytest.approx(CE.each(out, y).mean().item()) == pytest.approx(CE.mean(out, y).item())
    assert CE.nats_of(0.7, 5) == 0.7
    out, y = values
    found = MSE.metrics(out, y)
    mean = (y - out).square().mean().item()
    assert found["loss"] == pytest.approx(1.5 * math.log(mean), rel=1e-12) == pytest.approx(MSE.nats_of(mean, 3), rel=1e-12)
    assert MSE.each(out, y).mean().item() == pytest.approx(found["loss"], rel=1e-10)
    assert found["r2"] == pytest.approx(r2_score(y.numpy(), out.numpy()), rel=1e-12)
    assert found["r2"] == pytest.approx(r2_score(y.numpy() * np.array([2.0, 50.0, 0.1]) + 3, out.numpy() * np.array([2.0, 50.0, 0.1]) + 3))


def test_a_perfect_fit_and_a_constant_target_stay_finite():
    y = torch.tensor([[1.0], [1.0]])
    assert MSE.metrics(y, y) == {"loss": 0.5 * math.log(losses.VARIANCE_FLOOR), "r2": 1.0}
    assert MSE.metrics(y + 1, y)["r2"] == 0.0
    assert MSE.cotangent(y, y).isfinite().all() and MSE.probe(y, y, stream(0)).isfinite().all()


@pytest.mark.parametrize("n", [1, 3])
def test_outputs_and_targets_that_do_not_fit_are_refused(n):
    for call in (MSE.mean, MSE.nats, MSE.each, MSE.cotangent, MSE.metrics, MSE.variance):
        with pytest.raises(UsageError, match="float targets"):
            call(torch.zeros(n, 1), torch.zeros(n))  # would broadcast to [n, n]
    for call in (CE.mean, CE.nats, CE.each, CE.cotangent, CE.metrics, CE.calibrate):
        with pytest.raises(UsageError, match="int64 classes"):
            call(torch.zeros(n, 2), torch.zeros(n, 2))


def test_losses_are_found_by_name_and_by_task():
    assert losses.get("auto", "classification") is CE and losses.get("auto", "regression") is MSE
    assert losses.get("mse", "regression") is MSE
    with pytest.raises(UnknownName, match="cross_entropy"):
        losses.get("crossentropy")
    with pytest.raises(UsageError, match="'cross_entropy'"):
        losses.get("mse", "classification")


def _with_signs(loss, out, y, signs, **kwargs):
    """The probe with these signs instead of drawn ones."""
    original = losses._signs
    losses._signs = lambda like, generator: signs.expand_as(like).clone()
    try:
        return loss.probe(out, y, stream(0), **kwargs)
    finally:
        losses._signs = original
