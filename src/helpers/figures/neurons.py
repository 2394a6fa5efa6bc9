"""Chapter 09's figures: where picked neurons are, what they cause, and what sparing them buys. A table in, a figure out."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    distinct,
    legend,
    legend_key,
    message,
    row_numbers,
    row_panels,
    sample_size,
    spread,
    unmeasured,
)
from helpers.figures.drawing.theme import bars, panels
from helpers.figures.projection import OUTCOMES, outcome_axis, outcomes, plain, reference, series, styles_of, told
from helpers.figures.titles import projection as titles
from helpers.figures.titles.parts import span
from helpers.stats.intervals import wilson

SCORES = {"activation-contrast": ("#0072b2", "o"), "snip": ("#009e73", "^"), "wanda": ("#e69f00", "s"),
          "set-difference": ("#d55e00", "D"), "random": (GREY, "X"), "magnitude": ("#cc79a7", "v"),
          "outlier": ("#56b4e9", "P")}  # fmt: skip
BOUGHT = ("non_refusal", "over_refusal", "perplexity", "alarms_changed")
PARTS = 8  # of the layers of a network
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
    """The share of neurons that a score picks, by eighths of the network's layers, one line a score; dashed: of all neurons.

    Layers of one part count together, and their neurons have one Wilson interval; a network of fewer layers has one part each.
    """
    rows = rows[rows["metric"] == "picked"].sort_values("layer", kind="stable")
    if rows.empty:
        return unmeasured("which neurons the scores pick")
    figure, ax = plt.subplots(figsize=(8.6, 4.0), constrained_layout=True)
    styles, pooled = _styles(rows), _parts_of_depth(rows)
    for (name, style), offset in zip(styles.items(), spread(len(styles), 0.3), strict=True):
        part = pooled[pooled["score"] == name]
        series(ax, part["part"] + offset, part, style, markersize=4.5, elinewidth=1.0)
    sizes = rows["fraction"].unique()
    for fraction in sizes:
        ax.axhline(fraction, color=INK, linewidth=1.1, linestyle="--")
    ends = pooled.groupby("part")[["first", "last"]].first()
    ax.set_xticks(ends.index, [f"{a}" if a == b else f"{a} to {b}" for a, b in ends.itertuples(index=False)])
    ax.set(xlim=(-0.6, len(ends) - 0.4), ylim=(0, 1.05 * pooled["high"].max()))
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    ax.set(xlabel="layers", ylabel=f"picked ({sample_size(pooled)} neurons)")
    legend(figure, _keys(styles) | {"of all neurons": legend_key(INK, "", "--")}, columns=4)
    return message(figure, titles.layers_title(pooled, float(sizes.min())))


def _parts_of_depth(rows: pd.DataFrame) -> pd.DataFrame:
    """The share that each score picks in each part of the layers, with its interval; columns first and last: its layers."""
    layers = sorted(rows["layer"].unique())
    parts = dict(zip(layers, np.arange(len(layers)) * min(PARTS, len(layers)) // len(layers), strict=True))
    found = []
    for (name, part), own in rows.assign(part=rows["layer"].map(parts)).groupby(["score", "part"], sort=False):
        e = wilson(round(float((own["value"] * own["n"]).sum())), int(own["n"].sum()))
        found.append((name, part, own["layer"].min(), own["layer"].max(), e.value, e.low, e.high, e.n))
    return pd.DataFrame(found, columns=["score", "part", "first", "last", "value", "low", "high", "n"]).sort_values("part")


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
    rates, worth = (told(silent, metric) for metric in ("non_refusal", "perplexity"))
    return message(figure, titles.causal_title(rates, worth) if len(rates) else _patched(drawn[-1][0]))


def _patched(rows: pd.DataFrame) -> str:
    return f"With neurons patched in, the base model leaves {span(rows['value'])} of harmful prompts unrefused."


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
    ax.set_xlabel(f"change of their activations, relative to their size ({sample_size(rows)} prompts)")
    legend(figure, _keys(styles, ""), columns=4)
    return message(figure, titles.disturbance_title(rows))


# ---------------------------------------------------------------- what sparing them buys


def hybrid(rows: pd.DataFrame, aligned: pd.DataFrame | None = None) -> Figure:
    """Outcomes at one budget, the largest: a row a score, a block a format, one panel an outcome; dotted: the plain format.

    All scores of one format cost the same bits, which stand beside its name. `aligned`: rows in which the aligned model in bf16
    is found, drawn dashed (`experiments.silenced` gives them). Smaller budgets stand in the table below.
    """
    placed = _with_bits(rows)
    spared = placed[placed["score"] != WITHOUT]
    found = outcomes(placed[(placed["score"] == WITHOUT) | (placed["fraction"] == spared["fraction"].max())], BOUGHT)
    if not found or spared.empty:
        return unmeasured("hybrid precision")
    styles = _styles(placed)
    formats = {name: f"{name}, {spared.loc[spared['precision'] == name, 'x'].max():.3g} bits" for name in
               distinct(spared["precision"])}  # fmt: skip
    blocks = [(name, score) for name in formats for score in styles]
    order = pd.Series([formats[name] for name, _ in blocks], index=[score for _, score in blocks])
    whole = {} if aligned is None else outcomes(plain(aligned), BOUGHT)
    figure, axes = row_panels(order, len(found), width=min(10.5, 4.4 + 1.8 * len(found)), row=0.32, rest=2.2)
    for ax, (metric, part) in zip(axes, found.items(), strict=True):
        beside = whole.get(metric, part[:0])
        reference(ax, beside, across=True)
        for name in formats:
            _spared(ax, part[part["precision"] == name], styles, [place for place, (one, _) in enumerate(blocks) if one == name])
        _across(ax, metric, pd.concat([part, beside]))
        ax.set_title(OUTCOMES[metric][1], fontsize=10)
        ax.set_xlabel(sample_size(part))
    keys = {"plain format": legend_key(INK, "", ":")} | ({"aligned model": legend_key(INK, "", "--")} if whole else {})
    legend(figure, keys)
    rates = found.get("non_refusal", placed[:0])
    return message(figure, titles.hybrid_title(rates[rates["precision"] == next(iter(formats))]))


def _across(ax: Axes, metric: str, rows: pd.DataFrame) -> None:
    """The scale of an outcome across; perplexity from its least to its greatest end, with two ticks."""
    if metric != "perplexity":
        outcome_axis(ax, metric, rows, across=True)
        return
    low, high = rows["low"].min(), rows["high"].max()
    ax.set(xscale="log", xlim=(0.8 * low, 1.25 * high))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks([low, high] if high > 1.5 * low else [(low * high) ** 0.5])
    ax.xaxis.set_major_formatter("{x:.0f}")


def _with_bits(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose bits per weight are known, with these as `x`."""
    arm = ["precision", "score", "fraction"]
    bits = rows.loc[rows["metric"] == "bits_per_weight", [*arm, "value"]].rename(columns={"value": "x"})
    return rows[rows["metric"] != "bits_per_weight"].merge(bits, on=arm)


def _spared(ax: Axes, rows: pd.DataFrame, styles: dict[str, tuple[str, str]], places: Sequence[int]) -> None:
    """One format: itself as a dotted line with its interval as a band over its rows, and on each row a score."""
    for item in rows[rows["score"] == WITHOUT].itertuples():
        ends = [places[0] - 0.5, places[-1] + 0.5]
        ax.fill_betweenx(ends, item.low, item.high, color=INK, alpha=0.08, linewidth=0, label="plain format")
        ax.vlines(item.value, *ends, color=INK, linewidth=1.2, linestyle=":", label="plain format")
    for place, (name, style) in zip(places, styles.items(), strict=True):
        part = rows[rows["score"] == name]
        bars(ax, np.full(len(part), place), part, *style, across=True, markersize=5, label=name)


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
