"""Grams of all modules of an unquantized model at once: what GPTQ block by block is held against."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from helpers.updates import quantized_models, quantizers


@torch.no_grad()
def collect_grams(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str] = ()) -> dict[str, Tensor]:
    """G = X^T X "d_in d_in" in float32 of each named module's inputs X, padding left out; hooks go, even after an error."""
    grams: dict[str, Tensor] = {}
    names = list(names or quantizers.linear_names(model))
    for batch in batches:
        with quantized_models.grams_into(grams, model, names, batch.get("attention_mask")):
            quantized_models._forward(model, batch)
    return grams
