"""Optimizers: what one update does to flat vectors of parameters, and which state it keeps per element.

torch's own refuse a step count per element, without which a newborn's first steps under Adam are several times too large.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import pydantic

from dagrow.registry import Options, Registry
from dagrow.train.flat import Flat

REGISTRY = Registry("optimizer", __name__)

# Bounded, because torch refuses a number that overflows the tensor's precision where it should give an infinity to report.
Rate = Annotated[float, pydantic.Field(strict=True, gt=0, le=1e6)]
Decay = Annotated[float, pydantic.Field(strict=True, ge=0, le=1e6)]
Share = Annotated[float, pydantic.Field(strict=True, ge=0, lt=1)]  # an averaging weight


class Optimizer:
    """What every optimizer provides. `Options` has at least `lr`, the base learning rate that a schedule scales.

    slots: state kept per element -> the value a newborn element starts with. All have "step", the number of updates an
    element has had; it is counted for them.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    slots: ClassVar[dict[str, float]] = {"step": 0.0}

    @staticmethod
    def update(options, flat: Flat, lr: float) -> None:
        """One step in place on `flat.values` and `flat.state`, from `flat.grads` (which it may overwrite)."""
        raise NotImplementedError
