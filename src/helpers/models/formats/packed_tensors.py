"""Packed tensors: how quantization libraries store a weight, and the weight "d_out d_in" that it stands for, in float32.

Each decoder takes the tensors of one module by what follows its name, and the settings of `quantization_config`. None needs the
library that packed them: bitsandbytes (NF4, FP4, LLM.int8), GPTQ and AWQ, compressed-tensors (int4, int8, fp8).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import REFUSED, StudyError

Parts = Mapping[str, Tensor]
Settings = Mapping[str, Any]
DENSE = "load it with transformers and the library that packed it, model.dequantize() and save_pretrained in bf16, and give that"
COMPRESSED = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the i-th of eight columns stands in a word


@dataclass(frozen=True)
class PackedFormat:
    """A way of storing: `marks`, what one packed module alone has; `parts`, all that belongs to it; and the way back."""

    marks: tuple[str, ...]
    parts: tuple[str, ...]
    decode: Callable[[Parts, Settings], Float[Tensor, "d_out d_in"]]


def words_to_codes(words: Int[Tensor, "*rows n"], bits: int) -> Int[Tensor, "*rows m"]:
    """The codes of `bits` bits in rows of 32-bit words, lowest bits first; a code of 3 bits may reach over two words."""
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits)
        return ((words.long()[..., None] >> shifts) & (2**bits - 1)).flatten(-2)
    flat = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=-1, bitorder="little")
    codes = flat.reshape(*words.shape[:-1], -1, bits) @ (1 << np.arange(bits))
    return torch.from_numpy(codes.astype(np.int64))


# ---------------------------------------------------------------- bitsandbytes


def _four_bit(parts: Parts, settings: Settings) -> Float[Tensor, "d_out d_in"]:
    """quant_map[code] * absmax of its block; absmax may itself be stored in 8 bits (Dettmers et al. 2023, arXiv 2305.14314)."""
    state = json.loads(bytes(next(part for name, part in parts.items() if ".quant_state." in name).tolist()))
    absmax = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:
        outer = parts["weight.nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))[: absmax.numel()]
        absmax = parts["weight.nested_quant_map"].float()[absmax.long()] * outer + float(state["nested_offset"])
    packed = parts["weight"].contiguous().view(torch.uint8).flatten().long()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()  # the first of two in the upper half
    shape = tuple(state["shape"])
    scale = absmax.float().repeat_interleave(int(state["blocksize"]))
    count = int(np.prod(shape))
    return (parts["weight.quant_map"].float()[codes[:count]] * scale[:count]).view(shape)


def _eight_bit(parts: Parts, settings: Settings) -> Float[Tensor, "d_out d_in"]:
    """code * absmax of its row / 127 (Dettmers et al. 2022, arXiv 2208.07339)."""
    return parts["weight"].float() * (parts["SCB"].float() / 127)[:, None]


# ---------------------------------------------------------------- GPTQ and AWQ


def _gptq(parts: Parts, settings: Settings) -> Float[Tensor, "d_out d_in"]:
    """scale * (code - zero) by the group of each column; the first form of the format stores the zero less one."""
    bits, first = int(settings["bits"]), settings.get("checkpoint_format", "gptq") == "gptq"
    codes = words_to_codes(parts["qweight"].T, bits).float()  # d_out d_in
    zeros = words_to_codes(parts["qzeros"], bits)[:, : len(codes)].float() + first
    size = int(settings.get("group_size", -1))
    plain = torch.arange(codes.shape[1]) // (size if size > 0 else codes.shape[1])
    group = parts["g_idx"].long() if parts.get("g_idx") is not None and parts["g_idx"].numel() else plain
    return (codes - zeros.T[:, group]) * parts["scales"].float().T[:, group]


def _awq(parts: Parts, settings: Settings) -> Float[Tensor, "d_out d_in"]:
    """scale * (code - zero) by group, the columns of each word in AWQ's own order (Lin et al. 2024, arXiv 2306.00978)."""
    bits = int(settings.get("bits", settings.get("w_bit", 4)))
    if bits != 4 or str(settings.get("version", "gemm")).lower() != "gemm":
        told = f"AWQ of {bits} bits, version {settings.get('version')!r}"
        raise StudyError(f"{told}, is not read; give 4 bits, version gemm", REFUSED)
    codes, zeros = (_in_order(words_to_codes(parts[name], bits)).float() for name in ("qweight", "qzeros"))
    group = torch.arange(len(codes)) // (len(codes) // len(zeros))
    return ((codes - zeros[group]) * parts["scales"].float()[group]).T


def _in_order(codes: Int[Tensor, "n m"]) -> Int[Tensor, "n m"]:
    return codes.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1)


# ---------------------------------------------------------------- compressed-tensors


def _compressed(parts: Parts, settings: Settings) -> Float[Tensor, "d_out d_in"]:
    """scale * (code - zero), by row, group or tensor; packed codes are stored with half of their range added."""
    codes, zero, scale = parts.get("weight"), parts.get("weight_zero_point"), parts["weight_scale"].float()
    if "weight_packed" in parts:
        bits, shape = _bits(settings), parts["weight_shape"].tolist()
        codes = words_to_codes(parts["weight_packed"], bits)[:, : shape[1]] - 2 ** (bits - 1)
        if zero is not None and zero.dtype == torch.int32:
            zero = words_to_codes(zero.T, bits)[:, : shape[0]].T - 2 ** (bits - 1)
    assert codes is not None  # by the marks
    d_in = codes.shape[1]
    if scale.ndim == 2 and scale.shape[1] > 1:
        group = parts.get("weight_g_idx", torch.arange(d_in) // -(-d_in // scale.shape[1])).long()
        scale, zero = scale[:, group], zero[:, group] if zero is not None else None
    return (codes.float() - (0.0 if zero is None else zero.float())) * scale


def _bits(settings: Settings) -> int:
    """The bits of the weights, the same in every group of modules."""
    found = {int(group["weights"]["num_bits"]) for group in settings.get("config_groups", {}).values() if group.get("weights")}
    if len(found) != 1:
        told = ", ".join(map(str, sorted(found))) or "no"
        raise StudyError(f"compressed-tensors of {told} bits in one model are not read; {DENSE}", REFUSED)
    return found.pop()


FORMATS: dict[str, PackedFormat] = {
    "bitsandbytes 4 bit": PackedFormat(
        ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"),
        ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
        _four_bit,
    ),
    "bitsandbytes 8 bit": PackedFormat(("SCB",), ("weight", "weight_format"), _eight_bit),
    "gptq": PackedFormat(("qweight",), ("qzeros", "scales", "g_idx"), _gptq),
    "awq": PackedFormat(("qweight",), ("qzeros", "scales"), _awq),
    "compressed-tensors": PackedFormat(
        ("weight_packed", "weight_scale"),
        ("weight", "weight_shape", "weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point", "output_scale"),
        _compressed,
    ),
}


def format_of(settings: Settings) -> str:
    """The format, by its key in FORMATS, that a `quantization_config` speaks of; another is refused with what to do."""
    method = str(settings.get("quant_method", "")).lower()
    if method == "bitsandbytes" or "load_in_4bit" in settings:
        return f"bitsandbytes {4 if settings.get('load_in_4bit') else 8} bit"
    sparse = settings.get("sparsity_config") or {}
    if method == "compressed-tensors" and (settings.get("transform_config") or sparse.get("format", "dense") != "dense"):
        method = "compressed-tensors with sparsity or transforms"
    elif method == "compressed-tensors" and settings.get("format") not in COMPRESSED:
        method = f"compressed-tensors {settings.get('format')}"
    if method in FORMATS:
        return method
    raise StudyError(f"weights packed by {method[:30] or 'an unnamed method'!r} are not read; {DENSE}", REFUSED)
