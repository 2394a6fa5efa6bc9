"""What the figures of the page Explore need, from the tables of one run: small plain values, ready for JSON.

A figure is a dict: its numbers, and under `default` the choice that it opens with. What the run cannot feed is
{"missing": a sentence that says what to run}.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from helpers import results
from helpers.book.claim_pages import older_rules
from helpers.cache import plain
from helpers.errors import StudyError
from helpers.figures.findings_tables import head_of
from helpers.figures.projection import shares_changed
from helpers.figures.projection_tables import METHODS
from helpers.figures.triage import SPLITS
from helpers.staleness import score_histograms
from helpers.staleness.verdicts import described
from helpers.staleness.verdicts import order as in_order
from helpers.stats.intervals import MARGINS
from helpers.study import findings
from helpers.study.claims import CLAIMS, SEEDS, UNITS
from helpers.study.findings import RunTables, run_tables

PLACE = ["task", "probe", "layer"]
SETS = {  # what a curve is drawn on: the first of these that was measured; the last is measured in full
    "non_refusal": ("advbench/validation", "advbench/test", "advbench"),
    "nll": ("dialogue/validation", "dialogue/test", "dialogue"),
}
Figure = dict[str, Any]


def data(root: Path, run_folder: Path, only: str = "") -> dict[str, Figure]:
    """What each figure needs, by its name, from that run and the findings of its profile; finite numbers, as they stand there."""
    tables = run_tables(Path(root) / run_folder)
    found: dict[str, Figure] = {}
    for name, (needs, chapter, make) in MAKERS.items():
        if only and name != only:
            continue
        lacking = [table for table in needs if table not in tables]
        made = None if lacking else make(tables)
        said = "" if made else _missing(lacking or list(needs), bool(lacking), chapter, tables)
        found[name] = plain(made, number=_finite) if made else {"missing": said}
    return found


def _missing(names: list[str], absent: bool, chapter: str, tables: RunTables) -> str:
    words = " and ".join(f"`{name}`" for name in names) or "`findings`"
    said = "which this run does not have" if absent or not names else "and this run holds too little there"
    return f"This figure needs the table{'s' if len(names) > 1 else ''} {words}, {said}. {_again(chapter, tables)}"


def _again(chapter: str, tables: RunTables) -> str:
    return f"Run chapter {chapter} again: make study PROFILE={tables.run.profile}."


def _finite(value: float) -> float | int:
    """The number, whole ones as integers, never rounded: pages print what tables print. One that is not finite is refused."""
    if not math.isfinite(value):
        raise StudyError(f"a number of the page Explore is {value}; leave out what could not be measured")
    return int(value) if float(value).is_integer() else float(value)


def _estimate(rows: pd.DataFrame) -> list | None:
    """value, low, high, n of the first row; None without one."""
    return [rows.iloc[0][name] for name in results.VALUES[1:]] if len(rows) else None


# ---------------------------------------------------------------- 1: a threshold over scores before and after an update


def threshold(tables: RunTables) -> Figure | None:
    """Bars of the monitors in use on every variant: counts of texts, and a threshold's intervals in whole per cent."""
    table = described(tables["histograms"].rename(columns={"label": "side"}))
    names, places, cuts = in_order(table), table[PLACE].drop_duplicates(), tables["monitors"]
    cuts = cuts[cuts["metric"] == f"threshold_{score_histograms.LEVEL}"].set_index(PLACE)["value"]
    elsewhere = _elsewhere(tables)
    monitors = [_monitor(rows, cuts[place], names, elsewhere) for place, rows in table.groupby(PLACE, sort=False)]
    if not (len(places) and names and "aligned" in set(table["label"])):
        return None
    families = dict(zip(table["label"], table["family"], strict=True))
    task, name = _case(table, tables["staleness"], cuts, elsewhere)
    chosen = list(places["task"]).index(task)
    default = {"monitor": chosen, "variant": names.index(name), "edge": monitors[chosen]["frozen"]}
    variants = [{"name": name, "family": families[name]} for name in names]
    return {"monitors": monitors, "variants": variants, "default": default}


def _monitor(rows: pd.DataFrame, cut: float, names: list[str], elsewhere: list[pd.Series]) -> Figure:
    edges = np.sort(rows["edge"].unique())
    task, probe, layer = rows.iloc[0][PLACE]
    return {
        "name": f"{task} ({probe}, layer {layer})",
        **{"cut": cut, "width": edges[1] - edges[0], "frozen": int(np.flatnonzero(edges == cut)[0])},
        "before": _bars(rows[rows["label"] == "aligned"]),
        "after": [_bars(rows[rows["label"] == name]) for name in names],
        "others": [[_per_cent(own[task, name]) for own in elsewhere if (task, name) in own.index] for name in names],
    }


def _per_cent(value: float) -> int:
    """A share in whole per cent, rounded as the tables round it."""
    return int(f"{100 * value:.0f}")


def _bars(rows: pd.DataFrame) -> Figure:
    """By class: texts in each bin, and low and high of the share above each edge, in whole per cent."""
    found = {}
    for side in score_histograms.SIDES:
        own = rows[rows["side"] == side].sort_values("edge")
        share, above = (own[own["metric"] == metric] for metric in ("share", "above"))
        ends = {end: [_per_cent(value) for value in above[end]] for end in ("low", "high")}
        found[side] = {"count": (share["value"] * share["n"]).round().astype(int), **ends}
    return found


def _alarms(table: pd.DataFrame, cuts: pd.Series) -> pd.Series:
    """The false alarms of each monitor at its frozen threshold, by place and label."""
    at = table[(table["edge"] == pd.MultiIndex.from_frame(table[PLACE]).map(cuts.to_dict())) & (table["metric"] == "above")]
    return at[at["side"] == "harmless"].set_index([*PLACE, "label"])["value"]


def _elsewhere(tables: RunTables) -> list[pd.Series]:
    """For each other seed of this model: the false alarms of the monitors in use at their own thresholds, by task and label."""
    found = []
    for folder in sorted(tables.run.folder.parent.glob("seed-*")):
        other = run_tables(folder) if folder != tables.run.folder else {}
        if "histograms" in other and "monitors" in other:
            cuts = other["monitors"][other["monitors"]["metric"] == f"threshold_{score_histograms.LEVEL}"]
            table = described(other["histograms"].rename(columns={"label": "side"}))
            found.append(_alarms(table, cuts.set_index(PLACE)["value"]).droplevel(["probe", "layer"]))
    return found


def _case(table: pd.DataFrame, staleness: pd.DataFrame, cuts: pd.Series, elsewhere: list[pd.Series]) -> tuple[str, str]:
    """Task and variant of the first view: most moved in false alarms among those whose ranking (AUROC) held.

    Where other seeds measured the same, the middle of all seeds counts: an outlier of one seed is no example.
    """
    alarms = _alarms(table, cuts)
    before = alarms.xs("aligned", level="label")
    moved = (alarms - before.reindex(alarms.index.droplevel("label")).to_numpy()).abs().drop("aligned", level="label")
    drops = described(staleness[staleness["metric"] == "auroc_drop"]).set_index([*PLACE, "label"])["value"]
    kept = moved[(drops.reindex(moved.index).abs() <= MARGINS["auroc"]).to_numpy()]
    shown = kept if len(kept) else moved
    middle = pd.concat([shown.droplevel(["probe", "layer"]), *map(_moved, elsewhere)], axis=1, join="inner").median(axis=1)
    task, name = middle.idxmax() if len(middle) else shown.droplevel(["probe", "layer"]).idxmax()
    return task, name


def _moved(alarms: pd.Series) -> pd.Series:
    """By task and label, how far false alarms moved from those on the aligned model."""
    before = alarms.xs("aligned", level="label")
    return (alarms - before.reindex(alarms.index.droplevel("label")).to_numpy()).abs().drop("aligned", level="label")


# ---------------------------------------------------------------- 2: modules projected, against safety and utility


def projection(tables: RunTables) -> Figure | None:
    """Curves of every update under every restoration: not refused and nats a token over the share of modules changed."""
    table = tables["projection"]
    whole = table[(table["module"] == "") & table["metric"].isin(SETS)]
    total = int(whole["layers_changed"].max())
    whole = whole.assign(layers_changed=(total * shares_changed(whole, total)).round().astype(int))
    updates = [_update(rows, " on ".join(key), total) for key, rows in
               whole[whole["adapter"] != ""].groupby(["adapter", "precision"], sort=False)]  # fmt: skip
    updates = [update for update in updates if update["restorations"]]
    if not updates:
        return None
    aligned = whole[(whole["adapter"] == "") & (whole["precision"] == "bf16")]
    default = {"update": 0, "restoration": 0, "point": len(updates[0]["restorations"][0]["points"]) - 1}
    lines = {metric: _estimate(aligned[(aligned["metric"] == metric) & (aligned["measured_on"] == sets[-1])])
             for metric, sets in SETS.items()}  # fmt: skip
    return {"modules": total, "aligned": lines, "updates": updates, "default": default}


def _update(rows: pd.DataFrame, name: str, total: int) -> Figure:
    drawn = rows[rows["strength"].notna()]
    found = [_curve(own, rows[rows["restoration"] == ""], restoration, total) for restoration, own in
             drawn.groupby("restoration", sort=False)]  # fmt: skip
    return {"name": name, "restorations": sorted((curve for curve in found if curve), key=lambda curve: _known(curve["name"]))}


def _known(name: str) -> int:
    """The literature's restorations first."""
    known = list(METHODS.values())
    return known.index(name) if name in known else len(known)


def _curve(rows: pd.DataFrame, start: pd.DataFrame, restoration: str, total: int) -> Figure | None:
    """Points by number of modules changed, from the update as it was trained; each with the full measurement where it has one."""
    name, _, source = restoration.partition(":")
    on = {metric: next((s for s in sets if s in set(rows.loc[rows["metric"] == metric, "measured_on"])), "")
          for metric, sets in SETS.items()}  # fmt: skip
    points = []
    for changed, own in pd.concat([start, rows]).groupby("layers_changed"):
        at = {metric: _estimate(own[(own["metric"] == metric) & (own["measured_on"] == on[metric])]) for metric in SETS}
        full = {metric: _estimate(own[(own["metric"] == metric) & (own["measured_on"] == SETS[metric][-1])]) for metric in SETS}
        if all(at.values()):
            points.append({"changed": changed, "share": changed / total, **at, "full": full if all(full.values()) else None})
    words = METHODS.get(name, name) + (f", V from {source}" if source else "")
    few = on["non_refusal"].endswith("/validation")
    return {"name": words, "on": f"{'validation' if few else 'test'} prompts", "points": points} if len(points) > 1 else None


# ---------------------------------------------------------------- 3: the noise edge against singular values


def subspace(tables: RunTables) -> Figure | None:
    """Modules: singular values of V in bands, and of every source its noise edge and what it finds of V's leading k."""
    table = tables["subspaces"]
    found = table[(table["metric"] == "overlap") & (table["module"] != "all")]
    sources, ks = list(dict.fromkeys(found["source"])), sorted(found["k"].unique(), key=int)
    modules = [_module(table[table["module"] == name], name, sources, ks) for name in dict.fromkeys(found["module"])]
    modules = [module for module in modules if module]
    if not modules:
        return None
    whole = table[(table["module"] == "all") & (table["metric"] == "overlap")].set_index(["source", "k"])
    medians = [[_estimate(whole[whole.index == (source, k)]) for k in ks] for source in sources]
    first = next((i for i, name in enumerate(sources) if name == "nf4-both"), 0)
    default = {"module": len(modules) // 2, "source": first, "k": 0}
    return {"ks": list(map(int, ks)), "sources": sources, "modules": modules, "medians": medians, "default": default}


def _module(rows: pd.DataFrame, name: str, sources: list[str], ks: list[str]) -> Figure | None:
    value = rows.set_index(["source", "k", "metric"])["value"].to_dict()
    null = rows[rows["metric"] == "overlap_null"].drop_duplicates("k").set_index("k")
    keys = [*((source, "", "noise_edge") for source in sources), *((source, k, "overlap") for source in sources for k in ks)]
    if any(key not in value for key in keys) or not set(ks) <= set(null.index):
        return None
    first = ks[0]
    d_out = round(int(first) / null.loc[first, "value"])  # chance gives k / d_out
    size = min(d_out, round(rows["n"].iloc[0] / d_out))
    shares = {int(k): energy for (source, k, metric), energy in value.items() if (source, metric) == ("bf16", "energy")}
    own = [_source(value, source, ks) for source in sources]
    return {"name": name.removeprefix("model.layers."), "size": size, "sources": own,
            "bands": _bands(value[("bf16", "", "top_value")], value[("bf16", "", "norm")], shares, size),
            "chance": [[null.loc[k, end] for end in ("value", "low", "high")] for k in ks]}  # fmt: skip


def _bands(top: float, norm: float, shares: Mapping[int, float], size: int) -> list[list[float]]:
    """first and last index, and the root mean square of V's singular values between them: exact, from its energy."""
    found, last, known = [[1, 1, top]], 1, (top / norm) ** 2
    for k, energy in [*sorted(shares.items()), (size, 1.0)]:
        if last < k <= size:
            found.append([last + 1, k, norm * math.sqrt(max(energy - known, 0.0) / (k - last))])
            last, known = k, energy
    return found


def _source(value: Mapping, source: str, ks: list[str]) -> Figure:
    dose = source.partition(" x")[2]
    return {"edge": value[(source, "", "noise_edge")], "dose": float(dose or 1),
            "above": value.get((source, "", "above_edge"), 0),
            "overlap": [value[(source, k, "overlap")] for k in ks],
            "theory": [value.get((source, k, "excess_predicted")) for k in ks]}  # fmt: skip


# ---------------------------------------------------------------- 4: a budget of checks


def budget(tables: RunTables) -> Figure | None:
    """By split and order of checking: the share of stale cells found at each budget, with its interval."""
    rows = tables["triage"][tables["triage"]["metric"] == "recall"]
    splits = []
    for name, own in rows.groupby("split", sort=False):
        budgets = sorted(own["budget"].unique())
        drawn = own.sort_values("budget").groupby("predictor", sort=False)[["budget", "value", "low", "high"]]
        curves = [
            {"name": order, "recall": part.iloc[:, 1:].to_numpy()} for order, part in drawn if list(part["budget"]) == budgets
        ]
        splits.append({"name": SPLITS.get(name, name).replace("\n", " "), "n": int(own["n"].max()), "budgets": budgets,
                       "orders": sorted(curves, key=lambda curve: (curve["name"] != "random", curve["name"]))})  # fmt: skip
    hardest = max(range(len(splits)), key=lambda i: (splits[i]["name"].startswith("neither"), -i), default=0)
    return {"splits": splits, "default": {"split": hardest, "budget": len(splits[hardest]["budgets"]) // 2}} if splits else None


# ---------------------------------------------------------------- 5: claims under another bound


def bound(tables: RunTables) -> Figure | None:
    """The headline of every claim that was measured, with its rule, and a scale on which its bound can be moved."""
    path = tables.run.folder.parents[1] / "findings.parquet"
    if older := older_rules(path.parent):
        return {"missing": f"These runs were judged by the rules of {older[0]}, which had other bounds. {_again('11', tables)}"}
    rows = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=findings.COLUMNS)
    rows = rows[(rows["seeds"] > 0) & rows["claim"].isin(list(CLAIMS))]
    claims = [_claim(row) for row in rows.to_dict("records")]
    undecided = [i for i, claim in enumerate(claims) if claim["verdict"] == findings.INCONCLUSIVE and claim["seeds"] >= SEEDS]
    default = {"claim": (undecided or [0])[0]}
    return {"least": SEEDS, "claims": claims, "default": {**default, "at": claims[default["claim"]]["at"]}} if claims else None


def _claim(row: Mapping) -> Figure:
    part = head_of(row["claim"], row["reason"])
    unit, step = UNITS[part.unit], UNITS[part.unit].step / 10
    within = part.side == "within"
    own, far = (part.margin, max(abs(row["low"] - part.bound), abs(row["high"] - part.bound))) if within else (part.bound, 0.0)
    ends = (0.0, max(far, own)) if within else (min(row["low"], own), max(row["high"], own))
    reach = (0.0, unit.bounds[1]) if within else unit.bounds
    low = max(math.floor((ends[0] - own) / step) - 5, math.ceil((reach[0] - own) / step - 1e-9))
    high = min(math.ceil((ends[1] - own) / step) + 5, math.floor((reach[1] - own) / step + 1e-9))
    return {
        **{name: row[name] for name in ("claim", "statement", "estimate", "low", "high", "n", "seeds", "verdict", "chapter")},
        **{"name": part.name, "unit": part.unit, "side": part.side, "bound": part.bound, "margin": part.margin},
        **{"step": step, "own": own},
        **{"least": low, "most": high, "at": 0},
        **{"words": unit.words, "scale": unit.scale, "digits": int(unit.form.strip("+.f")), "signed": unit.form[0] == "+"},
    }


# ---------------------------------------------------------------- 6: a visitor's own scores


def scores(tables: RunTables) -> Figure:
    """A small table to begin with, planted and not measured: a monitor that cries wolf after its update, and one that holds."""
    lines = ["monitor,id,before,after,label,threshold"]
    for name, shift in (("cries-wolf", 1.2), ("holds", 0.0)):
        for i in range(80):
            label = int(i % 2)
            before = ndtri((i // 2 + 0.5) / 40) + 2.4 * label
            lines.append(f"{name},{i},{before:.3f},{before + shift + 0.2 * math.sin(7 * i):.3f},{label},1.6")
    return {"example": "\n".join(lines), "default": {"monitor": 0}}


MAKERS: dict[str, tuple[tuple[str, ...], str, Callable[[RunTables], Figure | None]]] = {  # tables, chapter, maker
    "threshold": (("histograms", "monitors", "staleness"), "05", threshold),
    "projection": (("projection",), "07", projection),
    "subspace": (("subspaces",), "08", subspace),
    "budget": (("triage",), "06", budget),
    "bound": ((), "11", bound),
    "scores": ((), "05", scores),
}
