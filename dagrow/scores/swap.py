"""derivative: where the new parameters of a swap should go."""

from __future__ import annotations

import pydantic
import torch
from torch import Tensor

from dagrow.measure import Evidence, Pass, Site, Swap
from dagrow.registry import Options
from dagrow.scores import REGISTRY, Block, Proposal, Scorer

# A slope below this share of what the change and the gradient could give if they agreed is rounding, or as good as.
VANISHING = 1e-4
# Values per-sample gradients may take in memory: 160 MB in fp64, twice.
MOST_VALUES = 2e7


@REGISTRY.register("derivative")
class Derivative(Scorer):
    """New parameters along the damped Gauss-Newton step of what is missing, from where the function stays as it is.

    Where there is no such step - nothing is new, the function changes at once, or its derivative vanishes - the proposal
    can be made, but needs a trial.
    """

    serves = (Swap,)
    default_for = (Swap,)

    class Options(Options):
        ridge: float = pydantic.Field(1e-2, gt=0, le=1, description="damping of the Gauss-Newton step, relative to each parameter's curvature")
        most: int = pydantic.Field(1024, ge=0, le=2**13, description="new parameters up to which that step is solved for; beyond, the gradient")

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        form, seen = site.form, evidence.train
        begin = form.begin(seen, (*key, site.key))
        start = tuple(Block(n, 0, t) for n, t in begin.items() if t.is_floating_point() and t.dim())
        kept = form.keeps(seen, begin)
        if kept is None:
            return Proposal("nonfinite", "its outputs are not numbers")
        if not kept:
            return Proposal("trial", "it changes the function at once", units, start, start)
        if not form.outgoing:
            return Proposal("trial", "it brings no new parameters", units, start, start)
        try:
            step = self._step(form, seen, begin)
            proposal = Proposal("ok", "", units, tuple(Block(b.param, 0, b.values + step.get(b.param, 0.0)) for b in start), start)
            vanishes = _vanishes(form, seen, proposal)
        except torch.linalg.LinAlgError as error:
            return Proposal("singular", str(error).splitlines()[0])
        return Proposal("trial", "to first order the present weights can do all that it brings", units, start, start) if vanishes else proposal

    def _step(self, form: Swap, seen: Pass, begin: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes = {p: begin[p].shape for p in form.frame.params if (p, 0) in form.outgoing}
        sizes = [shape.numel() for shape in shapes.values()]
        if sum(sizes) > min(self.options.most, MOST_VALUES / seen.rows):
            return form.pull(seen, begin)
        s, t = form.pulls(seen, begin)
        curvature = t.T @ t / seen.rows
        floor = curvature.diagonal() * self.options.ridge
        damped = curvature + torch.diag(floor + 1e-12 * floor.max() + 1e-300)
        step = torch.linalg.solve(damped, s.mean(0))
        return {p: part.view(shape) for (p, shape), part in zip(shapes.items(), step.split(sizes), strict=True)}


def _vanishes(form: Swap, seen: Pass, proposal: Proposal) -> bool:
    """Whether the loss does not change along the step, to first order."""
    slope = bound = 0.0
    for target, change in form.effect(seen, proposal).items():
        slope += float((change * form.gradient(seen, target)).sum())
        bound += float(change.norm() * seen.v[target].double().norm())
    return abs(slope) <= VANISHING * bound
