"""Packed codes: a weight as it is stored, one frozen form for every format, and the way back to floating point."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from helpers.errors import REFUSED, StudyError

GROUP = 64  # weights that share a scale: bitsandbytes' default block, and a divisor of the embedded model's 576 and 1536
SMALLEST_SCALE = 2.0**-24  # the smallest fp16 above 0: an all-zero group keeps a scale that can be divided by

Gram = Float[Tensor, "d_in d_in"]
Weight = Float[Tensor, "d_out d_in"]


@cache
def bnb():
    """Return bitsandbytes, imported where it is first used: it takes longer than torch, and most of the study packs nothing."""
    # Said once at import and once a call; both are harmless, and neither may drown a notebook.
    for noisy in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight as it is stored; `format` is the key of its decoder.

    The constant tables of a format (16 values of NF4, 256 of its nested state) belong to the code, not to the weight:
    they are neither kept in `tensors` nor counted in `stored_bytes`.
    """

    shape: tuple[int, ...]
    tensors: dict[str, Tensor]
    format: str

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Weight:
        """Return the weight "d_out d_in" that these codes stand for, in `dtype`, rounded once from float32."""
        return DECODERS[self.format](self, dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored tensors: packed codes, scales, zeros, absmax and nested state."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zeros included, per weight."""
        return 8 * self.stored_bytes / math.prod(self.shape)


def checked(weight: Weight) -> Weight:
    """Return the weight, refused unless it is a float matrix that fp16 can hold (scales, and int8's input, are fp16)."""
    if weight.ndim != 2 or not weight.is_floating_point():
        form = f"{weight.dtype} {tuple(weight.shape)}"
        raise StudyError(f"weight is {form}, not a float matrix: quantize from the original checkpoint", REFUSED)
    largest = weight.detach().abs().max().item()
    if not largest < torch.finfo(torch.float16).max:  # written so that NaN is refused too
        raise StudyError(f"weight has a largest magnitude of {largest}: repair the checkpoint, fp16 ends at 65504", REFUSED)
    return weight.detach()


# --- bitsandbytes' formats


def from_state(codes: UInt8[Tensor, "half 1"], state: Any) -> Quantized:
    """Return the 4-bit codes with what bitsandbytes' quantization state says of them; refused when packed for the CPU."""
    if getattr(state, "packing_format_for_cpu", False):
        raise StudyError("Linear4bit is packed for the CPU, its codes are reordered: load it with to_bitsandbytes_", REFUSED)
    tensors = {"codes": codes, "absmax": state.absmax}
    if state.nested:
        tensors |= {"nested_absmax": state.state2.absmax, "offset": state.offset}
    return Quantized(tuple(state.shape), tensors, state.quant_type)


@cache
def _nested_table(device: torch.device) -> Float[Tensor, "256"]:
    return bnb().functional.create_dynamic_map().to(device)


def _decode_four_bit(stored: Quantized, dtype: torch.dtype) -> Weight:
    codes, absmax = stored.tensors["codes"], stored.tensors["absmax"]
    if absmax.ndim != 1:  # the CPU packing turns absmax into a matrix: the last chance to notice
        raise StudyError(f"{stored.format} codes are packed for the CPU: quantize anew from the checkpoint", REFUSED)
    if "offset" in stored.tensors:
        nested, table = stored.tensors["nested_absmax"], _nested_table(absmax.device)
        absmax = bnb().functional.dequantize_blockwise(absmax, absmax=nested, code=table, blocksize=256)
        absmax = absmax + stored.tensors["offset"]
    state = bnb().functional.QuantState(absmax, stored.shape, blocksize=GROUP, quant_type=stored.format, dtype=dtype, code=None)
    return bnb().functional.dequantize_4bit(codes, state)


# --- round to nearest, and GPTQ: the same stored form


def pack(codes: UInt8[Tensor, "..."], bits: int) -> UInt8[Tensor, " n"]:
    """Return the codes in `bits` bits each: eight codes fill `bits` bytes, little end first, the last eight padded by 0."""
    flat = codes.reshape(-1)
    eights = F.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for i in range(8):
        words |= eights[:, i].long() << bits * i
    return torch.stack([(words >> 8 * i & 255).to(torch.uint8) for i in range(bits)], 1).flatten()


def unpack(packed: UInt8[Tensor, " n"], bits: int, shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Return the codes that `pack` stored, in `shape`."""
    octets = packed.view(-1, bits)
    words = torch.zeros(len(octets), dtype=torch.int64, device=packed.device)
    for i in range(bits):
        words |= octets[:, i].long() << 8 * i
    codes = torch.stack([(words >> bits * i & 2**bits - 1).to(torch.uint8) for i in range(8)], 1).flatten()
    return codes[: math.prod(shape)].view(shape)


def grouped(weight: Weight, group: int) -> Float[Tensor, "d_out groups group"]:
    """Return the weight in float32 by groups along d_in; a last partial group is filled with 0, which changes no grid."""
    return F.pad(weight.float(), (0, -weight.shape[1] % group)).unflatten(1, (-1, group))


def grid(groups: Float[Tensor, "*rows group"], bits: int) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Return scale and zero of each group: the 2^bits steps from min(w, 0) to max(w, 0), so that 0 stays 0.

    The scale is rounded to fp16 before any code is chosen: codes are nearest on the grid that is stored.
    """
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=SMALLEST_SCALE)
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def uniform(shape: tuple[int, ...], codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Quantized:
    """Return codes, fp16 scales and zeros of uniform steps as they are stored."""
    packed = {"codes": pack(codes.to(torch.uint8), bits), "scale": scale.half(), "zero": pack(zero.to(torch.uint8), bits)}
    return Quantized(tuple(shape), packed, f"uniform-{bits}")


def _decode_uniform(stored: Quantized, dtype: torch.dtype, bits: int) -> Weight:
    scale = stored.tensors["scale"].float()
    zero = unpack(stored.tensors["zero"], bits, scale.shape).float()
    codes = grouped(unpack(stored.tensors["codes"], bits, stored.shape), GROUP)
    return ((codes - zero[..., None]) * scale[..., None]).flatten(1)[:, : stored.shape[1]].to(dtype)


DECODERS: dict[str, Callable[[Quantized, torch.dtype], Tensor]] = {
    "bf16": lambda stored, dtype: stored.tensors["codes"].to(dtype, copy=True),
    "int8": lambda s, dtype: bnb().functional.int8_vectorwise_dequant(s.tensors["codes"], s.tensors["absmax"]).to(dtype),
    "nf4": _decode_four_bit,
    "fp4": _decode_four_bit,
    **{f"uniform-{bits}": partial(_decode_uniform, bits=bits) for bits in (8, 4, 3, 2)},
}
