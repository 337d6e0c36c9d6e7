"""Random architectures for tests: over all ops, with joins, on vectors and images. Not a test."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from dagrow.compiler import initialise
from dagrow.graph import Architecture, Node

# Names that would break a GraphModule, shadow a builtin or meet each other without the prefix.
NAMES = ["graph", "code", "forward", "to", "type", "train", "n_x", "self", "torch"]
NAMES += ["body.r0.conv", "body.r1.conv", "class", "None", "weight", "a.b", "a_b"]


def random_network(seed: int, image: bool | None = None) -> Architecture:
    """4 to about 14 nodes ending in a linear layer of 3."""
    draw = random.Random(seed)
    image = draw.random() < 0.6 if image is None else image
    names = iter(draw.sample(NAMES, len(NAMES)) + [f"node{k}" for k in range(40)])
    nodes: dict[str, Node] = {}

    def put(op, *inputs, **attrs):
        name = next(names)
        nodes[name] = Node.of(op, *inputs, **attrs)
        return name

    width = draw.choice([2, 3, 4])
    last = put("input", shape=(draw.choice([1, 2]), 6, 6) if image else (draw.choice([1, 5]),))
    last = put("conv2d", last, channels=width, kernel=3) if image else put("linear", last, width=width)
    same = [last]
    for _ in range(draw.randint(1, 6)):
        op = draw.choice(["batchnorm", "relu", "leaky_relu", "gelu", "silu", "tanh", "affine", "add", "identity", "dropout"])
        if op == "affine":
            kernel, bias = draw.choice([1, 3]), draw.random() < 0.5
            last = put("conv2d", last, channels=width, kernel=kernel) if image else put("linear", last, width=width, bias=bias)
        elif op == "add":
            last = put("add", last, draw.choice(same))
        else:
            last = put(op, last)
        same.append(last)
    used = {i for node in nodes.values() for i in node.inputs}
    loose = [n for n in nodes if n not in used]
    # Every end joins in, and one node twice.
    last = put("concat", *loose, draw.choice(same))
    if image:
        last = put(draw.choice(["max_pool", "avg_pool"]), last)
        last = put(draw.choice(["flatten", "global_avg_pool", "global_max_pool"]), last)
    put("linear", last, width=3)
    return Architecture(nodes)


def random_weights(arch: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Initial values with batch-norm statistics that are not trivial."""
    weights = initialise(arch, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if name.endswith(("running_mean", "running_var")):
            weights[name] = torch.rand(value.shape, generator=generator) + 0.5
    return weights


def rows_for(arch: Architecture, count: int, seed: int) -> torch.Tensor:
    (name,) = arch.inputs
    return torch.randn(count, *arch.shapes[name], generator=torch.Generator().manual_seed(seed))


class _Growing:
    """A network under construction: each method appends a block and returns the name of its end."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.names = iter(self.draw.sample(NAMES, len(NAMES)) + [f"node{k}" for k in range(200)])
        self.nodes: dict[str, Node] = {}

    def put(self, op: str, *inputs: str, tied: dict[str, str] | None = None, **attrs) -> str:
        name = next(self.names)
        self.nodes[name] = replace(Node.of(op, *inputs, **attrs), tied=tuple((tied or {}).items()))
        return name

    def act(self, x: str) -> str:
        return self.put(self.draw.choice(["relu", "gelu", "silu", "tanh", "leaky_relu", "elu", "softplus", "hardswish"]), x)

    def some(self, x, *blocks, least=1, most=3):
        for _ in range(self.draw.randint(least, most)):
            x = self.draw.choice(blocks)(x)
        return x

    # Vectors: (name, width)

    def vector(self, x: tuple[str, int]) -> tuple[str, int]:
        x = self.v_layer(x)
        return self.some(x, self.v_layer, self.v_residual, self.v_dense, self.v_unequal, self.v_gate, self.v_shared, self.v_tied, self.v_norm)

    def linear(self, x: str, width: int, **attrs) -> str:
        return self.put("linear", x, width=width, bias=self.draw.random() < 0.7, **attrs)

    def v_layer(self, x):
        width = self.draw.randint(2, 4)
        made = self.linear(x[0], width)
        return self.act(self.put("batchnorm", made) if self.draw.random() < 0.4 else made), width

    def v_residual(self, x):
        return self.put("add", x[0], self.linear(self.act(self.linear(x[0], self.draw.randint(2, 4))), x[1])), x[1]

    def v_dense(self, x):
        new, width = self.v_layer(x)
        return self.put("concat", x[0], new), x[1] + width

    def v_unequal(self, x):
        one, two = self.v_layer(x), self.v_layer(self.v_layer(x))
        return self.put("concat", one[0], two[0], x[0]), one[1] + two[1] + x[1]

    def v_gate(self, x):
        width = self.draw.randint(2, 4)
        return self.put("mul", self.linear(x[0], width), self.put("sigmoid", self.linear(x[0], width))), width

    def v_shared(self, x):
        """One layer run twice."""
        first = self.put("linear", x[0], width=x[1])
        second = self.put("linear", self.act(first), width=x[1], tied={"weight": f"{first}.weight", "bias": f"{first}.bias"})
        return self.put("add", x[0], self.act(second)), x[1]

    def v_tied(self, x):
        """An autoencoder."""
        up = self.put("linear", x[0], width=self.draw.randint(2, 4))
        return self.put("linear", self.act(up), width=x[1], transposed=True, tied={"weight": f"{up}.weight"}), x[1]

    def v_norm(self, x):
        return self.put("layernorm", self.linear(x[0], x[1])), x[1]

    # Maps: (name, channels, size)

    def maps(self, x: tuple[str, int, int]) -> tuple[str, int]:
        x = self.m_layer(x)
        x = self.some(
            x, self.m_layer, self.m_residual, self.m_dense, self.m_inception, self.m_inverted, self.m_grouped, self.m_excited, self.m_u, self.m_next,
        )
        if self.draw.random() < 0.5:
            return self.put(self.draw.choice(["global_avg_pool", "global_max_pool"]), x[0]), x[1]
        pooled = self.put("max_pool", x[0]) if self.draw.random() < 0.5 else self.put("avg_pool", x[0])
        return self.put("flatten", pooled), x[1] * (x[2] // 2) ** 2

    def conv(self, x: str, channels: int, **attrs) -> str:
        return self.put("conv2d", x, channels=channels, **{"kernel": self.draw.choice([1, 3]), "bias": self.draw.random() < 0.5, **attrs})

    def m_layer(self, x):
        channels = self.draw.choice([2, 4])
        return self.act(self.put("batchnorm", self.conv(x[0], channels))), channels, x[2]

    def m_residual(self, x):
        inner = self.conv(self.act(self.put("batchnorm", self.conv(x[0], self.draw.randint(2, 3)))), x[1])
        return self.put("add", x[0], inner), x[1], x[2]

    def m_dense(self, x):
        new = self.m_layer(x)
        return self.put("concat", x[0], new[0]), x[1] + new[1], x[2]

    def m_inception(self, x):
        branches = [self.conv(x[0], 2, kernel=1), self.conv(self.act(self.conv(x[0], 2)), 3, kernel=3)]
        branches.append(self.conv(self.put("avg_pool", x[0], kernel=3, stride=1, padding=1), 2, kernel=1))
        return self.put("concat", *branches), 7, x[2]

    def m_inverted(self, x):
        wide = self.put("relu6", self.conv(x[0], 4, kernel=1))
        deep = self.put("batchnorm", self.conv(wide, 4, kernel=3, groups=4))
        return self.put("add", x[0], self.conv(deep, x[1], kernel=1)), x[1], x[2]

    def m_grouped(self, x):
        channels = self.draw.choice([4, 6])
        return self.act(self.conv(self.conv(x[0], 4), channels, groups=2)), channels, x[2]

    def m_excited(self, x):
        squeezed = self.linear(self.put("relu", self.linear(self.put("global_avg_pool", x[0]), 2)), x[1])
        return self.put("mul", x[0], self.put("reshape", self.put("sigmoid", squeezed), shape=(x[1], 1, 1))), x[1], x[2]

    def m_u(self, x):
        if x[2] % 2:
            return self.m_layer(x)
        low = self.act(self.conv(x[0], 3, kernel=3, stride=2))
        up = self.put("upsample", low, scale=2) if self.draw.random() < 0.5 else self.put("conv_transpose2d", low, channels=3)
        return self.put("concat", x[0], up), x[1] + 3, x[2]

    def m_next(self, x):
        deep = self.conv(x[0], x[1], kernel=3, groups=x[1])
        last = self.put("layernorm", self.put("permute", deep, order=(0, 2, 3, 1)))
        inner = self.put("token_linear", self.put("gelu", self.put("token_linear", last, width=4)), width=x[1])
        return self.put("add", x[0], self.put("layer_scale", self.put("permute", inner, order=(0, 3, 1, 2)))), x[1], x[2]

    # Tokens: (name, features, tokens)

    def tokens(self, x: tuple[str, int, int]) -> tuple[str, int]:
        width = self.draw.choice([2, 4])
        x = self.put("token_linear", x[0], width=width), width, x[2]
        if self.draw.random() < 0.5:
            x = self.put("position", x[0]), *x[1:]
        x = self.some(x, self.t_attention, self.t_forward, self.t_mixer, most=2)
        if self.draw.random() < 0.5:
            return self.put("mean", x[0], dims=(1,)), x[1]
        return self.put("flatten", x[0]), x[1] * x[2]

    def t_attention(self, x):
        last = self.put("layernorm", x[0])
        heads = self.draw.choice([1, 2])
        q, k, v = (self.put("token_linear", last, width=2 * heads) for _ in range(3))
        made = self.put("attention", q, k, v, heads=heads, causal=self.draw.random() < 0.3)
        return self.put("add", x[0], self.put("token_linear", made, width=x[1])), *x[1:]

    def t_forward(self, x):
        inner = self.act(self.put("token_linear", self.put("layernorm", x[0]), width=self.draw.randint(2, 5)))
        return self.put("add", x[0], self.put("token_linear", inner, width=x[1])), *x[1:]

    def t_mixer(self, x):
        turned = self.put("permute", self.put("layernorm", x[0]), order=(0, 2, 1))
        mixed = self.put("token_linear", self.put("gelu", self.put("token_linear", turned, width=3)), width=x[2])
        return self.put("add", x[0], self.put("permute", mixed, order=(0, 2, 1))), *x[1:]

    def branch(self, kind: str) -> tuple[str, int]:
        if kind == "vector":
            return self.vector((self.put("input", shape=(5,)), 5))
        if kind == "maps":
            return self.maps((self.put("input", shape=(2, 6, 6)), 2, 6))
        return self.tokens((self.put("input", shape=(4, 3)), 3, 4))


KINDS = ("vector", "maps", "tokens")


def block_network(seed: int) -> Architecture:
    """Blocks of real networks: residual, dense, unequal, gated, depthwise, grouped, attention, tied; some with two inputs or outputs."""
    net = _Growing(seed)
    ends = [net.branch(KINDS[seed % 3])]
    if net.draw.random() < 0.3:
        ends.append(net.branch(net.draw.choice(KINDS)))
    last = ends[0][0] if len(ends) == 1 else net.put("concat", *(name for name, _ in ends))
    outputs = [net.put("linear", last, width=3)]
    if net.draw.random() < 0.3:
        outputs.append(net.put("linear", net.act(net.linear(ends[-1][0], 3)), width=2))
    return Architecture(net.nodes, outputs)


def inputs_for(arch: Architecture, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Random rows of every input, fp64."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *arch.shapes[name], generator=generator, dtype=torch.float64) for name in arch.inputs}
