"""An imported model: its architecture, its weights, and the user's names of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dagrow.graph import Architecture


@dataclass(frozen=True)
class Imported:
    """What `from_torch` gives.

    weights: "node.local" -> a clone of the user's tensor, what `compile_architecture` takes. names: "node.local" -> the user's
    name of that parameter or buffer. modules: node -> the path of the user's module that it comes from ("" for the model).
    unused: the user's parameters and buffers that forward does not use. kept: node -> why its module is kept whole.
    differs: nodes that round otherwise than the user's code. frozen: parameters of the user's that do not require gradients.
    shared: the user's names of one tensor other than the first -> the first.
    """

    arch: Architecture
    weights: Mapping[str, Tensor] = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    modules: Mapping[str, str] = field(repr=False)
    unused: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    frozen: frozenset[str] = frozenset()
    shared: Mapping[str, str] = field(default_factory=dict, repr=False)
    leads: Mapping[str, int] = field(default_factory=dict, repr=False)
    rest: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def state_dict(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors under the user's names, for `model.load_state_dict`; of `weights` ("node.local" -> tensor) or those imported.

        Those that forward does not use are the imported ones; those of nodes that are new since have no name and are left out.
        While no node has been resized they have the shapes that the user's model has.
        """
        weights = self.weights if weights is None else weights
        found = {}
        for full, name in self.names.items():
            if full in weights:
                tensor = weights[full].detach()
                found[name] = tensor.reshape((1,) * self.leads.get(full, 0) + tuple(tensor.shape)).clone()
        found.update({name: tensor.clone() for name, tensor in self.rest.items()})
        found.update({name: found[first] for name, first in self.shared.items() if first in found})
        return found

    def notes(self) -> list[str]:
        """What to know of the import, a line each; none where all went in whole."""
        rows = list(dict.fromkeys(f"{self.modules.get(node) or node} is kept whole and never grown through: {why}" for node, why in self.kept.items()))
        if self.unused:
            rows.append(f"forward does not use {', '.join(self.unused)}")
        if self.differs:
            rows.append(f"rounded otherwise than in the model: {', '.join(self.differs)}")
        return rows
