"""What the table `triage` says to a reader: signals by price, one row a predictor, the best of them, and the plain rule."""

from collections.abc import Sequence

import pandas as pd

from helpers import tables
from helpers.predictors import ORDERS, PREDICTORS
from helpers.signals import SIGNALS

PRICE = {"free": "nothing", "forward": "unlabelled texts through both models", "labels": "a few labelled texts"}
RULE = "plain rule"


def overview() -> pd.DataFrame:
    """One row a signal: its name, what it says, and what it costs."""
    rows = [(name, signal.words, PRICE[signal.price]) for name, signal in SIGNALS.items()]
    return pd.DataFrame(rows, columns=["signal", "what it says", "what it costs"])


def words() -> dict[str, str]:
    """Each signal in words."""
    return {name: signal.words for name, signal in SIGNALS.items()}


def table(result: pd.DataFrame) -> pd.DataFrame:
    """One row a predictor or order and split: rank correlation, AUROC, and the recall at each budget, with intervals."""
    rows = result[result["metric"].isin(["spearman", "auroc", "recall"])].copy()
    shares = (100 * rows["budget"]).round().astype(int).astype(str)
    rows["column"] = rows["metric"].where(rows["metric"] != "recall", "found at " + shares + " %")
    rows["cell"] = tables.with_intervals(rows.replace({"metric": {"spearman": "auroc"}}))  # two decimals, like an AUROC
    found = rows.pivot(index=["split", "predictor"], columns="column", values="cell").fillna("–")
    names = list(dict.fromkeys(rows["column"]))
    order = list(dict.fromkeys(zip(rows["split"], rows["predictor"], strict=True)))
    return found.loc[order, names].reset_index().rename_axis(columns=None)


def rules(result: pd.DataFrame) -> pd.DataFrame:
    """One row a split: the share of stale cells that the plain rule caught, and the share of all cells it asked to check."""
    rows = result[result["predictor"] == RULE].assign(cell=lambda t: tables.with_intervals(t))
    found = rows.pivot(index="split", columns="metric", values="cell").reindex(columns=["caught", "flagged"]).fillna("–")
    return found.set_axis(["stale cells caught", "cells to check"], axis=1).reset_index().rename_axis(columns=None)


def best(result: pd.DataFrame, names: Sequence[str] = tuple(PREDICTORS), budget: float = 0.2) -> pd.Series | None:
    """The row of the best recall among `names` (of the best rank correlation where no cell is stale); None without one.

    Whole families held out where that was possible. Best of several, so it flatters: the chapter says of how many.
    """
    rows = result[result["predictor"].isin(names)]
    rows = rows[rows["metric"] == ("recall" if (rows["metric"] == "recall").any() else "spearman")]
    for split in ("family", "monitor"):
        part = rows[rows["split"] == split]
        if len(part):
            near = part[(part["budget"] - budget).abs() == (part["budget"] - budget).abs().min()]
            return near.sort_values(["value", "predictor"], ascending=[False, True]).iloc[0]
    return None


def best_predictor(result: pd.DataFrame) -> str | None:
    """The name of the best predictor; None where no predictor could be scored."""
    row = best(result)
    return None if row is None else str(row["predictor"])


def sentences(result: pd.DataFrame) -> dict[str, str]:
    """The best predictor and the best simple order as text, for the chapter's prose."""
    found = {"triage-best": best(result), "triage-simple": best(result, tuple(ORDERS))}
    return {key: "(not in this run)" if row is None else _named(result.loc[[row.name]]) for key, row in found.items()}


def _named(row: pd.DataFrame) -> str:
    return tables.Said(f"{tables.of_row(row)} ({row['predictor'].iloc[0]})", row)
