"""Chapter 06's figures: what a budget finds, what a predictor leans on, and signals beside drops. A table in, a figure out."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    POOLED,
    READS,
    STYLES,
    TEXT,
    distinct,
    legend,
    legend_key,
    message,
    sample_size,
    shade_rows,
    spread,
    unmeasured,
)
from helpers.figures.drawing.theme import bars, panels, share_axis
from helpers.staleness import triage as triage_orders
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import BITS, DRIFT, ORDERS
from helpers.stats.intervals import rate_interval

BINS = 8  # of a signal, with as many cells each
SPLITS = {"monitor": "a task never seen", "family": "a kind of update\nnever seen", "seed": "a seed never seen",
          "monitor and family": "neither task nor\nkind of update seen",
          "family-4bit": "a kind never seen,\n4 bits and more"}  # fmt: skip
SHOWN = ("monitor", "family", "seed", "family-4bit")
PART = "family-4bit"  # the split that is judged: formats that somebody would ship
BUDGET = 0.2
JUDGED = "ridge, free+forward"  # no labels, linear, and named before any result: not the best of many


def budget_curves(triage: pd.DataFrame, predictors: Sequence[str] = ()) -> Figure:
    """The share of stale cells found against the share of cells revalidated, one panel a split, one line an order.

    At most six orders: `predictors`, or the first six of the table (never the best six: that would be choosing on the test).
    Random order is the grey reference. n: stale cells.
    """
    rows = triage[(triage["metric"] == "recall") & triage["split"].isin(SHOWN)]
    names = [name for name in predictors or distinct(rows["predictor"]) if name in set(rows["predictor"])][:6]
    rows = rows[rows["predictor"].isin(names)]
    if rows.empty:
        return unmeasured("the recall of stale cells at a budget")
    splits = distinct(rows["split"])
    colours = {name: (GREY, "x") if name == "random" else style for name, style in zip(names, STYLES, strict=False)}
    figure, axes = panels(len(splits), height=3.8)
    for ax, split in zip(axes, splits, strict=True):
        here = rows[rows["split"] == split]
        for (name, (colour, marker)), offset in zip(colours.items(), spread(len(names), 1.6), strict=True):
            part = here[here["predictor"] == name].sort_values("budget")
            bars(ax, 100 * part["budget"] + offset, part, colour, marker, elinewidth=1.2, capsize=1.5, markersize=5)
            ax.plot(100 * part["budget"] + offset, part["value"], color=colour, linewidth=1.1, alpha=0.7)
        share_axis(ax)
        budgets = 100 * np.sort(here["budget"].unique())
        ax.set_xticks(budgets, [f"{budget:.0f} %" for budget in budgets])
        ax.set(
            title=SPLITS.get(split, split),
            xlabel=f"cells revalidated\n({sample_size(here)} stale)",
            xlim=(budgets[0] - 4, budgets[-1] + 4),
        )
    axes[0].set_ylabel("stale cells found")
    legend(figure, {name: legend_key(*style, "-") for name, style in colours.items()}, columns=min(3, 2 * len(splits)))
    return message(figure, curves_title(triage, names))


def importances(triage: pd.DataFrame, predictor: str | None, words: Mapping[str, str], top: int = 10) -> Figure:
    """By how much a predictor's rank correlation falls when one signal is shuffled: the `top` signals, with intervals.

    `words` maps a signal to what it says; the largest stands first, by the mean over splits where there are several.
    """
    rows = triage[(triage["predictor"] == predictor) & triage["metric"].str.startswith("importance:")]
    rows = rows.assign(signal=rows["metric"].str.removeprefix("importance:"))
    if rows.empty:
        return unmeasured(f"importances for “{predictor}”" if predictor else "what a predictor leans on")
    order = rows.groupby("signal", sort=False)["value"].mean().sort_values(ascending=False, kind="stable").index[:top]
    rows, splits = rows[rows["signal"].isin(order)], distinct(rows["split"])
    figure, ax = plt.subplots(figsize=(8.6, 1.5 + 0.42 * len(order)), constrained_layout=True)
    for (split, (colour, marker)), offset in zip(zip(splits, STYLES, strict=False), spread(len(splits), 0.2), strict=True):
        part = rows[rows["split"] == split]
        bars(ax, order.get_indexer(part["signal"]) + offset, part, colour, marker, across=True, label=SPLITS.get(split, split))
    shade_rows(ax, pd.Series("", index=order))
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(order)), [textwrap.fill(words.get(name, name), 44) for name in order], fontsize=TEXT)
    ax.set(xlabel=f"fall of the rank correlation ({sample_size(rows)} cells)")
    ax.set_title(textwrap.fill(f"What “{predictor}” leans on: {', '.join(SPLITS.get(s, s) for s in splits)}", 80), x=0, ha="left")
    if len(splits) > 1:
        figure.legend(loc="outside lower center", ncols=3)
    return message(figure, importances_title(rows, [words.get(name, name) for name in order], order))


def importances_title(rows: pd.DataFrame, names: Sequence[str], order: Sequence[str]) -> str:
    """The sentence above importances: the signal whose shuffling costs most, and whether that is surely more than nothing."""
    first = rows[rows["signal"] == order[0]]
    sure = "surely" if (first["low"] > 0).all() else "not surely"
    most = f"“{names[0]}” counts most: shuffled, the rank correlation falls by {first['value'].mean():.2f}"
    return f"{most}, {sure} more than nothing."


def signal_bins(cells: pd.DataFrame, signals: Sequence[str]) -> Figure:
    """The share of stale cells by the size of each named signal, a panel a signal, a line a pooling; equally many cells a bin.

    Intervals take the variants as units (`rate_interval`), since cells of one variant share its weights. The dashed line is the
    share of all cells that is stale: what a signal that tells nothing would give everywhere.
    """
    poolings = [name for name in POOLED if name in set(cells["pooling"])]
    figure, axes = panels(len(signals), height=4.0, width=5.0)
    for ax, name in zip(axes, signals, strict=True):
        for pooling, offset in zip(poolings, spread(len(poolings), 0.12), strict=True):
            rows = _binned(cells[cells["pooling"] == pooling], name)
            colour, marker = POOLED[pooling]
            bars(ax, rows.index + 1 + offset, rows, colour, marker, markersize=5, elinewidth=1.2, capsize=1.5)
            ax.plot(rows.index + 1 + offset, rows["value"], color=colour, linewidth=1.1, alpha=0.7, zorder=0.9)
        ax.axhline(cells["stale"].mean(), color=INK, linewidth=1, linestyle="--")
        share_axis(ax)
        ax.set_xticks([1, BINS], ["smallest", "largest"])
        said = SIGNALS[name].words if name in SIGNALS else name.replace("_", " ")
        ax.set(xlabel=f"{textwrap.fill(said, 46)}\n(n = {len(cells):,} cells)", xlim=(0.5, BINS + 0.5))
    axes[0].set_ylabel("stale, of the cells in the bin")
    keys = {READS[pooling]: legend_key(*POOLED[pooling], "-") for pooling in poolings}
    legend(figure, keys | {"all cells": legend_key(INK, "", "--")})
    return message(figure, bins_title(cells, signals))


def _binned(cells: pd.DataFrame, signal: str) -> pd.DataFrame:
    """One row a bin of the signal: the share of stale cells with its interval over variants; fewer bins where cells are level."""
    known = cells[np.isfinite(cells[signal].astype(float))]
    size = known[signal].astype(float).abs() if signal == "mean_shift" else known[signal].astype(float)
    places = (BINS * (size.rank(method="average") - 0.5) / max(len(size), 1)).astype(int)
    found = {}
    for place, rows in known.groupby(places):
        e = rate_interval(rows["stale"].astype(float), rows["variant"])
        found[place] = (e.value, e.low, e.high)
    return pd.DataFrame.from_dict(found, orient="index", columns=["value", "low", "high"])


def where_stale(cells: pd.DataFrame, most: int = 6) -> pd.DataFrame:
    """The variants with the most stale cells: how many, of how many, and their share of all stale cells."""
    found = cells.groupby("variant", sort=False)["stale"].agg(stale="sum", cells="size").sort_values("stale", ascending=False)
    shares = found["stale"] / max(int(found["stale"].sum()), 1)
    return found.assign(**{"share of all stale": [f"{100 * share:.0f} %" for share in shares]}).head(most).reset_index()


PRICE = {"free": "nothing", "forward": "unlabelled texts through both models", "labels": "a few labelled texts"}


RULE = "plain rule"


def signals_overview() -> pd.DataFrame:
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


def beyond(result: pd.DataFrame) -> pd.DataFrame:
    """One row a predictor and split: what it finds beyond fewest bits first and largest drift first, in points of recall."""
    rows = result[result["metric"].str.contains("_beyond_")].copy()
    if rows.empty:
        return pd.DataFrame(columns=["split", "predictor"])
    shares = " at " + (100 * rows["budget"]).round().astype(int).astype(str) + " %"
    kind, _, name = (rows["metric"].str.partition("_beyond_")[i] for i in range(3))
    rows["column"] = kind + np.where(kind == "recall", shares, "") + " beyond " + name
    ends = rows[["value", "low", "high"]] * 100
    rows["cell"] = [f"{v:+.0f} [{low:+.0f}, {high:+.0f}]" for v, low, high in ends.itertuples(index=False)]
    found = rows.pivot(index=["split", "predictor"], columns="column", values="cell").fillna("–")
    order = list(dict.fromkeys(zip(rows["split"], rows["predictor"], strict=True)))
    return found.loc[order, list(dict.fromkeys(rows["column"]))].reset_index().rename_axis(columns=None)


def rules(result: pd.DataFrame) -> pd.DataFrame:
    """One row a split: the share of stale cells that the plain rule caught, and the share of all cells it asked to check."""
    rows = result[result["predictor"] == RULE].assign(cell=lambda t: tables.with_intervals(t))
    found = rows.pivot(index="split", columns="metric", values="cell").reindex(columns=["caught", "flagged"]).fillna("–")
    return found.set_axis(["stale cells caught", "cells to check"], axis=1).reset_index().rename_axis(columns=None)


def triage_sentences(result: pd.DataFrame) -> dict[str, str]:
    """The best predictor and the best simple order as text, and what the judged predictor finds beyond bits and drift."""
    found = {"triage-best": triage_orders.best(result), "triage-simple": triage_orders.best(result, tuple(ORDERS))}
    said = {key: "(not in this run)" if row is None else _named(result.loc[[row.name]]) for key, row in found.items()}
    for name in ("bits", "drift"):
        rows = _judged(result, f"recall_beyond_{name}")
        said[f"triage-beyond-{name}"] = tables.of_row(rows, "(not in this run)")
    return said


def _judged(result: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The row of the judged predictor in the judged split, at the budget nearest to 20 %."""
    rows = result[(result["predictor"] == JUDGED) & (result["split"] == PART) & (result["metric"] == metric)]
    gap = (rows["budget"] - BUDGET).abs()
    return rows[gap == gap.min()].iloc[:1]


def curves_title(result: pd.DataFrame, names: Sequence[str]) -> str:
    """The sentence above the budget curves: what the judged predictor finds beyond bits and drift, 4 bits and more."""
    said = []
    for name, order in (("bits", BITS), ("drift", DRIFT)):
        rows = _judged(result, f"recall_beyond_{name}")
        if len(rows) and order in names:
            low, high, value = rows[["low", "high", "value"]].iloc[0]
            answer = "more than" if low > 0 else "less than" if high < 0 else "not surely more than"
            said.append(f"{answer} {order} ({100 * value:+.0f} points)")
    if not said:
        return "Nothing of this run says whether a predictor beats an order that anybody could follow."
    return f"In formats of 4 bits and more, “{JUDGED}” finds {' and '.join(said)}."


def bins_title(cells: pd.DataFrame, signals: Sequence[str]) -> str:
    """The sentence above the bins: for each signal, the share of stale cells where it is largest against where it is smallest."""
    if not cells["stale"].any():
        return "No cell is stale: no signal has anything to tell."
    said = []
    for name in signals:
        rows = _binned(cells, name)
        if len(rows) > 1:
            least, most = 100 * rows["value"].iloc[0], 100 * rows["value"].iloc[-1]
            said.append(f"{most:.0f} % against {least:.0f} % by {name.replace('_', ' ').replace(' ks', ' KS')}")
    return f"Stale where a signal is largest against where it is smallest: {', '.join(said)}." if said else "All cells are level."


def _named(row: pd.DataFrame) -> str:
    return tables.Said(f"{tables.of_row(row)} ({row['predictor'].iloc[0]})", row)
