"""A run on disk: folder/{spec.yaml, manifest.json, run.db, blobs/<sha256>.safetensors, lock}.

run.db is the truth: a journal of events, each committed in one transaction after its tensors are on disk.
Killed at any instant, the folder holds every committed event and nothing of the one in progress.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagrow.errors import RunError
from dagrow.store import blobs as blobs_
from dagrow.store import durable, journal
from dagrow.store import folder as folders
from dagrow.store.machine import FORMAT, manifest, manifest_difference
from dagrow.store.stopping import Stopping, graceful

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMAT", "Event", "Run", "Stopping", "graceful", "manifest", "manifest_difference"]

OTHER = "choose another folder with -o, or replace it with --force"
CREATE = "create the run"
RESTORE = "put {} back as it was when the run began; budgets are changed with `dagrow resume FOLDER --set`"
MILESTONES = frozenset({"edit", "step", "final"})


@dataclass(frozen=True)
class Event:
    """One committed row. `payload` is plain JSON; `blobs` maps a group of tensors to the sha256 of its file;
    `times` (unix time "at", and what the writer measured, in seconds) is all that may differ between equal runs."""

    seq: int
    kind: str
    payload: dict[str, Any]
    blobs: dict[str, str]
    times: dict[str, float]


class Run:
    """A run folder, open for reading (a snapshot) or, by one process at a time, for writing. Close it, or use `with`."""

    def __init__(self, folder: Path, contents: journal.Contents, lock: folders.Lock | None, writer: journal.Writer | None):
        """Use `Run.create` or `Run.open`."""
        self.folder = folder
        self._contents, self._lock, self._writer = contents, lock, writer
        try:
            self.spec: dict[str, Any] = json.loads(contents.meta["spec"])
            self.manifest: dict[str, Any] = json.loads(contents.meta["manifest"])
            self._events = [_event(seq, row) for seq, row in enumerate(contents.rows)]
        except (ValueError, RecursionError) as error:
            raise RunError(f"{folder / journal.NAME}: not what dagrow wrote ({error})", fix=blobs_.DAMAGED.format(journal.NAME)) from error

    @classmethod
    def create(cls, folder: str | os.PathLike, spec: dict, manifest: dict, force: bool = False) -> Run:
        """A new run, open for writing, in a folder that is missing or empty. `spec` and `manifest` are plain JSON values.

        With `force` a run in the folder is replaced; the old one is kept until the new one is complete. Raises
        RunError: not empty, another run or the same, being written, not writable. Nothing is changed then.
        """
        folder = Path(folder).absolute()
        with _reasons(folder, CREATE):
            if os.path.lexists(folder) and not folder.is_dir():
                raise RunError(f"{folder}: a file, not a folder", fix="choose another folder with -o")
            if folder.is_dir() and not folders.being_replaced(folder):
                _refuse_taken(folder, spec, force)
            folder.mkdir(parents=True, exist_ok=True)
            lock = folders.Lock(folder)
            try:
                folders.settle(folder)
                _refuse_taken(folder, spec, force)  # again: now nobody else can be creating one
                if folders.is_run(folder):
                    folders.set_aside(folder)
                folders.create(folder, spec, manifest)
                folders.settle(folder)
                return cls._locked(folder, lock)
            except BaseException:
                with suppress(OSError):
                    folders.settle(folder)
                lock.release()
                raise

    @classmethod
    def open(cls, folder: str | os.PathLike, write: bool = False) -> Run:
        """An existing run; every digest in its journal is checked, every kept blob must be there with its size.

        Reading needs no write access and does not disturb a writer. Raises RunError naming the file and what to do.
        """
        folder = Path(folder).absolute()
        with _reasons(folder, "open the run"):
            if not folder.is_dir():
                raise RunError(f"{folder}: {'a file, not a run folder' if folder.exists() else 'no such run folder'}")
            if blobs_.size_of(folder / journal.NAME) is None and not (write and folders.being_replaced(folder)):
                what = "this is not the folder of a run, or of one that was stopped before it began"
                raise RunError(f"{folder / journal.NAME}: missing; {what}", fix="start one with `dagrow search`")
            if not write:
                return cls(folder, _read(folder), None, None)
            lock = folders.Lock(folder)
            try:
                folders.settle(folder)
                return cls._locked(folder, lock)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def _locked(cls, folder: Path, lock: folders.Lock) -> Run:
        writer = journal.Writer(folder / journal.NAME)
        try:
            _check_files(folder, writer.contents)
            folders.clean(folder, {sha256 for sha256, (_, kept) in writer.contents.blobs.items() if kept})
            return cls(folder, writer.contents, lock, writer)
        except BaseException:
            writer.close()
            raise

    def events(self) -> list[Event]:
        """All committed events, by seq (0, 1, …)."""
        return list(self._events)

    def commit(
        self,
        kind: str,
        payload: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
        times: Mapping[str, float] | None = None,
    ) -> Event:
        """Append an event: all of it is on disk when this returns, or none of it. `tensors`: group -> name -> tensor.

        The event returned equals the one a later `open` reads (tuples have become lists). Raises RunError if the disk
        refuses (what was committed before is intact; the same commit may be tried again), TypeError for a payload that is not JSON.
        """
        writer = self._writing()
        texts = kind, journal.canonical(payload), journal.canonical({**(times or {}), "at": time.time()})
        made = {id(named): blobs_.pack(named) for named in (tensors or {}).values()}  # the same mapping under two names is packed once
        packed = {group: made[id(named)] for group, named in (tensors or {}).items()}
        names = {group: blobs_.digest(content) for group, content in packed.items()}
        row = (texts[0], texts[1], journal.canonical(names), texts[2])
        with _reasons(self.folder, "commit"):
            self._write({names[group]: content for group, content in packed.items()})
            # From here on nothing is taken back: whoever is interrupted cannot know whether the row is there.
            writer.append(row, {names[group]: len(content) for group, content in packed.items()})
        self._contents = writer.contents
        self._events.append(_event(len(self._events), row))
        return self._events[-1]

    def tensors(self, event: Event, group: str) -> dict[str, Tensor]:
        """The tensors committed under `group`, in their order, on the CPU, verified and in memory of their own.

        Raises RunError if the file is missing or damaged, or was pruned.
        """
        if group not in event.blobs:
            raise RunError(f"{self.folder}: event {event.seq} ({event.kind}) has no {group!r}; it has {sorted(event.blobs)}")
        sha256 = event.blobs[group]
        size, kept = self._contents.blobs[sha256]
        path = self._path(sha256)
        if not kept:
            raise RunError(f"{path}: {group!r} of event {event.seq} ({event.kind}) was pruned to save space")
        with _reasons(self.folder, "read the run"):
            return blobs_.unpack(blobs_.checked(path, sha256, size), str(path))

    def kept(self, event: Event) -> tuple[str, ...]:
        """The groups of an event's tensors that have not been pruned."""
        return tuple(group for group, sha256 in event.blobs.items() if self._contents.blobs[sha256][1])

    def prune(self, keep: Callable[[Event], Iterable[str]] | None = None, best: int | None = None) -> int:
        """Delete tensors no longer needed; the number of files deleted. Killed on its way, the next writer finishes it.

        `keep(event)` names the groups of an event to keep. By default: of every group the latest; "weights" of every
        edit, step and final event; and "weights" of the event with seq `best`.
        """
        writer = self._writing()
        latest = {group: event.seq for event in self._events for group in event.blobs}

        def usual(event: Event) -> Iterable[str]:
            milestone = event.kind in MILESTONES or event.seq == best
            return [group for group in event.blobs if latest[group] == event.seq or (milestone and group == "weights")]

        chosen = keep or usual
        wanted = {event.blobs[group] for event in self._events for group in chosen(event) if group in event.blobs}
        dropped = sorted(sha256 for sha256, (_, kept) in writer.contents.blobs.items() if kept and sha256 not in wanted)
        with _reasons(self.folder, "prune"):
            if dropped:
                writer.drop(dropped)
                self._contents = writer.contents
            for sha256 in dropped:
                durable.remove(self._path(sha256))
        return len(dropped)

    def verify(self) -> None:
        """Read every kept blob and compare it with its digest. Raises RunError naming the first that differs."""
        for event in self._events:
            for group in self.kept(event):
                self.tensors(event, group)

    def fingerprint(self, events: int | None = None) -> str:
        """Digest of the first `events` events (default: all) without times: equal for equal runs, wherever and whenever."""
        return journal.digest_of([row[:3] for row in self._contents.rows[:events]])

    def close(self) -> None:
        """Let the next writer in; closing twice is fine. What was read stays readable."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, contents: Mapping[str, bytes]) -> None:
        """Blobs by sha256, all durable when this returns; if one fails, those that were not there before are gone."""
        written: list[Path] = []
        try:
            for sha256, content in contents.items():
                path = self._path(sha256)
                if not _holds(path, content):
                    if not self._contents.blobs.get(sha256, (0, False))[1]:
                        written.append(path)
                    durable.write(path, content)
            if contents:
                durable.sync_folder(self.folder / folders.BLOBS)
        except BaseException:
            for path in written:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise

    def _path(self, sha256: str) -> Path:
        return self.folder / folders.BLOBS / (sha256 + blobs_.SUFFIX)

    def _writing(self) -> journal.Writer:
        if self._writer is None:
            raise RunError(f"{self.folder}: not open for writing", fix="open it with Run.open(folder, write=True)")
        return self._writer


def _event(seq: int, row: journal.Row) -> Event:
    kind, payload, names, times = row
    return Event(seq, kind, json.loads(payload), json.loads(names), json.loads(times))


def _holds(path: Path, content: bytes) -> bool:
    return blobs_.size_of(path) == len(content) and path.read_bytes() == content


def _read(folder: Path) -> journal.Contents:
    for attempt in range(3):
        contents = journal.read(folder / journal.NAME)
        try:
            _check_files(folder, contents)
        except RunError:
            # A writer may have pruned between the two looks.
            if attempt == 2:
                raise
        else:
            return contents
    return contents


def _check_files(folder: Path, contents: journal.Contents) -> None:
    for name in (folders.SPEC, folders.MANIFEST):
        if (blobs_.size_of(folder / name) or 0) > folders.LARGEST_TEXT:
            raise RunError(f"{folder / name}: too large", fix=blobs_.DAMAGED.format(name))
        blobs_.checked(folder / name, contents.meta[name], fix=RESTORE.format(name))
    for sha256, (size, kept) in contents.blobs.items():
        path = folder / folders.BLOBS / (sha256 + blobs_.SUFFIX)
        found = blobs_.size_of(path)
        if kept and found != size:
            state = "missing" if found is None else f"{found} bytes, expected {size}"
            raise RunError(f"{path}: {state}", fix=blobs_.DAMAGED.format(path.name))


def _refuse_taken(folder: Path, spec: dict, force: bool) -> None:
    if not os.listdir(folder) or folders.is_unfinished(folder):
        return
    if not folders.is_run(folder):
        raise RunError(f"{folder}: not empty, and not the folder of a run", fix="choose another folder with -o; nothing was changed")
    if force:
        return
    try:
        contents = journal.read(folder / journal.NAME)
    except RunError as error:
        raise RunError(f"{folder}: holds a damaged run ({error.message})", fix=OTHER) from error
    if contents.meta["spec"] != journal.canonical(spec):
        name = json.loads(contents.meta["spec"]).get("name")
        raise RunError(f"{folder}: holds a run of another spec ({name!r})", fix=OTHER)
    raise RunError(
        f"{folder}: already holds a run of this spec, with {len(contents.rows)} events",
        fix=f"go on with `dagrow resume {folder}`, or start over with --force",
    )


@contextmanager
def _reasons(folder: Path, doing: str) -> Iterator[None]:
    """Errors of the system and of SQLite become RunErrors with the reason and what to do."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        fix = "what was committed before is intact; make the folder writable or free some space, then resume"
        if doing == CREATE:
            fix = "choose another folder with -o, or make this one writable"
        raise RunError(f"cannot {doing}: {place}: {error.strerror or error}", fix=fix) from error
    except sqlite3.Error as error:
        fix = "what was committed before is intact; free some space, check the folder's permissions, then resume"
        raise RunError(f"cannot {doing}: {folder / journal.NAME}: {error}", fix=fix) from error
