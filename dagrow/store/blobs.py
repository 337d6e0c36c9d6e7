"""Named tensors as bytes and back: safetensors files named by the sha256 of their content."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dagrow.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
DAMAGED = "the run is damaged: take {} from a copy of the folder, or start over with --force"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Equal tensors under equal names in equal order give equal bytes. The order is kept: sums over a dict depend on it."""
    import safetensors.torch

    # Cloned: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"order": json.dumps(list(plain))})


def unpack(content: bytes, place: str) -> dict[str, Tensor]:
    """The tensors, in the order they were packed in. Raises RunError naming `place` if the bytes are not what pack writes."""
    import safetensors
    import safetensors.torch

    try:
        loaded = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        order = json.loads(header["__metadata__"]["order"])
        if sorted(order) != sorted(loaded):
            raise ValueError("names and order differ")
        # Cloned: a tensor over these bytes is not aligned, and kernels give other bits for unaligned inputs.
        return {name: loaded[name].clone() for name in order}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place}: not a file of tensors that dagrow wrote ({error})", fix=DAMAGED.format(place)) from error


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def size_of(path: Path) -> int | None:
    """Bytes of a regular file; None if there is none (a pipe or device of that name would block or never end)."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def checked(path: Path, sha256: str, size: int | None = None, fix: str | None = None) -> bytes:
    """The content of `path`. Raises RunError if it is missing or does not have this digest (and size, if known)."""
    place, fix = str(path), fix or DAMAGED.format(path.name)
    found = size_of(path)
    if found is None:
        raise RunError(f"{place}: missing", fix=fix)
    if size is not None and found != size:
        raise RunError(f"{place}: {found} bytes, expected {size}", fix=fix)
    content = path.read_bytes()
    if digest(content) != sha256:
        raise RunError(f"{place}: its content does not match its digest", fix=fix)
    return content
