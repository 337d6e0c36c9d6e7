"""Simulated annealing: random proposals, accepted by their measured gain against a falling temperature."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from dagrow import registry, rng
from dagrow.select import REGISTRY, Chooser, Done, Try, label, proposable, trial_of

_CAVEAT = "annealing, not sampling"
Positive = Annotated[float, pydantic.Field(gt=0)]


class Temperature(registry.Options):
    """Nats per sample, at the first step and at the end of the budget, and how it goes from one to the other."""

    start: Positive = 0.03
    end: Positive = 0.001
    decay: Literal["cosine", "exponential", "linear", "constant"] = "cosine"


@REGISTRY.register("metropolis")
class Metropolis(Chooser):
    """Draw a kind of edit, then a site; accept losses too while the temperature is high.

    Weights are inherited and the proposal probabilities of inverse edits are not counted (no Hastings factor), so this
    anneals, it does not sample: rely on the best seen, not on the last. A proposal outside the budget is a rejection,
    it is not drawn again. A chain much colder than its gains' standard errors accepts nothing: the noise penalty.
    """

    class Options(registry.Options):
        """epochs: fine-tuning before a proposal is measured. proposals: how many are made per step, until one is
        accepted. explore: also propose what did not beat noise.
        """

        temperature: Temperature = Temperature()
        epochs: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 1
        proposals: Annotated[int, pydantic.Field(ge=1, le=1000)] = 1
        explore: bool = True

    conclusive = False
    examples = ({}, {"proposals": 4, "temperature": {"start": 1.0, "end": 0.5, "decay": "exponential"}}, {"explore": False})

    @staticmethod
    def init(options, horizon=1, kinds=()):
        return {"horizon": int(horizon)}

    @staticmethod
    def ask(options, key, state, candidates, outcomes):
        seed, step = key
        t = temperature(options.temperature, step / max(1, state["horizon"]))
        possible = proposable(candidates, ["grow", "shrink", "trial", "too dear"] + ["noise"] * options.explore)
        by_kind = {kind: sorted(c.index for c in possible if c.edit == kind) for kind in sorted({c.edit for c in possible})}
        if not by_kind:
            return Done(None, "nothing to propose")
        measured = {o.trial.index: o for o in outcomes}
        for proposal in range(options.proposals):
            kind_draw, site_draw, u = draws(seed, step, proposal)
            sites = by_kind[_pick(list(by_kind), kind_draw)]
            candidate = candidates[_pick(sites, site_draw)]
            if candidate.verdict == "too dear":
                continue
            if candidate.index not in measured:
                return Try((trial_of(candidate, options.epochs),))
            outcome = measured[candidate.index]
            if outcome.usable and accept(outcome.gain, outcome.stderr, t, 0.0, u):
                return Done(outcome.trial, f"{label(candidate)}: {outcome.gain:+.4g} nats accepted at T = {t:.3g} ({_CAVEAT})")
        return Done(None, f"{options.proposals} proposal{'s' * (options.proposals > 1)} rejected at T = {t:.3g} ({_CAVEAT})")


def accept(delta: float, stderr: float, temperature: float, log_q_ratio: float, u: float) -> bool:
    """Metropolis-Hastings with noisy gains: whether u < min(1, exp(Δ/T - s²/(2T²)) q(back)/q(forth)).

    delta: the measured gain, nats, with standard error `stderr`; log_q_ratio: ln(q(back)/q(forth)), -inf where there is
    no way back; u: uniform on [0, 1). With Gaussian noise the s² term makes detailed balance exact on average.
    Temperature 0 is hill-climbing on what was measured: delta > 0. Anything that is not a number rejects.
    """
    if any(math.isnan(v) for v in (delta, stderr, temperature, log_q_ratio, u)) or math.isinf(delta) or math.isinf(stderr):
        return False
    if log_q_ratio == -math.inf:
        return False
    if temperature <= 0:
        return delta > 0
    ratio = stderr / temperature
    exponent = delta / temperature - 0.5 * ratio * ratio + log_q_ratio
    # NaN here is inf - inf: a number over a temperature too small for it.
    return not math.isnan(exponent) and u < math.exp(min(0.0, exponent))


def temperature(options: Temperature, progress: float) -> float:
    """Nats per sample at `progress` from 0 (start) to 1 (end)."""
    return _DECAYS[options.decay](options.start, options.end, min(1.0, max(0.0, progress)))


_DECAYS = {
    "cosine": lambda start, end, p: end + (start - end) * 0.5 * (1 + math.cos(math.pi * p)),
    "exponential": lambda start, end, p: start * (end / start) ** p,
    "linear": lambda start, end, p: start + (end - start) * p,
    "constant": lambda start, end, p: start,
}


def draws(seed: int, step: int, proposal: int) -> tuple[float, float, float]:
    """Three uniforms on [0, 1): for the kind, for the site, for the acceptance."""
    import torch

    return tuple(torch.rand(3, dtype=torch.float64, generator=rng.stream(seed, "metropolis", step, proposal)).tolist())


def _pick(items, u: float):
    return items[min(int(u * len(items)), len(items) - 1)]
