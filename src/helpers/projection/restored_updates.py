"""Restored updates: a trained update of a variant, projected by a restoration, for `updates.variants` to serve."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from helpers.errors import StudyError
from helpers.models import checkpoints, loading
from helpers.projection import alignment_matrix, restorations
from helpers.updates import lora
from helpers.updates.names import Variant
from helpers.updates.quantized_models import gptq_file
from helpers.updates.variants import Parts, Update, folder_of, load_update


def with_restorations(parts: Parts) -> Parts:
    """The same parts, from which `build_variant` makes restored variants too."""
    return replace(parts, restore=_restored)


def alignment_pair(parts: Parts, source: str, modules: Sequence[str]) -> alignment_matrix.Pair:
    """The pair whose difference V a restoration reads, for the named modules.

    source: "" (both checkpoints as they are), `<precision>-mixed` (the aligned one after quantizing and dequantizing, the base
    as it is) or `<precision>-both` (both after it). The same pair comes again, so that what was computed of it is found.
    """
    return _pair(parts.base, parts.aligned, parts.calibration, parts.device, source, tuple(modules))


@lru_cache(64)
def _pair(base: Path, aligned: Path, calibration: tuple[str, ...], device: str, source: str, modules: tuple[str, ...]):
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


def prepared(parts: Parts, variant: Variant, restoration: str) -> restorations.Prepared:
    """The restoration of the variant's update, all modules at once, of which `.at(strength)` takes a share."""
    update = load_update(folder_of(parts, variant))
    changes = update.adapter
    if changes is None:  # whole weights: what they moved away from the aligned model
        before = checkpoints.checkpoint(parts.aligned)
        modules = {name.removesuffix(".weight"): after for name, after in update.weights.items()}
        changes = {module: after - before(module).float() for module, after in modules.items()}
    pair = alignment_pair(parts, restorations.parse(restoration).source, tuple(changes))
    return restorations.prepare(changes, pair, restoration, variant.seed)


def _restored(parts: Parts, variant: Variant) -> Update:
    if variant.strength is None:
        raise StudyError(f"restoration {variant.restoration!r} has no strength; give the share of modules that it changes")
    changes = prepared(parts, variant, variant.restoration).at(variant.strength).update
    if all(isinstance(change, lora.LowRank) for change in changes.values()):
        return Update(adapter=changes)
    before = checkpoints.checkpoint(parts.aligned)
    return Update(weights={f"{module}.weight": before(module).float() + change for module, change in changes.items()})
