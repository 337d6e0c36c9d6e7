"""YAML 1.2 core scalars, and numbers with units."""

from __future__ import annotations

import re

INT = re.compile(r"[-+]?[0-9]+\Z")
OCTAL = re.compile(r"0o[0-7]+\Z")
HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)\Z")
WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}
MOST_DIGITS = 300
COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMG])\Z")
COUNTS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|sec|min|m|h|d)\Z")
TIMES = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain scalar means in YAML 1.2: 1e-3 is a number; on, yes and 3:30 are text. ValueError for endless digits."""
    if text in WORDS:
        return WORDS[text]
    if len(text) > MOST_DIGITS:
        if text[:MOST_DIGITS].strip("+-").isdigit():
            raise ValueError(f"a number of more than {MOST_DIGITS} digits")
        return text
    if INT.match(text):
        return int(text)
    if OCTAL.match(text):
        return int(text[2:], 8)
    if HEX.match(text):
        return int(text[2:], 16)
    if FLOAT.match(text):
        return float(text)
    if found := INFINITE.match(text):
        return float(found[1] + "inf")
    return text


def count(value):
    """A whole number from 20k, 1.5M, 2G; anything else as it is. ValueError where the text is not a number."""
    if not isinstance(value, str):
        return value
    found = COUNT.match(value[:40])
    if not found:
        raise ValueError(f"{value[:40]!r} is not a number: write 20000, 20k or 1M")
    return round(float(found[1]) * COUNTS[found[2]])


def seconds(value):
    """Seconds from 90s, 10min, 2h; anything else as it is. ValueError where the text is not a time."""
    if not isinstance(value, str):
        return value
    found = TIME.match(value[:40])
    if not found:
        raise ValueError(f"{value[:40]!r} is not a time: write 90s, 10min or 2h")
    return float(found[1]) * TIMES[found[2]]
