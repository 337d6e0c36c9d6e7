"""What the fault loops stand on: a command in a child process with faults in it, and a reference run to compare with."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dagrow.store import Run, durable
from dagrow.store.folder import is_run

DIED = 77
LIMIT = 600.0  # seconds any command may take


class Failed(Exception):
    """A case that did not end as it must."""


@dataclass
class Faults:
    """What to do to a child.

    die_at: exit at the n-th durable operation; die_on: at the first operation of that name
    when `after` of them are done; trace: file that lists them; tell: descriptor that gets a byte per event.
    syscall, action: the n-th system call that changes a file under `folder`: 1 exit, 2 do half of it and exit,
    -errno fail from then on, 0 none; count: file that gets their number. file_size: RLIMIT_FSIZE. uid: another user.
    threads: torch's, if not 0. lie: the entry of the manifest that is another one.
    """

    die_at: int = 0
    die_on: str = ""
    after: int = 0
    trace: str = ""
    syscall: int = 0
    action: int = 0
    folder: str = ""
    file_size: int = -1
    uid: int = 0
    tell: int = -1
    count: str = ""
    threads: int = 0
    lie: str = ""

    def apply(self) -> None:
        done = named = 0

        def fault(operation: str) -> None:
            nonlocal done, named
            done += 1
            named += operation == self.die_on
            if self.trace:
                with open(self.trace, "a") as file:
                    file.write(operation + "\n")
            if self.tell >= 0 and operation == "committed event":
                os.write(self.tell, b".")
            if done == self.die_at or (operation == self.die_on and named > self.after):
                os._exit(DIED)

        durable.FAULT = fault
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        if self.lie:
            _lie(self.lie)
        if self.uid:
            os.setgroups([])
            os.setgid(self.uid)
            os.setuid(self.uid)
        if self.file_size >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, self.file_size))
        if self.folder:
            ctypes.CDLL(None).faults_arm(self.folder.encode(), ctypes.c_long(self.syscall), self.action)


def _lie(key: str) -> None:
    """From here on this process finds another version, or another machine, than it runs on."""
    import platform
    from importlib import metadata

    import torch

    places = {"python": (platform, "python_version"), "machine": (platform, "machine"), "instructions": (torch.backends.cpu, "get_cpu_capability")}
    if key in places:
        setattr(*places[key], lambda: "other")
    else:
        true = metadata.version
        metadata.version = lambda name: "0.0.other" if name == key else true(name)


def run_python(arguments: list[str]) -> int:
    """What `python arguments` would do, in this process; the exit status."""
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


class Child:
    """A command running in a process group of its own; its output is read when it has ended."""

    def __init__(self, arguments: list[str], faults: Faults, spawn: bool, environment: dict[str, str] | None = None, cwd: Path | None = None):
        self.output, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        if spawn:
            call = [sys.executable, str(Path(__file__).with_name("faults.py")), "child", json.dumps(vars(faults)), *arguments]
            keep = (faults.tell,) if faults.tell >= 0 else ()
            self.process = subprocess.Popen(
                call, stdin=subprocess.DEVNULL, stdout=write, stderr=write, start_new_session=True, pass_fds=keep, preexec_fn=_signals,
                env=os.environ | (environment or {}), cwd=cwd,
            )
            self.pid = self.process.pid
        else:
            sys.stdout.flush()
            self.pid = os.fork()
            if not self.pid:
                os.environ |= environment or {}
                self._inside(arguments, faults, write)
        os.close(write)

    @staticmethod
    def _inside(arguments: list[str], faults: Faults, write: int) -> None:
        code = 1
        try:
            os.setsid()
            _signals()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(write, 1)
            os.dup2(write, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
            faults.apply()
            code = run_python(arguments)
            if faults.count:
                Path(faults.count).write_text(str(ctypes.CDLL(None).faults_calls()))
        finally:
            os._exit(code)

    def wait(self, seconds: float = LIMIT, linger: float = 2.0) -> tuple[int, str]:
        """Exit status (negative: the signal it died of) and output.

        Raises Failed if it runs for more than `seconds`, or if processes it started outlive it by more than `linger`.
        """
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                self.kill()
                raise Failed(f"still running after {seconds:g} s")
            time.sleep(0.002)
        orphans = self._orphans(linger)
        text = b""
        while select.select([self.output], [], [], 0)[0] and (more := os.read(self.output, 1 << 20)):
            text += more
        os.close(self.output)
        if orphans:
            raise Failed("it left processes behind")
        return os.waitstatus_to_exitcode(status), text.decode(errors="replace")

    def _orphans(self, linger: float) -> bool:
        """Whether processes of its session, whatever their group, still run after `linger` seconds; they do not afterwards."""
        for _ in range(max(1, round(linger / 0.02))):
            left = _session(self.pid)
            if not left:
                return False
            time.sleep(0.02)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True

    def signal(self, signum: int, group: bool = False) -> None:
        """To the process, or to its whole group, as a terminal does."""
        (os.killpg if group else os.kill)(self.pid, signum)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _session(leader: int) -> list[int]:
    """The processes that run in a session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                state, _, _, session = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.append(int(name))
    return found


def _signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


def same_export(one: Path, two: Path) -> str:
    """What differs between two exported TorchScript files but their bytes, which are not stable; empty where nothing does."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        texts = [dict.fromkeys(("spec.yaml", "architecture.json", "meta.json"), "") for _ in range(2)]
        a, b = (torch.jit.load(str(path), _extra_files=text) for path, text in zip((one, two), texts, strict=True))
    if texts[0] != texts[1]:
        return "the texts"
    tensors, others = a.state_dict(), b.state_dict()
    if list(tensors) != list(others) or not all(torch.equal(tensors[name], others[name]) for name in tensors):
        return "the tensors"
    meta = json.loads(texts[0]["meta.json"])
    rows = torch.randn(16, *meta["input_shape"], generator=torch.Generator().manual_seed(0))
    return "" if torch.equal(a(rows), b(rows)) else "the outputs"


@dataclass
class Bench:
    """The commands, a finished reference run, and how a run is brought to its end and compared."""

    start: list[str]
    resume: list[str]
    scratch: Path
    spawn: bool
    dice: random.Random
    cases: int | None
    preload: bool
    only: str = ""
    count: int = 0
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reference = self.scratch / "reference"
        self.temporary = self.scratch / "tmp"
        self.temporary.mkdir()
        trace = self.scratch / "trace"
        self.must(self.launch(self.start, self.reference, Faults(trace=str(trace))).wait(), "the reference run")
        self.trace = trace.read_text().splitlines()
        with Run.open(self.reference) as run:
            self.events = len(run.events())
            self.prefixes = [run.fingerprint(n) for n in range(self.events + 1)]
        again, began = self.fresh(), time.monotonic()
        self.must(self.launch(self.start, again).wait(), "the reference run, again")
        self.seconds = time.monotonic() - began
        self.compare(again)
        shutil.rmtree(again)

    def launch(self, command: list[str], folder: Path, faults: Faults | None = None, spawn: bool = False, **more) -> Child:
        """more: environment (variables to add), cwd (only with spawn)."""
        temporary = {"TMPDIR": str(self.temporary)} | more.pop("environment", {})
        return Child([part.replace("{run}", str(folder)) for part in command], faults or Faults(), spawn or self.spawn, temporary, **more)

    def must(self, ended: tuple[int, str], what: str) -> None:
        if ended[0] != 0:
            raise Failed(f"{what} exits with {ended[0]}: {ended[1][-2000:]}")

    def fresh(self) -> Path:
        self.count += 1
        return self.scratch / f"case{self.count}"

    def committed(self, folder: Path) -> int:
        """How many events a stopped run holds. Raises Failed unless they are the reference's first ones."""
        if not is_run(folder):
            return 0
        with Run.open(folder) as run:
            run.verify()
            events = len(run.events())
            if events > self.events or run.fingerprint() != self.prefixes[events]:
                raise Failed(f"its {events} events are not the reference's first ones")
        return events

    def finish(self, folder: Path) -> None:
        """Resume (or start, if it never came to be a run), then compare with the reference."""
        verb = self.resume if is_run(folder) else self.start
        self.must(self.launch(verb, folder).wait(), "going on")
        self.compare(folder)
        shutil.rmtree(folder)

    def compare(self, folder: Path) -> None:
        if self.committed(folder) != self.events:
            raise Failed("it ended with fewer events than the reference")
        theirs, ours = (sorted(os.listdir(f / "blobs")) for f in (self.reference, folder))
        if theirs != ours:
            raise Failed(f"other blobs than the reference's: {set(theirs) ^ set(ours)}")
        theirs, ours = (sorted(p.name for p in (f / "exports").glob("*")) for f in (self.reference, folder))
        if theirs != ours:
            raise Failed(f"exports {ours}, the reference's are {theirs}")
        for name in theirs:
            if name.endswith(".pt") and (what := same_export(self.reference / "exports" / name, folder / "exports" / name)):
                raise Failed(f"{what} of its export {name} are not the reference's")
        self.tidy(folder)

    def tidy(self, folder: Path) -> None:
        """Raises Failed where temporary files are left, in the run or in the system's folder for them."""
        hidden = (p for p in folder.rglob("*") if ".tmp" in p.name or p.name.startswith("."))
        caches = "torchinductor_"  # torch's own, made when it traces
        left = [str(p) for p in (*hidden, *self.temporary.iterdir()) if not p.name.startswith(caches)]
        if left:
            raise Failed(f"left behind: {left}")

    def middle(self) -> Path:
        """A run killed about half-way."""
        folder = self.fresh()
        commits = [n for n, name in enumerate(self.trace, 1) if name == "committed event"]
        self.launch(self.start, folder, Faults(die_at=commits[len(commits) // 2])).wait()
        return folder

    def some(self, number: int, usual: int) -> list[int]:
        """1 … number, or as many of them as asked for, spread evenly."""
        wanted = min(number, self.cases or usual)
        return sorted({1 + round(i * (number - 1) / max(1, wanted - 1)) for i in range(wanted)})
