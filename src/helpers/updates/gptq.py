"""GPTQ: one weight quantized column by column, each error spread over the columns to come."""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import StudyError
from helpers.updates.packed_codes import GROUP, Gram, Quantized, Weight, checked, grid, uniform

DAMPING = 0.01  # of the gram's mean diagonal, as in Frantar et al. (2023)


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
