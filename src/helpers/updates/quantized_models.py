"""Precision: the linear weights of a model as a quantizer keeps them, whatever the format.

Weight-only formats are served through weights dequantized once; LLM.int8 in its own modules; GPTQ, the one slow format, is
computed once and kept by content.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import cache
from helpers.cache import cache_path
from helpers.definitions import QUANTIZE
from helpers.errors import StudyError
from helpers.models import compute, loading
from helpers.models.loading import LanguageModel, encode_text
from helpers.updates import quantizers

CALIBRATION_TOKENS = 128
Texts = Sequence[str]


def calibration_batches(language: LanguageModel, texts: Texts) -> list[dict[str, Tensor]]:
    """The calibration texts as batches of token ids, cut to CALIBRATION_TOKENS, shorter ones left out if any is long enough."""
    rows = [encode_text(language.tokenizer, text, CALIBRATION_TOKENS) for text in texts]
    rows = [row for row in rows if len(row) == CALIBRATION_TOKENS] or rows
    return [{"input_ids": torch.tensor([row])} for row in rows]


def quantize_(language: LanguageModel, precision: str, calibration: Texts = ()) -> None:
    """Changes the model in place: its blocks' linear weights become what `precision` keeps of them.

    Weight-only formats are evaluated through weights dequantized once (bit-identical to the 4-bit modules, tested);
    LLM.int8 also rounds the activations, so it runs in its own modules.
    """
    if precision in {"bf16", "none", "fp32"}:  # the dtype was chosen at loading
        return
    if precision == "int8":
        quantizers.to_bitsandbytes_(language.model, "int8")
    elif precision.startswith("gptq"):
        _gptq_(language, precision, calibration)
    else:
        quantizers.apply_dequantized(language.model, quantizers.quantize_model(language.model, precision))


def _gptq_(language: LanguageModel, precision: str, calibration: Texts) -> None:
    with torch.no_grad():
        for name, weight in load_file(gptq_file(language, precision, calibration)).items():
            language.model.get_submodule(name).weight.copy_(weight)


def gptq_file(language: LanguageModel, precision: str, calibration: Texts) -> Path:
    """The file of the model's weights after GPTQ, by module name; made where it is not there."""
    path = _gptq_path(language, precision, calibration)
    if not path.is_file():
        if not calibration:
            raise StudyError(f"precision {precision!r} needs calibration texts; set calibration_rows to at least 8")
        done = quantizers.gptq_model(language.model, calibration_batches(language, calibration), name=precision)
        note = {name: str(stored.bits_per_weight) for name, stored in done.items()}
        tensors = {name: stored.dequantize(language.model.get_submodule(name).weight.dtype) for name, stored in done.items()}
        cache.atomic_file(path, lambda temporary: save_file(tensors, temporary, metadata=note))
    return path


def _gptq_path(language: LanguageModel, precision: str, calibration: Texts) -> Path:
    """Where the result is kept, since GPTQ is the one slow quantizer; the key is what its passes see: model and tokens."""
    tokens = [batch["input_ids"].tolist() for batch in calibration_batches(language, calibration)]
    of = {"model": loading.content_hash(language.model), "tokens": tokens, "precision": precision}
    return cache_path("quantized", f"{QUANTIZE.key(**of, **compute.machine(language.device))}.safetensors")


def weight_quality(folder: Path, precision: str, calibration: Texts = ()) -> dict[str, tuple[float, float, int]]:
    """Bits per weight, relative error and number of weights of each linear module of a folder's model in a precision."""
    language = loading.load(folder)
    weights = {name: language.model.get_submodule(name).weight.clone() for name in quantizers.linear_names(language.model)}
    if not precision.startswith("gptq"):
        done = quantizers.quantize_model(language.model, precision)
        return {
            name: (q.bits_per_weight, quantizers.relative_error(weights[name], q), weights[name].numel())
            for name, q in done.items()
        }
    path = _gptq_path(language, precision, calibration)
    quantize_(language, precision, calibration)
    with safe_open(path, framework="pt") as file:
        bits = file.metadata()
    served = {name: language.model.get_submodule(name).weight for name in weights}
    return {name: (float(bits[name]), _distance(weights[name], served[name]), weights[name].numel()) for name in weights}


def _distance(weight: Tensor, other: Tensor) -> float:
    return float((weight.double() - other.double()).norm() / weight.double().norm())
