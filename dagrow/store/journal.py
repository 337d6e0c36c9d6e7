"""run.db: one row per event, each with a digest over its content and the row before; one transaction per commit.

SQLite in rollback mode (journal_mode=DELETE), not WAL: a reader then needs no write access to the folder, the run is
one file whenever nobody is committing, and with one writer and a few commits per minute WAL's speed buys nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dagrow.errors import RunError
from dagrow.store import durable
from dagrow.store.blobs import DAMAGED
from dagrow.store.machine import FORMAT

NAME = "run.db"
COMPANIONS = ("run.db-journal", "run.db-wal", "run.db-shm")
APPLICATION = 0x64616772
BUSY_SECONDS = 30
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL, blobs TEXT NOT NULL,
                     times TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, kept INTEGER NOT NULL, digest TEXT NOT NULL);
"""
Row = tuple[str, str, str, str]  # kind, payload, blobs, times: texts as stored


@dataclass(frozen=True)
class Contents:
    """A verified journal: `meta` without the head, rows by seq, and of every blob its size and whether it is kept."""

    meta: dict[str, str]
    rows: list[Row]
    blobs: dict[str, tuple[int, bool]]
    head: str


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, floats exact (NaN and infinities as Python writes them)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest_of(*parts: Any) -> str:
    # default: damage can turn a text into bytes; it then has some digest, just not the recorded one.
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()


def create(path: Path, meta: Mapping[str, str]) -> None:
    """A journal without events, whole or not at all. Raises OSError, sqlite3.Error."""
    aside = path.with_name(path.name + durable.TEMPORARY)
    beside = aside.with_name(aside.name + "-journal")
    try:
        for left in (aside, beside):  # by a creation killed on its way
            durable.remove(left)
        durable.FAULT(f"create {aside.name}")
        with closing(sqlite3.connect(aside, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(SCHEMA)
            connection.execute(f"PRAGMA application_id={APPLICATION}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            connection.execute("INSERT INTO meta VALUES ('head', ?)", (canonical([0, _genesis(meta)]),))
            durable.FAULT(f"commit {aside.name}")
            connection.execute("COMMIT")
        durable.sync_file(aside)
        durable.move(aside, path)
        durable.sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
        raise


def read(path: Path) -> Contents:
    """The contents of a journal that may lie in a read-only folder. Raises RunError; sqlite3.Error when it is busy."""
    try:
        with closing(_connect(path, "ro")) as connection:
            return verified(connection, path)
    except sqlite3.OperationalError:
        if not any(path.with_name(name).exists() for name in COMPANIONS):
            raise
    # A writer was killed while committing, and undoing what it began would need write access: undo it in a copy.
    with tempfile.TemporaryDirectory(prefix="dagrow-") as folder:
        for name in (NAME, *COMPANIONS):
            with suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(name), Path(folder, name))
        with closing(_connect(Path(folder, NAME), "rw")) as connection:
            return verified(connection, path)


def verified(connection: sqlite3.Connection, path: Path) -> Contents:
    """Everything in the journal, every digest checked. Raises RunError naming `path`."""
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        mark = connection.execute("PRAGMA application_id").fetchone()[0]
        if mark != APPLICATION:
            raise _damaged(path, "not a dagrow run")
        if version != FORMAT:
            raise RunError(f"{path}: run format {version}; this dagrow reads format {FORMAT}", fix="use the dagrow that wrote it")
        health = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if health != "ok":
            raise _damaged(path, str(health).splitlines()[0])
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        rows = list(connection.execute("SELECT seq, kind, payload, blobs, times, digest FROM events ORDER BY seq"))
        blobs = list(connection.execute("SELECT sha256, size, kept, digest FROM blobs"))
        return _checked(meta, rows, blobs, path)
    except sqlite3.OperationalError as error:
        # Locks, and rollbacks a reader may not do, come as OperationalError too: only the caller can tell.
        if "no such" in str(error) or "decode" in str(error) or "malformed" in str(error):
            raise _damaged(path, str(error)) from error
        raise
    except (sqlite3.Error, MemoryError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


class Writer:
    """The open journal of the one writer."""

    def __init__(self, path: Path):
        """Opens, rolls back what a killed writer began, verifies. Raises RunError, sqlite3.Error."""
        self.path = path
        self.connection = _connect(path, "rw")
        try:
            self.contents = verified(self.connection, path)
            if self.connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0] != "delete":
                raise _damaged(path, "the journal mode cannot be set")
            self.connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            self.connection.close()
            raise

    def append(self, row: Row, blobs: Mapping[str, int]) -> None:
        """One transaction: the row, and its blobs (sha256 -> size) marked as kept. Raises sqlite3.Error, RunError."""
        now = self.contents
        seq = len(now.rows)
        head = digest_of(now.head, seq, *row)
        with _Transaction(self.connection, "event"):
            durable.FAULT("insert event")
            self.connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", (seq, *row, head))
            self._mark((sha256, size, True) for sha256, size in blobs.items())
            changed = self.connection.execute(
                "UPDATE meta SET value = ? WHERE key = 'head' AND value = ?", (canonical([seq + 1, head]), canonical([seq, now.head]))
            )
            if changed.rowcount != 1:
                raise RunError(f"{self.path}: changed by someone else while it was being written", fix="resume the run")
        known = now.blobs | {sha256: (size, True) for sha256, size in blobs.items()}
        self.contents = Contents(now.meta, [*now.rows, row], known, head)

    def drop(self, dropped: Iterable[str]) -> None:
        """One transaction: these blobs are no longer kept. Their files may be deleted after it."""
        now = self.contents
        gone = {sha256: (now.blobs[sha256][0], False) for sha256 in dropped}
        with _Transaction(self.connection, "drop"):
            durable.FAULT("drop blobs")
            self._mark((sha256, size, kept) for sha256, (size, kept) in gone.items())
        self.contents = Contents(now.meta, now.rows, now.blobs | gone, now.head)

    def _mark(self, blobs: Iterable[tuple[str, int, bool]]) -> None:
        rows = [(sha256, size, int(kept), digest_of(sha256, size, int(kept))) for sha256, size, kept in blobs]
        self.connection.executemany("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        self.connection.close()


class _Transaction:
    def __init__(self, connection: sqlite3.Connection, what: str):
        self.connection, self.what = connection, what

    def __enter__(self) -> None:
        durable.FAULT(f"begin {self.what}")
        self.connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            if kind is None:
                durable.FAULT(f"commit {self.what}")
                self.connection.execute("COMMIT")
                durable.FAULT(f"committed {self.what}")
        finally:
            if self.connection.in_transaction:
                # If even this fails, the rollback file stays and the next writer to open the run undoes it.
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_SECONDS)


def _genesis(meta: Mapping[str, str]) -> str:
    return digest_of("dagrow run", FORMAT, sorted(meta.items()))


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(f"{path}: {reason}", fix=DAMAGED.format(path.name))


def _checked(meta: dict, rows: list[tuple], blobs: list[tuple], path: Path) -> Contents:
    count, last = json.loads(meta.pop("head"))
    head = _genesis(meta)
    if not rows and (count, last) != (0, head):
        raise _damaged(path, "its events are gone" if count else "its description of the run does not match its digest")
    for seq, row in enumerate(rows):
        head = digest_of(head, seq, *row[1:5])
        if row[0] != seq or row[5] != head:
            raise _damaged(path, f"event {seq} does not match its digest")
    if len(rows) != count or head != last:
        raise _damaged(path, f"{len(rows)} events, expected {count}")
    known = {}
    for sha256, size, kept, digest in blobs:
        if digest != digest_of(sha256, size, kept) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise _damaged(path, "its list of blobs does not match its digests")
        known[sha256] = (size, bool(kept))
    for seq, row in enumerate(rows):
        if not set(json.loads(row[3]).values()) <= set(known):
            raise _damaged(path, f"event {seq} names a blob that is not listed")
    return Contents(meta, [row[1:5] for row in rows], known, head)
