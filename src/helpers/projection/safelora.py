"""How far C = V V^T / ||V||_F moves a module's update BA: SafeLoRA's cosine and E-DIEM's distance, each beside its null.

The null of E-DIEM is what alignment matrices of the same spectrum but random directions would do. A random V of the same
spectrum is H V H'^T with H and H' Haar distributed, which makes C into H C H^T. With C = U D U^T, D = S^2 / ||S||, and an
update whose left singular vectors are Q and whose squared singular values are e,

    ||H C H^T BA - BA||_F^2 = sum_ij (1 - D_i)^2 e_j G_ij^2,    G = U^T H^T Q,

where G is a Haar distributed frame "d_out r". So the null depends on two lists of numbers alone, the singular values of V
and those of BA, and a draw costs O(d_out r^2): nothing of size d_out x d_out is formed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.projection import subspaces
from helpers.projection.alignment_matrix import Change, Pair, projected
from helpers.updates import lora
from helpers.updates.lora import LowRank

DRAWS = 200
CHUNK = 2**20  # numbers drawn at a time
NEGLIGIBLE = 0.01  # share of the null's variance whose directions of BA enter by their mean; 200 draws tell 10 % apart
ROUNDING = 1e-7  # a null narrower than this share of its mean is rounding, and no unit to measure in
COLUMNS = 128  # of a dense update that are projected at a time
KEPT = 4096  # spectra in memory: 210 modules from several sources

Form: TypeAlias = LowRank | Tensor  # factors, or the dense change W_new - W_aligned of a full fine-tune


# ---------------------------------------------------------------- factors and dense changes alike


def left_of(update: Form) -> Tensor:
    """What a matrix from the left acts on: the left factor, or the whole dense change."""
    return update.left if isinstance(update, LowRank) else update


def mapped(update: Form, function: Callable[[Tensor], Tensor]) -> Form:
    """The update with another left side; a low-rank one keeps its right factor and its rank."""
    return LowRank(function(update.left), update.right) if isinstance(update, LowRank) else function(update)


def inner(a: Form, b: Form) -> float:
    """The Frobenius inner product of two updates of one form, in float64."""
    if isinstance(a, LowRank) or isinstance(b, LowRank):
        return lora.inner(a, b)
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a.split(COLUMNS), b.split(COLUMNS), strict=True))


def norm(update: Form) -> float:
    """The Frobenius norm of an update."""
    return math.sqrt(max(inner(update, update), 0.0))  # in this order, which keeps NaN


def energies(update: Form) -> Float[Tensor, " r"]:
    """The squared singular values of the update, in float64."""
    if isinstance(update, LowRank):
        left, right = (torch.linalg.qr(factor.double())[1] for factor in (update.left, update.right.T))
        return torch.linalg.svdvals(left @ right.T).square()
    small = (update if update.shape[0] <= update.shape[1] else update.T).double()
    return torch.linalg.eigvalsh(small @ small.T).clamp_min(0)


def moved(change: Change, update: Form) -> Form:
    """C BA in float32: a left factor whole, a dense change column block by column block."""

    def blockwise(left: Tensor) -> Tensor:
        return torch.cat([projected(change, block) for block in left.split(COLUMNS, dim=1)], dim=1)

    return mapped(update, blockwise)


# ---------------------------------------------------------------- random directions


def haar_frame(d: int, r: int, generator: torch.Generator) -> Float[Tensor, "d r"]:
    """r orthonormal columns, Haar distributed: QR of Gaussian numbers, the diagonal of R made positive (Mezzadri 2007)."""
    return _positive(torch.randn(d, r, generator=generator))


def _positive(columns: Float[Tensor, "d r"]) -> Float[Tensor, "d r"]:
    frame, upper = torch.linalg.qr(columns)
    return frame * torch.where(upper.diagonal() < 0, -1.0, 1.0)


def eigenvalues(values: Float[Tensor, " k"], d_out: int) -> Float[Tensor, " d_out"]:
    """The eigenvalues D = S^2 / ||S|| of C, with the zeros where d_out is larger than the spectrum of V, in float64."""
    squares = values.double().square()
    return torch.nn.functional.pad(squares / squares.sum().sqrt(), (0, d_out - len(values)))


def conjugated(
    left: Float[Tensor, "d_out r"], values: Float[Tensor, " k"], generator: torch.Generator
) -> Float[Tensor, "d_out r"]:
    """C' left for one random V' with the singular values of V, exactly distributed as H C H^T left with H Haar.

    With left = Q R, U'^T Q = G is a Haar frame. U' takes the span of G back to that of Q, and what D G has outside of it,
    T Y, to a Haar frame F off Q: C' left = (Q (G^T D G) + F Y) R. Where left has no room beside it, U' itself is drawn.
    """
    d_out, r = left.shape
    scales = eigenvalues(values, d_out).float()[:, None]
    if 2 * r > d_out:
        frame = haar_frame(d_out, len(values), generator)
        return frame @ (scales[: len(values)] * (frame.T @ left))
    q, upper = torch.linalg.qr(left)
    frame = haar_frame(d_out, r, generator)
    inside = frame.T @ (scales * frame)
    beside = torch.linalg.qr(scales * frame - frame @ inside)[1]
    return (q @ inside + _off(q, generator) @ beside) @ upper


def _off(q: Float[Tensor, "d r"], generator: torch.Generator) -> Float[Tensor, "d r"]:
    """A Haar distributed frame of r columns that are orthogonal to those of q; taken off twice, against cancellation."""
    columns = torch.randn(q.shape, generator=generator)
    for _ in range(2):
        columns = columns - q @ (q.T @ columns)
    return _positive(columns)


# ---------------------------------------------------------------- E-DIEM


@dataclass(frozen=True)
class ModuleScore:
    """A module's score beside its null, and its place: modules are changed in rising `place`, NaN last."""

    score: float
    null: float
    place: tuple[float, ...]
    z: float = math.nan
    z_robust: float = math.nan
    p: float = math.nan


def ediem(distance: float, null: Float[Tensor, " draws"]) -> ModuleScore:
    """E-DIEM of a distance (Ao et al. 2025; Tessari et al. 2024), against a real null instead of copies of the same pair.

    z is in standard deviations from the null's mean, z_robust in interquartile ranges from its median; both are NaN where the
    null has no width. p = (1 + #{d_k >= d}) / (K + 1). The most distant comes first: its place is (-z, p).
    """
    mean, (low, median, high) = float(null.mean()), null.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=null.dtype)).tolist()
    z, z_robust = (_in_units(distance - centre, unit, mean) for centre, unit in ((mean, float(null.std())), (median, high - low)))
    p = (1 + int((null >= distance).sum())) / (len(null) + 1)
    return ModuleScore(distance, mean, (-z, p), z, z_robust, p)


def _in_units(difference: float, unit: float, size: float) -> float:
    return difference / unit if unit > ROUNDING * size else math.nan


def null_distances(
    values: Float[Tensor, " k"], squares: Float[Tensor, " r"], d_out: int, generator: torch.Generator, draws: int = DRAWS
) -> Float[Tensor, " draws"]:
    """||C' BA - BA||_F for random V' with the singular values of V; `squares` are the squared singular values of BA.

    Taken as sum e + sum_ij (D_i^2 - 2 D_i) e_j G_ij^2, so that only the small part that varies is rounded. The weakest
    directions of BA, which hold 1 % of the variance at most, enter by their exact expectation given the others.
    """
    scales = eigenvalues(values, d_out)
    weights = scales.square() - 2 * scales
    head, tail = _strongest(squares.double(), d_out)
    steps = max(1, CHUNK // (d_out * len(head)))
    drawn = [_shares(weights, len(head), min(steps, draws - i), generator) for i in range(0, draws, steps)]
    shares = torch.cat(drawn)  # (G^T W G)_jj "draws head"
    rest = (weights.sum() - shares.sum(1)) / max(1, d_out - len(head))
    return (squares.double().sum() + shares @ head + tail * rest).clamp_min(0).sqrt()


def _strongest(squares: Float[Tensor, " r"], d_out: int) -> tuple[Float[Tensor, " head"], float]:
    """The e of the directions to draw, and the sum of the others: given G, those vary as their e do about their mean."""
    ordered = squares.sort(descending=True).values
    sums, powers = (torch.cat([x.flip(0).cumsum(0).flip(0), x.new_zeros(1)]) for x in (ordered, ordered.square()))
    spread = powers - sums.square() / torch.arange(d_out, d_out - len(sums), -1).clamp_min(1)  # without the first 0, 1, ..
    count = max(1, int((spread > NEGLIGIBLE * spread[0]).sum()))
    return ordered[:count], float(sums[count])


def _shares(weights: Float[Tensor, " d"], r: int, draws: int, generator: torch.Generator) -> Float[Tensor, "draws r"]:
    """(G^T W G)_jj of Haar frames G = Z L^-T with Z Gaussian and Z^T Z = L L^T: QR by Cholesky, for all draws at once.

    A nearly square Z is badly conditioned, and its Gram matrix twice as badly: then Z is drawn in float64.
    """
    dtype = torch.float32 if 4 * r <= len(weights) else torch.float64
    frames = torch.randn(draws, len(weights), r, generator=generator, dtype=dtype)
    lower = torch.linalg.cholesky((frames.mT @ frames).double())
    weighted = (frames.mT @ (weights.to(dtype)[:, None] * frames)).double()
    half = torch.linalg.solve_triangular(lower, weighted, upper=False)
    return torch.linalg.solve_triangular(lower, half.mT, upper=False).diagonal(dim1=-2, dim2=-1)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class ModuleCase:
    """What a rule sees of one module: V, the update BA and C BA (float32), and what its name and seed ask for."""

    pair: Pair
    change: Change
    update: Form
    k: int
    seed: int

    @cached_property
    def moved(self) -> Form:
        """C BA, computed where a rule asks for it."""
        return moved(self.change, self.update)

    @property
    def generator(self) -> torch.Generator:
        """A fresh one, so that what is drawn depends on the seed alone."""
        return torch.Generator().manual_seed(self.seed)


def by_cosine(case: ModuleCase) -> ModuleScore:
    """SafeLoRA's s = cos(C BA, BA) (Hsu et al. 2024), lowest first, beside s0, its value for an unrelated update.

    Where C BA = 0, s is 0: nothing of the update lies in V. Where BA = 0, it is NaN.
    """
    size, left = norm(case.update), norm(case.moved)
    s = inner(case.moved, case.update) / (size * left or 1.0) if size > 0 else math.nan
    return ModuleScore(s, module_null_cosine(case.pair, case.change.module), (s,))


def by_distance(case: ModuleCase) -> ModuleScore:
    """SPLoRA's d = ||C BA - BA||_F (Ao et al. 2025) by E-DIEM, the most distant first."""
    values = module_singular_values(case.pair, case.change.module)
    null = null_distances(values, energies(case.update), case.change.shape[0], case.generator)
    # in float64: C BA is small, so the distance and its whole null lie close to ||BA||
    return ediem(norm(mapped(case.update, lambda left: left_of(case.moved).double() - left.double())), null)


def by_cosine_falling(case: ModuleCase) -> ModuleScore:
    """SafeLoRA's s in the opposite order: the modules that it would change last come first."""
    found = by_cosine(case)
    return replace(found, place=(-found.score,))


def by_nearness(case: ModuleCase) -> ModuleScore:
    """SPLoRA's distance in the opposite order: the least distant first, as the authors' code removes a number of layers."""
    found = by_distance(case)
    return replace(found, place=tuple(-x for x in found.place))


def by_lot(case: ModuleCase) -> ModuleScore:
    """A number drawn for the module; a larger share of the modules holds every smaller one."""
    drawn = float(torch.rand((), generator=case.generator, dtype=torch.float64)) if norm(case.update) > 0 else math.nan
    return ModuleScore(drawn, 0.5, (drawn,))


def in_given_order(case: ModuleCase) -> ModuleScore:
    """No score: for rules that change all modules at once."""
    return ModuleScore(math.nan, math.nan, (0.0,))


# What V alone decides is kept: a pair is known by its two functions, so keep the Pair to find it again.


@lru_cache(KEPT)
def module_singular_values(pair: Pair, module: str) -> Float[Tensor, " k"]:
    """All singular values of V."""
    return subspaces.singular_values(pair.change(module))


@lru_cache(KEPT)
def module_null_cosine(pair: Pair, module: str) -> float:
    """SafeLoRA's s0."""
    return subspaces.null_cosine(pair.change(module))


@lru_cache(256)  # of one k for every module
def module_leading(pair: Pair, module: str, k: int) -> Float[Tensor, "d_out k"]:
    """The k leading left singular vectors of V."""
    return subspaces.leading(pair.change(module), k).vectors
