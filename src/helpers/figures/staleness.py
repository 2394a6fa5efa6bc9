"""Chapter 05's figures: how frozen monitors do after an update. A table in, a figure out; what was not measured is said."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    legend,
    legend_key,
    limits,
    measured_variants,
    ordered_tasks,
    row_numbers,
    row_panels,
    sample_size,
    share_across,
    spread,
    task_keys,
    task_styles,
    task_words,
    together,
    two_rows,
    unmeasured,
    wrapped,
)
from helpers.figures.drawing.theme import PALETTE, bars, panels
from helpers.stats import roc

DEFINITIONS = {"stale_auroc_05": "AUROC fell\nby 0.05 or more", "stale_tpr_5": "catches 5 points less\nat the frozen threshold",
               "stale_fpr_5": "false alarms above\n10 %, twice what was set"}  # fmt: skip
MEASURES = {"interaction": ("QLoRA beyond\nits two parts", "worse than\nthe sum"),
            "serving_interaction": ("serving: LoRA on\nquantized weights", "worse than\nthe sum"),
            "training_effect": ("training on\nquantized weights", "worse"),
            "training_by_serving": ("served on what it\nwas trained on", "worse")}  # fmt: skip
ROUNDED = ("rtn-8", "rtn-4", "rtn-3", "rtn-2")
DOSES = {"bits": "fewer bits per weight →", "rank": "rank of the adapter", "steps": "training steps"}
CLASSES: dict[int, dict[str, Any]] = {0: {"facecolor": to_rgba(PALETTE["aligned"], 0.55), "edgecolor": PALETTE["aligned"]},
           1: {"edgecolor": PALETTE["qlora"], "hatch": "///", "fill": False}}  # fmt: skip
CALLED = {0: "to be passed", 1: "to be flagged"}
TURNED = {"logistic-mean": "logistic, mean over tokens", "mean-difference-mean": "difference of means, mean over tokens"}
DROP = "mean drop of AUROC"


# ---------------------------------------------------------------- one monitor


def score_histograms(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, threshold: float, names: tuple[str, str] = ("aligned", "variant"),
    groups: Sequence | None = None,
) -> Figure:  # fmt: skip
    """Scores of one monitor on two models, one above the other, with the frozen threshold and what it does on each.

    Bars are shares of their class. AUROC, TPR and FPR (flagged: score > threshold) stand beside each panel with 95 % intervals
    over `groups`, or over texts where none are given. Scores beyond 0.5 % at either end are counted in the outermost bar.
    """
    bins = _bins(np.concatenate([before, after]), threshold)
    figure, axes = plt.subplots(2, 1, figsize=(8.6, 4.6), sharex=True, sharey=True, constrained_layout=True)
    for ax, values, name in zip(axes, (before, after), names, strict=True):
        for label, style in CLASSES.items():
            own = np.clip(values[labels == label], bins[0], bins[-1])
            shares = np.histogram(own, bins)[0] / max(own.size, 1)
            ax.stairs(shares, bins, **{"fill": True, "linewidth": 1, "label": CALLED[label]} | style)
        ax.axvline(threshold, color=INK, linewidth=1.6)
        ax.set_title(wrapped(name, 60))
        ax.text(1.02, 0.5, _realised(labels, values, threshold, groups), transform=ax.transAxes, va="center", linespacing=1.7)
        ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
    axes[1].set_xlabel("score of the monitor")
    figure.supylabel("share of the class", fontsize=10)
    keys = [*(Rectangle((0, 0), 1, 1, **style) for style in CLASSES.values()), legend_key(INK, "", "-")]
    counts = [int((labels == label).sum()) for label in CLASSES]
    words = (*(f"{CALLED[label]} (n = {count})" for label, count in zip(CLASSES, counts, strict=True)), "frozen threshold")
    figure.legend(keys, words, loc="outside lower center", ncols=3)
    return figure


def _bins(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Forty bins over the scores without the outermost 0.5 % at either end, and over the threshold."""
    ends = np.quantile(scores, [0.005, 0.995])
    low, high = min(ends[0], threshold), max(ends[1], threshold)
    room = 0.03 * (high - low) or 0.5  # all scores alike: still a range
    return np.linspace(low - room, high + room, 41)


def _realised(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Sequence | None) -> str:
    """AUROC, TPR and FPR with their intervals, one a line."""
    tpr, fpr = (tables.percent(e.value, e.low, e.high) for e in roc.rates(labels, scores, threshold, groups))
    e = roc.auroc_interval(labels, scores, groups)
    return f"AUROC {tables.interval('auroc', e.value, e.low, e.high)}\nTPR {tpr}\nFPR {fpr}"


# ---------------------------------------------------------------- all monitors on all variants


def heat_map(staleness: pd.DataFrame, order: Sequence[str], margin: float = 0.05) -> Figure:
    """Mean AUROC drop by variant and task, with its interval in each cell; orange is worse, purple better, white no change.

    A cell is framed and bold where the whole interval lies above `margin`. Colours end at a drop of 0.3. The mean is over the
    task's monitors; n counts test texts.
    """
    rows = staleness[(staleness["metric"] == "mean_auroc_drop") & staleness["label"].isin(order)]
    if rows.empty:
        return unmeasured("the mean drop of AUROC")
    variants, tasks = measured_variants(rows, order), ordered_tasks(rows["task"])
    figure, (ax,) = row_panels(variants, 1, width=5.2 + 1.06 * len(tasks), row=0.4, rest=2.1)
    limit = float(np.clip(rows["value"].abs().max(), margin, 0.3))
    wide = rows.pivot_table(index="label", columns="task", values="value").reindex(index=variants.index, columns=tasks)
    image = ax.imshow(wide, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", zorder=1)
    for item in rows.itertuples():
        _cell(ax, tasks.index(item.task), variants.index.get_loc(item.label), item, margin, limit)
    for x, y in zip(*np.nonzero(wide.isna().to_numpy().T), strict=True):
        ax.text(x, y, "not measured", ha="center", va="center", fontsize=7, color="#667085")
    heads = [f"{textwrap.fill(task_words(task), 12)}\n{sample_size(rows[rows['task'] == task])}" for task in tasks]
    ax.set_xticks(range(len(tasks)), heads, fontsize=8.5)
    ax.xaxis.tick_top()
    ax.grid(visible=False)
    past = "both" if rows["value"].abs().max() > limit else "neither"
    bar = figure.colorbar(image, ax=ax, orientation="horizontal", aspect=40, shrink=0.7, pad=0.02, extend=past)
    bar.set_label(f"{DROP} over the task's monitors\nframed: the whole interval above {margin:g}")
    return figure


def _cell(ax: Axes, x: int, y: int, item, margin: float, limit: float) -> None:
    """The drop with its interval in small, framed where the interval lies above the margin."""
    dark, sure = abs(item.value) > 0.72 * limit, item.low > margin
    style: dict[str, Any] = {"color": "white" if dark else INK, "ha": "center", "va": "center", "zorder": 3}
    ax.text(x, y - 0.18, _signed(item.value), fontsize=9, weight="bold" if sure else "normal", **style)
    ax.text(x, y + 0.23, f"{_signed(item.low)} to {_signed(item.high)}", fontsize=7, **style)
    if sure:
        ax.add_patch(Rectangle((x - 0.47, y - 0.43), 0.94, 0.86, fill=False, edgecolor=INK, linewidth=1.3, zorder=2))


def _signed(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def three_definitions(staleness: pd.DataFrame, order: Sequence[str]) -> Figure:
    """The share of each task's monitors that is stale, by variant and one panel a definition; one dot a task, with intervals.

    Tasks are not averaged: their monitors are few and unlike, and the intervals are within a task, over layers.
    """
    rows = staleness[staleness["label"].isin(order)]
    wanted = {f"share_{flag}": words for flag, words in DEFINITIONS.items() if f"share_{flag}" in set(rows["metric"])}
    rows = rows[rows["metric"].isin(wanted)]
    if rows.empty:
        return unmeasured("the shares of stale monitors")
    variants, styles = measured_variants(rows, order), task_styles(ordered_tasks(rows["task"]))
    figure, axes = row_panels(variants, len(wanted))
    for ax, (metric, words) in zip(axes, wanted.items(), strict=True):
        for (task, (colour, marker)), offset in zip(styles.items(), spread(len(styles)), strict=True):
            part = rows[(rows["metric"] == metric) & (rows["task"] == task)]
            bars(
                ax, row_numbers(part, variants) + offset, part, colour, marker, across=True, markersize=4, elinewidth=1, capsize=0
            )
        share_across(ax)
        ax.set_title(words)
        ax.set_xlabel(f"stale, of each task's monitors\n({sample_size(rows[rows['metric'] == metric])} monitors)", fontsize=9)
    legend(figure, task_keys(styles), columns=5)
    return figure


def frozen_and_refit(
    staleness: pd.DataFrame, order: Sequence[str], probes: Sequence[str] = ("logistic-mean", "logistic-last")
) -> Figure:
    """AUROC of the frozen probes and of probes refitted on the variant, one panel a task, one row a variant: means over layers.

    A long line from a filled dot (frozen) to an open one (refit) is a turned readout; an open dot short of the dashed line,
    the AUROC before the update, is lost signal. Intervals are means of the layers' ends, as if their errors were one and the
    same: wider than needed, never narrower. n: test texts; the number of monitors stands beside it.
    """
    wanted = ["auroc", "auroc_drop", "refit_auroc"]
    rows = staleness[staleness["probe"].isin(probes) & staleness["label"].isin(order) & staleness["metric"].isin(wanted)]
    refitted = rows.loc[rows["metric"] == "refit_auroc", ["label", "task", "probe", "layer"]]
    rows = rows.merge(refitted)  # the same monitors on both ends of a line
    if rows.empty:
        return unmeasured("refitted probes")
    variants, tasks = measured_variants(rows, order), ordered_tasks(rows["task"])
    means = rows.groupby(["task", "label", "metric"], sort=False)[["value", "low", "high"]].mean()
    figure, axes = row_panels(variants, len(tasks), row=0.34)
    for ax, task in zip(axes, tasks, strict=True):
        part = rows[rows["task"] == task]
        _ends(ax, means.loc[task].reset_index(), variants)
        monitors = part.groupby("label")[["probe", "layer"]].value_counts().groupby("label").size().max()
        ax.set_title(textwrap.fill(task_words(task), 14), fontsize=9.5)
        ax.set_xlabel(f"AUROC\nmonitors: {monitors}\n{sample_size(part)}", fontsize=8.5)
        ax.tick_params(axis="x", labelsize=8)
    keys = {
        "frozen": legend_key(PALETTE["aligned"], "o"),
        "refit on the variant": legend_key(PALETTE["qlora"], "D", markerfacecolor="white"),
        "frozen, before the update": legend_key(INK, "", "--"),
    }
    legend(figure, keys)
    return figure


def _ends(ax: Axes, means: pd.DataFrame, variants: pd.Series) -> None:
    """Frozen and refitted AUROC with intervals, a line between them, and the AUROC before the update."""
    ends = {metric: part.set_index("label").reindex(variants.index) for metric, part in means.groupby("metric")}
    frozen, refit, y = ends["auroc"], ends["refit_auroc"], np.arange(len(variants))
    ax.axvline((frozen["value"] + ends["auroc_drop"]["value"]).mean(), color=INK, linewidth=1, linestyle="--")
    ax.hlines(y, frozen["value"], refit["value"], color=GREY, linewidth=2.2)
    bars(ax, y - 0.1, frozen, PALETTE["aligned"], "o", across=True, markersize=5, elinewidth=1, capsize=0)
    bars(ax, y + 0.1, refit, PALETTE["qlora"], "D", across=True, markersize=4.5, elinewidth=1, capsize=0, markerfacecolor="white")
    ax.set_xlim(min(0.5, means.loc[means["metric"] != "auroc_drop", "low"].min()) - 0.02, 1.02)


def angles(staleness: pd.DataFrame, order: Sequence[str], resampled: Mapping[str, float]) -> Figure:
    """Degrees between the direction fitted before and after, one dot a layer, by variant and one panel a kind of probe.

    Colour is depth, marker and height in the row are the task. `resampled`, by probe, is what another draw of training texts
    alone does: the median of `resampled_angle` in the table `monitors`; it is drawn as a line.
    """
    rows = staleness[
        (staleness["metric"] == "direction_angle") & staleness["label"].isin(order) & staleness["probe"].isin(TURNED)
    ]
    if rows.empty:
        return unmeasured("the angle between directions")
    probes = [probe for probe in TURNED if probe in set(rows["probe"])]
    variants, styles, depths = (
        measured_variants(rows, order),
        task_styles(ordered_tasks(rows["task"])),
        sorted(rows["depth"].unique()),
    )
    shades = dict(zip(depths, sns.color_palette("viridis", len(depths)), strict=True))
    shifts = dict(zip(styles, spread(len(styles)), strict=True))
    figure, axes = row_panels(variants, len(probes), row=0.4)
    most = max([rows["high"].max(), rows["value"].max(), *(resampled[probe] for probe in probes if probe in resampled)])
    for ax, probe in zip(axes, probes, strict=True):
        here = rows[rows["probe"] == probe]
        for (task, depth), part in here.groupby(["task", "depth"]):
            y, marker = row_numbers(part, variants) + shifts[task], styles[task][1]
            bars(ax, y, part, shades[depth], marker, across=True, markersize=3.6, elinewidth=0.7, capsize=0,
                 label=f"{task_words(task)}, depth {100 * depth:.0f} %")  # fmt: skip
        note = ""
        if probe in resampled:
            ax.axvline(resampled[probe], color=INK, linewidth=1.2, linestyle="--")
            note = "\ndashed: the same model, other training texts"
        ax.set(
            title=TURNED[probe], xlabel=f"degrees ({sample_size(here)} training texts){note}", xlim=(-0.02 * most, 1.03 * most)
        )
    legend(figure, two_rows({f"depth {100 * depth:.0f} %": legend_key(shade, "o") for depth, shade in shades.items()},
                              {name: legend_key(INK, key.get_marker()) for name, key in task_keys(styles).items()}),
            columns=max(len(shades), len(styles)))  # fmt: skip
    return figure


# ---------------------------------------------------------------- doses and parts


def drop_by_dose(staleness: pd.DataFrame, bits: pd.Series) -> Figure:
    """Mean AUROC drop against bits per weight (rounding to nearest), and against the dose of an update; one line a task.

    The unquantized model stands at its bits with a drop of 0, by definition and so without interval. `dose_kind` ("rank" or
    "steps") and `dose_value` name the dose of an update's row; a panel is left out where nothing of its kind was measured.
    """
    rows = staleness[staleness["metric"] == "mean_auroc_drop"]
    rounded = rows[rows["precision"].isin(set(ROUNDED) & set(bits.index)) & rows["adapter"].eq("")]
    series = {"bits": rounded.assign(x=rounded["precision"].map(bits))}
    if "dose_kind" in rows:
        updates = rows.assign(x=rows["dose_value"])
        series |= {kind: updates[updates["dose_kind"] == kind] for kind in DOSES if kind != "bits"}
    series = {kind: part.astype({"x": float}).sort_values("x") for kind, part in series.items() if len(part)}
    if not series:
        return unmeasured("a dose: neither rounding at several bits nor an update at several ranks or steps")
    everything = pd.concat(series.values())
    styles = task_styles(ordered_tasks(everything["task"]))
    figure, axes = panels(len(series), height=3.8, width=3.5 if len(series) > 1 else 8.6)
    for ax, (kind, part) in zip(axes, series.items(), strict=True):
        ax.axhline(0, color=INK, linewidth=0.8)
        for (task, (colour, marker)), offset in zip(styles.items(), spread(len(styles), 0.1), strict=True):
            own = part[part["task"] == task]
            x = own["x"] * 2**offset  # the axis is logarithmic
            bars(ax, x, own, colour, marker, markersize=5, elinewidth=1.2, capsize=1.5)
            ax.plot(x, own["value"], color=colour, linewidth=1.1, alpha=0.7)
        _dose_axis(ax, kind, sorted(part["x"].unique()), float(bits.get("bf16", 16.0)))
        ax.set(xlabel=f"{DOSES[kind]}\n({sample_size(part)})", ylim=limits(everything))
    axes[0].set_ylabel(DROP)
    legend(figure, task_keys(styles), columns=3 if len(series) < 3 else 5)
    return figure


def _dose_axis(ax: Axes, kind: str, doses: list[float], whole: float) -> None:
    """A logarithmic axis with the doses themselves as ticks; bits fall to the right, so that the dose grows everywhere."""
    ax.set_xscale("log", base=2)
    if kind == "bits":
        ax.plot(whole, 0, "s", color=INK, markersize=6, label="not quantized")
        doses = [whole, *reversed(doses)]
    ax.set_xticks(doses, [f"{dose:.2g}" if kind == "bits" else f"{dose:g}" for dose in doses])
    ax.xaxis.set_minor_locator(NullLocator())
    room = 2**0.35 if doses[0] <= doses[-1] else 2**-0.35
    ax.set_xlim(doses[0] / room, doses[-1] * room)


def interaction_dots(interaction: pd.DataFrame) -> Figure:
    """Whether QLoRA is worse than its two parts, by task and over all: one panel a measure, one block of rows an update.

    Numbers are AUROC drops averaged over a task's monitors, right of 0 is worse. Left out: measures whose models were not built.
    """
    rows = interaction[(interaction["probe"] == "all") & interaction["metric"].isin(MEASURES)]
    if rows.empty:
        return unmeasured("QLoRA together with both of its parts")
    ranks = {task: i for i, task in enumerate(ordered_tasks(rows["task"]))}
    rows = rows.assign(block=rows["adapter"] + " on " + rows["precision"])
    rows = rows.assign(place=rows["block"] + "|" + rows["task"])
    places = rows.drop_duplicates("place").set_index("place").sort_values("task", key=lambda t: t.map(ranks), kind="stable")
    blocks = together(places["block"])
    shown = [measure for measure in MEASURES if measure in set(rows["metric"])]
    figure, axes = row_panels(blocks, len(shown), width=min(10.5, 6.6 + 2.0 * len(shown)))
    axes[0].set_yticks(range(len(blocks)), [task_words(task).replace("\n", " ") for task in places["task"][blocks.index]])
    reach = 1.08 * rows[["low", "high"]].abs().to_numpy().max() or 0.01
    for ax, measure in zip(axes, shown, strict=True):
        part, (title, side) = rows[rows["metric"] == measure], MEASURES[measure]
        for (block, overall), own in part.groupby(["block", part["task"].eq("all")], sort=False):
            style = (INK, "D") if overall else (PALETTE["aligned"], "o")
            bars(ax, row_numbers(own, blocks, "place"), own, *style, across=True, label=block)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.set(xlim=(-reach, reach), ylim=(len(blocks) - 0.5, -1.6), xlabel=f"difference of\nAUROC drops\n({sample_size(part)})")
        ax.text(0.97, -1.0, side, ha="right", va="center", fontsize=8, style="italic", transform=ax.get_yaxis_transform())
        ax.text(0.03, -1.0, "better", ha="left", va="center", fontsize=8, style="italic", transform=ax.get_yaxis_transform())
    return figure
