"""An architecture as a graph: Mermaid text, or a self-contained SVG for notebooks and pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from dagrow.graph import Architecture
from dagrow.report.tables import Row, printable, rows

# Larger networks are shown as a table only: a picture of them tells nothing.
MOST_DRAWN = 150
NOTHING: Mapping[str, str] = MappingProxyType({})
BOX, HIGH, GAP_X, GAP_Y, EDGE = 172, 46, 34, 26, 12


def mermaid(arch: Architecture, notes: Mapping[str, str] = NOTHING, fills: Mapping[str, str] = NOTHING) -> str:
    """A Mermaid flowchart. Labels hold no character that Mermaid could read as syntax or HTML.

    notes: node -> a further line of its label; fills: node -> its colour, #rrggbb.
    """
    lines = ["flowchart TD"]
    ids = {name: f"n{k}" for k, name in enumerate(arch.order)}
    for row in rows(arch):
        label = "<br/>".join(_mermaid_text(part) for part in (*_label(row), *filter(None, [notes.get(row.name)])))
        ends = ('(["', '"])') if row.name in arch.inputs or row.name in arch.outputs else ('["', '"]')
        lines.append(f"    {ids[row.name]}{ends[0]}{label}{ends[1]}")
    for name in arch.order:
        lines += [f"    {ids[i]} --> {ids[name]}" for i in arch.nodes[name].inputs]
    lines += [f"    style {ids[name]} fill:{colour}" for name, colour in fills.items()]
    return "\n".join(lines) + "\n"


def html(arch: Architecture, title: str | None = None) -> str:
    """A self-contained HTML fragment, without scripts: an SVG of the graph and a table of its nodes."""
    found = rows(arch)
    head = f"<b>{_text(title)}</b> · " if title else ""
    summary = f"<p>{head}{len(found)} nodes · {arch.size:,} parameters · {arch.macs:,} MACs per sample</p>"
    table = _table(found)
    if len(found) > MOST_DRAWN:
        return f"<div>{summary}{table}</div>"
    return f"<div>{summary}{_svg(arch, found)}<details><summary>table</summary>{table}</details></div>"


def _label(row: Row) -> tuple[str, str, str]:
    return row.name, row.op, " × ".join(map(str, row.shape)) + (f" · {row.params:,} params" if row.params else "")


def _mermaid_text(value: str) -> str:
    kept = set(" _.,=×·-")
    return "".join(c if c.isalnum() and c.isascii() or c in kept else f"#{ord(c)};" for c in printable(value))


def _text(value: object) -> str:
    return escape(printable(value), quote=True)


def _short(value: str, most: int = 27) -> str:
    return value if len(value) <= most else value[: most - 1] + "…"


def _table(found: list[Row]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("node", "op", "inputs", "shape", "params", "MACs"))
    body = "".join(
        "<tr>" + "".join(
            f"<td>{_text(cell)}</td>"
            for cell in (row.name, row.op, ", ".join(row.inputs), list(row.shape), f"{row.params:,}", f"{row.macs:,}")
        ) + "</tr>"
        for row in found
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _layers(arch: Architecture) -> dict[str, tuple[int, int]]:
    """node -> (longest path from an input, place among the nodes of that depth)."""
    depth: dict[str, int] = {}
    filled: dict[int, int] = {}
    place = {}
    for name in arch.order:
        depth[name] = max((depth[i] + 1 for i in arch.nodes[name].inputs), default=0)
        place[name] = (depth[name], filled.setdefault(depth[name], 0))
        filled[depth[name]] += 1
    return place


def _svg(arch: Architecture, found: list[Row]) -> str:
    place = _layers(arch)
    long = any(place[name][0] - place[i][0] > 1 for name in arch.order for i in arch.nodes[name].inputs)
    margin = 60 if long else 8  # edges that pass by other nodes bend out to the left
    corner = {n: (margin + k * (BOX + GAP_X), 8 + d * (HIGH + GAP_Y)) for n, (d, k) in place.items()}
    width = max(x for x, _ in corner.values()) + BOX + 8
    height = max(y for _, y in corner.values()) + HIGH + 8
    parts = []
    for name in arch.order:
        x2, y2 = corner[name][0] + BOX / 2, corner[name][1]
        for k, i in enumerate(arch.nodes[name].inputs):
            x1, y1 = corner[i][0] + BOX / 2, corner[i][1] + HIGH
            span = place[name][0] - place[i][0]
            if span == 1:
                path = f"M{x1:g},{y1:g} C{x1:g},{y1 + EDGE} {x2:g},{y2 - EDGE} {x2:g},{y2:g}"
            else:
                side = min(corner[i][0], corner[name][0]) - min(50, 14 + 8 * span)
                path = f"M{x1:g},{y1:g} C{side:g},{y1 + EDGE} {side:g},{y2 - EDGE} {x2 + 6 * (k - 1):g},{y2:g}"
            parts.append(f'<path d="{path}" fill="none" stroke="#888" stroke-width="1.2" marker-end="url(#dagrow-arrow)"/>')
    for row in found:
        x, y = corner[row.name]
        radius = 16 if row.name in arch.inputs or row.name in arch.outputs else 5
        fill = "#eaf2ff" if row.params else "#f6f6f6"
        name, op, shape = (_text(_short(part)) for part in _label(row))
        middle = x + BOX / 2
        parts.append(
            f'<g><title>{_text(" | ".join(_label(row)))}</title>'
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="{radius}" fill="{fill}" stroke="#567"/>'
            f'<text x="{middle:g}" y="{y + 14}" font-weight="bold">{name}</text>'
            f'<text x="{middle:g}" y="{y + 27}">{op}</text><text x="{middle:g}" y="{y + 40}" fill="#555">{shape}</text></g>'
        )
    arrow = (
        '<defs><marker id="dagrow-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#888"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="11" text-anchor="middle">{arrow}{"".join(parts)}</svg>'
    )
