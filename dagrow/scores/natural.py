"""natural: units along the natural gradient of the bottleneck, or exact units where the site is linear-blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pydantic
import torch
from torch import Tensor

from dagrow.measure import Evidence, Link, Pass, Site, Units
from dagrow.measure.carrying import Unsupported
from dagrow.measure.features import design
from dagrow.registry import Options
from dagrow.scores import REGISTRY, Block, Proposal, Scorer
from dagrow.scores.aims import aim_at, giving_way, power
from dagrow.scores.exact import best_units, exact_units
from dagrow.scores.moments import FEW, main_directions, readers_of
from dagrow.scores.placed import placed
from dagrow.scores.screen import screen
from dagrow.scores.units import Sources, linear_moments, proposal_of, sources_of

# Below this share of what is missing, no linear direction carries signal: the site is linear-blind.
BLIND = 1e-6
# Below this share of the first, a singular value is rounding, and its direction anything.
NULL = 1e-7


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
        steps: int = pydantic.Field(40, ge=0, le=10_000, description="most gradient steps of the exact search")

    def screen(self, evidence: Evidence, sites: Sequence[Site]) -> Sequence[float]:
        return placed(evidence, sites, screen(evidence, sites, self.options.ridge), self.options.ridge)

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        try:
            if isinstance(site.form, Link):
                return self._link(evidence, site.form, units)
            return self._units(evidence, site, units, key)
        except Unsupported as error:
            return Proposal("unsupported", str(error))
        except torch.linalg.LinAlgError as error:
            return Proposal("singular", str(error).splitlines()[0])

    def _link(self, evidence: Evidence, form: Link, units: int) -> Proposal:
        seen, target = evidence.train, form.target
        for fold in (evidence.train, evidence.held):
            fold.focus((target,))
        aim, node = aim_at(seen, target), form.frame.nodes[form.node]
        h = design(node, seen.values[form.source], seen.places(target)).flatten(0, 1)
        free = aim.free(h)
        inverse = power((free.T @ free).double() / len(free), -1.0, self.options.ridge)
        weight = aim.metric @ ((aim.v.T @ free).double() / seen.rows) @ inverse
        shift = giving_way(seen, target, aim.span, h, weight)
        shape = form.frame.params[f"{form.node}.weight"]
        return Proposal(units=units, blocks=(Block(f"{form.node}.weight", 0, weight.reshape(shape)),), shift=shift)

    def _units(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        form, seen = site.form, evidence.train
        for fold in (evidence.train, evidence.held):
            fold.focus(form.targets)
        sources = sources_of(seen, form)
        memo = evidence.memo.setdefault((self.name, self.options, site.key), {})
        if "alpha" not in memo:  # in the order they are chosen, for the most units on offer; fewer are the first of them
            memo["alpha"] = self._fan_ins(form, sources, seen, max(*site.units, units), (*key, site.key))
        return proposal_of(form, sources, seen, memo["alpha"][:units])

    def _fan_ins(self, form: Units, sources: Sources, seen: Pass, most: int, key: tuple[int | str, ...]) -> Tensor:
        """Fan-ins worth having, [units, fan-in (+ 1)], the best first."""
        found, sketch = self._directions(form, sources, seen, 2 * most), seen.sketch()
        trial = sources if sketch is seen else sources_of(sketch, form)
        if found.blind:
            return best_units(form, trial, sketch, exact_units(form, seen, most, self.options, key), most)
        first = found.alpha[: 2 * most]
        return best_units(form, trial, sketch, torch.cat([first, -first]), most)

    def _directions(self, form: Units, sources: Sources, seen: Pass, most: int | None = None) -> Directions:
        """Of many sources of maps only the `most` best."""
        whiten = power(sources.gram, -0.5, self.options.ridge)
        metrics = [power(seen.curvature(target), -0.5, 1e-2) for target in form.targets]
        missing = sum(
            float(((seen.bottleneck(target).sum(1).double() @ metric) ** 2).sum() / seen.rows)
            for target, metric in zip(form.targets, metrics, strict=True)
        )
        if most is not None and len(whiten) >= FEW * most and len(form.frame.shapes[form.writers[0]]) > 1:
            u, sizes = main_directions(readers_of(form, sources, seen, metrics), whiten, most)
        else:
            moments = linear_moments(form, sources, seen)
            parts = [
                torch.einsum("pqo,qr->pro", torch.einsum("ps,sqo->pqo", whiten, moments[r]), metric).flatten(1)
                for r, metric in zip(form.readers, metrics, strict=True)
            ]
            u, sizes, _ = torch.linalg.svd(torch.cat(parts, 1), full_matrices=False)
        seen_at_all = sizes > NULL * sizes[0]
        seen_at_all[0] = True
        return Directions((whiten @ u[:, seen_at_all]).T.contiguous(), bool(sizes[0] ** 2 <= BLIND * max(missing, 1e-300)))
