"""Is QLoRA worse than its parts? Combinations of AUROC drops over models that score the same texts (table `interaction`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.monitors.fitting import four
from helpers.staleness.drops import Observed, Reference
from helpers.stats import paired_aurocs
from helpers.stats.paired_aurocs import Contrast
from helpers.updates import names
from helpers.updates.names import CONTROL, Variant

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


def arms(variants: Sequence[Variant], aligned: Variant) -> dict[Variant, dict[str, Variant]]:
    """For each QLoRA variant that has its LoRA and its quantized parts: the models it is compared with, by role."""
    present, found = set(variants), {}
    for qlora in variants:
        quantized = qlora.precision != "bf16" and qlora.trained_on == qlora.precision
        if not quantized or qlora.serving != "attached" or qlora.restoration:
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


def interaction_rows(observed: Observed, aligned: Variant) -> pd.DataFrame:
    """Rows of the table `interaction`: each measure for each monitor, averaged over a task's monitors, and over tasks."""
    tables = []
    for qlora, roles in arms(list(observed.scores), aligned).items():
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


COLUMNS = ["task", "probe", "layer", "metric", "value", "low", "high", "n"]


def _measured(measure: str, weights: Mapping[str, float], roles: Mapping[str, Variant], observed: Observed) -> list[tuple]:
    found: list[tuple] = []
    overall: list[Contrast] = []
    for task, reference in observed.references.items():
        scores = {role: observed.scores[roles[role]][task] for role in weights if role != "aligned"}
        scores |= {"aligned": reference.scores} if "aligned" in weights else {}
        single, mean = contrasts(reference, scores, weights)
        places = [(task, m.probe, m.layer) for m in reference.monitors]
        found += [
            (*place, measure, *four(c.estimate)) for place, c in zip(places, single, strict=True) if np.isfinite(c.estimate.value)
        ]
        if mean is not None:
            found.append((task, "all", 0, measure, *four(mean.estimate)))
            overall.append(mean)
    if overall:
        found.append(("all", "all", 0, measure, *four(paired_aurocs.combine(overall).estimate)))
    return found


def contrasts(
    reference: Reference, scores: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> tuple[list[Contrast], Contrast | None]:
    """The measure for each monitor of a task, and their mean, controls and tied scores left out (None where none is left)."""
    labels, groups, roles = reference.test.labels, reference.test.groups, list(weights)
    stacked = np.stack([scores[role] for role in roles])  # role, monitor, text
    signs = np.array([weights[role] for role in roles])
    single = [paired_aurocs.auroc_contrast(labels, stacked[:, j], signs, groups) for j in range(stacked.shape[1])]
    kept = [j for j, m in enumerate(reference.monitors) if m.kind != CONTROL and np.isfinite(single[j].estimate.value)]
    if not kept:
        return single, None
    flat = stacked[:, kept].reshape(-1, stacked.shape[2])
    return single, paired_aurocs.auroc_contrast(labels, flat, np.repeat(signs, len(kept)) / len(kept), groups)
