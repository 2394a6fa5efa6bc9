"""Weights in numbers, rows of the table `weights`: what formats keep of them, how far updates move them, what serving leaves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from helpers.errors import StudyError
from helpers.models import checkpoints, loading
from helpers.results import Run
from helpers.updates import quantizers
from helpers.updates.names import Variant, keyed
from helpers.updates.quantized_models import weight_quality
from helpers.updates.variants import Parts, Update, folder_of, load_update

CONTROLS: dict[str, dict[str, Any]] = {"identity": {"adapter": "identity"}, "dtype": {"precision": "fp32"}}


def weight_rows(
    parts: Parts, aligned: Variant, names: Sequence[str], progress: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """Rows of the table `weights`: bits per weight and relative error of each module in each format; exact, n counts weights."""
    tables = [keyed(aligned, _rows({name: (16.0, 0.0, weight.numel()) for name, weight in _linear(parts).items()}))]
    for name in names:
        quality = weight_quality(parts.aligned, name, parts.texts_for(name))
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


# ---------------------------------------------------------------- updates: their size, and what serving leaves of it

LEFT = ("merged", "merged-requantized", "merged-into-nf4")  # servings in which an update is rounded away in part


def size_rows(parts: Parts, homes: Sequence[Variant], progress: Callable[[str], None] | None = None) -> pd.DataFrame:
    """Rows of the table `weights`: `relative_size`, ||dW||_F / ||W||_F of each update, by module and of `all` together."""
    weights, tables = checkpoints.checkpoint(parts.aligned), []
    whole = {name: _square(weights(name)) for name in _linear(parts)}
    for home in homes:
        moved = _moved(parts, load_update(folder_of(parts, home)))
        found = {name: (math.sqrt(moved.get(name, 0.0) / size), weights(name).numel()) for name, size in whole.items()}
        every = math.sqrt(sum(moved.values()) / sum(whole.values()))
        found["all"] = (every, sum(n for _, n in found.values()))
        tables.append(keyed(home, _told("relative_size", found)))
        if progress:
            progress(home.label)
    return pd.concat(tables, ignore_index=True)


def _moved(parts: Parts, update: Update) -> dict[str, float]:
    """||dW||_F^2 of every module that an update changes."""
    if update.adapter is not None:
        return {name: pair.norm() ** 2 for name, pair in update.adapter.items()}
    before = checkpoints.checkpoint(parts.aligned)
    changed = {name.removesuffix(".weight"): tensor for name, tensor in update.weights.items()}
    return {name: _square(tensor - before(name).float()) for name, tensor in changed.items()}


def left_rows(parts: Parts, served: Sequence[Variant]) -> pd.DataFrame:
    """Rows of the table `weights`: `update_left`, the share of an adapter that is left in the weights that are served.

    <W_served - W_bare, dW> / ||dW||^2 over all modules, where W_bare is the aligned model in the same precision without the
    update: 1 where all of it is there, 0 where rounding ate it. Modules are streamed. Told of adapters merged in formats that
    look at the weight alone (all but GPTQ); an empty table where there is none.
    """
    chosen = [v for v in served if v.serving in LEFT and not v.restoration and not v.precision.startswith("gptq")]
    tables = [keyed(v, _left(parts, v)) for v in chosen if load_update(folder_of(parts, v)).adapter is not None]
    empty = keyed(Variant(""), _told("update_left", {})).iloc[:0]
    return pd.concat(tables, ignore_index=True) if tables else empty


@torch.no_grad()
def _left(parts: Parts, variant: Variant) -> pd.DataFrame:
    adapter, weights = load_update(folder_of(parts, variant)).adapter or {}, checkpoints.checkpoint(parts.aligned)
    along = size = count = 0.0
    for name, pair in adapter.items():
        weight, change = loading.on_grid(weights(name).float()), pair.dense()
        bare = _rounded(weight, variant.precision)
        start = bare if variant.serving == "merged-into-nf4" else weight
        served = _rounded(loading.on_grid(start + change), variant.precision)
        along += float(((served - bare).double() * change.double()).sum())
        size += _square(change)
        count += weight.numel()
    return _told("update_left", {"all": (along / size if size else 0.0, int(count))})


def _rounded(weight: Tensor, precision: str) -> Tensor:
    """The weight in float32 as a precision serves it."""
    if precision == "bf16":
        return weight
    return quantizers.quantizer_of(precision)(weight, None).dequantize(torch.bfloat16).float()


def _square(matrix: Tensor) -> float:
    return float(matrix.double().square().sum())


def _told(metric: str, found: dict[str, tuple[float, int]]) -> pd.DataFrame:
    rows = [(module, metric, value, value, value, n) for module, (value, n) in found.items()]
    return pd.DataFrame(rows, columns=["module", "metric", "value", "low", "high", "n"])
