"""The left side of a rewrite rule: which nodes it looks for, and where an architecture has them."""

from __future__ import annotations

import graphlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dagrow import ops
from dagrow.graph import Architecture, Node
from dagrow.registry import Misfit
from dagrow.spec.explaining import did_you_mean, shown

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}\Z")
ANY, MORE = "*", "..."
OWN = ("op", "role", "in")
ROLES = ("affine", "activation", "norm", "sum", "other")
MOST_NODES = 32
# A pattern of sums of many inputs has many ways to lie on a network.
MOST_TRIED, MOST_FOUND = 100_000, 1000


@dataclass(frozen=True)
class Wanted:
    """One node of a pattern. No op and no role: any node, which the rule leaves as it is. inputs None: whatever it reads."""

    name: str
    ops: tuple[str, ...] = ()
    role: str | None = None
    inputs: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def free(self) -> bool:
        return not self.ops and self.role is None

    @property
    def named(self) -> tuple[str, ...]:
        """The nodes of the pattern that it reads."""
        return tuple(i for i in self.inputs or () if i not in (ANY, MORE))

    def differs(self, node: Node, name: str) -> str | None:
        """Why a node is not the wanted one, its inputs left aside; None where it is."""
        if self.ops and node.op not in self.ops:
            return f"{name} is {node.op}, not {' or '.join(self.ops)}"
        if self.role is not None and node.rule.role != self.role:
            return f"{name} is {node.op}, of role {node.rule.role}, not {self.role}"
        for key, wanted in self.options.items():
            has = getattr(node.attrs, key)
            if not _fits(has, wanted):
                return f"{name} has {key} {shown(has)}, not {_said(wanted)}"
        return None

    def arrangements(self, node: Node) -> Iterator[tuple[tuple[str, str], ...]]:
        """The ways its inputs may be the node's: (name in the pattern, node) pairs. A sum's inputs have no order."""
        if self.inputs is None:
            yield ()
            return
        wanted = tuple(i for i in self.inputs if i != MORE)
        if len(node.inputs) < len(wanted) or (len(node.inputs) > len(wanted) and MORE not in self.inputs):
            return
        if node.rule.role != "sum":
            yield tuple((p, i) for p, i in zip(wanted, node.inputs) if p != ANY)
            return
        seen = set()
        for chosen in itertools.permutations(node.inputs, len(self.named)):
            if chosen not in seen:
                seen.add(chosen)
                yield tuple(zip(self.named, chosen, strict=True))


@dataclass
class Near:
    """The most of a pattern that was found in one place, and what was missing there."""

    bound: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    rank: float = -1

    def note(self, bound: Mapping[str, str], reason: str, rank: float | None = None) -> None:
        rank = len(bound) if rank is None else rank
        if rank > self.rank:
            self.bound, self.reason, self.rank = dict(bound), reason, rank

    def __str__(self) -> str:
        if not self.bound:
            return self.reason
        return f"it got as far as {', '.join(f'{p} = {n}' for p, n in self.bound.items())}; there {self.reason}"


@dataclass(frozen=True)
class Pattern:
    """Nodes, each feeding the one `end`."""

    nodes: Mapping[str, Wanted]
    end: str

    @staticmethod
    def parse(match: Mapping[str, Any], faults: list[Misfit]) -> Pattern | None:
        """The pattern that a rule's `match` says; None, with what is wrong, where it says none."""
        before = len(faults)
        if not match or len(match) > MOST_NODES:
            faults.append(Misfit("match names the nodes to look for" if not match else f"a pattern has at most {MOST_NODES} nodes", at=("match",),
                                 fix="such as match: {conv: {op: conv2d}, act: {op: relu, in: conv}}"))
            return None
        nodes = {name: _wanted(name, row, match, faults) for name, row in match.items()}
        if len(faults) > before:
            return None
        try:
            tuple(graphlib.TopologicalSorter({n: w.named for n, w in nodes.items()}).static_order())
        except graphlib.CycleError as error:
            faults.append(Misfit(f"a cycle: {' -> '.join(error.args[1][::-1])}", at=("match", error.args[1][0], "in")))
            return None
        read = {i for w in nodes.values() for i in w.named}
        ends = [n for n in nodes if n not in read]
        if len(ends) > 1:
            faults.append(Misfit(f"the pattern has {len(ends)} ends ({', '.join(ends)}); every node leads to one", at=("match", ends[1]), key=True,
                                 fix="say by in: which reads which"))
            return None
        if nodes[ends[0]].free:
            faults.append(Misfit(f"{ends[0]!r}, the pattern's end, may be any node", at=("match", ends[0]), fix="give it an op", key=True))
            return None
        return Pattern(nodes, ends[0])

    def find(self, arch: Architecture, near: Near) -> list[dict[str, str]]:
        """Every place where the pattern lies on the network: pattern name -> node, in the network's order; at most MOST_FOUND."""
        found: list[dict[str, str]] = []
        left = [MOST_TRIED]
        for name in arch.order:
            for bound in self._extended({}, [(self.end, name)], arch, near, left):
                found.append({p: bound[p] for p in self.nodes})
                if len(found) == MOST_FOUND:
                    return found
        return found

    def _extended(self, bound: dict[str, str], todo: list[tuple[str, str]], arch: Architecture, near: Near, left: list[int]) -> Iterator[dict[str, str]]:
        """`bound` with the pairs (pattern name, node) of `todo`, and all that they read."""
        left[0] -= 1
        if left[0] < 0:
            return
        if not todo:
            yield bound
            return
        (wanted, name), *rest = todo
        if wanted in bound:
            if bound[wanted] == name:
                yield from self._extended(bound, rest, arch, near, left)
            else:
                near.note(bound, f"{wanted!r} would be both {bound[wanted]} and {name}")
            return
        rule, node = self.nodes[wanted], arch.nodes[name]
        reason = f"{name} would be both {wanted!r} and another" if name in bound.values() else rule.differs(node, name)
        if reason is not None:
            if bound:
                near.note(bound, f"for {wanted!r}: {reason}")
            elif node.op in rule.ops:
                near.note(bound, f"no node is its end {wanted!r}: {reason}", 0.5)
            else:
                near.note(bound, f"no node is its end {wanted!r}: {' or '.join(rule.ops) or f'of role {rule.role}'}")
            return
        fits = False
        for pairs in rule.arrangements(node):
            fits = True
            yield from self._extended({**bound, wanted: name}, [*pairs, *rest], arch, near, left)
            if left[0] < 0:
                return
        if not fits:
            near.note({**bound, wanted: name}, f"{name} reads {len(node.inputs)} node{'s' if len(node.inputs) != 1 else ''}, the pattern says {len(rule.inputs)}")


def _wanted(name: str, row: Any, match: Mapping[str, Any], faults: list[Misfit]) -> Wanted:
    at = ("match", name)
    if not NAME.match(name):
        faults.append(Misfit(f"{name[:80]!r} cannot name a node of a pattern", at=at, fix="use letters, digits and _ (40 at most, no digit first)", key=True))
    if row is not None and not isinstance(row, Mapping):
        faults.append(Misfit(f"{name!r} is a mapping, not {shown(row)}", at=at, fix=f"such as {name}: {{op: relu, in: …}}"))
        return Wanted(name)
    row = row or {}
    given = row.get("op", [])
    known = [op for op in (given if isinstance(given, (list, tuple)) else [given]) if known_op(op, (*at, "op"), faults)]
    role = row.get("role")
    if role is not None and role not in ROLES:
        faults.append(Misfit(f"unknown role {shown(role)}", at=(*at, "role"), fix=did_you_mean(str(role), ROLES)))
    options = {k: v for k, v in row.items() if k not in OWN}
    for key, wanted in options.items():
        if not given:
            faults.append(Misfit(f"{name!r} has the option {key[:40]!r} and no op", at=(*at, key), fix="say which op", key=True))
        for op in known:
            if key not in ops.REGISTRY.get(op).Options.model_fields:
                fix = did_you_mean(key, [*OWN, *ops.REGISTRY.get(op).Options.model_fields], "")
                faults.append(Misfit(f"{op} has no option {key[:40]!r}", at=(*at, key), fix=fix or None, key=True))
        if isinstance(wanted, Mapping) and (not wanted or not set(wanted) <= {"min", "max"} or not all(_number(v) for v in wanted.values())):
            faults.append(Misfit(f"{key!r} is a value, a list of values, or a range", at=(*at, key), fix="such as {min: 8, max: 64}"))
    inputs = names_read(row["in"], (*at, "in"), (*match, ANY, MORE), "is not in the pattern", faults) if row.get("in") is not None else None
    if inputs and MORE in inputs[:-1]:
        faults.append(Misfit('"..." comes last: it stands for any further inputs', at=(*at, "in")))
    if inputs is not None and not given and role is None:
        faults.append(Misfit(f"{name!r} may be any node: what it reads is not looked at", at=(*at, "in"), fix="give it an op, or leave out in", key=True))
    return Wanted(name, tuple(known), role, inputs, options)


def known_op(op: Any, at: tuple, faults: list[Misfit]) -> bool:
    if isinstance(op, str) and op in ops.REGISTRY:
        return True
    near = ops.REGISTRY.suggest(str(op)[:80])
    faults.append(Misfit(f"unknown op {shown(op)}", at=at, fix=f"did you mean {near!r}?  (dagrow ops)" if near else "see: dagrow ops"))
    return False


def names_read(given: Any, at: tuple, known: tuple[str, ...], lost: str, faults: list[Misfit]) -> tuple[str, ...]:
    """The names an `in` lists; those that are not `known` are faults."""
    found = []
    for k, name in enumerate(given if isinstance(given, (list, tuple)) else [given]):
        place = (*at, k) if isinstance(given, (list, tuple)) else at
        if not isinstance(name, str) or name not in known:
            faults.append(Misfit(f"{shown(name)} {lost}", at=place, fix=did_you_mean(str(name), known)))
        else:
            found.append(name)
    return tuple(found)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits(has: Any, wanted: Any) -> bool:
    """Equal, in a list, or in a range."""
    has = list(has) if isinstance(has, tuple) else has
    if isinstance(wanted, Mapping):
        return _number(has) and wanted.get("min", has) <= has <= wanted.get("max", has)
    if isinstance(wanted, (list, tuple)):
        return has == list(wanted) or has in wanted
    return has == wanted and isinstance(has, bool) == isinstance(wanted, bool)


def _said(wanted: Any) -> str:
    if isinstance(wanted, Mapping):
        low, high = wanted.get("min"), wanted.get("max")
        return f"{low} to {high}" if low is not None and high is not None else f"at least {low}" if high is None else f"at most {high}"
    return " or ".join(map(shown, wanted)) if isinstance(wanted, (list, tuple)) else shown(wanted)
