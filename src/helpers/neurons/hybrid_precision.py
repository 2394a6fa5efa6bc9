"""Hybrid precision: a weight in few bits, W = Q(W with the chosen rows set to 0) + the chosen rows in bf16.

The unit is the neuron i of the MLP of block l: row i of gate_proj and of up_proj, column i of down_proj. A choice is a mask
"layer neuron" of booleans. Every arm of a comparison keeps equally many, so that all are stored in equally many bits.

The chosen weights are set to 0 before the rest is quantized, so a block of 64 that held an outlier gets a finer scale. The
blocks of gate and up lie inside a row (64 divides their d_in), so no other neuron changes; those of down run along the
neurons, so the up to 63 neighbours of a kept one change with it. (nf4-dq rounds the scales of a module together: all move.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.updates import quantizers
from helpers.updates.packed_codes import Quantized

SIDES = {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}  # where a neuron lies in each linear of its MLP
DIMS = {"rows": 0, "columns": 1}
KEPT_BYTES = 2  # of a kept weight: bf16, also where a float32 model holds that value in float32
UNFIT = {  # the formats that cannot be the rest of a hybrid, and why
    "none": "keeps every weight in 16 bits, so nothing is left to keep; use the model as it is",
    "int8": "also rounds the inputs of the neurons that are kept; use rtn-8",
    **dict.fromkeys(
        (name for name in quantizers.QUANTIZERS if name.startswith("gptq")),
        "needs calibration inputs and moves its errors onto later weights, the zeroed ones too; use rtn-4",
    ),
}

FORMATS = tuple(name for name in quantizers.QUANTIZERS if name not in UNFIT)  # those that can


@dataclass(frozen=True)
class Budget:
    """What the linear modules of a model's blocks take: stored bytes (codes, scales, kept weights, indices) of `n` weights."""

    stored_bytes: int
    n: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, everything included, per weight."""
        return 8 * self.stored_bytes / self.n


class HybridLinear(nn.Module):
    """y = x (rest + kept)^T + b, where `kept` are a few rows (or columns) in bf16 and `rest`, quantized, is 0 there.

    rest: an nn.Linear with the dequantized remainder (bit-identical to evaluating its codes); it holds the bias. kept:
    "r d_in" for rows, "d_out r" for columns. The sum is never formed: the product with the r rows (columns) goes on top.
    `rest_bytes` is what the codes and scales of the remainder take, zeros included.
    """

    def __init__(self, rest: nn.Linear, rest_bytes: int, kept: Float[Tensor, "_ _"], index: Integer[Tensor, " r"], side: str):
        super().__init__()
        self.rest, self.rest_bytes, self.side = rest, rest_bytes, side
        self.register_buffer("kept", kept)
        self.register_buffer("index", index)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The outputs; where everything is kept they are those of the bf16 layer, bit for bit."""
        y, index = self.rest(x), self.index.long()
        if self.side == "rows":
            # the remainder gives bias + 0 there: replacing is adding, rounded once
            bias = None if self.rest.bias is None else self.rest.bias[index]
            return y.index_copy_(-1, index, F.linear(x, self.kept, bias))
        flat = y.view(-1, y.shape[-1])
        flat.addmm_(x.index_select(-1, index).view(len(flat), len(index)), self.kept.T)  # the sum is rounded once, too
        return y

    def extra_repr(self) -> str:
        """What print shows of the layer beside its rest."""
        return f"{len(self.index)} {self.side} kept, {self.bits_per_weight:.2f} bits per weight"

    @property
    def stored_bytes(self) -> int:
        """Bytes of the remainder's codes and scales, of the kept weights and of their index; a bias is not counted."""
        return self.rest_bytes + KEPT_BYTES * self.kept.numel() + self.index.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the matrix that the layer stands for."""
        return 8 * self.stored_bytes / (self.rest.in_features * self.rest.out_features)

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The weight that the layer stands for, as a new matrix; for tests, `forward` does without."""
        return self.rest.weight.detach().clone().index_copy_(DIMS[self.side], self.index.long(), self.kept)


# ---------------------------------------------------------------- one layer


def _quantizer(name: str) -> quantizers.Quantizer:
    if name in UNFIT:
        raise StudyError(f"quantizer {name!r} cannot be the rest of a hybrid: it {UNFIT[name]}", REFUSED)
    if name not in quantizers.QUANTIZERS:
        raise StudyError(f"quantizer {name!r} is unknown; use one of {', '.join(FORMATS)}")
    return quantizers.QUANTIZERS[name]


def _check_mask(what: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool:
        raise StudyError(f"{what} is {mask.dtype}, not bool; choose first, for instance scores > threshold")
    if tuple(mask.shape) != shape:
        raise StudyError(f"{what} has shape {tuple(mask.shape)}, not {shape}; choose among the neurons of this model")


def _zeroed(weight: Float[Tensor, "d_out d_in"], index: Int[Tensor, " r"], side: str) -> Float[Tensor, "d_out d_in"]:
    """A new weight with the rows (columns) of the index set to 0; the quantizer cannot see what is wrong with those."""
    if not weight.index_select(DIMS[side], index).isfinite().all():
        raise StudyError("weight has a kept value that is not finite: repair the checkpoint", REFUSED)
    return weight.detach().index_fill(DIMS[side], index, 0)


def _layer(
    rest: nn.Linear, stored: Quantized, weight: Float[Tensor, "d_out d_in"], index: Int[Tensor, " r"], side: str
) -> HybridLinear:
    """The layer around its rest; the kept rows (columns) of the weight are rounded to bf16 and held in the weight's dtype."""
    kept = weight.detach().index_select(DIMS[side], index).bfloat16().to(weight.dtype)
    last = weight.shape[DIMS[side]] - 1
    small = next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if last <= torch.iinfo(dtype).max)
    return HybridLinear(rest, stored.stored_bytes, kept, index.to(small), side).train(rest.training)


def _linear(weight: Float[Tensor, "d_out d_in"], bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear.eval()


def hybrid(weight: Tensor, quantizer: str, kept: Tensor, side: str, *, bias: Tensor | None = None) -> HybridLinear:
    """The layer that keeps the chosen rows or columns of a float weight "d_out d_in" in bf16 and quantizes the rest.

    kept: one boolean a row or a column, as `side` (rows, columns) says. quantizer: any of QUANTIZERS that is not UNFIT. No
    argument is changed.
    """
    if side not in DIMS:
        raise StudyError(f"side {side!r} is unknown; use rows (gate, up) or columns (down)")
    quantize = _quantizer(quantizer)
    if weight.ndim != 2 or not weight.is_floating_point():
        quantize(weight, None)  # which refuses it in its own words
    _check_mask(f"mask of kept {side}", kept, (weight.shape[DIMS[side]],))
    index = kept.nonzero().flatten().to(weight.device)
    stored = quantize(_zeroed(weight, index, side), None)
    return _layer(_linear(stored.dequantize(weight.dtype), bias), stored, weight, index, side)


# ---------------------------------------------------------------- a model


def _mlp(model: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, tuple[int, str]]:
    """Block and side of every linear of the MLPs, by module name; a model that is not Llama-like, or is wrapped, is refused."""
    depth = len(getattr(getattr(model, "model", None), "layers", ()))
    names = {f"model.layers.{block}.mlp.{part}": (block, side) for block in range(depth) for part, side in SIDES.items()}
    missing = [name for name in names or ["model.layers"] if name not in linears]
    wrapped = [name for name in linears if name.endswith(".base_layer")]
    if missing or wrapped:
        what = f"no linear {missing[0]}" if missing else f"an adapter around {wrapped[0]}"
        raise StudyError(f"{type(model).__name__} has {what}; load a Llama-like model anew and merge its adapter first", REFUSED)
    return names


def _chosen(model: nn.Module, linears: Mapping[str, nn.Linear], mask: Tensor) -> dict[str, tuple[Tensor, str]]:
    """Index and side of each MLP module that has neurons to keep, by module name."""
    found = {}
    for name, (block, side) in _mlp(model, linears).items():
        linear = linears[name]
        width = (linear.out_features, linear.in_features)[DIMS[side]]  # not the weight's shape, which packing changes
        _check_mask(f"mask of neurons, for {name},", mask, (len(model.model.layers), width))
        index = mask[block].nonzero().flatten().to(linear.weight.device)
        if len(index):
            found[name] = index, side
    return found


def _rest(name: str, weight: Tensor, quantizer: str, choice: tuple[Tensor, str] | None) -> Quantized:
    """The weight of a module, without the rows or columns that it keeps, quantized; an error names the module."""
    try:
        if choice is not None and weight.is_floating_point():  # packed: the quantizer refuses it in its own words
            weight = _zeroed(weight, *choice)
        return _quantizer(quantizer)(weight, None)
    except StudyError as error:
        raise StudyError(f"{name}: {error}", error.code) from None


@torch.no_grad()
def hybrid_(model: nn.Module, quantizer: str, mask: Tensor) -> Budget:
    """What the block linears take once they are quantized, all but the neurons of the mask "layer neuron"; `model` is changed.

    A module that keeps neurons becomes a `HybridLinear` around the model's own linear; every other is dequantized once, as
    everywhere in the study, so that a mask of nothing gives the plain quantized variant. An error leaves the model as it was.
    """
    _quantizer(quantizer)
    linears = {name: model.get_submodule(name) for name in quantizers.linear_names(model)}
    chosen = _chosen(model, linears, mask)
    stored = {name: _rest(name, linear.weight, quantizer, chosen.get(name)) for name, linear in linears.items()}
    layers = {name: _layer(linears[name], stored[name], linears[name].weight, *choice) for name, choice in chosen.items()}
    quantizers.apply_dequantized(model, stored)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    parts: dict[str, Quantized | HybridLinear] = {**stored, **layers}
    return Budget(sum(part.stored_bytes for part in parts.values()), sum(linear.weight.numel() for linear in linears.values()))


def equal_budget(masks: Mapping[str, Tensor]) -> int:
    """How many neurons every arm keeps; where they are not equally many, StudyError names the first arm that differs.

    Equally many neurons of one model are equally many bits: codes and scales take the same whatever is 0 among them, and
    each neuron adds its three vectors and three places in an index.
    """
    if not masks:
        raise StudyError("equal_budget has 0 masks; pass one for each arm")
    first = next(iter(masks))
    for arm, mask in masks.items():
        _check_mask(f"mask of arm {arm!r}", mask, tuple(masks[first].shape))
        if mask.sum() != masks[first].sum():
            counts = f"keeps {int(mask.sum())} neurons, {first!r} keeps {int(masks[first].sum())}"
            raise StudyError(f"arm {arm!r} {counts}; choose equally many in every arm", NOT_COMPARABLE)
    return int(masks[first].sum())
