"""The gate: whether a monitor may stay, should be realigned or needs a refit, told by unlabelled texts alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from helpers.monitors import repair_case
from helpers.monitors.frozen import Monitor
from helpers.monitors.realignment import through
from helpers.monitors.repair_case import RepairCase
from helpers.stats.intervals import MARGINS
from helpers.stats.roc import RATES

# ---- set before any result was looked at
DEFAULT = "coral"  # what is done where no gate is asked
CANDIDATES = ("centre", "centre-scale", "coral", "low-rank")  # what the gate chooses from, simplest first
# Were all disagreement noise, an AUROC of 0.90 would fall by 0.04 at a rank correlation of 0.9: just not yet stale.
AGREEMENT = 0.90
ALARM_SHIFT = RATES["5"] * (MARGINS["fpr_ratio"] - 1)  # as many more alarms as make a 5 % false-positive rate stale
GATES = ("deploy", "realign", "refit")


@dataclass(frozen=True)
class Gate:
    """What to do with a monitor by unlabelled texts alone, and the signs: rank agreement of the scores on both models, and by
    how much the share of alarms at the frozen threshold moved, as the monitor is and behind the realignment."""

    choice: str
    agreement_before: float
    agreement_after: float
    alarm_shift_before: float
    alarm_shift_after: float


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two scores of the same texts: 1 where they are the same, else 0 where one is constant."""
    if np.array_equal(first, second):
        return 1.0
    ranks = stats.rankdata(np.array([first, second]), axis=-1)
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=-1).all() else 0.0


def _shift(before: np.ndarray, after: np.ndarray, thresholds: Mapping[str, float]) -> float:
    cut = thresholds.get("5")
    return 0.0 if cut is None else float(abs((after > cut).mean() - (before > cut).mean()))


def gate(before: np.ndarray, after: np.ndarray, realigned: np.ndarray, thresholds: Mapping[str, float]) -> Gate:
    """deploy, realign or refit, from one monitor's scores of held-out unlabelled texts on both models and behind a map.

    A monitor works as it did where its scores agree in rank with those on the original model (AGREEMENT) and the share of
    alarms stays (ALARM_SHIFT; without a threshold there are none). deploy: so as it is; realign: so behind the map; else refit.
    """
    agreements = [agreement(before, scores) for scores in (after, realigned)]
    shifts = [_shift(before, scores, thresholds) for scores in (after, realigned)]
    fine = [value >= AGREEMENT and shift <= ALARM_SHIFT for value, shift in zip(agreements, shifts, strict=True)]
    return Gate(GATES[0] if fine[0] else GATES[1] if fine[1] else GATES[2], *agreements, *shifts)


@dataclass(frozen=True, eq=False)
class GateAnswer:
    """The gate's answer for one monitor: the candidate that it judged, and the held-out scores behind it, with their groups."""

    gate: Gate
    candidate: str
    before: np.ndarray
    after: np.ndarray
    realigned: np.ndarray
    groups: np.ndarray


def judged(case: RepairCase, monitor: Monitor) -> GateAnswer:
    """The gate on unlabelled texts that the maps have not seen: fitted on one half of the groups, judged on the other, both ways.

    Of the candidates whose alarms stay, the one that agrees best; at a tie the simplest.
    """
    index = case.texts[case.read(monitor)]
    old, new = case.score(monitor, index, after=False), case.score(monitor, index)
    if case.dead(monitor):
        return GateAnswer(gate(old, new, new, monitor.thresholds), DEFAULT, old, new, new, case.groups[index])
    parts = repair_case.group_halves(case.groups[index], case.seed)
    found = {}
    for name in CANDIDATES:
        scores = np.empty(len(index))
        for h, part in enumerate(parts):
            readout = through(case.fitted(name, repair_case.place(monitor), f"half-{1 - h}"), monitor.readout)
            scores[part] = case.score(monitor, index[part], readout=readout)
        found[name] = scores
    gates = {name: gate(old, new, scores, monitor.thresholds) for name, scores in found.items()}
    best = max(CANDIDATES, key=lambda name: (gates[name].alarm_shift_after <= ALARM_SHIFT, gates[name].agreement_after))
    return GateAnswer(gates[best], best, old, new, found[best], case.groups[index])
