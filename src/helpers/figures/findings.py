"""Chapter 11's figures: every component of every claim on one scale, and the verdicts as a strip. A table in, a figure out."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from helpers.figures.drawing.layout import TEXT, message, unmeasured
from helpers.figures.drawing.theme import PALETTE, bars
from helpers.figures.findings_tables import asked, counted, said
from helpers.figures.titles import findings as titles
from helpers.study.claims import CLAIMS, UNITS
from helpers.study.findings import ALL, VERDICTS, claim_verdicts

INK, GREY, QUIET, SEED = PALETTE["ink"], PALETTE["base"], "#5b6472", "#98a2b3"
# Colour, marker and whether it is filled: in grey the shape still tells.
LOOKS = {"supported": ("#007a59", "o", True), "contradicted": ("#c44e00", "X", True), "mixed": ("#a8568a", "D", True),
         "inconclusive": (QUIET, "o", False), "not run": (GREY, "_", False)}  # fmt: skip
CLAIMED = "#e3f2ec"
TICKS = (1, 3, 10, 30, 100, 300, 1000)
STEP_WORDS = "a step is 5 percentage points, 0.03 AUROC, 0.1 of a correlation or overlap, 0.1 nats, 5°, or once the scale"
GROUPS = {"monitors": "M", "models": "SQ", "ours": "N"}  # claims by the letter they begin with


def towards(row: Mapping, value: float, low: float, high: float) -> tuple[float, float, float]:
    """Value and ends as steps from the bound, above 0 on the side that the claim wants.

    Where sameness is claimed, by how much the distance from the bound stays below the margin; it is never above the margin.
    """
    step = UNITS[row["unit"]].step
    v, a, b = (x - row["bound"] for x in (value, low, high))
    if row["side"] == "within":
        nearest = 0.0 if a <= 0 <= b else min(abs(a), abs(b))
        v, a, b = (row["margin"] - x for x in (abs(v), max(-a, b), nearest))
    elif row["side"] == "below":
        v, a, b = -v, -b, -a
    return v / step, a / step, b / step


# ---------------------------------------------------------------- all components


def forest(components: pd.DataFrame, dots: pd.DataFrame | None = None, group: str = "") -> Figure:
    """Every component with its interval over seeds and a grey dot a seed, as steps from its bound: right of the line, as claimed.

    `components` and `dots` are what `findings.judge` and `findings.by_seed` give; `group`: the claims about monitors, about
    models, or ours, unless all of them. What stands beside a claim is written in grey, and a seed that had nothing to show is a
    ring. Several models stand above one another; seeds and n beside a verdict are those of the headline, the first component.
    """
    components = components[components["claim"].str[0].isin(list(GROUPS.get(group, "MSQN")))]
    if not components["seeds"].any():
        return unmeasured("any of the claims")
    places, heads, names, height = _places(components)
    inches = 1.45 + 0.19 * height
    figure, ax = plt.subplots(figsize=(8.0, inches))
    figure.subplots_adjust(left=0.365, right=0.635, top=1 - 0.8 / inches, bottom=0.6 / inches)
    ax.axvspan(0, 1e9, color=CLAIMED, zorder=0, linewidth=0)
    ax.axvline(0, color=INK, linewidth=1.0, zorder=1)
    reach = 1.0
    for place, row in zip(places, components.to_dict("records"), strict=True):
        reach = max(reach, _row(ax, place, row, _own(dots, row)))
    _axis(ax, reach, height)
    _words(ax, components, places, names)
    _titles(ax, components, heads)
    _legend(figure, components, dots is not None)
    return message(figure, titles.verdicts_title(claim_verdicts(components).values(), group), top=1 - 0.08 / inches)


def _places(components: pd.DataFrame) -> tuple[list[float], dict[str, float], dict[float, str], float]:
    """Where each row stands, each claim's title, and the names of components; and how far down that reaches.

    A component takes one line, and where there are several models one more for each of them under its name.
    """
    places: list[float] = []
    heads: dict[str, float] = {}
    names: dict[float, str] = {}
    at = 0.0
    several = components["model"].nunique() > 1
    for (claim, _), rows in components.groupby(["claim", "component"], sort=False):
        if claim not in heads:
            at += 0.35 if heads else 0.0
            heads[claim] = at
            at += 1.0
        names[at] = rows["name"].iloc[0]
        at += several
        places += [at + i for i in range(len(rows))]
        at += len(rows)
    return places, heads, names, at


def _own(dots: pd.DataFrame | None, row: Mapping) -> pd.DataFrame:
    if dots is None:
        return pd.DataFrame(columns=["value"])
    return dots[(dots["claim"] == row["claim"]) & (dots["component"] == row["component"]) & (dots["model"] == row["model"])]


def _row(ax: Axes, place: float, row: Mapping, dots: pd.DataFrame) -> float:
    """Draws one component; how far it reaches from the bound."""
    if not row["seeds"]:
        return 0.0
    colour, marker, filled = LOOKS[row["answer"]]
    v, a, b = towards(row, row["estimate"], row["low"], row["high"])
    counts = dots["counts"].astype(bool) if "counts" in dots else pd.Series(True, index=dots.index)
    seeds, idle = ([towards(row, x, x, x)[0] for x in dots.loc[one, "value"]] for one in (counts, ~counts))
    name = f"{row['claim']}, {row['name']}"
    ax.plot(seeds, [place + 0.26] * len(seeds), "o", color=SEED, markersize=2.6, markeredgewidth=0, zorder=2,
            label=f"{name}, one seed")  # fmt: skip
    if idle:
        ax.plot(idle, [place + 0.26] * len(idle), "o", color=GREY, markersize=2.6, markerfacecolor="white", markeredgewidth=0.6,
                zorder=2, label=f"{name}, a seed without its premise")  # fmt: skip
    seeds = [*seeds, *idle]
    ax.errorbar([v], [place], xerr=[[max(v - a, 0.0)], [max(b - v, 0.0)]], fmt=marker, color=colour, elinewidth=1.6, markersize=5,
                markerfacecolor=colour if filled else "white", zorder=3, label=name)  # fmt: skip
    return max(abs(x) for x in (v, a, b, *seeds))


def _axis(ax: Axes, reach: float, height: float) -> None:
    """Even steps up to one, then ever wider: what is near the bound decides, what is far from it need not be told apart."""
    ax.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    shown = [tick for tick in TICKS if tick <= reach]
    shown = shown[::2] if len(shown) > 3 else shown
    ax.set_xticks([-t for t in shown[::-1]] + [0, *shown], [f"−{t}" for t in shown[::-1]] + ["0"] + [f"+{t}" for t in shown])
    ax.set_xlim(-1.25 * reach, 1.25 * reach)
    ax.set_ylim(height - 0.4, -0.9)
    ax.set_yticks([])
    ax.minorticks_off()
    ax.tick_params(axis="x", labelsize=7.4, length=2, pad=1)
    for side in ("left", "top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_xlabel(f"steps from the bound ({STEP_WORDS})", fontsize=7.2, x=0.5, labelpad=2)


def _write(ax: Axes, x: float, y: float, text: str, **options) -> None:
    """Text at a share of the page's width, in the row y."""
    across = blended_transform_factory(ax.figure.transFigure, ax.transData)
    look: dict[str, Any] = {"fontsize": 7.2, "color": INK}
    ax.text(x, y, text, transform=across, va="center", **look | options)


def _words(ax: Axes, components: pd.DataFrame, places: list[float], names: Mapping[float, str]) -> None:
    """The columns of text beside the strip: what is measured, ours, and what is claimed."""
    quiet = set(components.loc[components["beside"].astype(bool), "name"])
    for place, name in names.items():
        _write(ax, 0.045, place, name, color=QUIET if name in quiet else INK)
    for place, row in zip(places, components.to_dict("records"), strict=True):
        if place not in names:
            _write(ax, 0.075, place, row["model"], color=QUIET)
        _write(ax, 0.65, place, said(row["unit"], row["estimate"], row["low"], row["high"]))
        wanted = asked(row["unit"], row["side"], row["bound"], row["margin"], words=False)
        _write(ax, 0.995, place, wanted, ha="right", color=QUIET)
    _write(ax, 0.65, -0.9, "ours, with interval", color=QUIET)
    _write(ax, 0.995, -0.9, "claimed", color=QUIET, ha="right")
    ax.text(0.1, -0.9, "as claimed", va="center", fontsize=7.2, color=INK)


def _titles(ax: Axes, components: pd.DataFrame, heads: Mapping[str, float]) -> None:
    """Each claim's title, with its verdict in words, colour and shape, and what the headline rests on."""
    verdicts = claim_verdicts(components)
    sizes = components[components["component"] == 1].groupby("claim")[["seeds", "n"]].sum()
    for claim, place in heads.items():
        colour, marker, filled = LOOKS[verdicts[claim]]
        _write(ax, 0.0, place, claim, fontsize=8, weight="bold")
        _write(ax, 0.045, place, CLAIMS[claim].short, fontsize=8, weight="bold")
        _write(ax, 0.672, place, verdicts[claim], fontsize=8, weight="bold", color=colour)
        if sizes.loc[claim, "seeds"]:
            text = f"{counted(sizes.loc[claim, 'seeds'])}, n = {sizes.loc[claim, 'n']:,}"
            _write(ax, 0.995, place, text, ha="right", color=QUIET)
        across = blended_transform_factory(ax.figure.transFigure, ax.transData)
        ax.plot([0.658], [place], marker, color=colour, markerfacecolor=colour if filled else "white", markersize=5.5,
                transform=across, clip_on=False)  # fmt: skip


def _legend(figure: Figure, components: pd.DataFrame, dotted: bool) -> None:
    """What the shapes mean, those that occur."""
    shown = [name for name in LOOKS if name in set(components.loc[components["seeds"] > 0, "answer"])]
    keys = {name: _key(*LOOKS[name]) for name in shown}
    if dotted:
        keys["one seed"] = _key(SEED, "o", True, markersize=3)
    if keys:
        figure.legend(keys.values(), keys, loc="lower center", ncols=len(keys), fontsize=7.5, bbox_to_anchor=(0.5, 0.0),
                      handletextpad=0.2, borderaxespad=0.1)  # fmt: skip


def _key(colour: str, marker: str, filled: bool, markersize: float = 5.5) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=markersize,
                  markerfacecolor=colour if filled else "white")  # fmt: skip


# ---------------------------------------------------------------- verdicts


def headline(findings: pd.DataFrame) -> Figure:
    """The verdicts as a strip: a line a verdict that occurs, with its count and the claims that have it."""
    shown = [name for name in VERDICTS if name in set(findings["verdict"])]
    inches = 0.7 + 0.36 * len(shown)
    figure, ax = plt.subplots(figsize=(8.0, inches))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.5 / inches)
    for line, name in enumerate(shown):
        colour, marker, filled = LOOKS[name]
        claims = list(findings.loc[findings["verdict"] == name, "claim"])
        ax.add_line(Line2D([0.12], [line], marker=marker, color=colour, markersize=7,
                           markerfacecolor=colour if filled else "white"))  # fmt: skip
        ax.text(0.32, line, name, va="center", color=colour, weight="bold", fontsize=9)
        ax.text(2.3, line, f"{len(claims)}", va="center", ha="right", color=INK, fontsize=9)
        for place, claim in enumerate(claims):
            ax.text(2.7 + 0.44 * place, line, claim, va="center", ha="center", fontsize=8, color="white" if filled else colour,
                    weight="bold", bbox={"boxstyle": "round,pad=0.22", "facecolor": colour if filled else "white",
                                         "edgecolor": colour, "linewidth": 1.2})  # fmt: skip
    ax.set(xlim=(0, 2.5 + 0.44 * len(CLAIMS)), ylim=(len(shown) - 0.5, -0.5))
    ax.axis("off")
    return message(figure, titles.verdicts_title(findings["verdict"]), top=1 - 0.05 / inches)


# ---------------------------------------------------------------- a first look

ASKED = {"refusals": ("Harmful prompts not refused", "lora"), "last": ("Unfit monitors (last token)", "aligned"),
         "mean": ("Unfit monitors (mean)", "aligned")}  # fmt: skip


def first_look(rows: pd.DataFrame) -> Figure:
    """What updates do to refusals and to monitors of either pooling, a line an update: mean over seeds with its interval."""
    if rows.empty:
        return unmeasured("refusals or monitors")
    updates = list(dict.fromkeys(rows["update"]))
    figure, axes = plt.subplots(1, len(ASKED), figsize=(10.4, 1.5 + 0.42 * len(updates)), sharey=True, constrained_layout=True)
    for ax, (asked_for, (title, colour)) in zip(axes, ASKED.items(), strict=True):
        own = rows[rows["asked"] == asked_for]
        pooled, single = own[own["seed"] == ALL], own[own["seed"] != ALL]
        ax.plot(single["value"], [updates.index(name) + 0.26 for name in single["update"]], "o", color=SEED, markersize=3.5,
                label="one seed")  # fmt: skip
        bars(ax, [updates.index(name) for name in pooled["update"]], pooled, PALETTE[colour], across=True, label="mean")
        for row in pooled.itertuples():
            ax.text(1.03, updates.index(row.update), f"{100 * row.value:.0f} %", va="center", fontsize=TEXT, color=INK)
        if pooled.empty:
            ax.text(0.5, (len(updates) - 1) / 2, "not measured", ha="center", va="center", fontsize=TEXT, color=QUIET)
        counts = " to ".join(f"{n:,}" for n in sorted({pooled["n"].min(), pooled["n"].max()})) if len(pooled) else "0"
        ax.set(title=title, xlim=(-0.03, 1.03), ylim=(len(updates) - 0.5, -0.5), xlabel=f"share (n = {counts})")
        ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(updates)), updates)
    return message(figure, titles.first_look_title(rows[rows["seed"] == ALL]))
