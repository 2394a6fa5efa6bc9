"""Repair measures: what one rung of the ladder made of one monitor, paired on the same test texts; the unit is the group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from helpers.monitors import readings, repairs, stale
from helpers.monitors.frozen import Monitor
from helpers.monitors.readings import Rows
from helpers.monitors.repair_case import RepairCase
from helpers.monitors.repairs import RUNGS, Repaired
from helpers.monitors.stale import Answer
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import MARGINS, Estimate, group_codes, rate_interval

LEVEL = "5"  # the threshold that is looked at: that of 5 % false alarms


@dataclass(frozen=True, eq=False)
class Measured:
    """One monitor after one rung: its measures, and on which test texts its alarm differs from that on the original model."""

    repaired: Repaired
    values: dict[str, Estimate]
    changed: np.ndarray
    test: Rows

    @property
    def stale(self) -> bool:
        return self.values["stale_any"].value == 1


def measure(case: RepairCase, monitors: Sequence[Monitor], rungs: Sequence[str] = tuple(RUNGS)) -> list[Measured]:
    """Each of the rungs that applies to each monitor, measured on the task's test texts; `none`, which others are held against,
    must be among them."""
    test = case.rows["test"]
    test = replace(test, groups=group_codes(test.groups, len(test.groups)))
    found = []
    for monitor in monitors:
        methods = [name for name in rungs if not repairs.missing(name, monitor, case)]
        found += [repairs.apply(name, monitor, case) for name in methods]
    old = {m.name: case.score(m, test.index, after=False) for m in monitors}
    none = {one.monitor.name: one.scores for one in found if one.method == "none"}
    now = np.array([one.scores for one in found])
    picked = {m.name: _picked(case.rows["test"], old[m.name], none[m.name]) for m in monitors}
    drops, losses = (
        paired_aurocs.many_contrasts(test.labels, np.array([side[one.monitor.name] for one in found]), now, test.groups)
        for side in (old, none)
    )
    measured = []
    for one, drop, loss in zip(found, drops, losses, strict=True):
        name = one.monitor.name
        split = _gain_on_other_half(test, none[name], one.scores, picked[name])
        measured.append(_measured(one, old[name], test, drop, loss, split))
    return measured


def _picked(test: Rows, before: np.ndarray, after: np.ndarray) -> list[np.ndarray]:
    """The other half, as rows, for each half of the test texts on which the monitor is stale by AUROC.

    What is picked and judged on the same texts looks worse than it is, and seems to recover by whatever is done to it.
    """
    side, found = readings.hashed_halves(test), []
    for half in (0, 1):
        own = side == half
        if len(set(test.labels[own].tolist())) == len(set(test.labels[~own].tolist())) == 2:
            drop = paired_aurocs.auroc_contrast(test.labels[own], np.array([before[own], after[own]]), (1, -1), test.groups[own])
            found += [~own] if stale.by_loss(drop.estimate, stale.DROPS["05"])[0] else []
    return found


def _gain_on_other_half(test: Rows, none: np.ndarray, now: np.ndarray, halves: Sequence[np.ndarray]) -> dict[str, Estimate]:
    """What the rung gave back of AUROC where the monitor was not picked: on one half, or the mean of both; {} if not picked."""
    both = np.array([now, none])
    gains = [paired_aurocs.auroc_contrast(test.labels[h], both[:, h], (1, -1), test.groups[h]) for h in halves]
    gains = [gain for gain in gains if np.isfinite(gain.estimate.value)]
    return {"auroc_gain_split": paired_aurocs.combine(gains).estimate} if gains else {}


def _measured(
    one: Repaired, before: np.ndarray, test: Rows, drop: paired_aurocs.Contrast, loss: paired_aurocs.Contrast,
    split: Mapping[str, Estimate],
) -> Measured:  # fmt: skip
    """The measures of one monitor after one rung; `drop` is against the original model, `loss` against no repair at all."""
    ranked = np.isfinite(drop.estimate.value)  # else all scores are tied, before or after
    values = {"auroc_drop": drop.estimate, "auroc_gain": stale.negative(loss.estimate), **split}
    if ranked:
        values["auroc"] = roc.auroc_interval(test.labels, one.scores, test.groups)
    answers = [stale.by_loss(drop.estimate, stale.DROPS["05"]) if ranked else _tied(before, one.scores)]
    frozen, cut, changed = one.monitor.thresholds.get(LEVEL), one.thresholds.get(LEVEL), np.zeros(len(before), bool)
    if frozen is not None and cut is not None:
        alarmed, alarms, positive = before > frozen, one.scores > cut, test.labels == 1
        changed = alarmed != alarms
        values["tpr_5"], values["fpr_5"] = roc.rates(test.labels, one.scores, cut, test.groups)
        values["alarms_changed"] = rate_interval(changed, test.groups)
        lost = stale.lost_alarms(alarmed[positive], alarms[positive], test.groups[positive])
        answers += [stale.by_loss(lost, MARGINS["tpr"]), stale.by_false_alarms(values["fpr_5"], LEVEL)]
    values["stale_any"] = stale.flag(len(before), *answers)
    costs = {"cost_texts": one.cost_texts, "cost_labels": one.cost_labels}
    values |= {name: Estimate(float(c), float(c), float(c), len(before)) for name, c in costs.items()}
    return Measured(one, values, changed, test)


def _tied(before: np.ndarray, after: np.ndarray) -> Answer:
    """A monitor that says the same of every text, and did not, has lost its ranking altogether."""
    lost = bool(np.ptp(before) > 0 and np.ptp(after) == 0)
    return lost, lost, lost
