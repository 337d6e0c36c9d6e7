"""Many edits in a row, of every registered kind and any axis, on random networks. tools/faults_edits.py runs them by the thousand."""

from __future__ import annotations

import pytest
from edit_sequences import TOTAL_DOUBLE, TOTAL_SINGLE, sequence
from random_networks import block_network


@pytest.mark.parametrize("seed", [9, *(pytest.param(s, marks=pytest.mark.slow) for s in range(100, 104))])
def test_a_hundred_edits_that_keep_the_function_keep_it(seed):
    report = sequence(block_network(seed), seed, 100, keeping=True)
    assert report.kept == sum(report.made.values()) >= 90
    assert report.drift <= TOTAL_DOUBLE and report.drift_single <= TOTAL_SINGLE, report


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(s, marks=pytest.mark.slow) for s in range(200, 206))])
def test_random_edits_are_what_they_say(seed):
    """Costs exact, declared shapes real, weights and optimizer state in step, TorchScript equal, everything trains."""
    report = sequence(block_network(seed), seed, 20 if seed < 200 else 60, keeping=False)
    assert sum(report.made.values()) >= 15
