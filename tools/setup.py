#!/usr/bin/env python3
"""Sets dagrow up in .venv, then grows a network (demo) or runs the tests (test). Standard library only.

    python3 tools/setup.py demo [OPTIONS OF dagrow search]
    python3 tools/setup.py test [OPTIONS OF pytest]

Both verbs first find a Python 3.11, 3.12 or 3.13, make the virtual environment .venv in this folder and install dagrow
into it, with the versions of constraints.txt. That is done once; it is done again when pyproject.toml, constraints.txt
or the Python change, or when it was interrupted. pip's own settings (PIP_INDEX_URL and so on) hold.

demo  runs `dagrow search specs/digits.yaml` into runs/digits (then runs/digits-2, ...). An earlier demo that was
      interrupted is resumed, unless options are given. With `-o FOLDER` nothing is chosen for you.
test  runs the fast tests; `test -m slow` the others; `test tests/test_rng.py` one file.

PyTorch: on Linux, pip's default build of torch brings CUDA libraries (several GB). For another build, make .venv
yourself, install torch into it, and run this: it is found and kept. Versions have to agree with constraints.txt.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two set-ups at once are not kept apart there
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = "dagrow-installed"  # in .venv: the digest of what was installed, written last
MARK = "dagrow-made"  # in .venv: we made it, so we may make it again
VERSIONS = ((3, 11), (3, 12), (3, 13))
SPEC = "specs/digits.yaml"
PROBE = "import sys; print(*sys.version_info[:3], flush=True); import venv, ensurepip, sqlite3, ssl, ctypes"
# Settings that would make pip install elsewhere than into .venv, or Python load another installation's modules.
UNWANTED = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "__PYVENV_LAUNCHER__")


# Exits with 0 if the run that lies in argv[1] has not come to its end. Opened for writing: fails while another process writes it.
UNFINISHED = """
import sys
from dagrow.store import Run
with Run.open(sys.argv[1], write=True) as run:
    sys.exit(any(event.kind == "done" for event in run.events()))
"""


class SetupError(Exception):
    """Something the user has to mend; the message says how."""


class Signalled(Exception):
    """A command of the set-up was stopped by a signal; `code` is what to exit with."""

    def __init__(self, code: int):
        self.code = code


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in UNWANTED}


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


# ---- finding a Python

def judge(returncode: int, stdout: str, stderr: str) -> tuple[str | None, str]:
    """(version or None, what is wrong or "") from what a Python said to PROBE."""
    numbers = stdout.split()
    if len(numbers) != 3 or not all(n.isdigit() for n in numbers):
        return None, "does not start"
    version = ".".join(numbers)
    if (int(numbers[0]), int(numbers[1])) not in VERSIONS:
        return version, f"is {version}"
    if returncode:
        lines = stderr.strip().splitlines()
        last = lines[-1] if lines else "no reason given"
        return version, f"is {version}, but lacks a part of the standard library ({last})"
    return version, ""


def probe(python: str) -> tuple[str | None, str]:
    try:
        done = subprocess.run([python, "-I", "-c", PROBE], capture_output=True, text=True, timeout=60, env=environment())
    except (OSError, subprocess.TimeoutExpired):
        return None, "does not start"
    return judge(done.returncode, done.stdout, done.stderr)


def advice(faults: list[tuple[str, str]], platform: str = sys.platform) -> str:
    """What to tell someone who has no Python that fits; `faults` are (python, what is wrong with it)."""
    lines = ["dagrow needs Python 3.11, 3.12 or 3.13; none that works was found.", "  looked at:"]
    lines += [f"    {python} {fault}" for python, fault in faults]
    halves = [fault for _, fault in faults if "lacks" in fault]
    if halves and platform.startswith("linux"):
        minor = halves[0].split()[1].split(".")[1]
        lines += [
            f"  on Debian or Ubuntu the missing part comes with:  sudo apt-get install python3.{minor}-venv",
            "  if that Python was compiled by hand: install the headers of sqlite, openssl and libffi, and compile it again",
        ]
    elif platform == "darwin":
        lines.append("  get one:  brew install python@3.12   (or the installer from python.org)")
    elif platform == "win32":
        lines.append("  get one:  winget install Python.Python.3.12   (or the installer from python.org)")
    else:
        lines += [
            "  get one:  sudo apt-get install python3.11 python3.11-venv   (Debian 12; Ubuntu 24.04: 3.12; Debian 13: 3.13)",
            "            sudo dnf install python3.12                       (Fedora, RHEL)",
        ]
    lines.append("  then run the same command again.")
    return "\n".join(lines)


def find_python() -> tuple[str, str]:
    """(path, version) of the running Python if it fits, else of the first that fits on the PATH."""
    found = [shutil.which(name) for name in ("python3.13", "python3.12", "python3.11", "python3")]
    faults = []
    for python in dict.fromkeys([sys.executable, *found]):
        if python:
            version, fault = probe(python)
            if version and not fault:
                return python, version
            faults.append((python, fault))
    raise SetupError(advice(faults))


# ---- running commands

def run(command: list[str], stdout=None) -> int:
    """Runs it in the repository; returns its exit code, 128 + n when signal n ended it, 130 when Ctrl-C made it fail.

    Ctrl-C reaches the command itself, which gets the time it needs to save its work; SIGTERM and SIGHUP are handed on.
    """
    child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=stdout)
    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            number = getattr(signal, name)
            before[number] = signal.signal(number, lambda number, frame: child.send_signal(number))
    interrupted = False
    try:
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted and code:
        return 130
    return code if code >= 0 else 128 - code


def setting_up(command: list[str], what: str) -> None:
    """A command of the set-up: what it prints goes to stderr, since stdout is for the verb's own output."""
    code = run(command, stdout=sys.stderr)
    if code in (129, 130, 143):
        raise Signalled(code)
    if code:
        raise SetupError(f"{what} failed (exit code {code}); its message is above.")


# ---- the environment

def python_in(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp(version: str, root: Path = ROOT) -> str:
    """The digest of everything that decides what gets installed. The folder belongs to it: an editable install names it."""
    digest = hashlib.sha256(f"{version}\n{root}\n".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def plan(venv: Path, works: bool, version: str | None, root: Path = ROOT) -> str:
    """"ready", "install" (into the .venv that is there), "make" (from nothing) or "again" (ours, and not to be trusted).

    works: its Python has a version that fits, and pip; version: that of its Python.
    A .venv that we made and did not finish is made again, since pip may have been killed in the middle of a package.
    """
    if not os.path.lexists(venv):
        return "make"
    ours = (venv / MARK).exists()
    installed = read(venv / STAMP)
    if works:
        if installed == stamp(version, root):
            return "ready"
        return "again" if ours and installed is None else "install"
    if ours:
        return "again"
    if not venv.is_dir() or any(venv.iterdir()):
        raise SetupError(
            f"{venv} is there, but it is not a virtual environment with pip and a Python 3.11 to 3.13,"
            "\n  and this program did not make it. Move it away, then run the same command again."
        )
    return "make"


def examine(venv: Path) -> tuple[bool, str | None]:
    """(whether its Python fits and has pip, its version)."""
    python = str(python_in(venv))
    version, fault = probe(python)
    if version is None or fault:
        return False, version
    done = subprocess.run([python, "-I", "-c", "import pip"], capture_output=True, env=environment())
    return done.returncode == 0, version


def make(venv: Path) -> str:
    """Makes it from nothing; returns its Python's version."""
    python, version = find_python()
    say(f"making {venv.name} with Python {version} ({python})")
    if venv.is_symlink():
        raise SetupError(f"{venv} is a link; remove it, then run the same command again")
    # The mark is written first and never removed, so that an interrupted one is known as ours.
    venv.mkdir(exist_ok=True)
    (venv / MARK).touch()
    for entry in venv.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARK:
            entry.unlink()
    setting_up([python, "-m", "venv", str(venv)], f"{python} -m venv")
    return version


def install(venv: Path, version: str) -> None:
    (venv / STAMP).unlink(missing_ok=True)
    say("installing dagrow and what it needs into .venv; the first time takes some minutes (torch is large)")
    free = shutil.disk_usage(ROOT).free / 1e9
    try:
        # compat: a path, not a finder, so that a script beside this folder gets the package and not the folder of its name.
        how = ["-c", "constraints.txt", "--config-settings", "editable_mode=compat"]
        setting_up([str(python_in(venv)), "-m", "pip", "install", *how, "-e", ".[dev]"], "pip install")
    except SetupError as error:
        raise SetupError(
            f"{error}"
            f"\n  Most often: no network, or no room ({free:.1f} GB were free; the CPU build of torch takes about 1.5, CUDA builds 8)."
            "\n  Once that is mended, run the same command again; what was downloaded is kept by pip."
        ) from None
    temporary = venv / f"{STAMP}.tmp"
    temporary.write_text(stamp(version))
    os.replace(temporary, venv / STAMP)


def set_up() -> Path:
    """Makes .venv ready; returns its Python. One at a time: a second set-up waits for the first."""
    with open(__file__) as lock:
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another set-up of this folder to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
        works, version = examine(VENV)
        todo = plan(VENV, works, version)
        if todo in ("make", "again"):
            version = make(VENV)
        if todo != "ready":
            install(VENV, version)
    return python_in(VENV)


# ---- the verbs

def next_folder(parent: Path, unfinished, may_resume: bool = True) -> tuple[Path, bool]:
    """(folder for the demo, whether to resume the run that lies there).

    The last of digits, digits-2, ... if `unfinished(folder)` says that a run stopped half-way there, else the first free one.
    """
    folder, last, number = parent / "digits", None, 1
    while os.path.lexists(folder):
        last, number = folder, number + 1
        folder = parent / f"digits-{number}"
    if may_resume and last is not None and unfinished(last):
        return last, True
    return folder, False


def exports(folder: Path) -> list[Path]:
    """The TorchScript files of a run."""
    return sorted(p for p in folder.rglob("*.pt") if p.is_file())


def summary(folder: str, files: list[str], python: str) -> str:
    """What the demo left, and what can be done with it."""
    lines = ["", f"The run lies in {folder}:"]
    for file in files:
        lines += [f"  {file}  the network as TorchScript, which needs torch alone:", f"      torch.jit.load({file!r})(images)"]
    lines += [
        "Next:",
        f"  {python} -m dagrow eval {folder}     its accuracy and size",
        f"  {python} -m dagrow show {folder}     its graph",
        f"  {python} -m dagrow score {folder}    what growing it further would bring",
    ]
    return "\n".join(lines)


def demo(python: Path, extra: list[str]) -> int:
    dagrow = [str(python), "-m", "dagrow"]
    if any(word == "-o" or word.startswith("--out") for word in extra):
        return run([*dagrow, "search", SPEC, *extra])

    def unfinished(folder: Path) -> bool:
        if not (folder / "run.db").is_file():
            return False
        ask = [str(python), "-c", UNFINISHED, str(folder)]
        return subprocess.run(ask, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL).returncode == 0

    folder, resume = next_folder(ROOT / "runs", unfinished, may_resume=not extra)
    short = str(folder.relative_to(ROOT))
    if resume:
        say(f"{short} holds a demo that was interrupted; going on with it: dagrow resume {short}")
        code = run([*dagrow, "resume", short])
    else:
        say(shlex.join(["dagrow", "search", SPEC, "-o", short, *extra]))
        code = run([*dagrow, "search", SPEC, "-o", short, *extra])
    if code == 0:
        print(summary(short, [str(p.relative_to(ROOT)) for p in exports(folder)], str(python.relative_to(ROOT))))
    return code


def test(python: Path, extra: list[str]) -> int:
    return run([str(python), "-m", "pytest", *extra])


def main(words: list[str]) -> int:
    verbs = {"demo": demo, "test": test}
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if words else 2
    if words[0] not in verbs:
        say(f"unknown verb {words[0]!r}; there are: {', '.join(verbs)}  (--help says more)")
        return 2
    if words[1:] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    try:
        return verbs[words[0]](set_up(), words[1:])
    except SetupError as error:
        say(str(error))
        return 2
    except Signalled as signalled:
        say("interrupted; the next call does the set-up again")
        return signalled.code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except OSError as error:
        say(f"{error.filename or 'the set-up'}: {error.strerror or error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
