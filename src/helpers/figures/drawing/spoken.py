"""Monitors of the model's own replies, before and during it: a row a group of updates, a panel a measure."""

import pandas as pd
from matplotlib.figure import Figure

from helpers.figures.drawing.layout import INK, legend, legend_key, row_numbers, row_panels, sample_size, share_across, unmeasured
from helpers.figures.drawing.theme import PALETTE, bars
from helpers.staleness.verdicts import FLOOR, GROUPS
from helpers.stats.roc import RATES

PLACES = {"last": ("before the reply", PALETTE["qlora"], "D"), "mean": ("during the reply", PALETTE["aligned"], "o")}
PANELS = {"unfit": "monitors unfit\nat their threshold", "fpr_5": "answers that monitors\ncall refusals"}


def spoken(parts: dict[str, pd.DataFrame]) -> Figure:
    """The figure; parts: by name of a panel, one row a group of updates and pooling, with its interval and n."""
    measured = [name for name in GROUPS if any(name in set(part["group"]) for part in parts.values())]
    if not measured:
        return unmeasured("monitors of the model's own replies: it refuses or answers too few prompts")
    groups = pd.Series(["floor" if name == FLOOR else "updates" for name in measured], index=measured)
    figure, axes = row_panels(groups, len(PANELS), row=0.42, rest=2.2)
    for ax, (metric, words) in zip(axes, PANELS.items(), strict=True):
        for (pooling, (_, colour, marker)), offset in zip(PLACES.items(), (-0.14, 0.14), strict=True):
            part = parts[metric][parts[metric]["pooling"] == pooling]
            places = row_numbers(part, groups, "group") + offset
            bars(ax, places, part, colour, marker, across=True, markersize=5, elinewidth=1, capsize=0)
        share_across(ax)
        if metric == "fpr_5":
            ax.axvline(RATES["5"], color=INK, linewidth=1, linestyle="--")
        n = f"\n({sample_size(parts[metric])} {'cells' if metric == 'unfit' else 'answers a cell'})" if len(parts[metric]) else ""
        ax.set(title=words, xlabel=f"share{n}")
    keys = {words: legend_key(*style) for words, *style in PLACES.values()}
    legend(figure, keys | {"what thresholds promise: 5 %": legend_key(INK, "", "--")})
    return figure
