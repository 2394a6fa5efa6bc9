"""P values: many at once after Holm, and that of equivalence within a margin."""

import numpy as np
from scipy import stats

from helpers.errors import StudyError
from helpers.stats.intervals import Values


def holm(p_values: Values) -> np.ndarray:
    """Holm's adjusted p values in the order given (Holm 1979); a nan stays nan and still counts in the family."""
    p = np.asarray(p_values, dtype=float).ravel()
    if ((p < 0) | (p > 1)).any():
        raise StudyError("holm: a p value lies outside 0 .. 1; pass raw p values")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return adjusted


def tost(difference: float, standard_error: float, margin: float, df: float = np.inf) -> float:
    """The p value of equivalence, |true difference| < margin, by two one-sided t tests (Schuirmann 1987).

    p = max(P(T > (d + margin) / se), P(T < (d - margin) / se)). With a standard error of 0 (nothing differed anywhere) or nan
    the test is not defined: nan; then compare the margin with `mean_interval(..., bounds=...)`.
    """
    if not margin > 0:
        raise StudyError(f"tost: margin {margin} is not above 0; take one from MARGINS")
    if not standard_error > 0 or not df > 0:
        return float("nan")
    above, below = (difference + margin) / standard_error, (difference - margin) / standard_error
    return float(max(stats.t.sf(above, df), stats.t.cdf(below, df)))
