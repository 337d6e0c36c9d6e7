"""How far each of several targets should follow the same new units: a Newton step in as many numbers as there are targets.

The fan-out into each target is solved for as if the others stayed as they are. Where one tensor is read at several places
(a residual stream, a concat) that counts twice what they do together; the curvature of all of them at once, from the rows'
own slopes, says how far each should go, and whether one of them alone is better.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dagrow.measure import Pass, Proposal, Units
from dagrow.measure.parents import end_of, parents
from dagrow.measure.sites import slopes_of

RIDGE = 1e-2  # of the curvature's diagonal


def balanced(form: Units, seen: Pass, proposal: Proposal) -> Proposal:
    """The proposal with its fan-out into each group of targets that meet in one sum, and what gives way there, scaled."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for target in dict.fromkeys(form.targets):
        groups.setdefault(parents(seen.arch, target), []).append(target)
    if len(groups) < 2 or proposal.status != "ok":
        return proposal
    changes = form.effect(seen, proposal)
    pairs = [slopes_of(form, seen, {t: changes[t] for t in targets}) for targets in groups.values()]
    s, t = (torch.stack(parts, 1) for parts in zip(*pairs, strict=True))
    curve = t.T @ t / seen.rows
    share = torch.linalg.solve(curve + torch.diag(RIDGE * curve.diagonal() + 1e-300), s.mean(0))
    if not bool(torch.isfinite(share).all()) or float(s.mean(0) @ share) <= 0:
        return proposal
    # The valuer scales all of it together: only the proportions are said here.
    share = share / share.abs().max()
    scale, of = {}, dict(zip(groups, share.tolist(), strict=True))
    for r, target in zip(form.readers, form.targets, strict=True):
        scale[f"{r}.weight", 1] = of[parents(seen.arch, target)]
    blocks = tuple(replace(b, values=b.values * scale.get((b.param, b.axis), 1.0)) for b in proposal.blocks)
    return replace(proposal, blocks=blocks, shift={n: x * _share_of(seen, n, groups, of) for n, x in proposal.shift.items()})


def _share_of(seen: Pass, name: str, groups: dict, of: dict) -> float:
    """The share of the group whose parents, or the norm behind them, hold the parameter."""
    owner = name.rpartition(".")[0]
    return next((of[g] for g in groups if owner in g or any(owner in seen.arch.consumers[end_of(seen.arch, t)] for t in groups[g])), 1.0)
