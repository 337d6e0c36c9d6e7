"""The `layers:` shorthand: a chain of items as a mapping of named nodes."""

from __future__ import annotations

import re

from dagrow.spec.scalars import resolve
from dagrow.spec.tree import Place, Source, Tree, mapping

MOST_WORDS = 32


def chain(layers: Tree, first: str, macros: set[str], source: Source) -> Tree:
    """The nodes of a chain that starts at the node `first`: linear1, relu1, linear2, …"""
    if not isinstance(layers.value, list):
        source.report(layers.place, f"layers is a list, not {layers.kind}", "write layers: [linear 8, relu, linear 10]")
        return Tree({}, layers.place)
    nodes, keys, counts = {}, {}, {}
    previous = first
    for row in layers.value:
        item = _item(row, macros, source)
        if item is None:
            continue
        if (given := item.get("name")) is not None and isinstance(given.value, str):
            name = given.value
        else:
            kind = item.get("op") or item.get("use")
            word = re.sub(r"\W", "", str(kind.value))[:60] or "layer"
            counts[word] = counts.get(word, 0) + 1
            name = f"{word}{counts[word]}"
        if name in nodes:
            source.report(row.place, f"two layers are named {name!r}", "give one of them a name: {op: …, name: …}")
            continue
        if "in" in item.value:
            source.report(item.key("in"), "a layer reads the one before it", "use nodes: where the network branches")
        item = item.without("name")
        nodes[name], keys[name] = item.having("in", Tree(previous, row.place)), row.place
        previous = name
    return Tree(nodes, layers.place, keys)


def _item(row: Tree, macros: set[str], source: Source) -> Tree | None:
    if isinstance(row.value, str):
        return _text(row, macros, source)
    if isinstance(row.value, dict):
        if "op" in row.value or "use" in row.value:
            return row
        if len(row.value) == 1:
            (op, rest), = row.items()
            place = row.key(op)
            head = mapping(place, **{"use" if op in macros else "op": Tree(op, place)})
            if rest.value is None:
                return head
            if isinstance(rest.value, dict):
                return Tree({**rest.value, **head.value}, place, {**rest.keys, **head.keys})
            return head.having("positional", rest)
    source.report(row.place, f"a layer is 'op [size] key=value …' or a mapping with op or use, not {row.kind}", "such as: linear 8")
    return None


def _text(row: Tree, macros: set[str], source: Source) -> Tree | None:
    text = row.value
    words = list(re.finditer(r"\S+", text))
    if not 1 <= len(words) <= MOST_WORDS:
        source.report(row.place, f"a layer has 1 to {MOST_WORDS} words, not {len(words)}", "such as: linear 8")
        return None
    exact = row.place.line is not None and row.place.width == len(text)

    def place(start: int, end: int) -> Place:
        return Place(row.place.line, row.place.column + start, end - start) if exact else row.place

    op = words[0]
    item = mapping(row.place, **{"use" if op[0] in macros else "op": Tree(op[0], place(*op.span()))})
    for word in words[1:]:
        key, equals, value = word[0].partition("=")
        at = place(*word.span())
        if not equals:
            key, value, start = "positional", word[0], word.start()
        else:
            start = word.start() + len(key) + 1
        if key in item.value:
            source.report(at, "a layer has one size" if key == "positional" else f"{key!r} is there twice", "write the others as key=value")
            continue
        try:
            item = item.having(key, Tree(resolve(value), place(start, word.end()) if value else at), at)
        except ValueError as error:
            source.report(at, str(error))
    return item
