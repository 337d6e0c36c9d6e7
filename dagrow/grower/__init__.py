"""Growth inside the user's own training loop: the same model object and optimizer go on."""

from dagrow.grower.decision import Budget, Decision
from dagrow.grower.growing import Grower

__all__ = ["Budget", "Decision", "Grower"]
