"""Triage: which (monitor, update) cells to revalidate first, predicted from signals, and how well such an order does.

Every predictor is judged on cells that share no task, no family or no seed with those it learned from, never on a random
split: two probes of a task read the same texts, and all monitors of an update read the same weights. Each held-out fold is
ordered and given its budget by itself, as a team would that meets a new task or update, so risks of different folds are
never compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from helpers import statistics
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.signals import SIGNALS

BUDGETS = (0.1, 0.2, 0.3)
COLUMNS = ("monitor", "task", "variant", "family", "seed", "drop", "stale")
ROW = ["predictor", "split", "budget", "metric", "value", "low", "high", "n"]
UNTUNED = ("control", "quantization", "before alignment")  # families without fine-tuning
FEW = 20  # updates, below which an interval over them is rough
Predictor = Callable[[pd.DataFrame, pd.DataFrame, Sequence[str], int], np.ndarray]
Order = Callable[[pd.DataFrame], np.ndarray]
Split = Callable[[pd.DataFrame], pd.DataFrame]
Ratio = tuple[np.ndarray, np.ndarray]  # numerator and denominator under each weighting of the cells
Fold = tuple[str, np.ndarray, np.ndarray]  # name, training rows, test rows
Row = tuple[str, str, float, str, float, float, float, int]


# ---------------------------------------------------------------- what is refused


def check(cells: pd.DataFrame) -> None:
    """Raises StudyError where cells cannot be triaged: none, a column missing, a drop or signal not finite, none stale."""
    if missing := [name for name in COLUMNS if name not in cells]:
        raise StudyError(f"cells lack the column {missing[0]!r}; give {', '.join(COLUMNS)} and one column per signal")
    if cells.empty:
        raise StudyError("there are 0 cells; measure monitors on at least two updates", NOT_COMPARABLE)
    if not np.isfinite(cells["drop"]).all():
        raise StudyError(
            f"{(~np.isfinite(cells['drop'])).sum()} cells have no finite drop; leave them out and count them", REFUSED
        )
    if infinite := [s for s in _signals(cells) if s != "family" and np.isinf(cells[s].to_numpy(float)).any()]:
        raise StudyError(f"signal {infinite[0]!r} is infinite in some cells; use nan for what is undefined", REFUSED)
    if cells.duplicated(["monitor", "variant", "seed"]).any():
        raise StudyError("a (monitor, variant, seed) stands in two cells; pass each once", REFUSED)


def _signals(cells: pd.DataFrame) -> list[str]:
    return [name for name in SIGNALS if name in cells]


def _known(what: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise StudyError(f"unknown {what} {name!r}; choose one of: {'; '.join(names)}")
    return name


def _chosen(cells: pd.DataFrame, signals: Sequence[str] | None) -> list[str]:
    """All signals that the cells have, or those asked for."""
    return _signals(cells) if signals is None else [_known("signal", name, _signals(cells)) for name in signals]


def _check_budget(budget: float) -> None:
    if not 0 < budget <= 1:
        raise StudyError(f"budget {budget} is not a share of the cells; give a number above 0 and at most 1")


def _check_missed(missed: float) -> None:
    if not 0 <= missed < 1:
        raise StudyError(f"missed {missed} is not a share of the stale cells; give a number from 0 to below 1")


# ---------------------------------------------------------------- predictors


def _ridge(rows: int, seed: int) -> BaseEstimator:
    return Ridge(alpha=10.0)  # fixed: choosing it by rows would leak, by groups needs more groups than there are


def _logistic(rows: int, seed: int) -> BaseEstimator:
    return LogisticRegression(C=0.1, max_iter=500)


def _forest(rows: int, seed: int) -> BaseEstimator:
    few = min(rows, 500)  # rows a tree: cells of one update are much alike, so more of them cost time and tell little
    return RandomForestRegressor(40, max_samples=few, max_features=0.4, min_samples_leaf=5, random_state=seed, n_jobs=1)


MODELS = {"ridge": (_ridge, "drop"), "logistic": (_logistic, "stale"), "forest": (_forest, "drop")}
PRICES = {"free": ("free",), "free+forward": ("free", "forward"), "free+forward+labels": ("free", "forward", "labels")}


def affordable(signals: Sequence[str], price: str) -> list[str]:
    """The signals among `signals` that a price class pays for; an unknown signal is refused with the names there are."""
    for name in signals:
        _known("signal", name, SIGNALS)
    return [name for name in signals if SIGNALS[name].price in PRICES[price]]


def _pipeline(model: BaseEstimator, numeric: Sequence[str], named: Sequence[str]) -> Pipeline:
    """Missing numbers become the median and a column that says so; a family never seen in training becomes no family."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler())
    names = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(make_column_transformer((numbers, list(numeric)), (names, list(named))), model)


def _features(cells: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The signals as learned from: a mean may shift either way, so what counts is the size."""
    return cells[list(names)].assign(**{name: cells[name].abs() for name in names if name == "mean_shift"})


def _risk(model: str, price: str, train: pd.DataFrame, test: pd.DataFrame, signals: Sequence[str], seed: int) -> np.ndarray:
    if not (names := affordable(signals, price)):
        raise StudyError(f"predictor '{model}, {price}' has no signal; give the cells at least one of its price")
    make, target = MODELS[model]
    if train[target].nunique() < 2:  # nothing to tell apart: every cell gets the mean drop, which is no order
        return np.full(len(test), float(train["drop"].mean()))
    named = [name for name in names if name == "family"]
    pipeline = _pipeline(make(len(train), seed), [name for name in names if name != "family"], named)
    pipeline.fit(_features(train, names), train[target].to_numpy(float))
    features = _features(test, names)
    return pipeline.predict_proba(features)[:, 1] if target == "stale" else pipeline.predict(features)


PREDICTORS: dict[str, Predictor] = {f"{m}, {p}": partial(_risk, m, p) for m in MODELS for p in PRICES}
ORDERS: dict[str, Order] = {
    "random": lambda cells: np.zeros(len(cells)),  # all level, and level cells are drawn by chance: the exact expectation
    "fine-tunes first": lambda cells: (~cells["family"].isin(UNTUNED)).to_numpy(float),
    "largest drift first": lambda cells: cells["score_ks"].fillna(np.inf).to_numpy(float),
}


# ---------------------------------------------------------------- splits


def _by(*columns: str) -> Split:
    return lambda cells: cells[list(columns)].astype(str)


SPLITS: dict[str, Split] = {
    # one task out: a split by monitor would leave another probe of the same texts and activations in the training cells.
    # The same updates stay there, so it asks about a new task after updates that others have been revalidated on.
    "monitor": _by("task"),
    # one kind of update out: the cells of a known monitor under a kind of update nobody has labelled
    "family": _by("family"),
    # one seed out: another training run of known updates, the easiest question
    "seed": _by("seed"),
    # both out: training cells share neither task nor family with the fold
    "monitor and family": _by("task", "family"),
}


def _folds(labels: pd.DataFrame) -> Iterator[Fold]:
    """Name, training rows and test rows of each fold; training cells agree with the fold in no column."""
    for key, rows in labels.groupby(list(labels.columns), sort=True).indices.items():
        train = np.flatnonzero((labels != labels.iloc[rows[0]]).all(axis=1))
        yield key if isinstance(key, str) else "/".join(key), train, rows


def applicable(cells: pd.DataFrame) -> dict[str, list[Fold]]:
    """The folds of each split that the cells allow: no fold may be left without cells to learn from."""
    found = {name: list(_folds(split(cells))) for name, split in SPLITS.items()}
    return {name: folds for name, folds in found.items() if all(len(train) for _, train, _ in folds)}


def out_of_fold(
    cells: pd.DataFrame, folds: Sequence[Fold], predictor: str, signals: Sequence[str] | None = None, seed: int = 0
) -> np.ndarray:
    """The risk of every cell from a predictor that saw none of its fold; comparable within a fold only."""
    check(cells)
    predict = PREDICTORS[_known("predictor", predictor, PREDICTORS)]
    names, risk = _chosen(cells, signals), np.zeros(len(cells))
    for _, train, test in folds:
        risk[test] = predict(cells.iloc[train], cells.iloc[test], names, seed)
    return np.round(risk, 10)  # equal cells are level, whatever the last bit of a sum says


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


def recall(risk: np.ndarray, stale: np.ndarray, budget: float) -> float:
    """Expected share of the stale cells among the riskiest `budget` of all; cells of equal risk are drawn by chance.

    A budget of q of N cells buys q N checks, a fraction of a check finding that fraction. A perfect order reaches
    min(1, budget / prevalence), a random one `budget`. Errors: a budget outside (0, 1], no stale cell.
    """
    _check_budget(budget)
    if not np.any(stale):
        raise StudyError("no cell is stale, so there is nothing to find; measure updates that do more", NOT_COMPARABLE)
    found, all_of_them = _found(np.asarray(risk, float), np.asarray(stale, bool), np.ones((1, len(risk))), budget)
    return float(found[0] / all_of_them[0])


# ---------------------------------------------------------------- a rule for tomorrow

# signals that a rule may use, and the side on which they warn
WARNS = {"relative_change": 1, "output_overlap": 1, "margin": -1, "mean_shift": 1, "cka": -1, "covariance_distance": 1,
         "score_ks": 1, "score_psi": 1, "score_correlation": -1}  # fmt: skip
WORTH = 0.02  # of the cells that a second test must save, else the simpler rule is taken


@dataclass(frozen=True)
class Rule:
    """Tests (signal, threshold), joined by "and" or "or"; a cell is checked where they hold, or where a signal is missing."""

    tests: tuple[tuple[str, float], ...] = ()
    joined: str = "and"

    @property
    def words(self) -> str:
        """The rule as a team would write it down."""
        said = [f"{_sized(s)} {'>=' if WARNS[s] > 0 else '<='} {WARNS[s] * threshold + 0.0:g}" for s, threshold in self.tests]
        return f"revalidate where {f' {self.joined} '.join(said)}" if said else "revalidate everything"

    def flags(self, cells: pd.DataFrame) -> np.ndarray:
        """Which cells the rule sends to revalidation."""
        held = [_warning(cells, signal) >= threshold for signal, threshold in self.tests]
        return {"and": np.logical_and, "or": np.logical_or}[self.joined].reduce(held) if held else np.ones(len(cells), bool)


def _sized(signal: str) -> str:
    return "|mean_shift|" if signal == "mean_shift" else signal


def _warning(cells: pd.DataFrame, signal: str) -> np.ndarray:
    """The signal turned so that more is worse; what is missing warns most."""
    return (WARNS[signal] * _features(cells, [signal])[signal]).fillna(np.inf).to_numpy(float)


def _thresholds(warning: np.ndarray, stale: np.ndarray, need: int) -> np.ndarray:
    """21 quantiles of the stale cells' warnings and the highest threshold that catches `need` of them, cut to 4 digits."""
    ranked = np.sort(warning[stale])[::-1]
    levels = np.append(np.quantile(ranked, np.linspace(0, 1, 21), method="lower"), ranked[need - 1])
    return np.unique([_cut(level) for level in levels if np.isfinite(level)])


def _cut(value: float) -> float:
    """The value rounded down to 4 significant digits, so that a rule does what its words say and misses none that it caught."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{math.floor(value / step) * step:.4g}")


def plain_rule(cells: pd.DataFrame, missed: float = 0.10) -> Rule:
    """The rule of one test, or of two joined by and / or, that flags the fewest of these cells and misses at most that share
    of the stale ones; everything is revalidated where none is stale or no test saves a check.

    Only signals that need no labels are tried. Calibrated on the cells given: judge it on others.
    """
    _check_missed(missed)
    stale, best, fewest = cells["stale"].to_numpy(bool), Rule(), float(len(cells))
    need = int(stale.sum()) - math.floor(missed * stale.sum() + 1e-9)
    grids = {}
    for signal in (name for name in WARNS if name in cells and need):
        warning = _warning(cells, signal)
        levels = _thresholds(warning, stale, need)
        grids[signal] = (levels, (warning >= levels[:, None]).astype(np.float32))
    for signal, (levels, flags) in grids.items():
        counts = np.where(flags @ stale >= need, flags.sum(axis=1), np.inf)
        if counts.size and counts.min() < fewest:
            best, fewest = Rule(((signal, float(levels[counts.argmin()])),)), counts.min()
    fewest -= WORTH * len(cells)
    for first, second in combinations(grids, 2):
        for joined, counts in _pairs(grids[first][1], grids[second][1], stale, need).items():
            if counts.size and counts.min() < fewest:
                i, j = np.unravel_index(counts.argmin(), counts.shape)
                tests = ((first, float(grids[first][0][i])), (second, float(grids[second][0][j])))
                best, fewest = Rule(tests, joined), counts.min()
    return best


def _pairs(first: np.ndarray, second: np.ndarray, stale: np.ndarray, need: int) -> dict[str, np.ndarray]:
    """How many cells each pair of thresholds flags, levels x levels, infinite where it catches fewer than `need`."""
    both = {"flagged": first @ second.T, "caught": (first * stale) @ second.T}
    alone = {"flagged": (first.sum(axis=1), second.sum(axis=1)), "caught": (first @ stale, second @ stale)}
    either = {name: alone[name][0][:, None] + alone[name][1][None, :] - both[name] for name in both}
    return {name: np.where(c["caught"] >= need, c["flagged"], np.inf) for name, c in (("and", both), ("or", either))}


# ---------------------------------------------------------------- evaluation


def _weightings(cells: pd.DataFrame, cluster: str) -> np.ndarray:
    """All cells, then all but those of each cluster: (1 + clusters) x cells."""
    codes = _codes(cells[cluster].astype(str).to_numpy())
    return np.vstack([np.ones(len(cells)), codes != np.arange(codes.max() + 1)[:, None]]).astype(float)


def _estimate(ratios: Iterable[Ratio], n: int, bounds: tuple[float, float]) -> statistics.Estimate | None:
    """The ratio of the sums over folds with its interval over clusters; None where it, or it without one, is undefined.

    Each cluster's score is value + (G - 1) (mean of the values without one - value without it), the jackknife's linear form
    (Tukey 1958), and `mean_interval` takes their mean: so few clusters get Student's t.
    """
    above, below = (sum(parts) for parts in zip(*ratios, strict=True))
    if len(below) < 3 or (below <= 0).any():
        return None
    value, without = (above / below)[0], (above / below)[1:]
    e = statistics.mean_interval(value + (len(without) - 1) * (without.mean() - without), bounds=bounds)
    return statistics.Estimate(float(value), e.low, e.high, n)


def _measured(
    cells: pd.DataFrame, folds: Sequence[Fold], risk: np.ndarray, weights: np.ndarray, budgets: Sequence[float]
) -> Iterator[tuple[float, str, statistics.Estimate | None]]:
    """Budget, metric and estimate of an order; one that is level in every fold has its budget as recall, exactly, and no more."""
    stale, drop = cells["stale"].to_numpy(bool), cells["drop"].to_numpy(float)
    sick = int(stale.sum())
    parts = [(risk[rows], stale[rows], drop[rows], weights[:, rows]) for _, _, rows in folds]
    level = all(np.ptp(r) == 0 for r, *_ in parts)
    for budget in budgets if sick else ():
        exact = statistics.Estimate(budget, budget, budget, sick)
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
    present = {SIGNALS[name].price for name in _signals(cells)}
    for name in predictors:
        price = name.rpartition(", ")[2]
        if PRICES[price][-1] in present:
            yield name, out_of_fold(cells, folds, name, None, seed)
        else:
            notes.append(f"{name}: left out, the cells have no signal of the price {PRICES[price][-1]!r}")


def _rule_rows(
    cells: pd.DataFrame, split: str, folds: Sequence[Fold], weights: np.ndarray, missed: float, notes: list[str]
) -> list[tuple[str, statistics.Estimate | None]]:
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
    check(cells)
    for budget in budgets:
        _check_budget(budget)
    for what, asked, names in (("predictor", predictors, PREDICTORS), ("split", splits, SPLITS)):
        for name in asked:
            _known(what, name, names)
    _check_missed(missed)
    _known("cluster", cluster, cells.columns)
    cells, weights, rows, notes = cells.reset_index(drop=True), _weightings(cells, cluster), [], []
    found = applicable(cells)
    if not cells["stale"].any():
        notes.append("no cell is stale: there is nothing to find, so recall and AUROC are left out")
    if len(weights) <= FEW:
        notes.append(f"{len(weights) - 1} clusters by {cluster}: with fewer than {FEW} the intervals are rough")
    for split in splits:
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


def importance(
    cells: pd.DataFrame,
    predictor: str,
    signals: Sequence[str] | None = None,
    split: str = "family",
    repeats: int = 5,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Rows with metric `importance:<signal>`: by how much Spearman falls when the signal is permuted among held-out cells.

    Permutation importance (Breiman 2001) within each held-out fold, the predictor fitted once a fold; value is the mean over
    folds, the interval over folds (n: held-out cells). Signals that say the same share their importance: 0 does not mean
    useless. A signal that is constant inside every fold cannot be permuted and is left out with a note.
    """
    check(cells)
    predict = PREDICTORS[_known("predictor", predictor, PREDICTORS)]
    names = affordable(_chosen(cells, signals), predictor.rpartition(", ")[2])
    folds = applicable(cells).get(_known("split", split, SPLITS))
    if folds is None:
        raise StudyError(f"split {split!r} does not apply: nothing remains to learn from without some fold", NOT_COMPARABLE)
    falls = {name: [] for name in names}
    for position, (_, train, test) in enumerate(folds):
        held = cells.iloc[test]
        if held["drop"].nunique() > 1:
            for name, values in _falls(predict, cells.iloc[train], held, names, repeats, [seed, position]).items():
                falls[name].append(values)
    notes, rows = [], []
    for name, values in falls.items():
        groups = np.repeat(np.arange(len(values)), repeats)
        if values:
            e = statistics.mean_interval(np.ravel(values), groups, bounds=(-2, 2))
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
