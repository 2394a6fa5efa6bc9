"""Agreement of two raters: Cohen's kappa with an interval over groups."""

import numpy as np
from scipy import stats

from helpers.errors import StudyError
from helpers.stats.intervals import Estimate, Values, group_codes, wilson


def _kappa_ends(a: np.ndarray, b: np.ndarray, units: np.ndarray, weights: np.ndarray, t: float) -> tuple[float, float, float]:
    """Kappa and its ends on the scale of log(1 - kappa), for weighted rows in groups; nan ends where all rows agree."""
    total, size = weights.sum(), int(max(a.max(), b.max())) + 1
    share_a, share_b = (np.bincount(side, weights, size) / total for side in (a, b))
    observed, expected = float(weights @ (a == b) / total), float(share_a @ share_b)
    if observed > 1 - 1e-12:
        return 1.0, float("nan"), float("nan")
    value = (observed - expected) / (1 - expected)
    # d log(1 - kappa) = - d p_o / (1 - p_o) + d p_e / (1 - p_e)
    influence = -((a == b) - observed) / (1 - observed) + (share_b[a] + share_a[b] - 2 * expected) / (1 - expected)
    reach = float(np.exp(t * np.linalg.norm(np.bincount(units, weights * influence)) / total))
    return value, 1 - (1 - value) * reach, 1 - (1 - value) / reach


def kappa(first: Values, second: Values, groups: Values | None = None, level: float = 0.95) -> Estimate:
    """Cohen's kappa of two raters of the same items, with an interval over groups.

    kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960), linearised per item (Fleiss, Cohen and Everitt 1969) and taken on the scale
    of log(1 - kappa), which respects the limit 1. Each end is the wider of the table as it is and of the table with two rows
    more, spread over its cells: a rater who gave one label only would else have 0 with no width at all. With full agreement
    the low end is that of Wilson's p_o over groups. Below about 5 rows of the rarer label, or one expected disagreement, it
    covers 89 to 99 %. Both raters giving one same label to everything is undefined: nan.
    """
    if len(first) != len(second):
        raise StudyError(f"kappa: {len(first)} and {len(second)} labels; pass both raters' labels of the same items")
    n, nan = len(first), float("nan")
    labels, codes = np.unique(np.concatenate([np.asarray(first), np.asarray(second)]), return_inverse=True)
    if n == 0 or labels.size < 2:
        return Estimate(nan, nan, nan, n)
    a, b, units = codes[:n], codes[n:], group_codes(groups, n)
    count, k = int(units.max()) + 1, labels.size
    t = float(stats.t.ppf((1 + level) / 2, count - 1) * np.sqrt(count / (count - 1))) if count > 1 else nan
    value, low, high = _kappa_ends(a, b, units, np.ones(n), t)
    if value == 1:
        chance = float(np.bincount(a) @ np.bincount(b)) / n**2
        low, high = (wilson(count, count, level).low - chance) / (1 - chance), 1.0
    spread = np.arange(k * k)
    weights = np.concatenate([np.ones(n), np.full(k * k, 2 / k**2)])
    extra = (np.r_[a, spread // k], np.r_[b, spread % k], np.r_[units, count + spread], weights)
    _, wide_low, wide_high = _kappa_ends(*extra, t)
    return Estimate(value, float(np.clip(min(low, wide_low), -1, 1)), float(np.clip(max(high, wide_high), -1, 1)), n)
