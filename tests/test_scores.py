"""Proposals and their value against the real network: its derivatives, its losses, least squares, loops."""

from __future__ import annotations

import axis_oracles
import pytest
import torch
from seen_networks import LOSSES, NETWORKS, close, evidence_for, fold_for, made, nats, of, run, sites_of, weights_for

from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture
from dagrow.measure import Evidence, features, flat, measure, propagate
from dagrow.measure.layout import shaped, space, units_first
from dagrow.measure.parents import affine_nodes, parents
from dagrow.scores import REGISTRY, Proposal, serving
from dagrow.scores.aims import Aim, power
from dagrow.scores.natural import Natural
from dagrow.scores.units import linear_moments, reader_view, sources_of, unit_order
from dagrow.scores.valuer import quadratic, scaled, slopes, value

GROWING = ("widen", "deepen", "connect")
each_network = pytest.mark.parametrize("name", list(NETWORKS))
each_task = pytest.mark.parametrize("task", list(LOSSES))


def scorer(name: str, **options):
    return REGISTRY.get(name)(REGISTRY.get(name).Options(**options))


def proposals(name: str, task: str, by: str, units: int = 2, kinds=GROWING, rows: int = 30):
    """(evidence, edit, options, site, proposal) for every site that the scorer has a proposal for."""
    arch = NETWORKS[name]
    evidence = evidence_for(arch, task, rows=rows)
    for edit, options, site in sites_of(arch, *kinds):
        if site.form.trial:  # no derivative speaks of it
            continue
        chosen = serving(scorer(by), site.form)
        proposal = chosen.propose(evidence, site, units, (0, "test"))
        if proposal.status == "ok":
            yield evidence, edit, options, site, proposal
        else:
            assert name in ("grouped", "multiplier") and proposal.reason, (site.key, proposal)


def slope_with_v(evidence: Evidence, site, proposal) -> float:
    """The first-order gain per sample with the whole gradient in the bottleneck's place."""
    change = site.form.effect(evidence.train, proposal)
    return float(sum((d * flat(evidence.train.v[t], evidence.arch.nodes[t])).sum() for t, d in change.items()) / evidence.train.rows)


@each_network
@pytest.mark.parametrize(("task", "by"), [("classification", "natural"), ("regression", "random")])
def test_the_slope_is_the_real_networks_derivative(name, task, by):
    found = 0
    for evidence, edit, options, site, proposal in proposals(name, task, by):
        arch, fold, loss = evidence.arch, fold_for(NETWORKS[name], task, 30), LOSSES[task]
        grown = made(arch, evidence.weights, edit, options, site, proposal)
        variance = loss.variance(evidence.train.values[arch.outputs[0]], fold.y)
        # A norm's running mean gives way too, and is no parameter: differences, not gradients.
        ahead, behind = (nats(grown.arch, grown.weights(a), fold, task, variance) for a in (1e-6, -1e-6))
        along = (ahead - behind) / 2e-6
        scale = max(1.0, abs(along), abs(slope_with_v(evidence, site, proposal)))
        assert abs(-along - slope_with_v(evidence, site, proposal)) <= 1e-6 * scale, site.key
        found += 1
    assert found


@each_network
def test_finite_differences_along_a_proposal(name):
    """The same without autograd, for the whole way from site to amplitude."""
    for evidence, edit, options, site, proposal in proposals(name, "classification", "random", units=1):
        fold = fold_for(NETWORKS[name], "classification", 30)
        grown, h = made(evidence.arch, evidence.weights, edit, options, site, proposal), 1e-5
        ahead, back = (nats(grown.arch, grown.weights(a), fold, "classification") for a in (h, -h))
        slope = slope_with_v(evidence, site, proposal)
        assert abs((back - ahead) / (2 * h) - slope) <= 1e-6 * max(1.0, abs(slope)), site.key


@each_network
def test_the_value_is_the_formula_sample_by_sample(name):
    for evidence, _, _, site, proposal in proposals(name, "classification", "natural", units=1):
        gain = quadratic(evidence, site, proposal)
        for seen, mine in ((evidence.train, "train"), (evidence.held, "held")):
            s, t = [0.0] * seen.rows, [0.0] * seen.rows
            for target, change in site.form.effect(seen, proposal).items():
                left, probe = seen.bottleneck(target), flat(seen.probe[target], seen.arch.nodes[target])
                for i in range(seen.rows):
                    s[i] += float((change[i] * left[i]).sum())
                    t[i] += float((change[i] * probe[i]).sum())
            s, t = torch.tensor(s, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
            if mine == "train":
                curve = float((t**2).mean())
                amplitude = max(float(s.mean()), 0) / max(curve, 1e-300)
                assert gain.nats == pytest.approx(max(float(s.mean()), 0) * amplitude / 2, rel=1e-9, abs=1e-15)
                assert gain.amplitude == pytest.approx(amplitude, rel=1e-9)
                assert gain.stderr == pytest.approx(amplitude * float(s.std()) / len(s) ** 0.5, rel=1e-9)
            else:
                error = float(site.form.tested(seen, site.form.effect(seen, proposal)).std()) / len(s) ** 0.5
                assert gain.z == pytest.approx(float(s.mean()) / error if error else 0.0, rel=1e-7)
                held = gain.amplitude * float(s.mean()) - gain.amplitude**2 * float((t**2).mean()) / 2
                assert gain.held == pytest.approx(held, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("kind", GROWING)
def test_the_spread_of_a_slope_is_that_of_rows_left_out_of_the_parents_fit(kind):
    """Row by row: the parents are fitted to the change on all other rows, and what they miss on this one counts."""
    arch = NETWORKS["shared"]
    evidence = evidence_for(arch, "regression", rows=25)
    for _, _, site in sites_of(arch, kind):
        proposal, seen = scorer("random").propose(evidence, site, 2, (0,)), evidence.held
        exact = torch.zeros(seen.rows, dtype=torch.float64)
        changes = site.form.effect(seen, proposal)
        for target, change in changes.items():
            design = [features(arch.nodes[p], seen.values[arch.nodes[p].inputs[0]])[:, 0] for p in parents(arch, target)]
            x = torch.cat([*design, torch.ones(seen.rows, 1, dtype=torch.float64)], 1)
            for i in range(seen.rows):
                others = torch.arange(seen.rows) != i
                made = x[i] @ torch.linalg.lstsq(x[others], change[others, 0], driver="gelsd").solution
                exact[i] += (change[i, 0] - made) @ seen.bottleneck(target)[i, 0]
        close(site.form.tested(seen, changes), exact, 1e-8)


def single_output(seed: int = 0) -> tuple[Architecture, dict, Fold]:
    """A regression network of one output whose last layer is at its optimum: there the loss along it is a parabola."""
    nodes = {"x": of("input", shape=(4,)), "h": of("linear", "x", width=5), "a": of("tanh", "h"), "y": of("linear", "a", width=1)}
    arch = Architecture(nodes)
    weights, fold = weights_for(arch, seed), fold_for(arch, "regression", 60, seed)
    hidden = axis_oracles.values_of(arch, weights, {"x": fold.x})["a"]
    solved = torch.linalg.lstsq(torch.cat([hidden, torch.ones(60, 1)], 1), fold.y).solution
    weights |= {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}
    return arch, weights, fold


@pytest.mark.parametrize("kind", GROWING)
def test_the_predicted_gain_is_the_real_one_where_the_loss_is_quadratic(kind):
    arch, weights, fold = single_output()
    evidence = measure(arch, weights, fold, fold_for(arch, "regression", 60, 1), LOSSES["regression"], rows=100, seed=0, path=())
    variance = LOSSES["regression"].variance(evidence.train.values["y"], fold.y)
    tried = 0
    for edit, options, site in sites_of(arch, kind):
        if "y" not in (getattr(site.form, "target", None), *getattr(site.form, "targets", ())):
            continue
        proposal = Natural(Natural.Options()).propose(evidence, site, 2, (0,))
        gain = quadratic(evidence, site, proposal)
        grown = made(arch, weights, edit, options, site, scaled(site, proposal, gain.amplitude))
        for a in (1.0, 0.3, 1.7):
            drop = nats(arch, weights, fold, "regression", variance) - nats(grown.arch, grown.weights(a), fold, "regression", variance)
            assert drop == pytest.approx(gain.nats * (2 * a - a * a), rel=1e-8)
        tried += 1
    assert tried


# Moments and paths


PATHS = {
    "linear-linear": NETWORKS["mlp"], "conv-avgpool-conv": Architecture({
        "x": of("input", shape=(2, 8, 8)), "c": of("conv2d", "x", channels=2, kernel=3), "a": of("relu", "c"),
        "p": of("avg_pool", "a", kernel=2), "d": of("conv2d", "p", channels=2, kernel=3, stride=2, padding=1), "b": of("tanh", "d"),
        "f": of("flatten", "b"), "y": of("linear", "f", width=3),
    }),
    "conv-pool-flatten-linear": Architecture({
        "x": of("input", shape=(1, 5, 5)), "c": of("conv2d", "x", channels=2, kernel=2, stride=1, padding=0), "n": of("batchnorm", "c"),
        "p": of("max_pool", "n", kernel=2), "f": of("flatten", "p"), "y": of("linear", "f", width=3),
    }),
    "sequence": NETWORKS["sequence"], "twice": NETWORKS["twice"], "concat": NETWORKS["concat"],
}  # fmt: skip


def patches(x: torch.Tensor, attrs) -> torch.Tensor:
    """[channels, *space] -> [channels, positions, offsets], by loops."""
    rank = x.dim() - 1
    if rank == 0:
        return x.view(-1, 1, 1)
    k, stride = attrs.kernel, attrs.stride
    pad = k // 2 if attrs.padding == "same" else attrs.padding
    sizes = [(s + 2 * pad - k) // stride + 1 for s in x.shape[1:]]
    steps = [(i,) for i in range(sizes[0])] if rank == 1 else [(i, j) for i in range(sizes[0]) for j in range(sizes[1])]
    offsets = [(i,) for i in range(k)] if rank == 1 else [(i, j) for i in range(k) for j in range(k)]
    made = torch.zeros(x.shape[0], len(steps), len(offsets), dtype=x.dtype)
    for a, step in enumerate(steps):
        for b, offset in enumerate(offsets):
            at = [i * stride + o - pad for i, o in zip(step, offset, strict=True)]
            if all(0 <= i < s for i, s in zip(at, x.shape[1:], strict=True)):
                made[:, a, b] = x[(slice(None), *at)]
    return made


@pytest.mark.parametrize("name", list(PATHS))
def test_linear_moments_are_sums_over_samples_positions_and_offsets(name):
    arch = PATHS[name]
    seen = evidence_for(arch, rows=3).train
    for _, _, site in sites_of(arch, "widen"):
        form = site.form
        sources, values = sources_of(seen, form), {}
        size = sources.x.shape[2]
        modules = {n: _module(arch, n) for n in form.path}
        found = linear_moments(form, sources, seen)
        exact = {r: torch.zeros_like(found[r]) for r in form.readers}
        for p in range(size):
            for w, source in zip(form.writers, form.sources, strict=True):
                node, x = arch.nodes[w], seen.values[source]
                # Column p of w's own design matrix, as one unit's pre-activation.
                column = torch.stack([patches(row, node.attrs).permute(1, 0, 2).flatten(1) for row in x])
                column = torch.cat([column, torch.ones(*column.shape[:2], 1)], 2)[..., p]
                values[w] = column.view(len(x), 1, *arch.shapes[w][1:])
            for n in form.path:
                if arch.nodes[n].rule.role in ("norm", "activation"):
                    values[n] = values[arch.nodes[n].inputs[0]]
                else:
                    values[n] = modules[n](*(values[i] for i in arch.nodes[n].inputs if i in values))
            for r, target in zip(form.readers, form.targets, strict=True):
                left = seen.bottleneck(target)
                for i in range(seen.rows):
                    seen_by = patches(values[arch.nodes[r].inputs[0]][i], arch.nodes[r].attrs)
                    for position in range(left.shape[1]):
                        exact[r][p] += torch.outer(left[i, position], seen_by[:, position].flatten()) / seen.rows
        for r in form.readers:
            close(found[r], exact[r], 1e-10)


def _module(arch, name):
    from dagrow.graph.node import build

    return build(arch.nodes[name], [(1, *arch.shapes[i][1:]) for i in arch.nodes[name].inputs], name)


@each_network
def test_propagated_units_are_those_of_the_grown_network(name):
    """Every op on the way, batch norm in eval mode with the newborns' own statistics."""
    for evidence, edit, options, site, proposal in proposals(name, "classification", "natural", kinds=("widen", "deepen")):
        grown = made(evidence.arch, evidence.weights, edit, options, site, proposal)
        form, seen = site.form, evidence.train
        real = axis_oracles.values_of(grown.arch, grown.empty, {evidence.arch.inputs[0]: seen.values[evidence.arch.inputs[0]]})
        blocks = {(b.param, b.axis): b.values for b in proposal.blocks}
        born = {}
        for w, source in zip(form.writers, form.sources, strict=True):
            rows = blocks[f"{w}.weight", 0]
            z = features(form.frame.nodes[w], seen.values[source]) @ rows.flatten(1).T + blocks.get((f"{w}.bias", 0), torch.zeros(()))
            born[w] = shaped(z, form.frame.nodes[w], space(form.frame.shapes[w], form.frame.nodes[w]))
        for r, x in propagate(form.frame, form, born).items():
            whole, x = (units_first(t, form.frame.nodes[r]) for t in (real[grown.arch.nodes[r].inputs[0]], x))
            old = evidence.arch.derived.units(site.detail[0], f"{r}.weight", 1) if site.edit == "widen" else ()
            keep = len([u for u in old if u < 0])
            assert whole.shape[1] == x.shape[1] + len(old)
            newborn = _newborn(evidence.arch, grown.arch, site, r)
            close(whole[:, newborn], x, 1e-9)
            assert keep + len(newborn) <= whole.shape[1]


def _newborn(arch, grown, site, reader) -> list[int]:
    """Columns of the reader that carry a unit past the old ones."""
    if site.edit != "widen":
        return list(range(grown.params[f"{reader}.weight"][1]))
    axis, size = site.detail
    return [k for k, u in enumerate(grown.derived.units(axis, f"{reader}.weight", 1)) if u >= size]


def test_a_unit_read_at_two_places_is_one_unit():
    arch = NETWORKS["twice"]
    (_, _, site), = sites_of(arch, "widen")
    order = unit_order(site.form.frame, site.form, 3)["y"]
    assert order.tolist() == [*range(16), 48, *range(16, 32), 49, *range(32, 48), 50]
    evidence = evidence_for(arch)
    sources = sources_of(evidence.train, site.form)
    alpha = torch.eye(3, sources.x.shape[2], dtype=torch.float64)
    together = reader_view(site.form, sources.born(site.form, alpha))["y"]
    for unit in range(3):
        alone = reader_view(site.form, sources.born(site.form, alpha[unit : unit + 1]))["y"]
        close(together[..., unit * 17 : unit * 17 + 17], alone, 1e-12)


def test_moments_do_not_depend_on_the_order_of_rows():
    arch = NETWORKS["conv"]
    seen = evidence_for(arch).train
    order = torch.randperm(seen.rows, generator=torch.Generator().manual_seed(3))
    groups = [{n: t[order] for n, t in g.items()} for g in (seen.values, seen.v, seen.probe)]
    mixed = type(seen)(arch, seen.weights, *groups, seen.nats)
    for edit, options, site in sites_of(arch, "widen", "deepen"):
        evidence, other = Evidence(arch, seen.weights, seen, seen), Evidence(arch, seen.weights, mixed, mixed)
        if site.edit == "widen":
            one, two = (linear_moments(site.form, sources_of(s, site.form), s) for s in (seen, mixed))
            for r in one:
                close(one[r], two[r], 1e-9)
        proposal = scorer("random").propose(evidence, site, 1, (0,))
        close(quadratic(evidence, site, proposal).nats, quadratic(other, site, proposal).nats, 1e-9)


def test_a_unit_seen_only_where_there_is_no_curvature_promises_nothing():
    generator = torch.Generator().manual_seed(0)
    weight = (torch.arange(40) < 20).double() * 2
    v = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    h = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    aim = Aim(v, weight, torch.eye(2, dtype=torch.float64), 40)
    blind, all_over = h * (weight == 0).unsqueeze(1), h
    assert float(aim.gains(*aim.whitened(blind))) < 1e3 * abs(float(aim.gains(*aim.whitened(all_over)))) + 10
    assert float(aim.step(blind).abs().max()) < 1e3


# natural


def student(act: str = "relu", noise: float = 0.01, rows: int = 400) -> tuple[Architecture, dict, Fold, Fold, torch.Tensor]:
    """A linear model at its optimum, of data that one hidden unit and a linear map make."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2 * rows, 5, generator=generator, dtype=torch.float64)
    direction = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.3], dtype=torch.float64)
    hidden = {"relu": torch.relu, "tanh": torch.tanh}[act](x @ direction + 0.4)
    y = x @ torch.randn(5, 2, generator=generator, dtype=torch.float64)
    y = y + torch.outer(hidden, torch.tensor([1.5, -1.0], dtype=torch.float64))
    y = y + noise * torch.randn(2 * rows, 2, generator=generator, dtype=torch.float64)
    arch = Architecture({"x": of("input", shape=(5,)), "y": of("linear", "x", width=2)})
    solved = torch.linalg.lstsq(torch.cat([x[:rows], torch.ones(rows, 1)], 1), y[:rows]).solution
    weights = {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}
    return arch, weights, Fold(x[:rows], y[:rows]), Fold(x[rows:], y[rows:]), direction


def test_the_unit_that_the_teacher_has_is_found_on_a_bare_linear_model():
    arch, weights, train, held, direction = student()
    evidence = measure(arch, weights, train, held, LOSSES["regression"], rows=10**6, seed=0, path=())
    (edit, options, site), = sites_of(arch, "deepen", units=1)
    natural = Natural(Natural.Options(steps=200))
    proposal = natural.propose(evidence, site, 1, (0,))
    alpha = next(b.values for b in proposal.blocks if b.param.endswith(".in.weight"))[0]
    assert abs(float(torch.nn.functional.cosine_similarity(alpha, direction, dim=0))) > 0.98
    gain = value(evidence, site, proposal)
    assert gain.z > 4
    grown = made(arch, weights, edit, options, site, scaled(site, proposal, gain.amplitude))
    # The linear map gives way to the unit in the same edit: what is left is noise, and what the valuer said it would be.
    before, after = ((train.y - run(*net, train.x)).square().mean() for net in ((arch, weights), (grown.arch, grown.full)))
    assert float(after / before) < 0.003
    assert gain.nats == pytest.approx(float((before / after).log()), rel=1e-6)


def test_where_a_linear_direction_shows_nothing_the_site_is_blind():
    arch, weights, train, held, _ = student()
    evidence = measure(arch, weights, train, held, LOSSES["regression"], rows=10**6, seed=0, path=())
    natural = Natural(Natural.Options())
    (_, _, site), = sites_of(arch, "deepen")
    assert natural._directions(site.form, sources_of(evidence.train, site.form), evidence.train).blind
    arch = NETWORKS["mlp"]
    evidence, blind = evidence_for(arch), {}
    for _, _, site in sites_of(arch, "widen", "deepen"):
        blind[site.key] = natural._directions(site.form, sources_of(evidence.train, site.form), evidence.train).blind
    assert not blind["widen h1"] and not blind["widen h2"] and not blind["deepen x -> y"]
    assert blind.get("deepen a1 -> h2", True) and blind.get("deepen a2 -> y", True)


@pytest.mark.parametrize("key", ["widen h1", "widen h2", "connect x -> y"])
def test_the_order_of_units_and_inputs_does_not_matter(key):
    """The effect of a proposal is the same function, its targets' units permuted as they are."""
    arch = NETWORKS["mlp"]
    weights, fold, held = weights_for(arch), fold_for(arch, "classification", 50), fold_for(arch, "classification", 50, 1)
    p, q, r = [3, 1, 4, 0, 2], [2, 0, 3, 1], [1, 2, 0]
    mixed = dict(weights)
    mixed["h1.weight"], mixed["h1.bias"] = weights["h1.weight"][q][:, p], weights["h1.bias"][q]
    mixed["h2.weight"] = weights["h2.weight"][r][:, q]
    for local in ("weight", "bias", "running_mean", "running_var"):
        mixed[f"n2.{local}"] = weights[f"n2.{local}"][r]
    mixed["y.weight"] = weights["y.weight"][:, r]
    effects, gains = [], []
    for w, order in ((weights, slice(None)), (mixed, p)):
        train, unseen = (Fold(f.x[:, order], f.y) for f in (fold, held))
        evidence = measure(arch, w, train, unseen, LOSSES["classification"], rows=100, seed=0, path=())
        site = next(s for _, _, s in sites_of(arch, "widen", "connect") if s.key == key)
        proposal = Natural(Natural.Options()).propose(evidence, site, 2, (0,))
        effects.append(site.form.effect(evidence.train, proposal))
        gains.append(value(evidence, site, proposal))
    assert gains[1].nats == pytest.approx(gains[0].nats, rel=1e-6) and gains[1].z == pytest.approx(gains[0].z, rel=1e-6)
    for target, change in effects[0].items():
        close(effects[1][target], change[..., {"h1": q, "h2": r, "y": [0, 1, 2]}[target]], 1e-6)


def test_fewer_units_are_the_best_of_more():
    arch = NETWORKS["mlp"]
    evidence = evidence_for(arch, rows=200)
    for _, _, site in sites_of(arch, "widen", units=(1, 2, 4)):
        gains = [quadratic(evidence, site, Natural(Natural.Options()).propose(evidence, site, u, (0,))).nats for u in (1, 2, 4)]
        assert gains[0] <= gains[1] * 1.05 and gains[1] <= gains[2] * 1.05 and gains[0] > 0


def test_natural_beats_random():
    wins, tried = 0, 0
    for name in ("mlp", "residual", "concat", "conv"):
        arch = NETWORKS[name]
        evidence = evidence_for(arch, rows=120)
        for _, _, site in sites_of(arch, *GROWING):
            mine, theirs = (value(evidence, site, scorer(by).propose(evidence, site, 1, (0,))).nats for by in ("natural", "random"))
            wins, tried = wins + (mine > theirs), tried + 1
    assert wins >= 0.9 * tried


def test_power_is_the_damped_matrix_power():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    s = a.T @ a
    top = float(torch.linalg.eigvalsh(s)[-1])
    damp = s + 1e-2 * top * torch.eye(4, dtype=torch.float64)
    close(power(s, -1.0, 1e-2), torch.linalg.inv(damp), 1e-10)
    half = power(s, -0.5, 1e-2)
    close(half @ half, torch.linalg.inv(damp), 1e-10)
    assert torch.equal(power(torch.zeros(3, 3), -0.5, 1e-2), torch.zeros(3, 3))


# gram


def test_the_predicted_cost_of_a_unit_is_the_real_one_where_the_loss_is_quadratic():
    arch, weights, fold = single_output()
    weights["y.weight"] = weights["y.weight"] + 0.1  # away from the optimum: the first-order term counts
    evidence = measure(arch, weights, fold, fold_for(arch, "regression", 60, 1), LOSSES["regression"], rows=100, seed=0, path=())
    variance = LOSSES["regression"].variance(evidence.train.values["y"], fold.y)
    (edit, options, site), = sites_of(arch, "prune")
    for units in (1, 2, 4):
        proposal = scorer("gram").propose(evidence, site, units, (0,))
        shrunk = made(arch, weights, edit, options, site, proposal)
        drop = nats(arch, weights, fold, "regression", variance) - nats(shrunk.arch, shrunk.full, fold, "regression", variance)
        assert quadratic(evidence, site, proposal).nats == pytest.approx(drop, rel=1e-9)
        assert shrunk.arch.axes["h"].size == 5 - units
    # And the unit taken is the cheapest of all.
    best = quadratic(evidence, site, scorer("gram").propose(evidence, site, 1, (0,))).nats
    for unit in range(5):
        assert best >= _drop(evidence, site, [unit]) - 1e-4


def _drop(evidence, site, goes) -> float:
    """The value of removing these units, survivors solved for by least squares."""
    proposal = _least_squares(evidence, site, goes)
    return quadratic(evidence, site, proposal).nats


def _least_squares(evidence, site, goes) -> Proposal:
    seen, form, shift = evidence.train, site.form, {}
    for place, r in enumerate(form.readers):
        x = features(seen.arch.nodes[r], seen.values[seen.arch.nodes[r].inputs[0]]).flatten(0, 1)
        gone = torch.isin(form.carried(seen, place), torch.tensor(goes))
        weight, bias = seen.weights[f"{r}.weight"].flatten(1), f"{r}.bias" in seen.weights
        design = torch.cat([x[:, ~gone], torch.ones(len(x), 1)], 1) if bias else x[:, ~gone]
        solved = torch.linalg.lstsq(design, x[:, gone] @ weight[:, gone].T, driver="gelsd").solution
        extra = torch.zeros_like(weight)
        extra[:, ~gone] = (solved[:-1] if bias else solved).T
        shift[f"{r}.weight"] = extra.view(seen.weights[f"{r}.weight"].shape)
        if bias:
            shift[f"{r}.bias"] = solved[-1]
    return Proposal(units=len(goes), keep=tuple(u for u in range(form.size) if u not in goes), shift=shift)


@pytest.mark.parametrize("name", ["mlp", "conv", "sequence", "residual", "twice", "depthwise", "concat"])
def test_survivors_are_corrected_by_least_squares(name):
    arch = NETWORKS[name]
    evidence = evidence_for(arch, rows=80)
    for _, _, site in sites_of(arch, "prune"):
        for units in (1, 2):
            proposal = scorer("gram", ridge=1e-10).propose(evidence, site, units, (0,))
            exact = _least_squares(evidence, site, [u for u in range(site.form.size) if u not in proposal.keep])
            one, two = (site.form.effect(evidence.train, p) for p in (proposal, exact))
            for r in one:
                close(one[r], two[r], 1e-5)


@pytest.mark.parametrize("name", ["mlp", "conv", "twice", "sequence"])
def test_the_effect_of_dropping_is_the_real_networks_change(name):
    arch = NETWORKS[name]
    evidence = evidence_for(arch)
    x = evidence.train.values[arch.inputs[0]]
    for edit, options, site in sites_of(arch, "prune"):
        proposal = scorer("gram").propose(evidence, site, 1, (0,))
        shrunk = made(arch, evidence.weights, edit, options, site, proposal)
        real = axis_oracles.values_of(shrunk.arch, shrunk.full, {arch.inputs[0]: x})
        for r, change in site.form.effect(evidence.train, proposal).items():
            close(flat(real[r], evidence.arch.nodes[r]) - flat(evidence.train.values[r], evidence.arch.nodes[r]), change, 1e-9)


TWINS = {
    "linear": {"x": of("input", shape=(4,)), "h": of("linear", "x", width=4), "a": of("tanh", "h"), "y": of("linear", "a", width=1)},
    "conv": {
        "x": of("input", shape=(1, 4, 4)), "h": of("conv2d", "x", channels=4, kernel=3), "a": of("tanh", "h"),
        "p": of("avg_pool", "a", kernel=2), "f": of("flatten", "p"), "y": of("linear", "f", width=1),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(TWINS))
def test_a_unit_that_is_there_twice_costs_nothing_and_goes(name):
    arch = Architecture(TWINS[name])
    weights, fold = weights_for(arch), fold_for(arch, "regression", 100)
    for local in ("h.weight", "h.bias"):
        weights[local][2] = weights[local][0]
    hidden = axis_oracles.values_of(arch, weights, {"x": fold.x})[arch.nodes["y"].inputs[0]]
    each = hidden.unflatten(1, (4, -1)).mean(2)
    fold = Fold(fold.x, each @ torch.tensor([[3.0], [0.5], [0.0], [0.7]], dtype=torch.float64) + 0.1 * fold.y)
    design = torch.cat([hidden, torch.ones(100, 1)], 1)
    solved = torch.linalg.lstsq(design, fold.y, driver="gelsd").solution
    weights |= {"y.weight": solved[:-1].T.contiguous(), "y.bias": solved[-1]}
    evidence = measure(arch, weights, fold, fold, LOSSES["regression"], rows=100, seed=0, path=())
    site = next(s for _, _, s in sites_of(arch, "prune"))
    proposal = scorer("gram").propose(evidence, site, 1, (0,))
    assert set(range(4)) - set(proposal.keep) <= {0, 2}
    assert abs(value(evidence, site, proposal).nats) < 1e-3
    # Of two to go, one of the pair and the cheaper of the others: without the pair nothing stands for either.
    both = scorer("gram").propose(evidence, site, 2, (0,))
    costs = {(i, j): _drop(evidence, site, [i, j]) for i in range(4) for j in range(i)}
    taken = tuple(sorted(set(range(4)) - set(both.keep), reverse=True))
    assert costs[taken] == pytest.approx(max(costs.values()), rel=0.02) and costs[2, 0] < 2 * costs[taken]


def test_cutting_a_branch_is_made_up_for_by_those_it_meets():
    arch = NETWORKS["shared"]
    evidence = evidence_for(arch, rows=80)
    x = evidence.train.values["x"]
    found = {site.where: (edit, options, site) for edit, options, site in sites_of(arch, "remove")}
    assert set(found) == {"up", "side"}
    edit, options, site = found["side"]
    proposal = scorer("gram", ridge=1e-10).propose(evidence, site, 1, (0,))
    cut = made(arch, evidence.weights, edit, options, site, proposal)
    real = axis_oracles.values_of(cut.arch, cut.full, {"x": x})[cut.arch.outputs[0]]
    lost, h = evidence.train.values["side"], evidence.train.values["sum"]
    design = torch.cat([h, torch.ones(len(h), 1)], 1)
    close(real, evidence.train.values["up"] + design @ torch.linalg.lstsq(design, lost).solution, 1e-6)
    close(real - evidence.train.values["y"], site.form.effect(evidence.train, proposal)["side"][:, 0], 1e-9)


def test_a_branch_that_meets_no_affine_node_goes_as_it_is():
    arch = NETWORKS["residual"]
    (edit, options, site), = sites_of(arch, "remove")
    assert site.where == "back" and site.form.survivors == ()
    evidence = evidence_for(arch)
    proposal = scorer("gram").propose(evidence, site, 1, (0,))
    assert proposal.status == "ok" and proposal.shift == {}
    cut = made(arch, evidence.weights, edit, options, site, proposal)
    assert set(cut.arch.nodes) == {"x", "stem", "c", "y"}
    assert value(evidence, site, proposal).status == "ok"


def test_every_form_has_a_scorer():
    for name in NETWORKS:
        for _, _, site in sites_of(NETWORKS[name]):
            for by in REGISTRY:
                assert serving(scorer(by), site.form) is not None


def test_edits_and_scorers_are_all_tried_here():
    assert {*GROWING, "prune", "remove"} <= set(EDITS)
    assert affine_nodes(NETWORKS["linear"]) == ("y",)
    assert slopes
