"""From bytes to a frozen Spec: safe YAML with places, macros expanded, every problem at once. No torch, no registries."""

from dagrow.spec.describing import schema
from dagrow.spec.fields import Budget, DataSpec, Epochs, ModelSpec, Named, NodeSpec, Objective, ScoreSpec, Spec, TrainSpec
from dagrow.spec.loading import attempt, load

__all__ = [
    "Budget", "DataSpec", "Epochs", "ModelSpec", "Named", "NodeSpec", "Objective", "ScoreSpec", "Spec", "TrainSpec",
    "attempt", "load", "schema",
]
