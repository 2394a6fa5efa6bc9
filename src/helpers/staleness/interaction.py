"""Is QLoRA worse than its parts? Combinations of drops over models that score the same texts (table `interaction`).

By monitor, and averaged over those of one pooling; in AUROC, and in the share that is caught at the frozen threshold (`_tpr`).
Each average stands twice: with the interval of 95 %, and with that of 90 % (`_90`), within which two one-sided tests at 5 %
find equivalence (Schuirmann 1987).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.monitors.fitting import four
from helpers.staleness.drops import LEVEL, Observed, Reference
from helpers.stats import paired_aurocs
from helpers.stats.intervals import Estimate, group_scores, unseen_share
from helpers.stats.paired_aurocs import Contrast
from helpers.updates import names
from helpers.updates.names import Variant

# drop(x) = A(aligned) - A(x). What each measure adds up to, as weights on the AUROCs of the arms.
MEASURES: dict[str, dict[str, float]] = {
    # drop(QLoRA) - drop(LoRA) - drop(quantized): what the combination costs beyond the sum of its parts
    "interaction": {"aligned": -1, "qlora": -1, "lora": 1, "quantized": 1},
    # the same with the adapter that was trained on bf16: serving alone
    "serving_interaction": {"aligned": -1, "lora on quantized": -1, "lora": 1, "quantized": 1},
    # drop(trained on quantized) - drop(trained on bf16), both served on bf16: training alone
    "training_effect": {"qlora on bf16": -1, "lora": 1},
    # does an adapter fare better on the weights it was trained on?
    "training_by_serving": {"qlora": -1, "qlora on bf16": 1, "lora on quantized": 1, "lora": -1},
}
TPR = "_tpr"  # the suffix of a measure taken on the share caught at the frozen threshold
INNER = 0.90  # the interval of two one-sided tests at 5 %
COLUMNS = ["task", "probe", "layer", "metric", "value", "low", "high", "n"]


def arms(
    variants: Sequence[Variant], aligned: Variant, recipes: Mapping[str, Mapping[str, float]] | None = None
) -> dict[Variant, dict[str, Variant]]:
    """For each QLoRA variant that has its LoRA and its quantized parts: the models it is compared with, by role.

    Doses of an update are pairs too. recipes: by update name, what it was trained with; a pair whose `steps` differ is left
    out, since its two adapters differ in more than the precision.
    """
    present, found = set(variants), {}
    for qlora in variants:
        quantized = qlora.precision != "bf16" and qlora.trained_on == qlora.precision
        if not quantized or qlora.serving != "attached" or qlora.restoration or not _equal_steps(qlora, recipes or {}):
            continue
        named: dict[str, Any] = {"model": aligned.model, "seed": aligned.seed}
        roles = {
            "qlora": qlora,
            "quantized": Variant(**named, precision=qlora.precision),
            "lora": Variant(**named, adapter=qlora.adapter, trained_on="bf16", serving="attached"),
            "lora on quantized": Variant(**named, precision=qlora.precision, adapter=qlora.adapter, trained_on="bf16",
                                         serving="attached"),
            "qlora on bf16": Variant(**named, adapter=qlora.adapter, trained_on=qlora.trained_on, serving="attached"),
        }  # fmt: skip
        if {roles["quantized"], roles["lora"]} <= present:
            found[qlora] = {role: variant for role, variant in roles.items() if variant in present}
    return found


def _equal_steps(qlora: Variant, recipes: Mapping[str, Mapping[str, float]]) -> bool:
    steps = {recipes.get(f"{qlora.adapter}@{precision}", {}).get("steps") for precision in ("bf16", qlora.trained_on)}
    return len(steps - {None}) < 2


def interaction_rows(
    observed: Observed, aligned: Variant, recipes: Mapping[str, Mapping[str, float]] | None = None
) -> pd.DataFrame:
    """Rows of the table `interaction`: each measure for each monitor, averaged over a task's monitors of one pooling, and over
    tasks (`task` is "all"); the averages are called as in the table `staleness`."""
    tables = []
    for qlora, roles in arms(list(observed.scores), aligned, recipes).items():
        found = []
        for measure, weights in MEASURES.items():
            if set(weights) - {"aligned"} <= set(roles):
                found += _measured(measure, weights, roles, observed)
        tables.append(names.keyed(qlora, pd.DataFrame(found, columns=COLUMNS)))
    if not tables:
        raise StudyError(
            "no QLoRA variant has both of its parts; add <update>@bf16, the same @nf4, and the quantizer nf4", NOT_COMPARABLE
        )
    return pd.concat(tables, ignore_index=True)


def _measured(measure: str, weights: Mapping[str, float], roles: Mapping[str, Variant], observed: Observed) -> list[tuple]:
    found: list[tuple] = []
    overall: dict[tuple[str, str], list[Contrast]] = {}
    for task, reference in observed.references.items():
        scores = {role: observed.scores[roles[role]][task] for role in weights if role != "aligned"}
        scores |= {"aligned": reference.scores} if "aligned" in weights else {}
        for suffix, take in TAKEN.items():
            single, together = take(reference, scores, weights)
            for m, contrast in zip(reference.monitors, single, strict=True):
                found += _told(contrast, (task, m.probe, m.layer), f"{measure}{suffix}")[:1]
            for name, contrast in together.items():
                found += _told(contrast, (task, name, 0), f"{measure}{suffix}")
                overall.setdefault((suffix, name), []).append(contrast)
    for (suffix, name), parts in overall.items():
        found += _told(paired_aurocs.combine(parts), ("all", name, 0), f"{measure}{suffix}")
    return found


def _told(contrast: Contrast, place: tuple[str, str, int], metric: str) -> list[tuple]:
    """The rows of a contrast, with both intervals; none where it is not defined."""
    e = contrast.estimate
    if not np.isfinite(e.value):
        return []
    return [(*place, metric, *four(e)), (*place, f"{metric}_90", *four(inner(contrast)))]


def inner(contrast: Contrast) -> Estimate:
    """The estimate with its interval of 90 %: it lies within a margin just where two one-sided tests at 5 % both pass."""
    e, half = contrast.estimate, contrast.se * special.stdtrit(contrast.df, (1 + INNER) / 2)
    return Estimate(e.value, float(e.value - half), float(e.value + half), e.n)


# ---------------------------------------------------------------- in AUROC, and in what is caught

Taken = tuple[list[Contrast], dict[str, Contrast]]


def contrasts(reference: Reference, scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> Taken:
    """The measure for each monitor of a task, and its mean over those that are counted together and have a ranking."""
    labels, groups = reference.test.labels, reference.test.groups
    stacked, signs = _stacked(scores, weights)
    single = [paired_aurocs.auroc_contrast(labels, stacked[:, j], signs, groups) for j in range(stacked.shape[1])]
    together = {}
    for name, places in reference.members.items():
        if kept := [j for j in places if np.isfinite(single[j].estimate.value)]:
            flat = stacked[:, kept].reshape(-1, stacked.shape[2])
            together[name] = paired_aurocs.auroc_contrast(labels, flat, np.repeat(signs, len(kept)) / len(kept), groups)
    return single, together


def caught_contrasts(reference: Reference, scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> Taken:
    """The same measure of the share that is caught at the frozen threshold; not defined for a monitor without one."""
    cuts = np.array([monitor.thresholds.get(LEVEL, np.nan) for monitor in reference.monitors])
    stacked, signs = _stacked(scores, weights)
    positive = reference.test.labels == 1
    told = np.einsum("r,rjn->jn", signs, (stacked[:, :, positive] > cuts[:, None]).astype(float))
    told[np.isnan(cuts)] = np.nan
    groups, reach = reference.test.groups[positive], float(np.clip(signs, 0, None).sum())
    together = {}
    for name, places in reference.members.items():
        if kept := [j for j in places if np.isfinite(cuts[j])]:
            together[name] = mean_contrast(told[kept].mean(axis=0), groups, reach)
    return [mean_contrast(row, groups, reach) for row in told], together


TAKEN: dict[str, Callable[[Reference, Mapping[str, np.ndarray], Mapping[str, float]], Taken]] = {
    "": contrasts,
    TPR: caught_contrasts,
}


def _stacked(scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Scores as role x monitor x text, and the weight of each role."""
    return np.stack([scores[role] for role in weights]), np.array([weights[role] for role in weights])


def mean_contrast(values: np.ndarray, groups: np.ndarray, reach: float, level: float = 0.95) -> Contrast:
    """The mean over rows of something that lies within +-reach, with Student's t over groups (`group_scores`).

    Where all groups agree the scatter says nothing: the standard error is then that of what an unseen share of groups could do.
    """
    if not np.isfinite(values).all():
        return Contrast(Estimate(np.nan, np.nan, np.nan, len(values)), np.nan, 1.0)
    units = group_scores(values, groups)
    df = max(units.size - 1, 1)
    t = special.stdtrit(df, (1 + level) / 2)
    se = units.std(ddof=1) / np.sqrt(units.size) if units.size > 1 else 0.0
    if se <= 1e-12:
        se = reach * unseen_share(units.size) / special.stdtrit(df, 0.975)
    value = float(values.mean()) + 0.0
    return Contrast(Estimate(value, float(value - t * se), float(value + t * se), len(values)), float(se), float(df))
