#!/usr/bin/env python3
"""What deciding where to grow costs, in plain training steps of the same network; tables P1, P2, P6 and P7.

    python tools/bench_scoring.py [--only p1,p2,p6,p7] [--rounds 5] [--quick] [--json] [--peer PYTHON] [--images FILE.zip]
    python tools/bench_scoring.py --profile [--case cifar]

p1: a decision (measuring, scoring, pricing: all but trials) on two conv nets, in a pass of its own over all training rows,
    over a quarter, and "raced": over all, scoring on as few as it takes to tell the places apart (score.race).
    per_batch: its time for a batch of the rows it looked at (training and held-out), in training steps; per_epoch: its time
    in epochs over all training rows. rows: what it did look at, which may be fewer than asked for.
    Also whole runs that gather rows while training (score.when): percent of the run that gathering takes, and that with measuring
    held-out rows, scoring and pricing.
p2: the same for MLPs of 1, 2, 4 and 8 hidden layers of 16 units, in training steps of batch 128, from 1,347 rows in all
    (1,144 training, 203 held out): widening alone, and all kinds of edit.
p6: a whole search divided by its own epochs on its own architectures without the rest; shares of CPU time by stage.
p7: peak memory of a decision, and of trials, divided by that of a training epoch (scoring_memory.py says what is measured).

Medians over rounds in which the two sides take turns; the first round warms up. A training step is an epoch by the search's
own recipe divided by its steps. Times are CPU time with one thread, and elapsed time otherwise. --peer names a Python with
gromo: the same is then measured for it by scoring_peer.py, in training steps of its own, on the same rows and shapes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import numpy as np
import scoring_cases as cases
import torch
from scoring_cases import Case
from scoring_search import whole

from dagrow.measure import measure

TABLES = ("p1", "p2", "p6", "p7")
DEPTHS = (1, 2, 4, 8)
LEAST_MIB = {"resident_mib": 4.0}  # a growth below that is noise
SPECS = ("digits", "digits-mlp", "friedman1")


class Bench:
    """One call of this script: its options, and how it measures."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.clock = time.process_time if options.threads == 1 else time.perf_counter
        self.rounds = 1 if options.quick else options.rounds
        self.images = options.images

    def seconds(self, work: Callable[[], object]) -> float:
        begin = self.clock()
        work()
        return self.clock() - begin

    def case(self, name: str) -> Case:
        return cases.CONV_NETS[name](rows=600 if self.options.quick else 4000, images=self.images)

    # -- P1, P2: a decision in training steps

    def decision(self, case: Case, rows: int, offered: tuple = (), race: bool = True, **about) -> dict:
        search = case.looking_at(rows, offered, race)
        train, held = seen_rows(search)
        epochs = 1 if case.rows > 2000 else 5
        decided, of_step, steps = [], [], 0
        for number in range(self.rounds + 1):
            begin = self.clock()
            steps = [case.epoch() for _ in range(epochs)][-1]
            step = (self.clock() - begin) / epochs / steps
            taken = self.seconds(search.candidates)
            if number or self.options.quick:
                decided.append(taken / step)
                of_step.append(step)
        batches = (train + held) / case.plan.recipe.batch
        middle = statistics.median(decided)
        return {
            **about, "network": case.name, "side": "dagrow", "asked": rows, "rows": train, "held": held, "candidates": len(search.candidates()) - 1,
            "decision_steps": middle, "per_batch": middle / batches, "lowest": min(decided) / batches, "highest": max(decided) / batches,
            "per_epoch": middle / steps, "step_ms": 1e3 * statistics.median(of_step), "rounds": self.rounds,
        }

    def p1(self) -> Iterator[dict]:
        for name in cases.CONV_NETS:
            case = self.case(name)
            for part, rows, race in (("all", case.rows, False), ("quarter", case.rows // 4, False), ("raced", case.rows, True)):
                yield self.decision(case, rows, race=race, bench="p1", part=part)
            with self.rows_of(case) as data:
                for kind in ("restricted", "full"):
                    yield from self.peer({"bench": "decision", "kind": kind, "epochs": 1}, case, data, bench="p1", part="all")
            yield self.gathered(case)

    def gathered(self, case: Case) -> dict:
        """A whole run that gathers in training; what gathering, measuring and proposing take of it."""
        sets, rounds = ("score.when=training", "budget.time=null", "export=[]"), 1 if self.options.quick else self.rounds
        row = whole(case.name, case.plan.spec.to_dict(), rounds, sets, case.plan.spec.folder)
        shares = row["shares"]
        scoring = 100 * sum(shares[stage] for stage in ("gathering", "measuring", "proposing"))
        gathering = {"part": "gathered in training", "percent_of_run": scoring, "percent_gathering": 100 * shares["gathering"]}
        return {**row, "bench": "p1", "network": case.name, "side": "dagrow", **gathering}

    def p2(self) -> Iterator[dict]:
        for depth in DEPTHS[:2] if self.options.quick else DEPTHS:
            case = cases.mlp(depth)
            for edits, offered in (("widen", ()), ("all", cases.ALL_EDITS)):
                yield self.decision(case, 1347, offered, bench="p2", edits=edits)
            with self.rows_of(case, held=True) as data:
                yield from self.peer({"bench": "decision", "line": True, "epochs": 5}, case, data, bench="p2", edits="widen")

    # -- P6: whole searches

    def p6(self) -> Iterator[dict]:
        for name in SPECS:
            sets = ["export=[]", "budget.time=null"]
            if self.options.quick:
                sets += ["train.epochs={first: 2, between: 1, final: 2}", "budget.steps=2"]
            row = whole(name, ROOT / "specs" / f"{name}.yaml", self.rounds, tuple(sets))
            yield {**row, "side": "dagrow"}
            if name == "digits-mlp":
                case = cases.mlp(1)
                shape = {"width": 8, "batch": 64}
                with self.rows_of(case) as data:
                    # Its own loop over as many epochs, with an edit wherever ours made a decision.
                    yield from self.peer({"bench": "search", "epochs": row["stretches"]}, case, data, shape, bench="p6", spec=name)

    # -- P7: memory

    def p7(self) -> Iterator[dict]:
        for name in ("digits", "cifar", "mlp"):
            asked = {"case": name, "depth": 4, "rows": 600 if self.options.quick else 4000, "images": str(self.images) if self.images else None}
            found = {}
            for work in ("train", "decision", "trials"):
                found[work] = said([sys.executable, str(ROOT / "tools" / "scoring_memory.py"), json.dumps({**asked, "work": work})])
                yield {"bench": "p7", "network": name, "side": "dagrow", "work": work, **found[work], **ratios(found[work], found["train"])}
            if self.options.peer is not None:
                yield from self.peer_memory(name)

    def peer_memory(self, name: str) -> Iterator[dict]:
        case = cases.mlp(4) if name == "mlp" else self.case(name)
        with self.rows_of(case) as data:
            for kind in ("restricted", "full") if "convs" in case.shape else ("linear",):
                found = {}
                for work in ("train", "decision"):
                    made = list(self.peer({"bench": "memory", "work": work, "kind": kind}, case, data, bench="p7", work=work))
                    for row in made:
                        found[work] = row
                        yield {**row, "network": name, **(ratios(row, found["train"]) if "live_mib" in row else {})}

    # -- the other side

    def peer(self, asked: dict, case: Case, data: Path, shape: dict | None = None, **about) -> Iterator[dict]:
        if self.options.peer is None:
            return
        asked = {"rounds": self.rounds, "threads": self.options.threads, "shape": case.shape | (shape or {}), "data": str(data), **asked}
        row = said([self.options.peer, str(ROOT / "tools" / "scoring_peer.py"), json.dumps(asked)])
        yield {"network": case.name, "side": "gromo", **row, **about}

    @contextmanager
    def rows_of(self, case: Case, held: bool = False) -> Iterator[Path]:
        """The training rows (and held-out ones) as a file for the other side."""
        fold = case.plan.data.train_val if held else case.plan.data.train
        with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
            path = Path(folder) / "rows.npz"
            if self.options.peer is not None:
                np.savez(path, x=fold.x.numpy(), y=fold.y.numpy())
            yield path


def seen_rows(search) -> tuple[int, int]:
    """How many training and held-out rows a decision looks at, by measuring once."""
    plan, network = search.plan, search.network
    seen = measure(
        network.arch, network.weights, plan.data.train, plan.data.val, plan.recipe.loss, rows=plan.spec.score.rows, seed=0, path=("rows",)
    )
    return seen.train.rows, seen.held.rows


def said(call: list[str]) -> dict:
    """The last line of a program's output, as JSON; a failure is a row too."""
    done = subprocess.run(call, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT / "tools")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(lines[-1])


def ratios(row: dict, plain: dict) -> dict:
    """How many times the memory of training; None where a side failed, or where training hardly needs any."""
    def over(key: str) -> float | None:
        return row[key] / plain[key] if plain.get(key, 0) > LEAST_MIB.get(key, 0) and key in row else None

    return {"live_ratio": over("live_mib"), "resident_ratio": over("resident_mib"), "process_ratio": over("process_mib")}


def profiled(case: Case, rows: int | None = None) -> None:
    """Prints which functions and which operations a decision's time and memory go to."""
    search = case.looking_at(case.rows if rows is None else rows)
    search.candidates()
    profile = cProfile.Profile(time.process_time)
    profile.runcall(search.candidates)
    for order, most in (("cumulative", 45), ("tottime", 20)):
        pstats.Stats(profile).strip_dirs().sort_stats(order).print_stats(most)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as operations:
        search.candidates()
    for order in ("self_cpu_time_total", "self_cpu_memory_usage"):
        print(operations.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=32))


def line(row: dict) -> str:
    head = f"{row['bench']}  {row['side']:<7}{row.get('network') or row.get('spec')}"
    if "failed" in row:
        return f"{head}: failed: {row['failed']}"
    if row["bench"] == "p7":
        shown = ", ".join(
            f"{said} {row[f'{key}_mib']:.1f} MiB ({'-' if row[f'{key}_ratio'] is None else format(row[f'{key}_ratio'], '.2f')})"
            for key, said in (("live", "live"), ("resident", "resident +"), ("process", "process"))
        )
        return f"{head} {row['work']} {row.get('kind', '')}: {shown}"
    if "percent_of_run" in row:
        gathering = f"{row['percent_gathering']:.1f}% gathering, {row['percent_of_run']:.1f}% with solving"
        return f"{head}: gathered in training, {gathering}, of a run of {sum(row['stretches'])} epochs with {row['decisions']} decisions"
    if row["bench"] == "p6":
        shares = row.get("shares", {"deciding": row.get("deciding")})
        return f"{head}: {row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}]  " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items())
    what = " ".join(str(row[k]) for k in ("part", "edits", "kind") if k in row)
    spread = f"[{row['lowest']:.2f}, {row['highest']:.2f}]"
    over = f"{row['rows']} + {row['held']} rows, {row['candidates']} candidates" if row["side"] == "dagrow" else f"{row['rows']} rows, {row['sites']} sites"
    return f"{head} {what}: {row['per_batch']:.2f} {spread} steps a batch, {row['decision_steps']:.1f} steps in all; {over}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round of each, fewer rows, short searches: to see that all runs; no figures to report")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=Path, metavar="FILE.zip", help="JPEGs in folders by class, in place of made-up images")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has gromo, to measure beside")
    parser.add_argument("--profile", action="store_true", help="print where a decision's time and memory go, and nothing else")
    parser.add_argument("--case", default="cifar", choices=(*cases.CONV_NETS, "mlp"), help="what to profile")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)
    if options.rounds < 5:
        parser.error("at least 5 rounds")
    if wrong := [t for t in options.only.split(",") if t not in TABLES]:
        parser.error(f"{wrong[0]!r} is not one of {', '.join(TABLES)}")
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    try:
        if options.profile:
            profiled(cases.mlp(4) if options.case == "mlp" else bench.case(options.case))
            return
        for table in options.only.split(","):
            for row in getattr(bench, table)():
                print(json.dumps(row) if options.json else line(row), flush=True)
    finally:
        cases.tidy()


if __name__ == "__main__":
    main()
