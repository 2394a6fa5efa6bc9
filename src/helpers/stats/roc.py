"""Rankings and alarms with their intervals: AUROC, and rates at a frozen threshold; what compares AUROCs is in `paired_aurocs`.

Everything about AUROC rests on one number per test row, its influence (DeLong, DeLong and Clarke-Pearson 1988): a combination
of AUROCs over the same rows has the same combination of influences, and rows of one group are summed before squaring
(Obuchowski 1997). Nothing is random. Many monitors at once are arrays monitors x rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import special, stats

from helpers.errors import StudyError
from helpers.stats.intervals import (
    Estimate,
    Values,
    group_codes,
    group_scores,
    jackknife,
    newcombe_paired,
    rate_interval,
    square_and_add,
    unseen_share,
    wilson_bounds,
)

RATES = {"5": 0.05, "1": 0.01}  # false-positive rates on validation, by their name in percent

Scores = Float[np.ndarray, "*k n"]


@dataclass(frozen=True)
class Design:
    """What all monitors of one test set share: which rows are positive, and how rows lie in groups."""

    positive: Bool[np.ndarray, " n"]
    order: np.ndarray  # rows sorted by group
    starts: np.ndarray  # where each group begins in that order
    kind: np.ndarray  # per group: 1 positives only, 2 negatives only, 3 both

    @property
    def counts(self) -> np.ndarray:
        """Groups that hold a positive, groups that hold a negative, and all groups."""
        return np.array([(self.kind & 1 > 0).sum(), (self.kind & 2 > 0).sum(), self.kind.size])

    def sums(self, rows: Scores) -> Scores:
        """The sum of each group's rows."""
        return np.add.reduceat(rows[..., self.order], self.starts, axis=-1)


def positive_rows(labels: Values, name: str) -> Bool[np.ndarray, " n"]:
    """Which rows are positive; refused unless the labels are 0 and 1 and both are there."""
    array = np.asarray(labels)
    if not np.isin(array, (0, 1)).all():
        raise StudyError(f"{name}: a label is neither 0 nor 1; pass 1 for what the monitor is to flag")
    if array.size == 0 or (array == array[0]).all():
        found = f"all {array.size} labels are {array[0]:g}" if array.size else "no label is given"
        raise StudyError(f"{name}: {found}; an AUROC needs rows of both classes")
    return array == 1


def checked_scores(scores: Values, n: int, name: str) -> Scores:
    """The scores as floats, rows last; refused unless they are finite and as many as the labels."""
    array = np.asarray(scores, dtype=float) + 0.0  # -0.0 and 0.0 are the same score
    if array.shape[-1:] != (n,):
        raise StudyError(f"{name}: scores of shape {array.shape} for {n} labels; pass one score per row, rows last")
    if not np.isfinite(array).all():
        raise StudyError(f"{name}: {int((~np.isfinite(array)).sum())} scores are not finite; find the monitor that made them")
    return array


def design_of(positive: np.ndarray, groups: Values | None) -> Design:
    """How the rows of a test set lie in classes and groups."""
    codes = group_codes(groups, positive.size)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    holds = [np.add.reduceat(side[order].astype(int), starts) > 0 for side in (positive, ~positive)]
    return Design(positive, order, starts, holds[0] + 2 * holds[1])


# ---------------------------------------------------------------- AUROC


def auroc(labels: Values, scores: Scores, name: str = "labels") -> float | np.ndarray:
    """The probability that a positive outscores a negative, ties counting one half; nan where all scores are tied.

    `scores` of shape [n] give one number, [k n] one per monitor. Error: only one class in `labels`; `name` = task and split.
    """
    return placements(labels, scores, name)[0]


def placements(labels: Values, scores: Scores, name: str = "labels") -> tuple[float | np.ndarray, Scores]:
    """AUROC, and per row the share of the other class that it is ranked rightly against, ties one half (V10 and V01 of DeLong).

    From midranks in O(n log n) (Sun and Xu 2014): (rank among all - rank among its own class) / size of the other class, for
    negatives counted from the top. The mean over either class is the AUROC. nan where all scores of a monitor are tied.
    """
    positive = positive_rows(labels, name)
    values = _placed(positive, checked_scores(scores, positive.size, name))
    value = values[..., positive].mean(axis=-1)
    return (float(value) if value.ndim == 0 else value), values


def midranks(scores: Scores) -> Scores:
    """Ranks from 1 along the last axis, ties at the middle of their places, nan where one is nan.

    As scipy's `rankdata`, whose checks take longer than the ranking of a few hundred rows.
    """
    order, places = np.argsort(scores, axis=-1), np.arange(scores.shape[-1])
    ordered, begins = np.take_along_axis(scores, order, axis=-1), np.ones(scores.shape, dtype=bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.roll(begins, -1, axis=-1)
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=-1)
    last = np.minimum.accumulate(np.where(ends, places, places.size)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return np.where(np.isnan(scores).any(axis=-1, keepdims=True), np.nan, ranks)


def _placed(positive: np.ndarray, scores: Scores) -> Scores:
    """Placements of checked input. Midranks are halves, exact in float64 up to 2^52 rows."""
    ranks, values = midranks(scores), np.empty(scores.shape)
    for side, others in ((positive, ~positive), (~positive, positive)):
        values[..., side] = (ranks[..., side] - midranks(scores[..., side])) / others.sum()
    values[..., ~positive] = 1 - values[..., ~positive]
    return np.where(np.ptp(scores, axis=-1, keepdims=True) == 0, np.nan, values)


def influences(positive: np.ndarray, scores: Scores) -> tuple[np.ndarray, Scores]:
    """AUROC and what each row adds to its error: (V - AUROC) / size of the row's class; these sum to 0 over each class."""
    values = _placed(positive, scores)
    value = values[..., positive].mean(axis=-1)
    return value, (values - value[..., None]) / np.where(positive, positive.sum(), (~positive).sum())


def influence_variance(influence: Scores, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the sum of influences over groups, and its degrees of freedom.

    Obuchowski's variance; without groups it is DeLong's. df is the smallest of G - 1, Welch's for the two classes, and
    2 var^2 / sum (u_g^2 - mean u^2)^2: with one deviating group in 200 the variance itself is hardly known, df is 2, not 199.
    """
    inside = design.sums(np.where(design.positive, influence, 0.0))
    outside = design.sums(np.where(design.positive, 0.0, influence))
    few = np.maximum(design.counts - 1, 1)
    own, other, both = ((x * y).sum(axis=-1) for x, y in ((inside, inside), (outside, outside), (inside, outside)))
    own, other, both = own * (1 + 1 / few[0]), other * (1 + 1 / few[1]), both * (1 + 1 / few[2])
    variance, squares, rough = own + other + 2 * both, (inside + outside) ** 2, 0.0
    for kind in np.unique(design.kind):
        same = squares[..., design.kind == kind]
        rough = rough + ((same - same.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 where nothing varies: fmin passes over it
        welch = (own + other) ** 2 / (own**2 / few[0] + other**2 / few[1])
        return variance, np.fmin(np.fmin(welch, 2 * variance**2 / rough), few[2])


def auroc_interval(
    labels: Values, scores: Scores, groups: Values | None = None, level: float = 0.95, name: str = "labels"
) -> Estimate:
    """The AUROC of one monitor with its interval; groups are matched pairs, templates or clusters, of one class or of both.

    Wilson's interval on the effective sample size A (1 - A) / var * (z / t)^2, never above 4 rows per row of the rarer class:
    never of zero width, and inside 0 .. 1. At 0 or 1, or with a class in one group only, it is that of the rarer class's
    groups. Measured coverage of nominal 95 %, 20 to 500 rows a class, single rows, pairs, clusters of 5 to 10, 5 tied levels,
    unequal variances: 94.5 to 97.5 % at AUROC 0.6 to 0.95, 95.2 to 98.7 % at 0.99; DeLong's variance on the logit scale
    covers down to 85 % there. Constant scores: nan.
    """
    positive = positive_rows(labels, name)
    value, influence = influences(positive, np.atleast_1d(checked_scores(scores, positive.size, name)))
    if np.isnan(value):
        return Estimate(np.nan, np.nan, np.nan, positive.size)
    design = design_of(positive, groups)
    (variance, df), units = influence_variance(influence, design), design.counts[:2].min()
    size, z = float(units), special.ndtri((1 + level) / 2)
    if units > 1 and variance > 0:
        rows = value * (1 - value) / variance * (z / special.stdtrit(df, (1 + level) / 2)) ** 2
        size = min(float(rows), 4.0 * min(positive.sum(), (~positive).sum()))
    return Estimate(float(value), *wilson_bounds(float(value), size, level), positive.size)


def auroc_errors(labels: Values, scores: Scores, groups: Values | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The AUROC of each of k monitors, its standard error and degrees of freedom, to be held against a floor by Student's t.

    A perfect AUROC: what an unseen share of groups could do, as the standard error of a 95 % interval. Constant scores: nan.
    """
    positive = positive_rows(labels, "labels")
    value, influence = influences(positive, checked_scores(scores, positive.size, "labels"))
    design = design_of(positive, groups)
    (variance, df), units = influence_variance(influence, design), int(design.counts[:2].min())
    flat, most = (variance < 1e-24) | (units < 2), max(units - 1, 1)
    bound = unseen_share(units) / special.stdtrit(most, 0.975)
    se = np.where(flat, bound, np.sqrt(np.maximum(variance, 0.0)))
    return value, np.where(np.isnan(value), np.nan, se), np.where(flat, most, df)


# ---------------------------------------------------------------- alarms at a frozen threshold


def rates(
    labels: Values, scores: Scores, threshold: float, groups: Values | None = None, level: float = 0.95
) -> tuple[Estimate, Estimate]:
    """TPR and FPR of one monitor that flags what scores above `threshold`, with `rate_interval`; a class without rows: nan."""
    positive, units = np.asarray(labels) == 1, group_codes(groups, len(labels))
    flags = checked_scores(scores, positive.size, "rates") > threshold
    tpr, fpr = (rate_interval(flags[side], units[side], level) for side in (positive, ~positive))
    return tpr, fpr


def rate_change(before: Values, after: Values, groups: Values | None = None, level: float = 0.95) -> Estimate:
    """The change, after - before, of one rate of flags over the same rows (of one class); never of zero width.

    Newcombe's paired interval (1998, method 10); with groups the two rates' intervals on their effective sample sizes are
    squared and added with the correlation of the group scores, which is corrected for continuity as there. Measured, nominal
    95 %: at least 94.7 % at rates 0.01 to 0.99; 95 to 98 % where a tenth of the rows change, up to 100 % where few do.
    """
    units = group_codes(groups, len(before))
    if np.unique(units).size == len(units):
        return newcombe_paired(before, after, level)
    old, new = (rate_interval(side, units, level) for side in (before, after))
    first, second = (group_scores(side, units) - rate.value for side, rate in ((before, old), (after, new)))
    size = np.sqrt((first @ first) * (second @ second))
    phi = float(first @ second / size) if size > 1e-12 else 0.0
    if phi > 0:
        phi = max(phi - 0.5 / (first.size * np.sqrt(old.value * (1 - old.value) * new.value * (1 - new.value))), 0.0)
    return square_and_add(old, new, phi)


def quantile_interval(values: Values, q: float, level: float = 0.95) -> Estimate:
    """The quantile `q` with its distribution-free interval between order statistics, e.g. of a threshold (David, Nagaraja 2003).

    Ends X_(l) and X_(u) with P(B < l) and P(B >= u) at most alpha / 2 each, B ~ Binomial(n, q): exact, at least the level.
    With too few values an end would lie beyond the sample and is cut to its range: the upper end of the 95 % quantile holds
    97.5 % only from 72 values on, of the 99 % quantile from 368.
    """
    ordered = np.sort(np.asarray(values, dtype=float).ravel())
    if not 0 < q < 1 or not np.isfinite(ordered).all():
        raise StudyError(f"quantile_interval: q = {q} of {ordered.size} values; pass 0 < q < 1 and finite values")
    if ordered.size == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    low, high = stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], ordered.size, q).astype(int)
    ends = ordered[max(low - 1, 0)], ordered[min(high, ordered.size - 1)]
    return Estimate(float(np.quantile(ordered, q)), float(ends[0]), float(ends[1]), ordered.size)


def spearman(x: Values, y: Values, groups: Values | None = None, level: float = 0.95) -> Estimate:
    """Spearman's rank correlation with an interval over groups: the jackknife of Fisher's z, t with G - 1 degrees of freedom.

    Chosen by simulation: covers 94 to 97 % with 8 to 200 groups, where the grouped bootstrap's percentiles cover 90 % with 8
    groups and Fisher's z over rows 57 %. At +-1, the interval that an unseen share of groups leaves. Constant x or y: nan.
    """
    pair, codes = np.array([x, y], dtype=float), group_codes(groups, len(x))
    count = int(codes.max(initial=-1)) + 1

    def correlation(rows: np.ndarray) -> float:
        ranks = midranks(pair[:, rows])
        ranks = ranks - ranks.mean(axis=-1, keepdims=True)
        size = np.sqrt((ranks**2).sum(axis=-1).prod())
        return float(np.clip(ranks[0] @ ranks[1] / size, -1, 1)) if size > 0 else np.nan

    value = correlation(codes >= 0)
    if not np.isfinite(value) or count < 3:
        return Estimate(value, np.nan, np.nan, codes.size)
    if abs(value) > 1 - 1e-12:
        share = unseen_share(count, level)
        return Estimate(value, value - share * (value + 1), value + share * (1 - value), codes.size)
    limit = 1 - 1e-6  # a sample that is perfect without one group has no finite z
    without = [np.arctanh(np.clip(correlation(codes != group), -limit, limit)) for group in range(count)]
    z = jackknife(np.arctanh(value), without, codes.size, level)
    return Estimate(value, float(np.tanh(z.low)), float(np.tanh(z.high)), codes.size)
