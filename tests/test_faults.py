"""Whole searches killed, signalled, moved and resumed: they end with the same bits. The loops themselves: tools/faults.py.

A fifth of RELIABILITY's first figures; `python tools/faults.py F1 F2 F5 D1 D2 D3 N4 --search` runs all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHOOSERS = {
    "metropolis": "{by: metropolis, proposals: 3}",
    "optuna": "{by: optuna, trials: 2, startup: 1}",
    "bundles": "{by: greedy, bundle: 3, epochs: 1}",
    "schedule": "{by: schedule, steps: [{step: 0, edit: deepen}, {step: 1, edit: widen}, {step: 1, edit: connect}]}",
}


def faults(tmp_path: Path, *words: str) -> None:
    """Runs loops; every case must pass, and nothing may be left in the folder for temporary files."""
    call = [sys.executable, "tools/faults.py", *words, "--json", "--no-syscalls", "--search"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and found, found or done.stderr
    assert all(line["cases"] and not line["failed"] for line in found)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith("torchinductor_")]  # a cache of torch's


def test_a_search_killed_at_a_write_and_stopped_at_every_third_event(tmp_path):
    faults(tmp_path, "F1", "D1", "--cases", "2", "--set", "export=[]")


@pytest.mark.slow
def test_f1_death_at_durable_operations(tmp_path):
    faults(tmp_path, "F1", "--cases", "32", "--set", "export=[]")


@pytest.mark.slow
def test_f1_death_while_exporting(tmp_path):
    faults(tmp_path, "F1", "--only", "faults.pt")


@pytest.mark.slow
@pytest.mark.parametrize("loop, cases", [("F2", 10), ("F5", 6), ("D2", 5)])
def test_kills_signals_and_surroundings(loop, cases, tmp_path):
    faults(tmp_path, loop, "--cases", str(cases))


@pytest.mark.slow
@pytest.mark.parametrize("loop, cases", [("D1", 4), ("D3", 11), ("N4", 4)])
def test_same_seeds_differences_and_nothing_to_add(loop, cases, tmp_path):
    faults(tmp_path, loop, "--cases", str(cases), "--set", "export=[]")


@pytest.mark.slow
@pytest.mark.parametrize("chooser", list(CHOOSERS))
def test_d1_with_every_chooser(chooser, tmp_path):
    faults(tmp_path, "D1", "F1", "--cases", "3", "--set", "export=[]", "--set", f"select={CHOOSERS[chooser]}")
