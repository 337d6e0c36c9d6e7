"""An architecture as an aligned table, safe to print on a terminal."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from dagrow.compiler import owner_of
from dagrow.graph import Architecture


@dataclass(frozen=True)
class Row:
    """What is said of a node. `op` includes its attributes; counts are of the node alone."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    params: int
    macs: int


def rows(arch: Architecture) -> list[Row]:
    """One row per node, in topological order."""
    counts = dict.fromkeys(arch.nodes, 0)
    for slot, shape in arch.params.items():
        counts[owner_of(arch, slot)] += math.prod(shape)
    macs = arch.derived.macs
    return [
        Row(name, described(arch, name), arch.nodes[name].inputs, tuple(arch.shapes[name]), counts[name], macs.get(name, 0))
        for name in arch.order
    ]


def described(arch: Architecture, name: str) -> str:
    """"conv2d channels=8 kernel=5": the op and the attributes that are not its defaults."""
    node = arch.nodes[name]
    # An input's only attribute is its shape, which has a column of its own.
    attrs = {} if node.op == "input" else node.attrs.model_dump(mode="json", exclude_defaults=True)
    return " ".join([node.op, *(f"{key}={value}" for key, value in attrs.items())])


def text(arch: Architecture, title: str | None = None) -> str:
    """A table of the nodes (op, inputs, shape without the batch, parameters, multiply-accumulates per sample) and the totals."""
    table = [("node", "op", "inputs", "shape", "params", "MACs")]
    for row in rows(arch):
        table.append((row.name, row.op, ", ".join(row.inputs), f"[{', '.join(map(str, row.shape))}]", f"{row.params:,}", f"{row.macs:,}"))
    table.append((f"{len(arch.nodes)} nodes", "", "", f"-> {', '.join(arch.outputs)}", f"{arch.size:,}", f"{arch.macs:,}"))
    table = [tuple(printable(cell) for cell in row) for row in table]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    lines = [_line(row, widths) for row in table]
    rule = "-" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    return "\n".join([printable(title)] + lines if title else lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [cell.rjust(width) if k >= 4 else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()


def printable(value: object) -> str:
    """The text with control, bidirectional and other invisible characters written as escapes: it cannot steer a terminal."""
    return "".join(c if c.isprintable() and unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in str(value))
