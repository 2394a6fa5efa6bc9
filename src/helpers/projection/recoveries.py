"""What restorations gave back, to the model and to its monitors, told on test items and as a reader sees it (chapter 07)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers import measurements, records, roc, sketches, staleness, tables, updates, variants
from helpers.projection import OWN, dose, keyed_rows
from helpers.sketches import EVERY, Seen
from helpers.staleness import Observed
from helpers.variants import Variant

ALPHA = 0.05
Restored = Mapping[Variant, Sequence[Variant]]  # an update as it was trained -> the same under restorations


def _seen(observed: Observed, in_use: Mapping[str, str], first: Variant | None, second: Variant) -> list[Seen]:
    """The monitors in use on two variants; without a first, on the model that they were frozen on."""
    found = []
    for task, reference in observed.references.items():
        j = [monitor.name for monitor in reference.monitors].index(in_use[task])
        before = reference.scores if first is None else observed.scores[first][task]
        found.append(Seen(reference.monitors[j], reference.test, before[j], observed.scores[second][task][j]))
    return found


def monitor_rows(observed: Observed, in_use: Mapping[str, str], changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: the monitors in use on every variant, against the model they were frozen on."""
    rows = [
        keyed_rows(
            variant, count, pd.DataFrame(sketches.health(_seen(observed, in_use, None, variant)), columns=sketches.COLUMNS)
        )
        for variant, count in changed.items()
    ]
    return pd.concat(rows, ignore_index=True)


def recovery(observed: Observed, in_use: Mapping[str, str], update: Variant, restored: Variant, changed: int) -> pd.DataFrame:
    """Rows of the table `projection`: what a restoration gave back to the frozen monitors, paired on the same test texts.

    `auroc_gain`: by task, the mean AUROC of its monitors after minus before the restoration. `alarms_restored`: over the
    monitors in use, by how much it lowered the share of texts on which an alarm differs from that on the aligned model.
    """
    rows = []
    for task, reference in observed.references.items():
        loss = staleness.mean_drop(reference, observed.scores[update][task], observed.scores[restored][task])
        rows.append((task, "auroc_gain", 0.0 - loss.value, -loss.high, -loss.low, loss.n))
    pair = [_seen(observed, in_use, None, variant) for variant in (update, restored)]
    alarmed = [(one, other) for one, other in zip(*pair, strict=True) if one.alarms() is not None]
    if alarmed:
        differs = [np.concatenate([np.not_equal(*one.alarms()) for one in side]) for side in zip(*alarmed, strict=True)]
        e = roc.rate_change(differs[1], differs[0], np.concatenate([one.units() for one, _ in alarmed]))
        rows.append((EVERY, "alarms_restored", e.value, e.low, e.high, e.n))
    kept = [row for row in rows if np.isfinite(row[2:5]).all()]
    return keyed_rows(restored, changed, pd.DataFrame(kept, columns=sketches.COLUMNS))


def full_rows(behaviour: pd.DataFrame, utility: pd.DataFrame, changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: behaviour (by the phrases judge, and the severity proxy) and utility of whole variants."""
    said = behaviour[(behaviour["judge"] == "phrases") | (behaviour["metric"] == "harmfulness")]
    parts = [said.rename(columns={"prompt_set": "measured_on"}), utility.rename(columns={"corpus": "measured_on"})]
    together = pd.concat([part[[*records.KEY, "measured_on", *records.VALUES]] for part in parts], ignore_index=True)
    codes, known = variants.variant_codes(together), variants.from_table(together)
    counts = [changed.get(variant, 0) for variant in known]
    own = together.assign(module="", layers_changed=[counts[code] for code in codes])
    return own[[*records.KEY, *OWN]].drop_duplicates([*records.KEY, *records.OWN["projection"], "metric"])


def recovered(observed: Observed, in_use: Mapping[str, str], restored: Restored, changed: Mapping[Variant, int]) -> pd.DataFrame:
    """`recovery` of every restored variant against its own update."""
    rows = [recovery(observed, in_use, home, other, changed[other]) for home, others in restored.items() for other in others]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*records.KEY, *OWN])


def paired(items: Mapping[Variant, pd.DataFrame], restored: Restored) -> pd.DataFrame:
    """Rows of the table `comparisons`: every restored variant against its update, and against the same modules removed."""
    rows = []
    for home, others in restored.items():
        removed = [other for other in others if other.restoration == "zero"]
        for reference in (home, *removed):
            compared = {v: items[v] for v in (reference, *others) if reference == home or v.strength == reference.strength}
            if len(compared) > 1:
                rows.append(measurements.comparison_rows(compared, reference))
    empty = pd.DataFrame(columns=[*records.KEY, *records.OWN["comparisons"], *records.VALUES])
    return pd.concat(rows, ignore_index=True) if rows else empty


# ---------------------------------------------------------------- as a reader sees it

COLUMNS_OF_TABLE_1 = {
    ("dialogue", "rouge1"): "ROUGE-1",
    ("advbench", "non_refusal"): "ASR (non-refusal)",
    ("advbench", "harmfulness"): "HS (proxy)",
    ("edgy", "over_refusal"): "over-refusal",
    (EVERY, "mean_auroc_drop"): "AUROC drop",
    (EVERY, "alarms_changed"): "alarms changed",
}
METHODS = {"safelora": "SafeLoRA", "splora": "SPLoRA", "salora": "SaLoRA", "zero": "same modules removed"}


def method(variant: Variant) -> str:
    """What a variant is called beside others of its weights: the literature's name where there is one."""
    if not variant.adapter:
        return "aligned, no update"
    if not variant.restoration:  # whatever the precision: the literature's table has a column for that
        named = updates.parse(f"{variant.adapter}@{variant.trained_on}")
        return "LoRA" if named.kind == "lora" else named.arm
    name = METHODS.get(variant.restoration, variant.restoration)
    return name if variant.strength is None else f"{name} ({dose(variant.restoration, variant.strength)})"


def _names(known: Sequence[Variant]) -> list[dict[str, str]]:
    """Weights and method of each variant, and its update where there is more than one."""
    several = len({variant.adapter for variant in known} - {""}) > 1
    told = [{"update": variant.adapter or "none"} if several else {} for variant in known]
    return [{"weights": v.precision, **update, "method": method(v)} for v, update in zip(known, told, strict=True)]


def table_one(table: pd.DataFrame) -> pd.DataFrame:
    """One row a variant: weights, method, and the measures of Le (2026, Table 1) beside ours, each with its interval."""
    wanted = table[[pair in COLUMNS_OF_TABLE_1 for pair in zip(table["measured_on"], table["metric"], strict=True)]]
    wanted = wanted[wanted["module"] == ""].reset_index(drop=True)
    cells, known, codes = tables.with_intervals(wanted), variants.from_table(wanted), variants.variant_codes(wanted)
    found = _names(known)
    for i, on, metric, cell in zip(codes, wanted["measured_on"], wanted["metric"], cells, strict=True):
        found[i][COLUMNS_OF_TABLE_1[on, metric]] = cell
    precisions = list(dict.fromkeys(v.precision for v in known))
    ordered = sorted(found, key=lambda row: precisions.index(row["weights"]))
    named = [name for name in ("weights", "update", "method") if any(name in row for row in found)]
    columns = [*named, *(c for c in COLUMNS_OF_TABLE_1.values() if any(c in row for row in found))]
    return pd.DataFrame(ordered, columns=columns)


def recovery_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a restored variant: AUROC given back by task, and alarms given back over all monitors in use."""
    rows = table[table["metric"].isin(["auroc_gain", "alarms_restored"])].reset_index(drop=True)
    cells, known, codes = tables.with_intervals(rows), variants.from_table(rows), variants.variant_codes(rows)
    found = _names(known)
    for i, on, metric, cell in zip(codes, rows["measured_on"], rows["metric"], cells, strict=True):
        found[i]["alarms restored" if metric == "alarms_restored" else f"auroc gain, {on}"] = cell
    return pd.DataFrame(found)


def against_zero(comparisons: pd.DataFrame, judge: str = "phrases") -> pd.DataFrame:
    """One row an update: refusal rates under SafeLoRA minus those with the same modules removed, paired."""
    rows = comparisons[(comparisons["restoration"] == "safelora") & comparisons["reference"].str.contains(" · zero ")]
    rows = rows[rows["judge"] == judge].assign(label=lambda t: t["adapter"] + " on " + t["precision"])
    if not len(rows):
        return pd.DataFrame({"variant": ["SafeLoRA and the same modules removed were not measured at one strength"]})
    return tables.wide(rows, ["prompt_set"])


def sentences(table: pd.DataFrame, choice: Mapping[tuple[str, str, str], float]) -> dict[str, str]:
    """The numbers that the chapter's prose names, about the first update; "not measured" where the profile leaves one out."""
    first = next(iter(choice), ("", ""))[:2]
    own = table[(table["adapter"] == first[0]) & (table["precision"] == first[1])]
    texts = dict.fromkeys(("safelora-strength", "safelora-kept", "splora-failed"), "(not measured)")
    kept = own[(own["restoration"] == "safelora") & (own["metric"] == "kept")]
    if len(kept):
        texts["safelora-kept"] = tables.Said(f"{100 * kept['value'].median():.3g} %", kept, "median")
    chosen, tried = choice.get((*first, "safelora")), own[(own["restoration"] == "safelora") & (own["metric"] == "non_refusal")]
    if chosen is not None:
        texts["safelora-strength"] = tables.Said(f"{100 * chosen:.3g} %", tried[tried["strength"] == chosen], "choice")
    p_values = own[(own["restoration"] == "splora") & (own["metric"] == "p")]
    if len(p_values):
        failed = f"{int((p_values['value'] < ALPHA).sum())} of {len(p_values)}"
        texts["splora-failed"] = tables.Said(failed, p_values, "significant")
    asked = own[(own["metric"] == "non_refusal") & (own["measured_on"] == "advbench")]
    for name, restoration in (("update", ""), ("safelora", "safelora"), ("zero", "zero")):
        rows = asked[asked["restoration"] == restoration]
        texts[f"{name}-nonrefusal"] = tables.of_row(rows)
    return texts
