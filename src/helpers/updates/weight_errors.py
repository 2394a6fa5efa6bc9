"""The arithmetic of chapter 02: what formats keep of the weights, as rows of the table `weights`."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from helpers import models, quantizers
from helpers.errors import StudyError
from helpers.measurements import keyed
from helpers.precision import weight_quality
from helpers.records import Run
from helpers.variants import Parts, Variant

CONTROLS = {"identity": {"adapter": "identity"}, "dtype": {"precision": "fp32"}}


def block_by_hand(weight: Tensor, shown: int = 8) -> pd.DataFrame:
    """The first weights of the first NF4 block: weight, weight over absmax, code, level, and what is read back."""
    codes, absmax = quantizers.nf4_codes(weight)
    block = weight.flatten()[: quantizers.GROUP].float()
    levels = torch.tensor(quantizers.NF4)[codes.flatten()[:shown].long()]
    scale = float(absmax[0])
    columns = {"weight": block[:shown], "weight / absmax": block[:shown] / scale, "level": levels, "read back": levels * scale}
    table = pd.DataFrame({name: values.tolist() for name, values in columns.items()})
    table.insert(2, "code", [str(code) for code in codes.flatten()[:shown].tolist()])
    return table


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
    model = models.load(parts.aligned).model
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


def format_table(weights: pd.DataFrame) -> pd.DataFrame:
    """One row a format: bits per weight, and the median, smallest and largest relative error of a module."""
    errors = weights[weights["metric"] == "relative_error"].groupby("precision")["value"].agg(["median", "min", "max", "size"])
    table = errors.assign(bits=bits(weights)).sort_values("bits", ascending=False).reset_index()
    table = table[["precision", "bits", "median", "min", "max", "size"]]
    return table.set_axis(["format", "bits per weight", "median error", "smallest", "largest", "modules"], axis=1)


def variants_of(run: Run, controls: Sequence[str], names: Sequence[str]) -> list[Variant]:
    """The controls and one variant a format, all of the aligned model."""
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise StudyError(f"unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}")
    return [
        *(Variant(run.model, run.seed, **CONTROLS[name]) for name in controls),
        *(Variant(run.model, run.seed, name) for name in names),
    ]
