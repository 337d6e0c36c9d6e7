#!/usr/bin/env python3
"""Random edits by the thousand: sequences of them on random networks (N7, N9), and index lists that cannot be meant (N8).

    python tools/faults_edits.py --sequences 20 --steps 100 --lists 500 [--jobs 2] [--first 0] [--json]

A sequence starts from a network of blocks (residual, dense, gated, depthwise, grouped, attention, tied, several inputs and
outputs) and makes `steps` edits: resizes of any axis, and every registered edit. Every other one makes only what claims to
keep the function, and fails where all of it together moves the outputs by more than 1e-12 in double or 1e-5 in single precision,
relative to the largest. Each step is checked: the cost said before is exact, declared shapes are real, weights and optimizer
state have the shapes; at the end TorchScript computes the same, MACs are those that torch counts, and every parameter trains
that has a gradient. Lists: out of range, repeated, empty, newborns alone, no whole numbers, too long; what is refused must say why.

Exit code 1 if anything failed; each failure is a line with the seed that shows it again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from edit_sequences import TOTAL_DOUBLE, TOTAL_SINGLE, sequence
from random_networks import block_network

from dagrow.graph import Refusal, resize


def one(job: tuple[int, int]) -> dict:
    """A sequence by its seed; even ones keep the function."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seed, steps = job
    keeping, begin = seed % 2 == 0, time.perf_counter()
    row = {"kind": "sequence", "seed": seed, "keeping": keeping}
    try:
        report = sequence(block_network(seed), seed, steps, keeping)
    except Exception as error:  # noqa: BLE001  anything that goes wrong is what is looked for
        place = next((line.strip() for line in reversed(traceback.format_exc().splitlines()) if 'File "' in line), "")
        return {**row, "failed": f"{type(error).__name__}: {str(error)[:400]} ({place})"}
    row |= {"made": dict(report.made), "refused": dict(report.refused), "drift": report.drift, "drift_single": report.drift_single}
    row |= {"nodes": len(report.arch.nodes), "params": report.arch.size, "seconds": time.perf_counter() - begin}
    if report.drift > TOTAL_DOUBLE or report.drift_single > TOTAL_SINGLE:
        row["failed"] = f"the outputs moved by {report.drift:.2g} (double), {report.drift_single:.2g} (single)"
    return row


def odd_list(draw: random.Random, size: int) -> tuple[list, bool]:
    """An index list, and whether it may be made: the structure of the axes may still stand against it."""
    kind = draw.choice(["beyond", "below", "empty", "newborns", "float", "bool", "text", "none", "long", "repeated", "fine"])
    index = [draw.randint(-1, size - 1) for _ in range(draw.randint(1, size + 2))]
    spoilt = {
        "beyond": size + draw.choice([0, 1, 2**31, 2**63, 2**80]), "below": -draw.choice([2, 3, 2**31, 2**64]), "float": 0.0, "bool": True, "text": "0",
        "none": None,
    }
    if kind in spoilt:
        index[draw.randrange(len(index))] = spoilt[kind]
        return index, False
    if kind == "empty":
        return [], False
    if kind == "newborns":
        return [-1] * draw.randint(1, 5), False
    if kind == "long":
        return [0] * (2**20 + 1), False
    if kind == "repeated":
        index = [draw.randrange(size)] * draw.randint(2, 4)
    return index, any(i >= 0 for i in index)


def lists(count: int, first: int) -> dict:
    refused, wrong = Counter(), []
    for case in range(first, first + count):
        arch = block_network(case % 97)
        draw = random.Random(case)
        axis = draw.choice(sorted(arch.axes))
        index, may = odd_list(draw, arch.axes[axis].size)
        try:
            made = resize(arch, {axis: index})
        except Exception as error:  # noqa: BLE001
            wrong.append(f"{case}: {type(error).__name__} {str(error)[:200]}")
            continue
        if isinstance(made, Refusal):
            refused["structure" if may else "list"] += 1
            if not made.reason:
                wrong.append(f"{case}: refused without a reason")
        elif not may:
            wrong.append(f"{case}: {axis} {index[:8]} was made")
        else:
            refused["made"] += 1
    return {"kind": "lists", "cases": count, **refused, **({"failed": wrong[:20]} if wrong else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lists", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    failed, made, worst = 0, Counter(), [0.0, 0.0]

    def say(row: dict) -> None:
        nonlocal failed
        failed += "failed" in row
        if options.json or "failed" in row:
            print(json.dumps(row), flush=True)

    jobs = [(seed, options.steps) for seed in range(options.first, options.first + options.sequences)]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for row in pool.imap_unordered(one, jobs):
            say(row)
            made.update(row.get("made", {}))
            if row["keeping"]:
                worst = [max(worst[0], row.get("drift", 0.0)), max(worst[1], row.get("drift_single", 0.0))]
    if options.lists:
        row = lists(options.lists, options.first)
        say(row)
        if not options.json:
            print(f"lists: {row}")
    if not options.json:
        print(f"{len(jobs)} sequences, {sum(made.values())} edits: {dict(sorted(made.items()))}")
        print(f"largest drift of a sequence that keeps the function: {worst[0]:.2g} in double, {worst[1]:.2g} in single precision")
        print(f"{failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
