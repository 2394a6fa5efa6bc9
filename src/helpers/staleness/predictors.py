"""Predictors of staleness, in three classes of price, and the splits that they are judged on.

Every predictor is judged on cells that share no task, no family or no seed with those it learned from, never on a random
split: two probes of a task read the same texts, and all monitors of an update read the same weights.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.staleness.drift_signals import SIGNALS

COLUMNS = ("monitor", "task", "variant", "family", "seed", "drop", "stale")
UNTUNED = ("control", "quantization", "before alignment")  # families without fine-tuning
NAMED = ("family", "pooling")  # signals that are a name and no number
Predictor = Callable[[pd.DataFrame, pd.DataFrame, Sequence[str], int], np.ndarray]
Order = Callable[[pd.DataFrame], np.ndarray]
Split = Callable[[pd.DataFrame], pd.DataFrame]
Fold = tuple[str, np.ndarray, np.ndarray]  # name, training rows, test rows


# ---------------------------------------------------------------- what is refused


def check_forecast_data(cells: pd.DataFrame) -> None:
    """Raises StudyError where cells cannot be triaged: none, a column missing, a drop or signal not finite, none stale."""
    if missing := [name for name in COLUMNS if name not in cells]:
        raise StudyError(f"cells lack the column {missing[0]!r}; give {', '.join(COLUMNS)} and one column per signal")
    if cells.empty:
        raise StudyError("there are 0 cells; measure monitors on at least two updates", NOT_COMPARABLE)
    if not np.isfinite(cells["drop"]).all():
        raise StudyError(
            f"{(~np.isfinite(cells['drop'])).sum()} cells have no finite drop; leave them out and count them", REFUSED
        )
    if infinite := [s for s in present_signals(cells) if s not in NAMED and np.isinf(cells[s].to_numpy(float)).any()]:
        raise StudyError(f"signal {infinite[0]!r} is infinite in some cells; use nan for what is undefined", REFUSED)
    if cells.duplicated(["monitor", "variant", "seed"]).any():
        raise StudyError("a (monitor, variant, seed) stands in two cells; pass each once", REFUSED)


def present_signals(cells: pd.DataFrame) -> list[str]:
    """The signals that are columns of the cells, in the order of `SIGNALS`."""
    return [name for name in SIGNALS if name in cells]


def known(what: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is among `names`; else a StudyError that lists them."""
    if name not in names:
        raise StudyError(f"unknown {what} {name!r}; choose one of: {'; '.join(names)}")
    return name


def chosen_signals(cells: pd.DataFrame, signals: Sequence[str] | None) -> list[str]:
    """All signals that the cells have, or those asked for."""
    return present_signals(cells) if signals is None else [known("signal", name, present_signals(cells)) for name in signals]


# ---------------------------------------------------------------- predictors


def _ridge(rows: int, seed: int) -> BaseEstimator:
    return Ridge(alpha=10.0)  # fixed: choosing it by rows would leak, by groups needs more groups than there are


def _logistic(rows: int, seed: int) -> BaseEstimator:
    return LogisticRegression(C=0.1, max_iter=500)


def _forest(rows: int, seed: int) -> BaseEstimator:
    few = min(rows, 500)  # rows a tree: cells of one update are much alike, so more of them cost time and tell little
    return RandomForestRegressor(24, max_samples=few, max_features=0.4, min_samples_leaf=5, random_state=seed, n_jobs=1)


MODELS = {"ridge": (_ridge, "drop"), "logistic": (_logistic, "stale"), "forest": (_forest, "drop")}
PRICES = {"free": ("free",), "free+forward": ("free", "forward"), "free+forward+labels": ("free", "forward", "labels")}


def affordable(signals: Sequence[str], price: str) -> list[str]:
    """The signals among `signals` that a price class pays for; an unknown signal is refused with the names there are."""
    for name in signals:
        known("signal", name, SIGNALS)
    return [name for name in signals if SIGNALS[name].price in PRICES[price]]


def _pipeline(model: BaseEstimator, numeric: Sequence[str], named: Sequence[str]) -> Pipeline:
    """Missing numbers become the median and a column that says so; a name never seen in training becomes no name."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler())
    names = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(make_column_transformer((numbers, list(numeric)), (names, list(named))), model)


def features(cells: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The signals as learned from: a mean may shift either way, so what counts is the size."""
    return cells[list(names)].assign(**{name: cells[name].abs() for name in names if name == "mean_shift"})


def _risk(model: str, price: str, train: pd.DataFrame, test: pd.DataFrame, signals: Sequence[str], seed: int) -> np.ndarray:
    if not (names := affordable(signals, price)):
        raise StudyError(f"predictor '{model}, {price}' has no signal; give the cells at least one of its price")
    make, target = MODELS[model]
    if train[target].nunique() < 2:  # nothing to tell apart: every cell gets the mean drop, which is no order
        return np.full(len(test), float(train["drop"].mean()))
    named = [name for name in names if name in NAMED]
    pipeline = _pipeline(make(len(train), seed), [name for name in names if name not in NAMED], named)
    pipeline.fit(features(train, names), train[target].to_numpy(float))
    held = features(test, names)
    return pipeline.predict_proba(held)[:, 1] if target == "stale" else pipeline.predict(held)


PREDICTORS: dict[str, Predictor] = {f"{m}, {p}": partial(_risk, m, p) for m in MODELS for p in PRICES}
BITS, DRIFT = "fewest bits first", "largest drift first"  # the orders that a predictor has to beat
ORDERS: dict[str, Order] = {
    "random": lambda cells: np.zeros(len(cells)),  # all level, and level cells are drawn by chance: the exact expectation
    "fine-tunes first": lambda cells: (~cells["family"].isin(UNTUNED)).to_numpy(float),
    BITS: lambda cells: -cells["bits"].fillna(0).to_numpy(float),
    DRIFT: lambda cells: cells["score_ks"].fillna(np.inf).to_numpy(float),
    # drift in the space of the traits themselves: how far the mean moved along the monitor's own direction (Nghiem et al. 2026)
    "largest shift along the probe first": lambda cells: cells["mean_shift"].abs().fillna(np.inf).to_numpy(float),
}
NEEDS = {BITS: "bits", DRIFT: "score_ks", "largest shift along the probe first": "mean_shift"}  # the column that an order reads


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
# splits of a part of the cells: their name, the split, and what keeps a cell. A model in fewer than 4 bits, which nobody would
# ship, is broken in a way that any signal sees: it can hold most of the stale cells, and the forecast is then about it alone.
PARTS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "family-4bit": ("family", lambda cells: cells["bits"] >= 4),
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
    check_forecast_data(cells)
    predict = PREDICTORS[known("predictor", predictor, PREDICTORS)]
    names, risk = chosen_signals(cells, signals), np.zeros(len(cells))
    for _, train, test in folds:
        risk[test] = predict(cells.iloc[train], cells.iloc[test], names, seed)
    return np.round(risk, 10)  # equal cells are level, whatever the last bit of a sum says
