"""Order measures: how well an order of cells finds the stale ones, for many weightings of the cells at once.

Every measure is a ratio of sums over folds, so that it is taken with all cells and without each update in one pass; its interval
is the jackknife's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.errors import StudyError
from helpers.staleness.predictors import Fold
from helpers.stats import intervals

Ratio = tuple[np.ndarray, np.ndarray]  # numerator and denominator under each weighting of the cells
Measured = Iterator[tuple[float, str, intervals.Estimate | None]]  # budget, metric, estimate (None: not defined)


def _sums(weights: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Weights (draws x cells) summed over the cells that share a code, 0 .. k - 1: draws x k."""
    order = np.argsort(codes, kind="stable")
    return np.add.reduceat(weights[:, order], np.searchsorted(codes[order], np.arange(codes.max() + 1)), axis=1)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].ravel()


def recall_at(risk: np.ndarray, stale: np.ndarray, weights: np.ndarray, budget: float) -> Ratio:
    """Stale cells among the riskiest `budget` of a fold, and all of them; cells that are level are drawn by chance."""
    codes = _codes(-risk)
    level, sick = _sums(weights, codes), _sums(weights * stale, codes)
    left = budget * level.sum(axis=1, keepdims=True) - (np.cumsum(level, axis=1) - level)
    share = np.clip(left, 0, level) / np.where(level > 0, level, 1)
    return (share * sick).sum(axis=1), sick.sum(axis=1)


def _concordant(risk: np.ndarray, stale: np.ndarray, weights: np.ndarray) -> Ratio:
    codes = _codes(risk)
    sick, well = _sums(weights * stale, codes), _sums(weights * ~stale, codes)
    return (sick * (np.cumsum(well, axis=1) - well / 2)).sum(axis=1), sick.sum(axis=1) * well.sum(axis=1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Centred midranks of the cells under each weighting, draws x cells."""
    codes = _codes(values)
    level = _sums(weights, codes)
    return (np.cumsum(level, axis=1) - (level + level.sum(axis=1, keepdims=True)) / 2)[:, codes]


def _agreement(risk: np.ndarray, drop: np.ndarray, weights: np.ndarray) -> Ratio:
    first, second, size = _ranks(risk, weights), _ranks(drop, weights), weights.sum(axis=1)
    squares = [np.einsum("bn,bn,bn->b", weights, a, b) for a, b in ((first, first), (second, second), (first, second))]
    spread = np.sqrt(squares[0] * squares[1])
    rho = np.divide(squares[2], spread, out=np.zeros_like(spread), where=spread > 1e-9)
    return rho * size, size * (squares[1] > 1e-9)  # a fold left level counts 0, what chance would give


def check_budget(budget: float) -> None:
    """Raises StudyError where a budget is no share of the cells."""
    if not 0 < budget <= 1:
        raise StudyError(f"budget {budget} is not a share of the cells; give a number above 0 and at most 1")


# ---------------------------------------------------------------- with their intervals over updates


def weightings(cells: pd.DataFrame, cluster: str) -> np.ndarray:
    """All cells, then all but those of each cluster: (1 + clusters) x cells."""
    codes = _codes(cells[cluster].astype(str).to_numpy())
    return np.vstack([np.ones(len(cells)), codes != np.arange(codes.max() + 1)[:, None]]).astype(float)


def ratio(ratios: Iterable[Ratio]) -> np.ndarray | None:
    """The ratio of the sums over folds with all cells, then without each cluster; None where one of them is undefined."""
    above, below = (sum(parts) for parts in zip(*ratios, strict=True))
    return None if len(below) < 3 or (below <= 0).any() else above / below


def over_updates(values: np.ndarray | None, n: int, bounds: tuple[float, float]) -> intervals.Estimate | None:
    """The value with its interval over clusters, from the values with all cells and without each cluster; None without them.

    The jackknife (Tukey 1958) with Student's t of its G - 1 degrees of freedom. Nothing is done about skewness: with 10 to 20
    updates a cubic correction invents mass that no update has. Where no update matters, what an unseen share of others could do.
    """
    if values is None:
        return None
    value, without = float(values[0]), values[1:]
    if np.ptp(without) <= 1e-12:
        return intervals.scores_interval(np.full(len(without), value), n, 0.95, bounds)
    return intervals.jackknife(value, without, n, bounds=bounds)


@dataclass(frozen=True)
class OrderWorth:
    """What an order gives: budget and metric -> the values with all cells and without each cluster (None: not defined)."""

    values: Mapping[tuple[float, str], np.ndarray | None]
    level: bool  # in every fold: no order at all

    def estimates(self, cells: int, sick: int) -> Measured:
        """Budget, metric and estimate; one that is level in every fold has its budget as recall, exactly, and no more."""
        for (budget, metric), found in self.values.items():
            n = sick if metric == "recall" else cells
            if self.level and metric == "recall":
                yield budget, metric, intervals.Estimate(budget, budget, budget, n)
            elif not self.level:
                yield budget, metric, over_updates(found, n, (-1, 1) if metric == "spearman" else (0, 1))


def measured(
    cells: pd.DataFrame, folds: Sequence[Fold], risk: np.ndarray, weights: np.ndarray, budgets: Sequence[float]
) -> OrderWorth:
    """Recall at each budget, and at budget 1.0 AUROC and Spearman, of an order within folds."""
    stale, drop = cells["stale"].to_numpy(bool), cells["drop"].to_numpy(float)
    parts = [(risk[rows], stale[rows], drop[rows], weights[:, rows]) for _, _, rows in folds]
    found: dict[tuple[float, str], np.ndarray | None] = {}
    for budget in budgets if stale.any() else ():
        found[budget, "recall"] = ratio(recall_at(r, s, w, budget) for r, s, _, w in parts)
    found[1.0, "auroc"] = ratio(_concordant(r, s, w) for r, s, _, w in parts)
    found[1.0, "spearman"] = ratio(_agreement(r, d, w) for r, _, d, w in parts)
    return OrderWorth(found, all(np.ptp(r) == 0 for r, *_ in parts))


def beyond(own: OrderWorth, other: OrderWorth, name: str, cells: int, sick: int) -> Measured:
    """By how much one order exceeds another in recall and AUROC, paired: both on the same folds and without the same updates."""
    for (budget, metric), found in own.values.items():
        base = other.values[budget, metric]
        if metric != "spearman" and found is not None and base is not None:
            yield budget, f"{metric}_beyond_{name}", over_updates(found - base, sick if metric == "recall" else cells, (-1, 1))
