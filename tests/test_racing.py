"""Races between sites: as few rows as the choice needs, no more false growth than a single look, the same table."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
from seen_networks import LOSSES, NETWORKS, evidence_for, of, run, weights_for
from test_growth import WINE, plan_of

from dagrow import growth, racing
from dagrow.applying import Applied, apply
from dagrow.compiler import initialise
from dagrow.data import Fold
from dagrow.edits import REGISTRY as EDITS
from dagrow.graph import Architecture
from dagrow.measure import Evidence, measure
from dagrow.propose import NULL, Limits, Proposed, Scored, _judge, propose
from dagrow.racing import EARLY, HOPE, Raced, freedom, race
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores.valuer import Gain
from dagrow.select import REGISTRY as CHOOSERS
from dagrow.select import Candidate
from dagrow.standing import Network

NATURAL = SCORERS.get("natural")(SCORERS.get("natural").Options(starts=2, steps=2))


def listed(*kinds: str, **options):
    """Edits with those of the options that they know."""
    rules = [EDITS.get(k) for k in kinds]
    return [(r, r.Options(**{n: v for n, v in options.items() if n in r.Options.model_fields})) for r in rules]


def raced(evidence: Evidence, edits, limits: Limits = Limits(), **options) -> Raced:  # noqa: B008
    return race(evidence, edits, NATURAL, limits, **{"alpha": 0.05, "key": (0,), "least": 0} | options)


def proposed(evidence: Evidence, edits, limits: Limits = Limits(), **options) -> Proposed:  # noqa: B008
    return propose(evidence, edits, NATURAL, limits, **{"alpha": 0.05, "key": (0,)} | options)


CHAIN = Architecture({
    "x": of("input", shape=(6,)), "h": of("linear", "x", width=2), "a": of("tanh", "h"), "m": of("linear", "a", width=4), "b": of("tanh", "m"),
    "y": of("linear", "b", width=2),
})  # fmt: skip
TWINS = Architecture({
    "x": of("input", shape=(6,)), "h": of("linear", "x", width=2), "a": of("tanh", "h"),
    "m0": of("linear", "a", width=3), "b0": of("tanh", "m0"), "y0": of("linear", "b0", width=2),
    "m1": of("linear", "a", width=3), "b1": of("tanh", "m1"), "y1": of("linear", "b1", width=2), "y": of("add", "y0", "y1"),
})  # fmt: skip


def seen(arch: Architecture, target, rows: int, held: int = 400, seed: int = 0, weights=None) -> Evidence:
    """Evidence of a regression to `target(x)` and noise of variance 1."""
    generator, folds = torch.Generator().manual_seed(seed), []
    for n in (rows, held):
        x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
        folds.append(Fold(x, target(x) + torch.randn(n, 2, generator=generator, dtype=torch.float64)))
    weights = weights_for(arch) if weights is None else weights
    return measure(arch, weights, *folds, LOSSES["regression"], rows=10**6, seed=seed, path=("race",))


@lru_cache(4)
def clear(rows: int = 2048) -> Evidence:
    """A linear map behind two hidden units: widening these is worth far more than anything after them."""
    turn = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return seen(CHAIN, lambda x: x @ turn, rows)


def null(seed: int, rows: int = 2048, held: int = 400, arch: Architecture = CHAIN) -> Evidence:
    """Targets that are the network's own outputs and noise: no edit is worth anything."""
    weights = weights_for(arch)
    return seen(arch, lambda x: run(arch, weights, x), rows, held, seed, weights)


def verdicts(found) -> dict[tuple[str, int | None], str]:
    return {(s.candidate.key, s.candidate.units): s.candidate.verdict for s in found}


# ---- as few rows as needed

def test_a_clear_winner_takes_a_fraction_of_the_rows_and_is_the_same():
    edits = listed("widen", "connect", units=(1, 3))
    full, found = proposed(clear(), edits), raced(clear(), edits, contenders=2)
    assert found.rows == 256 and "256 of 2,048 rows: 2 of 5 sites stand out" in found.reason
    kept = [s for s in found.scored[1:] if not s.reason]
    assert {s.candidate.key for s in kept} == {"widen h", "connect x -> m"} == {s.candidate.key for s in full[1:4]}
    # Who is left is proposed from all rows: the very same proposals, gains and order.
    assert [replace(s.candidate, index=0) for s in kept] == [replace(s.candidate, index=0) for s in full[1:] if s.candidate.key in ("widen h", "connect x -> m")]
    assert all(a.gain == b.gain for a, b in zip(kept, full[1:4], strict=True))
    assert {s.reason for s in found.scored[4:]} == {"dropped after 256 rows"}
    assert found.scored[1].candidate.verdict == "grow" and all(s.candidate.verdict == "noise" for s in found.scored[4:])


def test_without_a_refit_the_rows_that_were_enough_are_all_that_is_looked_at():
    found = raced(clear(), listed("widen", "connect"), contenders=2, refit=False)
    few = {s.candidate.key: s for s in proposed(clear().head(256), listed("widen", "connect"))[1:]}
    assert found.rows == 256
    for s in found.scored[1:]:
        assert s.gain == few[s.candidate.key].gain


def test_ties_go_on_to_all_rows_unless_both_are_tried():
    weights = weights_for(TWINS)
    weights |= {n.replace("0", "1"): w for n, w in weights.items() if "0." in n}
    # A side that the present units do not see, through the nonlinearity: no linear map of what is there has it.
    evidence = seen(TWINS, lambda x: torch.tanh(x[:, :2]) + run(TWINS, weights, x), 1024, weights=weights)
    edits = listed("connect", where="m*")
    full = proposed(evidence, edits)
    assert {s.candidate.key for s in full[1:3] if s.candidate.verdict == "grow"} == {"connect x -> m0", "connect x -> m1"}
    assert full[1].gain.nats == pytest.approx(full[2].gain.nats, rel=1e-6) and full[3].gain.nats < full[2].gain.nats / 2
    assert raced(evidence, edits, contenders=1).rows == 1024
    assert raced(evidence, edits, contenders=2).rows == 128


def test_noise_is_given_up_early_and_says_what_would_have_been_seen():
    ends = [raced(null(seed), listed("widen"), contenders=1) for seed in range(12)]
    given_up = [r for r in ends if r.rows_needed is None]
    assert len(given_up) >= 10
    assert sum(r.rows <= 1024 for r in given_up) >= 4
    for r in given_up:
        assert "none of 2 sites can pay; a gain of about " in r.reason
        assert all(s.candidate.verdict == "noise" for s in r.scored[1:])
        if r.rows < 2048:
            assert all(s.reason.startswith("dropped after") for s in r.scored[1:])
    bar = NormalDist().inv_cdf(1 - (1 - 3 * EARLY) * 0.05 / 2)
    assert given_up[0].bar == bar and f"a gain of about {bar**2 / 800:.2g} nats" in given_up[0].reason


def test_rows_needed_is_the_share_of_the_gain_that_so_many_leave():
    found = raced(clear(), listed("widen", units=3), contenders=1)
    best = found.scored[1]
    # 6 inputs and a bias in, 4 units out.
    assert freedom(best.part) == 6 + 1 + 4
    assert found.rows_needed == math.ceil(11 / (2 * 0.15 * best.gain.nats))
    link = proposed(clear(), listed("connect", where="m"))[1]
    assert freedom(link.part) == 6 + 4


# ---- no more false growth than one look has

def looks_at(zs, sites: int, monkeypatch) -> None:
    """`propose` with z as `zs(rows, site)` says: gains so far apart that only signal matters."""
    part = SimpleNamespace(site=SimpleNamespace(form=SimpleNamespace(trial=False)), proposal=SimpleNamespace(blocks=()))

    def told(evidence, edits, scorer, limits, *, alpha, key, price_first, banned, only):
        found = []
        for k in range(sites):
            if only is None or f"s{k}" in only:
                gain = Gain(1.0, 0.5, z=zs(evidence.rows, k))
                found.append(Scored(Candidate(k + 1, "widen", f"s{k}", 1, 1.0, 0.5, gain.z, 1, 1, "noise", f"s{k}"), part, gain))
        judged, tested = _judge(found, alpha)
        return Proposed([Scored(NULL), *judged], tested)

    monkeypatch.setattr(racing, "propose", told)
    monkeypatch.setattr(racing, "places", lambda arch, edits: [SimpleNamespace(chosen=range(sites))])
    monkeypatch.setattr(racing._Race, "rows_needed", lambda self: None)


def fake(rows: int, held: int = 100) -> SimpleNamespace:
    """Evidence of which only the number of rows is known."""
    return SimpleNamespace(arch=None, rows=rows, train=SimpleNamespace(rows=rows), held=SimpleNamespace(rows=held), head=lambda n: fake(n, held))


def false_growth(monkeypatch, runs: int, correlation: float, sites: int = 6) -> float:
    generator, grown = torch.Generator().manual_seed(7), 0
    for _ in range(runs):
        shared, own = torch.randn(sites, generator=generator), torch.randn(4, sites, generator=generator)
        z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        rows = {64: 0, 128: 1, 256: 2, 512: 3}
        looks_at(lambda n, k, z=z, rows=rows: float(z[rows[n], k]), sites, monkeypatch)
        found = race(fake(512), [], None, Limits(), alpha=0.05, key=(0,), contenders=1, least=0)
        grown += any(s.candidate.verdict == "grow" for s in found.scored)
    return grown / runs


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_looking_again_does_not_raise_false_growth(monkeypatch, correlation):
    """Also where looks have nothing in common and none is left out, the worst there is."""
    monkeypatch.setattr(racing._Race, "next_after", lambda self, n: min(m for m in self.ladder if m > n))
    error = math.sqrt(0.05 * 0.95 / 1500)
    assert false_growth(monkeypatch, 1500, correlation) <= 0.05 + 3 * error


def test_looking_again_without_a_correction_would_raise_it(monkeypatch):
    monkeypatch.setattr(racing._Race, "share", lambda self, n: 1.0)
    monkeypatch.setattr(racing, "HOPE", 9.0)
    monkeypatch.setattr(racing._Race, "next_after", lambda self, n: min(m for m in self.ladder if m > n))
    assert false_growth(monkeypatch, 400, 0.0) > 0.1


def test_false_growth_on_200_networks_without_signal():
    edits, grown = listed("connect"), 0
    for seed in range(200):
        found = raced(null(seed, 256, 128), edits, contenders=1)
        grown += any(s.candidate.verdict == "grow" for s in found.scored)
    assert grown <= 19  # 10 expected at most; 20 or more of 200 at .05 have a chance of .003


def test_a_site_without_hope_is_out_and_one_with_it_is_not(monkeypatch):
    bar = NormalDist().inv_cdf(1 - (1 - 3 * EARLY) * 0.05 / 2)
    edge = bar * math.sqrt(1 / 8) - HOPE
    looks_at(lambda n, k: {64: edge + (0.01 if k else -0.01)}.get(n, 9.0), 2, monkeypatch)
    found = race(fake(512), [], None, Limits(), alpha=0.05, key=(0,), contenders=1, least=0)
    assert verdicts(found.scored[1:]) == {("s1", 1): "grow", ("s0", 1): "noise"}
    assert found.scored[2].reason == "dropped after 64 rows"


def test_signal_of_an_early_look_stays(monkeypatch):
    """Four sites pass at once; three places are tried, so the race goes on; on all rows they would not pass."""
    looks_at(lambda n, k: 9.0 if n == 64 else 0.5, 4, monkeypatch)
    found = race(fake(512), [], None, Limits(), alpha=0.05, key=(0,), contenders=3, least=0)
    assert found.rows == 512 and set(verdicts(found.scored[1:]).values()) == {"grow"}


# ---- in a search

def test_a_search_races_for_as_many_places_as_its_chooser_tries(monkeypatch):
    """Where any site may be drawn, and where the spec says so, none is dropped."""
    asked = []

    def watched(*given, contenders, taken, **named):
        asked.append((contenders, taken))
        return race(*given, contenders=contenders, taken=taken, **named)

    monkeypatch.setattr(growth, "race", watched)
    for sets in ((), ("score.verify=5",), ("score.race=false",), ("select.by=metropolis",)):
        plan = plan_of(WINE, *sets)
        work = growth.Search.standing(plan, Network(plan.architecture, initialise(plan.architecture, 0), {}))
        found = work.raced(tried=4)
        assert found.rows == min(plan.spec.score.rows, len(plan.data.train.x)) and len(work.candidates()) == len(found.scored)
    assert asked[::2] == [(4, 1), (5, 1), (None, 1), (None, 1)] and asked[1::2] == [(2, 1), (5, 1), (None, 1), (None, 1)]


# ---- the same table

@pytest.mark.parametrize("name", ["mlp", "residual", "conv", "shared", "multiplier"])
def test_the_table_has_all_that_propose_has(name):
    arch, edits = NETWORKS[name], listed("widen", "deepen", "prune", "remove", units=2)
    evidence, limits = evidence_for(arch, rows=160), Limits(arch.size + 60)
    options = {"price_first": False, "banned": frozenset({"widen h1"})}
    full, found = proposed(evidence, edits, limits, **options), raced(evidence, edits, limits, contenders=2, **options).scored
    assert found[0].candidate == NULL and [s.candidate.index for s in found] == list(range(len(found)))
    assert {s.candidate.key for s in found} == {s.candidate.key for s in full}
    assert {k for k, v in verdicts(found).items() if v == "unsupported"} == {k for k, v in verdicts(full).items() if v == "unsupported"}
    assert {k[0] for k, v in verdicts(found).items() if v == "too dear"} == {k[0] for k, v in verdicts(full).items() if v == "too dear"}
    before = [s for s in found[1:] if s.candidate.verdict not in racing.LAST]
    dropped = ["dropped" in s.reason for s in before]
    assert dropped == sorted(dropped)
    gains = [s.candidate.gain for s, out in zip(before, dropped, strict=True) if not out]
    assert gains == sorted(gains, reverse=True)
    for s in found[1:]:
        if s.part is not None:
            made = apply(arch, evidence.weights, {}, {}, [s.part], (0,))
            assert isinstance(made, Applied) and made.arch.size - arch.size == s.candidate.params
    again = raced(evidence_for(arch, rows=160), edits, limits, contenders=2, **options).scored
    assert [s.candidate for s in again] == [s.candidate for s in found]


def test_where_fewer_rows_save_nothing_all_are_looked_at_once():
    edits = listed("widen", "connect")
    full = proposed(clear(), edits)
    for options in ({"least": racing.WORTHWHILE}, {"contenders": None}, {"least": 1, "contenders": 5}, {"least": 1, "taken": 2}, {"first": 2048}):
        found = raced(clear(), edits, **{"contenders": 1} | options)
        assert [(s.candidate, s.gain, s.reason) for s in found.scored] == [(s.candidate, s.gain, s.reason) for s in full]
        assert found.rows == 2048 and found.scored.tested == full.tested == 5 and found.bar == NormalDist().inv_cdf(1 - 0.05 / 5)


def test_with_nothing_to_grow_there_is_a_table_all_the_same():
    for edits in ([], listed("prune")):
        found = raced(evidence_for(NETWORKS["mlp"], rows=200), edits, contenders=1)
        assert found.rows_needed is None and "there is nothing to grow" in found.reason and found.scored[0].candidate == NULL
        assert all(s.candidate.verdict in ("shrink", "noise") for s in found.scored[1:])


@pytest.mark.parametrize("rows, first, expected", [(1024, 128, [128, 256, 512, 1024]), (637, 79, [80, 160, 319, 637]), (100, 12, [100]), (1, 0, [1])])
def test_looks_double_up_to_all_rows(rows, first, expected):
    assert racing._ladder(first, rows) == expected


def test_choosers_say_how_many_places_they_try():
    for name in CHOOSERS:
        rule = CHOOSERS.get(name)
        for example in rule.examples:
            looks = rule.looks(rule.Options(**example))
            assert looks is None or looks[0] >= looks[1] >= 1
    greedy = CHOOSERS.get("greedy")  # the bundle of the best is tried first, the best single ones beside it
    assert greedy.looks(greedy.Options(verify=2, bundle=3)) == (3, 3) and greedy.looks(greedy.Options()) == (3, 1)
