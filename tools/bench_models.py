"""What can be done to networks that were not made for dagrow: one line for each of the twelve in tests/models.

Columns: parameters; axes found and how many units they have; what is fixed, by what; axes that could be widened and pruned, each
by one unit and by a quarter, with all that has to hold of it checked; whether the import gives the model's outputs to the bit;
and two decisions of a Grower on a real task, with what was predicted and what real forwards found.

    python tools/bench_models.py [--json] [--rows 256] [--no-growth] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from models import MODELS, NAMES
from models.proofs import Tally, resized
from models.tasks import task

import dagrow
from dagrow.compiler import compile_architecture
from dagrow.graph.reasons import reasons

EDITS = ("widen", "deepen", "connect")


def row(name: str, rows: int, growth: bool) -> dict:
    torch.manual_seed(0)
    model, tally = MODELS[name].build(), Tally()
    began = time.perf_counter()
    made = dagrow.from_torch(model, MODELS[name].example(2))
    seconds, x = time.perf_counter() - began, MODELS[name].example(7)
    with torch.no_grad():
        exact = torch.equal(compile_architecture(made.arch, made.weights).eval()(x), model.eval()(x))
    resized(made.arch, tally)
    fixed = Counter(f.kind for f in reasons(made.arch).fixed)
    why = Counter(f.why for f in reasons(made.arch).fixed if f.kind not in ("input", "output", "kernel"))
    found = {
        "model": name, "params": made.arch.size, "macs": made.arch.macs, "nodes": len(made.arch.nodes), "import_s": round(seconds, 2), "exact": exact,
        "axes": tally.axes, "units": tally.units, "fixed": dict(fixed), "why": dict(why), "opaque": {k: list(v) for k, v in made.arch.derived.opaque.items()},
        "widened": tally.widened, "zeros_keep": tally.kept, "pruned": tally.pruned, "refused": tally.refused,
    }  # fmt: skip
    return {**found, **(grown(name, model, rows) if growth else {})}


def grown(name: str, model: torch.nn.Module, rows: int) -> dict:
    """Two decisions, an epoch of training before each."""
    x, y, loss_fn = task(name, MODELS[name].example(1), rows=rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    grower = dagrow.Grower(model, optimizer, MODELS[name].example(2), edits=EDITS)
    steps, began = [], time.perf_counter()
    for _ in range(2):
        model.train()
        for part in torch.arange(len(x)).split(32):
            optimizer.zero_grad()
            loss_fn(model(x[part]), y[part]).backward()
            optimizer.step()
        began_one = time.perf_counter()
        d = grower.grow((x, y), loss_fn)
        steps.append({
            "edit": d.edit, "where": d.where, "units": d.units, "predicted": d.predicted, "stderr": d.stderr, "checked": d.checked, "held": d.held,
            "params": d.params, "status": d.status, "seconds": round(time.perf_counter() - began_one, 2),
        })  # fmt: skip
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {"grown": steps, "optimizer_holds_all": known == {id(p) for p in model.parameters()}, "growth_s": round(time.perf_counter() - began, 1)}


def line(r: dict) -> str:
    fixed = ", ".join(f"{n} {kind}" for kind, n in sorted(r["fixed"].items()))
    text = f"| {r['model']} | {r['params']:,} | {r['axes']} ({r['units']}) | {fixed} | {r['widened']} | {r['pruned']} | {'yes' if r['exact'] else 'NO'} |"
    for s in r.get("grown", ()):
        text += f" {s['edit']} {s['where']} {s['predicted']:.3f}/{s['checked']:.3f} ({s['seconds']} s) |"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; left out: all")
    parser.add_argument("--json", action="store_true", help="one object per line")
    parser.add_argument("--rows", type=int, default=256, help="rows of the task that growth sees")
    parser.add_argument("--no-growth", action="store_true", help="leave out the two decisions")
    args = parser.parse_args()
    strange = [n for n in args.names if n not in NAMES]
    if strange:
        parser.error(f"no such network: {strange[0]} (there are {', '.join(NAMES)})")
    if not args.json:
        print("| model | params | axes (units) | fixed | widened | pruned | import exact | first edit, predicted/checked nats | second |\n|---|---|---|---|---|---|---|---|---|")
    for name in args.names or NAMES:
        found = row(name, args.rows, not args.no_growth)
        print(json.dumps(found) if args.json else line(found), flush=True)


if __name__ == "__main__":
    main()
