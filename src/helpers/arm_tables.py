"""What chapter 09's table says to a reader: arms of equal size side by side, and the numbers that its prose names."""

from collections.abc import Sequence

import pandas as pd

from helpers import tables

HARMFUL, EDGY = "advbench", "edgy"
PLACES = {"non_refusal": HARMFUL, "over_refusal": EDGY, "rouge1": "dialogue", "perplexity": "c4"}


def arm(row: pd.Series) -> str:
    """What an arm is called: how many neurons, by which score."""
    return "none" if row["score"] == "none" else f"{100 * row['fraction']:g} % by {row['score']}"


def wide(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row an arm, one column a metric, each cell a value with its interval."""
    place = _place(rows)
    held = rows["metric"].isin(metrics) & (place == rows["metric"].map(PLACES).fillna(place))
    picked = rows[held].reset_index(drop=True)
    labels = picked.apply(arm, axis=1)
    if picked["precision"].nunique() > 1 or set(picked["precision"]) - {"bf16"}:
        labels = picked["precision"] + ", " + labels
    order = {metric: place for place, metric in enumerate(metrics)}
    ordered = picked.assign(label=labels).sort_values("metric", key=lambda column: column.map(order), kind="stable")
    found = tables.wide(ordered, ["metric"]).set_index("variant")
    return found.loc[list(dict.fromkeys(labels))].reset_index()


def _place(rows: pd.DataFrame) -> pd.Series:
    """What each row is measured on, without the split."""
    return rows["measured_on"].str.split("/").str[0]


def _rate(rows: pd.DataFrame, score: str, fraction: float) -> str:
    found = rows[(rows["score"] == score) & (rows["fraction"] == fraction)]
    found = found[(found["metric"] == "non_refusal") & (_place(found) == HARMFUL)]
    return tables.of_row(found)


def sentences(table: pd.DataFrame) -> dict[str, str]:
    """The numbers that the prose names: ablation of the largest share by the first score of safety, and by random."""
    silent = table[table["serving"].isin(["", "ablated"]) & (table["metric"] == "non_refusal")]
    named = [name for name in dict.fromkeys(silent["score"]) if name not in {"none", "random"}]
    most = float(silent["fraction"].max())
    first = named[0] if named else "none"
    shown = silent[(silent["score"] == first) & (silent["fraction"] == most)]
    return {
        "nonrefusal-whole": _rate(silent, "none", 0.0),
        "ablated-share": tables.Said(f"{100 * most:g} %", shown, "column fraction"),
        "ablated-by": tables.Said(first, shown, "column score"),
        "nonrefusal-ablated": _rate(silent, first, most),
        "nonrefusal-random": _rate(silent, "random", most),
    }
