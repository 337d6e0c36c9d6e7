"""Learning rates across growth: a factor on the optimizer's own rate, by phase and by how far the phase has come.

The network grows for a number of steps that nobody knows in advance; only the final phase has a known length.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic

from dagrow.registry import Options, Registry

REGISTRY = Registry("schedule", __name__)

Phase = Literal["growth", "final"]
Warmup = Annotated[int, pydantic.Field(strict=True, ge=0, le=10**9)]


class ScheduleOptions(Options):
    """warmup: optimizer steps at the start of the run over which the rate rises linearly from 1/warmup of itself."""

    warmup: Warmup = 0


class Schedule:
    """What every schedule provides: `factor`, at most 1 at the start of each phase, never negative."""

    name: ClassVar[str]
    Options: ClassVar[type[ScheduleOptions]]

    @staticmethod
    def factor(options, phase: Phase, progress: float) -> float:
        """The share of the base rate in use; `progress` in [0, 1] is the part of the phase that is over."""
        raise NotImplementedError

    @classmethod
    def rate(cls, options, lr: float, phase: Phase, progress: float, step: int | None = None) -> float:
        """The learning rate. `step` counts the run's optimizer steps from 0; None means past the warm-up."""
        warm = 1.0 if step is None or step >= options.warmup else (step + 1) / options.warmup
        return lr * warm * cls.factor(options, phase, min(max(progress, 0.0), 1.0))
