"""Scores read in one glance: a sentence that says what to do, the candidates best first, what the numbers rest on."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from dagrow.scoring import Row, Scores

SHOWN = 15
PLAIN = str.maketrans({"±": "+-", "→": "->", "·": "-"})  # what a terminal without UTF-8 gets
EIGHTHS = " ▏▎▍▌▋▊▉█"
NARROWEST, BARS = 12, (4, 16)  # columns of the names at least, of the bars at least and at most
SCREENED = "screened"
HEADINGS = {  # verdict (or that it was screened out) -> what that means, how it looks
    "grow": ("signal, z beyond {bar:.1f} on held-out rows", "bold green"),
    "trial": ("derivatives cannot settle it, a trial can", "yellow"),
    "noise": ("not told from chance on held-out rows", "dim"),
    "shrink": ("what removing would change", "cyan"),
    "too dear": ("over the budget", "yellow"),
    "unsupported": ("it has no score", "dim"),
    SCREENED: ("expected to gain less, so not looked at in full", "dim"),
}


def score_table(scores: Scores, most: int = SHOWN) -> None:
    """At most `most` of the rows on stdout: coloured on a terminal, and as wide as it; 200 columns elsewhere."""
    console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    fancy = "utf" in (sys.stdout.encoding or "").lower().replace("-", "")
    for line in lines(scores, console.width, fancy=fancy, most=most):
        console.print(line)


def lines(scores: Scores, width: int, *, fancy: bool = True, most: int = SHOWN) -> Iterator[Text]:
    """The table, a line at a time and within `width` columns from about 70 on; `fancy`: with more than ASCII."""
    plain = str if fancy else lambda text: text.translate(PLAIN)
    shown = scores[:most]
    grid = _Grid(shown, width, scores.bar, plain, fancy)
    yield from _wrapped(plain(headline(scores)), width, "bold")
    if not shown:
        return
    yield Text("")
    if any(r.valued for r in shown):
        yield Text(grid.head, "dim")
    for group, rows in groupby(shown, key=lambda r: SCREENED if r.reason == SCREENED else r.verdict):
        about, style = HEADINGS.get(group, ("", ""))
        yield Text(group + (": " if about else "") + about.format(bar=scores.bar), style)
        for row in rows:
            loud = "bold" if row is scores.best else style if style == "dim" else ""
            yield from (Text(line, loud) for line in grid.lines(row))
    left = scores.candidates - len(shown)
    if left > 0:
        yield Text(f"and {left} more: --top {scores.candidates} shows them", "dim")
    yield Text("")
    for sentence in footer(scores):
        yield from _wrapped(plain(sentence), width, "dim")


def headline(scores: Scores) -> str:
    """What there is to do, in a sentence or two."""
    digits, best = decimals(scores), scores.best
    if best is not None:
        checked = "not checked" if best.checked is None else f"checked: {number(best.checked, digits)}"
        gain = f"{number(best.gain, digits)} ± {number(best.stderr, digits)}"
        return f"The network lacks capacity at {place(best.where)}: {label(best)} would gain {gain} nats per sample ({checked}). {_tally(scores)}."
    return " ".join(filter(None, (_nothing(scores), _saving(scores, digits))))


def _nothing(scores: Scores) -> str:
    """Why nothing is worth growing."""
    if not scores:
        return "No edit is possible here."
    failed = [r for r in scores if r.verdict == "grow"]
    if failed:
        return f"Nothing pays: {_tally(scores)}, but what was tried there failed ({failed[0].failed})."
    if scores.sites:
        near = max((r for r in scores if r.verdict == "noise"), key=lambda r: r.z)
        return f"Nothing pays: no site stands out from noise on held-out rows ({scores.sites} tested; the nearest, {label(near)}, has z {near.z:.1f})."
    for verdict, said in (("trial", "No gain can be told without a trial"), ("too dear", "Nothing fits the budget")):
        row = next((r for r in scores if r.verdict == verdict), None)
        if row is not None:
            return f"{said}: {label(row)} is the first of what is left out."
    row = scores[0]
    return "Nothing can grow here." if row.verdict == "shrink" else f"No edit can be scored here: {row.reason or row.verdict}."


def _saving(scores: Scores, digits: int) -> str:
    """What can go at no cost, as far as real forwards tell."""
    free = [r for r in scores if r.verdict == "shrink" and r.checked is not None and r.checked >= 0 and not r.failed]
    row = min(free, key=lambda r: r.params, default=None)
    return "" if row is None else f"{label(row)} would save {human(-row.params)} parameters at no cost (checked: {number(row.checked, digits)})."


def _tally(scores: Scores) -> str:
    return f"{scores.signal} of {scores.sites} site{'s' if scores.sites != 1 else ''} {'is' if 1 in (scores.signal, scores.sites) else 'are'} signal"


def footer(scores: Scores) -> Iterator[str]:
    """What the numbers rest on, and what they mean."""
    needed = "" if scores.rows_needed is None else f"; to capture 85% of the best gain takes about {human(scores.rows_needed)}"
    yield f"{scores.rows:,} training rows told the sites apart, {scores.held_rows:,} held-out ones tested them{needed}."
    if math.isfinite(scores.train_loss + scores.val_loss):
        yield f"Loss now: train {scores.train_loss:.4f}, val {scores.val_loss:.4f} nats per sample."
    if scores.sites:
        yield (
            f"alpha {scores.alpha:g}: a network that lacks nothing would be told to grow in at most {100 * scores.alpha:.3g} of 100 scorings;"
            f" with {scores.sites} site{'s' if scores.sites != 1 else ''} tested, z has to exceed {scores.bar:.2f}."
        )


def place(where: str) -> str:
    return where.replace(" -> ", " → ")


def label(row: Row) -> str:
    """`widen hidden +4`."""
    units = "" if row.units is None else f" {'-' if row.verdict == 'shrink' else '+'}{row.units}"
    return f"{row.edit} {place(row.where)}{units}"


def decimals(scores: Scores) -> int:
    """So many that the best row's standard error has two figures that count."""
    error = next((r.stderr for r in scores if r.stderr > 0 and math.isfinite(r.stderr)), 1e-3)
    return min(5, max(2, 1 - math.floor(math.log10(error))))


def number(value: float | None, digits: int) -> str:
    """`.0569`: as precise as the column, without the zero before the point."""
    if value is None:
        return ""
    text = f"{round(value, digits) or 0.0:.{digits}f}"  # no minus before nought
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("-").startswith("0.") else text


def human(count: int, sign: bool = False) -> str:
    """672, 1.2k, 14k, 1.3M."""
    shown, unit = float(abs(count)), ""
    for larger in "kMGT":
        if shown < 999.5:
            break
        shown, unit = shown / 1000, larger
    text = f"{shown:.1f}" if unit and shown < 9.95 else f"{shown:.0f}"
    return ("-" if count < 0 else "+" if sign else "") + text + unit


def bar(share: float, width: int, fancy: bool) -> str:
    """`share` of `width` columns, to an eighth of one; in ASCII to a whole one. What is more than nothing shows."""
    share = min(max(share, 0.0), 1.0)
    if not fancy:
        return "#" * (max(1, round(share * width)) if share > 0 else 0)
    eighths = max(1, round(share * width * 8)) if share > 0 else 0
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _wrapped(text: str, width: int, style: str) -> Iterator[Text]:
    for line in textwrap.wrap(text, max(width, NARROWEST)):
        yield Text(line, style)


class _Grid:
    """The columns: names as wide as is left, then a bar, the numbers, and what speaks against it where there is room."""

    def __init__(self, rows: list[Row], width: int, bar_z: float, plain: Callable[[str], str], fancy: bool):
        self.plain, self.fancy, self.width = plain, fancy, width
        self.digits = decimals(rows)
        self.largest = max((r.gain for r in rows if r.valued), default=0.0)
        heads = ("gain, nats", "held", f"z>{bar_z:.1f}" if bar_z else "z", "checked", "params", "MACs")
        self.widths = [max(map(len, column)) for column in zip(heads, *map(self._cells, rows), strict=True)]
        names = max((len(self._name(r)) for r in rows), default=0)
        free = width - sum(self.widths) - (len(heads) + 1) - BARS[0]
        self.gap = 2 if names + len(heads) + 1 <= free else 1
        free -= (self.gap - 1) * (len(heads) + 1)
        self.names = max(NARROWEST, min(names, free))
        self.bars = min(BARS[1], BARS[0] + max(0, free - self.names))
        self.head = self._line("", "", heads)

    def _name(self, row: Row) -> str:
        return self.plain(f"  {label(row)}")

    def _cells(self, row: Row) -> tuple[str, ...]:
        cost = tuple(human(n, sign=True) if n else "0" for n in (row.params, row.macs))
        checked, unseen = number(row.checked, self.digits), number(row.unseen, self.digits)
        if not row.valued:
            return "", "" if row.checked_held is None else unseen, "", checked, *cost
        z = f"{row.z:.1f}" if row.verdict != "shrink" and row.stderr else ""
        gain = number(row.gain, self.digits) + (self.plain(f" ±{number(row.stderr, self.digits)}") if row.stderr else "")
        return gain, unseen if row.stderr else "", z, checked, *cost

    def _line(self, name: str, drawn: str, cells: tuple[str, ...]) -> str:
        columns = [name.ljust(self.names), drawn.ljust(self.bars), *(c.rjust(w) for c, w in zip(cells, self.widths, strict=True))]
        return (" " * self.gap).join(columns).rstrip()

    def lines(self, row: Row) -> Iterator[str]:
        """A row's line; before it a name that is too long for its column, behind it what real forwards found wrong, where there is no room."""
        name = self._name(row)
        if not row.valued and row.checked_held is None:
            yield from textwrap.wrap(f"{name}  {self.plain(row.reason)}", self.width, subsequent_indent="    ")
            return
        if len(name) > self.names:
            yield from textwrap.wrap(name, self.width, subsequent_indent="    ")
            name = ""
        line = self._line(name, bar(row.gain / self.largest if self.largest > 0 else 0.0, self.bars, self.fancy), self._cells(row))
        beside = len(line) + 2 + len(row.reason) <= self.width
        yield f"{line}  {row.reason}" if row.reason and beside else line
        if row.failed and not beside:
            yield f"      {row.failed}"


__all__ = ["bar", "decimals", "footer", "headline", "human", "label", "lines", "number", "score_table"]
