"""Chapter 04's figure and tables: AUROC by depth, one monitor by hand, the monitors in use, and another draw of texts."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.data import tasks
from helpers.data.splits import ELSEWHERE
from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    POOLINGS,
    TEXT,
    distinct,
    grid,
    kind_and_pooling,
    legend,
    legend_key,
    message,
    ordered_tasks,
    sample_size,
    spread,
    task_keys,
    task_styles,
    task_words,
    unmeasured,
)
from helpers.figures.drawing.theme import bars
from helpers.figures.titles import models as titles
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes, readings
from helpers.monitors.fitting import four
from helpers.monitors.readings import Place
from helpers.stats import roc
from helpers.stats.roc import RATES
from helpers.updates.names import CONTROL, SIMULATED


def monitor_by_hand(found: Activations, reading: Plan, task: str, layer: int) -> pd.DataFrame:
    """One difference of means over mean-pooled states: what it reaches on test, and what its threshold promised."""
    place = Place(task, "mean-difference", "mean", layer, 0.0)
    parts = {split: readings.rows_of(reading, task, split) for split in ("train", "validation", "test")}
    seen = {split: readings.features(found, reading, place, part.index) for split, part in parts.items()}
    readout = probes.fit_probe(place.kind, seen["train"], parts["train"].labels, seen["validation"], parts["validation"].labels)
    scores = {split: probes.score(readout, seen[split]) for split in ("validation", "test")}
    cut = frozen_monitors.threshold(scores["validation"][parts["validation"].labels == 0], RATES["5"])
    test = parts["test"]
    rows = [("AUROC on test", roc.auroc_interval(test.labels, scores["test"], test.groups))]
    for split in ("validation", "test"):
        if cut is None:
            break
        tpr, fpr = roc.rates(parts[split].labels, scores[split], cut, parts[split].groups)
        rows += [(f"share caught, {split}", tpr), (f"false positives, {split}", fpr)]
    return pd.DataFrame([(task, what, *four(e)) for what, e in rows], columns=["task", "what", "value", "low", "high", "n"])


def texts_read(reading: Plan) -> pd.DataFrame:
    """One row a task and split: how many texts of each class, groups, sources and words, and the tokens at which they are cut."""
    table = tasks.summary(reading.examples)
    return table.assign(**{"cut at": [reading.limit_of(task) for task in table["task"]]})


def two_tests(table: pd.DataFrame, names: Mapping[str, Mapping[str, object]]) -> pd.DataFrame:
    """For each task its monitor in use and the bag of words: AUROC and rates on the test of the fitted source and of another."""
    shown = []
    for task, choice in names.items():
        for monitor in (str(choice["monitor"]), f"{task}/bag-of-words/0"):
            rows = _of(table, monitor)
            cells = {f"{words}, {where}": _cell(rows, f"{metric}{suffix}") for metric, words in TOLD.items()
                     for where, suffix in (("test", ""), ("elsewhere", f"_{ELSEWHERE}"))}  # fmt: skip
            shown.append({"task": task, "monitor": monitor.split("/")[1], **cells})
    return pd.DataFrame(shown)


TOLD = {"auroc": "AUROC", "tpr_5": "caught", "fpr_5": "false alarms"}


def _cell(rows: pd.DataFrame, metric: str) -> str:
    return (
        tables.interval(metric.removesuffix(f"_{ELSEWHERE}"), *rows.loc[metric, ["value", "low", "high"]])
        if metric in rows.index
        else "–"
    )


def promises(table: pd.DataFrame) -> pd.DataFrame:
    """One row a task: the harmless texts behind its 5 % thresholds, and what these promise on new texts of its own kind."""
    own, every = (table[table["metric"] == metric].groupby("task", sort=False) for metric in ("promised_5", "threshold_5"))
    found = pd.DataFrame({"harmless texts": every["n"].max(), "of its own": own["n"].max()})
    middle = {name: own[name].median() for name in ("value", "low", "high")}
    found["expected"] = [f"{value:.1%}" for value in middle["value"]]
    found["in 95 % of draws"] = [f"{low:.1%} to {high:.1%}" for low, high in zip(middle["low"], middle["high"], strict=True)]
    few = found["harmless texts"] < FEW_HARMLESS
    found["with so few"] = [
        f"at most {high:.0%} is guaranteed" if low else "" for low, high in zip(few, middle["high"], strict=True)
    ]
    return found.reset_index()


FEW_HARMLESS = 40  # texts under a threshold, below which a line says what it guarantees


def carried_over(table: pd.DataFrame) -> Figure:
    """AUROC on the test of another source against that on the fitted source's: a mark a task and kind of probe, mean over depths.

    One pooling a mark; a ring is the bag of words. On the dashed diagonal nothing is lost. Of kinds with more marks than can be
    told apart, the first of the registry are shown; every monitor stands in the table `monitors`.
    """
    wide = table[table["metric"].isin(["auroc", FAR])].pivot(index=["task", "probe", "layer"], columns="metric", values="value")
    wide = wide.reindex(columns=["auroc", FAR]).dropna().reset_index()
    wide = wide[~wide["probe"].str.startswith((CONTROL, SIMULATED)) & (wide["probe"] != "length")]
    if wide.empty:
        return unmeasured("a second test set")
    tasks, places = ordered_tasks(wide["task"]), {kind: place for place, kind in enumerate(KINDS)}
    means = wide.groupby(["task", "probe"], sort=False)[["auroc", FAR]].mean().reset_index()
    means = means.assign(kind=[places.get(kind_and_pooling(probe)[0], len(KINDS)) for probe in means["probe"]])
    shown = distinct(means.sort_values("kind", kind="stable")["probe"])[: MOST // len(tasks) - 1]
    figure, (ax,), _ = grid(1, height=4.8)
    for task, (colour, marker) in task_styles(tasks).items():
        own, words = means["task"] == task, means["probe"] == "bag-of-words"
        dots, ring = means[own & ~words & means["probe"].isin(shown)], means[own & words]
        ax.scatter(dots["auroc"], dots[FAR], color=colour, marker=marker, s=26, alpha=0.75, linewidths=0)
        ax.scatter(ring["auroc"], ring[FAR], facecolors="none", edgecolors=colour, s=110, linewidths=1.8)
    ends = (float(means[["auroc", FAR]].to_numpy().min()) - 0.03, 1.03)
    ax.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    n = int((wide["layer"] > 0).sum())
    ax.set(xlim=ends, ylim=ends)
    ax.set(xlabel=f"AUROC, test of the fitted source (n = {n} monitors)", ylabel="AUROC, test of another source")
    legend(figure, task_keys(tasks) | {"ring: bag of words": legend_key(INK, "o", markerfacecolor="none")}, columns=2)
    return message(figure, titles.elsewhere_title(wide[wide["layer"] > 0], "auroc", FAR))


def in_use(table: pd.DataFrame, names: Mapping[str, Mapping[str, object]]) -> pd.DataFrame:
    """One row a task: its monitor in use, of how many, and what it reaches, each with its interval."""
    shown = []
    for task, choice in names.items():
        rows = _of(table, str(choice["monitor"]))
        cells = {words: tables.interval(m, *rows.loc[m, ["value", "low", "high"]]) if m in rows.index else "(too few texts)"
                 for m, words in SHOWN.items()}  # fmt: skip
        place = str(choice["monitor"]).split("/")
        n = {"test texts": int(rows.loc["auroc", "n"])}
        shown.append({"task": task, "probe": place[1], "layer": place[2], "best of": choice["of"], **cells, **n})
    return pd.DataFrame(shown)


SHOWN = {
    "auroc_validation": "AUROC, validation",
    "auroc": "AUROC, test",
    "tpr_5": "caught at 5 %",
    "fpr_5": "false alarms at 5 %",
}


def _of(table: pd.DataFrame, monitor: str) -> pd.DataFrame:
    """The rows of one monitor, by metric."""
    task, probe, layer = monitor.split("/")
    rows = table[(table["task"] == task) & (table["probe"] == probe) & (table["layer"] == int(layer))]
    return rows.set_index("metric")


def another_draw(table: pd.DataFrame) -> pd.DataFrame:
    """What another draw of training texts does to linear probes: middle and largest over all depths, by task and kind."""
    rows = table[table["metric"].isin(["resampled_drop", "resampled_angle"])]
    found = rows.groupby(["task", "probe", "metric"], sort=False)["value"].agg(["median", "max", "size"]).unstack("metric")
    names = {"resampled_drop": "AUROC drop", "resampled_angle": "angle in degrees"}
    columns = {f"{words}, {how}": found[how, metric] for metric, words in names.items() for how in ("median", "max")}
    return pd.DataFrame({**columns, "depths": found["size", "resampled_drop"]}).reset_index()


def monitor_sentences(table: pd.DataFrame, names: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """The test AUROC of each monitor in use as text, for the chapter's prose; every registered task has an entry."""
    found = dict.fromkeys((f"auroc-{task}" for task in tasks.TASKS), "(not in this run)")
    for task, choice in names.items():
        own = table[(table["task"] + "/" + table["probe"] + "/" + table["layer"].astype(str)) == str(choice["monitor"])]
        found[f"auroc-{task}"] = tables.of_row(own[own["metric"] == "auroc"])
    return found


SHUFFLED = "shuffled-labels"
FAR = f"auroc_{ELSEWHERE}"
KINDS = {"logistic": ("logistic", "#0072b2", "o"), "mean-difference": ("difference of means", "#e69f00", "s"),
         "lda": ("LDA", "#009e73", "^"), "mlp": ("small MLP", "#cc79a7", "D"), "attention": ("attention pooling", "#d55e00", "*"),
         "shuffled-labels": ("shuffled labels (control)", "#8d99ae", "x")}  # fmt: skip


MOST = 60  # marks of a panel that can still be told apart
BASELINE_WORDS = {"bag-of-words": ("bag of words", "--"), "length": ("length", ":")}


def auroc_by_depth(monitors: pd.DataFrame, pooling: str = "") -> Figure:
    """Test AUROC over depth, one panel a task, one colour a kind of probe, with intervals and the two baselines as lines.

    Each kind is shown with one pooling, the one whose AUROC on *validation* is higher on average (the better of two, which the
    figure says): filled markers for the mean over tokens, open ones for the last. `pooling` = "mean" or "last" shows that one
    for every kind instead. Grey bands are the intervals of the baselines, and where shuffled labels lie: what luck can do.
    """
    tasks = ordered_tasks(monitors.loc[monitors["metric"] == "auroc", "task"])
    figure, axes, spare = grid(len(tasks), height=3.4)
    scores = monitors[monitors["metric"].isin(["auroc", "auroc_validation"])]
    drawn: dict[str, Line2D] = {}
    for ax, task in zip(axes, tasks, strict=True):
        rows = scores[scores["task"] == task]
        chosen = _chosen(rows, pooling)
        luck = chosen.pop(SHUFFLED, rows[:0])
        for (kind, part), offset in zip(chosen.items(), spread(len(chosen), 2.4), strict=True):
            drawn |= _curve(ax, part, kind, offset)
        test = rows[rows["metric"] == "auroc"]
        _baselines(ax, test[test["probe"].isin(BASELINE_WORDS)])
        parts = [*chosen.values(), test[test["probe"].isin(BASELINE_WORDS)]]
        low = min((part["low"].min() for part in parts if len(part)), default=0.5)
        ax.set(
            title=task_words(task), xlabel=f"depth of the network ({sample_size(test)})", xlim=(0, 107), ylim=(low - 0.03, 1.02)
        )
        _luck(ax, luck)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0f} %")
        ax.set_ylabel("AUROC on test texts" if ax in axes[::3] else "")
    drawn = {words: drawn[words] for words in [*(words for words, _, _ in KINDS.values()), *drawn] if words in drawn}
    if SHUFFLED in {kind_and_pooling(probe)[0] for probe in distinct(scores["probe"])}:
        drawn |= {KINDS[SHUFFLED][0]: legend_key(GREY, "", "-", linewidth=5, alpha=0.4)}
    legend(figure, drawn | _pooling_keys(scores, pooling), spare, columns=min(len(tasks), 3))
    return message(figure, titles.depth_title(scores[scores["metric"] == "auroc"]))


def _luck(ax: Axes, rows: pd.DataFrame) -> None:
    """Where probes of shuffled labels lie, as a band; below what is shown, in words."""
    if rows.empty:
        return
    low, high = rows["low"].min(), rows["high"].max()
    if high > ax.get_ylim()[0]:
        ends = ax.get_ylim()
        ax.axhspan(low, high, color=GREY, alpha=0.22, linewidth=0, label=KINDS[SHUFFLED][0])
        ax.set_ylim(ends)
    else:
        ax.text(0.98, 0.02, f"shuffled labels: below {high:.2f}", transform=ax.transAxes, fontsize=TEXT, ha="right", va="bottom",
                color=INK, zorder=5)  # fmt: skip


def _pooling_keys(rows: pd.DataFrame, pooling: str) -> dict[str, Line2D]:
    """What filled and open markers mean, and that one was chosen where there were two."""
    rows = rows[~rows["probe"].str.startswith(SIMULATED)]
    present = {kind_and_pooling(probe)[1] for probe in distinct(rows["probe"])} & ({pooling} if pooling else set(POOLINGS))
    chosen = " (better on validation)" if len(present) > 1 else ""
    keys = {"mean": ("filled: mean over tokens", INK), "last": (f"open: last token{chosen}", "white")}
    return {words: legend_key(INK, "o", markerfacecolor=face) for name, (words, face) in keys.items() if name in present}


def _chosen(rows: pd.DataFrame, pooling: str) -> dict[str, pd.DataFrame]:
    """For each kind the test rows of one probe: with this pooling, or with the one that is best on validation."""
    found: dict[str, pd.DataFrame] = {}
    monitors = rows[~rows["probe"].isin(BASELINE_WORDS) & ~rows["probe"].str.startswith(SIMULATED)]
    validation = monitors[monitors["metric"] == "auroc_validation"].groupby("probe")["value"].mean()
    for probe in sorted(
        distinct(monitors.loc[monitors["metric"] == "auroc", "probe"]), key=lambda name: -validation.get(name, 0.0)
    ):
        kind, pooled = kind_and_pooling(probe)
        if kind not in found and (not pooling or pooled in ("", pooling)):
            found[kind] = monitors[(monitors["probe"] == probe) & (monitors["metric"] == "auroc")].sort_values("depth")
    return {kind: found[kind] for kind in [*KINDS, *found] if kind in found}


def _curve(ax: Axes, rows: pd.DataFrame, kind: str, offset: float) -> dict[str, Line2D]:
    """One probe over depth; returns its key for the legend."""
    words, colour, marker = KINDS.get(kind, (kind, INK, "p"))
    open_marker: dict[str, Any] = {"markerfacecolor": "white"} if kind_and_pooling(rows["probe"].iloc[0])[1] == "last" else {}
    x = 100 * rows["depth"] + offset
    bars(ax, x, rows, colour, marker, markersize=10 if marker == "*" else 5, elinewidth=1.1, capsize=1.5, **open_marker)
    ax.plot(x, rows["value"], color=colour, linewidth=1.2, alpha=0.7)
    return {words: legend_key(colour, marker)}


def _baselines(ax: Axes, rows: pd.DataFrame) -> None:
    """Lines across with bands as intervals: the higher one named above itself at the right, the other below at the left."""
    box = {"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0}
    for rank, item in enumerate(rows.sort_values("value", ascending=False).itertuples()):
        words, line = BASELINE_WORDS[item.probe]
        ax.axhspan(item.low, item.high, color=GREY, alpha=0.13, linewidth=0, label=words)
        ax.axhline(item.value, color=INK, linewidth=1, linestyle=line, label=words)
        x, side, above = (0.98, "right", "top" if item.value > 0.96 else "bottom") if rank == 0 else (0.02, "left", "top")
        ax.text(x, item.value, words, transform=ax.get_yaxis_transform(), fontsize=TEXT, zorder=5, va=above, ha=side, bbox=box)
