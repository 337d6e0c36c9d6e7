"""Random networks of the ops that shape, join and mix: whatever the trace says of their axes is true of what they compute.

Most of these networks make no sense; that is what finds a rule that is right for those that do only.
"""

from __future__ import annotations

import math
import random

import axis_oracles as oracles
import pytest

from dagrow.errors import GraphError
from dagrow.graph import Architecture, Node, Refusal, resize, transfer

LARGEST = 200


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


class Growing:
    """Nodes one after another; what does not fit is left out."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        shape = self.draw.choice([(4,), (3, 6), (2, 4, 4)])
        self.nodes, self.shapes = {"x": Node.of("input", shape=shape)}, {"x": shape}

    def put(self, op: str, *inputs: str, **attrs) -> None:
        name = f"{op}_{len(self.nodes)}"
        try:
            node = Node.of(op, *inputs, **attrs)
            shape = Architecture({**self.nodes, name: node}, [*self.nodes, name]).shapes[name]
        except GraphError:
            return
        if math.prod(shape) <= LARGEST:
            self.nodes[name], self.shapes[name] = node, shape

    def step(self) -> None:
        draw, names = self.draw, list(self.nodes)
        x = draw.choice(names[-4:])
        shape = self.shapes[x]
        dim = draw.randint(1, len(shape))
        size = shape[dim - 1]
        start, of = draw.randrange(size), draw.choice(divisors(size))
        moves = [
            ("reshape", {"shape": self.shape(math.prod(shape))}), ("permute", {"order": (0, *draw.sample(range(1, len(shape) + 1), len(shape)))}),
            ("part", {"of": of, "index": draw.randrange(of), "dim": dim}), ("slice", {"start": start, "stop": draw.choice([None, draw.randint(start + 1, size)]), "dim": dim}),
            ("pad", {"amounts": tuple(draw.randint(0, 2) for _ in range(2 * dim))}), ("mean", {"dims": (dim,), "keep": draw.random() < 0.5}),
            ("softmax", {"dim": dim}), ("layer_scale", {"dim": dim}), ("groupnorm", {"groups": draw.choice(divisors(shape[0]))}), ("flatten", {}),
            *((op, {}) for op in ("layernorm", "instancenorm", "batchnorm", "max_pool", "global_avg_pool", "prelu", "tanh", "sigmoid", "silu", "position")),
        ]  # fmt: skip
        kind = draw.random()
        if kind < 0.35:
            self.affine(x, shape)
        elif kind < 0.55:
            other = draw.choice(names) if draw.random() < 0.8 else x
            op = draw.choice(["concat", "add", "sub", "mul", "matmul"])
            self.put(op, x, other, **({"dim": dim} if op == "concat" else {}))
        elif kind < 0.6 and len(shape) == 2:
            self.put("attention", x, draw.choice(names), draw.choice(names), heads=draw.choice(divisors(shape[-1])))
        else:
            op, attrs = draw.choice(moves)
            self.put(op, x, **attrs)

    def affine(self, x: str, shape: tuple[int, ...]) -> None:
        draw, space = self.draw, len(shape) - 1
        width, groups = draw.choice([2, 3, 4, 6]), draw.choice([1, 1, 2, shape[0]])
        if not space:
            self.put("linear", x, width=width)
        elif draw.random() < 0.4:
            self.put("token_linear", x, width=width) if draw.random() < 0.8 else self.put("moe", x, experts=2, hidden=2)
        elif space < 3:
            op = f"conv{space}d" if draw.random() < 0.7 else f"conv_transpose{space}d"
            self.put(op, x, channels=width, kernel=draw.choice([1, 3]), groups=groups, stride=1)

    def shape(self, total: int) -> tuple[int, ...]:
        made = []
        while total > 1 and len(made) < 4:
            made.append(self.draw.choice(divisors(total)[1:]))
            total //= made[-1]
        made += [total] if total > 1 else []
        if self.draw.random() < 0.5:
            made.insert(self.draw.randint(0, len(made)), 1)
        return tuple(made) or (1,)


def network(seed: int) -> Architecture:
    """5 to some 15 nodes, each loose end read by an output of its own."""
    made = Growing(seed)
    for _ in range(made.draw.randint(4, 14)):
        made.step()
    made.affine("x", made.shapes["x"])
    nodes = dict(made.nodes)
    loose = [n for n in nodes if n not in {i for node in nodes.values() for i in node.inputs} and n != "x"]
    for name in loose:
        nodes |= {f"flat_{name}": Node.of("flatten", name), f"end_{name}": Node.of("linear", f"flat_{name}", width=2)}
    return Architecture(nodes, [f"end_{name}" for name in loose])


def is_true(arch: Architecture, seed: int) -> int:
    """How many resizes were tried and not refused."""
    draw, done = random.Random(seed), 0
    weights, x = oracles.weights_for(arch, seed), oracles.rows(arch)
    before = oracles.output(arch, weights, x)
    for name, axis in arch.axes.items():
        size, at = axis.size, draw.randint(0, axis.size)
        for index in (draw.sample(range(size), size), [*range(at), -1, *range(at, size)]):
            rewrite = resize(arch, {name: index})
            if isinstance(rewrite, Refusal):
                continue
            tensors = transfer(rewrite, weights, oracles.weights_for(rewrite.arch, seed + 1))
            if rewrite.zero is not None:
                assert oracles.distance(oracles.output(rewrite.arch, oracles.zeroed(rewrite, tensors), x), before) <= 1e-9, (name, index)
            back = oracles.done(resize(rewrite.arch, {name: [index.index(k) for k in range(size)]}))
            oracles.same(arch, weights, back.arch, transfer(back, tensors, 9.0))
            done += 1
        if size > 1:
            oracles.pruning_is_masking(arch, name, seed, refused=True)
    return done


@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_of_axes_is_true(seed: int) -> None:
    arch = network(seed)
    oracles.shapes_and_macs_are_real(arch)
    oracles.rows_do_not_meet(arch)
    is_true(arch, seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(3))
def test_what_is_said_of_axes_is_true_of_hundreds(block: int) -> None:
    assert sum(is_true(network(seed), seed) for seed in range(1000 + 100 * block, 1100 + 100 * block)) > 50
