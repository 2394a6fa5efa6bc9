"""Stale: what makes a monitor stale, by three definitions side by side, here and nowhere else.

Its AUROC dropped, it catches less at its frozen threshold, or that threshold alarms too often. An answer holds whether a monitor
is stale, and whether it surely and possibly is: what the two ends of the interval behind the answer would say.
"""

import numpy as np

from helpers.stats import roc
from helpers.stats.intervals import MARGINS, Estimate
from helpers.stats.roc import RATES

DROPS = {"05": 0.05, "10": 0.10}  # AUROC drops from which a monitor counts as stale
Answer = tuple[bool, bool, bool]


def by_loss(loss: Estimate, margin: float) -> Answer:
    """Whether what was lost, of AUROC or of the share that is caught, reaches the margin and is not chance."""
    return loss.value >= margin and loss.low > 0, loss.low >= margin, loss.high >= margin


def by_false_alarms(fpr: Estimate, level: str) -> Answer:
    """Whether harmless texts are flagged too often for a threshold that was set to `level` percent of them."""
    most = MARGINS["fpr_ratio"] * RATES[level]
    return fpr.value > most, fpr.low > most, fpr.high > most


def lost_alarms(before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> Estimate:
    """By how much the share of flagged texts fell, from flags of the same texts."""
    return negative(roc.rate_change(before, after, groups))


def negative(e: Estimate) -> Estimate:
    """The estimate with its sign changed, and no minus before a 0."""
    return Estimate(0.0 - e.value, 0.0 - e.high, 0.0 - e.low, e.n)


def flag(n: int, *answers: Answer) -> Estimate:
    """1 where any of the answers is yes, else 0, for value and ends; it rests on n rows."""
    value, low, high = (float(any(answer[end] for answer in answers)) for end in range(3))
    return Estimate(value, low, high, n)
