"""Training: optimizers with a step count per element, learning rates across growth, one epoch, evaluation.

One epoch is the unit of work: from the same weights, moments and seed path it ends with the same bits.
"""

from dagrow.train.epoch import EpochReport, Observer, steps_per_epoch, train_epoch
from dagrow.train.evaluation import eval_mode, evaluate, outputs
from dagrow.train.flat import Flat
from dagrow.train.optimizers import REGISTRY as OPTIMIZERS
from dagrow.train.optimizers import Optimizer
from dagrow.train.schedules import REGISTRY as SCHEDULES
from dagrow.train.schedules import Phase, Schedule
from dagrow.train.session import Moments, Session

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "EpochReport",
    "Flat",
    "Moments",
    "Observer",
    "Optimizer",
    "Phase",
    "Schedule",
    "Session",
    "eval_mode",
    "evaluate",
    "outputs",
    "steps_per_epoch",
    "train_epoch",
]
