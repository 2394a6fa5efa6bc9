"""What the table `staleness` says in words: families, doses, the answers about the monitors in use, and one case to see."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers import measurements, roc, statistics, tables
from helpers import updates as u
from helpers.monitors import Monitor
from helpers.names import CONTROL, place_names
from helpers.staleness import Observed
from helpers.statistics import MARGINS, holm
from helpers.variants import from_table, variant_codes

FAMILIES = ("control", "before alignment", "quantization", "LoRA", "QLoRA", "full fine-tune", "QAT")
Chosen = Mapping[str, Mapping[str, object]]  # task -> {"monitor": its name, "of": how many it is the best of}


def described(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the variant's short name (`label`) and its kind of change (`family`)."""
    families = [u.family(variant) for variant in from_table(table)]
    return measurements.labelled(table).assign(family=[families[i] for i in variant_codes(table)])


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
            named = u.parse(f"{variant.adapter}@{variant.trained_on}")
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

    Each answer is a test at the margin of `statistics.MARGINS`; Holm adjusts it within its family of updates, and the n is
    that of the family's hardest test.
    """
    rows, margin, sizes = [], MARGINS["auroc"], Counter(u.family(variant) for variant in observed.scores)
    for variant, scores in observed.scores.items():
        if variant.adapter or variant.precision != "bf16":
            for task, j, monitor in in_use(observed, chosen):
                test = observed.references[task].test
                both = np.array([observed.references[task].scores[j], scores[task][j]])
                drop = roc.auroc_contrast(test.labels, both, (1, -1), test.groups)
                e = drop.estimate
                rows.append((variant.label, u.family(variant), task, monitor.name, e.value, e.low, e.high, e.n,
                             roc.worse(drop, margin), roc.preserved(drop, margin),
                             roc.needed(drop, margin, roc.ALPHA / (sizes[u.family(variant)] * len(chosen)))))  # fmt: skip
    names = ["label", "family", "task", "monitor", "value", "low", "high", "n", "p_worse", "p_preserved", "needed"]
    table = pd.DataFrame(rows, columns=names)
    for name in ("p_worse", "p_preserved"):
        table[name] = table.groupby("family")[name].transform(lambda p: holm(p))
    answers = np.select(
        [table["p_worse"] <= roc.ALPHA, table["p_preserved"] <= roc.ALPHA], ["worse", "preserved"], "inconclusive"
    )
    return table.assign(answer=answers)


def verdict_table(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row a variant, one column a task: the drop with its interval, the answer, and the texts it would take."""

    def cell(row: pd.Series) -> str:
        answer = str(row["answer"])
        if np.isnan(row["value"]):
            return "undefined: all scores are tied"
        if answer == "inconclusive":
            answer += f" (n {row['n']} of {row['needed']:,})" if row["needed"] < roc.NEVER else " (at the margin)"
        return f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] {answer}"

    cells = table.assign(cell=table.apply(cell, axis=1)).pivot(index="label", columns="task", values="cell")
    shown = [name for name in names if name in cells.index]
    return cells.loc[shown, list(dict.fromkeys(table["task"]))].reset_index(names="variant").rename_axis(columns=None)


def answers(table: pd.DataFrame) -> pd.DataFrame:
    """How many of a family's monitors in use were shown worse, shown preserved, or neither."""
    counts = table.groupby(["family", "answer"]).size().unstack("answer", fill_value=0)
    counts = counts.reindex(columns=["worse", "preserved", "inconclusive"], fill_value=0)
    return counts.loc[[name for name in FAMILIES if name in counts.index]].reset_index().rename_axis(columns=None)


@dataclass(frozen=True)
class Case:
    """One monitor's scores of the same texts on the aligned model and on a variant, with its frozen threshold."""

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    threshold: float
    monitor: str
    names: tuple[str, str]  # of the two models


def broken_threshold(observed: Observed, chosen: Chosen, level: str = "5") -> Case | None:
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
                best, found = moved, Case(before, after, test.labels, test.groups, cut, monitor.name, names)
    return found


# ---------------------------------------------------------------- families


def family_table(table: pd.DataFrame) -> pd.DataFrame:
    """Share of monitors that lost 0.05 and 0.10 AUROC, by family of updates and task; intervals over places and variants."""
    real = table[(table["layer"] > 0) & ~table["probe"].str.startswith(CONTROL)]
    found = []
    for family in (name for name in FAMILIES if name in set(real["family"])):
        for task, rows in real[real["family"] == family].groupby("task", sort=False):
            cells = {words: _share(rows, flag) for flag, words in FLAGS.items()}
            found.append({"family": family, "task": task, "variants": rows["label"].nunique(), **cells})
    return pd.DataFrame(found)


FLAGS = {"stale_auroc_05": "AUROC lost 0.05", "stale_auroc_10": "AUROC lost 0.10", "stale_tpr_5": "catches less",
         "stale_fpr_5": "cries wolf"}  # fmt: skip


def _share(rows: pd.DataFrame, flag: str) -> str:
    """The share of rows with that flag, its interval and n, as a text that knows the rows."""
    part = rows[rows["metric"] == flag]
    if not len(part):
        return "–"
    e = statistics.rate_interval(part["value"], part["label"] + "/" + place_names(part))
    return tables.Said(f"{100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}] of {e.n}", part, "share")


def sentences(table: pd.DataFrame) -> dict[str, str]:
    """The share of monitors that lost 0.05 AUROC in the families that the chapter's prose names."""
    real = table[(table["layer"] > 0) & ~table["probe"].str.startswith(CONTROL)]
    names = {"stale-quantized": "quantization", "stale-lora": "LoRA", "stale-qlora": "QLoRA"}
    return {key: _share(real[real["family"] == family], "stale_auroc_05") for key, family in names.items()}


def resampled_angles(monitors: pd.DataFrame) -> dict[str, float]:
    """By probe, the middle angle by which a direction turns when only the training texts are drawn anew (table `monitors`)."""
    rows = monitors[monitors["metric"] == "resampled_angle"]
    return rows.groupby("probe")["value"].median().to_dict()
