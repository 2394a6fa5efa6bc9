"""Policies: what a rule for revalidating monitors costs and what it leaves unfit in service, on held-out updates (chapter 10).

A cell is a monitor on an update; `stale` is any of the three definitions of chapter 05. Every cell pays for itself: monitors
that share texts share the cost too, so what stands here is what a team with one monitor a task would pay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from helpers import cache, results
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.results import OWN, VALUES, Run
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import PREDICTORS, PRICES, applicable, known, out_of_fold
from helpers.stats import intervals
from helpers.updates import names as update_names
from helpers.updates.names import Variant

CELL = ["monitor", "variant", "seed"]
FLAGS = ["stale", "stale_realigned", "stale_blind", "stale_refit"]
NUMBERS = ["labels", "texts", "risk"]  # rows that a revalidation reads, passes that a realignment takes, what to check first
COLUMNS = [*CELL, *FLAGS, *NUMBERS, "gate", "fold", "forecast_reads"]
GATE = {"deploy": "keep", "realign": "realign", "refit": "refit"}  # the gate's choice -> what is done
DRIFT = {"agreement_before": -1.0, "score_ks": 1.0}  # label-free signs of drift, and the side on which they warn
FOLDS = ("family", "monitor")  # which split of chapter 06 is held out, the first that the cells allow
SHARES = ("missed", "found", "repaired", "harmed", "refits")
NO_LABELS = ("found", "labels_per_cell", "passes_per_cell", "refits")
METHOD = "policy: "
Decide = Callable[[pd.DataFrame], pd.DataFrame]
Values: TypeAlias = pd.Series | np.ndarray | str | float  # one a cell, or one for all


# ---------------------------------------------------------------- the order in which cells are checked


def with_risk(cells: pd.DataFrame, forecast: pd.DataFrame, predictor: str = "ridge, free+forward", seed: int = 0) -> pd.DataFrame:
    """The cells with `risk` (high is checked first, comparable within a `fold`) and `forecast_reads`: whether it takes passes.

    The signals are those of chapter 06's cells (`forecast`), joined on monitor, variant and seed; the predictor is fitted anew,
    outside of each fold, to foretell `stale` as it stands here and not the AUROC drop. Whole families of updates are held out,
    whole tasks where there is one family. Cells without a forecast (controls) are left out. Errors: a predictor that takes
    labels, no cell with a forecast, nothing left to learn from.
    """
    price = known("predictor", predictor, PREDICTORS).rpartition(", ")[2]
    if "labels" in PRICES[price]:
        raise StudyError(f"predictor {predictor!r} takes labels before anything is chosen; use one of price free or free+forward")
    signals = [name for name in SIGNALS if name in forecast and name not in cells]
    joined = cells.merge(forecast[[*CELL, *signals]], on=CELL)
    if joined.empty:
        raise StudyError("no cell has a forecast; give chapter 06's cells of the same run and seeds", NOT_COMPARABLE)
    joined = joined.assign(drop=joined["stale"].astype(float))  # so that regressions foretell the same as classifiers
    found = applicable(joined)
    split = next((name for name in FOLDS if name in found), None)
    if split is None:
        raise StudyError("the cells are of one family and one task, so no fold can be held out; measure two", NOT_COMPARABLE)
    folds = np.empty(len(joined), object)
    for name, _, rows in found[split]:
        folds[rows] = name
    kept = joined[[*cells.columns, *(name for name in DRIFT if name in signals)]]
    reads = "forward" in PRICES[price]
    return kept.assign(risk=out_of_fold(joined, found[split], predictor, None, seed), fold=folds, forecast_reads=reads)


def forecast(run: Run) -> pd.DataFrame:
    """Chapter 06's cells of a run, with all their signals; where they left the cache, the error says how to make them again."""
    key = results.read_note(run, "06_triage", "cells")
    path = cache.cache_path("cells", f"{key}.parquet")
    if not path.is_file():
        raise StudyError(f"the cells of chapter 06 ({key}) are not in the cache; run chapter 06_triage again with --force",
                         NOT_COMPARABLE)  # fmt: skip
    return pd.read_parquet(path)


# ---------------------------------------------------------------- policies: what is done with every cell


def decisions(cells: pd.DataFrame, read: Values, action: Values, passes: Values, refits: Values, unfit: Values) -> pd.DataFrame:
    """One row a cell: what was done with it and what that left; a share is the chance of it where cells are drawn.

    `read` (labels were), `action` (keep, realign, refit; where labels are read, what they lead to), `labels` and `passes` spent,
    `refits`, `unfit` (left unfit in service), `harmed` (fit before, unfit now).
    """
    found = {"read": read, "action": action, "passes": passes, "refits": refits, "unfit": unfit}
    table = pd.DataFrame(found, index=cells.index).astype({name: float for name in found if name != "action"})
    return table.assign(labels=table["read"] * cells["labels"], harmed=table["unfit"].where(~cells["stale"], 0.0))


def do_nothing(cells: pd.DataFrame) -> pd.DataFrame:
    """Every monitor stays in service as it is."""
    return decisions(cells, 0, "keep", 0, 0, cells["stale"])


def realign_everything(cells: pd.DataFrame) -> pd.DataFrame:
    """Every monitor is realigned on unlabelled texts, whether it needs it or not."""
    return decisions(cells, 0, "realign", cells["texts"], 0, cells["stale_blind"])


def gated_realignment(cells: pd.DataFrame) -> pd.DataFrame:
    """Every monitor is read on unlabelled texts and the gate followed; labels are asked for where it says refit."""
    asked = cells["gate"] == "refit"
    return decisions(cells, asked, cells["gate"].map(GATE), cells["texts"], asked, behind_gate(cells))


def behind_gate(cells: pd.DataFrame) -> pd.Series:
    """Whether each monitor is unfit when the gate is followed: as it is, behind the map that the gate judged, or refit."""
    return cells["stale"].where(
        cells["gate"] == "deploy", cells["stale_realigned"].where(cells["gate"] == "realign", cells["stale_refit"])
    )


def first(cells: pd.DataFrame, risk: pd.Series, budget: float, reads: Values = False) -> pd.DataFrame:
    """The riskiest `budget` of the cells of each fold is revalidated; what is stale is realigned if that mends it, else refit.

    A fold of N cells buys budget x N checks; cells of equal risk are drawn by chance, and a fraction of a check counts as the
    chance of it. A revalidation reads the labelled rows and the unlabelled texts; a refit uses the same rows. `reads`: the
    order itself takes the passes of every cell. What is not checked stays as it is.
    """
    share = risk.groupby(cells["fold"]).transform(partial(_bought, budget=budget))
    worse = cells["stale"] & cells["stale_blind"]
    action = np.select([worse, cells["stale"]], ["refit", "realign"], "keep")
    passes = cells["texts"] * np.where(reads, 1.0, share)
    unfit = np.where(worse & cells["stale_refit"], 1.0, cells["stale"] * (1 - share))
    return decisions(cells, share, action, passes, share * worse, unfit)


def _bought(risk: pd.Series, budget: float) -> np.ndarray:
    """The chance of each cell of a fold to be checked."""
    ahead = stats.rankdata(-risk, "min") - 1
    level = stats.rankdata(-risk, "max") - ahead
    return np.round(np.clip((budget * len(risk) - ahead) / level, 0, 1), 9)  # 0.3 x 10 is 3, whatever the last bit says


def _triage(cells: pd.DataFrame, budget: float) -> pd.DataFrame:
    return first(cells, cells["risk"], budget, cells["forecast_reads"])


def _random(cells: pd.DataFrame, budget: float) -> pd.DataFrame:
    return first(cells, 0 * cells["risk"], budget)


def _drift(cells: pd.DataFrame, budget: float) -> pd.DataFrame:
    name = next(name for name in DRIFT if name in cells)
    return first(cells, (DRIFT[name] * cells[name]).fillna(np.inf), budget, True)  # what is missing warns most


@dataclass(frozen=True)
class Policy:
    """What is done with each cell, and which metrics are known before any update is met: these are exact, without interval."""

    decide: Decide
    exact: tuple[str, ...]
    at_random: Decide | None = None  # the same budget spent at random, to compare with
    needs: frozenset[str] = frozenset()  # one of these columns, where any


def _budgeted(decide: Callable[..., pd.DataFrame], budget: float) -> Policy:
    """A share of the cells revalidated: what that costs is set beforehand, and labels show before anything is harmed."""
    spent, needs = ("harmed", "labels_per_cell", "passes_per_cell"), frozenset(DRIFT if decide is _drift else ())
    if decide is _random:
        return Policy(partial(decide, budget=budget), ("found", *spent))
    return Policy(partial(decide, budget=budget), spent, partial(_random, budget=budget), needs)


POLICIES: dict[str, Policy] = {
    "do nothing": Policy(do_nothing, (*NO_LABELS, "repaired", "harmed")),
    "realign everything": Policy(realign_everything, NO_LABELS),
    "gated realignment": Policy(gated_realignment, ("passes_per_cell",)),
    "triage 10 %": _budgeted(_triage, 0.1),
    "triage 20 %": _budgeted(_triage, 0.2),
    "triage 30 %": _budgeted(_triage, 0.3),
    "random 20 %": _budgeted(_random, 0.2),
    "drift first 20 %": _budgeted(_drift, 0.2),
    "revalidate everything": _budgeted(_random, 1.0),
}


# ---------------------------------------------------------------- what it cost and missed


def check_cells(cells: pd.DataFrame) -> None:
    """Raises StudyError where cells lack a column, an outcome or a number, or the gate says what nobody knows."""
    if missing := [name for name in COLUMNS if name not in cells]:
        raise StudyError(f"cells lack the column {missing[0]!r}; give {', '.join(COLUMNS)}")
    if cells.empty:
        raise StudyError("there are 0 cells; measure monitors on at least two updates", NOT_COMPARABLE)
    unclear = [name for name in FLAGS if not cells[name].isin([True, False]).all()]
    unclear += [name for name in NUMBERS if not np.isfinite(cells[name].to_numpy(float)).all()]
    if unclear:
        raise StudyError(f"column {unclear[0]!r} has no value in some cells; leave them out and count them", REFUSED)
    for name in cells["gate"].unique():
        known("choice of the gate", name, GATE)


def estimates(cells: pd.DataFrame, policy: Policy) -> dict[str, intervals.Estimate]:
    """What a policy missed and cost, by metric; intervals over updates (all seeds of a variant together), n cells.

    missed: share of cells left unfit in service. found: share of the stale cells that were revalidated; repaired: that are fit
    afterwards (n: stale cells; both absent where none is). harmed: fit before and unfit now. labels_per_cell, passes_per_cell
    (of unlabelled texts through either model), refits (share of cells). missed_minus_random: paired, against the same budget
    spent at random. Shares of yes and no have Wilson's interval on the effective number of cells (`rate_interval`), expected
    ones and costs `mean_interval`; no policy is chosen again without an update, so an order is taken as it is.
    """
    table, stale, updates = policy.decide(cells), cells["stale"].to_numpy(bool), cells["variant"].to_numpy()
    columns = {"missed": table["unfit"], "harmed": table["harmed"], "refits": table["refits"]}
    columns |= {"labels_per_cell": table["labels"], "passes_per_cell": table["passes"]}
    most = {"labels_per_cell": cells["labels"].max(), "passes_per_cell": cells["texts"].max()}
    found = {name: _estimate(values, updates, name in policy.exact, most.get(name, 1)) for name, values in columns.items()}
    if stale.any():
        sick = {"found": table["read"][stale], "repaired": 1 - table["unfit"][stale]}
        found |= {name: _estimate(values, updates[stale], name in policy.exact, 1) for name, values in sick.items()}
    if policy.at_random:
        blind = policy.at_random(cells)["unfit"]
        found["missed_minus_random"] = intervals.paired_difference(blind, table["unfit"], updates, bounds=(-1, 1))
    return found


def _estimate(values: pd.Series, updates: np.ndarray, exact: bool, most: float) -> intervals.Estimate:
    """The mean of values between 0 and `most`."""
    if exact:
        mean = float(values.mean())
        return intervals.Estimate(mean, mean, mean, len(values))
    if most == 1 and values.isin([0, 1]).all():
        return intervals.rate_interval(values, updates)
    return intervals.mean_interval(values, updates, bounds=(0, most))


def policy_rows(run: Run, cells: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `realignment`, of the run and no single variant: method "policy: <name>" over all tasks and probes.

    A policy that needs a column which the cells do not have is left out.
    """
    check_cells(cells)
    cells = cells.astype(dict.fromkeys(FLAGS, bool)).reset_index(drop=True)
    found = [
        ("all", "all", 0, f"{METHOD}{name}", metric, e.value, e.low, e.high, e.n)
        for name, policy in POLICIES.items()
        if not policy.needs or policy.needs & set(cells)
        for metric, e in estimates(cells, policy).items()
    ]
    front = Variant(run.model, run.seed, precision="")
    return update_names.keyed(front, pd.DataFrame(found, columns=[*OWN["realignment"], *VALUES]))


# ---------------------------------------------------------------- as a reader sees it
