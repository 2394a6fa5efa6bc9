"""Lines: a value against a dose, one line a task, with what the same is where nothing changed."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from helpers.figures.drawing.layout import INK, legend_key, spread
from helpers.figures.drawing.theme import bars


def lines_by_task(ax: Axes, rows: pd.DataFrame, styles: Mapping[str, tuple[str, str]]) -> None:
    """Draws one line a task over the column `x`, which is logarithmic, with intervals; tasks a little apart."""
    for (task, (colour, marker)), offset in zip(styles.items(), spread(len(styles), 0.06), strict=True):
        own = rows[rows["task"] == task].sort_values("x")
        x = own["x"] * 2**offset
        bars(ax, x, own, colour, marker, markersize=4.5, elinewidth=1.1, capsize=1.5)
        ax.plot(x, own["value"], color=colour, linewidth=1.1, alpha=0.7, zorder=0.9)  # below 1: it carries no data of its own


def floor_line(ax: Axes, values: pd.Series, across: bool) -> None:
    """Draws the largest of the values as a dashed line, the floor; none without values."""
    if len(values):
        (ax.axvline if across else ax.axhline)(values.max(), color=INK, linewidth=1.1, linestyle="--")


def floor_key(values: Sequence[float]) -> dict[str, Line2D]:
    """The key of the floor for a legend, where there is one."""
    return {"floor: nothing changed": legend_key(INK, "", "--")} if len(values) else {}


def ticks_apart(places: Sequence[float]) -> list[float]:
    """The places that stand a factor of 1.35 or more apart, from the smallest on, so that their names do not touch."""
    kept: list[float] = []
    for place in places:
        if not kept or place >= 1.35 * kept[-1]:
            kept.append(place)
    return kept
