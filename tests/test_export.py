"""dagrow.export: files that a clean process runs to the same outputs, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import warnings

import pytest
import torch
from random_networks import random_network, random_weights, rows_for
from torch import nn

from dagrow import compiler, export
from dagrow.errors import DagrowError, ExportError, UsageError
from dagrow.export import files


class Shift(nn.Module):
    """An encoder as data make them: casts, then standardises."""

    def __init__(self, mean: float, scale: float):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.float32) - self.mean) / self.scale


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def bundle(seed: int = 0, raw: torch.Tensor | None = None, **meta) -> export.Bundle:
    arch = random_network(seed)
    module = compiler.compile_architecture(arch, random_weights(arch, seed))
    raw = rows_for(arch, 6, seed) if raw is None else raw
    meta = {"task": "classification", "classes": ["a", "b", "c"], "spec": "dagrow: 1\nname: é\n", **meta}
    return export.Bundle(arch, module, Shift(0.5, 2.0), Same(), raw, meta)


def scripted(made: export.Bundle, **options):
    """(the TorchScript program as loaded here, its texts)."""
    kind = export.REGISTRY.get("torchscript")
    content = kind.encode(made, kind.Options(**options))
    texts = {"spec.yaml": "", "architecture.json": "", "meta.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return torch.jit.load(io.BytesIO(content), _extra_files=texts), texts


def test_torchscript_names_and_texts_come_back():
    made = bundle(1)
    program, texts = scripted(made)
    state = {compiler.plain_name(k.removeprefix("network.")): v for k, v in program.state_dict().items() if k.startswith("network.")}
    weights = compiler.weights_of(made.module)
    assert state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in weights)
    assert texts["spec.yaml"].decode() == made.meta["spec"]
    assert type(made.arch).from_dict(json.loads(texts["architecture.json"])) == made.arch
    meta = json.loads(texts["meta.json"])
    assert meta["output"] == "logits" and meta["classes"] == ["a", "b", "c"] and meta["format"] == "torchscript"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64, torch.float16, torch.bool])
def test_torchscript_takes_rows_of_any_dtype(dtype):
    made = bundle(2)
    raw = (made.raw.abs() * 3).to(dtype)
    program, _ = scripted(made)
    assert torch.equal(program(raw), made.deployed()(raw)) and program(raw).dtype == torch.float32


def test_probabilities_and_freezing():
    made = bundle(3)
    program, _ = scripted(made, output="probabilities", freeze=True)
    out = program(made.raw)
    assert torch.allclose(out, torch.softmax(made.deployed()(made.raw), 1), atol=1e-6)
    assert not list(program.parameters())
    with pytest.raises(UsageError, match="no probabilities"):
        bundle(3, task="regression").deployed("probabilities")


def test_exporting_warns_of_nothing_and_changes_nothing(recwarn):
    made = bundle(4)
    before = compiler.weights_of(made.module)
    warnings.simplefilter("always")
    for name in export.REGISTRY:
        kind = export.REGISTRY.get(name)
        kind.encode(made, kind.Options())
    assert [str(w.message) for w in recwarn] == []
    assert made.module.training and all(p.requires_grad for p in made.module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in compiler.weights_of(made.module).items())


def test_a_file_of_another_network_is_found_out_and_the_earlier_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    made = bundle(0)
    assert export.save(made, "torchscript", path) <= export.TOLERANCE
    earlier = path.read_bytes()
    changed = bundle(0)
    with torch.no_grad():
        next(changed.module.parameters()).add_(0.1)
    kind = export.REGISTRY.get("torchscript")
    with pytest.raises(ExportError, match="differ") as caught:
        kind.check(path, changed)
    assert caught.value.exit_code == 5
    monkeypatch.setattr(kind, "encode", classmethod(lambda cls, b, o: b"not a program"))
    with pytest.raises(ExportError, match="clean process"):
        export.save(made, "torchscript", path)
    assert path.read_bytes() == earlier and os.listdir(tmp_path) == ["net.pt"]


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    made = bundle(0)
    with torch.no_grad():
        next(made.module.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match="not finite"):
        export.save(made, "torchscript", tmp_path / "net.pt")
    assert os.listdir(tmp_path) == []


def test_a_bundle_needs_rows():
    with pytest.raises(UsageError, match="rows"):
        bundle(0, raw=torch.zeros(0, 5))


def test_what_cannot_be_scripted_is_one_clear_error():
    class Odd(nn.Module):
        def forward(self, x):
            return x + [k for k in {1, 2}][0] * len({*()})

    made = bundle(0)
    odd = export.Bundle(made.arch, made.module, Odd(), made.decoder, made.raw, made.meta)
    kind = export.REGISTRY.get("torchscript")
    with pytest.raises(ExportError, match="TorchScript"):
        kind.encode(odd, kind.Options())


def write(path) -> None:
    with files.placing(path) as temporary:
        temporary.write_bytes(b"new")


def test_files_are_placed_whole(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.placing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    write(path)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.pt"]


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(DagrowError, match="there is no folder"):
        write(tmp_path / "none" / "a.pt")
    with pytest.raises(DagrowError, match="is a folder"):
        write(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DagrowError, match="plain file"):
        write(tmp_path / "pipe")

    # Root may write anywhere, so the refusal is made up.
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", denied)
    with pytest.raises(DagrowError, match="Permission denied"):
        write(tmp_path / "a.pt")
    assert os.listdir(tmp_path) == ["pipe"]
