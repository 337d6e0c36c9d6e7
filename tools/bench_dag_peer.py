#!/usr/bin/env python3
"""One growth step of gromo, for bench_dag.py, run by a Python that has gromo (0.1.0 was tried): prints one JSON object.

    PYTHON tools/bench_dag_peer.py NODES ROWS.npz

A GrowingGraphNetwork with NODES hidden nodes of 8 neurons, each reading 1 to 3 earlier ones. The step is gromo's own
with its own defaults: the bottleneck over 1,024 rows, every expansion carried out and evaluated, the best one applied.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time

import numpy
import torch
from gromo.containers.growing_graph_network import GrowingGraphNetwork

WIDTH, BATCH, ROWS = 8, 128, 1024


def network(nodes: int) -> GrowingGraphNetwork:
    draw = random.Random(0)
    made = GrowingGraphNetwork(64, 10, torch.nn.CrossEntropyLoss(), neurons=WIDTH)
    dag = made.dag
    earlier = [dag.root]
    for k in range(nodes):
        inputs = draw.sample(earlier, min(len(earlier), draw.randint(1, 3)))
        name = f"n{k}"
        attributes = {"type": "linear", "size": WIDTH, "activation": "relu"}
        dag.add_node_with_two_edges(inputs[0], name, dag.end, attributes, {"type": "linear", "use_bias": True})
        for other in inputs[1:]:
            dag.add_direct_edge(other, name, {"type": "linear", "use_bias": True})
        earlier.append(name)
    return made


def loader(x, y) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH)


def training_step(made: GrowingGraphNetwork, x, y) -> float:
    optimizer, seconds = torch.optim.AdamW(made.parameters()), []
    for _ in range(30):
        start = time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(made(x[:BATCH]), y[:BATCH]).backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def growth_step(made: GrowingGraphNetwork, train, held) -> int:
    actions = made.dag.define_next_actions()
    bottleneck, inputs = made.dag.calculate_bottleneck(actions, train, made.loss_fn)
    made.execute_expansions(
        actions, bottleneck, inputs, amplitude_factor=False, evaluate=True, train_dataloader=train, dev_dataloader=held, val_dataloader=held
    )
    made.choose_growth_best_action(actions)
    made.apply_change()
    return len(actions)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nodes = int(sys.argv[1])
    rows = numpy.load(sys.argv[2])
    x, y, held_x, held_y = (torch.from_numpy(rows[k]) for k in ("x", "y", "held_x", "held_y"))
    made = network(nodes)
    step = training_step(made, x, y)
    began = time.process_time()
    sites = growth_step(made, loader(x[:ROWS], y[:ROWS]), loader(held_x, held_y))
    took = time.process_time() - began
    print(json.dumps({"nodes": nodes, "sites": sites, "step_ms": 1e3 * step, "growth_ms": 1e3 * took, "steps": took / step}))


if __name__ == "__main__":
    main()
