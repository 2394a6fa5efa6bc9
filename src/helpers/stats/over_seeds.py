"""Intervals over seeds: one number of several runs, for other seeds and other items.

Three seeds are few: a percentile bootstrap of them covers 70 to 83 % instead of 95 %, so everything here is a closed form. Which
seeds carry the width and which items do is told by a `Spread`, so that it can be said what more of either would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from helpers.errors import StudyError
from helpers.stats.intervals import Bounds, Estimate, Values, exact_ends, group_codes, group_scores, scores_interval

LABELS, SHARES, MEASURES = "labels", "shares", "measures"  # what the values of rows are
LEVEL = 0.95  # of the intervals that single runs come with


@dataclass(frozen=True)
class Spread:
    """What the width of an estimate over seeds is made of: variances of a seed, of a unit (item, text), and of a cell of both.

    With the numbers of seeds and units that it was seen on; the half width at other numbers of either follows. skew: the
    skewness of the seeds' means, 0 where their items are gone.
    """

    seed: float
    unit: float
    cell: float
    seeds: int
    units: int
    skew: float = 0.0

    def half_width(self, seeds: int = 0, units: int = 0, level: float = LEVEL) -> float:
        """sqrt(t_{S-1}^2 (seed / S + cell / (S G)) + t_{G-1}^2 unit / G) at S seeds and G units, those there are unless given."""
        return float(np.hypot(*self.parts(seeds, units, level)))

    def parts(self, seeds: int = 0, units: int = 0, level: float = LEVEL) -> tuple[float, float]:
        """The half widths from seeds and from units; those from seeds are infinite with one seed."""
        s, g = seeds or self.seeds, units or self.units
        t_seed, t_unit = (float(stats.t.ppf((1 + level) / 2, k - 1)) if k > 1 else np.inf for k in (s, g))
        own = self.seed / s + self.cell / (s * g)
        return t_seed * np.sqrt(own) if own > 0 else 0.0, t_unit * np.sqrt(self.unit / g) if self.unit > 0 else 0.0

    def lean(self, seeds: int = 0, units: int = 0, level: float = LEVEL) -> float:
        """How much further one end reaches because seeds lie skewed: s g (1 + 2 t^2) / (6 S), as `mean_interval` has it.

        s and g are deviation and skewness of the seeds' means; only the share of their variance counts that is the seeds' own.
        More units leave that as it is, more seeds shrink it.
        """
        s, own = seeds or self.seeds, self.seed + self.cell / (units or self.units)
        if s < 2 or own <= 0:
            return 0.0
        t = stats.t.ppf((1 + level) / 2, s - 1)
        return float(self.seed / np.sqrt(own) * self.skew * (1 + 2 * t**2) / (6 * s))

    def ends(self, value: float, seeds: int = 0, units: int = 0, level: float = LEVEL) -> Bounds:
        """Both ends around a value, at so many seeds and units."""
        half, further = self.half_width(seeds, units, level), self.lean(seeds, units, level)
        return value - half + min(further, 0.0), value + half + max(further, 0.0)


def two_level(
    values_by_seed: Sequence[Values] | np.ndarray,
    groups: Values | None = None,
    level: float = LEVEL,
    bounds: Bounds | None = None,
    strata: Values | None = None,
    kind: str = LABELS,
) -> Estimate:
    """The mean over seeds and items with an interval for other seeds and other groups; n counts rows of all seeds.

    Every seed measures the same items in the same order: seeds are crossed with groups, MS the mean squares of that table.
    half^2 = (t_seed^2 MS_seed + t_group^2 max(MS_group - MS_rest, 0)) / (S G): each part keeps the t of its own few degrees
    of freedom (Burdick and Graybill 1992, modified large sample). Drawing seeds outside and groups within (Owen 2007)
    estimates the same variance, but its percentiles cover 70 to 83 % with 3 seeds that differ. Where seeds lie skewed one end
    reaches further (`Spread.lean`). Simulated labels, effects of 0.3 to 0.75, 32 to 200 items, log odds of seeds 0 to 2.8 apart:
    a 95 % interval covers 93 to 97 % from 5 seeds on, and 90 to 97 % with 3. What differs between `strata`
    (one a row: sets of prompts with sizes of their own) is no error: groups are held against their stratum's mean. Few groups
    that differ at all within `bounds` get exact ends (`intervals.exact_ends`) where these are wider, if the values are LABELS
    (or differences of them). SHARES of several labels a row get none; MEASURES, such as AUROCs, neither, and what is the same
    everywhere has no width there.
    With one seed it is `mean_interval`, which says nothing about other seeds. Errors: seeds of unequal length.
    """
    return crossed(values_by_seed, groups, level, bounds, strata, kind)[0]


def crossed(
    values_by_seed: Sequence[Values] | np.ndarray,
    groups: Values | None = None,
    level: float = LEVEL,
    bounds: Bounds | None = None,
    strata: Values | None = None,
    kind: str = LABELS,
) -> tuple[Estimate, Spread]:
    """What `two_level` gives, and what its width is made of."""
    lengths = sorted({len(values) for values in values_by_seed})
    if len(lengths) != 1:
        raise StudyError(f"two_level: the seeds hold {lengths} rows; pass the same items in the same order for every seed")
    scores = np.array([group_scores(values, groups) for values in values_by_seed])
    total, value = len(values_by_seed) * lengths[0], float(scores.mean()) if scores.size else float("nan")
    plain, of_strata = scores.mean(axis=0), _strata(strata, groups, lengths[0])
    level_scores = _levelled(scores, of_strata)
    spread = replace(_spread(level_scores, int(of_strata.max(initial=0))), skew=skewness(scores.mean(axis=1)))
    if scores.size and np.ptp(scores) <= 1e-12 and kind == MEASURES:
        low, high = value, value
    elif min(scores.shape) < 2 or np.ptp(scores) <= 1e-12:
        found = scores_interval(level_scores.mean(axis=0), total, level, bounds)
        low, high = found.low, found.high
    else:
        low, high = spread.ends(value, level=level)
    if bounds is not None and scores.size:
        exact = (exact_ends(plain, bounds, level) if kind == LABELS else None) or (low, high)
        low, high = max(min(low, exact[0]), bounds[0]), min(max(high, exact[1]), bounds[1])
    return Estimate(value, float(low), float(high), total), spread


def skewness(means: np.ndarray) -> float:
    """The skewness of the seeds' means; 0 of fewer than three, or where all are the same."""
    return float(stats.skew(means, bias=False)) if len(means) > 2 and np.ptp(means) > 1e-12 else 0.0


def _strata(strata: Values | None, groups: Values | None, rows: int) -> np.ndarray:
    """The stratum's number of each group: that of its first row."""
    codes = group_codes(groups, rows)
    names = np.zeros(rows, int) if strata is None else group_codes(strata, rows)
    return names[np.unique(codes, return_index=True)[1]] if rows else names


def _levelled(scores: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """The scores with every stratum's mean over seeds put in place of its own level; means of seeds stay as they are."""
    if scores.size == 0 or strata.max(initial=0) == 0:
        return scores
    sums = np.bincount(strata, weights=scores.mean(axis=0)) / np.bincount(strata)
    return scores - sums[strata] + scores.mean()


def _spread(scores: np.ndarray, lost: int) -> Spread:
    """Variances of seeds, units and cells of a table seeds x units; `lost`: degrees of freedom that strata took."""
    seeds, units = scores.shape
    if min(seeds, units) < 2:
        unit = float(scores.mean(axis=0).var(ddof=1)) if units > 1 else 0.0
        return Spread(0.0, unit, 0.0, seeds, units)
    by_seed, by_unit = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - by_seed[:, None] - by_unit[None, :] + scores.mean()
    noise = float((rest**2).sum() / ((seeds - 1) * (units - 1)))
    # The noise is left in the seeds' square, the one with the fewest degrees of freedom, so that neither part is cut to 0.
    unit = ((by_unit - by_unit.mean()) ** 2).sum() / max(units - 1 - lost, 1) - noise / seeds
    own = float(by_seed.var(ddof=1))
    return Spread(max(own - noise / units, 0.0), float(max(unit, 0.0)), min(noise, own * units), seeds, units)


def over_seeds(estimates: Sequence[Estimate], level: float = LEVEL, bounds: Bounds | None = None) -> Estimate:
    """The mean of one estimate a seed with an interval for other seeds and other items; n counts the rows of all seeds.

    For statistics whose items are gone: only value and 95 % interval of each seed are left, all on the same items. To each side,
    half^2 = (t_{S-1} sd / sqrt(S))^2 + (mean half width of the seeds)^2, so lopsided intervals stay lopsided, and sorted
    seeds give the same as shuffled ones; at another `level` the seeds' own half widths shrink or grow as normal ones do. The
    noise of single items is in both parts: conservative where seeds scatter less than items. Simulated, nominal 95 %, 3 and 5
    seeds, 20 to 200 items, seed effects of 0 to 2 times the items', rates of 1 to 50 %: 94 to 100 %. Log odds of seeds that
    spread by 2 or more: 92 to 93 % with 3 seeds at middle rates, and 67 to 100 % where a few seeds are unlike all others; then
    say how many seeds show the effect, too.
    One seed keeps its interval, which says nothing about other seeds. Errors: no estimate, one without an interval.
    """
    parts = _intervals(estimates, "over_seeds")
    parts[:, 1:] *= stats.norm.ppf((1 + level) / 2) / stats.norm.ppf((1 + LEVEL) / 2)
    values = np.sort(parts[:, 0])  # in a fixed order, so that sums round alike whatever the order of the seeds
    between = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values) if len(values) > 1 else 0.0
    value, reach = values.mean(), np.hypot(between, np.sort(parts[:, 1:], axis=0).mean(axis=0))
    if len(parts) == 1 and level == LEVEL:
        return estimates[0]
    low, high = (value - reach[0], value + reach[1]) if bounds is None else np.clip([value - reach[0], value + reach[1]], *bounds)
    return Estimate(float(value), float(low), float(high), sum(e.n for e in estimates))


def spread_over_seeds(estimates: Sequence[Estimate]) -> Spread:
    """What the width of `over_seeds` is made of; a unit's variance is that which a normal mean of n rows would have."""
    parts = _intervals(estimates, "over_seeds")
    units = int(np.mean([e.n for e in estimates]))
    half = parts[:, 1:].mean() / stats.norm.ppf((1 + LEVEL) / 2)
    return Spread(float(parts[:, 0].var(ddof=1)) if len(parts) > 1 else 0.0, float(half**2 * units), 0.0, len(parts), units)


def mean_of(estimates: Sequence[Estimate], shared: bool, weights: Sequence[float] | None = None) -> Estimate:
    """The mean of estimates of one kind, weights equal unless given: several variants or several tasks of one run.

    shared: they rest on the same items. Their errors may then be correlated in any way, and each end lies the mean of the
    half widths away, which no correlation exceeds; n is that of the largest. Otherwise they are independent: each end lies
    sqrt(sum of squared weighted half widths) away, and n counts all rows. Errors: no estimate, one without an interval.
    """
    parts, rows = _intervals(estimates, "mean_of"), [e.n for e in estimates]
    share = np.full(len(parts), 1.0) if weights is None else np.asarray(weights, dtype=float)
    share = share / share.sum()
    value, reach = share @ parts[:, 0], share @ parts[:, 1:]
    if not shared:
        reach = np.linalg.norm(share[:, None] * parts[:, 1:], axis=0)
    return Estimate(float(value), float(value - reach[0]), float(value + reach[1]), max(rows) if shared else sum(rows))


def _intervals(estimates: Sequence[Estimate], name: str) -> np.ndarray:
    """Value, reach below and reach above of each estimate, one a row."""
    if not estimates:
        raise StudyError(f"{name}: 0 estimates; pass at least one")
    values, lows, highs = np.array([[e.value, e.low, e.high] for e in estimates]).T
    parts = np.column_stack([values, values - lows, highs - values])
    if not np.isfinite(parts).all():
        raise StudyError(f"{name}: an estimate has no finite value or interval; leave out what could not be measured")
    return parts
