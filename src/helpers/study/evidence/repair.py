"""Repair: what one run's tables say on monitors that are realigned, rethresholded, or under a restored model.

The unit is the place of a task's monitors (pooling and layer); chapter 10 looks at the layers in use. None where nothing was
measured.
"""

import pandas as pd

from helpers.stats.intervals import Estimate, rate_interval
from helpers.stats.over_seeds import MEASURES, SHARES
from helpers.study.evidence.behaviour import DAMAGE, damage
from helpers.study.evidence.monitors import MONITOR, by_place, monitors, under_updates, without_weak
from helpers.study.paired_items import Items, Premised, average, gap, premised, told
from helpers.study.selections import HARMFUL, VARIANT, Evidence, Tables, home, kept, mean, select
from helpers.updates.names import EVERY

METHODS = ("centre-scale", "coral", "procrustes", "procrustes (own corpus)", "low-rank", "threshold")  # without labels
GATED = "gated"  # what the gate chose of them, or none
UNFIT = "stale_any"
PRECISIONS = ("bf16", "nf4", "gptq-4")
STRENGTH = [*VARIANT[:-1], "strength"]


@kept
def realigned(tables: Tables) -> pd.DataFrame:
    """The rows of `realignment` about single monitors; those that caught too little on the aligned model are left out."""
    methods = ("none", GATED, *METHODS)
    found = select(tables, "realignment", metric=(UNFIT, "auroc", "auroc_drop", "tpr_5"), method=methods)
    return without_weak(tables, monitors(found))


@kept
def _parts(tables: Tables) -> dict[tuple[str, str], pd.DataFrame]:
    return {(str(metric), str(method)): part for (metric, method), part in realigned(tables).groupby(["metric", "method"])}


def _metric(tables: Tables, metric: str, method: str = "none") -> pd.DataFrame:
    found = _parts(tables)
    return found[metric, method] if (metric, method) in found else realigned(tables).iloc[:0]


# ---------------------------------------------------------------- realignment and thresholds (M6, N4)


def mended(method: str, pooling: str) -> Evidence:
    """The share of unfit monitors before minus after a method, fine-tunes: what was mended less what was broken, by place."""

    def found(tables: Tables) -> Items | None:
        sides = [under_updates(_metric(tables, UNFIT, name)) for name in ("none", method)]
        return told(gap(*(by_place(side, pooling) for side in sides)), SHARES)

    return found


def mended_anywhere(method: str) -> Evidence:
    """The same over both poolings."""

    def found(tables: Tables) -> Items | None:
        parts = [mended(method, pooling)(tables) for pooling in ("last", "mean")]
        held = [part.values for part in parts if isinstance(part, Items)]
        return told(pd.concat(held), SHARES) if held else None

    return found


def after_method(method: str, pooling: str, unfit: bool) -> Evidence:
    """Of monitors that were unfit (or fit) under a fine-tune, the share that is fit (or unfit) behind a method; by monitor."""

    def found(tables: Tables) -> Items | None:
        keys = [*VARIANT, *MONITOR, "pooling"]
        before, after = (under_updates(_metric(tables, UNFIT, name)) for name in ("none", method))
        both = before.merge(after[[*keys, "value"]], on=keys, suffixes=("", "_after"))
        own = both[(both["pooling"] == pooling) & (both["value"] == float(unfit))]
        names = own["task"] + "/" + own["probe"] + "/" + own["layer"].astype(str)
        return told((own["value_after"] != own["value"]).astype(float).groupby(names).mean(), SHARES)

    return found


def harmed_where_nothing_changed(method: str) -> Evidence:
    """Of the monitors that are fit on the aligned model as it was saved again, the share that a method makes unfit."""

    def found(tables: Tables) -> Estimate | None:
        before, after = (_metric(tables, UNFIT, name) for name in ("none", method))
        before = before[(before["adapter"] == "identity") & (before["value"] == 0)]
        both = before.merge(after[[*VARIANT, *MONITOR, "value"]], on=[*VARIANT, *MONITOR], suffixes=("", "_after"))
        return rate_interval(both["value_after"] > 0, both["place"]) if len(both) else None

    return found


# ---------------------------------------------------------------- monitors under restorations (N1, N2)


def _under(rows: pd.DataFrame, restoration: str, precision: str) -> pd.DataFrame:
    """The harmful update at home under a restoration, at strengths below 1, where something of the update is left."""
    own = select({"realignment": rows}, "realignment", **home(HARMFUL, precision) | {"restoration": restoration})
    return own[~(own["strength"] >= 1)]


def given_back(metric: str, pooling: str) -> Evidence:
    """A loss under the harmful update minus that under SafeLoRA, by place; the premise is the damage to refusals."""

    def found(tables: Tables) -> Premised | None:
        rows, parts = _metric(tables, metric), {}
        for p in PRECISIONS:
            hurt = damage(tables, p)
            sides = [select({"realignment": rows}, "realignment", **home(HARMFUL, p)), _under(rows, "safelora", p)]
            part = gap(*(by_place(side, pooling) for side in sides))
            if hurt is not None and part is not None:
                parts[p] = (hurt, part)
        held = {p: one for p, one in parts.items() if one[0] >= DAMAGE} or parts
        if not held:
            return None
        hurt = sum(one for one, _ in held.values()) / len(held)
        seen = told(average([part for _, part in held.values()]), SHARES if metric == UNFIT else MEASURES)
        return premised(seen, hurt, hurt >= DAMAGE)

    return found


def given_back_to_pooling(metric: str, pooling: str) -> Evidence:
    """What SafeLoRA gave back to all monitors of a pooling; the premise is the damage to refusals.

    `alarms_restored`: the share of texts whose alarm differs from that on the aligned model, before minus after.
    """

    def found(tables: Tables) -> Premised | None:
        rows = select(tables, "projection", metric=f"{metric}_{pooling}", measured_on=EVERY, restoration="safelora")
        rows, hurts = rows[~(rows["strength"] >= 1)], {p: damage(tables, p) for p in PRECISIONS}
        known = {p: hurt for p, hurt in hurts.items() if hurt is not None and p in set(rows["precision"])}
        held = {p: hurt for p, hurt in known.items() if hurt >= DAMAGE} or known
        hurt = sum(held.values()) / len(held) if held else None
        return premised(mean(rows[rows["precision"].isin(list(held))]), hurt, hurt is not None and hurt >= DAMAGE)

    return found


def against_removed(metric: str, pooling: str) -> Evidence:
    """A metric under SafeLoRA minus that with the same modules' updates removed, by place, at strengths below 1."""

    def found(tables: Tables) -> Items | None:
        rows, parts = _metric(tables, metric), []
        for p in PRECISIONS:
            own, removed = (_under(rows, name, p) for name in ("safelora", "zero"))
            for strength, part in own.groupby("strength"):
                parts.append(gap(by_place(part, pooling), by_place(removed[removed["strength"] == strength], pooling)))
        return told(average(parts), MEASURES)

    return found
