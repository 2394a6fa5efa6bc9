"""Chapter 06's cells: one row a monitor on a variant, with its drop and all signals that could have foretold it.

Forward signals read the training texts without their labels, label signals a few validation texts; the drop is that of the
test texts. So no text serves both the forecast and its judgement.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers import cache, results
from helpers.definitions import SIGNALS, content_key
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import compute, loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.models.loading import LanguageModel
from helpers.monitors import probes, readings
from helpers.monitors.frozen import Monitor
from helpers.results import KEY, Run
from helpers.staleness import cohorts, drift_signals, moved_weights
from helpers.updates import measurements, quantizers, weight_errors
from helpers.updates import names as update_names
from helpers.updates import recipes as update_recipes
from helpers.updates import variants as model_variants
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant, variant_key

Build = Callable[[], LanguageModel]
BITS = {"bf16": 16.0, "fp32": 32.0}


# ---------------------------------------------------------------- what the weights say


def weight_signals(parts: Parts, variant: Variant, monitors: Sequence[Monitor], build: Build | None = None) -> pd.DataFrame:
    """For each monitor with a direction: how far the weights below it moved, and how much of that lies along its direction.

    Kept by content; `build` gives the model where it must be looked at, so that a caller can share it.
    """
    linear = [m for m in monitors if probes.direction(m.readout) is not None and cohorts.is_counted(m.kind)]
    of = {"variant": variant_key(parts, variant), "monitors": [m.hash for m in linear]}
    key = SIGNALS.key(**of, **compute.machine(parts.device))
    make = build or (lambda: build_variant(parts, variant))
    return results.cached_table("changes", key, lambda: _weight_signals(parts, make(), linear))


@lru_cache(maxsize=1)
def _weights(folder: Path, device: str) -> dict[str, torch.Tensor]:
    """The aligned model's weights by module, in their own precision: every variant is compared with the same ones."""
    model = loading.load(folder, on=device).model
    return {name: model.get_submodule(name).weight for name in quantizers.linear_names(model)}


def _weight_signals(parts: Parts, language: LanguageModel, linear: Sequence[Monitor]) -> pd.DataFrame:
    before = _weights(parts.aligned, parts.device)
    by_layer = {layer: [m for m in linear if m.layer == layer] for layer in dict.fromkeys(m.layer for m in linear)}
    directions = {
        layer: torch.tensor(np.array([probes.direction(m.readout) for m in found]).T, dtype=torch.float32, device=parts.device)
        for layer, found in by_layer.items()
    }
    changes = moved_weights.weight_changes(before, moved_weights.effective_weights(language.model), directions)
    rows = [
        (m.name, layer, moved_weights.relative_change(changes, layer), moved_weights.output_overlap(changes, layer, place))
        for layer, found in by_layer.items()
        for place, m in enumerate(found)
    ]
    return pd.DataFrame(rows, columns=["monitor", "layer", "relative_change", "output_overlap"])


# ---------------------------------------------------------------- what the recipe says


def recipe_signals(variant: Variant, recipes: Mapping[str, Mapping[str, float]], bits: Mapping[str, float]) -> dict[str, object]:
    """Family, bits, and rank, scale, steps and rate of the update; 0 where the variant has no update."""
    recipe = recipes.get(f"{variant.adapter}@{variant.trained_on}", {})
    adapter = {name: float(recipe.get(name, 0.0)) for name in ("rank", "scale", "steps", "lr")}
    return {"family": update_recipes.family(variant), "bits": float({**BITS, **bits}.get(variant.precision, 16.0)), **adapter}


# ---------------------------------------------------------------- what a forward pass and a few labels say


def few_rows(reading: Plan, task: str, count: int) -> readings.Rows:
    """The first `count` labelled validation texts of a task, half of each class; no more are read on variants than `FEW` a class.

    Error: more are asked for.
    """
    if count > 2 * readings.FEW:
        most = 2 * readings.FEW
        raise StudyError(f"few_labels {count}: variants read {most} labelled validation texts a task; give at most {most}")
    rows = readings.rows_of(reading, task, "validation")
    chosen = np.sort(np.concatenate([np.flatnonzero(rows.labels == label)[: count // 2] for label in (0, 1)]))
    return readings.Rows(rows.index[chosen], rows.labels[chosen], rows.groups[chosen])


def base_signals(monitor: Monitor, found: Activations, reading: Plan) -> dict[str, float]:
    """What the training texts say of a monitor before any update: separation, and its direction's share of the largest parts."""
    train = readings.rows_of(reading, monitor.task, "train")
    seen = readings.scores([monitor], found, reading, train.index)[0]
    direction, share = probes.direction(monitor.readout), np.nan
    if direction is not None:
        share = drift_signals.principal_share(readings.features(found, reading, monitor, train.index).values, direction)
    return {"separation": drift_signals.separation(seen, train.labels), "principal_share": share}


def validated(monitors: pd.DataFrame) -> dict[str, float]:
    """By name of a monitor, its AUROC on all validation texts before any update, from the table `monitors`."""
    rows = monitors[(monitors["metric"] == "auroc_validation") & (monitors["layer"] > 0)]
    return dict(zip(rows["task"] + "/" + rows["probe"] + "/" + rows["layer"].astype(str), rows["value"], strict=True))


def forward_signals(monitor: Monitor, before: Activations, after: Activations, reading: Plan) -> dict[str, float]:
    """What unlabelled texts through both models say about one monitor's scores."""
    train = readings.rows_of(reading, monitor.task, "train")
    old, new = (readings.scores([monitor], found, reading, train.index)[0] for found in (before, after))
    shift = drift_signals.mean_shift(old[:, None], new[:, None], np.ones(1))
    return {"mean_shift": shift, "score_ks": drift_signals.score_ks(old, new), "score_psi": drift_signals.score_psi(old, new),
            "score_correlation": drift_signals.score_correlation(old, new)}  # fmt: skip


def place_signals(monitor: Monitor, before: Activations, after: Activations, reading: Plan) -> dict[str, float]:
    """What unlabelled texts say about the activations at a monitor's place, whichever direction it reads there."""
    train = readings.rows_of(reading, monitor.task, "train")
    pooled = monitor.pooling or "mean"  # attention pooling is compared through the mean over the same tokens
    old, new = (found.pooled.get(f"{pooled}/{monitor.layer}") for found in (before, after))
    if old is None or new is None:
        return {"cka": np.nan, "covariance_distance": np.nan}
    old, new = old[train.index], new[train.index]
    return {"cka": drift_signals.linear_cka(old, new), "covariance_distance": drift_signals.covariance_distance(old, new)}


def label_signals(monitor: Monitor, before: Activations, after: Activations, reading: Plan, count: int) -> dict[str, float]:
    """What a few labelled texts say."""
    rows = few_rows(reading, monitor.task, count)
    old, new = (readings.scores([monitor], found, reading, rows.index)[0] for found in (before, after))
    return drift_signals.few_labels(rows.labels, old, new, monitor.thresholds.get("5", float(np.median(old))))


# ---------------------------------------------------------------- all cells of a run


def collect(
    run: Run, parts: Parts, variants: Sequence[Variant], monitors: Sequence[Monitor], reading: Plan, staleness: pd.DataFrame,
    count: int, progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row a monitor and variant: outcome (`drop`, `drop_low`, `stale`), names, and one column a signal."""
    real, reading = [monitor for monitor in monitors if cohorts.is_counted(monitor.kind)], readings.on_variants(reading)
    ranked = validated(results.read_table(run, "monitors", "04_monitors"))
    aligned = readings.in_double(measurements.stored(parts, Variant(run.model, run.seed), reading))
    with loading.threads(1):
        known = {m.name: {"base_auroc": ranked.get(m.name, np.nan)} | base_signals(m, aligned, reading) for m in real}
    recipes = results.read_note(run, "03_finetuning", "recipes")
    bits = weight_errors.bits(results.read_table(run, "weights")).to_dict()
    tables = []
    for variant in variants:
        if update_recipes.family(variant) not in {"control", "before alignment"}:
            found = readings.in_double(measurements.stored(parts, variant, reading))
            with loading.threads(1):
                rows = _cells(variant, real, known, aligned, found, reading, count)
            moved = weight_signals(parts, variant, monitors).drop(columns="layer")
            rows = rows.merge(moved, on="monitor", how="left").assign(**recipe_signals(variant, recipes, bits))
            tables.append(rows)
        if progress:
            progress(variant.label)
    if not tables:
        raise StudyError("there is no update to forecast; measure quantizers or updates in chapters 02 and 03", NOT_COMPARABLE)
    cells = pd.concat(tables, ignore_index=True).merge(_outcomes(staleness), on=["monitor", "variant"])
    return cells.assign(seed=run.seed)


def _cells(
    variant: Variant, monitors: Sequence[Monitor], known: Mapping[str, Mapping[str, float]], before: Activations,
    after: Activations, reading: Plan, count: int,
) -> pd.DataFrame:  # fmt: skip
    places: dict[tuple, dict[str, float]] = {}
    rows = []
    for m in monitors:
        at = (m.task, m.pooling, m.layer)
        if at not in places:  # several kinds read at one place
            places[at] = place_signals(m, before, after, reading)
        names = {
            "monitor": m.name,
            "task": m.task,
            "probe": m.probe,
            "pooling": cohorts.pooling_of(m.probe),
            "layer": m.layer,
            "depth": m.depth,
            "variant": variant.label,
        }
        seen = forward_signals(m, before, after, reading) | label_signals(m, before, after, reading, count)
        rows.append({**names, **known[m.name], **places[at], **seen})
    return pd.DataFrame(rows)


def _outcomes(staleness: pd.DataFrame) -> pd.DataFrame:
    """Drop, its lower end and the flag of every monitor on every variant (its label), where there is a ranking at all."""
    table = model_variants.labelled(staleness).rename(columns={"label": "variant"})
    table = table[(table["layer"] > 0) & table["metric"].isin(["auroc_drop", "stale_auroc_05"])]
    table = table.assign(monitor=table["task"] + "/" + table["probe"] + "/" + table["layer"].astype(str))
    drops = table[table["metric"] == "auroc_drop"].rename(columns={"value": "drop", "low": "drop_low"})
    flags = table.loc[table["metric"] == "stale_auroc_05", ["variant", "monitor", "value"]].rename(columns={"value": "stale"})
    found = drops[["variant", "monitor", "drop", "drop_low"]].merge(flags, on=["variant", "monitor"])
    return found.assign(stale=found["stale"] == 1)


def with_lower_seeds(run: Run, cells: pd.DataFrame) -> pd.DataFrame:
    """These cells and those of the same model's runs with lower seeds that are done; kept, so that higher seeds find them."""
    key = content_key(cells=pd.util.hash_pandas_object(cells).to_list())
    found = [results.cached_table("cells", key, lambda: cells)]
    results.write_note(run, "06_triage", "cells", key)
    for folder in run.folder.parent.glob("seed-*"):
        note = folder / "parts" / "06_triage" / "cells.json"
        if int(folder.name.removeprefix("seed-")) < run.seed and note.is_file():
            path = cache.cache_path("cells", f"{json.loads(note.read_text(encoding='utf-8'))}.parquet")
            found += [pd.read_parquet(path)] if path.is_file() else []
    return pd.concat(sorted(found, key=lambda part: part["seed"].iloc[0]), ignore_index=True)


def keyed(run: Run, *tables: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `triage`, which belong to the run and to no single variant."""
    found = pd.concat(tables, ignore_index=True)
    front = Variant(run.model, run.seed, precision="")
    return update_names.keyed(front, found)[[*KEY, *results.OWN["triage"], *results.VALUES]]
