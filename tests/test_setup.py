"""tools/setup.py: what it decides. That it installs is shown by CI, which starts with it."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "tools" / "setup.py"


@pytest.fixture(scope="module")
def setup():
    loader = importlib.util.spec_from_file_location("dagrow_tools_setup", FILE)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("torch==2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("code", "out", "err", "version", "fault"),
    [
        (0, "3 11 7\n", "", "3.11.7", ""),
        (0, "3 13 0\n", "", "3.13.0", ""),
        (0, "3 10 9\n", "", "3.10.9", "is 3.10.9"),
        (0, "3 14 0\n", "", "3.14.0", "is 3.14.0"),
        (1, "3 12 1\n", "Traceback\nImportError: no ensurepip\n", "3.12.1", "lacks a part of the standard library (ImportError"),
        (127, "", "pyenv: python3.12: command not found", None, "does not start"),
        (0, "hello", "", None, "does not start"),
    ],
)
def test_judge(setup, code, out, err, version, fault):
    found, wrong = setup.judge(code, out, err)
    assert found == version
    assert fault in wrong if fault else wrong == ""


def test_probe_accepts_this_python_and_survives_one_that_is_not_there(setup, tmp_path):
    assert setup.probe(sys.executable) == (".".join(map(str, sys.version_info[:3])), "")
    assert setup.probe(str(tmp_path / "python3"))[0] is None


def test_advice_names_what_is_missing_and_how_to_get_it(setup):
    text = setup.advice([("/usr/bin/python3", "is 3.9.2")], "linux")
    assert "/usr/bin/python3 is 3.9.2" in text and "apt-get install python3.11 python3.11-venv" in text
    half = ("/usr/bin/python3", "is 3.12.3, but lacks a part of the standard library (No module named 'ensurepip')")
    assert "apt-get install python3.12-venv" in setup.advice([half], "linux")
    assert "brew" in setup.advice([], "darwin")


def test_find_python_without_any_that_fits(setup, monkeypatch):
    monkeypatch.setattr(setup, "probe", lambda python: ("3.9.1", "is 3.9.1"))
    with pytest.raises(setup.SetupError, match="is 3.9.1"):
        setup.find_python()


def test_stamp_follows_everything_that_decides_what_is_installed(setup, root):
    first = setup.stamp("3.11.7", root)
    assert first == setup.stamp("3.11.7", root)
    seen = {first, setup.stamp("3.12.0", root)}
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text("changed\n")
        seen.add(setup.stamp("3.11.7", root))
    assert len(seen) == 4


def test_plan(setup, root):
    venv = root / ".venv"

    def plan(works=True):
        return setup.plan(venv, works, "3.11.7", root)

    assert plan(works=False) == "make"
    venv.mkdir()
    assert plan(works=False) == "make"  # an empty folder
    (venv / "pyvenv.cfg").touch()
    assert plan() == "install"  # the user's own: kept
    with pytest.raises(setup.SetupError, match="Move it away"):
        plan(works=False)  # the user's own, useless: never deleted
    (venv / setup.STAMP).write_text(setup.stamp("3.11.7", root))
    assert plan() == "ready"
    (venv / setup.MARK).touch()
    assert plan() == "ready"
    (root / "constraints.txt").write_text("torch==3\n")
    assert plan() == "install"
    (venv / setup.STAMP).unlink()
    assert plan() == "again"  # ours, and interrupted
    assert plan(works=False) == "again"


def test_next_folder(setup, tmp_path):
    def choose(unfinished=False, **options):
        return setup.next_folder(tmp_path, lambda folder: unfinished, **options)

    assert choose(True) == (tmp_path / "digits", False)
    (tmp_path / "digits").mkdir()
    assert choose() == (tmp_path / "digits-2", False)
    assert choose(True) == (tmp_path / "digits", True)
    assert choose(True, may_resume=False) == (tmp_path / "digits-2", False)
    (tmp_path / "digits-2").symlink_to(tmp_path / "nowhere")
    assert choose() == (tmp_path / "digits-3", False)


def test_run_returns_the_exit_code(setup):
    assert setup.run([sys.executable, "-c", "raise SystemExit(5)"]) == 5
    if hasattr(signal, "SIGKILL"):
        assert setup.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_main_refuses_what_it_does_not_know(setup, capsys):
    assert setup.main([]) == 2
    assert setup.main(["--help"]) == 0
    assert setup.main(["demo", "--help"]) == 0
    assert setup.main(["demmo"]) == 2
    assert "demo, test" in capsys.readouterr().err


def test_main_prints_one_message_and_no_traceback(setup, monkeypatch, capsys):
    def fail(error):
        def set_up():
            raise error
        monkeypatch.setattr(setup, "set_up", set_up)
        return setup.main(["test"])

    assert fail(setup.SetupError("get a Python")) == 2
    assert fail(setup.Signalled(143)) == 143
    assert fail(KeyboardInterrupt()) == 130
    assert fail(PermissionError(13, "Permission denied", ".venv")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "setup: .venv: Permission denied"


def test_it_is_installed_as_a_path(setup, monkeypatch, tmp_path):
    """So that a script beside a clone called dagrow imports the package."""
    commands = []
    monkeypatch.setattr(setup, "setting_up", lambda command, what: commands.append(command))
    monkeypatch.setattr(setup, "stamp", lambda version: "")
    setup.install(tmp_path, "3.12.1")
    assert "editable_mode=compat" in commands[0] and commands[0][-2:] == ["-e", ".[dev]"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_is_handed_on_and_leaves_no_process(setup, tmp_path):
    """A copy of the script with a stand-in for its verb: the child sees the signal and its exit code is returned."""
    (tmp_path / "tools").mkdir()
    copy = shutil.copy(FILE, tmp_path / "tools" / "setup.py")
    child = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(143)); print('up', flush=True); time.sleep(60)"
    code = f"import runpy, sys; m = runpy.run_path({str(copy)!r}); sys.exit(m['run']([sys.executable, '-c', {child!r}]))"
    outer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert outer.stdout.readline() == "up\n"
    started = time.monotonic()
    outer.terminate()
    assert outer.wait(timeout=20) == 143
    assert time.monotonic() - started < 20
