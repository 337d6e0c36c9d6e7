"""The chooser kit: what every registered chooser keeps, over random candidates and outcomes."""

from __future__ import annotations

import copy
import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagrow.select import REGISTRY, Candidate, Done, Outcome, Trial, Try

KINDS = ("connect", "deepen", "norm", "prune", "widen")
PLACES = ("hidden", "body.a", "body.b", "head")
STEPS = 4
LIMIT = 200
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in REGISTRY for i, options in enumerate(REGISTRY.get(name).examples)]
numbers = st.one_of(st.floats(-0.2, 0.2), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))


@st.composite
def candidate_lists(draw):
    found = [Candidate(0, "null", "", None, 0.0, 0.0, 0.0, 0, 0, "null", "null")]
    for index in range(1, 1 + draw(st.integers(0, 7))):
        verdict = draw(st.sampled_from(["grow", "grow", "noise", "too dear", "unsupported", "shrink", "trial", "trial"]))
        kind = {"shrink": "prune", "trial": "norm"}.get(verdict) or draw(st.sampled_from(KINDS))
        gain, stderr = draw(numbers), draw(st.floats(0, 0.1))
        units = draw(st.sampled_from([None, 1, 3, 4, 100]))
        params = draw(st.integers(-50, 50))
        found.append(Candidate(index, kind, draw(st.sampled_from(PLACES)), units, gain, stderr, 0.0, params, params, verdict, f"k{index}"))
    return found


scenes = st.tuples(st.integers(0, 2**31), st.lists(candidate_lists(), min_size=STEPS, max_size=STEPS))


def answer(seed: int, step: int, candidates, trial: Trial) -> Outcome:
    """A simulated engine: noise around the estimate, now and then a failure."""
    draw = random.Random(repr((seed, step, trial.members)))
    status = draw.choices(["ok", "nonfinite", "refused", "crashed"], [6, 1, 1, 1])[0]
    gain = sum(candidates[i].gain for i in trial.members) + draw.gauss(0, 0.05)
    if status == "ok" and draw.random() < 0.1:
        gain = math.nan
    return Outcome(trial, gain, abs(draw.gauss(0, 0.02)), status)


def run_step(chooser, options, seed, step, state, candidates, pause=lambda value: value):
    """One step to its end: (state, choice, outcomes). `pause` sees the state at every point where a run may stop."""
    outcomes = []
    for _ in range(LIMIT):
        state = pause(state)
        reply = chooser.ask(options, (seed, step), state, candidates, tuple(outcomes))
        if isinstance(reply, Done):
            assert isinstance(reply.note, str) and reply.note
            return pause(chooser.tell(options, state, candidates, tuple(outcomes), reply.choice)), reply.choice, outcomes
        assert isinstance(reply, Try) and reply.trials
        assert len(set(reply.trials)) == len(reply.trials) and not {t.members for t in reply.trials} & {o.trial.members for o in outcomes}
        outcomes += [answer(seed, step, candidates, t) for t in reply.trials]
    raise AssertionError(f"{chooser.name} does not end")


def run(chooser, options, seed, lists, pause=lambda value: value):
    state, story = chooser.init(options, STEPS, KINDS), []
    for step, candidates in enumerate(lists):
        state, choice, outcomes = run_step(chooser, options, seed, step, state, candidates, pause)
        story.append((choice, [o.trial for o in outcomes]))
    return state, story


def through_json(value):
    return json.loads(json.dumps(value, allow_nan=False))


def prepared(name, options):
    chooser = REGISTRY.get(name)
    return chooser, chooser.Options.model_validate(options)


few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], derandomize=True)


@pytest.mark.parametrize("name, options", CASES)
@few
@given(scene=scenes)
def test_replay_and_resume_change_nothing(name, options, scene):
    chooser, options = prepared(name, options)
    state, story = run(chooser, options, *scene)
    assert run(chooser, options, *scene) == (state, story)
    assert run(chooser, options, *scene, pause=through_json) == (state, story)


@pytest.mark.parametrize("name, options", CASES)
@few
@given(scene=scenes)
def test_only_sound_candidates_are_tried_and_chosen(name, options, scene):
    chooser, options = prepared(name, options)
    seed, lists = scene
    state = chooser.init(options, STEPS, KINDS)
    for step, candidates in enumerate(lists):
        state, choice, outcomes = run_step(chooser, options, seed, step, state, candidates)
        for trial in [o.trial for o in outcomes] + [choice] * (choice is not None):
            assert trial.members[0] == trial.index and len(set(trial.members)) == len(trial.members)
            for candidate in (candidates[i] for i in trial.members):
                assert candidate.verdict in ("grow", "noise", "shrink", "trial") and math.isfinite(candidate.gain)
            if any(candidates[i].verdict == "trial" for i in trial.members):
                assert trial.epochs >= 1 and trial in [o.trial for o in outcomes], "taken without a trial"
        if choice is not None and outcomes:
            outcome = {o.trial: o for o in outcomes}[choice]
            assert outcome.status == "ok" and math.isfinite(outcome.gain)


@pytest.mark.parametrize("name, options", CASES)
@few
@given(scene=scenes)
def test_inputs_are_left_as_they_are(name, options, scene):
    chooser, options = prepared(name, options)
    seed, lists = scene
    state = chooser.init(options, STEPS, KINDS)
    before, seen = copy.deepcopy(state), through_json(state)
    run_step(chooser, options, seed, 0, state, lists[0])
    assert state == before == seen


@pytest.mark.parametrize("name, options", CASES)
def test_nothing_to_choose_from_is_the_null_edit(name, options):
    chooser, options = prepared(name, options)
    null = [Candidate(0, "null", "", None, 0.0, 0.0, 0.0, 0, 0, "null", "null")]
    bad = [Candidate(i + 1, "widen", "hidden", 1, 0.5, 0.0, 9.0, 5, 5, v, "") for i, v in enumerate(["too dear", "unsupported"])]
    worse = [Candidate(1, "widen", "hidden", 1, math.nan, 0.0, 9.0, 5, 5, "grow", "")]
    for candidates in (null, null + bad, null + worse):
        assert run_step(chooser, options, 1, 0, chooser.init(options, STEPS, KINDS), candidates)[1:] == (None, [])


@pytest.mark.parametrize("name, options", CASES)
def test_failing_trials_are_never_chosen(name, options, monkeypatch):
    chooser, options = prepared(name, options)
    candidates = [Candidate(0, "null", "", None, 0.0, 0.0, 0.0, 0, 0, "null", "null")]
    candidates += [Candidate(i, "widen", PLACES[i - 1], 1, 0.5, 0.0, 9.0, 5, 5, "grow", "") for i in (1, 2, 3)]
    for status, gain in (("crashed", 5.0), ("nonfinite", math.nan), ("ok", math.nan), ("ok", math.inf)):
        monkeypatch.setitem(globals(), "answer", lambda seed, step, cs, trial, g=gain, s=status: Outcome(trial, g, 0.0, s))
        for step in range(3):
            _, choice, outcomes = run_step(chooser, options, 2, step, chooser.init(options, STEPS, KINDS), candidates)
            assert choice is None or not outcomes


@pytest.mark.parametrize("name, options", CASES)
def test_what_needs_a_trial_is_taken_for_a_gain_that_stands_out_only(name, options, monkeypatch):
    """Metropolis goes by temperature, a schedule by the spec; whoever takes the best takes no luck for it."""
    chooser, options = prepared(name, options)
    candidates = [Candidate(0, "null", "", None, 0.0, 0.0, 0.0, 0, 0, "null", "null")]
    candidates += [Candidate(i, "norm", PLACES[i - 1], 1, 0.0, 0.0, 0.0, 5, 5, "trial", "") for i in (1, 2, 3)]
    for gain, stands_out in ((0.10, True), (0.015, False), (-0.1, False)):
        monkeypatch.setitem(globals(), "answer", lambda seed, step, cs, trial, g=gain: Outcome(trial, g, 0.01))
        for step in range(3):
            _, choice, outcomes = run_step(chooser, options, 2, step, chooser.init(options, STEPS, KINDS), candidates)
            assert all(o.trial.epochs >= 1 for o in outcomes)
            assert choice is None or choice in [o.trial for o in outcomes]
            if name in ("greedy", "optuna"):
                assert (choice is not None) == stands_out and outcomes
