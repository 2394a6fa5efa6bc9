"""Two heaps: the scores of one monitor on two models, one above the other, around one threshold."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.figures.drawing.layout import INK, legend_key, wrapped
from helpers.figures.drawing.theme import FLAGGED, HARMLESS

CLASSES: dict[int, dict[str, Any]] = {0: {"facecolor": to_rgba(HARMLESS, 0.55), "edgecolor": HARMLESS},
           1: {"edgecolor": FLAGGED, "hatch": "///", "fill": False}}  # fmt: skip
CALLED = {0: "harmless", 1: "to be flagged"}
BARS = 28  # for each class


def two_heaps(
    scores: Sequence[np.ndarray], labels: np.ndarray, threshold: float, names: Sequence[str], said: Sequence[str]
) -> Figure:
    """The scores on both models as shares of their class, the threshold, and what is said of each beside it.

    Scores beyond 0.5 % at either end are counted in the outermost bar.
    """
    bins = _bins(np.concatenate(scores), threshold)
    figure, axes = plt.subplots(2, 1, figsize=(8.6, 4.6), sharex=True, sharey=True, constrained_layout=True)
    for ax, values, name, words in zip(axes, scores, names, said, strict=True):
        for label, style in CLASSES.items():
            own = np.clip(values[labels == label], bins[0], bins[-1])
            shares = np.histogram(own, bins)[0] / max(own.size, 1)
            ax.stairs(shares, bins, **{"fill": True, "linewidth": 1, "label": CALLED[label]} | style)
        ax.axvline(threshold, color=INK, linewidth=1.6)
        ax.set_title(wrapped(name, 60))
        ax.text(1.02, 0.5, words, transform=ax.transAxes, va="center", linespacing=1.7)
        ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
    axes[1].set_xlabel("score of the monitor")
    figure.supylabel("share of the class", fontsize=10)
    keys = [*(Rectangle((0, 0), 1, 1, **style) for style in CLASSES.values()), legend_key(INK, "", "-")]
    counts = [int((labels == label).sum()) for label in CLASSES]
    called = (*(f"{CALLED[label]} (n = {count})" for label, count in zip(CLASSES, counts, strict=True)), "frozen threshold")
    figure.legend(keys, called, loc="outside lower center", ncols=3)
    return figure


def _bins(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Equal bins over the scores without the outermost 0.5 % at either end, and over the threshold."""
    ends = np.quantile(scores, [0.005, 0.995])
    low, high = min(ends[0], threshold), max(ends[1], threshold)
    room = 0.03 * (high - low) or 0.5  # all scores alike: still a range
    return np.linspace(low - room, high + room, BARS + 1)
