"""A constant learning rate."""

from __future__ import annotations

from dagrow.train.schedules import REGISTRY, Phase, Schedule, ScheduleOptions


@REGISTRY.register("constant")
class Constant(Schedule):
    """The same learning rate throughout, after an optional warm-up."""

    class Options(ScheduleOptions):
        pass

    @staticmethod
    def factor(options: Constant.Options, phase: Phase, progress: float) -> float:
        return 1.0
