"""Scorers: where new units should point, and what to correct when units go. One valuer (valuer.py) prices them all.

A scorer meets an edit only in the site's form. Adding a scorer is adding a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dagrow.measure import Block, Evidence, Proposal, Site
from dagrow.registry import Options, Registry

REGISTRY = Registry("score", __name__, verb="scores")
__all__ = ["REGISTRY", "Block", "Proposal", "Scorer", "serving"]


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

    def screen(self, evidence: Evidence, sites: Sequence[Site]) -> Sequence[float] | None:
        """What each growing site may gain, in nats, of all sites of one edit at once, from the training rows alone.

        Only their order counts, also between edits. NaN where the scorer cannot say; None where it never does.
        """
        return None


def serving(chosen: Scorer, form: object) -> Scorer | None:
    """The chosen scorer where it serves this form, else the default one for it, else None."""
    if isinstance(form, chosen.serves):
        return chosen
    for name in REGISTRY:
        rule = REGISTRY.get(name)
        if isinstance(form, rule.default_for):
            return rule(rule.Options())
    return None
