"""Coverage on planted truth, size of tests, and agreement with scipy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from support.tiers import mostly_slow, slow

from helpers.errors import StudyError
from helpers.stats.intervals import (
    MARGINS,
    Estimate,
    coverage,
    group_scores,
    grouped_bootstrap,
    holm,
    kappa,
    mcnemar_exact,
    mean_interval,
    newcombe_paired,
    paired_difference,
    rate_interval,
    rogan_gladen,
    standard_error,
    tost,
    two_level,
    wilson,
)


def assert_nominal(found: Estimate, low: float = 0.93, high: float = 0.97) -> None:
    """Coverage within 93-97 %, allowing for the simulation's own error: its 95 % interval must touch the band."""
    assert found.low <= high, found
    assert found.high >= low, found


# --- coverage ---


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("band", [(0.01, 0.06), (0.94, 0.99), (0.4, 0.6)])
def test_wilson_covers_near_0_and_1(n, band):
    # At one rate Wilson's coverage jumps between about 84 and 99 % with n, so it is judged over a band of rates.
    rates = np.linspace(*band, 200)
    counts = np.arange(n + 1)
    ends = [wilson(int(k), n) for k in counts]
    low, high = np.array([e.low for e in ends]), np.array([e.high for e in ends])
    # Exact: the probability of every count whose interval holds the rate.
    held = [stats.binom.pmf(counts[(low <= p) & (p <= high)], n, p).sum() for p in rates]
    assert 0.93 <= np.mean(held) <= 0.97


NOISES = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "skewed": (lambda rng, size: rng.exponential(size=size), 1.0),
    "bounded": (lambda rng, size: rng.beta(0.5, 3, size=size), 0.5 / 3.5),
}


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("n", "groups"), [(20, 20), (20, 10), (100, 25), (1000, 200)])
def test_mean_interval_covers_with_and_without_clusters(noise, n, groups):
    draw, mean = NOISES[noise]
    codes = np.arange(n) % groups

    def clustered(rng):
        return 0.7 * draw(rng, groups)[codes] + 0.7 * draw(rng, n), codes

    assert_nominal(coverage(mean_interval, clustered, 1.4 * mean, repeats=600, seed=1))


@slow("a simulation; test_mean_interval_covers_with_and_without_clusters keeps one")
def test_mean_interval_covers_20_skewed_values_where_students_does_not():
    def student(values):
        return Estimate(0, *stats.ttest_1samp(values, 0).confidence_interval(0.95), 20)

    def draw(rng):
        return (rng.exponential(size=20),)

    assert 0.93 <= coverage(mean_interval, draw, 1.0, repeats=2000, seed=14).value <= 0.97
    assert coverage(student, draw, 1.0, repeats=2000, seed=14).high < 0.94


def test_ignoring_clusters_covers_far_too_little():
    codes = np.arange(200) % 20
    found = coverage(mean_interval, lambda rng: (rng.normal(size=20)[codes] + 0.3 * rng.normal(size=200),), 0.0, 300)
    assert found.high < 0.7


def test_mean_interval_covers_with_unequal_clusters():
    def draw(rng):
        codes = np.repeat(np.arange(30), rng.integers(1, 8, 30))
        return rng.normal(size=30)[codes] + rng.normal(size=codes.size), codes

    assert_nominal(coverage(mean_interval, draw, 0.0, repeats=600, seed=2))


@mostly_slow("the same simulation at other sizes", "50-4-0.05")
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize(("groups", "size"), [(20, 3), (50, 4), (200, 5)])
def test_rate_interval_covers_with_clusters(rate, groups, size):
    codes = np.repeat(np.arange(groups), size)

    def draw(rng):  # beta-binomial, intra-class correlation 1/3
        return (rng.random(codes.size) < rng.beta(2 * rate, 2 * (1 - rate), groups)[codes]).astype(int), codes

    assert_nominal(coverage(rate_interval, draw, rate, repeats=600, seed=3))


def paired_labels(n, before, after, tie):
    def draw(rng):
        first = rng.random(n)
        second = np.where(rng.random(n) < tie, first, rng.random(n))
        return (first < before).astype(int), (second < after).astype(int)

    return draw


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize(("before", "after"), [(0.5, 0.5), (0.1, 0.3), (0.95, 0.6)])
def test_newcombe_covers(n, before, after):
    assert_nominal(coverage(newcombe_paired, paired_labels(n, before, after, 0.5), after - before, repeats=400, seed=4))


@mostly_slow("the same simulation at other sizes", "60-20")
@pytest.mark.parametrize(("n", "groups"), [(20, 20), (60, 20), (1000, 250)])
def test_paired_difference_covers(n, groups):
    codes = np.arange(n) % groups

    def draw(rng):
        before = rng.normal(size=n)
        return before, before + 0.2 + 0.5 * rng.normal(size=groups)[codes] + 0.5 * rng.normal(size=n), codes

    assert_nominal(coverage(paired_difference, draw, 0.2, repeats=600, seed=5))


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

    assert_nominal(coverage(kappa, draw, truth, repeats=400, seed=6))


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [(0.0, 1.0, 1.0), (0.5, 1.0, 1.0), (1.0, 0.3, 0.3)])
def test_two_level_covers_other_seeds_and_other_groups(seeds, spread):
    def draw(rng):
        between, within, noise = spread
        rows = between * rng.normal(size=(seeds, 1)) + within * rng.normal(size=100) + noise * rng.normal(size=(seeds, 100))
        return (rows,)

    # Noise is charged to the seeds' few degrees of freedom, so seeds that do nothing leave it a little wide, never short.
    assert_nominal(coverage(two_level, draw, 0.0, repeats=500, seed=7), 0.93, 0.98)


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize(("rate", "sens", "spec"), [(0.1, 0.9, 0.95), (0.5, 0.8, 0.9), (0.97, 0.9, 0.9)])
def test_rogan_gladen_covers(rate, sens, spec):
    raw = rate * sens + (1 - rate) * (1 - spec)

    def draw(rng):
        return tuple(wilson(rng.binomial(n, p), n) for n, p in ((200, raw), (100, sens), (100, spec)))

    assert_nominal(coverage(rogan_gladen, draw, rate, repeats=500, seed=8))


def test_coverage_counts_misses_and_undefined_intervals():
    assert coverage(lambda: Estimate(0, -1, 1, 1), lambda rng: (), 0.0, 50).value == 1
    assert coverage(lambda: Estimate(0, 1, 2, 1), lambda rng: (), 0.0, 50).value == 0
    assert coverage(lambda: Estimate(0, math.nan, math.nan, 1), lambda rng: (), 0.0, 50).value == 0


# --- size of tests ---


def rejections(p_values):
    """Share of p <= 0.05, as an interval: its low end may not lie above 5.5 %."""
    return wilson(int((np.asarray(p_values) <= 0.05).sum()), len(p_values))


@mostly_slow("the same simulation at other sizes", "20")
@pytest.mark.parametrize("n", [20, 200])
def test_tost_keeps_its_size_at_the_margin_and_has_power_inside(n):
    rng, spread = np.random.default_rng(9), 0.01 * math.sqrt(n)

    def found(shift):
        p_values = []
        for _ in range(2000):
            change = rng.normal(shift, spread, n)
            error, df = standard_error(change)
            p_values.append(tost(change.mean(), error, MARGINS["auroc"], df))
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


# --- oracles ---


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (20, 20), (37, 200), (1000, 1000)])
def test_wilson_agrees_with_scipy(successes, n):
    oracle = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert found.high > found.low


def test_newcombe_agrees_with_the_published_example():
    # Newcombe 1998, Statistics in Medicine 17:2635, table with 36, 12, 2, 0 pairs: method 10 gives 0.0569 to 0.3404.
    found = newcombe_paired([1] * 36 + [0] * 12 + [1] * 2, [1] * 36 + [1] * 12 + [0] * 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_newcombe_corrects_a_positive_correlation_for_continuity():
    both, gained, lost, neither = 30, 5, 15, 50
    before, after = [1] * 30 + [0] * 5 + [1] * 15 + [0] * 50, [1] * 30 + [1] * 5 + [0] * 15 + [0] * 50
    # The steps of the paper, on scipy's Wilson limits.
    old, new = (stats.binomtest(both + k, 100).proportion_ci(method="wilson") for k in (lost, gained))
    phi = (both * neither - gained * lost - 50) / np.sqrt((both + lost) * (gained + neither) * (both + gained) * (lost + neither))
    down, up = (0.35 - new.low, old.high - 0.45), (new.high - 0.35, 0.45 - old.low)
    low, high = (np.sqrt(a * a - 2 * phi * a * b + b * b) for a, b in (down, up))
    found = newcombe_paired(before, after)
    assert (found.value, found.low, found.high) == pytest.approx((-0.1, -0.1 - low, -0.1 + high))


def test_kappa_agrees_with_scikit_learn():
    rng = np.random.default_rng(11)
    first = rng.integers(0, 4, 300)
    second = np.where(rng.random(300) < 0.6, first, rng.integers(0, 4, 300))
    found = kappa(first, second)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.low < found.value < found.high


def test_mean_interval_is_students_for_symmetric_values():
    values = np.concatenate([np.arange(12.0), -np.arange(12.0)])
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


def test_mcnemar_agrees_with_the_binomial_and_with_no_change():
    before, after = np.r_[np.ones(9), np.zeros(11)], np.r_[np.zeros(8), np.ones(1), np.ones(2), np.zeros(9)]
    assert mcnemar_exact(before, after) == pytest.approx(stats.binomtest(2, 10, 0.5).pvalue)
    assert mcnemar_exact(before, before) == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.01, np.nan])[0] == pytest.approx(0.02)  # the undefined one still counts


def test_tost_is_the_worse_of_two_t_tests():
    change = np.random.default_rng(12).normal(0.005, 0.05, 60)
    error, df = standard_error(change)
    sides = [stats.ttest_1samp(change, -0.03, alternative="greater"), stats.ttest_1samp(change, 0.03, alternative="less")]
    assert tost(change.mean(), error, 0.03, df) == pytest.approx(max(side.pvalue for side in sides))


def test_rogan_gladen_undoes_what_the_judge_did():
    def exact(value):
        return Estimate(value, value, value, 1000)

    found = rogan_gladen(wilson(290, 1000), exact(0.9), exact(0.85))
    assert found.value == pytest.approx((0.29 + 0.85 - 1) / 0.75)
    assert rogan_gladen(wilson(290, 1000), wilson(18, 20), wilson(17, 20)).low < found.low
    useless = rogan_gladen(wilson(5, 10), wilson(5, 10), wilson(5, 10))
    assert math.isnan(useless.value)
    assert (useless.low, useless.high) == (0, 1)


def test_grouped_bootstrap_is_repeatable_and_near_the_formula():
    rng = np.random.default_rng(13)
    codes = np.arange(400) % 100
    values = rng.normal(size=100)[codes] + rng.normal(size=400)
    first, second = (grouped_bootstrap(lambda rows: values[rows].mean(), codes, seed=3) for _ in range(2))
    formula = mean_interval(values, codes)
    assert first == second
    assert first.value == pytest.approx(formula.value)
    assert first.high - first.low == pytest.approx(formula.high - formula.low, rel=0.12)


# --- edges ---


def test_no_interval_is_made_of_nothing():
    assert wilson(0, 0).n == 0
    for found in (wilson(0, 0), mean_interval([]), newcombe_paired([], []), kappa([], []), rate_interval([])):
        assert math.isnan(found.value)
        assert math.isnan(found.low)


def test_constant_values_give_no_false_certainty():
    bare, bounded = mean_interval(np.zeros(50)), paired_difference(np.ones(50), np.ones(50), bounds=(-1, 1))
    assert math.isnan(bare.low)
    assert math.isnan(bare.high)
    # What 50 equal groups leave open is what the exact binomial says about 0 of 50.
    exact = stats.binomtest(0, 50).proportion_ci(method="exact").high
    assert (bounded.value, bounded.low, bounded.high) == pytest.approx((0, -exact, exact))
    assert math.isnan(tost(0.0, 0.0, 0.03))
    same = two_level([np.zeros(50)] * 3, bounds=(-1, 1))
    assert same.low < 0 < same.high


@pytest.mark.parametrize("label", [0, 1])
def test_clustered_rates_at_the_edge_count_groups_not_rows(label):
    codes = np.arange(100) % 10
    found = rate_interval([label] * 100, codes)
    assert found.value == label
    assert found.high - found.low > wilson(10 * label, 10).high - wilson(10 * label, 10).low


def test_kappa_at_its_ends():
    first = np.arange(30) % 2
    assert kappa(first, first).value == 1
    assert kappa(first, first).low < 1
    constant = kappa(first, np.zeros(30, dtype=int))
    assert constant.value == 0
    assert constant.low < 0 < constant.high
    assert math.isnan(kappa(np.ones(5), np.ones(5)).value)


def test_groups_may_have_any_names_and_change_nothing_but_the_interval():
    values = np.array([0.1, 0.4, 0.9, 0.3, 0.5, 0.7])
    names = ["b", "a", "b", "c", "a", "c"]
    assert mean_interval(values, names).value == pytest.approx(values.mean())
    assert mean_interval(values, names) == mean_interval(values, [2, 1, 2, 3, 1, 3])
    assert group_scores(values, names).size == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([1.0, float("nan")]),
        lambda: mean_interval([1.0, 2.0], ["a"]),
        lambda: paired_difference([1.0], [1.0, 2.0]),
        lambda: newcombe_paired([0, 1], [0.5, 1]),
        lambda: rate_interval([0, 2]),
        lambda: wilson(3, 2),
        lambda: kappa([1], [1, 0]),
        lambda: two_level([[1.0, 2.0], [1.0]]),
        lambda: holm([0.5, 1.5]),
        lambda: tost(0.0, 1.0, 0.0),
    ],
)
def test_bad_input_is_refused_in_one_line(call):
    with pytest.raises(StudyError) as caught:
        call()
    assert "\n" not in str(caught.value)
