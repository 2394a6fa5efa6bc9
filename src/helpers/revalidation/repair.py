"""Mending: what repairs a user's stale monitor, cheapest first, and what that is worth on labels that did not choose it.

Maps and thresholds are fitted on unlabelled texts under both models and take no label. The method is chosen by labels in
cross-fitting: each half of the groups is judged with what the other half chose, so that the effect is not that of the best of k
on its own rows. A refit takes labels: each half is scored by a probe that was fitted on the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from helpers.errors import StudyError
from helpers.monitors import probes, realignment, repairs
from helpers.monitors.frozen import Monitor
from helpers.monitors.readouts import Features
from helpers.revalidation import error_rates, hypotheses
from helpers.revalidation.hypotheses import Measure, Panel
from helpers.revalidation.screening import ENOUGH, FEW

MAPS = ("centre", "coral", "procrustes", "low-rank")
THRESHOLD, REFIT = "threshold", "refit"
Seen = tuple[float | None, float | None]  # agreement of flags and share of alarms on held-out texts


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class MonitorTexts:
    """What one monitor reads of the unlabelled texts under both models; states: what its maps are fitted on, before and after."""

    monitor: Monitor
    before: Features
    after: Features
    states: tuple[np.ndarray, np.ndarray]

    @property
    def level(self) -> str:
        """The threshold that is judged, by its name in percent; "" without one."""
        cuts = self.monitor.thresholds
        return "5" if "5" in cuts else next(iter(cuts), "")


@dataclass(frozen=True, eq=False)
class LabelledTexts(MonitorTexts):
    """The same with the labelled texts as it reads them under the updated model, and their panel."""

    labelled: Features
    panel: Panel


@dataclass(frozen=True)
class Tried:
    """One repair: how often its flags of held-out unlabelled texts are those before the update, and its effect on labels.

    agreement and alarms, without a label: fitted on one half of the texts, seen on the other, both ways. measures: on all labels.
    """

    method: str
    uses_labels: bool
    agreement: float | None
    alarms: float | None
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Mended:
    """What was tried on a monitor; where a repair is worth shipping, its method, the new monitor, and its cross-fitted effect."""

    tried: tuple[Tried, ...]
    chosen: str | None
    monitor: Monitor | None
    effect: tuple[Measure, ...]
    state: str | None
    reason: str


# ---------------------------------------------------------------- repairs: case and texts -> a new monitor


def _mapped(case: MonitorTexts, rows: np.ndarray, method: str, seed: int) -> Monitor:
    """The frozen readout behind a map from the updated model's states to the original's, folded into its weights."""
    before, after = case.states
    found = realignment.fit_map(method, before[rows], after[rows], seed)
    return _with(case.monitor, realignment.through(found, case.monitor.readout).tensors)


def _with(monitor: Monitor, tensors: Mapping[str, np.ndarray]) -> Monitor:
    """The monitor with other tensors, in the form in which monitors are frozen."""
    return replace(monitor, tensors={name: np.array(tensor, dtype="<f8", order="C") for name, tensor in tensors.items()})


def _rethresholded(case: MonitorTexts, rows: np.ndarray, monitor: Monitor) -> Monitor:
    """The monitor with thresholds that as many of the texts lie above, under the updated model, as before the update."""
    old, new = case.monitor.score(case.before.take(rows)), monitor.score(case.after.take(rows))
    cuts = {level: repairs.matched(cut, old, new) for level, cut in case.monitor.thresholds.items()}
    return replace(monitor, thresholds=cuts, negatives=len(rows))


def _without_labels(case: MonitorTexts, rows: np.ndarray, method: str, seed: int) -> Monitor:
    if method == THRESHOLD:
        return _rethresholded(case, rows, case.monitor)
    return _mapped(case, rows, method, seed)


def _refitted(case: LabelledTexts, rows: np.ndarray, every: np.ndarray, seed: int) -> Monitor:
    """A probe of the same kind and strength on labelled rows of the updated model; its thresholds by the unlabelled texts."""
    again = probes.refit(case.monitor.readout, case.labelled.take(rows), case.panel.labels[rows], seed, case.monitor.name)
    return _rethresholded(case, every, _with(case.monitor, again.tensors))


# ---------------------------------------------------------------- what they are worth


def _halves(groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """0 or 1 for each row: whole groups dealt out in random order, those of one class and of both apart."""
    codes, rng = np.unique(groups, return_inverse=True)[1], np.random.default_rng(seed)
    rate = np.bincount(codes, labels) / np.bincount(codes)
    kinds, half = np.sign(rate - 0.5) * (np.abs(rate - 0.5) == 0.5), np.zeros(codes.max() + 1, dtype=int)
    for kind in np.unique(kinds):
        members = rng.permutation(np.flatnonzero(kinds == kind))
        half[members] = np.arange(len(members)) % 2
    return half[codes]


def _margins(case: MonitorTexts, monitor: Monitor, features: Features) -> np.ndarray:
    """Scores in standard deviations above the threshold on the unlabelled texts, so that those of two monitors can be mixed."""
    cut, spread = monitor.thresholds.get(case.level, 0.0), float(monitor.score(case.after).std()) or 1.0
    return (monitor.score(features) - cut) / spread


def _panel(case: LabelledTexts, scores: np.ndarray, rows: np.ndarray | None = None) -> Panel:
    """Repaired scores, in `_margins`, against those of the frozen monitor before the update."""
    spread = float(case.monitor.score(case.before).std()) or 1.0
    cut = case.monitor.thresholds.get(case.level, np.nan)
    before = (case.panel.before - (0.0 if np.isnan(cut) else cut)) / spread
    panel = replace(case.panel, before=before, after=scores[None], cuts=np.array([np.nan if np.isnan(cut) else 0.0]))
    return panel if rows is None else panel.take(rows)


def _judged(case: LabelledTexts, scores: np.ndarray, rows: np.ndarray | None = None) -> tuple[Measure, ...]:
    return tuple(hypotheses.measured(_panel(case, scores, rows), 1)[0])


def _held_out(case: MonitorTexts, method: str, seed: int) -> Seen:
    """Agreement of flags and alarm rate on unlabelled texts, each half by what was fitted on the other."""
    n = len(case.before)
    if not case.level:
        return None, None
    first, second = realignment.halves(n, None, seed)
    old, new = case.monitor.score(case.before) > case.monitor.thresholds[case.level], np.zeros(n, dtype=bool)
    for fitted, seen in ((first, second), (second, first)):
        monitor = _without_labels(case, fitted, method, seed)
        new[seen] = monitor.score(case.after.take(seen)) > monitor.thresholds[case.level]
    return float((old == new).mean()), float(new.mean())


# ---------------------------------------------------------------- all of them


def mend(case: MonitorTexts, seed: int = 0) -> Mended:
    """What repairs a stale monitor: every map, a new threshold, and with enough labels a refit; the best one, if it holds.

    Without labels nothing is chosen, since nothing shows that the monitor still tells what it told.
    """
    n = len(case.before)
    methods = [*(MAPS if n >= FEW else ()), *([THRESHOLD] if case.level and n >= FEW else [])]
    made: dict[str, Monitor] = {}
    seen: dict[str, Seen] = {}
    left = []
    for method in methods:
        try:
            made[method], seen[method] = _without_labels(case, np.arange(n), method, seed), _held_out(case, method, seed)
        except StudyError:  # such as constant states: this repair is none here, others may be
            left.append(method)
    if not isinstance(case, LabelledTexts):
        tried = tuple(Tried(method, False, *seen[method], ()) for method in made)
        return Mended(tried, None, None, (), None, "no labels: what looks mended is not shown to be")
    found = _with_labels(case, made, seen, left, seed)
    return replace(found, reason=f"{found.reason}; could not be fitted: {', '.join(left)}") if left else found


def _with_labels(case: LabelledTexts, made: dict[str, Monitor], seen: Mapping[str, Seen], left: list[str], seed: int) -> Mended:
    """The choice among what was fitted without labels and, where there are enough, a refit; one that fails joins `left`."""
    n = len(case.before)
    scores = {method: _margins(case, monitor, case.labelled) for method, monitor in made.items()}
    tried = [Tried(method, False, *seen[method], _judged(case, found)) for method, found in scores.items()]
    half = _halves(case.panel.groups, case.panel.labels, seed)
    if min(np.bincount(case.panel.labels, minlength=2)) >= ENOUGH and n >= FEW:
        try:
            crossed, again = _cross_fitted(case, half, seed), _refitted(case, np.arange(len(half)), np.arange(n), seed)
        except StudyError:
            left.append(REFIT)
        else:
            scores[REFIT], made[REFIT] = crossed, again
            tried.append(Tried(REFIT, True, None, None, _judged(case, crossed)))
    return _chosen(case, tried, made, scores, half)


def _cross_fitted(case: LabelledTexts, half: np.ndarray, seed: int) -> np.ndarray:
    """Scores of every labelled text by a probe that was fitted on the other half."""
    scores, every = np.zeros(len(half)), np.arange(len(case.before))
    for side in (0, 1):
        rows, held = np.flatnonzero(half != side), np.flatnonzero(half == side)
        scores[held] = _margins(case, _refitted(case, rows, every, seed), case.labelled.take(held))
    return scores


def _chosen(
    case: LabelledTexts, tried: Sequence[Tried], made: Mapping[str, Monitor], scores: Mapping[str, np.ndarray], half: np.ndarray
) -> Mended:
    """The repair with the least harm on all labels, cheapest first where equal, and the effect of choosing so, cross-fitted."""
    if not scores:
        return Mended(tuple(tried), None, None, (), None, f"nothing to try: fewer than {FEW} unlabelled texts")
    crossed = np.zeros(len(half))
    for side in (0, 1):
        rows = np.flatnonzero(half != side)
        best = min(scores, key=lambda method: hypotheses.harm(_judged(case, scores[method], rows)))
        crossed[half == side] = scores[best][half == side]
    effect = _judged(case, crossed)
    state = error_rates.judge_states([_panel(case, crossed)], np.array([True])).states[0]
    if state in {"stale", "unfit"} or hypotheses.harm(effect) > 1:
        return Mended(tuple(tried), None, None, effect, state, "no repair brings it back within the margins")
    best = min(scores, key=lambda method: hypotheses.harm(_judged(case, scores[method])))
    return Mended(tuple(tried), best, made[best], effect, state, f"best of {len(scores)}, judged by cross-fitting")
