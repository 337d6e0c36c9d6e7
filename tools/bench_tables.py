#!/usr/bin/env python3
"""Table T6: accuracy per parameter, grown networks against what is done well without growth.

    python tools/bench_tables.py [--rows digits-mlp,spirals] [--splits 5] [--seeds 3] [--jobs 2] [--out FILE] [--json]
    python tools/bench_tables.py --summary FILE [--json]

A run is one row of the table on one split with one seed: `dagrow search` on the row's spec with data.split.random_state the
split and seed the seed, and every column of tables_baselines.py at the same training MACs (`work`: 3 x MACs x rows, over the
whole search; measuring and scoring are not in it, they are in `seconds`). --out appends a line per finished run; started
again with the same file, it goes on where it stopped. Limits of time in the specs are lifted, because they would make the
figures depend on the machine. --columns dagrow runs the search alone; its validation metric is what to tune a spec by.

Test rows are reported and choose nothing. Intervals: 95% bootstrap of the mean, runs drawn with all their columns (paired);
"by splits": drawn by split, since runs of one split share their test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from dagrow import spec as specs  # noqa: E402
from dagrow.errors import DagrowError  # noqa: E402
from dagrow.spec import Spec  # noqa: E402

ROWS = ("digits-mlp", "digits", "spirals", "friedman1", "breast-cancer", "diabetes")
COLUMNS = ("dagrow", "static", "static2", "scratch", "seed", "random", "optuna", "classical")
DIABETES = {
    "name": "diabetes", "data": {"source": "diabetes", "batch": 32}, "model": {"layers": ["linear 1"]},
    "train": {"optimizer": {"name": "adamw", "lr": 5e-3}, "epochs": {"first": 30, "between": 5, "final": 30}},
    "edits": [{"deepen": {"units": [2, 4]}}, "widen", "connect"], "score": {"by": "natural", "alpha": 0.05},
    "budget": {"steps": 5, "params": 500}, "objectives": [{"minimize": "val.loss"}, {"minimize": "params"}],
}


def spec_of(row: str, split: int, seed: int, sets: tuple[str, ...] = ()) -> Spec:
    """The spec of a run: without a limit of time, without exports."""
    source = DIABETES if row == "diabetes" else ROOT / "specs" / f"{row}.yaml"
    plain = specs.load(source, sets).to_dict()
    plain["seed"], plain["export"] = seed, []
    plain["data"]["split"] = {**(plain["data"].get("split") or {}), "random_state": split}
    plain["budget"] = {**plain["budget"], "time": None}
    return specs.load(plain)


def attempt(*run) -> tuple[dict | None, str]:
    """(record, "") or (None, why not): an exception may not survive the way between processes."""
    try:
        return one_run(*run), ""
    except Exception:
        return None, traceback.format_exc()


def one_run(row: str, split: int, seed: int, columns: tuple[str, ...], sets: tuple[str, ...] = ()) -> dict:
    """The record of a run."""
    import tables_baselines as baselines
    import torch

    torch.set_num_threads(1)
    spec = spec_of(row, split, seed, sets)
    record = {"row": row, "split": split, "seed": seed, "spec": spec.digest, "asked": columns, "columns": {}}
    with tempfile.TemporaryDirectory() as folder:
        record["columns"]["dagrow"], contest = searched(spec, Path(folder) / "run")
    for name in columns:
        if name != "dagrow":
            found = baselines.column(name, contest)
            if found is not None:
                record["columns"][name] = found
    return {**record, "metric": contest.metric}


def searched(spec: Spec, folder: Path):
    """(the row of the search, what the other columns need)."""
    from tables_baselines import Contest

    import dagrow

    began = time.perf_counter()
    run = dagrow.search(spec, out=folder)
    seconds = time.perf_counter() - began
    history, done, plan = run.history, run.history[-1], run.plan
    decisions = [r for r in history if r["event"] == "step"]
    edits = [r for r in decisions if r["edit"] != "null"]
    metric = "accuracy" if plan.data.task == "classification" else "r2"
    # Validation rows that the final phase trains on are no longer held out: their metric is the one before it.
    held = run.evaluate("best" if spec.train.final_on == "train+val" and decisions else None)["val"]
    kept = ("step", "edit", "where", "units", "predicted", "stderr", "checked", "held", "held_stderr", "amplitude", "added_params")
    row = {
        "metric": done[f"test_{metric}"], "loss": done["test_loss"], "val_metric": held[metric], "val_loss": held["loss"],
        "params": done["params"], "macs": done["macs"], "epochs": done["trained"], "work": done["work"], "seconds": seconds,
        "deciding": sum(r["seconds"] for r in decisions), "training": sum(r["seconds"] for r in history if r["event"] == "epoch"),
        "steps": done["steps"], "edits": [{k: r.get(k) for k in kept} for r in edits],
        "ended": next((r["note"] for r in history if r["event"] == "final"), ""),
    }
    largest = max(r["params"] for r in history)
    contest = Contest(spec, plan, run.architecture, done["work"], done["trained"], done["steps"], row["edits"], largest)
    return row, contest


# ---- running many

def finished(path: Path | None) -> list[dict]:
    """The runs a file holds. A line cut off by a kill is the last one, and is taken off the file."""
    if path is None or not path.exists():
        return []
    found, size = [], 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            found.append(json.loads(line))
            size += len(line)
    if size < path.stat().st_size:
        os.truncate(path, size)
    return found


def run_all(
    rows, splits: int, seeds: int, columns: tuple[str, ...], jobs: int, out: Path | None, sets: tuple[str, ...]
) -> tuple[list[dict], int]:
    """(all runs, how many failed). Splits go outermost, so that an unfinished table is of every row."""
    records = finished(out)
    held = {(r["row"], r["split"], r["seed"]): r for r in records}
    todo = []
    for run in ((row, split, seed) for split in range(splits) for seed in range(seeds) for row in rows):
        digest = spec_of(*run, sets).digest  # a bad spec is said before anything is run
        if run not in held:
            todo.append(run)
        elif held[run]["spec"] != digest or set(columns) - set(held[run]["asked"]):
            raise SystemExit(f"{out} holds {run[0]} by another spec or with fewer columns; write to another file")
    failed, began = 0, time.perf_counter()
    # One thread each, from the start: libraries read this when they are loaded.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(attempt, *run, columns, sets): run for run in todo}
        for number, future in enumerate(as_completed(waiting), 1):
            name = "{} split {} seed {}".format(*waiting[future])
            record, why = future.result()
            if record is None:
                failed += 1
                print(f"{name} failed:\n{why}", file=sys.stderr)
                continue
            records.append(record)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            said = ", ".join(f"{c} {v['metric']:.4f} ({v['seconds']:.0f} s)" for c, v in record["columns"].items())
            print(f"[{number}/{len(todo)}, {time.perf_counter() - began:.0f} s] {name}: {said}", file=sys.stderr)
    return records, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--columns", default=",".join(COLUMNS), help=f"of {', '.join(COLUMNS)}; dagrow is always run")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="a.b=c", help="change every row's spec")
    parser.add_argument("--out", type=Path, help="JSON lines, one per finished run; goes on where it stopped")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the table from such a file and run nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    rows, columns = options.rows.split(","), tuple(options.columns.split(","))
    for name, known in [(r, ROWS) for r in rows] + [(c, COLUMNS) for c in columns]:
        if name not in known:
            parser.error(f"{name!r} is not one of {', '.join(known)}")
    if min(options.splits, options.seeds, options.jobs) < 1:
        parser.error("--splits, --seeds and --jobs are at least 1")
    from tables_summary import summary, table

    if options.summary is not None:
        if not options.summary.exists():
            parser.error(f"{options.summary} is not there")
        records, failed = finished(options.summary), 0
    else:
        try:
            records, failed = run_all(rows, options.splits, options.seeds, columns, options.jobs, options.out, tuple(options.sets))
        except DagrowError as error:
            parser.error(str(error))
    found = summary([r for r in records if r["row"] in rows], COLUMNS)
    print("\n".join(json.dumps(line) for line in found) if options.json else table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
