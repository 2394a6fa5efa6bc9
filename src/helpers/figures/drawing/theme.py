"""Table in, figure out: one style for all figures. Intervals are always drawn; colours tell families apart in grey as well."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.figures.drawing import export

Places: TypeAlias = Sequence[float] | np.ndarray | pd.Series

PALETTE = {
    "ink": "#1b2a41",
    "base": "#8d99ae",
    "aligned": "#0072b2",
    "control": "#009e73",
    "quantized": "#e69f00",
    "lora": "#cc79a7",
    "qlora": "#d55e00",
}
HARMLESS, FLAGGED = PALETTE["aligned"], PALETTE["qlora"]  # texts to be passed and texts to be flagged, everywhere
LABELS = {
    "non_refusal": "harmful prompts not refused",
    "over_refusal": "safe prompts refused",
    "coherent": "coherent replies",
    "perplexity": "perplexity on C4",
    "rouge1": "ROUGE-1",
    "accuracy": "multiple choice (PIQA)",
    "advbench": "AdvBench (held out)",
    "strongreject": "StrongREJECT",
    "harmbench": "HarmBench",
    "advbench-identity": "AdvBench, identity shift",
    "edgy": "edgy but safe",
}


def style() -> None:
    """Sets the style of every figure of the book, and how a notebook shows one; called once at the top of a chapter."""
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.9)
    plt.rcParams.update({
        "figure.dpi": 140, "savefig.bbox": "tight", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False,
        "grid.color": "#e4e7ec", "axes.edgecolor": "#667085", "text.color": PALETTE["ink"], "axes.labelcolor": PALETTE["ink"],
        "axes.titleweight": "bold", "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
        "font.sans-serif": export.FONTS, "svg.hashsalt": "after-the-update",
    })  # fmt: skip
    export.register()


def label(name: str) -> str:
    """The words for a metric or prompt set in a figure."""
    return LABELS.get(name, name)


def bars(
    ax: Axes, places: Places, rows: pd.DataFrame, colour: str, marker: str = "o", across: bool = False, **options: Any
) -> None:
    """Draws each row's value with its interval at its place: upwards, or `across` the page where places are rows."""
    value = rows["value"].to_numpy(float)
    reach = np.vstack([value - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - value])
    reach[np.abs(reach) < 1e-12] = 0  # rounding must not make a length negative
    options = {"color": colour, "ecolor": colour, "elinewidth": 1.4, "capsize": 2.5, "markersize": 6, **options}
    if across:
        ax.errorbar(value, places, xerr=reach, fmt=marker, **options)
    else:
        ax.errorbar(places, value, yerr=reach, fmt=marker, **options)


def share_axis(ax: Axes) -> None:
    """Makes y a share from 0 to 100 %."""
    ax.set_ylim(-0.04, 1.04)
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")


def panels(count: int, height: float = 3.2, width: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A row of `count` panels, no wider than the page."""
    figure, axes = plt.subplots(1, count, figsize=(min(10.5, width * count), height), constrained_layout=True)
    return figure, list(np.atleast_1d(axes))
