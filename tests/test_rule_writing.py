"""Rewrite rules as they are written: arithmetic, errors with their place, the page about them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dagrow import check
from dagrow import spec as specs
from dagrow.edits import arithmetic
from dagrow.edits.arithmetic import NotArithmetic, Size
from dagrow.errors import SpecError
from dagrow.showing import examine

ROOT = Path(__file__).resolve().parent.parent


# Arithmetic

SIZES = {("a", "channels"): 12, ("b", "width"): 5}
LEAVES = st.one_of(st.integers(0, 99).map(lambda n: (str(n), n)), st.sampled_from(sorted(SIZES)).map(lambda k: (".".join(k), SIZES[k])))
PYTHON = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "//": int.__floordiv__, "%": int.__mod__}


def combined(inner):
    def both(row):
        (a, x), sign, (b, y) = row
        if sign in ("//", "%") and y == 0:
            return f"({a} + {b})", x + y
        return f"({a}) {sign} ({b})", PYTHON[sign](x, y)

    pairs = st.tuples(inner, st.sampled_from(sorted(PYTHON)), inner).map(both)
    return st.one_of(pairs, inner.map(lambda r: (f"-({r[0]})", -r[1])), st.lists(inner, min_size=1, max_size=3).map(
        lambda rows: (f"max({', '.join(t for t, _ in rows)})", max(v for _, v in rows))))


@given(st.recursive(LEAVES, combined, max_leaves=8))
def test_arithmetic_is_that_of_whole_numbers(row):
    text, expected = row
    assume(len(text) <= arithmetic.MOST_CHARACTERS and abs(expected) < 2**30)
    made = arithmetic.parse(text)
    assert arithmetic.value(made, lambda s: SIZES[s.node, s.size]) == expected
    assert {(s.node, s.size) for s in arithmetic.sizes(made)} == {k for k in SIZES if ".".join(k) in text}
    assert arithmetic.is_arithmetic(text) != text.isdigit()


@pytest.mark.parametrize("text, expected", [("2 + 3 * 4", 14), ("7 - 2 - 1", 4), ("12 / 4 / 3", 1), ("-7 // 2", -4), ("- 2 * -3", 6), ("min(3, 2)*2", 4)])
def test_signs_bind_as_usual(text, expected):
    assert arithmetic.value(arithmetic.parse(text), None) == expected


@pytest.mark.parametrize("text, says", [
    ("1 / 0", "division by 0"), ("1 % 0", "division by 0"), ("7 / 2", "not a whole number"), ("1 +", "missing"), ("(1", "')' is missing"), ("1 2", "not expected"),
    ("a", "no size"), ("a.", "followed by a size"), ("a(1)", "no size"), ("1.5", "not expected"), ("2 ** 3", "missing"), ("1; 2", "not arithmetic"),
    ("__import__('os')", "not arithmetic"), ("(" * 99, "nested too deep"), ("9" * 50, "too large"), ("99999999 * 99999999", "too large"), ("1 + " * 99, "more than 200"),
])  # fmt: skip
def test_what_is_not_arithmetic_is_said(text, says):
    with pytest.raises(NotArithmetic, match=says.replace("(", r"\(").replace(")", r"\)")):
        arithmetic.value(arithmetic.parse(text), None)


def test_words_are_no_arithmetic():
    assert [t for t in ("same", "nearest-exact", "8", "", "a.b", "2*3", "max(1, 2)") if arithmetic.is_arithmetic(t)] == ["a.b", "2*3", "max(1, 2)"]
    assert arithmetic.parse("act.channels") == Size("act", "channels")


# Errors, with their place

HEAD = """data: {source: digits}
model:
  nodes:
    flat: {op: flatten, in: input}
    a: {op: linear, in: flat, width: 8}
    b: {op: relu, in: a}
    head: {op: linear, in: b, width: 10}
edits:
"""
WRONG = [
    ("name: r, match: {act: {op: rellu}}, replace: {act: {op: gelu}}", "rellu", "unknown op 'rellu'", "'relu'"),
    ("name: r, match: {act: {op: relu, in: lin}}, replace: {act: {op: gelu}}", "lin}", "'lin' is not in the pattern", ""),
    ("name: r, match: {act: {op: relu, slope: 1}}, replace: {act: {op: gelu}}", "slope", "relu has no option 'slope'", None),
    ("name: r, match: {l: {op: linear, width: {most: 3}}}, replace: {l: {}}", "width", "or a range", "min"),
    ("name: r, match: {l: {op: linear}, m: {op: linear}}, replace: {l: {}}", "m:", "has 2 ends (l, m)", "in:"),
    ("name: r, match: {l: {op: relu, in: m}, m: {op: relu, in: l}}, replace: {l: {}}", "m}, m", "a cycle", None),
    ("name: r, match: {l: {}}, replace: {l: {}}", "l: {}}, r", "may be any node", "op"),
    ("name: r, match: {l: {role: affin}}, replace: {l: {}}", "affin", "unknown role 'affin'", "affine"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: gelu, in: ack}}", "ack", "'ack' is neither matched nor put there", "'act'"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: gelu}}", "x:", "does not say what it reads", "act"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {in: act}}", "x:", "'x' has no op", "op"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: gelu, in: [act, act]}}", "in: [act", "gelu takes 1 input, 'x' has 2", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: act.size}}", "act.size", "'act' has no size 'size'", ""),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: at.width}}", "at.width", "'at' is neither matched nor put there", "'act'"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: act.width / 0}}", None, "division by 0", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: 2 +}}", "2 +", "is missing", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act}}", "x:", "needs 'width'", "width"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: 4, bias: maybe}}", "maybe", "'bias' is true or false", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: 8, init: zeros}}", "zeros", "init is one of", "'zero'"),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: gelu, in: act, init: identity}}", "identity", "init: identity is for", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: gelu, in: act}, y: {op: gelu, in: act}}", "y:", "has 2 ends (x, y)", ""),
    ("name: r, match: {act: {op: relu}}, replace: {act: {op: gelu, in: act}}", "act: {op: gelu", "a cycle: act -> act", "new name"),
    ("name: r, match: {act: {op: relu}, in: 3}, replace: {act: {op: gelu}}", "3", "'in' is a mapping, not 3", None),
    ("name: r9, match: {act: {op: relu}}, replace: {act: {op: gelu}}", None, "'r9' cannot name a rule", "digit"),
    ("name: r, match: {act: {op: relu}}", None, "replace names the nodes to put there", "gelu"),
    ("name: r, mach: {act: {op: relu}}", "mach", "unknown key 'mach'", "'match'"),
    ("name: r", None, "a rule needs match and replace", "such as"),
    # what depends on the network
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: 5}}", "x:", "'x' gives [5], b gave [8]: head would need other weights", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: conv2d, in: act, channels: 5}}", "x:", "'x': conv2d needs", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: act.width // 9}}", "x:", "'width' is at least 1, not 0", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: act.height}}", "x:", "has no height", None),
    ("name: r, match: {act: {op: relu}}, replace: {x: {op: linear, in: act, width: 5, init: identity}, y: {op: linear, in: x, width: 8}}", "x:", "'x' cannot be the identity", None),
]  # fmt: skip


@pytest.mark.parametrize("text, at, says, hint", WRONG, ids=[str(k) for k in range(len(WRONG))])
def test_errors_say_where_and_what(text, at, says, hint):
    line = f"  - rule: {{{text}}}"
    with pytest.raises(SpecError) as error:
        check.load(HEAD + line + "\n")
    found = [p for p in error.value.problems if says in p.message]
    assert found, error.value
    (problem,) = found
    assert problem.line == 9 and problem.column >= 5 and (hint is None or hint in (problem.hint or ""))
    if at is not None:
        start = line.index("replace") if "replace" in line and at in line[line.index("replace"):] and line.count(at) > 1 else 0
        assert problem.column - 1 == line.index(at, start), (problem, line.index(at, start))


def test_two_rules_of_one_name_are_told_apart():
    row = "  - rule: {name: r, match: {act: {op: relu}}, replace: {act: {op: gelu}}}\n"
    with pytest.raises(SpecError, match="rule r is there twice"):
        check.load(HEAD + row + row)
    found = examine(_file(HEAD + row + row.replace("name: r", "name: s")), ()).counts()
    assert found == {"rule r": 1, "rule s": 1}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _file(text: str):
    path = Path("spec.yaml")
    path.write_text(text)
    return path


def test_a_pattern_found_nowhere_is_a_warning_with_how_far_it_got():
    row = "  - rule: {name: r, match: {lin: {op: linear}, norm: {op: batchnorm, in: lin}, act: {op: relu, in: norm}}, replace: {act: {op: gelu}}}\n"
    (warning,) = examine(_file(HEAD + row), ()).warnings()
    assert "spec.yaml:9:" in warning and "found nowhere" in warning and "act = b; there for 'norm': a is linear, not batchnorm" in warning
    (warning,) = examine(_file(HEAD + row.replace("norm: {op: batchnorm, in: lin}, ", "").replace("in: norm", "in: lin").replace("}}}\n", "}}, where: q*}\n")), ()).warnings()
    assert "none of them is in 'q*'" in warning


def test_a_rule_survives_the_resolved_spec():
    text = HEAD + "  - rule: {name: r, match: {act: {op: relu}}, replace: {act: {op: gelu}}, once: true}\n  - widen\n"
    made = specs.load(text)
    assert made == specs.load(made.to_dict()) == specs.load(json.loads(json.dumps(made.to_dict(), sort_keys=True)))
    assert [(e.name, e.options.get("name")) for e in made.edits] == [("rule", "r"), ("widen", None)]


# The page about rules


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(), re.DOTALL)


def test_the_pages_rule_is_one():
    (text,) = _blocks("yaml")
    head = "data: {source: digits}\nmodel:\n  nodes:\n    body.a: {op: conv2d, in: input, channels: 8}\n    body.b: {op: batchnorm, in: body.a}\n"
    head += "    body.c: {op: relu, in: body.b}\n    pool: {op: global_avg_pool, in: body.c}\n    head: {op: linear, in: pool, width: 10}\n"
    facts = examine(_file(head + text), ())
    assert facts.counts() == {"rule bottleneck": 1} and not facts.warnings()


def test_the_pages_code_runs():
    (text,) = _blocks("python")
    names: dict = {}
    exec(compile(text, "rules.md", "exec"), names)  # noqa: S102  the page is ours
    assert names["site"].where == "smoother at act" and names["site"].form.frame.nodes["act"].op == "silu"
