"""Shares with their intervals in the cells of a grid: a row a flag, a column a task."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap

from helpers.figures.drawing.layout import INK, task_words
from helpers.stats.intervals import rate_interval


def share_grid(
    ax: Axes, cells: pd.DataFrame, flags: Mapping[str, pd.Series], tasks: Sequence[str], colour: str, full: float
) -> None:
    """One row a flag, one column a task; the colour is full at the share `full`, so that a small harm can be seen."""
    image = np.full((len(flags), len(tasks)), np.nan)
    members = [cells["task"].eq(task) | (task == "all") for task in tasks]
    for (y, flag), (x, own) in itertools.product(enumerate(flags.values()), enumerate(members)):
        image[y, x] = _cell(ax, x, y, flag[own], cells["variant"][own])
    ax.imshow(image, cmap=_shade(colour), vmin=0, vmax=full, aspect="auto", zorder=1)
    spec = ax.get_subplotspec()
    names = [f"{textwrap.fill(task_words(task), 14)}\n" if spec and spec.is_first_row() else "" for task in tasks]
    heads = [f"{name}n = {own.sum()}" for name, own in zip(names, members, strict=True)]
    ax.set_xticks(range(len(tasks)), heads, fontsize=8.5)
    ax.set_yticks(range(len(flags)), flags, fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.axvline(len(tasks) - 1.5, color=INK, linewidth=1.2)
    ax.grid(visible=False)


def _cell(ax: Axes, x: int, y: int, flags: pd.Series, updates: pd.Series) -> float:
    """Writes the share of true flags with its interval; returns it, nan where there is none."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "zorder": 3}
    if flags.empty:
        ax.text(x, y, "none", fontsize=8, **style)
        return float("nan")
    e = rate_interval(flags.astype(float), updates)
    ax.text(x, y - 0.18, f"{100 * e.value:.0f} %", fontsize=9, weight="bold", **style)
    ax.text(x, y + 0.24, f"{100 * e.low:.0f} to {100 * e.high:.0f} %", fontsize=7, **style)
    return e.value


def _shade(colour: str) -> Colormap:
    return LinearSegmentedColormap.from_list(colour, ["#ffffff", colour])
