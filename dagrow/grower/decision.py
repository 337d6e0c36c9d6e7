"""What a Grower may spend, and what came of its decisions."""

from __future__ import annotations

from dataclasses import dataclass

import pydantic

from dagrow import registry

FEWEST = 16  # rows that a decision takes, held-out ones among them
Limit = pydantic.conint(strict=True, ge=0, le=2**62)


class Budget(registry.Options):
    """Hard limits: trainable parameters of the model, multiply-accumulates of one forward of one sample, edits in all."""

    params: Limit | None = None
    macs: Limit | None = None
    steps: Limit | None = None


@dataclass(frozen=True)
class Decision:
    """What came of one decision; `changed`: whether the model is another now.

    status: "ok" (also where nothing pays), or why there is no decision: "no rows", "too few rows", "nonfinite" (the loss on the
    rows is not a number), "out of steps", or what went wrong with the edit that was chosen. edit, where, units: what was
    done. predicted ± stderr: the gain per sample by derivatives and a line, in the units of the loss (nats for cross
    entropy, and for squared error half the log of its mean); checked: by real forwards on the same rows; held ± held_stderr:
    on held-out ones. params, macs: of the model now; added: parameters. step: optimizer steps seen by `Grower.step`.
    note: why, and which rows.
    """

    changed: bool
    status: str = "ok"
    edit: str = "null"
    where: str = "-"
    units: int | None = None
    predicted: float = 0.0
    stderr: float = 0.0
    checked: float = 0.0
    held: float = 0.0
    held_stderr: float = 0.0
    params: int = 0
    macs: int = 0
    added: int = 0
    step: int = 0
    note: str = ""


__all__ = ["FEWEST", "Budget", "Decision"]
