"""The table of scores: what its first sentence says, that it fits, and that it needs neither colours nor UTF-8."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrow.scoretable import bar, decimals, headline, human, lines, number, score_table
from dagrow.scoring import Row, Scores

LONG = "encoder.block_one.branch_two.depthwise_convolution -> decoder.block_three.branch_four.pointwise_convolution"
GROW = Row("widen", "body.conv", 4, 0.0312, 0.0059, 4.7, 0.0291, 1240, 13824, "grow", checked_stderr=0.004, checked_held=0.025, trial="ok")
SMALLER = replace(GROW, units=2, gain=0.02, checked=None, checked_stderr=None, checked_held=None, trial="", params=620, macs=6912)
NOISE = Row("deepen", "input -> body.conv", 8, 0.004, 0.0032, 1.2, None, 96, 88, "noise", "z 1.2 < 2.4")
TRIAL = Row("activate", "relu1 -> gelu", None, 0.0, 0.0, 0.0, None, 0, 0, "trial", "it changes the function at once")
SHRINK = Row("prune", "body.conv", 1, -0.0006, 0.0002, 0.0, 0.0003, -310, -3456, "shrink", trial="ok")
DEAR = Row("widen", "head", 64, 0.05, 0.006, 5.0, None, 1_260_000, 98_700_000, "too dear", "over the budget")
BLIND = Row("connect", "pool -> head", None, 0.0, 0.0, 0.0, None, 0, 0, "unsupported", "it is read in groups")
ALL = [GROW, SMALLER, TRIAL, NOISE, SHRINK, DEAR, BLIND]


def scores(*rows: Row, **facts) -> Scores:
    tested = {(r.edit, r.where) for r in rows if r.verdict in ("grow", "noise")}
    signal = {(r.edit, r.where) for r in rows if r.verdict == "grow"}
    known = {
        "rows": 1024, "held_rows": 202, "alpha": 0.05, "bar": 2.3954, "sites": len(tested), "signal": len(signal), "train_loss": 0.41, "val_loss": 0.4375,
        "candidates": len(rows),
    }  # fmt: skip
    return Scores(found=rows, **(known | facts))


def shown(found: Scores, width: int = 80, **how) -> list[str]:
    return [line.plain for line in lines(found, width, **how)]


# -- the first sentence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ALL, "The network lacks capacity at body.conv: widen body.conv +4 would gain .0312 ± .0059 nats per sample (checked: .0291). 1 of 2 sites is signal."),
        ([SMALLER], "widen body.conv +2 would gain .0200 ± .0059 nats per sample (not checked). 1 of 1 site is signal."),
        ([replace(GROW, trial="worse on held-out rows"), SMALLER], "widen body.conv +2 would gain"),
        ([replace(GROW, trial="worse on held-out rows")], "Nothing pays: 1 of 1 site is signal, but what was tried there failed (worse on held-out rows)."),
        ([NOISE], "Nothing pays: no site stands out from noise on held-out rows (1 tested; the nearest, deepen input → body.conv +8, has z 1.2)."),
        ([NOISE, SHRINK], "prune body.conv -1 would save 310 parameters at no cost (checked: .0003)."),
        ([SHRINK], "Nothing can grow here. prune body.conv -1 would save 310"),
        ([replace(SHRINK, checked=-0.1)], "Nothing can grow here."),
        ([TRIAL, BLIND], "No gain can be told without a trial: activate relu1 → gelu is the first"),
        ([DEAR], "Nothing fits the budget: widen head +64 is the first"),
        ([BLIND], "No edit can be scored here: it is read in groups."),
        ([], "No edit is possible here."),
    ],
)
def test_the_first_sentence_says_what_to_do(rows: list[Row], said: str) -> None:
    found = headline(scores(*rows))
    assert said in found and (found.startswith(said) or said[0].islower())


def test_the_edit_to_make_is_the_best_as_measured() -> None:
    better = replace(GROW, where="stem.conv", gain=0.01, checked=0.08)
    assert scores(GROW, better).best is better
    assert scores(GROW, replace(better, trial="no step lowers the loss")).best is GROW
    assert scores(SMALLER, better).best is better  # what was tried goes before what was not
    assert scores(NOISE, SHRINK).best is None


# -- the table ---------------------------------------------------------------------------------------------------------


def test_everything_is_in_the_table() -> None:
    text = "\n".join(shown(scores(*ALL, rows_needed=3100, candidates=9), 200))
    for said in (
        "widen body.conv +4", ".0312 ±.0059", "4.7", ".0291", ".0250", "+1.2k", "+14k", "z>2.4", "grow: signal", "noise: not told", "z 1.2 < 2.4", "trial:",
        "activate relu1 → gelu", "it changes the function at once", "prune body.conv -1", "-.0006 ±.0002", "-310", "-3.5k", "+1.3M", "+99M", "too dear: over",
        "unsupported", "it is read in groups", "and 2 more: --top 9", "1,024 training rows told the sites apart, 202 held-out ones tested them; to capture 85% of the best gain takes about 3.1k.",
        "train 0.4100, val 0.4375", "alpha 0.05", "at most 5 of 100", "exceed 2.40",
    ):  # fmt: skip
        assert said in text, said


def test_what_was_screened_out_is_a_group_of_its_own() -> None:
    screened = replace(NOISE, where="a -> b", gain=0.001, stderr=0.0, z=0.0, reason="screened")
    text = shown(scores(NOISE, screened, sites=1), 120)
    assert sum("not looked at in full" in line for line in text) == 1
    (row,) = [line for line in text if "a → b" in line]
    assert ".001" in row and "±" not in row


@pytest.mark.parametrize("fancy", [True, False])
@pytest.mark.parametrize("width", [80, 100, 200])
def test_it_fits(width: int, fancy: bool) -> None:
    rows = [*ALL, replace(GROW, where=LONG), replace(NOISE, where=LONG, trial="worse on held-out rows", reason="z 1.2 < 2.4; worse on held-out rows"), replace(BLIND, where=LONG, reason="x" * 90)]
    text = shown(scores(*rows), width, fancy=fancy)
    assert max(map(len, text)) <= width
    # names are whole, if over several lines
    assert "".join("".join(text).split()).count((LONG.replace("->", "→") if fancy else LONG).replace(" ", "")) == 3
    assert sum("worse on held-out rows" in line for line in text) == 1
    if not fancy:
        assert all(line.isascii() for line in text) and any("####" in line for line in text) and any("+-.0059" in line for line in text)


def test_a_narrow_terminal_and_an_empty_list_are_no_trouble() -> None:
    assert shown(scores(*ALL), 20) and shown(scores(), 80) == ["No edit is possible here."]
    assert len(shown(scores(*ALL), 80, most=1)) < len(shown(scores(*ALL), 80))


@given(st.lists(st.sampled_from(ALL), max_size=8), st.integers(66, 220), st.booleans(), st.floats(1e-9, 1e3))
def test_any_rows_at_any_width(rows: list[Row], width: int, fancy: bool, scale: float) -> None:
    made = [replace(r, gain=r.gain * scale, stderr=r.stderr * scale) for r in rows]
    text = shown(scores(*made), width, fancy=fancy)
    assert text and max(map(len, text)) <= max(width, 84)  # numbers are not cut short for the sake of width


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (7, "7"), (999, "999"), (1000, "1.0k"), (1234, "1.2k"), (9949, "9.9k"), (9951, "10k"), (13824, "14k"), (999_499, "999k"),
                        (999_501, "1.0M"), (1_260_000, "1.3M"), (98_700_000, "99M"), (-3456, "-3.5k"), (5 * 10**12, "5.0T")]
)  # fmt: skip
def test_counts_for_people(count: int, text: str) -> None:
    assert human(count) == text and human(abs(count), sign=True) == ("+" + text.lstrip("-"))


def test_numbers_are_as_precise_as_their_error() -> None:
    assert decimals(scores(GROW)) == 4 and decimals(scores(replace(GROW, stderr=0.049))) == 3 and decimals(scores(replace(GROW, stderr=3.0))) == 2
    assert decimals(scores(BLIND)) == 4 and decimals(scores(replace(GROW, stderr=float("nan")))) == 4
    assert [number(v, 3) for v in (0.0312, -0.5, 1.25, 10.0, -0.0001, None)] == [".031", "-.500", "1.250", "10.000", ".000", ""]


@given(st.floats(-2, 2), st.integers(1, 30))
def test_bars(share: float, width: int) -> None:
    for fancy in (True, False):
        drawn = bar(share, width, fancy)
        assert len(drawn) <= width and bool(drawn) == (share > 0) and (share < 1 or len(drawn) == width)
    assert bar(0.5, 4, True) == "██" and bar(0.5, 4, False) == "##" and bar(0.15625, 4, True) == "▋"


# -- on a terminal -----------------------------------------------------------------------------------------------------


class Output(io.StringIO):
    """Standard output as a process sees it."""

    def __init__(self, terminal: bool, encoding: str):
        super().__init__()
        self.terminal, self.named = terminal, encoding

    @property
    def encoding(self) -> str:
        return self.named

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def printed(monkeypatch):
    """What is printed to a terminal of 80 columns, or to a pipe."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")

    def run(terminal: bool, encoding: str = "utf-8") -> str:
        out = Output(terminal, encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            score_table(scores(*ALL))
        return out.getvalue()

    return run


def test_colour_is_for_terminals_that_want_it(printed, monkeypatch) -> None:
    coloured = printed(True)
    assert "\x1b[1;32mgrow" in coloured and max(len(re.sub("\x1b\\[[0-9;]*m", "", line)) for line in coloured.splitlines()) <= 80
    piped = printed(False)
    assert "\x1b" not in piped and "█" in piped and any(len(line) > 80 for line in piped.splitlines())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[32m" not in printed(True) and "1;32" not in printed(True)  # bold may stay, colour may not


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252"])
def test_without_utf_8_there_is_ascii(encoding: str, printed) -> None:
    for terminal in (True, False):
        text = printed(terminal, encoding)
        assert text.isascii() and "####" in text and "->" in text and "+-" in text


def test_json_of_every_row_is_plain() -> None:
    from dagrow.progress import finite

    (first, *_) = [json.loads(json.dumps(finite(row), allow_nan=False)) for row in scores(*ALL, rows_needed=3100).objects()]
    assert first["params"] == 1240 and first["macs"] == 13824 and first["rows"] == 1024 and first["rows_needed"] == 3100 and first["bar"] == 2.3954
