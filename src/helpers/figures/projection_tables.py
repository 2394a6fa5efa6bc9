"""What chapter 07 says of restorations: tables for people, sentences, and the names of the literature."""

from collections.abc import Mapping, Sequence

import pandas as pd

from helpers.figures import tables
from helpers.projection import restorations
from helpers.updates import recipes, variants
from helpers.updates.names import EVERY, Variant


def restoration_by_hand(table: pd.DataFrame) -> pd.DataFrame:
    """A restoration's own table of modules as a reader sees it: score, its null, and norms before and after."""
    short = table["module"].str.removeprefix("model.layers.").str.replace(".self_attn", "").str.replace(".mlp", "")
    return pd.DataFrame(
        {"module": short, "score s": table["score"], "a random update's": table["null"], "norm before": table["before"],
         "norm after": table["after"]}
    )  # fmt: skip


def strength_words(restoration: str, strength: float) -> str:
    """A strength in words: a share of the modules, but for a threshold, which is one on the score."""
    if restorations.parse(restoration).name == "safelora-threshold":
        return f"s up to {strength:g}"
    return f"{100 * strength:.0f} % of modules"


def choice_table(choice: Mapping[tuple[str, str, str], float]) -> pd.DataFrame:
    """The chosen strengths, one row an update, one column a restoration."""
    rows = [(f"{adapter} on {precision}", name, strength_words(name, s)) for (adapter, precision, name), s in choice.items()]
    table = pd.DataFrame(rows, columns=["update", "restoration", "strength"])
    wide = table.pivot(index="update", columns="restoration", values="strength")
    found = wide.loc[list(dict.fromkeys(table["update"])), list(dict.fromkeys(table["restoration"]))]
    return found.reset_index().rename_axis(columns=None)


ALPHA = 0.05


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
        named = recipes.parse(f"{variant.adapter}@{variant.trained_on}")
        return "LoRA" if named.kind == "lora" else named.arm
    name = METHODS.get(variant.restoration, variant.restoration)
    return name if variant.strength is None else f"{name} ({strength_words(variant.restoration, variant.strength)})"


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


def restoration_sentences(table: pd.DataFrame, choice: Mapping[tuple[str, str, str], float]) -> dict[str, str]:
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
