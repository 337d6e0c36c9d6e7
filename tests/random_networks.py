"""Random architectures for tests: over all ops, with joins, on vectors and images. Not a test."""

from __future__ import annotations

import random

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
