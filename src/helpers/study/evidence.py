"""Evidence: what the tables of one run say on each claim, as one estimate a component; None where the run did not measure it.

Means over variants rest on the same texts, means over tasks on different ones (`seeds.mean_of`). Differences that no
table holds paired come from two rates as if these were independent; they rest on the same texts, so that is rather wide.
Shares of monitors have the place (layer and pooling) as their unit. The judge of refusals is always the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from helpers import results
from helpers.stats.intervals import Estimate, mean_interval, mean_of, rate_interval, square_and_add
from helpers.updates.names import CONTROL, EVERY, UpdateName, Variant, place_names, taken_apart

Tables = Mapping[str, pd.DataFrame]
Evidence = Callable[[Tables], Estimate | None]
Wanted = str | float | Sequence[str]

FORMATS = ("nf4", "int8", "gptq-4")  # "quantization" in the claims
LOW_BASES = ("nf4", "gptq-4")  # the quantized bases that updates are trained on
HARMFUL, BENIGN, SHIFT = "lora-dialogue-harm10", "lora-dialogue", "lora-identity-shift"
# The prices free and forward take no label. A regression that foretells the drop itself, linear and without a random part; not
# the best of the predictors on the one run that was looked at, so that nothing was picked for its result.
PREDICTOR = "ridge, free+forward"
NEURONS = "set-difference"  # the score that separates safety from utility (Wei et al. 2024)
JUDGE = "phrases"
MONITOR = ["task", "probe", "layer"]
VARIANT = ["precision", "adapter", "trained_on", "serving", "restoration"]  # with strength, within one model and seed


# ---------------------------------------------------------------- rows of a run, and what they come to


def select(tables: Tables, name: str, **where: Wanted) -> pd.DataFrame:
    """The rows of a table whose columns hold what is asked (one value, or one of several); none where the table is missing."""
    if name not in tables:
        return pd.DataFrame(columns=[*results.KEY, *results.OWN[name], *results.VALUES])
    table = tables[name]
    for column, wanted in where.items():
        table = table[table[column].isin([wanted] if isinstance(wanted, str | float | int) else list(wanted))]
    return table


def estimates(found: pd.DataFrame) -> list[Estimate]:
    """The rows as estimates."""
    return [Estimate(*row) for row in found[["value", "low", "high", "n"]].itertuples(index=False, name=None)]


def mean(found: Sequence[Estimate | None] | pd.DataFrame, shared: bool = True) -> Estimate | None:
    """The mean of what was measured, None where nothing was; `shared` as in `seeds.mean_of`."""
    held = estimates(found) if isinstance(found, pd.DataFrame) else [e for e in found if e is not None]
    return mean_of(held, shared) if held else None


def over_tasks(found: pd.DataFrame, column: str = "task") -> Estimate | None:
    """The mean over tasks of the mean over variants."""
    return mean([mean(part) for _, part in found.groupby(column)], shared=False)


def minus(new: Estimate | None, old: Estimate | None) -> Estimate | None:
    """new - old, as if independent; None where either is missing."""
    return None if new is None or old is None else square_and_add(old, new, 0.0)


def trained(found: pd.DataFrame, keep: Callable[[UpdateName], bool]) -> pd.DataFrame:
    """The rows about updates, without restoration, whose name `keep` accepts; doses of other rank or steps are left out."""
    found = found[(found["trained_on"] != "") & (found["restoration"] == "")]
    names = found["adapter"] + "@" + found["trained_on"]
    updates = {name: taken_apart(name) for name in names.unique()}
    kept = [name for name, update in updates.items() if update.series == update.adapter and keep(update)]
    return found[names.isin(kept)]


def is_lora(named: UpdateName) -> bool:
    """Whether an update is a LoRA, whatever precision it was trained on."""
    return named.kind == "lora"


def any_kind(named: UpdateName) -> bool:
    """Every fine-tune."""
    return True


def formats_alone(found: pd.DataFrame) -> pd.DataFrame:
    """The rows about the aligned model in few bits."""
    return found[(found["adapter"] == "") & (found["restoration"] == "") & found["precision"].isin(FORMATS)]


def home(adapter: str, precision: str, **more: object) -> dict[str, object]:
    """The key columns of an update served as it was trained."""
    return {"adapter": adapter, "precision": precision, "trained_on": precision, "serving": "attached", "restoration": "", **more}


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
    return {task: minus(own, other) for task, other in drops.items()} if own else {}


def privacy_worst(tables: Tables) -> Estimate | None:
    """The smallest lead of privacy over another task; all leads are above 0 if the smallest low end is (Berger 1982)."""
    leads = list(privacy_against(tables).values())
    if len(leads) < 2:
        return None
    return Estimate(*(min(getattr(e, end) for e in leads) for end in ("value", "low", "high")), n=min(e.n for e in leads))


def privacy_share(tables: Tables) -> Estimate | None:
    """The share of privacy monitors that fail at their threshold minus that of refusal-compliance monitors."""
    flags = trained(unfit(tables), is_lora)
    both = [share(flags[flags["task"] == task]) for task in ("privacy-pii", "refusal-compliance")]
    return minus(*both)


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


# ---------------------------------------------------------------- refusals (chapters 02, 03, 07)


def change(**where: Wanted) -> Evidence:
    """The paired change in the share of harmful prompts not refused against the aligned model, mean over variants."""
    asked = {"reference": "aligned", "judge": JUDGE, "metric": "change_in_non_refusal", "prompt_set": "advbench"} | where
    return lambda tables: mean(select(tables, "comparisons", **asked))


def not_refused(tables: Tables, **where: Wanted) -> Estimate | None:
    """The share of harmful prompts not refused, mean over variants."""
    return mean(select(tables, "behaviour", judge=JUDGE, metric="non_refusal", prompt_set="advbench", **where))


def harm_beyond_benign(tables: Tables) -> Estimate | None:
    """The share not refused after the harmful mix minus that after as many benign rows."""
    return minus(*(not_refused(tables, **home(adapter, "bf16")) for adapter in (HARMFUL, BENIGN)))


def qat(tables: Tables) -> pd.DataFrame:
    """The rows of `behaviour` about quantization-aware training on benign rows, as the share not refused."""
    found = select(tables, "behaviour", judge=JUDGE, metric="non_refusal", prompt_set="advbench")
    return trained(found, lambda named: named.kind == "qat" and named.percent == 0)


def qat_change(tables: Tables) -> Estimate | None:
    """The paired change under quantization-aware training on benign rows."""
    arms = tuple(qat(tables)["adapter"].unique())
    return change(adapter=arms, restoration="")(tables)


def qat_beyond_formats(tables: Tables) -> Estimate | None:
    """The share not refused after quantization-aware training minus that in few bits without training."""
    plain = formats_alone(select(tables, "behaviour", judge=JUDGE, metric="non_refusal", prompt_set="advbench"))
    return minus(mean(qat(tables)), mean(plain))


def restored_change(restorations: Sequence[str], precisions: Sequence[str]) -> Evidence:
    """The paired change in the share not refused, from the harmful update to the same under a restoration."""
    homes = [Variant("", adapter=HARMFUL, precision=p, trained_on=p, serving="attached").label for p in precisions]
    return change(reference=homes, restoration=restorations, adapter=HARMFUL)


def beside(metric: str, place: str, restorations: Sequence[str], precisions: Sequence[str], aligned: bool) -> Evidence:
    """An outcome of the full protocol of chapter 07 under a restoration, minus the update's or the aligned model's.

    The aligned model is that of the same precision, which is all that a restoration of the adapter can bring back.
    """

    def found(tables: Tables) -> Estimate | None:
        told = select(tables, "projection", metric=metric, measured_on=place, module="")
        gaps = []
        for precision in precisions:
            plain = {"adapter": "", "precision": precision, "restoration": ""} if aligned else home(HARMFUL, precision)
            reference = mean(select({"projection": told}, "projection", **plain))
            here = home(HARMFUL, precision) | {"restoration": restorations}
            gaps += [minus(e, reference) for e in estimates(select({"projection": told}, "projection", **here))]
        return mean(gaps)

    return found


# ---------------------------------------------------------------- subspaces and neurons (chapters 08 and 09)


def subspace(metric: str, sources: Sequence[str] = ("nf4-both", "gptq-4-both"), k: str = "8") -> Evidence:
    """A median over modules of what V of dequantized weights keeps of V's k leading directions, mean over sources."""
    return lambda tables: mean(select(tables, "subspaces", module="all", k=k, metric=metric, source=sources))


def sources_alike(tables: Tables) -> Estimate | None:
    """The share not refused after SafeLoRA with V of dequantized weights minus that with V itself, at the same strengths."""
    told, gaps = select(tables, "projection", metric="non_refusal", measured_on="advbench/test", module=""), []
    exact = told[told["restoration"] == "safelora"]
    for source in ("safelora:nf4-both", "safelora:gptq-4-both"):
        pairs = told[told["restoration"] == source].merge(exact, on=[*VARIANT[:-1], "strength"], suffixes=("", "_exact"))
        with_exact = pairs[["value_exact", "low_exact", "high_exact", "n_exact"]].set_axis(["value", "low", "high", "n"], axis=1)
        gaps += [minus(e, other) for e, other in zip(estimates(pairs), estimates(with_exact), strict=True)]
    return mean(gaps)


def neurons(metric: str, serving: Wanted) -> Evidence:
    """An outcome with the named score's neurons minus that with as many random ones, mean over formats and shares."""

    def found(tables: Tables) -> Estimate | None:
        told = select(tables, "neurons", metric=metric, measured_on="advbench/test", serving=serving)
        own, random = (told[told["score"] == name] for name in (NEURONS, "random"))
        pairs = own.merge(random, on=["precision", "serving", "fraction"], suffixes=("", "_random"))
        others = pairs[["value_random", "low_random", "high_random", "n_random"]].set_axis(["value", "low", "high", "n"], axis=1)
        return mean([minus(e, other) for e, other in zip(estimates(pairs), estimates(others), strict=True)])

    return found


# ---------------------------------------------------------------- monitors under restorations (chapter 07)


def alarms_restored(tables: Tables) -> Estimate | None:
    """By how much SafeLoRA lowered the share of texts whose alarm differs from that on the aligned model."""
    return mean(select(tables, "projection", metric="alarms_restored", measured_on=EVERY, restoration="safelora"))


def auroc_restored(tables: Tables) -> Estimate | None:
    """The AUROC that SafeLoRA gave back to the monitors, mean over tasks."""
    return over_tasks(select(tables, "projection", metric="auroc_gain", restoration="safelora"), "measured_on")


def against_removal(tables: Tables) -> Estimate | None:
    """The share not refused under SafeLoRA minus that with the same modules' updates removed, paired."""
    found = select(
        tables, "comparisons", judge=JUDGE, metric="change_in_non_refusal", prompt_set="advbench", restoration="safelora"
    )
    keys = found[list(results.KEY)].to_dict("records")
    removed = [replace(Variant(**key), restoration="zero").label for key in keys]
    return mean(found[found["reference"] == pd.Series(removed, index=found.index, dtype=str)])


def alarms_against_removal(tables: Tables) -> Estimate | None:
    """The share of texts whose alarm differs from the aligned model's: under SafeLoRA minus with the same modules removed."""
    told = select(tables, "projection", metric="alarms_changed", measured_on=EVERY, restoration=("safelora", "zero"))
    gaps = []
    for _, part in told.groupby([*VARIANT[:-1], "strength"], dropna=False):
        own, removed = (mean(part[part["restoration"] == name]) for name in ("safelora", "zero"))
        gaps.append(minus(own, removed))
    return mean(gaps)


# ---------------------------------------------------------------- a first look, for readers who have read nothing yet

UPDATES: dict[str, dict[str, object]] = {  # in words a newcomer has: the key columns
    "as it was tested": {"adapter": "", "precision": "bf16", "restoration": ""},
    "in 4 bits": {"adapter": "", "precision": "nf4", "restoration": ""},
    "taught a harmless task": home(BENIGN, "bf16"),
    "the same, one row in ten harmful": home(HARMFUL, "bf16"),
    "taught a new identity": home(SHIFT, "bf16"),
}


def first_look(tables: Tables) -> dict[tuple[str, str], Estimate]:
    """By update in words and "refusals" or "monitors": the share of harmful prompts not refused, of monitors unfit."""
    flags, found = unfit(tables), {}
    for words, key in UPDATES.items():
        own = select({"flags": flags}, "flags", **key)
        found |= {(words, "refusals"): not_refused(tables, **key), (words, "monitors"): share(own)}
    return {where: e for where, e in found.items() if e is not None}
