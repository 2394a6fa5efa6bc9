"""What chapter 07 says of restorations: tables for people, sentences, and the names of the literature."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from helpers.figures import tables
from helpers.projection import restorations
from helpers.projection.curves import EQUAL, HARMFUL
from helpers.staleness.cohorts import POOLINGS
from helpers.stats.intervals import Estimate
from helpers.stats.over_seeds import over_seeds
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
    """A strength in words: a share of the modules, or of what every module loses; a threshold is one on the score."""
    named = restorations.parse(restoration).name
    if named == "safelora-threshold":
        return f"s up to {strength:g}"
    return f"{100 * strength:.0f} % {'taken off' if restorations.RESTORATIONS[named].whole else 'of modules'}"


def choice_table(choice: Mapping[tuple[str, str, str], float]) -> pd.DataFrame:
    """The chosen strengths, one row an update, one column a restoration."""
    rows = [(f"{adapter} on {precision}", name, strength_words(name, s)) for (adapter, precision, name), s in choice.items()]
    table = pd.DataFrame(rows, columns=["update", "restoration", "strength"])
    wide = table.pivot(index="update", columns="restoration", values="strength")
    found = wide.loc[list(dict.fromkeys(table["update"])), list(dict.fromkeys(table["restoration"]))]
    return found.reset_index().rename_axis(columns=None)


ALPHA = 0.05


COLUMNS_OF_TABLE_1 = {
    ("summaries", "rouge1"): "ROUGE-1",
    (HARMFUL, "non_refusal"): "ASR (non-refusal)",
    ("advbench", "harmfulness"): "HS (proxy)",
    ("edgy", "over_refusal"): "over-refusal",
    ("dialogue", "nll"): "nats a token",
    **{(EVERY, f"mean_auroc_drop_{pooling}"): f"AUROC drop, {pooling}" for pooling in POOLINGS},
    **{(EVERY, f"alarms_changed_{pooling}"): f"alarms changed, {pooling}" for pooling in POOLINGS},
}
OVER_SEEDS = {key: column for key, column in COLUMNS_OF_TABLE_1.items() if key[0] != EVERY}
SCALES: dict[str, tuple[float, float]] = {"harmfulness": (1.0, 5.0), "rouge1": (0.0, 100.0)}  # the ends of a measure's range
CARD = ("reliable", "fresh prompts", "beyond removal", "other update")  # the diagnostics of an acceptance card


METHODS = {"safelora": "SafeLoRA", "splora": "SPLoRA", "salora": "SaLoRA", "zero": "same modules removed",
           "safe-delta": "Safe Delta", "null-space": "null space", "random-modules": "random modules removed",
           "shrink": "whole update shrunk"}  # fmt: skip


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
    """One row a variant: weights, method, and the measures of Le (2026, Table 1) beside ours, each with its interval.

    Behind them the diagnostics of an acceptance card (Konrad, Tanyel and Ayvaz 2026), for restored variants.
    """
    wanted = table[[pair in COLUMNS_OF_TABLE_1 for pair in zip(table["measured_on"], table["metric"], strict=True)]]
    wanted = wanted[wanted["module"] == ""].reset_index(drop=True)
    cells, known, codes = tables.with_intervals(wanted), variants.from_table(wanted), variants.variant_codes(wanted)
    found = _names(known)
    for i, on, metric, cell in zip(codes, wanted["measured_on"], wanted["metric"], cells, strict=True):
        found[i][COLUMNS_OF_TABLE_1[on, metric]] = cell
    for variant, row in zip(known, found, strict=True):
        row |= _card(table, variant)
    precisions = list(dict.fromkeys(v.precision for v in known))
    ordered = sorted(found, key=lambda row: precisions.index(row["weights"]))
    columns = ("weights", "update", "method", *COLUMNS_OF_TABLE_1.values(), *CARD)
    return pd.DataFrame(ordered, columns=[c for c in columns if any(c in row for row in found)])


def table_one_over_seeds(found: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """The same over seeds, from the table `projection` of each: one row a method at the strengths that validation chose; the
    columns of the literature, and not those of monitors and of the card.

    Each measure is the mean over the seeds that have it, with an interval for other seeds and prompts (`over_seeds`); `n` counts
    the harmful prompts of all of them. A method is told in as many seeds as ran it.
    """
    seen: dict[tuple[str, str, str], dict[tuple[str, str], list[Estimate]]] = {}
    strengths: dict[tuple[str, str, str], set[float]] = {}
    for table in found.values():
        wanted = table[[pair in OVER_SEEDS for pair in zip(table["measured_on"], table["metric"], strict=True)]]
        wanted = wanted[wanted["module"] == ""].reset_index(drop=True)
        for row, variant in zip(wanted.to_dict("records"), _variants_of(wanted), strict=True):
            key = variant.precision, variant.adapter or "none", method(replace(variant, strength=None))
            estimate = Estimate(row["value"], row["low"], row["high"], int(row["n"]))
            seen.setdefault(key, {}).setdefault((row["measured_on"], row["metric"]), []).append(estimate)
            strengths.setdefault(key, set()).update([] if variant.strength is None else [variant.strength])
    order = list(dict.fromkeys(key[0] for key in seen))
    ordered = sorted(seen, key=lambda key: order.index(key[0]))
    made = pd.DataFrame([_over_seeds(key, seen[key], strengths[key]) for key in ordered])
    several = len({key[1] for key in seen} - {"none"}) > 1
    columns = ("weights", *["update"] * several, "method", "seeds", "n", "strength", *OVER_SEEDS.values())
    return made[[c for c in columns if c in made]].fillna("")


def _over_seeds(
    key: tuple[str, str, str], own: Mapping[tuple[str, str], Sequence[Estimate]], strengths: set[float]
) -> dict[str, Any]:
    asked = own.get((HARMFUL, "non_refusal"), [])
    row: dict[str, Any] = dict(zip(("weights", "update", "method"), key, strict=True))
    row |= {"seeds": len(asked), "n": sum(e.n for e in asked)}
    row["strength"] = ", ".join(f"{100 * strength:.0f} %" for strength in sorted(strengths))
    for (on, metric), column in OVER_SEEDS.items():
        if estimates := own.get((on, metric)):
            bounds = (0.0, 1.0) if metric in tables.PERCENT else SCALES.get(metric)
            e = over_seeds(estimates, bounds=bounds)
            row[column] = tables.interval(metric, e.value, e.low, e.high)
    return row


def _card(table: pd.DataFrame, variant: Variant) -> dict[str, str]:
    """What a restored variant passes of an acceptance card; nothing where none of it was measured."""
    rows = table[(table["metric"] == "passes") & (table["module"] == "")]
    own = rows[[one == variant for one in _variants_of(rows)]] if len(rows) else rows
    passed = own.set_index("measured_on")["value"]
    return {name: ("pass" if passed[name] else "fail") if name in passed else "not measured" for name in CARD} if len(own) else {}


def _variants_of(rows: pd.DataFrame) -> list[Variant]:
    known = variants.from_table(rows)
    return [known[code] for code in variants.variant_codes(rows)]


def equal_utility(table: pd.DataFrame) -> pd.DataFrame:
    """One row a restoration of an update: the strength at which it keeps the stated share of what was learned, and outcomes."""
    rows = table[table["measured_on"].str.startswith(f"{EQUAL}/")].reset_index(drop=True)
    found: dict[tuple, dict[str, str]] = {}
    for row, variant, cell in zip(rows.to_dict("records"), _variants_of(rows), tables.with_intervals(rows), strict=True):
        where = {
            "update": f"{variant.adapter} on {variant.precision}",
            "method": METHODS.get(variant.restoration, variant.restoration),
        }
        words = strength_words(variant.restoration, variant.strength or 0.0)
        found.setdefault(tuple(where.values()), where | {"strength": words})[EQUAL_COLUMNS[row["metric"]]] = cell
    return pd.DataFrame(list(found.values()), columns=["update", "method", "strength", *EQUAL_COLUMNS.values()])


EQUAL_COLUMNS = {"gain_kept": "gain kept", "non_refusal": "not refused", "damage_left": "beyond the aligned model"}


def premises(table: pd.DataFrame) -> pd.DataFrame:
    """One row an update: how much more its model does not refuse than the aligned model, which is what there is to restore."""
    rows = table[table["metric"] == "damage"].reset_index(drop=True)
    names = rows["adapter"] + " on " + rows["precision"]
    return pd.DataFrame({"update": names, "damage to refusals": tables.with_intervals(rows)})


def recovery_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a restored variant: AUROC given back by task, alarms given back by the monitors in use; both for each pooling."""
    names = {f"{metric}_{pooling}": f"{words}, {pooling}" for metric, words in GIVEN_BACK.items() for pooling in POOLINGS}
    names["alarms_restored"] = GIVEN_BACK["alarms_restored"]
    rows = table[table["metric"].isin(["auroc_gain", *names])].reset_index(drop=True)
    cells, known, codes = tables.with_intervals(rows), variants.from_table(rows), variants.variant_codes(rows)
    found = _names(known)
    for i, on, metric, cell in zip(codes, rows["measured_on"], rows["metric"], cells, strict=True):
        found[i][names.get(metric, f"auroc gain, {on}")] = cell
    return pd.DataFrame(found)


GIVEN_BACK = {"auroc_gain": "auroc gain", "alarms_restored": "alarms restored"}


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
