"""What chapter 05 says of drops: the verdicts and families as tables, the angles of another draw, and sentences."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.figures import tables
from helpers.staleness.verdicts import FAMILIES
from helpers.stats import intervals, paired_aurocs
from helpers.updates.names import CONTROL, place_names


def verdict_table(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row a variant, one column a task: the drop with its interval, the answer, and the texts it would take."""

    def cell(row: pd.Series) -> str:
        answer = str(row["answer"])
        if np.isnan(row["value"]):
            return "undefined: all scores are tied"
        if answer == "inconclusive":
            answer += f" (n {row['n']} of {row['needed']:,})" if row["needed"] < paired_aurocs.NEVER else " (at the margin)"
        return f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] {answer}"

    cells = table.assign(cell=table.apply(cell, axis=1)).pivot(index="label", columns="task", values="cell")
    shown = [name for name in names if name in cells.index]
    return cells.loc[shown, list(dict.fromkeys(table["task"]))].reset_index(names="variant").rename_axis(columns=None)


def answers(table: pd.DataFrame) -> pd.DataFrame:
    """How many of a family's monitors in use were shown worse, shown preserved, or neither."""
    counts = table.groupby(["family", "answer"]).size().unstack("answer", fill_value=0)
    counts = counts.reindex(columns=["worse", "preserved", "inconclusive"], fill_value=0)
    return counts.loc[[name for name in FAMILIES if name in counts.index]].reset_index().rename_axis(columns=None)


def family_table(table: pd.DataFrame) -> pd.DataFrame:
    """Share of monitors that lost 0.05 and 0.10 AUROC, by family of updates and task; intervals over places and variants."""
    real = table[(table["layer"] > 0) & ~table["probe"].str.startswith(CONTROL)]
    found = []
    for family in (name for name in FAMILIES if name in set(real["family"])):
        for task, rows in real[real["family"] == family].groupby("task", sort=False):
            cells = {words: _share(rows, flag) for flag, words in FLAGS.items()}
            found.append({"family": family, "task": task, "variants": rows["label"].nunique(), **cells})
    return pd.DataFrame(found)


FLAGS = {"stale_auroc_05": "AUROC lost 0.05", "stale_auroc_10": "AUROC lost 0.10", "stale_tpr_5": "catches less",
         "stale_fpr_5": "cries wolf"}  # fmt: skip


def _share(rows: pd.DataFrame, flag: str) -> str:
    """The share of rows with that flag, its interval and n, as a text that knows the rows."""
    part = rows[rows["metric"] == flag]
    if not len(part):
        return "–"
    e = intervals.rate_interval(part["value"], part["label"] + "/" + place_names(part))
    return tables.Said(f"{tables.percent(e.value, e.low, e.high)} of {e.n}", part, "share")


def staleness_sentences(table: pd.DataFrame) -> dict[str, str]:
    """The share of monitors that lost 0.05 AUROC in the families that the chapter's prose names."""
    real = table[(table["layer"] > 0) & ~table["probe"].str.startswith(CONTROL)]
    names = {"stale-quantized": "quantization", "stale-lora": "LoRA", "stale-qlora": "QLoRA"}
    return {key: _share(real[real["family"] == family], "stale_auroc_05") for key, family in names.items()}


def resampled_angles(monitors: pd.DataFrame) -> dict[str, float]:
    """By probe, the middle angle by which a direction turns when only the training texts are drawn anew (table `monitors`)."""
    rows = monitors[monitors["metric"] == "resampled_angle"]
    return rows.groupby("probe")["value"].median().to_dict()
