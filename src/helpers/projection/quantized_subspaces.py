"""Does V formed from dequantized weights still hold the directions of V? (claim Q1, chapter 08)

Sources of V: the checkpoints as they are, `<quantizer>-mixed` = deq(Q(W_aligned)) - W_base, and `<quantizer>-both`
= deq(Q(W_aligned)) - deq(Q(W_base)). Each is a `Pair`; what differs from the true V is the noise of quantization. One module
is held at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from helpers import results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models.checkpoints import Weights
from helpers.projection import alignment_matrix, restorations, subspaces
from helpers.projection.alignment_matrix import Change, Pair
from helpers.stats.intervals import Estimate, grouped_bootstrap

KS = (8, 32, 64, 128, 256)
COLUMNS = [*results.OWN["subspaces"], *results.VALUES]
SUMMED_UP = ("noise_to_signal", "changed", "above_edge_energy", "cosine_excess", "overlap", "overlap_excess", "excess_predicted")
REPEATS = 500  # of a bootstrap over modules
Found = TypeVar("Found")  # what is known of a source


# --- sources


def quantized_pair(pair: Pair, source: str) -> Pair:
    """The pair `<quantizer>-mixed` (only the aligned weights quantized) or `<quantizer>-both`, dequantized on demand."""
    quantizer, _, side = source.rpartition("-")
    if side not in restorations.WAYS:
        raise StudyError(f"source {source!r} is unknown; use <quantizer>-mixed or <quantizer>-both")
    base = alignment_matrix.quantized(pair.base, quantizer) if side == "both" else pair.base
    return replace(pair, base=base, aligned=alignment_matrix.quantized(pair.aligned, quantizer))


def scaled(pair: Pair, dose: float) -> Pair:
    """The pair whose V is `dose` times as large: W_base + dose V, formed in float32 and rounded to the dtype of the weights.

    With bf16 weights a dose of 1 gives the same weights back, bit for bit; a small dose loses what falls below their steps.
    """
    if not (math.isfinite(dose) and dose > 0):
        raise StudyError(f"dose {dose} scales no V; use a number above 0")
    return replace(pair, aligned=partial(_moved, pair.base, pair.aligned, dose))


def _moved(base: Weights, aligned: Weights, dose: float, module: str) -> Float[Tensor, "d_out d_in"]:
    change = Pair(base, aligned, (module,)).change(module)
    return change.dense().mul_(dose).add_(change.base).to(change.aligned.dtype)


# --- what chance and theory say


def chance(d: int, first: tuple[float, float], second: tuple[float, float], n: int) -> Estimate:
    """The cosine <A, Q B Q^T> / (||A|| ||B||) of two positive symmetric d x d matrices, Q a random rotation: mean, 95 % of it.

    Of A and B only (trace, squared norm) matter: the mean is tr A tr B / d, the variance 2 ||A_0||^2 ||B_0||^2 / ((d - 1)
    (d + 2)) with A_0 = A - (tr A / d) I, both over ||A|| ||B|| or its square (moments of Haar's measure; Collins and Sniady
    2006). The ends are those of the beta distribution of that mean and variance, exact where A and B have rank 1. For
    projectors onto k directions, (k, k), it is the mean squared cosine of the principal angles.
    """
    (trace_a, square_a), (trace_b, square_b) = first, second
    mean = trace_a * trace_b / d / math.sqrt(square_a * square_b)
    centred = (1 - trace_a**2 / d / square_a) * (1 - trace_b**2 / d / square_b)
    variance = 2 * centred / ((d - 1) * (d + 2)) if d > 1 else 0.0
    if variance <= 1e-24:  # A or B is a multiple of the identity: every rotation gives the same
        return Estimate(mean, mean, mean, n)
    size = mean * (1 - mean) / variance - 1
    low, high = stats.beta.ppf((0.025, 0.975), mean * size, (1 - mean) * size)
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)), n)


def kept(values: Float[Tensor, " k"], deviation: float, shape: tuple[int, int]) -> Float[Tensor, " k"]:
    """Squared cosine between each left singular vector of V and that of V + noise, for independent noise in large matrices.

    1 - c t (1 + t) / (1 + c t) with c = d_out / d_in and t = deviation^2 d_in / sigma^2, and 0 for sigma up to deviation
    (d_out d_in)^(1/4) (Benaych-Georges and Nadakuditi 2012). For a square V: 3/4 at the edge of the noise, 0 at half of it.
    """
    ratio, inverse = shape[0] / shape[1], deviation**2 * shape[1] / values.double().square()
    return (1 - ratio * inverse * (1 + inverse) / (1 + ratio * inverse)).clamp_min(0)


# --- one module


@dataclass(frozen=True, eq=False)
class Decomposed:
    """V of one module with all its singular values, largest first, and as many leading left vectors as are asked for."""

    change: Change
    values: Float[Tensor, " size"]
    vectors: Float[Tensor, "d_out k"]

    @property
    def gram(self) -> tuple[float, float]:
        """Trace and squared norm of V V^T, from the singular values."""
        squares = self.values.double().square()
        return float(squares.sum()), float(squares.square().sum())


def decompose(change: Change, ks: Sequence[int] = KS) -> Decomposed:
    """Singular values and leading vectors of V; no vector where it has none (V = 0, or beyond its numerical rank)."""
    return Decomposed(change, *subspaces.decomposition(change, ks))


def gram_cosine(exact: Decomposed, found: Decomposed) -> float:
    """Cosine of the two C = V V^T / ||V||_F: ||V^T W||_F^2 / (||V V^T||_F ||W W^T||_F), by products of the smaller side."""
    v, w = exact.change.dense(), found.change.dense()
    wide = v.shape[0] <= v.shape[1]
    inner = ((v @ v.T) * (w @ w.T)).double().sum() if wide else (v.T @ w).double().square().sum()
    return float(inner) / math.sqrt(exact.gram[1] * found.gram[1])


def source_module_rows(exact: Decomposed, found: Decomposed, ks: Sequence[int] = KS) -> list[tuple]:
    """(k, metric, estimate) of one module for one source: its size, its noise, and what is left of the directions of V."""
    n, errors = math.prod(exact.change.shape), subspaces.noise(found.change, exact.change)
    rows = _exactly("", _size(found) | _noise(exact, errors), n)
    if found.gram[0] > 0:
        cosine, null = gram_cosine(exact, found), chance(exact.change.shape[0], exact.gram, found.gram, n)
        rows += _exactly("", {"cosine": cosine, "cosine_excess": _excess(cosine, null.value)}, n)
        rows.append(("", "cosine_null", null))
    return rows + _angles(exact, found, errors.norm() / math.sqrt(n), ks)


def _exactly(k: str, values: Mapping[str, float], n: int) -> list[tuple]:
    return [(k, metric, Estimate(value, value, value, n)) for metric, value in values.items()]


def _excess(value: float, by_chance: float) -> float:
    """What is beyond chance, as a share of what could be: 0 by chance, 1 for the same; 0 where chance already gives the same."""
    return (value - by_chance) / (1 - by_chance) if by_chance < 1 - 1e-9 else 0.0


def _size(found: Decomposed) -> dict[str, float]:
    return {"signal": math.sqrt(found.gram[0]), "top_value": float(found.values[0])}


def _noise(exact: Decomposed, errors: Change) -> dict[str, float]:
    """The noise of the source beside its edge, and how much of V stands above it; `changed`: entries of its V that are not 0."""
    squares, edge = exact.values.double().square(), subspaces.noise_edge(errors)
    above = subspaces.directions_above(exact.values, edge)
    return {
        "noise_edge": edge,
        "noise_top": float(subspaces.singular_values(errors)[0]),
        "noise_to_signal": errors.norm() / math.sqrt(exact.gram[0]),
        "changed": float((errors.aligned != 0).double().mean()),
        "above_edge": float(above),
        "above_edge_energy": float(squares[:above].sum() / squares.sum()),
    }


def _angles(exact: Decomposed, found: Decomposed, deviation: float, ks: Sequence[int]) -> list[tuple]:
    """Mean squared cosines between the k leading left singular vectors, for each k, beside chance and theory."""
    (d, d_in), rows = exact.change.shape, []
    squares = (exact.vectors.double().T @ found.vectors.double()).square()
    for k in (k for k in ks if k <= min(squares.shape) and k < d):
        overlap, predicted = float(squares[:k, :k].sum()) / k, kept(exact.values[:k], deviation, exact.change.shape).mean()
        values = {"overlap": overlap, "overlap_excess": _excess(overlap, k / d), "excess_predicted": float(predicted)}
        rows += _exactly(str(k), values, d * d_in)
        rows.append((str(k), "overlap_null", chance(d, (k, k), (k, k), d * d_in)))
    return rows


# --- all modules


def source_rows(
    sources: Mapping[str, Pair], reference: str = "bf16", modules: Sequence[str] = (), ks: Sequence[int] = KS, seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Own columns and values of the table `subspaces`: every source's V against the reference's, by module and over "all".

    Values of one module are exact, so their intervals have no width; `*_null` rows hold what chance gives, with 95 % of it.
    Left out: k that a module (or V of the source) does not have. The reference itself only tells its size.
    """
    truth, found = full_precision(sources, reference), []
    others = {name: pair for name, pair in sources.items() if name != reference}
    for module in modules or truth.modules:
        exact = decompose(truth.change(module), ks)
        if exact.gram[0] == 0:
            raise StudyError(f"module {module!r} is the same in base and aligned (V = 0); leave it out", NOT_COMPARABLE)
        found += named(reference, module, _exactly("", _size(exact), math.prod(exact.change.shape)))
        for name, pair in others.items():
            found += named(name, module, source_module_rows(exact, decompose(_fitting(pair.change(module), exact), ks), ks))
        if progress:
            progress(module)
    table = pd.DataFrame(found, columns=COLUMNS)
    return pd.concat([table, medians(table, seed)], ignore_index=True)


def full_precision(sources: Mapping[str, Pair], reference: str = "bf16") -> Pair:
    """The pair that every source is compared with; it must be among them."""
    return _reference(sources, reference)


def _reference(sources: Mapping[str, Found], reference: str) -> Found:
    if reference not in sources:
        raise StudyError(f"reference {reference!r} is not among the sources {', '.join(sources)}; add its pair", NOT_COMPARABLE)
    return sources[reference]


def _fitting(change: Change, exact: Decomposed) -> Change:
    if change.shape != exact.change.shape:
        shapes = f"{exact.change.shape} in the reference and {change.shape} in a source"
        raise StudyError(f"module {change.module!r} is {shapes}; quantize the pair itself", NOT_COMPARABLE)
    return change


def named(source: str, module: str, found: Sequence[tuple]) -> list[tuple]:
    """Rows of COLUMNS, from (k, metric, estimate) of one source and module."""
    return [(source, module, k, metric, e.value, e.low, e.high, e.n) for k, metric, e in found]


def medians(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The median over modules of what can be compared between them, with an interval over modules (module "all")."""
    found, of_modules = [], table[table["metric"].isin(SUMMED_UP)]
    for (source, k, metric), part in of_modules.groupby(["source", "k", "metric"], sort=False):
        values = part["value"].to_numpy()
        found += named(source, "all", [(k, metric, over_modules(partial(_median, values), len(values), seed))])
    return pd.DataFrame(found, columns=COLUMNS)


def _median(values: np.ndarray, drawn: np.ndarray) -> float:
    return float(np.median(values[drawn]))


def over_modules(statistic: Callable[[np.ndarray], float], modules: int, seed: int) -> Estimate:
    """A value with its interval when modules are drawn anew, which holds the value; nan where there is none."""
    if not np.isfinite(statistic(np.arange(modules))):
        return Estimate(float("nan"), float("nan"), float("nan"), modules)
    e = grouped_bootstrap(statistic, range(modules), REPEATS, seed)
    return replace(e, low=min(e.low, e.value), high=max(e.high, e.value))


def choice_rows(
    prepared: Mapping[str, restorations.Prepared], shares: Sequence[float], reference: str = "bf16", seed: int = 0
) -> pd.DataFrame:
    """Rows of the table `subspaces` (module "all"): does SafeLoRA choose the same modules from every source as from the true V?

    prepared: SafeLoRA of one update with V of each source, by its name; the reference among them.
    `score_spearman` of its scores s, and for each share of modules (column k) the `jaccard` of the two choices, beside that
    of two random choices of the same sizes (exact). Whatever V is, s depends on the kind of module (q_proj, up_proj and so
    on: its shape and its s0): `*_by_kind` compares within kinds, the null with random choices that take as many of each kind.
    A share that chooses no module is left out.
    """
    truth, others = _reference(prepared, reference), {name: one for name, one in prepared.items() if name != reference}
    found = [row for name, other in others.items() for row in named(name, "all", _choices(truth, other, shares, seed))]
    return pd.DataFrame(found, columns=COLUMNS)


def _choices(truth: restorations.Prepared, other: restorations.Prepared, shares: Sequence[float], seed: int) -> list[tuple]:
    scores, found = _by_module([prepared.scores for prepared in (truth, other)], "score"), []
    kinds = [module.rpartition(".")[2] for module in scores.index]
    for metric, table in (("", scores), ("_by_kind", scores.groupby(kinds).rank(pct=True))):
        ranked = partial(_spearman, table.to_numpy().T)
        found.append(("", f"score_spearman{metric}", over_modules(ranked, len(table), seed)))
    for share in shares:
        chosen = _by_module([prepared.at(share).table for prepared in (truth, other)], "changed")
        if chosen.to_numpy().any():
            counts = chosen.assign(modules=1).groupby(kinds).sum()[["modules", 0, 1]]
            common = partial(_jaccard, chosen.to_numpy().T)
            found.append((f"{share:g}", "jaccard", over_modules(common, len(chosen), seed)))
            found.append((f"{share:g}", "jaccard_null", jaccard_null([tuple(counts.sum())])))
            found.append((f"{share:g}", "jaccard_null_by_kind", jaccard_null(list(counts.itertuples(index=False, name=None)))))
    return [row for row in found if np.isfinite(row[2].value)]  # no rank correlation of scores that are all equal


def _by_module(found: Sequence[pd.DataFrame], name: str) -> pd.DataFrame:
    """One column of several tables side by side (0, 1, ...), matched by the name of the module."""
    return pd.DataFrame({i: table.set_index("module")[name] for i, table in enumerate(found)})


def _spearman(scores: np.ndarray, drawn: np.ndarray) -> float:
    ranks = stats.rankdata(scores[:, drawn], axis=1)
    return float(np.corrcoef(ranks)[0, 1]) if (np.ptp(ranks, axis=1) > 0).all() else float("nan")


def _jaccard(chosen: np.ndarray, drawn: np.ndarray) -> float:
    one, other = chosen[:, drawn]
    return float((one & other).sum() / union) if (union := (one | other).sum()) else float("nan")


def jaccard_null(strata: Sequence[tuple[int, int, int]]) -> Estimate:
    """|A and B| / |A or B| of random sets of modules: its mean and 95 % of it, exact.

    strata: modules, those in A and those in B; within each the common ones are hypergeometric, and their sums convolve.
    """
    common = [stats.hypergeom(n, a, b).pmf(np.arange(min(a, b) + 1)) for n, a, b in strata]
    chances, chosen = reduce(np.convolve, common), sum(a + b for _, a, b in strata)
    shared = np.arange(len(chances))
    values = shared / (chosen - shared)
    mean = float(chances @ values)
    low, high = values[np.searchsorted(chances.cumsum(), (0.025, 0.975))]
    return Estimate(mean, min(float(low), mean), max(float(high), mean), sum(n for n, _, _ in strata))
