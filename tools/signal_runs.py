"""What table T4 is made of: each function measures one run, and gives plain records that depend on no other run.

Test rows measure here; they choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import bench_tables
import torch
import truth_nets

from dagrow.check import check
from dagrow.compiler import compile_architecture, initialise
from dagrow.edits import REGISTRY as EDITS
from dagrow.measure import Evidence, Gathering, Link, Pass, Site, Units, features, measure
from dagrow.measure.evidence import observe
from dagrow.planning import make_plan
from dagrow.propose import Limits, Scored, propose, sites
from dagrow.racing import race
from dagrow.rng import stream
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores import Proposal, Scorer, serving
from dagrow.scores.units import power
from dagrow.scores.valuer import value
from dagrow.select import Trial
from dagrow.spec.fields import ScoreSpec
from dagrow.train import outputs, steps_per_epoch
from dagrow.trials import Bench

NAMES = ("widen", "deepen", "connect")
SAMPLES = (64, 128, 256, 512)
MODES = ("pass", "training")
REFUSALS = ("breast-cancer", "diabetes")
EPOCHS = 200  # in which a linear model on these two has long stopped moving
DEFAULTS = ScoreSpec()


def edits(**units: int) -> list[tuple[type, object]]:
    """The growing edits with their default options; units: how many new ones, where an edit asks for it."""
    rules = [EDITS.get(name) for name in NAMES]
    return [(e, e.Options(**{k: v for k, v in units.items() if k in e.Options.model_fields})) for e in rules]


def scorer() -> Scorer:
    rule = SCORERS.get(DEFAULTS.by.name)
    return rule(rule.Options(**DEFAULTS.by.options))


def evidence_of(at: truth_nets.Stage, rows: int = DEFAULTS.rows, seen: Pass | None = None) -> Evidence:
    """Evidence as a search has it at a decision: rows drawn, or those that training has seen."""
    return measure(at.arch, at.weights, at.train, at.val, at.loss, rows=rows, seed=at.seed, path=("signal",), seen=seen)


def decided(evidence: Evidence, seed: int) -> list[Scored]:
    return propose(evidence, edits(), scorer(), Limits(), alpha=DEFAULTS.alpha, key=(seed, "signal"))


def tested(found: list[Scored]) -> list[Scored]:
    """The candidates that were held against noise: of each growing site the one of most gain."""
    heads: dict[str, Scored] = {}
    for s in found:
        if s.candidate.verdict in ("noise", "grow") and s.part is not None:
            heads.setdefault(s.candidate.key, s)  # they come best first
    return list(heads.values())


# ---- false growth

def null(net: str, stage: str, seed: int) -> Iterator[dict]:
    """A decision on a network whose targets were dealt out at random, from a pass of its own and from what training saw."""
    for mode, (at, seen) in zip(MODES, watched(net, truth_nets.STAGES[stage], seed), strict=True):
        found = tested(decided(evidence_of(at, seen=seen), seed))
        grown = [s.candidate.key for s in found if s.candidate.verdict == "grow"]
        yield {"mode": mode, "sites": len(found), "grown": grown, "z": [s.gain.z for s in found], "keys": [s.candidate.key for s in found]}


def watched(net: str, steps: int, seed: int) -> Iterator[tuple[truth_nets.Stage, Pass | None]]:
    """(the network with permuted targets after `steps`, what its last epoch saw), first without, then with."""
    untrained = truth_nets.trained(net, seed, 0, permuted=True)
    batch, rows = untrained.recipe.batch, len(untrained.train)
    before = truth_nets.trained(net, seed, steps - min(steps, steps_per_epoch(rows, batch)), permuted=True)
    path = ("signal", "last epoch")
    watch = Gathering(before.arch, before.loss, rows=DEFAULTS.rows, window=DEFAULTS.window, batch=batch, samples=rows, seed=seed, path=path)
    weights, moments, _ = before.recipe.epoch(
        before.arch, before.weights, before.moments, before.train, lambda _: truth_nets.RATE, seed, path, watch
    )
    at = truth_nets.Stage(before.arch, weights, moments, before.recipe, before.train, before.val, before.test, before.loss, seed)
    yield at, None
    yield at, watch.collect(weights)


# ---- power, and the standard errors

def true_effects(net: str, stage: str, seed: int) -> Iterator[dict]:
    """Every growing site on true targets: what was predicted of it, and what it does on test rows."""
    at = truth_nets.trained(net, seed, truth_nets.STAGES[stage])
    evidence = evidence_of(at)
    found = decided(evidence, seed)
    fresh = Evidence(at.arch, evidence.weights, evidence.train, on_test(at))
    bench = Bench(at.arch, at.weights, at.moments, found, at.recipe, Limits(), at.train, at.train, at.test, truth_nets.RATE, seed, ("signal",))
    for s in tested(found):
        made, again = bench.make(Trial(s.candidate.index)), value(fresh, s.part.site, s.part.proposal)
        yield {
            "key": s.candidate.key, "grow": s.candidate.verdict == "grow", "z": s.gain.z, "gain": s.gain.nats, "stderr": s.gain.stderr,
            "held": s.gain.held, "held_stderr": s.gain.held_stderr, "test": again.held, "test_stderr": again.held_stderr,
            "checked": made.checked, "drop": made.held, "drop_stderr": made.held_stderr, "status": made.outcome.status,
        }


def on_test(at: truth_nets.Stage) -> Pass:
    """Test rows as evidence sees held-out ones, at the temperature that validation rows give."""
    beta = at.loss.calibrate(outputs(compile_architecture(at.arch, at.weights), at.val.x), at.val.y)
    return observe(at.arch, at.weights, at.test, at.loss, stream(at.seed, "signal", "probe-test"), beta)


# ---- the captured share of a gain

def shares(net: str, stage: str, seed: int) -> Iterator[dict]:
    """One new unit or connection per site, fitted on the first n rows and valued on all N.

    To second order the estimate from n of the N rows that value it misses theirs by k (1/n - 1/N) / 2 nats, across it. So
    "predicted" is 1 - that / gain, with k the number of parameters, p + q for a unit and p q for a connection: right where
    little is missed, and where the noise is the curvature's. "refined" is 1 / (1 + that / gain), since the amplitude is
    searched, with the parameters and rows counted as the noise shows them (Freedom).
    """
    at = truth_nets.trained(net, seed, truth_nets.STAGES[stage])
    full, rule = evidence_of(at, rows=10**9), scorer()
    for _, _, site in sites(at.arch, edits(units=1)):
        if not isinstance(site.form, Units | Link):
            continue
        whole = _fitted(full, site, rule, seed)
        best = value(full, site, whole)
        if whole.status != "ok" or best.status != "ok" or best.nats <= 0:
            continue
        free, rows = Freedom(full.train, site, whole), full.train.rows
        for n in (n for n in SAMPLES if n < rows):
            part = _fitted(full.head(n), site, rule, seed)
            got = value(full, site, part) if part.status == "ok" else None
            yield {
                "key": site.key, "n": n, "of": rows, "gain": best.nats, "z": best.z, "parameters": free.counted, "noise": free.noisy,
                "share": got.nats / best.nats if got is not None and got.status == "ok" else math.nan,
                "predicted": 1 - free.counted * (1 / n - 1 / rows) / (2 * best.nats),
                "refined": 1 / (1 + free.noisy * (1 / max(n - free.rank, 1) - 1 / (rows - free.rank)) / (2 * best.nats)),
            }


def _fitted(evidence: Evidence, site: Site, rule: Scorer, seed: int) -> Proposal:
    return serving(rule, site.form).propose(evidence, site, 1, (seed, "signal"))


class Freedom:
    """What one new unit, or connection, at a site is free to fit.

    counted: p + q, or p q. noisy: the same with p less what the ridge and the target's parents take of it, and each
    direction in the target by the noise there is in it, in units of the curvature: 1 where the network is as unsure as it
    is wrong. rank: of the parents, whose fit leaves so many rows fewer.
    """

    def __init__(self, seen: Pass, site: Site, proposal: Proposal, ridge: float = 1e-2):
        form, values = site.form, {(b.param, b.axis): b.values for b in proposal.blocks}
        link = isinstance(form, Link)
        targets, writers = ((form.target,), (form.node,)) if link else (form.targets, form.writers)
        sources = (form.source,) if link else form.sources
        parts = [features(form.frame.nodes[w], seen.values[x].double()).flatten(0, 1) for w, x in zip(writers, sources, strict=True)]
        h = torch.cat([*parts, *([] if link else [torch.ones(len(parts[0]), 1, dtype=torch.float64)])], 1)
        q = seen.span(targets[0]).basis
        left = h - q @ (q.T @ h) if len(q) == len(h) else h
        p = float(((left.T @ left / seen.rows) * power(h.T @ h / seen.rows, -1.0, ridge)).sum())
        spread, outward = 0.0, 0.0
        for k, t in enumerate(targets):
            metric, v = power(seen.curvature(t), -0.5, ridge), seen.bottleneck(t).double().sum(1)
            noise = metric @ (v.T @ v / seen.rows) @ metric
            spread += float(noise.trace())
            if not link:
                w = power(seen.curvature(t), 0.5, ridge) @ values[f"{form.readers[k]}.weight", 1].double().flatten(1).sum(1)
                outward = max(outward, float(w @ noise @ w / w.square().sum().clamp(min=1e-300)))
        fan_out = sum(seen.arch.shapes[t][0] for t in targets)
        self.rank = q.shape[1]
        self.counted = h.shape[1] * fan_out if link else h.shape[1] + fan_out
        self.noisy = p * spread if link else p * outward + spread


# ---- the race

def raced(net: str, stage: str, seed: int) -> Iterator[dict]:
    """The race against all rows: rows used, and what its choice is worth beside theirs."""
    at = truth_nets.trained(net, seed, truth_nets.STAGES[stage])
    evidence = evidence_of(at)
    whole = [s for s in decided(evidence, seed) if s.candidate.verdict == "grow"]
    # A small network's race would save no time, and have all rows: it is told to save them all the same.
    run = race(evidence, edits(), scorer(), Limits(), alpha=DEFAULTS.alpha, key=(seed, "signal"), least=0)
    few = [s for s in run.scored if s.candidate.verdict == "grow"]
    worth = {s.candidate.key: s.candidate.gain for s in whole}
    best, chosen = (s[0].candidate.key if s else "null" for s in (whole, few))
    yield {
        "rows": run.rows, "of": evidence.train.rows, "best": best, "chosen": chosen, "same": best == chosen, "reason": run.reason,
        "contends": chosen in [s.candidate.key for s in whole[:3]] if whole else chosen == "null",
        "gain": worth.get(best, 0.0), "lost": worth.get(best, 0.0) - worth.get(chosen, 0.0),
    }


# ---- where a linear model is all there is to find

def refused(net: str, stage: str, seed: int) -> Iterator[dict]:
    """A linear model trained until nothing moves; what a decision says of hidden layers. `net` is a row of table T6."""
    plan = make_plan(check(bench_tables.spec_of(net, seed, seed)))
    arch, recipe, fold = plan.architecture, plan.recipe, plan.data.train
    weights, moments = initialise(arch, seed), {}
    for epoch in range(EPOCHS):
        rate = recipe.options.lr * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        weights, moments, _ = recipe.epoch(arch, weights, moments, fold, lambda _, rate=rate: rate, seed, ("signal", epoch))
    held = plan.data.val
    evidence = measure(arch, weights, fold, held, recipe.loss, rows=plan.spec.score.rows, seed=seed, path=("signal",))
    found = tested(propose(evidence, plan.edits, plan.scorer, plan.limits, alpha=plan.spec.score.alpha, key=(seed, "signal")))
    metric = "accuracy" if plan.data.task == "classification" else "r2"
    test = recipe.loss.metrics(outputs(compile_architecture(arch, weights), plan.data.test.x), plan.data.test.y)[metric]
    yield {"sites": len(found), "grown": [s.candidate.key for s in found if s.candidate.verdict == "grow"], "z": [s.gain.z for s in found], "test": test}
