"""A Lightning callback that grows the module while it trains. Lightning is imported only where the callback is asked for.

>>> import dagrow.lightning                                     # needs no Lightning
>>> callback = dagrow.lightning.GrowerCallback(loss_fn=None, edits=["widen"])
>>> callback.history
[]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dagrow.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from dagrow.grower import Decision, Grower

HOMES = ("lightning.pytorch", "pytorch_lightning")


class GrowthHooks:
    """Grows at the end of every `epochs`-th training epoch, on the training loader's rows, tested on the validation loader's.

    loss_fn(output, target) -> the mean over the rows; None: the module's own `loss_fn`, `criterion` or `loss`. part: the path of
    the submodule that is grown, where the LightningModule itself is not what maps inputs to outputs. first: no decision
    before that epoch (from 0). The other options are Grower's; `example_input` may be left out where there is
    `example_input_array`.

    `grower` is the Grower, once training has begun; `history` its decisions. A change is logged as `grower/params`.
    UsageError for several optimizers, manual optimization, or several processes.
    """

    def __init__(self, loss_fn=None, *, epochs: int = 1, first: int = 0, part: str = "", example_input=None, **options: Any):
        super().__init__()
        if epochs < 1:
            raise UsageError(f"epochs={epochs}: a decision is made every so many epochs, 1 at least")
        self.loss_fn, self.epochs, self.first, self.part = loss_fn, epochs, first, part
        self.example_input, self.options = example_input, options
        self.grower: Grower | None = None

    @property
    def history(self) -> list[Decision]:
        return self.grower.history if self.grower is not None else []

    def on_fit_start(self, trainer, pl_module) -> None:
        from dagrow.grower import Grower

        if getattr(trainer, "world_size", 1) > 1:
            raise UsageError(f"training runs in {trainer.world_size} processes, of which each would grow another network", fix="Trainer(devices=1)")
        if len(trainer.optimizers) != 1:
            raise UsageError(f"the module has {len(trainer.optimizers)} optimizers; growth knows one", fix="grow with a dagrow.Grower for each")
        if self.grower is None or self.grower.optimizer is not trainer.optimizers[0]:
            example = self.example_input if self.example_input is not None else getattr(pl_module, "example_input_array", None)
            self.grower = Grower(self._model(pl_module), trainer.optimizers[0], example, **self.options)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        epoch = trainer.current_epoch
        last = trainer.max_epochs is not None and epoch + 1 >= trainer.max_epochs > 0
        if last or epoch < self.first or (epoch + 1 - self.first) % self.epochs:  # what grows in the last epoch is never trained
            return
        held = getattr(trainer, "val_dataloaders", None)
        decision = self.grower.grow(_single(trainer.train_dataloader, "training"), self._loss(pl_module), held and _single(held, "validation"))
        if decision.changed and hasattr(pl_module, "log"):
            pl_module.log("grower/params", float(decision.params))

    def _model(self, pl_module: nn.Module) -> nn.Module:
        return pl_module.get_submodule(self.part) if self.part else pl_module

    def _loss(self, pl_module: nn.Module):
        found = self.loss_fn or next((getattr(pl_module, n) for n in ("loss_fn", "criterion", "loss") if callable(getattr(pl_module, n, None))), None)
        if found is None:
            raise UsageError("the module has no loss_fn, criterion or loss", fix="GrowerCallback(loss_fn=torch.nn.functional.cross_entropy)")
        return found


def _single(loaders: Any, what: str) -> Any:
    """The only loader of possibly several."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        if len(loaders) != 1:
            raise UsageError(f"there are {len(loaders)} {what} loaders; growth looks at one")
        return loaders[0]
    return loaders


def _base() -> type:
    """Lightning's Callback: of the package that is loaded, or else installed; object where there is none."""
    for name in sorted(HOMES, key=lambda n: n not in sys.modules):
        with suppress(ModuleNotFoundError):
            return import_module(name).Callback
    return object


def __getattr__(name: str):
    if name != "GrowerCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (GrowthHooks, _base()), {"__doc__": GrowthHooks.__doc__, "__module__": __name__})
    globals()[name] = made
    return made


__all__ = ["GrowerCallback", "GrowthHooks"]  # noqa: F822
