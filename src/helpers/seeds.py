"""Seeds: one interval out of several estimates whose items are gone, over the seeds of a model or over variants and tasks.

Beside `statistics`, the only place where an interval is made: there from items, here from estimates that carry theirs.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from helpers.errors import StudyError
from helpers.statistics import Bounds, Estimate


def over_seeds(estimates: Sequence[Estimate], level: float = 0.95, bounds: Bounds | None = None) -> Estimate:
    """The mean of one estimate a seed with an interval for other seeds and other items; n counts the rows of all seeds.

    For statistics whose items are gone: only value and interval of each seed are left, all on the same items. To each side,
    half^2 = (t_{S-1} sd / sqrt(S))^2 + (mean half width of the seeds)^2, so lopsided intervals stay lopsided, and sorted
    seeds give the same as shuffled ones. The noise of single items is in both parts: conservative. Simulated, 3 and 5 seeds,
    20 to 200 items, seed effects of 0 to 2 times the items', rates of 1 to 50 %: a 95 % interval covers 94 to 100 %. Seeds
    of which a few are unlike all others (log odds that spread by 2 or more) cannot be told from 3 of them: 67 to 100 %.
    One seed keeps its interval, which says nothing about other seeds. Errors: no estimate, one without an interval.
    """
    parts = _intervals(estimates, "over_seeds")
    if len(parts) == 1:
        return estimates[0]
    values = np.sort(parts[:, 0])  # in a fixed order, so that sums round alike whatever the order of the seeds
    between = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    value, reach = values.mean(), np.hypot(between, np.sort(parts[:, 1:], axis=0).mean(axis=0))
    low, high = (value - reach[0], value + reach[1]) if bounds is None else np.clip([value - reach[0], value + reach[1]], *bounds)
    return Estimate(float(value), float(low), float(high), sum(e.n for e in estimates))


def mean_of(estimates: Sequence[Estimate], shared: bool) -> Estimate:
    """The mean, equal weights, of estimates of one kind: several variants or several tasks of one run.

    shared: they rest on the same items. Their errors may then be correlated in any way, and each end lies the mean of the
    half widths away, which no correlation exceeds; n is that of the largest. Otherwise they are independent: each end lies
    sqrt(sum of squared half widths) / K away, and n counts all rows. Errors: no estimate, one without an interval.
    """
    parts, rows = _intervals(estimates, "mean_of"), [e.n for e in estimates]
    value, reach = parts[:, 0].mean(), parts[:, 1:].mean(axis=0)
    if not shared:
        reach = np.linalg.norm(parts[:, 1:], axis=0) / len(parts)
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
