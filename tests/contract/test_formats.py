"""The kit of every export format: random networks give the same outputs in a clean process without dagrow."""

from __future__ import annotations

import pytest
import torch
from random_networks import random_network, random_weights, rows_for

from dagrow import compiler, export
from dagrow.encoding import ArrayEncoder, Identity, ScaleDecoder
from dagrow.errors import ExportError
from dagrow.export.loading import outputs_of


def bundle(seed: int) -> export.Bundle:
    """Raw rows flat and of several dtypes, as data gives them; a third of the networks regress."""
    arch = random_network(seed)
    shape = arch.shapes[arch.inputs[0]]
    raw = rows_for(arch, 7, seed).flatten(1) * 20
    raw = raw.to((torch.float32, torch.float64, torch.int64, torch.uint8)[seed % 4])
    encoder = ArrayEncoder(torch.full(raw.shape[1:], 3.0), torch.full(raw.shape[1:], 9.0), raw.shape[1:], shape, wide=seed % 2 == 0)
    regression = seed % 3 == 0
    decoder = ScaleDecoder(torch.tensor([1.0, 50.0, -3.0]), torch.tensor([2.0, 100.0, 0.1])) if regression else Identity()
    module = compiler.compile_architecture(arch, random_weights(arch, seed))
    meta = {"task": "regression" if regression else "classification", "spec": "dagrow: 1\n"}
    return export.Bundle(arch, module, encoder, decoder, raw, meta)


def compare(name: str, seeds: range, folder) -> None:
    """All files in one process: starting torch costs more than loading them."""
    kind = export.REGISTRY.get(name)
    bundles = [bundle(seed) for seed in seeds]
    paths = [folder / f"{seed}{kind.suffix}" for seed in seeds]
    for path, made in zip(paths, bundles, strict=True):
        kind.write(made, path)
    found = outputs_of(kind.loader, [(path, made.raw) for path, made in zip(paths, bundles, strict=True)])
    for made, ((whole, single), texts) in zip(bundles, found, strict=True):
        expected = made.deployed()(made.raw)
        scale = max(1.0, expected.abs().max().item())
        assert (whole - expected).abs().max() <= export.TOLERANCE * scale
        assert (single - expected[:1]).abs().max() <= export.TOLERANCE * scale
        assert texts == kind.texts(made, kind.Options())


@pytest.mark.parametrize("name", export.REGISTRY.names())
def test_a_clean_process_gives_equal_outputs(name, tmp_path):
    compare(name, range(5), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", export.REGISTRY.names())
def test_many_networks_give_equal_outputs(name, tmp_path):
    compare(name, range(5, 55), tmp_path)


@pytest.mark.parametrize("name", export.REGISTRY.names())
def test_saving_reports_the_difference(name, tmp_path):
    kind = export.REGISTRY.get(name)
    made = bundle(1)
    difference = export.save(made, name, tmp_path / f"net{kind.suffix}")
    assert 0 <= difference <= export.TOLERANCE * max(1.0, made.deployed()(made.raw).abs().max().item())


@pytest.mark.parametrize("name", export.REGISTRY.names())
def test_dagrow_is_not_there(name):
    """The process that loads refuses dagrow, even where it is installed."""
    with pytest.raises(ExportError, match="dagrow"):
        outputs_of("import dagrow", [])
