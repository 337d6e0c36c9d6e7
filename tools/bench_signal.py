#!/usr/bin/env python3
"""Table T4: is it signal? What the verdicts of a growth decision are worth, where the truth is known.

    python tools/bench_signal.py [--only null,power] [--runs 200] [--seeds 5] [--nets mlp,regression] [--jobs 2] [--out FILE] [--json]
    python tools/bench_signal.py --summary FILE [--json]

null: decisions on networks trained on targets dealt out at random (--runs of them, each with a seed of its own): how many
call anything signal, and how the z values lie. power: on true targets, every growing site is made real at its line-searched
amplitude and measured on test rows, paired; how many of those that lower test loss pass, and of those that pass how many
lower it; the same sites say how far a gain and its standard error hold on fresh rows. share: proposals from n rows, valued
on all. race: how many rows the race needs, and whether it ends with the same site. refusal: linear models on data where
they do as well as anything (10 seeds). The networks are those of truth_nets.py, at 50, 300 and 3000 steps; --seeds of each.

Test rows measure and choose nothing. --out keeps every record, a line each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

NETS = ("mlp", "conv", "regression")
STAGES = ("early", "middle", "converged")
PARTS = {"null": "null", "power": "true_effects", "share": "shares", "race": "raced", "refusal": "refused"}
CHEAP = ("mlp", "regression", "mlp", "regression", "conv")  # how null runs are spread over the networks


def todo(parts: list[str], nets: list[str], runs: int, seeds: int) -> list[tuple[str, str, str, int]]:
    """(part, net, stage, seed) of every run, what is cheap to learn most from first."""
    found = []
    spread = [n for n in CHEAP if n in nets]
    if "null" in parts:
        found += [("null", spread[k % len(spread)], STAGES[k // len(spread) % 3], k) for k in range(runs)]
    found += [(part, net, stage, seed) for part in parts if part in ("power", "share", "race") for seed in range(seeds) for net in nets for stage in STAGES
              if (part, net) != ("share", "conv")]
    if "refusal" in parts:
        found += [("refusal", net, "converged", seed) for seed in range(10) for net in ("breast-cancer", "diabetes")]
    return found


def attempt(part: str, net: str, stage: str, seed: int) -> tuple[list[dict], str]:
    """(records, "") or ([], why not): an exception may not survive the way between processes."""
    try:
        import signal_runs
        import torch

        torch.set_num_threads(1)
        about = {"part": part, "net": net, "stage": stage, "seed": seed}
        return [{**about, **record} for record in getattr(signal_runs, PARTS[part])(net, stage, seed)], ""
    except Exception:  # noqa: BLE001
        return [], traceback.format_exc()


def run_all(runs: list[tuple], jobs: int, out: Path | None) -> tuple[list[dict], int]:
    """(all records, how many runs failed)."""
    records, failed, began = [], 0, time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by libraries when they are loaded
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(attempt, *run): run for run in runs}
        for number, future in enumerate(as_completed(waiting), 1):
            made, why = future.result()
            records += made
            failed += bool(why)
            if out is not None:
                with out.open("a") as file:
                    file.writelines(json.dumps(record) + "\n" for record in made)
            name = "{} {} {} seed {}".format(*waiting[future])
            print(f"[{number}/{len(runs)}, {time.perf_counter() - began:.0f} s] {name}{': failed' if why else ''}", file=sys.stderr)
            if why:
                print(why, file=sys.stderr)
    return records, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=200, help="decisions on permuted targets")
    parser.add_argument("--seeds", type=int, default=5, help="of each network and stage, with true targets")
    parser.add_argument("--nets", default=",".join(NETS), help=f"of {', '.join(NETS)}")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--out", type=Path, help="JSON lines, one per record; appended to")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the tables from such a file and run nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    parts, nets = options.only.split(","), options.nets.split(",")
    for name, known in [(p, tuple(PARTS)) for p in parts] + [(n, NETS) for n in nets]:
        if name not in known:
            parser.error(f"{name!r} is not one of {', '.join(known)}")
    if min(options.runs, options.seeds, options.jobs) < 1:
        parser.error("--runs, --seeds and --jobs are at least 1")
    from signal_summary import summary, table

    if options.summary is not None:
        if not options.summary.exists():
            parser.error(f"{options.summary} is not there")
        records, failed = [json.loads(line) for line in options.summary.read_text().splitlines()], 0
    else:
        records, failed = run_all(todo(parts, nets, options.runs, options.seeds), options.jobs, options.out)
    found = summary(records)
    print("\n".join(json.dumps(line) for line in found) if options.json else table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
