"""One decision about a network, from rows: score, try the best by real forwards, choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic
import torch
from torch import Tensor

from dagrow import edits as edit_rules
from dagrow import registry, scores, select
from dagrow.applying import Applied, apply, refresh_norms, settle_norms
from dagrow.compiler import compile_architecture, parameters_by_name
from dagrow.data import Fold
from dagrow.errors import UsageError
from dagrow.graph import Architecture, Refusal
from dagrow.losses import Loss
from dagrow.measure import measure
from dagrow.measure.parents import parents
from dagrow.propose import Limits, Scored, sites
from dagrow.racing import Raced, race
from dagrow.scores import Proposal, Scorer
from dagrow.select import Done
from dagrow.train import Moments
from dagrow.trials import Bench, Measured, Recipe

Weights = dict[str, Tensor]
# Gradients of so many parts of the rows say how large they are in each entry.
PARTS = 8
# Nats that a kept function may differ by on rows in single precision.
ROUNDING = 1e-4


class ScoreOptions(registry.Options):
    """How decisions are made; as `score:` in a spec, where the names are the same.

    rows: training rows to score on, and, where none are given, a third as many are held out. window: the steps before a
    decision of `Grower.step` whose rows are gathered. verify: candidates tried by real forwards.
    """

    by: str | dict[str, dict[str, Any]] = "natural"
    rows: int = pydantic.Field(1024, ge=8, le=2**24)
    verify: int = pydantic.Field(3, ge=1, le=1000)
    alpha: float = pydantic.Field(0.05, gt=0, lt=1)
    race: bool = True
    window: int = pydantic.Field(32, ge=1, le=2**20)


@dataclass(frozen=True)
class Policy:
    """What a Grower was told, as objects."""

    edits: tuple[tuple[type, Any], ...]
    scorer: Scorer
    chooser: tuple[type, Any]
    score: ScoreOptions
    seed: int

    @staticmethod
    def of(edits: Iterable, score: Mapping[str, Any] | None, seed: int) -> Policy:
        """Raises UnknownName, and UsageError for options that are not known."""
        options = configured("score", ScoreOptions, score or {})
        scorer, given = chosen(scores.REGISTRY, options.by)
        chooser = select.REGISTRY.get("greedy")
        listed = (edits,) if isinstance(edits, str | Mapping) else tuple(edits)
        made = tuple(chosen(edit_rules.REGISTRY, edit) for edit in listed)
        if not made:
            raise UsageError("no edits are offered", fix=f"name some: {', '.join(edit_rules.REGISTRY.names())}")
        return Policy(made, scorer(given), (chooser, chooser.Options(verify=options.verify, alpha=options.alpha)), options, seed)


def chosen(known: registry.Registry, item: str | Mapping[str, Mapping]) -> tuple[type, Any]:
    """(class, options) of a name, or of {name: options} as in a spec."""
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise UsageError(f"{known.noun} {item!r} is neither a name nor {{name: options}}")
    (name, given), = item.items()
    rule = known.get(name)
    return rule, configured(f"{known.noun} {name!r}", rule.Options, given or {})


def configured(owner: str, kind: type, given: Mapping[str, Any]) -> Any:
    """An Options object; UsageError says what is wrong."""
    try:
        return kind(**given)
    except (pydantic.ValidationError, TypeError) as error:
        wrong = str(error) if isinstance(error, TypeError) else "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{owner}: {wrong}", fix=f"its options are {', '.join(kind.model_fields) or 'none'}") from None


@dataclass
class Sight:
    """A network with the rows that a decision about it rests on, and the candidates found.

    recipe: how a trial trains; path: of all draws; frozen: parameters that stay. told: whether the loss can be trained on, so
    that a trial can tell what derivatives do not. sure: whether its curvature is known; else the network only grows, and
    what is new begins silent: in the direction found, at amplitude 0.
    """

    arch: Architecture
    weights: Weights
    train: Fold
    held: Fold
    loss: Loss
    recipe: Recipe
    lr: float
    limits: Limits
    policy: Policy
    path: tuple[int | str, ...]
    told: bool = True
    sure: bool = True
    frozen: frozenset[str] = frozenset()
    raced: Raced | None = field(default=None, repr=False)

    def scored(self, price_first: bool = True, tried: int = 0) -> Raced:
        """The candidates; the network's batch-norm statistics are first measured on the rows."""
        policy = self.policy
        self.weights = settle_norms(self.arch, self.weights, self.train)
        curvature = "empirical" if self.loss.task == "any" else "rademacher"
        evidence = measure(
            self.arch, self.weights, self.train, self.held, self.loss, rows=policy.score.rows, seed=policy.seed, path=self.path, curvature=curvature
        )
        looked_at, taken = policy.chooser[0].looks(policy.chooser[1])
        self.raced = race(
            evidence, policy.edits, policy.scorer, self.limits, alpha=policy.score.alpha, key=(policy.seed, *self.path), price_first=price_first,
            banned=_banned(self.arch, policy.edits, self.frozen), contenders=max(looked_at, tried) if policy.score.race else None, taken=taken,
        )
        return self.raced

    def bench(self, scored: list[Scored]) -> Bench:
        return Bench(
            self.arch, self.weights, {}, scored, self.recipe, self.limits, self.train, self.train, self.held, self.lr, self.policy.seed, self.path
        )

    def choose(self) -> tuple[Measured | None, list[Scored], str, str]:
        """(the network taken, the candidates it is made of, a note, the status: "ok" or why what was chosen is not taken)."""
        found = self.scored().scored
        bench, made, outcomes = self.bench(found), {}, []
        hidden = [v for v, known in (("trial", self.told), ("shrink", self.sure)) if not known]
        shown = [replace(s.candidate, verdict="unsupported") if s.candidate.verdict in hidden else s.candidate for s in found[: found.valued]]
        chooser, options = self.policy.chooser
        state = chooser.init(options)
        while True:
            asked = chooser.ask(options, (self.policy.seed, self.path[-1]), state, shown, outcomes)
            if isinstance(asked, Done):
                break
            for trial in asked.trials:
                made[trial] = _sober(bench.make(trial))
                outcomes.append(made[trial].outcome)
        if asked.choice is None or asked.choice.members == (0,):
            return None, [], asked.note, "ok"
        taken = made.get(asked.choice) or bench.make(asked.choice)
        if taken.arch is None or taken.outcome.status != "ok":
            return None, [], asked.note, taken.outcome.status
        if any(not torch.equal(taken.weights[f], self.weights[f]) for f in self.frozen if f in taken.weights):
            return None, [], asked.note, "it changes a frozen parameter"
        return taken, [found[k] for k in taken.outcome.trial.members], asked.note, "ok"

    def carried(self, taken: Measured, parts: list[Scored], moments: Moments, fills: Mapping[str, float]) -> tuple[Weights, Moments]:
        """(the weights to go on from; tensors of the parameters' shapes, taken along by the moves of the edit that was chosen)."""
        members = [s.part for s in parts if s.part is not None]
        made = apply(self.arch, self.weights, moments, fills, members, (self.policy.seed, *self.path, "newborn"))
        if not isinstance(made, Applied):  # it was made before
            raise UsageError(f"the edit cannot be made twice: {made.reason}")
        return taken.weights if self.sure else refresh_norms(made.arch, made.weights(0.0), self.train), made.moments

    def squares(self, arch: Architecture, weights: Weights) -> Callable[[Iterable[str]], Weights]:
        """Names -> mean squared gradients of these parameters over parts of the rows."""

        def found(names: Iterable[str]) -> Weights:
            model = compile_architecture(arch, weights).eval()
            named = parameters_by_name(model)
            chosen = [n for n in names if n in named]
            total = {n: torch.zeros_like(named[n]) for n in chosen}
            for x, y in zip(self.train.x.chunk(PARTS), self.train.y.chunk(PARTS), strict=True):
                grads = torch.autograd.grad(self.loss.mean(model(x), y), [named[n] for n in chosen], allow_unused=True)
                for n, g in zip(chosen, grads, strict=True):
                    total[n] += 0 if g is None else g.square()
            return total

        return found


def _sober(found: Measured) -> Measured:
    """What raises the loss at once by more than its fine-tuning brought is refused: the user's own training is another."""
    outcome = found.outcome
    if outcome.status == "ok" and outcome.trial.epochs and found.checked < -max(outcome.gain, ROUNDING):
        return replace(found, outcome=replace(outcome, status="raises the loss at once"))
    return found


def _banned(arch: Architecture, edits: tuple[tuple[type, Any], ...], frozen: frozenset[str]) -> frozenset[str]:
    """Sites that would resize a frozen parameter, or that need one to give way to what is new."""
    if not frozen:
        return frozenset()
    found = set()
    for edit, _, site in sites(arch, edits):
        made = edit.rewrite(arch, site, Proposal(units=site.units[0], keep=tuple(range(1, getattr(site.form, "size", 1)))))
        moved = {m.param for m in made.moves} if not isinstance(made, Refusal) else set()
        gone = frozen - set(made.arch.params) if not isinstance(made, Refusal) else set()
        targets = getattr(site.form, "targets", None) or filter(None, (getattr(site.form, "target", None),))
        near = [p for t in targets for p in parents(arch, t)] if site.form.grows else getattr(site.form, "survivors", ())
        giving = {full for p in near for full in arch.formed.locals[p].values()}
        if gone or (moved | giving) & frozen:
            found.add(site.key)
    return frozenset(found)


__all__ = ["Measured", "Policy", "ScoreOptions", "Sight", "Weights", "configured"]
