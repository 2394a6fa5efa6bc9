"""Chapter 06's figures: what a budget finds, what a predictor leans on, and signals beside drops. A table in, a figure out."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    STYLES,
    distinct,
    legend,
    legend_key,
    sample_size,
    shade_rows,
    spread,
    unmeasured,
)
from helpers.figures.drawing.theme import PALETTE, bars, panels, share_axis
from helpers.staleness import triage as triage_orders
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import ORDERS

MANY = 500  # dots that are worth more as an image than each as a shape
SPLITS = {"monitor": "a task never seen", "family": "a kind of update\nnever seen", "seed": "a seed never seen",
          "monitor and family": "neither task nor\nkind of update seen"}  # fmt: skip


def budget_curves(triage: pd.DataFrame, predictors: Sequence[str] = ()) -> Figure:
    """The share of stale cells found against the share of cells revalidated, one panel a split, one line an order.

    At most six orders: `predictors`, or the first six of the table (never the best six: that would be choosing on the test).
    Random order is the grey reference. n: stale cells.
    """
    rows = triage[triage["metric"] == "recall"]
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
            xlabel=f"cells revalidated ({sample_size(here)} stale)",
            xlim=(budgets[0] - 4, budgets[-1] + 4),
        )
    axes[0].set_ylabel("stale cells found")
    legend(figure, {name: legend_key(*style, "-") for name, style in colours.items()}, columns=min(3, 2 * len(splits)))
    return figure


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
    ax.set_yticks(range(len(order)), [textwrap.fill(words.get(name, name), 44) for name in order], fontsize=9)
    ax.set(xlabel=f"fall of the rank correlation ({sample_size(rows)} cells)")
    ax.set_title(textwrap.fill(f"What “{predictor}” leans on: {', '.join(SPLITS.get(s, s) for s in splits)}", 80), x=0, ha="left")
    if len(splits) > 1:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def signal_scatter(cells: pd.DataFrame, signals: Sequence[str]) -> Figure:
    """AUROC drop of every cell against each of the named signals, one panel a signal, stale cells marked; cells as dots.

    A dot here has no interval drawn: there are thousands, and each one's interval stands in the table `staleness`.
    """
    figure, axes = panels(len(signals), height=3.8, width=4.6)
    for ax, name in zip(axes, signals, strict=True):
        for stale, colour, marker in ((False, GREY, "o"), (True, PALETTE["qlora"], "D")):
            part = cells[(cells["stale"] == stale) & np.isfinite(cells[name].astype(float))]
            words = f"{'stale' if stale else 'not stale'} (n = {len(part):,})"
            ax.scatter(part[name].astype(float), part["drop"], s=9 if not stale else 14, color=colour, marker=marker,
                       alpha=0.45, linewidths=0, rasterized=len(cells) > MANY, label=words)  # fmt: skip
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        said = SIGNALS[name].words if name in SIGNALS else name.replace("_", " ")
        ax.set(xlabel=textwrap.fill(said, 46), ylabel="AUROC drop")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, markerscale=1.8)
    return figure


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


def rules(result: pd.DataFrame) -> pd.DataFrame:
    """One row a split: the share of stale cells that the plain rule caught, and the share of all cells it asked to check."""
    rows = result[result["predictor"] == RULE].assign(cell=lambda t: tables.with_intervals(t))
    found = rows.pivot(index="split", columns="metric", values="cell").reindex(columns=["caught", "flagged"]).fillna("–")
    return found.set_axis(["stale cells caught", "cells to check"], axis=1).reset_index().rename_axis(columns=None)


def triage_sentences(result: pd.DataFrame) -> dict[str, str]:
    """The best predictor and the best simple order as text, for the chapter's prose."""
    found = {"triage-best": triage_orders.best(result), "triage-simple": triage_orders.best(result, tuple(ORDERS))}
    return {key: "(not in this run)" if row is None else _named(result.loc[[row.name]]) for key, row in found.items()}


def _named(row: pd.DataFrame) -> str:
    return tables.Said(f"{tables.of_row(row)} ({row['predictor'].iloc[0]})", row)
