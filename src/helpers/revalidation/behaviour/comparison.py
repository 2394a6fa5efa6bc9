"""Comparison: what was measured of the same prompts or texts before and after an update, tested against the policy's margins.

Rates by the score test of paired rates (Tango 1998), means by Student's test over groups. Each measure is tested both ways, and
for equivalence by two one-sided tests (Schuirmann 1987): |change| < margin. Pure arrays; no model, no text, no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from helpers.revalidation.hypotheses import answer
from helpers.revalidation.policy import DEFAULT, GatePolicy
from helpers.stats import paired_rates
from helpers.stats.intervals import Estimate, group_scores, mean_interval, rate_interval
from helpers.stats.p_values import holm, tost

HARM = {"refusals": -1, "over-refusals": 1, "length": 0, "nll": 1, "kl": 1}  # sign of a change for the worse; 0: either
UNITS = {"refusals": "share", "over-refusals": "share", "length": "ratio", "nll": "nats", "kl": "nats"}
LEAST = 10  # items, below which nothing is said of them


@dataclass(frozen=True, eq=False)
class PairedItems:
    """One measure of the same n prompts or texts before and after: refused or not, words of a reply, nats a token.

    same: whether all of it is the same bit by bit, which leaves nothing to estimate.
    """

    name: str
    judge: str
    before: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " n"]
    groups: np.ndarray
    same: bool = False

    @property
    def full_name(self) -> str:
        """The measure with the judge, where there is one."""
        return f"{self.name}/{self.judge}" if self.judge else self.name


@dataclass(frozen=True)
class BehaviourChange:
    """One measure with 95 % intervals, its change with one of 90 %, and p values of "worse", "preserved" and "equivalent"."""

    name: str
    judge: str
    unit: str
    n: int
    before: Estimate
    after: Estimate
    change: Estimate
    margin: float
    p_worse: float
    p_preserved: float
    p_equivalent: float


def margins(policy: GatePolicy) -> dict[str, float]:
    """By measure how much worse still counts as the same; of the length the ratio, in either direction."""
    rates = dict.fromkeys(("refusals", "over-refusals"), policy.refusal_margin)
    return {**rates, "length": policy.length_ratio_margin, "nll": policy.nll_margin, "kl": policy.kl_margin}


def compare_items(found: PairedItems, policy: GatePolicy = DEFAULT) -> BehaviourChange:
    """One measure against its margin; bit by bit the same is preserved for certain, and fewer than LEAST items decide nothing."""
    margin = margins(policy)[found.name]
    made = _rates(found, margin) if UNITS[found.name] == "share" else _means(found, margin)
    before, after, change, p = made
    if found.same:
        change, p = Estimate(change.value, change.value, change.value, change.n), (1.0, 0.0, 0.0)
    elif len(found.before) < LEAST or not np.isfinite(p).all():
        p = (1.0, 1.0, 1.0)
    return BehaviourChange(found.name, found.judge, UNITS[found.name], len(found.before), before, after, change, margin, *p)


def _rates(found: PairedItems, margin: float) -> tuple[Estimate, Estimate, Estimate, tuple[float, float, float]]:
    """Shares of refusals, their change, and its tests on the effective sample size."""
    sides = [rate_interval(side, found.groups) for side in (found.before, found.after)]
    differences = HARM[found.name] * (found.after - found.before)
    n = len(differences) * paired_rates.effective_share(differences, found.groups)
    harmed, helped = ((differences == sign).mean() * n for sign in (1, -1))
    low, high = paired_rates.score_interval(harmed, helped, n)
    value = sides[1].value - sides[0].value
    change = Estimate(value, *((low, high) if HARM[found.name] > 0 else (-high, -low)), sides[1].n)
    worse, better = (float(paired_rates.score_test(*both, n, margin)) for both in ((harmed, helped), (helped, harmed)))
    kept = float(special.ndtr(worse))
    return sides[0], sides[1], change, (float(special.ndtr(-worse)), kept, max(kept, float(special.ndtr(better))))


def _means(found: PairedItems, margin: float) -> tuple[Estimate, Estimate, Estimate, tuple[float, float, float]]:
    """Means, their change (of lengths a ratio of geometric means), and its tests over groups."""
    ratio = found.name == "length"
    before, after = (mean_interval(side, found.groups, bounds=(0.0, np.inf)) for side in (found.before, found.after))
    change = np.log((found.after + 1) / (found.before + 1)) if ratio else found.after - found.before
    scores = group_scores(change, found.groups)
    limit, df = (np.log(margin) if ratio else margin), max(len(scores) - 1, 1)
    value, se = np.float64(change.mean()), np.float64(stats.sem(scores) if len(scores) > 1 else np.nan)
    half = stats.t.ppf((1 + paired_rates.LEVEL) / 2, df) * se
    middle, low, high = (float(np.exp(end)) if ratio else float(end) for end in (value, value - half, value + half))
    shown = Estimate(middle, low, high, len(change))
    with np.errstate(divide="ignore", invalid="ignore"):
        up, down = (value - limit) / se, (value + limit) / se
    equivalent = tost(value, se, limit, df)
    if ratio:  # shorter and longer both count: twice the smaller p (Bonferroni)
        return before, after, shown, (min(2 * min(stats.t.sf(up, df), stats.t.cdf(down, df)), 1.0), equivalent, equivalent)
    return before, after, shown, (float(stats.t.sf(up, df)), float(stats.t.cdf(up, df)), equivalent)


# ---------------------------------------------------------------- all of them, as the report holds them


def measures(items: Sequence[PairedItems], policy: GatePolicy = DEFAULT) -> list[dict[str, Any]]:
    """All measures with their answers: "worse" is any one claim among those required (among the others), so Holm adjusts them;
    "preserved" is asked of each, and counts as it is.
    """
    found = [compare_items(one, policy) for one in items]
    asked = np.array([is_required(one.full_name, policy) for one in items], dtype=bool)
    adjusted = np.empty(len(found))
    for family in (asked, ~asked):
        adjusted[family] = holm(np.array([one.p_worse for one in found])[family])
    return [
        {
            **asdict(one), "name": item.full_name, "required": bool(must), "p_worse_adjusted": float(p),
            "answer": answer(float(p), one.p_preserved, policy.level),
        }
        for one, item, must, p in zip(found, items, asked, adjusted, strict=True)
    ]  # fmt: skip


def is_required(full_name: str, policy: GatePolicy) -> bool:
    """Whether a measure is among the required behaviour; a name without a judge asks for it by every judge."""
    return full_name in policy.behaviour or full_name.partition("/")[0] in policy.behaviour


def record(items: Sequence[PairedItems]) -> list[dict[str, Any]]:
    """The measures item by item, as plain values, from which they can be judged anew; groups by number."""
    return [
        {
            "name": one.name, "judge": one.judge, "same": one.same, "before": one.before.tolist(), "after": one.after.tolist(),
            "groups": np.unique(one.groups, return_inverse=True)[1].tolist(),
        }
        for one in items
    ]  # fmt: skip


def from_record(rows: Sequence[Mapping[str, Any]]) -> list[PairedItems]:
    """The measures that were recorded."""
    return [
        PairedItems(
            row["name"], row["judge"], np.array(row["before"], dtype=float), np.array(row["after"], dtype=float),
            np.array(row["groups"], dtype=int), bool(row["same"]),
        )
        for row in rows
    ]  # fmt: skip
