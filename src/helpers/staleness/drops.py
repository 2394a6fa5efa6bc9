"""Staleness: what monitors that were frozen on the aligned model still tell on a variant, and what a refit would tell.

A monitor counts as stale by the three definitions of `monitors.stale`. Every comparison is paired on the same texts, and its
unit is the group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd

from helpers.console import over
from helpers.models import loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import probes, readings, stale
from helpers.monitors.frozen import Monitor, check_fits
from helpers.monitors.probes import Readout
from helpers.monitors.readings import LINEAR, TURNED, Rows
from helpers.staleness import forecast_data
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import MARGINS, Estimate, jackknife, rate_interval
from helpers.updates import measurements
from helpers.updates import names as update_names
from helpers.updates.names import CONTROL, Variant, place_names
from helpers.updates.variants import Parts, build_variant

COLUMNS = ["task", "probe", "layer", "depth", "metric", "value", "low", "high", "n"]
BLOCKS = 5  # of training groups, left out one at a time for the interval of an angle
ALL = ("all", 0, 0.0)  # probe, layer and depth of a row about all monitors of a task
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
    """What the frozen monitors say on every variant. A variant is built at most once, and not at all where all is known of it."""
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
    return Reference(task, tuple(monitors), test, train, blocks, readings.scores(monitors, found, reading, test.index), fits)


def _fits(monitor: Monitor, found: Activations, reading: Plan, train: Rows, blocks: np.ndarray, seed: int) -> tuple[Readout, ...]:
    """Probes of the monitor's kind and strength, fitted here with each block of groups left out."""
    every = readings.features(found, reading, monitor, train.index)
    kept = [np.flatnonzero(blocks != block) for block in np.unique(blocks)]
    return tuple(probes.refit(monitor.readout, every.take(rows), train.labels[rows], seed, monitor.name) for rows in kept)


# ---------------------------------------------------------------- one task on one variant


def compare(reference: Reference, found: Activations, reading: Plan, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of the table `staleness` for one task on one variant, without key columns, and its scores (monitors x texts)."""
    after = readings.scores(reference.monitors, found, reading, reference.test.index)
    drops = paired_aurocs.many_contrasts(reference.test.labels, reference.scores, after, reference.test.groups)
    rows: list[Row] = []
    for j, monitor in enumerate(reference.monitors):
        values = _ranking(reference, after[j], drops[j]) | _alarms(reference, j, after[j])
        if monitor.kind in LINEAR:
            values |= _refit(reference, j, found, reading, seed)
        rows += [
            (monitor.task, monitor.probe, monitor.layer, monitor.depth, m, e.value, e.low, e.high, e.n) for m, e in values.items()
        ]
    return pd.DataFrame(rows + _summary(reference, after, rows), columns=COLUMNS), after


def _ranking(reference: Reference, after: np.ndarray, drop: paired_aurocs.Contrast) -> dict[str, Estimate]:
    """AUROC on the variant, its paired drop, the answers at both thresholds of stale, and the two p values at the margin."""
    e, n = drop.estimate, drop.estimate.n
    if not np.isfinite(e.value):  # all scores tied, before or after: there is no ranking
        return {"auroc_undefined": Estimate(1.0, 1.0, 1.0, n)}
    values = {"auroc": roc.auroc_interval(reference.test.labels, after, reference.test.groups), "auroc_drop": e}
    for name, size in stale.DROPS.items():
        values[f"stale_auroc_{name}"] = stale.flag(n, stale.by_loss(e, size))
    for name, test in (("p_worse", paired_aurocs.worse), ("p_preserved", paired_aurocs.preserved)):
        p = test(drop, MARGINS["auroc"])
        values[name] = Estimate(p, p, p, n)  # exact, given the interval: a p value has none of its own
    return values


def _alarms(reference: Reference, j: int, after: np.ndarray) -> dict[str, Estimate]:
    """TPR and FPR at the frozen thresholds, what was lost of the first, and both kinds of stale."""
    labels, groups, before = reference.test.labels, reference.test.groups, reference.scores[j]
    caught, values = labels == 1, dict[str, Estimate]()
    for level, cut in reference.monitors[j].thresholds.items():
        tpr, fpr = roc.rates(labels, after, cut, groups)
        loss = stale.lost_alarms(before[caught] > cut, after[caught] > cut, groups[caught])
        values |= {f"tpr_{level}": tpr, f"fpr_{level}": fpr, f"tpr_loss_{level}": loss}
        values[f"stale_tpr_{level}"] = stale.flag(loss.n, stale.by_loss(loss, MARGINS["tpr"]))
        values[f"stale_fpr_{level}"] = stale.flag(fpr.n, stale.by_false_alarms(fpr, level))
    return values


def _refit(reference: Reference, j: int, found: Activations, reading: Plan, seed: int) -> dict[str, Estimate]:
    """A probe of the same kind and strength, fitted on the same training texts as the variant sees them."""
    monitor, test, train = reference.monitors[j], reference.test, reference.train
    every = readings.features(found, reading, monitor, train.index)
    if not np.ptp(every.values, axis=0).any():  # the variant holds the same for every text: there is nothing to fit
        return {}
    again = probes.refit(monitor.readout, every, train.labels, seed, monitor.name)
    scores = probes.score(again, readings.features(found, reading, monitor, test.index), monitor.name)
    drop = paired_aurocs.auroc_contrast(test.labels, np.array([reference.scores[j], scores]), (1, -1), test.groups).estimate
    values = {"refit_auroc": roc.auroc_interval(test.labels, scores, test.groups), "refit_drop": drop}
    if monitor.kind in TURNED:
        values["direction_angle"] = _angle(again, reference, monitor, found, reading, seed)
    return {name: e for name, e in values.items() if np.isfinite(e.value)}


def _angle(again: Readout, reference: Reference, monitor: Monitor, found: Activations, reading: Plan, seed: int) -> Estimate:
    """Degrees between the directions before and after, both fitted on the same texts; jackknife over blocks of groups."""
    now = _fits(monitor, found, reading, reference.train, reference.blocks, seed)
    turned, n = readings.readout_angle(monitor.readout, again), len(reference.train.index)
    without = [readings.readout_angle(a, b) for a, b in zip(reference.fits[monitor.name], now, strict=True)]
    if not np.isfinite([turned, *without]).all():  # a probe of equal class means has no direction
        return Estimate(np.nan, np.nan, np.nan, n)
    return jackknife(turned, without, n, bounds=(0.0, 180.0))


def _summary(reference: Reference, after: np.ndarray, rows: Sequence[Row]) -> list[Row]:
    """Rows about all monitors of a task, controls left out: their mean AUROC drop, and the share that each flag calls stale.

    The mean's interval is over groups of texts. A share's is over places (layer and pooling): what reads there is related.
    """
    names = {(m.probe, m.layer) for m in reference.monitors if m.kind != CONTROL}
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table[[place in names for place in zip(table["probe"], table["layer"], strict=True)]]
    found = {"mean_auroc_drop": mean_drop(reference, reference.scores, after)}
    for flag in dict.fromkeys(name for name in table["metric"] if name.startswith("stale_")):
        part = table[table["metric"] == flag]
        found[f"share_{flag}"] = rate_interval(part["value"], place_names(part))
    return [(reference.task, *ALL, m, e.value, e.low, e.high, e.n) for m, e in found.items() if np.isfinite(e.value)]


def mean_drop(reference: Reference, before: np.ndarray, after: np.ndarray) -> Estimate:
    """The AUROC drop averaged over the task's monitors, controls left out and those whose scores are all tied."""
    kept = [j for j, m in enumerate(reference.monitors) if m.kind != CONTROL and np.ptp(before[j]) > 0 and np.ptp(after[j]) > 0]
    if not kept:
        return Estimate(np.nan, np.nan, np.nan, 0)
    weights = np.repeat([1.0, -1.0], len(kept)) / len(kept)
    test = reference.test
    return paired_aurocs.auroc_contrast(test.labels, np.vstack([before[kept], after[kept]]), weights, test.groups).estimate
