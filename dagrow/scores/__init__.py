"""Scorers: where new units should point, and what to correct when units go. One valuer (valuer.py) prices them all.

A scorer meets an edit only in the site's form. Adding a scorer is adding a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dagrow.measure import Evidence, Site
from dagrow.registry import Options, Registry

REGISTRY = Registry("score", __name__, verb="scores")


@dataclass(frozen=True)
class Block:
    """Values of the newborn entries of `param` along `axis`.

    Along every other axis `values` has the size before the edit; entries that meet other newborns there are zero.
    """

    param: str
    axis: int
    values: Tensor = field(repr=False)


@dataclass(frozen=True)
class Proposal:
    """What to put where. `status` is ok, unsupported, singular or nonfinite; `reason` says why it is not ok.

    Growing: `blocks` for the newborn entries. Shrinking: `keep`, the units that stay; `shift`, what is added to
    surviving parameters (in the present shapes) beforehand to make up for the loss.
    """

    status: str = "ok"
    reason: str = ""
    units: int = 0
    blocks: tuple[Block, ...] = ()
    keep: tuple[int, ...] | None = None
    shift: dict[str, Tensor] = field(default_factory=dict, repr=False)


class Scorer:
    """Proposes initial weights for a site from evidence.

    `serves`: the forms it can propose for; `default_for`: those it takes when the scorer the spec chose cannot.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    serves: ClassVar[tuple[type, ...]] = ()
    default_for: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: Options):
        self.options = options

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        """`units` new units (or fewer to lose) at `site`; every draw comes from `stream(*key, ...)`."""
        raise NotImplementedError


def serving(chosen: Scorer, form: object) -> Scorer | None:
    """The chosen scorer where it serves this form, else the default one for it, else None."""
    if isinstance(form, chosen.serves):
        return chosen
    for name in REGISTRY:
        rule = REGISTRY.get(name)
        if isinstance(form, rule.default_for):
            return rule(rule.Options())
    return None
