"""Where a search stands, as values: its plan, its state, its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dagrow.data import Dataset
from dagrow.graph import Architecture
from dagrow.propose import Limits
from dagrow.scores import Scorer
from dagrow.select import Chooser
from dagrow.spec import Spec
from dagrow.store import Event, Run
from dagrow.train import Moments, Schedule
from dagrow.trials import Recipe


@dataclass(frozen=True)
class State:
    """Where a search stands: plain values, and beside them the network as values.

    phase: growth, final or done. step: decisions made. epoch: epochs done of the `epochs` that this stretch takes;
    trained, updates, work: epochs, optimizer steps and training MACs of the whole search. nulls: conclusive decisions
    in a row that nothing pays. best: {"worth", "seq", "val"} of the best network seen at a decision. mark: training nats
    when the stretch began, against which divergence shows. banned: edits rolled back since the last one that held.
    """

    phase: str = "growth"
    step: int = 0
    epoch: int = 0
    epochs: int = 0
    trained: int = 0
    updates: int = 0
    work: int = 0
    nulls: int = 0
    chooser: dict = field(default_factory=dict)
    best: dict | None = None
    mark: float | None = None
    banned: tuple[str, ...] = ()
    edited: bool = False
    val: dict = field(default_factory=dict)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "banned": list(self.banned)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> State:
        return State(**{**data, "banned": tuple(data["banned"])})


@dataclass(frozen=True)
class Network:
    """An architecture with its weights and optimizer moments."""

    arch: Architecture
    weights: dict[str, Tensor]
    moments: Moments

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups for the journal: moments flat as "slot/param"."""
        flat = {f"{slot}/{name}": t for slot, named in self.moments.items() for name, t in named.items()}
        return {"weights": self.weights, "moments": flat}

    def row(self) -> dict[str, Any]:
        return {"params": self.arch.size, "macs": self.arch.macs, "architecture": self.arch.to_dict()}


@dataclass(frozen=True)
class Plan:
    """A spec made into objects: everything a search needs that does not change.

    weights: what it begins with; None: fresh ones. notes: what to know of a seed network that was imported.
    """

    spec: Spec
    architecture: Architecture
    data: Dataset
    recipe: Recipe
    schedule: tuple[type[Schedule], Any]
    edits: tuple[tuple[type, Any], ...]
    scorer: Scorer
    chooser: tuple[type[Chooser], Any]
    weights: Mapping[str, Tensor] | None = None
    notes: tuple[str, ...] = ()

    @property
    def limits(self) -> Limits:
        return Limits(self.spec.budget.params, self.spec.budget.macs)


def load_network(run: Run, event: Event, prefix: str = "") -> Network:
    """The network an event holds; with "before_", the one its decision began with. Raises RunError where it was pruned."""
    arch = Architecture.from_dict(event.payload[f"{prefix}architecture"])
    moments: Moments = {}
    flat = run.tensors(event, f"{prefix}moments") if f"{prefix}moments" in run.kept(event) else {}
    for name, tensor in flat.items():
        slot, _, param = name.partition("/")
        moments.setdefault(slot, {})[param] = tensor
    return Network(arch, run.tensors(event, f"{prefix}weights"), moments)
