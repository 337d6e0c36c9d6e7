"""A run's course: loss and size per step, as a line of text or a small inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDE, TALL, PAD = 300, 90, 16
LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float]) -> str:
    """One character per value, from the least to the greatest; × where a value is not finite."""
    values = [float(v) for v in values]
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = (high - low) or 1.0
    return "".join(LEVELS[min(7, int((v - low) / span * 8))] if math.isfinite(v) else "×" for v in values)


def history_html(events: Iterable[object], curves: Sequence[str] = ("val_loss", "train_loss", "params")) -> str:
    """An HTML fragment: for each name in `curves` that the events' payloads hold, its values in order as an SVG line.

    An event is anything with a mapping `payload`, or the mapping itself; values that are no numbers are passed over,
    those not finite leave a gap.
    """
    payloads = [e if isinstance(e, Mapping) else getattr(e, "payload", {}) for e in events]
    drawn = []
    for name in curves:
        values = [float(p[name]) for p in payloads if isinstance(p.get(name), int | float) and not isinstance(p.get(name), bool)]
        if values:
            drawn.append(_curve(name, values))
    return f"<div>{''.join(drawn)}</div>" if drawn else "<div>nothing recorded yet</div>"


def _curve(name: str, values: list[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = (high - low) or 1.0
    step = (WIDE - 2 * PAD) / max(1, len(values) - 1)
    path, dots, pen = [], [], "M"
    for k, v in enumerate(values):
        if math.isfinite(v):
            x, y = PAD + k * step, TALL - PAD - (v - low) / span * (TALL - 2 * PAD)
            path.append(f"{pen}{x:.1f},{y:.1f}")
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="#2a6fb0"/>')
            pen = "L"
        else:
            pen = "M"
    last = f"{values[-1]:,.4g}" if name != "params" else f"{values[-1]:,.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{TALL}" viewBox="0 0 {WIDE} {TALL}" role="img" '
        f'font-family="sans-serif" font-size="10"><text x="{PAD}" y="11">{escape(name)}: {last} '
        f"(from {low:,.4g} to {high:,.4g})</text>"
        f'<path d="{" ".join(path)}" fill="none" stroke="#2a6fb0" stroke-width="1.5"/>{"".join(dots)}</svg>'
    )
