"""Alignment in other doses: V scaled, or tuned at another rate on the same rows (chapter 08).

A weak alignment drowns in the noise of quantization, and what SafeLoRA leaves of an update is linear in the size of V. To see
where both end, V is made larger; a rate below chapter 01's makes it smaller.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from helpers.data import corpora
from helpers.errors import StudyError
from helpers.projection import quantized_subspaces, restored_updates
from helpers.projection.alignment_matrix import Pair
from helpers.updates import safety_tuning
from helpers.updates.variants import Parts


def harder(
    parts: Parts, factor: float, tuning: Mapping[str, float], seed: int, origin: str,
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:  # fmt: skip
    """The folder of a base model that was aligned at `factor` times the rate (more or less), for as many steps, on the same rows.

    tuning: refusals, benign, steps and lr as chapter 01 noted them.
    """
    if not tuning["lr"]:
        raise StudyError("the aligned model was not tuned here, so it cannot be tuned harder; leave `harder` empty")
    rows = corpora.alignment_rows(int(tuning["refusals"]), int(tuning["benign"]), origin, seed)
    recipe = safety_tuning.safety_recipe(int(tuning["steps"]), len(rows), factor * tuning["lr"], seed)
    target = safety_tuning.Target()
    return safety_tuning.align(
        parts.base, rows, recipe, target, origin=origin, must_hold=False, device=parts.device, progress=progress
    ).folder


def sources(
    parts: Parts, names: Sequence[str], scales: Sequence[float], harder_folders: Mapping[float, Path], modules: Sequence[str]
) -> dict[str, Pair]:
    """The pair of every source by name: `bf16`, those named, and each `-both` source with V made larger.

    `nf4-both x4` is V scaled by 4 before both models are quantized; `nf4-both, lr x4` the alignment tuned at 4 times the rate.
    GPTQ is left out there: its calibration belongs to the aligned model as it is.
    """
    found = {"bf16": restored_updates.alignment_pair(parts, "", modules)}
    found |= {name: restored_updates.alignment_pair(parts, name, modules) for name in names}
    for name in names:
        if name.endswith("-both") and not name.startswith("gptq"):
            for scale in scales:
                found[f"{name} x{scale:g}"] = quantized_subspaces.quantized_pair(
                    quantized_subspaces.scaled(found["bf16"], scale), name
                )
            for factor, folder in harder_folders.items():
                tuned = replace(parts, aligned=folder)
                found[f"{name}, lr x{factor:g}"] = restored_updates.alignment_pair(tuned, name, modules)
    return found


def truths(
    parts: Parts, scales: Sequence[float], harder_folders: Mapping[float, Path], modules: Sequence[str]
) -> dict[str, Pair]:
    """The full-precision pair of every dose by its name, which the sources of that dose are compared with."""
    plain = restored_updates.alignment_pair(parts, "", modules)
    found = {"bf16": plain} | {f"x{scale:g}": quantized_subspaces.scaled(plain, scale) for scale in scales}
    tuned = {factor: replace(parts, aligned=folder) for factor, folder in harder_folders.items()}
    return found | {f"lr x{factor:g}": restored_updates.alignment_pair(one, "", modules) for factor, one in tuned.items()}


def dose(source: str) -> str:
    """The name of the dose of V that a source has: `bf16` (as it is), `x4` (scaled) or `lr x4` (tuned harder)."""
    return source.partition(" ")[2] or "bf16"


def stronger_rows(
    found: Mapping[str, Pair], references: Mapping[str, Pair], modules: Sequence[str], ks: Sequence[int], seed: int,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table `subspaces`: every source against the full-precision V of its own dose."""
    parts = []
    for name, truth in references.items():
        own = {source: pair for source, pair in found.items() if source != name and dose(source) == name}
        parts.append(quantized_subspaces.source_rows({name: truth, **own}, name, modules, ks, seed, progress))
    return pd.concat(parts, ignore_index=True)


def scaled_names(restoration: str, scales: Sequence[float], sources: Sequence[str]) -> list[str]:
    """The restoration with V made larger, from full precision and from each source that can be: the names of its points."""
    kept = [source for source in sources if not source.startswith("gptq")]
    return [f"{restoration}-x{scale:g}{end}" for scale in scales for end in ("", *(f":{source}" for source in kept))]
