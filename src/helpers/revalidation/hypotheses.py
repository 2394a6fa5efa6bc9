"""Assessment: what labelled texts show of frozen monitors before and after an update. Pure arrays; no model, no file.

Three measures a monitor, rates at the frozen threshold first, each tested against its margin both ways. How claims add up:
"stale" is any one claim among all tests of all monitors, so Holm adjusts all of these. "Fine" needs every measure of a monitor,
so the largest of its p values counts as it is (intersection-union test, Berger 1982), and Hochberg's step-up procedure (1988)
adjusts these over monitors: where all pass at 5 % each, all are fine, which as a claim about all of them needs no adjustment;
else each step that fails asks more of the others. Holm would start at the other end: 100 texts a class without one changed flag
could then never show six monitors fine. Hochberg's holds for tests that err together, as those of monitors on the same texts do.
To keep what one had is not enough: the floors of `floors`, which ask whether a monitor does its job at all, count among the
measures of "fine", and one that is surely missed makes a monitor "unfit", adjusted by Holm over all floors of all monitors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from helpers.revalidation.policy import DEFAULT, GatePolicy
from helpers.stats import paired_aurocs, paired_rates, roc
from helpers.stats.intervals import Estimate
from helpers.stats.p_values import holm
from helpers.stats.paired_aurocs import ALPHA, NEVER
from helpers.stats.paired_rates import LEVEL

WORSE = {"tpr": -1, "fpr": 1, "auroc": -1}  # the sign of a change for the worse; in the order of reading: rates first
MEASURES = tuple(WORSE)
NAMES = {"tpr": "TPR", "fpr": "FPR", "auroc": "AUROC"}
URGENCY = ("stale", "unfit", "inconclusive", "fine", "no update")  # the states, in the order of reading


@dataclass(frozen=True)
class Panel:
    """What k monitors say of the same n labelled texts; a monitor without a frozen threshold has nan in `cuts`.

    nominal: the false-positive rate that the threshold was frozen for. policy: what is asked of each of them.
    """

    names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    groups: np.ndarray
    before: Float[np.ndarray, "k n"]
    after: Float[np.ndarray, "k n"]
    cuts: Float[np.ndarray, " k"]
    nominal: Float[np.ndarray, " k"]
    policy: GatePolicy = DEFAULT

    def take(self, index: np.ndarray, groups: np.ndarray | None = None) -> "Panel":
        """Some of the texts, perhaps several times; then each drawn group needs a name of its own in `groups`."""
        chosen = self.groups[index] if groups is None else groups
        before, after = self.before[:, index], self.after[:, index]
        return replace(self, labels=self.labels[index], groups=chosen, before=before, after=after)


@dataclass(frozen=True)
class Measure:
    """One measure of one monitor: before and after with 95 % intervals, the change (after - before) with one of 90 %.

    needed: labelled texts at which this change, were it the truth, would be decided with 80 % power, "preserved" at 5 %;
    needed_alone: the same at the level that is left to one monitor where all others are not fine. NEVER at the margin itself.
    """

    measure: str
    before: Estimate
    after: Estimate
    change: Estimate
    margin: float
    p_worse: float
    p_preserved: float
    needed: int
    needed_alone: int


@dataclass(frozen=True)
class Call:
    """The state of each of k monitors, and adjusted p values: of every test and floor, and of "fine" for every monitor.

    lost: something was shown worse by more than its margin. missed: floors surely missed now, `first`: before already.
    """

    states: tuple[str, ...]
    lost: Bool[np.ndarray, " k"]
    p_worse: Float[np.ndarray, "k 3"]
    p_preserved: Float[np.ndarray, "k 3"]
    p_fine: Float[np.ndarray, " k"]
    p_fails: Float[np.ndarray, "k 3"]
    missed: Bool[np.ndarray, "k 3"]
    first: Bool[np.ndarray, "k 3"]


# ---------------------------------------------------------------- tests against the margins


@dataclass(frozen=True)
class _Pairs:
    """Flags that changed in one class, monitors in rows, as counts on the effective sample size; `rate`: flagged after."""

    harmed: Float[np.ndarray, " k"]
    helped: Float[np.ndarray, " k"]
    n: Float[np.ndarray, " k"]
    rate: Float[np.ndarray, " k"]


def _pairs(panel: Panel, label: int) -> _Pairs:
    """TPR's pairs (label 1: a lost flag harms) or FPR's (label 0: a gained flag harms)."""
    rows = panel.labels == label
    before, after = (side[:, rows] > panel.cuts[:, None] for side in (panel.before, panel.after))
    harmed, helped = (before & ~after, after & ~before) if label else (after & ~before, before & ~after)
    shares = np.array([paired_rates.effective_share(d, panel.groups[rows]) for d in harmed.astype(float) - helped])
    return _Pairs(harmed.sum(1) * shares, helped.sum(1) * shares, rows.sum() * shares, after.mean(axis=1))


def _alarm_tests(pairs: _Pairs, nominal: np.ndarray, ratio: float) -> Float[np.ndarray, "k 2"]:
    """p of "cries wolf" and of "keeps its promise": FPR above `ratio` x nominal *and* risen by more than the margin, or not so.

    Both must be shown for the first (the larger p counts); either shows the second (twice the smaller, Bonferroni).
    """
    limit = ratio * nominal
    level = (pairs.rate - limit) / np.sqrt(limit * (1 - limit) / pairs.n)  # Wilson's score test
    z = np.array([paired_rates.score_test(pairs.harmed, pairs.helped, pairs.n, limit - nominal), level])
    return np.stack([special.ndtr(-z).max(axis=0), np.minimum(2 * special.ndtr(z).min(axis=0), 1.0)], axis=1)


def p_values(panel: Panel) -> Float[np.ndarray, "k 3 2"]:
    """For each monitor and measure the p of "worse" and of "preserved" at the margin; nan without a threshold or ranking.

    Scores that are the same bit by bit leave nothing to estimate: 1 and 0. All scores one after the update, but not before it:
    the ranking is gone for certain, 0 and 1.
    """
    caught, cried = _pairs(panel, 1), _pairs(panel, 0)
    asked = panel.policy
    z = paired_rates.score_test(caught.harmed, caught.helped, caught.n, asked.tpr_margin)
    drops = paired_aurocs.many_contrasts(panel.labels, panel.before, panel.after, panel.groups, LEVEL)
    ranks = [[of(drop, asked.auroc_margin) for of in (paired_aurocs.worse, paired_aurocs.preserved)] for drop in drops]
    alarms = _alarm_tests(cried, panel.nominal, asked.fpr_ratio_margin)
    found = np.stack([np.stack([special.ndtr(-z), special.ndtr(z)], 1), alarms, np.array(ranks)], 1)
    found[np.isnan(panel.cuts), :2] = np.nan
    found[(np.ptp(panel.after, axis=1) == 0) & (np.ptp(panel.before, axis=1) > 0), 2] = (0.0, 1.0)
    same = (panel.before == panel.after).all(axis=1)
    found[same] = np.where(np.isnan(found[same]), np.nan, (1.0, 0.0))
    return found


# ---------------------------------------------------------------- states


def call(
    p: Float[np.ndarray, "k 3 2"], floors: Float[np.ndarray, "k 3 3"], required: Bool[np.ndarray, " k"], alpha: float = ALPHA
) -> Call:
    """The states of all monitors of a run, whose adjusted p values the head of this module explains.

    p: of "worse" and "preserved"; floors: of one missed and kept now, and missed before. A measure or floor that could not be
    tested leaves a monitor short of "fine". Required monitors and others are two families of "fine", so that nobody pays for
    what is not asked. Chance of an error: "stale" said of any monitor within the margins, at most `alpha`; "unfit" of any that
    does its job, at most that; "fine" said of any required one that is not, at most that. What misses a floor now and missed it
    before is unfit from the start, whatever else it lost; what the update broke is stale.
    """
    p_worse, p_fails, p_failed = (_over_all(part) for part in (p[..., 0], floors[..., 0], floors[..., 2]))
    lost, missed, first = (np.nan_to_num(part, nan=1.0) <= alpha for part in (p_worse, p_fails, p_failed))
    largest = np.nan_to_num(np.concatenate([p[..., 1], floors[..., 1]], axis=1), nan=1.0).max(axis=1)
    p_fine, p_preserved = np.empty(len(p)), np.empty(p.shape[:2])
    for family in (required, ~required):
        p_fine[family] = hochberg(largest[family])
        for measure in range(p.shape[1]):
            p_preserved[family, measure] = _adjusted(p[family, measure, 1], hochberg)
    tiers = [(missed & first).any(axis=1), lost.any(axis=1), missed.any(axis=1), p_fine <= alpha]
    states = np.select(tiers, ["unfit", "stale", "unfit", "fine"], "inconclusive")
    # the tests of a monitor that is shown fine are shown with it
    p_preserved = np.where((states == "fine")[:, None], np.fmin(p_preserved, p_fine[:, None]), p_preserved)
    return Call(tuple(map(str, states)), lost.any(axis=1), p_worse, p_preserved, p_fine, p_fails, missed, first)


def _over_all(p: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k 3"]:
    """Holm's adjusted p values over all measures of all monitors."""
    return _adjusted(p.ravel(), holm).reshape(p.shape)


def hochberg(p: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Hochberg's adjusted p values in the order given (1988): the least of (j-th largest p) * j over it and all larger ones."""
    order = np.argsort(p)[::-1]
    found = np.empty(len(p))
    found[order] = np.minimum(np.minimum.accumulate(p[order] * np.arange(1, len(p) + 1)), 1.0)
    return found


def _adjusted(p: np.ndarray, how: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The tests that could be made, adjusted; the others stay nan."""
    found, tested = p.copy(), np.isfinite(p)
    found[tested] = how(p[tested])
    return found


def answer(p_worse: float, p_preserved: float, alpha: float = ALPHA) -> str:
    """The answer of one test by its adjusted p values."""
    if p_worse <= alpha:
        return "worse"
    return "preserved" if p_preserved <= alpha else "inconclusive"


# ---------------------------------------------------------------- what is shown


def measured(panel: Panel, family: int) -> list[list[Measure]]:
    """The tests of each monitor, those that could be made; `family`: monitors of the whole run, for the n that it takes."""
    p, pairs = p_values(panel), {1: _pairs(panel, 1), 0: _pairs(panel, 0)}
    drops = paired_aurocs.many_contrasts(panel.labels, panel.before, panel.after, panel.groups, LEVEL)
    return [
        [
            *([] if np.isnan(panel.cuts[j]) else [_rate_test(panel, j, label, pairs[label], p[j], family) for label in (1, 0)]),
            *([] if np.isnan(drops[j].estimate.value) else [_rank_test(panel, j, drops[j], p[j], family)]),
        ]
        for j in range(len(panel.names))
    ]


def _rank_test(panel: Panel, j: int, drop: paired_aurocs.Contrast, p: np.ndarray, family: int) -> Measure:
    before, after = (roc.auroc_interval(panel.labels, side[j], panel.groups) for side in (panel.before, panel.after))
    e, margin = drop.estimate, panel.policy.auroc_margin
    change = Estimate(0.0 - e.value, 0.0 - e.high, 0.0 - e.low, e.n)
    needed, alone = (paired_aurocs.needed(drop, margin, alpha) for alpha in _levels(e.value > margin, family, panel.policy.level))
    return Measure("auroc", before, after, change, margin, float(p[2, 0]), float(p[2, 1]), needed, alone)


def _levels(lost: bool, family: int, alpha: float) -> tuple[float, float]:
    """The levels at which a change must pass: a loss among all tests; else alone, and as the hardest of all monitors."""
    return (alpha / (family * len(MEASURES)),) * 2 if lost else (alpha, alpha / family)


def _rate_test(panel: Panel, j: int, label: int, pairs: _Pairs, p: np.ndarray, family: int) -> Measure:
    sides = [roc.rates(panel.labels, side[j], panel.cuts[j], panel.groups)[1 - label] for side in (panel.before, panel.after)]
    harmed, helped, n = (float(part[j]) for part in (pairs.harmed, pairs.helped, pairs.n))
    value, (low, high) = sides[1].value - sides[0].value, paired_rates.score_interval(harmed, helped, n)
    if (panel.before[j] == panel.after[j]).all():
        low = high = 0.0
    change = Estimate(value, *((-high, -low) if label else (low, high)), sides[1].n)
    nominal = float(panel.nominal[j])
    asked = panel.policy
    margin = asked.tpr_margin if label else (asked.fpr_ratio_margin - 1) * nominal
    share = pairs.n[j] / len(panel.labels)  # of a labelled text, in pairs that count
    levels = _levels((harmed - helped) / n > margin, family, asked.level)
    needed = [paired_rates.needed_pairs(harmed, helped, n, margin, alpha) for alpha in levels]
    if not label:  # the promise may also be kept by its level alone, which is the other of two tests
        limit = asked.fpr_ratio_margin * nominal
        by_level = [paired_rates.needed_level(sides[1].value, limit, alpha / 2) for alpha in levels]
        needed = [min(both) for both in zip(needed, by_level, strict=True)]
    rows, alone = (int(min(np.ceil(count / share), NEVER)) for count in needed)
    name = f"{MEASURES[1 - label]}_{100 * nominal:g}"
    return Measure(name, sides[0], sides[1], change, margin, float(p[1 - label, 0]), float(p[1 - label, 1]), rows, alone)


def texts_needed(found: Sequence[Measure], alpha: float = ALPHA) -> int:
    """Labelled texts that would decide an inconclusive monitor.

    The fewest that show a loss, where one is seen; else the most that an open test takes; where all are shown but for the
    adjustment over monitors, what that takes.
    """
    lost = [test.needed for test in found if _sign(test.measure) * test.change.value > test.margin]
    open_ = [test.needed for test in found if test.p_preserved > alpha]
    return min(lost) if lost else max(open_ or [test.needed_alone for test in found], default=NEVER)


def _sign(measure: str) -> int:
    return WORSE[measure.split("_")[0]]


def in_margins(measure: str, change: float, margin: float) -> float:
    """A change in units of its margin, turned so that worse is above 0."""
    return _sign(measure) * change / margin


def harm(found: Sequence[Measure]) -> float:
    """The worst of a monitor's changes in units of its margin, above 0 for the worse; what repairs are chosen by."""
    return max((float(in_margins(test.measure, test.change.value, test.margin)) for test in found), default=np.inf)
