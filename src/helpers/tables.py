"""Tables as a reader sees them: a number with its interval, escaped, and the same numbers glued into prose."""

import html
from collections.abc import Mapping, Sequence

import pandas as pd

PERCENT = {
    *("non_refusal", "over_refusal", "coherent", "refused", "judge_failures"),
    *("tpr_5", "fpr_5", "tpr_1", "fpr_1", "recall", "caught", "flagged", "alarms_changed", "alarms_restored"),
}


def interval(metric: str, value: float, low: float, high: float) -> str:
    """The value with its interval as text: rates in percent, the rest with three significant digits."""
    if metric in PERCENT:
        return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    if metric.startswith("change_in_"):
        return f"{100 * value:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    if "auroc" in metric:
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def with_intervals(table: pd.DataFrame) -> pd.Series:
    """One text a row of a long table: value, interval."""
    return pd.Series(
        [interval(*row) for row in table[["metric", "value", "low", "high"]].itertuples(index=False)],
        index=table.index,
        dtype=str,
    )


def wide(table: pd.DataFrame, columns: Sequence[str], rows: str = "label") -> pd.DataFrame:
    """One row a variant, one column a combination of `columns`, each cell a value with its interval."""
    cells = table.assign(cell=with_intervals(table), name=table[list(columns)].agg(" · ".join, axis=1).str.replace("_", " "))
    order, names = list(dict.fromkeys(cells[rows])), list(dict.fromkeys(cells["name"]))
    found = cells.pivot(index=rows, columns="name", values="cell").loc[order, names].reset_index()
    return found.rename(columns={rows: "variant"}).rename_axis(columns=None)


def rates(behaviour: pd.DataFrame, judge: str = "phrases") -> pd.DataFrame:
    """The refusal rates and the coherent share of every labelled variant, one column a prompt set."""
    wanted = behaviour["metric"].isin(["non_refusal", "over_refusal"]) & (behaviour["judge"] == judge)
    wanted |= (behaviour["metric"] == "coherent") & (behaviour["prompt_set"] == "advbench")
    return wide(
        behaviour[wanted].sort_values(["metric", "prompt_set"], ascending=[False, True], kind="stable"), ["prompt_set", "metric"]
    )


def show(table: pd.DataFrame, caption: str = "") -> None:
    """Displays the table: every cell escaped, floats with three significant digits, a caption above."""
    from IPython.display import HTML, display

    plain = table.map(lambda cell: "–" if pd.isna(cell) else f"{cell:.3g}" if isinstance(cell, float) else str(cell))
    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = plain.to_html(index=False, escape=True, border=0, classes="results").replace("<thead>", head + "<thead>", 1)
    display(HTML(f'<div class="results-table">{body}</div>'))


def glue_as(table: pd.DataFrame, wanted: Mapping[str, tuple[str, str, str]], judge: str = "phrases") -> None:
    """Glues value and interval of each (label, prompt set or corpus, metric) under its name, for the prose of the book."""
    from myst_nb import glue

    place = "prompt_set" if "prompt_set" in table else "corpus"
    for key, (name, where, metric) in wanted.items():
        rows = table[(table["label"] == name) & (table[place] == where) & (table["metric"] == metric)]
        rows = rows[rows["judge"] == judge] if "judge" in table else rows
        glue(key, Plain(with_intervals(rows).iloc[0] if len(rows) else "(not measured in this run)"), display=False)


def glue_values(table: pd.DataFrame, wanted: Sequence[tuple[str, str, str]], judge: str = "phrases") -> None:
    """Glues each (label, prompt set or corpus, metric) under `label-set-metric`."""
    glue_as(table, {"-".join(item): item for item in wanted}, judge)


def glue_texts(texts: Mapping[str, str]) -> None:
    """Glues each text under its name, for the prose of the book."""
    from myst_nb import glue

    for key, text in texts.items():
        glue(key, Plain(text), display=False)


class Plain(str):
    """A text whose representation is the text itself: glue shows what repr gives, and quotes do not belong in a sentence."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
