#!/usr/bin/env python3
"""What the graph costs: a compiled network against the same one written by hand, and one edit of a network of 50 nodes.

    python tools/bench_compile.py [--rounds 7] [--steps 60] [--leak 10000] [--json] [--threads 1]

step: forward + loss + backward of the compiled architecture divided by that of an nn.Module written by hand, with equal
      weights (the outputs are compared first). The two take turns step by step; a round's ratio is that of its two
      medians; the table gives the median ratio and the smallest and largest of the rounds. 1 is the best there can be.
edit: resize + transfer of weights + compilation, in ms, the axes of the old network being known. "new" edits lead to an
      architecture that was never seen (each widens by one unit more); "seen" ones to one that is in the cache. Absolute
      times hold for this machine only.
leak: (asked for) so many networks resized, initialised, compiled and dropped, hardly one like another: what the process grew by
      since the first 100, in MB, and what is left in fx's and Python's caches of source texts. They are not run: of shapes that
      were never seen before, torch's own kernels (oneDNN) keep some 20 MB.

Times are CPU time with one thread (other processes then disturb less), and elapsed time otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import linecache
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dagrow.compiler import compile_architecture, initialise
from dagrow.graph import Architecture, Node, Refusal, resize, transfer

BATCH = 128


# ---- the networks, twice: as nodes, and by hand. The modules stand in the same order, so that weights can be copied.

def mlp() -> Architecture:
    nodes = {"x": Node.of("input", shape=(64,))}
    last = "x"
    for k in range(3):
        nodes[f"h{k}"] = Node.of("linear", last, width=64)
        nodes[f"a{k}"] = Node.of("relu", f"h{k}")
        last = f"a{k}"
    return Architecture({**nodes, "head": Node.of("linear", last, width=10)})


class HandMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.h0, self.h1, self.h2, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(F.relu(self.h2(F.relu(self.h1(F.relu(self.h0(x)))))))


def conv() -> Architecture:
    nodes = {"x": Node.of("input", shape=(1, 8, 8))}
    last = "x"
    for k, channels in enumerate((8, 16)):
        nodes[f"c{k}"] = Node.of("conv2d", last, channels=channels)
        nodes[f"n{k}"] = Node.of("batchnorm", f"c{k}")
        nodes[f"a{k}"] = Node.of("relu", f"n{k}")
        last = f"a{k}"
    return Architecture({**nodes, "pool": Node.of("global_avg_pool", last), "head": Node.of("linear", "pool", width=10)})


class HandConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.c0, self.n0 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c1, self.n1 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.n0(self.c0(x)))
        x = F.relu(self.n1(self.c1(x)))
        return self.head(x.mean((2, 3)))


def residual() -> Architecture:
    nodes = {"x": Node.of("input", shape=(1, 8, 8)), "stem": Node.of("conv2d", "x", channels=8)}
    last = "stem"
    for k in range(2):
        nodes[f"n{k}"] = Node.of("batchnorm", last)
        nodes[f"a{k}"] = Node.of("relu", f"n{k}")
        nodes[f"c{k}"] = Node.of("conv2d", f"a{k}", channels=8)
        nodes[f"s{k}"] = Node.of("add", last, f"c{k}")
        last = f"s{k}"
    return Architecture({**nodes, "pool": Node.of("global_avg_pool", last), "head": Node.of("linear", "pool", width=10)})


class HandResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.n0, self.c0 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.n1, self.c1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.c0(F.relu(self.n0(x)))
        x = x + self.c1(F.relu(self.n1(x)))
        return self.head(x.mean((2, 3)))


def attending() -> Architecture:
    """A transformer block on 16 tokens of 32 features."""
    of = Node.of
    return Architecture({
        "x": of("input", shape=(16, 32)), "n0": of("layernorm", "x"), "q": of("token_linear", "n0", width=32), "k": of("token_linear", "n0", width=32),
        "v": of("token_linear", "n0", width=32), "att": of("attention", "q", "k", "v", heads=4), "o": of("token_linear", "att", width=32),
        "s0": of("add", "x", "o"), "n1": of("layernorm", "s0"), "up": of("token_linear", "n1", width=64), "act": of("gelu", "up"),
        "down": of("token_linear", "act", width=32), "s1": of("add", "s0", "down"), "pool": of("mean", "s1", dims=(1,)),
        "head": of("linear", "pool", width=10),
    })


class HandAttending(nn.Module):
    def __init__(self):
        super().__init__()
        self.n0 = nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.n1, self.up, self.down, self.head = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        y = self.n0(x)
        q, k, v = (p(y).unflatten(2, (4, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        seen = torch.softmax((q * 8**-0.5) @ k.transpose(2, 3), -1) @ v
        x = x + self.o(seen.transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(self.n1(x))))).mean(1))


NETWORKS: dict[str, tuple[Callable[[], Architecture], type[nn.Module]]] = {
    "mlp": (mlp, HandMlp), "conv": (conv, HandConv), "residual": (residual, HandResidual),
    "attention": (attending, HandAttending),
}


def fifty_nodes() -> Architecture:
    """11 residual blocks of 4 nodes, and 6 more."""
    nodes = {"x": Node.of("input", shape=(64,)), "stem": Node.of("linear", "x", width=32)}
    last = "stem"
    for k in range(11):
        nodes[f"up{k}"] = Node.of("linear", last, width=16)
        nodes[f"act{k}"] = Node.of("relu", f"up{k}")
        nodes[f"down{k}"] = Node.of("linear", f"act{k}", width=32)
        nodes[f"sum{k}"] = Node.of("add", last, f"down{k}")
        last = f"sum{k}"
    nodes |= {"norm": Node.of("batchnorm", last), "end": Node.of("relu", "norm"), "neck": Node.of("linear", "end", width=16)}
    return Architecture({**nodes, "head": Node.of("linear", "neck", width=10)})


def transformer() -> Architecture:
    """4 blocks of 12 nodes, and 4 more."""
    of = Node.of
    nodes = {"x": of("input", shape=(8, 12)), "stem": of("token_linear", "x", width=16)}
    last = "stem"
    for b in range(4):
        def put(name, op, *inputs, b=b, **attrs):
            nodes[f"b{b}.{name}"] = of(op, *inputs, **attrs)
            return f"b{b}.{name}"

        norm = put("n0", "layernorm", last)
        q, k, v = (put(n, "token_linear", norm, width=16) for n in "qkv")
        last = put("s0", "add", last, put("o", "token_linear", put("att", "attention", q, k, v, heads=2), width=16))
        inner = put("act", "gelu", put("up", "token_linear", put("n1", "layernorm", last), width=32))
        last = put("s1", "add", last, put("down", "token_linear", inner, width=16))
    nodes |= {"pool": of("mean", last, dims=(1,)), "head": of("linear", "pool", width=10)}
    return Architecture(nodes)


# ---- timing

def training_step(network: nn.Module, x: Tensor, y: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of forward + loss + backward."""
    network.zero_grad(set_to_none=True)
    begin = clock()
    F.cross_entropy(network(x), y).backward()
    return clock() - begin


def compare(name: str, rounds: int, steps: int, clock: Callable[[], float]) -> dict:
    make, by_hand = NETWORKS[name]
    arch, hand = make(), by_hand()
    compiled = compile_architecture(arch, initialise(arch, 0))
    for mine, theirs in zip(hand.parameters(), compiled.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *arch.shapes["x"], generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)
    difference = (compiled(x) - hand(x)).abs().max().item()
    if not difference < 1e-5:
        raise SystemExit(f"{name}: the two networks differ by {difference}")
    ratios, medians = [], ([], [])
    pair = (compiled, hand)
    for number in range(rounds + 1):
        seconds = ([], [])
        for step in range(steps):
            for which in ((0, 1), (1, 0))[step % 2]:
                seconds[which].append(training_step(pair[which], x, y, clock))
        if number:  # the first round warms up
            middle = [statistics.median(s) for s in seconds]
            ratios.append(middle[0] / middle[1])
            for kept, value in zip(medians, middle, strict=True):
                kept.append(1e3 * value)
    return {
        "bench": "step", "network": name, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
        "compiled_ms": statistics.median(medians[0]), "by_hand_ms": statistics.median(medians[1]), "rounds": rounds, "steps": steps,
    }


def one_edit(
    arch: Architecture, weights: dict[str, Tensor], axis: str, new: int, clock: Callable[[], float]
) -> tuple[Architecture, dict, list[float]]:
    """The network with `new` more units on `axis`, its weights, and the seconds of the three parts."""
    keep = (*range(arch.axes[axis].size), *(-1,) * new)
    times = [clock()]
    rewrite = resize(arch, {axis: keep})
    times.append(clock())
    if isinstance(rewrite, Refusal):
        raise SystemExit(f"{axis}: {rewrite.reason}")
    moved = transfer(rewrite, weights, 0.0)
    times.append(clock())
    compile_architecture(rewrite.arch, moved)
    times.append(clock())
    return rewrite.arch, moved, [b - a for a, b in zip(times, times[1:], strict=False)]


def edits(which: str, axis: str, seen: bool, rounds: int, clock: Callable[[], float], make: Callable[[], Architecture] = fifty_nodes) -> dict:
    start = make()
    weights = initialise(start, 0)
    arch, held, parts = start, weights, []
    for number in range(rounds + 1):
        if seen:
            _, _, seconds = one_edit(start, weights, axis, 1, clock)
        else:
            _ = arch.axes
            arch, held, seconds = one_edit(arch, held, axis, 1, clock)
        if number:
            parts.append(seconds)
    totals = [1e3 * sum(p) for p in parts]
    middle = [1e3 * statistics.median(p[k] for p in parts) for k in range(3)]
    return {
        "bench": "edit", "edit": which, "architecture": "seen" if seen else "new", "nodes": len(start.nodes),
        "ms": statistics.median(totals), "lowest": min(totals), "highest": max(totals),
        "resize_ms": middle[0], "transfer_ms": middle[1], "compile_ms": middle[2], "rounds": rounds,
    }


def resident() -> float:
    """MB of the process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def leak(count: int) -> dict:
    from torch.fx import graph_module

    draw = random.Random(0)
    start = [conv(), residual(), fifty_nodes(), attending()]
    grown, begin = {}, 0.0
    for number in range(count):
        arch = start[number % len(start)]
        axis = draw.choice(sorted(arch.axes))
        rewrite = resize(arch, {axis: [draw.randint(-1, arch.axes[axis].size - 1) for _ in range(draw.randint(2, 60))] + [0]})
        arch = arch if isinstance(rewrite, Refusal) else rewrite.arch
        compile_architecture(arch, initialise(arch, number))
        del rewrite, arch
        if number + 1 == min(100, count):
            gc.collect()
            begin = resident()
        if number + 1 in (count // 10, count // 2, count):
            gc.collect()
            grown[number + 1] = resident() - begin
    sources = len(graph_module._loader.eval_cache) + sum("eval_with_key" in str(k) for k in linecache.cache)
    return {"bench": "leak", "compiles": count, "mb": grown[count], "on_the_way": grown, "sources": sources, "begin_mb": begin}


def line(row: dict) -> str:
    if row["bench"] == "leak":
        way = ", ".join(f"{mb:+.1f} MB by {number}" for number, mb in row["on_the_way"].items())
        return f"leak  {row['compiles']} compiles: {row['mb']:+.1f} MB ({way}; {row['begin_mb']:.0f} MB at first), {row['sources']} sources left"
    spread = f"[{row['lowest']:.3f}, {row['highest']:.3f}]"
    if row["bench"] == "step":
        times = f"{row['compiled_ms']:.3f} / {row['by_hand_ms']:.3f} ms"
        return f"step  {row['network']:<10} compiled/by hand {row['ratio']:.3f} {spread}  {times}"
    parts = f"resize {row['resize_ms']:.1f} + transfer {row['transfer_ms']:.1f} + compile {row['compile_ms']:.1f}"
    return f"edit  {row['edit']:<10} {row['architecture']:<4} {row['ms']:.1f} ms {spread}  {parts}, {row['nodes']} nodes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="at least 5 (default 7)")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each network in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--leak", type=int, default=0, metavar="N", help="compile N networks and say what the process grew by; nothing else")
    options = parser.parse_args()
    if options.rounds < 5 or options.steps < 2:
        parser.error("at least 5 rounds of 2 steps")
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    tasks = [lambda n=name: compare(n, options.rounds, options.steps, clock) for name in NETWORKS]
    places = (("one layer", "up5", fifty_nodes), ("stream", "stem", fifty_nodes), ("feed-fwd", "b1.up", transformer), ("head width", "b1.q", transformer))
    for seen in (False, True):
        tasks += [lambda w=w, a=a, m=m, s=seen: edits(w, a, s, options.rounds, clock, m) for w, a, m in places]
    if options.leak:
        tasks = [lambda: leak(options.leak)]
    for task in tasks:
        row = task()
        print(json.dumps(row) if options.json else line(row))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
