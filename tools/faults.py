"""Fault loops: kill, damage, starve and signal a run, resume it, and compare it bit by bit with one left in peace.

    python tools/faults.py [F1 F2 F3 F4 F5 F6 D1 D2 D3 N4] [--cases N] [--json] --search [SPEC] [--set select=metropolis]
    python tools/faults.py ... --start "python PROGRAM ... {run}" --resume "python PROGRAM ... {run}"

--search kills `dagrow search` and goes on with `dagrow resume` (without a SPEC: tools/faults_search.yaml); --start and
--resume name any other two commands; without either they practise on tools/tiny_run.py. Commands run in forked children of this process, so
that a case costs no imports; --spawn starts them afresh. Where a C compiler is found, F1 and F4 also fail every single
system call that changes a file of the run, SQLite's among them. Exits with 1 if any case fails.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from dagrow.errors import RunError
from dagrow.store import Run
from dagrow.store.folder import is_run
from tools.faults_bench import DIED, Bench, Failed, Faults, run_python
from tools.faults_same import LOOPS as SAME

NOBODY = 65534
PROMPT = 10.0  # seconds a command may take to stop after a signal


# ---- the loops: each yields (name of a case, the case) ------------------------------------------------------------

Cases = Iterator[tuple[str, Callable[[], str | None]]]


def f1(bench: Bench) -> Cases:
    """Die at every durable operation, and at every system call that changes a file."""
    wanted = [n for n, name in enumerate(bench.trace, 1) if bench.only in name]
    for n in [wanted[k - 1] for k in bench.some(len(wanted), len(wanted))]:

        def die(n: int = n) -> None:
            folder = bench.fresh()
            code, text = bench.launch(bench.start, folder, Faults(die_at=n)).wait()
            if code != DIED:
                raise Failed(f"did not die but exited with {code}: {text[-500:]}")
            expected = bench.trace[:n].count("committed event")
            if (found := bench.committed(folder)) != expected:
                raise Failed(f"{expected} events were committed, {found} are there")
            bench.finish(folder)

        yield f"die at {n}: {bench.trace[n - 1]}", die
    for n, action in _syscalls(bench, (1, 2)):

        def die_inside(n: int = n, action: int = action) -> str | None:
            folder = bench.fresh()
            code, text = bench.launch(bench.start, folder, Faults(syscall=n, action=action, folder=str(folder))).wait()
            if code not in (DIED, 0):
                raise Failed(f"exited with {code}: {text[-500:]}")
            bench.committed(folder)
            bench.finish(folder)
            return "finished first" if code == 0 else None  # one call more or less than in the counted run

        yield f"{'die at' if action == 1 else 'half of'} system call {n}", die_inside


def _syscalls(bench: Bench, actions: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    if not bench.preload:
        return
    folder, count = bench.fresh(), bench.scratch / "count"
    bench.must(bench.launch(bench.start, folder, Faults(folder=str(folder), count=str(count))).wait(), "counting system calls")
    shutil.rmtree(folder)
    total = int(count.read_text())
    for action in actions:
        for n in bench.some(total, total):
            yield n, action


def f2(bench: Bench) -> Cases:
    """SIGKILL at a random time, up to three times in a row."""
    for case in range(bench.cases or 50):

        def kill() -> str:
            folder, killed = bench.fresh(), 0
            for _ in range(bench.dice.randint(1, 3)):
                before = bench.committed(folder)
                ear, mouth = os.pipe()
                child = bench.launch(bench.resume if is_run(folder) else bench.start, folder, Faults(tell=mouth))
                os.close(mouth)
                time.sleep(bench.dice.uniform(0, bench.seconds))
                child.signal(signal.SIGKILL)
                # Nobody can stop what a killed process had started, but it must come to its own end.
                code, _ = child.wait(linger=60)
                told = len(os.read(ear, 1 << 16))
                os.close(ear)
                killed += code == -signal.SIGKILL
                after = bench.committed(folder)
                if not before + told <= after <= before + told + 1:
                    raise Failed(f"{before + told} events were committed, {after} are there")
            bench.finish(folder)
            return f"killed {killed} times"

        yield f"kill {case}", kill


def f3(bench: Bench) -> Cases:
    """run.db or a blob truncated, bits flipped, missing, swapped: named, or it made no difference."""
    middle = bench.middle()
    for case in range(bench.cases or 1000):

        def damage() -> str:
            folder = bench.fresh()
            shutil.copytree(bench.dice.choice([bench.reference, middle]), folder)
            events = bench.committed(folder)
            victim, how = _damage(bench, folder)
            try:
                bench.committed(folder)
                with Run.open(folder) as run:
                    if len(run.events()) != events:
                        raise Failed(f"{how} {victim}: events are gone and nobody noticed")
            except RunError as error:
                shutil.rmtree(folder)
                if not any(name in str(error) for name in (victim.name, "run.db")):
                    raise Failed(f"{how} {victim}: not named in: {error}") from error
                return "detected"
            try:
                bench.finish(folder)
            except Failed as error:
                if victim.name not in str(error):
                    raise Failed(f"{how} {victim}: {error}") from error
                shutil.rmtree(folder, ignore_errors=True)
                return "detected on going on"
            return "harmless"

        yield f"damage {case}", damage


def _damage(bench: Bench, folder: Path) -> tuple[Path, str]:
    dice = bench.dice
    blobs = sorted((folder / "blobs").iterdir())
    victim = dice.choice([folder / "run.db", dice.choice(blobs), folder / dice.choice(["spec.yaml", "manifest.json"])])
    how = dice.choice(["truncated", "flipped", "flipped", "zeroed", "extended", "missing", "swapped"])
    content = bytearray(victim.read_bytes())
    if how == "truncated":
        content = content[: dice.randrange(len(content))]
    elif how == "flipped":
        for _ in range(dice.choice([1, 1, 2, 8])):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif how == "zeroed":
        at = dice.randrange(len(content)) // 512 * 512
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    elif how == "extended":
        content += dice.randbytes(dice.choice([1, 100, 4096]))
    elif how == "missing":
        victim.unlink()
        return victim, how
    elif how == "swapped":
        other = dice.choice([blob for blob in blobs if blob != victim] or [folder / "spec.yaml"])
        content = bytearray(other.read_bytes())
    victim.write_bytes(content)
    return victim, how


def f4(bench: Bench) -> Cases:
    """The disk fills up, fails, or may not be written: it says so, what was there stays, and it goes on afterwards."""
    largest = max(p.stat().st_size for p in bench.reference.rglob("*") if p.is_file())
    for n in bench.some(largest + 1, 60):

        def fill(limit: int = n - 1) -> str:
            return _starve(bench, Faults(file_size=limit))

        yield f"no file over {n - 1} bytes", fill
    for n, action in _syscalls(bench, (-errno.ENOSPC, -errno.EIO)):

        def fail(n: int = n, action: int = action) -> str:
            return _starve(bench, Faults(syscall=n, action=action))

        yield f"{errno.errorcode[-action]} from system call {n} on", fail
    if os.geteuid() == 0:
        yield "read-only folder, resume", lambda: _read_only(bench)
        yield "a small tmpfs", lambda: _tmpfs(bench)


def _starve(bench: Bench, faults: Faults) -> str:
    folder = bench.fresh()
    if faults.action:
        faults.folder = str(folder)
    code, text = bench.launch(bench.start, folder, faults).wait()
    _loud(code, text)
    bench.committed(folder)
    bench.finish(folder)
    return "had enough" if code == 0 else "refused"


def _loud(code: int, text: str) -> None:
    if code != 0 and (not text.strip() or "Traceback" in text):
        raise Failed(f"exit {code} without a clear word: {text[-1500:]}")
    if code < 0:
        raise Failed(f"died of signal {-code}")


def _read_only(bench: Bench) -> str:
    """As another user, for root may write anywhere. Reading must work, writing must be refused."""
    folder = bench.middle()
    before = bench.committed(folder)
    parts = [folder, *folder.rglob("*")]
    for part in parts:
        part.chmod(0o555 if part.is_dir() else 0o444)
    bench.scratch.chmod(0o755)
    code, text = bench.launch(bench.resume, folder, Faults(uid=NOBODY)).wait()
    if code == 0:
        raise Failed("resumed in a folder it may not write")
    _loud(code, text)
    if bench.committed(folder) != before:
        raise Failed("a read-only run changed")
    for part in parts:
        part.chmod(0o755 if part.is_dir() else 0o644)
    bench.finish(folder)
    return "refused"


def _tmpfs(bench: Bench) -> str:
    mount = bench.fresh()
    mount.mkdir()
    size = sum(p.stat().st_size for p in bench.reference.rglob("*") if p.is_file()) // 2
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", mount], capture_output=True).returncode:
        return "not allowed to mount here"
    try:
        code, text = bench.launch(bench.start, mount / "run").wait()
        _loud(code, text)
        bench.committed(mount / "run")
        subprocess.run(["mount", "-o", "remount,size=1g", mount], check=True)
        bench.finish(mount / "run")
        return "had enough" if code == 0 else "refused"
    finally:
        subprocess.run(["umount", mount], check=True)


def f5(bench: Bench) -> Cases:
    """SIGINT, SIGTERM, SIGHUP at a random time, once or twice: stops in time, with the right status, and goes on."""
    for case in range(bench.cases or 30):
        signum = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[case % 3]
        twice = case % 2 == 1

        def stop(signum: int = signum, twice: bool = twice) -> str:
            folder = bench.fresh()
            child = bench.launch(bench.start, folder)
            # A process that has not yet set its handlers dies of the signal like any other: wait for the run to be there.
            while not is_run(folder):
                time.sleep(0.005)
            time.sleep(bench.dice.uniform(0, bench.seconds))
            group = bench.dice.random() < 0.5
            child.signal(signum, group)
            if twice:
                time.sleep(bench.dice.choice([0.02, bench.seconds]) * bench.dice.random())
                with suppress(ProcessLookupError):
                    child.signal(signum, group)
            code, text = child.wait(PROMPT)
            if code not in (0, 128 + signum) or "Traceback" in text:
                raise Failed(f"exited with {code}, expected {128 + signum}: {text[-1500:]}")
            bench.tidy(folder)
            bench.committed(folder)
            bench.finish(folder)
            return "finished first" if code == 0 else "stopped"

        yield f"{signal.Signals(signum).name}{' twice' if twice else ''} {case}", stop


def f6(bench: Bench) -> Cases:
    """Eight processes resume one run at once: one writes, the others say so."""
    for case in range(bench.cases or 20):

        def crowd() -> str:
            folder = bench.middle()
            ended = [child.wait() for child in [bench.launch(bench.resume, folder) for _ in range(8)]]
            for code, text in ended:
                if code not in (0, RunError.exit_code) or "Traceback" in text or (code and "written by" not in text):
                    raise Failed(f"exit {code}: {text[-1500:]}")
            if not any(code == 0 for code, _ in ended):
                raise Failed("nobody wrote")
            bench.finish(folder)
            return f"{sum(code != 0 for code, _ in ended)} refused"

        yield f"crowd {case}", crowd


DAMAGE = {"F1": f1, "F2": f2, "F3": f3, "F4": f4, "F5": f5, "F6": f6}
LOOPS = DAMAGE | SAME


def preloaded() -> bool:
    """Whether system calls can be failed; if not yet and a compiler is there, starts this program again so that they can."""
    if os.environ.get("DAGROW_FAULTS_PRELOADED"):
        return hasattr(ctypes.CDLL(None), "faults_arm")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return False
    library = Path(tempfile.mkdtemp(prefix="dagrow-faults-")) / "faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults_syscalls.c", "-ldl"], check=True)
    os.environ |= {"LD_PRELOAD": str(library), "DAGROW_FAULTS_PRELOADED": "1"}
    os.execv(sys.executable, [sys.executable, *sys.argv])


def python_of(command: str) -> list[str]:
    first, *rest = shlex.split(command)
    if not Path(first).name.startswith("python"):
        raise SystemExit(f"a command must begin with python: {command}")
    return rest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loops", nargs="*", metavar="LOOP", help="which loops (default: F1 to F6)")
    parser.add_argument("--start", default=f"python {HERE / 'tiny_run.py'} start {{run}}")
    parser.add_argument("--resume", default=f"python {HERE / 'tiny_run.py'} resume {{run}}")
    parser.add_argument("--search", nargs="?", const=str(HERE / "faults_search.yaml"), metavar="SPEC")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="an override for --search")
    parser.add_argument("--cases", type=int, help="cases per loop (default: the table's)")
    parser.add_argument("--only", default="", metavar="TEXT", help="of F1's operations those with this in their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spawn", action="store_true", help="start every command afresh instead of forking")
    parser.add_argument("--no-syscalls", action="store_true", help="only faults at dagrow's own operations")
    parser.add_argument("--json", action="store_true", help="one JSON object per loop and nothing else")
    asked = parser.parse_args()
    if unknown := set(asked.loops) - set(LOOPS):
        parser.error(f"no such loop: {sorted(unknown)}")
    if asked.search:
        sets = shlex.join(word for one in asked.set for word in ("--set", one))
        asked.start = f"python -m dagrow search {shlex.quote(str(Path(asked.search).absolute()))} -o {{run}} --quiet {sets}"
        asked.resume = "python -m dagrow resume {run} --quiet"
    preload = not asked.no_syscalls and not asked.only and not asked.spawn and preloaded()
    if not asked.spawn:
        # Once here rather than in every child.
        import optuna  # noqa: F401
        import safetensors.torch  # noqa: F401
        import sklearn.datasets  # noqa: F401
        import sklearn.model_selection  # noqa: F401
        import torch._dynamo  # noqa: F401

        import dagrow.api  # noqa: F401
        import dagrow.cli  # noqa: F401
        import dagrow.progress  # noqa: F401
    scratch = Path(tempfile.mkdtemp(prefix="dagrow-faults-"))
    failed = 0
    try:
        bench = Bench(
            python_of(asked.start), python_of(asked.resume), scratch, asked.spawn, random.Random(asked.seed), asked.cases, preload, asked.only
        )
        for name in asked.loops or DAMAGE:
            failed += report(name, bench, asked.json)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if preload:
            shutil.rmtree(Path(os.environ["LD_PRELOAD"]).parent, ignore_errors=True)
    return int(failed > 0)


def report(name: str, bench: Bench, as_json: bool) -> int:
    began, counts, failures = time.monotonic(), {}, []
    for case, attempt in LOOPS[name](bench):
        try:
            outcome = attempt() or "ok"
        except (Failed, RunError) as error:
            outcome = "FAILED"
            failures.append(f"{case}: {error}")
        counts[outcome] = counts.get(outcome, 0) + 1
    found = {"loop": name, "cases": sum(counts.values()), "failed": len(failures), "outcomes": counts}
    found |= {"seconds": round(time.monotonic() - began, 1), "failures": failures[:20]}
    if as_json:
        print(json.dumps(found), flush=True)
    else:
        line = f"{name}  {found['cases']} cases, {len(failures)} failed, {found['seconds']} s  {counts}"
        print(line, *failures[:20], sep="\n    ", flush=True)
    return len(failures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        Faults(**json.loads(sys.argv[2])).apply()
        sys.exit(run_python(sys.argv[3:]))
    sys.exit(main())
