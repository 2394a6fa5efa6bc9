"""Points with names beside them, on an axis that goes by the root: names cover no interval, and near points stand apart."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from helpers.figures.drawing.layout import GREY

# where a name may stand beside its point: points away and degrees, the best first
NEAR = [(reach, turn) for reach in (9, 16, 26, 38, 52, 70) for turn in (0, 180, 35, 325, 145, 215, 65, 295, 115, 245)]


def root(x: Any) -> Any:
    """The root of numbers or columns; of what is below 0, minus that of its size."""
    return np.sign(x) * np.sqrt(np.abs(x))


def square(x: Any) -> Any:
    """The inverse of `root`."""
    return np.sign(x) * np.square(x)


def apart(paid: pd.DataFrame, most: float) -> pd.DataFrame:
    """The costs with those that are nearly equal moved apart, so that none hides another; what is free moves right only."""
    place = root(paid["value"]).sort_values(kind="stable")
    same = place.groupby((place.diff() > 0.02 * most).cumsum())
    ranks = same.cumcount() - (same.transform("size") - 1) / 2 * (place > 0)
    return paid.assign(**{end: square(root(paid[end]) + 0.022 * most * ranks) for end in ("low", "value", "high")})


def name_points(ax: Axes, across: pd.DataFrame, up: pd.DataFrame, rule: np.ndarray) -> None:
    """Writes each row's name beside its point, at the nearest place where it covers no interval, other name or the rule."""
    ax.figure.canvas.draw()  # only now is it known where things are
    drawn: list[Any] = list(itertools.pairwise(rule))
    for (_, x), (_, y) in zip(across.iterrows(), up.iterrows(), strict=True):
        drawn += [[(x["low"], y["value"]), (x["high"], y["value"])], [(x["value"], y["low"]), (x["value"], y["high"])]]
    taken = [Bbox(np.sort(ax.transData.transform(part), axis=0)).padded(6) for part in drawn]
    for name, x, y in zip(up.index, across["value"], up["value"], strict=True):
        for reach, turn in NEAR:
            across_up = np.round(reach * np.array([np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))]), 3)
            away = (float(across_up[0]), float(across_up[1]))
            sides: dict[str, Any] = {"ha": ("center", "left", "right")[int(np.sign(away[0]))],
                     "va": ("center", "bottom", "top")[int(np.sign(away[1]))]}  # fmt: skip
            note = ax.annotate(name, (x, y), away, textcoords="offset points", fontsize=9, **sides)
            box = note.get_window_extent()
            inside = ax.bbox.fully_contains(*box.p0) and ax.bbox.fully_contains(*box.p1)
            if (inside and not box.count_overlaps(taken)) or (reach, turn) == NEAR[-1]:  # better covered than missing
                break
            note.remove()
        taken.append(box.padded(3))
        if reach > NEAR[0][0] or turn not in (0, 180):  # a line says whose name it is
            ax.annotate("", (x, y), away, textcoords="offset points", arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 3})
