"""Whole-number arithmetic over the sizes of matched nodes, as a rule writes it: "max(1, act.channels // 4)".

Numbers, `node.size`, + - * / // %, parentheses, min and max. Parsed here, never handed to Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>//|[-+*/%().,]))")
MOST_CHARACTERS = 200
MOST_DEEP = 20
LARGEST = 2**40
FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}


class NotArithmetic(ValueError):
    """What is wrong with a text as arithmetic, or with its value."""


@dataclass(frozen=True)
class Size:
    """`node.size`: a size or option of a matched node."""

    node: str
    size: str


@dataclass(frozen=True)
class Term:
    """An operation on terms: a sign, or the name of a function."""

    sign: str
    parts: tuple[Expression, ...]


Expression = int | Size | Term


def is_arithmetic(text: str) -> bool:
    """Whether the text is meant as arithmetic: it names a size, or begins and goes on with numbers and signs only; "same" is a word."""
    tokens = list(_split(text)) if len(text) <= MOST_CHARACTERS else []
    if not tokens or None in tokens:
        return False
    words = [k for k, (kind, _) in enumerate(tokens) if kind == "name"]
    after = [tokens[k + 1][1] if k + 1 < len(tokens) else "" for k in words]
    before = [tokens[k - 1][1] if k else "" for k in words]
    return len(tokens) > 1 and all(a in (".", "(") or b == "." for a, b in zip(after, before, strict=True))


def parse(text: str) -> Expression:
    """The expression of a text. Raises NotArithmetic with what is wrong."""
    if len(text) > MOST_CHARACTERS:
        raise NotArithmetic(f"arithmetic of more than {MOST_CHARACTERS} characters")
    tokens = list(_split(text))
    if None in tokens:
        raise NotArithmetic(f"{text!r} is not arithmetic: numbers, node.size, + - * / // %, min(…), max(…)")
    reader = _Reader(tokens, text)
    made = reader.sum(0)
    if reader.at < len(tokens):
        raise NotArithmetic(f"{text!r}: {tokens[reader.at][1]!r} is not expected there")
    return made


def sizes(made: Expression) -> Iterator[Size]:
    """Every size an expression names."""
    if isinstance(made, Size):
        yield made
    elif isinstance(made, Term):
        for part in made.parts:
            yield from sizes(part)


def value(made: Expression, look: Callable[[Size], int]) -> int:
    """The expression's value; `look` gives that of a size. Raises NotArithmetic: a division by 0 or that is not whole, a number too large."""
    if isinstance(made, int):
        return made
    if isinstance(made, Size):
        return look(made)
    found = [value(part, look) for part in made.parts]
    if made.sign in FUNCTIONS:
        return FUNCTIONS[made.sign](found)
    if made.sign == "negative":
        return -found[0]
    a, b = found
    if made.sign in ("/", "//", "%") and not b:
        raise NotArithmetic(f"{a} {made.sign} 0: a division by 0")
    if made.sign == "/" and a % b:
        raise NotArithmetic(f"{a} / {b} is not a whole number; // rounds down")
    result = {"+": a + b, "-": a - b, "*": a * b}[made.sign] if made.sign in "+-*" else a % b if made.sign == "%" else a // b
    if abs(result) > LARGEST:
        raise NotArithmetic(f"{a} {made.sign} {b} is too large")
    return result


def _split(text: str) -> Iterator[tuple[str, str] | None]:
    """(kind, text) of each token; None where there is none to be read."""
    at, text = 0, text.rstrip()
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found or len(found[0]) > 60:
            yield None
            return
        yield found.lastgroup, found[found.lastgroup]
        at = found.end()


class _Reader:
    """Recursive descent: sum := product ((+|-) product)*; product := factor ((*|/|//|%) factor)*."""

    def __init__(self, tokens: list[tuple[str, str]], text: str):
        self.tokens, self.text, self.at = tokens, text, 0

    def take(self, *signs: str) -> str | None:
        """The next token, where it is one of these."""
        if self.at < len(self.tokens) and self.tokens[self.at][1] in signs:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise NotArithmetic(f"{self.text!r}: {sign!r} is missing")

    def sum(self, deep: int) -> Expression:
        made = self.product(deep)
        while sign := self.take("+", "-"):
            made = Term(sign, (made, self.product(deep)))
        return made

    def product(self, deep: int) -> Expression:
        made = self.factor(deep)
        while sign := self.take("*", "//", "/", "%"):
            made = Term(sign, (made, self.factor(deep)))
        return made

    def factor(self, deep: int) -> Expression:
        if deep > MOST_DEEP:
            raise NotArithmetic(f"{self.text[:40]!r}…: nested too deep")
        if self.take("-"):
            return Term("negative", (self.factor(deep + 1),))
        if self.take("("):
            made = self.sum(deep + 1)
            self.need(")")
            return made
        kind, word = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        self.at += 1
        if kind == "number":
            if int(word) > LARGEST:
                raise NotArithmetic(f"{word} is too large")
            return int(word)
        if kind != "name":
            raise NotArithmetic(f"{self.text!r}: a number or node.size is missing")
        if self.take("."):
            kind, size = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
            self.at += 1
            if kind != "name":
                raise NotArithmetic(f"{self.text!r}: {word}. is to be followed by a size, such as {word}.channels")
            return Size(word, size)
        if word in FUNCTIONS and self.take("("):
            parts = [self.sum(deep + 1)]
            while self.take(","):
                parts.append(self.sum(deep + 1))
            self.need(")")
            return Term(word, tuple(parts))
        raise NotArithmetic(f"{self.text!r}: {word!r} is no size: write {word}.channels, or the like")
