"""Putting a file in its place whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dagrow.errors import UsageError


@contextmanager
def placing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write; moved to `path` where the block ends well, removed where it does not.

    UsageError: no such folder, a folder of that name, no permission, no space.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise UsageError(f"{path} is a folder", fix="name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file", fix="choose another place")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}", fix=f"make it first: mkdir -p {path.parent}")
    temporary = path.with_name(f".{os.getpid()}-{path.name}"[:200] + path.suffix)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}", fix="choose another place") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
