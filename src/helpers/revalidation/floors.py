"""Floors: does a monitor do its job, before and after an update, whatever it lost or kept? Pure arrays; no model, no file.

Each floor of the policy is tested both ways. "Unfit" is any one floor surely missed, so Holm adjusts all floors of all monitors;
"fit" needs all of them, so the largest p value of a monitor counts as it is, together with those of "preserved"
(`hypotheses.call`). Rates by the exact binomial test on the effective sample size (Clopper and Pearson 1934), so that a sample
that is too small leaves a floor open and never shows it; the ranking by Student's test on the variance of Obuchowski.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from helpers.revalidation import hypotheses
from helpers.revalidation.hypotheses import MEASURES, Measure, Panel
from helpers.stats import paired_rates, roc
from helpers.stats.paired_aurocs import ALPHA, NEVER, POWER

ABOVE = {"tpr": True, "fpr": False, "auroc": True}  # on which side of its floor a monitor does its job


@dataclass(frozen=True)
class Floor:
    """One floor of one monitor: what was measured before and after, the limit, p values of missed and kept after the update.

    p_failed: of missed before. needed: labelled texts at which this value, were it the truth, would decide with 80 % power.
    """

    measure: str
    limit: float
    before: float
    after: float
    p_fails: float
    p_holds: float
    p_failed: float
    needed: int


def limits(panel: Panel) -> Float[np.ndarray, "k 3"]:
    """What each monitor's TPR, FPR and AUROC are held against."""
    asked = panel.policy
    ones = np.ones(len(panel.names))
    return np.stack(
        [asked.tpr_floor * ones, np.minimum(asked.fpr_ratio_ceiling * panel.nominal, 1), asked.auroc_floor * ones], axis=1
    )


def floor_tests(panel: Panel) -> Float[np.ndarray, "k 3 3"]:
    """For each monitor and measure the p of "misses its floor" and "keeps it" after the update, and of "missed it" before.

    nan where nothing can be measured: a rate without a threshold, a ranking of tied scores after.
    """
    (fails, holds), (failed, _) = (_both(panel, scores) for scores in (panel.after, panel.before))
    return np.stack([fails, holds, failed], axis=2)


def _both(panel: Panel, scores: Float[np.ndarray, "k n"]) -> tuple[Float[np.ndarray, "k 3"], Float[np.ndarray, "k 3"]]:
    """p of a floor missed and of a floor kept, by monitor and measure."""
    bounds, columns = limits(panel), []
    for place, label in ((0, 1), (1, 0)):
        rows = panel.labels == label
        counts, n = _counts(scores[:, rows] > panel.cuts[:, None], panel.groups[rows])
        columns.append(_binomial(counts, n, bounds[:, place]))
    value, se, df = roc.auroc_errors(panel.labels, scores, panel.groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (value - bounds[:, 2]) / se
    columns.append((stats.t.cdf(t, df), stats.t.sf(t, df)))
    low, high = (np.stack([column[side] for column in columns], axis=1) for side in (0, 1))
    for found in (low, high):
        found[np.isnan(panel.cuts), :2] = np.nan
    up = np.array([ABOVE[kind] for kind in MEASURES])
    return np.where(up, low, high), np.where(up, high, low)


def _counts(flags: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flags and rows of each monitor on the effective sample size, which may be broken numbers."""
    alone = np.unique(groups).size == groups.size
    shares = np.array([1.0 if alone else paired_rates.effective_share(row, groups) for row in flags.astype(float)])
    return flags.sum(axis=1) * shares, flags.shape[1] * shares


def _binomial(count: np.ndarray, n: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(X <= count) and P(X >= count) of a binomial with `n` draws at the rate `limit`, by the incomplete beta function."""
    rest, tiny = n - count, 1e-9
    at_most = np.where(rest > tiny, special.betainc(np.maximum(rest, tiny), count + 1, 1 - limit), 1.0)
    at_least = np.where(count > tiny, special.betainc(np.maximum(count, tiny), rest + 1, limit), 1.0)
    return at_most, at_least


# ---------------------------------------------------------------- what is shown


def measured_floors(panel: Panel, family: int) -> list[list[Floor]]:
    """The floors of each monitor, those that could be tested; `family`: monitors of the whole run, for the n that it takes."""
    p, bounds, spread = floor_tests(panel), limits(panel), _spreads(panel)
    old, new = (_values(panel, scores) for scores in (panel.before, panel.after))

    def floor(j: int, m: int) -> Floor:
        kind, limit, value = MEASURES[m], float(bounds[j, m]), float(new[j, m])
        fails, holds, failed = (float(part) for part in p[j, m])
        needed = _needed(kind, value, limit, spread[j, m], family, panel.policy.level)
        return Floor(_name(kind, panel.nominal[j]), limit, float(old[j, m]), value, fails, holds, failed, needed)

    tested = np.isfinite(p[..., :2]).all(axis=2)
    return [[floor(j, m) for m in range(len(MEASURES)) if tested[j, m]] for j in range(len(panel.names))]


def _name(kind: str, nominal: float) -> str:
    return kind if kind == "auroc" else f"{kind}_{100 * nominal:g}"


def _values(panel: Panel, scores: np.ndarray) -> Float[np.ndarray, "k 3"]:
    """TPR, FPR and AUROC of each monitor."""
    flags = scores > panel.cuts[:, None]
    rates = [flags[:, panel.labels == label].mean(axis=1) for label in (1, 0)]
    return np.stack([*rates, roc.auroc(panel.labels, scores)], axis=1)


def _spreads(panel: Panel) -> Float[np.ndarray, "k 3"]:
    """Labelled texts for one effective row of a rate; of the ranking its standard error times the root of n."""
    n, found = len(panel.labels), []
    for label in (1, 0):
        rows = panel.labels == label
        found.append(n / _counts(panel.after[:, rows] > panel.cuts[:, None], panel.groups[rows])[1])
    return np.stack([*found, roc.auroc_errors(panel.labels, panel.after, panel.groups)[1] * np.sqrt(n)], axis=1)


def _needed(kind: str, value: float, limit: float, spread: float, family: int, alpha: float) -> int:
    """Labelled texts that would show this value on its side of the limit; a miss counts among all floors of all monitors."""
    gap, kept = abs(value - limit), (value > limit) == ABOVE[kind]
    if not gap > 0:
        return NEVER
    high, power = special.ndtri([1 - (alpha if kept else alpha / (family * len(MEASURES))), POWER])
    if kind == "auroc":
        rows = (spread * (high + power) / gap) ** 2
    else:
        null, own = (np.sqrt(rate * (1 - rate)) for rate in (limit, value))
        rows = spread * ((high * null + power * own) / gap) ** 2
    return int(min(np.ceil(rows), NEVER))


def texts_asked(measures: Sequence[Measure], found: Sequence[Floor], alpha: float = ALPHA) -> int:
    """Labelled texts that would decide an inconclusive monitor, by its changes and its floors together.

    Where a floor seems to be missed, the fewest that would show a loss or a miss; else what the hardest open one takes.
    """
    wrong = [one.needed for one in open_floors(found, alpha) if (one.after > one.limit) != ABOVE[one.measure.split("_")[0]]]
    lost, asked = hypotheses.harm(measures) > 1, hypotheses.texts_needed(measures, alpha)
    if wrong:
        return min([*wrong, *([asked] if lost else [])])
    still_open = [one.needed for one in open_floors(found, alpha)]
    changes = lost or not still_open or any(one.p_preserved > alpha for one in measures)
    return asked if lost else max([*still_open, *([asked] if changes else [])])


def open_floors(found: Sequence[Floor], alpha: float = ALPHA) -> list[Floor]:
    """The floors that are shown neither kept nor missed, each at the level."""
    return [one for one in found if min(one.p_holds, one.p_fails) > alpha]
