"""Predicted gains against checked ones, and how far each stands out from noise, as a picture. matplotlib is needed for nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dagrow.errors import DagrowError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dagrow.scoring import Row, Scores

FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
RANKED = 12
# Told apart by the colour-blind too (Okabe and Ito 2008), and by their markers in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
MARKERS = "osD^vPX"
GREY = "#777777"
STYLE = {"svg.hashsalt": "dagrow", "text.usetex": False, "font.family": "sans-serif", "font.size": 9.0}


def ready(path: str | os.PathLike) -> None:
    """Raises UsageError for an ending that is none of FORMATS, DagrowError where matplotlib is missing."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: no such kind of picture", fix=f"end its name in {', '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise DagrowError("drawing needs matplotlib, which is not installed", fix='pip install "dagrow[plots]"')


def draw(scores: Scores, path: str | os.PathLike, form: str) -> None:
    """Writes the figure as `form` (a value of FORMATS): the same bytes for the same scores and versions."""
    import matplotlib

    # The date is left out.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context(STYLE):
        figure(scores).savefig(path, format=form, dpi=150, metadata=metadata)


def figure(scores: Scores) -> Figure:
    """Left: checked gain over predicted gain of the candidates that were tried, with both standard errors. Right: z of the best
    candidates, with the bar to clear; their numbers name them on the left. Full markers stand out from noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10.5, 4.6), layout="constrained")
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2, width_ratios=(1.15, 1))
    looks = {edit: (COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]) for k, edit in enumerate(sorted({r.edit for r in scores}))}
    ranked = [r for r in scores if r.valued and r.verdict != "shrink"][:RANKED]
    _truth(left, [r for r in scores if r.checked is not None], ranked, looks)
    _signal(right, ranked, looks, scores.bar)
    return drawn


def _face(row: Row, colour: str) -> str:
    return colour if row.verdict == "grow" else "white"


def _truth(ax: Axes, rows: Sequence[Row], ranked: Sequence[Row], looks: dict[str, tuple[str, str]]) -> None:
    ax.set(xlabel="predicted gain, nats per sample", ylabel="checked by real forwards, nats per sample", title="Does the prediction hold?")
    ax.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--", label="checked = predicted")
    named = set()
    for r in rows:
        colour, marker = looks[r.edit]
        ax.errorbar(
            r.gain, r.checked, xerr=r.stderr, yerr=r.checked_stderr, fmt=marker, color=colour, markerfacecolor=_face(r, colour), capsize=2,
            elinewidth=1, markersize=6, label=r.edit if r.edit not in named else None,
        )  # fmt: skip
        named.add(r.edit)
        if r in ranked:
            ax.annotate(str(ranked.index(r) + 1), (r.gain, r.checked), (5, 4), textcoords="offset points", fontsize=8)
    if not rows:
        ax.text(0.5, 0.5, "no candidate was tried", transform=ax.transAxes, ha="center", color=GREY)
    ax.margins(0.12)
    ax.legend(frameon=False, loc="upper left")


def _signal(ax: Axes, ranked: Sequence[Row], looks: dict[str, tuple[str, str]], bar: float) -> None:
    ax.set(xlabel="z on held-out rows", title="Does it stand out from noise?")
    for place, r in enumerate(ranked):
        colour, marker = looks[r.edit]
        ax.plot([0, r.z], [place, place], color=colour, linewidth=1.5)
        ax.plot(r.z, place, marker, color=colour, markerfacecolor=_face(r, colour), markersize=6)
    ax.axvline(bar, color=GREY, linewidth=1, linestyle="--", label=f"bar: z = {bar:.2f}")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(ranked)), [f"{_name(r)}  {k}" for k, r in enumerate(ranked, start=1)], parse_math=False)
    ax.set_ylim(max(len(ranked), 1) - 0.4, -0.6)  # the best on top
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, loc="lower right")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _name(row: Row, most: int = 38) -> str:
    name = row.edit + " " + row.where + ("" if row.units is None else f" +{row.units}")
    return name if len(name) <= most else f"{name[: most - 15]}…{name[-14:]}"


__all__ = ["FORMATS", "draw", "figure", "ready"]
