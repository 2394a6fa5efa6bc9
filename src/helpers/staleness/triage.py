"""Triage: which (monitor, update) cells to revalidate first, predicted from signals, and how well such an order does.

Each held-out fold is ordered and given its budget by itself, as a team would that meets a new task or update, so risks of
different folds are never compared.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from helpers.console import over
from helpers.errors import StudyError
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import (
    ORDERS,
    PREDICTORS,
    PRICES,
    SPLITS,
    Fold,
    Predictor,
    affordable,
    applicable,
    check_forecast_data,
    chosen_signals,
    known,
    out_of_fold,
    present_signals,
)
from helpers.staleness.threshold_rules import check_missed, plain_rule
from helpers.stats import intervals

BUDGETS = (0.1, 0.2, 0.3)
ROW = ["predictor", "split", "budget", "metric", "value", "low", "high", "n"]
FEW = 20  # updates, below which an interval over them is rough
Ratio = tuple[np.ndarray, np.ndarray]  # numerator and denominator under each weighting of the cells
Row = tuple[str, str, float, str, float, float, float, int]


# ---------------------------------------------------------------- metrics: ratios of sums over folds, for many weightings at once


def _sums(weights: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Weights (draws x cells) summed over the cells that share a code, 0 .. k - 1: draws x k."""
    order = np.argsort(codes, kind="stable")
    return np.add.reduceat(weights[:, order], np.searchsorted(codes[order], np.arange(codes.max() + 1)), axis=1)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].ravel()


def _found(risk: np.ndarray, stale: np.ndarray, weights: np.ndarray, budget: float) -> Ratio:
    codes = _codes(-risk)
    level, sick = _sums(weights, codes), _sums(weights * stale, codes)
    left = budget * level.sum(axis=1, keepdims=True) - (np.cumsum(level, axis=1) - level)
    share = np.clip(left, 0, level) / np.where(level > 0, level, 1)
    return (share * sick).sum(axis=1), sick.sum(axis=1)


def _concordant(risk: np.ndarray, stale: np.ndarray, weights: np.ndarray) -> Ratio:
    codes = _codes(risk)
    sick, well = _sums(weights * stale, codes), _sums(weights * ~stale, codes)
    return (sick * (np.cumsum(well, axis=1) - well / 2)).sum(axis=1), sick.sum(axis=1) * well.sum(axis=1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Centred midranks of the cells under each weighting, draws x cells."""
    codes = _codes(values)
    level = _sums(weights, codes)
    return (np.cumsum(level, axis=1) - (level + level.sum(axis=1, keepdims=True)) / 2)[:, codes]


def _agreement(risk: np.ndarray, drop: np.ndarray, weights: np.ndarray) -> Ratio:
    first, second, size = _ranks(risk, weights), _ranks(drop, weights), weights.sum(axis=1)
    squares = [np.einsum("bn,bn,bn->b", weights, a, b) for a, b in ((first, first), (second, second), (first, second))]
    spread = np.sqrt(squares[0] * squares[1])
    rho = np.divide(squares[2], spread, out=np.zeros_like(spread), where=spread > 1e-9)
    return rho * size, size * (squares[1] > 1e-9)  # a fold left level counts 0, what chance would give


def _check_budget(budget: float) -> None:
    if not 0 < budget <= 1:
        raise StudyError(f"budget {budget} is not a share of the cells; give a number above 0 and at most 1")


# ---------------------------------------------------------------- evaluation


def _weightings(cells: pd.DataFrame, cluster: str) -> np.ndarray:
    """All cells, then all but those of each cluster: (1 + clusters) x cells."""
    codes = _codes(cells[cluster].astype(str).to_numpy())
    return np.vstack([np.ones(len(cells)), codes != np.arange(codes.max() + 1)[:, None]]).astype(float)


def _estimate(ratios: Iterable[Ratio], n: int, bounds: tuple[float, float]) -> intervals.Estimate | None:
    """The ratio of the sums over folds with its interval over clusters; None where it, or it without one, is undefined.

    Each cluster's score is value + (G - 1) (mean of the values without one - value without it), the jackknife's linear form
    (Tukey 1958), and `mean_interval` takes their mean: so few clusters get Student's t.
    """
    above, below = (sum(parts) for parts in zip(*ratios, strict=True))
    if len(below) < 3 or (below <= 0).any():
        return None
    value, without = (above / below)[0], (above / below)[1:]
    e = intervals.mean_interval(value + (len(without) - 1) * (without.mean() - without), bounds=bounds)
    return intervals.Estimate(float(value), e.low, e.high, n)


def _measured(
    cells: pd.DataFrame, folds: Sequence[Fold], risk: np.ndarray, weights: np.ndarray, budgets: Sequence[float]
) -> Iterator[tuple[float, str, intervals.Estimate | None]]:
    """Budget, metric and estimate of an order; one that is level in every fold has its budget as recall, exactly, and no more."""
    stale, drop = cells["stale"].to_numpy(bool), cells["drop"].to_numpy(float)
    sick = int(stale.sum())
    parts = [(risk[rows], stale[rows], drop[rows], weights[:, rows]) for _, _, rows in folds]
    level = all(np.ptp(r) == 0 for r, *_ in parts)
    for budget in budgets if sick else ():
        exact = intervals.Estimate(budget, budget, budget, sick)
        yield budget, "recall", exact if level else _estimate((_found(r, s, w, budget) for r, s, _, w in parts), sick, (0, 1))
    if not level:
        yield 1.0, "auroc", _estimate((_concordant(r, s, w) for r, s, _, w in parts), len(cells), (0, 1))
        yield 1.0, "spearman", _estimate((_agreement(r, d, w) for r, _, d, w in parts), len(cells), (-1, 1))


def _orders(
    cells: pd.DataFrame, folds: Sequence[Fold], predictors: Sequence[str], seed: int, notes: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The orders that the cells' columns allow, then every predictor's out-of-fold risk."""
    for name, order in ORDERS.items():
        if name != "largest drift first" or "score_ks" in cells:
            yield name, order(cells)
        else:
            notes.append(f"{name}: left out, the cells have no score_ks")
    present = {SIGNALS[name].price for name in present_signals(cells)}
    for name in over("predictors", predictors):
        price = name.rpartition(", ")[2]
        if PRICES[price][-1] in present:
            yield name, out_of_fold(cells, folds, name, None, seed)
        else:
            notes.append(f"{name}: left out, the cells have no signal of the price {PRICES[price][-1]!r}")


def _rule_rows(
    cells: pd.DataFrame, split: str, folds: Sequence[Fold], weights: np.ndarray, missed: float, notes: list[str]
) -> list[tuple[str, intervals.Estimate | None]]:
    """The share of cells that the plain rule flags and the share of stale cells it catches, calibrated on the other folds."""
    stale, flags = cells["stale"].to_numpy(bool), np.zeros(len(cells), bool)
    for name, train, test in folds:
        rule = plain_rule(cells.iloc[train], missed)
        flags[test] = rule.flags(cells.iloc[test])
        if not rule.tests:
            notes.append(f"plain rule, {split}: nothing to calibrate on without {name}, so all of it is revalidated")
    flagged = _estimate([(weights @ flags, weights.sum(axis=1))], len(cells), (0, 1))
    caught = _estimate([(weights @ (flags & stale), weights @ stale)], int(stale.sum()), (0, 1))
    if caught:
        said = "reaches" if caught.low >= 1 - missed else "fails" if caught.high < 1 - missed else "may or may not reach"
        notes.append(
            f"plain rule, {split}: {said} the target on cells it was not calibrated on: it catches {caught.value:.0%} of the "
            f"stale ones (target {1 - missed:.0%}) and revalidates {flags.mean():.0%} of all"
        )
    return [("flagged", flagged), ("caught", caught)]


def evaluate(
    cells: pd.DataFrame, seed: int = 0, budgets: Sequence[float] = BUDGETS, predictors: Sequence[str] = tuple(PREDICTORS),
    splits: Sequence[str] = tuple(SPLITS), missed: float = 0.10, cluster: str = "variant",
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """The rows predictor, split, budget, metric, value, low, high, n of every order, and notes on what could not be said.

    Metrics `recall` at each budget, and at budget 1.0 `auroc` (risk against stale) and `spearman` (risk against drop); the
    `plain rule` has `flagged` and `caught`. All are taken within held-out folds and pooled: recall spends the budget in every
    fold and sums what is found, auroc counts pairs of the same fold, spearman is the mean over folds weighted by cells.
    n: cells, for recall and caught stale cells. The cells are crossed, monitors by updates; the interval is over updates
    (`cluster`), all seeds of an update together, because the next update is what the reader will meet; the monitors are
    taken as they are, and predictors are not fitted again. What has no interval is left out and noted, never nan.
    """
    check_forecast_data(cells)
    for budget in budgets:
        _check_budget(budget)
    for what, asked, names in (("predictor", predictors, PREDICTORS), ("split", splits, SPLITS)):
        for name in asked:
            known(what, name, names)
    check_missed(missed)
    known("cluster", cluster, cells.columns)
    cells, weights, rows, notes = cells.reset_index(drop=True), _weightings(cells, cluster), [], []
    found = applicable(cells)
    if not cells["stale"].any():
        notes.append("no cell is stale: there is nothing to find, so recall and AUROC are left out")
    if len(weights) <= FEW:
        notes.append(f"{len(weights) - 1} clusters by {cluster}: with fewer than {FEW} the intervals are rough")
    for split in over("splits", splits):
        if split not in found:
            notes.append(f"split {split}: left out, nothing remains to learn from without some fold")
            continue
        for name, risk in _orders(cells, found[split], predictors, seed, notes):
            _note_level(name, split, cells, found[split], risk, notes)
            rows += _rows(name, split, _measured(cells, found[split], risk, weights, budgets), notes)
        said = _rule_rows(cells, split, found[split], weights, missed, notes)
        rows += _rows("plain rule", split, ((1.0, metric, e) for metric, e in said), notes)
    return pd.DataFrame(rows, columns=ROW), list(dict.fromkeys(notes))


def _rows(name: str, split: str, measured: Iterable, notes: list[str]) -> list[Row]:
    rows = []
    for budget, metric, e in measured:
        if e is None or not np.isfinite([e.value, e.low, e.high]).all():
            notes.append(f"{name}, {split}: {metric} is left out, it is undefined or rests on one update or fold only")
        else:
            rows.append((name, split, float(budget), metric, e.value, e.low, e.high, e.n))
    return rows


def _note_level(name: str, split: str, cells: pd.DataFrame, folds: Sequence[Fold], risk: np.ndarray, notes: list[str]) -> None:
    level = [fold for fold, _, rows in folds if len(rows) > 1 and np.ptp(risk[rows]) == 0]
    one_class = [fold for fold, train, _ in folds if cells["stale"].iloc[train].nunique() < 2]
    if level and name != "random":
        where = ", ".join(level) if len(level) < len(folds) else "any fold"
        notes.append(f"{name}, {split}: no order inside {where}; those cells count as drawn by chance")
    if one_class and name.startswith("logistic"):
        notes.append(f"{name}, {split}: one class only without {', '.join(one_class)}; the mean drop stands in for a fit")


def best(result: pd.DataFrame, names: Sequence[str] = tuple(PREDICTORS), budget: float = 0.2) -> pd.Series | None:
    """The row of the best recall among `names` (of the best rank correlation where no cell is stale); None without one.

    Whole families held out where that was possible. Best of several, so it flatters: the chapter says of how many.
    """
    rows = result[result["predictor"].isin(names)]
    rows = rows[rows["metric"] == ("recall" if (rows["metric"] == "recall").any() else "spearman")]
    for split in ("family", "monitor"):
        part = rows[rows["split"] == split]
        if len(part):
            near = part[(part["budget"] - budget).abs() == (part["budget"] - budget).abs().min()]
            return near.sort_values(["value", "predictor"], ascending=[False, True]).iloc[0]
    return None


def best_predictor(result: pd.DataFrame) -> str | None:
    """The name of the best predictor; None where no predictor could be scored."""
    row = best(result)
    return None if row is None else str(row["predictor"])


def importance(
    cells: pd.DataFrame,
    predictor: str | None,
    signals: Sequence[str] | None = None,
    split: str = "family",
    repeats: int = 5,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Rows with metric `importance:<signal>`: by how much Spearman falls when the signal is permuted among held-out cells.

    Permutation importance (Breiman 2001) within each held-out fold, the predictor fitted once a fold; value is the mean over
    folds, the interval over folds (n: held-out cells). Signals that say the same share their importance: 0 does not mean
    useless. A signal that is constant inside every fold cannot be permuted and is left out with a note. No rows and a note
    where no predictor could be scored (None) or the split leaves nothing to learn from.
    """
    check_forecast_data(cells)
    if predictor is None:
        return pd.DataFrame(columns=ROW), ["no predictor could be scored, so there is none to take apart"]
    predict = PREDICTORS[known("predictor", predictor, PREDICTORS)]
    names = affordable(chosen_signals(cells, signals), predictor.rpartition(", ")[2])
    folds = applicable(cells).get(known("split", split, SPLITS))
    if folds is None:
        return pd.DataFrame(columns=ROW), [f"{predictor}, {split}: left out, nothing remains to learn from without some fold"]
    falls: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for position, (_, train, test) in enumerate(over("folds", folds)):
        held = cells.iloc[test]
        if held["drop"].nunique() > 1:
            for name, values in _falls(predict, cells.iloc[train], held, names, repeats, [seed, position]).items():
                falls[name].append(values)
    notes: list[str] = []
    rows: list[Row] = []
    for name, found in falls.items():
        groups = np.repeat(np.arange(len(found)), repeats)
        if found:
            e = intervals.mean_interval(np.ravel(found), groups, bounds=(-2, 2))
            rows += _rows(predictor, split, [(1.0, f"importance:{name}", e)], notes)
        else:
            notes.append(f"{predictor}, {split}: {name} is left out, it is constant inside every fold")
    return pd.DataFrame(rows, columns=ROW).assign(n=len(cells)), notes


def _falls(
    predict: Predictor, train: pd.DataFrame, held: pd.DataFrame, names: Sequence[str], repeats: int, seed: Sequence[int]
) -> dict[str, np.ndarray]:
    """The falls of Spearman for each signal that varies among the held-out cells, one a repeat."""
    rng = np.random.default_rng(seed)
    varying = [name for name in names if held[name].nunique(dropna=False) > 1]
    copies = [held.assign(**{name: rng.permutation(held[name].to_numpy())}) for name in varying for _ in range(repeats)]
    risk = np.round(predict(train, pd.concat([held, *copies]), names, int(seed[0])), 10).reshape(1 + len(copies), len(held))
    ranks, truth = stats.rankdata(risk, axis=1), stats.rankdata(held["drop"])
    ranks, truth = ranks - ranks.mean(axis=1, keepdims=True), truth - truth.mean()
    sizes = np.linalg.norm(ranks, axis=1) * np.linalg.norm(truth)
    rho = np.divide(ranks @ truth, sizes, out=np.zeros_like(sizes), where=sizes > 1e-9)
    return dict(zip(varying, (rho[0] - rho[1:]).reshape(len(varying), repeats), strict=True))
