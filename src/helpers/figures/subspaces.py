"""Chapter 08's figures: V from every source, its directions, and what a restoration makes of it. A table in, a figure out."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from helpers.figures import tables
from helpers.figures.drawing.layout import (
    GREY,
    INK,
    STYLES,
    distinct,
    legend,
    legend_key,
    message,
    row_panels,
    sample_size,
    shade_rows,
    share_across,
    spread,
    unmeasured,
)
from helpers.figures.drawing.spectrum_panels import on_log_axis
from helpers.figures.drawing.theme import PALETTE, bars
from helpers.figures.projection import OUTCOMES, PAGE, SPARE, outcome_axis, outcomes, plain, reference
from helpers.figures.projection_tables import METHODS
from helpers.figures.titles import projection as titles
from helpers.figures.titles.parts import NOTHING
from helpers.projection import restorations
from helpers.projection.curves import EQUAL

FLOOR = 1e-4  # of the largest singular value: what lies below is rounding
DOSES = ("--", ":", "-.")  # lines of a V that was made larger
AS_TRAINED = "update as trained"


def _source_styles(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of each source: one colour a source, and for each dose of its V (`<source> x<dose>`) a line."""
    names = list(names)
    plain_names = list(dict.fromkeys(name.partition(" x")[0] for name in names))
    looks = dict(zip(plain_names, [*STYLES[:-1], *SPARE] * len(names), strict=False)) | {"bf16": (INK, "s")}
    doses = sorted({name.partition(" x")[2] for name in names} - {""}, key=float)
    lines = {"": "-"} | {dose: DOSES[i % len(DOSES)] for i, dose in enumerate(doses)}
    return {name: (*looks[name.partition(" x")[0]], lines[name.partition(" x")[2]]) for name in names}


# ---------------------------------------------------------------- singular values and directions


def spectra(values: Mapping[str, Tensor], module: str) -> Figure:
    """Singular values of one module's V over their index, one line a source; computed exactly, so without intervals.

    What is below 1e-4 of the largest of all is not drawn. A source whose V is 0 says so in the legend.
    """
    found = {name: np.asarray(of.detach().double()) for name, of in values.items()}
    largest = max((of.max(initial=0.0) for of in found.values()), default=0.0)
    if not largest:
        return unmeasured("a V that is not 0")
    figure, ax = plt.subplots(figsize=(8.6, 4.0), constrained_layout=True)
    for name, (colour, _, line) in _source_styles(found).items():
        shown = found[name][found[name] > FLOOR * largest]
        words = name if len(shown) else f"{name}: V = 0"
        at = on_log_axis(len(shown)) if len(shown) else np.empty(0, int)
        ax.plot(at, shown[at - 1], line, color=colour, linewidth=2.4 if name == "bf16" else 1.5, label=words)
    count = max(len(of) for of in found.values())
    ax.set(xscale="log", yscale="log", xlabel=f"index of the singular value (n = {count})", ylabel="singular value")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_title(f"Singular values of V, {module.removeprefix('model.')}")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), title="V from")
    return message(figure, titles.sources_title({name: float(np.sqrt((of**2).sum())) for name, of in found.items()}))


def overlaps(table: pd.DataFrame) -> Figure:
    """The share of the leading k directions of V that each source finds again, a row a source, for the smallest k.

    Medians over modules with their intervals. The grey band is what two random subspaces of that size share, the line its
    middle: medians over the same modules of chance's mean and of both ends of its 95 %. Larger k stand in the table of sources.
    """
    rows = table[(table["module"] == "all") & (table["metric"] == "overlap")]
    if rows.empty:
        return unmeasured("the overlap of subspaces")
    k = min(distinct(rows["k"]), key=int)
    rows = rows[rows["k"] == k]
    styles = _source_styles(distinct(rows["source"]))
    figure, ax = plt.subplots(figsize=(8.0, 1.7 + 0.34 * len(styles)), constrained_layout=True)
    chance = _chance(ax, table, k)
    for y, (name, (colour, marker, line)) in enumerate(styles.items()):
        face: dict[str, Any] = {} if line == "-" else {"markerfacecolor": "white"}
        bars(ax, np.array([y]), rows[rows["source"] == name], colour, marker, across=True, label=name, **face)
    shade_rows(ax, pd.Series("", index=list(styles)))
    ax.set_yticks(range(len(styles)), list(styles))
    share_across(ax)
    ax.set_xlabel(f"of the {k} leading directions of V, found again ({sample_size(rows)} modules)")
    legend(figure, {CHANCE: legend_key(GREY, "", "-", linewidth=4, alpha=0.6)})
    return message(figure, titles.overlap_title(rows, chance))


CHANCE = "random subspaces"


def _chance(ax: Axes, table: pd.DataFrame, k: str) -> float | None:
    """Draws where chance lies and returns it; one module counts once, whatever the number of sources."""
    null = table[(table["metric"] == "overlap_null") & (table["k"] == k)].drop_duplicates("module")
    if null.empty:
        return None
    middle = null[["value", "low", "high"]].median()
    ax.axvspan(middle["low"], middle["high"], color=GREY, alpha=0.35, linewidth=0, label=CHANCE)
    ax.axvline(middle["value"], color=GREY, linewidth=2, label=CHANCE)
    return float(middle["value"])


# ---------------------------------------------------------------- whether a restoration notices


def restored(table: pd.DataFrame) -> Figure:
    """Harmful prompts not refused under a restoration given V from each source: a row a source, a marker a share of modules.

    The smallest and the largest share that was asked for. Dashed: the aligned model; dotted: the update as it was trained.
    Updates stand one below the other. `table`: what `projection.curves` gives; its other outcomes stand in the table below.
    """
    whole = table[table["module"] == ""]
    found = outcomes(whole.assign(update=whole["adapter"] + " on " + whole["precision"]), PAGE)
    part = next(iter(found.values())) if found else whole[:0]
    asked = part[part["restoration"] != ""]
    if asked.empty:
        return unmeasured("a restoration with any V")
    metric = next(iter(found))
    strengths = sorted({asked["strength"].min(), asked["strength"].max()})
    part = part[part["strength"].isin(strengths) | (part["restoration"] == "")]
    blocks = list(product(distinct(asked["update"]), distinct(asked["restoration"])))
    words = _source_words(distinct(asked["restoration"]))
    rows = pd.Series([update for update, _ in blocks], index=[words[name] for _, name in blocks])
    looks: dict[float, tuple[str, str]] = dict(
        zip(strengths, ((PALETTE["quantized"], "o"), (PALETTE["aligned"], "D")), strict=False)
    )
    figure, (ax,) = row_panels(rows, 1, width=8.6, row=0.36, rest=2.4)
    reference(ax, plain(part), across=True)
    _without(ax, part[part["restoration"] == ""], rows)
    for (strength, look), offset in zip(looks.items(), spread(len(looks), 0.16), strict=True):
        own = part[part["strength"] == strength]
        y = np.array([blocks.index(place) for place in zip(own["update"], own["restoration"], strict=True)]) + offset
        bars(ax, y, own, look[0], look[1], across=True, markersize=5, elinewidth=1.1, capsize=0)
    outcome_axis(ax, metric, part, across=True)
    ax.set_xlabel(f"{OUTCOMES[metric][1].replace(chr(10), ' ')} ({sample_size(part)})")
    keys = {f"{100 * strength:g} % of modules": legend_key(*look) for strength, look in looks.items()}
    legend(figure, keys | {"aligned model": legend_key(INK, "", "--"), AS_TRAINED: legend_key(INK, "", ":")}, columns=2)
    return message(figure, titles.restored_title(part) if metric == "non_refusal" else NOTHING)


def _without(ax: Axes, updates: pd.DataFrame, rows: pd.Series) -> None:
    """Each update without a restoration: a dotted line, with its interval as a band, over the rows that belong to it."""
    for item in updates.itertuples():
        y = np.flatnonzero(rows == item.update)
        if len(y):
            ends = [y[0] - 0.5, y[-1] + 0.5]
            ax.fill_betweenx(ends, item.low, item.high, color=GREY, alpha=0.16, linewidth=0, label=AS_TRAINED)
            ax.vlines(item.value, *ends, color=INK, linewidth=1.2, linestyle=":", label=AS_TRAINED)


def _source_words(names: list[str]) -> dict[str, str]:
    """What a reader calls each restoration: with where its V comes from, where that differs."""
    several = {restorations.parse(name).name for name in names if ":" in name}
    words = {}
    for name in names:
        named = restorations.parse(name)
        plain_name = re.sub(r"-x[0-9.]+$", "", name.partition(":")[0])
        called = METHODS.get(plain_name, plain_name)
        size = f"{named.scale:g} " if named.scale != 1 else ""
        words[name] = f"{called}, {size}V from {named.source or 'bf16'}" if named.name in several or size else called
    return words


DOSE_COLUMNS = {
    "kept": "norm kept",
    "overlap": "overlap",
    "non_refusal": "not refused",
    "damage_left": "beyond the aligned model",
    "against_removed": "minus removed",
    "against_exact": "minus exact V",
    "gain_kept": "gain kept",
    "alarms_changed": "alarms changed",
}


def dose_table(table: pd.DataFrame, subspaces: pd.DataFrame, restoration: str) -> pd.DataFrame:
    """One row a V that the restoration was given and a strength, by the size of V: what is left of a module, and outcomes.

    `table`: rows of `projection.curves`; `subspaces`: overlaps of the sources, of which the fewest directions are told.
    """
    own = table[[_is_given(name, restoration) for name in table["restoration"]]]
    if own.empty:
        return pd.DataFrame({"V": ["the restoration was not drawn"]})
    overlaps = subspaces[(subspaces["module"] == "all") & (subspaces["metric"] == "overlap")]
    overlaps = overlaps[overlaps["k"] == str(min(map(int, overlaps["k"]), default=0))].set_index("source")
    rows = []
    for (adapter, precision, name), part in own.groupby(["adapter", "precision", "restoration"], sort=False):
        named, kept = restorations.parse(name), part[(part["metric"] == "kept")]["value"]
        where = {
            "update": f"{adapter} on {precision}",
            "V": f"x{named.scale:g}",
            "from": named.source or "bf16",
            "size": named.scale,
        }
        source = f"{named.source} x{named.scale:g}" if named.scale != 1 else named.source
        where["norm kept"] = f"{100 * kept.median():.3g} %" if len(kept) else ""
        if source in overlaps.index:
            where["overlap"] = tables.of_row(overlaps.loc[[source]])
        for strength, points in part.dropna(subset="strength").groupby("strength"):
            rows.append(where | {"strength": f"{100 * strength:g} % of modules"} | _outcome_cells(points))
    found = pd.DataFrame(rows).sort_values(["update", "size"], kind="stable")
    columns = ["update", "V", "from", "strength", *DOSE_COLUMNS.values()]
    several = found["update"].nunique() > 1
    return found[[c for c in columns if c in found and (c != "update" or several)]].reset_index(drop=True)


def _is_given(name: str, restoration: str) -> bool:
    named, asked = (restorations.parse(one) if one else None for one in (name, restoration))
    return named is not None and asked is not None and (named.name, named.k) == (asked.name, asked.k)


def _outcome_cells(points: pd.DataFrame) -> dict[str, str]:
    told = points[points["metric"].isin(DOSE_COLUMNS) & ~points["measured_on"].str.startswith((EQUAL, "strongreject"))]
    told = told.reset_index(drop=True)
    return {DOSE_COLUMNS[metric]: cell for metric, cell in zip(told["metric"], tables.with_intervals(told), strict=True)}


SHOWN = {
    "noise_to_signal": "noise over signal",
    "above_edge_energy": "energy above the edge",
    "cosine_excess": "C alike, beyond chance",
}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a source: noise, what stands above it, and overlaps by k, as medians over modules with their intervals."""
    rows = table[(table["module"] == "all") & (table["metric"].isin(SHOWN) | (table["metric"] == "overlap"))].reset_index(
        drop=True
    )
    found: dict[str, dict[str, str]] = {}
    for row, cell in zip(rows.to_dict("records"), tables.with_intervals(rows), strict=True):
        name = SHOWN.get(row["metric"], f"overlap, k = {row['k']}")
        found.setdefault(row["source"], {"source": row["source"]})[name] = cell
    return pd.DataFrame(list(found.values()))


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """One row a source: how alike its order of the modules is, and which share of the chosen ones is common, beside chance."""
    wanted = table["metric"].isin(["score_spearman", "jaccard", "jaccard_null"])
    rows = table[wanted].reset_index(drop=True)
    found: dict[str, dict[str, str]] = {}
    for row, cell in zip(rows.to_dict("records"), tables.with_intervals(rows), strict=True):
        share = f"{100 * float(row['k']):g} % chosen" if row["k"] else ""
        words = {
            "score_spearman": "rank correlation of s",
            "jaccard": f"in common, {share}",
            "jaccard_null": f"by chance, {share}",
        }
        found.setdefault(row["source"], {"source": row["source"]})[words[row["metric"]]] = cell
    return pd.DataFrame(list(found.values()))


def subspace_sentences(table: pd.DataFrame, source: str) -> dict[str, str]:
    """The numbers that the prose names, of one source: noise over signal, and the overlap at the smallest k beside chance."""
    rows = table[table["source"] == source]
    medians = rows[rows["module"] == "all"]
    k = str(min(map(int, medians.loc[medians["metric"] == "overlap", "k"]), default=0))

    def told(metric: str, part: pd.DataFrame) -> str:
        return tables.of_row(part[part["metric"] == metric])

    null, at = rows[(rows["metric"] == "overlap_null") & (rows["k"] == k)], medians[medians["k"] == k]
    return {
        "source": tables.Said(source, medians, "column source"),
        "source-noise": told("noise_to_signal", medians),
        "overlap-k": tables.Said(k, at, "column k"),
        "source-overlap": told("overlap", at),
        "null-overlap": tables.Said(f"{null['value'].median():.2g}", null, "median") if len(null) else "(not measured)",
    }
