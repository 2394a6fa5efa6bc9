"""What an alignment matrix V is made of, exact where that is cheap, else randomized with its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models.checkpoints import checkpoint
from helpers.projection.alignment_matrix import Change, Pair
from helpers.updates.names import Variant, keyed
from helpers.updates.quantizers import linear_names

SMALL = 1024  # the largest smaller side whose Gram matrix is formed for leading directions and norms
OVERSAMPLED, POWERS = 16, 2  # of the randomized decomposition: columns beyond k, and power steps
PROBES = 32  # of Hutchinson's estimate
LOST = 1e-6  # singular values below this share of the largest are rounding of float32, and have no direction


@dataclass(frozen=True)
class Spectrum:
    """Size and singular values (largest first) of one alignment matrix, beside the size of the base weight.

    Where nothing was changed (V = 0) the norm, the stable rank and every share of energy are 0.
    """

    module: str
    base_norm: float
    values: Float[Tensor, " rank"]
    entries: int

    @property
    def norm(self) -> float:
        """Frobenius norm: the root of the sum of squared singular values."""
        return float(self.values.double().square().sum().sqrt())

    @property
    def stable_rank(self) -> float:
        """||V||_F^2 / sigma_1^2: how many equal directions would carry as much."""
        return float(self.values.double().square().sum() / self.values[0].double().square().clamp_min(1e-300))

    def energy(self, k: int) -> float:
        """Share of ||V||_F^2 in the k largest singular values."""
        squares = self.values.double().square()
        return float(squares[:k].sum() / squares.sum().clamp_min(1e-300))


def spectrum(module: str, weight: Float[Tensor, "d_out d_in"], change: Float[Tensor, "d_out d_in"]) -> Spectrum:
    """The spectrum of one dense V beside its base weight."""
    return Spectrum(module, float(weight.double().norm()), _values(change).float(), change.numel())


def spectra(base: Path, aligned: Path, modules: Sequence[str], progress=None) -> list[Spectrum]:
    """The spectrum of every named module's alignment matrix, read one at a time: memory does not grow with the model."""
    pair, found = Pair(checkpoint(base), checkpoint(aligned), tuple(modules)), []
    for module in modules:
        change = pair.change(module)
        found.append(spectrum(module, change.base, change.dense()))
        if progress:
            progress(module)
    return found


def at_depths(model: nn.Module, depths: int) -> list[str]:
    """The linear modules of `depths` blocks, evenly spaced from the first to the last."""
    names = linear_names(model)
    blocks = list(dict.fromkeys(_block(name) for name in names))
    chosen = {blocks[round(i)] for i in torch.linspace(0, len(blocks) - 1, min(depths, len(blocks))).tolist()}
    return [name for name in names if _block(name) in chosen]


def _block(name: str) -> int:
    return int(next(part for part in name.split(".") if part.isdigit()))


# --- singular values and leading directions


def singular_values(change: Change) -> Float[Tensor, " rank"]:
    """All singular values of V, largest first, by its smaller Gram matrix in float64; below 1e-8 of the largest: noise."""
    return _values(change.dense())


def _values(dense: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(_gram(dense.double())).clamp_min(0).sqrt().flip(0)


def _gram(dense: Tensor) -> Tensor:
    return dense @ dense.T if dense.shape[0] <= dense.shape[1] else dense.T @ dense


@dataclass(frozen=True, eq=False)
class Leading:
    """The k leading left singular vectors U of V (orthonormal columns), their values S, and a bound on what is missing.

    `error` is ||V Z - U S||_2 for the right vectors Z = V^T U / S, plus float32 rounding: by Weyl's inequality (Stewart & Sun
    1990, IV.4) k singular values of V lie within it of S; S is never above the true values. The sine of the largest angle to
    the true subspace is at most `error` / (S_k - sigma_{k+1}) (Wedin 1972): without a gap, as in noise, directions are loose.
    """

    vectors: Float[Tensor, "d_out k"]
    values: Float[Tensor, " k"]
    error: float


def leading(change: Change, k: int, seed: int = 0) -> Leading:
    """The k leading left singular vectors of V: exact where its smaller side is at most 1024, else randomized.

    Randomized: Halko, Martinsson & Tropp (2011), algorithms 4.4 and 5.1 with 16 more columns and two power steps, in which
    V is only met in thin products. k beyond the size of V, or beyond its numerical rank, is refused.
    """
    size = min(change.shape)
    if not 1 <= k <= size:
        raise StudyError(f"k {k} is beyond the {size} singular values of {change.module!r}; use 1 to {size}")
    vectors, values = _exact(change.dense().double()) if size <= SMALL else _randomized(change, k, seed)
    if len(values) < k:
        raise StudyError(f"k {k} is beyond the rank {len(values)} of V at {change.module!r}; use a smaller k", NOT_COMPARABLE)
    vectors, values = vectors[:, :k].float().contiguous(), values[:k].float()
    return Leading(vectors, values, _residual(change, vectors, values) + LOST * float(values[0]))


def decomposition(change: Change, ks: Sequence[int]) -> tuple[Float[Tensor, " size"], Float[Tensor, "d_out k"]]:
    """All singular values of V, largest first, and its leading left vectors: as many as the largest of `ks` within its rank.

    One decomposition gives both where the smaller side is at most 1024; above, the vectors are those of `leading`.
    """
    if min(change.shape) > SMALL:
        values = singular_values(change)
        k = _most(ks, values)
        return values, leading(change, k).vectors if k else torch.zeros(change.shape[0], 0)
    dense = change.dense().double()
    vectors, values = _roots(_gram(dense))
    k = _most(ks, values)
    return values, _left(dense, vectors[:, :k], values[:k]).float().contiguous()


def _most(ks: Sequence[int], values: Float[Tensor, " size"]) -> int:
    return max((k for k in ks if k <= _rank(values)), default=0)


def _exact(dense: Float[Tensor, "d_out d_in"]) -> tuple[Tensor, Tensor]:
    """All left singular vectors that have a direction, and their values, by the smaller Gram matrix in float64."""
    vectors, values = _resolved(_gram(dense))
    return _left(dense, vectors, values), values


def _left(dense: Float[Tensor, "d_out d_in"], vectors: Float[Tensor, "side k"], values: Float[Tensor, " k"]) -> Tensor:
    """Left singular vectors, from the eigenvectors of the smaller Gram matrix."""
    if dense.shape[0] <= dense.shape[1]:
        return vectors
    return _frame(dense @ vectors / values)  # right vectors Z: V Z = U S, made orthonormal again where small values blur it


def _resolved(gram: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor]:
    """Eigenvectors, and roots of the eigenvalues, largest first; without those that are rounding."""
    vectors, values = _roots(gram)
    rank = _rank(values)
    return vectors[:, :rank], values[:rank]


def _roots(gram: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor]:
    squares, vectors = (found.flip(-1) for found in torch.linalg.eigh(gram))
    return vectors, squares.clamp_min(0).sqrt()


def _rank(values: Float[Tensor, " size"]) -> int:
    return int((values > LOST * values[0]).sum())


def _randomized(change: Change, k: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = min(k + OVERSAMPLED, *change.shape)
    frame = _frame(change.times(torch.randn(change.shape[1], columns, generator=generator)))
    for _ in range(POWERS):
        frame = _frame(change.times(_frame(change.onto_inputs(frame))))
    small = change.onto_inputs(frame).T.double()  # Q^T V "columns d_in"
    inner, values = _resolved(_gram(small))
    return frame.double() @ inner, values


def _frame(columns: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    return torch.linalg.qr(columns)[0]


def _residual(change: Change, vectors: Tensor, values: Tensor) -> float:
    right = change.onto_inputs(vectors) / values
    return float(torch.linalg.matrix_norm((change.times(right) - vectors * values).double(), 2))


# --- the null of SafeLoRA's cosine


@dataclass(frozen=True)
class Approximation:
    """A value and its standard error, which is 0 where the value is exact."""

    value: float
    error: float


def gram_norm(change: Change, seed: int = 0) -> Approximation:
    """||V V^T||_F = ||V^T V||_F: exact by the smaller Gram matrix up to 1024, else estimated with 32 probes.

    Hutchinson (1990): E ||V V^T z||^2 = ||V V^T||_F^2 for z of independent signs.
    """
    if min(change.shape) <= SMALL:
        return Approximation(float(_gram(change.dense()).double().norm()), 0.0)
    signs = torch.randint(0, 2, (change.shape[0], PROBES), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    squares = change.times(change.onto_inputs(signs)).double().square().sum(0)
    value = float(squares.mean().sqrt())
    return Approximation(value, float(squares.std()) / math.sqrt(PROBES) / (2 * value) if value else 0.0)


def null_cosine(change: Change, seed: int = 0) -> float:
    """s0 = ||V||_F^2 / (sqrt(d_out) ||V V^T||_F): the cosine of C X and X for an X that knows nothing of V.

    E <C X, X> = tr(C) / d_out and E ||C X||^2 = ||C||_F^2 / d_out for X of unit norm; 0.707 for a square V of independent
    entries. Its relative error is that of `gram_norm`. SafeLoRA's threshold is read against it. V = 0 is refused.
    """
    squares = change.norm() ** 2
    if squares == 0:
        raise StudyError(f"module {change.module!r} is the same in base and aligned (V = 0); leave it out", NOT_COMPARABLE)
    return squares / (math.sqrt(change.shape[0]) * gram_norm(change, seed).value)


# --- what quantization noise leaves of V


def noise(change: Change, exact: Change) -> Change:
    """The quantization errors e_aligned - e_base = V_q - V (or the one error of V_mixed), as a change of their own."""
    return Change(change.module, exact.dense(), change.dense())


def noise_edge(errors: Change) -> float:
    """s (sqrt(d_out) + sqrt(d_in)): the largest singular value of noise with independent entries of standard deviation s.

    s is their root mean square. The edge is the limit of Marchenko & Pastur (1967) and, for Gaussian entries of any size,
    bounds the expected largest value (Gordon 1985; Davidson & Szarek 2001, theorem II.13). Singular directions of V below it
    drown, those below s (d_out d_in)^(1/4) leave no trace (Benaych-Georges & Nadakuditi 2012). The errors of real quantizers
    are neither independent nor of one size, and reach beyond it: put `singular_values(errors)` beside it.
    """
    d_out, d_in = errors.shape
    return errors.norm() / math.sqrt(d_out * d_in) * (math.sqrt(d_out) + math.sqrt(d_in))


def directions_above(values: Float[Tensor, " rank"], edge: float) -> int:
    """How many singular values lie above the edge of the noise."""
    return int((values > edge).sum())


def subspace_rows(spectra: Sequence[Spectrum], variant: Variant, ranks: Sequence[int] = (8, 32, 128)) -> pd.DataFrame:
    """Rows of the table `subspaces`: size, stable rank and energy in k directions of each V; exact, so no interval has width."""
    found = []
    for s in spectra:
        values = [("norm", "", s.norm), ("relative_norm", "", s.norm / s.base_norm), ("stable_rank", "", s.stable_rank)]
        values += [("energy", str(k), s.energy(k)) for k in ranks if k <= len(s.values)]
        found += [("bf16", s.module, k, metric, value, value, value, s.entries) for metric, k, value in values]
    return keyed(variant, pd.DataFrame(found, columns=["source", "module", "k", "metric", "value", "low", "high", "n"]))
