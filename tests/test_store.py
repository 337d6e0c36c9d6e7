"""A run on disk: what is committed stays, what is damaged is named, one writes, and nothing else is ever touched."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

from dagrow.errors import Interrupted, RunError
from dagrow.store import Run, durable, graceful, journal, manifest, manifest_difference
from dagrow.store import folder as folders

ROOT = Path(__file__).resolve().parent.parent
SPEC = {"name": "first", "seed": 0, "train": {"lr": 1e-3, "tiny": 1e-20, "on": "on"}, "model": {"nodes": [1, 2]}}
MANIFEST = {"format": 1, "torch": "1"}


def state(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = {"head": torch.randn(3, 5, generator=generator), "a": torch.randn(7, generator=generator), "steps": torch.tensor(seed)}
    return {"weights": weights, "moments": {"head": torch.randn(3, 5, generator=generator)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def finished(folder: Path) -> Path:
    with Run.create(folder, SPEC, MANIFEST) as run:
        for n in range(3):
            run.commit("epoch", {"n": n}, state(n))
    return folder


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if p.name != "lock"}


def in_child(work) -> int:
    """Run `work` in a forked child; its exit status."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- what is committed is what is read ----------------------------------------------------------------------------


def test_what_is_read_is_what_was_committed(folder: Path) -> None:
    with Run.create(folder, SPEC, MANIFEST) as run:
        first = run.commit("epoch", {"loss": math.inf, "pair": (1, 2), "gain": 0.1 + 0.2}, state(), {"seconds": 1.5})
        second = run.commit("note", {})
    with Run.open(folder) as run:
        assert run.events() == [first, second]
        assert first.payload == {"loss": math.inf, "pair": [1, 2], "gain": 0.1 + 0.2}
        assert first.times["seconds"] == 1.5 and second.times["at"] >= first.times["at"] > 1e9
        assert (run.spec, run.manifest) == (SPEC, MANIFEST)
        assert second.blobs == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_in_order_to_the_bit_and_in_memory_of_their_own(folder: Path, dtype: torch.dtype) -> None:
    base = torch.arange(24).reshape(4, 6) % 2 if dtype == torch.bool else torch.arange(24).reshape(4, 6)
    base = base.to(dtype)
    given = {"z": base, "shared": base[1], "turned": base.t(), "a.b": base[:, ::2], "scalar": base[0, 0], "none": base[:0]}
    with Run.create(folder, SPEC, MANIFEST) as run:
        event = run.commit("epoch", {}, {"weights": given, "empty": {}})
        read = run.tensors(event, "weights")
        assert list(read) == list(given)
        for name, tensor in given.items():
            assert read[name].dtype == dtype and torch.equal(read[name], tensor)
            assert read[name].is_contiguous() and (not tensor.numel() or read[name].data_ptr() % 16 == 0)
        read["z"].zero_()
        assert torch.equal(run.tensors(event, "weights")["z"], base)
        assert run.tensors(event, "empty") == {}


def test_bits_of_nan_and_of_zero_survive(folder: Path) -> None:
    bits = torch.tensor([0x7FC00001, -(2**31), 1, 0x7F800000, -1], dtype=torch.int32).view(torch.float32)
    with Run.create(folder, SPEC, MANIFEST) as run:
        read = run.tensors(run.commit("epoch", {}, {"weights": {"w": torch.nn.Parameter(bits)}}), "weights")["w"]
    assert torch.equal(read.view(torch.int32), bits.view(torch.int32)) and not read.requires_grad


def test_equal_tensors_share_a_file(folder: Path) -> None:
    with Run.create(folder, SPEC, MANIFEST) as run:
        first, second = run.commit("epoch", {}, state()), run.commit("edit", {}, state())
        assert first.blobs == second.blobs and len(os.listdir(folder / "blobs")) == 2
        run.prune(lambda event: ["weights"] if event is second else [])
        assert run.kept(first) == ("weights",) and len(os.listdir(folder / "blobs")) == 1
        assert run.kept(run.commit("epoch", {}, state())) == ("moments", "weights")
    Run.open(folder).verify()


def test_the_spec_on_disk_is_yaml_to_be_read(folder: Path) -> None:
    shared = {"a": [1]}
    Run.create(folder, {"name": "ünï", "on": "on", "x": shared, "y": shared}, MANIFEST).close()
    text = (folder / "spec.yaml").read_text()
    assert text.startswith("name: ünï\n") and "&" not in text and "'on': 'on'" in text
    assert yaml.safe_load(text) == Run.open(folder).spec
    assert json.loads((folder / "manifest.json").read_text()) == MANIFEST


def test_fingerprints_leave_out_times_and_nothing_else(tmp_path: Path) -> None:
    prints = []
    for name, seconds, seed in (("a", 1.0, 0), ("b", 2.0, 0), ("c", 1.0, 1)):
        with Run.create(tmp_path / name, SPEC, MANIFEST | {"threads": seconds}) as run:
            run.commit("start", {"n": 1})
            run.commit("epoch", {"n": 2}, state(seed), {"seconds": seconds})
            prints.append((run.fingerprint(), run.fingerprint(1)))
    assert prints[0] == prints[1] and prints[0][0] != prints[2][0] and prints[0][1] == prints[2][1]


def test_a_payload_that_is_not_json_changes_nothing(finished: Path) -> None:
    with Run.open(finished, write=True) as run:
        before = everything(finished)
        with pytest.raises(TypeError):
            run.commit("epoch", {"tensor": torch.zeros(1)}, state(9))
        assert everything(finished) == before and len(run.events()) == 3


# ---- pruning ------------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_latest_state_milestones_and_the_best(folder: Path) -> None:
    with Run.create(folder, SPEC, MANIFEST) as run:
        for n, kind in enumerate(("epoch", "epoch", "edit", "epoch", "epoch")):
            run.commit(kind, {"n": n}, state(n))
        run.commit("note", {})
        assert run.prune(best=1) == 6
        kept = [run.kept(event) for event in run.events()]
        assert kept == [(), ("weights",), ("weights",), (), ("moments", "weights"), ()]
        assert run.prune(best=1) == 0
        fingerprint = run.fingerprint()
        with pytest.raises(RunError, match="pruned"):
            run.tensors(run.events()[0], "weights")
        with pytest.raises(RunError, match="no 'gradients'"):
            run.tensors(run.events()[0], "gradients")
    with Run.open(folder) as run:
        run.verify()
        assert [run.kept(event) for event in run.events()] == kept and run.fingerprint() == fingerprint


# ---- creating -----------------------------------------------------------------------------------------------------


def test_a_folder_of_the_users_is_never_touched(folder: Path) -> None:
    folder.mkdir()
    for name in ("spec.yaml", "notes.txt"):
        (folder / name).write_text("mine")
    before = everything(folder)
    for force in (False, True):
        with pytest.raises(RunError, match="not empty") as caught:
            Run.create(folder, SPEC, MANIFEST, force=force)
        assert caught.value.exit_code == 4 and caught.value.fix
    assert everything(folder) == before and not (folder / "lock").exists()
    with pytest.raises(RunError, match="a file"):
        Run.create(folder / "notes.txt", SPEC, MANIFEST, force=True)


@pytest.mark.parametrize(
    "names", [["spec.yaml"], ["blobs/x"], [".replaced/run.db"], ["lock/x"], ["run.db"], ["manifest.json", "spec.yaml"]]
)
def test_a_folder_that_only_looks_like_a_run_is_never_touched(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = everything(folder)
    with pytest.raises(RunError):
        Run.create(folder, SPEC, MANIFEST, force=True)
    with pytest.raises(RunError):
        Run.open(folder, write=True)
    assert everything(folder) == before


def test_a_run_is_not_overwritten(finished: Path) -> None:
    before = everything(finished)
    with pytest.raises(RunError, match=f"dagrow resume {finished}.*--force"):
        Run.create(finished, SPEC, MANIFEST)
    with pytest.raises(RunError, match="another spec \\('first'\\)") as caught:
        Run.create(finished, SPEC | {"seed": 1}, MANIFEST)
    assert "--force" in caught.value.fix
    assert everything(finished) == before


def test_force_replaces_a_run_and_nothing_else(finished: Path) -> None:
    (finished / "notes.txt").write_text("mine")
    (finished / "exports").mkdir()
    (finished / "exports" / "old.pt").write_text("old")
    with Run.create(finished, SPEC | {"seed": 1}, MANIFEST, force=True) as run:
        assert run.events() == [] and run.spec["seed"] == 1
    assert sorted(os.listdir(finished)) == ["blobs", "lock", "manifest.json", "notes.txt", "run.db", "spec.yaml"]
    assert not os.listdir(finished / "blobs")


def test_force_replaces_a_damaged_run(finished: Path) -> None:
    (finished / "run.db").write_bytes(b"damaged")
    with pytest.raises(RunError, match="damaged|run.db"):
        Run.create(finished, SPEC, MANIFEST)
    Run.create(finished, SPEC, MANIFEST, force=True).close()
    Run.open(finished).verify()


def test_killed_anywhere_while_replacing_either_run_is_whole(finished: Path, tmp_path: Path) -> None:
    old = Run.open(finished).fingerprint()
    for n in range(1, 60):
        case = tmp_path / f"case{n}"
        shutil.copytree(finished, case)
        calls = 0

        def die(operation: str, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                os._exit(77)

        def replace(case: Path = case) -> None:
            durable.FAULT = die
            Run.create(case, SPEC | {"seed": 1}, MANIFEST, force=True).close()

        code = in_child(replace)
        with Run.open(case, write=True) as run:
            run.verify()
            if run.spec["seed"] == 0:
                assert run.fingerprint() == old
            else:
                assert run.events() == [] and not os.listdir(case / "blobs")
            assert not (case / ".replaced").exists() and not [name for name in os.listdir(case) if ".tmp" in name]
        if code == 0:
            break
    assert code == 0 and n > 10


def test_in_an_empty_folder_below_missing_ones_and_through_a_link(tmp_path: Path) -> None:
    Run.create(tmp_path / "a" / "b" / "c", SPEC, MANIFEST).close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    Run.create(tmp_path / "link", SPEC, MANIFEST).close()
    assert Run.open(tmp_path / "empty").spec == SPEC


@pytest.mark.parametrize("name", ["a b", "per%20cent", "what?x=1", "hash#", "ünï", "'quote'"])
def test_names_of_folders_are_not_interpreted(tmp_path: Path, name: str) -> None:
    with Run.create(tmp_path / name, SPEC, MANIFEST) as run:
        run.commit("epoch", {}, state())
    assert len(Run.open(tmp_path / name).events()) == 1 and os.listdir(tmp_path) == [name]


# ---- opening ------------------------------------------------------------------------------------------------------


def test_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for write in (False, True):
        for name, message in (("missing", "no such run folder"), ("file", "a file"), ("empty", "run.db: missing")):
            with pytest.raises(RunError, match=message):
                Run.open(tmp_path / name, write=write)
    assert os.listdir(tmp_path / "empty") == []


def test_a_format_of_later_days_is_refused(finished: Path) -> None:
    with sqlite3.connect(finished / "run.db") as connection:
        connection.execute("PRAGMA user_version=7")
    with pytest.raises(RunError, match="format 7.*reads format 1"):
        Run.open(finished)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{\"n\":7}' WHERE seq = 1", "UPDATE events SET times = '{}' WHERE seq = 1",
        "UPDATE events SET kind = 'edit' WHERE seq = 2", "DELETE FROM events WHERE seq = 2", "DELETE FROM events WHERE seq = 0",
        "DELETE FROM events", "UPDATE events SET digest = (SELECT digest FROM events WHERE seq = 0)", "UPDATE blobs SET kept = 0",
        "DELETE FROM blobs", "UPDATE blobs SET size = 1", "UPDATE meta SET value = '{}' WHERE key = 'spec'", "DELETE FROM meta",
        "UPDATE meta SET value = '[0,\"\"]' WHERE key = 'head'", "DROP TABLE events", "UPDATE events SET payload = x'ff00'",
        "INSERT INTO events SELECT 3, kind, payload, blobs, times, digest FROM events WHERE seq = 2",
        "UPDATE events SET payload = CAST(x'fffe' AS TEXT)", "PRAGMA application_id=1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", [False, True])
def test_a_changed_journal_is_named(finished: Path, statement: str, write: bool) -> None:
    with sqlite3.connect(finished / "run.db") as connection:
        connection.execute(statement)
    with pytest.raises(RunError, match="run.db") as caught:
        Run.open(finished, write=write)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["spec.yaml", "manifest.json", "run.db", "blob"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "flip", "other", "pipe", "folder"])
def test_a_damaged_file_is_named(finished: Path, name: str, damage: str) -> None:
    victim = sorted((finished / "blobs").iterdir())[0] if name == "blob" else finished / name
    content = bytearray(victim.read_bytes())
    victim.unlink()
    if damage == "pipe":
        os.mkfifo(victim)
    elif damage == "folder":
        victim.mkdir()
    elif damage != "missing":
        content[len(content) // 2] ^= 1
        other = {"empty": b"", "half": content[: len(content) // 2], "flip": content, "other": b"x" * len(content)}
        victim.write_bytes(other[damage])
    try:
        with Run.open(finished) as run:
            run.verify()
            # A bit nobody reads: unused space in run.db.
            assert (name, damage) == ("run.db", "flip") and len(run.events()) == 3
    except RunError as error:
        assert victim.name in str(error)


def test_a_blob_under_another_ones_name(finished: Path) -> None:
    first, second = (path for path in sorted((finished / "blobs").iterdir(), key=lambda p: p.stat().st_size)[:2])
    second.write_bytes(first.read_bytes())
    with Run.open(finished) as run, pytest.raises(RunError, match=f"{second.name}.*digest"):
        run.verify()


def test_what_a_killed_writer_left_is_cleaned_by_the_next(finished: Path) -> None:
    left = [finished / "blobs" / ("0" * 64 + ".safetensors"), finished / "blobs" / ("1" * 64 + ".safetensors.tmp"), finished / "run.db.tmp"]
    theirs = [finished / "blobs" / "notes.txt", finished / "mine.tmp"]
    for path in left + theirs:
        path.write_text("x")
    Run.open(finished).close()
    assert all(path.exists() for path in left)
    Run.open(finished, write=True).close()
    assert not any(path.exists() for path in left) and all(path.exists() for path in theirs)
    Run.open(finished).verify()


def test_a_commit_killed_inside_sqlite_is_undone_even_in_a_read_only_folder(finished: Path) -> None:
    before = Run.open(finished).fingerprint()

    def spill() -> None:
        writer = journal.Writer(finished / "run.db")
        writer.connection.execute("PRAGMA cache_size=1")
        writer.connection.execute("BEGIN IMMEDIATE")
        for seq in range(3, 300):
            writer.connection.execute("INSERT INTO events VALUES (?, 'epoch', ?, '{}', '{}', '')", (seq, "x" * 4000))
        os._exit(0)

    assert in_child(spill) == 0 and (finished / "run.db-journal").stat().st_size > 0
    assert Run.open(finished).fingerprint() == before and (finished / "run.db-journal").exists()
    with Run.open(finished, write=True) as run:
        assert run.fingerprint() == before
        run.commit("epoch", {}, state(5))
    assert not (finished / "run.db-journal").exists()


# ---- one writer ---------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_writes_and_readers_are_let_in(folder: Path) -> None:
    with Run.create(folder, SPEC, MANIFEST) as run:
        event = run.commit("epoch", {}, state())
        for attempt in (lambda: Run.open(folder, write=True), lambda: Run.create(folder, SPEC, MANIFEST, force=True)):
            with pytest.raises(RunError, match=f"being written by process {os.getpid()}"):
                attempt()
        reader = Run.open(folder)
        later = run.commit("epoch", {}, state(1))
        assert reader.events() == [event] and Run.open(folder).events() == [event, later]
        with pytest.raises(RunError, match="not open for writing"):
            reader.commit("epoch", {})
    with Run.open(folder, write=True) as run:
        assert len(run.events()) == 2
    run.close()


def test_a_killed_writer_lets_go_and_so_does_a_worker_it_forked(folder: Path) -> None:
    ready, say = os.pipe()
    read, hold = os.pipe()

    def write() -> None:
        run = Run.create(folder, SPEC, MANIFEST)
        run.commit("epoch", {}, state())
        if not os.fork():
            os.close(hold)
            os.read(read, 1)  # a worker that outlives the writer
            os._exit(0)
        os.write(say, b".")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write) == -signal.SIGKILL
    assert os.read(ready, 1) == b"."
    with Run.open(folder, write=True) as run:
        assert len(run.events()) == 1
    for handle in (ready, say, read, hold):
        os.close(handle)


def test_a_run_that_was_dropped_lets_go(finished: Path) -> None:
    Run.open(finished, write=True)
    Run.open(finished, write=True).close()


# ---- disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename", "begin"])
def test_a_disk_that_refuses_is_named_and_the_commit_can_be_tried_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, operation: str, reason: int
) -> None:
    def refuse(name: str) -> None:
        if name.startswith(operation):
            raise OSError(reason, os.strerror(reason), "blobs/x")

    with Run.open(finished, write=True) as run:
        before = everything(finished)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "FAULT", refuse)
            with pytest.raises(RunError, match=os.strerror(reason)) as caught:
                run.commit("epoch", {"n": 3}, state(3))
        assert "intact" in caught.value.fix
        # Blobs without an event stay when the journal refused: the next writer deletes them.
        assert operation == "begin" or everything(finished) == before
        run.commit("epoch", {"n": 3}, state(3))
    with Run.open(finished) as run:
        run.verify()
        assert len(run.events()) == 4


@pytest.mark.parametrize("size", [0, 100, 2000, 9000, 30000])
def test_a_full_disk(finished: Path, size: int) -> None:
    def fill() -> None:
        import resource

        run = Run.open(finished, write=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            for n in range(3, 60):
                run.commit("epoch", {"n": n}, state(n))
        except RunError as error:
            os._exit(3 if "cannot commit" in str(error) else 4)

    assert in_child(fill) == 3
    with Run.open(finished, write=True) as run:
        run.verify()
        assert [event.payload["n"] for event in run.events()] == list(range(len(run.events())))
        assert len(os.listdir(finished / "blobs")) == 2 * len(run.events())


def test_a_read_only_folder_can_be_read_and_not_written(finished: Path) -> None:
    parts = [finished, *finished.rglob("*")]
    for part in parts:
        part.chmod(0o555 if part.is_dir() else 0o444)
    for parent in list(finished.parents)[:3]:  # pytest's own, closed to others
        parent.chmod(parent.stat().st_mode | 0o055)

    def use() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        with Run.open(finished) as run:
            run.verify()
        for attempt in (lambda: Run.open(finished, write=True), lambda: Run.create(finished, SPEC, MANIFEST, force=True)):
            try:
                attempt()
            except RunError as error:
                if "ermission denied" not in str(error):
                    os._exit(4)
            else:
                os._exit(5)

    before = everything(finished)
    assert in_child(use) == 0
    assert everything(finished) == before
    for part in parts:
        part.chmod(0o755 if part.is_dir() else 0o644)


# ---- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_flag_the_second_raises(signum: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught, graceful() as stopping:
        stopping.check()
        os.kill(os.getpid(), signum)
        assert stopping.requested == signum
        with pytest.raises(Interrupted) as first:
            stopping.check("saved")
        assert first.value.message == "saved" and first.value.exit_code == 128 + signum
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signum) is before


def test_an_ignored_signal_stays_ignored_and_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    seen = []

    def use() -> None:
        with graceful() as stopping:
            seen.append(stopping.requested)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [None]


def test_a_signal_within_a_commit_leaves_all_of_it_or_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(1, 30):
        calls = 0

        def interrupt(operation: str, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                raise Interrupted(signal.SIGINT, "twice")

        with Run.open(finished, write=True) as run:
            count = len(run.events())
            with monkeypatch.context() as patch:
                patch.setattr(durable, "FAULT", interrupt)
                try:
                    run.commit("epoch", {"n": n}, state(100 + n))
                except Interrupted:
                    pass
        with Run.open(finished, write=True) as run:
            run.verify()
            assert len(run.events()) - count in (0, 1) and len(os.listdir(finished / "blobs")) == 2 * len(run.events())
    assert calls < n


# ---- the manifest -------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_the_bits_depend_on() -> None:
    found = manifest("spec", "data", "cpu")
    assert found == manifest("spec", "data", "cpu") and found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert {"dagrow", "numpy", "scikit-learn", "optuna", "python", "machine", "format"} <= set(found)
    assert json.loads(json.dumps(found)) == found


def test_a_difference_of_manifests() -> None:
    assert manifest_difference({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}) == [("b", 2, 4), ("c", 3, None), ("d", None, 5)]
    assert manifest_difference(MANIFEST, MANIFEST) == []


def test_the_store_does_not_import_torch() -> None:
    code = "import sys, dagrow.store; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_fault_loops_run(tmp_path: Path) -> None:
    call = [sys.executable, "tools/faults.py", "--json", "--cases", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, found or done.stderr
    assert [line["loop"] for line in found] == ["F1", "F2", "F3", "F4", "F5", "F6"]


def test_the_lock_file_is_never_deleted(finished: Path) -> None:
    # Deleting it would let two writers lock two files of one name.
    number = (finished / folders.LOCK).stat().st_ino
    Run.create(finished, SPEC, MANIFEST, force=True).close()
    assert (finished / folders.LOCK).stat().st_ino == number
