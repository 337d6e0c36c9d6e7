"""Cosine decay over the final phase."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic

from dagrow.train.schedules import REGISTRY, Phase, Schedule, ScheduleOptions


@REGISTRY.register("cosine")
class Cosine(Schedule):
    """Constant while the network grows, then a half cosine down to `end` (a fraction of the rate) over the final phase."""

    class Options(ScheduleOptions):
        end: Annotated[float, pydantic.Field(strict=True, ge=0, le=1)] = 0.0

    @staticmethod
    def factor(options: Cosine.Options, phase: Phase, progress: float) -> float:
        if phase == "growth":
            return 1.0
        return options.end + (1 - options.end) * (1 + math.cos(math.pi * progress)) / 2
