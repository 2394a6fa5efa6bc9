"""AUROC and frozen thresholds: equality with plain oracles, and coverage on planted truth."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score
from support.simulated import assert_covers, coverage, held, noise, pairs, plain_placements, shift, tied_scores, two_classes
from support.tiers import mostly_slow

from helpers.errors import StudyError
from helpers.stats import roc
from helpers.stats.intervals import newcombe_paired, wilson


@pytest.fixture
def drawn():
    return tied_scores()


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (200,), (4, 1), (3, 60), (2, 3, 20)])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_midranks_are_those_of_scipy(shape, levels):
    scores = np.random.default_rng(len(shape) + levels).integers(levels, size=shape) / 7 - 1.0
    assert np.array_equal(roc.midranks(scores), stats.rankdata(scores, axis=-1))
    if scores.size:
        scores.flat[0] = np.nan
        assert np.array_equal(roc.midranks(scores), stats.rankdata(scores, axis=-1), equal_nan=True)


# ---------------------------------------------------------------- oracles


def test_auroc_and_placements_agree_with_scikit_learn_and_with_all_pairs(drawn):
    labels, scores, _ = drawn
    assert roc.auroc(labels, scores) == pytest.approx([roc_auc_score(labels, row) for row in scores], abs=1e-12)
    value, placed = roc.placements(labels, scores[0])
    over, under = plain_placements(labels, scores[0])
    assert isinstance(value, float)
    assert placed[labels == 1] == pytest.approx(over)
    assert placed[labels == 0] == pytest.approx(under)


# ---------------------------------------------------------------- coverage of AUROC


@mostly_slow("the same simulation at other sizes", "pairs-0.8-100")
@pytest.mark.parametrize("n", [20, 100, 500])
@pytest.mark.parametrize("auroc", [0.6, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_auroc_interval_covers(kind, auroc, n):
    rng, labels, groups = np.random.default_rng(5), two_classes(n), pairs(n) if kind == "pairs" else np.arange(2 * n)
    scores = noise(rng, 500, groups, 0.3) + shift(auroc) * labels
    found = held([roc.auroc_interval(labels, row, groups) for row in scores], auroc)
    # Where the misranked rows are few the interval is too wide rather than too short: at 0.99, a sample of 20 a class is
    # perfect 3 times in 10, and an honest interval then holds 0.99.
    few = (1 - auroc) * n < 1.5
    assert_covers(found, 0.93, 0.99 if few else 0.97)


@mostly_slow("the same simulation at other sizes", "False-0.95")
@pytest.mark.parametrize("auroc", [0.6, 0.95])
@pytest.mark.parametrize("both", [True, False])
def test_auroc_interval_covers_in_clusters_and_not_without_them(both, auroc):
    rng, labels = np.random.default_rng(6), two_classes(100)
    groups = np.tile(np.repeat(np.arange(20), 5), 2) + (0 if both else 20 * (1 - labels))
    scores = noise(rng, 500, groups, 0.5) + shift(auroc) * labels
    assert_covers(held([roc.auroc_interval(labels, row, groups) for row in scores], auroc))
    blind = held([roc.auroc_interval(labels, row) for row in scores], auroc)
    # The control. Ignoring clusters of one class makes too sure; noise shared by both classes cancels in part.
    assert abs(blind.value - 0.95) > 0.025
    assert both or blind.high < 0.9


def test_auroc_interval_covers_with_ties_and_with_few_positives():
    rng, cuts, labels = np.random.default_rng(7), [-1, 0, 1, 2], np.r_[np.ones(30, int), np.zeros(300, int)]
    levels = [np.diff(np.r_[0, ndtr(np.array(cuts) - mean), 1]) for mean in (1.5, 0)]
    truth = sum(levels[0][i] * (levels[1][:i].sum() + levels[1][i] / 2) for i in range(5))
    scores = np.digitize(rng.normal(size=(500, 330)) + 1.5 * labels, cuts)
    assert_covers(held([roc.auroc_interval(labels, row) for row in scores], truth))


# ---------------------------------------------------------------- frozen thresholds


def test_rates_count_what_lies_above_the_threshold():
    labels, scores = np.array([1, 1, 1, 0, 0, 0, 0]), np.array([0.9, 0.5, 0.7, 0.5, 0.6, 0.1, 0.2])
    tpr, fpr = roc.rates(labels, scores, 0.5)
    assert tpr == wilson(2, 3)
    assert fpr == wilson(1, 4)
    grouped = roc.rates(np.tile(labels, 4), np.tile(scores, 4), 0.5, np.tile(["a", "b", "c", "a", "b", "c", "d"], 4))
    assert grouped[0].value == tpr.value
    assert grouped[0].high - grouped[0].low > wilson(8, 12).high - wilson(8, 12).low
    only_benign = roc.rates([0, 0, 0], [0.1, 0.2, 0.9], 0.5)
    assert math.isnan(only_benign[0].value)
    assert only_benign[1] == wilson(1, 3)


@mostly_slow("the same simulation at other sizes", "50-4-rates0")
@pytest.mark.parametrize("rates", [(0.05, 0.3), (0.5, 0.5), (0.95, 0.85), (0.99, 0.9), (0.01, 0.01)])
@pytest.mark.parametrize(("groups", "size"), [(200, 1), (50, 4)])
def test_rate_change_covers_near_0_and_1(groups, size, rates):
    rng, codes = np.random.default_rng(15), np.repeat(np.arange(groups), size)
    first, second = (ndtr(noise(rng, 400, codes, 0.5)) for _ in range(2))
    before, after = first < rates[0], np.where(rng.random(first.shape) < 0.8, first, second) < rates[1]
    found = held([roc.rate_change(b, a, codes) for b, a in zip(before, after, strict=True)], rates[1] - rates[0])
    # Newcombe's interval is too wide rather than too short where few rows change: up to 100 %.
    assert_covers(found, 0.93, 1.0)


def test_rate_change_is_newcombes_and_never_without_width():
    rng = np.random.default_rng(16)
    before, after = rng.random(80) < 0.4, rng.random(80) < 0.5
    assert roc.rate_change(before, after) == newcombe_paired(before, after)
    assert roc.rate_change(before, after, np.arange(80)[::-1]) == newcombe_paired(before, after)
    for flags in (np.zeros(40, int), np.ones(40, int), (np.arange(40) < 8).astype(int)):
        for groups in (None, np.arange(40) % 10):
            found = roc.rate_change(flags, flags, groups)
            assert found.value == 0
            assert found.low < 0 < found.high


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("n", [80, 200, 1000])
def test_quantile_interval_covers_exactly(n, q):
    # With the values 1 .. n the ends are their own ranks, so the coverage follows from the binomial without simulation.
    found = roc.quantile_interval(np.arange(1, n + 1), q)
    below = stats.binom(n, q)
    assert 0.95 <= below.cdf(found.high - 1) - below.cdf(found.low - 1) <= 0.99
    assert found.low <= found.value <= found.high


def test_quantile_interval_is_cut_to_the_sample():
    found = roc.quantile_interval(np.arange(1, 21), 0.95)
    assert found.high == 20
    assert stats.binom(72, 0.95).cdf(71) >= 0.975 > stats.binom(71, 0.95).cdf(70)  # as the docstring says
    assert stats.binom(368, 0.99).cdf(367) >= 0.975 > stats.binom(367, 0.99).cdf(366)
    assert math.isnan(roc.quantile_interval([], 0.5).low)


# ---------------------------------------------------------------- rank correlation


def test_spearman_agrees_with_scipy(drawn):
    _, scores, groups = drawn
    found = roc.spearman(scores[0], scores[1], groups)
    assert found.value == pytest.approx(stats.spearmanr(scores[0], scores[1]).statistic)
    assert found.low < found.value < found.high


@mostly_slow("the same simulation at other sizes", "40-8-0.9")
@pytest.mark.parametrize("rho", [0.0, 0.9])
@pytest.mark.parametrize(("n", "count"), [(40, 8), (100, 20)])
def test_spearman_covers_with_few_groups(n, count, rho):
    groups = np.arange(n) % count

    def draw(rng):
        x, own = noise(rng, 2, groups, 0.5)
        return x, rho * x + np.sqrt(1 - rho**2) * own, groups

    assert_covers(coverage(roc.spearman, draw, 6 / np.pi * np.arcsin(rho / 2), repeats=300, seed=17))


def test_spearman_over_rows_of_few_groups_covers_far_too_little():
    groups = np.arange(200) % 8
    found = coverage(roc.spearman, lambda rng: tuple(noise(rng, 2, groups, 0.5)), 0.0, repeats=60, seed=18)
    assert found.high < 0.8


def test_spearman_at_its_ends():
    up = roc.spearman(np.arange(20), np.arange(20) ** 3)
    assert (up.value, up.high) == (pytest.approx(1), pytest.approx(1))
    assert 0 < up.low < 0.9
    assert math.isnan(roc.spearman(np.ones(20), np.arange(20)).value)
    assert math.isnan(roc.spearman([1, 2], [2, 1]).low)


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("n", [2, 20, 200])
def test_perfect_separation_is_not_certainty(n):
    labels = two_classes(n)
    found = roc.auroc_interval(labels, labels + np.linspace(0, 0.5, 2 * n))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(wilson(n, n).low)
    wrong = roc.auroc_interval(labels, -labels - np.linspace(0, 0.5, 2 * n))
    assert (wrong.value, wrong.low) == (0, 0)
    assert wrong.high == pytest.approx(1 - found.low)


def test_constant_scores_are_undefined_not_one_half(drawn):
    labels, scores, groups = drawn
    flat = np.vstack([scores[:1], np.full((1, 90), 0.5)])
    assert np.isnan(roc.auroc(labels, flat)).tolist() == [False, True]
    assert math.isnan(roc.auroc_interval(labels, flat[1], groups).low)


def test_one_row_of_a_class_leaves_nearly_everything_open():
    labels, scores = np.r_[1, np.zeros(50, int)], np.random.default_rng(20).normal(size=(2, 51))
    assert roc.auroc_interval(labels, scores[0]).high - roc.auroc_interval(labels, scores[0]).low > 0.7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: roc.auroc([1, 1], [0.1, 0.2], "privacy-pii test"), "privacy-pii test: all 2 labels are 1"),
        (lambda: roc.auroc([], []), "no label"),
        (lambda: roc.auroc([0, 2], [0.1, 0.2]), "neither 0 nor 1"),
        (lambda: roc.auroc([0, 1], [0.1, 0.2, 0.3]), "for 2 labels"),
        (lambda: roc.auroc([0, 1], [0.1, math.nan]), "not finite"),
        (lambda: roc.auroc_interval([0, 1], [0.1, 0.2], ["a"]), "groups"),
        (lambda: roc.quantile_interval([1, 2], 1.0), "q = 1.0"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(StudyError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
