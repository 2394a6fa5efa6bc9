"""What the ladder of repairs gave: the table `realignment`, the cells that policies weigh, the gate's worth, and how realigning a
monitor and restoring the model's weights add up. Every comparison is paired on the same test texts; its unit is the group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pandas as pd

from helpers.console import over
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import gate, readings, repair_case, repair_measures, repairs
from helpers.monitors.frozen import Monitor
from helpers.monitors.gate import DEFAULT, GATES, GateAnswer
from helpers.monitors.repair_case import RepairCase
from helpers.monitors.repair_measures import LEVEL, Measured
from helpers.monitors.repairs import LADDER, NULL, RUNGS
from helpers.results import OWN, VALUES, Run
from helpers.stats import roc
from helpers.stats.intervals import Estimate, group_codes, mean_interval, rate_interval
from helpers.updates import measurements, names, recipes
from helpers.updates import names as update_names
from helpers.updates.names import CONTROL, SIMULATED, Variant
from helpers.updates.variants import Parts, from_table

COLUMNS = [*OWN["realignment"], *VALUES]
ALL = "all"
GATE = "gate"  # the method under which the gate's rows stand
IN_USE = "in use"
BLOCKS = 10  # of groups, left out one at a time for the interval of a rank correlation
Row = tuple[str, str, int, str, str, float, float, float, int]


@dataclass(frozen=True)
class Ladder:
    """Every rung on every monitor and variant: the rows of the table `realignment`, and one row a monitor and variant."""

    table: pd.DataFrame
    cells: pd.DataFrame


# ---------------------------------------------------------------- all variants of a run


def monitors_at(monitors: Sequence[Monitor], task: str, name: str, found: Activations) -> list[Monitor]:
    """The task's monitors of every real kind and pooling at the layer of the monitor in use, where pooled states are kept."""
    layers = [monitor.layer for monitor in monitors if monitor.name == name]
    here = [m for m in monitors if m.task == task and m.layer in layers and not m.kind.startswith((CONTROL, SIMULATED))]
    kept = [m for m in here if repair_case.place(m) in found.pooled]
    if not kept:
        raise StudyError(f"no monitor of task {task!r} reads pooled states at the layer of {name!r}; add its depth to depths",
                         NOT_COMPARABLE)  # fmt: skip
    return kept


def observe(
    parts: Parts, aligned: Variant, variants: Sequence[Variant], monitors: Sequence[Monitor], in_use: Mapping[str, str],
    plan: Plan, seed: int = 0, progress: Callable[[str], None] | None = None, most: int | None = None,
) -> Ladder:  # fmt: skip
    """Every rung and the gate on every variant, for the monitors at the layers in use (`in_use`: task -> monitor).

    most: unlabelled texts that a map is fitted on, all there are unless given.
    """
    plan = readings.on_variants(plan)
    before = readings.in_double(measurements.stored(parts, aligned, plan))
    tables, found = [], []
    for variant in variants:
        after = readings.in_double(measurements.stored(parts, variant, plan))
        with loading.threads(1):
            rows, cells = on_variant(before, after, monitors, in_use, plan, seed, most)
        tables.append(names.keyed(variant, rows))
        found.append(cells.assign(variant=variant.label, family=recipes.family(variant), seed=seed))
        if progress:
            progress(variant.label)
    return Ladder(pd.concat(tables, ignore_index=True), pd.concat(found, ignore_index=True))


def unrepaired(
    parts: Parts, aligned: Variant, variants: Sequence[Variant], monitors: Sequence[Monitor], in_use: Mapping[str, str],
    plan: Plan, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table about the same monitors on other variants, such as restored ones, with no repair at all (rung `none`)."""
    plan = readings.on_variants(plan)
    before = readings.in_double(measurements.stored(parts, aligned, plan))
    tables = [names.keyed(aligned, pd.DataFrame(columns=COLUMNS))]
    for variant in variants:
        after = readings.in_double(measurements.stored(parts, variant, plan))
        rows = []
        with loading.threads(1):
            for task, name in in_use.items():
                here = repair_case.case(task, before, after, plan, repair_case.other_texts(plan, task), seed)
                found = repair_measures.measure(here, monitors_at(monitors, task, name, before), ["none"])
                rows += [_row(one.repaired.monitor, one.repaired.method, m, e) for one in found for m, e in one.values.items()]
        tables.append(names.keyed(variant, pd.DataFrame(rows, columns=COLUMNS)))
    table = pd.concat([part for part in tables if len(part)] or tables, ignore_index=True)
    return table[np.isfinite(table[["value", "low", "high"]].astype(float)).all(axis=1)].reset_index(drop=True)


def on_variant(
    before: Activations, after: Activations, monitors: Sequence[Monitor], in_use: Mapping[str, str], plan: Plan, seed: int = 0,
    most: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Rows of the table without key columns, and the cells without variant, family and seed, of one variant."""
    rows, cells, every = [], [], []
    for task, name in over("tasks", in_use.items()):
        here = repair_case.case(task, before, after, plan, repair_case.other_texts(plan, task, most), seed)
        mine = monitors_at(monitors, task, name, before)
        found = repair_measures.measure(here, mine)
        gates = {monitor.name: gate.judged(here, monitor) for monitor in mine}
        rows += [_row(one.repaired.monitor, one.repaired.method, m, e) for one in found for m, e in one.values.items()]
        rows += [_row(monitor, GATE, m, e) for monitor in mine for m, e in _gate(gates[monitor.name]).items()]
        rows += _summary(task, found)
        cells += [_cell(here, monitor, gates[monitor.name], found) for monitor in mine]
        every += found
    table = pd.DataFrame(rows + _summary(ALL, every), columns=COLUMNS)
    return table[np.isfinite(table[["value", "low", "high"]]).all(axis=1)].reset_index(drop=True), pd.DataFrame(cells)


def _row(monitor: Monitor, method: str, metric: str, e: Estimate) -> Row:
    return monitor.task, monitor.probe, monitor.layer, method, metric, e.value, e.low, e.high, e.n


# ---------------------------------------------------------------- one task on one variant


def _gate(judged: GateAnswer) -> dict[str, Estimate]:
    """What the gate chose, and the rank agreement as it was and behind the candidate, with its interval over groups."""
    n, blocks = len(judged.before), group_codes(judged.groups, len(judged.groups)) % BLOCKS
    found = {f"gate_{name}": Estimate(*(float(judged.gate.choice == name),) * 3, n) for name in GATES}
    for name, scores in (("agreement_before", judged.after), ("agreement_after", judged.realigned)):
        found[name] = roc.spearman(judged.before, scores, blocks)
    return found


def _cell(case: RepairCase, monitor: Monitor, judged: GateAnswer, found: Sequence[Measured]) -> dict[str, object]:
    """A monitor on a variant as policies see it: fit or not before and after each way, the gate's answer, and what it costs.

    stale_realigned is behind the candidate that the gate judged, whatever it then chose; stale_blind behind the default one.
    labels: rows that a revalidation reads; texts: forward passes that the realignment takes.
    """
    mine = {one.repaired.method: one for one in found if one.repaired.monitor is monitor}
    behind, blind, refit = (mine.get(name, mine["none"]) for name in (judged.candidate, DEFAULT, "refit"))
    rungs = [name for name in LADDER if name in mine and name != NULL]  # starts with none: as it is
    fit = next((name for name in rungs if not mine[name].stale), "")
    gate = judged.gate
    return {
        "monitor": monitor.name, "task": monitor.task, "probe": monitor.probe, "layer": monitor.layer,
        "gate": gate.choice, "candidate": judged.candidate,
        "stale": mine["none"].stale, "stale_realigned": behind.stale, "stale_blind": blind.stale, "stale_refit": refit.stale,
        "repaired_by": fit,
        "agreement_before": gate.agreement_before, "agreement_after": gate.agreement_after,
        "alarm_shift_before": gate.alarm_shift_before, "alarm_shift_after": gate.alarm_shift_after,
        "labels": len(case.rows["test"].index), "texts": behind.repaired.cost_texts,
    }  # fmt: skip


# ---------------------------------------------------------------- all monitors together


def _summary(task: str, found: Sequence[Measured]) -> list[Row]:
    """Rows about all monitors that a rung applies to: shares of monitors over places (what reads there is related), and the
    mean share of test texts whose alarm changed, over groups of texts."""
    plain = {one.repaired.monitor.name: one.stale for one in found if one.repaired.method == "none"}
    rows = []
    for method in RUNGS:
        mine = [one for one in found if one.repaired.method == method]
        was = np.array([plain[one.repaired.monitor.name] for one in mine], bool)
        now = np.array([one.stale for one in mine], bool)
        places = np.array([_place(one.repaired.monitor) for one in mine])
        values = {
            "share_stale": rate_interval(now, places),
            "share_repaired": rate_interval(~now[was], places[was]),
            "share_harmed": rate_interval(now[~was], places[~was]),
            "alarms_changed": _mean_changed(mine),
        }
        rows += [(task, ALL, 0, method, m, e.value, e.low, e.high, e.n) for m, e in values.items() if e.n]
    return rows


def _place(monitor: Monitor) -> str:
    return f"{monitor.task}/{monitor.pooling or monitor.kind}/{monitor.layer}"


def _mean_changed(found: Sequence[Measured]) -> Estimate:
    """The share of alarms that changed, over the monitors of each task first, then over the texts of all tasks."""
    alarmed = [one for one in found if one.repaired.thresholds]
    shares, groups = [], []
    for task, part in groupby(alarmed, key=lambda one: one.repaired.monitor.task):
        mine = list(part)
        shares.append(np.mean([one.changed for one in mine], axis=0))
        groups += [f"{task}/{group}" for group in mine[0].test.groups]
    return mean_interval(np.concatenate([[], *shares]), groups, bounds=(0.0, 1.0))


def gate_quality(cells: pd.DataFrame) -> pd.DataFrame:
    """Rows, without key columns, on whether the gate tells which monitors a realignment would leave unfit.

    harmed_*: fit before and unfit behind the candidate, among what it accepted (realign) and rejected (refit); unfit_* likewise
    whether fit before or not, and unfit_deployed where it asked for nothing; auroc_unfit: of low agreement_after. Controls are
    left out; intervals are over updates.
    """
    own = cells[~cells["family"].isin(["control", "before alignment"])]
    update = own["variant"] + "/" + own["seed"].astype(str)
    found, harmed = {}, own["stale_realigned"] & ~own["stale"]
    for words, choice in (("accepted", "realign"), ("rejected", "refit")):
        here = own["gate"] == choice
        found[f"harmed_{words}"] = rate_interval(harmed[here], update[here].to_numpy())
        found[f"unfit_{words}"] = rate_interval(own.loc[here, "stale_realigned"], update[here].to_numpy())
    kept = own["gate"] == "deploy"
    found["unfit_deployed"] = rate_interval(own.loc[kept, "stale"], update[kept].to_numpy())
    if own["stale_realigned"].nunique() == 2:
        found["auroc_unfit"] = roc.auroc_interval(own["stale_realigned"], -own["agreement_after"], update.to_numpy())
    rows = [(ALL, ALL, 0, GATE, m, e.value, e.low, e.high, e.n) for m, e in found.items()]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table[np.isfinite(table[["value", "low", "high"]]).all(axis=1)].reset_index(drop=True)


# ---------------------------------------------------------------- realigning the monitor, restoring the weights, or both


def interplay(
    parts: Parts, aligned: Variant, restored: Mapping[Variant, Sequence[Variant]], monitors: Sequence[Monitor],
    in_use: Mapping[str, str], plan: Plan, seed: int = 0, method: str = DEFAULT, most: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table, by restored variant: what realigning the monitors in use, restoring the weights, and both give back.

    A gain is by how much the share of test texts falls whose alarm differs from that on the original model; interaction =
    both - realign - restore: below 0 they give back the same, above 0 one helps the other.
    """
    plan = readings.on_variants(plan)
    before = readings.in_double(measurements.stored(parts, aligned, plan))
    tables = []
    for home, others in over("variants", restored.items()):
        sides = {}
        for variant in (home, *others):
            after = readings.in_double(measurements.stored(parts, variant, plan))
            with loading.threads(1):
                sides[variant] = differing(before, after, monitors, in_use, plan, seed, method, most)
        for other in others:
            rows = gains(*sides[home][:2], *sides[other])
            front = [(ALL, IN_USE, 0, method, m, e.value, e.low, e.high, e.n) for m, e in rows.items()]
            tables.append(names.keyed(other, pd.DataFrame(front, columns=COLUMNS)))
    return pd.concat(tables, ignore_index=True) if tables else names.keyed(aligned, pd.DataFrame(columns=COLUMNS))


def differing(
    before: Activations, after: Activations, monitors: Sequence[Monitor], in_use: Mapping[str, str], plan: Plan, seed: int,
    method: str, most: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Whether each test text's alarm differs from that on the original model (0, 1), as it is and repaired; and its group."""
    plain, mended, groups = [np.empty(0)], [np.empty(0)], []
    for task, name in in_use.items():
        monitor = next(m for m in monitors if m.name == name)
        here = repair_case.case(task, before, after, plan, repair_case.other_texts(plan, task, most), seed)
        if LEVEL in monitor.thresholds:
            test = here.rows["test"]
            alarms = here.score(monitor, test.index, after=False) > monitor.thresholds[LEVEL]
            for side, rung in ((plain, "none"), (mended, method)):
                one = repairs.apply(rung, monitor, here)
                side.append((one.scores > one.thresholds[LEVEL]) != alarms)
            groups += [f"{task}/{group}" for group in test.groups]
    return np.concatenate(plain).astype(float), np.concatenate(mended).astype(float), np.array(groups)


def gains(
    update: np.ndarray, realigned: np.ndarray, restored: np.ndarray, both: np.ndarray, groups: np.ndarray
) -> dict[str, Estimate]:
    """The shares of differing alarms four ways, what each way gave back against the update, and their interaction."""
    shares = {"changed_update": update, "changed_realigned": realigned, "changed_restored": restored, "changed_both": both}
    contrasts = {"realign_gain": update - realigned, "restore_gain": update - restored, "both_gain": update - both}
    contrasts["interaction"] = contrasts["both_gain"] - contrasts["realign_gain"] - contrasts["restore_gain"]
    found = {name: rate_interval(values, groups) for name, values in shares.items()}
    for name, values in contrasts.items():
        most = 2.0 if name == "interaction" else 1.0
        found[name] = mean_interval(values, groups, bounds=(-most, most))
    return {name: e for name, e in found.items() if e.n}


def restored(table: pd.DataFrame) -> dict[Variant, list[Variant]]:
    """Each update of chapter 07 with the variants in which it was restored and read by the monitors."""
    found: dict[Variant, list[Variant]] = {}
    for variant in from_table(table[table["metric"] == "alarms_restored"]):
        found.setdefault(replace(variant, restoration="", strength=None), []).append(variant)
    return found


def keyed(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `realignment` that belong to the run and to no single variant."""
    return update_names.keyed(Variant(run.model, run.seed, precision=""), table)
