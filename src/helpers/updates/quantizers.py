"""QUANTIZERS: weights in few bits by name, and models made of them, real bitsandbytes modules among them.

A quantizer takes a weight "d_out d_in" (and, for GPTQ, the gram of its calibration inputs) and returns a `Quantized`:
the tensors that would be stored, their bytes, and the way back to floating point. Only functions that say so in their
name (`apply_dequantized`, `to_bitsandbytes_`) change a model.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from helpers.console import over
from helpers.errors import StudyError
from helpers.updates.packed_codes import GROUP, Gram, Quantized, Weight, bnb, checked, from_state, grid, grouped, uniform

DAMPING = 0.01  # of the gram's mean diagonal, as in Frantar et al. (2023)

NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip


Quantizer = Callable[[Tensor, Tensor | None], Quantized]


# --- whole and bitsandbytes formats


def keep_bf16(weight: Weight, gram: Gram | None = None) -> Quantized:
    """Return the weight in bf16, 16 bits: the control of all the others."""
    return Quantized(tuple(weight.shape), {"codes": checked(weight).to(torch.bfloat16, copy=True)}, "bf16")


def int8(weight: Weight, gram: Gram | None = None) -> Quantized:
    """Return the weight as LLM.int8() stores it: codes round(127 w / absmax) with one fp32 absmax a row.

    Dettmers et al. (2022), arXiv 2208.07339. The served model also rounds the activations; that is not seen here.
    """
    codes, absmax, _ = bnb().functional.int8_vectorwise_quant(checked(weight).to(torch.float16))
    return Quantized(tuple(weight.shape), {"codes": codes, "absmax": absmax}, "int8")


def four_bit(weight: Weight, gram: Gram | None = None, *, kind: str = "nf4", double: bool = False) -> Quantized:
    """Return the weight in bitsandbytes' NF4 or FP4: a table of 16 values times the absmax of each block of 64.

    `double` also stores the absmax in 8 bits (blocks of 256, one offset). Dettmers et al. (2023), arXiv 2305.14314.
    """
    codes, state = bnb().functional.quantize_4bit(
        checked(weight).contiguous(), blocksize=GROUP, compress_statistics=double, quant_type=kind
    )
    return from_state(codes, state)


def read_linear4bit(module: nn.Module) -> Quantized:
    """Return what a real Linear4bit stores; refused when bitsandbytes has repacked it for the CPU."""
    return from_state(module.weight.data, module.weight.quant_state)


def nf4_codes(weight: Weight) -> tuple[UInt8[Tensor, " n"], Float[Tensor, " blocks"]]:
    """Return the NF4 code of each weight, row-major, and the absmax of each block of 64: our own reference.

    The code is the nearest table value to w / absmax; a value on a midpoint takes the lower one. Equal to bitsandbytes
    bit for bit, hence its two details: whole blocks are multiplied by the reciprocal while a last partial block is
    divided, and a zero block keeps absmax 0 while a partial one is raised to 1e-38. Published table: arXiv 2305.14314.
    """
    flat = weight.detach().reshape(-1).float()
    table = torch.tensor(NF4, device=flat.device)
    whole = flat.numel() // GROUP * GROUP
    blocks, rest = flat[:whole].view(-1, GROUP), flat[whole:]
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).flatten()
    if rest.numel():
        last = rest.abs().max().clamp(min=1e-38)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, rest / last])
    return torch.bucketize(scaled.clamp(-1, 1), (table[:-1] + table[1:]) / 2).to(torch.uint8), absmax


def _nearest(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return (weight / scale).round_().add_(zero).clamp_(0, 2**bits - 1)


def rtn(weight: Weight, gram: Gram | None = None, *, bits: int = 4) -> Quantized:
    """Return the weight rounded to the nearest of 2^bits steps per group of 64 along d_in: w ~ scale (code - zero).

    fp16 scale, integer zero of `bits` bits: bits + (16 + bits) / 64 bits a weight where 64 divides d_in.
    """
    groups = grouped(checked(weight), GROUP)
    scale, zero = grid(groups, bits)
    codes = _nearest(groups, scale[..., None], zero[..., None], bits).flatten(1)[:, : weight.shape[1]]
    return uniform(weight.shape, codes, scale, zero, bits)


# --- GPTQ: column by column, each error spread over the columns to come


def _propagation(gram: Gram) -> Gram:
    """Return S "d_in d_in", unit upper triangular: column j takes -S[i, j] times the error made on column i < j.

    S is the factor U of the damped inverse gram, H^-1 = U^T U, each row over its diagonal. With H = R R^T and R upper
    triangular (Cholesky from the last column), U = R^-1: H^-1 itself is never formed. Dead columns (never excited) get a
    unit diagonal: they are rounded and move nothing. Only the factoring, where H is nearly singular, needs float64.
    """
    hessian = gram.double().clone()
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[gram.diagonal() == 0] = 1.0
    factor = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1).float()
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(gram), device=gram.device), upper=True)
    return inverse / inverse.diagonal()[:, None]


def _compensated(columns: Float[Tensor, "group d_out"], spread: Float[Tensor, "group group"], bits: int) -> tuple:
    """Return codes, errors, scale and zero of one group, column by column, each corrected for those before it."""
    scale, zero = grid(columns.T, bits)
    units = columns / scale  # in steps of the grid a column costs four operations: the loop is mostly overhead
    levels, errors = torch.empty_like(units), torch.empty_like(units)
    for i in range(len(units)):
        aim = torch.addmv(units[i], errors[:i].T, spread[:i, i], alpha=-1)
        torch.clamp(aim.round(), -zero, 2**bits - 1 - zero, out=levels[i])
        torch.sub(aim, levels[i], out=errors[i])
    return levels + zero, errors * scale, scale, zero


def gptq(weight: Weight, gram: Gram | None = None, *, bits: int = 4) -> Quantized:
    """Return codes that minimise tr(E G E^T), E = W - dequantized, G = X^T X, greedily: rtn's form, rtn's bytes.

    Frantar et al. (2023), arXiv 2210.17323: columns are rounded one by one and each error is spread over those to come.
    The lazy-update blocks are the groups, so every grid is fitted to weights that carry all earlier corrections.
    Needs the gram; refuses one of another size.
    """
    if gram is None or gram.shape != (weight.shape[1],) * 2:
        found = "no gram" if gram is None else f"a gram of {tuple(gram.shape)}"
        raise StudyError(f"gptq-{bits} has {found} for d_in {weight.shape[1]}: call gptq_model")
    # A copy, d_in first: a column is then contiguous, and the corrections never reach the caller's weight.
    columns = checked(weight).T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    spread = _propagation(gram)
    parts = []
    for start in range(0, len(columns), GROUP):
        here = slice(start, start + GROUP)
        codes, errors, scale, zero = _compensated(columns[here], spread[here, here], bits)
        columns[start + GROUP :] -= spread[here, start + GROUP :].T @ errors
        parts.append((codes, scale, zero))
    codes, scales, zeros = zip(*parts, strict=True)
    return uniform(weight.shape, torch.cat(codes).T, torch.stack(scales, 1), torch.stack(zeros, 1), bits)


QUANTIZERS: dict[str, Quantizer] = {
    "none": keep_bf16,
    "int8": int8,
    "nf4": four_bit,
    "nf4-dq": partial(four_bit, double=True),
    "fp4": partial(four_bit, kind="fp4"),
    **{f"rtn-{bits}": partial(rtn, bits=bits) for bits in (8, 4, 3, 2)},
    **dict.fromkeys(("gptq-4", "gptq-4-refusals", "gptq-4-harmful"), gptq),  # calibrated on `corpora.CALIBRATIONS`
}


# --- errors and the straight-through estimator


def relative_error(weight: Weight, quantized: Quantized) -> float:
    """Return ||W - Q||_F / ||W||_F with Q as served in bf16; sums in float64, as fp32 norms of big matrices are off by 1e-3."""
    return output_error(weight, quantized, None)


def output_error(weight: Weight, quantized: Quantized, gram: Gram | None) -> float:
    """Return ||X (W - Q)^T||_F / ||X W^T||_F = sqrt(tr(E G E^T) / tr(W G W^T)) on the inputs X of the gram G = X^T X.

    Without a gram, G is the identity. A zero weight has error 0.
    """
    whole = weight.detach().double()
    error = whole - quantized.dequantize().double()
    lost, kept = (((m if gram is None else m @ gram.double()) * m).sum().item() for m in (error, whole))
    return math.sqrt(max(lost, 0.0) / kept) if kept > 0 else 0.0


class _StraightThrough(torch.autograd.Function):
    """Rounding with the derivative of the identity; w + (q - w).detach() would not give q's own bits."""

    @staticmethod
    def forward(ctx, weight: Weight, bits: int, group: int) -> Weight:
        groups = grouped(weight, group)
        scale, zero = (part[..., None] for part in grid(groups, bits))
        return ((_nearest(groups, scale, zero, bits) - zero) * scale).flatten(1)[:, : weight.shape[1]].to(weight.dtype)

    @staticmethod
    def backward(ctx, gradient: Weight) -> tuple[Weight, None, None]:
        return gradient, None, None


def fake_quantize(weight: Weight, bits: int = 4, group: int = GROUP) -> Weight:
    """Return the weight rounded as `rtn` rounds it, in its own dtype; gradients pass unchanged.

    Straight-through estimator, Bengio et al. (2013), arXiv 1308.3432: forward q(w), backward dL/dw := dL/dq.
    """
    return _StraightThrough.apply(weight, bits, group)


# --- models


def block_of(name: str) -> str:
    """Return the path of the transformer block that holds this module: up to its first number, empty outside the blocks."""
    found = re.match(r"((?:.*?\.)?\d+)\.", name)
    return found[1] if found else ""


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of the nn.Linear modules inside the transformer blocks, in order; head and embeddings are outside."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and block_of(name)]
    if not names:
        raise StudyError(f"{type(model).__name__} has no linear module inside numbered blocks: pass a causal language model")
    return names


def quantizer_of(name: str) -> Quantizer:
    """Return the quantizer of that name; an unknown one is refused with the names there are."""
    if name not in QUANTIZERS:
        raise StudyError(f"quantizer '{name}' is unknown: use one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def quantize_module(model: nn.Module, module: str, quantizer: Quantizer, gram: Gram | None = None) -> Quantized:
    """Return one module's weight quantized; an error names the module."""
    try:
        return quantizer(model.get_submodule(module).weight, gram)
    except StudyError as error:
        raise StudyError(f"{module}: {error}", error.code) from None


def quantize_model(
    model: nn.Module,
    name: str,
) -> dict[str, Quantized]:
    """Return each block linear's weight quantized by `name`, by module name; the model is left as it is."""
    quantizer, done = quantizer_of(name), {}
    for module in over("modules", linear_names(model)):
        done[module] = quantize_module(model, module, quantizer)
    return done


@torch.no_grad()
def apply_dequantized(model: nn.Module, quantized: Mapping[str, Quantized]) -> None:
    """Write the dequantized weights into the model's own linear modules, in their dtype: the model is changed in place."""
    for name, stored in quantized.items():
        weight = model.get_submodule(name).weight
        weight.copy_(stored.dequantize(weight.dtype))


BITSANDBYTES: dict[str, dict[str, Any]] = {
    "int8": {"has_fp16_weights": False},
    "nf4": {"quant_type": "nf4", "compress_statistics": False},
    "nf4-dq": {"quant_type": "nf4", "compress_statistics": True},
    "fp4": {"quant_type": "fp4", "compress_statistics": False},
}


def _bitsandbytes_linear(linear: nn.Linear, name: str) -> nn.Linear:
    """Return the real bitsandbytes module for one linear, quantized on its device, CPU weight packing off."""
    options, size, bias = BITSANDBYTES[name], (linear.in_features, linear.out_features), linear.bias is not None
    if name == "int8":
        new = bnb().nn.Linear8bitLt(*size, bias=bias, device="meta", **options)
        new.weight = bnb().nn.Int8Params(checked(linear.weight), requires_grad=False, **options)
    else:
        new = bnb().nn.Linear4bit(*size, bias=bias, device="meta", compute_dtype=linear.weight.dtype, **options)
        new.weight = bnb().nn.Params4bit(checked(linear.weight), requires_grad=False, module=new, **options)
        # On AVX512-BF16 a no-grad eval forward would repack the codes in place: wrong gradients, merge and save, silently.
        new.support_avx512bf16_for_cpu = False
    new.bias = linear.bias
    return new.to(linear.weight.device).train(linear.training)


def to_bitsandbytes_(model: nn.Module, name: str) -> nn.Module:
    """Return the same model, changed in place: its block linears become real bitsandbytes modules, frozen.

    `name` is int8, nf4, nf4-dq or fp4. This is the one loader of such models, since packing must be off from the start.
    """
    if name not in BITSANDBYTES:
        raise StudyError(f"'{name}' is no bitsandbytes format: use one of {', '.join(BITSANDBYTES)}")
    for path in linear_names(model):
        model.set_submodule(path, _bitsandbytes_linear(model.get_submodule(path), name))
    # PEFT looks here before it chooses layers that dequantize on merge.
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = name == "int8", name != "int8"
    return model
