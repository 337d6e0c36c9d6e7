"""random: the baseline every other scorer has to beat."""

from __future__ import annotations

import torch

from dagrow.measure import Evidence, Link, Site, Units
from dagrow.measure.carrying import Unsupported
from dagrow.registry import Options
from dagrow.rng import stream
from dagrow.scores import REGISTRY, Block, Proposal, Scorer
from dagrow.scores.units import column_blocks, head, reader_view, scale_of, sources_of


@REGISTRY.register("random")
class Random(Scorer):
    """New units in random directions, with a small random fan-out."""

    serves = (Units, Link)

    class Options(Options):
        """No options."""

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        generator = stream(*key, site.key, units)
        form = site.form
        if isinstance(form, Link):
            shape = form.frame.params[f"{form.node}.weight"]
            return Proposal(units=units, blocks=(Block(f"{form.node}.weight", 0, torch.randn(shape, generator=generator, dtype=torch.float64)),))
        try:
            seen = head(evidence.train, form)
            sources = sources_of(seen, form)
            alpha = torch.randn(units, sources.x.shape[2], generator=generator, dtype=torch.float64)
            alpha = alpha / scale_of(sources, alpha)
            follows: dict[str, torch.Tensor] = {}
            view = reader_view(form, sources.born(form, alpha), follows, fit=True)
        except Unsupported as error:
            return Proposal("unsupported", str(error))
        shapes = {**form.frame.params, **form.frame.buffers}
        omega = {
            r: torch.randn(form.frame.params[f"{r}.weight"][0], view[r].shape[2], generator=generator, dtype=torch.float64) for r in form.readers
        }
        blocks = sources.blocks(form, alpha, torch.float64, shapes) + column_blocks(form, units, omega, torch.float64, shapes)
        blocks += [Block(param, 0, values) for param, values in follows.items() if param in shapes]
        return Proposal(units=units, blocks=tuple(blocks))
