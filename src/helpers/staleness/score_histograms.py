"""Histograms: the scores of the monitors in use on every variant, as shares of their class in bins (table `histograms`).

A monitor has one set of bins for all variants, and its frozen threshold is the edge of one. So what the monitor flags there,
or at any other edge, is a sum of whole bars.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from helpers import results
from helpers.monitors.readings import Rows
from helpers.staleness import verdicts
from helpers.staleness.drops import Observed
from helpers.stats.intervals import rate_interval
from helpers.updates import names

BINS = 40
LEVEL = "5"  # the threshold that the bins are laid around: that of 5 % false alarms
SIDES = {"harmless": 0, "flagged": 1}  # the classes of a task's texts: those to be passed, and those to be flagged
COLUMNS = [*results.OWN["histograms"], *results.VALUES]


def table(observed: Observed, chosen: verdicts.Chosen) -> pd.DataFrame:
    """Rows of the table `histograms`: bars for the monitors in use on all variants, and what a threshold at each edge flags.

    `edge` is a bin's left edge. `share`: of the class, what lies above it, up to and with the next edge; the first bin also holds
    all that is lower, the last all that is higher. `above`: of the class, all that lies above the edge. Both with
    `rate_interval`. A monitor without a threshold is left out.
    """
    found = []
    for task, place, monitor in verdicts.in_use(observed, chosen):
        if LEVEL in monitor.thresholds:
            reference, scores = observed.references[task], {variant: own[task][place] for variant, own in observed.scores.items()}
            edges = bins(reference.scores[place], list(scores.values()), monitor.thresholds[LEVEL])
            key = (monitor.task, monitor.probe, monitor.layer, monitor.depth)
            for variant, own in scores.items():
                rows = [(*key, *row) for row in _bars(own, reference.test, edges)]
                found.append(names.keyed(variant, pd.DataFrame(rows, columns=COLUMNS)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*results.KEY, *COLUMNS])


def bins(before: np.ndarray, scores: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """The left edges of `BINS` equal bins, one of which begins at the threshold.

    They cover the scores on the aligned model (`before`) and on every variant, without the outermost 2 % at either end. But they
    reach no farther beyond the aligned model's than those are wide, so that one broken variant does not squeeze the others.
    """
    low, high = np.quantile(before, [0.005, 0.995])
    ends = np.array([np.quantile(own, [0.02, 0.98]) for own in scores])
    room = high - low
    low = min(low, threshold, max(ends[:, 0].min(), low - room))
    high = max(high, threshold, min(ends[:, 1].max(), high + room))
    width = 1.06 * (high - low) / (BINS - 1) or 1 / BINS  # all scores alike: still a range
    below = int(np.ceil((threshold - low) / width + 0.4))
    return threshold + width * np.arange(-below, BINS - below)


def _bars(scores: np.ndarray, test: Rows, edges: np.ndarray) -> Iterator[tuple[str, float, str, float, float, float, int]]:
    """label, edge, metric, value, low, high, n of one monitor on one variant."""
    place = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, None)  # left: a score on an edge is not above it
    for label, side in SIDES.items():
        own, groups = test.labels == side, test.groups[test.labels == side]
        for i, edge in enumerate(edges):
            for metric, inside in (("share", place[own] == i), ("above", scores[own] > edge)):
                e = rate_interval(inside, groups)
                yield label, float(edge), metric, e.value, e.low, e.high, e.n
