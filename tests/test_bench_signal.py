"""Table T4's own arithmetic, and one decision of it."""

from __future__ import annotations

from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def test_an_exact_interval_is_where_the_binomial_tails_are_two_and_a_half_percent(tools):
    from scipy.stats import binom
    from signal_summary import rate

    made = rate([True] * 3 + [False] * 57)
    low, high = made["interval"]
    assert made["rate"] == 0.05
    assert binom.sf(2, 60, low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(3, 60, high) == pytest.approx(0.025, abs=1e-6)
    assert rate([])["interval"] == [0.0, 1.0]


def test_power_counts_the_sites_that_truly_lower_test_loss_and_errors_what_lies_within_them(tools):
    from signal_summary import summary

    site = {"part": "power", "net": "mlp", "stage": "early", "gain": 1.0, "stderr": 0.3, "held": 1.0, "held_stderr": 0.3, "test": 1.0, "test_stderr": 0.4}
    drops = [(True, 3.0), (False, 3.0), (True, -3.0), (False, 1.0)]  # one passes rightly, one is missed, one passes wrongly
    found = summary([{**site, "grow": grow, "drop": drop, "drop_stderr": 1.0} for grow, drop in drops])
    power = next(f for f in found if f["part"] == "power")
    assert (power["power"]["count"], power["power"]["of"]) == (1, 2)
    assert (power["fell"]["count"], power["rose"]["count"], power["fell"]["of"]) == (1, 1, 2)
    assert power["truly_share_of_drop"] == 0.5
    within = {f["what"]: f["within_1"] for f in found if f["part"] == "errors"}
    assert within["gain on test rows"] == 1.0
    assert within["held-out on test rows, by forwards"] == 0.25  # off by 2, 2, 4 and 0 of 1.04


def test_a_decision_on_permuted_targets_is_recorded_and_summed_up(tools):
    import signal_runs
    from signal_summary import summary, table

    records = [{"part": "null", "net": "regression", "stage": "early", "seed": 0, **r} for r in signal_runs.null("regression", "early", 0)]
    assert [r["mode"] for r in records] == ["pass", "training"]
    assert all(r["sites"] == len(r["z"]) == 9 for r in records)
    found = summary(records)
    assert [(f["mode"], f["false"]["of"], f["sites"]) for f in found] == [("pass", 1, 9), ("training", 1, 9)]
    assert "training" in table(found)


def test_null_runs_are_spread_over_networks_and_stages(tools):
    from bench_signal import todo

    runs = todo(["null", "share", "race"], ["mlp", "conv", "regression"], 60, 1)
    null = [r for r in runs if r[0] == "null"]
    assert len({r[3] for r in null}) == 60
    assert {(net, stage): sum(r[1:3] == (net, stage) for r in null) for net in ("mlp", "conv") for stage in ("early", "middle", "converged")} == {
        ("mlp", "early"): 8, ("mlp", "middle"): 8, ("mlp", "converged"): 8, ("conv", "early"): 4, ("conv", "middle"): 4, ("conv", "converged"): 4,
    }  # fmt: skip
    assert sum(r[0] == "race" for r in runs) == 9
    assert sum(r[0] == "share" for r in runs) == 6
