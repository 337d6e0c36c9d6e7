"""Evidence against brute force: loops over samples, least squares, the real modules."""

from __future__ import annotations

import axis_oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_network, random_weights
from seen_networks import LOSSES, NETWORKS, close, evidence_for, fold_for, of, weights_for

from dagrow.data import Fold
from dagrow.graph import Architecture
from dagrow.measure import features, flat, measure
from dagrow.measure.evidence import FLOOR, observe, subsample
from dagrow.measure.features import grouped
from dagrow.measure.grouping import grouped_parents
from dagrow.measure.parents import affine_nodes, free_parents, parents
from dagrow.rng import stream

each_network = pytest.mark.parametrize("name", list(NETWORKS))
each_task = pytest.mark.parametrize("task", list(LOSSES))


@each_network
def test_features_times_weight_is_the_nodes_output(name):
    arch = NETWORKS[name]
    weights, x = weights_for(arch), axis_oracles.rows(arch)
    values = axis_oracles.values_of(arch, weights, x)
    for node in affine_nodes(arch):
        if grouped(arch.nodes[node]):
            continue
        design = features(arch.nodes[node], values[arch.nodes[node].inputs[0]])
        made = design @ weights[arch.formed.locals[node]["weight"]].flatten(1).T + weights.get(f"{node}.bias", 0)
        close(made, flat(values[node], arch.nodes[node]), 1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_features_of_any_convolution(kernel, stride, padding, rank):
    conv = of(f"conv{rank}d", "x", channels=4, kernel=kernel, stride=stride, padding=padding)
    arch = Architecture({"x": of("input", shape=(2, *(7, 6)[:rank])), "c": conv})
    weights, x = weights_for(arch), axis_oracles.rows(arch)
    made = features(arch.nodes["c"], x["x"]) @ weights["c.weight"].flatten(1).T + weights["c.bias"]
    close(made, flat(axis_oracles.values_of(arch, weights, x)["c"], arch.nodes["c"]), 1e-12)


@each_network
@each_task
def test_v_is_each_samples_own_gradient(name, task):
    arch, loss = NETWORKS[name], LOSSES[task]
    weights, fold = weights_for(arch), fold_for(arch, task, rows=6)
    seen = observe(arch, weights, fold, loss, stream(0, "p"))
    variance = loss.variance(axis_oracles.values_of(arch, weights, {arch.inputs[0]: fold.x})[arch.outputs[0]], fold.y)
    modules = {}
    for n in affine_nodes(arch):
        close(seen.values[n], axis_oracles.values_of(arch, weights, {arch.inputs[0]: fold.x})[n], 1e-12)
    for i in range(len(fold.x)):
        values = {arch.inputs[0]: fold.x[i : i + 1]}
        for n in arch.order:
            if n in values:
                continue
            module = modules.setdefault(n, _module(arch, n, weights))
            values[n] = module(*(values[j] for j in arch.nodes[n].inputs))
            if arch.nodes[n].rule.role == "affine":
                values[n] = values[n] + torch.zeros_like(values[n]).requires_grad_()
        value = loss.each(values[arch.outputs[0]], fold.y[i : i + 1], variance=variance).sum()
        zs = affine_nodes(arch)
        for n, g in zip(zs, torch.autograd.grad(value, [values[z] for z in zs], materialize_grads=True, allow_unused=True), strict=True):
            close(seen.v[n][i : i + 1], -g, 1e-10)


def _module(arch, name, weights):
    from dagrow.graph.node import build

    module = build(arch.nodes[name], [arch.shapes[i] for i in arch.nodes[name].inputs], name)
    if isinstance(module, torch.nn.Module):
        module.double().eval()
        for local, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.data = weights[arch.formed.locals[name][local]]
    return module


def test_parents_are_what_meets_in_a_sum_and_does_nothing_else():
    arch = Architecture({
        "x": of("input", shape=(4,)), "a": of("linear", "x", width=3), "b": of("linear", "x", width=3), "s": of("add", "a", "b"),
        "d": of("dropout", "s", p=0.5), "i": of("identity", "d"), "c": of("linear", "x", width=3), "all": of("add", "c", "i"),
        "t": of("tanh", "all"), "e": of("linear", "t", width=3), "more": of("add", "all", "e"), "y": of("relu", "more"),
    })  # fmt: skip
    assert parents(arch, "a") == parents(arch, "b") == parents(arch, "c") == ("a", "b", "c")
    assert parents(arch, "e") == ("e",)
    assert parents(NETWORKS["mlp"], "h1") == ("h1",)
    assert parents(NETWORKS["shared"], "a") == ("a",)
    assert parents(NETWORKS["shared"], "side") == ("up", "side")


def test_a_residual_stream_is_no_parent_of_what_joins_it_later():
    """The stem acts through the branch too: what its weights cannot do at the sum alone is missing there."""
    arch = NETWORKS["residual"]
    assert parents(arch, "stem") == ("stem",) and parents(arch, "back") == ("back",)
    # Twice into a sum is not once; an output is read by the loss as well.
    nodes = {"x": of("input", shape=(3,)), "a": of("linear", "x", width=3), "b": of("linear", "x", width=3), "y": of("add", "a", "b")}
    assert parents(Architecture({**nodes, "y": of("add", "a", "a", "b")}), "b") == ("b",)
    assert parents(Architecture(nodes, ("a", "y")), "a") == ("a",)


@each_network
@each_task
def test_the_bottleneck_is_what_least_squares_leaves(name, task):
    arch = NETWORKS[name]
    seen = evidence_for(arch, task, rows=60).train
    for target in affine_nodes(arch):
        design = [features(arch.nodes[p], seen.values[arch.nodes[p].inputs[0]]).flatten(0, 1) for p in free_parents(arch, target)]
        every = flat(seen.v[target], arch.nodes[target]).flatten(0, 1)
        left = seen.bottleneck(target).flatten(0, 1)
        for unit, v in enumerate(every.T):
            own = [_of_group(arch, seen, p, unit) for p in grouped_parents(arch, target)]
            x = torch.cat([*design, *own, torch.ones(len(v), 1, dtype=v.dtype)], 1)
            solved = torch.linalg.lstsq(x, v.unsqueeze(1), driver="gelsd").solution.squeeze(1)
            close(left[:, unit], v - x @ solved, 1e-8)
            assert float((x.T @ left[:, unit]).abs().max()) <= 1e-8 * max(1.0, float((x.T @ every).abs().max()))


def _of_group(arch, seen, parent, unit):
    """Columns by unfolding: the channels that one unit of a grouped convolution reads."""
    node, x = arch.nodes[parent], seen.values[arch.nodes[parent].inputs[0]]
    channels, width = x.shape[1] // node.attrs.groups, arch.shapes[parent][0] // node.attrs.groups
    part = x[:, unit // width * channels :][:, :channels]
    return torch.nn.functional.unfold(part, node.attrs.kernel, padding=node.attrs.kernel // 2, stride=node.attrs.stride).transpose(1, 2).flatten(0, 1)


def test_the_bottleneck_of_a_rank_deficient_design():
    arch = NETWORKS["linear"]
    fold = fold_for(arch, "classification")
    x = torch.cat([fold.x[:, :1], fold.x[:, :1] * 1e-9, torch.ones(len(fold.x), 1), torch.zeros(len(fold.x), 1)], 1).double()
    seen = measure(arch, weights_for(arch), Fold(x, fold.y), Fold(x, fold.y), LOSSES["classification"], rows=100, seed=0, path=()).train
    v = flat(seen.v["y"], seen.arch.nodes["y"])[:, 0]
    solved = torch.linalg.lstsq(x[:, [0, 2]], v).solution
    close(seen.bottleneck("y")[:, 0], v - x[:, [0, 2]] @ solved)


@given(st.integers(0, 2**20))
def test_evidence_of_random_networks(seed):
    arch = random_network(seed)
    weights = {n: w.double() if w.is_floating_point() else w for n, w in random_weights(arch, seed).items()}
    seen = evidence_for(arch, rows=12, weights=weights).train
    real = axis_oracles.values_of(arch, weights, {arch.inputs[0]: seen.values[arch.inputs[0]]})
    for n in arch.order:
        close(seen.values[n], real[n], 1e-10)
    assert all(torch.isfinite(t).all() for group in (seen.v, seen.probe) for t in group.values())
    # Sums pass gradients on: what an affine node feeds alone has the gradient of the sum.
    for n in affine_nodes(arch):
        v = seen.bottleneck(n)
        assert float(v.sum((0, 1)).abs().max()) <= 1e-6 * max(1.0, float(seen.v[n].abs().sum()))


@each_task
def test_curvature_is_gauss_newton(task):
    """Over many probes: J^T H J at every node, with H = diag p - p p^T (p a little flattened), or I / variance."""
    arch, loss = NETWORKS["mlp"], LOSSES[task]
    weights, fold = weights_for(arch), fold_for(arch, task, rows=4)
    out = axis_oracles.output(arch, weights, {"x": fold.x})
    if task == "classification":
        p = (1 - FLOOR) * torch.softmax(out, 1) + FLOOR / 3
        hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    else:
        hessian = torch.eye(3, dtype=torch.float64).expand(4, 3, 3) / loss.variance(out, fold.y)
    exact = {"y": hessian.mean(0)}
    jacobian = torch.zeros(4, 3, 4, dtype=torch.float64)
    module = {n: _module(arch, n, weights) for n in ("a1", "h2", "n2", "a2", "y")}
    z = axis_oracles.values_of(arch, weights, {"x": fold.x})["h1"]
    for i in range(4):
        def rest(h):
            h = h.unsqueeze(0)
            for n in module:
                h = module[n](h)
            return h[0]

        jacobian[i] = torch.autograd.functional.jacobian(rest, z[i])
    exact["h1"] = (jacobian.transpose(1, 2) @ hessian @ jacobian).mean(0)
    again = Fold(fold.x.repeat(5000, 1), fold.y.repeat(5000, *[1] * (fold.y.dim() - 1)))
    seen = observe(arch, weights, again, loss, stream(0, "probe"))
    for n, e in exact.items():
        assert float((seen.curvature(n) - e).abs().max()) <= 0.05 * float(e.diagonal().mean()), n


def test_curvature_sums_over_positions_and_averages_over_rows():
    arch = NETWORKS["concat"]
    seen = evidence_for(arch, rows=5).train
    exact = torch.zeros(4, 4, dtype=torch.float64)
    for probe in seen.probe["mix"]:
        for place in probe.flatten(1).T:
            exact += torch.outer(place, place) / 5
    close(seen.curvature("mix"), exact, 1e-12)


def test_held_rows_are_seen_at_their_own_temperature():
    arch = NETWORKS["linear"]
    weights = {n: w * 50 for n, w in weights_for(arch).items()}  # wildly overconfident
    found = evidence_for(arch, weights=weights, rows=200)
    out = found.held.values["y"]
    beta = LOSSES["classification"].calibrate(out, fold_for(arch, "classification", 200, 1).y)
    assert beta < 0.5
    close(found.held.v["y"], LOSSES["classification"].cotangent(out, fold_for(arch, "classification", 200, 1).y, beta=beta), 1e-12)


def test_the_head_of_a_pass_is_its_first_rows():
    seen = evidence_for(NETWORKS["conv"]).train
    part = seen.head(10)
    assert part.rows == 10 and part is seen.head(10) and seen.head(40) is seen and seen.head(99) is seen
    for n in seen.v:
        assert torch.equal(part.v[n], seen.v[n][:10]) and torch.equal(part.probe[n], seen.probe[n][:10])
    close(part.curvature("c2"), sum(p.flatten(1) @ p.flatten(1).T for p in part.probe["c2"]) / 10, 1e-12)


def test_a_subsample_is_distinct_rows_and_the_same_each_time():
    fold = fold_for(NETWORKS["linear"], "classification", rows=30)
    one, two = subsample(fold, 10, 3, "rows"), subsample(fold, 10, 3, "rows")
    assert torch.equal(one.x, two.x) and len({tuple(r) for r in one.x.tolist()}) == 10
    assert not torch.equal(one.x, subsample(fold, 10, 4, "rows").x)
    whole = {tuple(r): int(y) for r, y in zip(fold.x.tolist(), fold.y, strict=True)}
    assert all(whole[tuple(r)] == int(y) for r, y in zip(one.x.tolist(), one.y, strict=True))
    assert subsample(fold, 30, 3) is fold


def test_what_does_not_depend_on_the_order_of_rows():
    """All but the probes, whose draws go by the rows' order."""
    arch, task = NETWORKS["conv"], "classification"
    weights, fold = weights_for(arch), fold_for(arch, task)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    seen, mixed = (observe(arch, weights, f, LOSSES[task], stream(0, "p")) for f in (fold, Fold(fold.x[order], fold.y[order])))
    assert abs(seen.nats - mixed.nats) < 1e-12
    for n in affine_nodes(arch):
        close(mixed.v[n], seen.v[n][order], 1e-12)
        close(mixed.bottleneck(n), seen.bottleneck(n)[order], 1e-9)


def test_measuring_leaves_the_weights_alone():
    arch = NETWORKS["conv"]
    weights = weights_for(arch)
    before = {n: w.clone() for n, w in weights.items()}
    found = evidence_for(arch, weights=weights)
    assert all(torch.equal(before[n], w) for n, w in weights.items()) and not any(w.requires_grad for w in weights.values())
    assert not any(t.requires_grad for group in (found.train.values, found.train.v, found.train.probe) for t in group.values())
