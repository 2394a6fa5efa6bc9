"""Monitor evidence: what one run's tables say on the claims about monitors, an estimate each; None where nothing was measured.

Shares of monitors have the place (layer and pooling) as their unit.
"""

import pandas as pd

from helpers.stats.intervals import Estimate, mean_interval, rate_interval
from helpers.study.selections import (
    VARIANT,
    Evidence,
    Tables,
    any_kind,
    estimates,
    formats_alone,
    home,
    is_lora,
    mean,
    minus,
    over_tasks,
    select,
    trained,
)  # fmt: skip
from helpers.updates.names import CONTROL, EVERY, place_names

# The prices free and forward take no label. A regression that foretells the drop itself, linear and without a random part; not
# the best of the predictors on the one run that was looked at, so that nothing was picked for its result.
PREDICTOR = "ridge, free+forward"
MONITOR = ["task", "probe", "layer"]


# ---------------------------------------------------------------- monitors: flags, drops, interaction (chapter 05)


def monitors(found: pd.DataFrame) -> pd.DataFrame:
    """The rows about single monitors, shuffled labels left out, with their `place` in their task as the unit."""
    own = found[(found["probe"] != "all") & ~found["probe"].str.startswith(CONTROL)]
    return own.assign(place=own["task"] + "/" + place_names(own))


def unfit(tables: Tables) -> pd.DataFrame:
    """Which monitors fail at their frozen threshold, one row a monitor and variant: catching less, or crying wolf.

    Monitors that cry wolf on the aligned model itself are left out: no update can break the promise that they did not keep.
    """
    found = monitors(select(tables, "staleness", metric=("stale_tpr_5", "stale_fpr_5"), restoration=""))
    flags = found.groupby([*VARIANT, *MONITOR, "place"], as_index=False, sort=False)["value"].max()
    start = flags[(flags["adapter"] == "") & (flags["precision"] == "bf16") & (flags["value"] == 0)]
    return flags.merge(start[MONITOR], on=MONITOR)


def lost(tables: Tables) -> pd.DataFrame:
    """Which monitors lost 0.05 AUROC or more, with a paired interval above 0: one row a monitor and variant."""
    return monitors(select(tables, "staleness", metric="stale_auroc_05", restoration=""))


def share(flags: pd.DataFrame) -> Estimate | None:
    """The share of flagged monitors; the variants of one place are one unit."""
    return rate_interval(flags["value"], flags["place"]) if len(flags) else None


def share_apart(first: pd.DataFrame, second: pd.DataFrame) -> Estimate | None:
    """The share of flagged monitors in the first variants minus that in the second, paired by monitor."""
    change = first.groupby([*MONITOR, "place"])["value"].mean() - second.groupby([*MONITOR, "place"])["value"].mean()
    change = change.dropna()
    return mean_interval(change, change.index.get_level_values("place"), bounds=(-1, 1)) if len(change) else None


def unfit_beyond_formats(tables: Tables) -> Estimate | None:
    """The share that fails at its threshold under updates of the LoRA family minus that in few bits alone."""
    flags = unfit(tables)
    return share_apart(trained(flags, is_lora), formats_alone(flags))


def mean_drops(tables: Tables) -> pd.DataFrame:
    """By task and variant, the mean AUROC drop of a task's monitors."""
    return select(tables, "staleness", metric="mean_auroc_drop", probe="all", restoration="")


def privacy_against(tables: Tables) -> dict[str, Estimate]:
    """By other task, the mean drop of the privacy monitors minus that of the other task's, under updates of the LoRA family."""
    drops = {task: mean(part) for task, part in trained(mean_drops(tables), is_lora).groupby("task")}
    own = drops.pop("privacy-pii", None)
    leads = {task: minus(own, other) for task, other in drops.items()}
    return {task: lead for task, lead in leads.items() if lead is not None}


def privacy_worst(tables: Tables) -> Estimate | None:
    """The smallest lead of privacy over another task; all leads are above 0 if the smallest low end is (Berger 1982)."""
    leads = list(privacy_against(tables).values())
    if len(leads) < 2:
        return None
    value, low, high = (min(getattr(e, end) for e in leads) for end in ("value", "low", "high"))
    return Estimate(value, low, high, min(e.n for e in leads))


def privacy_share(tables: Tables) -> Estimate | None:
    """The share of privacy monitors that fail at their threshold minus that of refusal-compliance monitors."""
    flags = trained(unfit(tables), is_lora)
    both = [share(flags[flags["task"] == task]) for task in ("privacy-pii", "refusal-compliance")]
    return minus(*both)


def interaction(tables: Tables) -> Estimate | None:
    """By how much the AUROC drop under QLoRA exceeds those under LoRA and NF4 apart, mean over all tasks and updates."""
    return mean(select(tables, "interaction", metric="interaction", task="all", precision="nf4"))


def threshold_interaction(tables: Tables) -> Estimate | None:
    """The loss of TPR under QLoRA minus that under LoRA and that under NF4 alone, mean over monitors and updates."""
    table, found = monitors(select(tables, "staleness", metric="tpr_loss_5", restoration="")), []
    alone = table[(table["adapter"] == "") & (table["precision"] == "nf4")]
    for adapter in trained(table, is_lora)["adapter"].unique():
        arms = [select({"staleness": table}, "staleness", **home(adapter, precision)) for precision in ("nf4", "bf16")]
        loss = [part.set_index([*MONITOR, "place"])["value"] for part in (*arms, alone)]
        found.append((loss[0] - loss[1] - loss[2]).dropna())
    both = pd.concat(found) if found else pd.Series(dtype=float)
    return mean_interval(both, both.index.get_level_values("place"), bounds=(-3, 3)) if len(both) else None


def sick(tables: Tables) -> pd.DataFrame:
    """The monitors that a fine-tune made stale by AUROC: key columns of variant and monitor.

    They are picked by the test texts that they are then judged on, which overstates what was lost: a refit seems to lack a
    little more than it does (against M7), and any repair to give back a little more (for M6).
    """
    flags = trained(lost(tables), any_kind)
    return flags.loc[flags["value"] == 1, [*VARIANT, *MONITOR]]


def refit_drop(tables: Tables) -> Estimate | None:
    """What a refit on the variant still lacks of the monitor's old AUROC, over the monitors that are stale by AUROC."""
    found = select(tables, "staleness", metric="refit_drop", restoration="")
    return over_tasks(found.merge(sick(tables), on=[*VARIANT, *MONITOR]))


def turned(tables: Tables) -> Estimate | None:
    """The angle from frozen to refitted direction beyond that of other training texts, over monitors stale by AUROC."""
    found = select(tables, "staleness", metric="direction_angle", restoration="").merge(sick(tables), on=[*VARIANT, *MONITOR])
    own = select(tables, "monitors", metric="resampled_angle").merge(found[MONITOR].drop_duplicates(), on=MONITOR)
    usual = dict(zip(own[MONITOR].itertuples(index=False, name=None), estimates(own), strict=True))
    angles = zip(found[MONITOR].itertuples(index=False, name=None), estimates(found), strict=True)
    return mean([minus(angle, usual.get(monitor)) for monitor, angle in angles])


# ---------------------------------------------------------------- triage and repair (chapters 06 and 10)


def forecast(metric: str, budget: float = 1.0) -> Evidence:
    """What the named predictor reached on families of updates that it had not seen; the interval is over updates.

    A run's table also holds the cells of lower seeds, so the scatter between seeds says less here than elsewhere.
    """
    return lambda tables: mean(select(tables, "triage", predictor=PREDICTOR, split="family", metric=metric, budget=budget))


def repaired(tables: Tables, method: str = "coral") -> Estimate | None:
    """The share of unfit monitors before minus after realignment, fine-tuned variants: what was mended less what was broken."""
    flags = trained(monitors(select(tables, "realignment", metric="stale_any", method=("none", method))), any_kind)
    return share_apart(*(flags[flags["method"] == name] for name in ("none", method)))


def realigned_gain(tables: Tables, method: str = "coral") -> Estimate | None:
    """The AUROC that realignment gives back to monitors that a fine-tune made stale by AUROC."""
    found = select(tables, "realignment", metric="auroc_gain", method=method, restoration="")
    return over_tasks(monitors(found).merge(sick(tables), on=[*VARIANT, *MONITOR]))


# ---------------------------------------------------------------- monitors under restorations (chapter 07)


def alarms_restored(tables: Tables) -> Estimate | None:
    """By how much SafeLoRA lowered the share of texts whose alarm differs from that on the aligned model."""
    return mean(select(tables, "projection", metric="alarms_restored", measured_on=EVERY, restoration="safelora"))


def auroc_restored(tables: Tables) -> Estimate | None:
    """The AUROC that SafeLoRA gave back to the monitors, mean over tasks."""
    return over_tasks(select(tables, "projection", metric="auroc_gain", restoration="safelora"), "measured_on")


def alarms_against_removal(tables: Tables) -> Estimate | None:
    """The share of texts whose alarm differs from the aligned model's: under SafeLoRA minus with the same modules removed."""
    told = select(tables, "projection", metric="alarms_changed", measured_on=EVERY, restoration=("safelora", "zero"))
    gaps = []
    for _, part in told.groupby([*VARIANT[:-1], "strength"], dropna=False):
        own, removed = (mean(part[part["restoration"] == name]) for name in ("safelora", "zero"))
        gaps.append(minus(own, removed))
    return mean(gaps)
