"""Axes as text, as plain values and as Mermaid: where each lives, what comes and goes with it and why, what is fixed and by what."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dagrow.edits.steady import grown
from dagrow.graph import Architecture, Axis, Refusal
from dagrow.graph.reasons import Fixed, Tie, reasons
from dagrow.report.drawing import mermaid
from dagrow.report.tables import printable

PALETTE = ("#cfe2ff", "#d1e7dd", "#fff3cd", "#f8d7da", "#e2d9f3", "#ffe5d0", "#d2f4ea", "#fde2f3", "#e9ecef", "#dbe4c9")

WIDTH, TOGETHER = 140, "\u00a0"  # a no-break space, where lines are not to be broken
TOLD = {
    "input": "by the network's input", "output": "by its output", "no rule": "by ops without a rule", "opaque": "in modules kept as they are",
    "kernel": "of kernels",
}  # fmt: skip


@dataclass(frozen=True)
class Living:
    """One dimension of a parameter or buffer of `node` that holds units of an axis: at indices `first` to `last`, `times` for each unit."""

    node: str
    param: str
    axis: int
    first: int
    last: int
    size: int
    times: int

    def __str__(self) -> str:
        part = "" if (self.first, self.last) == (0, self.size - 1) else f"[{self.first}..{self.last}]"
        return f"{self.param} {self.axis}{part}{f' ({self.times} for each)' if self.times > 1 else ''}"


@dataclass(frozen=True)
class Described:
    """An axis as it is told. widening: zeros, settled, changes or refused; `because` says more."""

    axis: Axis
    lives: tuple[Living, ...]
    ties: tuple[Tie, ...]
    widening: str
    because: str

    def row(self) -> dict[str, Any]:
        a = self.axis
        return {
            "axis": a.id, "size": a.size, "slots": [asdict(x) for x in self.lives], "writes": _nodes(a.writes), "reads": _nodes(a.reads),
            "follows": _nodes(a.follows), "bilinear": list(a.bilinear), "gates": list(a.gates), "mixes": list(a.mixes),
            "together": [asdict(t) | {"members": list(t.members)} for t in self.ties], "widening": self.widening, "because": self.because,
        }  # fmt: skip

    def lines(self) -> list[str]:
        a = self.axis
        homes: dict[str, list[str]] = {}
        for x in self.lives:
            homes.setdefault(x.node, []).append(str(x).removeprefix(f"{x.node}.").replace(" ", TOGETHER))
        found = [("lives in", [f"{node}: {', '.join(spots)};" for node, spots in homes.items()]), ("written by", _nodes(a.writes)), ("read by", _nodes(a.reads)), ("followed by", _nodes(a.follows))]
        found += [("multiplied at", a.gates), ("contracted at", a.bilinear), ("mixed at", a.mixes)]
        rows = [f"{a.id}  {a.size} unit{'s' if a.size != 1 else ''}"]
        rows += [_wrapped(what, " ".join(names).rstrip(";") if what == "lives in" else ", ".join(names)) for what, names in found if names]
        rows += [_wrapped("one axis:" if not k else "", tie.why) for k, tie in enumerate(self.ties)]
        return [*rows, _wrapped("widening", self.because)]


def _wrapped(what: str, text: str) -> str:
    filled = textwrap.fill(f"  {what:<13} {text}", WIDTH, subsequent_indent=" " * 16, break_long_words=False, break_on_hyphens=False)
    return filled.replace(TOGETHER, " ")


def _nodes(uses: Iterable) -> list[str]:
    return list(dict.fromkeys(u.node for u in uses))


def described(arch: Architecture, name: str) -> Described:
    """All there is to say of one axis."""
    axis, lives = arch.axes[name], []
    for slot in axis.slots:
        units = np.array(arch.derived.units(name, slot.param, slot.axis))
        there = np.flatnonzero(units >= 0)
        lives.append(Living(arch.derived.owners[slot.param][0], slot.param, slot.axis, int(there[0]), int(there[-1]), len(units), len(there) // axis.size))
    return Described(axis, tuple(lives), reasons(arch).ties[name], *_widening(arch, axis))


def _widening(arch: Architecture, axis: Axis) -> tuple[str, str]:
    made = grown(arch, axis.id, 1)
    if isinstance(made, Refusal):
        return "refused", f"not possible: {made.reason}"
    if made.zero is not None:
        where = ", ".join(f"{param} {k}" for param, k in made.zero)
        return "zeros", f"keeps the function with zeros in {where}" if where else "keeps the function whatever the new units are"
    if made.settle is not None:
        return "settled", f"keeps the function at weights that are worked out (mixed at {', '.join(axis.mixes)})"
    return "changes", f"changes the function{' (mixed at ' + ', '.join(axis.mixes) + ')' if axis.mixes else ''}: a trial says whether it pays"


def axes_rows(arch: Architecture, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One object for each axis named; with None for each there is, and for each dimension that is fixed."""
    fixed = [{"frozen": f.param, **{k: v for k, v in asdict(f).items() if k != "param"}} for f in reasons(arch).fixed]
    return [described(arch, name).row() for name in names or arch.axes] + (fixed if names is None else [])


def axes_text(arch: Architecture, names: Sequence[str] | None = None) -> str:
    """The axes named, a paragraph each; with None all of them, and what is fixed."""
    rows: list[str] = []
    for name in names or arch.axes:
        rows += [*described(arch, name).lines(), ""]
    if names is None:
        rows += ["fixed"] + [textwrap.fill(f"  {line}", WIDTH, subsequent_indent="    ", break_long_words=False) for line in fixed_lines(reasons(arch).fixed)]
    return "\n".join(printable(line) for row in rows for line in row.split("\n")).rstrip()


def fixed_lines(fixed: Sequence[Fixed]) -> list[str]:
    """What is fixed, by reason; kernels on one line."""
    groups: dict[str, list[str]] = {}
    for f in fixed:
        some = "" if f.count == f.size else f" ({f.count} of {f.size})"
        groups.setdefault("kernels" if f.kind == "kernel" else f.why, []).append(f"{f.param} {f.axis}{some}")
    ordered = sorted(groups.items(), key=lambda row: row[0] == "kernels")
    return [f"{why}: {', '.join(spots)}" for why, spots in ordered] or ["nothing"]


def fixed_counts(arch: Architecture) -> dict[str, int]:
    """kind -> how many dimensions of parameters and buffers are fixed, whole or in part."""
    found: dict[str, int] = {}
    for f in reasons(arch).fixed:
        found[f.kind] = found.get(f.kind, 0) + 1
    return found


def fixed_summary(arch: Architecture) -> str:
    """How many are fixed by what, in one line."""
    counts = fixed_counts(arch)
    told = {kind: counts.pop(kind, 0) for kind in TOLD}
    parts = [f"{n} {TOLD[kind]}" for kind, n in told.items() if n] + ([f"{sum(counts.values())} otherwise"] if counts else [])
    return ", ".join(parts) or "none"


def axes_mermaid(arch: Architecture) -> str:
    """The graph with the axes of each node's output in its label, and a colour for the first of them."""
    names, notes, fills = list(arch.axes), {}, {}
    for node in arch.order:
        told = [_dimension(arch, node, d, names) for d in range(1, len(arch.shapes[node]) + 1)]
        live = [a for _, found in told for a in found]
        if live:
            notes[node] = " × ".join(text for text, _ in told)
            fills[node] = PALETTE[live[0] % len(PALETTE)]
    return mermaid(arch, notes, fills)


def _dimension(arch: Architecture, node: str, d: int, names: list[str]) -> tuple[str, list[int]]:
    """(the axes that lie on a dimension of the node's output, one after another; their numbers)"""
    table = arch.derived.outputs.get((node, d))
    if table is None:
        return str(arch.shapes[node][d - 1]), []
    return " + ".join("·".join(names[a] for a in key) or str(count) for key, count in table.groups), [a for key, _ in table.groups for a in key]
