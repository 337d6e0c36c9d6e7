"""Each chooser's own rules; what all of them share is in contract/test_choosers.py."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter

import pydantic
import pytest

from dagrow.errors import RunError, UnknownName, UsageError
from dagrow.select import REGISTRY, Candidate, Done, Outcome, Trial, Try, best
from dagrow.select.metropolis import Temperature, accept, draws, temperature

NULL = Candidate(0, "null", "", None, 0.0, 0.0, 0.0, 0, 0, "null", "null")


def some(*rows):
    """Candidates from (edit, where, units, gain, params, verdict)."""
    made = [Candidate(i + 1, e, w, u, g, 0.01, 3.0, p, p, v, f"k{i}") for i, (e, w, u, g, p, v) in enumerate(rows)]
    return [NULL, *made]


def play(name, options, candidates, gains, *, seed=0, step=0, horizon=10, state=None, kinds=("deepen", "prune", "widen"), stderr=0.0):
    """A step in which candidate i measures gains[i], a bundle the sum, a missing one "refused": (choice, trials, note, state)."""
    chooser = REGISTRY.get(name)
    options = chooser.Options.model_validate(options)
    state = chooser.init(options, horizon, kinds) if state is None else state
    outcomes = []
    while True:
        reply = chooser.ask(options, (seed, step), state, candidates, outcomes)
        if isinstance(reply, Done):
            state = chooser.tell(options, state, candidates, outcomes, reply.choice)
            return reply.choice, [o.trial for o in outcomes], reply.note, state
        for t in reply.trials:
            ok = all(i in gains for i in t.members)
            outcomes.append(Outcome(t, sum(gains[i] for i in t.members) if ok else math.nan, stderr, "ok" if ok else "refused"))


def test_registry():
    assert REGISTRY.names() == ["greedy", "metropolis", "optuna", "schedule"]
    with pytest.raises(UnknownName, match="did you mean 'metropolis'"):
        REGISTRY.get("metropolys")


def test_types_are_light():
    code = "import sys, dagrow.select as s; s.REGISTRY.names(); print([m for m in ('torch', 'optuna', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_outcomes_travel_as_json():
    outcome = Outcome(Trial(2, 1, (2, 5)), 0.25, 0.5)
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict(), allow_nan=False))) == outcome
    failed = Outcome.from_dict(json.loads(json.dumps(Outcome(Trial(1), math.nan, math.inf, "nonfinite").to_dict(), allow_nan=False)))
    assert math.isnan(failed.gain) and failed.status == "nonfinite" and not failed.usable
    assert best([failed]) is None


# greedy


ROWS = some(
    ("widen", "a", 1, 0.5, 10, "grow"),
    ("widen", "b", 1, 0.4, 10, "grow"),
    ("widen", "b", 2, 0.3, 20, "grow"),
    ("deepen", "c", 1, 0.2, 30, "grow"),
    ("prune", "a", 1, -0.01, -10, "shrink"),
    ("prune", "b", 1, -0.02, -40, "shrink"),
    ("widen", "d", 9, 0.9, 99, "noise"),
)


def test_greedy_takes_the_best_measured_of_the_best_scored():
    choice, trials, note, _ = play("greedy", {}, ROWS, {1: 0.1, 2: 0.2, 3: 0.05, 4: 9.0})
    assert choice == Trial(2) and [t.index for t in trials] == [1, 2, 3] and "widen b (1)" in note
    assert play("greedy", {"verify": 1, "epochs": 2}, ROWS, {1: 0.1})[:2] == (Trial(1, 2), [Trial(1, 2)])


def test_greedy_bundles_different_places():
    choice, trials, note, _ = play("greedy", {"bundle": 3, "verify": 2}, ROWS, {1: 0.1, 2: 0.2, 4: 0.1})
    assert trials == [Trial(1, 0, (1, 2, 4)), Trial(1)] and choice == trials[0] and " + " in note
    # The bundle is refused (candidate 4 is); a single one still wins.
    choice, trials, _, _ = play("greedy", {"bundle": 3, "verify": 1}, ROWS, {1: 0.1, 2: 0.2})
    assert choice == Trial(1) and len(trials) == 2


def test_greedy_shrinks_only_where_nothing_grows_and_it_costs_nothing():
    flat = {1: 0.0, 2: -0.1, 3: 0.0, 5: 0.0, 6: 0.0}
    choice, trials, _, _ = play("greedy", {}, ROWS, flat)
    assert choice == Trial(6) and [t.index for t in trials] == [1, 2, 3, 5, 6]
    assert play("greedy", {}, ROWS, flat | {6: -0.001})[0] == Trial(5)
    assert play("greedy", {}, ROWS, flat | {5: -0.001, 6: -0.02})[0] is None
    assert play("greedy", {"tolerance": 0.01}, ROWS, flat | {5: -0.001, 6: -0.02})[0] == Trial(5)


# metropolis


def test_temperatures():
    for decay in ("cosine", "exponential", "linear"):
        t = Temperature(start=0.1, end=0.001, decay=decay)
        values = [temperature(t, p / 10) for p in range(11)]
        assert math.isclose(values[0], 0.1) and math.isclose(values[-1], 0.001) and values == sorted(values, reverse=True)
        assert temperature(t, 3.0) == values[-1]
    assert temperature(Temperature(start=0.1, decay="constant"), 0.7) == 0.1
    assert math.isclose(temperature(Temperature(start=0.1, end=0.001, decay="exponential"), 0.5), 0.01)
    with pytest.raises(pydantic.ValidationError):
        Temperature(end=0)


def test_accept():
    assert accept(0.1, 0.0, 0.01, 0.0, 0.999) and not accept(-0.1, 0.0, 0.01, 0.0, 0.001)
    assert accept(-0.01, 0.0, 0.01, 0.0, 0.36) and not accept(-0.01, 0.0, 0.01, 0.0, 0.37)
    assert accept(0.0, 0.01, 0.01, 0.0, 0.60) and not accept(0.0, 0.01, 0.01, 0.0, 0.61)  # exp(-1/2)
    assert accept(0.0, 0.0, 1.0, -math.log(2), 0.49) and not accept(0.0, 0.0, 1.0, -math.log(2), 0.51)
    assert not accept(9.0, 0.0, 1.0, -math.inf, 0.0)
    assert accept(1e-9, 0.5, 0.0, 0.0, 0.9) and not accept(0.0, 0.0, 0.0, 0.0, 0.0)
    for bad in (math.nan, math.inf, -math.inf):
        assert not accept(bad, 0.0, 1.0, 0.0, 0.0) and not accept(0.0, bad, 1.0, 0.0, 0.0)
    assert not accept(1e300, 1e300, 5e-324, 0.0, 0.0) and not accept(0.0, 0.0, math.nan, 0.0, 0.0)


def energy_table():
    """40 states: energies in nats, neighbour lists of unequal lengths (a ring with chords, and eight hubs joined to every third state)."""
    draw = random.Random(5)
    joined = [{(i + d) % 40 for d in (-7, -1, 1, 7)} for i in range(40)]
    for hub in range(0, 40, 5):
        for i in range(hub % 3, 40, 3):
            if i != hub:
                joined[hub].add(i)
                joined[i].add(hub)
    return [draw.uniform(0, 2) for _ in range(40)], [sorted(j) for j in joined]


def total_variation(s: float, hastings: bool = True, penalty: bool = True, t: float = 1.0, moves: int = 300_000, seed: int = 1) -> float:
    energy, near = energy_table()
    draw = random.Random(seed)
    state, visits = 0, [0] * len(energy)
    for _ in range(moves):
        there = near[state][int(draw.random() * len(near[state]))]
        delta = energy[state] - energy[there] + (draw.gauss(0, s) if s else 0.0)
        log_q = math.log(len(near[state]) / len(near[there])) if hastings else 0.0
        if accept(delta, s if penalty else 0.0, t, log_q, draw.random()):
            state = there
        visits[state] += 1
    weights = [math.exp(-e / t) for e in energy]
    return 0.5 * sum(abs(v / moves - w / sum(weights)) for v, w in zip(visits, weights))


def test_the_chain_samples_the_exact_distribution():
    assert len({len(n) for n in energy_table()[1]}) >= 3
    assert total_variation(0.0) <= 0.015
    assert total_variation(1.0) <= 0.015


def test_the_chain_needs_both_corrections():
    assert total_variation(0.0, hastings=False) > 0.04
    assert total_variation(1.0, hastings=False) > 0.04
    assert total_variation(1.0, penalty=False) > 0.04


def test_metropolis_draws_kinds_then_sites_uniformly():
    candidates = some(*[("widen", f"n{i}", 1, 0.1, 1, "noise") for i in range(3)], ("deepen", "x", 1, 0.1, 1, "grow"))
    counts = Counter(play("metropolis", {}, candidates, {}, seed=seed)[1][0].index for seed in range(600))
    assert abs(counts[4] - 300) < 60 and all(abs(counts[i] - 100) < 45 for i in (1, 2, 3))
    assert {play("metropolis", {"explore": False}, candidates, {}, seed=s)[1][0].index for s in range(20)} == {4}


def test_metropolis_accepts_by_what_was_measured():
    candidates = some(("widen", "a", 1, -5.0, 1, "grow"))
    assert play("metropolis", {}, candidates, {1: 0.1})[0] == Trial(1, 1)
    assert play("metropolis", {}, candidates, {1: -9.0})[0] is None
    hot = {"temperature": {"start": 1.0, "end": 1e-9, "decay": "linear"}}
    early = sum(play("metropolis", hot, candidates, {1: -0.5}, seed=s)[0] is not None for s in range(300)) / 300
    assert abs(early - math.exp(-0.5)) < 0.08
    assert not any(play("metropolis", hot, candidates, {1: -0.5}, seed=s, step=10)[0] for s in range(50))
    noisy = sum(play("metropolis", hot, candidates, {1: 0.0}, seed=s, stderr=1.0)[0] is not None for s in range(300)) / 300
    assert abs(noisy - math.exp(-0.5)) < 0.08
    assert "annealing, not sampling" in play("metropolis", {}, candidates, {1: 0.1})[2]


def test_metropolis_counts_a_proposal_outside_the_budget_as_rejected():
    candidates = some(("widen", "a", 1, 0.1, 1, "grow"), ("widen", "b", 1, 0.1, 10**6, "too dear"))
    tried = [len(play("metropolis", {}, candidates, {1: 1.0}, seed=s)[1]) for s in range(200)]
    assert 70 < sum(tried) < 130
    many = [play("metropolis", {"proposals": 20}, candidates, {1: 1.0}, seed=s)[0] for s in range(20)]
    assert many == [Trial(1, 1)] * 20


def test_draws_do_not_depend_on_each_other():
    assert draws(3, 1, 0) == draws(3, 1, 0) != draws(3, 1, 1) != draws(3, 2, 0)
    assert all(0 <= u < 1 for u in draws(3, 1, 0))


# optuna


FIELD = some(
    *[("widen", f"n{i}", u, 0.1 / (i + 1), 10, "grow") for i in range(4) for u in (1, 2, 4)],
    *[("deepen", f"n{i}", None, 0.05, 30, "noise") for i in range(6)],
    ("prune", "n1", 2, -0.1, -9, "shrink"),
)


def test_optuna_takes_the_best_of_its_trials():
    gains = {c.index: (0.5 if c.edit == "deepen" else 0.1) for c in FIELD}
    choice, trials, note, state = play("optuna", {"trials": 8}, FIELD, gains)
    assert len(trials) == len(set(trials)) == 8 and gains[choice.index] == max(gains[t.index] for t in trials) and "best of 8" in note
    assert [r["gain"] for r in state["history"]] == [gains[t.index] for t in sorted(trials, key=lambda t: t.index)]
    assert play("optuna", {}, FIELD, {c.index: -0.1 for c in FIELD})[0] is None
    assert len(play("optuna", {"trials": 500}, FIELD, gains)[1]) == len(FIELD) - 1


def test_optuna_learns_which_kind_pays():
    gains = {c.index: (0.5 if c.edit == "deepen" else -0.1) for c in FIELD}
    state, shares = None, []
    for step in range(6):
        _, trials, _, state = play("optuna", {"trials": 4}, FIELD, gains, step=step, state=state)
        state = json.loads(json.dumps(state, allow_nan=False))
        shares.append(sum(FIELD[t.index].edit == "deepen" for t in trials) / 4)
    assert sum(shares[-3:]) / 3 > 0.6


def test_optuna_kinds_without_candidates_cost_no_trial():
    only = some(("prune", "a", 1, -0.1, -9, "shrink"))
    choice, trials, _, state = play("optuna", {}, only, {1: 0.01})
    assert choice == Trial(1, 1) and trials == [Trial(1, 1)] and len(state["history"]) == 1
    assert play("optuna", {}, some(("unheard", "a", 1, 0.1, 9, "grow")), {1: 0.01})[:2] == (None, [])
    with pytest.raises(UsageError):
        play("optuna", {}, only, {}, kinds=())


def test_optuna_publishes_what_is_new(tmp_path):
    import optuna

    chooser = REGISTRY.get("optuna")
    gains = {c.index: 0.01 * c.index for c in FIELD if c.index % 3}  # every third trial fails
    _, _, _, one = play("optuna", {}, FIELD, gains)
    _, _, _, two = play("optuna", {}, FIELD, gains, step=1, state=one)
    held = lambda: optuna.load_study(study_name="dagrow", storage=f"sqlite:///{tmp_path}/optuna.db").get_trials()  # noqa: E731
    for state in (one, one, two, two):
        chooser.publish(state, tmp_path)
        assert [t.params for t in held()] == [r["params"] for r in state["history"]]
        assert [t.value for t in held()] == [r["gain"] for r in state["history"]]
    assert len(held()) == 12
    _, _, _, other = play("optuna", {}, FIELD, gains, seed=7)
    chooser.publish(other, tmp_path)
    assert [t.params for t in held()] == [r["params"] for r in other["history"]]


def test_optuna_says_what_is_wrong_with_its_mirror(tmp_path):
    (tmp_path / "optuna.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match="optuna.db.*(?s:.*)delete it"):
        REGISTRY.get("optuna").publish({"kinds": ["widen"], "units": [1], "history": []}, tmp_path)


def test_optuna_is_silent(tmp_path, capfd):
    _, _, _, state = play("optuna", {}, FIELD, {c.index: 0.1 for c in FIELD})
    REGISTRY.get("optuna").publish(state, tmp_path)
    assert capfd.readouterr() == ("", "")


# schedule


def test_schedule_makes_the_listed_edits():
    candidates = some(
        ("widen", "body.a", 4, 0.1, 1, "noise"),
        ("widen", "body.b", 4, 0.2, 1, "grow"),
        ("widen", "body.b", 8, 0.3, 1, "too dear"),
        ("deepen", "body.a", 4, 0.2, 1, "grow"),
    )

    def at(step, *entries):
        return play("schedule", {"steps": list(entries)}, candidates, {}, step=step)

    entry = {"step": 2, "edit": "widen", "where": "body.*", "units": 4}
    assert at(2, entry)[:2] == (Trial(2), [])
    assert at(1, entry)[0] is None and at(1, entry)[2] == "nothing is scheduled"
    assert at(2, entry | {"where": "body.a"})[0] == Trial(1)  # does not beat noise, and is made
    choice, _, note, _ = at(2, entry | {"units": 8})
    assert choice is None and "no candidate for widen body.* (8)" in note and "too dear" in note
    both = at(2, entry, {"step": 2, "edit": "deepen"}, entry, entry)
    assert both[0] == Trial(2, 0, (2, 4, 1)) and "no candidate" in both[2]
    with pytest.raises(pydantic.ValidationError):
        at(0, {"step": 0, "edit": "widen", "were": "x"})


def test_replies_are_values():
    assert Try((Trial(1),)) == Try((Trial(1),)) and Done(None, "x") == Done(None, "x")
