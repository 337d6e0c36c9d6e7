"""Which folders hold a run, who may write it, and how one is created or replaced without losing anything."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path

import yaml

from dagrow.errors import RunError
from dagrow.store import blobs, durable, journal

LOCK, SPEC, MANIFEST, BLOBS, REPLACED = "lock", "spec.yaml", "manifest.json", "blobs", ".replaced"
# What --force replaces. Anything else in the folder is the user's and stays.
OWNED = (SPEC, MANIFEST, BLOBS, "exports", "report.html", "optuna.db", *journal.COMPANIONS)
UNFINISHED = {LOCK, SPEC, MANIFEST, BLOBS, journal.NAME + durable.TEMPORARY, journal.NAME + durable.TEMPORARY + "-journal"}
UNFINISHED |= {name + durable.TEMPORARY for name in (SPEC, MANIFEST)}
LARGEST_TEXT = 4 << 20


class Lock:
    """Held by the one writer of a folder until `release`; the kernel releases it if the process dies."""

    _held: weakref.WeakSet[Lock] = weakref.WeakSet()

    def __init__(self, folder: Path):
        """Raises RunError at once if another process (or this one) is writing; OSError."""
        self.handle: int | None = None
        self.handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = describe_holder(self.handle)
            self._close()
            raise RunError(f"{folder}: being written by {holder}", fix="wait for it to finish, or stop it") from None
        except BaseException:
            self._close()
            raise
        try:
            who = {"dagrow": "lock", "pid": os.getpid(), "host": socket.gethostname()[:80]}
            durable.FAULT("write lock")
            # Padded, so that one write replaces what the last writer left: the file tells that the folder is ours.
            os.pwrite(self.handle, json.dumps(who).encode().ljust(1024), 0)
        except BaseException:
            self._close()
            raise
        self._held.add(self)

    def release(self) -> None:
        self._held.discard(self)
        self._close()

    def __del__(self) -> None:
        # A run that was dropped without being closed (in a notebook, say) must not lock its folder for good.
        self._close()

    def _close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    @classmethod
    def forget_in_child(cls) -> None:
        """A forked worker must not hold the lock on after the writer is gone."""
        for lock in list(cls._held):
            lock.release()


os.register_at_fork(after_in_child=Lock.forget_in_child)


def describe_holder(handle: int) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        who = json.loads(os.pread(handle, 1024, 0))
        return f"process {int(who['pid'])} on {str(who['host'])[:80]!r}"
    return "another process"


def is_run(folder: Path) -> bool:
    """Whether a finished creation of a run lies here, perhaps damaged since."""
    try:
        with open(folder / journal.NAME, "rb") as file:
            marked = file.read(72)[68:] == journal.APPLICATION.to_bytes(4, "big")
    except OSError:
        return False
    return marked or _lock_is_ours(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether all there is here is what a creation killed on its way left behind."""
    names = set(os.listdir(folder))
    if names == {LOCK}:
        return _lock_is_ours(folder) or blobs.size_of(folder / LOCK) == 0
    if LOCK not in names or not names <= UNFINISHED or not _lock_is_ours(folder):
        return False
    return BLOBS not in names or not os.listdir(folder / BLOBS)


def set_aside(folder: Path) -> None:
    """Move a run's own files into folder/.replaced; run.db goes first, so that half a run is never taken for one."""
    aside = folder / REPLACED
    aside.mkdir()
    for name in (journal.NAME, *OWNED):
        if os.path.lexists(folder / name):
            durable.move(folder / name, aside / name)
    durable.sync_folder(aside)
    durable.sync_folder(folder)


def being_replaced(folder: Path) -> bool:
    """Whether a replacement was killed after it moved the old run aside, before the new one was complete."""
    aside = folder / REPLACED
    moved = (aside / journal.NAME).is_file() and not os.path.lexists(folder / journal.NAME)
    return moved and _is_ours(aside) and _lock_is_ours(folder)


def settle(folder: Path) -> None:
    """Finish or undo a replacement that was killed on its way: the new run if it was complete, else the old one."""
    aside = folder / REPLACED
    if not _is_ours(aside):
        return
    if not os.path.lexists(folder / journal.NAME):
        for name in (*OWNED, journal.NAME):
            if os.path.lexists(aside / name):
                durable.move(aside / name, folder / name)
        durable.sync_folder(folder)
    durable.remove(aside)


def create(folder: Path, spec: dict, manifest: dict) -> None:
    """The files of a run without events; run.db last, which makes it one. Raises OSError, sqlite3.Error."""
    texts = {SPEC: readable(spec).encode(), MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}
    for name, text in texts.items():
        durable.write(folder / name, text)
    (folder / BLOBS).mkdir(exist_ok=True)
    meta = {"spec": journal.canonical(spec), "manifest": journal.canonical(manifest)}
    journal.create(folder / journal.NAME, meta | {name: blobs.digest(text) for name, text in texts.items()})
    durable.sync_folder(folder.parent)


def readable(spec: dict) -> str:
    """YAML in the spec's own order, without anchors (which dagrow's reader refuses)."""
    return yaml.dump(json.loads(json.dumps(spec)), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def clean(folder: Path, kept: set[str]) -> None:
    """Delete what a killed writer left: temporary files, and blobs that no event keeps."""
    for name in sorted(UNFINISHED & set(os.listdir(folder))):
        if durable.TEMPORARY in name:
            durable.remove(folder / name)
    for name in sorted(os.listdir(folder / BLOBS)):
        stem, dot, rest = name.partition(".")
        ours = len(stem) == 64 and dot + rest in (blobs.SUFFIX, blobs.SUFFIX + durable.TEMPORARY)
        if ours and (stem not in kept or dot + rest != blobs.SUFFIX):
            durable.remove(folder / BLOBS / name)


def _is_ours(aside: Path) -> bool:
    return aside.is_dir() and set(os.listdir(aside)) <= {journal.NAME, *OWNED}


def _lock_is_ours(folder: Path) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        if (blobs.size_of(folder / LOCK) or LARGEST_TEXT) < LARGEST_TEXT:
            return json.loads((folder / LOCK).read_bytes()).get("dagrow") == "lock"
    return False


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True
