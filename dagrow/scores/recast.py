"""as_told: rewrites that leave a scorer nothing to point."""

from __future__ import annotations

from dataclasses import replace

from dagrow.graph import Refusal
from dagrow.measure import Evidence, Recast, Site
from dagrow.measure.carrying import Unsupported
from dagrow.registry import Options
from dagrow.scores import REGISTRY, Proposal, Scorer


@REGISTRY.register("as_told")
class AsTold(Scorer):
    """What the edit itself plans: what grows is left to a trial, what shrinks is worth what running the smaller network finds."""

    serves = (Recast,)
    default_for = (Recast,)

    class Options(Options):
        """No options."""

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        try:
            proposal = site.form.plan(evidence.train, units)
        except Unsupported as error:
            return Proposal("unsupported", str(error))
        made = site.form.made(proposal)
        if isinstance(made, Refusal):
            return Proposal("unsupported", made.reason)
        return replace(proposal, status="trial", reason=site.form.reason) if site.form.grows and proposal.status == "ok" else proposal
