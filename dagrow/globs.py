"""Patterns over dotted names: `*` stays within a segment, `**` crosses dots. A leaf: imports nothing of dagrow."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=1024)
def _tokens(pattern: str) -> tuple[str, ...]:
    """`**`, `*` or one literal character each."""
    return tuple("**" if t.startswith("**") else t for t in re.findall(r"\*+|[^*]", pattern, re.DOTALL))


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` matches the whole of `name`.

    `*` stands for any characters but a dot, `**` for any characters; every other character stands for itself.
    A segment `**` followed by a dot may stand for no segment at all: `**.conv` matches `conv` and `body.r0.conv`,
    `body.**.conv` matches `body.conv`. `body.**` matches what is inside `body`, not `body` itself.
    Time is the product of the two lengths, whatever the pattern: it comes from a spec.
    """
    tokens = _tokens(pattern)
    states = _free(tokens, {0})
    for char in name:
        ahead = set()
        for i in states:
            if i == len(tokens):
                continue
            if tokens[i] == "**" or (tokens[i] == "*" and char != "."):
                ahead.add(i)
            elif tokens[i] == char and char != "*":
                ahead.add(i + 1)
        states = _free(tokens, ahead)
        if not states:
            return False
    return len(tokens) in states


def _free(tokens: tuple[str, ...], states: set[int]) -> set[int]:
    """The positions reached from `states` without reading a character."""
    found, todo = set(), list(states)
    while todo:
        i = todo.pop()
        if i in found:
            continue
        found.add(i)
        if i < len(tokens) and tokens[i] in ("*", "**"):
            todo.append(i + 1)
            opens = i == 0 or tokens[i - 1] == "."
            if tokens[i] == "**" and opens and tokens[i + 1 : i + 2] == (".",):
                todo.append(i + 2)
    return found
