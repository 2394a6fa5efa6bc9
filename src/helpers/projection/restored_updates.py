"""Restored updates: a trained update of a variant, projected by a restoration, for `updates.variants` to serve."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helpers import cache
from helpers.data import corpora, text_rows
from helpers.data.text_rows import Row
from helpers.definitions import RESTORE
from helpers.errors import StudyError
from helpers.models import checkpoints, compute, loading
from helpers.projection import alignment_matrix, quantized_subspaces, restorations, safety_inputs
from helpers.projection.restorations import RESTORATIONS, NamedRestoration, Prepared, Updates
from helpers.updates import lora
from helpers.updates.lora import LowRank
from helpers.updates.names import Variant
from helpers.updates.quantized_models import gptq_file
from helpers.updates.variants import Parts, Update, folder_of, load_update

SAFETY_ROWS = 64  # rows of the safety tuning that a restoration may read: none of an evaluation set is among them
NOTE = "prepared"  # the entry of a stored file that holds its scores and its order


@dataclass(frozen=True)
class Restorer:
    """Makes the restored update of a variant. Some restorations read rows of the safety tuning: those of these texts and seed."""

    texts: str = "embedded"
    seed: int = 0

    def __call__(self, parts: Parts, variant: Variant) -> Update:
        """The update as its restoration leaves it."""
        return _restored(parts, variant)

    def rows(self) -> tuple[Row, ...]:
        """Harmful prompts of the safety tuning with the refusals that were taught."""
        return tuple(corpora.alignment_rows(SAFETY_ROWS, 0, self.texts, self.seed))

    def reads(self, restoration: str) -> str:
        """What stands for the rows in a content key; empty for a restoration that reads none."""
        return text_rows.fingerprint(self.rows()) if RESTORATIONS[restorations.parse(restoration).name].reads else ""


def with_restorations(parts: Parts, texts: str = "embedded", seed: int = 0) -> Parts:
    """The same parts, from which `build_variant` makes restored variants too; parts that restore already stay as they are."""
    return parts if parts.restore is not None else replace(parts, restore=Restorer(texts, seed))


# ---------------------------------------------------------------- V


def alignment_pair(parts: Parts, source: str, modules: Sequence[str], scale: float = 1.0) -> alignment_matrix.Pair:
    """The pair whose difference V a restoration reads, for the named modules.

    source: "" (both checkpoints as they are), `<precision>-mixed` (the aligned one after quantizing and dequantizing, the base
    as it is) or `<precision>-both` (both after it). scale: how many times as large V is made before that. The same pair comes
    again, so that what was computed of it is found.
    """
    return _pair(parts.base, parts.aligned, _calibration(parts, source), parts.device, source, scale, tuple(modules))


def _calibration(parts: Parts, source: str) -> tuple[str, ...]:
    """The texts that the quantizer of a source is calibrated on, if it is."""
    return parts.texts_for(source.rpartition("-")[0]) if source.startswith("gptq") else ()


@lru_cache(64)
def _pair(
    base: Path, aligned: Path, calibration: tuple[str, ...], device: str, source: str, scale: float, modules: tuple[str, ...]
) -> alignment_matrix.Pair:
    if scale != 1:
        larger = quantized_subspaces.scaled(_pair(base, aligned, (), device, "", 1.0, modules), scale)
        return quantized_subspaces.quantized_pair(larger, source) if source else larger
    parts, (precision, _, sides) = Parts(base, aligned, calibration, device=device), source.rpartition("-")
    ours, theirs = (
        _dequantized(parts, folder, precision) if sides in quantized else checkpoints.checkpoint(folder)
        for folder, quantized in ((base, {"both"}), (aligned, {"both", "mixed"}))
    )
    return alignment_matrix.Pair(ours, theirs, modules)


def _dequantized(parts: Parts, folder: Path, precision: str) -> checkpoints.Weights:
    if not precision.startswith("gptq"):
        return alignment_matrix.quantized(checkpoints.checkpoint(folder), precision)
    return checkpoints.stored(gptq_file(loading.load(folder, on=parts.device), precision, parts.calibration))


# ---------------------------------------------------------------- an update under a restoration


def prepared(parts: Parts, variant: Variant, restoration: str) -> Prepared:
    """The restoration of the variant's update, all modules at once, of which `.at(strength)` takes a share.

    Of an adapter it is made once and then read from the cache: quantizing two models for their V takes longer than all else.
    """
    folder, named = folder_of(parts, variant), restorations.parse(restoration)
    update = load_update(folder)
    rule = RESTORATIONS[named.name]
    if update.adapter is None or rule.reads:
        return _made(parts, _changes(parts, update), named, restoration, variant.seed)
    pair = (loading.identity(parts.base), loading.identity(parts.aligned))
    calibration = text_rows.fingerprint(_calibration(parts, named.source))
    key = RESTORE.key(update=folder.name, pair=pair, calibration=calibration, restoration=restoration, seed=variant.seed,
                      **compute.machine(parts.device))  # fmt: skip
    make = partial(_made, parts, update.adapter, named, restoration, variant.seed)
    return _kept(cache.cache_path("restored", f"{key}.safetensors"), update.adapter, named, make)


def _changes(parts: Parts, update: Update) -> Updates:
    if update.adapter is not None:
        return update.adapter
    before = checkpoints.checkpoint(parts.aligned)  # whole weights: what they moved away from the aligned model
    modules = {name.removesuffix(".weight"): after for name, after in update.weights.items()}
    return {module: after - before(module).float() for module, after in modules.items()}


def _made(parts: Parts, changes: Updates, named: NamedRestoration, restoration: str, seed: int) -> Prepared:
    pair, inputs = alignment_pair(parts, named.source, tuple(changes), named.scale), None
    if RESTORATIONS[named.name].reads:
        restorer = parts.restore if isinstance(parts.restore, Restorer) else Restorer(seed=seed)
        inputs = safety_inputs.safety_inputs(parts.aligned, restorer.rows(), parts.device)
    return restorations.prepare(changes, pair, restoration, seed, inputs=inputs)


def _kept(path: Path, adapter: lora.Adapter, named: NamedRestoration, make: Callable[[], Prepared]) -> Prepared:
    """The prepared restoration of a file; made first where it is not there or cannot be read."""
    if path.is_file() and (kept := _read(path, adapter, named)):
        return kept
    found = make()
    note = json.dumps({"scores": found.scores.to_dict("list"), "order": found.order})
    lefts = {module: change.left.contiguous() for module, change in found.restored.items() if isinstance(change, LowRank)}
    cache.atomic_file(path, lambda temporary: save_file(lefts, temporary, metadata={NOTE: note}))
    return found


def _read(path: Path, adapter: lora.Adapter, named: NamedRestoration) -> Prepared | None:
    """What the file holds; None where it is torn or of another form."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})[NOTE])
            restored = {module: LowRank(file.get_tensor(module), pair.right) for module, pair in adapter.items()}
        return Prepared(named, dict(adapter), restored, pd.DataFrame(note["scores"]), tuple(note["order"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _restored(parts: Parts, variant: Variant) -> Update:
    if variant.strength is None:
        raise StudyError(f"restoration {variant.restoration!r} has no strength; give the share of modules that it changes")
    changes = prepared(parts, variant, variant.restoration).at(variant.strength).update
    if all(isinstance(change, lora.LowRank) for change in changes.values()):
        return Update(adapter=changes)
    before = checkpoints.checkpoint(parts.aligned)
    return Update(weights={f"{module}.weight": before(module).float() + change for module, change in changes.items()})
