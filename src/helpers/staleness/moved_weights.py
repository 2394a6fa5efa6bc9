"""Moved weights: what a variant's linear modules multiply by, and how far that moved, in all and along a monitor's direction."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.updates.lora import LowRank
from helpers.updates.quantizers import linear_names, read_linear4bit


def writers(weights: Mapping[str, Float[Tensor, "d_out d_in"]]) -> set[str]:
    """The names of the modules whose output is added to the residual stream, from the weights of a model's blocks in order.

    Every module of a block reads the stream or writes to it, so its width is the size that most of them have; of each part of
    a block (attention, MLP) the last module that puts out so many numbers writes to it.
    """
    sizes = Counter(size for weight in weights.values() for size in set(weight.shape))
    width = max(sizes, key=sizes.__getitem__, default=0)
    found = {name.rpartition(".")[0]: name for name, weight in weights.items() if len(weight) == width}
    return set(found.values())


def effective_weights(model: nn.Module) -> Iterator[tuple[str, Float[Tensor, "d_out d_in"]]]:
    """Name and float32 weight of each linear module inside the blocks, one at a time, as the model multiplies by it.

    Understands plain linear modules, bitsandbytes' 8 and 4 bit (dequantized), and PEFT's LoRA beside any of them, as
    base + scale * B A under the names of the unwrapped model. Rounding of activations, as in LLM.int8, is not a weight.
    """
    lora = _kind("peft.tuners.lora", "LoraLayer")
    inner = model.get_base_model() if isinstance(model, _kind("peft", "PeftModel")) else model
    owners = dict.fromkeys(name.partition(".lora_")[0].removesuffix(".base_layer") for name in linear_names(inner))
    for name in owners:
        module = inner.get_submodule(name)
        weight = _dense(module.get_base_layer() if isinstance(module, lora) else module)
        if isinstance(module, lora) and not module.disable_adapters:
            for adapter in (a for a in module.active_adapters if a in module.lora_A and a not in module.merged_adapters):
                weight = weight + _added(name, module, adapter)
        yield name, weight


def _kind(module: str, name: str) -> tuple[type[Any], ...]:
    """That class for `isinstance`, or none where nobody has imported its package (seconds): then nothing is one of its own."""
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()


@torch.no_grad()
def _dense(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    if isinstance(module, _kind("bitsandbytes.nn", "Linear4bit")):
        return read_linear4bit(module).dequantize(torch.float32)
    if isinstance(module, _kind("bitsandbytes.nn", "Linear8bitLt")):
        from bitsandbytes.functional import int8_vectorwise_dequant

        scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB  # the first forward pass moves them
        return int8_vectorwise_dequant(module.weight.data, scales).float()
    return module.weight.detach().float()


@torch.no_grad()
def _added(name: str, module: nn.Module, adapter: str) -> Float[Tensor, "d_out d_in"]:
    if adapter in module.lora_magnitude_vector or module.lora_bias[adapter]:
        raise StudyError(f"{name} holds more than plain LoRA (DoRA or a bias); merge it first", REFUSED)
    return LowRank(module.scaling[adapter] * module.lora_B[adapter].weight.float(), module.lora_A[adapter].weight).dense()


def along(layer: int, position: int) -> str:
    """The column of `weight_changes` for one direction: its layer and its place among that layer's directions."""
    return f"along_{layer}_{position}"


@torch.no_grad()
def weight_changes(
    before: Mapping[str, Float[Tensor, "d_out d_in"]],
    after: Iterable[tuple[str, Float[Tensor, "d_out d_in"]]],
    directions: Mapping[int, Float[Tensor, "d_model p"]],
) -> pd.DataFrame:
    """One row per module: block, writes (into the residual stream), d_out, change = ||dW||_F^2, weight = ||W||_F^2, and for
    writers ||dW^T w||^2 for the unit direction w of every column of `directions` (0 for the others).

    `before` are the aligned model's weights by module name, `after` comes from `effective_weights` of the variant. One dense
    difference is alive at a time, in float32; squares are summed in float64, where float32 was seen to be off by 1e-3.
    """
    columns = [along(layer, j) for layer, matrix in directions.items() for j in range(matrix.shape[1])]
    unit = torch.cat([m.float() / m.float().norm(dim=0, keepdim=True) for m in directions.values()], dim=1) if columns else None
    rows, writing = {}, writers(before)
    for name, weight in after:
        if name not in before or before[name].shape != weight.shape:
            raise StudyError(
                f"module {name!r} is missing or of another shape before; compare variants of one model", NOT_COMPARABLE
            )
        rows[name] = _change_row(name, before[name], weight, unit, columns, name in writing)
    if missing := [name for name in before if name not in rows]:
        raise StudyError(f"module {missing[0]!r} is missing after; compare variants of one model", NOT_COMPARABLE)
    return pd.DataFrame(list(rows.values()))


def _change_row(name: str, old: Tensor, new: Tensor, unit: Tensor | None, columns: Sequence[str], writes: bool) -> dict:
    change = new - old  # bf16 and float32 meet in float32
    found = [0.0] * len(columns)
    if writes and unit is not None:
        if len(unit) != len(change):
            raise StudyError(f"directions have {len(unit)} entries, {name!r} writes {len(change)}; use this model's probes")
        found = (change.T @ unit).double().square().sum(dim=0).tolist()
    block = int(next(part for part in name.split(".") if part.isdigit()))
    sizes = {"change": _squares(change), "weight": _squares(old.float())}
    return {
        "module": name,
        "block": block,
        "writes": writes,
        "d_out": len(change),
        **sizes,
        **dict(zip(columns, found, strict=True)),
    }


def _squares(matrix: Tensor) -> float:
    return float(matrix.square().sum(dim=1, dtype=torch.float64).sum())


def relative_change(changes: pd.DataFrame, layer: int) -> float:
    """sqrt(sum ||dW||_F^2) / sqrt(sum ||W||_F^2) over the modules of the first `layer` blocks, those that the monitor reads."""
    below = changes[changes["block"] < layer]
    return math.sqrt(below["change"].sum() / below["weight"].sum()) if below["weight"].sum() > 0 else math.nan


def output_overlap(changes: pd.DataFrame, layer: int, position: int = 0) -> float:
    """sum ||dW^T w||^2 / (sum ||dW||_F^2 / d_model) over the residual writers of the first `layer` blocks, w of unit length.

    1 is what a random direction gets in the mean, 0 what a direction off the change's output space gets, d_model the most.
    Ours: the energy of a projection, as in subspace overlap. nan where those modules did not change.
    """
    if (column := along(layer, position)) not in changes:
        raise StudyError(f"no direction {position} at layer {layer} among the weight changes; pass it to weight_changes")
    below = changes[changes["writes"] & (changes["block"] < layer)]
    size = (below["change"] / below["d_out"]).sum()
    return float(below[column].sum() / size) if size > 0 else math.nan
