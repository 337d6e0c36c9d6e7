#!/usr/bin/env python3
"""Table T3: does the score tell the truth? What is predicted for every site against what real forwards find there.

    python tools/bench_truth.py [--nets mlp,conv,regression] [--stages early,middle,converged] [--seeds 5] [--after 150]
                                [--jobs 2] [--out FILE] [--json]
    python tools/bench_truth.py --summary FILE [--json]

A run is one network (truth_nets.py) at one stage of its training with one seed: all sites of widen, deepen (2 units) and
connect, each with the candidate of every scorer (grow); every unit that prune could remove (shrink); and, since these
networks have no branches, every branch that could be removed once they were given three (remove). Rows as in truth_sites.py.

LS, the loss drop reached by line search: the lowest mean loss over all training rows along the candidate's amplitude, by
forwards on a logarithmic grid from 1/1000 to 256 times the amplitude predicted and golden section around its best point; 0
where none is lower. For regression LS is in nats with the residual variance fitted anew, as everywhere in dagrow; the
expansions (quadratic, tiny) hold it, and their predicted/LS in the table is against LS with the variance held (both are in the
JSON). Only what the proposal names moves: all other weights stay, but in the columns "after".

after: Spearman of the prediction with the drop after so many more training steps, against the parent trained equally;
LS-after: that of LS itself, which no prediction of LS can be expected to better.
seen, blind: sites that do or do not read anything that the target's parents do not read (linear-blind). first: runs in which
the best prediction is the site with the best LS; verified: the same once the best three were tried at the amplitudes a
search tries; reached: the share of the best LS that these choices have. quadratic: natural's candidates by their
second-order value alone, without forwards. tiny: predicted is the published sum of lambda^2;
tiny+line: the same candidates, priced by dagrow's valuer. natural, importance, empirical: dagrow's default scorer with the
curvature from Rademacher probes (the default), importance-sampled labels, true labels.

--json: a line per site ("kind": grow, shrink or remove, with net, stage and seed), then the table's lines (with "runs").
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


def attempt(*run) -> tuple[dict | None, str]:
    """(record, "") or (None, why not): an exception may not survive the way between processes."""
    try:
        return one_run(*run), ""
    except Exception:  # noqa: BLE001  whatever it was, the other runs go on
        return None, traceback.format_exc()


def one_run(net: str, stage: str, seed: int, scorers: tuple[str, ...], after: int, rows: int) -> dict:
    import torch
    from truth_nets import STAGES, trained
    from truth_sites import GROWING, branched, growth_rows, real, shrink_rows

    torch.set_num_threads(1)
    began = time.perf_counter()
    here = trained(net, seed, STAGES[stage])
    record = {
        "net": net, "stage": stage, "seed": seed, "asked": {"scorers": scorers, "after": after, "rows": rows},
        "outputs": here.arch.shapes[here.arch.outputs[0]][0] if here.loss.task == "regression" else None,
        "loss": real(here, here.arch, here.weights),
        "grow": growth_rows(here, {s: GROWING[s] for s in scorers}, after, rows), "shrink": shrink_rows(here, rows),
        "remove": shrink_rows(branched(here, rows), rows, "remove"),
    }
    return {**record, "seconds": time.perf_counter() - began}


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


def run_all(runs: list[tuple], asked: tuple, jobs: int, out: Path | None) -> tuple[list[dict], int]:
    """(all runs, how many failed)."""
    records = finished(out)
    held = {(r["net"], r["stage"], r["seed"]): r["asked"] for r in records}
    wanted = dict(zip(("scorers", "after", "rows"), json.loads(json.dumps(asked)), strict=True))
    if any(held[run] != wanted for run in runs if run in held):
        raise SystemExit(f"{out} holds runs with other options; write to another file")
    todo = [run for run in runs if run not in held]
    failed, began = 0, time.perf_counter()
    # One thread each, from the start: libraries read this when they are loaded.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(attempt, *run, *asked): run for run in todo}
        for number, future in enumerate(as_completed(waiting), 1):
            name = "{} {} seed {}".format(*waiting[future])
            record, why = future.result()
            if record is None:
                failed += 1
                print(f"{name} failed:\n{why}", file=sys.stderr)
                continue
            records.append(record)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            print(f"[{number}/{len(todo)}, {time.perf_counter() - began:.0f} s] {name}: {record['seconds']:.0f} s", file=sys.stderr)
    order = {run: k for k, run in enumerate(runs)}
    return sorted((r for r in records if (r["net"], r["stage"], r["seed"]) in order), key=lambda r: order[r["net"], r["stage"], r["seed"]]), failed


def main() -> int:
    from truth_nets import NETS, STAGES
    from truth_sites import GROWING
    from truth_summary import summary, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS), help=f"of {', '.join(NETS)}")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument("--scorers", default=",".join(GROWING), help=f"of {', '.join(GROWING)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--after", type=int, default=0, metavar="STEPS", help="train every candidate so long, too; 150 in the table")
    parser.add_argument("--rows", type=int, default=1_000_000, help="training rows that scorers may see (all of them, and forwards always)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--out", type=Path, help="JSON lines, one per finished run; goes on where it stopped")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the table from such a file and run nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    nets, stages, scorers = (tuple(getattr(options, n).split(",")) for n in ("nets", "stages", "scorers"))
    for name, known in [(n, NETS) for n in nets] + [(s, STAGES) for s in stages] + [(s, GROWING) for s in scorers]:
        if name not in known:
            parser.error(f"{name!r} is not one of {', '.join(known)}")
    if min(options.seeds, options.jobs, options.rows) < 1 or options.after < 0:
        parser.error("--seeds, --jobs and --rows are at least 1, --after at least 0")
    if options.summary is not None:
        if not options.summary.exists():
            parser.error(f"{options.summary} is not there")
        records, failed = finished(options.summary), 0
    else:
        # Seeds go outermost, so that an unfinished table is of every network and stage.
        runs = [(net, stage, seed) for seed in range(options.seeds) for net in nets for stage in stages]
        records, failed = run_all(runs, (scorers, options.after, options.rows), options.jobs, options.out)
    found = summary(records)
    if options.json:
        for r in records:
            about = {k: r[k] for k in ("net", "stage", "seed")}
            print("\n".join(json.dumps({"kind": kind, **about, **row}) for kind in ("grow", "shrink", "remove") for row in r[kind]))
        print("\n".join(json.dumps(line) for line in found))
    else:
        print(table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
