"""Exact units: fan-ins found by the gain of their real activations, with the fan-out solved for.

Where the linear part of a new unit has nothing left to give, what it can add lies in its nonlinearity alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dagrow.measure import Pass, Units
from dagrow.rng import stream
from dagrow.scores.aims import aims, power
from dagrow.scores.units import Sources, head, reader_view, scale_of, sources_of

# The search looks at its design matrix a hundred times: it gets fewer rows than the refit.
SEARCH_VALUES = 4e5
# The climb ends when so many looks at the other rows, one every five steps, found nothing better.
PATIENCE = 3


def exact_units(form: Units, full: Pass, units: int, options, key: tuple[int | str, ...]) -> Tensor:
    """Units [units, fan-in (+ 1)] that lower the loss most with their fan-out solved for, found by ascent from many starts.

    `options` has `starts` (random ones, beside the even directions), `steps` of ascent and the `ridge` of S.
    """
    seen = head(full, form, SEARCH_VALUES)
    sources = sources_of(seen, form)
    whiten = power(sources.gram, -0.5, options.ridge)
    draws = torch.randn(options.starts, len(whiten), generator=stream(*key, "starts"), dtype=torch.float64)
    starts = torch.cat([even_directions(form, sources, seen, whiten, 2 * units), draws / draws.norm(dim=1, keepdim=True)])
    climbed = seen.head(2 * seen.rows // 3)
    alpha = best_units(form, sources_of(climbed, form), climbed, torch.cat([starts @ whiten, -starts @ whiten]), units)
    return ascend(form, sources, seen, alpha, whiten, options.steps)


def even_directions(form: Units, sources: Sources, seen: Pass, whiten: Tensor, count: int) -> Tensor:
    """Eigenvectors of E[(w . v-perp) h h^T] for the main directions w of what is missing: the even part of a unit's signal."""
    x = sources.x.flatten(0, 1).double() @ whiten
    found = []
    for v in (aim.v.double() for aim in aims(form, seen)):
        if len(v) != len(x):
            continue
        _, _, main = torch.linalg.svd(v, full_matrices=False)
        for w in main[: max(1, count // 2)]:
            values, vectors = torch.linalg.eigh((x * (v @ w).unsqueeze(1)).T @ x)
            order = values.abs().argsort(descending=True)[:4]
            found.append(vectors[:, order].T)
    return torch.cat(found) if found else torch.zeros(0, len(whiten), dtype=torch.float64)


def best_units(form: Units, sources: Sources, seen: Pass, alpha: Tensor, units: int) -> Tensor:
    """The `units` rows of `alpha` that together gain most, by matching pursuit on their real activations."""
    alpha = alpha / scale_of(sources, alpha)
    view, left, chosen = reader_view(form, sources.born(form, alpha), seen=seen), aims(form, seen), []
    # [candidates, cells, kernel] for each reader
    columns = [aim.free(view[r].flatten(0, 1)).unflatten(1, (len(alpha), -1)).transpose(0, 1) for r, aim in zip(form.readers, left, strict=True)]
    halves = [aim.whitened(h) for aim, h in zip(left, columns, strict=True)]
    for _ in range(min(units, len(alpha))):
        gains = sum(aim.gains(*half) for aim, half in zip(left, halves, strict=True))
        gains[chosen] = -torch.inf
        best = int(gains.argmax())
        chosen.append(best)
        left = [aim.less(h[best]) for aim, h in zip(left, columns, strict=True)]
    return alpha[chosen]


def ascend(form: Units, sources: Sources, seen: Pass, alpha: Tensor, whiten: Tensor, steps: int) -> Tensor:
    """Adam on whitened fan-ins of unit length, maximising what the units gain with their fan-out solved for.

    It climbs on two thirds of the rows; of the places it passes, the one is taken whose fan-out, solved for on those
    rows, gains most on the other third: units found by search fit chance long before they stop rising.
    """
    basis = torch.linalg.pinv(whiten)
    a = torch.nn.functional.normalize(alpha @ basis, dim=1).requires_grad_()
    split, rows = 2 * seen.rows // 3, seen.rows
    whole = aims(form, seen)
    climb, judge = ([aim.rows_of(*span) for aim in whole] for span in ((0, split), (split, rows)))
    optimizer = torch.optim.Adam([a], lr=0.08)
    best, best_gain, stale = a.detach().clone(), -torch.inf, 0
    for step in range(steps + 1):
        with torch.enable_grad():
            born = sources.born(form, torch.nn.functional.normalize(a, dim=1) @ whiten)
            view = reader_view(form, born, seen=seen)
            views = [aim.free(view[r].flatten(0, 1)) for r, aim in zip(form.readers, whole, strict=True)]
            cut = [len(h) // rows * split for h in views]
            gain = sum(aim.gains(*aim.whitened(h[:k])) for aim, h, k in zip(climb, views, cut, strict=True))
        if step % 5 == 0 or step == steps:
            views = [h.detach() for h in views]
            unseen = sum(float(j.gain_of(h[k:], c.step(h[:k]))) for c, j, h, k in zip(climb, judge, views, cut, strict=True))
            stale += 1
            if unseen > best_gain:
                best, best_gain, stale = a.detach().clone(), unseen, 0
            if stale == PATIENCE:
                break
        if step < steps:
            (a.grad,) = torch.autograd.grad(-gain, a)
            optimizer.step()
    return torch.nn.functional.normalize(best, dim=1) @ whiten
