"""Tables as a reader sees them: a number with its interval, escaped, and the same numbers glued into prose."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import pandas as pd

from helpers import results
from helpers.errors import StudyError

PERCENT = {
    *("non_refusal", "over_refusal", "coherent", "refused", "judge_failures"),
    *("tpr_5", "fpr_5", "tpr_1", "fpr_1", "recall", "caught", "flagged", "gain_kept"),
    *(f"alarms_{done}{pooling}" for done in ("changed", "restored") for pooling in ("", "_last", "_mean")),
}
POINTS = ("change_in_", "damage", "against_")  # how metrics begin that are a difference of two rates


def percent(value: float, low: float, high: float) -> str:
    """A share with its interval as text, in percent."""
    return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def interval(metric: str, value: float, low: float, high: float) -> str:
    """The value with its interval as text: rates in percent, the rest with three significant digits."""
    if metric in PERCENT:
        return percent(value, low, high)
    if metric.startswith(POINTS):
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


def calibrations(behaviour: pd.DataFrame, utility: pd.DataFrame, judge: str = "phrases") -> pd.DataFrame:
    """One row a kind of text that GPTQ was calibrated on, beside plain rounding on the same grid: perplexity and refusals."""
    reads = utility[(utility["metric"] == "perplexity") & (utility["corpus"] == "c4")].assign(prompt_set="C4")
    says = behaviour[(behaviour["judge"] == judge) & behaviour["metric"].isin(["non_refusal", "over_refusal"])]
    both = pd.concat([reads, says], ignore_index=True)
    chosen = both[both["precision"].str.fullmatch(r"rtn-4|gptq-4.*") & (both["adapter"] == "")]
    if chosen.empty:
        return pd.DataFrame({"calibrated on": ["no format on this grid is in this run"]})
    kinds = chosen["precision"].str.removeprefix("gptq-4").str.lstrip("-").replace({"": "ordinary text (C4)", "rtn-4": "nothing"})
    return wide(chosen.assign(label=kinds), ["prompt_set", "metric"]).rename(columns={"variant": "calibrated on"})


def show(table: pd.DataFrame, caption: str = "") -> None:
    """Displays the table: every cell escaped, floats with three significant digits, a caption above."""
    from IPython.display import HTML, display

    plain = table.map(lambda cell: "–" if pd.isna(cell) else f"{cell:.3g}" if isinstance(cell, float) else str(cell))
    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = plain.to_html(index=False, escape=True, border=0, classes="results").replace("<thead>", head + "<thead>", 1)
    display(HTML(f'<div class="results-table">{body}</div>'))


# ---------------------------------------------------------------- numbers in prose


class Said(str):
    """A text that knows the rows of the table that it was computed from, and how (`HOW`)."""

    rows: pd.DataFrame | None
    how: str

    def __new__(cls, text: str, rows: pd.DataFrame | None = None, how: str = "row") -> Self:
        """The text; rows as a chapter read or wrote them, so that they still name their table."""
        if how.partition(" ")[0] not in HOW:
            raise StudyError(f"unknown way {how!r} from rows to a text; choose one of {', '.join(HOW)}")
        found = super().__new__(cls, text)
        found.rows, found.how = rows, how
        return found

    def __repr__(self) -> str:
        return str(self)  # glue shows what repr gives, and quotes do not belong in a sentence


HOW = {
    "row": "value and interval of one row",
    "mean": "mean of the rows' values",
    "median": "median of the rows' values",
    "share": "share of the rows whose value is 1",
    "significant": "rows whose value lies below 0.05, of all of them",
    "column": "what the rows have in that column",
    "choice": "strength chosen on the validation rows",
    "verdict": "what the rules of the chapter make of the rows",
}
FEW = 3  # rows that are named one by one; more are given by their places in the part that the chapter wrote


def source(text: str) -> dict[str, object]:
    """Where a text comes from: table, way, number of rows, and the rows by name or by place; {} for words without a table."""
    if not isinstance(text, Said) or text.rows is None or not len(text.rows) or "table" not in text.rows.attrs:
        return {}
    rows = text.rows
    name, part = rows.attrs["table"], rows.attrs.get("part", "")
    found: dict[str, object] = {"table": name, "how": text.how, "count": len(rows)}
    if len(rows) > FEW:
        return found | {"part": part, "places": places(rows.index)}
    address = [*results.KEY, *results.OWN[name], "metric"] if name in results.OWN else ["claim"]
    return found | {"rows": [_plain(row) for row in rows[address].to_dict("records")]}


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    return {key: value.item() if hasattr(value, "item") else value for key, value in row.items() if not pd.isna(value)}


def places(index: Iterable[int]) -> str:
    """Row numbers as ranges: `0-4,9`."""
    runs: list[list[int]] = []
    for place in sorted(map(int, index)):
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def glue_as(table: pd.DataFrame, wanted: Mapping[str, tuple[str, str, str]], judge: str = "phrases") -> None:
    """Glues value and interval of each (label, prompt set or corpus, metric) under its name, for the prose of the book."""
    place = "prompt_set" if "prompt_set" in table else "corpus"
    texts = {}
    for key, (name, where, metric) in wanted.items():
        rows = table[(table["label"] == name) & (table[place] == where) & (table["metric"] == metric)]
        texts[key] = of_row(rows[rows["judge"] == judge] if "judge" in table else rows, "(not measured in this run)")
    glue_texts(texts)


def of_row(rows: pd.DataFrame, otherwise: str = "(not measured)") -> str:
    """Value and interval of the first row as a text that knows it; `otherwise` where there is none."""
    return Said(with_intervals(rows).iloc[0], rows.iloc[:1]) if len(rows) else otherwise


def glue_values(table: pd.DataFrame, wanted: Sequence[tuple[str, str, str]], judge: str = "phrases") -> None:
    """Glues each (label, prompt set or corpus, metric) under `label-set-metric`."""
    glue_as(table, {"-".join(item): item for item in wanted}, judge)


def glue_texts(texts: Mapping[str, str]) -> None:
    """Glues each text under its name, for the prose of the book; its source travels in the output's metadata."""
    from IPython.display import display

    for name, text in texts.items():
        # the form in which myst-nb's own `glue` stores a value that is not displayed, with one more entry
        said = {"application/papermill.record/text/plain": str(text)}
        mark = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}, "source": source(text)}
        display(said, raw=True, metadata=mark)
