"""Weights in few bits: one frozen form for every format, the quantizers by name, and the real bitsandbytes modules.

A quantizer takes a weight "d_out d_in" (and, for GPTQ, the gram of its calibration inputs) and returns a `Quantized`:
the tensors that would be stored, their bytes, and the way back to floating point. Only functions that say so in their
name (`apply_dequantized`, `to_bitsandbytes_`) change a model.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.console import over
from helpers.errors import REFUSED, StudyError
from helpers.models import meter

GROUP = 64  # weights that share a scale: bitsandbytes' default block, and a divisor of the embedded model's 576 and 1536
DAMPING = 0.01  # of the gram's mean diagonal, as in Frantar et al. (2023)
SMALLEST_SCALE = 2.0**-24  # the smallest fp16 above 0: an all-zero group keeps a scale that can be divided by
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip

Gram = Float[Tensor, "d_in d_in"]
Weight = Float[Tensor, "d_out d_in"]
Batches = Iterable[Mapping[str, Tensor]]


@cache
def _bnb():
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

    shape: tuple[int, int]
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


Quantizer = Callable[[Tensor, Tensor | None], Quantized]


def _checked(weight: Weight) -> Weight:
    """Return the weight, refused unless it is a float matrix that fp16 can hold (scales, and int8's input, are fp16)."""
    if weight.ndim != 2 or not weight.is_floating_point():
        form = f"{weight.dtype} {tuple(weight.shape)}"
        raise StudyError(f"weight is {form}, not a float matrix: quantize from the original checkpoint", REFUSED)
    largest = weight.detach().abs().max().item()
    if not largest < torch.finfo(torch.float16).max:  # written so that NaN is refused too
        raise StudyError(f"weight has a largest magnitude of {largest}: repair the checkpoint, fp16 ends at 65504", REFUSED)
    return weight.detach()


# --- whole and bitsandbytes formats


def keep_bf16(weight: Weight, gram: Gram | None = None) -> Quantized:
    """Return the weight in bf16, 16 bits: the control of all the others."""
    return Quantized(tuple(weight.shape), {"codes": _checked(weight).to(torch.bfloat16, copy=True)}, "bf16")


def int8(weight: Weight, gram: Gram | None = None) -> Quantized:
    """Return the weight as LLM.int8() stores it: codes round(127 w / absmax) with one fp32 absmax a row.

    Dettmers et al. (2022), arXiv 2208.07339. The served model also rounds the activations; that is not seen here.
    """
    codes, absmax, _ = _bnb().functional.int8_vectorwise_quant(_checked(weight).to(torch.float16))
    return Quantized(tuple(weight.shape), {"codes": codes, "absmax": absmax}, "int8")


def four_bit(weight: Weight, gram: Gram | None = None, *, kind: str = "nf4", double: bool = False) -> Quantized:
    """Return the weight in bitsandbytes' NF4 or FP4: a table of 16 values times the absmax of each block of 64.

    `double` also stores the absmax in 8 bits (blocks of 256, one offset). Dettmers et al. (2023), arXiv 2305.14314.
    """
    codes, state = _bnb().functional.quantize_4bit(
        _checked(weight).contiguous(), blocksize=GROUP, compress_statistics=double, quant_type=kind
    )
    return _from_state(codes, state)


def read_linear4bit(module: nn.Module) -> Quantized:
    """Return what a real Linear4bit stores; refused when bitsandbytes has repacked it for the CPU."""
    return _from_state(module.weight.data, module.weight.quant_state)


def _from_state(codes: UInt8[Tensor, "half 1"], state: object) -> Quantized:
    if getattr(state, "packing_format_for_cpu", False):
        raise StudyError("Linear4bit is packed for the CPU, its codes are reordered: load it with to_bitsandbytes_", REFUSED)
    tensors = {"codes": codes, "absmax": state.absmax}
    if state.nested:
        tensors |= {"nested_absmax": state.state2.absmax, "offset": state.offset}
    return Quantized(tuple(state.shape), tensors, state.quant_type)


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


@cache
def _nested_table(device: torch.device) -> Float[Tensor, "256"]:
    return _bnb().functional.create_dynamic_map().to(device)


def _decode_four_bit(stored: Quantized, dtype: torch.dtype) -> Weight:
    codes, absmax = stored.tensors["codes"], stored.tensors["absmax"]
    if absmax.ndim != 1:  # the CPU packing turns absmax into a matrix: the last chance to notice
        raise StudyError(f"{stored.format} codes are packed for the CPU: quantize anew from the checkpoint", REFUSED)
    if "offset" in stored.tensors:
        nested, table = stored.tensors["nested_absmax"], _nested_table(absmax.device)
        absmax = _bnb().functional.dequantize_blockwise(absmax, absmax=nested, code=table, blocksize=256)
        absmax = absmax + stored.tensors["offset"]
    state = _bnb().functional.QuantState(absmax, stored.shape, blocksize=GROUP, quant_type=stored.format, dtype=dtype, code=None)
    return _bnb().functional.dequantize_4bit(codes, state)


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


def _grouped(weight: Weight, group: int) -> Float[Tensor, "d_out groups group"]:
    """Return the weight in float32 by groups along d_in; a last partial group is filled with 0, which changes no grid."""
    return F.pad(weight.float(), (0, -weight.shape[1] % group)).unflatten(1, (-1, group))


def _grid(groups: Float[Tensor, "*rows group"], bits: int) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Return scale and zero of each group: the 2^bits steps from min(w, 0) to max(w, 0), so that 0 stays 0.

    The scale is rounded to fp16 before any code is chosen: codes are nearest on the grid that is stored.
    """
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=SMALLEST_SCALE)
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def _nearest(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return (weight / scale).round_().add_(zero).clamp_(0, 2**bits - 1)


def _uniform(shape: tuple[int, int], codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Quantized:
    packed = {"codes": pack(codes.to(torch.uint8), bits), "scale": scale.half(), "zero": pack(zero.to(torch.uint8), bits)}
    return Quantized(tuple(shape), packed, f"uniform-{bits}")


def _decode_uniform(stored: Quantized, dtype: torch.dtype, bits: int) -> Weight:
    scale = stored.tensors["scale"].float()
    zero = unpack(stored.tensors["zero"], bits, scale.shape).float()
    codes = _grouped(unpack(stored.tensors["codes"], bits, stored.shape), GROUP)
    return ((codes - zero[..., None]) * scale[..., None]).flatten(1)[:, : stored.shape[1]].to(dtype)


def rtn(weight: Weight, gram: Gram | None = None, *, bits: int = 4) -> Quantized:
    """Return the weight rounded to the nearest of 2^bits steps per group of 64 along d_in: w ~ scale (code - zero).

    fp16 scale, integer zero of `bits` bits: bits + (16 + bits) / 64 bits a weight where 64 divides d_in.
    """
    groups = _grouped(_checked(weight), GROUP)
    scale, zero = _grid(groups, bits)
    codes = _nearest(groups, scale[..., None], zero[..., None], bits).flatten(1)[:, : weight.shape[1]]
    return _uniform(weight.shape, codes, scale, zero, bits)


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
    scale, zero = _grid(columns.T, bits)
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
        raise StudyError(f"gptq-{bits} has {found} for d_in {weight.shape[1]}: call gptq_model or collect_grams")
    # A copy, d_in first: a column is then contiguous, and the corrections never reach the caller's weight.
    columns = _checked(weight).T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    spread = _propagation(gram)
    parts = []
    for start in range(0, len(columns), GROUP):
        here = slice(start, start + GROUP)
        codes, errors, scale, zero = _compensated(columns[here], spread[here, here], bits)
        columns[start + GROUP :] -= spread[here, start + GROUP :].T @ errors
        parts.append((codes, scale, zero))
    codes, scales, zeros = zip(*parts, strict=True)
    return _uniform(weight.shape, torch.cat(codes).T, torch.stack(scales, 1), torch.stack(zeros, 1), bits)


DECODERS: dict[str, Callable[[Quantized, torch.dtype], Tensor]] = {
    "bf16": lambda stored, dtype: stored.tensors["codes"].to(dtype, copy=True),
    "int8": lambda s, dtype: _bnb().functional.int8_vectorwise_dequant(s.tensors["codes"], s.tensors["absmax"]).to(dtype),
    "nf4": _decode_four_bit,
    "fp4": _decode_four_bit,
    **{f"uniform-{bits}": partial(_decode_uniform, bits=bits) for bits in (8, 4, 3, 2)},
}
QUANTIZERS: dict[str, Quantizer] = {
    "none": keep_bf16,
    "int8": int8,
    "nf4": four_bit,
    "nf4-dq": partial(four_bit, double=True),
    "fp4": partial(four_bit, kind="fp4"),
    **{f"rtn-{bits}": partial(rtn, bits=bits) for bits in (8, 4, 3, 2)},
    "gptq-4": gptq,
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
        groups = _grouped(weight, group)
        scale, zero = (grid[..., None] for grid in _grid(groups, bits))
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


def _block_of(name: str) -> str | None:
    """Return the path of the transformer block that holds this module: up to its first number, None outside the blocks."""
    found = re.match(r"((?:.*?\.)?\d+)\.", name)
    return found and found[1]


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of the nn.Linear modules inside the transformer blocks, in order; head and embeddings are outside."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _block_of(name)]
    if not names:
        raise StudyError(f"{type(model).__name__} has no linear module inside numbered blocks: pass a causal language model")
    return names


def _quantizer(name: str) -> Quantizer:
    if name not in QUANTIZERS:
        raise StudyError(f"quantizer '{name}' is unknown: use one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def _quantize_module(model: nn.Module, module: str, quantizer: Quantizer, gram: Gram | None) -> Quantized:
    try:
        return quantizer(model.get_submodule(module).weight, gram)
    except StudyError as error:
        raise StudyError(f"{module}: {error}", error.code) from None


def quantize_model(
    model: nn.Module,
    name: str,
    grams: Mapping[str, Gram] | None = None,
    progress: Callable[[str], object] | None = None,
) -> dict[str, Quantized]:
    """Return each block linear's weight quantized by `name`, by module name; the model is left as it is.

    `progress` is called with each module's name when it is done.
    """
    quantizer, done = _quantizer(name), {}
    for module in over("modules", linear_names(model)):
        done[module] = _quantize_module(model, module, quantizer, (grams or {}).get(module))
        if progress:
            progress(module)
    return done


@torch.no_grad()
def apply_dequantized(model: nn.Module, quantized: Mapping[str, Quantized]) -> None:
    """Write the dequantized weights into the model's own linear modules, in their dtype: the model is changed in place."""
    for name, stored in quantized.items():
        weight = model.get_submodule(name).weight
        weight.copy_(stored.dequantize(weight.dtype))


BITSANDBYTES = {
    "int8": {"has_fp16_weights": False},
    "nf4": {"quant_type": "nf4", "compress_statistics": False},
    "nf4-dq": {"quant_type": "nf4", "compress_statistics": True},
    "fp4": {"quant_type": "fp4", "compress_statistics": False},
}


def _bitsandbytes_linear(linear: nn.Linear, name: str) -> nn.Linear:
    """Return the real bitsandbytes module for one linear, quantized on its device, CPU weight packing off."""
    options, size, bias = BITSANDBYTES[name], (linear.in_features, linear.out_features), linear.bias is not None
    if name == "int8":
        new = _bnb().nn.Linear8bitLt(*size, bias=bias, device="meta", **options)
        new.weight = _bnb().nn.Int8Params(_checked(linear.weight), requires_grad=False, **options)
    else:
        new = _bnb().nn.Linear4bit(*size, bias=bias, device="meta", compute_dtype=linear.weight.dtype, **options)
        new.weight = _bnb().nn.Params4bit(_checked(linear.weight), requires_grad=False, module=new, **options)
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


# --- calibration


@contextmanager
def _grams_into(grams: dict[str, Gram], model: nn.Module, names: Iterable[str], mask: Tensor | None) -> Iterator[None]:
    """Add the grams of one forward pass to `grams`; modules that read the very same tensor (q/k/v) share one gram."""
    last: dict[str, object] = {"input": None, "name": ""}

    def record(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = args[0]
        if inputs is last["input"]:
            grams.setdefault(name, grams[last["name"]])
            return
        last.update(input=inputs, name=name)
        masked = mask is not None and mask.shape == inputs.shape[:-1]
        rows = (inputs[mask.bool()] if masked else inputs.flatten(0, -2)).float()
        grams[name] = grams[name].addmm_(rows.T, rows) if name in grams else rows.T @ rows

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(partial(record, name)).remove)
        yield


def _forward(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    device = next(model.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask") if key in batch}
    getattr(model, "base_model", model)(**inputs, use_cache=False)  # base_model: without the head


@torch.no_grad()
def collect_grams(model: nn.Module, batches: Batches, names: Iterable[str] | None = None) -> dict[str, Gram]:
    """Return G = X^T X "d_in d_in" in float32 of each named module's inputs X, padding left out; hooks go, even after an error.

    `batches` are dicts of `input_ids` and, where padded, `attention_mask`. All modules are seen on the unquantized model.
    """
    grams: dict[str, Gram] = {}
    names = list(names or linear_names(model))
    for batch in batches:
        with _grams_into(grams, model, names, batch.get("attention_mask")):
            _forward(model, batch)
    return grams


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
    names: Iterable[str] | None = None,
    name: str = "gptq-4",
    progress: Callable[[str], object] | None = None,
) -> dict[str, Quantized]:
    """Return the named linears quantized block by block, each block calibrated on the outputs of the quantized ones before.

    One forward pass over all calibration rows: on entry, a block runs once for its grams, is quantized, then runs as part of
    the pass. The model has its own weights again at the end, even after an error; `apply_dequantized` makes it the variant.
    """
    quantizer, batch, done = _quantizer(name), _joined(batches), {}
    blocks: dict[str, list[str]] = {}
    for module in names or linear_names(model):
        blocks.setdefault(_block_of(module), []).append(module)

    with ExitStack() as undo:
        turns = over("blocks", blocks)
        undo.callback(turns.close)

        def on_entry(inside: list[str], block: nn.Module, args: tuple, kwargs: dict) -> None:
            next(turns, None)
            grams: dict[str, Gram] = {}
            with _grams_into(grams, model, inside, batch["attention_mask"]):
                block.forward(*args, **kwargs)  # not the call, which would enter here again
            meter.count(batch["input_ids"].numel() / len(blocks))
            for module in inside:
                done[module] = _quantize_module(model, module, quantizer, grams.get(module))
                weight = model.get_submodule(module).weight
                undo.callback(setattr, weight, "data", weight.data)
                weight.data = done[module].dequantize(weight.dtype)
                if progress:
                    progress(module)

        for path, inside in blocks.items():
            block = model.get_submodule(path)
            undo.callback(block.register_forward_pre_hook(partial(on_entry, inside), with_kwargs=True).remove)
        _forward(model, batch)
    return done
