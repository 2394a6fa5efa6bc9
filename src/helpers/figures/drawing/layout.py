"""Parts that the figures of the monitors share, and chapter 04's own. What was not measured is left out, or said."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures.drawing.theme import PALETTE, panels

INK, GREY = PALETTE["ink"], PALETTE["base"]
TASK_WORDS = {"harmful-request": "harmful request", "refusal-compliance": "refusal or compliance", "privacy-pii": "privacy (PII)",
              "toxicity": "toxicity", "jailbreak": "jailbreak", "all": "all tasks"}  # fmt: skip
# one a task, in the order above; further tasks take those that are left. Marker and height on the page change too.
STYLES = (("#0072b2", "o"), ("#e69f00", "s"), ("#009e73", "^"), ("#d55e00", "D"), ("#cc79a7", "v"), ("#56b4e9", "P"),
          ("#1b2a41", "X"))  # fmt: skip
TEXT = 9.6  # points: the least that is read with ease where a figure of full width is shown on a page of 768 pixels
POOLINGS = ("mean", "last")
READS = {"last": "the last token", "mean": "the mean over tokens"}  # what a pooling reads, in words
POOLED = {"last": (PALETTE["qlora"], "D"), "mean": (PALETTE["aligned"], "o")}  # colour and marker of each


# ---------------------------------------------------------------- parts of a page


def task_words(name: str) -> str:
    """A task's name as a reader sees it, in lines that fit a panel's title."""
    return textwrap.fill(TASK_WORDS.get(name, name.replace("-", " ")), 22)


def task_styles(tasks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each task: the same in every figure for ours, what is left for a user's own."""
    ours = list(TASK_WORDS)[:5]
    own = [task for task in tasks if task not in ours]
    return {task: STYLES[i % len(STYLES)] for i, task in enumerate([*ours, *own]) if task in set(tasks)}


def distinct(column: pd.Series) -> list[str]:
    """What stands in a column, each once, in the order in which it first comes."""
    return list(dict.fromkeys(column))


def ordered_tasks(column: pd.Series) -> list[str]:
    """The tasks of a column, ours in their order whatever the table's, then a user's own, then "all"."""
    ours, own = list(TASK_WORDS)[:-1], [name for name in distinct(column) if name not in TASK_WORDS]
    return [name for name in (*ours, *own, "all") if name in set(column)]


def sample_size(rows: pd.DataFrame) -> str:
    """The n of these rows in words; its range where they differ."""
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def unmeasured(what: str) -> Figure:
    """A figure that only says that this was not measured."""
    figure, ax = plt.subplots(figsize=(6.0, 0.8), constrained_layout=True)
    ax.set_axis_off()
    ax.text(0.0, 0.5, textwrap.fill(f"This run did not measure {what}.", 60), va="center")
    return figure


def message(figure: Figure, sentence: str, top: float | None = None) -> Figure:
    """The same figure with what it says as a sentence above its panels, in lines that fit the page.

    top: where the sentence begins, as a share of the height, for a figure that is not laid out by itself.
    """
    width = int(10.5 * figure.get_size_inches()[0])
    place = {} if top is None else {"y": top, "va": "top"}
    figure.suptitle(textwrap.fill(sentence, width), x=0.01, ha="left", fontsize=11, weight="bold", **place)
    return figure


def grid(count: int, height: float = 3.1) -> tuple[Figure, list[Axes], list[Axes]]:
    """Panels in rows of three, and the places left over."""
    across, down = min(count, 3), -(-count // 3)
    figure, axes = plt.subplots(
        down, across, figsize=(3.5 * across if across > 1 else 5.5, height * down), constrained_layout=True, squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count]), list(axes.flat[count:])


def wrapped(name: str, width: int = 30) -> str:
    """A variant's name over lines of at most `width` characters, broken before how it is served where that helps."""
    if len(name) <= width:
        return name
    return "\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in name.replace(" · ", " ·\n").split("\n"))


def legend_key(colour: str, marker: str, line: str = "", **options) -> Line2D:
    """What stands beside a name in a legend: a marker, a line or both."""
    return Line2D([], [], color=colour, marker=marker, linestyle=line, markersize=6, **options)


def legend(figure: Figure, keys: Mapping[str, Line2D], spare: Sequence[Axes] = (), columns: int = 3) -> None:
    """One legend for all panels, in the place that is left over or below."""
    if spare:
        spare[0].legend(keys.values(), keys, loc="center left")
    elif keys:
        figure.legend(keys.values(), keys, loc="outside lower center", ncols=columns)


def task_keys(tasks: Iterable[str]) -> dict[str, Line2D]:
    """Each task's words with its key, for a legend."""
    return {
        task_words(task).replace("\n", " "): legend_key(colour, marker) for task, (colour, marker) in task_styles(tasks).items()
    }


def two_rows(upper: Mapping[str, Line2D], lower: Mapping[str, Line2D]) -> dict[str, Line2D]:
    """Keys in the order in which a legend, which fills its columns first, shows the two as its two rows."""
    blank = legend_key("none", "")
    columns = max(len(upper), len(lower))
    sides = [[*side.items(), *((" " * (i + 1 + k), blank) for i in range(columns - len(side)))]
             for k, side in ((0, upper), (columns, lower))]  # fmt: skip
    return {name: key for pair in zip(*sides, strict=True) for name, key in pair}


def limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Limits with 0 and every interval inside."""
    low, high = min(rows["low"].min(), 0.0), max(rows["high"].max(), 0.0)
    room = 0.05 * (high - low) or 0.01
    return low - room, high + room


# ---------------------------------------------------------------- rows of variants


def measured_variants(table: pd.DataFrame, order: Sequence[str]) -> pd.Series:
    """Family by label, for the labels of `order` that were measured, families kept together."""
    families = table.drop_duplicates("label").set_index("label")["family"].reindex(list(order)).dropna()
    return together(families)


def together(groups: pd.Series) -> pd.Series:
    """The same, rows of one group side by side, groups and rows otherwise in the order given."""
    first = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return groups.sort_values(key=lambda found: found.map(first), kind="stable")


def row_panels(
    rows: pd.Series, count: int, width: float = 10.5, row: float = 0.36, rest: float = 1.5
) -> tuple[Figure, list[Axes]]:
    """Panels side by side whose rows are the index of `rows`; its values name groups, on the right, with lines between."""
    figure, axes = panels(count, height=rest + row * len(rows), width=width / count)
    for ax in axes:
        shade_rows(ax, rows)
        ax.set_yticks(range(len(rows)), [])
    axes[0].set_yticks(range(len(rows)), [wrapped(name) for name in rows.index], fontsize=TEXT)
    for group in distinct(rows):
        where = np.flatnonzero(rows == group)
        axes[-1].text(1.03, where.mean(), textwrap.fill(group, 16 if len(where) == 1 else 12), va="center", fontsize=TEXT,
                      transform=axes[-1].get_yaxis_transform(), weight="bold")  # fmt: skip
    return figure, axes


def shade_rows(ax: Axes, rows: pd.Series) -> None:
    """Every second row shaded, a line between groups, the first row at the top."""
    for y in range(1, len(rows), 2):
        ax.axhspan(y - 0.5, y + 0.5, color="#f4f6f9", zorder=0, linewidth=0)
    changes = np.flatnonzero(rows.to_numpy()[1:] != rows.to_numpy()[:-1]) + 0.5
    ax.hlines(changes, 0, 1, transform=ax.get_yaxis_transform(), color=INK, linewidth=0.8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def share_across(ax: Axes) -> None:
    """Makes x a share from 0 to 100 %; 0 without its unit, so that it keeps clear of the 100 % of the panel on its left."""
    ax.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
    ax.tick_params(axis="x", labelsize=TEXT)
    ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %" if v else "0")


def spread(count: int, reach: float = 0.33) -> np.ndarray:
    """Offsets that keep what shares a place apart."""
    return np.linspace(-reach, reach, count) if count > 1 else np.zeros(count)


def row_numbers(rows: pd.DataFrame, order: pd.Series, column: str = "label") -> np.ndarray:
    """At which row of the page each of the rows is drawn."""
    return order.index.get_indexer(rows[column])


# ---------------------------------------------------------------- chapter 04: fitting


def kind_and_pooling(probe: str) -> tuple[str, str]:
    """Kind and pooling of a probe's name; what reads every token has no pooling."""
    kind, _, pooling = probe.rpartition("-")
    return (kind, pooling) if pooling in POOLINGS else (probe, "")
