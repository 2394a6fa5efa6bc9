"""Chapter 09's figures: where picked neurons are, what they cause, and what sparing them buys. A table in, a figure out."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    distinct,
    legend,
    legend_key,
    row_numbers,
    row_panels,
    sample_size,
    spread,
    unmeasured,
)
from helpers.figures.drawing.theme import bars, panels
from helpers.figures.projection import OUTCOMES, UPDATE, outcome_axis, outcomes, plain, reference, series, styles_of, told

SCORES = {"activation-contrast": ("#0072b2", "o"), "snip": ("#009e73", "^"), "wanda": ("#e69f00", "s"),
          "set-difference": ("#d55e00", "D"), "random": (GREY, "X"), "magnitude": ("#cc79a7", "v"),
          "outlier": ("#56b4e9", "P")}  # fmt: skip
BOUGHT = ("non_refusal", "over_refusal", "perplexity", "alarms_changed")
FORMATS = ("-", ":", "-.")  # one line a format of the rest
WITHOUT = "none"  # the score of a model in which no neuron was picked


def _styles(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of every score in the rows, in our order whatever the table's; a user's own come last."""
    there = set(rows["score"]) - {WITHOUT}
    return styles_of([name for name in dict.fromkeys([*SCORES, *rows["score"]]) if name in there], SCORES)


def _keys(styles: dict[str, tuple[str, str]], line: str = "-") -> dict[str, Line2D]:
    """Each score with its key, for a legend."""
    return {name: legend_key(*style, line) for name, style in styles.items()}


# ---------------------------------------------------------------- where they are


def by_layer(rows: pd.DataFrame) -> Figure:
    """The share of each layer's neurons that a score picks, one line a score, with intervals; dashed: that of all neurons."""
    rows = rows[rows["metric"] == "picked"].sort_values("layer", kind="stable")
    if rows.empty:
        return unmeasured("which neurons the scores pick")
    figure, ax = plt.subplots(figsize=(8.6, 4.0), constrained_layout=True)
    styles = _styles(rows)
    for (name, style), offset in zip(styles.items(), spread(len(styles), 0.3), strict=True):
        part = rows[rows["score"] == name]
        series(ax, part["layer"] + offset, part, style, markersize=4, elinewidth=0.9)
    for fraction in rows["fraction"].unique():
        ax.axhline(fraction, color=INK, linewidth=1.1, linestyle="--")
    ax.set(xlim=(rows["layer"].min() - 0.7, rows["layer"].max() + 0.7), ylim=(0, 1.05 * rows["high"].max()))
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ax.set(title="Where the picked neurons are", xlabel="layer", ylabel=f"picked ({sample_size(rows)} a layer)")
    legend(figure, _keys(styles) | {"of all neurons": legend_key(INK, "", "--")}, columns=4)
    return figure


# ---------------------------------------------------------------- what they cause


def causal(silent: pd.DataFrame, patching: pd.DataFrame) -> Figure:
    """Non-refusal and perplexity of the aligned model without the picked neurons; and of the base model with them patched in.

    Each share of neurons has a place of its own. Dashed: the same model without intervention. What was not measured is left out.
    """
    asked = [
        (silent, "non_refusal", "Aligned model,\nneurons silenced", "silenced"),
        (silent, "perplexity", "Aligned model,\nneurons silenced", "silenced"),
        (patching, "non_refusal", "Base model,\nneurons patched in", "patched"),
    ]
    drawn = [(told(table, metric), metric, *words) for table, metric, *words in asked]
    drawn = [one for one in drawn if (one[0]["score"] != WITHOUT).any()]
    if not drawn:
        return unmeasured("models whose neurons were silenced or patched")
    styles = _styles(pd.concat([rows for rows, *_ in drawn]))
    figure, axes = panels(len(drawn), height=4.0, width=3.5 if len(drawn) > 1 else 6.0)
    for ax, (rows, metric, title, done) in zip(axes, drawn, strict=True):
        _by_fraction(ax, rows, styles)
        outcome_axis(ax, metric, rows)
        ax.set_title(title, fontsize=10)
        ax.set(xlabel=f"neurons {done}", ylabel=f"{OUTCOMES[metric][1].replace(chr(10), ' ')}\n({sample_size(rows)})")
    legend(figure, _keys(styles) | {"no neuron": legend_key(INK, "", "--")}, columns=4)
    return figure


def _by_fraction(ax: Axes, rows: pd.DataFrame, styles: dict[str, tuple[str, str]]) -> None:
    """One place a share of neurons, equally spaced, one line a score; dashed where none was picked."""
    reference(ax, rows[rows["score"] == WITHOUT], name="no neuron")
    fractions = sorted(rows.loc[rows["score"] != WITHOUT, "fraction"].unique())
    for (name, style), offset in zip(styles.items(), spread(len(styles), 0.3), strict=True):
        part = rows[rows["score"] == name].sort_values("fraction")
        if len(part):
            series(ax, [fractions.index(f) + offset for f in part["fraction"]], part, style, markersize=5)
    ax.set_xticks(range(len(fractions)), [f"{100 * fraction:g} %" for fraction in fractions])
    ax.set_xlim(-0.5, len(fractions) - 0.5)


def disturbance(rows: pd.DataFrame) -> Figure:
    """How far each format moves the activations of the picked neurons: one row a format, one colour a score, with intervals.

    A change of 1 is as large as the activations themselves. The axis is logarithmic where formats are far apart.
    """
    rows = rows[rows["metric"] == "activation_change"]
    if rows.empty:
        return unmeasured("how far formats move the picked neurons")
    formats, styles = pd.Series("", index=distinct(rows["precision"])), _styles(rows)
    figure, (ax,) = row_panels(formats, 1, width=8.6, row=0.55, rest=1.7)
    for (name, style), offset in zip(styles.items(), spread(len(styles), 0.32), strict=True):
        part = rows[rows["score"] == name]
        y = row_numbers(part, formats, "precision") + offset
        bars(ax, y, part, *style, across=True, markersize=5, elinewidth=1.1, capsize=0)
    least, most = rows.loc[rows["value"] > 0, "value"].min(), rows["high"].max()
    if most > 10 * least:
        ax.set(xscale="log", xlim=(least / 2, 1.5 * most))
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.set_xlim(0, 1.05 * most)
    ax.set(title="Disturbance of the picked neurons")
    ax.set_xlabel(f"change of their activations, relative to their size ({sample_size(rows)} prompts)")
    legend(figure, _keys(styles, ""), columns=4)
    return figure


# ---------------------------------------------------------------- what sparing them buys


def hybrid(rows: pd.DataFrame, aligned: pd.DataFrame | None = None) -> Figure:
    """Outcomes over bits per weight, one panel an outcome, one colour a score, one line a format, from the plain format on.

    All scores of one share cost the same bits; their points are moved apart a little. `aligned`: rows in which the aligned
    model in bf16 is found, drawn dashed (`experiments.silenced` gives them).
    """
    placed = _with_bits(rows)
    found = outcomes(placed, BOUGHT)
    if not found or not (placed["score"] != WITHOUT).any():
        return unmeasured("hybrid precision")
    styles = _styles(placed)
    lines = {name: FORMATS[i % len(FORMATS)] for i, name in enumerate(distinct(placed["precision"]))}
    whole = {} if aligned is None else outcomes(plain(aligned), BOUGHT)
    figure, axes = _outcome_grid(len(found), across=2 if placed["x"].nunique() <= 6 else 1)
    for ax, (metric, part) in zip(axes, found.items(), strict=True):
        beside = whole.get(metric, part[:0])
        reference(ax, beside)
        for name, line in lines.items():
            _spared(ax, part[part["precision"] == name], styles, line, _apart(placed["x"]))
        outcome_axis(ax, metric, pd.concat([part, beside]))
        ax.set_title(f"{OUTCOMES[metric][1].replace(chr(10), ' ')} ({sample_size(part)})", fontsize=10)
    keys = _keys(styles) | {"plain format": legend_key(*UPDATE)} | {name: legend_key(INK, "", k) for name, k in lines.items()}
    legend(figure, keys | ({"aligned model": legend_key(INK, "", "--")} if whole else {}), columns=4)
    return figure


def _outcome_grid(count: int, across: int) -> tuple[Figure, list[Axes]]:
    """That many panels over one axis of bits, in rows of `across`: one where so many points need the width of the page."""
    down, across = -(-count // across), min(count, across)
    size = (9.6, 1.4 + (2.6 if across > 1 else 2.1) * down)
    figure, axes = plt.subplots(down, across, figsize=size, sharex=True, squeeze=False, constrained_layout=True)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for ax in axes.flat[max(count - across, 0) : count]:  # the lowest of each column
        ax.set_xlabel("bits per weight")
        ax.tick_params(labelbottom=True)
    return figure, list(axes.flat[:count])


def _with_bits(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose bits per weight are known, with these as `x`."""
    arm = ["precision", "score", "fraction"]
    bits = rows.loc[rows["metric"] == "bits_per_weight", [*arm, "value"]].rename(columns={"value": "x"})
    return rows[rows["metric"] != "bits_per_weight"].merge(bits, on=arm)


def _apart(bits: pd.Series) -> float:
    """How far points at the same bits are moved to either side, so that they stay nearer than to any others."""
    gaps = np.diff(np.sort(bits.unique()))
    gaps = gaps[gaps > 1e-3]
    return min(0.35 * gaps.min(), 0.02 * gaps.sum()) if len(gaps) else 0.1


def _spared(ax: Axes, rows: pd.DataFrame, styles: dict[str, tuple[str, str]], line: str, reach: float) -> None:
    """One format: itself, and from there one line a score, over more and more neurons in bf16."""
    start = rows[rows["score"] == WITHOUT]
    for (name, style), offset in zip(styles.items(), spread(len(styles), reach), strict=True):
        part = rows[rows["score"] == name].sort_values("x")
        if len(part):
            series(ax, part["x"] + offset, part, style, start, line)
    bars(ax, start["x"], start, *UPDATE, zorder=4)


HARMFUL, EDGY = "advbench", "edgy"


PLACES = {"non_refusal": HARMFUL, "over_refusal": EDGY, "nll": "dialogue", "perplexity": "c4"}


def arm(row: pd.Series) -> str:
    """What an arm is called: how many neurons, by which score."""
    return "none" if row["score"] == "none" else f"{100 * row['fraction']:g} % by {row['score']}"


def neuron_table(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
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


def neuron_sentences(table: pd.DataFrame) -> dict[str, str]:
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
