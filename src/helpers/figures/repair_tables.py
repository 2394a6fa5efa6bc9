"""What the table `realignment` says to a reader: one case down the ladder, what each rung repaired and harmed, and the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from helpers.figures import tables
from helpers.monitors.repairs import GATED, LADDER, RUNGS
from helpers.staleness import cohorts
from helpers.staleness.policies import METHOD, POLICIES, SHARES
from helpers.stats.intervals import Estimate, mean_interval, rate_interval
from helpers.updates import recipes, variants
from helpers.updates.names import Variant
from helpers.updates.variants import from_table, variant_codes

ALL = "all"
OUTSIDE = {"control", "before alignment"}  # families that are no update of a deployed model
FLOORED = ("stale_any", "fpr_5", "tpr_5")  # what figures show beside what it is where nothing changed
NONE = "(not in this run)"
BY_HAND = {"tpr_5": "caught", "fpr_5": "false alarms", "alarms_changed": "alarms changed", "auroc": "AUROC",
           "cost_texts": "passes", "cost_labels": "labels"}  # fmt: skip
BALANCE = {"share_stale": "unfit", "share_repaired": "repaired, of the unfit", "share_harmed": "harmed, of the fit",
           "alarms_changed": "texts with another alarm"}  # fmt: skip


@dataclass(frozen=True)
class ShownCase:
    """One monitor on one variant, by the columns that name it."""

    task: str
    probe: str
    layer: int
    variant: Variant

    @property
    def words(self) -> str:
        """The case in words."""
        return f"{self.task} ({self.probe}, layer {self.layer}) on {self.variant.label}"


def on_updates(table: pd.DataFrame) -> pd.DataFrame:
    """The rows about real updates, with `label` and `family`; controls and the base model are left out, and are the `floor`."""
    families = [recipes.family(variant) for variant in from_table(table)]
    own = variants.labelled(table).assign(family=[families[i] for i in variant_codes(table)])
    found = own[~own["family"].isin(OUTSIDE)]
    found.attrs["floor"] = _floor(own[own["family"] == "control"])
    return found


def _floor(rows: pd.DataFrame) -> dict[str, float]:
    """By metric, the mean over frozen monitors where nothing changed; plain numbers, as attributes of a table must be."""
    if "method" not in rows:
        return {}
    own = rows[(rows["method"] == "none") & (rows["layer"] > 0) & rows["metric"].isin(FLOORED)]
    return {str(metric): float(value) for metric, value in own.groupby("metric")["value"].mean().items()}


def of_monitors(table: pd.DataFrame, in_use: Mapping[str, str], methods: Sequence[str]) -> pd.DataFrame:
    """The rows of the monitors in use, and of some methods."""
    names = table["task"] + "/" + table["probe"] + "/" + table["layer"].astype(str)
    return table[names.isin(list(in_use.values())) & table["method"].isin(methods)].reset_index(drop=True)


def worst(table: pd.DataFrame, in_use: Mapping[str, str]) -> ShownCase:
    """The monitor in use and update with the most test texts whose alarm changed."""
    rows = on_updates(of_monitors(table, in_use, ["none"]))
    alarmed = rows[rows["metric"] == "alarms_changed"]
    rows = alarmed if len(alarmed) else rows[rows["metric"] == "auroc_drop"]  # too few texts for any threshold
    row = rows.sort_values(["value", "task", "label"], ascending=[False, True, True]).head(1)
    task, probe, layer = row[["task", "probe", "layer"]].iloc[0]
    return ShownCase(task, probe, int(layer), from_table(row)[0])


def repair_by_hand(table: pd.DataFrame, case: ShownCase) -> pd.DataFrame:
    """One row a rung: rates at the threshold, alarms that changed, AUROC, and what the rung costs."""
    own = table[(table["task"] == case.task) & (table["probe"] == case.probe) & (table["layer"] == case.layer)]
    own = own[own["method"].isin(RUNGS) & own["metric"].isin(BY_HAND)].reset_index(drop=True)
    known = from_table(own)
    own = own[[known[code] == case.variant for code in variant_codes(own)]]
    cells = own.assign(cell=tables.with_intervals(own))
    priced = cells["metric"].str.startswith("cost_")
    cells.loc[priced, "cell"] = cells.loc[priced, "value"].astype(int).astype(str)
    wide = cells.pivot(index="method", columns="metric", values="cell")
    wide = wide.reindex(index=[name for name in RUNGS if name in wide.index], columns=[m for m in BY_HAND if m in wide])
    return wide.rename(columns=BY_HAND).reset_index().rename_axis(columns=None).rename(columns={"method": "rung"})


# ---------------------------------------------------------------- over all updates


def over_updates(table: pd.DataFrame, method: str, metric: str) -> Estimate:
    """The mean over updates of a share of all monitors, with its interval over updates; n counts updates."""
    values = _over_updates(table, method, metric)["value"]
    return mean_interval(values, bounds=(0.0, 1.0)) if len(values) > 1 else Estimate(np.nan, np.nan, np.nan, len(values))


def _over_updates(table: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    rows = on_updates(table[(table["task"] == ALL) & (table["probe"] == ALL)])
    return rows[(rows["method"] == method) & (rows["metric"] == metric)]


def _percent(e: Estimate) -> str:
    return tables.interval("recall", e.value, e.low, e.high) if np.isfinite(e.value) else "–"


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """One row a rung: the share of monitors left unfit, repaired and harmed, means over updates with their intervals."""
    methods = [name for name in RUNGS if (table["method"] == name).any()]
    rows = [{"rung": name, **{words: _percent(over_updates(table, name, metric)) for metric, words in BALANCE.items()}}
            for name in methods]  # fmt: skip
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- a new threshold, and probes that foresaw updates

KINDS = {"logistic": "plain", "simulated-updates": "fitted on simulated updates",
         "simulated-removed": "their directions taken out", "simulated-noise": "random moves (control)"}  # fmt: skip


def new_threshold(table: pd.DataFrame) -> pd.DataFrame:
    """One row a rung and kind of variant: monitors unfit, mended and harmed; on controls, where nothing changed, the floor."""
    rows = table[(table["task"] == ALL) & (table["probe"] == ALL)]
    real = on_updates(rows)
    families = np.array([recipes.family(variant) for variant in from_table(rows)] or [""])
    controls = rows[families[variant_codes(rows)] == "control"]
    found = []
    for words, part in (("real updates", real), ("controls: nothing changed", controls)):
        for method in ("none", "threshold", GATED, "procrustes (own corpus)"):
            own = part[part["method"] == method]
            cells = {name: _percent(_over(own[own["metric"] == metric])) for metric, name in BALANCE.items()}
            found += [{"variants": words, "rung": method, **cells}] if len(own) else []
    return pd.DataFrame(found)


def _over(rows: pd.DataFrame) -> Estimate:
    values = rows["value"]
    if len(values) == 1:  # one control: its own interval
        return Estimate(float(values.iloc[0]), float(rows["low"].iloc[0]), float(rows["high"].iloc[0]), 1)
    return mean_interval(values, bounds=(0.0, 1.0)) if len(values) else Estimate(np.nan, np.nan, np.nan, 0)


def foreseen(staleness: pd.DataFrame, seen: Sequence[str]) -> pd.DataFrame:
    """The rows on real updates of plain logistic probes and of those fitted with simulated ones, where both were fitted; columns
    kind, pooling and place. The precisions that the fitting has `seen` are left out where nothing was tuned, and so are restored
    variants."""
    rows = staleness[
        staleness["probe"].str.startswith(tuple(KINDS)) & (staleness["layer"] > 0) & (staleness["restoration"] == "")
    ]
    rows = rows.assign(kind=rows["probe"].str.rpartition("-")[0], pooling=rows["probe"].str.rpartition("-")[2])
    rows = rows.assign(place=rows["task"] + "/" + rows["pooling"] + "/" + rows["layer"].astype(str))
    there = rows.groupby("place")["kind"].transform("nunique") == rows["kind"].nunique()
    known = (rows["adapter"] == "") & rows["precision"].isin(seen)
    return rows[there & ~known] if rows["kind"].nunique() > 1 else rows.iloc[:0]


def survived(staleness: pd.DataFrame, seen: Sequence[str] = ()) -> pd.DataFrame:
    """One row a kind, pooling and metric, on real updates: the share unfit at its frozen threshold, and the mean AUROC."""
    rows = foreseen(staleness, seen)
    flags = cohorts.unfit(rows)
    found = []
    for metric, own in (("unfit", flags), ("auroc", rows[rows["metric"] == "auroc"])):
        own = on_updates(own) if len(own) else own
        for (kind, pooling), part in own.groupby(["kind", "pooling"], sort=False):
            spread = rate_interval if metric == "unfit" else partial(mean_interval, bounds=(0.0, 1.0))
            e = spread(part["value"], part["place"])
            found.append((kind, pooling, metric, e.value, e.low, e.high, e.n))
    order = {kind: i for i, kind in enumerate(KINDS)}
    table = pd.DataFrame(found, columns=["kind", "pooling", "metric", "value", "low", "high", "n"])
    table = table.sort_values(
        ["metric", "pooling", "kind"], key=lambda c: c.map(order) if c.name == "kind" else c, ignore_index=True
    )
    table.attrs["floor"] = _floor_of_plain(flags)
    return table


def _floor_of_plain(flags: pd.DataFrame) -> dict[str, float]:
    """By pooling, the share of plain probes that is unfit where nothing changed."""
    families = np.array([recipes.family(variant) for variant in from_table(flags)] or [""])
    own = flags[(families[variant_codes(flags)] == "control") & flags["kind"].eq("logistic")] if len(flags) else flags
    return {str(pooling): float(value) for pooling, value in own.groupby("pooling")["value"].mean().items()}


def survival(found: pd.DataFrame) -> pd.DataFrame:
    """`survived`, for people."""
    cells = found.assign(cell=[tables.interval("recall" if row.metric == "unfit" else "auroc", row.value, row.low, row.high)
                               for row in found.itertuples()])  # fmt: skip
    wide = cells.pivot(index=["pooling", "kind"], columns="metric", values="cell").reindex(columns=["unfit", "auroc"])
    n = found[found["metric"] == "unfit"].set_index(["pooling", "kind"])["n"]
    wide = wide.assign(cells=n).rename(columns={"auroc": "AUROC"}).reset_index().rename_axis(columns=None)
    return wide.assign(kind=wide["kind"].map(KINDS)).rename(columns={"kind": "probe"})


# ---------------------------------------------------------------- the gate

GATE = {
    "unfit_deployed": "passed as it is, and unfit",
    "unfit_accepted": "realigned, and unfit",
    "unfit_rejected": "rejected, and would be unfit realigned",
    "harmed_accepted": "realigned, fit before and unfit after",
    "harmed_rejected": "rejected, and would have been harmed",
    "auroc_unfit": "AUROC of low agreement for unfit",
}


def gate_table(quality: pd.DataFrame) -> pd.DataFrame:
    """One row a question about the gate, with its answer, interval and n."""
    named = quality[quality["metric"].isin(GATE)]
    kinds = named["metric"].where(named["metric"] == "auroc_unfit", "recall")
    cells = tables.with_intervals(named.assign(metric=kinds))
    return pd.DataFrame({"what the gate said, and what came": named["metric"].map(GATE), "share": cells, "n": named["n"]})


def repair_sentences(table: pd.DataFrame) -> dict[str, str]:
    """For the chapter's prose: the share of monitors left unfit behind each rung, and harmed by it, over all updates."""
    found = {}
    for name in LADDER:
        for word, metric in (("unfit", "share_stale"), ("harmed", "share_harmed")):
            e = over_updates(table, name, metric)
            rows = _over_updates(table, name, metric)
            found[f"{word}-{name}"] = tables.Said(_percent(e), rows, "mean") if np.isfinite(e.value) else NONE
    return found


SAID = {"missed": "left unfit", "found": "stale found", "repaired": "stale repaired", "harmed": "harmed", "refits": "refits",
        "labels_per_cell": "labels a monitor", "passes_per_cell": "passes a monitor",
        "missed_minus_random": "left unfit, against random"}  # fmt: skip


def _texts(table: pd.DataFrame) -> pd.Series:
    """The text of each number by policy and metric, which knows its row; what is exact has no interval."""
    own = table[table["method"].str.startswith(METHOD)]
    names = pd.MultiIndex.from_arrays([own["method"].str.removeprefix(METHOD), own["metric"]])
    texts = [tables.Said(_text(row), own.loc[[row.Index]]) for row in own.itertuples()]
    return pd.Series(texts, names, dtype=object)


def _text(row) -> str:
    kind = {"missed_minus_random": "change_in_missed"}.get(row.metric, "recall" if row.metric in SHARES else row.metric)
    text = tables.interval(kind, row.value, row.low, row.high)
    return text.partition(" [")[0] if row.low == row.high else text


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """One row a policy: what it leaves unfit, finds, repairs and harms, and what it costs, with intervals."""
    found = _texts(table).unstack().reindex(index=POLICIES, columns=SAID).dropna(how="all")
    return found.fillna("–").rename(columns=SAID).rename_axis("policy").reset_index().rename_axis(columns=None)


def policy_sentences(table: pd.DataFrame) -> dict[str, str]:
    """Texts for the chapter's prose: `policy-<name>-missed`, `-labels` and `-harmed` of every policy."""
    found = _texts(table)
    wanted = {"missed": "missed", "labels": "labels_per_cell", "harmed": "harmed"}
    return {f"policy-{name.replace(' %', '').replace(' ', '-')}-{word}": found.get((name, metric), "(not in this run)")
            for name in POLICIES for word, metric in wanted.items()}  # fmt: skip
