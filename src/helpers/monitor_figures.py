"""Figures of the monitors: a table in, a figure out, in the style of `figures`. What was not measured is left out, or said."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from helpers import roc
from helpers.figures import PALETTE, bars, panels, share_axis
from helpers.statistics import Estimate

INK, GREY = PALETTE["ink"], PALETTE["base"]
TASK_WORDS = {"harmful-request": "harmful request", "refusal-compliance": "refusal or compliance", "privacy-pii": "privacy (PII)",
              "toxicity": "toxicity", "jailbreak": "jailbreak", "all": "all tasks"}  # fmt: skip
# one a task, in the order above; further tasks take those that are left. Marker and height on the page change too.
STYLES = (("#0072b2", "o"), ("#e69f00", "s"), ("#009e73", "^"), ("#d55e00", "D"), ("#cc79a7", "v"), ("#56b4e9", "P"),
          ("#1b2a41", "X"))  # fmt: skip
KINDS = {"logistic": ("logistic", "#0072b2", "o"), "mean-difference": ("difference of means", "#e69f00", "s"),
         "lda": ("LDA", "#009e73", "^"), "mlp": ("small MLP", "#cc79a7", "D"), "attention": ("attention pooling", "#d55e00", "*"),
         "shuffled-labels": ("shuffled labels (control)", "#8d99ae", "x")}  # fmt: skip
POOLINGS = ("mean", "last")
BASELINES = {"bag-of-words": ("bag of words", "--"), "length": ("length", ":")}
DEFINITIONS = {"stale_auroc_05": "AUROC fell\nby 0.05 or more", "stale_tpr_5": "catches 5 points less\nat the frozen threshold",
               "stale_fpr_5": "false alarms above\n10 %, twice what was set"}  # fmt: skip
MEASURES = {"interaction": ("QLoRA beyond\nits two parts", "worse than\nthe sum"),
            "serving_interaction": ("serving: LoRA on\nquantized weights", "worse than\nthe sum"),
            "training_effect": ("training on\nquantized weights", "worse"),
            "training_by_serving": ("served on what it\nwas trained on", "worse")}  # fmt: skip
ROUNDED = ("rtn-8", "rtn-4", "rtn-3", "rtn-2")
DOSES = {"bits": "fewer bits per weight →", "rank": "rank of the adapter", "steps": "training steps"}
SPLITS = {"monitor": "a task never seen", "family": "a kind of update\nnever seen", "seed": "a seed never seen",
          "monitor and family": "neither task nor\nkind of update seen"}  # fmt: skip
DROP = "mean drop of AUROC"


# ---------------------------------------------------------------- parts of a page


def _task(name: str) -> str:
    return textwrap.fill(TASK_WORDS.get(name, name.replace("-", " ")), 22)


def _styles(tasks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each task: the same in every figure for ours, what is left for a user's own."""
    ours = list(TASK_WORDS)[:5]
    own = [task for task in tasks if task not in ours]
    return {task: STYLES[i % len(STYLES)] for i, task in enumerate([*ours, *own]) if task in set(tasks)}


def _names(column: pd.Series) -> list[str]:
    return list(dict.fromkeys(column))


def _n(rows: pd.DataFrame) -> str:
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def _unmeasured(what: str) -> Figure:
    figure, ax = plt.subplots(figsize=(6.0, 0.8), constrained_layout=True)
    ax.set_axis_off()
    ax.text(0.0, 0.5, textwrap.fill(f"This run did not measure {what}.", 60), va="center")
    return figure


def _grid(count: int, height: float = 3.1) -> tuple[Figure, list[Axes], list[Axes]]:
    """Panels in rows of three, and the places left over."""
    across, down = min(count, 3), -(-count // 3)
    figure, axes = plt.subplots(
        down, across, figsize=(3.5 * across if across > 1 else 5.5, height * down), constrained_layout=True, squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count]), list(axes.flat[count:])


def _wrapped(name: str, width: int = 30) -> str:
    """A variant's name over lines of at most `width` characters, broken before how it is served where that helps."""
    if len(name) <= width:
        return name
    return "\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in name.replace(" · ", " ·\n").split("\n"))


def _key(colour: str, marker: str, line: str = "", **options) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle=line, markersize=6, **options)


def _legend(figure: Figure, keys: Mapping[str, Line2D], spare: Sequence[Axes] = (), columns: int = 3) -> None:
    """One legend for all panels, in the place that is left over or below."""
    if spare:
        spare[0].legend(keys.values(), keys, loc="center left")
    elif keys:
        figure.legend(keys.values(), keys, loc="outside lower center", ncols=columns)


def _task_keys(tasks: Iterable[str]) -> dict[str, Line2D]:
    return {_task(task).replace("\n", " "): _key(colour, marker) for task, (colour, marker) in _styles(tasks).items()}


# ---------------------------------------------------------------- rows of variants


def _variants(table: pd.DataFrame, order: Sequence[str]) -> pd.Series:
    """Family by label, for the labels of `order` that were measured, families kept together."""
    families = table.drop_duplicates("label").set_index("label")["family"].reindex(list(order)).dropna()
    return _together(families)


def _together(groups: pd.Series) -> pd.Series:
    """The same, rows of one group side by side, groups and rows otherwise in the order given."""
    first = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return groups.sort_values(key=lambda found: found.map(first), kind="stable")


def _row_panels(
    rows: pd.Series, count: int, width: float = 10.5, row: float = 0.36, rest: float = 1.5
) -> tuple[Figure, list[Axes]]:
    """Panels side by side whose rows are the index of `rows`; its values name groups, on the right, with lines between."""
    figure, axes = panels(count, height=rest + row * len(rows), width=width / count)
    for ax in axes:
        _rule(ax, rows)
        ax.set_yticks(range(len(rows)), [])
    axes[0].set_yticks(range(len(rows)), [_wrapped(name) for name in rows.index], fontsize=8.5)
    for group in _names(rows):
        where = np.flatnonzero(rows == group)
        axes[-1].text(1.03, where.mean(), textwrap.fill(group, 16 if len(where) == 1 else 12), va="center", fontsize=8.5,
                      transform=axes[-1].get_yaxis_transform(), weight="bold")  # fmt: skip
    return figure, axes


def _rule(ax: Axes, rows: pd.Series) -> None:
    """Every second row shaded, a line between groups, the first row at the top."""
    for y in range(1, len(rows), 2):
        ax.axhspan(y - 0.5, y + 0.5, color="#f4f6f9", zorder=0, linewidth=0)
    changes = np.flatnonzero(rows.to_numpy()[1:] != rows.to_numpy()[:-1]) + 0.5
    ax.hlines(changes, 0, 1, transform=ax.get_yaxis_transform(), color=INK, linewidth=0.8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _spread(count: int, reach: float = 0.33) -> np.ndarray:
    """Offsets that keep what shares a place apart."""
    return np.linspace(-reach, reach, count) if count > 1 else np.zeros(count)


def _at(rows: pd.DataFrame, order: pd.Series, column: str = "label") -> np.ndarray:
    return order.index.get_indexer(rows[column])


# ---------------------------------------------------------------- chapter 04: fitting


def _kind(probe: str) -> tuple[str, str]:
    """Kind and pooling of a probe's name; what reads every token has no pooling."""
    kind, _, pooling = probe.rpartition("-")
    return (kind, pooling) if pooling in POOLINGS else (probe, "")


def auroc_by_depth(monitors: pd.DataFrame, pooling: str = "") -> Figure:
    """Test AUROC over depth, one panel a task, one colour a kind of probe, with intervals and the two baselines as lines.

    Each kind is shown with one pooling, the one whose AUROC on *validation* is higher on average (the better of two, which the
    figure says): filled markers for the mean over tokens, open ones for the last. `pooling` = "mean" or "last" shows that one
    for every kind instead. Bands around the baselines are their intervals.
    """
    tasks = _names(monitors["task"])
    figure, axes, spare = _grid(len(tasks))
    scores = monitors[monitors["metric"].isin(["auroc", "auroc_validation"])]
    drawn = {}
    for ax, task in zip(axes, tasks, strict=True):
        rows = scores[scores["task"] == task]
        chosen = _chosen(rows, pooling)
        for (kind, part), offset in zip(chosen.items(), _spread(len(chosen), 2.4), strict=True):
            drawn |= _curve(ax, part, kind, offset)
        test = rows[rows["metric"] == "auroc"]
        _baselines(ax, test[test["probe"].isin(BASELINES)])
        ax.set(
            title=_task(task),
            xlabel=f"depth of the network ({_n(test)})",
            xlim=(0, 107),
            ylim=(min(0.4, test["low"].min()), 1.02),
        )
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0f} %")
        ax.set_ylabel("AUROC on test texts" if ax in axes[::3] else "")
    _legend(figure, drawn | _pooling_keys(scores, pooling), spare, columns=min(len(tasks), 3))
    return figure


def _pooling_keys(rows: pd.DataFrame, pooling: str) -> dict[str, Line2D]:
    """What filled and open markers mean, and that one was chosen where there were two."""
    present = {_kind(probe)[1] for probe in _names(rows["probe"])} & ({pooling} if pooling else set(POOLINGS))
    chosen = " (better on validation)" if len(present) > 1 else ""
    keys = {"mean": ("filled: mean over tokens", INK), "last": (f"open: last token{chosen}", "white")}
    return {words: _key(INK, "o", markerfacecolor=face) for name, (words, face) in keys.items() if name in present}


def _chosen(rows: pd.DataFrame, pooling: str) -> dict[str, pd.DataFrame]:
    """For each kind the test rows of one probe: with this pooling, or with the one that is best on validation."""
    found: dict[str, pd.DataFrame] = {}
    monitors = rows[~rows["probe"].isin(BASELINES)]
    validation = monitors[monitors["metric"] == "auroc_validation"].groupby("probe")["value"].mean()
    for probe in sorted(_names(monitors["probe"]), key=lambda name: -validation.get(name, 0.0)):
        kind, pooled = _kind(probe)
        if kind not in found and (not pooling or pooled in ("", pooling)):
            found[kind] = monitors[(monitors["probe"] == probe) & (monitors["metric"] == "auroc")].sort_values("depth")
    return {kind: found[kind] for kind in [*KINDS, *found] if kind in found}


def _curve(ax: Axes, rows: pd.DataFrame, kind: str, offset: float) -> dict[str, Line2D]:
    """One probe over depth; returns its key for the legend."""
    words, colour, marker = KINDS.get(kind, (kind, INK, "p"))
    open_marker = {"markerfacecolor": "white"} if _kind(rows["probe"].iloc[0])[1] == "last" else {}
    x = 100 * rows["depth"] + offset
    bars(ax, x, rows, colour, marker, markersize=10 if marker == "*" else 5, elinewidth=1.1, capsize=1.5, **open_marker)
    ax.plot(x, rows["value"], color=colour, linewidth=1.2, alpha=0.7, linestyle=":" if kind == "shuffled-labels" else "-")
    return {words: _key(colour, marker)}


def _baselines(ax: Axes, rows: pd.DataFrame) -> None:
    """Lines across with bands as intervals: the higher one named above itself at the right, the other below at the left."""
    box = {"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0}
    for rank, item in enumerate(rows.sort_values("value", ascending=False).itertuples()):
        words, line = BASELINES[item.probe]
        ax.axhspan(item.low, item.high, color=GREY, alpha=0.13, linewidth=0)
        ax.axhline(item.value, color=INK, linewidth=1, linestyle=line)
        x, side, above = (0.98, "right", "bottom") if rank == 0 else (0.02, "left", "top")
        ax.text(x, item.value, words, transform=ax.get_yaxis_transform(), fontsize=8, zorder=5, va=above, ha=side, bbox=box)


def score_histograms(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, threshold: float, names: tuple[str, str] = ("aligned", "variant"),
    groups: Sequence | None = None,
) -> Figure:  # fmt: skip
    """Scores of one monitor on two models, one above the other, with the frozen threshold and what it does on each.

    Bars are shares of their class. AUROC, TPR and FPR (flagged: score > threshold) stand beside each panel with 95 % intervals
    over `groups`, or over texts where none are given. Scores beyond 0.5 % at either end are counted in the outermost bar.
    """
    scores = np.concatenate([before, after])
    ends = np.quantile(scores, [0.005, 0.995])
    low, high = min(ends[0], threshold), max(ends[1], threshold)
    room = 0.03 * (high - low) or 0.5  # all scores alike: still a range
    bins = np.linspace(low - room, high + room, 41)
    figure, axes = plt.subplots(2, 1, figsize=(8.6, 4.6), sharex=True, sharey=True, constrained_layout=True)
    for ax, values, name in zip(axes, (before, after), names, strict=True):
        for label, colour, style in (
            (0, PALETTE["aligned"], {"alpha": 0.55}),
            (1, PALETTE["qlora"], {"hatch": "///", "fill": False}),
        ):
            own = np.clip(values[labels == label], bins[0], bins[-1])
            ax.hist(
                own,
                bins,
                weights=np.full(own.size, 1 / max(own.size, 1)),
                color=colour,
                edgecolor=colour,
                histtype="stepfilled",
                **style,
            )
        ax.axvline(threshold, color=INK, linewidth=1.6)
        ax.set_title(_wrapped(name, 60))
        ax.text(1.02, 0.5, _realised(labels, values, threshold, groups), transform=ax.transAxes, va="center", linespacing=1.7)
        ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
    axes[1].set_xlabel("score of the monitor")
    figure.supylabel("share of the class", fontsize=10)
    patches = [Rectangle((0, 0), 1, 1, color=PALETTE["aligned"], alpha=0.55),
               Rectangle((0, 0), 1, 1, edgecolor=PALETTE["qlora"], hatch="///", fill=False), _key(INK, "", "-")]  # fmt: skip
    words = (
        f"to be passed (n = {int((labels == 0).sum())})",
        f"to be flagged (n = {int((labels == 1).sum())})",
        "frozen threshold",
    )
    figure.legend(patches, words, loc="outside lower center", ncols=3)
    return figure


def _realised(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: Sequence | None) -> str:
    """AUROC, TPR and FPR with their intervals, one a line."""

    def share(e: Estimate) -> str:
        return f"{100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}]"

    tpr, fpr = roc.rates(labels, scores, threshold, groups)
    found = roc.auroc_interval(labels, scores, groups)
    return f"AUROC {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]\nTPR {share(tpr)}\nFPR {share(fpr)}"


# ---------------------------------------------------------------- chapter 05: staleness


def heat_map(staleness: pd.DataFrame, order: Sequence[str], margin: float = 0.05) -> Figure:
    """Mean AUROC drop by variant and task, with its interval in each cell; orange is worse, purple better, white no change.

    A cell is framed and bold where the whole interval lies above `margin`. Colours end at a drop of 0.3. The mean is over the
    task's monitors; n counts test texts.
    """
    rows = staleness[(staleness["metric"] == "mean_auroc_drop") & staleness["label"].isin(order)]
    if rows.empty:
        return _unmeasured("the mean drop of AUROC")
    variants, tasks = _variants(rows, order), _names(rows["task"])
    figure, (ax,) = _row_panels(variants, 1, width=5.2 + 1.06 * len(tasks), row=0.4, rest=2.1)
    limit = float(np.clip(rows["value"].abs().max(), margin, 0.3))
    wide = rows.pivot_table(index="label", columns="task", values="value").reindex(index=variants.index, columns=tasks)
    image = ax.imshow(wide, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", zorder=1)
    for item in rows.itertuples():
        _cell(ax, tasks.index(item.task), variants.index.get_loc(item.label), item, margin, limit)
    for x, y in zip(*np.nonzero(wide.isna().to_numpy().T), strict=True):
        ax.text(x, y, "not measured", ha="center", va="center", fontsize=7, color="#667085")
    heads = [f"{textwrap.fill(_task(task), 12)}\n{_n(rows[rows['task'] == task])}" for task in tasks]
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
    style = {"color": "white" if dark else INK, "ha": "center", "va": "center", "zorder": 3}
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
        return _unmeasured("the shares of stale monitors")
    variants, styles = _variants(rows, order), _styles(_names(rows["task"]))
    figure, axes = _row_panels(variants, len(wanted))
    for ax, (metric, words) in zip(axes, wanted.items(), strict=True):
        for (task, (colour, marker)), offset in zip(styles.items(), _spread(len(styles)), strict=True):
            part = rows[(rows["metric"] == metric) & (rows["task"] == task)]
            bars(ax, _at(part, variants) + offset, part, colour, marker, across=True, markersize=4, elinewidth=1, capsize=0)
        ax.set(xlim=(-0.04, 1.04), title=words, xticks=[0, 0.5, 1])
        ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
        ax.set_xlabel(f"stale, of each task's monitors\n({_n(rows[rows['metric'] == metric])} monitors)", fontsize=9)
    _legend(figure, _task_keys(styles), columns=5)
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
        return _unmeasured("refitted probes")
    variants, tasks = _variants(rows, order), _names(rows["task"])
    means = rows.groupby(["task", "label", "metric"], sort=False)[["value", "low", "high"]].mean()
    figure, axes = _row_panels(variants, len(tasks), row=0.34)
    for ax, task in zip(axes, tasks, strict=True):
        part = rows[rows["task"] == task]
        _ends(ax, means.loc[task].reset_index(), variants)
        monitors = part.groupby("label")[["probe", "layer"]].value_counts().groupby("label").size().max()
        ax.set_title(textwrap.fill(_task(task), 14), fontsize=9.5)
        ax.set_xlabel(f"AUROC\nmonitors: {monitors}\n{_n(part)}", fontsize=8.5)
        ax.tick_params(axis="x", labelsize=8)
    keys = {"frozen": _key(PALETTE["aligned"], "o"), "refit on the variant": _key(PALETTE["qlora"], "D", markerfacecolor="white"),
            "frozen, before the update": _key(INK, "", "--")}  # fmt: skip
    _legend(figure, keys)
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


TURNED = {"logistic-mean": "logistic, mean over tokens", "mean-difference-mean": "difference of means, mean over tokens"}


def angles(staleness: pd.DataFrame, order: Sequence[str], resampled: Mapping[str, float]) -> Figure:
    """Degrees between the direction fitted before and after, one dot a layer, by variant and one panel a kind of probe.

    Colour is depth, marker and height in the row are the task. `resampled`, by probe, is what another draw of training texts
    alone does: the median of `resampled_angle` in the table `monitors`; it is drawn as a line.
    """
    rows = staleness[
        (staleness["metric"] == "direction_angle") & staleness["label"].isin(order) & staleness["probe"].isin(TURNED)
    ]
    if rows.empty:
        return _unmeasured("the angle between directions")
    probes = [probe for probe in TURNED if probe in set(rows["probe"])]
    variants, styles, depths = _variants(rows, order), _styles(_names(rows["task"])), sorted(rows["depth"].unique())
    shades = dict(zip(depths, sns.color_palette("viridis", len(depths)), strict=True))
    shifts = dict(zip(styles, _spread(len(styles)), strict=True))
    figure, axes = _row_panels(variants, len(probes), row=0.4)
    most = max([rows["high"].max(), rows["value"].max(), *(resampled[probe] for probe in probes if probe in resampled)])
    for ax, probe in zip(axes, probes, strict=True):
        here = rows[rows["probe"] == probe]
        for (task, depth), part in here.groupby(["task", "depth"]):
            y, marker = _at(part, variants) + shifts[task], styles[task][1]
            bars(ax, y, part, shades[depth], marker, across=True, markersize=3.6, elinewidth=0.7, capsize=0)
        note = ""
        if probe in resampled:
            ax.axvline(resampled[probe], color=INK, linewidth=1.2, linestyle="--")
            note = "\ndashed: the same model, other training texts"
        ax.set(title=TURNED[probe], xlabel=f"degrees ({_n(here)} training texts){note}", xlim=(-0.02 * most, 1.03 * most))
    _legend(figure, _two_rows({f"depth {100 * depth:.0f} %": _key(shade, "o") for depth, shade in shades.items()},
                              {name: _key(INK, key.get_marker()) for name, key in _task_keys(styles).items()}),
            columns=max(len(shades), len(styles)))  # fmt: skip
    return figure


def _two_rows(upper: Mapping[str, Line2D], lower: Mapping[str, Line2D]) -> dict[str, Line2D]:
    """Keys in the order in which a legend, which fills its columns first, shows the two as its two rows."""
    blank = _key("none", "")
    columns = max(len(upper), len(lower))
    sides = [[*side.items(), *((" " * (i + 1 + k), blank) for i in range(columns - len(side)))]
             for k, side in ((0, upper), (columns, lower))]  # fmt: skip
    return {name: key for pair in zip(*sides, strict=True) for name, key in pair}


def dose(staleness: pd.DataFrame, bits: pd.Series) -> Figure:
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
        return _unmeasured("a dose: neither rounding at several bits nor an update at several ranks or steps")
    everything = pd.concat(series.values())
    styles = _styles(_names(everything["task"]))
    figure, axes = panels(len(series), height=3.8, width=3.5 if len(series) > 1 else 5.5)
    for ax, (kind, part) in zip(axes, series.items(), strict=True):
        ax.axhline(0, color=INK, linewidth=0.8)
        for (task, (colour, marker)), offset in zip(styles.items(), _spread(len(styles), 0.1), strict=True):
            own = part[part["task"] == task]
            x = own["x"] * 2**offset  # the axis is logarithmic
            bars(ax, x, own, colour, marker, markersize=5, elinewidth=1.2, capsize=1.5)
            ax.plot(x, own["value"], color=colour, linewidth=1.1, alpha=0.7)
        _dose_axis(ax, kind, sorted(part["x"].unique()), float(bits.get("bf16", 16.0)))
        ax.set(xlabel=f"{DOSES[kind]}\n({_n(part)})", ylim=_range(everything))
    axes[0].set_ylabel(DROP)
    _legend(figure, _task_keys(styles), columns=min(5, 2 * len(series)))
    return figure


def _dose_axis(ax: Axes, kind: str, doses: list[float], whole: float) -> None:
    """A logarithmic axis with the doses themselves as ticks; bits fall to the right, so that the dose grows everywhere."""
    ax.set_xscale("log", base=2)
    if kind == "bits":
        ax.plot(whole, 0, "s", color=INK, markersize=6)
        doses = [whole, *reversed(doses)]
    ax.set_xticks(doses, [f"{dose:.2g}" if kind == "bits" else f"{dose:g}" for dose in doses])
    ax.xaxis.set_minor_locator(NullLocator())
    room = 2**0.35 if doses[0] <= doses[-1] else 2**-0.35
    ax.set_xlim(doses[0] / room, doses[-1] * room)


def _range(rows: pd.DataFrame) -> tuple[float, float]:
    """Limits with 0 and every interval inside."""
    low, high = min(rows["low"].min(), 0.0), max(rows["high"].max(), 0.0)
    room = 0.05 * (high - low) or 0.01
    return low - room, high + room


def interaction_dots(interaction: pd.DataFrame) -> Figure:
    """Whether QLoRA is worse than its two parts, by task and over all: one panel a measure, one block of rows an update.

    Numbers are AUROC drops averaged over a task's monitors, right of 0 is worse. Left out: measures whose models were not built.
    """
    rows = interaction[(interaction["probe"] == "all") & interaction["metric"].isin(MEASURES)]
    if rows.empty:
        return _unmeasured("QLoRA together with both of its parts")
    rows = rows.assign(block=rows["adapter"] + " on " + rows["precision"])
    rows = rows.assign(place=rows["block"] + "|" + rows["task"])
    places = rows.drop_duplicates("place").set_index("place")
    blocks = _together(places["block"])
    shown = [measure for measure in MEASURES if measure in set(rows["metric"])]
    figure, axes = _row_panels(blocks, len(shown), width=min(10.5, 3.2 + 2.2 * len(shown)))
    axes[0].set_yticks(range(len(blocks)), [_task(task).replace("\n", " ") for task in places["task"][blocks.index]])
    reach = 1.08 * rows[["low", "high"]].abs().to_numpy().max() or 0.01
    for ax, measure in zip(axes, shown, strict=True):
        part, (title, side) = rows[rows["metric"] == measure], MEASURES[measure]
        for overall, style in ((False, (PALETTE["aligned"], "o")), (True, (INK, "D"))):
            own = part[part["task"].eq("all") == overall]
            bars(ax, _at(own, blocks, "place"), own, *style, across=True)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.set(xlim=(-reach, reach), ylim=(len(blocks) - 0.5, -1.6), xlabel=f"difference of\nAUROC drops\n({_n(part)})")
        ax.text(0.97, -1.0, side, ha="right", va="center", fontsize=8, style="italic", transform=ax.get_yaxis_transform())
        ax.text(0.03, -1.0, "better", ha="left", va="center", fontsize=8, style="italic", transform=ax.get_yaxis_transform())
    return figure


# ---------------------------------------------------------------- chapter 06: triage


def budget_curves(triage: pd.DataFrame, predictors: Sequence[str] = ()) -> Figure:
    """The share of stale cells found against the share of cells revalidated, one panel a split, one line an order.

    At most six orders: `predictors`, or the first six of the table (never the best six: that would be choosing on the test).
    Random order is the grey reference. n: stale cells.
    """
    rows = triage[triage["metric"] == "recall"]
    names = [name for name in predictors or _names(rows["predictor"]) if name in set(rows["predictor"])][:6]
    rows = rows[rows["predictor"].isin(names)]
    if rows.empty:
        return _unmeasured("the recall of stale cells at a budget")
    splits = _names(rows["split"])
    colours = {name: (GREY, "x") if name == "random" else style for name, style in zip(names, STYLES, strict=False)}
    figure, axes = panels(len(splits), height=3.8)
    for ax, split in zip(axes, splits, strict=True):
        here = rows[rows["split"] == split]
        for (name, (colour, marker)), offset in zip(colours.items(), _spread(len(names), 1.6), strict=True):
            part = here[here["predictor"] == name].sort_values("budget")
            bars(ax, 100 * part["budget"] + offset, part, colour, marker, elinewidth=1.2, capsize=1.5, markersize=5)
            ax.plot(100 * part["budget"] + offset, part["value"], color=colour, linewidth=1.1, alpha=0.7)
        share_axis(ax)
        budgets = 100 * np.sort(here["budget"].unique())
        ax.set_xticks(budgets, [f"{budget:.0f} %" for budget in budgets])
        ax.set(
            title=SPLITS.get(split, split), xlabel=f"cells revalidated ({_n(here)} stale)", xlim=(budgets[0] - 4, budgets[-1] + 4)
        )
    axes[0].set_ylabel("stale cells found")
    _legend(figure, {name: _key(*style, "-") for name, style in colours.items()}, columns=min(3, 2 * len(splits)))
    return figure


def importances(triage: pd.DataFrame, predictor: str, words: Mapping[str, str], top: int = 10) -> Figure:
    """By how much a predictor's rank correlation falls when one signal is shuffled: the `top` signals, with intervals.

    `words` maps a signal to what it says; the largest stands first, by the mean over splits where there are several.
    """
    rows = triage[(triage["predictor"] == predictor) & triage["metric"].str.startswith("importance:")]
    rows = rows.assign(signal=rows["metric"].str.removeprefix("importance:"))
    if rows.empty:
        return _unmeasured(f"importances for “{predictor}”")
    order = rows.groupby("signal", sort=False)["value"].mean().sort_values(ascending=False, kind="stable").index[:top]
    rows, splits = rows[rows["signal"].isin(order)], _names(rows["split"])
    figure, ax = plt.subplots(figsize=(8.6, 1.5 + 0.42 * len(order)), constrained_layout=True)
    for (split, (colour, marker)), offset in zip(zip(splits, STYLES, strict=False), _spread(len(splits), 0.2), strict=True):
        part = rows[rows["split"] == split]
        bars(ax, order.get_indexer(part["signal"]) + offset, part, colour, marker, across=True, label=SPLITS.get(split, split))
    _rule(ax, pd.Series("", index=order))
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(order)), [textwrap.fill(words.get(name, name), 44) for name in order], fontsize=9)
    ax.set(xlabel=f"fall of the rank correlation ({_n(rows)} cells)")
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
            ax.scatter(part[name].astype(float), part["drop"], s=9 if not stale else 14, color=colour, marker=marker,
                       alpha=0.45, linewidths=0, label=f"{'stale' if stale else 'not stale'} (n = {len(part):,})")  # fmt: skip
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.set(xlabel=name.replace("_", " "), ylabel="AUROC drop")
        ax.legend(loc="upper left", fontsize=8)
    return figure
