"""Restorations over the number of modules that they change: drawn on validation, chosen there, told on test (chapter 07)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd

from helpers import results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models.loading import LanguageModel
from helpers.monitors import spot_check
from helpers.monitors.spot_check import Sketch
from helpers.projection import restored_updates
from helpers.projection.restorations import Restored
from helpers.stats.intervals import MARGINS
from helpers.updates import lora, variants
from helpers.updates import names as update_names
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant, variant_key

OWN = [*results.OWN["projection"], *results.VALUES]
REMOVED = "zero"
PER_MODULE = ("score", "null", "z", "z_robust", "p", "kept")  # what the table says of single modules


def curves(
    parts: Parts, asked: Mapping[Variant, Sequence[str]], strengths: Sequence[float], plan: Sketch, aligned: Variant,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table `projection`: the aligned model, and every update under the restorations asked of it."""
    before = spot_check.take(variant_key(parts, aligned), plan, partial(build_variant, parts, aligned), parts.device)
    found = [keyed_rows(aligned, 0, spot_check.spot_check_rows(plan, before, before))]
    found += [curve(parts, update, names, strengths, plan, before, progress) for update, names in asked.items()]
    return pd.concat(found, ignore_index=True)


def curve(
    parts: Parts, update: Variant, names: Sequence[str], strengths: Sequence[float], plan: Sketch, before: pd.DataFrame,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table `projection` for one update; `before` is the sketch of the model that the monitors were frozen on.

    The update without any restoration (0 modules changed) comes first. Where adapters stay beside their weights, one model
    serves all points: only the adapter in it is exchanged.
    """
    parts = restored_updates.with_restorations(parts)
    build = cache(partial(build_variant, parts, update))
    without = spot_check.take(variant_key(parts, update), plan, build, parts.device)
    found = [keyed_rows(update, 0, spot_check.spot_check_rows(plan, without, before))]
    for name in names:
        prepared = restored_updates.prepared(parts, update, name)
        for strength in strengths:
            variant, restored = replace(update, restoration=name, strength=strength), prepared.at(strength)
            of = _content(variant_key(parts, update), restored)
            items = spot_check.take(of, plan, partial(_served, parts, variant, restored, build), parts.device)
            found.append(
                keyed_rows(variant, int(restored.table["changed"].sum()), spot_check.spot_check_rows(plan, items, before))
            )
            if progress:
                progress(variant.label)
        found.append(curve_module_rows(replace(update, restoration=name), prepared.at(1.0)))
    return pd.concat(found, ignore_index=True)


def _content(update: str, restored: Restored) -> str:
    """What a point is made of: two restorations that leave the same factors behind are one model, looked at once."""
    digest = hashlib.sha256(update.encode())
    for module, change in sorted(restored.update.items()):
        digest.update(module.encode())
        for tensor in (change.left, change.right) if isinstance(change, lora.LowRank) else (change,):
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _served(parts: Parts, variant: Variant, restored: Restored, build: Callable[[], LanguageModel]) -> LanguageModel:
    if variant.serving != "attached":
        return build_variant(parts, variant)
    language = build()
    lora.exchange_(language.model, lora.on_grid(restored.update))
    return language


def keyed_rows(variant: Variant, changed: int, found: pd.DataFrame, module: str = "") -> pd.DataFrame:
    """What was found of a variant as rows of the table `projection`."""
    return update_names.keyed(variant, found.assign(module=module, layers_changed=changed)[OWN])


def curve_module_rows(variant: Variant, restored: Restored) -> pd.DataFrame:
    """Rows about single modules: score, its null, and the share of the update's norm that is kept; exact, so without width."""
    table = restored.table.assign(kept=restored.table["after"] / restored.table["before"].clip(lower=1e-300))
    held = [(row["module"], name, float(row[name])) for row in table.to_dict("records") for name in PER_MODULE]
    rows = [(module, 1, "", name, value, value, value, 1) for module, name, value in held if np.isfinite(value)]
    return update_names.keyed(variant, pd.DataFrame(rows, columns=OWN))


def choose(table: pd.DataFrame, prompt_set: str = "advbench/validation") -> dict[tuple[str, str, str], float]:
    """The strength of each restoration, by adapter, precision and restoration, from the curves on validation prompts.

    It is the smallest at which non-refusal is at most the aligned model's plus the margin for refusals (`intervals.MARGINS`),
    or where there is none, the one with the lowest non-refusal.
    """
    rows = table[(table["metric"] == "non_refusal") & (table["measured_on"] == prompt_set)]
    plain = rows[(rows["adapter"] == "") & (rows["precision"] == "bf16")]
    if not len(plain):
        raise StudyError("the curves hold no aligned model to compare with; draw them again", NOT_COMPARABLE)
    most, found = float(plain["value"].iloc[0]) + MARGINS["refusal"], {}
    drawn = rows[(rows["restoration"] != "") & (rows["layers_changed"] > 0)]
    for where, part in drawn.groupby(["adapter", "precision", "restoration"], sort=False):
        ordered = part.sort_values("strength")
        good = ordered[ordered["value"] <= most]
        found[where] = float((good if len(good) else ordered.sort_values("value", kind="stable"))["strength"].iloc[0])
    return found


def chosen_variants(update: Variant, names: Sequence[str], choice: Mapping[tuple[str, str, str], float]) -> list[Variant]:
    """The update under each named restoration at its chosen strength; those without a choice are left out.

    Removed modules are those that safelora changes, where that was drawn: the control of it, not a restoration of its own.
    """
    own = {name: choice[where] for name in names if (where := (update.adapter, update.precision, name)) in choice}
    if REMOVED in own:
        own[REMOVED] = choice.get((update.adapter, update.precision, "safelora"), own[REMOVED])
    return [replace(update, restoration=name, strength=strength) for name, strength in own.items()]


def foundations(updates: Sequence[Variant]) -> list[Variant]:
    """The aligned model in every low precision that the updates are served in: what a restoration can at best bring back."""
    precisions = dict.fromkeys(update.precision for update in updates)
    return [Variant(updates[0].model, updates[0].seed, precision) for precision in precisions if precision != "bf16"]


def changed_counts(table: pd.DataFrame, measured: Sequence[Variant]) -> dict[Variant, int]:
    """How many modules each variant's restoration changed, as the curves counted them; 0 without one, all under SaLoRA."""
    rows = table[table["module"] == ""].drop_duplicates(list(results.KEY))
    drawn = dict(zip(variants.from_table(rows), rows["layers_changed"], strict=True))
    every = int(rows["layers_changed"].max())
    return {variant: int(drawn.get(variant, every if variant.restoration else 0)) for variant in measured}
