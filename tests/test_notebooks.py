"""The notebooks' code runs, from the first cell to the last, and what it asserts holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
BOOKS = sorted((HOME / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[str]:
    book = json.loads(path.read_text())
    assert book["nbformat"] == 4
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_there_are_notebooks_and_they_hold_no_output() -> None:
    assert {p.stem for p in BOOKS} >= {"supervised", "reinforcement", "continual"}
    for path in BOOKS:
        assert all(not cell.get("outputs") for cell in json.loads(path.read_text())["cells"]) and cells(path, "markdown")


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells(path, "code")))
    found = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
