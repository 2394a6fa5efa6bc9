"""P values: sizes in simulation, and equality with formulas by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from support.simulated import rejections
from support.tiers import mostly_slow

from helpers.errors import StudyError
from helpers.stats.intervals import MARGINS
from helpers.stats.p_values import holm, tost


@mostly_slow("the same simulation at other sizes", "20")
@pytest.mark.parametrize("n", [20, 200])
def test_tost_keeps_its_size_at_the_margin_and_has_power_inside(n):
    rng, spread = np.random.default_rng(9), 0.01 * math.sqrt(n)

    def found(shift):
        p_values = []
        for _ in range(2000):
            change = rng.normal(shift, spread, n)
            p_values.append(tost(change.mean(), stats.sem(change), MARGINS["auroc"], n - 1))
        return rejections(p_values)

    assert found(MARGINS["auroc"]).low <= 0.055
    assert found(-MARGINS["auroc"]).value <= 0.065
    assert found(0.0).value > 0.7


def test_holm_keeps_the_family_wise_size():
    rng = np.random.default_rng(10)
    mixed = np.concatenate([rng.random((4000, 8)), np.full((4000, 2), 1e-6)], axis=1)
    false = [(holm(row)[:8] <= 0.05).any() for row in mixed]
    assert np.mean(false) <= 0.055
    assert np.mean([(row[:8] <= 0.05).any() for row in mixed]) > 0.25  # the control: without Holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.01, np.nan])[0] == pytest.approx(0.02)  # the undefined one still counts


def test_tost_is_the_worse_of_two_t_tests():
    change = np.random.default_rng(12).normal(0.005, 0.05, 60)
    sides = [stats.ttest_1samp(change, -0.03, alternative="greater"), stats.ttest_1samp(change, 0.03, alternative="less")]
    assert tost(change.mean(), stats.sem(change), 0.03, 59) == pytest.approx(max(side.pvalue for side in sides))


@pytest.mark.parametrize("call", [lambda: holm([0.5, 1.5]), lambda: tost(0.0, 1.0, 0.0)])
def test_bad_p_values_and_margins_are_refused_in_one_line(call):
    with pytest.raises(StudyError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_equivalence_is_undefined_where_nothing_differed():
    assert math.isnan(tost(0.0, 0.0, 0.03))
