"""tiny: the published scorer that natural descends from, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import pydantic
import torch
from torch import Tensor

from dagrow.measure import Evidence, Link, Pass, Site, Units, features
from dagrow.measure.carrying import Unsupported
from dagrow.registry import Options
from dagrow.scores import REGISTRY, Block, Proposal, Scorer
from dagrow.scores.units import Sources, column_blocks, head, linear_moments, reader_view, sources_of


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of S^-1/2 N: `sizes` [rank], descending; `fan_in` [rank, fan-in (+ 1)], rows
    S^-1/2 u; `fan_out` [rank, ...], rows of right singular vectors over all targets."""

    sizes: Tensor
    fan_in: Tensor
    fan_out: Tensor

    def predicted(self, units: int) -> float:
        """What the paper promises for the best `units` units at amplitude 1: sum of lambda^2, first order in nats per sample."""
        return float(self.sizes[:units].square().sum())


def decompose(gram: Tensor, moments: Tensor, rank: float) -> Spectrum:
    """Of S = `gram` [fan-in, fan-in] and N = `moments` [fan-in, ...]; eigenvalues of S below `rank` of the largest are left out."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > rank * values[-1]
    kept[-1] = True
    whiten = vectors[:, kept] * values[kept].clamp(min=1e-300).rsqrt()
    u, sizes, v = torch.linalg.svd(whiten.T @ moments, full_matrices=False)
    return Spectrum(sizes, (whiten @ u).T, v)


@REGISTRY.register("tiny")
class Tiny(Scorer):
    """New units as published by TINY (Verbockhaven et al. 2024): no curvature, activations taken as linear.

    With the singular triples (u, lambda, w) of S^-1/2 E[h v-perp]: fan-in sqrt(lambda) S^-1/2 u, fan-out sqrt(lambda) w. A
    connection gets the least-squares map S^-1 E[h v-perp] (Douka et al. 2025). On convolutions S is the mean over
    positions and E[h v-perp] the sum. A pair's sign is as the decomposition leaves it.
    """

    serves = (Units, Link)

    class Options(Options):
        rank: float = pydantic.Field(1e-5, ge=0, lt=1, description="share of the largest eigenvalue of S below which directions are left out")

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        try:
            found = self.spectrum(evidence, site)
            if isinstance(site.form, Link):
                return self._link(site.form, found, units)
            return self._units(evidence, site.form, found, units)
        except Unsupported as error:
            return Proposal("unsupported", str(error))
        except torch.linalg.LinAlgError as error:
            return Proposal("singular", str(error).splitlines()[0])

    def predicted(self, evidence: Evidence, site: Site, units: int) -> float:
        """What the paper promises for the proposal: sum of lambda^2. Raises as `spectrum` does."""
        return self.spectrum(evidence, site).predicted(10**9 if isinstance(site.form, Link) else units)

    def spectrum(self, evidence: Evidence, site: Site) -> Spectrum:
        """Raises Unsupported for forms that are read or written in groups, LinAlgError where values are not finite."""
        memo, place = evidence.memo, (self.name, self.options, site.key)
        if place not in memo:
            memo[place] = self._spectrum_of(evidence, site.form)
        return memo[place]

    def _spectrum_of(self, evidence: Evidence, form: Units | Link) -> Spectrum:
        if isinstance(form, Link):
            seen = evidence.train
            x = features(form.frame.nodes[form.node], seen.values[form.source].double()).flatten(0, 1)
            moments = x.T @ seen.bottleneck(form.target).flatten(0, 1).double() / seen.rows
        else:
            seen, sources = _seen(evidence, form)
            x = sources.x.flatten(0, 1).double()
            found = linear_moments(form, sources, seen)
            moments = torch.cat([found[r].flatten(1).double() for r in form.readers], 1)
        return decompose(x.T @ x / len(x), moments, self.options.rank)

    def _link(self, form: Link, found: Spectrum, units: int) -> Proposal:
        weight = (found.fan_in.T * found.sizes @ found.fan_out).T
        block = Block(f"{form.node}.weight", 0, weight.reshape(form.frame.params[f"{form.node}.weight"]))
        return Proposal(_status([block]), units=units, blocks=(block,))

    def _units(self, evidence: Evidence, form: Units, found: Spectrum, units: int) -> Proposal:
        _, sources = _seen(evidence, form)
        units = min(units, len(found.sizes))
        half = found.sizes[:units, None].sqrt()
        alpha, out = half * found.fan_in[:units], half * found.fan_out[:units]
        follows: dict[str, Tensor] = {}
        view = reader_view(form, sources.born(form, alpha), follows, fit=True)
        omega, start = {}, 0
        for r in form.readers:
            width = form.frame.params[f"{r}.weight"][0]
            size = width * (view[r].shape[2] // units)
            omega[r] = out[:, start : start + size].unflatten(1, (width, -1)).transpose(0, 1).flatten(1)
            start += size
        shapes = {**form.frame.params, **form.frame.buffers}
        blocks = sources.blocks(form, alpha, torch.float64, shapes) + column_blocks(form, units, omega, torch.float64, shapes)
        blocks += [Block(param, 0, values.double()) for param, values in follows.items() if param in shapes]
        return Proposal(_status(blocks), units=units, blocks=tuple(blocks))


def _seen(evidence: Evidence, form: Units) -> tuple[Pass, Sources]:
    seen = head(evidence.train, form)
    return seen, sources_of(seen, form)


def _status(blocks: list[Block]) -> str:
    return "ok" if all(bool(torch.isfinite(b.values).all()) for b in blocks) else "nonfinite"
