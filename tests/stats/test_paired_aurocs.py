"""AUROCs of the same texts compared: equality with plain oracles, coverage on planted truth, size and power."""

import math
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from support.simulated import assert_covers, held, noise, pairs, plain_placements, rejections, shift, tied_scores, two_classes
from support.tiers import mostly_slow

from helpers.errors import StudyError
from helpers.stats import paired_aurocs
from helpers.stats.intervals import MARGINS, Estimate, grouped_bootstrap
from helpers.stats.p_values import holm

MARGIN = MARGINS["auroc"]
DROP = (1, -1)
INTERACTION = (-1, -1, 1, 1)  # before, both, first, second


@pytest.fixture
def drawn():
    return tied_scores()


# ---------------------------------------------------------------- oracles


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


def test_variance_is_delongs_without_groups_and_obuchowskis_with(drawn):
    labels, scores, groups = drawn
    covariance = plain_delong(labels, scores)
    for weights in ((1, 0, 0), (1, -1, 0), (0.5, 0.5, -1)):
        found = paired_aurocs.auroc_contrast(labels, scores, weights, guarded=False)
        assert found.se == pytest.approx(np.sqrt(np.array(weights) @ covariance @ weights))
    clustered = paired_aurocs.auroc_contrast(labels, scores[:1], [1], groups)
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
        found = paired_aurocs.auroc_contrast(labels, scores, weights, guarded=False)
        assert (found.estimate.value, found.se) == pytest.approx((value, se), abs=5e-5)


def test_many_contrasts_are_the_single_ones(drawn):
    labels, scores, groups = drawn
    before = np.vstack([np.tile(scores, (100, 1)), scores[0]])  # more than one chunk, and one monitor compared with itself
    after = np.vstack([before[:-1] + np.random.default_rng(2).normal(size=(300, 90)), scores[0]])
    found = paired_aurocs.many_contrasts(labels, before, after, groups)
    assert len(found) == 301
    for i in (0, 1, 255, 256, 299, 300):
        single = paired_aurocs.auroc_contrast(labels, [before[i], after[i]], DROP, groups)
        assert (*vars(found[i].estimate).values(), found[i].se, found[i].df) == pytest.approx(
            (*vars(single.estimate).values(), single.se, single.df), abs=1e-12
        )


def test_p_values_agree_with_scipys_t_tests_and_with_the_intervals(drawn):
    labels, scores, groups = drawn
    for weights in ((1, -1, 0), (0, 1, -1), (1, 0, -1)):
        found = paired_aurocs.auroc_contrast(labels, scores, weights, groups)
        t = stats.t(found.df, loc=found.estimate.value, scale=found.se)
        assert (found.estimate.low, found.estimate.high) == pytest.approx(t.interval(0.95))
        assert paired_aurocs.worse(found, MARGIN) == pytest.approx(t.cdf(MARGIN))
        assert paired_aurocs.preserved(found, 0.3) == pytest.approx(max(t.cdf(-0.3), t.sf(0.3)))
        for margin in np.linspace(0.005, 0.5, 100):  # the interval's answer and the p values' answer are one
            inner = paired_aurocs.auroc_contrast(labels, scores, weights, groups, 0.9).estimate
            assert (inner.low > margin) == (paired_aurocs.worse(found, margin) < 0.05)
            assert (-margin < inner.low and inner.high < margin) == (paired_aurocs.preserved(found, margin) < 0.05)


def test_the_grouped_bootstrap_finds_the_same_standard_error():
    rng, labels, groups = np.random.default_rng(3), two_classes(150), pairs(150)
    before, after = (noise(rng, 1, groups, 0.6)[0] + shift(a) * labels for a in (0.9, 0.8))

    def drop(rows):
        return roc_auc_score(labels[rows], before[rows]) - roc_auc_score(labels[rows], after[rows])

    drawn = grouped_bootstrap(drop, groups, repeats=400, seed=4)
    found = paired_aurocs.auroc_contrast(labels, [before, after], DROP, groups)
    assert found.estimate.value == pytest.approx(drawn.value)
    assert found.se == pytest.approx((drawn.high - drawn.low) / 3.92, rel=0.12)


# ---------------------------------------------------------------- coverage


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
    found = paired_aurocs.many_contrasts(labels, *before_and_after(rng, 1500, groups, labels, aurocs, correlation), groups)
    low, high = (0.915 if aurocs[0] == 0.99 and n == 50 else 0.93), (0.99 if aurocs == (0.95, 0.95) and n < 500 else 0.97)
    assert_covers(held([c.estimate for c in found], aurocs[0] - aurocs[1]), low, high)


@mostly_slow("the same simulation at other sizes")
@pytest.mark.parametrize("failing", [0.02, 0.1])
def test_drops_cover_when_a_few_positives_fail_altogether(failing):
    rng, labels = np.random.default_rng(9), two_classes(200)
    before = rng.normal(size=(1500, 400)) + 8 * labels
    after = np.where(labels & (rng.random(before.shape) < failing), rng.normal(size=before.shape), before)
    found = paired_aurocs.many_contrasts(labels, before, after)
    truth = failing / 2
    assert_covers(held([c.estimate for c in found], truth), 0.925, 0.97)
    # The control: the normal quantile on DeLong's standard error.
    normal = [Estimate(0, c.estimate.value - 1.96 * c.se, c.estimate.value + 1.96 * c.se, 0) for c in found]
    assert held(normal, truth).value < held([c.estimate for c in found], truth).value


@mostly_slow("the same simulation at other sizes", "38")
@pytest.mark.parametrize("n", [20, 38, 49])
def test_few_pairs_of_which_some_fail_outright_are_covered_and_not_called_preserved(n):
    """Plain DeLong sees a failure only where one fell among the pairs; the guard reckons with one that did not."""
    rng, labels, groups = np.random.default_rng(22), two_classes(n), pairs(n)
    before = noise(rng, 1500, groups, 0.6) + shift(0.97) * labels
    moved = before + 0.15 * rng.normal(size=before.shape)
    after = np.where(labels & (rng.random(before.shape) < 0.05), -10.0, moved)
    truth = 0.97 - 0.95 * float(stats.norm.cdf(shift(0.97) / np.sqrt(2 * (1 + 0.15**2 / 2))))
    plain, guarded = (paired_aurocs.many_contrasts(labels, before, after, groups, guarded=one) for one in (False, True))
    assert held([c.estimate for c in plain], truth).high < 0.95  # the fault, smaller with more pairs
    assert held([c.estimate for c in guarded], truth).high >= 0.95
    assert rejections([paired_aurocs.preserved(c, MARGIN) for c in plain]).low > 0.055
    assert rejections([paired_aurocs.preserved(c, MARGIN) for c in guarded]).low <= 0.055


def test_the_guard_ends_where_groups_are_many_and_leaves_single_aurocs_alone():
    rng = np.random.default_rng(23)
    for n, same in ((49, False), (50, True)):
        labels, scores = two_classes(n), rng.normal(size=(2, 2 * n)) + two_classes(n)
        both = [paired_aurocs.auroc_contrast(labels, scores, DROP, pairs(n), guarded=one).se for one in (False, True)]
        assert (both[0] == both[1]) == same
        assert both[1] ** 2 - both[0] ** 2 == pytest.approx(0.0 if same else 1 / n**2)
        one = [paired_aurocs.auroc_contrast(labels, scores[:1], [1], pairs(n), guarded=g).se for g in (False, True)]
        assert one[0] == one[1]


def four_scores(rng, labels, groups, effects):
    """Before, both, first and second update: each lowers the AUROC by its effect, or both by their sum and more."""
    start = noise(rng, 1, groups, 0.5)[0]
    return [0.9 * start + np.sqrt(0.19) * noise(rng, 1, groups, 0.5)[0] + shift(0.93 - effect) * labels for effect in effects]


@mostly_slow("the same simulation at other sizes", "0.25-False")
@pytest.mark.parametrize(("both", "holds_0"), [(0.10, True), (0.25, False)])
def test_the_interaction_is_0_for_additive_effects_and_found_for_more(both, holds_0):
    rng, labels, groups = np.random.default_rng(10), two_classes(150), pairs(150)
    found = [
        paired_aurocs.auroc_contrast(labels, four_scores(rng, labels, groups, (0, both, 0.04, 0.06)), INTERACTION, groups)
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
        return paired_aurocs.auroc_contrast(labels, np.vstack(sides), weights, groups)

    tasks = [[task() for _ in range(3)] for _ in range(400)]
    assert_covers(held([t[0].estimate for t in tasks], 0.06))
    joined = [paired_aurocs.combine(three) for three in tasks]
    assert_covers(held([c.estimate for c in joined], 0.06))
    assert joined[0].estimate.value == pytest.approx(np.mean([c.estimate.value for c in tasks[0]]))
    assert joined[0].se == pytest.approx(np.sqrt(sum(c.se**2 for c in tasks[0])) / 3)
    assert joined[0].estimate.n == 360
    same = paired_aurocs.combine([tasks[0][0]])
    assert (same.se, same.df) == pytest.approx((tasks[0][0].se, tasks[0][0].df))


# ---------------------------------------------------------------- size and power


@mostly_slow("the same simulation at other sizes", "200")
@pytest.mark.parametrize("n", [50, 200])
def test_worse_and_preserved_keep_their_size_at_the_margin_and_have_power_beyond(n):
    rng, labels, groups = np.random.default_rng(12), two_classes(n), pairs(n)

    def drops(after):
        return paired_aurocs.many_contrasts(labels, *before_and_after(rng, 2000, groups, labels, (0.9, after), 0.97), groups)

    at_margin = drops(0.9 - MARGIN)
    assert rejections([paired_aurocs.preserved(c, MARGIN) for c in at_margin]).low <= 0.055
    assert rejections([paired_aurocs.worse(c, MARGIN) for c in at_margin]).low <= 0.055
    assert rejections([paired_aurocs.preserved(c, MARGIN) for c in drops(0.9)]).value > (0.95 if n == 200 else 0.2)
    assert rejections([paired_aurocs.worse(c, MARGIN) for c in drops(0.78)]).value > 0.95


def test_holm_over_delong_keeps_the_family_wise_size():
    rng, labels, families = np.random.default_rng(13), two_classes(100), 1200
    shared = rng.normal(size=(families, 1, 200))  # the monitors of a family see the same texts
    before, after = (
        (0.6 * shared + 0.8 * rng.normal(size=(families, 8, 200)) + shift(0.85) * labels).reshape(-1, 200) for _ in range(2)
    )
    found = paired_aurocs.many_contrasts(labels, before, after)
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
        sides = before_and_after(rng, repeats, groups, labels, (0.9, auroc), 0.9)
        return paired_aurocs.many_contrasts(labels, *sides, groups, guarded=False)

    pilot = drops(labels, 400)
    typical = paired_aurocs.Contrast(Estimate(0.9 - auroc, 0, 0, 200), float(np.sqrt(np.mean([c.se**2 for c in pilot]))), 198)
    rows = paired_aurocs.needed(typical, MARGIN)
    test = paired_aurocs.worse if auroc < 0.87 else paired_aurocs.preserved
    decided = [test(c, MARGIN) < 0.05 for c in drops(two_classes(rows // 2), 400)]
    assert np.mean(decided) == pytest.approx(0.8, abs=0.08)


# ---------------------------------------------------------------- edges


def test_nothing_changed_is_exactly_0_only_for_the_very_same_scores(drawn):
    labels, scores, groups = drawn
    same = paired_aurocs.auroc_contrast(labels, [scores[0], scores[0]], DROP, groups)
    assert same == paired_aurocs.many_contrasts(labels, scores[:1], scores[:1], groups)[0]
    assert (same.estimate.value, same.estimate.low, same.estimate.high, same.se) == (0, 0, 0, 0)
    assert (paired_aurocs.worse(same, MARGIN), paired_aurocs.preserved(same, MARGIN)) == (1, 0)
    assert paired_aurocs.needed(same, MARGIN) == 90
    # Interaction of updates that changed nothing, and of one that did.
    assert paired_aurocs.auroc_contrast(labels, [scores[0], scores[1], scores[0], scores[1]], INTERACTION).se == 0
    assert paired_aurocs.auroc_contrast(labels, scores[[0, 1, 0, 2]], INTERACTION).se > 0


def test_equal_ranks_of_other_scores_are_not_certainty(drawn):
    labels, scores, groups = drawn
    moved = paired_aurocs.auroc_contrast(labels, [scores[0], 2 * scores[0] + 1], DROP, groups)
    assert moved.estimate.value == pytest.approx(0, abs=1e-15)
    # What 0 changed groups leave open, by the exact binomial.
    held_both = min(np.unique(groups[labels == k]).size for k in (0, 1))
    exact = stats.binomtest(0, held_both).proportion_ci(method="exact").high
    assert (moved.estimate.low, moved.estimate.high) == pytest.approx((-exact, exact))
    rng, n = np.random.default_rng(19), 200
    perfect = paired_aurocs.auroc_contrast(two_classes(n), rng.random((2, 2 * n)) + 5 * two_classes(n), DROP)
    assert perfect.estimate.low < 0 < perfect.estimate.high
    assert paired_aurocs.preserved(perfect, MARGIN) < 0.05  # 200 a class are enough to say so


def test_contrasts_of_constant_scores_are_undefined(drawn):
    labels, scores, _ = drawn
    flat = np.vstack([scores[:1], np.full((1, 90), 0.5)])
    for found in (paired_aurocs.auroc_contrast(labels, flat, DROP), paired_aurocs.many_contrasts(labels, flat[1:], flat[1:])[0]):
        assert math.isnan(found.estimate.value)
        assert math.isnan(found.se)
        assert math.isnan(paired_aurocs.worse(found, MARGIN))
        assert math.isnan(paired_aurocs.preserved(found, MARGIN))
        assert paired_aurocs.needed(found, MARGIN) == paired_aurocs.NEVER
        assert math.isnan(paired_aurocs.combine([found, found]).estimate.value)


def test_a_drop_over_one_row_of_a_class_leaves_nearly_everything_open():
    labels, scores = np.r_[1, np.zeros(50, int)], np.random.default_rng(20).normal(size=(2, 51))
    found = paired_aurocs.auroc_contrast(labels, scores, DROP)
    assert found.estimate.high - found.estimate.low > 1.9


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 10, 0.05 / 45, 0.05 / 1000])
def test_a_smaller_level_needs_more_rows_at_every_drop(alpha):
    drops = [0.0, 1e-6, 0.004, 0.012, 0.0291, 0.031, 0.2]
    found = [
        paired_aurocs.Contrast(Estimate(drop, drop - 0.02, drop + 0.02, 200), se, 199.0)
        for drop in drops
        for se in (0.001, 0.01, 0.1)
    ]
    plain, strict = ([paired_aurocs.needed(c, MARGIN, level) for c in found] for level in (0.05, alpha))
    assert all(a <= b for a, b in zip(plain, strict, strict=True))
    assert all(0 < n <= paired_aurocs.NEVER for n in strict)


def test_more_rows_are_needed_nearer_the_margin_and_never_enough_at_it():
    def rows(value):
        return paired_aurocs.needed(paired_aurocs.Contrast(Estimate(value, 0, 0, 200), 0.02, 100), MARGIN)

    assert rows(0.0) < rows(0.01) < rows(0.025) < rows(0.0299)
    assert rows(0.0301) > rows(0.04) > rows(0.1)
    assert rows(MARGIN) == paired_aurocs.NEVER
    assert rows(-0.01) == rows(0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paired_aurocs.auroc_contrast([0, 1], [[0.1, 0.2]], [1, -1]), "2 weights"),
        (lambda: paired_aurocs.many_contrasts([0, 1], [[0.1, 0.2]], [[0.1, 0.2]] * 2), "monitors x rows"),
        (lambda: paired_aurocs.combine([]), "no contrast"),
    ],
)
def test_a_bad_contrast_is_refused_in_one_line(call, words):
    with pytest.raises(StudyError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_thousands_of_comparisons_are_cheap():
    rng, labels, groups = np.random.default_rng(21), two_classes(100), [f"pair {i}" for i in pairs(100)]
    before, after = rng.normal(size=(2, 1000, 200)) + labels
    start = time.process_time()
    paired_aurocs.many_contrasts(labels, before, after, groups)
    assert (time.process_time() - start) / 1000 < 1e-3  # seconds a monitor; measured: 0.05 ms
