"""Alignment in other doses, and what chapter 08's table says to a reader.

A weak alignment drowns in the noise of quantization; to see where it would not, V is made larger, either by scaling it or by
tuning the base model harder on the same rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from helpers import alignment, corpora, dequantized, tables, variants
from helpers.errors import StudyError
from helpers.pairs import Pair
from helpers.variants import Parts

SHOWN = {
    "noise_to_signal": "noise over signal",
    "above_edge_energy": "energy above the edge",
    "cosine_excess": "C alike, beyond chance",
}


def harder(
    parts: Parts, factor: float, tuning: Mapping[str, float], seed: int, origin: str,
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:  # fmt: skip
    """The folder of a base model that was aligned at `factor` times the rate, for as many steps, on the same rows.

    tuning: refusals, benign, steps and lr as chapter 01 noted them.
    """
    if not tuning["lr"]:
        raise StudyError("the aligned model was not tuned here, so it cannot be tuned harder; leave `harder` empty")
    rows = corpora.alignment_rows(int(tuning["refusals"]), int(tuning["benign"]), origin, seed)
    recipe = alignment.recipe(int(tuning["steps"]), len(rows), factor * tuning["lr"], seed)
    options = {"origin": origin, "must_hold": False, "device": parts.device, "progress": progress}
    return alignment.align(parts.base, rows, recipe, alignment.Target(), **options).folder


def sources(
    parts: Parts, names: Sequence[str], scales: Sequence[float], harder_folders: Mapping[float, Path], modules: Sequence[str]
) -> dict[str, Pair]:
    """The pair of every source by name: `bf16`, those named, and each `-both` source with V made larger.

    `nf4-both x4` is V scaled by 4 before both models are quantized; `nf4-both, lr x4` the alignment tuned at 4 times the rate.
    GPTQ is left out there: its calibration belongs to the aligned model as it is.
    """
    found = {"bf16": variants.alignment_pair(parts, "", modules)}
    found |= {name: variants.alignment_pair(parts, name, modules) for name in names}
    for name in names:
        if name.endswith("-both") and not name.startswith("gptq"):
            for scale in scales:
                found[f"{name} x{scale:g}"] = dequantized.quantized_pair(dequantized.scaled(found["bf16"], scale), name)
            for factor, folder in harder_folders.items():
                tuned = replace(parts, aligned=folder)
                found[f"{name}, lr x{factor:g}"] = variants.alignment_pair(tuned, name, modules)
    return found


def truths(
    parts: Parts, scales: Sequence[float], harder_folders: Mapping[float, Path], modules: Sequence[str]
) -> dict[str, Pair]:
    """The full-precision pair of every dose by its name, which the sources of that dose are compared with."""
    plain = variants.alignment_pair(parts, "", modules)
    found = {"bf16": plain} | {f"x{scale:g}": dequantized.scaled(plain, scale) for scale in scales}
    tuned = {factor: replace(parts, aligned=folder) for factor, folder in harder_folders.items()}
    return found | {f"lr x{factor:g}": variants.alignment_pair(one, "", modules) for factor, one in tuned.items()}


def dose(source: str) -> str:
    """The name of the dose of V that a source has: `bf16` (as it is), `x4` (scaled) or `lr x4` (tuned harder)."""
    return source.partition(" ")[2] or "bf16"


def rows(
    found: Mapping[str, Pair], references: Mapping[str, Pair], modules: Sequence[str], ks: Sequence[int], seed: int,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table `subspaces`: every source against the full-precision V of its own dose."""
    parts = []
    for name, truth in references.items():
        own = {source: pair for source, pair in found.items() if source != name and dose(source) == name}
        parts.append(dequantized.rows({name: truth, **own}, name, modules, ks, seed, progress))
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------- as a reader sees it


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a source: noise, what stands above it, and overlaps by k, as medians over modules with their intervals."""
    rows = table[(table["module"] == "all") & (table["metric"].isin(SHOWN) | (table["metric"] == "overlap"))].reset_index(
        drop=True
    )
    cells, found = tables.with_intervals(rows), {}
    for row, cell in zip(rows.to_dict("records"), cells, strict=True):
        name = SHOWN.get(row["metric"], f"overlap, k = {row['k']}")
        found.setdefault(row["source"], {"source": row["source"]})[name] = cell
    return pd.DataFrame(list(found.values()))


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """One row a source: how alike its order of the modules is, and which share of the chosen ones is common, beside chance."""
    wanted = table["metric"].isin(["score_spearman", "jaccard", "jaccard_null"])
    rows = table[wanted].reset_index(drop=True)
    cells, found = tables.with_intervals(rows), {}
    for row, cell in zip(rows.to_dict("records"), cells, strict=True):
        share = f"{100 * float(row['k']):g} % chosen" if row["k"] else ""
        words = {
            "score_spearman": "rank correlation of s",
            "jaccard": f"in common, {share}",
            "jaccard_null": f"by chance, {share}",
        }
        found.setdefault(row["source"], {"source": row["source"]})[words[row["metric"]]] = cell
    return pd.DataFrame(list(found.values()))


def sentences(table: pd.DataFrame, source: str) -> dict[str, str]:
    """The numbers that the prose names, of one source: noise over signal, and the overlap at the smallest k beside chance."""
    rows = table[table["source"] == source]
    medians = rows[rows["module"] == "all"]
    k = str(min(map(int, medians.loc[medians["metric"] == "overlap", "k"]), default=0))

    def told(metric: str, part: pd.DataFrame) -> str:
        return tables.of_row(part[part["metric"] == metric])

    null, at = rows[(rows["metric"] == "overlap_null") & (rows["k"] == k)], medians[medians["k"] == k]
    return {
        "source": tables.Said(source, medians, "column source"),
        "source-noise": told("noise_to_signal", medians),
        "overlap-k": tables.Said(k, at, "column k"),
        "source-overlap": told("overlap", at),
        "null-overlap": tables.Said(f"{null['value'].median():.2g}", null, "median") if len(null) else "(not measured)",
    }
