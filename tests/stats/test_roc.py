"""AUROC, its contrasts and frozen thresholds: equality with plain oracles, coverage on planted truth, size and power."""

import math
import time

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr, ndtri
from sklearn.metrics import roc_auc_score
from support.tiers import mostly_slow

from helpers.errors import StudyError
from helpers.stats import roc
from helpers.stats.intervals import MARGINS, Estimate, coverage, grouped_bootstrap, holm, newcombe_paired, wilson

MARGIN = MARGINS["auroc"]
DROP = (1, -1)
INTERACTION = (-1, -1, 1, 1)  # before, both, first, second


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (200,), (4, 1), (3, 60), (2, 3, 20)])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_midranks_are_those_of_scipy(shape, levels):
    scores = np.random.default_rng(len(shape) + levels).integers(levels, size=shape) / 7 - 1.0
    assert np.array_equal(roc.midranks(scores), stats.rankdata(scores, axis=-1))
    if scores.size:
        scores.flat[0] = np.nan
        assert np.array_equal(roc.midranks(scores), stats.rankdata(scores, axis=-1), equal_nan=True)


def two_classes(n: int) -> np.ndarray:
    return np.repeat([1, 0], n)


def pairs(n: int) -> np.ndarray:
    """Row i of the positives and row i of the negatives are one group."""
    return np.tile(np.arange(n), 2)


def noise(rng, repeats: int, groups: np.ndarray, shared: float) -> np.ndarray:
    """Standard normal noise, a part `shared` of whose variance belongs to the group."""
    common = rng.normal(size=(repeats, groups.max() + 1))[:, groups]
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.normal(size=(repeats, groups.size))


def shift(auroc: float) -> float:
    """How far apart two normal classes of variance 1 are at that AUROC."""
    return ndtri(auroc) * math.sqrt(2)


def held(estimates, truth: float) -> Estimate:
    """The share of intervals that hold the truth, with its own interval."""
    return wilson(sum(e.low - 1e-12 <= truth <= e.high + 1e-12 for e in estimates), len(estimates))


def assert_covers(found: Estimate, low: float = 0.93, high: float = 0.97) -> None:
    """Coverage within the band, allowing for the simulation's own error."""
    assert found.low <= high, found
    assert found.high >= low, found


def rejections(p_values) -> Estimate:
    return wilson(int((np.asarray(p_values) <= 0.05).sum()), len(p_values))


@pytest.fixture
def drawn():
    """Tied scores of three monitors over rows in unequal groups of one or both classes."""
    rng = np.random.default_rng(1)
    labels = (rng.random(90) < 0.4).astype(int)
    return labels, np.round(rng.normal(size=(3, 90)) + labels, 1), rng.integers(0, 30, 90)


# ---------------------------------------------------------------- oracles


def plain_placements(labels, scores):
    """V10 and V01 from all pairs, O(m n)."""
    wins = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (scores[labels == 1][:, None] == scores[labels == 0])
    return wins.mean(axis=1), wins.mean(axis=0)


def plain_delong(labels, scores):
    """Covariance of the AUROCs as in the paper: S10 / m + S01 / n."""
    parts = [plain_placements(labels, row) for row in scores]
    return sum(np.cov([part[side] for part in parts]) / parts[0][side].size for side in (0, 1))


def plain_obuchowski(labels, scores, groups):
    """Variance of one AUROC with clusters as in the paper: S10 / m + S01 / n + 2 S11 / (m n)."""
    (over, under), value = plain_placements(labels, scores), roc_auc_score(labels, scores)
    positive, names = labels == 1, np.unique(groups)
    ten = np.array([(over[groups[positive] == g] - value).sum() for g in names])
    one = np.array([(under[groups[~positive] == g] - value).sum() for g in names])
    with_positive, with_negative = (np.unique(groups[side]).size for side in (positive, ~positive))
    m, n = positive.sum(), (~positive).sum()
    s10 = with_positive / ((with_positive - 1) * m) * (ten**2).sum()
    s01 = with_negative / ((with_negative - 1) * n) * (one**2).sum()
    s11 = names.size / (names.size - 1) * (ten * one).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def test_auroc_and_placements_agree_with_scikit_learn_and_with_all_pairs(drawn):
    labels, scores, _ = drawn
    assert roc.auroc(labels, scores) == pytest.approx([roc_auc_score(labels, row) for row in scores], abs=1e-12)
    value, placed = roc.placements(labels, scores[0])
    over, under = plain_placements(labels, scores[0])
    assert isinstance(value, float)
    assert placed[labels == 1] == pytest.approx(over)
    assert placed[labels == 0] == pytest.approx(under)


def test_variance_is_delongs_without_groups_and_obuchowskis_with(drawn):
    labels, scores, groups = drawn
    covariance = plain_delong(labels, scores)
    for weights in ((1, 0, 0), (1, -1, 0), (0.5, 0.5, -1)):
        found = roc.auroc_contrast(labels, scores, weights)
        assert found.se == pytest.approx(np.sqrt(np.array(weights) @ covariance @ weights))
    clustered = roc.auroc_contrast(labels, scores[:1], [1], groups)
    assert clustered.se == pytest.approx(np.sqrt(plain_obuchowski(labels, scores[0], groups)))


# The surgery data of DeLong et al. 1988: albumin and total protein in tenths, K-G score, 1 = no benefit.
# The 43 complete of 49 patients, as in SAS/STAT's example "Comparing Receiver Operating Characteristic Curves".
SURGERY = """
30 58 10 0  32 63 5 1  39 68 3 1  28 48 6 0  32 58 3 1  09 40 5 0  25 57 8 0  16 56 5 1  38 57 5 1  37 67 6 1  32 54 4 1
38 66 6 1  41 66 5 1  36 57 5 1  43 70 4 1  36 67 4 0  23 44 6 1  42 76 4 0  40 66 6 0  35 58 6 1  38 68 7 1  30 47 8 0
45 74 5 1  37 74 5 1  31 66 6 1  41 82 6 1  43 70 5 1  43 65 4 1  32 51 5 1  26 47 6 1  33 68 6 0  17 40 7 0  37 61 5 1
33 63 7 1  42 77 6 1  35 62 5 1  29 57 9 0  21 48 7 1  28 62 8 0  40 70 7 1  33 57 6 1  37 69 5 1  36 66 5 1
"""


def test_the_published_example():
    albumin, protein, kg, labels = np.array(SURGERY.split(), dtype=int).reshape(-1, 4).T
    scores = [albumin, -kg, protein]
    published = [((1, 0, 0), 0.7366, 0.0927), ((0, 1, 0), 0.7258, 0.1028), ((0, 0, 1), 0.6478, 0.1000),
                 ((1, -1, 0), 0.0108, 0.0953), ((0, -1, 1), -0.0780, 0.1046)]  # fmt: skip
    for weights, value, se in published:
        found = roc.auroc_contrast(labels, scores, weights)
        assert (found.estimate.value, found.se) == pytest.approx((value, se), abs=5e-5)


def test_many_contrasts_are_the_single_ones(drawn):
    labels, scores, groups = drawn
    before = np.vstack([np.tile(scores, (100, 1)), scores[0]])  # more than one chunk, and one monitor compared with itself
    after = np.vstack([before[:-1] + np.random.default_rng(2).normal(size=(300, 90)), scores[0]])
    found = roc.many_contrasts(labels, before, after, groups)
    assert len(found) == 301
    for i in (0, 1, 255, 256, 299, 300):
        single = roc.auroc_contrast(labels, [before[i], after[i]], DROP, groups)
        assert (*vars(found[i].estimate).values(), found[i].se, found[i].df) == pytest.approx(
            (*vars(single.estimate).values(), single.se, single.df), abs=1e-12
        )


def test_p_values_agree_with_scipys_t_tests_and_with_the_intervals(drawn):
    labels, scores, groups = drawn
    for weights in ((1, -1, 0), (0, 1, -1), (1, 0, -1)):
        found = roc.auroc_contrast(labels, scores, weights, groups)
        t = stats.t(found.df, loc=found.estimate.value, scale=found.se)
        assert (found.estimate.low, found.estimate.high) == pytest.approx(t.interval(0.95))
        assert roc.worse(found, MARGIN) == pytest.approx(t.cdf(MARGIN))
        assert roc.preserved(found, 0.3) == pytest.approx(max(t.cdf(-0.3), t.sf(0.3)))
        for margin in np.linspace(0.005, 0.5, 100):  # the interval's answer and the p values' answer are one
            inner = roc.at_level(found, 0.9)
            answer = roc.verdict(inner.value, inner.low, inner.high, margin)
            assert (answer == "worse") == (roc.worse(found, margin) < 0.05)
            assert (answer == "preserved") == (roc.preserved(found, margin) < 0.05)


def test_the_grouped_bootstrap_finds_the_same_standard_error():
    rng, labels, groups = np.random.default_rng(3), two_classes(150), pairs(150)
    before, after = (noise(rng, 1, groups, 0.6)[0] + shift(a) * labels for a in (0.9, 0.8))

    def drop(rows):
        return roc_auc_score(labels[rows], before[rows]) - roc_auc_score(labels[rows], after[rows])

    drawn = grouped_bootstrap(drop, groups, repeats=400, seed=4)
    found = roc.auroc_contrast(labels, [before, after], DROP, groups)
    assert found.estimate.value == pytest.approx(drawn.value)
    assert found.se == pytest.approx((drawn.high - drawn.low) / 3.92, rel=0.12)


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


# ---------------------------------------------------------------- coverage of contrasts


def before_and_after(rng, repeats, groups, labels, aurocs, correlation):
    first, own = (noise(rng, repeats, groups, 0.5) for _ in range(2))
    second = correlation * first + np.sqrt(1 - correlation**2) * own
    return first + shift(aurocs[0]) * labels, second + shift(aurocs[1]) * labels


@mostly_slow("the same simulation at other sizes", "pairs-100-aurocs1-0.5")
@pytest.mark.parametrize("correlation", [0.5, 0.95])
@pytest.mark.parametrize("aurocs", [(0.8, 0.8), (0.8, 0.7), (0.95, 0.85), (0.95, 0.95), (0.99, 0.96)])
@pytest.mark.parametrize("n", [50, 100, 500])
@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_paired_drops_cover(kind, n, aurocs, correlation):
    rng, labels, groups = np.random.default_rng(8), two_classes(n), pairs(n) if kind == "pairs" else np.arange(2 * n)
    found = roc.many_contrasts(labels, *before_and_after(rng, 1500, groups, labels, aurocs, correlation), groups)
    low, high = (0.915 if aurocs[0] == 0.99 and n == 50 else 0.93), (0.99 if aurocs == (0.95, 0.95) and n < 500 else 0.97)
    assert_covers(held([c.estimate for c in found], aurocs[0] - aurocs[1]), low, high)


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("failing", [0.02, 0.1])
def test_drops_cover_when_a_few_positives_fail_altogether(failing):
    rng, labels = np.random.default_rng(9), two_classes(200)
    before = rng.normal(size=(1500, 400)) + 8 * labels
    after = np.where(labels & (rng.random(before.shape) < failing), rng.normal(size=before.shape), before)
    found = roc.many_contrasts(labels, before, after)
    truth = failing / 2
    assert_covers(held([c.estimate for c in found], truth), 0.925, 0.97)
    # The control: the normal quantile on DeLong's standard error.
    normal = [Estimate(0, c.estimate.value - 1.96 * c.se, c.estimate.value + 1.96 * c.se, 0) for c in found]
    assert held(normal, truth).value < held([c.estimate for c in found], truth).value


def four_scores(rng, labels, groups, effects):
    """Before, both, first and second update: each lowers the AUROC by its effect, or both by their sum and more."""
    start = noise(rng, 1, groups, 0.5)[0]
    return [0.9 * start + np.sqrt(0.19) * noise(rng, 1, groups, 0.5)[0] + shift(0.93 - effect) * labels for effect in effects]


@mostly_slow("the same simulation at other sizes", "0.25-False")
@pytest.mark.parametrize(("both", "holds_0"), [(0.10, True), (0.25, False)])
def test_the_interaction_is_0_for_additive_effects_and_found_for_more(both, holds_0):
    rng, labels, groups = np.random.default_rng(10), two_classes(150), pairs(150)
    found = [
        roc.auroc_contrast(labels, four_scores(rng, labels, groups, (0, both, 0.04, 0.06)), INTERACTION, groups)
        for _ in range(500)
    ]
    assert_covers(held([c.estimate for c in found], both - 0.10))
    above = np.mean([c.estimate.low > 0 for c in found])
    assert above < 0.05 if holds_0 else above > 0.9


def test_averages_over_monitors_and_over_tasks_cover():
    rng, labels, groups = np.random.default_rng(11), two_classes(60), pairs(60)
    weights = np.repeat([1 / 5, -1 / 5], 5)

    def task():
        start = noise(rng, 1, groups, 0.5)[0]  # five monitors that see the same texts
        sides = [0.8 * start + 0.6 * noise(rng, 5, groups, 0.5) + shift(a) * labels for a in (0.9, 0.84)]
        return roc.auroc_contrast(labels, np.vstack(sides), weights, groups)

    tasks = [[task() for _ in range(3)] for _ in range(400)]
    assert_covers(held([t[0].estimate for t in tasks], 0.06))
    joined = [roc.combine(three) for three in tasks]
    assert_covers(held([c.estimate for c in joined], 0.06))
    assert joined[0].estimate.value == pytest.approx(np.mean([c.estimate.value for c in tasks[0]]))
    assert joined[0].se == pytest.approx(np.sqrt(sum(c.se**2 for c in tasks[0])) / 3)
    assert joined[0].estimate.n == 360
    same = roc.combine([tasks[0][0]])
    assert (same.se, same.df) == pytest.approx((tasks[0][0].se, tasks[0][0].df))


# ---------------------------------------------------------------- size and power


@mostly_slow("the same simulation at other sizes", "200")
@pytest.mark.parametrize("n", [50, 200])
def test_worse_and_preserved_keep_their_size_at_the_margin_and_have_power_beyond(n):
    rng, labels, groups = np.random.default_rng(12), two_classes(n), pairs(n)

    def drops(after):
        return roc.many_contrasts(labels, *before_and_after(rng, 2000, groups, labels, (0.9, after), 0.97), groups)

    at_margin = drops(0.9 - MARGIN)
    assert rejections([roc.preserved(c, MARGIN) for c in at_margin]).low <= 0.055
    assert rejections([roc.worse(c, MARGIN) for c in at_margin]).low <= 0.055
    assert rejections([roc.preserved(c, MARGIN) for c in drops(0.9)]).value > (0.95 if n == 200 else 0.2)
    assert rejections([roc.worse(c, MARGIN) for c in drops(0.78)]).value > 0.95


def test_holm_over_delong_keeps_the_family_wise_size():
    rng, labels, families = np.random.default_rng(13), two_classes(100), 1200
    shared = rng.normal(size=(families, 1, 200))  # the monitors of a family see the same texts
    before, after = (
        (0.6 * shared + 0.8 * rng.normal(size=(families, 8, 200)) + shift(0.85) * labels).reshape(-1, 200) for _ in range(2)
    )
    found = roc.many_contrasts(labels, before, after)
    p = np.array([2 * stats.t.sf(abs(c.estimate.value) / c.se, c.df) for c in found]).reshape(families, 8)
    adjusted = np.array([holm(row).min() for row in p])
    assert rejections(adjusted).low <= 0.055
    assert rejections(p.min(axis=1)).low > 0.15  # the control: without Holm


@mostly_slow("the same simulation at other sizes", "0.8")
@pytest.mark.parametrize("auroc", [0.9, 0.885, 0.80])
def test_with_the_rows_needed_four_in_five_are_decided(auroc):
    rng, labels = np.random.default_rng(14), two_classes(100)

    def drops(labels, repeats):
        groups = np.arange(labels.size)
        return roc.many_contrasts(labels, *before_and_after(rng, repeats, groups, labels, (0.9, auroc), 0.9), groups)

    pilot = drops(labels, 400)
    typical = roc.Contrast(Estimate(0.9 - auroc, 0, 0, 200), float(np.sqrt(np.mean([c.se**2 for c in pilot]))), 198)
    rows = roc.needed(typical, MARGIN)
    decided = [roc.verdict(*list(vars(roc.at_level(c, 0.9)).values())[:3], MARGIN) for c in drops(two_classes(rows // 2), 400)]
    assert np.mean([answer == ("worse" if auroc < 0.87 else "preserved") for answer in decided]) == pytest.approx(0.8, abs=0.08)


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


def test_nothing_changed_is_exactly_0_only_for_the_very_same_scores(drawn):
    labels, scores, groups = drawn
    same = roc.auroc_contrast(labels, [scores[0], scores[0]], DROP, groups)
    assert same == roc.many_contrasts(labels, scores[:1], scores[:1], groups)[0]
    assert (same.estimate.value, same.estimate.low, same.estimate.high, same.se) == (0, 0, 0, 0)
    assert (roc.worse(same, MARGIN), roc.preserved(same, MARGIN)) == (1, 0)
    assert roc.verdict(0, 0, 0, MARGIN) == "preserved"
    assert roc.needed(same, MARGIN) == 90
    # Interaction of updates that changed nothing, and of one that did.
    assert roc.auroc_contrast(labels, [scores[0], scores[1], scores[0], scores[1]], INTERACTION).se == 0
    assert roc.auroc_contrast(labels, scores[[0, 1, 0, 2]], INTERACTION).se > 0


def test_equal_ranks_of_other_scores_are_not_certainty(drawn):
    labels, scores, groups = drawn
    moved = roc.auroc_contrast(labels, [scores[0], 2 * scores[0] + 1], DROP, groups)
    assert moved.estimate.value == pytest.approx(0, abs=1e-15)
    # What 0 changed groups leave open, by the exact binomial.
    held_both = min(np.unique(groups[labels == k]).size for k in (0, 1))
    exact = stats.binomtest(0, held_both).proportion_ci(method="exact").high
    assert (moved.estimate.low, moved.estimate.high) == pytest.approx((-exact, exact))
    rng, n = np.random.default_rng(19), 200
    perfect = roc.auroc_contrast(two_classes(n), rng.random((2, 2 * n)) + 5 * two_classes(n), DROP)
    assert perfect.estimate.low < 0 < perfect.estimate.high
    assert roc.preserved(perfect, MARGIN) < 0.05  # 200 a class are enough to say so


def test_constant_scores_are_undefined_not_one_half(drawn):
    labels, scores, groups = drawn
    flat = np.vstack([scores[:1], np.full((1, 90), 0.5)])
    assert np.isnan(roc.auroc(labels, flat)).tolist() == [False, True]
    assert math.isnan(roc.auroc_interval(labels, flat[1], groups).low)
    for found in (roc.auroc_contrast(labels, flat, DROP), roc.many_contrasts(labels, flat[1:], flat[1:])[0]):
        assert math.isnan(found.estimate.value)
        assert math.isnan(found.se)
        assert math.isnan(roc.worse(found, MARGIN))
        assert math.isnan(roc.preserved(found, MARGIN))
        assert roc.verdict(found.estimate.value, found.estimate.low, found.estimate.high, MARGIN) == "inconclusive"
        assert roc.needed(found, MARGIN) == roc.NEVER
        assert math.isnan(roc.combine([found, found]).estimate.value)


def test_one_row_of_a_class_leaves_nearly_everything_open():
    labels, scores = np.r_[1, np.zeros(50, int)], np.random.default_rng(20).normal(size=(2, 51))
    assert roc.auroc_interval(labels, scores[0]).high - roc.auroc_interval(labels, scores[0]).low > 0.7
    found = roc.auroc_contrast(labels, scores, DROP)
    assert found.estimate.high - found.estimate.low > 1.9


@pytest.mark.parametrize(
    ("value", "low", "high", "answer"),
    [(0.1, 0.04, 0.16, "worse"), (0.01, -0.02, 0.02, "preserved"), (0.02, -0.01, 0.05, "inconclusive"),
     (-0.1, -0.16, -0.04, "inconclusive"), (math.nan, math.nan, math.nan, "inconclusive")],
)  # fmt: skip
def test_the_three_answers(value, low, high, answer):
    assert roc.verdict(value, low, high, MARGIN) == answer


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 10, 0.05 / 45, 0.05 / 1000])
def test_a_smaller_level_needs_more_rows_at_every_drop(alpha):
    drops = [0.0, 1e-6, 0.004, 0.012, 0.0291, 0.031, 0.2]
    found = [
        roc.Contrast(Estimate(drop, drop - 0.02, drop + 0.02, 200), se, 199.0) for drop in drops for se in (0.001, 0.01, 0.1)
    ]
    plain, strict = ([roc.needed(c, MARGIN, level) for c in found] for level in (0.05, alpha))
    assert all(a <= b for a, b in zip(plain, strict, strict=True))
    assert all(0 < n <= roc.NEVER for n in strict)


def test_more_rows_are_needed_nearer_the_margin_and_never_enough_at_it():
    def rows(value):
        return roc.needed(roc.Contrast(Estimate(value, 0, 0, 200), 0.02, 100), MARGIN)

    assert rows(0.0) < rows(0.01) < rows(0.025) < rows(0.0299)
    assert rows(0.0301) > rows(0.04) > rows(0.1)
    assert rows(MARGIN) == roc.NEVER
    assert rows(-0.01) == rows(0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: roc.auroc([1, 1], [0.1, 0.2], "privacy-pii test"), "privacy-pii test: all 2 labels are 1"),
        (lambda: roc.auroc([], []), "no label"),
        (lambda: roc.auroc([0, 2], [0.1, 0.2]), "neither 0 nor 1"),
        (lambda: roc.auroc([0, 1], [0.1, 0.2, 0.3]), "for 2 labels"),
        (lambda: roc.auroc([0, 1], [0.1, math.nan]), "not finite"),
        (lambda: roc.auroc_interval([0, 1], [0.1, 0.2], ["a"]), "groups"),
        (lambda: roc.auroc_contrast([0, 1], [[0.1, 0.2]], [1, -1]), "2 weights"),
        (lambda: roc.many_contrasts([0, 1], [[0.1, 0.2]], [[0.1, 0.2]] * 2), "monitors x rows"),
        (lambda: roc.combine([]), "no contrast"),
        (lambda: roc.verdict(0.0, 0.0, 0.0, 0.0), "margin"),
        (lambda: roc.quantile_interval([1, 2], 1.0), "q = 1.0"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(StudyError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_thousands_of_comparisons_are_cheap():
    rng, labels, groups = np.random.default_rng(21), two_classes(100), [f"pair {i}" for i in pairs(100)]
    before, after = rng.normal(size=(2, 1000, 200)) + labels
    start = time.process_time()
    roc.many_contrasts(labels, before, after, groups)
    assert (time.process_time() - start) / 1000 < 1e-3  # seconds a monitor; measured: 0.05 ms
