"""Patterns over dotted names: `*` stays within a segment, `**` crosses dots. A leaf: imports nothing of dagrow."""

from __future__ import annotations

import re
from functools import lru_cache

_SKIP = "skip"  # before a whole segment `**` and its dot: the way around both


@lru_cache(maxsize=1024)
def _tokens(pattern: str) -> tuple[str, ...]:
    """`**`, `*`, one literal character each, or _SKIP."""
    found: list[str] = []
    for token, ahead in re.findall(r"(\*+|[^*])(?=(.?))", pattern, re.DOTALL):
        if token.startswith("**") and ahead == "." and found[-1:] in ([], ["."]):
            found.append(_SKIP)
        found.append("**" if token.startswith("**") else token)
    return tuple(found)


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
        if i < len(tokens) and tokens[i] in ("*", "**", _SKIP):
            todo.append(i + 1)
        if i < len(tokens) and tokens[i] == _SKIP:
            todo.append(i + 3)
    return found
