"""Putting a file in its place whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dagrow.errors import UsageError
from dagrow.store import durable


def check_place(path: str | Path) -> Path:
    """The path, where nothing seen beforehand speaks against writing a file there; raises as `placing` does."""
    path = Path(path)
    if not path.name or path.is_dir():
        raise UsageError(f"{path} is a folder", fix="name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file", fix="choose another place")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}", fix=f"make it first: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission in {path.parent}", fix="choose another place")
    return path


@contextmanager
def placing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write; moved to `path` where the block ends well, removed where it does not.

    UsageError: no such folder, a folder of that name, no permission, no space.
    """
    path = check_place(path)
    temporary = path.with_name(_aside(os.getpid(), path))
    try:
        _sweep(path)
        durable.FAULT(f"create {path.name} aside")
        yield temporary
        durable.sync_file(temporary)
        durable.move(temporary, path)
        with suppress(OSError):  # some file systems refuse it
            durable.sync_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}", fix="choose another place") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _aside(pid: int | str, path: Path) -> str:
    return f".{pid}-{path.name}"[:200] + path.suffix


def _sweep(path: Path) -> None:
    """Removes what processes killed while they wrote `path` left beside it."""
    with suppress(OSError):
        for name in os.listdir(path.parent):
            pid = name[1:].partition("-")[0]
            if pid.isascii() and pid.isdigit() and name == _aside(pid, path) and not _alive(int(pid)):
                os.unlink(path.with_name(name))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
