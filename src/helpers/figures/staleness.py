"""Chapter 05's figures: how frozen monitors do after an update. A table in, a figure out; what was not measured is said.

One pooling a panel or a figure, never both in one mark, and at most about sixty marks a panel. Above each stands what it says, a
sentence of `staleness_tables`. The floor is drawn: what the same is where nothing changed.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from helpers.figures import staleness_tables, tables
from helpers.figures.drawing.heat_cells import write_cell
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    POOLED,
    READS,
    TEXT,
    legend,
    legend_key,
    limits,
    message,
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
    unmeasured,
)
from helpers.figures.drawing.spoken import spoken
from helpers.figures.drawing.task_lines import floor_line, lines_by_task, ticks_apart
from helpers.figures.drawing.theme import PALETTE, bars, panels, share_axis
from helpers.figures.drawing.two_heaps import two_heaps
from helpers.staleness import cohorts
from helpers.staleness.cohorts import POOLINGS
from helpers.staleness.verdicts import FLOOR, GROUPS
from helpers.stats import roc
from helpers.stats.intervals import MARGINS

DEFINITIONS = {"stale_auroc_05": "AUROC fell\nby 0.05 or more", "stale_tpr_5": "catches 5 points less\nat the frozen threshold",
               "stale_fpr_5": "false alarms above\n10 %, twice what was set"}  # fmt: skip
MEASURES = {"interaction": ("QLoRA beyond its\nparts, in AUROC", "worse than\nthe sum"),
            "interaction_tpr": ("QLoRA beyond its\nparts, in what is caught", "worse than\nthe sum"),
            "serving_interaction": ("serving: LoRA on\nquantized weights", "worse than\nthe sum"),
            "training_effect": ("training on\nquantized weights", "worse"),
            "training_by_serving": ("served on what it\nwas trained on", "worse")}  # fmt: skip
PARTS = ("interaction", "interaction_tpr")
ROUNDED = ("rtn-8", "rtn-4", "rtn-3", "rtn-2")
TURNED = {"logistic-last": "logistic, the last token", "logistic-mean": "logistic, the mean over tokens"}
DROP = "mean drop of AUROC"
MOST = 30  # rows of interactions that can still be told apart


# ---------------------------------------------------------------- one monitor


def score_histograms(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, threshold: float, names: tuple[str, str] = ("aligned", "variant"),
    groups: Sequence | None = None,
) -> Figure:  # fmt: skip
    """Scores of one monitor on two models, one above the other, with the frozen threshold and what it does on each.

    Bars are shares of their class. AUROC, TPR and FPR (flagged: score > threshold) stand beside each panel with 95 % intervals
    over `groups`, or over texts where none are given. Scores beyond 0.5 % at either end are counted in the outermost bar.
    """
    said = [_realised(labels, own, threshold, groups) for own in (before, after)]
    figure = two_heaps((before, after), labels, threshold, names, said)
    return message(figure, staleness_tables.heaps_title(labels, before, after, threshold))


def _realised(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Sequence | None) -> str:
    """AUROC, TPR and FPR with their intervals, one a line."""
    tpr, fpr = (tables.percent(e.value, e.low, e.high) for e in roc.rates(labels, scores, threshold, groups))
    e = roc.auroc_interval(labels, scores, groups)
    return f"AUROC {tables.interval('auroc', e.value, e.low, e.high)}\nTPR {tpr}\nFPR {fpr}"


# ---------------------------------------------------------------- groups of updates


def _groups(rows: pd.DataFrame) -> pd.Series:
    """The groups that were measured, in their order; its values keep the floor, the formats and the updates apart."""
    found = [name for name in GROUPS if name in set(rows["group"])]
    kinds = ["floor" if name == FLOOR else "formats" if name.startswith("formats") else "updates" for name in found]
    return pd.Series(kinds, index=found)


def heat_map(drops: pd.DataFrame, margin: float = MARGINS["auroc"]) -> Figure:
    """Mean AUROC drop by group of updates and task, a panel a pooling, with its interval in each cell (`cohorts.by_group`).

    Orange is worse, purple better, white no change; a cell is framed and bold where the whole interval lies above `margin`.
    Colours end at a drop of 0.3. n counts test texts.
    """
    if drops.empty:
        return unmeasured("the mean drop of AUROC: no such texts, or weak monitors alone")
    groups, tasks = _groups(drops), ordered_tasks(drops["task"])
    size = (max(3.0 + len(tasks), 5.2), 2.6 + len(POOLINGS) * (0.5 + 0.4 * len(groups)))
    figure, axes = plt.subplots(len(POOLINGS), 1, figsize=size, constrained_layout=True)
    limit = float(np.clip(drops["value"].abs().max(), margin, 0.3))
    for ax, pooling in zip(axes, POOLINGS, strict=True):
        image = _panel(ax, drops[drops["pooling"] == pooling], groups, tasks, margin, limit)
        ax.set_yticks(range(len(groups)), groups.index, fontsize=8.5)
        ax.set_title(READS[pooling], pad=8)
    past = "both" if drops["value"].abs().max() > limit else "neither"
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", aspect=50, shrink=0.6, pad=0.02, extend=past)
    bar.set_label(f"{DROP} over a task's monitors\nframed: the whole interval above {margin:g}")
    return message(figure, staleness_tables.heat_map_title(drops))


def _panel(ax: Axes, rows: pd.DataFrame, groups: pd.Series, tasks: Sequence[str], margin: float, limit: float):
    """One pooling's cells; returns the image, whose colours both panels share."""
    wide = rows.pivot_table(index="group", columns="task", values="value").reindex(index=groups.index, columns=tasks)
    image = ax.imshow(wide, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", zorder=1)
    for item in rows.itertuples():
        write_cell(ax, tasks.index(item.task), groups.index.get_loc(item.group), item, margin, limit)
    for x, y in zip(*np.nonzero(wide.isna().to_numpy().T), strict=True):
        ax.text(x, y, "none", ha="center", va="center", fontsize=7.4, color="#667085")
    heads = [f"{textwrap.fill(task_words(task), 10)}\n{sample_size(own) if len(own) else ''}" for task in tasks
             for own in [rows[rows["task"] == task]]]  # fmt: skip
    ax.set_xticks(range(len(tasks)), heads, fontsize=7.6)
    ax.xaxis.tick_top()
    ax.grid(visible=False)
    return image


def three_definitions(labelled: pd.DataFrame, shares: pd.DataFrame, pooling: str) -> Figure:
    """The share of one pooling's monitors that is stale, by group of updates and one panel a definition; one dot a task.

    shares: `cohorts.by_group` of each definition. The dashed line is the floor, the largest share where nothing changed.
    """
    rows = shares[(shares["pooling"] == pooling) & shares["metric"].isin(DEFINITIONS)]
    if rows.empty:
        return unmeasured(f"the shares of stale monitors of {READS[pooling]}: none, or weak ones alone")
    groups, styles = _groups(rows), task_styles(ordered_tasks(rows["task"]))
    wanted = {metric: words for metric, words in DEFINITIONS.items() if metric in set(rows["metric"])}
    figure, axes = row_panels(groups, len(wanted), rest=2.4)
    for ax, (metric, words) in zip(axes, wanted.items(), strict=True):
        here = rows[rows["metric"] == metric]
        for (task, (colour, marker)), offset in zip(styles.items(), spread(len(styles)), strict=True):
            part = here[here["task"] == task]
            places = row_numbers(part, groups, "group") + offset
            bars(ax, places, part, colour, marker, across=True, markersize=4, elinewidth=1, capsize=0)
        share_across(ax)
        floor_line(ax, here.loc[here["group"] == FLOOR, "value"], across=True)
        ax.set_title(words)
        ax.set_xlabel(f"stale, of each task's monitors\n({sample_size(here)} cells)", fontsize=TEXT)
    legend(figure, task_keys(styles) | {"floor: nothing changed": legend_key(INK, "", "--")}, columns=3)
    sentence = staleness_tables.definitions_title(labelled)
    return message(figure, f"Monitors of {READS[pooling]}. {sentence}")


# ---------------------------------------------------------------- lost or turned


def frozen_and_refit(labelled: pd.DataFrame, pooling: str) -> Figure:
    """AUROC of frozen logistic probes and of refits, one panel a task, one row a group of updates: means over layers, variants.

    A long line from a filled dot (frozen) to an open one (refit) is a turned readout; an open dot short of the dashed line,
    the AUROC before the update, is lost signal. Intervals are means of the ends, as if all errors were one and the same: wider
    than needed, never narrower. n: test texts; the number of monitors stands beside it.
    """
    wanted = ["auroc", "auroc_drop", "refit_auroc"]
    own = (labelled["probe"] == f"logistic-{pooling}") & (labelled["group"] != "")
    rows = labelled[own & labelled["metric"].isin(wanted)]
    refitted = rows.loc[rows["metric"] == "refit_auroc", ["label", "task", "probe", "layer"]]
    rows = rows.merge(refitted)  # the same monitors on both ends of a line
    if rows.empty:
        return unmeasured(f"refitted probes of {READS[pooling]}")
    groups, tasks = _groups(rows), ordered_tasks(rows["task"])
    means = rows.groupby(["task", "group", "metric"], sort=False)[["value", "low", "high"]].mean()
    figure, axes = row_panels(groups, len(tasks), row=0.36, rest=2.4)
    for ax, task in zip(axes, tasks, strict=True):
        part = rows[rows["task"] == task]
        _ends(ax, means.loc[task].reset_index(), groups)
        ax.set_title(textwrap.fill(task_words(task), 14), fontsize=TEXT)
        ax.set_xlabel(f"AUROC\nlayers: {part['layer'].nunique()}\n{sample_size(part)}", fontsize=TEXT)
        ax.tick_params(axis="x", labelsize=TEXT)
    keys = {"frozen": legend_key(PALETTE["aligned"], "o"),
            "refit on the variant": legend_key(PALETTE["qlora"], "D", markerfacecolor="white"),
            "frozen, before the update": legend_key(INK, "", "--")}  # fmt: skip
    legend(figure, keys)
    return message(figure, staleness_tables.refit_title(labelled, pooling))


def _ends(ax: Axes, means: pd.DataFrame, groups: pd.Series) -> None:
    """Frozen and refitted AUROC with intervals, a line between them, and the AUROC before the update."""
    ends = {metric: part.set_index("group").reindex(groups.index) for metric, part in means.groupby("metric")}
    frozen, refit, y = ends["auroc"], ends["refit_auroc"], np.arange(len(groups))
    ax.axvline((frozen["value"] + ends["auroc_drop"]["value"]).mean(), color=INK, linewidth=1, linestyle="--")
    ax.hlines(y, frozen["value"], refit["value"], color=GREY, linewidth=2.2)
    bars(ax, y - 0.1, frozen, PALETTE["aligned"], "o", across=True, markersize=5, elinewidth=1, capsize=0)
    bars(ax, y + 0.1, refit, PALETTE["qlora"], "D", across=True, markersize=4.5, elinewidth=1, capsize=0, markerfacecolor="white")
    ax.set_xlim(min(0.5, means.loc[means["metric"] != "auroc_drop", "low"].min()) - 0.02, 1.02)


def angles(labelled: pd.DataFrame, resampled: Mapping[str, float]) -> Figure:
    """Degrees between the direction fitted before and after, one dot a task (mean over layers and variants), a panel a pooling.

    `resampled`, by probe, is what another draw of training texts alone does: the median of `resampled_angle` in the table
    `monitors`; it is drawn as a line.
    """
    own = (labelled["metric"] == "direction_angle") & labelled["probe"].isin(TURNED) & (labelled["group"] != "")
    rows = labelled[own]
    if rows.empty:
        return unmeasured("the angle between directions")
    probes = [probe for probe in TURNED if probe in set(rows["probe"])]
    groups, styles = _groups(rows), task_styles(ordered_tasks(rows["task"]))
    means = rows.groupby(["probe", "group", "task"], sort=False)[["value", "low", "high", "n"]].mean().reset_index()
    figure, axes = row_panels(groups, len(probes), row=0.42, rest=2.4)
    most = max([means["high"].max(), *(resampled[probe] for probe in probes if probe in resampled)])
    for ax, probe in zip(axes, probes, strict=True):
        here = means[means["probe"] == probe]
        for (task, (colour, marker)), offset in zip(styles.items(), spread(len(styles)), strict=True):
            part = here[here["task"] == task]
            places = row_numbers(part, groups, "group") + offset
            bars(ax, places, part, colour, marker, across=True, markersize=4, elinewidth=0.9, capsize=0)
        note = ""
        if probe in resampled:
            ax.axvline(resampled[probe], color=INK, linewidth=1.2, linestyle="--")
            note = "\ndashed: the same model, other training texts"
        ax.set(title=TURNED[probe], xlabel=f"degrees ({sample_size(here)} training texts){note}",
               xlim=(-0.02 * most, 1.03 * most))  # fmt: skip
    legend(figure, task_keys(styles), columns=5)
    return message(figure, staleness_tables.angle_title(means, resampled))


# ---------------------------------------------------------------- doses and parts


def drop_by_bits(labelled: pd.DataFrame, bits: pd.Series) -> Figure:
    """Mean AUROC drop against bits per weight (rounding to nearest), one panel a pooling, one line a task.

    The unquantized model stands at its bits with a drop of 0, by definition and so without interval.
    """
    rows = labelled[(labelled["metric"] == "mean_auroc_drop") & labelled["probe"].isin([f"all-{name}" for name in POOLINGS])]
    rows = rows[rows["precision"].isin(set(ROUNDED) & set(bits.index)) & rows["adapter"].eq("")]
    if rows.empty:
        return unmeasured("rounding to nearest at several bits")
    rows = rows.assign(x=rows["precision"].map(bits).astype(float)).sort_values("x")
    styles, whole = task_styles(ordered_tasks(rows["task"])), float(bits.get("bf16", 16.0))
    figure, axes = panels(len(POOLINGS), height=3.9, width=5.2)
    for ax, pooling in zip(axes, POOLINGS, strict=True):
        here = rows[rows["probe"] == f"all-{pooling}"]
        ax.axhline(0, color=INK, linewidth=0.8)
        lines_by_task(ax, here, styles)
        ax.set_xscale("log", base=2)
        ax.plot(whole, 0, "s", color=INK, markersize=6, label="not quantized")
        doses = [whole, *sorted(rows["x"].unique(), reverse=True)]
        ax.set_xticks(doses, [f"{dose:.2g}" for dose in doses])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(doses[0] * 2**0.35, doses[-1] / 2**0.35)  # bits fall to the right: the dose grows
        n = f"\n({sample_size(here)})" if len(here) else ""
        ax.set(title=READS[pooling], xlabel=f"fewer bits per weight →{n}", ylim=limits(rows))
    axes[0].set_ylabel(DROP)
    legend(figure, task_keys(styles), columns=5)
    return message(figure, staleness_tables.bits_title(rows))


def monitors_by_dose(arms: pd.DataFrame, shares: pd.DataFrame, drops: pd.DataFrame) -> Figure:
    """Unfit monitors (above) and mean AUROC drop (below) against |BA| / |W|, one panel a pooling, one line a task.

    arms: `verdicts.doses`; shares and drops: `cohorts.by_group` of `unfit` and `mean_auroc_drop`, by label. The dashed line is
    the floor, the largest value where nothing changed. Published recipes say rows and steps, not this size: none is drawn.
    """
    size = dict(zip(arms["label"], 100 * arms["size"], strict=True))
    parts = [table.assign(x=table["label"].map(size)) for table in (shares, drops)]
    dosed = [part[part["x"].notna()] for part in parts]
    if len(arms) < 2 or all(part.empty for part in dosed):
        return unmeasured("monitors that count under an update at two doses or more")
    styles = task_styles(ordered_tasks(pd.concat(part["task"] for part in dosed)))
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 6.4), sharex=True, sharey="row", constrained_layout=True)
    for (i, part), (k, pooling) in ((one, other) for one in enumerate(dosed) for other in enumerate(POOLINGS)):
        ax, here = axes[i, k], part[part["pooling"] == pooling]
        lines_by_task(ax, here, styles)
        floor = parts[i][(parts[i]["group"] == FLOOR) & (parts[i]["pooling"] == pooling)]
        floor_line(ax, floor["value"], across=False)
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ticks = ticks_apart(sorted(size.values()))
        ax.set_xticks(ticks, [f"{float(f'{tick:.2g}'):g} %" for tick in ticks], fontsize=9)
        words = f"({sample_size(here)} {('cells', 'texts')[i]})" if len(here) else ""
        ax.set(title=READS[pooling] if i == 0 else "", xlabel=f"{'|BA| / |W| ' if i else ''}{words}".strip())
    share_axis(axes[0, 0])
    axes[0, 0].set_ylabel("unfit at the threshold")
    axes[1, 0].set_ylabel(DROP)
    legend(figure, task_keys(styles) | {"floor: nothing changed": legend_key(INK, "", "--")}, columns=3)
    return message(figure, staleness_tables.dose_title(dosed[0], arms))


def interaction_dots(interaction: pd.DataFrame, measures: Sequence[str] = PARTS) -> Figure:
    """Whether QLoRA is worse than its two parts, by task and over all: a panel a measure, a block an update, a mark a pooling.

    Numbers are means over a task's monitors of one pooling, right of 0 is worse. Left out: measures whose models were not built,
    and, where more updates were measured than can be told apart, the single tasks.
    """
    own = interaction["probe"].isin([f"all-{name}" for name in POOLINGS])
    rows = interaction[own & interaction["metric"].isin(measures)]
    if rows.empty:
        return unmeasured("QLoRA together with both of its parts")
    rows = rows.assign(block=rows["adapter"] + " on " + rows["precision"], pooling=rows["probe"].str.rpartition("-")[2])
    rows = rows if len(rows.drop_duplicates(["block", "task"])) <= MOST else rows[rows["task"] == "all"]
    rows = rows.assign(place=rows["block"] + "|" + rows["task"])
    ranks = {task: i for i, task in enumerate(ordered_tasks(rows["task"]))}
    places = rows.drop_duplicates("place").set_index("place").sort_values("task", key=lambda t: t.map(ranks), kind="stable")
    blocks = together(places["block"])
    shown = [measure for measure in measures if measure in set(rows["metric"])]
    figure, axes = row_panels(blocks, len(shown), width=min(10.5, 6.6 + 2.0 * len(shown)), rest=2.6)
    axes[0].set_yticks(range(len(blocks)), [task_words(task).replace("\n", " ") for task in places["task"][blocks.index]])
    for ax, measure in zip(axes, shown, strict=True):
        _beside(ax, rows[rows["metric"] == measure], blocks, measure)
    keys = {READS[name]: legend_key(*POOLED[name]) for name in POOLINGS}
    legend(figure, keys)
    return message(figure, staleness_tables.interaction_title(interaction))


def _beside(ax: Axes, part: pd.DataFrame, blocks: pd.Series, measure: str) -> None:
    """One measure of all updates, the poolings side by side."""
    title, side = MEASURES[measure]
    for (pooling, style), offset in zip(POOLED.items(), (-0.16, 0.16), strict=True):
        own = part[part["pooling"] == pooling]
        bars(ax, row_numbers(own, blocks, "place") + offset, own, *style, across=True, markersize=4.5, elinewidth=1, capsize=0)
    reach = 1.08 * part[["low", "high"]].abs().to_numpy().max() or 0.01
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_title(title, fontsize=10)
    unit = "share caught" if measure.endswith("_tpr") else "AUROC"
    ax.set(xlim=(-reach, reach), ylim=(len(blocks) - 0.5, -1.6), xlabel=f"difference of\ndrops of {unit}\n({sample_size(part)})")
    words: dict[str, Any] = {"va": "center", "fontsize": TEXT, "style": "italic", "transform": ax.get_yaxis_transform()}
    ax.text(0.97, -1.0, side, ha="right", **words)
    ax.text(0.03, -1.0, "better", ha="left", **words)


def own_replies(labelled: pd.DataFrame | None) -> Figure:
    """Monitors before and during the model's own reply, by group of updates (table `replies`, described; None: not read)."""
    if labelled is None:
        return unmeasured("monitors of the model's own replies: reply_prompts is 0")
    parts = {"unfit": cohorts.by_group(labelled, cohorts.UNFIT), "fpr_5": staleness_tables.called_refusals(labelled)}
    return message(spoken(parts), staleness_tables.own_replies_title(parts["unfit"], parts["fpr_5"]))
