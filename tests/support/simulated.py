"""Simulated test sets, and how often intervals hold the truth that was planted in them."""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from helpers.stats.intervals import Estimate, wilson


def coverage(
    function: Callable[..., Estimate],
    draw: Callable[[np.random.Generator], tuple],
    truth: float,
    repeats: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How often `function(*draw(rng))` holds `truth`, with Wilson's interval; a nan bound counts as a miss."""
    rng = np.random.default_rng(seed)
    found = [function(*draw(rng)) for _ in range(repeats)]
    return wilson(sum(estimate.low <= truth <= estimate.high for estimate in found), repeats)


def two_classes(n: int) -> np.ndarray:
    """n positives, then n negatives."""
    return np.repeat([1, 0], n)


def pairs(n: int) -> np.ndarray:
    """Row i of the positives and row i of the negatives are one group."""
    return np.tile(np.arange(n), 2)


def noise(rng, repeats: int, groups: np.ndarray, shared: float) -> np.ndarray:
    """Standard normal noise, a part `shared` of whose variance belongs to the group."""
    common = rng.normal(size=(repeats, groups.max() + 1))[:, groups]
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.normal(size=(repeats, groups.size))


def shift(auroc: float) -> float:
    """How far apart two normal classes of variance 1 are at that AUROC."""
    return ndtri(auroc) * math.sqrt(2)


def held(estimates, truth: float) -> Estimate:
    """The share of intervals that hold the truth, with its own interval."""
    return wilson(sum(e.low - 1e-12 <= truth <= e.high + 1e-12 for e in estimates), len(estimates))


def assert_covers(found: Estimate, low: float = 0.93, high: float = 0.97) -> None:
    """Coverage within the band, allowing for the simulation's own error."""
    assert found.low <= high, found
    assert found.high >= low, found


def rejections(p_values) -> Estimate:
    """The share of p <= 0.05, with its own interval."""
    return wilson(int((np.asarray(p_values) <= 0.05).sum()), len(p_values))


def tied_scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, tied scores of three monitors, and unequal groups of one or both classes."""
    rng = np.random.default_rng(1)
    labels = (rng.random(90) < 0.4).astype(int)
    return labels, np.round(rng.normal(size=(3, 90)) + labels, 1), rng.integers(0, 30, 90)


def plain_placements(labels, scores):
    """V10 and V01 from all pairs, O(m n)."""
    wins = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (scores[labels == 1][:, None] == scores[labels == 0])
    return wins.mean(axis=1), wins.mean(axis=0)
