"""Triage: which (monitor, update) cells to revalidate first, predicted from signals, and how well such an order does.

Each held-out fold is ordered and given its budget by itself, as a team would that meets a new task or update, so risks of
different folds are never compared.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from helpers.console import over
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.order_measures import OrderWorth, beyond, check_budget, measured, over_updates, ratio, weightings
from helpers.staleness.predictors import (
    BITS,
    DRIFT,
    NEEDS,
    ORDERS,
    PARTS,
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
BEYOND = {BITS: "bits", DRIFT: "drift"}  # what a predictor is compared with, and how the difference is called
Row = tuple[str, str, float, str, float, float, float, int]


# ---------------------------------------------------------------- evaluation


def _orders(
    cells: pd.DataFrame, folds: Sequence[Fold], predictors: Sequence[str], seed: int, notes: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The orders that the cells' columns allow, then every predictor's out-of-fold risk."""
    for name, order in ORDERS.items():
        if NEEDS.get(name, "family") in cells:
            yield name, order(cells)
        else:
            notes.append(f"{name}: left out, the cells have no {NEEDS[name]}")
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
    flagged = over_updates(ratio([(weights @ flags, weights.sum(axis=1))]), len(cells), (0, 1))
    caught = over_updates(ratio([(weights @ (flags & stale), weights @ stale)]), int(stale.sum()), (0, 1))
    if caught:
        said = "reaches" if caught.low >= 1 - missed else "fails" if caught.high < 1 - missed else "may or may not reach"
        notes.append(
            f"plain rule, {split}: {said} the target on cells it was not calibrated on: it catches {caught.value:.0%} of the "
            f"stale ones (target {1 - missed:.0%}) and revalidates {flags.mean():.0%} of all"
        )
    return [("flagged", flagged), ("caught", caught)]


def evaluate(
    cells: pd.DataFrame, seed: int = 0, budgets: Sequence[float] = BUDGETS, predictors: Sequence[str] = tuple(PREDICTORS),
    splits: Sequence[str] = (*SPLITS, *PARTS), missed: float = 0.10, cluster: str = "variant",
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """The rows predictor, split, budget, metric, value, low, high, n of every order, and notes on what could not be said.

    Metrics `recall` at each budget, and at budget 1.0 `auroc` (risk against stale) and `spearman` (risk against drop); the
    `plain rule` has `flagged` and `caught`. All are taken within held-out folds and pooled: recall spends the budget in every
    fold and sums what is found, auroc counts pairs of the same fold, spearman is the mean over folds weighted by cells.
    `recall_beyond_bits`, `auroc_beyond_drift` and so on: a predictor minus the order of that name, on the same folds.
    n: cells, for recall and caught stale cells. The cells are crossed, monitors by updates; the interval is over updates
    (`cluster`), all seeds of an update together, because the next update is what the reader will meet; the monitors are
    taken as they are, and predictors are not fitted again. What has no interval is left out and noted, never nan.
    """
    check_forecast_data(cells)
    for budget in budgets:
        check_budget(budget)
    for what, asked, names in (("predictor", predictors, PREDICTORS), ("split", splits, (*SPLITS, *PARTS))):
        for name in asked:
            known(what, name, names)
    check_missed(missed)
    known("cluster", cluster, cells.columns)
    rows, notes = [], list[str]()
    if not cells["stale"].any():
        notes.append("no cell is stale: there is nothing to find, so recall and AUROC are left out")
    if cells[cluster].nunique() < FEW:
        notes.append(f"{cells[cluster].nunique()} clusters by {cluster}: with fewer than {FEW} the intervals are rough")
    for split in over("splits", splits):
        kept, folds = held_out(cells, split)
        if folds:
            rows += _split_rows(kept, split, folds, predictors, seed, budgets, weightings(kept, cluster), missed, notes)
        else:
            notes.append(f"split {split}: left out, nothing remains to learn from without some fold")
    return pd.DataFrame(rows, columns=ROW), list(dict.fromkeys(notes))


def held_out(cells: pd.DataFrame, split: str) -> tuple[pd.DataFrame, list[Fold]]:
    """The cells that a split speaks of, and its folds; no folds where nothing would remain to learn from."""
    base, keeps = PARTS.get(split, (split, None))
    if keeps is not None and "bits" not in cells:
        return cells.iloc[:0], []
    kept = cells.reset_index(drop=True) if keeps is None else cells[keeps(cells)].reset_index(drop=True)
    return kept, applicable(kept).get(base, []) if len(kept) else []


def _split_rows(
    cells: pd.DataFrame, split: str, folds: Sequence[Fold], predictors: Sequence[str], seed: int, budgets: Sequence[float],
    weights: np.ndarray, missed: float, notes: list[str],
) -> list[Row]:  # fmt: skip
    """The rows of all orders, predictors and the plain rule on one split."""
    rows, simple = list[Row](), dict[str, OrderWorth]()
    count, sick = len(cells), int(cells["stale"].sum())
    for name, risk in _orders(cells, folds, predictors, seed, notes):
        _note_level(name, split, cells, folds, risk, notes)
        order = measured(cells, folds, risk, weights, budgets)
        simple |= {name: order} if name in BEYOND else {}  # level in every fold, it is worth what chance is
        if order.level and name in ORDERS and name != "random":
            continue
        rows += _rows(name, split, order.estimates(count, sick), notes)
        for base in BEYOND if name in PREDICTORS and not order.level else ():
            if base in simple:
                rows += _rows(name, split, beyond(order, simple[base], BEYOND[base], count, sick), notes)
    said = _rule_rows(cells, split, folds, weights, missed, notes)
    return rows + _rows("plain rule", split, ((1.0, metric, e) for metric, e in said), notes)


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
        if len(level) == len(folds) and name in ORDERS:
            notes.append(f"{name}, {split}: left out, it has no order inside any fold; judge it where kinds of update meet")
        else:
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
    cells, folds = held_out(cells, known("split", split, (*SPLITS, *PARTS)))
    if not folds:
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
