"""Macros, `use`, `repeat` and chains: a model as written to a flat mapping of nodes under full names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dagrow.spec.chain import chain
from dagrow.spec.explaining import did_you_mean
from dagrow.spec.tree import PLACEHOLDER, Place, Source, Tree, mapping

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,15}\Z")
PARAMETER = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\Z")
MOST_EXPANDED = 2000
MOST_MACROS_DEEP = 16
TIED = "such as: tied: {weight: encoder.weight}"
NAME_RULE = "use letters, digits and _ (64 at most, no digit first), with dots between segments"
MODEL_KEYS = ("input", "nodes", "layers", "output", "py", "args", "opaque")
CODE_KEYS = ("py", "args", "opaque")
MACRO_KEYS = ("params", "nodes", "layers")


class _TooMany(Exception):
    pass


@dataclass(frozen=True)
class _Scope:
    """What names and parameters mean inside one use of a macro; at the top level `params` is None."""

    prefix: str = ""
    macro: str = ""
    local: frozenset[str] = frozenset()
    params: dict[str, tuple[Tree, bool]] | None = None  # value, and whether it was given (then its names are the user's)
    inputs: tuple[Tree, ...] | None = None
    stack: tuple[str, ...] = ()
    outer: _Scope | None = None


def expand(model: Tree, macros: Tree | None, source: Source) -> Tree:
    """The model as {input, nodes: {full name: {op, inputs, attrs, positional}}, output}. Problems are reported to `source`."""
    return _Expansion(macros, source).model(model)


class _Expansion:
    def __init__(self, macros: Tree | None, source: Source):
        self.source = source
        self.nodes: dict[str, Tree] = {}
        self.places: dict[str, Place] = {}
        self.aliases: dict[str, str] = {}
        self.macros: dict[str, Tree] = {}
        self.made = 0  # nodes, and uses of macros: those that make no nodes come to an end too
        if macros is not None and not isinstance(macros.value, dict):
            source.report(macros.place, f"macros is a mapping, not {macros.kind}")
        elif macros is not None:
            for name, macro in macros.items():
                self.macros[name] = self._macro(name, macro, macros.key(name))

    def _macro(self, name: str, macro: Tree, place: Place) -> Tree:
        """The macro with its body as `nodes`."""
        empty = mapping(place, params=Tree({}, place), nodes=Tree({}, place))
        if not isinstance(macro.value, dict):
            self.source.report(place, f"the macro {name!r} is a mapping with nodes or layers, not {macro.kind}")
            return empty
        self._keys(macro, MACRO_KEYS, f"the macro {name!r}")
        params = macro.get("params") or Tree({}, place)
        if not isinstance(params.value, dict):
            self.source.report(params.place, f"params is a mapping of names and defaults, not {params.kind}", "such as: params: {channels: 8}")
            params = Tree({}, place)
        if "in" in params.value:
            self.source.report(params.key("in"), "a macro has $in without asking", "leave it out of params")
        return mapping(place, params=params, nodes=self._body(macro, "$in", f"the macro {name!r}", place))

    def _keys(self, tree: Tree, known: tuple[str, ...], owner: str) -> None:
        for key in tree.value:
            if key not in known:
                self.source.report(tree.key(key), f"unknown key {key[:80]!r} in {owner}", did_you_mean(key, known))

    def _body(self, tree: Tree, first: str, owner: str, place: Place) -> Tree:
        nodes, layers = tree.get("nodes"), tree.get("layers")
        if nodes is not None and layers is not None:
            self.source.report(tree.key("layers"), f"{owner} has both nodes and layers", "keep one of them")
        if layers is not None and nodes is None:
            return chain(layers, first, set(self.macros), self.source)
        if nodes is None or not isinstance(nodes.value, dict) or not nodes.value:
            found = "none" if nodes is None else nodes.kind if nodes.value else "an empty one"
            self.source.report(place if nodes is None else nodes.place, f"{owner} needs nodes or layers, there is {found}",
                               "such as: layers: [linear 8, relu, linear 10]")
            return Tree({}, place)
        return nodes

    def model(self, model: Tree) -> Tree:
        if not isinstance(model.value, dict):
            self.source.report(model.place, f"model is a mapping with nodes or layers, not {model.kind}", "such as: layers: [linear 8, relu, linear 10]")
            return mapping(model.place, nodes=Tree({}, model.place))
        self._keys(model, MODEL_KEYS, "model")
        if "py" in model.value:
            return self._code(model)
        for key in CODE_KEYS:
            if key in model.value:
                self.source.report(model.key(key), f"{key} goes with py", "such as: py: package.module:function")
        model = model.without(*CODE_KEYS)
        body = self._body(model, "input", "model", model.place)
        try:
            self._expand(body, _Scope(local=frozenset(body.value)))
        except _TooMany:
            self.source.report(body.place, f"more than {MOST_EXPANDED:,} nodes once macros are expanded", "repeat fewer times")
        for name, node in self.nodes.items():
            refs = node.value["inputs"]
            refs.value = [self._resolved(ref) for ref in refs.value]
        full = Tree({"nodes": Tree(self.nodes, body.place, self.places)}, model.place, {**model.keys, "nodes": body.place})
        if (given := model.get("input")) is not None:
            full.value["input"] = given
        if (output := model.get("output")) is not None:
            full.value["output"] = self._resolved(output)
        return full

    def _code(self, model: Tree) -> Tree:
        """A model that a function of the user's makes."""
        for key in model.value:
            if key in ("nodes", "layers", "output"):
                self.source.report(model.key(key), f"model has both py and {key}", "keep one of them")
        return model.without("nodes", "layers", "output")

    def _resolved(self, ref: Tree) -> Tree:
        """A macro's instance, named as an input, means its output."""
        name = ref.value
        while isinstance(name, str) and name in self.aliases and name not in self.nodes:
            name = self.aliases[name]
        return Tree(name, ref.place)

    def _expand(self, body: Tree, scope: _Scope) -> str | None:
        """Expands the nodes of a body; the full name of its output."""
        full = None
        for name, item in body.items():
            place = body.key(name)
            if not NAME.match(name):
                self.source.report(place, f"{name[:80]!r} cannot name a node", NAME_RULE)
                continue
            if name == "input":
                self.source.report(place, "'input' is the network's input", "give the node another name, or set model.input.shape")
                continue
            full = scope.prefix + name
            if not NAME.match(full):
                self.source.report(place, f"{full[:80]!r} is too long for a name once macros are expanded", NAME_RULE)
                continue
            if full in self.nodes or full in self.aliases:
                self.source.report(place, f"{full!r} is there twice once macros are expanded", "rename one of them")
                continue
            if not isinstance(item.value, dict):
                self.source.report(item.place, f"the node {name!r} is a mapping, not {item.kind}", f"such as {name}: {{op: relu, in: …}}")
                continue
            if "use" in item.value:
                self._use(name, item, place, scope)
            else:
                self._node(name, item, place, scope)
        if "out" in body.value:
            return scope.prefix + "out"
        return full

    def _node(self, name: str, item: Tree, place: Place, scope: _Scope) -> None:
        self._count()
        op = self._substituted(item.get("op"), scope) if "op" in item.value else None
        if op is None:
            self.source.report(place, f"the node {name!r} has no op", "such as: {op: relu, in: …}")
            op = Tree(PLACEHOLDER, place)
        elif not isinstance(op.value, str):
            self.source.report(op.place, f"the op of {name!r} is a name, not {op.kind}")
        if "repeat" in item.value:
            self.source.report(item.key("repeat"), "only a macro repeats", "make the node a macro and use: it")
        attrs = item.without("op", "in", "positional", "repeat", "tied")
        attrs = Tree({k: self._substituted(v, scope) for k, v in attrs.items()}, item.place, attrs.keys)
        inputs = self._inputs(name, item, place, scope)
        node = Tree({"op": op, "inputs": Tree(list(inputs), item.get("in").place if "in" in item.value else place), "attrs": attrs}, item.place,
                    {**item.keys, "inputs": item.key("in")})
        if (positional := item.get("positional")) is not None:
            node.value["positional"] = self._substituted(positional, scope)
        if (tied := item.get("tied")) is not None:
            node.value["tied"] = self._tied(name, tied, scope)
        self.nodes[scope.prefix + name], self.places[scope.prefix + name] = node, place

    def _count(self) -> None:
        self.made += 1
        if self.made > MOST_EXPANDED:
            raise _TooMany

    def _inputs(self, name: str, item: Tree, place: Place, scope: _Scope) -> tuple[Tree, ...]:
        given = item.get("in")
        if given is None or given.value is None:
            self.source.report(place, f"the node {name!r} does not say what it reads", f"add in: {'$in' if scope.params is not None else 'input'}, or another node")
            return ()
        return tuple(ref for row in (given.value if isinstance(given.value, list) else [given]) for ref in self._reference(row, scope))

    def _tied(self, name: str, given: Tree, scope: _Scope) -> Tree:
        """{local name: full name} of the parameters that are another node's."""
        if not isinstance(given.value, dict):
            self.source.report(given.place, f"tied is a mapping of parameters of {name!r} to those of another node, not {given.kind}", TIED)
            return Tree({}, given.place)
        rows = {}
        for local, row in given.items():
            # A parameter is named by its node, as an input is.
            found = self._reference(row, scope)
            if not isinstance(row.value, str) or len(found) != 1 or not NAME.match(local) or not NAME.match(str(found[0].value)):
                if isinstance(row.value, str) and found:
                    self.source.report(given.key(local), f"{name!r} ties {local[:80]!r} to {row.value[:80]!r}, which names no parameter", TIED)
                continue
            rows[local] = found[0]
        return Tree(rows, given.place, given.keys)

    def _reference(self, row: Tree, scope: _Scope) -> tuple[Tree, ...]:
        """The full names one entry of `in` stands for."""
        if isinstance(row.value, str) and (found := PARAMETER.match(row.value)) and scope.params is not None:
            if found[1] == "in":
                return scope.inputs or ()
            if found[1] in scope.params:
                value, given = scope.params[found[1]]
                rows = value.value if isinstance(value.value, list) else [value]
                return tuple(ref for r in rows for ref in self._local(r, scope.outer if given else scope))
        return self._local(row, scope)

    def _local(self, row: Tree, scope: _Scope) -> tuple[Tree, ...]:
        if not isinstance(row.value, str):
            self.source.report(row.place, f"an input is the name of a node, not {row.kind}")
            return ()
        if scope.params is None:
            if row.value.startswith("$"):
                self.source.report(row.place, f"{row.value[:80]!r} is a parameter, and this is not inside a macro")
                return ()
            return (row,)
        parts = row.value.split(".")
        if any(".".join(parts[:k]) in scope.local for k in range(1, len(parts) + 1)):
            return (Tree(scope.prefix + row.value, row.place),)
        known = [*scope.local, "$in", *(f"${p}" for p in scope.params)]
        self.source.report(row.place, f"the macro {scope.macro!r} has no node {row.value[:80]!r}",
                           did_you_mean(row.value, known, "what comes from outside is $in or a parameter"))
        return ()

    def _substituted(self, tree: Tree, scope: _Scope) -> Tree:
        """With parameters replaced by their values, whole scalars only."""
        if isinstance(tree.value, dict):
            return Tree({k: self._substituted(v, scope) for k, v in tree.items()}, tree.place, tree.keys)
        if isinstance(tree.value, list):
            return Tree([self._substituted(v, scope) for v in tree.value], tree.place)
        found = PARAMETER.match(tree.value) if isinstance(tree.value, str) else None
        if not found:
            return tree
        if scope.params is None:
            self.source.report(tree.place, f"{tree.value!r} is a parameter, and this is not inside a macro")
        elif found[1] not in scope.params:
            self.source.report(tree.place, f"the macro {scope.macro!r} has no parameter {tree.value!r}", did_you_mean(tree.value, [f"${p}" for p in scope.params]))
        else:
            return scope.params[found[1]][0]
        return tree

    def _use(self, name: str, item: Tree, place: Place, scope: _Scope) -> None:
        use = self._substituted(item.get("use"), scope)
        if "op" in item.value:
            self.source.report(item.key("op"), f"{name!r} has both op and use", "keep one of them")
        if not isinstance(use.value, str) or use.value not in self.macros:
            self.source.report(use.place, f"unknown macro {use.kind}", did_you_mean(str(use.value), self.macros, "macros are defined under macros:"))
            # named all the same, so that those who read it are not reported too
            self.nodes[scope.prefix + name] = mapping(place, op=Tree(PLACEHOLDER, place), inputs=Tree([], place), attrs=Tree({}, place))
            return
        macro = self.macros[use.value]
        if use.value in scope.stack or len(scope.stack) >= MOST_MACROS_DEEP:
            self.source.report(use.place, f"the macro {use.value!r} uses itself: {' -> '.join([*scope.stack, use.value])}")
            return
        defaults, given = macro.get("params"), item.without("use", "in", "repeat", "op", "positional")
        params = {key: (value, False) for key, value in defaults.items()}
        if "positional" in item.value and defaults.value:
            params[next(iter(defaults.value))] = (self._substituted(item.get("positional"), scope), True)
        for key, value in given.items():
            if key not in params:
                self.source.report(given.key(key), f"the macro {use.value!r} has no parameter {key[:80]!r}", did_you_mean(key, params))
            params[key] = (self._substituted(value, scope), True)
        body = macro.get("nodes")
        inputs = self._inputs(name, item, place, scope) if "in" in item.value else None
        if inputs is None and _reads_in(body):
            self.source.report(place, f"{name!r} does not say what it reads", "add in: and the name of a node")
        full = scope.prefix + name
        self.places[full] = place
        for k, prefix in enumerate(self._repeats(item, full, scope)):
            self._count()
            inner = _Scope(f"{prefix}.", use.value, frozenset(body.value), params, inputs, (*scope.stack, use.value), scope)
            output = self._expand(body, inner)
            if output is None:
                return
            self.aliases[prefix] = output
            inputs = (Tree(prefix, place),)
        self.aliases[full] = output

    def _repeats(self, item: Tree, full: str, scope: _Scope) -> list[str]:
        """The prefixes of a use: its name, or name.r0, name.r1, …"""
        if "repeat" not in item.value:
            return [full]
        repeat = self._substituted(item.get("repeat"), scope)
        if type(repeat.value) is not int or not 1 <= repeat.value <= MOST_EXPANDED:
            shown = repeat.kind if len(repeat.kind) < 40 else "a longer number"
            self.source.report(repeat.place, f"repeat is a whole number from 1 to {MOST_EXPANDED:,}, not {shown}")
            return [f"{full}.r0"]
        return [f"{full}.r{k}" for k in range(repeat.value)]


def _reads_in(tree: Tree) -> bool:
    if isinstance(tree.value, dict):
        return any(_reads_in(t) for t in tree.value.values())
    if isinstance(tree.value, list):
        return any(_reads_in(t) for t in tree.value)
    return tree.value == "$in"
