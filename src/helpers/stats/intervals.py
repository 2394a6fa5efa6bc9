"""Intervals of rates, means and differences. Pure arithmetic on numpy arrays.

The unit is the group (matched pair, template, document), never the row: rows of one group are first summed into one score.
Intervals are closed forms, so nothing here is random except `grouped_bootstrap`, which takes a seed. A percentile bootstrap of
20 skewed values was measured to cover 91 % instead of 95 %, and of 3 seeds that differ 70 to 83 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from helpers.errors import StudyError

# How much worse still counts as "the same"; set before any result was looked at. Differences, except FPR, a ratio to the
# nominal rate, and perplexity, a share of the value before. nll: nats a token, a seventh of the 0.7 that the benign update was
# seen to learn before this margin was set. interaction: of an AUROC, a third of its margin, since it is what is left of three.
MARGINS = {
    **{"auroc": 0.03, "tpr": 0.05, "fpr_ratio": 2.0, "refusal": 0.05, "perplexity": 0.05},
    **{"nll": 0.1, "interaction": 0.01},
}

MANY = 50  # groups, from which on a cubic correction of skewness is trusted
RARE = 10  # groups that differ, below which a mean of differences gets exact ends

Bounds = tuple[float, float]
Values = Sequence[Any] | np.ndarray  # one a row: numbers, labels, or the names of groups


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the number of rows it rests on; nan bounds mean that the data allow no interval."""

    value: float
    low: float
    high: float
    n: int


def _numbers(values: Values, name: str = "values") -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise StudyError(f"{name}: {bad} of {array.size} are not finite; count failures apart and pass numbers only")
    return array


def _pair(before: Values, after: Values) -> tuple[np.ndarray, np.ndarray]:
    first, second = _numbers(before, "before"), _numbers(after, "after")
    if first.size != second.size:
        raise StudyError(f"paired values: {first.size} before and {second.size} after; pass the same items in the same order")
    return first, second


def _binary(labels: Values, name: str = "labels") -> np.ndarray:
    array = _numbers(labels, name)
    if not np.isin(array, (0, 1)).all():
        raise StudyError(f"{name}: a value is neither 0 nor 1; pass one yes or no per item")
    return array


def group_codes(groups: Values | None, n: int) -> np.ndarray:
    """The group number of each of `n` rows, 0 .. G-1; without groups every row is its own."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise StudyError(f"groups: {len(groups)} given for {n} rows; pass one per row")
    return np.unique(np.asarray(groups), return_inverse=True)[1].ravel()


def group_scores(values: Values, groups: Values | None = None) -> np.ndarray:
    """One score per group, whose mean is the mean over rows and whose scatter is the uncertainty of that mean.

    score_g = m + (G / n) * sum over the rows i of g of (y_i - m): the linearised ratio of sums (Liang and Zeger 1986).
    """
    rows = _numbers(values)
    codes = group_codes(groups, rows.size)
    if rows.size == 0:
        return rows
    sums = np.bincount(codes, weights=rows - rows.mean())
    return rows.mean() + sums * (sums.size / rows.size)


def wilson_bounds(p: float, n: float, level: float) -> Bounds:
    """Ends of Wilson's score interval of a rate `p` seen on `n` rows; `n` may be an effective, broken number."""
    z2 = special.ndtri((1 + level) / 2) ** 2
    centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding may leave the low end of 0/n a hair above 0, which would miss a true rate of 0.
    return (0.0 if p == 0 else float(max(centre - half, 0.0))), (1.0 if p == 1 else float(min(centre + half, 1.0)))


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """The rate `successes / n` with Wilson's score interval (Wilson 1927); never of zero width, nan when n = 0."""
    if not 0 <= successes <= n:
        raise StudyError(f"wilson: {successes} successes of {n}; the count must lie in 0 .. n")
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return Estimate(successes / n, *wilson_bounds(successes / n, n, level), int(n))


def unseen_share(units: int, level: float = 0.95) -> float:
    """The share of all units that may still differ when `units` agree: 1 - (alpha/2)^(1/G), exact binomial."""
    return 1 - ((1 - level) / 2) ** (1 / units)


def _constant_bounds(value: float, units: int, bounds: Bounds | None, level: float) -> Bounds:
    """Where the mean can be when all units agree but an unseen share of others may not."""
    if bounds is None or units == 0:
        return float("nan"), float("nan")
    share = unseen_share(units, level)
    return value - share * (value - bounds[0]), value + share * (bounds[1] - value)


def _skewed_t(scores: np.ndarray, level: float) -> Bounds:
    """Student's interval, each end widened where one that is corrected for skewness reaches further.

    From `MANY` groups on by Hall's (1992) cubic transform; below, where that may invent mass which no group has, by its linear
    part alone, s g (1 + 2 t^2) / (6 n) with g the sample skewness (Johnson 1978), which is never above s / 1.5.
    """
    n, mean, error = scores.size, scores.mean(), stats.sem(scores)
    t = stats.t.ppf((1 + level) / 2, n - 1)
    ends = np.array([mean - t * error, mean + t * error])
    skew = float(stats.skew(scores, bias=False)) if n > 2 else 0.0
    if abs(skew) < 1e-6:
        return float(ends[0]), float(ends[1])
    if n < MANY:
        other = ends + scores.std(ddof=1) * skew * (1 + 2 * t**2) / (6 * n)
    else:
        quantiles = np.array([t, -t]) / np.sqrt(n)
        other = mean - scores.std(ddof=1) * 3 / skew * (np.cbrt(1 + skew * (quantiles - skew / (6 * n))) - 1)
    return float(min(ends[0], other[0])), float(max(ends[1], other[1]))


def scores_interval(scores: np.ndarray, n: int, level: float, bounds: Bounds | None) -> Estimate:
    """The mean of one score a group with its interval, as `mean_interval` says; n is the number of rows behind the scores."""
    value = float(scores.mean()) if scores.size else float("nan")
    if scores.size == 0 or np.ptp(scores) <= 1e-12 * max(1.0, abs(value)):
        low, high = _constant_bounds(value, scores.size, bounds, level)
    else:
        low, high = _skewed_t(scores, level)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value, low, high, n)


def exact_ends(scores: np.ndarray, bounds: Bounds, level: float = 0.95) -> Bounds | None:
    """Exact ends of the mean of scores within `bounds` of which few differ from 0 (or few from an end); None where many do.

    Clopper and Pearson (1934) on the summed gains and losses of the G groups, as shares of the range: each counts at most 1. Of
    two-sided scores (paired differences) low = L(gains) - U(losses) and high = U(gains) - L(losses), four fifths of an end's
    error going to U and a fifth to L: together at least the level (Bonferroni). One-sided scores (shares) are one count.
    """
    size, tail = scores.size, (1 - level) / 2
    up, down = np.clip(scores, 0, None).sum() / bounds[1], np.clip(scores, None, 0).sum() / min(bounds[0], -1e-300)
    if bounds[0] == 0:
        few = min((scores != 0).sum(), (scores != bounds[1]).sum()) < RARE
        return (bounds[1] * _least(up, size, tail), bounds[1] * _most(up, size, tail)) if few else None
    if (scores != 0).sum() >= RARE:
        return None
    least, most = (np.array([f(count, size, part * tail) for count in (up, down)]) for f, part in ((_least, 0.2), (_most, 0.8)))
    return float(bounds[1] * least[0] + bounds[0] * most[1]), float(bounds[1] * most[0] + bounds[0] * least[1])


def _least(count: float, size: int, tail: float) -> float:
    return float(special.betaincinv(count, size - count + 1, tail)) if count > 0 else 0.0


def _most(count: float, size: int, tail: float) -> float:
    return float(special.betaincinv(count + 1, size - count, 1 - tail)) if count < size else 1.0


def mean_interval(values: Values, groups: Values | None = None, level: float = 0.95, bounds: Bounds | None = None) -> Estimate:
    """The mean over rows with an interval over groups, in the units of `values`.

    Cluster-robust t with G - 1 degrees of freedom, widened for skewness: from 50 groups on by Hall's cubic transform (Hall 1992,
    JRSS B 54), below by its linear part. Chosen over the bootstrap because it needs no seed and covers 93 % or more from 10
    groups on, save where the skewness is far above that of an exponential. Where all groups agree the
    scatter says nothing: the bounds are nan, or, with `bounds` = the range that a value can have, what an unseen share of
    other groups could still do to the mean (exact binomial). Rates near 0 or 1 belong to `rate_interval`.
    """
    rows = _numbers(values)
    return scores_interval(group_scores(rows, groups), rows.size, level, bounds)


def rate_interval(labels: Values, groups: Values | None = None, level: float = 0.95) -> Estimate:
    """The share of ones with Wilson's interval, on the effective sample size where rows share groups.

    n_eff = n / deff * (z / t)^2, deff = clustered over binomial variance, at least 1, t with G - 1 degrees of freedom
    (Korn and Graubard 1998; Dean and Pagano 2015). At 0 or 1 deff cannot be seen: each group then counts once.
    """
    rows = _binary(labels)
    scores, p = group_scores(rows, groups), float(rows.mean()) if rows.size else 0.0
    if scores.size == rows.size:
        return wilson(int(rows.sum()), rows.size, level)
    binomial = p * (1 - p) / rows.size
    effect = rows.size / scores.size
    if binomial > 0 and scores.size > 1:
        effect = max(1.0, scores.var(ddof=1) / scores.size / binomial)
    # scipy.special: thousands of rates are asked for, and scipy.stats' checks cost ten times the arithmetic.
    z, t = special.ndtri((1 + level) / 2), special.stdtrit(max(scores.size - 1, 1), (1 + level) / 2)
    return Estimate(p, *wilson_bounds(p, rows.size / effect * (z / t) ** 2, level), rows.size)


def paired_difference(
    before: Values,
    after: Values,
    groups: Values | None = None,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Estimate:
    """The mean of `after - before` over the same items, with `mean_interval`'s interval; `bounds` as there, e.g. (-1, 1)."""
    first, second = _pair(before, after)
    return mean_interval(second - first, groups, level, bounds)


def _table(before: Values, after: Values) -> tuple[int, int, int, int]:
    """Counts of the pairs: both, only after, only before, neither."""
    first, second = (_binary(side, "paired labels").astype(bool) for side in _pair(before, after))
    return int((first & second).sum()), int((~first & second).sum()), int((first & ~second).sum()), int((~first & ~second).sum())


def square_and_add(old: Estimate, new: Estimate, phi: float) -> Estimate:
    """The difference `new - old` of two rates measured with correlation `phi`, from their own intervals (Newcombe 1998).

    Each end lies sqrt(a^2 - 2 phi a b + b^2) away, a and b being how far the two rates' intervals reach in that direction.
    """

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)))

    value = new.value - old.value
    down, up = reach(new.value - new.low, old.high - old.value), reach(new.high - new.value, old.value - old.low)
    return Estimate(value, value - down, value + up, new.n)


def newcombe_paired(before: Values, after: Values, level: float = 0.95) -> Estimate:
    """The difference of two paired rates, after - before, with Newcombe's square-and-add interval (1998, method 10)."""
    both, gained, lost, neither = _table(before, after)
    n = both + gained + lost + neither
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    old, new = wilson(both + lost, n, level), wilson(both + gained, n, level)
    product = float(both * neither - gained * lost)
    # Only a positive correlation is corrected for continuity, so that chance agreement does not narrow the interval.
    product = max(product - n / 2, 0) if product > 0 else product
    size = np.sqrt(float(both + lost) * (gained + neither) * (both + gained) * (lost + neither))
    return square_and_add(old, new, product / size if size > 0 else 0.0)


def jackknife(value: float, without: Values, n: int, level: float = 0.95, bounds: Bounds = (-np.inf, np.inf)) -> Estimate:
    """The value with an interval from the values found when each of K blocks of groups is left out (Quenouille, Tukey 1958).

    se^2 = (K - 1) / K * sum (v_k - mean v)^2, t with K - 1 degrees of freedom; for smooth statistics without a formula, such
    as an angle, at the price of K more fits.
    """
    left = _numbers(without, "jackknife")
    if left.size < 2:
        raise StudyError(f"jackknife: {left.size} blocks; leave out at least 2, one at a time")
    half = stats.t.ppf((1 + level) / 2, left.size - 1) * np.sqrt((left.size - 1) * left.var())
    return Estimate(float(value), float(max(value - half, bounds[0])), float(min(value + half, bounds[1])), int(n))


def grouped_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Values,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """`statistic(rows)` with its percentile interval when whole groups are drawn with replacement; rows is an index array.

    Only for statistics without a formula above (AUROC, rank correlation), and with 50 groups or more: it covers too little
    with fewer (see the head of this file). Draws on which the statistic is nan are left out of the quantiles.
    """
    codes = group_codes(groups, len(groups))
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])) for _ in range(repeats)
    ]
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(np.arange(codes.size))), float(low), float(high), codes.size)
