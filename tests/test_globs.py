from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrow.globs import matches


@pytest.mark.parametrize(
    "pattern, name, expected",
    [
        ("hidden", "hidden", True),
        ("hidden", "hidden2", False),
        ("*", "hidden", True),
        ("*", "body.conv", False),
        ("**", "body.r0.conv", True),
        ("**", "", True),
        ("body.*.conv", "body.r0.conv", True),
        ("body.*.conv", "body.r0.x.conv", False),
        ("body.*.conv", "body.conv", False),
        ("body.r*", "body.r12", True),
        ("*.conv", "conv", False),
        ("**.conv", "conv", True),
        ("**.conv", "body.r0.conv", True),
        ("**.conv", "body.deconv", False),
        ("body.**.conv", "body.conv", True),
        ("body.**.conv", "body.a.b.conv", True),
        ("body.**", "body.a.b", True),
        ("body.**", "body", False),
        ("body**", "body.a", True),
        ("stem.conv", "stemxconv", False),
        ("stem.conv~1", "stem.conv~1", True),
        ("a->b", "a->b", True),
        ("***", "a.b", True),
        ("", "", True),
        ("", "a", False),
        ("*", "*", True),
    ],
)
def test_matches(pattern, name, expected):
    assert matches(pattern, name) is expected


@given(st.text("ab.*", max_size=8), st.text("ab.", max_size=8))
def test_as_a_regular_expression(pattern, name):
    parts = re.findall(r"\*+|[^*]", pattern)
    text, i = "", 0
    while i < len(parts):
        deep = parts[i].startswith("**")
        if deep and (i == 0 or parts[i - 1] == ".") and parts[i + 1 : i + 2] == ["."]:
            text, i = text + r"(.*\.)?", i + 2
            continue
        text, i = text + (".*" if deep else "[^.]*" if parts[i] == "*" else re.escape(parts[i])), i + 1
    assert matches(pattern, name) is (re.fullmatch(text, name, re.DOTALL) is not None)


def test_a_hostile_pattern_takes_no_time():
    start = time.perf_counter()
    assert not matches("*a**a" * 60 + "b", "a" * 400)
    assert time.perf_counter() - start < 2
