"""Alignment matrices V = W_aligned - W_base of a pair of checkpoints, streamed module by module and never formed whole.

Weights come from functions `module name -> weight`: from a checkpoint, from a file of our cache, or quantized on the way.
Everything that the study needs of V is a thin product with it, taken over row blocks that stay in the processor's cache.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models.checkpoints import Weights
from helpers.updates import quantizers

ENTRIES = 2**19  # of a block, 128 rows of 4096: its 2 MB in float32 stay in the cache between the steps of a pass
HELD = 2**20  # entries up to which V is formed once for two passes; beyond, forming it again costs less than memory

Blocks = Iterable[tuple[slice, Float[Tensor, "rows d_in"]]]


# --- where weights come from


def quantized(weights: Weights, quantizer: str) -> Weights:
    """The same weights, quantized and dequantized to bf16 when they are asked for; every weight-only quantizer but GPTQ.

    The last module is kept, since more than one thing is asked of it in a row.
    """
    found = quantizers.QUANTIZERS.get(quantizer)
    if found is None:
        raise StudyError(f"quantizer {quantizer!r} is unknown; use one of {', '.join(quantizers.QUANTIZERS)}")
    if quantizer.startswith("gptq"):
        raise StudyError(f"quantizer {quantizer!r} needs calibration inputs; give its kept result to stored()")
    return lru_cache(1)(partial(_dequantized, weights, found))


def _dequantized(weights: Weights, quantizer: quantizers.Quantizer, module: str) -> Tensor:
    weight = weights(module)
    try:
        return quantizer(weight, None).dequantize()
    except StudyError as error:
        raise StudyError(f"{module}: {error}", error.code) from None


# --- V of one module


@dataclass(frozen=True, eq=False)
class Change:
    """V = aligned - base of one module, in float32 and never formed whole (but for `dense`)."""

    module: str
    base: Tensor
    aligned: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return tuple(self.base.shape)

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "rows d_in"]]]:
        """Rows of V, at most 2 MB at a time, in one buffer: a block is overwritten by the next."""
        (d_out, d_in), height = self.shape, max(1, ENTRIES // self.shape[1])
        buffer = torch.empty(min(height, d_out), d_in)
        for start in range(0, d_out, height):
            rows = slice(start, min(start + height, d_out))
            block = buffer[: rows.stop - start]
            yield rows, block.copy_(self.aligned[rows]).sub_(self.base[rows])

    def onto_inputs(self, left: Float[Tensor, "d_out r"]) -> Float[Tensor, "d_in r"]:
        """V^T left, accumulated in float32."""
        return _onto_inputs(self, left, self.blocks())[0]

    def times(self, right: Float[Tensor, "d_in r"]) -> Float[Tensor, "d_out r"]:
        """V right, accumulated in float32."""
        return _times(self, right, self.blocks())

    def norm(self) -> float:
        """||V||_F: rows in float32, their sum in float64 (one float32 sum over 4096 x 4096 entries is off by 1e-3)."""
        return _root(self, sum(_squares(block) for _, block in self.blocks()))

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """V as one matrix in float32."""
        whole = torch.empty(self.shape)
        for rows, block in self.blocks():
            whole[rows] = block
        return self.finite(whole)

    def finite(self, found: Tensor) -> Tensor:
        """What was computed from V, refused where it is not finite; the message names the side that is to blame."""
        if found.sum(0).isfinite().all():  # NaN and Inf stay in a sum, which takes less memory than a mask
            return found
        for side, weight in (("base", self.base), ("aligned", self.aligned)):
            if not weight.isfinite().all():
                raise StudyError(f"module {self.module!r}: {side} weight has NaN or Inf; fetch the checkpoint again", REFUSED)
        raise StudyError(f"module {self.module!r}: a product with V overflows float32; check the factors and weights", REFUSED)


@dataclass(frozen=True)
class Pair:
    """Base and aligned weights of one architecture, and the modules at which they are compared."""

    base: Weights
    aligned: Weights
    modules: tuple[str, ...]

    def change(self, module: str) -> Change:
        """V of one module; what is no pair of float matrices of one shape is refused by name."""
        base, aligned = self.base(module), self.aligned(module)
        if base.shape != aligned.shape or base.ndim != 2:
            raise StudyError(
                f"module {module!r} has shapes {tuple(base.shape)} and {tuple(aligned.shape)}; give a pair of one architecture",
                NOT_COMPARABLE,
            )
        for weight in (base, aligned):
            if not weight.is_floating_point():
                raise StudyError(f"module {module!r} holds {weight.dtype}, not floats; dequantize it first", REFUSED)
        return Change(module, base, aligned)


def projected(change: Change, left: Float[Tensor, "d_out r"]) -> Float[Tensor, "d_out r"]:
    """C left with C = V V^T / ||V||_F (SafeLoRA; Hsu et al. 2024), as V (V^T left) / ||V||_F.

    Two passes over V, 4 d_out d_in r operations; the norm is taken along in the first. C is undefined for V = 0: refused.
    """
    held = [(slice(None), change.dense())] if change.base.numel() <= HELD else None
    onto, squares = _onto_inputs(change, left, held or change.blocks())
    norm = _root(change, squares)
    if norm == 0:
        raise StudyError(f"module {change.module!r} is the same in base and aligned (V = 0); leave it out", NOT_COMPARABLE)
    return _times(change, onto, held or change.blocks()).div_(norm)


def _onto_inputs(change: Change, left: Tensor, blocks: Blocks) -> tuple[Float[Tensor, "d_in r"], float]:
    """V^T left, and ||V||_F^2."""
    thin = _rows_of(change, left, change.shape[0])
    found, squares = torch.zeros(left.shape[1], change.shape[1]), 0.0
    for rows, block in blocks:
        found.addmm_(thin[:, rows], block)
        squares += _squares(block)
    return change.finite(found).T, squares


def _times(change: Change, right: Tensor, blocks: Blocks) -> Float[Tensor, "d_out r"]:
    thin = _rows_of(change, right, change.shape[1])
    found = torch.empty(right.shape[1], change.shape[0])
    for rows, block in blocks:
        found[:, rows] = thin @ block.T
    return change.finite(found).T.contiguous()


def _squares(block: Tensor) -> float:
    return float(torch.linalg.vector_norm(block, dim=1).double().square().sum())


def _root(change: Change, squares: float) -> float:
    return math.sqrt(float(change.finite(torch.tensor(squares, dtype=torch.float64))))


def _rows_of(change: Change, factor: Tensor, size: int) -> Float[Tensor, "r size"]:
    """The columns of a thin factor as contiguous rows: products in this layout are the fastest, and need no padding."""
    if factor.ndim != 2 or factor.shape[0] != size:
        raise StudyError(
            f"module {change.module!r}: a factor of {tuple(factor.shape)} does not meet V of {change.shape}; use its own base",
            NOT_COMPARABLE,
        )
    return factor.detach().float().T.contiguous()
