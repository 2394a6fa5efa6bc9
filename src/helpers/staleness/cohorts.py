"""Cohorts: which monitors are counted together. No number is taken over two poolings; some count apart, some not at all.

A monitor of the last token and one of the mean over tokens lose different things, so their average says nothing of either.
Left out everywhere: shuffled labels, which know nothing, and probes fitted with simulated updates, which chapter 10 compares.
Apart: monitors that caught little before any update (weak), since what was not caught cannot be lost.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from helpers.stats.intervals import Estimate, rate_interval
from helpers.stats.over_seeds import mean_of
from helpers.updates.names import CONTROL, SIMULATED, place_names

UNCOUNTED = (CONTROL, SIMULATED)  # how the kinds begin that are in no mean
OWN_REPLIES = "own-replies"  # the task of monitors that read what the model itself replies (`staleness.own_replies`)
POOLINGS = ("last", "mean")  # attention reads every token: its few probes stand in the tables, alone
WEAK_BELOW = 0.3  # of the texts to be flagged, caught at the threshold of 5 % false alarms on the model before any update
COUNTED, WEAK = "all", "weak"  # what a row about many monitors is called, followed by their pooling
MONITOR = ["task", "probe", "layer"]
FLAGS = ("stale_auroc_05", "stale_auroc_10", "stale_tpr_5", "stale_fpr_5")
UNFIT = "unfit"  # at the frozen threshold: catches less, or cries wolf though it did not before
RANKING = "stale_auroc_05"
VALUES = ("value", "low", "high", "n")


def is_counted(kind: str) -> bool:
    """Whether a kind of probe is one of the monitors that chapter 05 speaks of."""
    return not kind.startswith(UNCOUNTED)


def pooling_of(probe: str) -> str:
    """What a probe reads, from its name: the last token, the mean over tokens, or `attention`."""
    return probe.rpartition("-")[2]


def names_of(poolings: Iterable[str], weak: Iterable[bool]) -> list[str]:
    """In which row about many monitors each is counted, such as `all-last` or `weak-mean`."""
    return [f"{WEAK if low else COUNTED}-{pooling}" for pooling, low in zip(poolings, weak, strict=True)]


def single_monitors(table: pd.DataFrame) -> pd.DataFrame:
    """The rows about single monitors that count, with their `pooling`, whether they are `weak`, and their `place` in the task."""
    own = table[(table["layer"] > 0) & ~table["probe"].str.startswith(UNCOUNTED)]
    found = own.assign(pooling=own["probe"].map(pooling_of), place=own["task"] + "/" + place_names(own))
    return found.assign(weak=pd.MultiIndex.from_frame(found[MONITOR]).isin(_weak(own)))


def _weak(table: pd.DataFrame) -> pd.MultiIndex:
    """The monitors that caught less than `WEAK_BELOW` on the aligned model; none where it is not in the table."""
    start = table[_aligned(table) & (table["metric"] == "tpr_5") & (table["value"] < WEAK_BELOW)]
    return pd.MultiIndex.from_frame(start[MONITOR])


def _aligned(table: pd.DataFrame) -> pd.Series:
    return (table["adapter"] == "") & (table["precision"] == "bf16")


def unfit(singles: pd.DataFrame) -> pd.DataFrame:
    """Rows with metric `unfit`, one a monitor and variant: 1 where it catches less at its frozen threshold, or cries wolf.

    Each keeps the index of one of the two rows that it was made of. Monitors that cry wolf on the aligned model itself are left
    out: no update can break the promise that they did not keep.
    """
    flags = singles[singles["metric"].isin(["stale_tpr_5", "stale_fpr_5"])]
    keys = [name for name in flags if name not in {"metric", *VALUES}]
    groups = flags.groupby(keys, sort=False, dropna=False)
    # each stands at the place of the row that decides, so that its number can be traced in the table
    worst = flags.assign(number=groups.ngroup()).sort_values(["number", "value"], ascending=[True, False], kind="stable")
    worst = worst.drop_duplicates("number").drop(columns="number")
    found = worst.assign(metric=UNFIT, **{name: ends.to_numpy() for name, ends in groups[[*VALUES]].max().items()})
    start = found[_aligned(found) & (found["value"] == 1)]
    return found[~pd.MultiIndex.from_frame(found[MONITOR]).isin(pd.MultiIndex.from_frame(start[MONITOR]))]


def keeping_promises(singles: pd.DataFrame) -> pd.DataFrame:
    """The rows about monitors that neither are weak nor cry wolf on the aligned model itself."""
    start = singles[_aligned(singles) & (singles["metric"] == "stale_fpr_5") & (singles["value"] == 1)]
    wolves = pd.MultiIndex.from_frame(singles[MONITOR]).isin(pd.MultiIndex.from_frame(start[MONITOR]))
    return singles[~singles["weak"] & ~wolves]


def share(flags: pd.DataFrame) -> Estimate | None:
    """The share of flagged monitors, the places (layer and pooling) as units; None without a monitor.

    The variants of one place are one unit: it is the place that is drawn anew, not the update.
    """
    return rate_interval(flags["value"], flags["place"]) if len(flags) else None


def by_group(labelled: pd.DataFrame, metric: str, key: str = "group") -> pd.DataFrame:
    """One row a group of updates (or variant: key "label"), task and pooling: the mean of `mean_auroc_drop`, or a flag's share.

    Weak monitors are left out; of groups, the doses of an update too. Columns: the key, group, task, pooling, metric, value, low,
    high, n; n counts texts for a mean drop (variants share them: each end lies the mean of the reaches away), cells for a share.
    """
    rows = _mean_rows(labelled, metric) if metric.startswith("mean_") else _flag_rows(labelled, metric)
    keys = list(dict.fromkeys([key, "group", "task", "pooling"]))
    rows, found = rows if key == "label" else rows[rows["group"] != ""], []
    for names, part in rows.groupby(keys, sort=False):
        ends = part[["value", "low", "high", "n"]].itertuples(index=False, name=None)
        e = mean_of([Estimate(*row) for row in ends], shared=True) if metric.startswith("mean_") else share(part)
        if e is not None and np.isfinite([e.value, e.low, e.high]).all():
            found.append((*names, metric, e.value, e.low, e.high, e.n))
    return pd.DataFrame(found, columns=[*keys, "metric", "value", "low", "high", "n"])


def _mean_rows(labelled: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = labelled[(labelled["metric"] == metric) & labelled["probe"].str.startswith(f"{COUNTED}-")]
    return rows.assign(pooling=rows["probe"].map(pooling_of))


def _flag_rows(labelled: pd.DataFrame, metric: str) -> pd.DataFrame:
    singles = single_monitors(labelled)
    rows = unfit(singles) if metric == UNFIT else singles[singles["metric"] == metric]
    return rows[~rows["weak"] & rows["pooling"].isin(POOLINGS)]


def best_by_pooling(monitors: pd.DataFrame) -> dict[str, dict[str, str]]:
    """By task and pooling, the name of the best monitor by AUROC on validation (ties: the shallower layer); from `monitors`."""
    rows = monitors[(monitors["metric"] == "auroc_validation") & (monitors["layer"] > 0)]
    rows = rows[~rows["probe"].str.startswith(UNCOUNTED)].assign(pooling=lambda t: t["probe"].map(pooling_of))
    rows = rows[rows["pooling"].isin(POOLINGS)]
    rows = rows.sort_values(["value", "layer", "probe"], ascending=[False, True, True])
    found: dict[str, dict[str, str]] = {}
    for row in rows.drop_duplicates(["task", "pooling"]).itertuples():
        found.setdefault(row.task, {})[row.pooling] = f"{row.task}/{row.probe}/{row.layer}"
    return found


def shares(labelled: pd.DataFrame) -> pd.DataFrame:
    """`by_group` of each flag in `FLAGS`, and of what is unfit at its threshold."""
    return pd.concat([by_group(labelled, metric) for metric in (*FLAGS, UNFIT)], ignore_index=True)
