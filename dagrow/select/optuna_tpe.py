"""Optuna's TPE over kinds of edit, units and ranks, fed by measured gains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pydantic

from dagrow import registry, rng
from dagrow.errors import RunError, UsageError
from dagrow.select import REGISTRY, Candidate, Chooser, Done, Try, best, label, proposable, proven, trial_of

STUDY = "dagrow"
DATABASE = "optuna.db"
# Proposals that point at nothing new cost no trial, but they must end.
_ATTEMPTS = 32


@REGISTRY.register("optuna")
class OptunaTPE(Chooser):
    """Short fine-tunes proposed by Optuna's TPE sampler, which learns over the whole search which edits pay.

    The vocabulary is fixed for a study: kind of edit, units, rank (quantile among the scored candidates of that kind
    and those units). The sampler is made anew at each question from the key and the recorded history, so replay
    proposes the same; a kind that no candidate has counts as the null edit and costs no trial.
    """

    class Options(registry.Options):
        """trials: per step. epochs: fine-tuning in each. startup: trials drawn at random before TPE takes over.
        units: the numbers of units told apart. explore: also try what did not beat noise. alpha: as for greedy.
        """

        trials: Annotated[int, pydantic.Field(ge=1, le=1000)] = 6
        epochs: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 1
        startup: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 10
        units: Annotated[tuple[Annotated[int, pydantic.Field(ge=1)], ...], pydantic.Field(min_length=1, max_length=64)] = (1, 2, 4, 8)
        explore: bool = True
        alpha: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.05

    examples = ({}, {"trials": 2, "startup": 0}, {"explore": False, "units": [3]})

    @staticmethod
    def init(options, horizon=1, kinds=()):
        if not kinds:
            raise UsageError("the optuna chooser needs the names of the edits", fix="init(options, horizon, kinds=[...])")
        return {"kinds": sorted(set(kinds)), "units": sorted(set(options.units)), "history": []}

    @staticmethod
    def ask(options, key, state, candidates, outcomes):
        pools = _pools(options, state, candidates)
        tried = {o.trial.index for o in outcomes}
        untried = [c for c in proposable(candidates, _verdicts(options)) if c.edit in state["kinds"] and c.index not in tried]
        if len(outcomes) < options.trials and untried:
            records = [*state["history"], *_records(options, state, candidates, outcomes)]
            index = _propose(options, state, pools, records, tried, rng.seed_of(key[0], "optuna", key[1], len(outcomes)))
            return Try((trial_of(candidates[untried[0].index if index is None else index], options.epochs),))
        untold = [o for o in outcomes if candidates[o.trial.index].verdict == "trial"]
        winner = best([o for o in outcomes if o not in untold] + proven(untold, options.alpha))
        if winner is None or winner.gain <= 0:
            return Done(None, f"none of {len(outcomes)} tried pays" if outcomes else "nothing to propose")
        return Done(winner.trial, f"{label(candidates[winner.trial.index])}: {winner.gain:+.4g} nats, the best of {len(outcomes)} tried")

    @staticmethod
    def tell(options, state, candidates, outcomes, choice):
        return {**state, "history": [*state["history"], *_records(options, state, candidates, outcomes)]}

    @staticmethod
    def publish(state, folder: Path) -> None:
        """Mirror the history into `optuna.db`, for dashboards; only what it does not hold yet is added.

        The state is the truth: a mirror of another history is made anew. RunError where the file cannot be used.
        """
        import optuna
        import sqlalchemy

        path = Path(folder).absolute() / DATABASE
        try:
            with _quiet():
                storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
                try:
                    _mirror(storage, [_frozen(state, record) for record in state["history"]])
                finally:
                    storage.remove_session()
                    storage.engine.dispose()
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise RunError(f"{path}: cannot be written ({reason})", fix="it only mirrors the run: delete it and resume") from error


def _mirror(storage, history) -> None:
    import optuna

    def open_study():
        return optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True)

    study = open_study()
    held = study.get_trials(deepcopy=False)
    if any((h.params, h.value, h.state) != (t.params, t.value, t.state) for h, t in zip(held, history)):
        optuna.delete_study(study_name=STUDY, storage=storage)
        study, held = open_study(), []
    study.add_trials(history[len(held) :])


def _verdicts(options) -> list[str]:
    return ["grow", "shrink", "trial"] + ["noise"] * options.explore


def _pools(options, state, candidates: Sequence[Candidate]) -> dict[str, dict[int | None, list[Candidate]]]:
    """kind -> units of the vocabulary (None where a candidate has none) -> candidates, best gain first."""
    pools: dict[str, dict[int | None, list[Candidate]]] = {}
    for c in proposable(candidates, _verdicts(options)):
        if c.edit in state["kinds"]:
            units = None if c.units is None else min(state["units"], key=lambda u: (abs(u - c.units), u))
            pools.setdefault(c.edit, {}).setdefault(units, []).append(c)
    return pools


def _records(options, state, candidates, outcomes) -> list[dict]:
    """What the study learns from `outcomes`, sorted by candidate: where each candidate tried lies in the vocabulary.

    Read off the candidate, not the proposal that led to it: TPE needs what was measured, and where.
    """
    places = {}
    for kind, by_units in _pools(options, state, candidates).items():
        for units, pool in by_units.items():
            for position, c in enumerate(pool):
                record = {"kind": kind, "rank": (position + 0.5) / len(pool)}
                places[c.index] = record if units is None else {**record, "units": units}
    found = []
    for o in sorted(outcomes, key=lambda o: o.trial.index):
        if o.trial.index in places:
            found.append({"params": places[o.trial.index], "gain": float(o.gain) if o.usable else None, "status": o.status})
    return found


def _propose(options, state, pools, records, tried, seed: int) -> int | None:
    """The index of a candidate not yet tried in this step, or None where the sampler points at none."""
    import optuna

    with _quiet():
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=options.startup)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        study.add_trials([_frozen(state, record) for record in records])
        for _ in range(_ATTEMPTS):
            trial = study.ask()
            by_units = pools.get(trial.suggest_categorical("kind", state["kinds"]))
            if by_units is None:
                study.tell(trial, 0.0)
                continue
            pool = _near(by_units, trial, state["units"])
            candidate = pool[min(int(trial.suggest_float("rank", 0.0, 1.0) * len(pool)), len(pool) - 1)]
            if candidate.index not in tried:
                return candidate.index
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return None


def _near(by_units, trial, vocabulary) -> list[Candidate]:
    """The candidates whose units are nearest to those the sampler suggests."""
    sizes = [u for u in by_units if u is not None]
    if not sizes:
        return by_units[None]
    wanted = trial.suggest_categorical("units", vocabulary)
    return by_units[min(sizes, key=lambda u: (abs(u - wanted), u))]


def _frozen(state, record):
    """A finished Optuna trial from a record of the history."""
    import optuna

    categorical, uniform = optuna.distributions.CategoricalDistribution, optuna.distributions.FloatDistribution
    space = {"kind": categorical(state["kinds"]), "units": categorical(state["units"]), "rank": uniform(0.0, 1.0)}
    ok = record["gain"] is not None
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if ok else optuna.trial.TrialState.FAIL,
        value=record["gain"],
        params=record["params"],
        distributions={name: space[name] for name in record["params"]},
        user_attrs={"status": record["status"]},
    )


@contextmanager
def _quiet():
    """Optuna's info lines and warnings off inside the block; its verbosity is put back."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
