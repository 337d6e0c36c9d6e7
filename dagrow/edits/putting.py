"""The right side of a rewrite rule as it is written: the nodes to put, and their options with arithmetic in them."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import pydantic

from dagrow import ops
from dagrow.edits.arithmetic import Expression, NotArithmetic, Size, is_arithmetic, parse, sizes, value
from dagrow.edits.patterns import MOST_NODES, NAME, Pattern, known_op, names_read
from dagrow.graph import Architecture
from dagrow.registry import Misfit
from dagrow.spec.explaining import did_you_mean, phrases, shown

OWN = ("op", "in", "init")
INITS = ("fresh", "zero", "identity")
# Sizes of a node's output that are no options of its op: dimensions without the batch.
SIZES = {"channels": 0, "tokens": 0, "height": -2, "length": -1, "width": -1, "features": -1}


class Unfit(Exception):
    """Why a replacement cannot stand at a place: `node` is the one of `replace` that it is about."""

    def __init__(self, reason: str, node: str | None = None, fix: str | None = None):
        super().__init__(reason)
        self.reason, self.node, self.fix = reason, node, fix


@dataclass(frozen=True)
class Open:
    """An option to be worked out at each place."""

    text: str
    made: Expression


@dataclass(frozen=True)
class Put:
    """One node of a replacement. op None: the matched node's own, its options with these over them; inputs None: what it reads now."""

    name: str
    op: str | None = None
    inputs: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    init: str = "fresh"

    @property
    def changes(self) -> bool:
        """Whether it is another node than the matched one."""
        return self.op is not None or self.inputs is not None or bool(self.options)

    def attrs(self, arch: Architecture, bound: Mapping[str, str], others: Mapping[str, Put]) -> tuple[str, object]:
        """(op, its options) at a place: `bound` says which node each one of the pattern is, `others` what is put beside. Raises Unfit."""
        has = arch.nodes[bound[self.name]] if self.name in bound else None
        op = self.op or has.op
        given = {key: _worked_out(v, arch, bound, others, self.name) for key, v in self.options.items()}
        if self.op is None:
            if not given:
                return op, has.attrs
            given = {**has.attrs.model_dump(), **given}
        try:
            return op, ops.REGISTRY.get(op).Options.model_validate(given)
        except pydantic.ValidationError as error:
            _, message, hint, _ = phrases(error, f"{self.name!r} ({op})", lambda _: ops.REGISTRY.get(op).Options.model_fields)[0]
            raise Unfit(f"{self.name!r}: {message}", self.name, hint) from None


def puts(replace: Mapping[str, Any], pattern: Pattern, faults: list[Misfit]) -> tuple[Mapping[str, Put], str] | None:
    """(nodes, the one that takes the place of the pattern's end) of a rule's `replace`; None, with what is wrong."""
    before = len(faults)
    if not replace or len(replace) > MOST_NODES:
        faults.append(Misfit("replace names the nodes to put there" if not replace else f"a replacement has at most {MOST_NODES} nodes", at=("replace",),
                             fix="such as replace: {act: {op: gelu, in: norm}}"))
        return None
    nodes = {name: _put(name, row, replace, pattern, faults) for name, row in replace.items()}
    if len(faults) > before:
        return None
    reads = {n: w.named for n, w in pattern.nodes.items()} | {n: p.inputs for n, p in nodes.items() if p.inputs is not None}
    try:
        order = tuple(graphlib.TopologicalSorter(reads).static_order())
    except graphlib.CycleError as error:
        name = next(n for n in error.args[1] if n in nodes)
        fix = "a node with a matched node's name takes its place: give a new node a new name" if name in pattern.nodes else None
        faults.append(Misfit(f"a cycle: {' -> '.join(error.args[1][::-1])}", at=("replace", name), fix=fix, key=True))
        return None
    leads: dict[str, bool] = {}  # whether it leads to another node of the replacement
    for name in reversed(order):
        leads[name] = any(name in reads.get(r, ()) and (r in nodes or leads.get(r, False)) for r in order)
    ends = [n for n in nodes if not leads[n]]
    if len(ends) > 1:
        faults.append(Misfit(f"the replacement has {len(ends)} ends ({', '.join(ends)}); one takes the place of {pattern.end!r}", at=("replace", ends[1]),
                             fix="leave out what nothing reads", key=True))
        return None
    return nodes, ends[0]


def _put(name: str, row: Any, replace: Mapping[str, Any], pattern: Pattern, faults: list[Misfit]) -> Put:
    at, row = ("replace", name), {} if row is None else row
    if not NAME.match(name):
        faults.append(Misfit(f"{name[:80]!r} cannot name a node", at=at, fix="use letters, digits and _ (40 at most, no digit first)", key=True))
    if not isinstance(row, Mapping):
        faults.append(Misfit(f"{name!r} is a mapping, not {shown(row)}", at=at, fix=f"such as {name}: {{op: relu, in: …}}"))
        return Put(name)
    matched, op = pattern.nodes.get(name), row.get("op")
    if matched is not None and matched.free:
        faults.append(Misfit(f"{name!r} stands for any node, and stays as it is", at=at, fix="to put something there, give it an op in match", key=True))
    if op is None and matched is None:
        fix = did_you_mean(name, pattern.nodes, "say which: op: …")
        faults.append(Misfit(f"{name!r} has no op, and is no node of the pattern", at=at, fix=fix, key=True))
    if op == "input":
        faults.append(Misfit("an input cannot be put into a network", at=(*at, "op")))
    known = op is not None and known_op(op, (*at, "op"), faults)
    rules = [ops.REGISTRY.get(o) for o in ((op,) if known else matched.ops if matched is not None and op is None else ())]
    inputs = names_read(row["in"], (*at, "in"), (*replace, *pattern.nodes), "is neither matched nor put there", faults) if row.get("in") is not None else None
    if inputs is None and matched is None and known:
        faults.append(Misfit(f"{name!r} does not say what it reads", at=at, fix=f"add in: and a name, such as {pattern.end}", key=True))
    for rule in rules if inputs else ():
        if len(inputs) < rule.fewest or (rule.most is not None and len(inputs) > rule.most):
            wanted = f"{rule.fewest}" if rule.fewest == rule.most else f"at least {rule.fewest}"
            faults.append(Misfit(f"{rule.name} takes {wanted} input{'s' if wanted != '1' else ''}, {name!r} has {len(inputs)}", at=(*at, "in")))
    init = row.get("init", "fresh")
    if init not in INITS:
        faults.append(Misfit(f"init is one of {', '.join(INITS)}, not {shown(init)}", at=(*at, "init"), fix=did_you_mean(str(init), INITS, "")))
    elif init == "identity" and any(r.role not in ("affine", "norm") for r in rules):
        faults.append(Misfit(f"init: identity is for linear maps, convolutions and batch norms, not {rules[0].name}", at=(*at, "init")))
    options = {k: _read(v, rules, k, pattern, replace, (*at, k), faults) for k, v in row.items() if k not in OWN}
    for rule in rules:
        _check_options(rule, name, options, at, op is None, faults)
    return Put(name, op if known else None, inputs, options, init)


def _check_options(rule: type[ops.Op], name: str, options: Mapping[str, Any], at: tuple, partly: bool, faults: list[Misfit]) -> None:
    """The options that are told as they are; those to be worked out, and with `partly` those not given, are left aside."""
    waiting, known = {k for k, v in options.items() if _waits(v)}, rule.Options.model_fields
    try:
        rule.Options.model_validate({k: v for k, v in options.items() if k not in waiting})
    except pydantic.ValidationError as error:
        missing = {str(e["loc"][-1]) for e in error.errors(include_url=False) if e["type"] == "missing"}
        excused = {f"needs {m!r}" for m in missing if partly or m in waiting}
        for path, message, hint, key in phrases(error, f"{name!r} ({rule.name})", lambda p: () if p else (*OWN, *known)):
            if not any(message.endswith(e) for e in excused):
                faults.append(Misfit(message, at=(*at, *path), fix=hint, key=key))
    for key in waiting - set(known):
        faults.append(Misfit(f"unknown key {key[:40]!r} in {name!r} ({rule.name})", at=(*at, key), fix=did_you_mean(key, (*OWN, *known)), key=True))


def _waits(given: Any) -> bool:
    return any(map(_waits, given)) if isinstance(given, list) else isinstance(given, Open)


def _read(given: Any, rules: list[type[ops.Op]], key: str, pattern: Pattern, replace: Mapping[str, Any], at: tuple, faults: list[Misfit]) -> Any:
    """An option's value, arithmetic in it read."""
    if isinstance(given, (list, tuple)):
        return [_read(v, rules, key, pattern, replace, (*at, k), faults) for k, v in enumerate(given)]
    fields = [r.Options.model_fields[key] for r in rules if key in r.Options.model_fields]
    words = bool(fields) and all(f.annotation is str or set(map(type, get_args(f.annotation))) == {str} for f in fields)
    if not isinstance(given, str) or words or not is_arithmetic(given):
        return given
    try:
        made = parse(given)
        named = list(sizes(made))
        for size in named:
            _known_size(size, given, pattern, replace)
        return Open(given, made) if named else value(made, lambda _: 0)
    except (NotArithmetic, Misfit) as error:
        faults.append(Misfit(str(error), at=at, fix=getattr(error, "fix", None)))
        return Open(given, 0)


def _known_size(size: Size, text: str, pattern: Pattern, replace: Mapping[str, Any]) -> None:
    if size.node in pattern.nodes:
        known = {*SIZES, *(k for op in pattern.nodes[size.node].ops for k in ops.REGISTRY.get(op).Options.model_fields)}
        if size.size not in known and pattern.nodes[size.node].ops:
            raise Misfit(f"{text!r}: {size.node!r} has no size {size.size!r}", fix=did_you_mean(size.size, sorted(known)))
        return
    given = replace.get(size.node)
    if not isinstance(given, Mapping):
        raise Misfit(f"{text!r}: {size.node!r} is neither matched nor put there", fix=did_you_mean(size.node, (*pattern.nodes, *replace)))
    if size.size not in given:
        raise Misfit(f"{text!r}: {size.node!r} is given no {size.size!r}", fix="of a node that is put there, only what the rule gives it is known")


def _worked_out(given: Any, arch: Architecture, bound: Mapping[str, str], others: Mapping[str, Put], name: str) -> Any:
    """The option's value at a place. Raises Unfit."""
    if isinstance(given, list):
        return [_worked_out(v, arch, bound, others, name) for v in given]
    if not isinstance(given, Open):
        return given

    def look(size: Size, deep: int = 0) -> int:
        if size.node in bound:
            return _size(size, arch, bound[size.node])
        there = others[size.node].options[size.size]
        if isinstance(there, Open) and deep < MOST_NODES:
            return value(there.made, lambda s: look(s, deep + 1))
        if not isinstance(there, int) or isinstance(there, bool):
            raise NotArithmetic(f"{size.node}.{size.size} is no number")
        return there

    try:
        return value(given.made, look)
    except NotArithmetic as error:
        raise Unfit(f"{name!r}: {given.text}: {error}", name) from None


def _size(size: Size, arch: Architecture, node: str) -> int:
    """The node's own option of that name, or a dimension of its output."""
    has = getattr(arch.nodes[node].attrs, size.size, None)
    if isinstance(has, int) and not isinstance(has, bool):
        return has
    shape = arch.shapes[node]
    place = SIZES.get(size.size)
    if place is None or (place == -2 and len(shape) < 2):
        raise NotArithmetic(f"{node} of shape {list(shape)} has no {size.size}")
    return shape[place]
