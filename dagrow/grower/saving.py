"""A grown model in one safetensors file: tensors under the model's own names, the architecture and where its modules are as JSON."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dagrow.errors import DagrowError, RunError
from dagrow.export.files import placing
from dagrow.graph import Architecture
from dagrow.grower import carrying
from dagrow.grower.live import Live

FORMAT = 1
KEY = "dagrow.grower"


@dataclass(frozen=True)
class Saved:
    """What a file holds. tensors: "model/NAME" and "optimizer/NAME/SLOT"."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def write(path: str | os.PathLike, live: Live, optimizer: torch.optim.Optimizer, more: Mapping[str, Any]) -> None:
    """The file, whole or not at all. UsageError where it cannot be written."""
    tensors = {f"model/{name}": t for name, t in live.model.state_dict().items()}
    names = {id(p): name for name, p in live.model.named_parameters()}
    numbers: dict[str, dict[str, Any]] = {}
    for p, state in optimizer.state.items():
        name = names.get(id(p))
        for slot, value in state.items() if name is not None else ():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{slot}"] = value
            elif isinstance(value, int | float | bool | None):
                numbers.setdefault(name, {})[slot] = value
    about = {
        "format": FORMAT, "architecture": live.arch.to_dict(), "names": live.names, "paths": live.paths, "wired": live.wired,
        "groups": [[names[id(p)] for p in group["params"] if id(p) in names] for group in optimizer.param_groups], "numbers": numbers, **more,
    }
    content = save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, {KEY: json.dumps(about)})
    with placing(path) as temporary:
        temporary.write_bytes(content)


def read(path: str | os.PathLike) -> Saved:
    """What a file of `write` holds. RunError where it is none, or damaged."""
    with understood(path):
        with open(path, "rb") as file:
            content = file.read()
        size, = struct.unpack("<Q", content[:8])
        about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
        if about["format"] != FORMAT:
            raise RunError(f"{path}: format {about['format']}, this dagrow reads {FORMAT}")
        return Saved(load(content), about)


@contextmanager
def understood(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except DagrowError:
        raise
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, struct.error, RuntimeError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise RunError(f"{path}: not what a Grower of this model saved ({reason})") from None


def restore(found: Saved, live: Live, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Makes model and optimizer what they were. The model has the form that its class gives it; what is left of `about` comes back."""
    about = found.about
    names, paths = ({str(k): str(v) for k, v in about[key].items()} for key in ("names", "paths"))
    for name in (*names.values(), *paths.values()):
        if len(name) > 4096 or not all(part.isidentifier() or part.isdigit() for part in name.split(".") if name):
            raise RunError(f"{name[:80]!a} is no path of a module")
    values = {n.partition("/")[2]: t for n, t in found.tensors.items() if n.startswith("model/")}
    if about["wired"]:
        arch = Architecture.from_dict(about["architecture"])
        plan = live.planned(arch, {full: values[name].view(values[name].shape[live.leads.get(full, 0) :]) for full, name in names.items()}, paths)
        state = carrying.Carried(plan.change)
        live.put(plan)
        carrying.take(optimizer, arch, state, live.tensors(), live.names)
    live.model.load_state_dict(values)
    held = dict(live.model.named_parameters())
    for name, numbers in about["numbers"].items():
        optimizer.state[held[name]].update(numbers)
    for key, t in found.tensors.items():
        if key.startswith("optimizer/"):
            name, _, slot = key.removeprefix("optimizer/").rpartition("/")
            p = held[name]
            optimizer.state[p][slot] = t.to(p.device) if t.dim() else t
    _regroup(optimizer, held, about["groups"])
    return about


def _regroup(optimizer: torch.optim.Optimizer, held: Mapping[str, nn.Parameter], groups: list[list[str]]) -> None:
    """Each parameter back into the group it was saved in, where there are as many groups."""
    if len(groups) != len(optimizer.param_groups):
        return
    home = {id(held[name]): k for k, group in enumerate(groups) for name in group}
    for k, group in enumerate(optimizer.param_groups):
        away = [p for p in group["params"] if home.get(id(p), k) != k]
        for p in away:
            group["params"] = [q for q in group["params"] if q is not p]
            optimizer.param_groups[home[id(p)]]["params"].append(p)


__all__ = ["Saved", "read", "restore", "understood", "write"]
