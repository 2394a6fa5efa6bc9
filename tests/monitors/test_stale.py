"""What is stale: a loss that reaches its margin and is not chance, or twice the false alarms; the ends say how sure that is."""

import numpy as np
import pytest

from helpers.monitors import stale
from helpers.stats.intervals import Estimate


@pytest.mark.parametrize(
    ("low", "value", "high", "answer"),
    [
        (0.06, 0.08, 0.10, (True, True, True)),
        (0.01, 0.08, 0.15, (True, False, True)),
        (-0.01, 0.08, 0.17, (False, False, True)),  # large and perhaps chance
        (0.01, 0.03, 0.05, (False, False, True)),
        (0.01, 0.02, 0.03, (False, False, False)),
        (np.nan, np.nan, np.nan, (False, False, False)),
    ],
)
def test_a_loss_counts_from_its_margin_and_above_chance(low, value, high, answer):
    assert stale.by_loss(Estimate(value, low, high, 100), 0.05) == answer


def test_false_alarms_count_above_twice_what_the_threshold_was_set_to():
    assert stale.by_false_alarms(Estimate(0.10, 0.04, 0.16, 100), "5") == (False, False, True)
    assert stale.by_false_alarms(Estimate(0.11, 0.105, 0.16, 100), "5") == (True, True, True)
    assert stale.by_false_alarms(Estimate(0.03, 0.01, 0.06, 100), "1") == (True, False, True)


def test_lost_alarms_are_a_loss_and_come_without_a_minus_before_zero():
    before, after = np.array([True] * 8 + [False] * 2), np.array([True] * 4 + [False] * 6)
    lost = stale.lost_alarms(before, after, np.arange(10))
    assert lost.value == pytest.approx(0.4)
    assert lost.low <= lost.value <= lost.high
    same = stale.lost_alarms(before, before, np.arange(10))
    assert not np.signbit([same.value, stale.negative(Estimate(0.0, 0.0, 0.0, 1)).low]).any()


def test_one_of_several_answers_is_enough():
    assert stale.flag(7, (False, False, True), (True, False, True)) == Estimate(1.0, 0.0, 1.0, 7)
    assert stale.flag(7, (False, False, False)) == Estimate(0.0, 0.0, 0.0, 7)
