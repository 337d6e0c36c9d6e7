"""The seed network of a spec: wiring, shapes, output and size, every problem at once; nothing is allocated."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dagrow import ops
from dagrow.check.names import nodes_of, options_of
from dagrow.errors import GraphError, Problem
from dagrow.spec import Spec
from dagrow.spec.explaining import did_you_mean
from dagrow.spec.tree import MOST_PROBLEMS

if TYPE_CHECKING:
    from dagrow.graph import Architecture, Node

# A network beyond these is not a small one, and tracing it would take real memory.
MOST_PARAMS = 2**26
MOST_ACTIVATIONS = 2**26
LONGEST_CHAIN = 6


def network_of(spec: Spec, input_shape: Sequence[int] | None, outputs: int | None, problems: list[Problem]) -> Architecture | None:
    before = len(problems)
    known: list[Problem] = []
    rows = nodes_of(spec, known)
    problems += [p for p in known if p not in problems]
    shape = _input_shape(spec, input_shape, problems)
    if shape is None:
        return None
    from dagrow.graph.node import Node

    nodes = {"input": Node("input", (), shape)} | {
        name: Node(op, inputs, attrs, tuple(spec.model.nodes[name].tied.items())) for name, (op, inputs, attrs) in rows.items()
    }
    lost = _lost(spec, problems)
    _wiring(spec, nodes, problems)
    # a name that leads nowhere makes ends and dead nodes of others, which need no telling
    output = _output(spec, nodes, [] if lost else problems)
    shapes, size = _shapes(spec, nodes, problems)
    if output in shapes and outputs is not None and shapes[output] != (outputs,):
        problems.append(_wrong_end(spec, nodes[output], output, shapes, nodes, outputs))
    _within(spec, "params", size, "parameters", problems)
    if len(problems) > before or known:
        return None
    return _architecture(spec, nodes, output, problems)


def _architecture(spec: Spec, nodes: Mapping[str, Node], output: str, problems: list[Problem]) -> Architecture | None:
    from dagrow.graph import Architecture

    try:
        arch = Architecture(nodes, output)
        macs = arch.macs
    except GraphError as error:
        path = ("model", "nodes", error.node) if error.node else ("model",)
        if error.node in spec.model.nodes and spec.model.nodes[error.node].tied:
            path = (*path, "tied")
        problems.append(spec.problem_at(path, error.message, error.fix, key=True))
        return None
    _within(spec, "macs", macs, "MACs", problems)
    return arch


def fits(spec: Spec, arch: Architecture, outputs: int, problems: list[Problem]) -> None:
    """What is wrong with an imported seed network for this data and budget."""
    if len(arch.inputs) != 1 or len(arch.outputs) != 1:
        message = f"the network has {len(arch.inputs)} inputs and {len(arch.outputs)} outputs"
        problems.append(spec.problem_at(("model", "py"), message, "one of each, or grow it in a loop of your own: dagrow.Grower"))
        return
    shape = arch.shapes[arch.outputs[0]]
    if shape != (outputs,):
        problems.append(spec.problem_at(("model", "py"), f"the network gives {list(shape)}, the data needs [{outputs}]", "let it end with a linear layer of that width"))
    _within(spec, "params", arch.size, "parameters", problems)
    _within(spec, "macs", arch.macs, "MACs", problems)


def _within(spec: Spec, key: str, has: int, what: str, problems: list[Problem]) -> None:
    """A seed network larger than the budget."""
    limit = getattr(spec.budget, key)
    if limit is not None and has > limit:
        problems.append(spec.problem_at(
            ("budget", key), f"the seed network has {has:,} {what}, the budget allows {limit:,}", f"start smaller, or set budget.{key} to {has} or more"))


def _input_shape(spec: Spec, given: Sequence[int] | None, problems: list[Problem]):
    """The options of the input node: the shape the spec states, or else the data's."""
    stated = spec.model.input
    if not stated and given is None:
        problems.append(spec.problem_at(("model",), "the shape of the input is not known", "add input: {shape: […]}", key=True))
        return None
    path = ("model", "input") if stated else ("model",)
    shape = options_of(spec, ops.REGISTRY.get("input").Options, stated or {"shape": tuple(given)}, "the input", path, problems)
    if shape is not None and stated and given is not None and not _same_values(shape.shape, tuple(given)):
        problems.append(spec.problem_at(("model", "input", "shape"), f"the network reads {list(shape.shape)}, the data's rows are {list(given)}",
                                        "leave input out to take it from the data"))
    return shape


def _same_values(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether rows of one shape are read as the other: flattened, unflattened, or with axes of size 1 more or fewer."""
    cores = [tuple(s for s in shape if s != 1) for shape in (one, other)]
    return math.prod(one) == math.prod(other) and (cores[0] == cores[1] or min(map(len, cores)) <= 1)


def _wiring(spec: Spec, nodes: Mapping[str, Node], problems: list[Problem]) -> None:
    """Too few or too many inputs, and cycles."""
    for name, node in nodes.items():
        fewest, most = node.rule.fewest, node.rule.most
        if len(node.inputs) < fewest or (most is not None and len(node.inputs) > most):
            wanted = f"{fewest} input{'s' if fewest != 1 else ''}" if fewest == most else f"at least {fewest} inputs"
            fix = "join them first: {op: add, in: […]} or concat" if most == 1 and len(node.inputs) > 1 else None
            problems.append(spec.problem_at(("model", "nodes", name, "in"), f"{name!r}: {node.op} takes {wanted}, it has {len(node.inputs)}", fix))
    cycle = _cycle(nodes)
    if cycle:
        problems.append(spec.problem_at(("model", "nodes", cycle[0], "in"), f"a cycle: {' -> '.join([*cycle, cycle[0]])[:400]}",
                                        "a network runs forward only: one of these reads a node after it"))


def _lost(spec: Spec, problems: list[Problem]) -> bool:
    """Inputs that are not there; whether there are any."""
    there = ["input", *spec.model.nodes]
    instances = sorted({name.rsplit(".", k)[0] for name in there for k in range(1, name.count(".") + 1)})
    known = frozenset(there)
    lost = [(name, k, i) for name, row in spec.model.nodes.items() for k, i in enumerate(row.inputs) if i not in known]
    for name, k, i in lost[: 2 * MOST_PROBLEMS]:
        hint = did_you_mean(i, [n for n in (*there, *instances) if n != name], "")
        problems.append(spec.problem_at(("model", "nodes", name, "in", k), f"{name!r} reads {i[:80]!r}, which is not a node", hint or None))
    return bool(lost)


def _cycle(nodes: Mapping[str, Node]) -> list[str]:
    """The names along one cycle, in the direction values flow; [] where there is none."""
    try:
        graphlib.TopologicalSorter({name: node.inputs for name, node in nodes.items()}).prepare()
    except graphlib.CycleError as error:
        found = error.args[1][:-1]
        start = min(range(len(found)), key=lambda k: found[k])
        return found[start:] + found[:start]
    return []


def _output(spec: Spec, nodes: Mapping[str, Node], problems: list[Problem]) -> str | None:
    """The output, by name or as the one end; every node must lead to it."""
    rows = spec.model.nodes
    output = spec.model.output
    read = {i for row in rows.values() for i in row.inputs}
    if output is None:
        ends = [name for name in rows if name not in read]
        if len(ends) != 1:
            if ends:
                problems.append(spec.problem_at(("model", "nodes"), f"the network has {len(ends)} ends ({', '.join(ends)[:200]}), and one is the output",
                                                f"join them, or say which: output: {ends[-1]}", key=True))
            return None
        output = ends[0]
    elif output not in rows:
        problems.append(spec.problem_at(("model", "output"), f"the output {output[:80]!r} is not a node", did_you_mean(output, rows)))
        return None
    alive, todo = set(), [output]
    while todo:
        name = todo.pop()
        if name not in alive:
            alive.add(name)
            todo.extend(rows[name].inputs if name in rows else ())
    for name in rows:
        if name not in alive:
            problems.append(spec.problem_at(("model", "nodes", name), f"{name!r} does not lead to the output {output!r}", "leave it out, or read it", key=True))
    if "input" not in alive and not _cycle(nodes):
        problems.append(spec.problem_at(("model", "nodes"), "no node reads 'input'", "the first reads it: in: input", key=True))
    return output


def _shapes(spec: Spec, nodes: Mapping[str, Node], problems: list[Problem]) -> tuple[dict[str, tuple[int, ...]], int]:
    """(the shapes that can be known, parameters), each node on its own, on torch's meta device: nothing is allocated."""
    import torch
    from torch import nn

    from dagrow.graph.node import build as module_of

    shapes: dict[str, tuple[int, ...]] = {"input": tuple(nodes["input"].attrs.shape)}
    total, values, _broken = 0, math.prod(shapes["input"]), set()
    left = [name for name in nodes if name != "input"]
    with torch.device("meta"), torch.no_grad():
        while ready := [name for name in left if all(i in shapes for i in nodes[name].inputs)]:
            left = [name for name in left if name not in set(ready)]
            for name in ready:
                node = nodes[name]
                if len(node.inputs) < node.rule.fewest or (node.rule.most is not None and len(node.inputs) > node.rule.most):
                    continue
                inputs = [shapes[i] for i in node.inputs]
                try:
                    module = module_of(node, inputs, name)
                    if isinstance(module, nn.Module):
                        module.eval()
                        total += sum(p.numel() for local, p in module.named_parameters() if local not in dict(node.tied))
                    shape = tuple(module(*(torch.empty((2, *s)) for s in inputs)).shape[1:])
                except GraphError as error:
                    problems.append(_misfit(spec, name, error.message, error.fix, nodes, shapes))
                    continue
                except (RuntimeError, TypeError, ValueError, IndexError, OverflowError, MemoryError) as error:
                    given = ", ".join(str(list(s)) for s in inputs)
                    reason = (str(error).splitlines() or [""])[0][:160]
                    problems.append(_misfit(spec, name, f"{name!r}: {node.op} does not fit {given}: {reason}", None, nodes, shapes))
                    continue
                values += math.prod(shape)
                if total > MOST_PARAMS or values > MOST_ACTIVATIONS:
                    count, what, most = (total, "parameters", MOST_PARAMS) if total > MOST_PARAMS else (values, "values for each row", MOST_ACTIVATIONS)
                    problems.append(spec.problem_at(("model", "nodes", name), f"with {name!r} the network has {count:,} {what}, more than {most:,}",
                                                    "dagrow starts small and grows", key=True))
                    return shapes, 0
                shapes[name] = shape
    return shapes, total


def _misfit(spec: Spec, name: str, message: str, fix: str | None, nodes: Mapping[str, Node], shapes: Mapping) -> Problem:
    path = ("model", "nodes", name, "in")
    chain = _chain(name, nodes, shapes)
    return spec.problem_at(path, message, f"{fix}\n     | {chain}" if fix else chain)


def _chain(name: str, nodes: Mapping[str, Node], shapes: Mapping) -> str:
    """How values come to a node: input[1,8,8] -> stem[4,8,8] -> head."""
    names = [name]
    while nodes[names[0]].inputs and len(names) < len(nodes):
        names.insert(0, nodes[names[0]].inputs[0])
    shown = names if len(names) <= LONGEST_CHAIN else [names[0], "…", *names[2 - LONGEST_CHAIN :]]
    return " -> ".join(f"{n}[{','.join(str(s) for s in shapes[n])}]" if n in shapes else n for n in shown)


def _wrong_end(spec: Spec, node: Node, name: str, shapes: Mapping, nodes: Mapping[str, Node], outputs: int) -> Problem:
    key = node.rule.shorthand if node.rule.role == "affine" and len(shapes[name]) == 1 else None
    path = ("model", "nodes", name, *((("positional",) if spec.model.nodes[name].positional is not None else (key,)) if key else ()))
    fix = f"set {key} to {outputs}" if key else f"end with linear {outputs}"
    return spec.problem_at(path, f"{name!r} gives {list(shapes[name])}, the data needs [{outputs}]", f"{fix}\n     | {_chain(name, nodes, shapes)}")
