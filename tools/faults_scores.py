"""Numbers that no score should trip over: NaN and infinity anywhere in the evidence (N1), degenerate rows and scales (N2).

Each case measures a small random network, spoils something, and proposes edits. It fails if anything is raised, if a number of a
candidate is not finite, or if a candidate whose proposal is not finite may be made.

    python tools/faults_scores.py --cases 500        both kinds, half each; --json prints one object per line
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import traceback
import warnings
from collections import Counter

import torch

from dagrow import losses
from dagrow.compiler import initialise
from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture, Node
from dagrow.measure import Evidence, measure
from dagrow.propose import Limits, propose
from dagrow.rng import stream
from dagrow.scores import REGISTRY as SCORERS

of = Node.of
NETWORKS = {
    "mlp": {
        "x": of("input", shape=(6,)), "h": of("linear", "x", width=5), "a": of("relu", "h"), "k": of("linear", "a", width=4, bias=False),
        "n": of("batchnorm", "k"), "b": of("gelu", "n"), "y": of("linear", "b", width=3),
    },
    "residual": {
        "x": of("input", shape=(5,)), "s": of("linear", "x", width=4), "a": of("tanh", "s"), "m": of("linear", "a", width=3), "b": of("relu", "m"),
        "w": of("linear", "b", width=4), "t": of("add", "s", "w"), "c": of("relu", "t"), "y": of("linear", "c", width=3),
    },
    "conv": {
        "x": of("input", shape=(2, 6, 6)), "c": of("conv2d", "x", channels=3, kernel=3), "n": of("batchnorm", "c"), "a": of("relu", "n"),
        "p": of("max_pool", "a", kernel=2), "d": of("conv2d", "p", channels=4, kernel=3), "b": of("silu", "d"), "g": of("global_avg_pool", "b"),
        "y": of("linear", "g", width=3),
    },
}  # fmt: skip
SPOILED = ("x", "y", "weights", "values", "v", "probe", "held v", "held probe")
SHAPES = (
    "constant", "rank one", "equal rows", "tiny", "huge", "scales apart", "one huge row", "one row", "two rows", "fewer rows than columns", "bf16",
    "zero weights", "dead units", "one class",
)  # fmt: skip


def pick(options, generator: torch.Generator):
    return list(options)[int(torch.randint(len(options), (), generator=generator))]


def case(number: int, kind: str, seed: int) -> tuple[str, Counter]:
    """(what was done, how the candidates came out). Raises what scoring raises, and AssertionError where it lies."""
    draw = stream(seed, kind, number)
    name, task, scorer = (pick(o, draw) for o in (NETWORKS, ("cross_entropy", "mse"), ("natural", "tiny", "random")))
    what = pick(SPOILED if kind == "n1" else SHAPES, draw)
    arch, loss = Architecture(NETWORKS[name]), losses.get(task)
    weights = initialise(arch, (seed, number))
    rows = {"one row": 1, "two rows": 2, "fewer rows than columns": 4}.get(what, 40) if kind == "n2" else 40
    folds = [fold(arch, task, rows, draw) for _ in range(2)]
    if kind == "n2":
        weights, folds = degenerate(what, weights, folds, draw)
    elif what in ("x", "y", "weights"):
        weights, folds = dict(weights), folds
        tensors = {"x": [f.x for f in folds], "y": [f.y for f in folds], "weights": list(weights.values())}[what]
        spoil(pick([t for t in tensors if t.is_floating_point()] or [folds[0].x], draw), draw)
    evidence = measure(arch, weights, *folds, loss, rows=100, seed=seed, path=(number,))
    if kind == "n1" and what in ("values", "v", "probe", "held v", "held probe"):
        group = getattr(evidence.held if what.startswith("held") else evidence.train, what.removeprefix("held "))
        spoil(group[pick(list(arch.nodes) if what == "values" else list(group), draw)], draw)
    return f"{kind} {name} {task} {scorer}: {what}", judged(evidence, scorer, number)


def fold(arch: Architecture, task: str, rows: int, draw: torch.Generator) -> Fold:
    x = torch.randn(rows, *arch.shapes["x"], generator=draw)
    return Fold(x, torch.randint(3, (rows,), generator=draw) if task == "cross_entropy" else torch.randn(rows, 3, generator=draw))


def spoil(tensor: torch.Tensor, draw: torch.Generator) -> None:
    """NaN or an infinity at one place, or everywhere."""
    value = pick((math.nan, math.inf, -math.inf), draw)
    if pick((True, False), draw):
        tensor.fill_(value)
    elif tensor.numel():
        tensor.view(-1)[int(torch.randint(tensor.numel(), (), generator=draw))] = value


def degenerate(what: str, weights: dict, folds: list[Fold], draw: torch.Generator) -> tuple[dict, list[Fold]]:
    def changed(x: torch.Tensor) -> torch.Tensor:
        power = 10.0 ** float(torch.randint(20, 39, (), generator=draw))
        return {
            "constant": lambda: torch.full_like(x, 3.0), "rank one": lambda: x[:, :1].expand_as(x).clone(), "equal rows": lambda: x[:1].expand_as(x).clone(),
            "tiny": lambda: x / power, "huge": lambda: x * power, "one huge row": lambda: torch.cat([x[:1] * power, x[1:]]),
            "scales apart": lambda: torch.cat([x[:, :1] * 1e15, x[:, 1:]], 1),
        }.get(what, lambda: x)()

    folds = [Fold(changed(f.x), f.y) for f in folds]
    if what == "zero weights":
        weights = {n: w * 0 if not n.endswith("var") else w for n, w in weights.items()}
    if what == "dead units":
        weights = {n: w - 1e3 if n.endswith("bias") else w for n, w in weights.items()}
    if what == "one class" and not folds[0].y.is_floating_point():
        folds = [Fold(f.x, torch.zeros_like(f.y)) for f in folds]
    if what == "bf16":
        folds = [Fold(f.x.bfloat16(), f.y.bfloat16() if f.y.is_floating_point() else f.y) for f in folds]
        weights = {n: w.bfloat16() if w.is_floating_point() else w for n, w in weights.items()}
    return weights, folds


def judged(evidence: Evidence, scorer: str, number: int) -> Counter:
    edits = [(EDITS.get(n), EDITS.get(n).Options()) for n in ("widen", "deepen", "connect", "prune", "remove")]
    rule = SCORERS.get(scorer)
    found = propose(evidence, edits, rule(rule.Options()), Limits(), alpha=0.05, key=(number,))
    verdicts: Counter = Counter()
    for s in found:
        c = s.candidate
        assert all(math.isfinite(n) for n in (c.gain, c.stderr, c.z)), (c.key, c.gain, c.stderr, c.z)
        if c.verdict in ("grow", "shrink"):
            blocks = [*(b.values for b in s.part.proposal.blocks), *s.part.proposal.shift.values()]
            assert all(bool(torch.isfinite(b).all()) for b in blocks), (c.key, "is not finite and may be made")
        verdicts[c.verdict] += 1
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failed, verdicts = 0, Counter()
    for number in range(given.cases):
        kind, what = ("n1", "n2")[number % 2], "?"
        try:
            what, found = case(number, kind, given.seed)
            verdicts.update(found)
        except Exception as error:
            failed += 1
            print(f"case {number} {kind}: {type(error).__name__}: {error}", file=sys.stderr)
            if failed <= 3:
                traceback.print_exc()
        if given.json:
            print(json.dumps({"case": number, "what": what}), flush=True)
    print(json.dumps({"cases": given.cases, "failed": failed, "verdicts": dict(verdicts)}) if given.json else f"{given.cases} cases, {failed} failed; candidates {dict(verdicts)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
