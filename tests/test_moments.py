"""Products with E[h v-perp] from both sides against the matrix; passes made some rows at a time against whole ones."""

from __future__ import annotations

import axis_oracles
import pytest
import torch
from seen_networks import LOSSES, NETWORKS, close, evidence_for, fold_for, sites_of, weights_for

from dagrow.measure import Units
from dagrow.measure import evidence as measuring
from dagrow.measure.evidence import bytes_needed, observe
from dagrow.measure.layout import width
from dagrow.measure.parents import RIDGE_LARGE, parents, span_of
from dagrow.rng import stream
from dagrow.scores import moments
from dagrow.scores.moments import main_directions, readers_of
from dagrow.scores.units import Unsupported, linear_moments, sources_of


def widened(name: str):
    """(site's form, sources, pass, readers in the metric 1, moments [sources, units, width]) where units can be carried."""
    seen = evidence_for(NETWORKS[name], rows=12).train
    for _, _, site in sites_of(NETWORKS[name], "widen"):
        if not isinstance(site.form, Units):
            continue
        try:
            sources = sources_of(seen, site.form)
            exact = linear_moments(site.form, sources, seen)
        except Unsupported:
            continue
        eyes = [torch.eye(width(seen.arch.shapes[t], seen.arch.nodes[t]), dtype=torch.float64) for t in site.form.targets]
        yield site.form, sources, readers_of(site.form, sources, seen, eyes), [exact[r] for r in site.form.readers]


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("at_once", [1.0, 1e6])
def test_both_products_are_with_the_same_matrix(name, at_once, monkeypatch):
    monkeypatch.setattr(moments, "CARRIED", at_once)
    for _, sources, readers, exact in widened(name):
        draw = stream(0, "mixes")
        mix = torch.randn(sources.x.shape[2], 3, generator=draw, dtype=torch.float64)
        for reader, matrix in zip(readers, exact, strict=True):
            kernel = torch.randn(reader.units, 2, reader.width, generator=draw, dtype=torch.float64)
            close(reader.back(mix), torch.einsum("pow,pl->olw", matrix, mix), 1e-11)
            close(reader.forth(kernel), torch.einsum("pow,olw->pl", matrix, kernel), 1e-11)


@pytest.mark.parametrize("name", ["conv", "concat", "mlp", "sequence"])
def test_main_directions_are_the_leading_singular_vectors(name):
    for _, sources, readers, exact in widened(name):
        whiten = torch.eye(sources.x.shape[2], dtype=torch.float64)
        u, sizes, _ = torch.linalg.svd(torch.cat([m.flatten(1) for m in exact], 1), full_matrices=False)
        found, values = main_directions(readers, whiten, len(sizes))
        close(values, sizes[: len(values)], 1e-9)
        close((found[:, 0] @ u[:, 0]).abs(), torch.ones(()), 1e-9)


@pytest.mark.parametrize("task", list(LOSSES))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_pass_made_some_rows_at_a_time_is_the_whole_one(name, task, monkeypatch):
    arch, loss = NETWORKS[name], LOSSES[task]
    weights, fold = weights_for(arch), fold_for(arch, task, rows=11)
    whole = observe(arch, weights, fold, loss, stream(0, "p"))
    monkeypatch.setattr(measuring, "CHUNK_VALUES", 0)
    monkeypatch.setattr(measuring, "FEWEST_CHUNK", 4)
    parts = observe(arch, weights, fold, loss, stream(0, "p"))
    assert parts.nats == pytest.approx(whole.nats, rel=1e-12)
    for a, b in ((parts.v, whole.v), (parts.probe, whole.probe)):
        for n in b:
            close(a[n], b[n], 1e-12)
    every = axis_oracles.values_of(arch, weights, {arch.inputs[0]: fold.x})
    for n in arch.order:  # those that are kept and those that are made again
        close(parts.values[n], every[n], 1e-12)


@pytest.mark.parametrize("name", ["conv", "concat", "residual"])
def test_a_large_span_is_that_of_the_same_columns_with_a_ridge(name, monkeypatch):
    seen = evidence_for(NETWORKS[name], rows=20).train
    for target in seen.v:
        if not parents(seen.arch, target):
            continue
        small = span_of(seen.arch, seen.values, target, None)
        monkeypatch.setattr("dagrow.measure.parents.LARGE", 0)
        large = span_of(seen.arch, seen.values, target, None)
        monkeypatch.undo()
        x = large.columns.double()
        close(small.free(x), torch.zeros_like(x), 1e-5)
        h = torch.randn(len(x), 2, generator=stream(0, "h"), dtype=torch.float64)
        gram = (large.columns.T @ large.columns).double()  # rounded as it was: its rounding is no small part of the ridge
        fit = torch.linalg.solve(gram + RIDGE_LARGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ h)
        close(large.free(h).double(), h - x @ fit, 1e-3)
        close(large.leverage().double(), (x * torch.linalg.solve(gram + RIDGE_LARGE * torch.eye(x.shape[1], dtype=x.dtype), x.T).T).sum(1), 1e-3)


def test_parts_of_a_pass_miss_what_the_whole_misses():
    seen = evidence_for(NETWORKS["conv"], rows=20).train
    for target in seen.v:
        close(torch.cat([p.bottleneck(target) for p in seen.parts(7)]), seen.bottleneck(target), 1e-14)


def test_memory_that_is_announced_grows_with_rows_up_to_a_bound():
    arch = NETWORKS["conv"]
    few, more, most = (bytes_needed(arch, n, n) for n in (10, 100, 10**9))
    assert 0 < few < more < most == bytes_needed(arch, 10**10, 10**10)
