"""Chapter 10's figures: what each rung of the ladder mends, whom, and what a policy costs. A table in, a figure out."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.figures import projection_tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    STYLES,
    TEXT,
    grid,
    legend,
    legend_key,
    message,
    ordered_tasks,
    row_numbers,
    row_panels,
    sample_size,
    share_across,
    spread,
    task_styles,
    task_words,
    together,
    unmeasured,
)
from helpers.figures.drawing.named_points import apart, name_points, root, square
from helpers.figures.drawing.pooled import mean_rate, quarters, shares_by_task, shares_over
from helpers.figures.drawing.task_lines import floor_key, floor_line
from helpers.figures.drawing.theme import PALETTE, bars, panels, share_axis
from helpers.figures.repair_tables import KINDS, OUTSIDE
from helpers.figures.titles import repair as titles
from helpers.monitors import gate, repairs
from helpers.results import KEY
from helpers.staleness.policies import METHOD, behind_gate
from helpers.staleness.verdicts import FAMILIES
from helpers.updates import variants

RUNGS = {"none": "frozen", "coral": "CORAL", "procrustes": "Procrustes", "coral-unpaired": "CORAL, unpaired",
         "centre-unpaired": "centre, unpaired", "centre-scale": "centre and scale",
         "centre-scale-unpaired": "centre and scale, unpaired", "mispaired": "mispaired (control)",
         "threshold": "threshold only", "": "nothing", repairs.GATED: "as the gate says",
         "procrustes (own corpus)": "Procrustes, own texts", "coral (own corpus)": "CORAL, own texts",
         **{name: f"head of {count} labels" for name, count in repairs.FEW_LABELS.items()}}  # fmt: skip
LOOKS = {"as it was": (INK, "s"), "no labels": (PALETTE["aligned"], "o"), "labels": (PALETTE["qlora"], "D")}
RATES = {"fpr_5": "harmless texts flagged", "tpr_5": "harmful texts flagged"}
GAINS = {"realign_gain": "realigning\nthe monitors", "restore_gain": "restoring\nthe model", "both_gain": "both",
         "interaction": "both, beyond\nthe sum of the two"}  # fmt: skip
POLICIES = {"do nothing": (INK, "s"), "realign everything": (PALETTE["aligned"], "o"),
            "gated realignment": (PALETTE["aligned"], "D"),
            **{f"triage {share} %": (PALETTE["qlora"], "^") for share in (10, 20, 30)}, "random 20 %": (GREY, "X"),
            "drift first 20 %": (PALETTE["control"], "v"), "revalidate everything": (INK, "P")}  # fmt: skip
CHOICES = {"deploy": "deploy", "realign": "realign", "refit": "ask for a refit"}
MENDED, HARMED = "of the unfit,\nmended", "of the fit,\nharmed"
FATES = {"as frozen": (INK, "s"), "all realigned": (PALETTE["quantized"], "D"), "as the gate says": (PALETTE["aligned"], "o")}


# ---------------------------------------------------------------- the ladder


def ladder(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """The share of monitors unfit (any definition) at each rung of `order`, one panel a family, with intervals over updates.

    Only monitors that every rung was tried on, so that rungs are compared on the same ones. The thin line is the frozen
    monitors' share, the dashed one the floor: that of frozen monitors where nothing changed (`repair_tables.on_updates`). What
    a rung costs stands beside its name: passes of unlabelled texts, and labelled texts.
    """
    rows = table[(table["metric"] == "stale_any") & table["method"].isin(order) & (table["layer"] > 0)]
    tried = rows.groupby(["label", "task", "probe", "layer"])["method"].transform("nunique")
    rows = rows[tried == rows["method"].nunique()]
    if rows.empty:
        return unmeasured("monitors on every rung of the ladder")
    methods = [name for name in order if name in set(rows["method"])]
    costs = {name: _cost(table[table["method"] == name]) for name in methods}
    groups = pd.Series([_group(name, costs[name][1]) for name in methods], index=methods)
    families, floor = _families(rows), _floor(table, "stale_any")
    figure, axes = row_panels(groups, len(families), rest=2.4)
    axes[0].set_yticks(range(len(methods)), [_rung(name, *costs[name]) for name in methods], fontsize=TEXT)
    for ax, family in zip(axes, families, strict=True):
        part = rows[rows["family"] == family]
        shares = shares_over(part, "method")
        for name, item in shares.groupby("method"):
            look = (GREY, "X") if name == repairs.NULL else LOOKS[groups[name]]
            bars(ax, row_numbers(item, groups, "method"), item, *look, across=True, markersize=5.5, label=groups[name])
        for value in shares.loc[shares["method"] == "none", "value"]:
            ax.axvline(value, color=GREY, linewidth=1)
        floor_line(ax, pd.Series(floor), across=True)
        share_across(ax)
        ax.set_title(textwrap.fill(family, 12), fontsize=10)
        ax.set_xlabel(f"unfit\n({sample_size(shares)})", fontsize=TEXT)
    legend(figure, {"as frozen": legend_key(GREY, "", "-")} | floor_key(floor))
    free = {name: _words(name) for name in methods if groups[name] == "no labels" and name != repairs.NULL}
    shares_of_all = rows.groupby("method")["value"].mean().to_dict()
    return message(figure, titles.ladder_title(shares_of_all, free, next(iter(floor), None)))


def survivors(table: pd.DataFrame) -> Figure:
    """The share of probes unfit on real updates, plain ones and those fitted with simulated updates, one panel a pooling.

    Dashed: the floor, the share of plain ones unfit where nothing changed (`repair_tables.survived`).
    """
    rows = table[table["metric"] == "unfit"]
    if rows.empty:
        return unmeasured("probes fitted with simulated updates")
    poolings, floors = [name for name in ("last", "mean") if name in set(rows["pooling"])], table.attrs.get("floor", {})
    figure, axes, _ = grid(len(poolings), height=3.0)
    kinds = [kind for kind in KINDS if kind in set(rows["kind"])]
    for ax, pooling in zip(axes, poolings, strict=True):
        part = rows[rows["pooling"] == pooling]
        for i, kind in enumerate(kinds):
            look = (INK, "s") if i == 0 else (GREY, "X") if kind == "simulated-noise" else (PALETTE["aligned"], "o")
            bars(ax, np.array([i] * int((part["kind"] == kind).sum())), part[part["kind"] == kind], *look, across=True)
        ax.set_yticks(
            range(len(kinds)), [textwrap.fill(KINDS[kind], 18) for kind in kinds] if ax is axes[0] else [], fontsize=TEXT
        )
        ax.set_ylim(len(kinds) - 0.5, -0.5)
        ax.set_title({"last": "last token", "mean": "mean over tokens"}[pooling], fontsize=10)
        share_across(ax)
        floor_line(ax, pd.Series([floors[pooling]] if pooling in floors else [], dtype=float), across=True)
        ax.set_xlabel(f"unfit on real updates\n({sample_size(part)})", fontsize=TEXT)
    legend(figure, floor_key(list(floors)))
    return message(figure, titles.survivors_title(rows))


def _families(rows: pd.DataFrame) -> list[str]:
    """The families of the rows in the order of chapter 05."""
    return [name for name in dict.fromkeys([*FAMILIES, *rows["family"]]) if name in set(rows["family"])]


def _cost(rows: pd.DataFrame) -> tuple[str, str]:
    """What a rung costs, passes and labels, as text; a range where tasks differ, nothing where it is 0."""
    said = []
    for metric in ("cost_texts", "cost_labels"):
        values = rows.loc[rows["metric"] == metric, "value"]
        ends = [f"{value:.0f}" for value in (values.min(), values.max())] if len(values) and values.max() > 0 else []
        said.append("–".join(dict.fromkeys(ends)))
    return said[0], said[1]


def _group(name: str, labels: str) -> str:
    return "as it was" if name == "none" else "labels" if labels else "no labels"


def _rung(name: str, passes: str, labels: str) -> str:
    """A rung in words, with its cost."""
    cost = f"{labels} labels" if labels else f"{passes} passes" if passes else ""
    return _words(name) if not cost or name in repairs.FEW_LABELS else f"{_words(name)}, {cost}"


def _words(name: str) -> str:
    return RUNGS.get(name, name.replace("-", " "))


# ---------------------------------------------------------------- who is repaired, who is harmed


def who_is_repaired(cells: pd.DataFrame) -> Figure:
    """By task: monitors unfit as frozen; of these, those that realigning makes fit; and of the fit ones, those it makes unfit.

    Shares with intervals over updates, where all are realigned and where the gate is followed; n counts monitors on updates,
    without controls. Controls, where nothing changed, give the dashed floors of the first and the last panel.
    """
    real, still = cells[~cells["family"].isin(OUTSIDE)], cells[cells["family"] == "control"]
    if real.empty:
        return unmeasured("monitors before and after a repair")
    tasks = pd.Series("", index=[*ordered_tasks(real["task"]), "all"])
    asked = [one for one in _questions(cells) if one[1][real.index].any()]
    figure, axes = row_panels(tasks, len(asked), width=min(9.6, 3.6 + 2.0 * len(asked)), row=0.42, rest=2.6)
    axes[0].set_yticks(range(len(tasks)), [task_words(task).replace("\n", " ") for task in tasks.index], fontsize=TEXT)
    for ax, (title, base, flags, floored) in zip(axes, asked, strict=True):
        for (name, flag), offset in zip(flags.items(), spread(len(flags), 0.16), strict=True):
            shares = shares_by_task(real[base[real.index]], flag, list(tasks.index))
            bars(ax, row_numbers(shares, tasks, "task") + offset, shares, *FATES[name], across=True, markersize=5, capsize=0)
        there = next(iter(flags.values()))[still.index][base[still.index]]
        floor_line(ax, pd.Series([there.mean()] if len(there) and floored else [], dtype=float), across=True)
        share_across(ax)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(f"({sample_size(shares)})", fontsize=TEXT)
    legend(figure, {name: legend_key(*look) for name, look in FATES.items()} | floor_key(still.index), columns=4)
    ends = {title: flags["all realigned"][real.index][base[real.index]].mean() for title, base, flags, _ in asked[1:]}
    return message(figure, titles.mended_title(ends.get(MENDED), ends.get(HARMED)))


def _questions(cells: pd.DataFrame) -> list[tuple[str, pd.Series, dict[str, pd.Series], bool]]:
    """What the panels ask: title, of which cells, the flags that are counted, and whether there is a floor."""
    stale = cells["stale"].astype(bool)
    after = {"all realigned": cells["stale_blind"].astype(bool), "as the gate says": behind_gate(cells).astype(bool)}
    mended = {name: ~flag for name, flag in after.items()}
    return [("unfit as frozen", stale | True, {"as frozen": stale}, True), (MENDED, stale, mended, False),
            (HARMED, ~stale, after, True)]  # fmt: skip


def rates_before_after(table: pd.DataFrame) -> Figure:
    """FPR and TPR at the frozen threshold from the frozen monitor to its repairs: a line a family, means over its monitors.

    One place a method, a panel a rate, intervals over updates. Dotted: the 5 % that the threshold was set to; dashed: the floor,
    the same of frozen monitors where nothing changed. Give the rows of the monitors in use and of the methods to show.
    """
    rows = table[table["metric"].isin(RATES) & (table["layer"] > 0)]
    methods = [name for name in dict.fromkeys(["none", *repairs.RUNGS, *rows["method"]]) if name in set(rows["method"])]
    families = _families(rows)
    if len(methods) < 2:
        return unmeasured("rates before and after a repair")
    looks = dict(zip(families, STYLES * len(families), strict=False))
    means = pd.DataFrame([(metric, family, method, *mean_rate(own)) for (metric, family, method), own in
                          rows.groupby(["metric", "family", "method"], sort=False)],
                         columns=["metric", "family", "method", "value", "low", "high", "n"])  # fmt: skip
    figure, axes = panels(len(RATES), height=4.4, width=5.0)
    for ax, (metric, words) in zip(axes, RATES.items(), strict=True):
        here = means[means["metric"] == metric].assign(x=lambda t: [methods.index(name) for name in t["method"]])
        for (family, (colour, marker)), offset in zip(looks.items(), spread(len(looks), 0.14), strict=True):
            own = here[here["family"] == family].sort_values("x")
            bars(ax, own["x"] + offset, own, colour, marker, markersize=5, elinewidth=1, capsize=0)
            ax.plot(own["x"] + offset, own["value"], color=colour, linewidth=1.1, alpha=0.7, zorder=0.9)
        floor_line(ax, pd.Series(_floor(table, metric)), across=False)
        share_axis(ax)
        ax.set_title(words)
        ax.set_xlabel(f"({sample_size(here)} monitors on updates)", fontsize=TEXT)
        ax.set_xticks(range(len(methods)), [_words(name).replace(" ", "\n") for name in methods], fontsize=TEXT)
        ax.set_xlim(-0.4, len(methods) - 0.6)
    axes[0].axhline(0.05, color=INK, linewidth=1, linestyle=":")
    keys = {family: legend_key(*look, "-") for family, look in looks.items()} | {"5 %, as set": legend_key(INK, "", ":")}
    legend(figure, keys | floor_key(_floor(table, "fpr_5")), columns=4)
    return message(figure, titles.rates_title(means, RUNGS))


def gate_accuracy(cells: pd.DataFrame, threshold: float = gate.AGREEMENT) -> Figure:
    """The share of realigned monitors left unfit, by quarters of their rank agreement with the frozen ones; controls left out.

    Agreement is that on held-out unlabelled texts, and its range stands below each quarter, beside what the gate asks for
    (`threshold`; it looks at alarms as well). Intervals are over updates; dashed: the floor, unfit where nothing changed.
    """
    still = cells[cells["family"] == "control"]["stale"].astype(float)
    cells = cells[~cells["family"].isin(OUTSIDE)].dropna(subset=["agreement_after"])
    if cells.empty:
        return unmeasured("how realigned monitors agree with the frozen ones")
    ranges, shares = quarters(cells)
    figure, ax = plt.subplots(figsize=(8.0, 4.0), constrained_layout=True)
    bars(ax, np.arange(len(shares)), shares, INK, "o", label="left unfit")
    floor_line(ax, pd.Series([still.mean()] if len(still) else [], dtype=float), across=False)
    share_axis(ax)
    ax.set_xticks(range(len(shares)), ranges)
    ax.set(xlim=(-0.5, len(shares) - 0.5), ylabel=f"left unfit ({sample_size(shares)} a quarter)")
    counts = cells["gate"].value_counts()
    chose = ", ".join(f"{words} {counts.get(name, 0)}" for name, words in CHOICES.items())
    ax.set_xlabel(f"rank agreement after realignment, unlabelled texts\n(the gate asks for {threshold:g}; it chose: {chose})")
    legend(figure, floor_key([0.0] if len(still) else []))
    return message(figure, titles.gate_title(shares))


def _floor(table: pd.DataFrame, metric: str) -> list[float]:
    """What a metric is for frozen monitors where nothing changed, as `repair_tables.on_updates` left it; none where unknown."""
    floors = table.attrs.get("floor", {})
    return [floors[metric]] if metric in floors else []


# ---------------------------------------------------------------- together with a restored model


def interplay(rows: pd.DataFrame, what: str = "changed alarms given back") -> Figure:
    """What realigning the monitors, restoring the model, and both give, and both beyond their sum: one row a restored update.

    Right of 0 is better; one colour a task, with intervals. `what` names the gains, which are shares of test texts.
    """
    rows = rows[rows["metric"].isin(GAINS)].sort_values([*KEY, "method"], kind="stable")
    if rows.empty:
        return unmeasured("restored updates with realigned monitors")
    known, codes = variants.from_table(rows), variants.variant_codes(rows)
    rows = rows.assign(code=codes, place=codes.astype(str) + "|" + rows["method"])
    first = rows.drop_duplicates("place").set_index("place")
    updates = together(first["adapter"] + " on " + first["precision"])
    names = [projection_tables.method(known[code]).replace(" (", "\n(") for code in first["code"][updates.index]]
    if rows["method"].nunique() > 1:
        names = [f"{name},\n{_words(one)}" for name, one in zip(names, first["method"][updates.index], strict=True)]
    tasks = ordered_tasks(rows["task"])
    styles = task_styles([task for task in tasks if task != "all"]) | ({"all": (INK, "D")} if "all" in tasks else {})
    shown = [metric for metric in GAINS if metric in set(rows["metric"])]
    figure, axes = row_panels(updates, len(shown), row=0.36 + 0.06 * len(styles), rest=2.4)
    axes[0].set_yticks(range(len(updates)), names, fontsize=TEXT)
    reach = 1.08 * rows[["low", "high"]].abs().to_numpy().max() or 0.01
    for ax, metric in zip(axes, shown, strict=True):
        part = rows[rows["metric"] == metric]
        for (task, look), offset in zip(styles.items(), spread(len(styles), 0.3), strict=True):
            own = part[part["task"] == task]
            for update, some in own.groupby(own["place"].map(updates), sort=False):
                places = row_numbers(some, updates, "place") + offset
                bars(ax, places, some, *look, across=True, markersize=4.5, capsize=0, label=f"{task_words(task)}, {update}")
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_title(GAINS[metric], fontsize=10)
        ax.set_xlim(-reach, reach)
        ax.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
        ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %".replace("-", "−"))
        ax.set_xlabel(f"{textwrap.fill(what, 16)}\n({sample_size(part)})", fontsize=TEXT)
    keys = {task_words(task).replace("\n", " "): legend_key(*look) for task, look in styles.items()}
    legend(figure, keys if len(keys) > 1 else {}, columns=4)
    return message(figure, titles.interplay_title(rows))


# ---------------------------------------------------------------- policies


def policy_plane(rows: pd.DataFrame) -> Figure:
    """What each policy leaves unfit in service (upwards) and what it costs in labels (across), with intervals over updates.

    On the dashed line lies any share of checks at random; a policy below it does more than chance for its labels. Policies of
    nearly equal cost stand side by side, and the axis goes by the root of the labels, since small budgets are asked about.
    """
    rows = rows[rows["method"].str.startswith(METHOD)].assign(policy=lambda t: t["method"].str.removeprefix(METHOD))
    left, paid = (rows[rows["metric"] == metric].set_index("policy") for metric in ("missed", "labels_per_cell"))
    names = [name for name in dict.fromkeys([*POLICIES, *rows["policy"]]) if name in left.index and name in paid.index]
    if not names:
        return unmeasured("policies")
    left, paid = left.loc[names], paid.loc[names]
    most, top = max(paid["high"].max(), 1.0), max(left["high"].max(), 0.1)
    figure, ax = plt.subplots(figsize=(8.6, 5.2), constrained_layout=True)
    ax.set_xscale("function", functions=(root, square))
    ends = [name for name in ("do nothing", "revalidate everything") if name in names]
    rule = [_between(part.loc[ends, "value"].to_numpy(float)) for part in (paid, left)]
    ax.plot(*rule, color=GREY, linewidth=1, linestyle="--", label="any share of checks at random")
    costs, paid = paid, apart(paid, float(root(most)))
    for i, name in enumerate(names):
        colour, marker = POLICIES.get(name, STYLES[i % len(STYLES)])
        bars(ax, left.loc[[name], "value"], paid.loc[[name]], colour, " ", across=True, capsize=0, label=name)
        bars(ax, paid.loc[[name], "value"], left.loc[[name]], colour, marker, label=name)
    ax.set(xlim=(square(-0.06 * root(most)), 1.06 * most), ylim=(-0.08 * top, min(1.12 * top, 1.06)))
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    ax.set_xlabel("labelled texts a monitor and update (the axis goes by their root)")
    ax.set_ylabel(f"monitors left unfit in service ({sample_size(left)})")
    message(figure, titles.policy_title(left, costs))  # names are placed on the panel as it stays
    name_points(ax, paid, left, np.column_stack(rule))
    return figure


def _between(ends: np.ndarray) -> np.ndarray:
    """The places on the way from one end to the other; none without both."""
    return np.linspace(ends[0], ends[1], 61) if len(ends) > 1 else np.empty(0)
