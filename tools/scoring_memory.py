"""Table P7, one figure: how much memory a piece of work takes, in a process of its own. Used by both sides of bench_scoring.py.

    python tools/scoring_memory.py '{"case": "cifar", "work": "decision"}'      # train, decision, trials

Two figures: the growth of resident memory over what the process held before (after a small piece of the same work, so that
libraries are loaded), and the largest sum of live tensor bytes, as torch's allocator reports each allocation and release
to its profiler: temporaries inside an operation are in it, what existed before is not.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20
FEW = 8  # rows of the small piece of work that goes before


def resident_peak() -> int:
    """Largest resident memory so far, bytes: since `reset_peak` where the system allows that, else of the process's life."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak of loading stands: the growth is then too small, never too large


def resident_growth(work: Callable[[], object]) -> tuple[float, float]:
    """(growth of resident memory, its peak) in MiB while `work` runs."""
    gc.collect()
    reset_peak()
    before = resident_peak()
    work()
    after = resident_peak()
    return (after - before) / MIB, after / MIB


def live_peak(work: Callable[[], object]) -> float:
    """The largest sum of tensor bytes alive at once, of those allocated while `work` runs, in MiB."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        live += change
        most = max(most, live)
    return most / MIB


def figures(work: Callable[[], object]) -> dict:
    resident, whole = resident_growth(work)
    return {"resident_mib": resident, "process_mib": whole, "live_mib": live_peak(work)}


def main() -> None:
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    import scoring_cases as cases

    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked.get("threads", 1))
    images = Path(asked["images"]) if asked.get("images") else None
    try:
        case = cases.mlp(asked["depth"]) if asked["case"] == "mlp" else cases.CONV_NETS[asked["case"]](rows=asked.get("rows", 4000), images=images)
        search, small = case.looking_at(asked.get("look", case.rows)), case.looking_at(FEW)
        if asked["work"] == "train":
            first, work = (lambda: case.epoch(FEW)), case.epoch
        elif asked["work"] == "decision":
            first, work = small.candidates, search.candidates
        else:
            first, work = cases.trials(small, small), cases.trials(search, case.looking_at(4 * FEW))
        first()
        print(json.dumps(figures(work)))
    finally:
        cases.tidy()


if __name__ == "__main__":
    main()
