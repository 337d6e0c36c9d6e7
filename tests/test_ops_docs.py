"""The page on ops says what the ops say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import ops_table

from dagrow import ops


def test_the_page_is_what_the_ops_say() -> None:
    assert (ROOT / "docs" / "ops.md").read_text() == ops_table.table(), "run: python tools/ops_table.py"


def test_every_op_says_what_it_does_in_a_line() -> None:
    for op in ops.REGISTRY:
        assert len(ops.REGISTRY.summary(op)) <= 160 and ops.REGISTRY.summary(op).endswith("."), op


def test_the_readme_lists_every_op() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Ops\n")[2].partition("\n[docs/ops.md]")[0]
    assert sorted(re.findall(r"`(\w+)`", section)) == sorted(set(ops.REGISTRY) - {"input"})
