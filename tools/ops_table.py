"""docs/ops.md from the registry of ops: what each does, its options, and what becomes of units, by tracing its examples.

    python tools/ops_table.py            # writes docs/ops.md
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from dagrow import ops
from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node

HERE = Path(__file__).resolve().parent.parent / "docs" / "ops.md"
SHAPES = ((5,), (3, 9), (2, 7, 7))
HEAD = """# Ops

What a network can be made of. `tools/ops_table.py` writes this page from the ops themselves, and a test compares the two.

In a spec: `name: {op: conv2d, in: stem, channels: 8, kernel: [1, 5]}`. An option without a default has to be given; the one in bold is what
stands behind the name in the short form, as in `layers: [linear 8, relu]`. Shapes leave out the batch; dimensions are numbered with the batch
at 0, as in torch: 1 are the channels of maps, −1 the features of tokens. Options called `kernel`, `stride`, `padding`, `dilation`, `size` and
`scale` take one number, or one for each dimension of space. No size may be above 1,048,576.

What becomes of the units of the input, as tracing finds it (`dagrow show SPEC --axes` says it of your network):

- *read*: a weight sums over them. New ones start with zeros there, and the function stays.
- *kept*: the op acts on each by itself, and passes it on; it grows and shrinks with them, without a change of its options.
- *grouped*: there are groups and units within a group, which come and go separately.
- *gated*: multiplied with those of another input, one by one.
- *multiplied*: summed over together with those of another input. New ones are zero on one side.
- *mixed*: summed, normalised or compared with each other. Zeros do not keep the function; some edits know what does.
- *dropped*: some go no further.
- *frozen*: their number is fixed.

*Own*: how many kinds of units begin at the op, each of which can be widened and pruned.

| op | inputs | does | options | units of the input | own |
|---|---|---|---|---|---|
"""
ORDER = ("read", "kept", "grouped", "gated", "multiplied", "mixed", "dropped", "frozen")


def table() -> str:
    """The whole page."""
    rows = (row(op) for op in ops.REGISTRY)
    return HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def row(op: str) -> tuple[str, ...]:
    rule = ops.REGISTRY.get(op)
    inputs = f"{rule.fewest}" if rule.most == rule.fewest else f"{rule.fewest} or more" if rule.most is None else f"{rule.fewest} to {rule.most}"
    units, own = fate(op)
    does = " ".join(inspect.getdoc(rule).split("\n\n")[0].split())
    return f"`{op}`", inputs, does.replace("|", "\\|"), options(rule), units, own


def options(rule: type[ops.Op]) -> str:
    told = []
    for name, field in rule.Options.model_fields.items():
        shown = f"**{name}**" if name == rule.shorthand else name
        if not field.is_required():
            shown += f" = {field.default if isinstance(field.default, str) else json.dumps(field.default)}"
        told.append(shown)
    return ", ".join(told)


def fate(op: str) -> tuple[str, str]:
    """(what becomes of the units of its inputs, how many kinds begin here), over all examples."""
    rule = ops.REGISTRY.get(op)
    if op == "input":
        return "", "0"
    if rule.closed:
        return "frozen", "0"
    words, own = set(), set()
    for arch in (arch for example in examples(op) for arch in around(op, example)):
        own.add(sum(1 for axis in arch.axes.values() if axis.writes and axis.writes[0].node == "op"))
        words |= told(arch) if len(arch.nodes) > 4 else set()
    fewest, most = min(own), max(own)
    return ", ".join(w for w in ORDER if w in words), f"{fewest}" if fewest == most else f"{fewest} to {most}"


def told(arch: Architecture) -> set[str]:
    words = set()
    for stem in arch.nodes["op"].inputs:
        axes = [axis for axis in arch.axes.values() if any(u.node == stem for u in axis.writes)]
        words |= {"grouped"} if len(axes) > 1 else set() if axes else {"frozen"}
        for axis in axes:
            found = {word for word, nodes in (("gated", axis.gates), ("multiplied", axis.bilinear), ("mixed", axis.mixes)) if "op" in nodes}
            found |= {"read"} if any(u.node == "op" for u in axis.reads) else set()
            found |= {"kept"} if any(u.node == "head" for u in axis.reads) else set()
            words |= found or {"dropped"}
    return words


def examples(op: str) -> tuple[ops.Example, ...]:
    rule = ops.REGISTRY.get(op)
    return rule.examples or (ops.Example({name: 6 for name, field in rule.Options.model_fields.items() if field.is_required()}),)


def around(op: str, example: ops.Example) -> list[Architecture]:
    """input -> stems -> op -> flatten -> head, in each shape that fits."""
    found = []
    for shape in (example.shape,) if example.shape else SHAPES:
        kind = "token_linear" if example.last else ("linear", "conv1d", "conv2d")[len(shape) - 1]
        size = {"width" if "linear" in kind else "channels": 6}
        stems = {f"stem{k}": Node.of(kind, "x", **size) for k in range(0 if example.bare else max(1, ops.REGISTRY.get(op).fewest))}
        arch = Architecture({
            "x": Node.of("input", shape=shape), **stems, "op": Node.of(op, *(stems or ("x",)), **example.attrs),
            "flat": Node.of("flatten", "op"), "head": Node.of("linear", "flat", width=3),
        })  # fmt: skip
        try:
            _ = arch.shapes
        except GraphError:
            continue
        found.append(arch)
    return found


if __name__ == "__main__":
    HERE.write_text(table())
    print(f"{HERE}: {len(list(ops.REGISTRY))} ops")
