"""Kappa: coverage in simulation, and equality with scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from support.simulated import assert_covers, coverage

from helpers.errors import StudyError
from helpers.stats.kappa import kappa


# At 0.97 from 200 rows on only: with less than one disagreement expected, an interval is either much too wide or too short.
@pytest.mark.parametrize(
    ("n", "groups", "correct"),
    [(n, groups, correct) for n, groups in ((20, 20), (50, 50), (100, 50)) for correct in (0.6, 0.75, 0.9)]
    + [(n, groups, correct) for n, groups in ((200, 200), (1000, 250)) for correct in (0.6, 0.9, 0.97)],
)
def test_kappa_covers(n, groups, correct):
    codes = np.arange(n) % groups
    truth = 2 * correct - 1  # both raters at one half: chance agreement is 1/2

    def draw(rng):  # a group shares its label and, half the time, its rater's mistake
        first = (rng.random(groups) < 0.5)[codes]
        shared, own = rng.random(groups)[codes], rng.random(n)
        return first, first ^ (np.where((rng.random(groups) < 0.5)[codes], shared, own) > correct), codes

    assert_covers(coverage(kappa, draw, truth, repeats=400, seed=6))


def test_kappa_agrees_with_scikit_learn():
    rng = np.random.default_rng(11)
    first = rng.integers(0, 4, 300)
    second = np.where(rng.random(300) < 0.6, first, rng.integers(0, 4, 300))
    found = kappa(first, second)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.low < found.value < found.high


def test_kappa_at_its_ends():
    first = np.arange(30) % 2
    assert kappa(first, first).value == 1
    assert kappa(first, first).low < 1
    constant = kappa(first, np.zeros(30, dtype=int))
    assert constant.value == 0
    assert constant.low < 0 < constant.high
    assert math.isnan(kappa(np.ones(5), np.ones(5)).value)


def test_raters_of_different_items_are_refused():
    with pytest.raises(StudyError, match="1 and 2 labels"):
        kappa([1], [1, 0])


def test_the_kappa_of_nothing_is_nothing():
    found = kappa([], [])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
