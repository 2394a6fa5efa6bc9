"""A plain rule for tomorrow: one or two thresholds that say which cells to revalidate, in words that a team can write down."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from helpers.errors import StudyError
from helpers.staleness.predictors import features

# signals that a rule may use, and the side on which they warn
WARNS = {"relative_change": 1, "output_overlap": 1, "separation": -1, "mean_shift": 1, "cka": -1, "covariance_distance": 1,
         "score_ks": 1, "score_psi": 1, "score_correlation": -1}  # fmt: skip
WORTH = 0.02  # of the cells that a second test must save, else the simpler rule is taken


@dataclass(frozen=True)
class ThresholdRule:
    """Tests (signal, threshold), joined by "and" or "or"; a cell is checked where they hold, or where a signal is missing."""

    tests: tuple[tuple[str, float], ...] = ()
    joined: str = "and"

    @property
    def words(self) -> str:
        """The rule as a team would write it down."""
        said = [f"{_sized(s)} {'>=' if WARNS[s] > 0 else '<='} {WARNS[s] * threshold + 0.0:g}" for s, threshold in self.tests]
        return f"revalidate where {f' {self.joined} '.join(said)}" if said else "revalidate everything"

    def flags(self, cells: pd.DataFrame) -> np.ndarray:
        """Which cells the rule sends to revalidation."""
        held = [_warning(cells, signal) >= threshold for signal, threshold in self.tests]
        return {"and": np.logical_and, "or": np.logical_or}[self.joined].reduce(held) if held else np.ones(len(cells), bool)


def _sized(signal: str) -> str:
    return "|mean_shift|" if signal == "mean_shift" else signal


def _warning(cells: pd.DataFrame, signal: str) -> np.ndarray:
    """The signal turned so that more is worse; what is missing warns most."""
    return (WARNS[signal] * features(cells, [signal])[signal]).fillna(np.inf).to_numpy(float)


def _thresholds(warning: np.ndarray, stale: np.ndarray, need: int) -> np.ndarray:
    """21 quantiles of the stale cells' warnings and the highest threshold that catches `need` of them, cut to 4 digits."""
    ranked = np.sort(warning[stale])[::-1]
    levels = np.append(np.quantile(ranked, np.linspace(0, 1, 21), method="lower"), ranked[need - 1])
    return np.unique([_cut(level) for level in levels if np.isfinite(level)])


def _cut(value: float) -> float:
    """The value rounded down to 4 significant digits, so that a rule does what its words say and misses none that it caught."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{math.floor(value / step) * step:.4g}")


def check_missed(missed: float) -> None:
    """Raises StudyError where `missed` is no share of the stale cells that a rule may miss."""
    if not 0 <= missed < 1:
        raise StudyError(f"missed {missed} is not a share of the stale cells; give a number from 0 to below 1")


def plain_rule(cells: pd.DataFrame, missed: float = 0.10) -> ThresholdRule:
    """The rule of one test, or of two joined by and / or, that flags the fewest of these cells and misses at most that share
    of the stale ones; everything is revalidated where none is stale or no test saves a check.

    Only signals that need no labels are tried. Calibrated on the cells given: judge it on others.
    """
    check_missed(missed)
    stale, best, fewest = cells["stale"].to_numpy(bool), ThresholdRule(), float(len(cells))
    need = int(stale.sum()) - math.floor(missed * stale.sum() + 1e-9)
    grids = {}
    for signal in (name for name in WARNS if name in cells and need):
        warning = _warning(cells, signal)
        levels = _thresholds(warning, stale, need)
        grids[signal] = (levels, (warning >= levels[:, None]).astype(np.float32))
    for signal, (levels, flags) in grids.items():
        counts = np.where(flags @ stale >= need, flags.sum(axis=1), np.inf)
        if counts.size and counts.min() < fewest:
            best, fewest = ThresholdRule(((signal, float(levels[counts.argmin()])),)), counts.min()
    fewest -= WORTH * len(cells)
    for first, second in combinations(grids, 2):
        for joined, counts in _pairs(grids[first][1], grids[second][1], stale, need).items():
            if counts.size and counts.min() < fewest:
                i, j = np.unravel_index(counts.argmin(), counts.shape)
                tests = ((first, float(grids[first][0][i])), (second, float(grids[second][0][j])))
                best, fewest = ThresholdRule(tests, joined), counts.min()
    return best


def _pairs(first: np.ndarray, second: np.ndarray, stale: np.ndarray, need: int) -> dict[str, np.ndarray]:
    """How many cells each pair of thresholds flags, levels x levels, infinite where it catches fewer than `need`."""
    both = {"flagged": first @ second.T, "caught": (first * stale) @ second.T}
    alone = {"flagged": (first.sum(axis=1), second.sum(axis=1)), "caught": (first @ stale, second @ stale)}
    either = {name: alone[name][0][:, None] + alone[name][1][None, :] - both[name] for name in both}
    return {name: np.where(c["caught"] >= need, c["flagged"], np.inf) for name, c in (("and", both), ("or", either))}
