"""Precision: the linear weights of a model as a quantizer keeps them, whatever the format.

Weight-only formats are served through weights dequantized once; LLM.int8 in its own modules; GPTQ, the one slow format and the
one that needs calibration texts, is computed once and kept by content.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import cache
from helpers.cache import cache_path
from helpers.console import over
from helpers.data import corpora, text_rows
from helpers.definitions import QUANTIZE
from helpers.errors import StudyError
from helpers.models import compute, loading, meter
from helpers.models.loading import LanguageModel, document_ids
from helpers.updates import quantizers
from helpers.updates.packed_codes import Gram, Quantized
from helpers.updates.quantizers import block_of, linear_names, quantize_module, quantizer_of

CALIBRATION_TOKENS = 128
PIECE = 110  # words: short texts are joined until they fill the tokens that a calibration row is cut to
Texts = Sequence[str]
Batches = Iterable[Mapping[str, Tensor]]


def calibration_batches(language: LanguageModel, texts: Texts) -> list[dict[str, Tensor]]:
    """The calibration texts as batches of token ids, cut to CALIBRATION_TOKENS, shorter ones left out if any is long enough."""
    rows = [document_ids(language.tokenizer, text, CALIBRATION_TOKENS) for text in texts]
    rows = [row for row in rows if len(row) == CALIBRATION_TOKENS] or rows
    return [{"input_ids": torch.tensor([row])} for row in rows]


# --- calibration


def calibration_kind(precision: str) -> str:
    """The kind of texts that a precision is calibrated on, as its name ends: `refusals` of gptq-4-refusals; else empty."""
    return "-".join(precision.split("-")[2:]) if precision.startswith("gptq") else ""


def calibration_texts(kind: str, n: int, origin: str = "embedded") -> list[str]:
    """`n` texts of a kind in hash order: C4 documents, or refusals and harmful prompts, joined to pieces of PIECE words.

    A quantizer that looks at inputs keeps best what it saw there; whether that matters for refusals is asked by other kinds.
    """
    return CALIBRATIONS[kind](n, origin)


def _pieces(texts: Sequence[str], n: int) -> list[str]:
    words = [word for text in texts for word in f"{text}\n\n".split(" ")]
    return [" ".join(words[start : start + PIECE]) for start in range(0, max(1, len(words) - PIECE + 1), PIECE)][:n]


def _refusal_texts(n: int, origin: str) -> list[str]:
    rows = corpora.sample("advbench/align", len(corpora.texts("advbench/align", origin)), origin)
    return _pieces([f"{row.prompt}\n{corpora.refusal_to(row)}" for row in rows], n)


def _harmful_texts(n: int, origin: str) -> list[str]:
    known = [row.prompt for name in ("advbench/align", "advbench/attack") for row in corpora.texts(name, origin)]
    return _pieces(text_rows.spread(known, len(known)), n)


CALIBRATIONS: dict[str, Callable[[int, str], list[str]]] = {
    "": lambda n, origin: corpora.sample("c4/calibration", n, origin),
    "refusals": _refusal_texts,
    "harmful": _harmful_texts,
}


@contextmanager
def grams_into(grams: dict[str, Gram], model: nn.Module, names: Iterable[str], mask: Tensor | None) -> Iterator[None]:
    """Add the grams of one forward pass to `grams`; modules that read the very same tensor (q/k/v) share one gram."""
    last: dict[str, Any] = {"input": None, "name": ""}

    def record(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = args[0]
        if inputs is last["input"]:
            grams.setdefault(name, grams[last["name"]])
            return
        last.update(input=inputs, name=name)
        real = inputs[mask.bool()] if mask is not None and mask.shape == inputs.shape[:-1] else inputs.flatten(0, -2)
        rows = real.float()
        grams[name] = grams[name].addmm_(rows.T, rows) if name in grams else rows.T @ rows

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(partial(record, name)).remove)
        yield


def _forward(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    device = next(model.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask") if key in batch}
    getattr(model, "base_model", model)(**inputs, use_cache=False)  # base_model: without the head


def _joined(batches: Batches) -> dict[str, Tensor]:
    """Return the batches as one, padded on the right to the longest; padding is masked out."""
    rows = [(batch["input_ids"], batch.get("attention_mask", torch.ones_like(batch["input_ids"]))) for batch in batches]
    if not rows:
        raise StudyError("gptq_model has 0 calibration batches: pass at least one")
    longest = max(ids.shape[1] for ids, _ in rows)
    ids, mask = (torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts]) for parts in zip(*rows, strict=True))
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def gptq_model(
    model: nn.Module,
    batches: Batches,
    name: str = "gptq-4",
) -> dict[str, Quantized]:
    """Return the block linears quantized block by block, each block calibrated on the outputs of the quantized ones before.

    One forward pass over all calibration rows: on entry, a block runs once for its grams, is quantized, then runs as part of
    the pass. The model has its own weights again at the end, even after an error; `apply_dequantized` makes it the variant.
    """
    quantizer, batch = quantizer_of(name), _joined(batches)
    done: dict[str, Quantized] = {}
    blocks: dict[str, list[str]] = {}
    for module in linear_names(model):
        blocks.setdefault(block_of(module), []).append(module)

    with ExitStack() as undo:
        turns = over("blocks", blocks)
        undo.callback(turns.close)

        def on_entry(inside: list[str], block: nn.Module, args: tuple, kwargs: dict) -> None:
            next(turns, None)
            grams: dict[str, Gram] = {}
            with grams_into(grams, model, inside, batch["attention_mask"]):
                block.forward(*args, **kwargs)  # not the call, which would enter here again
            meter.count(batch["input_ids"].numel() / len(blocks))
            for module in inside:
                done[module] = quantize_module(model, module, quantizer, grams.get(module))
                weight = model.get_submodule(module).weight
                undo.callback(setattr, weight, "data", weight.data)
                weight.data = done[module].dequantize(weight.dtype)

        for path, inside in blocks.items():
            block = model.get_submodule(path)
            undo.callback(block.register_forward_pre_hook(partial(on_entry, inside), with_kwargs=True).remove)
        _forward(model, batch)
    return done


# --- a whole model in one precision


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
    with cache.alone(path):
        if not path.is_file():
            if not calibration:
                raise StudyError(f"precision {precision!r} needs calibration texts; set calibration_rows to at least 8")
            done = gptq_model(language.model, calibration_batches(language, calibration), name=precision)
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
