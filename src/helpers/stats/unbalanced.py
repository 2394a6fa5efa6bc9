"""Seeds crossed with units in part: an interval for other seeds and other units where some seeds lack some of the units.

So it is with monitors: one that caught too little before any update in one seed is judged in the others. Counting only those
that every seed has would drop most of them as seeds are added, and would not speak of the same monitors.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from helpers.errors import StudyError
from helpers.stats.intervals import Bounds, Estimate, Values, group_codes, scores_interval
from helpers.stats.over_seeds import MEASURES, SHARES, Spread, skewness

Table = Float[np.ndarray, "seeds units"]


def crossed_in_part(
    scores: Table, level: float = 0.95, bounds: Bounds | None = None, strata: Values | None = None, kind: str = SHARES
) -> tuple[Estimate, Spread]:
    """The mean over seeds of each seed's own mean, with an interval for other seeds and units, and what the width is made of.

    NaN where a seed lacks a unit. With weights w_ij = 1 / (S n_i) for the n_i units that seed i has,
    half^2 = t_{S-1}^2 var(means of seeds) / S + t_{G-1}^2 unit sum_j (sum_i w_ij)^2, G the number of units that weigh as much,
    1 / sum_j (sum_i w_ij)^2. The variance of a unit is that of Henderson's third method (Searle, Casella and McCulloch 1992,
    section 5.4): what units explain beyond seeds, minus what noise would. A whole table gives what `over_seeds.crossed` gives.
    What differs between `strata` (one a unit) is no error. Errors: a seed without a unit, or a table that is not one.
    """
    held = np.isfinite(scores)
    if scores.ndim != 2 or not held.any(axis=1).all():
        raise StudyError("crossed_in_part: a seed has no unit at all; leave it out")
    means, counts = np.nanmean(scores, axis=1), held.sum(axis=1, keepdims=True)
    value, weights = float(means.mean()), held / counts / len(scores)
    codes = np.zeros(scores.shape[1], int) if strata is None else group_codes(strata, scores.shape[1])
    levelled = _levelled(scores, held, codes)
    spread = replace(_spread(levelled, held, weights, means, int(codes.max())), skew=skewness(means))
    if len(scores) < 2 or np.ptp(scores[held]) <= 1e-12:
        alone = scores_interval(np.nanmean(levelled, axis=0), int(held.sum()), level, bounds)
        low, high = (value, value) if kind == MEASURES and len(scores) > 1 else (alone.low, alone.high)
    else:
        low, high = spread.ends(value, level=level)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value, float(low), float(high), int(held.sum())), spread


def _levelled(scores: Table, held: np.ndarray, strata: np.ndarray) -> Table:
    """The scores without their strata's levels; every seed keeps its mean."""
    cells = np.broadcast_to(strata, scores.shape)
    own = np.bincount(cells[held], weights=scores[held]) / np.maximum(np.bincount(cells[held]), 1)
    levels = np.where(held, own[cells], np.nan)
    return scores - levels + np.nanmean(levels, axis=1, keepdims=True)


def _spread(scores: Table, held: np.ndarray, weights: np.ndarray, means: np.ndarray, lost: int) -> Spread:
    """Variances of seeds, units and cells; `lost`: degrees of freedom that strata took from the units."""
    seeds, found = len(scores), int(held.sum())
    share = float((weights.sum(axis=0) ** 2).sum())
    units = max(round(1 / share), min(2, scores.shape[1]))
    if seeds < 2 or scores.shape[1] < 2:
        unit = float(np.nanmean(scores, axis=0).var(ddof=1)) if scores.shape[1] > 1 else 0.0
        return Spread(0.0, unit * share * units, 0.0, seeds, units)
    of_seed, of_unit = np.nonzero(held)
    y = scores[held]
    design = np.zeros((found, seeds + scores.shape[1]))
    design[np.arange(found), of_seed] = design[np.arange(found), seeds + of_unit] = 1
    fitted, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    rest = float(((y - design @ fitted) ** 2).sum())
    noise = rest / (found - rank) if found > rank else 0.0
    explained = float(((y - np.nanmean(scores, axis=1)[of_seed]) ** 2).sum()) - rest
    free = int(rank) - seeds
    apart = max(free - lost, 1)
    unit = max((explained - noise * apart) / ((found - seeds) * apart / free), 0.0) if free > 0 else 0.0
    own, cell = float(means.var(ddof=1)), noise * float((weights**2).sum())
    return Spread(max(own - seeds * cell, 0.0), unit * share * units, min(cell, own / seeds) * seeds * units, seeds, units)
