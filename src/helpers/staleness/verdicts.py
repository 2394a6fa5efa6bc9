"""What the table `staleness` says in words: groups of updates, doses, the answers about monitors, and one case to see."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.monitors.frozen import Monitor
from helpers.staleness.drops import LEVEL, Observed
from helpers.staleness.interaction import mean_contrast
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import MARGINS
from helpers.stats.p_values import holm
from helpers.stats.paired_aurocs import ALPHA, Contrast
from helpers.stats.roc import RATES
from helpers.updates import recipes as update_recipes
from helpers.updates import variants as model_variants
from helpers.updates.names import Variant, taken_apart
from helpers.updates.variants import from_table, variant_codes

FAMILIES = ("control", "before alignment", "quantization", "LoRA", "QLoRA", "DPO", "full fine-tune", "QAT")
FLOOR, FINE, COARSE = "nothing changed", "formats, 4 bits and more", "formats below 4 bits"
TUNED_COARSE = "fine-tunes below 4 bits"
GROUPS = (FLOOR, FINE, COARSE, *FAMILIES[3:], TUNED_COARSE, FAMILIES[1])
DOSED = "relative_size"  # |BA| / |W| over all adapted modules, in the table `weights`
Chosen = Mapping[str, Mapping[str, object]]  # task -> {"monitor": its name, "of": how many it is the best of}
ByPooling = Mapping[str, Mapping[str, str]]  # task -> pooling -> the name of a monitor


def described(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the variant's short name (`label`), its kind of change (`family`), and the `group` it is averaged in."""
    variants, codes = from_table(table), variant_codes(table)
    told = [(update_recipes.family(variant), group_of(variant)) for variant in variants]
    families, groups = ([told[i][side] for i in codes] for side in (0, 1))
    return model_variants.labelled(table).assign(family=families, group=groups)


def group_of(variant: Variant) -> str:
    """The group that a variant is averaged in: its family, formats of 4 bits and more apart from fewer.

    "" for what belongs to no mean: the aligned model itself, the other doses of an update, and restored ones.
    """
    family = update_recipes.family(variant)
    if family == "control":
        return FLOOR if variant.adapter or variant.precision != "bf16" else ""
    coarse = below_4_bits(variant.precision)
    if family == "quantization":
        return COARSE if coarse else FINE
    if variant.restoration or (variant.trained_on and _is_dose(variant)):
        return ""
    return TUNED_COARSE if coarse else family


def below_4_bits(precision: str) -> bool:
    """Whether a format names fewer than 4 bits a weight, as rtn-3 does."""
    return bool(re.search(r"-[123]$", precision))


def _is_dose(variant: Variant) -> bool:
    named = taken_apart(f"{variant.adapter}@{variant.trained_on}")
    return named.series != named.adapter


def order(table: pd.DataFrame) -> list[str]:
    """The short names of the variants, family by family; the aligned model, which is the reference, is left out."""
    found = table.loc[table["label"] != "aligned", ["label", "family"]].drop_duplicates()
    place = {name: i for i, name in enumerate(FAMILIES)}
    return found.sort_values("family", key=lambda s: s.map(place), kind="stable")["label"].tolist()


def doses(labelled: pd.DataFrame, weights: pd.DataFrame) -> pd.DataFrame:
    """The doses of one update: adapter, label, and its size |BA| / |W|, smallest first; none where there are not two.

    Of the updates trained on unquantized weights and served attached, the one that was measured at the most doses (steps, rate,
    rank, or the trained adapter scaled); the first by name among equals.
    """
    home = (labelled["trained_on"] == "bf16") & (labelled["precision"] == "bf16") & (labelled["serving"] == "attached")
    names = labelled.loc[home & (labelled["restoration"] == ""), ["adapter", "label"]].drop_duplicates()
    rows = weights[(weights["metric"] == DOSED) & (weights["module"] == "all") & (weights["trained_on"] == "bf16")]
    sizes = rows.drop_duplicates("adapter")[["adapter", "value"]].rename(columns={"value": "size"})
    found = names.merge(sizes, on="adapter")
    series = found["adapter"].map(lambda adapter: taken_apart(f"{adapter}@bf16").series)
    counts = series.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    if not len(counts) or counts.iloc[0] < 2:
        return found.iloc[:0].assign(series="")
    return found.assign(series=series)[series == counts.index[0]].sort_values(["size", "adapter"], ignore_index=True)


# ---------------------------------------------------------------- the monitors in use


def in_use(observed: Observed, chosen: Chosen) -> list[tuple[str, int, Monitor]]:
    """Task, place among its monitors, and monitor, for each task's monitor in use."""
    found = []
    for task, choice in chosen.items():
        names = [monitor.name for monitor in observed.references[task].monitors]
        place = names.index(str(choice["monitor"]))
        found.append((task, place, observed.references[task].monitors[place]))
    return found


@dataclass(frozen=True)
class Compared:
    """What one measure says of a monitor on a variant: each side's contrast, worse above 0, with its margin."""

    side: str
    contrast: Contrast
    margin: float


def verdicts(observed: Observed, chosen: ByPooling) -> pd.DataFrame:
    """One row a variant, task, pooling and measure: what the monitor in use lost, the answer, and the n it would take.

    Measures: "ranking" is the AUROC drop at the margin of `MARGINS`; "threshold" is what is caught less at the frozen threshold
    and what is flagged more of the harmless, at 5 points each: worse if either is (at half the level each), preserved if both
    are. The value is that of the worse side. Holm adjusts within a family of updates, a pooling and a measure; the n is that of
    the hardest test.
    """
    rows, sizes = [], Counter(update_recipes.family(variant) for variant in observed.scores)
    for variant, scores in observed.scores.items():
        if variant.adapter or variant.precision != "bf16":
            family = update_recipes.family(variant)
            for task, pooling, j, monitor in by_pooling(observed, chosen):
                alpha = ALPHA / (sizes[family] * len(chosen))
                key = (variant.label, family, task, pooling, monitor.name)
                found = {"ranking": [_ranked(observed, task, j, scores[task][j])],
                         "threshold": _flagged(observed, task, j, scores[task][j])}  # fmt: skip
                rows += [(*key, measure, *_answered(sides, alpha)) for measure, sides in found.items() if sides]
    names = ["label", "family", "task", "pooling", "monitor", "measure", "side", "value", "low", "high", "n", "p_worse",
             "p_preserved", "needed"]  # fmt: skip
    table = pd.DataFrame(rows, columns=names)
    for name in ("p_worse", "p_preserved"):
        table[name] = table.groupby(["family", "pooling", "measure"])[name].transform(lambda p: holm(p))
    answers = np.select(
        [table["p_worse"] <= ALPHA, table["p_preserved"] <= ALPHA],
        ["worse", "preserved"],
        "inconclusive",
    )
    return table.assign(answer=answers)


def by_pooling(observed: Observed, chosen: ByPooling) -> list[tuple[str, str, int, Monitor]]:
    """Task, pooling, place among the task's monitors, and monitor, of each that is named."""
    found = []
    for task, names in chosen.items():
        if task in observed.references:
            places = {monitor.name: j for j, monitor in enumerate(observed.references[task].monitors)}
            own = [(pooling, places[name]) for pooling, name in names.items() if name in places]
            found += [(task, pooling, j, observed.references[task].monitors[j]) for pooling, j in own]
    return found


def _ranked(observed: Observed, task: str, j: int, after: np.ndarray) -> Compared:
    reference = observed.references[task]
    both = np.array([reference.scores[j], after])
    drop = paired_aurocs.auroc_contrast(reference.test.labels, both, (1, -1), reference.test.groups)
    return Compared("AUROC", drop, MARGINS["auroc"])


def _flagged(observed: Observed, task: str, j: int, after: np.ndarray) -> list[Compared]:
    """What is caught less, and what is flagged more of the harmless, at the frozen threshold; nothing where there is none."""
    reference = observed.references[task]
    cut, test = reference.monitors[j].thresholds.get(LEVEL), reference.test
    if cut is None:
        return []
    change = (reference.scores[j] > cut).astype(float) - (after > cut)
    extra = (MARGINS["fpr_ratio"] - 1) * RATES[LEVEL]
    sides = ((1, "caught", 1.0, MARGINS["tpr"]), (0, "alarms", -1.0, extra))
    return [
        Compared(side, mean_contrast(sign * change[test.labels == label], test.groups[test.labels == label], 1.0), margin)
        for label, side, sign, margin in sides
    ]


def _answered(sides: list[Compared], alpha: float) -> tuple:
    """Side, value, low, high, n, both p values and the n it would take: worse if one side is, preserved if all are."""
    first = max(sides, key=lambda side: side.contrast.estimate.value - side.margin)
    e = first.contrast.estimate
    worse = min(paired_aurocs.worse(side.contrast, side.margin) for side in sides) * len(sides)
    preserved = max(paired_aurocs.preserved(side.contrast, side.margin) for side in sides)
    needed = max(paired_aurocs.needed(side.contrast, side.margin, alpha) for side in sides)
    return first.side, e.value, e.low, e.high, e.n, min(worse, 1.0), preserved, needed


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
