"""Contrasts of AUROCs over the same rows: the drop after an update, interactions, means; and the answers to a margin.

Everything rests on the influences of `roc`: a combination of AUROCs over the same rows has the same combination of influences.
Many monitors at once are arrays monitors x rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from helpers.errors import StudyError
from helpers.stats.intervals import Estimate, Values, unseen_share
from helpers.stats.p_values import tost
from helpers.stats.roc import Design, Scores, checked_scores, design_of, influence_variance, influences, positive_rows

ALPHA = 0.05  # of each of the two answers, "worse" and "preserved"
POWER = 0.8  # with which `needed` rows give one of them
NEVER = 10**9  # rows: more than anyone has
FEW = 50  # groups of the rarer class, below which one that failed outright is easily missed
CHUNK = 256  # monitors at a time, so that thousands of them fit the cache


@dataclass(frozen=True)
class Contrast:
    """A combination of AUROCs over the same rows: estimate, standard error and degrees of freedom of its t distribution.

    The interval, `worse` and `preserved` use the same t, so that they never disagree. `se` is 0 only where the scores that
    are compared are the same bit by bit; the interval is not cut at +-1: an end beyond says that there are too few groups.
    """

    estimate: Estimate
    se: float
    df: float


def _contrast(value: float, se: float, df: float, n: int, level: float) -> Contrast:
    half = se * special.stdtrit(df, (1 + level) / 2) if se > 0 or np.isnan(se) else 0.0
    return Contrast(Estimate(float(value), float(value - half), float(value + half), int(n)), float(se), float(df))


def _contrasts(
    value: np.ndarray, influence: Scores, same: np.ndarray, reach: float, design: Design, level: float, guarded: bool
) -> list[Contrast]:
    """One contrast per row of `influence`; `same`: compared with itself, `reach`: the most that one group could differ by.

    guarded: below FEW groups the variance of one group more that failed outright, (reach / G)^2, is added.
    """
    (variance, df), units = influence_variance(influence, design), int(design.counts[:2].min())
    # One swap of neighbours gives about 2 / (m n)^2 >= 1e-17; rounding of influences that cancel about 1e-32.
    flat = same | (units < 2) | (variance < 1e-24 * reach**2)
    df = np.where(flat, max(units - 1, 1), df)
    # Nothing differs, yet the scores do: what an unseen share of groups could still do, as the standard error of a 95 % interval.
    bound = reach * unseen_share(units) / special.stdtrit(max(units - 1, 1), 0.975)
    missed = (reach / units) ** 2 if guarded and 1 < units < FEW else 0.0
    se = np.where(same, 0.0, np.where(flat, bound, np.sqrt(np.maximum(variance, 0.0) + missed)))
    se = np.where(np.isnan(value), np.nan, se)
    value = np.where(same & ~np.isnan(value), 0.0, value)
    return [_contrast(*row, design.positive.size, level) for row in zip(value, se, df, strict=True)]


def auroc_contrast(
    labels: Values,
    scores: Scores,
    weights: Values,
    groups: Values | None = None,
    level: float = 0.95,
    name: str = "labels",
    guarded: bool = True,
) -> Contrast:
    """sum_k weights_k * AUROC_k over score vectors [k n] of the same rows, with Student's interval.

    Weights (1, -1) on (before, after) are the paired drop; drop(both) - drop(first) - drop(second) = (-1, -1, 1, 1) on
    (before, both, first, second) the interaction; 1/m and -1/m on m before and m after the mean drop of m monitors, whose
    influences are averaged before they are squared. Score vectors that are the same bit by bit are one: if all weights
    cancel, the result is exactly 0 with no width. Where the ranks agree but not the scores, or all AUROCs are perfect,
    the interval is what an unseen share of groups could do. Measured coverage of nominal 95 % for drops, 50 to 500 rows a
    class: 94.2 to 97.4 %, up to 100 % where both AUROCs are 0.95 or more and equal; 92 to 96 % where 1 to 2 % of positives fail
    altogether. With fewer groups such a failure is easily missed: of 38 pairs, 5 % of which fail, plain DeLong covers 85 % and
    calls 14 % preserved that are not (a bootstrap of the groups does no better, for it draws from the same). So below FEW groups
    contrasts that compare (weights that sum to 0) are `guarded`: se^2 + (reach / G)^2, as if one group more had failed outright;
    that covers 96 to 100 %, and no drop of 0.03 is ruled out with so few. Constant scores: nan.
    """
    positive = positive_rows(labels, name)
    array = checked_scores(scores, positive.size, name)
    if array.ndim != 2 or len(weights) != len(array):
        raise StudyError(f"{name}: {len(weights)} weights for scores of shape {array.shape}; pass one weight per score vector")
    merged: dict[bytes, float] = {}
    for row, weight in zip(array, weights, strict=True):
        merged[row.tobytes()] = merged.get(row.tobytes(), 0.0) + float(weight)
    kept = np.array([weight if abs(weight) > 1e-12 else 0.0 for weight in merged.values()])
    value, influence = influences(positive, np.array([np.frombuffer(row) for row in merged]))
    reach = max(kept[kept > 0].sum(), -kept[kept < 0].sum())
    args = (np.array([kept @ value]), (kept @ influence)[None], np.array([not kept.any()]), float(reach))
    return _contrasts(*args, design_of(positive, groups), level, guarded and abs(kept.sum()) < 1e-9)[0]


def many_contrasts(
    labels: Values,
    before: Scores,
    after: Scores,
    groups: Values | None = None,
    level: float = 0.95,
    name: str = "labels",
    guarded: bool = True,
) -> list[Contrast]:
    """The paired drops, AUROC before - after, of k monitors over the same rows: `auroc_contrast` with (1, -1) for each."""
    positive = positive_rows(labels, name)
    first, second = (checked_scores(side, positive.size, name) for side in (before, after))
    if first.ndim != 2 or first.shape != second.shape:
        raise StudyError(f"{name}: scores before {first.shape} and after {second.shape}; pass two arrays monitors x rows")
    design, found = design_of(positive, groups), []
    for start in range(0, len(first), CHUNK):
        old, new = first[start : start + CHUNK], second[start : start + CHUNK]
        (old_value, old_part), (new_value, new_part) = (influences(positive, side) for side in (old, new))
        same = (old == new).all(axis=1)
        found += _contrasts(old_value - new_value, old_part - new_part, same, 1.0, design, level, guarded)
    return found


def combine(contrasts: Sequence[Contrast], level: float = 0.95) -> Contrast:
    """The mean, equal weights, of contrasts over different rows, such as one per task; n counts all rows.

    se = sqrt(sum se^2) / k, which holds for independent parts only: contrasts over the same rows belong in one
    `auroc_contrast`. df by Welch and Satterthwaite. One nan makes the mean nan: leave an undefined task out by name.
    """
    if not contrasts:
        raise StudyError("combine: no contrast is given; pass one per task")
    value, se, df = (np.array(part) for part in zip(*((c.estimate.value, c.se, c.df) for c in contrasts), strict=True))
    total = (se**2).sum()
    joint = total**2 / (se**4 / df).sum() if total > 0 else df.min()
    return _contrast(value.mean(), np.sqrt(total) / len(se), joint, sum(c.estimate.n for c in contrasts), level)


# ---------------------------------------------------------------- the answers to a margin


def worse(contrast: Contrast, margin: float) -> float:
    """One-sided p of "the drop exceeds the margin" against H0: drop <= margin. Same scores before and after: 1."""
    if contrast.se == 0:
        return float(contrast.estimate.value <= margin)
    return float(stats.t.sf((contrast.estimate.value - margin) / contrast.se, contrast.df))


def preserved(contrast: Contrast, margin: float) -> float:
    """The p of equivalence, |drop| < margin, by two one-sided tests (`p_values.tost`).

    Measured size of nominal 5 %, matched pairs, AUROC 0.90 -> 0.87: 5.7 % with 50 pairs, 5.4 % with 100, 5.0 % with 200.
    """
    if contrast.se == 0:
        # Nothing was estimated: the scores are the same bit by bit, so the drop is 0 on these and on all other rows.
        return float(abs(contrast.estimate.value) >= margin)
    return tost(contrast.estimate.value, contrast.se, margin, contrast.df)


def needed(contrast: Contrast, margin: float, alpha: float = ALPHA) -> int:
    """Test rows at which this estimate, were it the truth, would be decided with 80 % power; NEVER at the margin itself or nan.

    The standard error is scaled with 1 / sqrt(n), groups growing in number, not in size, and t is taken as normal. Inside the
    margin: both of TOST's tests pass, Phi((m - d) / s - z) + Phi((m + d) / s - z) - 1 = power; outside: the one-sided test of
    the margin that was passed, which for a gain shows "better by more than the margin". In a family of m tests under Holm's
    procedure pass alpha = ALPHA / m, the level of its hardest one.
    """
    d, se, n = abs(contrast.estimate.value), contrast.se, contrast.estimate.n
    if se == 0:
        return n
    z, one, two = special.ndtri([1 - alpha, POWER, (1 + POWER) / 2])
    gap = abs(d - margin)
    if not gap > 0:
        return NEVER

    def power(s: float) -> float:
        return special.ndtr((margin - d) / s - z) + special.ndtr((margin + d) / s - z) - 1 - POWER

    # Between the scales at which both tests have 90 % power and at which the harder one has 80 %; a hair wider, for rounding.
    scale = gap / (z + one) if d > margin else optimize.brentq(power, 0.999 * gap / (z + two), 1.001 * gap / (z + one))
    return int(min(np.ceil(n * (se / scale) ** 2), NEVER))
