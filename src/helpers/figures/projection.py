"""Chapter 07's figures, and the parts that figures of outcomes share. A table in, a figure out; what was not measured is said."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from helpers.figures.drawing.layout import (
    GREY,
    INK,
    STYLES,
    distinct,
    legend,
    legend_key,
    message,
    row_panels,
    sample_size,
    spread,
    unmeasured,
)
from helpers.figures.drawing.theme import PALETTE, bars, panels
from helpers.figures.models import perplexity_axis
from helpers.figures.projection_tables import METHODS, method
from helpers.figures.titles import projection as titles
from helpers.projection.restorations import RESTORATIONS, parse
from helpers.updates import names as update_names
from helpers.updates import variants
from helpers.updates.names import EVERY

OUTCOMES = {"non_refusal": ("advbench", "harmful prompts\nnot refused"), "over_refusal": ("edgy", "safe prompts\nrefused"),
            "nll": ("dialogue", "nats a token\nof dialogues"), "perplexity": ("c4", "perplexity\non C4"),
            "alarms_changed": (EVERY, "texts whose\nalarm changed"),
            "mean_auroc_drop": (EVERY, "monitors' mean\ndrop of AUROC")}  # fmt: skip
PAGE = ("non_refusal", "over_refusal", "nll", "alarms_changed")  # what stands side by side where a row is a variant
KINDS = dict(zip(("q", "k", "v", "o", "gate", "up", "down"), STYLES, strict=True))
UPDATE = (INK, "s")
COMPARED = ("safelora", "zero", "random-modules")  # what the curves show beside each other; all others stand in the tables
CURVED = ("non_refusal", "nll")  # safety and utility
RESTORED = {"safelora": ("#0072b2", "o"), "splora": ("#e69f00", "D"), "salora": ("#56b4e9", "P"),
            "orthogonal-keep": ("#009e73", "^"), "orthogonal-remove": ("#cc79a7", "v"), "zero": ("#d55e00", "X"),
            "norm-matched": ("#8c6d31", "<"), "random-spectrum": (GREY, "d"), "random-subspace": ("#5b6472", "p"),
            "random-modules": ("#6a3d9a", ">"), "safe-delta": ("#08519c", "H"), "null-space": ("#41ab5d", "*"),
            "shrink": ("#a50f15", "8")}  # fmt: skip
SPARE = (("#6a3d9a", ">"), ("#b5a300", "h"), ("#a50f15", "8"), ("#41ab5d", "*"), ("#08519c", "H"))


# ---------------------------------------------------------------- parts that figures of outcomes share


def told(table: pd.DataFrame, metric: str, split: str = "") -> pd.DataFrame:
    """The rows of an outcome on the set it is told on: of that split where the table has it, else on test, else on any."""
    rows = table[table["metric"] == metric]
    home, there = OUTCOMES[metric][0], distinct(rows["measured_on"])
    name = next((name for name in (f"{home}/{split}", home, *there) if name in there), "")
    return rows[rows["measured_on"] == name]


def outcomes(table: pd.DataFrame, metrics: Iterable[str] = tuple(OUTCOMES), split: str = "") -> dict[str, pd.DataFrame]:
    """`told` of every outcome that was measured."""
    found = {metric: told(table, metric, split) for metric in metrics}
    return {metric: rows for metric, rows in found.items() if len(rows)}


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the aligned model in bf16 without any intervention."""
    return table[(table["adapter"] == "") & (table["precision"] == "bf16") & (table["serving"] == "")]


def styles_of(names: Iterable[str], known: Mapping[str, tuple[str, str]], spare: Sequence = SPARE) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name: those that are known for it, else the next of the spare ones."""
    own = [name for name in names if name not in known]
    left = {name: spare[i % len(spare)] for i, name in enumerate(own)}
    return {name: known.get(name) or left[name] for name in names}


def series(ax: Axes, x: Sequence[float], rows: pd.DataFrame, style: tuple[str, str], start: pd.DataFrame | None = None,
           line: str = "-", **options) -> None:  # fmt: skip
    """Points with pale intervals and a line through them, which sets out from `start` (one row, at its own `x`)."""
    colour, marker = style
    look: dict[str, Any] = {"markersize": 4.5, "elinewidth": 1.1, "capsize": 0, "ecolor": to_rgba(colour, 0.4)}
    bars(ax, x, rows, colour, marker, **look | options)
    ends = [np.asarray(x, float), rows["value"].to_numpy(float)]
    if start is not None and len(start):
        ends = [np.concatenate([start[name].to_numpy(float), end]) for name, end in zip(("x", "value"), ends, strict=True)]
    ax.plot(*ends, color=colour, linewidth=1.2, alpha=0.75, linestyle=line)


def reference(ax: Axes, rows: pd.DataFrame, line: str = "--", across: bool = False, name: str = "aligned model") -> None:
    """A model that others are compared with: a line with its interval as a band; nothing where it was not measured."""
    band, rule = (ax.axvspan, ax.axvline) if across else (ax.axhspan, ax.axhline)
    for item in rows.itertuples():
        band(item.low, item.high, color=GREY, alpha=0.16, linewidth=0, label=name)
        rule(item.value, color=INK, linewidth=1.1, linestyle=line, label=name)


def outcome_axis(ax: Axes, metric: str, rows: pd.DataFrame, across: bool = False) -> None:
    """The scale of an outcome: refusals from 0 to 100 %, perplexity logarithmic, nats over every interval, others over 0 too."""
    if metric == "perplexity":
        perplexity_axis(ax)
        return
    whole, side = metric in ("non_refusal", "over_refusal"), ax.xaxis if across else ax.yaxis
    low, high = (0.0, 1.0) if whole else (rows["low"].min(), rows["high"].max())
    low, high = (low, high) if metric == "nll" else (min(low, 0.0), max(high, 0.0))
    room = 0.05 * (high - low) or 0.05
    ax.set(**{"xlim" if across else "ylim": (low - room, high + room)})
    side.set_major_locator(MultipleLocator(0.5 if across else 0.25) if whole else MaxNLocator(3 if across else 5))
    if whole or metric == "alarms_changed":  # across, a 0 without its unit keeps clear of the panel on its left
        side.set_major_formatter(lambda v, _: f"{100 * v:g} %" if v or not across else "0")


# ---------------------------------------------------------------- module by module


def scores(by_module: pd.DataFrame) -> Figure:
    """SafeLoRA's cosine of every module over depth, an unrelated update's as a dotted line; and what is left of its norm.

    A line a kind of module, through the mean of its modules in each block. All are computed exactly, so without intervals.
    `by_module`: `restorations.Restored.table`. A block is the first number of a module's name, a kind its last part; modules
    without a number are left out.
    """
    blocks = by_module["module"].str.extract(r"(\d+)")[0].astype(float)
    kinds = by_module["module"].str.rsplit(".", n=1).str[-1].map(lambda name: re.sub(r"_proj$", "", name))
    rows = by_module.assign(block=blocks, kind=kinds).dropna(subset=["block", "score"]).sort_values("block", kind="stable")
    if rows.empty:
        return unmeasured("the modules of an update")
    styles = styles_of([kind for kind in dict.fromkeys([*KINDS, *rows["kind"]]) if kind in set(rows["kind"])], KINDS)
    gone = int((rows["after"] == 0).sum())
    figure, axes = panels(1 if gone == len(rows) else 2, height=4.2, width=5.25)
    for kind, (colour, marker) in styles.items():
        own = rows[rows["kind"] == kind].groupby("block")[["score", "null", "before", "after"]].mean()
        look: dict[str, Any] = {"color": colour, "linewidth": 1.5, **({"marker": marker} if len(own) == 1 else {})}
        axes[0].plot(own.index, own["null"], ":", **look)
        axes[0].plot(own.index, own["score"], label=kind, **look)
        kept = (own["after"] / own["before"])[own["after"] > 0]
        if len(axes) > 1:
            axes[1].plot(kept.index, kept, label=kind, **look)
    axes[0].set(title="How aligned each module's update is", ylabel="cosine s", ylim=(0, None))
    if len(axes) > 1:
        axes[1].set(title="How much of the update is left", ylabel="norm after / before")
        _small_shares(axes[1], len(rows), gone)
    for ax in axes:
        ax.set(xlim=(rows["block"].min() - 0.8, rows["block"].max() + 0.8), xlabel=f"block (n = {len(rows)} modules)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    keys = {kind: legend_key(colour, "", "-") for kind, (colour, _) in styles.items()}
    legend(figure, keys | {"an unrelated update": legend_key(INK, "", ":", linewidth=1.4)}, columns=8)
    return message(figure, titles.scores_title(rows))


def _small_shares(ax: Axes, modules: int, gone: int) -> None:
    """A logarithmic axis in per cent; what is 0 has no place on it and is counted."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    ax.yaxis.set_minor_formatter(NullFormatter())
    if gone:
        ax.text(0.03, 0.05, f"nothing left in {gone} of {modules} modules", transform=ax.transAxes)


# ---------------------------------------------------------------- curves


def curves(drawn: pd.DataFrame) -> Figure:
    """SafeLoRA beside the same modules removed, over the share of modules: a column an update, above refusals, below utility.

    Beside them modules removed at random, all with intervals; where these were not drawn, the first three restorations. Curves
    set out at 0 from the update as it was trained (so "none" is not drawn again); dashed: the aligned model. Points at one share
    are moved apart a little. The prompts are those of validation where the table has them.
    """
    modules, whole = drawn[drawn["module"] != ""], drawn[drawn["module"] == ""]
    total = modules["module"].nunique() or max(int(whole["layers_changed"].max()), 1)
    whole = whole[whole["restoration"] != "none"].assign(x=shares_changed(whole, total))
    whole["update"] = whole["adapter"] + "\non " + whole["precision"]
    names = _in_order(whole.loc[whole["restoration"] != "", "restoration"])
    names = [name for name in names if name in COMPARED] or names[: len(COMPARED)]
    whole = whole[whole["restoration"].isin(["", *names])]
    found = outcomes(whole, CURVED, split="validation") or outcomes(whole, split="validation")
    restored = pd.concat(found.values()) if found else whole[:0]
    restored = restored[restored["restoration"] != ""]
    if restored.empty:
        return unmeasured("an update under restorations")
    updates, styles = distinct(restored["update"]), styles_of(_in_order(restored["restoration"]), RESTORED)
    figure, axes = plt.subplots(
        len(found), len(updates), figsize=(min(9.6, 5.2 + 2.2 * len(updates)), 1.6 + 2.3 * len(found)), sharex=True,
        sharey="row", squeeze=False, constrained_layout=True,
    )  # fmt: skip
    for line, (metric, rows) in zip(axes, found.items(), strict=True):
        for ax, update in zip(line, updates, strict=True):
            _curves(ax, rows[rows["update"] == update], styles)
            reference(ax, plain(rows))
        outcome_axis(line[0], metric, rows[rows["update"].isin(updates)])
        line[0].set_ylabel(f"{OUTCOMES[metric][1]}\n({sample_size(rows)})", fontsize=10)
    _name_columns(axes, updates)
    keys = {"as trained": legend_key(*UPDATE), "aligned model": legend_key(INK, "", "--")}
    keys |= {METHODS.get(name, name): legend_key(*style, "-") for name, style in styles.items()}
    legend(figure, keys, columns=min(3, len(keys)))
    return message(figure, titles.curves_title_of_pair(found["non_refusal"] if "non_refusal" in found else restored[:0]))


def _name_columns(axes: np.ndarray, updates: Sequence[str]) -> None:
    """Each update above its column, and the share of modules below."""
    for top, bottom, update in zip(axes[0], axes[-1], updates, strict=True):
        top.set_title(textwrap.fill(update.replace("\n", " "), 26, break_on_hyphens=True), fontsize=10)
        bottom.set(xlabel="strength (modules changed)", xlim=(-0.04, 1.06))
        bottom.xaxis.set_major_locator(MultipleLocator(0.5))
        bottom.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %" if v else "0")


def shares_changed(rows: pd.DataFrame, total: int) -> pd.Series:
    """The share of the modules that each row's restoration changed; of one that changes all of them in part, its strength."""
    everywhere = rows["restoration"].map(lambda name: bool(name) and RESTORATIONS[parse(name).name].whole is not None)
    return (rows["layers_changed"] / total).where(~everywhere.astype(bool), rows["strength"])


def _curves(ax: Axes, rows: pd.DataFrame, styles: Mapping[str, tuple[str, str]]) -> None:
    """One update: itself at 0, and from there one line a restoration."""
    start = rows[rows["restoration"] == ""]
    for (name, style), offset in zip(styles.items(), spread(len(styles), 0.03), strict=True):
        part = rows[rows["restoration"] == name].sort_values("x")
        if len(part):
            series(ax, part["x"] + offset, part, style, start, markersize=4)
    bars(ax, start["x"], start, *UPDATE, zorder=4)


def _in_order(names: pd.Series) -> list[str]:
    """The restorations of a column in the order of their registry, whatever the table's."""
    ranks = {name: i for i, name in enumerate(RESTORATIONS)}
    return sorted(distinct(names), key=lambda name: (ranks.get(name.partition(":")[0], len(ranks)), name))


# ---------------------------------------------------------------- in full, on test prompts


def before_and_after(table: pd.DataFrame) -> Figure:
    """Outcomes of whole variants on test items, one row a variant and one panel an outcome; dashed: the aligned model in bf16.

    Rows are grouped by the weights they run on; an update stands above its restorations. Of the table `projection` only
    variants that were asked the test prompts are shown.
    """
    exact = table[(table["module"] == "") & table["measured_on"].isin({home for home, _ in OUTCOMES.values()})]
    known, codes = variants.from_table(exact), variants.variant_codes(exact)
    asked = {known[code] for code in codes[exact["metric"] == "non_refusal"]}
    if not any(variant.restoration for variant in asked):
        return unmeasured("a restored update on test prompts")
    ranks = [("", *RESTORATIONS), sorted({variant.precision for variant in asked}, key=lambda name: (name != "bf16", name))]
    order = sorted(asked, key=lambda v: (ranks[1].index(v.precision), v.adapter, v.trained_on, v.serving,
                                         *_rank(v.restoration, ranks[0]), v.strength or 0.0))  # fmt: skip
    places = codes.map({i: order.index(variant) for i, variant in enumerate(known) if variant in asked})
    exact = exact.assign(y=places).dropna(subset=["y"])
    found = outcomes(exact, PAGE)
    several = len({variant.adapter for variant in order} - {""}) > 1
    names = [v.adapter if several and v.adapter and not v.restoration else method(v).replace(" (", "\n(") for v in order]
    figure, axes = row_panels(pd.Series([v.precision for v in order], index=names), len(found), row=0.34, rest=1.6)
    for ax, (metric, rows) in zip(axes, found.items(), strict=True):
        reference(ax, plain(rows), across=True)
        for y, part in rows.groupby("y"):
            bars(ax, part["y"], part, *_look(order[int(y)]), across=True, markersize=5.5, label=order[int(y)].precision)
        outcome_axis(ax, metric, rows, across=True)
        ax.set_title(OUTCOMES[metric][1], fontsize=10)
        ax.set_xlabel(sample_size(rows))
    return message(figure, titles.recovered_title(found["non_refusal"]))


def _rank(restoration: str, known: Sequence[str]) -> tuple[int, str]:
    name = restoration.partition(":")[0]
    return (known.index(name) if name in known else len(known)), restoration


def _look(variant: update_names.Variant) -> tuple[str, str]:
    """Colour and marker of a variant's row."""
    if not variant.adapter:
        return PALETTE["aligned"], "s"
    return RESTORED.get(variant.restoration, SPARE[0]) if variant.restoration else UPDATE
