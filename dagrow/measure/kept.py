"""What a pass keeps of the nodes' values, and how the others are made again from it when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dagrow.graph import Architecture
from dagrow.graph.node import Module


def read_by_affine(arch: Architecture) -> tuple[str, ...]:
    """The nodes whose values a pass keeps: those that affine nodes read, the inputs and the outputs."""
    read = {i for node in arch.nodes.values() if node.rule.role == "affine" for i in node.inputs}
    return tuple(n for n in arch.order if n in read or n in arch.inputs or n in arch.outputs)


class Values(Mapping[str, Tensor]):
    """node -> its values [rows, units, *positions]; those not `kept` are made from those that are, each time anew."""

    def __init__(self, arch: Architecture, modules: Mapping[str, Module], kept: Mapping[str, Tensor]):
        self.arch, self.modules, self.kept = arch, modules, kept

    def __getitem__(self, name: str) -> Tensor:
        if name in self.kept:
            return self.kept[name]
        with torch.no_grad():
            return self._made(name, {})

    def __iter__(self) -> Iterator[str]:
        return iter(self.arch.order)

    def __len__(self) -> int:
        return len(self.arch.order)

    def rows(self, span: slice) -> Values:
        """Some of the rows."""
        return Values(self.arch, self.modules, {n: t[span] for n, t in self.kept.items()})

    def _made(self, name: str, made: dict[str, Tensor]) -> Tensor:
        if name in self.kept:
            return self.kept[name]
        if name not in made:
            made[name] = self.modules[name](*(self._made(i, made) for i in self.arch.nodes[name].inputs))
        return made[name]
