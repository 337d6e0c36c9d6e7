"""A user's module that runs another graph than its class says: the same object, of a subclass with another `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from dagrow.errors import UsageError
from dagrow.graph import Architecture

HELD = "_dagrow_wiring"


@dataclass
class Loan:
    """A tensor that a step's own module uses and another of the model's modules owns: `owner.<kind>[key]`, less `lead` dimensions of size 1."""

    module: nn.Module
    local: str
    owner: nn.Module
    kind: str
    key: str
    lead: int = 0

    def fetch(self) -> None:
        t = getattr(self.owner, self.kind)[self.key]
        getattr(self.module, self.kind)[self.local] = t.view(t.shape[self.lead :]) if self.lead else t

    def give_back(self) -> None:
        """A view is no leaf, and a module that holds one cannot be copied."""
        if self.lead:
            getattr(self.module, self.kind)[self.local] = None


@dataclass
class Step:
    """One node: what is called on which values. Tensors on loan are fetched at each call, so that they may be replaced.

    A module that the model does not hold (`hidden`) has the model's mode.
    """

    run: Callable[..., Tensor]
    inputs: tuple[int, ...]
    loans: tuple[Loan, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class Record:
    """What a wired model is, for whoever grows it next; copies of the model share it. As `Live` has it."""

    arch: Architecture
    names: dict[str, str]
    paths: dict[str, str]
    leads: dict[str, int]

    def __deepcopy__(self, memo: dict) -> Record:
        return self


class Wiring:
    """The graph of a model: the nodes' steps in topological order, values numbered from the inputs on.

    It holds the very modules of the model, and is copied with them: `copy.deepcopy` of the model is whole.
    """

    def __init__(self, inputs: int, steps: list[Step], output: int, record: Record):
        self.inputs, self.steps, self.output, self.record = inputs, steps, output, record

    def run(self, model: nn.Module, args: tuple, kwargs: dict) -> Tensor:
        if kwargs or len(args) != self.inputs:
            args = self._bound(model, args, kwargs)
        values = list(args)
        for step in self.steps:
            for loan in step.loans:
                loan.fetch()
            if step.hidden and step.run.training is not model.training:
                step.run.train(model.training)
            values.append(step.run(*[values[k] for k in step.inputs]))
            for loan in step.loans:
                loan.give_back()
        return values[self.output]

    def _bound(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """The tensors given, in the order of the original forward's parameters."""
        bound = inspect.signature(original(type(model)).forward).bind(model, *args, **kwargs)
        given = tuple(a for a in bound.args[1:] + tuple(bound.kwargs.values()) if isinstance(a, Tensor))
        if len(given) != self.inputs:
            raise UsageError(f"the network takes {self.inputs} tensor{'s' * (self.inputs != 1)}, it is given {len(given)}")
        return given


class Rewired(nn.Module):
    """Mixed into the class of a model whose graph has changed."""

    def forward(self, *args, **kwargs):
        return self.__dict__[HELD].run(self, args, kwargs)


@lru_cache(maxsize=256)
def _rewired(kind: type[nn.Module]) -> type[nn.Module]:
    body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (Rewired, kind), body)


def original(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that the user wrote."""
    return kind.__mro__[2] if Rewired in kind.__mro__[:2] else kind


def rewire(model: nn.Module, wiring: Wiring) -> None:
    """From now on `model(...)` runs `wiring`; everything else about the object stays.

    Its class becomes a subclass of what it was, under the same name: an attribute `forward` on the object would still be the
    first one's in a deep copy.
    """
    model.__dict__[HELD] = wiring
    if not isinstance(model, Rewired):
        model.__class__ = _rewired(type(model))


def wiring_of(model: nn.Module) -> Wiring | None:
    """What the model runs; None while it is as its class says."""
    return model.__dict__.get(HELD)


__all__ = ["Loan", "Record", "Rewired", "Step", "Wiring", "original", "rewire", "wiring_of"]
