"""Staleness: what monitors that were frozen on the aligned model still tell on a variant, and what a refit would tell.

A monitor counts as stale by the three definitions of `monitors.stale`. Every comparison is paired on the same texts, and its
unit is the group. What is measured on the second test set, from another source, bears the suffix `_elsewhere`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd

from helpers.console import over
from helpers.data.splits import ELSEWHERE
from helpers.models import loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import probes, readings, stale
from helpers.monitors.frozen import Monitor, check_fits
from helpers.monitors.probes import Readout
from helpers.monitors.readings import LINEAR, TURNED, Rows
from helpers.staleness import cohorts, forecast_data
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import MARGINS, Estimate, jackknife, rate_interval
from helpers.updates import measurements
from helpers.updates import names as update_names
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant

COLUMNS = ["task", "probe", "layer", "depth", "metric", "value", "low", "high", "n"]
BLOCKS = 5  # of training groups, left out one at a time for the interval of an angle
LEVEL = "5"  # percent of false alarms: the threshold at which a monitor is called weak
Row = tuple[str, str, int, float, str, float, float, float, int]


@dataclass(frozen=True)
class Reference:
    """One task's monitors and what they say on the model they were frozen on: made once, compared with every variant."""

    task: str
    monitors: tuple[Monitor, ...]
    test: Rows
    train: Rows
    blocks: np.ndarray  # the block of each training row; a group lies in one
    scores: np.ndarray  # monitors x test rows
    fits: Mapping[str, tuple[Readout, ...]]  # by monitor: probes of its kind fitted here with each block left out
    elsewhere: Rows | None = None  # the second test set, where the task has one
    scores_elsewhere: np.ndarray | None = None  # monitors x its rows

    @property
    def weak(self) -> np.ndarray:
        """Which monitors catch less than `cohorts.WEAK_BELOW` of what is to be flagged; one without a threshold is not weak."""
        cuts = np.array([monitor.thresholds.get(LEVEL, -np.inf) for monitor in self.monitors])
        return (self.scores[:, self.test.labels == 1] > cuts[:, None]).mean(axis=1) < cohorts.WEAK_BELOW

    @property
    def tests(self) -> list[tuple[str, str, Rows, np.ndarray]]:
        """The test sets: the suffix of what is measured on each, its split, its rows, and the scores before (monitors x rows)."""
        found = [("", "test", self.test, self.scores)]
        if self.elsewhere is not None and self.scores_elsewhere is not None:
            found.append((f"_{ELSEWHERE}", ELSEWHERE, self.elsewhere, self.scores_elsewhere))
        return found

    @property
    def members(self) -> dict[str, list[int]]:
        """The places of the monitors that are counted together, by the name of their row, such as `all-last` or `weak-mean`."""
        found: dict[str, list[int]] = {}
        for j, name in enumerate(cohorts.names_of([m.pooling for m in self.monitors], self.weak)):
            if cohorts.is_counted(self.monitors[j].kind) and self.monitors[j].pooling in cohorts.POOLINGS:
                found.setdefault(name, []).append(j)
        return found


@dataclass(frozen=True)
class Observed:
    """All variants of a run: the table `staleness`, and the scores (monitors x test rows) behind it by variant and task."""

    table: pd.DataFrame
    references: Mapping[str, Reference]
    scores: Mapping[Variant, Mapping[str, np.ndarray]]


def observe(
    parts: Parts, aligned: Variant, variants: Sequence[Variant], monitors: Sequence[Monitor], reading: Plan, seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Observed:  # fmt: skip
    """What the frozen monitors say on every variant. A variant is built at most once, and not at all where all is known of it.

    Of all texts, only those are read that variants are judged and refitted on, in the same batches under every model.
    """
    reading = readings.on_variants(reading)
    before = readings.in_double(measurements.stored(parts, aligned, reading))
    with loading.threads(1):
        found = references(monitors, before, reading, seed)
    tables, scores = [], {}
    for variant in variants:
        build = cache(partial(_built, parts, variant, tuple(monitors)))
        seen = readings.in_double(measurements.stored(parts, variant, reading, build))
        forecast_data.weight_signals(
            parts, variant, monitors, build
        )  # for the forecast of chapter 06, while the model is at hand
        with loading.threads(1):
            compared = {task: compare(reference, seen, reading, seed) for task, reference in over("tasks", found.items())}
        tables.append(update_names.keyed(variant, pd.concat([table for table, _ in compared.values()], ignore_index=True)))
        scores[variant] = {task: after for task, (_, after) in compared.items()}
        if progress:
            progress(variant.label)
    return Observed(pd.concat(tables, ignore_index=True), found, scores)


def _built(parts: Parts, variant: Variant, monitors: Sequence[Monitor]):
    language = build_variant(parts, variant)
    reads = readings.fingerprint(language.tokenizer)
    for monitor in monitors:
        check_fits(monitor, language.width, language.depth, reads)
    return language


def references(monitors: Sequence[Monitor], found: Activations, reading: Plan, seed: int = 0) -> dict[str, Reference]:
    """The references of all tasks, from the activations of the model that the monitors were frozen on."""
    by_task = {task: [m for m in monitors if m.task == task] for task in readings.task_names(reading)}
    return {task: _reference(task, own, found, reading, seed) for task, own in by_task.items() if own}


def _reference(task: str, monitors: Sequence[Monitor], found: Activations, reading: Plan, seed: int) -> Reference:
    test, train = (readings.rows_of(reading, task, split) for split in ("test", "train"))
    groups = np.unique(train.groups, return_inverse=True)[1]
    blocks = groups % min(BLOCKS, groups.max() + 1)
    fits = {m.name: _fits(m, found, reading, train, blocks, seed) for m in monitors if m.kind in TURNED}
    second = _elsewhere(reading, task)
    scores = readings.scores(monitors, found, reading, test.index)
    other = None if second is None else readings.scores(monitors, found, reading, second.index)
    return Reference(task, tuple(monitors), test, train, blocks, scores, fits, second, other)


def _elsewhere(reading: Plan, task: str) -> Rows | None:
    held = any(example.task == task and example.split == ELSEWHERE for example in reading.examples)
    return readings.rows_of(reading, task, ELSEWHERE) if held else None


def _fits(monitor: Monitor, found: Activations, reading: Plan, train: Rows, blocks: np.ndarray, seed: int) -> tuple[Readout, ...]:
    """Probes of the monitor's kind and strength, fitted here with each block of groups left out."""
    every = readings.features(found, reading, monitor, train.index)
    kept = [np.flatnonzero(blocks != block) for block in np.unique(blocks)]
    return tuple(probes.refit(monitor.readout, every.take(rows), train.labels[rows], seed, monitor.name) for rows in kept)


# ---------------------------------------------------------------- one task on one variant


def compare(reference: Reference, found: Activations, reading: Plan, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of the table `staleness` for one task on one variant, without key columns, and its scores (monitors x texts).

    reading: the plan by which the variant was read; its test, second test and training texts are the reference's.
    """
    values: list[dict[str, Estimate]] = [{} for _ in reference.monitors]
    means: dict[str, dict[str, Estimate]] = {}
    seen = {}
    for suffix, split, rows, before in reference.tests:
        index = readings.rows_of(reading, reference.task, split).index
        after = seen[split] = readings.scores(reference.monitors, found, reading, index)
        for own, more in zip(values, judged(reference.monitors, rows, before, after), strict=True):
            own |= {f"{name}{suffix}": e for name, e in more.items()}
        for name, places in reference.members.items():
            means.setdefault(name, {})[f"mean_auroc_drop{suffix}"] = mean_drop(reference, before, after, places, rows)
    picked = picked_by_halves(reference.test, reference.scores, seen["test"])
    for j, monitor in enumerate(reference.monitors):
        if monitor.kind in LINEAR:
            values[j] |= _refit(reference, j, found, reading, seed, picked[:, j])
    return pd.DataFrame(_rows(reference, values, means), columns=COLUMNS), seen["test"]


def judged(monitors: Sequence[Monitor], rows: Rows, before: np.ndarray, after: np.ndarray) -> list[dict[str, Estimate]]:
    """By monitor, what its scores (monitors x rows) say on one test set: its ranking and its alarms, before against after."""
    drops = paired_aurocs.many_contrasts(rows.labels, before, after, rows.groups)
    return [
        _ranking(rows, after[j], drops[j]) | _alarms(monitor, rows, before[j], after[j]) for j, monitor in enumerate(monitors)
    ]


def _ranking(rows: Rows, after: np.ndarray, drop: paired_aurocs.Contrast) -> dict[str, Estimate]:
    """AUROC on the variant, its paired drop, the answers at both thresholds of stale, and the two p values at the margin."""
    e, n = drop.estimate, drop.estimate.n
    if not np.isfinite(e.value):  # all scores tied, before or after: there is no ranking
        return {"auroc_undefined": Estimate(1.0, 1.0, 1.0, n)}
    values = {"auroc": roc.auroc_interval(rows.labels, after, rows.groups), "auroc_drop": e}
    for name, size in stale.DROPS.items():
        values[f"stale_auroc_{name}"] = stale.flag(n, stale.by_loss(e, size))
    for name, test in (("p_worse", paired_aurocs.worse), ("p_preserved", paired_aurocs.preserved)):
        p = test(drop, MARGINS["auroc"])
        values[name] = Estimate(p, p, p, n)  # exact, given the interval: a p value has none of its own
    return values


def _alarms(monitor: Monitor, rows: Rows, before: np.ndarray, after: np.ndarray) -> dict[str, Estimate]:
    """TPR and FPR at the frozen thresholds, what was lost of the first, and both kinds of stale."""
    caught, values = rows.labels == 1, dict[str, Estimate]()
    for level, cut in monitor.thresholds.items():
        tpr, fpr = roc.rates(rows.labels, after, cut, rows.groups)
        loss = stale.lost_alarms(before[caught] > cut, after[caught] > cut, rows.groups[caught])
        values |= {f"tpr_{level}": tpr, f"fpr_{level}": fpr, f"tpr_loss_{level}": loss}
        values[f"stale_tpr_{level}"] = stale.flag(loss.n, stale.by_loss(loss, MARGINS["tpr"]))
        values[f"stale_fpr_{level}"] = stale.flag(fpr.n, stale.by_false_alarms(fpr, level))
    return values


def _refit(reference: Reference, j: int, found: Activations, reading: Plan, seed: int, picked: np.ndarray) -> dict[str, Estimate]:
    """A probe of the same kind and strength, fitted on the same training texts as the variant sees them.

    picked: in which half of the test texts the monitor was found stale; it is then judged on the other one as well.
    """
    monitor, test, old = reference.monitors[j], reference.test, reference.scores[j]
    train, asked = (readings.rows_of(reading, reference.task, split) for split in ("train", "test"))
    every = readings.features(found, reading, monitor, train.index)
    if not np.ptp(every.values, axis=0).any():  # the variant holds the same for every text: there is nothing to fit
        return {}
    again = probes.refit(monitor.readout, every, train.labels, seed, monitor.name)
    scores = probes.score(again, readings.features(found, reading, monitor, asked.index), monitor.name)
    drop = paired_aurocs.auroc_contrast(test.labels, np.array([old, scores]), (1, -1), test.groups).estimate
    values = {"refit_auroc": roc.auroc_interval(test.labels, scores, test.groups), "refit_drop": drop}
    if monitor.kind in TURNED:
        values["direction_angle"] = _angle(again, reference, monitor, found, reading, train, seed)
    if picked.any():
        values["refit_drop_split"] = on_other_half(test, old, scores, picked)
        if monitor.kind in TURNED:  # fitted on training texts: the same on either half
            values["direction_angle_split"] = values["direction_angle"]
    return {name: e for name, e in values.items() if np.isfinite(e.value)}


def _angle(
    again: Readout, reference: Reference, monitor: Monitor, found: Activations, reading: Plan, train: Rows, seed: int
) -> Estimate:
    """Degrees between the directions before and after, both fitted on the same texts; jackknife over blocks of groups."""
    now = _fits(monitor, found, reading, train, reference.blocks, seed)
    turned, n = readings.readout_angle(monitor.readout, again), len(train.index)
    without = [readings.readout_angle(a, b) for a, b in zip(reference.fits[monitor.name], now, strict=True)]
    if not np.isfinite([turned, *without]).all():  # a probe of equal class means has no direction
        return Estimate(np.nan, np.nan, np.nan, n)
    return jackknife(turned, without, n, bounds=(0.0, 180.0))


# ---------------------------------------------------------------- picked on one half of the test texts, judged on the other


def picked_by_halves(rows: Rows, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether each monitor is stale by AUROC on each half of the test texts alone: halves x monitors.

    All no where a half lacks a class. What is picked and judged on the same texts looks worse than it is, and what is compared
    with it seems to recover: picked on one half, it is judged on the other.
    """
    side, picked = readings.hashed_halves(rows), np.zeros((2, len(before)), dtype=bool)
    if any(len(set(rows.labels[side == half].tolist())) < 2 for half in (0, 1)):
        return picked
    for half in (0, 1):
        own = side == half
        drops = paired_aurocs.many_contrasts(rows.labels[own], before[:, own], after[:, own], rows.groups[own], guarded=False)
        picked[half] = [stale.by_loss(drop.estimate, stale.DROPS["05"])[0] for drop in drops]
    return picked


def on_other_half(rows: Rows, before: np.ndarray, refit: np.ndarray, picked: np.ndarray) -> Estimate:
    """What a refit lacks of the AUROC before, on the half that the monitor was not picked on; the mean where both halves did.

    n counts the texts of these halves. A monitor that only one half picked counts half as much as one of both: weighted by n,
    the mean over many monitors is not biased by the picking.
    """
    side, found = readings.hashed_halves(rows), []
    for half in np.flatnonzero(picked):
        other = side != half
        both = np.array([before[other], refit[other]])
        found.append(paired_aurocs.auroc_contrast(rows.labels[other], both, (1, -1), rows.groups[other]))
    return paired_aurocs.combine(found).estimate


# ---------------------------------------------------------------- rows about one monitor, and about many


def _rows(
    reference: Reference, values: Sequence[Mapping[str, Estimate]], means: Mapping[str, Mapping[str, Estimate]]
) -> list[Row]:
    """All rows of a task: of each monitor, and of those that are counted together (`Reference.members`).

    Of the latter the mean AUROC drop, its interval over groups of texts, and the share that each flag calls stale, over layers:
    what reads at one layer is related.
    """
    found: list[Row] = []
    for m, own in zip(reference.monitors, values, strict=True):
        found += [(m.task, m.probe, m.layer, m.depth, name, e.value, e.low, e.high, e.n) for name, e in own.items()]
    for name, places in reference.members.items():
        together = {**means[name], **_shares([reference.monitors[j].layer for j in places], [values[j] for j in places])}
        kept = {metric: e for metric, e in together.items() if np.isfinite(e.value)}
        found += [(reference.task, name, 0, 0.0, metric, e.value, e.low, e.high, e.n) for metric, e in kept.items()]
    return found


def _shares(layers: Sequence[int], values: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """The share of monitors that each flag calls stale."""
    found = {}
    for flag in dict.fromkeys(name for own in values for name in own if name.startswith("stale_")):
        told = [(own[flag].value, layer) for layer, own in zip(layers, values, strict=True) if flag in own]
        found[f"share_{flag}"] = rate_interval([value for value, _ in told], [layer for _, layer in told])
    return found


def mean_drop(
    reference: Reference, before: np.ndarray, after: np.ndarray, members: Sequence[int] | None = None, rows: Rows | None = None
) -> Estimate:
    """The AUROC drop averaged over the task's monitors, or over some of them, on its test texts or other `rows`.

    Left out are controls, probes fitted with simulated updates, and those whose scores are all tied.
    """
    asked = range(len(reference.monitors)) if members is None else members
    kept = [j for j in asked if cohorts.is_counted(reference.monitors[j].kind) and np.ptp(before[j]) > 0 and np.ptp(after[j]) > 0]
    if not kept:
        return Estimate(np.nan, np.nan, np.nan, 0)
    weights, test = np.repeat([1.0, -1.0], len(kept)) / len(kept), rows or reference.test
    return paired_aurocs.auroc_contrast(test.labels, np.vstack([before[kept], after[kept]]), weights, test.groups).estimate
