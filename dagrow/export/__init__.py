"""Trained networks as files that other programs run without dagrow: one file per format.

A format says how a network becomes bytes and how a clean process loads them; writing atomically and comparing
outputs are the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dagrow.errors import ExportError, UsageError
from dagrow.export.files import placing
from dagrow.export.loading import outputs_of
from dagrow.registry import Options, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dagrow.graph import Architecture
    from dagrow.inputs import Inputs

REGISTRY = Registry("format", __name__, verb="formats")
TOLERANCE = 1e-5  # of the largest output, or of 1 where that is smaller


@dataclass(frozen=True)
class Bundle:
    """A trained network and all that a file of it says.

    encoder: raw rows -> the network's input; decoder: its output -> what is reported; raw: rows [n >= 1, ...] to compare on, of
    several inputs as Inputs. Of several outputs the first is decoded.
    meta: plain values (task, classes, features, input layout, what the outputs are, params, macs, dagrow's version);
    "spec" in it is the spec's text.
    """

    arch: Architecture
    module: nn.Module
    encoder: nn.Module
    decoder: nn.Module
    raw: Tensor | Inputs
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not len(self.raw):
            raise UsageError("an export needs rows of data to be compared on")

    def deployed(self, output: str = "logits") -> nn.Module:
        """The whole as one module; UsageError where `output` has no meaning for the task."""
        from dagrow.compiler import deploy

        if output == "probabilities" and self.meta.get("task") == "regression":
            raise UsageError("a regression has no probabilities", fix="leave out: output: probabilities")
        return deploy(self.encoder, self.module, self.decoder, output == "probabilities")

    def texts(self, **more: Any) -> dict[str, str]:
        """The texts that go into the file: spec.yaml, architecture.json, meta.json (`meta` and `more`)."""
        meta = {k: v for k, v in self.meta.items() if k != "spec"} | more | {"input_dtype": ", ".join(str(t.dtype) for t in tensors_of(self.raw))}
        return {
            "spec.yaml": str(self.meta.get("spec", "")),
            "architecture.json": json.dumps(self.arch.to_dict()),
            "meta.json": json.dumps(meta, default=str),
        }


class Format:
    """What every format provides: `suffix`, `encode`, and `loader`; `write` and `check` follow.

    loader: source of a function `load(path) -> (callable on tensors, {name: text})`, run in a process that has torch but
    not dagrow.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    suffix: ClassVar[str]
    loader: ClassVar[str]

    @classmethod
    def encode(cls, bundle: Bundle, options) -> bytes:
        """The file's content. ExportError where the network cannot be put into this format."""
        raise NotImplementedError

    @classmethod
    def write(cls, bundle: Bundle, path: str | Path, options=None) -> None:
        """Writes `path` whole or not at all, replacing what is there; UsageError where it cannot be written."""
        with placing(path) as temporary:
            temporary.write_bytes(cls.encode(bundle, options or cls.Options()))

    @classmethod
    def check(cls, path: str | Path, bundle: Bundle, options=None) -> float:
        """The largest absolute difference between the file's outputs, in a clean process, and the network's.

        Compared on all rows of `bundle.raw` and on the first alone. ExportError where it is above TOLERANCE, where an
        output is not finite, or where the file does not load or has lost its texts.
        """
        options = options or cls.Options()
        ((whole, single), texts), = outputs_of(cls.loader, [(Path(path), bundle.raw)])
        if texts != cls.texts(bundle, options):
            raise ExportError(f"{path}: the spec or the description written with the network did not come back")
        network = bundle.deployed(options.output)
        return max(_difference(path, network, bundle.raw, whole), _difference(path, network, bundle.raw[:1], single))

    @classmethod
    def texts(cls, bundle: Bundle, options) -> dict[str, str]:
        return bundle.texts(format=cls.name, output=options.output if bundle.meta.get("task") != "regression" else "values")


def save(bundle: Bundle, name: str, path: str | Path, options=None) -> float:
    """Writes `bundle` in the format `name` and returns `check`'s largest difference.

    The file takes its place only once the check has passed: an earlier file at `path` outlives a failed export.
    """
    kind = REGISTRY.get(name)
    options = options or kind.Options()
    with placing(path) as temporary:
        temporary.write_bytes(kind.encode(bundle, options))
        return kind.check(temporary, bundle, options)


def tensors_of(rows: Tensor | Inputs | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One tensor, or several."""
    return rows if isinstance(rows, tuple) else getattr(rows, "tensors", (rows,))


def _difference(path: str | Path, network: nn.Module, raw: Tensor | Inputs, found: Tensor | tuple[Tensor, ...]) -> float:
    import torch

    with torch.no_grad():
        wanted, found = tensors_of(network(*(t.cpu() for t in tensors_of(raw)))), tensors_of(found)
    if len(found) != len(wanted):
        raise ExportError(f"{path}: gives {len(found)} outputs, the network {len(wanted)}")
    return max(_gap(path, one, other) for one, other in zip(found, wanted, strict=True))


def _gap(path: str | Path, found: Tensor, expected: Tensor) -> float:
    import torch

    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ExportError(f"{path}: gives {list(found.shape)} {found.dtype}, the network {list(expected.shape)} {expected.dtype}")
    if not (torch.isfinite(expected).all() and torch.isfinite(found).all()):
        raise ExportError(f"{path}: the network's outputs are not finite on the rows to compare on")
    difference = (found.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if difference > TOLERANCE * scale:
        raise ExportError(f"{path}: its outputs differ from the network's by {difference:.3g} (allowed: {TOLERANCE * scale:.3g})")
    return difference
