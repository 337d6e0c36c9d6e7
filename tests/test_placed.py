"""The screen of branches between maps and tokens: against the natural gradient itself, in both layouts, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seen_networks import LOSSES, NETWORKS, close, evidence_for, fold_for, run, sites_of, weights_for
from test_layout import evidence_of

from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture
from dagrow.measure import measure
from dagrow.measure.features import features
from dagrow.propose import Limits, propose
from dagrow.scores import REGISTRY
from dagrow.scores.aims import aim_at
from dagrow.scores.placed import placed

RIDGE = 1e-2


def of_grid(evidence, kind: str, **options):
    edit = EDITS.get(kind)
    grid = edit.match(evidence.arch, edit.Options(**options))
    return {s.where: g for s, g in zip(grid, placed(evidence, grid, np.full(len(grid), np.nan), RIDGE), strict=True)}


@pytest.mark.parametrize("name", ["tokens", "mixer", "transformer", "unet", "inverted", "concat", "mlp", "grouped"])
def test_a_branch_is_worth_half_its_natural_gradient_squared(name):
    evidence = evidence_for(NETWORKS[name], rows=50)
    seen, compared = evidence.train, 0
    found = of_grid(evidence, "connect")
    for _, _, site in sites_of(evidence.arch, "connect"):
        form = site.form
        aim = aim_at(seen, form.target)
        x = features(form.frame.nodes[form.node], seen.values[form.source]).flatten(0, 1)
        free = aim.free(x - x.mean(0)).double()
        if float(free.square().sum()) <= 1e-6 * float((x - x.mean(0)).square().sum()):
            assert found[site.where] == 0
            continue
        gram = free.T @ free / len(free)
        half = torch.linalg.cholesky(torch.linalg.inv(gram + RIDGE * torch.linalg.eigvalsh(gram)[-1] * torch.eye(len(gram), dtype=gram.dtype)))
        white = free @ half
        total = float((white.T @ aim.v.double() / seen.rows).square().sum())
        chance = float((white.square().sum(1) * aim.v.double().square().sum(1)).sum()) / seen.rows**2
        assert found[site.where] == pytest.approx(max(total - chance, 0.0) / 2, rel=1e-6, abs=1e-12)
        compared += 1
    assert compared


def test_tokens_and_channels_are_ranked_alike():
    one, two = evidence_of(True), evidence_of(False)
    for kind, options in (("connect", {}), ("deepen", {"kernel": 1}), ("deepen", {"kernel": 1, "act": "tanh", "units": 1})):
        a, b = of_grid(one, kind, **options), of_grid(two, kind, **options)
        assert a.keys() == b.keys() and a
        close(list(a.values()), [b[k] for k in a], 1e-7)


@pytest.mark.parametrize("name", ["transformer", "unet", "inverted", "grouped", "depthwise", "words"])
def test_nothing_is_left_unsaid(name):
    evidence = evidence_for(NETWORKS[name])
    natural = REGISTRY.get("natural")(REGISTRY.get("natural").Options())
    for kind in ("connect", "deepen"):
        edit = EDITS.get(kind)
        grid = edit.match(evidence.arch, edit.Options())
        assert not len(grid) or (np.isfinite(natural.screen(evidence, grid)).all() and (natural.screen(evidence, grid) >= 0).all())


def test_the_branch_that_is_missing_is_kept():
    """Targets of a network that has one connection more: its place is among the few that are scored in full."""
    arch = NETWORKS["transformer"]
    edit = EDITS.get("connect")
    site = next(s for s in edit.match(arch, edit.Options()) if s.where == "x -> down")
    teacher: Architecture = edit.rewrite(arch, site, None).arch
    weights = weights_for(arch)
    more = weights | {n: w * 3 for n, w in weights_for(teacher).items() if n not in weights}
    folds = []
    for seed in (0, 1):
        x = fold_for(arch, "regression", 300, seed).x
        folds.append(Fold(x, run(teacher, more, x)))
    evidence = measure(arch, weights, *folds, LOSSES["regression"], rows=10**6, seed=0, path=())
    natural = REGISTRY.get("natural")(REGISTRY.get("natural").Options(starts=4, steps=4))
    every = [(EDITS.get(k), EDITS.get(k).Options()) for k in ("deepen", "connect")]
    found = propose(evidence, every, natural, Limits(), alpha=0.05, key=(0,), refine=8)
    assert found.valued - 1 == 8 < len(found) - 1
    assert any(s.candidate.where == "x -> down" for s in found[1 : found.valued])
    assert [s.reason for s in found[found.valued :]] == ["screened"] * (len(found) - found.valued)
