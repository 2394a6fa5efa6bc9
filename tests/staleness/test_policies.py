"""Every number of every policy on cells that can be counted by hand; what holds whatever the cells; risks that saw no label."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from test_predictors import planted, refused

from helpers import results
from helpers.errors import NOT_COMPARABLE, REFUSED
from helpers.figures import repair_tables
from helpers.monitors import gate
from helpers.results import Run
from helpers.staleness import policies
from helpers.staleness.policies import POLICIES, estimates
from helpers.stats import intervals

RUN = Run("cpu", "embedded", 2, None)
COLUMNS = ["fold", "monitor", "risk", "stale", "stale_blind", "stale_realigned", "stale_refit", "gate", "labels",
           "agreement_before"]  # fmt: skip
BY_HAND = pd.DataFrame([
    ("a", "a1", 0.9, True, False, False, False, "realign", 100, 0.9),
    ("a", "a2", 0.8, False, True, True, False, "deploy", 100, 0.8),  # realigning it does harm, and the gate does not
    ("a", "a3", 0.5, True, True, True, False, "refit", 100, 0.2),
    ("a", "a4", 0.3, True, True, True, True, "deploy", 100, 0.7),  # nothing mends it
    ("a", "a5", 0.1, False, False, False, False, "realign", 100, 0.6),
    ("b", "b1", 0.4, True, False, True, False, "deploy", 40, 0.1),
    ("b", "b2", 0.4, True, True, False, False, "realign", 40, 0.9),  # the gate's map mends it, the default one does not
    ("b", "b3", 0.4, False, True, True, False, "realign", 40, 0.9),  # realigning it does harm, and the gate realigns it
    ("b", "b4", 0.4, False, False, False, True, "refit", 40, 0.9),  # refitting it does harm
    ("b", "b5", 0.4, False, False, False, False, "deploy", 40, 0.9),
], columns=COLUMNS).assign(variant=["v1", "v2"] * 5, seed=0, texts=10, forecast_reads=False)  # fmt: skip

METRICS = ["missed", "found", "repaired", "harmed", "labels_per_cell", "passes_per_cell", "refits", "missed_minus_random"]
COUNTED = {  # in the order of METRICS
    "do nothing": (0.5, 0, 0, 0, 0, 0, 0, None),
    "realign everything": (0.5, 0, 0.4, 0.2, 0, 10, 0, None),
    "gated realignment": (0.4, 0.2, 0.6, 0.2, 14, 10, 0.2, None),
    "triage 10 %": (0.43, 0.14, 0.14, 0, 7, 1, 0.01, -0.03),  # half a check in each fold
    "triage 20 %": (0.36, 0.28, 0.28, 0, 14, 2, 0.02, -0.06),  # a1, and any one of b1 to b5
    "triage 30 %": (0.34, 0.32, 0.32, 0, 21, 3, 0.03, -0.04),
    "random 20 %": (0.42, 0.2, 0.16, 0, 14, 2, 0.06, None),
    "drift first 20 %": (0.3, 0.4, 0.4, 0, 14, 10, 0.1, -0.12),  # a3 and b1 agree least
    "revalidate everything": (0.1, 1, 0.8, 0, 70, 10, 0.3, None),
}


def many(count=400, updates=20, share=0.3, seed=0):
    """Cells of many monitors, with risks that say something; updates differ as wholes."""
    rng = np.random.default_rng(seed)
    stale = rng.random(count) < np.resize(share * 2 * rng.random(updates), count)
    blind = np.where(stale, rng.random(count) < 0.5, rng.random(count) < 0.1)
    choice = rng.choice(list(policies.GATE), count)
    return pd.DataFrame({
        "monitor": [f"m{i}" for i in range(count)], "variant": [f"v{i % updates}" for i in range(count)], "seed": 0,
        "fold": [f"f{i % 4}" for i in range(count)], "risk": stale + rng.standard_normal(count), "stale": stale,
        "stale_blind": blind, "stale_realigned": np.where(choice == "realign", blind, stale), "gate": choice,
        "stale_refit": rng.random(count) < 0.1, "labels": 100, "texts": 10, "forecast_reads": False,
        "agreement_before": rng.random(count),
    })  # fmt: skip


def unfit(cells, policy):
    return POLICIES[policy].decide(cells)["unfit"]


# ---------------------------------------------------------------- counted by hand


@pytest.mark.parametrize("policy", POLICIES)
def test_every_number_is_what_can_be_counted_by_hand(policy):
    found = estimates(BY_HAND, POLICIES[policy])
    counted = {name: value for name, value in zip(METRICS, COUNTED[policy], strict=True) if value is not None}
    assert {name: e.value for name, e in found.items()} == pytest.approx(counted)
    assert {name: e.n for name, e in found.items()} == {name: 5 if name in ("found", "repaired") else 10 for name in counted}


@pytest.mark.parametrize(("policy", "done"), [
    ("do nothing", "keep " * 10), ("realign everything", "realign " * 10),
    ("gated realignment", "realign keep refit keep realign keep realign realign refit keep"),
    ("revalidate everything", "realign keep refit refit keep realign refit keep keep keep"),
])  # fmt: skip
def test_what_is_done_with_each_cell(policy, done):
    assert POLICIES[policy].decide(BY_HAND)["action"].tolist() == done.split()


def test_a_forecast_that_reads_texts_pays_for_all_cells_and_for_no_more_labels():
    read = BY_HAND.assign(forecast_reads=True)
    for name, passes in (("triage 20 %", 10), ("random 20 %", 2)):
        found = estimates(read, POLICIES[name])
        assert (found["passes_per_cell"].value, found["labels_per_cell"].value) == (passes, 14)


def test_what_gives_no_sign_of_drift_is_checked_first():
    silent = BY_HAND.assign(agreement_before=BY_HAND["agreement_before"].where(BY_HAND["monitor"] != "a1"))
    assert POLICIES["drift first 20 %"].decide(silent)["read"].to_numpy().nonzero()[0].tolist() == [0, 5]
    by_ks = BY_HAND.drop(columns="agreement_before").assign(score_ks=np.arange(10))  # here a high value warns
    assert POLICIES["drift first 20 %"].decide(by_ks)["read"].to_numpy().nonzero()[0].tolist() == [4, 9]


def test_the_gates_choices_are_those_that_repairs_makes():
    assert tuple(policies.GATE) == gate.GATES


# ---------------------------------------------------------------- what holds whatever the cells


@pytest.mark.parametrize("seed", range(3))
def test_the_ends_of_the_plane(seed):
    cells = many(seed=seed)
    mendable = ~(cells["stale"] & cells["stale_blind"] & cells["stale_refit"])
    assert unfit(cells, "do nothing").tolist() == cells["stale"].tolist()
    assert unfit(cells, "revalidate everything").tolist() == (~mendable).tolist()
    for name in POLICIES:
        table = POLICIES[name].decide(cells)
        assert (table[["read", "unfit", "harmed", "refits"]].min() >= 0).all()
        assert (table[["read", "unfit", "harmed", "refits"]].max() <= 1).all()
        if "realign" not in name:  # what labels were read of is never harmed, and what nobody touched neither
            assert not table["harmed"].any()
            assert (table["unfit"][~mendable] == 1).all()


@pytest.mark.parametrize("budget", [0.2, 0.3])
def test_random_is_the_mean_over_every_draw(budget):
    """The exact formula against brute force: all ways to choose the checks of one fold of ten cells."""
    cells = BY_HAND.assign(fold="one")
    exact = policies.first(cells, 0 * cells["risk"], budget)
    drawn = [
        policies.first(cells, pd.Series(np.isin(range(10), chosen), dtype=float), budget)
        for chosen in itertools.combinations(range(10), round(10 * budget))
    ]
    for name in ("read", "labels", "passes", "refits", "unfit", "harmed"):
        assert exact[name].to_numpy() == pytest.approx(np.mean([table[name] for table in drawn], axis=0))


def test_a_perfect_order_misses_only_what_nothing_mends_once_the_budget_allows():
    cells = many(share=0.15)
    cells["risk"] = cells["stale"].astype(float)
    hopeless = cells["stale"] & cells["stale_blind"] & cells["stale_refit"]
    most = cells.groupby("fold")["stale"].mean().max()
    assert policies.first(cells, cells["risk"], most)["unfit"].sum() == pytest.approx(hopeless.sum())
    assert policies.first(cells, cells["risk"], most / 2)["unfit"].sum() > hopeless.sum() + 5  # control
    assert policies.first(cells, -cells["risk"], most)["unfit"].sum() == pytest.approx(cells["stale"].sum())  # and its reverse


def test_a_larger_budget_never_misses_more_and_never_costs_less():
    cells = many()
    tables = [policies.first(cells, cells["risk"], budget) for budget in np.linspace(0, 1, 21)]
    for before, after in itertools.pairwise(tables):
        assert (after["unfit"] <= before["unfit"] + 1e-9).all()
        assert (after["labels"] >= before["labels"] - 1e-9).all()
    assert tables[0]["labels"].sum() == 0
    assert [table["labels"].sum() for table in tables] == pytest.approx(list(100 * 400 * np.linspace(0, 1, 21)))


def test_a_risk_counts_within_its_fold_only():
    cells = many()
    shifted = cells.assign(risk=cells["risk"] + 100 * (cells["fold"] == "f1"))
    checks = [POLICIES["triage 20 %"].decide(c)["read"] for c in (cells, shifted)]
    assert checks[0].tolist() == checks[1].tolist()
    assert checks[0].groupby(cells["fold"]).sum().tolist() == pytest.approx([20] * 4)


def test_the_order_of_the_rows_changes_nothing():
    cells = many()
    tables = [policies.policy_rows(RUN, c) for c in (cells, cells.sample(frac=1, random_state=0))]
    pd.testing.assert_frame_equal(*tables)


# ---------------------------------------------------------------- intervals over updates


def test_intervals_take_updates_as_their_units():
    cells = many()
    found = estimates(cells, POLICIES["do nothing"])["missed"]
    assert found == intervals.rate_interval(cells["stale"].astype(float), cells["variant"])
    gated = estimates(cells, POLICIES["gated realignment"])["labels_per_cell"]
    assert gated == intervals.mean_interval(100.0 * (cells["gate"] == "refit"), cells["variant"], bounds=(0, 100))
    again = pd.concat([cells.assign(seed=seed) for seed in range(5)], ignore_index=True)  # the same updates say nothing new
    for name in ("do nothing", "random 20 %", "triage 20 %"):
        first, second = (estimates(c, POLICIES[name])["missed"] for c in (cells, again))
        assert second.high - second.low > 0.9 * (first.high - first.low)
        assert second.n == 5 * first.n


def test_what_is_known_beforehand_has_no_interval_and_the_rest_has():
    table = policies.policy_rows(RUN, many()).assign(policy=lambda t: t["method"].str.removeprefix(policies.METHOD))
    for row in table.itertuples():
        exact = row.metric in POLICIES[row.policy].exact
        assert (row.low == row.high) == exact, (row.policy, row.metric)
    free = table[(table["metric"] == "labels_per_cell") & (table["value"] == 0)]
    assert free["policy"].tolist() == ["do nothing", "realign everything"]


def test_a_gate_that_never_asked_for_labels_may_still_ask():
    cells = many().assign(gate="deploy", stale_realigned=lambda c: c["stale"])
    found = estimates(cells, POLICIES["gated realignment"])["labels_per_cell"]
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(100 * intervals.unseen_share(20))


# ---------------------------------------------------------------- the order of the cells


def repaired(cells):
    """What chapter 10 adds to monitors on updates; labels by another definition than the forecast's own."""
    return cells[["monitor", "task", "variant", "family", "seed"]].assign(
        stale=cells["score_ks"] > 0.8, stale_blind=False, stale_realigned=False, stale_refit=False, gate="deploy", labels=50,
        texts=20,
    )  # fmt: skip


def forecast(**sizes):
    return planted(strength=0, **sizes)  # every signal is noise to its drop and stale; ours follow score_ks


def skill(cells):
    return np.mean([roc_auc_score(part["stale"], part["risk"]) for _, part in cells.groupby("fold")])


@pytest.mark.parametrize("predictor", ["ridge, free+forward", "logistic, free+forward", "forest, free+forward"])
def test_risk_is_fitted_on_what_is_stale_here(predictor):
    seen = forecast()
    cells = policies.with_risk(repaired(seen), seen, predictor)
    assert skill(cells) > 0.9
    assert cells["forecast_reads"].all()
    assert set(cells["fold"]) == set(cells["family"])
    blind = policies.with_risk(repaired(seen), seen, predictor.replace("+forward", ""))  # control: free signals are noise
    assert abs(skill(blind) - 0.5) < 0.12
    assert not blind["forecast_reads"].any()


def test_no_label_of_a_fold_reaches_its_risk():
    seen = forecast()
    cells = repaired(seen)
    other = cells.assign(stale=cells["stale"] ^ (cells["family"] == "QLoRA"))
    first, second = (policies.with_risk(c, seen) for c in (cells, other))
    held = first["fold"] == "QLoRA"
    assert first["risk"][held].tolist() == second["risk"][held].tolist()
    assert first["risk"][~held].tolist() != second["risk"][~held].tolist()


def test_one_family_is_held_out_by_task_and_one_of_both_is_refused():
    seen = forecast()
    one = seen[seen["family"] == "QAT"]
    assert policies.with_risk(repaired(one), seen)["fold"].tolist() == one["task"].tolist()
    with refused("one family and one task", code=NOT_COMPARABLE):
        policies.with_risk(repaired(one[one["task"] == "t0"]), seen)


def test_cells_meet_their_own_forecast_and_what_has_none_is_left_out():
    seen = forecast(seeds=2)
    cells = repaired(seen).assign(score_ks=seen["score_ks"]).drop(columns="score_ks")
    extra = cells[:3].assign(variant="identity", family="control")
    found = policies.with_risk(pd.concat([extra, cells.sample(frac=1, random_state=0)]), seen.sample(frac=1, random_state=1))
    assert len(found) == len(cells)
    met = found.merge(seen, on=policies.CELL, suffixes=("", "_seen"))
    assert (met["score_ks"] == met["score_ks_seen"]).all()
    assert skill(found) > 0.9
    with refused("no cell has a forecast", code=NOT_COMPARABLE):
        policies.with_risk(extra, seen)


def test_a_predictor_that_takes_labels_or_that_nobody_knows_is_refused():
    seen = forecast()
    with refused("takes labels before anything is chosen"):
        policies.with_risk(repaired(seen), seen, "ridge, free+forward+labels")
    with refused("unknown predictor 'tea leaves'"):
        policies.with_risk(repaired(seen), seen, "tea leaves")
    with refused("stands in two cells", code=REFUSED):
        policies.with_risk(repaired(seen), pd.concat([seen, seen[:1]]))


def test_a_forecast_serves_triage_and_chance_does_not():
    seen = forecast()
    found = estimates(policies.with_risk(repaired(seen), seen), POLICIES["triage 20 %"])
    assert found["missed_minus_random"].high < -0.05
    blind = estimates(policies.with_risk(repaired(seen), seen, "ridge, free"), POLICIES["triage 20 %"])
    assert blind["missed_minus_random"].low < 0 < blind["missed_minus_random"].high


# ---------------------------------------------------------------- rows and words


def test_rows_keep_to_the_schema_and_belong_to_no_variant():
    table = policies.policy_rows(RUN, BY_HAND)
    results.checked("realignment", table)
    assert (table[["model", "seed", "precision", "adapter", "restoration"]].drop_duplicates().to_numpy().tolist()
            == [["embedded", 2, "", "", ""]])  # fmt: skip
    assert table[["task", "probe", "layer"]].drop_duplicates().to_numpy().tolist() == [["all", "all", 0]]
    assert list(dict.fromkeys(table["method"])) == [f"policy: {name}" for name in POLICIES]
    values = table.set_index(["method", "metric"])["value"]
    assert values["policy: drift first 20 %", "missed"] == pytest.approx(0.3)


def test_without_a_stale_cell_nothing_is_found_and_without_a_sign_nothing_is_ordered():
    table = policies.policy_rows(RUN, BY_HAND.assign(stale=False).drop(columns="agreement_before"))
    results.checked("realignment", table)
    assert not set(table["metric"]) & {"found", "repaired"}
    assert "policy: drift first 20 %" not in set(table["method"])


def test_one_update_still_has_finite_intervals():
    results.checked("realignment", policies.policy_rows(RUN, BY_HAND.assign(variant="v1")))


BAD = {
    "a column": (lambda c: c.drop(columns="texts"), ("'texts'", "forecast_reads"), 2),
    "cells": (lambda c: c[:0], ("0 cells",), NOT_COMPARABLE),
    "an outcome": (lambda c: c.assign(stale_refit=c["stale_refit"].astype(object).where(c["monitor"] != "b1")),
                   ("'stale_refit' has no value",), REFUSED),
    "a risk": (lambda c: c.assign(risk=np.inf), ("'risk' has no value",), REFUSED),
    "a choice": (lambda c: c.assign(gate="maybe"), ("choice of the gate 'maybe'", "deploy"), 2),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_cells_without_what_a_policy_needs_are_refused(bad):
    change, words, code = BAD[bad]
    with refused(*words, code=code):
        policies.policy_rows(RUN, change(BY_HAND))


def test_outcomes_may_be_numbers():
    numbers = BY_HAND.astype(dict.fromkeys(policies.FLAGS, int))
    pd.testing.assert_frame_equal(policies.policy_rows(RUN, numbers), policies.policy_rows(RUN, BY_HAND))


def test_a_reader_sees_one_row_a_policy():
    found = repair_tables.compared(policies.policy_rows(RUN, BY_HAND))
    assert found["policy"].tolist() == list(POLICIES)
    shown = found.set_index("policy")
    assert shown.loc["do nothing", "left unfit"].startswith("50 % [")
    assert shown.loc["revalidate everything", ["stale found", "labels a monitor", "harmed"]].tolist() == ["100 %", "70", "0 %"]
    assert shown.loc["triage 20 %", "left unfit, against random"].startswith("-6 points [")
    assert shown.loc["do nothing", "left unfit, against random"] == "–"


def test_every_sentence_is_there_in_every_run():
    table = policies.policy_rows(RUN, BY_HAND)
    texts = repair_tables.policy_sentences(table)
    assert len(texts) == 3 * len(POLICIES)
    assert texts["policy-random-20-labels"] == "14"
    assert texts["policy-realign-everything-harmed"].startswith("20 % [")
    assert "(not in this run)" not in texts.values()
    few = repair_tables.policy_sentences(table[table["method"] == "policy: do nothing"])
    assert list(few) == list(texts)
    assert few["policy-do-nothing-missed"] == texts["policy-do-nothing-missed"]
    assert few["policy-triage-20-missed"] == "(not in this run)"
    assert set(repair_tables.policy_sentences(table[:0]).values()) == {"(not in this run)"}
    assert repair_tables.compared(table[:0]).empty
