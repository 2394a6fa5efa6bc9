"""Coverage on planted truth, and agreement with scipy and published examples."""

import math

import numpy as np
import pytest
from scipy import stats
from support.coverage import discordance_coverage
from support.simulated import assert_covers, coverage
from support.tiers import mostly_slow, slow

from helpers.errors import StudyError
from helpers.stats.intervals import (
    Estimate,
    exact_ends,
    group_scores,
    grouped_bootstrap,
    mean_interval,
    newcombe_paired,
    paired_difference,
    rate_interval,
    wilson,
)

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

    assert_covers(coverage(mean_interval, clustered, 1.4 * mean, repeats=600, seed=1))


@slow("a simulation; test_mean_interval_covers_with_and_without_clusters keeps one")
def test_mean_interval_covers_20_skewed_values_where_students_does_not():
    def student(values):
        return Estimate(0, *stats.ttest_1samp(values, 0).confidence_interval(0.95), 20)

    def draw(rng):
        return (rng.exponential(size=20),)

    assert 0.93 <= coverage(mean_interval, draw, 1.0, repeats=2000, seed=14).value <= 0.97
    assert coverage(student, draw, 1.0, repeats=2000, seed=14).high < 0.94


def test_a_correction_of_skewness_invents_no_mass_where_groups_are_few():
    """The fault: Hall's cubic transform gave 16 values about 11, the largest of them 49, an upper end of 49."""
    values = np.array([4.0, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 12, 15, 49])
    found = mean_interval(values, bounds=(0, 100))
    plain = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert plain.high < found.high < 1.5 * plain.high
    for n in (10, 16, 32, 49):
        rare = np.r_[np.zeros(n - 1), 1.0]  # as skewed as n values can be
        error = stats.t.ppf(0.975, n - 1) * stats.sem(rare)
        assert mean_interval(rare).high < rare.mean() + 3 * error


# --- few discordant pairs ---


@mostly_slow("the same simulation at other sizes", "96-0.01-0.01")
@pytest.mark.parametrize(("gained", "lost"), [(0.0, 0.0), (0.01, 0.01), (0.03, 0.0), (0.02, 0.05)])
@pytest.mark.parametrize("n", [32, 96, 200])
def test_few_discordant_pairs_are_covered(n, gained, lost):
    assert discordance_coverage(n, gained, lost, 1000).high >= 0.95


@pytest.mark.parametrize("n", [32, 96, 140])
def test_exact_ends_of_none_and_of_shares_are_clopper_and_pearsons(n):
    low, high = exact_ends(np.zeros(n), (-1, 1))
    assert (low, high) == pytest.approx((-(1 - 0.02 ** (1 / n)), 1 - 0.02 ** (1 / n)))
    for count in (0, 3, n - 2, n):
        found = exact_ends(np.r_[np.ones(count), np.zeros(n - count)], (0, 1))
        assert found == pytest.approx(tuple(stats.binomtest(count, n).proportion_ci(method="exact")))
    assert exact_ends(np.r_[np.ones(15), np.zeros(n - 15)], (0, 1)) is None
    assert exact_ends(np.r_[np.ones(5), -np.ones(5), np.zeros(n - 10)], (-1, 1)) is None
    few = np.r_[np.ones(3), -np.ones(2), np.zeros(n - 5)]
    assert exact_ends(-few, (-1, 1)) == pytest.approx(tuple(-end for end in exact_ends(few, (-1, 1))[::-1]))


def test_ignoring_clusters_covers_far_too_little():
    codes = np.arange(200) % 20
    found = coverage(mean_interval, lambda rng: (rng.normal(size=20)[codes] + 0.3 * rng.normal(size=200),), 0.0, 300)
    assert found.high < 0.7


def test_mean_interval_covers_with_unequal_clusters():
    def draw(rng):
        codes = np.repeat(np.arange(30), rng.integers(1, 8, 30))
        return rng.normal(size=30)[codes] + rng.normal(size=codes.size), codes

    assert_covers(coverage(mean_interval, draw, 0.0, repeats=600, seed=2))


@mostly_slow("the same simulation at other sizes", "50-4-0.05")
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize(("groups", "size"), [(20, 3), (50, 4), (200, 5)])
def test_rate_interval_covers_with_clusters(rate, groups, size):
    codes = np.repeat(np.arange(groups), size)

    def draw(rng):  # beta-binomial, intra-class correlation 1/3
        return (rng.random(codes.size) < rng.beta(2 * rate, 2 * (1 - rate), groups)[codes]).astype(int), codes

    assert_covers(coverage(rate_interval, draw, rate, repeats=600, seed=3))


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
    assert_covers(coverage(newcombe_paired, paired_labels(n, before, after, 0.5), after - before, repeats=400, seed=4))


@mostly_slow("the same simulation at other sizes", "60-20")
@pytest.mark.parametrize(("n", "groups"), [(20, 20), (60, 20), (1000, 250)])
def test_paired_difference_covers(n, groups):
    codes = np.arange(n) % groups

    def draw(rng):
        before = rng.normal(size=n)
        return before, before + 0.2 + 0.5 * rng.normal(size=groups)[codes] + 0.5 * rng.normal(size=n), codes

    assert_covers(coverage(paired_difference, draw, 0.2, repeats=600, seed=5))


def test_coverage_counts_misses_and_undefined_intervals():
    assert coverage(lambda: Estimate(0, -1, 1, 1), lambda rng: (), 0.0, 50).value == 1
    assert coverage(lambda: Estimate(0, 1, 2, 1), lambda rng: (), 0.0, 50).value == 0
    assert coverage(lambda: Estimate(0, math.nan, math.nan, 1), lambda rng: (), 0.0, 50).value == 0


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


def test_mean_interval_is_students_for_symmetric_values():
    values = np.concatenate([np.arange(12.0), -np.arange(12.0)])
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


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
    for found in (wilson(0, 0), mean_interval([]), newcombe_paired([], []), rate_interval([])):
        assert math.isnan(found.value)
        assert math.isnan(found.low)


def test_constant_values_give_no_false_certainty():
    bare, bounded = mean_interval(np.zeros(50)), paired_difference(np.ones(50), np.ones(50), bounds=(-1, 1))
    assert math.isnan(bare.low)
    assert math.isnan(bare.high)
    # What 50 equal groups leave open is what the exact binomial says about 0 of 50.
    exact = stats.binomtest(0, 50).proportion_ci(method="exact").high
    assert (bounded.value, bounded.low, bounded.high) == pytest.approx((0, -exact, exact))


@pytest.mark.parametrize("label", [0, 1])
def test_clustered_rates_at_the_edge_count_groups_not_rows(label):
    codes = np.arange(100) % 10
    found = rate_interval([label] * 100, codes)
    assert found.value == label
    assert found.high - found.low > wilson(10 * label, 10).high - wilson(10 * label, 10).low


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
    ],
)
def test_bad_input_is_refused_in_one_line(call):
    with pytest.raises(StudyError) as caught:
        call()
    assert "\n" not in str(caught.value)
