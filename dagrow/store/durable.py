"""Files that survive being killed at any instant: written aside, synced, renamed, and the folder synced.

Every durable operation first calls `FAULT` with its name; the fault loops put a function there that kills the
process at the n-th call. It does nothing otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp"
CHUNK = 1 << 20
FAULT: Callable[[str], None] = lambda operation: None  # noqa: E731


def write(path: Path, content: bytes) -> None:
    """`path` holds `content`, or what it held before: never a part. Raises OSError, leaving no temporary file if it can.

    The name becomes durable with `sync_folder`, which the caller owes once for all files of a folder.
    """
    aside = path.with_name(path.name + TEMPORARY)
    try:
        FAULT(f"create {aside.name}")
        with open(aside, "wb", buffering=0) as file:
            view = memoryview(content)
            while len(view):
                FAULT(f"write {aside.name}")
                view = view[file.write(view[:CHUNK]):]
            FAULT(f"fsync {aside.name}")
            os.fsync(file.fileno())
        FAULT(f"rename {path.name}")
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """The content of a file written by someone else (SQLite) reaches the disk."""
    FAULT(f"fsync {path.name}")
    _sync(path)


def sync_folder(path: Path) -> None:
    """The names in a folder reach the disk."""
    FAULT(f"fsync {path.name}/")
    _sync(path)


def move(source: Path, target: Path) -> None:
    """Rename within one filesystem; replaces a file or an empty folder."""
    FAULT(f"rename {source.name}")
    os.replace(source, target)


def remove(path: Path) -> None:
    """Delete a file or a folder and all in it; one that is not there is fine."""
    FAULT(f"remove {path.name}")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
