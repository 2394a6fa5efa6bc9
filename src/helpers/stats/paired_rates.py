"""Paired rates against a margin: was a flag lost, or gained, on more texts than the margin allows? Tests, intervals, sizes.

harmed: pairs in which the flag changed for the worse; helped: for the better; n: all pairs. Counts may be broken numbers, on the
effective sample size where rows share groups. The harm is (harmed - helped) / n.
"""

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from helpers.stats.intervals import group_codes, group_scores
from helpers.stats.paired_aurocs import NEVER, POWER

LEVEL = 0.90  # of the interval of a change: its two ends are the two one-sided tests at 5 %


def score_test(
    harmed: np.ndarray | float, helped: np.ndarray | float, n: np.ndarray | float, margin: np.ndarray | float
) -> np.ndarray:
    """The z of the harm against `margin`, by the score test of paired rates (Tango 1998).

    z = (b - c - n m) / sqrt(n (2 q + m (1 - m))), q the rate of helped pairs that is most likely under harm = m. Measured size
    of nominal 5 %, margin 0.05, 30 to 400 pairs, 0 to 15 % of them helped: preserved 0 to 5.0 %, worse 1.6 to 6.3 %. Newcombe's
    interval, turned into the same test, would call 100 pairs preserved in 12 %.
    """
    linear = -harmed - helped + (2 * n - harmed + helped) * margin
    root = np.sqrt(np.maximum(linear**2 + 8 * n * helped * margin * (1 - margin), 0.0))
    q = np.maximum((root - linear) / (4 * n), 0.0)
    return (harmed - helped - n * margin) / np.sqrt(np.maximum(n * (2 * q + margin * (1 - margin)), 1e-300))


def score_interval(harmed: float, helped: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """The margins that `score_test` does not reject at this level: its ends agree with the tests."""
    z = special.ndtri((1 + level) / 2)

    def reach(margin: float) -> float:
        # a negative margin is a positive one seen from the other side
        return float(score_test(harmed, helped, n, margin) if margin >= 0 else -score_test(helped, harmed, n, -margin))

    value, edge = (harmed - helped) / n, 1 - 1e-9
    low = optimize.brentq(lambda m: reach(m) - z, -edge, value) if reach(-edge) > z else -1.0
    high = optimize.brentq(lambda m: reach(m) + z, value, edge) if reach(edge) < -z else 1.0
    return float(low), float(high)


def effective_share(differences: Float[np.ndarray, " n"], groups: np.ndarray) -> float:
    """Effective over actual sample size of rows in groups: clustered over plain variance, each group once where none differs."""
    codes = group_codes(groups, differences.size)
    count = int(codes.max(initial=-1)) + 1
    if count == differences.size:
        return 1.0
    if count < 2:
        return 1.0 / differences.size
    scores, plain = group_scores(differences, codes), differences.var(ddof=1) / differences.size
    effect = max(1.0, scores.var(ddof=1) / count / plain) if plain > 0 else differences.size / count
    z, t = special.ndtri((1 + LEVEL) / 2), special.stdtrit(count - 1, (1 + LEVEL) / 2)
    return float((z / t) ** 2 / effect)


def needed_pairs(harmed: float, helped: float, n: float, margin: float, alpha: float) -> float:
    """Pairs at which this harm, were it the truth, is decided with 80 % power: the normal approximation of `score_test`.

    Half a pair is added to either count, so that no flag seen to change is not taken for none that ever will.
    """
    up, down = (harmed + 0.5) / (n + 1), (helped + 0.5) / (n + 1)
    harm = (harmed - helped) / n
    if harm == margin:
        return NEVER
    gap, own = abs(harm - margin), np.sqrt(max(up + down - harm**2, 1e-9))
    null = gap / abs(float(score_test(harm + down, down, 1.0, margin)))  # what the test itself would divide by
    return float(((special.ndtri(1 - alpha) * null + special.ndtri(POWER) * own) / gap) ** 2)


def needed_level(rate: float, limit: float, alpha: float) -> float:
    """Negatives at which this rate, were it the truth, is shown to lie below the limit; NEVER where it does not."""
    if rate >= limit:
        return NEVER
    null, own = np.sqrt(limit * (1 - limit)), np.sqrt(rate * (1 - rate))
    return float(((special.ndtri(1 - alpha) * null + special.ndtri(POWER) * own) / (limit - rate)) ** 2)
