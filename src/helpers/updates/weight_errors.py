"""The arithmetic of chapter 02: what formats keep of the weights, as rows of the table `weights`."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from helpers.errors import StudyError
from helpers.models import loading
from helpers.results import Run
from helpers.updates import quantizers
from helpers.updates.names import Variant, keyed
from helpers.updates.quantized_models import weight_quality
from helpers.updates.variants import Parts

CONTROLS: dict[str, dict[str, Any]] = {"identity": {"adapter": "identity"}, "dtype": {"precision": "fp32"}}


def weight_rows(
    parts: Parts, aligned: Variant, names: Sequence[str], progress: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """Rows of the table `weights`: bits per weight and relative error of each module in each format; exact, n counts weights."""
    tables = [keyed(aligned, _rows({name: (16.0, 0.0, weight.numel()) for name, weight in _linear(parts).items()}))]
    for name in names:
        quality = weight_quality(parts.aligned, name, parts.calibration)
        tables.append(keyed(Variant(aligned.model, aligned.seed, name), _rows(quality)))
        if progress:
            progress(name)
    return pd.concat(tables, ignore_index=True)


def _linear(parts: Parts) -> dict[str, Tensor]:
    model = loading.load(parts.aligned).model
    return {name: model.get_submodule(name).weight for name in quantizers.linear_names(model)}


def _rows(quality: dict[str, tuple[float, float, int]]) -> pd.DataFrame:
    found = [
        (module, metric, value, value, value, entries)
        for module, (bits, error, entries) in quality.items()
        for metric, value in (("bits_per_weight", bits), ("relative_error", error))
    ]
    return pd.DataFrame(found, columns=["module", "metric", "value", "low", "high", "n"])


def bits(weights: pd.DataFrame) -> pd.Series:
    """Bits per weight of each precision over all modules, weighted by their sizes."""
    rows = weights[weights["metric"] == "bits_per_weight"]
    total = (rows["value"] * rows["n"]).groupby(rows["precision"]).sum()
    return total / rows.groupby("precision")["n"].sum()


def variants_of(run: Run, controls: Sequence[str], names: Sequence[str]) -> list[Variant]:
    """The controls and one variant a format, all of the aligned model."""
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise StudyError(f"unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}")
    return [
        *(Variant(run.model, run.seed, **CONTROLS[name]) for name in controls),
        *(Variant(run.model, run.seed, name) for name in names),
    ]
