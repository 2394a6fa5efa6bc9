"""Monitors: what one run's tables say on the claims about monitors; None where nothing was measured.

Everything is split by pooling: monitors of the last token and of the mean lose different things. The unit is the place of a
task's monitors (pooling and layer), which are relatives; a place's value is the mean over its monitors, over the variants, and
over both test sets of a task where it has a second. Monitors that caught little before any update are left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from helpers.staleness.cohorts import POOLINGS, WEAK_BELOW, pooling_of
from helpers.stats.intervals import Estimate, rate_interval
from helpers.stats.over_seeds import MEASURES, SHARES
from helpers.study.paired_items import Items, average, gap, told
from helpers.study.selections import (
    FEWER,
    FORMATS,
    INTO_NF4,
    VARIANT,
    Evidence,
    Tables,
    Wanted,
    any_kind,
    estimates,
    formats_alone,
    home,
    is_lora,
    kept,
    mean,
    minus,
    over_cells,
    over_tasks,
    select,
    trained,
)  # fmt: skip
from helpers.updates.names import CONTROL, PREFERRED, SIMULATED, place_names

# The prices free and forward take no label. A regression that foretells the drop itself, linear and without a random part; not
# the best of the predictors on the one run that was looked at, so that nothing was picked for its result.
PREDICTOR = "ridge, free+forward"
MONITOR = ["task", "probe", "layer"]
ELSEWHERE = "_elsewhere"  # of a metric on a task's second test set
PRIVACY, REFUSAL = "privacy-pii", "refusal-compliance"
PLAIN, NOISE, TRUE = "logistic", "simulated-noise", "simulated-updates"  # kinds of probe that N5 compares
READ = ("stale_tpr_5", "stale_fpr_5", "stale_auroc_05", "auroc", "auroc_drop", "tpr_5", "tpr_loss_5")  # of `staleness`
Keep = Callable[[pd.DataFrame], pd.DataFrame]  # which variants


# ---------------------------------------------------------------- rows of single monitors


def monitors(found: pd.DataFrame) -> pd.DataFrame:
    """The rows about single monitors that are in use, with their `pooling` and their `place` in their task."""
    counted = [probe for probe in found["probe"].unique() if not probe.startswith((CONTROL, SIMULATED))]
    return _placed(found[(found["layer"] > 0) & found["probe"].isin(counted)])


def _placed(own: pd.DataFrame) -> pd.DataFrame:
    places = own[MONITOR].drop_duplicates()
    places = places.assign(place=places["task"] + "/" + place_names(places), pooling=places["probe"].map(pooling_of))
    return own.merge(places, on=MONITOR)


def without_weak(tables: Tables, found: pd.DataFrame) -> pd.DataFrame:
    """The rows about monitors that catch enough on the aligned model, as the table `monitors` has it."""
    start = select(tables, "monitors", metric="tpr_5", adapter="", precision="bf16")
    weak = start.loc[start["value"] < WEAK_BELOW, MONITOR]
    return found[~pd.MultiIndex.from_frame(found[MONITOR]).isin(pd.MultiIndex.from_frame(weak))]


@kept
def singles(tables: Tables) -> pd.DataFrame:
    """The rows of `staleness` about single monitors of a pooling, weak ones and restorations left out; `where`: the test set."""
    found = monitors(select(tables, "staleness", restoration="", metric=[f"{m}{away}" for m in READ for away in ("", ELSEWHERE)]))
    return _on_both(without_weak(tables, found[found["pooling"].isin(POOLINGS)]))


def _on_both(found: pd.DataFrame) -> pd.DataFrame:
    """The rows with the test set in `where`, and metrics without its suffix."""
    names = {name: name.removesuffix(ELSEWHERE) for name in found["metric"].unique()}
    metric = found["metric"].map(names).astype(str)
    return found.assign(where=np.where(found["metric"] == metric, "", ELSEWHERE), metric=metric)


@kept
def unfit(tables: Tables) -> pd.DataFrame:
    """Which monitors fail at their frozen threshold, one row a monitor, test set and variant: catching less, or crying wolf."""
    return _unfit(singles(tables))


def _unfit(rows: pd.DataFrame) -> pd.DataFrame:
    """Monitors that cry wolf on the aligned model itself are left out: no update can break a promise that they did not keep."""
    keys = [*VARIANT, *MONITOR, "place", "pooling", "where"]
    found = rows[rows["metric"].isin(["stale_tpr_5", "stale_fpr_5"])]
    flags = found.groupby(keys, as_index=False, sort=False)["value"].max()
    start = flags[(flags["adapter"] == "") & (flags["precision"] == "bf16") & (flags["value"] == 0)]
    return flags.merge(start[[*MONITOR, "where"]], on=[*MONITOR, "where"])


def lost(tables: Tables) -> pd.DataFrame:
    """Which monitors lost 0.05 AUROC or more, with a paired interval above 0: one row a monitor, test set and variant."""
    found = singles(tables)
    return found[found["metric"] == "stale_auroc_05"]


FLAGS = {"unfit": unfit, "lost": lost}

# ---------------------------------------------------------------- shares (M1, M2, M3)


def by_place(rows: pd.DataFrame, pooling: str) -> pd.Series | None:
    """The mean of the values of each place of a pooling, over monitors, test sets and variants."""
    own = rows[rows["pooling"] == pooling]
    return own.groupby("place")["value"].mean() if len(own) else None


def in_formats(rows: pd.DataFrame) -> pd.DataFrame:
    """The aligned model in 4 bits and more."""
    return formats_alone(rows, FORMATS)


def in_fewer(rows: pd.DataFrame) -> pd.DataFrame:
    """The aligned model in fewer than 4 bits."""
    return formats_alone(rows, FEWER)


def under_lora(rows: pd.DataFrame) -> pd.DataFrame:
    """Updates of the LoRA family, doses left out."""
    return trained(rows, is_lora)


def under_updates(rows: pd.DataFrame) -> pd.DataFrame:
    """All fine-tunes, doses left out."""
    return trained(rows, any_kind)


def flagged(flag: str, variants: Keep, pooling: str) -> Evidence:
    """The share of monitors with a flag, `unfit` or `lost`."""
    return lambda tables: told(by_place(variants(FLAGS[flag](tables)), pooling), SHARES)


def beyond_formats(pooling: str) -> Evidence:
    """The share unfit under updates of the LoRA family minus that in few bits alone, paired by place."""

    def found(tables: Tables) -> Items | None:
        flags = unfit(tables)
        return told(gap(by_place(under_lora(flags), pooling), by_place(in_formats(flags), pooling)), SHARES)

    return found


def unfit_share(tables: Tables, pooling: str, **where: Wanted) -> Estimate | None:
    """The share of a pooling's monitors that are unfit on the named variants; the variants of a place are one unit."""
    own = select({"staleness": unfit(tables)}, "staleness", **where)
    own = own[own["pooling"] == pooling]
    return rate_interval(own["value"], own["place"]) if len(own) else None


def mean_drop(variants: Keep, pooling: str) -> Evidence:
    """The mean AUROC drop of a pooling's monitors: over tasks, each of which counts once, and over both test sets."""

    def found(tables: Tables) -> Estimate | None:
        metrics = ("mean_auroc_drop", f"mean_auroc_drop{ELSEWHERE}")
        rows = variants(select(tables, "staleness", metric=metrics, probe=f"all-{pooling}", restoration=""))
        return over_tasks(rows.assign(text=rows["task"] + rows["metric"]), "text")

    return found


def apart(flag: str, pooling: str, other: str = REFUSAL) -> Evidence:
    """The share flagged of privacy's monitors minus that of another task's, under the LoRA family; the tasks share no monitor."""
    return lambda tables: lead(shares_by_task(tables, flag, pooling), other)


def shares_by_task(tables: Tables, flag: str, pooling: str) -> pd.Series:
    """The share flagged by task and place, under the LoRA family."""
    rows = under_lora(FLAGS[flag](tables))
    return rows[rows["pooling"] == pooling].groupby(["task", "place"])["value"].mean()


def lead(shares: pd.Series, other: str) -> Items | None:
    """Privacy's mean share minus another task's, of shares by task and place; None where either is missing."""
    own = shares[shares.index.get_level_values("task").isin([PRIVACY, other])]
    both = set(own.index.get_level_values("task")) == {PRIVACY, other}
    return Items(own, SHARES, (PRIVACY, other)) if both else None


def least_apart(flag: str, pooling: str) -> Evidence:
    """The same against the task that comes nearest to privacy."""

    def found(tables: Tables) -> Items | None:
        shares = shares_by_task(tables, flag, pooling)
        others = shares.groupby("task").mean().drop(PRIVACY, errors="ignore")
        return lead(shares, others.idxmax()) if len(others) > 1 else None

    return found


# ---------------------------------------------------------------- interaction and merging (M4, N3), updates alike (N6)


def values(tables: Tables, metric: str, pooling: str, **where: Wanted) -> pd.Series | None:
    """A metric of `staleness` by place, mean over monitors, test sets and the named variants."""
    rows = singles(tables)
    return by_place(select({"staleness": rows[rows["metric"] == metric]}, "staleness", **where), pooling)


def interaction(metric: str, pooling: str) -> Evidence:
    """A loss under QLoRA minus that under LoRA and that under NF4 alone, by place, mean over LoRA updates."""

    def found(tables: Tables) -> Items | None:
        rows = singles(tables)
        rows = rows[rows["metric"] == metric]
        alone = by_place(rows[(rows["adapter"] == "") & (rows["precision"] == "nf4")], pooling)
        parts = []
        for adapter in under_lora(rows)["adapter"].unique():
            arms = [select({"staleness": rows}, "staleness", **home(adapter, p)) for p in ("nf4", "bf16")]
            apart_from = gap(*(by_place(arm, pooling) for arm in arms))
            parts.append(None if apart_from is None else gap(apart_from, alone))
        return told(average(parts), MEASURES)

    return found


def both_poolings(evidence: Callable[[str], Evidence]) -> Evidence:
    """The same over the places of both poolings together."""

    def found(tables: Tables) -> Items | None:
        parts = [evidence(pooling)(tables) for pooling in POOLINGS]
        held = [part for part in parts if isinstance(part, Items)]
        return told(pd.concat([part.values for part in held]), held[0].kind) if held else None

    return found


def merged_against_format(metric: str, pooling: str) -> Evidence:
    """A metric under updates merged into NF4 minus that under NF4 alone, by place."""

    def found(tables: Tables) -> Items | None:
        rows = singles(tables)
        merged = under_lora(rows[(rows["metric"] == metric) & (rows["serving"] == INTO_NF4)])
        bare = values(tables, metric, pooling, adapter="", precision="nf4")
        return told(gap(by_place(merged, pooling), bare), MEASURES)

    return found


def preference_against_supervised(metric: str, pooling: str) -> Evidence:
    """A loss under preference tuning minus that under supervised tuning of the same rows' kind, by place; `unfit`: the share."""

    def found(tables: Tables) -> Items | None:
        rows = unfit(tables) if metric == "unfit" else singles(tables)
        rows = rows if metric == "unfit" else rows[rows["metric"] == metric]
        parts = []
        for adapter, other in PREFERRED.items():
            sides = [select({"staleness": rows}, "staleness", **home(name, "bf16")) for name in (adapter, other)]
            parts.append(gap(*(by_place(side, pooling) for side in sides)))
        return told(average(parts), SHARES if metric == "unfit" else MEASURES)

    return found


# ---------------------------------------------------------------- what a refit finds (M7), simulated updates (N5)


def refit_lacks(pooling: str) -> Evidence:
    """What a refit still lacks of a stale monitor's AUROC; cells were picked on one half of the texts, judged on the other.

    Cells weigh by their texts: one that both halves picked counts twice, without which the picking would bias the mean.
    """

    def found(tables: Tables) -> Estimate | None:
        rows = without_weak(tables, monitors(select(tables, "staleness", metric="refit_drop_split", restoration="")))
        return over_cells(under_updates(rows[rows["pooling"] == pooling]), weigh="n")

    return found


def turned(pooling: str) -> Evidence:
    """The angle from frozen to refitted direction beyond that of other training texts, over the same cells."""

    def found(tables: Tables) -> Estimate | None:
        rows = without_weak(tables, monitors(select(tables, "staleness", metric="direction_angle_split", restoration="")))
        rows = under_updates(rows[rows["pooling"] == pooling])
        usual = select(tables, "monitors", metric="resampled_angle")
        both = rows.merge(usual[[*MONITOR, "value", "low", "high", "n"]], on=MONITOR, suffixes=("", "_usual"))
        if both.empty:
            return None
        old = both[[f"{name}_usual" for name in ("value", "low", "high", "n")]].set_axis(["value", "low", "high", "n"], axis=1)
        gaps = [minus(*pair) for pair in zip(estimates(both), estimates(old), strict=True)]  # other training texts: independent
        ends = pd.DataFrame([vars(e) for e in gaps if e is not None])
        return over_cells(both[["task"]].join(ends))

    return found


@kept
def _simulated(tables: Tables) -> pd.DataFrame:
    """The rows of `staleness` under real updates about plain probes and those fitted with simulated updates, with `kind`."""
    kinds = (PLAIN, NOISE, TRUE)
    names = tuple(f"{kind}-{pooling}" for kind in kinds for pooling in POOLINGS)
    found = _placed(without_weak(tables, select(tables, "staleness", probe=names, restoration="")))
    return _on_both(found).assign(kind=found["probe"].str.rsplit("-", n=1).str[0])


def spared_by_simulation(against: str, pooling: str) -> Evidence:
    """The share unfit of `against` minus that of probes fitted with simulated updates, real updates, paired by place."""

    def found(tables: Tables) -> Items | None:
        rows = _simulated(tables)
        if TRUE not in set(rows["kind"]):
            return None
        flags = under_updates(_unfit(rows))
        kind = flags["probe"].str.rsplit("-", n=1).str[0]
        return told(gap(*(by_place(flags[kind == name], pooling) for name in (against, TRUE))), SHARES)

    return found


def ranked_by_simulation(pooling: str) -> Evidence:
    """The AUROC of probes fitted with simulated updates minus that of plain ones, real updates, paired by place."""

    def found(tables: Tables) -> Items | None:
        rows = _simulated(tables)
        rows = under_updates(rows[rows["metric"] == "auroc"])
        return told(gap(*(by_place(rows[rows["kind"] == name], pooling) for name in (TRUE, PLAIN))), MEASURES)

    return found


# ---------------------------------------------------------------- triage (M5)


def forecast(metric: str, budget: float = 1.0) -> Evidence:
    """What the named predictor reached on families of updates that it had not seen, formats below 4 bits left out.

    The interval is over updates. A run's table also holds the cells of lower seeds, so the scatter between seeds says less here.
    """
    where: dict[str, Any] = {"predictor": PREDICTOR, "split": "family-4bit", "metric": metric, "budget": budget}
    return lambda tables: mean(select(tables, "triage", **where))
