"""The kit every source of data passes: it is tested the moment it is registered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dagrow.data import REGISTRY, Dataset, load

FILES = {"csv": {"path": "rows.csv", "target": "kind"}, "npz": {"path": "rows.npz"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the sources that read files read."""
    home = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    rows = ["a,b,colour,kind"]
    for i in range(80):
        a = "" if i % 9 == 0 else f"{draw.normal():.4f}"
        rows.append(f"{a},{draw.integers(100)},{['red', 'green', 'blue', ''][i % 4]},{'yes' if i % 3 else 'no'}")
    (home / "rows.csv").write_text("\n".join(rows))
    np.savez(home / "rows.npz", x=draw.integers(0, 256, (90, 3, 4, 4)).astype(np.uint8), y=draw.integers(0, 3, 90))
    return home


@pytest.fixture(scope="module", params=REGISTRY.names())
def data(request, folder) -> Dataset:
    return load(request.param, FILES.get(request.param, {}), {}, "per_feature", folder)


def test_folds_are_ready_for_the_network(data):
    for fold in data.folds.values():
        assert fold.x.shape == (len(fold), *data.input_shape)
        assert fold.x.dtype == torch.float32 and fold.x.is_contiguous() and fold.x.isfinite().all()
        assert fold.y.is_contiguous() and len(fold.y) == len(fold) > 0
        if data.task == "classification":
            assert fold.y.dtype == torch.int64 and 0 <= int(fold.y.min()) and int(fold.y.max()) < data.outputs == len(data.classes)
        else:
            assert fold.y.dtype == torch.float32 and fold.y.shape == (len(fold), data.outputs) and data.classes is None
    assert len(data.train_val) == len(data.train) + len(data.val)
    assert data.target_scale.shape == (data.outputs,) and (data.target_scale > 0).all()


def test_train_rows_are_standardised(data):
    mean, std = data.train.x.double().mean(0), data.train.x.double().std(0, unbiased=False)
    numbers = torch.tensor([(column.unique().numel() > 2) for column in data.train.x.reshape(len(data.train), -1).T]).reshape(mean.shape)
    assert mean[numbers].abs().max() < 1e-4
    assert (std[numbers] - 1).abs().max() < 1e-3
    if data.task == "regression":
        assert data.train.y.mean(0).abs().max() < 1e-4 and (data.train.y.std(0, unbiased=False) - 1).abs().max() < 1e-3


def test_encoder_gives_the_test_rows(data):
    assert torch.equal(data.encoder(data.raw), data.test.x[:64])
    assert torch.equal(data.encoder(data.raw.double()), data.test.x[:64])
    assert torch.equal(data.encoder(data.raw[:1]), data.test.x[:1])


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_scripts_and_exports(data, part):
    module = getattr(data, part)
    rows = data.raw if part == "encoder" else torch.randn(7, data.outputs)
    want = module(rows)
    scripted = torch.jit.script(module)
    assert torch.equal(scripted(rows), want) and torch.equal(scripted(rows[:3]), want[:3])
    exported = torch.export.export(module, (rows,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    assert torch.equal(exported(rows), want) and torch.equal(exported(rows[:3]), want[:3])


def test_decoder_gives_the_units_of_the_target(data):
    out = torch.randn(5, data.outputs)
    if data.task == "classification":
        assert torch.equal(data.decoder(out), out)
    else:
        assert torch.allclose(data.decoder(out) - data.decoder(torch.zeros_like(out)), out * data.target_scale, atol=1e-4)


def test_same_arguments_same_bits(data, folder, request):
    name = request.node.callspec.params["data"]
    again = load(name, FILES.get(name, {}), {}, "per_feature", folder)
    assert again.digest == data.digest
    for fold in data.folds:
        assert torch.equal(again.folds[fold].x, data.folds[fold].x) and torch.equal(again.folds[fold].y, data.folds[fold].y)
    other = load(name, FILES.get(name, {}), {"random_state": 1}, "per_feature", folder)
    assert other.digest != data.digest


def test_flattens_and_back(data):
    flat = data.reshaped((data.train.x[0].numel(),))
    assert flat.input_shape == (data.train.x[0].numel(),)
    assert torch.equal(flat.encoder(data.raw), data.test.x[:64].flatten(1))
    assert torch.equal(flat.reshaped(data.input_shape).val.x, data.val.x)


def test_reads_its_own_rows_again(data, tmp_path):
    rows = data.raw.numpy()
    np.savez(tmp_path / "new.npz", **{data.schema.key: rows})
    assert torch.equal(data.encoder(data.read(tmp_path / "new.npz")), data.test.x[:64])
    table, known = rows.reshape(len(rows), -1).tolist(), data.schema.categories or [None] * len(data.features)
    lines = [",".join(data.features)]
    for row in table:
        lines.append(",".join("" if v != v else repr(v) if k is None else k[int(v)] for v, k in zip(row, known, strict=True)))
    (tmp_path / "new.csv").write_text("\n".join(lines))
    assert torch.equal(data.encoder(data.read(tmp_path / "new.csv")), data.test.x[:64])


def test_has_a_line_for_the_listing(request):
    for name in REGISTRY:
        assert len(REGISTRY.summary(name)) > 10
