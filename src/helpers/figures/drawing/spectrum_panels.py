"""Spectra of V: one line a kind of module, and the size of every module's V beside it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure


def on_log_axis(count: int, most: int = 90) -> np.ndarray:
    """Which of 1 to `count` a line over a logarithmic axis is drawn through: all the first ones, ever fewer of the later."""
    return np.unique(np.geomspace(1, max(count, 1), most).round().astype(int))


def _kind(module: str) -> str:
    return module.rsplit(".", 1)[-1].replace("_proj", "")


def spectrum_panels(spectra: Sequence) -> Figure:
    """The middle spectrum of each kind of module (median over its modules, index by index), and every module's relative size.

    A module that was not changed (V = 0) has no spectrum: it is counted beside the lines, and stands at 0 on the right.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 3.8), constrained_layout=True)
    kinds = list(dict.fromkeys(_kind(s.module) for s in spectra))
    looks = zip(sns.color_palette("colorblind", len(kinds)), "osD^vPX" * len(kinds), strict=False)
    colours = dict(zip(kinds, looks, strict=True))
    shifts = dict(zip(kinds, np.linspace(-0.8, 0.8, len(kinds)), strict=True))
    for kind, (colour, marker) in colours.items():
        own = [s for s in spectra if _kind(s.module) == kind]
        some = [np.asarray(s.values, float) / float(s.values[0]) for s in own if s.norm > 0]
        if some:
            count = min(map(len, some))
            at = on_log_axis(count)
            left.plot(at, np.median([values[:count] for values in some], axis=0)[at - 1], color=colour, linewidth=1.6, label=kind)
        layers = [int(next(part for part in s.module.split(".") if part.isdigit())) + shifts[kind] for s in own]
        right.plot(layers, [s.norm / s.base_norm for s in own], marker, color=colour, markersize=5, label=kind)
    left.set(xscale="log", yscale="log", xlabel=f"index of the singular value (n = {len(spectra)} modules)")
    left.set(ylabel="relative to the largest", ylim=(1e-3, 1.3), title="Spectrum of V, the middle module of a kind")
    same = sum(s.norm == 0 for s in spectra)
    if same:
        left.text(0.03, 0.05, f"V = 0 in {same} of {len(spectra)} modules", transform=left.transAxes)
    right.set_xlabel(f"layer (n = {len(spectra)} modules)")
    right.set(ylabel="size of V / size of W", title="How much alignment changed", ylim=(0, None))
    keys = [plt.Line2D([], [], color=colour, marker=marker) for colour, marker in colours.values()]
    right.legend(keys, kinds, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
