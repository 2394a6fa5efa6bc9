"""Chapter 10's figures: what each rung of the ladder mends, whom, and what a policy costs. A table in, a figure out."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.figures import projection_tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    STYLES,
    grid,
    legend,
    legend_key,
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
from helpers.figures.drawing.named_points import apart, name_points, root, square
from helpers.figures.drawing.share_grid import share_grid
from helpers.figures.drawing.theme import PALETTE, bars, share_axis
from helpers.figures.repair_tables import KINDS, OUTSIDE
from helpers.monitors import gate, repairs
from helpers.results import KEY
from helpers.staleness.policies import METHOD, behind_gate
from helpers.staleness.verdicts import FAMILIES
from helpers.stats.intervals import rate_interval
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
CHOICES = {"deploy": ("deploy as it is", PALETTE["aligned"], "o"), "realign": ("realign", PALETTE["quantized"], "s"),
           "refit": ("ask for a refit", PALETTE["qlora"], "D")}  # fmt: skip


# ---------------------------------------------------------------- the ladder


def ladder(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """The share of monitors unfit (any definition) at each rung of `order`, one panel a family, with intervals over updates.

    Only monitors that every rung was tried on, so that rungs are compared on the same ones. The dashed line is the frozen
    monitors' share. What a rung costs stands beside its name: passes of unlabelled texts, and labelled texts.
    """
    rows = table[(table["metric"] == "stale_any") & table["method"].isin(order) & (table["layer"] > 0)]
    tried = rows.groupby(["label", "task", "probe", "layer"])["method"].transform("nunique")
    rows = rows[tried == rows["method"].nunique()]
    if rows.empty:
        return unmeasured("monitors on every rung of the ladder")
    methods = [name for name in order if name in set(rows["method"])]
    costs = {name: _cost(table[table["method"] == name]) for name in methods}
    groups = pd.Series([_group(name, costs[name][1]) for name in methods], index=methods)
    families = _families(rows)
    figure, axes = row_panels(groups, len(families))
    axes[0].set_yticks(range(len(methods)), [_rung(name, *costs[name]) for name in methods], fontsize=8.5)
    for ax, family in zip(axes, families, strict=True):
        part = rows[rows["family"] == family]
        shares = _shares(part, "method")
        for name, item in shares.groupby("method"):
            look = (GREY, "X") if name == repairs.NULL else LOOKS[groups[name]]
            bars(ax, row_numbers(item, groups, "method"), item, *look, across=True, markersize=5.5, label=groups[name])
        for value in shares.loc[shares["method"] == "none", "value"]:
            ax.axvline(value, color=INK, linewidth=1, linestyle="--")
        share_across(ax)
        ax.set_title(textwrap.fill(family, 14), fontsize=10)
        ax.set_xlabel(f"unfit\n({sample_size(shares)})", fontsize=9)
    return figure


def survivors(table: pd.DataFrame) -> Figure:
    """The share of probes unfit on real updates, plain ones and those fitted with simulated updates, one panel a pooling."""
    rows = table[table["metric"] == "unfit"]
    if rows.empty:
        return unmeasured("probes fitted with simulated updates")
    poolings = [name for name in ("last", "mean") if name in set(rows["pooling"])]
    figure, axes, _ = grid(len(poolings), height=2.6)
    kinds = [kind for kind in KINDS if kind in set(rows["kind"])]
    for ax, pooling in zip(axes, poolings, strict=True):
        part = rows[rows["pooling"] == pooling]
        for i, kind in enumerate(kinds):
            look = (INK, "s") if i == 0 else (GREY, "X") if kind == "simulated-noise" else (PALETTE["aligned"], "o")
            bars(ax, np.array([i] * int((part["kind"] == kind).sum())), part[part["kind"] == kind], *look, across=True)
        ax.set_yticks(
            range(len(kinds)), [textwrap.fill(KINDS[kind], 18) for kind in kinds] if ax is axes[0] else [], fontsize=8.5
        )
        ax.set_ylim(len(kinds) - 0.5, -0.5)
        ax.set_title({"last": "last token", "mean": "mean over tokens"}[pooling], fontsize=10)
        share_across(ax)
        ax.set_xlabel(f"unfit on real updates\n({sample_size(part)})", fontsize=9)
    return figure


def _shares(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """The share of ones among the rows of each value of a column, with intervals over updates."""
    found = [(name, rate_interval(part["value"], part["label"])) for name, part in rows.groupby(by, sort=False)]
    return pd.DataFrame([(name, e.value, e.low, e.high, e.n) for name, e in found], columns=[by, "value", "low", "high", "n"])


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
    """The unfit monitors of each task by the cheapest rung that mends them, and the fit ones that realigning harms.

    One column a task, shares with intervals over updates; n counts monitors on updates, without controls. The middle block
    adds up to 100 %: each unfit monitor is counted once. Its rungs are many and each is judged by the same test texts, so a
    monitor near the margin is mended by one or other of them by luck.
    """
    cells = cells[~cells["family"].isin(OUTSIDE)]
    if cells.empty:
        return unmeasured("monitors before and after a repair")
    rungs = [name for name in (*repairs.LADDER, "") if (cells["stale"] & (cells["repaired_by"] == name)).any()]
    by = {_words(name): cells["repaired_by"] == name for name in rungs}
    harm = {"following the gate": behind_gate(cells), "realigning all": cells["stale_blind"]}
    blocks = [("Of all monitors", cells["stale"] | True, {"unfit as frozen": cells["stale"]}, GREY, 1.0),
              ("Of the unfit ones, mended at the cheapest by", cells["stale"], by, "#56b4e9", 1.0),
              ("Of the fit ones, harmed by", ~cells["stale"], harm, "#f0a070", 0.2)]  # fmt: skip
    blocks = [block for block in blocks if block[2]]
    tasks, sizes = [*ordered_tasks(cells["task"]), "all"], [len(flags) for _, _, flags, _, _ in blocks]
    figure, axes = plt.subplots(len(blocks), 1, figsize=(min(10.5, 2.9 + 1.25 * len(tasks)), 2.6 + 0.42 * sum(sizes)),
                                height_ratios=sizes, constrained_layout=True)  # fmt: skip
    for ax, (title, base, flags, colour, full) in zip(axes, blocks, strict=True):
        share_grid(ax, cells[base], {words: flag[base] for words, flag in flags.items()}, tasks, colour, full)
        ax.set_title(title, fontsize=9.5)
    return figure


def rates_before_after(table: pd.DataFrame) -> Figure:
    """FPR and TPR at the frozen threshold from the frozen monitor to its repairs: a line of dots a monitor and update.

    One column a family, one place a method. Dashed: the 5 % that the threshold was set to. Pale intervals are those of the
    test texts (n). Give the rows of the monitors in use and of the methods to show.
    """
    rows = table[table["metric"].isin(RATES) & (table["layer"] > 0)]
    methods = [name for name in dict.fromkeys(["none", *repairs.RUNGS, *rows["method"]]) if name in set(rows["method"])]
    families, styles = _families(rows), task_styles(ordered_tasks(rows["task"]))
    if len(methods) < 2:
        return unmeasured("rates before and after a repair")
    size = (float(np.clip(2.4 + 2.1 * len(families), 7.2, 10.5)), 6.0)
    figure, axes = plt.subplots(2, len(families), figsize=size, sharex=True, sharey=True, squeeze=False, constrained_layout=True)
    for line, (metric, words) in zip(axes, RATES.items(), strict=True):
        for ax, family in zip(line, families, strict=True):
            here = rows[(rows["metric"] == metric) & (rows["family"] == family)]
            for (task, style), offset in zip(styles.items(), spread(len(styles), 0.16), strict=True):
                _paths(ax, here[here["task"] == task], methods, offset, *style)
            share_axis(ax)
        line[0].set_ylabel(f"{words}\n({sample_size(rows[rows['metric'] == metric])})")
    for ax, family in zip(axes[0], families, strict=True):
        ax.axhline(0.05, color=INK, linewidth=1, linestyle="--")
        ax.set_title(textwrap.fill(family, 16), fontsize=10)
    for ax in axes[1]:
        ax.set_xticks(range(len(methods)), [_words(name).replace(" ", "\n") for name in methods], fontsize=9)
        ax.set_xlim(-0.4, len(methods) - 0.6)
    legend(figure, task_keys(styles) | {"5 %, as the threshold was set": legend_key(INK, "", "--")}, columns=3)
    return figure


def _paths(ax: Axes, rows: pd.DataFrame, methods: Sequence[str], offset: float, colour: str, marker: str) -> None:
    """Each monitor of a task on each update, over the methods."""
    rows = rows.assign(x=[methods.index(name) + offset for name in rows["method"]]).sort_values("x")
    bars(ax, rows["x"], rows, colour, marker, markersize=3.6, elinewidth=0.7, capsize=0, alpha=0.55)
    for _, part in rows.groupby(["label", "probe", "layer"], sort=False):
        ax.plot(part["x"], part["value"], color=colour, linewidth=0.9, alpha=0.55)


def gate_accuracy(cells: pd.DataFrame, threshold: float = gate.AGREEMENT) -> Figure:
    """Whether a realigned monitor was left unfit, against its rank agreement with the frozen one on held-out unlabelled texts.

    Above, one dot a monitor and update, by what the gate chose (it looks at alarms as well); below, the share left unfit by
    quarters of the agreement, with intervals over updates; controls are left out. Dashed: what the gate asks for.
    """
    cells = cells[~cells["family"].isin(OUTSIDE)].dropna(subset=["agreement_after"])
    if cells.empty:
        return unmeasured("how realigned monitors agree with the frozen ones")
    figure, (above, below) = plt.subplots(2, 1, figsize=(8.6, 5.0), sharex=True, constrained_layout=True)
    drawn = np.random.default_rng(0).uniform(-0.3, 0.3, len(cells))  # apart, so that dots can be seen
    for choice, (_, colour, marker) in CHOICES.items():
        own = (cells["gate"] == choice).to_numpy()
        y = cells["stale_realigned"][own] + drawn[own]
        above.scatter(cells["agreement_after"][own], y, s=14, color=colour, marker=marker, alpha=0.55, linewidths=0)
    above.set_yticks([0, 1], ["fit", "left unfit"])
    above.set_ylim(-0.45, 1.45)
    above.grid(axis="y", visible=False)
    middles, shares = _quarters(cells)
    bars(below, middles, shares, INK, "o")
    share_axis(below)
    below.set_ylabel(f"left unfit\n({sample_size(shares)} a quarter)")
    below.set_xlabel("rank agreement after realignment, unlabelled texts")
    for ax in (above, below):
        ax.axvline(threshold, color=INK, linewidth=1.2, linestyle="--")
    counts = cells["gate"].value_counts()
    keys = {f"{words} (n = {counts.get(name, 0)})": legend_key(colour, mark) for name, (words, colour, mark) in CHOICES.items()}
    legend(figure, keys | {f"agreement {threshold:g}": legend_key(INK, "", "--")}, columns=4)
    return figure


def _quarters(cells: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """The middle agreement of each quarter of the cells, and the share of it left unfit."""
    rank = cells["agreement_after"].rank(method="average", pct=True)
    rows = pd.DataFrame({"quarter": np.ceil(4 * rank - 1e-9), "value": cells["stale_realigned"].astype(float),
                         "label": cells["variant"], "x": cells["agreement_after"]}).sort_values("quarter")  # fmt: skip
    return rows.groupby("quarter")["x"].median().to_numpy(), _shares(rows, "quarter")


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
    figure, axes = row_panels(updates, len(shown), row=0.36 + 0.06 * len(styles), rest=1.8)
    axes[0].set_yticks(range(len(updates)), names, fontsize=8.5)
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
        ax.set_xlabel(f"{textwrap.fill(what, 26)}\n({sample_size(part)})", fontsize=9)
    keys = {task_words(task).replace("\n", " "): legend_key(*look) for task, look in styles.items()}
    legend(figure, keys if len(keys) > 1 else {}, columns=6)
    return figure


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
    paid = apart(paid, float(root(most)))
    for i, name in enumerate(names):
        colour, marker = POLICIES.get(name, STYLES[i % len(STYLES)])
        bars(ax, left.loc[[name], "value"], paid.loc[[name]], colour, " ", across=True, capsize=0, label=name)
        bars(ax, paid.loc[[name], "value"], left.loc[[name]], colour, marker, label=name)
    ax.set(xlim=(square(-0.06 * root(most)), 1.06 * most), ylim=(-0.08 * top, min(1.12 * top, 1.06)))
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    ax.set_xlabel("labelled texts a monitor and update (the axis goes by their root)")
    ax.set_ylabel(f"monitors left unfit in service ({sample_size(left)})")
    name_points(ax, paid, left, np.column_stack(rule))
    return figure


def _between(ends: np.ndarray) -> np.ndarray:
    """The places on the way from one end to the other; none without both."""
    return np.linspace(ends[0], ends[1], 61) if len(ends) > 1 else np.empty(0)
