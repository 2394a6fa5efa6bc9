"""What the table `staleness` says in words: families, doses, the answers about the monitors in use, and one case to see."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.monitors.frozen import Monitor
from helpers.staleness.drops import Observed
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import MARGINS
from helpers.stats.p_values import holm
from helpers.stats.paired_aurocs import ALPHA
from helpers.updates import recipes as update_recipes
from helpers.updates import variants as model_variants
from helpers.updates.variants import from_table, variant_codes

FAMILIES = ("control", "before alignment", "quantization", "LoRA", "QLoRA", "full fine-tune", "QAT")
Chosen = Mapping[str, Mapping[str, object]]  # task -> {"monitor": its name, "of": how many it is the best of}


def described(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the variant's short name (`label`) and its kind of change (`family`)."""
    families = [update_recipes.family(variant) for variant in from_table(table)]
    return model_variants.labelled(table).assign(family=[families[i] for i in variant_codes(table)])


def order(table: pd.DataFrame) -> list[str]:
    """The short names of the variants, family by family; the aligned model, which is the reference, is left out."""
    found = table.loc[table["label"] != "aligned", ["label", "family"]].drop_duplicates()
    place = {name: i for i, name in enumerate(FAMILIES)}
    return found.sort_values("family", key=lambda s: s.map(place), kind="stable")["label"].tolist()


def with_dose(table: pd.DataFrame, recipes: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The rows, and once more those of updates trained in several doses, with `dose_kind` (rank, steps) and `dose_value`."""
    variants, codes = from_table(table), variant_codes(table)
    found = []
    for code, variant in enumerate(variants):
        recipe = recipes.get(f"{variant.adapter}@{variant.trained_on}")
        if recipe and variant.serving == "attached" and variant.precision == variant.trained_on:
            named = update_recipes.parse(f"{variant.adapter}@{variant.trained_on}")
            kinds = [kind for kind in ("rank", "steps") if getattr(named, kind)] or ["rank", "steps"]
            if not (named.rank and named.steps):  # with both changed it is a dose of neither
                found += [(code, f"{named.series}@{named.trained_on}", kind, recipe[kind]) for kind in kinds]
    doses = pd.DataFrame(found, columns=["code", "series", "dose_kind", "dose_value"])
    several = doses.groupby(["series", "dose_kind"])["code"].transform("size") > 1
    dosed = table.assign(code=codes).merge(doses[several], on="code").drop(columns=["code", "series"])
    return pd.concat([table, dosed], ignore_index=True) if len(dosed) else table


# ---------------------------------------------------------------- the monitors in use


def in_use(observed: Observed, chosen: Chosen) -> list[tuple[str, int, Monitor]]:
    """Task, place among its monitors, and monitor, for each task's monitor in use."""
    found = []
    for task, choice in chosen.items():
        names = [monitor.name for monitor in observed.references[task].monitors]
        place = names.index(str(choice["monitor"]))
        found.append((task, place, observed.references[task].monitors[place]))
    return found


def verdicts(observed: Observed, chosen: Chosen) -> pd.DataFrame:
    """One row a monitor in use and variant: drop, interval, answer (worse, preserved, inconclusive) and the n it would take.

    Each answer is a test at the margin of `stats.intervals.MARGINS`; Holm adjusts it within its family of updates, and the n is
    that of the family's hardest test.
    """
    rows, margin, sizes = [], MARGINS["auroc"], Counter(update_recipes.family(variant) for variant in observed.scores)
    for variant, scores in observed.scores.items():
        if variant.adapter or variant.precision != "bf16":
            family = update_recipes.family(variant)
            for task, j, monitor in in_use(observed, chosen):
                test = observed.references[task].test
                both = np.array([observed.references[task].scores[j], scores[task][j]])
                drop = paired_aurocs.auroc_contrast(test.labels, both, (1, -1), test.groups)
                e = drop.estimate
                rows.append((variant.label, family, task, monitor.name, e.value, e.low, e.high, e.n,
                             paired_aurocs.worse(drop, margin), paired_aurocs.preserved(drop, margin),
                             paired_aurocs.needed(drop, margin, ALPHA / (sizes[family] * len(chosen)))))  # fmt: skip
    names = ["label", "family", "task", "monitor", "value", "low", "high", "n", "p_worse", "p_preserved", "needed"]
    table = pd.DataFrame(rows, columns=names)
    for name in ("p_worse", "p_preserved"):
        table[name] = table.groupby("family")[name].transform(lambda p: holm(p))
    answers = np.select(
        [table["p_worse"] <= ALPHA, table["p_preserved"] <= ALPHA],
        ["worse", "preserved"],
        "inconclusive",
    )
    return table.assign(answer=answers)


@dataclass(frozen=True)
class BrokenThreshold:
    """One monitor's scores of the same texts on the aligned model and on a variant, with its frozen threshold."""

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    threshold: float
    monitor: str
    names: tuple[str, str]  # of the two models


def broken_threshold(observed: Observed, chosen: Chosen, level: str = "5") -> BrokenThreshold | None:
    """The monitor in use whose false-positive rate moved most while its AUROC kept within the margin; None if none kept."""
    best, found = -1.0, None
    for variant, scores in observed.scores.items():
        for task, j, monitor in in_use(observed, chosen):
            cut, test = monitor.thresholds.get(level), observed.references[task].test
            before, after = observed.references[task].scores[j], scores[task][j]
            drop = roc.auroc(test.labels, before) - roc.auroc(test.labels, after)
            if cut is None or not abs(drop) <= MARGINS["auroc"]:
                continue
            moved = abs(np.mean(after[test.labels == 0] > cut) - np.mean(before[test.labels == 0] > cut))
            if moved > best:
                names = ("aligned", variant.label)
                best, found = moved, BrokenThreshold(before, after, test.labels, test.groups, cut, monitor.name, names)
    return found


# ---------------------------------------------------------------- families
