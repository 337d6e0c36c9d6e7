"""The picture of predicted and checked gains: what is drawn where, the same bytes twice, and what is refused before any work."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_scoretable import BLIND, DEAR, GROW, NOISE, SHRINK, SMALLER, TRIAL, scores

import dagrow
from dagrow import api
from dagrow.errors import DagrowError, UsageError
from dagrow.report import gains

NEAR = replace(NOISE, checked=0.001, checked_stderr=0.002, checked_held=0.0, trial="ok")
DRAWN = [GROW, SMALLER, NEAR, SHRINK]
WINE = {
    "data": {"source": "wine", "batch": 32}, "model": {"layers": ["linear 3", "relu", "linear 3"]}, "train": {"epochs": {"first": 1}}, "edits": ["widen"],
    "score": {"by": {"name": "natural", "starts": 4, "steps": 4}},
}  # fmt: skip


def markers(container) -> tuple[float, float, str]:
    point = container.lines[0]
    return point.get_xdata()[0], point.get_ydata()[0], point.get_markerfacecolor()


def spans(container) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of the horizontal and of the vertical error bar."""
    x, y = (collection.get_segments()[0] for collection in container.lines[2])
    return (x[0][0], x[1][0]), (y[0][1], y[1][1])


def test_each_candidate_that_was_tried_is_a_point_with_both_errors() -> None:
    left, right = gains.figure(scores(*DRAWN)).axes
    tried = [r for r in DRAWN if r.checked is not None and r.checked_stderr is not None]
    assert len(left.containers) == 3  # the third has no error of what was checked
    for container, row in zip(left.containers, tried, strict=False):
        x, y, face = markers(container)
        assert (x, y) == (row.gain, row.checked) and (face == "white") == (row.verdict != "grow")
        ends = spans(container)
        assert np.allclose(ends, [[row.gain - row.stderr, row.gain + row.stderr], [row.checked - row.checked_stderr, row.checked + row.checked_stderr]])
    assert left.lines[0].get_label() == "checked = predicted" and left.lines[0].get_slope() == 1 and left.lines[0].get_xy1() == (0, 0)
    assert [t.get_text() for t in left.texts] == ["1", "3"]
    assert [t.get_text() for t in right.get_yticklabels()] == ["widen body.conv +4  1", "widen body.conv +2  2", "deepen input -> body.conv +8  3"]
    assert {t.get_text() for t in left.get_legend().get_texts()} == {"checked = predicted", "widen", "deepen", "prune"}


def test_the_bar_to_clear_is_drawn_and_edits_have_their_colours() -> None:
    left, right = gains.figure(scores(*DRAWN)).axes
    (line,) = [a for a in right.lines if a.get_label().startswith("bar")]
    assert set(line.get_xdata()) == {2.3954} and "2.40" in line.get_label()
    zs = [a.get_xdata()[0] for a in right.lines if a.get_marker() not in ("None", None, "")]
    assert zs == [GROW.z, SMALLER.z, NEAR.z]
    colours = {row.edit: c.lines[0].get_color() for c, row in zip(left.containers, [GROW, NEAR, SHRINK], strict=True)}
    assert len(set(colours.values())) == 3 and right.lines[0].get_color() == colours["widen"]


LONG = replace(GROW, where="a_very.long$name_with_$signs" * 5)


@pytest.mark.parametrize(
    ("form", "rows"), [("png", []), ("svg", []), ("pdf", [BLIND]), ("svg", [TRIAL, NOISE]), ("png", [DEAR]), ("pdf", [LONG]), ("svg", DRAWN), ("png", DRAWN)]
)
def test_whatever_there_is_can_be_drawn_twice_to_the_same_bytes(form: str, rows: list, tmp_path: Path) -> None:
    for name in ("a", "b"):
        gains.draw(scores(*rows), tmp_path / name, form)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes() and data[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_drawing_touches_no_global_state(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    gains.draw(scores(*DRAWN), tmp_path / "x.png", "png")
    assert dict(matplotlib.rcParams) == before


# -- in place ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch):
    """What is refused is refused before anything is computed."""

    def never(*_, **__):
        raise AssertionError("it computed")

    monkeypatch.setattr(api, "checked_of", never)


def test_the_file_is_made_and_more_are_tried(tmp_path: Path) -> None:
    found = dagrow.score(WINE, plot=tmp_path / "gains.SVG")
    assert (tmp_path / "gains.SVG").read_text().startswith("<?xml") and len(list(tmp_path.iterdir())) == 1
    assert all(r.trial for r in found)
    assert not any(r.trial for r in dagrow.score(WINE, plot=tmp_path / "gains.pdf", verify=0))


@pytest.mark.parametrize(
    ("name", "said"), [("gains.jpg", ".png, .svg, .pdf"), ("gains", ".png"), ("no/gains.png", "mkdir -p"), ("folder.png", "name a file")]
)
def test_what_cannot_be_written_is_refused_before_training(name: str, said: str, tmp_path: Path, untouched) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=said):
        dagrow.score(WINE, plot=tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_a_folder_that_may_not_be_written_is_refused_before_training(tmp_path: Path, untouched, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match="no permission"):
        dagrow.score(WINE, plot=tmp_path / "gains.png")


def test_without_matplotlib_it_says_how_to_get_it_before_training(tmp_path: Path, untouched, monkeypatch) -> None:
    monkeypatch.setattr(gains, "find_spec", lambda name: None)
    with pytest.raises(DagrowError, match="needs matplotlib") as error:
        dagrow.score(WINE, plot=tmp_path / "gains.png")
    assert error.value.fix == 'pip install "dagrow[plots]"' and error.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_matplotlib_is_not_imported_before_it_is_used() -> None:
    import subprocess

    code = "import sys, dagrow.api, dagrow.cli, dagrow.report.gains; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).resolve().parent.parent).returncode == 0
