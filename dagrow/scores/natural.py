"""natural: units along the natural gradient of the bottleneck, or exact units where the site is linear-blind."""

from __future__ import annotations

from dataclasses import dataclass

import pydantic
import torch
from torch import Tensor

from dagrow.measure import Evidence, Link, Pass, Site, Units, features
from dagrow.registry import Options
from dagrow.rng import stream
from dagrow.scores import REGISTRY, Block, Proposal, Scorer
from dagrow.scores.units import (
    Sources, Unsupported, aims, column_blocks, head, linear_moments, power, reader_view, refit, sources_of,
)

# Below this share of what is missing, no linear direction carries signal: the site is linear-blind.
BLIND = 1e-6
# Below this share of the first, a singular value is rounding, and its direction anything.
NULL = 1e-7
SEARCH_VALUES = 4e5


@dataclass
class Directions:
    """Unit fan-ins worth trying, best first: `alpha` [candidates, fan-in (+ 1)]."""

    alpha: Tensor
    blind: bool


@REGISTRY.register("natural")
class Natural(Scorer):
    """New units along the natural gradient of the bottleneck; exact units where that is blind; fan-out refitted.

    Directions are the singular vectors of S^-1/2 E[h v-perp] E^-1/2 (Verbockhaven et al. 2024, eq. 8, in the
    Gauss-Newton metric). Where they vanish (a new unit beside a linear map of the same input sees only what that map
    has already used), units are searched by the gain of their real activations with the fan-out solved for.
    """

    serves = (Units, Link)
    default_for = (Units, Link)

    class Options(Options):
        ridge: float = pydantic.Field(1e-2, gt=0, le=1, description="ridge of S, relative to its largest eigenvalue")
        starts: int = pydantic.Field(32, ge=0, le=4096, description="random starts of the exact search")
        steps: int = pydantic.Field(40, ge=0, le=10_000, description="gradient steps of the exact search")

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        try:
            if isinstance(site.form, Link):
                return self._link(evidence, site.form)
            return self._units(evidence, site, units, key)
        except Unsupported as error:
            return Proposal("unsupported", str(error))
        except torch.linalg.LinAlgError as error:
            return Proposal("singular", str(error).splitlines()[0])

    def _link(self, evidence: Evidence, form: Link) -> Proposal:
        seen = evidence.train
        x = features(form.frame.nodes[form.node], seen.values[form.source].double())
        h, v = x.flatten(0, 1), seen.bottleneck(form.target).flatten(0, 1)
        inverse = power(h.T @ h / (seen.rows * x.shape[1]), -1.0, self.options.ridge)
        weight = power(seen.curvature(form.target), -1.0, 1e-2) @ (v.T @ h / seen.rows) @ inverse
        shape = form.frame.params[f"{form.node}.weight"]
        return Proposal(units=shape[0], blocks=(Block(f"{form.node}.weight", 0, weight.reshape(shape)),))

    def _units(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        form = site.form
        seen = head(evidence.train, form)
        sources = sources_of(seen, form)
        memo = evidence.memo.setdefault((self.name, self.options, site.key), {})
        if "directions" not in memo:
            memo["directions"] = self._directions(form, sources, seen)
        found: Directions = memo["directions"]
        if found.blind:
            # Searched once, for the most units on offer; fewer are the best of those.
            if "exact" not in memo:
                memo["exact"] = self._exact(form, seen, max(*site.units, units), (*key, site.key))
            alpha = memo["exact"] if len(memo["exact"]) == units else best_units(form, sources, seen, memo["exact"], units)
        else:
            alpha = best_units(form, sources, seen, torch.cat([found.alpha[: 2 * units], -found.alpha[: 2 * units]]), units)
        return proposal_of(form, sources, seen, alpha)

    def _directions(self, form: Units, sources: Sources, seen: Pass) -> Directions:
        x = sources.x.flatten(0, 1)
        whiten = power(x.T @ x / len(x), -0.5, self.options.ridge)
        moments, missing = linear_moments(form, sources, seen), 0.0
        parts = []
        for r, target in zip(form.readers, form.targets, strict=True):
            metric = power(seen.curvature(target), -0.5, 1e-2)
            v = seen.bottleneck(target)
            missing += float(((v.sum(1) @ metric) ** 2).sum() / seen.rows)
            parts.append(torch.einsum("pqo,qr->pro", torch.einsum("ps,sqo->pqo", whiten, moments[r]), metric).flatten(1))
        u, sizes, _ = torch.linalg.svd(torch.cat(parts, 1), full_matrices=False)
        seen_at_all = sizes > NULL * sizes[0]
        seen_at_all[0] = True
        return Directions((whiten @ u[:, seen_at_all]).T.contiguous(), bool(sizes[0] ** 2 <= BLIND * max(missing, 1e-300)))

    def _exact(self, form: Units, full: Pass, units: int, key: tuple[int | str, ...]) -> Tensor:
        """Units that lower the loss most with their fan-out solved for, found by ascent from many starts."""
        seen = head(full, form, SEARCH_VALUES)
        sources = sources_of(seen, form)
        x = sources.x.flatten(0, 1)
        whiten = power(x.T @ x / len(x), -0.5, self.options.ridge)
        draws = torch.randn(self.options.starts, len(whiten), generator=stream(*key, "starts"), dtype=torch.float64)
        starts = torch.cat([even_directions(form, sources, seen, whiten, 2 * units), draws / draws.norm(dim=1, keepdim=True)])
        climbed = seen.head(2 * seen.rows // 3)
        alpha = best_units(form, sources_of(climbed, form), climbed, torch.cat([starts @ whiten, -starts @ whiten]), units)
        return ascend(form, sources, seen, alpha, whiten, self.options.steps)


def proposal_of(form: Units, sources: Sources, seen: Pass, alpha: Tensor) -> Proposal:
    """A full proposal from fan-ins: scaled to unit pre-activations, statistics measured, fan-out refitted."""
    alpha = alpha / scale_of(form, sources, alpha)
    follows: dict[str, Tensor] = {}
    view = reader_view(form, sources.born(form, alpha), follows, fit=True)
    shapes = {**form.frame.params, **form.frame.buffers}
    blocks = sources.blocks(form, alpha, torch.float64, shapes) + column_blocks(form, len(alpha), refit(form, seen, view), torch.float64, shapes)
    blocks += [Block(param, 0, values) for param, values in follows.items() if param in shapes]
    finite = all(bool(torch.isfinite(b.values).all()) for b in blocks)
    return Proposal("ok" if finite else "nonfinite", units=len(alpha), blocks=tuple(blocks))


def scale_of(form: Units, sources: Sources, alpha: Tensor) -> Tensor:
    """Standard deviation of each unit's pre-activation, summed over its writers: [units, 1]."""
    total = sum(z.flatten(2) if z.dim() > 2 else z.unsqueeze(2) for z in sources.born(form, alpha).values())
    return total.std((0, 2), unbiased=False).clamp(min=1e-12).unsqueeze(1)


def even_directions(form: Units, sources: Sources, seen: Pass, whiten: Tensor, count: int) -> Tensor:
    """Eigenvectors of E[(w . v-perp) h h^T] for the main directions w of what is missing: the even part of a unit's signal."""
    x = sources.x.flatten(0, 1) @ whiten
    found = []
    for v in (aim.v for aim in aims(form, seen)):
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
    alpha = alpha / scale_of(form, sources, alpha)
    view = reader_view(form, sources.born(form, alpha))
    # [candidates, rows * positions, kernel] for each reader
    columns = [view[r].unflatten(2, (len(alpha), -1)).flatten(0, 1).transpose(0, 1) for r in form.readers]
    left, chosen = aims(form, seen), []
    for _ in range(min(units, len(alpha))):
        gains = sum(aim.gains(h) for aim, h in zip(left, columns, strict=True))
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
    climb, judge = ([aim.rows_of(*span) for aim in aims(form, seen)] for span in ((0, split), (split, rows)))
    optimizer = torch.optim.Adam([a], lr=0.02)
    best, best_gain = a.detach().clone(), -torch.inf
    for step in range(steps + 1):
        with torch.enable_grad():
            born = sources.born(form, torch.nn.functional.normalize(a, dim=1) @ whiten)
            views = [h.flatten(0, 1) for h in reader_view(form, born).values()]
            cut = [len(h) // rows * split for h in views]
            gain = sum(aim.gains(h[:k]) for aim, h, k in zip(climb, views, cut, strict=True))
        if step % 5 == 0 or step == steps:
            views = [h.detach() for h in views]
            unseen = sum(float(j.gain_of(h[k:], c.step(h[:k]))) for c, j, h, k in zip(climb, judge, views, cut, strict=True))
            if unseen > best_gain:
                best, best_gain = a.detach().clone(), unseen
        if step < steps:
            (a.grad,) = torch.autograd.grad(-gain, a)
            optimizer.step()
    return torch.nn.functional.normalize(best, dim=1) @ whiten
