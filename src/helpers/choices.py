"""Which modules would a restoration choose, were V formed from dequantized weights? (claim Q1, chapter 08)

SafeLoRA changes the modules that its score s ranks highest. The choice with V of every source is compared with that of the
true V, beside random choices.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import numpy as np
import pandas as pd
from scipy import stats

from helpers import dequantized, restorations
from helpers.pairs import Pair
from helpers.statistics import Estimate


def choice_rows(
    update: restorations.Updates, sources: Mapping[str, Pair], shares: Sequence[float], reference: str = "bf16", seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table `subspaces` (module "all"): does SafeLoRA choose the same modules from every source as from the true V?

    `score_spearman` of its scores s, and for each share of modules (column k) the `jaccard` of the two choices, beside that
    of two random choices of the same sizes (exact). Whatever V is, s depends on the kind of module (q_proj, up_proj and so
    on: its shape and its s0): `*_by_kind` compares within kinds, the null with random choices that take as many of each kind.
    A share that chooses no module is left out.
    """
    dequantized.full_precision(sources, reference)
    prepared = {}
    for name, pair in sources.items():
        prepared[name] = restorations.prepare(update, pair, "safelora", seed)
        if progress:
            progress(name)
    truth = prepared.pop(reference)
    found = [
        row for name, other in prepared.items() for row in dequantized.named(name, "all", _choices(truth, other, shares, seed))
    ]
    return pd.DataFrame(found, columns=dequantized.COLUMNS)


def _choices(truth: restorations.Prepared, other: restorations.Prepared, shares: Sequence[float], seed: int) -> list[tuple]:
    scores, found = _by_module([prepared.scores for prepared in (truth, other)], "score"), []
    kinds = [module.rpartition(".")[2] for module in scores.index]
    for metric, table in (("", scores), ("_by_kind", scores.groupby(kinds).rank(pct=True))):
        ranked = partial(_spearman, table.to_numpy().T)
        found.append(("", f"score_spearman{metric}", dequantized.over_modules(ranked, len(table), seed)))
    for share in shares:
        chosen = _by_module([prepared.at(share).table for prepared in (truth, other)], "changed")
        if chosen.to_numpy().any():
            counts = chosen.assign(modules=1).groupby(kinds).sum()[["modules", 0, 1]]
            common = partial(_jaccard, chosen.to_numpy().T)
            found.append((f"{share:g}", "jaccard", dequantized.over_modules(common, len(chosen), seed)))
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
