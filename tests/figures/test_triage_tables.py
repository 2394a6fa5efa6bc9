"""What chapter 06 shows of the table `triage`: every number comes from its row, and what is missing is said."""

import pandas as pd
import pytest
from test_predictors import planted

from helpers.figures import triage
from helpers.staleness import triage as triage_orders
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import ORDERS, PREDICTORS

NAMES = ["predictor", "split", "budget", "metric", "value", "low", "high", "n"]


def table(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame([(*row, row[-1] - 0.1, row[-1] + 0.1, 40) for row in rows], columns=NAMES)


PLANTED = table(
    ("random", "family", 0.1, "recall", 0.1),
    ("random", "family", 0.2, "recall", 0.2),
    ("largest drift first", "family", 0.2, "recall", 0.5),
    ("ridge, free", "family", 0.2, "recall", 0.3),
    ("forest, free", "family", 0.2, "recall", 0.6),
    ("forest, free", "family", 0.1, "recall", 0.9),
    ("ridge, free", "monitor", 0.2, "recall", 0.8),
    ("ridge, free", "family", 1.0, "spearman", 0.4),
    ("plain rule", "family", 1.0, "caught", 0.7),
    ("plain rule", "family", 1.0, "flagged", 0.4),
)


def test_every_signal_is_listed_with_its_price():
    shown = triage.signals_overview()
    assert list(shown["signal"]) == list(SIGNALS)
    assert set(shown["what it costs"]) == set(triage.PRICE.values())
    assert triage.words() == {name: signal.words for name, signal in SIGNALS.items()}


def test_the_table_has_one_row_an_order_and_split_and_one_column_a_budget():
    shown = triage.table(PLANTED)
    assert list(zip(shown["split"], shown["predictor"], strict=True)) == [
        ("family", "random"),
        ("family", "largest drift first"),
        ("family", "ridge, free"),
        ("family", "forest, free"),
        ("monitor", "ridge, free"),
    ]
    cells = shown.set_index(["split", "predictor"])
    assert cells.loc[("family", "forest, free"), "found at 20 %"] == "60 % [50, 70]"
    assert cells.loc[("family", "forest, free"), "found at 10 %"] == "90 % [80, 100]"
    assert cells.loc[("monitor", "ridge, free"), "found at 10 %"] == "–"


def test_the_best_is_taken_at_the_budget_with_families_held_out():
    assert set(PLANTED["predictor"]) <= {*PREDICTORS, *ORDERS, "plain rule"}
    best = triage_orders.best(PLANTED)
    assert (best["predictor"], best["split"], best["budget"]) == ("forest, free", "family", 0.2)
    assert triage_orders.best(PLANTED, tuple(ORDERS))["predictor"] == "largest drift first"
    assert triage_orders.best(PLANTED[PLANTED["split"] == "monitor"])["split"] == "monitor"


@pytest.mark.parametrize("kept", ["spearman", "nothing"])
def test_without_a_stale_cell_the_rank_correlation_decides(kept):
    rest = PLANTED[PLANTED["metric"] == kept]
    best = triage_orders.best(rest)
    assert best is None if kept == "nothing" else best["predictor"] == "ridge, free"
    assert triage.triage_sentences(rest)["triage-simple"] == "(not in this run)"


def test_where_nothing_could_be_ordered_the_chapter_goes_on_and_says_so():
    still = planted().assign(drop=0.0, stale=False)
    result, _ = triage_orders.evaluate(still, predictors=["ridge, free"])
    assert not result["metric"].isin(["recall", "spearman"]).any()
    assert triage_orders.best_predictor(PLANTED) == "forest, free"
    best = triage_orders.best_predictor(result)
    worth, remarks = triage_orders.importance(still, best)
    assert best is None
    assert worth.empty
    assert remarks == ["no predictor could be scored, so there is none to take apart"]
    shown = triage.importances(pd.concat([result, worth]), best, triage.words())
    assert "did not measure what a predictor leans on" in shown.axes[0].texts[0].get_text()


def test_the_sentences_name_who_was_best_and_what_the_judged_one_finds_beyond():
    rows = table(
        (triage.JUDGED, "family-4bit", 0.1, "recall_beyond_bits", 0.7),
        (triage.JUDGED, "family-4bit", 0.2, "recall_beyond_bits", 0.25),
        (triage.JUDGED, "family", 0.2, "recall_beyond_drift", 0.9),
    )
    said = triage.triage_sentences(pd.concat([PLANTED, rows], ignore_index=True))
    assert said == {
        "triage-best": "60 % [50, 70] (forest, free)",
        "triage-simple": "50 % [40, 60] (largest drift first)",
        "triage-beyond-bits": "0.25 [0.15, 0.35]",
        "triage-beyond-drift": "(not in this run)",
    }


def test_what_is_found_beyond_stands_in_points_by_split_and_predictor():
    rows = table(
        (triage.JUDGED, "family-4bit", 0.2, "recall_beyond_bits", 0.25),
        (triage.JUDGED, "family-4bit", 1.0, "auroc_beyond_drift", -0.05),
        ("forest, free", "family", 0.2, "recall_beyond_bits", 0.1),
    )
    shown = triage.beyond(pd.concat([PLANTED, rows], ignore_index=True))
    assert list(shown.columns) == ["split", "predictor", "recall at 20 % beyond bits", "auroc beyond drift"]
    assert shown.iloc[0].tolist() == ["family-4bit", triage.JUDGED, "+25 [+15, +35]", "-5 [-15, +5]"]
    assert shown.iloc[1].tolist() == ["family", "forest, free", "+10 [+0, +20]", "–"]
    assert triage.beyond(PLANTED).empty


def test_the_rule_is_shown_with_what_it_caught_and_what_it_asks_for():
    shown = triage.rules(PLANTED)
    assert shown.to_dict("records") == [
        {"split": "family", "stale cells caught": "70 % [60, 80]", "cells to check": "40 % [30, 50]"}
    ]
