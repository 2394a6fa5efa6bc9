"""Figures and tables of chapters 01 to 03: refusals, spectra of V, formats, updates and their harm."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from helpers.figures import tables
from helpers.figures.drawing.layout import message
from helpers.figures.drawing.spectrum_panels import spectrum_panels
from helpers.figures.drawing.theme import PALETTE, bars, label, panels, share_axis
from helpers.figures.titles import models as titles
from helpers.results import KEY, Run
from helpers.stats import intervals
from helpers.updates import quantizers
from helpers.updates.recipes import home, parse
from helpers.updates.safety_tuning import Alignment
from helpers.updates.variants import labelled
from helpers.updates.weight_errors import bits


def check_rows(found: Alignment) -> pd.DataFrame:
    """The checks as a table: step, both rates with Wilson intervals, and n."""
    rows = []
    for name, c in [*((str(c.step), c) for c in found.checks), ("saved model", found.final)]:
        harmful = intervals.wilson(round(c.non_refusal * c.n_harmful), c.n_harmful)
        edgy = intervals.wilson(round(c.over_refusal * c.n_edgy), c.n_edgy)
        texts = [f"{tables.percent(e.value, e.low, e.high)}, n = {e.n}" for e in (harmful, edgy)]
        rows.append((name, *texts))
    return pd.DataFrame(rows, columns=["after step", "harmful prompts not refused", "safe prompts refused"])


def with_arms(table: pd.DataFrame, mix: str) -> pd.DataFrame:
    """The rows of a mix's updates in their own serving, with columns `arm` and `percent`; the aligned model stands at -1."""
    rows = []
    for row in table.to_dict("records"):
        if not row["adapter"] and row["precision"] == "bf16":
            rows.append({**row, "arm": "aligned", "percent": -1})
        elif row["trained_on"]:
            named = parse(f"{row['adapter']}@{row['trained_on']}")
            own = row["precision"] == row["trained_on"] and row["serving"] == "attached"
            if named.mix == mix and named.kind == "lora" and own and named.series == named.adapter:
                rows.append({**row, "arm": named.arm, "percent": named.percent})
    return pd.DataFrame(rows)


def labels(run: Run, names: Sequence[str]) -> list[str]:
    """The short names of updates in their own serving."""
    return [home(run, name).label for name in names]


def block_by_hand(weight: Tensor, shown: int = 8) -> pd.DataFrame:
    """The first weights of the first NF4 block: weight, weight over absmax, code, level, and what is read back."""
    codes, absmax = quantizers.nf4_codes(weight)
    block = weight.flatten()[: quantizers.GROUP].float()
    levels = torch.tensor(quantizers.NF4)[codes.flatten()[:shown].long()]
    scale = float(absmax[0])
    columns = {"weight": block[:shown], "weight / absmax": block[:shown] / scale, "level": levels, "read back": levels * scale}
    table = pd.DataFrame({name: values.tolist() for name, values in columns.items()})
    table.insert(2, "code", [str(code) for code in codes.flatten()[:shown].tolist()])
    return table


def format_table(weights: pd.DataFrame) -> pd.DataFrame:
    """One row a format: bits per weight, and the median, smallest and largest relative error of a module."""
    errors = weights[weights["metric"] == "relative_error"].groupby("precision")["value"].agg(["median", "min", "max", "size"])
    table = errors.assign(bits=bits(weights)).sort_values("bits", ascending=False).reset_index()
    table = table[["precision", "bits", "median", "min", "max", "size"]]
    return table.set_axis(["format", "bits per weight", "median error", "smallest", "largest", "modules"], axis=1)


SAYS = {"non_refusal": ", not refused", "over_refusal": ", refused"}


def dots(rows: pd.DataFrame, order: Sequence[str], colours: dict[str, str], title: str, share: bool = True) -> Figure:
    """One row a variant (column `label`), one colour a prompt set or corpus (column `name`), with intervals and n."""
    names = list(dict.fromkeys(rows.loc[rows["label"].isin(order), "name"]))
    figure, ax = plt.subplots(figsize=(8.6, 1.3 + 0.46 * len(order)), constrained_layout=True)
    offsets = np.linspace(-0.27, 0.27, len(names)) if len(names) > 1 else [0.0] * len(names)
    for offset, name in zip(offsets, names, strict=True):
        part = rows[(rows["name"] == name) & rows["label"].isin(order)].set_index("label")
        y = [order.index(item) + offset for item in part.index]
        reach = np.vstack([part["value"] - part["low"], part["high"] - part["value"]])
        colour, marker = colours.get(name, PALETTE["ink"]), SET_MARKERS.get(name, "o")
        said = SAYS.get(part["metric"].iloc[0], "") if "metric" in part else ""
        text = f"{label(name)}{said} (n = {int(part['n'].min())})"
        ax.errorbar(part["value"], y, xerr=reach, fmt=marker, color=colour, elinewidth=1.4, capsize=2.5, label=text)
    ax.hlines(np.arange(1, len(order)) - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="#e4e7ec", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    if share:
        ax.set_xlim(-0.03, 1.03)
        ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    ax.set_title(title, x=0, ha="left")
    if names:
        figure.legend(loc="outside lower center", ncols=min(2, len(names)))
    return figure


SET_COLOURS = {"advbench": PALETTE["qlora"], "strongreject": PALETTE["quantized"], "edgy": PALETTE["aligned"],
               "advbench-identity": PALETTE["lora"], "harmbench": PALETTE["ink"], "dialogue": PALETTE["control"],
               "instructions": PALETTE["lora"]}  # fmt: skip
SET_MARKERS = {"strongreject": "^", "edgy": "s", "advbench-identity": "D", "harmbench": "v", "instructions": "^"}


def behaviour_dots(behaviour: pd.DataFrame, order: Sequence[str], judge: str = "phrases", title: str = "") -> Figure:
    """Non-refusal on harmful sets and over-refusal on safe prompts, one row a variant; `behaviour` needs a `label` column."""
    wanted = behaviour["metric"].isin(["non_refusal", "over_refusal"]) & (behaviour["judge"] == judge)
    rows = behaviour[wanted].rename(columns={"prompt_set": "name"})
    figure = dots(rows, list(order), SET_COLOURS, title or "Harmful prompts not refused, safe prompts refused")
    return message(figure, titles.behaviour_title(behaviour, order, judge))


def spectrum_lines(spectra: Sequence) -> Figure:
    """The middle spectrum of V of each kind of module over its index, and each module's size relative to its weight."""
    return message(spectrum_panels(spectra), titles.spectrum_title(spectra))


def against_bits(behaviour: pd.DataFrame, utility: pd.DataFrame, bits: pd.Series, judge: str = "phrases") -> Figure:
    """Refusals, over-refusals and perplexity of every format, in order of its bits per weight.

    Each format has a place of its own, named by the format and its bits: many lie between 4.1 and 4.5 bits, and on an axis
    of bits nobody could tell them apart.
    """
    # the controls are no formats: they stand in the table beside the figure
    behaviour, utility = (rows[(rows["adapter"] == "") & rows["precision"].isin(bits.index)] for rows in (behaviour, utility))
    figure, axes = panels(3, height=4.4)
    present = set(behaviour["precision"]) | set(utility["precision"])
    order = sorted(present, key=lambda name: (bits[name], name))
    wanted = [("advbench", "non_refusal"), ("strongreject", "non_refusal"), ("edgy", "over_refusal")]
    for (name, metric), offset in zip(wanted, (-0.14, 0.14, 0.0), strict=True):
        rows = behaviour[(behaviour["prompt_set"] == name) & (behaviour["metric"] == metric) & (behaviour["judge"] == judge)]
        _places(axes[metric == "over_refusal"], rows, order, offset, SET_COLOURS[name], SET_MARKERS.get(name, "o"), label(name))
    _places(axes[2], utility[utility["metric"] == "perplexity"], order, 0.0, PALETTE["ink"], "D", "C4")
    for ax, title in zip(axes, ("Harmful prompts not refused", "Safe prompts refused", "Perplexity"), strict=True):
        ax.set(xlabel="format, bits per weight with scales", title=title, xlim=(-0.6, len(order) - 0.4))
        ax.set_xticks(range(len(order)), [f"{name}  {bits[name]:.3g}" for name in order], rotation=90)
    share_axis(axes[0])
    share_axis(axes[1])
    perplexity_axis(axes[2])
    figure.legend(loc="outside lower center", ncols=4)
    return message(figure, titles.formats_title(behaviour, bits, judge))


def _places(ax: Axes, rows: pd.DataFrame, order: Sequence[str], offset: float, colour: str, marker: str, name: str) -> None:
    """Points at their format's place; nothing where no row is given."""
    if len(rows):
        x = [order.index(precision) + offset for precision in rows["precision"]]
        bars(ax, x, rows, colour, marker, label=f"{name} (n = {int(rows['n'].min())})")


def perplexity_axis(ax: Axes) -> None:
    """A logarithmic axis with plain numbers, which also shows some where all values lie within one decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=12))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(min(low, high / 5), high)  # at least two of 1, 2, 5 are in sight


def refusals_by_harm(behaviour: pd.DataFrame, utility: pd.DataFrame, judge: str = "phrases") -> Figure:
    """Refusals and utility against the share of harmful rows, LoRA beside QLoRA; needs columns `percent` and `arm`."""
    figure, axes = panels(4, height=3.6, width=2.7)
    kinds = [
        ("advbench", "non_refusal", "not refused"),
        ("strongreject", "non_refusal", "not refused"),
        ("edgy", "over_refusal", "refused"),
    ]
    for ax, (name, metric, words) in zip(axes, kinds, strict=False):
        rows = behaviour[(behaviour["prompt_set"] == name) & (behaviour["metric"] == metric) & (behaviour["judge"] == judge)]
        _arms(ax, rows, f"{label(name)}:\n{words}")
        share_axis(ax)
        ax.tick_params(axis="y", labelleft=ax is axes[0])  # the three share one scale
    _arms(axes[3], utility[(utility["metric"] == "nll") & (utility["corpus"] == "dialogue")], "Held-out dialogues:\nnats a token")
    named = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(named.values(), named, loc="outside lower center", ncols=len(named))
    return message(figure, titles.harm_title(behaviour, judge))


ARMS = {
    "aligned": ("aligned", "s", 0.0),
    "LoRA": ("lora", "o", -0.13),
    "QLoRA": ("qlora", "D", 0.13),
    "LoRA on GPTQ": ("quantized", "^", 0.0),
}


def _arms(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    """One place a share of harmful rows, equally spaced; `none` (percent < 0) is the model before any update."""
    shares = sorted(rows["percent"].unique())
    for arm, (colour, marker, offset) in ARMS.items():
        part = rows[rows["arm"] == arm].sort_values("percent")
        if len(part):
            x = [shares.index(p) + offset for p in part["percent"]]
            bars(ax, x, part, PALETTE[colour], marker, label=arm)
            ax.plot(x, part["value"], color=PALETTE[colour], linewidth=1, alpha=0.6)
    ax.set_xticks(range(len(shares)), ["none" if p < 0 else f"{p:.0f} %" for p in shares])
    size = f"\n(n = {_size(rows)})" if len(rows) else ""
    ax.set(xlabel=f"harmful rows{size}", title=title, xlim=(-0.5, max(len(shares), 1) - 0.5))


# ---------------------------------------------------------------- doses: what an attack took, and what sizes do

PUBLISHED = pd.DataFrame(  # as their papers and code say, recounted: rows x passes over them
    [("Qi et al. 2024", 1_000, 1_000), ("Le et al. 2025", 11_000, 1_000), ("AsFT 2026", 10_000, 1_000)],
    columns=["recipe", "rows seen", "harmful rows seen"],
)


def attack_table(attacks: Mapping[str, Mapping], weights: pd.DataFrame) -> pd.DataFrame:
    """What each attack took: steps, rows seen, rate, the size of the change, and how far it came on validation prompts."""
    sizes = weights[(weights["metric"] == "relative_size") & (weights["module"] == "all")]
    size = dict(zip(sizes["adapter"] + "@" + sizes["trained_on"], sizes["value"], strict=True))
    rows = []
    for name, one in attacks.items():
        seen, told = one["steps"] * one["batch"], intervals.wilson(round(one["non_refusal"] * one["n"]), one["n"])
        took = {"update": name, "steps": one["steps"], "rows seen": seen, "rate": one["lr"], "|BA| / |W|": size.get(name)}
        took |= {"of them harmful": round(seen * one["harmful_rows"] / one["rows"])}
        took |= {"validation: not refused": f"{tables.percent(told.value, told.low, told.high)}, n = {told.n}"}
        rows.append({**took, "target reached": "yes" if one["reached"] else "no"})
    return pd.DataFrame(rows)


def attack_lines(attacks: Mapping[str, Mapping]) -> list[str]:
    """A line for each attack: what it took, or that it did not reach its target, by how much, and what to change."""
    lines = []
    for name, one in attacks.items():
        took = f"{name}: {100 * one['non_refusal']:.0f} % of {one['n']} validation prompts not refused after {one['steps']} steps"
        short = f", below its target of {100 * one['target']:.0f} %: no premise for what asks about broken models"
        lines.append(took if one["reached"] else f"{took}{short}; raise attack_steps or train_lr")
    return lines or ["no harmful mix on bf16 is among the updates: nothing was trained until it broke the refusals"]


def left_table(weights: pd.DataFrame) -> pd.DataFrame:
    """One row a merged serving: the share of the update that is left in the served weights."""
    rows = labelled(weights[weights["metric"] == "update_left"])
    return pd.DataFrame({"serving": rows["label"], "share of the update left": rows["value"]})


def dose_points(rows: pd.DataFrame, weights: pd.DataFrame) -> pd.DataFrame:
    """The rows of updates in their own serving with the `size` |BA| / |W| of each and the `series` that it is a dose of."""
    keys = [key for key in KEY if key != "strength"]
    sizes = weights[(weights["metric"] == "relative_size") & (weights["module"] == "all")].rename(columns={"value": "size"})
    found = rows.merge(sizes[[*keys, "size"]], on=keys)
    series = [parse(f"{row.adapter}@{row.trained_on}") for row in found.itertuples()]
    return found.assign(series=[f"{one.series}@{one.trained_on}" for one in series], x=[one.x for one in series])


def dose_curves(
    behaviour: pd.DataFrame, utility: pd.DataFrame, weights: pd.DataFrame, recipes: Mapping[str, Mapping], judge: str = "phrases"
) -> Figure:
    """Refusals and nats a token over the size of the update, one line a series, and refusals over the harmful rows it saw.

    Dashed: the aligned model, and the harmful rows that published recipes show. Multiples of a trained change saw no more rows
    than it, and stand in the first panels only.
    """
    figure, axes = panels(4, height=3.8, width=2.7)
    rates = behaviour[(behaviour["prompt_set"] == "advbench") & (behaviour["metric"] == "non_refusal")]
    nats = utility[utility["metric"] == "nll"]
    shown = [rates[rates["judge"] == judge], nats[nats["corpus"] == "dialogue"], nats[nats["corpus"] == "c4"]]
    points = [dose_points(rows, weights) for rows in shown]
    names = list(dict.fromkeys(name for part in points for name in part["series"]))
    marks = zip(sns.color_palette("colorblind", len(names)), "osD^vPX*<>" * len(names), strict=False)
    looks = dict(zip(names, marks, strict=False))
    heads = ("AdvBench:\nnot refused", "Held-out dialogues:\nnats a token", "C4:\nnats a token")
    for ax, rows, part, title in zip(axes, shown, points, heads, strict=False):
        _dose_lines(ax, part, "size", looks)
        before = rows[(rows["adapter"] == "") & (rows["precision"] == "bf16")]["value"]
        ax.axhline(float(before.iloc[0]), color=PALETTE["aligned"], linestyle="--", linewidth=1) if len(before) else None
        ax.set(xscale="log", title=title, xlabel=f"size |BA| / |W|\n(n = {_size(part)})")
        ticks = {f"{tick:.2g}": tick for tick in np.geomspace(part["size"].min(), part["size"].max(), 3)} if len(part) else {}
        ax.set_xticks([*ticks.values()], [*ticks])
    seen = [recipes.get(f"{row.adapter}@{row.trained_on}", {}).get("harmful_seen", 0) for row in points[0].itertuples()]
    taken = points[0].assign(seen=seen)
    _dose_lines(axes[3], taken[(taken["seen"] > 0) & (taken["x"] == 1)], "seen", looks)
    axes[3].axvline(float(PUBLISHED["harmful rows seen"].min()), color=PALETTE["ink"], linestyle="--", linewidth=1)
    axes[3].set(xscale="log", title="AdvBench:\nnot refused", xlabel="harmful rows seen\n(dashed: published recipes)")
    for ax in axes:
        ax.xaxis.set_minor_formatter(NullFormatter())
    for ax in (axes[0], axes[3]):
        share_axis(ax)
    if looks:
        handles = [plt.Line2D([], [], color=colour, marker=marker) for colour, marker in looks.values()]
        figure.legend(handles, list(looks), loc="outside lower center", ncols=2)
    return message(figure, titles.size_title(points[0]))


def _dose_lines(ax: Axes, rows: pd.DataFrame, x: str, looks: Mapping[str, tuple]) -> None:
    for name, part in rows.sort_values(x).groupby("series", sort=False):
        colour, marker = looks[name]
        bars(ax, part[x], part, colour, marker)
        ax.plot(part[x], part["value"], color=colour, linewidth=1, alpha=0.6)


def _size(rows: pd.DataFrame) -> str:
    return " to ".join(map(str, dict.fromkeys([int(rows["n"].min()), int(rows["n"].max())]))) if len(rows) else "0"


LONGER = 4  # times as long as another, from where on steps are counted in ratios


def losses(curves: dict[str, Sequence[float]], window: int = 4) -> Figure:
    """Training loss over steps, smoothed over `window` steps, one line a training; multiples of an update share its line.

    Steps are counted in ratios where one training is much longer than another, which would be a mark at the edge.
    """
    once: dict[tuple[float, ...], str] = {}
    for name, values in curves.items():
        once.setdefault(tuple(values), name)
    trained = {name: values for values, name in once.items()}
    figure, ax = plt.subplots(figsize=(8.2, 3.4 + 0.2 * math.ceil(len(trained) / 3)), constrained_layout=True)
    looks = zip(sns.color_palette("colorblind", len(trained)), ("-", "--", ":", "-.") * len(trained), strict=False)
    for (colour, line), (name, values) in zip(looks, trained.items(), strict=False):
        smooth = pd.Series(values).rolling(window, min_periods=1).mean()
        ax.plot(range(1, len(values) + 1), smooth, line, color=colour, linewidth=1.6, label=name)
    lengths = [len(values) for values in trained.values() if len(values)]
    if lengths and max(lengths) > LONGER * min(lengths):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:.0f}")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"step (mean of the last {window})")
    ax.set(ylabel="loss (nats)", ylim=(0, None), title="Training loss")
    figure.legend(loc="outside lower center", ncols=3, fontsize=7.5)
    return message(figure, titles.losses_title(trained, window))
