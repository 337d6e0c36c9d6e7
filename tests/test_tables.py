"""dagrow.graph.axes reads all labels of a trace at once: here unit by unit, in plain Python, on many networks and what resizing makes of them."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch
from models import MODELS, NAMES
from random_networks import block_network, random_network
from seen_networks import NETWORKS

import dagrow
from dagrow.graph import Architecture, Refusal, resize
from dagrow.graph.axes import FIND
from dagrow.graph.moves import move, view
from dagrow.graph.trace import Labelled, Trace


def read(trace: Trace) -> tuple[list[int], dict[int, int]]:
    """Sizes of the axes, and the code of each atom (axis * 2**32 + ordinal)."""
    cells = trace.cells
    births: dict[int, set[int]] = {}
    first: dict[int, tuple[int, int]] = {}
    for cell in range(1, cells._used):
        event, spot = int(cells._event[cell]), int(cells._place[cell])
        if event < 0:
            continue
        atoms = cells.atoms(cell)
        for atom in atoms:
            births.setdefault(atom, set()).add(event)
        if len(atoms) == 1 and not composite(trace, cell):
            first[atoms[0]] = min(first.get(atoms[0], (event, spot)), (event, spot))
    axes: dict[frozenset[int], list[int]] = {}
    for atom in sorted(first, key=first.__getitem__):
        axes.setdefault(frozenset(births[atom]), []).append(atom)
    codes = {atom: a * 2**32 + k for a, atoms in enumerate(axes.values()) for k, atom in enumerate(atoms)}
    return [len(atoms) for atoms in axes.values()], codes


def composite(trace: Trace, cell: int) -> bool:
    while trace.cells._up[cell] != cell:
        cell = int(trace.cells._up[cell])
    return cell in trace.cells.parts


def spelled(trace: Trace, label: np.ndarray, codes: dict[int, int]) -> tuple[list[list[int]], list[tuple[tuple[int, ...], int]]]:
    """The rows of codes of a label, and its groups: sorted where each index is one unit, or else as they appear."""
    rows = [[codes[a] for a in trace.cells.atoms(c)] for c in label.tolist()]
    counted: dict[tuple[int, ...], int] = {}
    for row in rows:
        axes = tuple(code >> 32 for code in row)
        counted[axes] = counted.get(axes, 0) + 1
    width = max(1, *map(len, rows))
    groups = list(counted.items()) if width > 1 else sorted(counted.items(), key=lambda g: g[0] or (2**32,))
    return [row + [-1] * (width - len(row)) for row in rows], groups


def agrees(arch: Architecture) -> None:
    derived = arch.derived
    trace = Trace(FIND).network(arch.nodes, arch.order, arch.outputs)
    sizes, codes = read(trace)
    assert sizes == [axis.size for axis in derived.axes.values()]
    places = {(name, k): label for name, leaf in trace.leaves.items() for k, label in enumerate(leaf.labels)}
    values = {(name, k): label for name in arch.order for k, label in enumerate(trace.values[name].labels)}
    for labels, tables in ((places, derived.tables), (values, derived.outputs)):
        assert tables.keys() <= labels.keys()
        for key, label in labels.items():
            rows, groups = ([], []) if label is None or not len(label) else spelled(trace, label, codes)
            if key in tables:
                assert tables[key].codes.tolist() == rows and list(tables[key].groups) == groups, key
            else:
                assert not any(axes for axes, _ in groups), key
    assert {**derived.shapes} == {**arch.shapes} and {**derived.macs} == {**arch.formed.macs} and derived.size == arch.size
    assert {**derived.params} == {**arch.params} and {**derived.buffers} == {**arch.buffers} and derived.locals == arch.formed.locals


@cache
def imported(name: str) -> Architecture:
    torch.manual_seed(0)
    return dagrow.from_torch(MODELS[name].build(), MODELS[name].example(2)).arch


def resized(arch: Architecture, seed: object, times: int) -> None:
    draw = random.Random(seed)
    agrees(arch)
    for _ in range(times if arch.axes else 0):
        name = draw.choice(list(arch.axes))
        size = arch.axes[name].size
        keep = draw.choice([[*range(size), -1], sorted(draw.sample(range(size), draw.randint(1, size))), [draw.randint(-1, size - 1) for _ in range(size)] + [0]])
        made = resize(arch, {name: keep})
        if not isinstance(made, Refusal):
            agrees(made.arch)


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_are_read_as_unit_by_unit(seed):
    resized(block_network(seed), seed, 3)
    resized(random_network(seed), seed, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_read_as_unit_by_unit(name):
    arch = NETWORKS[name]
    resized(arch if isinstance(arch, Architecture) else Architecture(arch), name, 3)


@pytest.mark.parametrize("name", NAMES)
def test_imported_networks_are_read_as_unit_by_unit(name):
    resized(imported(name), name, 2)


@pytest.mark.parametrize(
    ("source", "target"),
    [((2, 3, 4, 5), (6, 4, 5)), ((6, 4, 5), (2, 3, 4, 5)), ((4, 6, 5), (8, 3, 5)), ((2, 3, 4), (24,)), ((24,), (2, 3, 4)), ((3, 5), (3, 5)), ((2, 2, 2), (4, 2))],
)
def test_axes_that_stay_behind_what_is_laid_out_anew(source, target):
    """The short cut of `view` says what running the op on positions says."""
    for live in range(len(source) + 1):
        trace = Trace(FIND)
        x = Labelled(source, tuple(trace.cells.fresh(n) if k >= live else None for k, n in enumerate(source)))
        ours, theirs = (rule(trace, [target], torch.ops.aten.view.default, x, list(target))[0] for rule in (view, move))
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None) and (a is None or trace.cells.find(a).tolist() == trace.cells.find(b).tolist())
