"""Shares and means of many monitors, each with its interval over updates: what figures of repairs draw."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.stats.intervals import mean_interval, rate_interval


def shares_over(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """The share of ones among the rows of each value of a column, with intervals over updates."""
    found = [(name, rate_interval(part["value"], part["label"])) for name, part in rows.groupby(by, sort=False)]
    return pd.DataFrame([(name, e.value, e.low, e.high, e.n) for name, e in found], columns=[by, "value", "low", "high", "n"])


def shares_by_task(cells: pd.DataFrame, flag: pd.Series, tasks: Sequence[str]) -> pd.DataFrame:
    """The share of true flags in each task and over all, with intervals over updates; tasks without a cell are left out."""
    own = cells.assign(value=flag[cells.index].astype(float))
    parts = [(task, own if task == "all" else own[own["task"] == task]) for task in tasks]
    found = [(task, rate_interval(part["value"], part["variant"])) for task, part in parts if len(part)]
    return pd.DataFrame([(task, e.value, e.low, e.high, e.n) for task, e in found], columns=["task", "value", "low", "high", "n"])


def mean_rate(rows: pd.DataFrame) -> tuple[float, float, float, int]:
    """The mean of rates with its interval over updates; of a single update, the means of the ends, never narrower than needed."""
    if rows["label"].nunique() > 1:
        e = mean_interval(rows["value"], rows["label"], bounds=(0.0, 1.0))
        return e.value, e.low, e.high, e.n
    return float(rows["value"].mean()), float(rows["low"].mean()), float(rows["high"].mean()), len(rows)


def quarters(cells: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """The range of agreement of each quarter of the cells, and the share of it left unfit."""
    rank = cells["agreement_after"].rank(method="average", pct=True)
    rows = pd.DataFrame({"quarter": np.ceil(4 * rank - 1e-9), "value": cells["stale_realigned"].astype(float),
                         "label": cells["variant"], "x": cells["agreement_after"]}).sort_values("quarter")  # fmt: skip
    ends = rows.groupby("quarter")["x"].agg(["min", "max"])
    return [f"{low:.3f} to {high:.3f}" for low, high in ends.itertuples(index=False)], shares_over(rows, "quarter")
