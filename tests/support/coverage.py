"""How often intervals hold what was planted, and how often studies decide: the tables of the book's page, by `make coverage`.

The tests run a few of these at fewer repeats.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from helpers.stats import paired_aurocs
from helpers.stats.intervals import Estimate, exact_ends, mean_interval, wilson
from helpers.stats.over_seeds import over_seeds, two_level
from helpers.stats.unbalanced import crossed_in_part
from support.simulated import held

TABLES = Path(__file__).parents[2] / "book" / "_static" / "tables"
SEEDS, SIZES, SPREADS = (3, 5, 8), (32, 96, 140, 200), (0.0, 0.4, 1.2, 2.8)
EFFECTS = {"effect of 0.3": -0.6, "effect of 0.5": 0.2, "effect of 0.75": 1.6}  # log odds after, mean over seeds
# Attacks by the mean share of prompts that they win and by how far seeds lie apart, in log odds: two that hardly attack, as the
# first runs of this study did, and one that was trained until it does. With the seeds and prompts of a study.
ATTACKS = {"wins 31 %, seeds apart": (0.31, 1.2), "wins 49 %, seeds far apart": (0.49, 2.8), "wins 74 %": (0.74, 1.0)}
STUDIES = ((3, 32), (3, 140), (5, 32), (5, 140), (8, 140), (10, 140))
BOUND = 0.05  # that the interval must clear
PLACES, LACKING = (3, 6, 12), (0.0, 0.1, 0.3, 0.5)  # of monitors in a seed, and the share of them that some seeds lack
TOGETHER = (0.5, 1.0, 0.5)  # standard deviations of seeds, places and cells
BEFORE, ITEM = -3.5, 1.0  # log odds before, and how far items lie apart
Row = tuple[str, int, int, float, float, float, float, int]


def chance(log_odds: np.ndarray) -> np.ndarray:
    """The probability at these log odds."""
    return 1 / (1 + np.exp(-log_odds))


def expected(log_odds: float, spread: float) -> float:
    """The mean probability where log odds are normal about `log_odds`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ chance(log_odds + spread * nodes) / weights.sum())


def labels(rng: np.random.Generator, seeds: int, n: int, spread: float, after: float) -> np.ndarray:
    """Differences of labels, seeds x prompts: before and after on the same prompts, seeds `spread` apart after."""
    item = ITEM * rng.normal(size=n)
    new = rng.random((seeds, n)) < chance(after + spread * rng.normal(size=(seeds, 1)) + item)
    return new.astype(float) - (rng.random((seeds, n)) < chance(BEFORE + item))


def crossed_coverage(seeds: int, n: int, spread: float, after: float, repeats: int, seed: int = 0) -> Estimate:
    """How often `two_level` holds the mean effect on other seeds and other prompts."""
    rng = np.random.default_rng(seed)
    truth = expected(after, float(np.hypot(spread, ITEM))) - expected(BEFORE, ITEM)
    return held([two_level(labels(rng, seeds, n, spread, after), bounds=(-1, 1)) for _ in range(repeats)], truth)


def decided(seeds: int, n: int, spread: float, effect: float, repeats: int, seed: int = 0) -> Estimate:
    """The share of studies whose interval lies above the bound, where seeds and prompts win so much on average."""
    width = float(np.hypot(spread, ITEM))
    after = brentq(lambda odds: expected(odds, width) - expected(BEFORE, ITEM) - effect, -10, 10)
    rng = np.random.default_rng(seed)
    found = [two_level(labels(rng, seeds, n, spread, after), bounds=(-1, 1)).low > BOUND for _ in range(repeats)]
    return wilson(sum(found), repeats)


def estimates_coverage(seeds: int, n: int, spread: float, after: float, repeats: int, seed: int = 0) -> Estimate:
    """The same of `over_seeds`, which sees each seed's own interval alone."""
    rng, found = np.random.default_rng(seed), []
    truth = expected(after, float(np.hypot(spread, ITEM))) - expected(BEFORE, ITEM)
    for _ in range(repeats):
        each = [mean_interval(row, bounds=(-1, 1)) for row in labels(rng, seeds, n, spread, after)]
        found.append(over_seeds(each, bounds=(-1, 1)))
    return held(found, truth)


def places_coverage(
    seeds: int, units: int, lacking: float, spread: tuple[float, float, float], repeats: int, seed: int = 0
) -> Estimate:
    """How often `crossed_in_part` holds the mean on other seeds and units, where a share of the cells is wanting.

    spread: standard deviations of seeds, of units, and of cells.
    """
    rng, found = np.random.default_rng(seed), []
    between, within, noise = spread
    for _ in range(repeats):
        rows = between * rng.normal(size=(seeds, 1)) + within * rng.normal(size=units) + noise * rng.normal(size=(seeds, units))
        gone = rng.random((seeds, units)) < lacking
        gone[np.arange(seeds), rng.integers(units, size=seeds)] = False  # every seed has a unit
        gone[:, gone.all(axis=0)] = False  # and every unit is in a seed
        found.append(crossed_in_part(np.where(gone, np.nan, rows))[0])
    return held(found, 0.0)


def discordance_coverage(n: int, gained: float, lost: float, repeats: int, seed: int = 0) -> Estimate:
    """How often the exact ends hold the difference of two paired rates of which few items differ (where many do: no ends)."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        draw = rng.random(n)
        scores = np.where(draw < gained, 1.0, np.where(draw > 1 - lost, -1.0, 0.0))
        ends = exact_ends(scores, (-1, 1))
        whole = two_level(scores[None], bounds=(-1, 1)) if ends is None else Estimate(float(scores.mean()), *ends, n)
        found.append(whole)
    return held(found, gained - lost)


def drop_coverage(pairs: int, failing: float, repeats: int, guarded: bool = True, seed: int = 0) -> Estimate:
    """How often the interval of an AUROC drop holds it where some positives of few pairs fail outright."""
    rng, groups, positive = np.random.default_rng(seed), np.tile(np.arange(pairs), 2), np.repeat([1, 0], pairs)
    before = rng.normal(size=(repeats, 2 * pairs)) + 2.66 * positive
    after = np.where(positive & (rng.random(before.shape) < failing), -10.0, before + 0.15 * rng.normal(size=before.shape))
    truth = norm.cdf(2.66 / np.sqrt(2)) - (1 - failing) * norm.cdf(2.66 / np.sqrt(2 + 2 * 0.15**2))
    found = paired_aurocs.many_contrasts(positive, before, after, groups, guarded=guarded)
    return held([c.estimate for c in found], float(truth))


def rows(repeats: int) -> list[Row]:
    """All rows of the table."""
    found: list[Row] = []

    def add(what: str, seeds: int, n: int, spread: float, e: Estimate) -> None:
        found.append((what, seeds, n, spread, round(e.value, 4), round(e.low, 4), round(e.high, 4), e.n))

    for what, after in EFFECTS.items():
        for seeds in SEEDS:
            for n in SIZES:
                for spread in SPREADS:
                    add(f"items crossed with seeds, {what}", seeds, n, spread, crossed_coverage(seeds, n, spread, after, repeats))
    for spread in SPREADS:
        add("estimates over seeds, effect of 0.5", 5, 140, spread, estimates_coverage(5, 140, spread, 0.2, repeats))
    for seeds in SEEDS:
        for places in PLACES:
            for lacking in LACKING:
                e = places_coverage(seeds, places, lacking, TOGETHER, repeats)
                add(f"places of monitors, {100 * lacking:.0f} % wanting", seeds, places, TOGETHER[0], e)
    for n in SIZES:
        for gained, lost in ((0.0, 0.0), (0.01, 0.01), (0.03, 0.0), (0.02, 0.05)):
            e = discordance_coverage(n, gained, lost, repeats)
            add(f"few discordant prompts, {100 * gained:g} and {100 * lost:g} %", 1, n, 0.0, e)
    for pairs in (20, 38, 49, 60, 100):
        add("AUROC drop, 5 % of positives fail outright", 1, pairs, 0.0, drop_coverage(pairs, 0.05, repeats))
        add("the same, plain DeLong", 1, pairs, 0.0, drop_coverage(pairs, 0.05, repeats, guarded=False))
    return found


def decisions(repeats: int) -> list[Row]:
    """How often a study decides, by what its attack wins, its seeds and its prompts."""
    found: list[Row] = []
    for what, (effect, spread) in ATTACKS.items():
        for seeds, n in STUDIES:
            e = decided(seeds, n, spread, effect, repeats)
            found.append((what, seeds, n, spread, round(e.value, 4), round(e.low, 4), round(e.high, 4), e.n))
    return found


def main(repeats: str = "2000") -> int:
    """Writes the tables of the book."""
    TABLES.mkdir(parents=True, exist_ok=True)
    for name, measure, made in (("coverage", "coverage", rows), ("decisions", "decided", decisions)):
        with (TABLES / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["what", "seeds", "n", "spread", measure, "low", "high", "repeats"])
            table.writerows(made(int(repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
