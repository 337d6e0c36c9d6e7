"""rule: a rewrite that a user writes: a pattern of nodes, and what takes its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import pydantic
import torch
from torch import Tensor

from dagrow.edits import REGISTRY, Edit, EditOptions, Remark
from dagrow.edits.patterns import Near, Pattern
from dagrow.edits.putting import Unfit, puts
from dagrow.edits.replacing import Replaced, Replacement
from dagrow.graph import Architecture, Refusal, Rewrite
from dagrow.measure.passes import Pass
from dagrow.measure.sites import Site, Swap
from dagrow.registry import Misfit, misfitting
from dagrow.scores import Proposal

BOTTLENECK = {
    "name": "bottleneck",
    "match": {"conv": {"op": "conv2d"}, "act": {"role": "activation", "in": "conv"}},
    "replace": {
        "down": {"op": "conv2d", "in": "act", "channels": "max(1, act.channels // 2)", "kernel": 1},
        "mid": {"op": "tanh", "in": "down"},
        "up": {"op": "conv2d", "in": "mid", "channels": "act.channels", "kernel": 1, "init": "zero"},
        "out": {"op": "add", "in": ["act", "up"]},
    },
}
SMOOTHER = {"name": "smoother", "match": {"act": {"op": ["relu", "tanh"]}}, "replace": {"act": {"op": "silu"}}}
STRAIGHT = {
    "name": "straight", "match": {"map": {"op": "linear"}, "act": {"role": "activation", "in": "map"}},
    "replace": {"more": {"op": "linear", "in": "map", "width": "map.width", "init": "identity"}, "act": {"in": "more"}},
}  # fmt: skip

# Nodes that a rule makes are numbered behind its name.
NAMED = re.compile(r"[A-Za-z_]([A-Za-z0-9_]{0,38}[A-Za-z_])?\Z")


@REGISTRY.register("rule")
class Rule(Edit):
    """A rewrite of your own: where a pattern of nodes is found, others take its place.

    Whether the function stays is found out by running both networks; where it does, the gain is told by derivatives in
    what the rule brings along, elsewhere by a trial.
    """

    examples = (BOTTLENECK, SMOOTHER, STRAIGHT)

    class Options(EditOptions):
        """`where` is matched against the names of the matched nodes: one of them has to fit."""

        name: str = pydantic.Field("rule", description="what its sites and the nodes it makes are called after")
        match: dict[str, Any] = pydantic.Field({}, description="the nodes to look for: {name: {op, in, options}}")
        replace: dict[str, Any] = pydantic.Field({}, description="the nodes to put there; the last of them serves whoever read the pattern's end")
        once: bool = pydantic.Field(False, description="not where it has been applied before")

        _made: Replacement | None = pydantic.PrivateAttr(None)
        _key: str = pydantic.PrivateAttr("")

        @pydantic.model_validator(mode="after")
        def _read(self):
            faults: list[Misfit] = []
            if not NAMED.match(self.name):
                faults.append(Misfit(f"{self.name[:80]!r} cannot name a rule", at=("name",), fix="use letters, digits and _ (40 at most), a digit neither first nor last"))
            pattern = Pattern.parse(self.match, faults) if self.match or self.replace else None
            found = puts(self.replace, pattern, faults) if pattern is not None else None
            if faults:
                raise misfitting("rule", faults)
            if found is not None:
                self._made = Replacement(pattern, *found)
            self._key = json.dumps(self.model_dump(mode="json"), sort_keys=True)
            return self

        def __hash__(self) -> int:
            return hash(self._key)

    @staticmethod
    def known_as(options) -> str:
        return f"rule {options.name}"

    @classmethod
    def match(cls, arch: Architecture, options) -> Iterator[Site]:
        for bound, made in _applied(arch, options)[0]:
            yield from cls._site(arch, options, bound, made)

    @classmethod
    def _site(cls, arch: Architecture, options, bound: Mapping[str, str], made: Replaced) -> Iterator[Site]:
        old = bound[options._made.pattern.end]
        others = [b for b, _ in _applied(arch, options)[0] if b[options._made.pattern.end] == old]
        told = f" ({', '.join(f'{p} = {n}' for p, n in bound.items())})" if len(others) > 1 else ""
        target = _target(arch, old)
        end = (made.end if target == old else target) if target else None
        inits = {made.names[n]: put.init for n, put in options._made.nodes.items() if made.names[n] in made.new}
        nodes = (*made.new, *(n for n in made.names.values() if n in arch.nodes and n in made.arch.nodes and arch.nodes[n].op != made.arch.nodes[n].op))
        form = Swap(made.arch, nodes, end, target, start=partial(_start, made.arch, inits, made.copied))
        yield Site(cls.name, f"{options.name} at {old}{told}", form, (1,), (options.name, *bound.items()))

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        return Rewrite(site.form.frame, (), None)

    @staticmethod
    def remarks(arch: Architecture, options) -> Iterator[Remark]:
        """Where the pattern is not found, how far it got; where what it puts does not fit, why."""
        if options._made is None:
            yield Remark("a rule needs match and replace", ("name",), "such as rule: {name: smoother, match: {act: {op: relu}}, replace: {act: {op: gelu}}}", True)
            return
        sites, unfit, near = _applied(arch, options)
        if not sites and not unfit:
            yield Remark(f"rule {options.name}: its pattern is found nowhere in the seed network: {near}", ("match",))
        elif unfit:
            reason, place = unfit[0]
            at = ("replace", reason.node) if reason.node else ("match",)
            told = f"{reason.reason} (at {place})"
            if sites:
                yield Remark(f"rule {options.name}: not possible at {len(unfit)} of {len(sites) + len(unfit)} places: {told}", at, reason.fix)
            else:
                yield Remark(f"rule {options.name}: {told}", at, reason.fix, wrong=reason.node is not None)


def _applied(arch: Architecture, options) -> tuple[list[tuple[dict[str, str], Replaced]], list[tuple[Unfit, str]], Near]:
    """(places with the network that the rule makes of each, places where it cannot be and why, the nearest thing to a place)."""
    key = ("rule", options._key)
    if key not in arch.memo:
        arch.memo[key] = _apply(arch, options)
    return arch.memo[key]


def _apply(arch: Architecture, options):
    near, rule = Near(), options._made
    sites: dict[str, tuple[dict[str, str], Replaced]] = {}
    unfit: list[tuple[Unfit, str]] = []
    for bound in rule.pattern.find(arch, near) if rule is not None else ():
        matched = [n for p, n in bound.items() if not rule.pattern.nodes[p].free]
        if not options.covers(*matched):
            near.note(bound, f"none of them is in {options.where!r}")
            continue
        if options.once and any(map(partial(_is_of, options.name), (*matched, *arch.consumers[bound[rule.pattern.end]]))):
            near.note(bound, "the rule has been applied already")
            continue
        try:
            made = rule.apply(arch, bound, options.name)
        except Unfit as reason:
            unfit.append((reason, bound[rule.pattern.end]))
        else:
            if made.arch != arch:
                sites.setdefault(made.arch.digest, (bound, made))
    return list(sites.values()), unfit, near


def _is_of(rule: str, node: str) -> bool:
    """Whether the rule made the node: its names end in no digit, what it makes lies in a numbered group of that name."""
    return re.fullmatch(rf"{rule}[0-9]+", node.partition(".")[0]) is not None


def _target(arch: Architecture, name: str) -> str | None:
    """The affine node through which alone a change of `name` is felt; None where there is none."""
    while arch.nodes[name].rule.role != "affine":
        readers = set(arch.consumers[name])
        if name in arch.outputs or len(readers) != 1:
            return None
        (name,) = readers
    return name


def _start(arch: Architecture, inits: Mapping[str, str], copied: Mapping[str, str], seen: Pass) -> dict[str, Tensor]:
    """Values of new parameters and buffers, where they are not freshly drawn."""
    made = {new: seen.weights[old] for new, old in copied.items()}
    for node, init in inits.items():
        for local, full in arch.formed.locals[node].items():
            if full in arch.params and full not in made and full not in seen.weights:
                value = STARTS[init](arch, node, local, arch.params[full])
                if value is not None:
                    made[full] = value
    return made


def _identity(arch: Architecture, node: str, local: str, shape: tuple[int, ...]) -> Tensor:
    """Of a square linear map or convolution, or a batch norm with the statistics it starts from."""
    value = torch.zeros(shape, dtype=torch.float64)
    if local != "weight":
        return value
    if len(shape) == 1:
        return value + (1 + arch.nodes[node].attrs.eps) ** 0.5
    centre = tuple(k // 2 for k in shape[2:])
    for unit in range(shape[0]):
        value[(unit, unit % shape[1], *centre)] = 1.0
    return value


STARTS = MappingProxyType({"fresh": lambda *_: None, "zero": lambda arch, node, local, shape: torch.zeros(shape, dtype=torch.float64), "identity": _identity})
