"""Cohorts: poolings are never one number, the weak and the uncounted stay out, and what cried wolf before is nobody's doing."""

from dataclasses import replace

import pandas as pd
import pytest

from helpers.staleness import cohorts, verdicts
from helpers.staleness.drops import COLUMNS
from helpers.stats.intervals import Estimate, rate_interval
from helpers.stats.over_seeds import mean_of
from helpers.updates import names as update_names
from helpers.updates.names import Variant

ALIGNED = Variant("tiny")
NF4, INT8, RTN = (replace(ALIGNED, precision=name) for name in ("nf4", "int8", "rtn-2"))
DOSE = replace(ALIGNED, adapter="lora-dialogue-rank2", trained_on="bf16", serving="attached")


def labelled(rows: dict[Variant, list[tuple]]) -> pd.DataFrame:
    """A described table of rows probe, layer, metric, value, low, high, n of one task."""
    parts = []
    for variant, own in rows.items():
        told = [("toxicity", probe, layer, layer / 4, *rest) for probe, layer, *rest in own]
        parts.append(update_names.keyed(variant, pd.DataFrame(told, columns=COLUMNS)))
    return verdicts.described(pd.concat(parts, ignore_index=True))


def flag(probe: str, layer: int, metric: str, value: float) -> tuple:
    return (probe, layer, metric, value, value, value, 80)


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("logistic", True),
        ("attention", True),
        ("shuffled-labels", False),
        ("simulated-updates", False),
        ("simulated-noise", False),
    ],
)
def test_what_knows_nothing_and_what_was_fitted_with_simulated_updates_is_not_counted(kind, counted):
    assert cohorts.is_counted(kind) == counted
    table = labelled({NF4: [flag(f"{kind}-last", 1, "stale_auroc_05", 1.0), flag("all-last", 0, "x", 1.0)]})
    assert len(cohorts.single_monitors(table)) == counted


def test_a_probe_says_what_it_reads():
    assert [cohorts.pooling_of(name) for name in ("lda-last", "simulated-noise-mean", "attention")] == [
        "last",
        "mean",
        "attention",
    ]
    assert cohorts.names_of(["last", "mean"], [False, True]) == ["all-last", "weak-mean"]


def test_unfit_is_either_side_of_the_threshold_and_none_that_cried_wolf_before():
    start = [flag("lda-last", layer, name, float(layer == 3 and name == "stale_fpr_5")) for layer in (1, 2, 3, 4)
             for name in ("stale_tpr_5", "stale_fpr_5")]  # fmt: skip
    after = [flag("lda-last", 1, "stale_tpr_5", 1.0), flag("lda-last", 1, "stale_fpr_5", 0.0),
             flag("lda-last", 2, "stale_tpr_5", 0.0), flag("lda-last", 2, "stale_fpr_5", 1.0),
             flag("lda-last", 3, "stale_tpr_5", 1.0), flag("lda-last", 3, "stale_fpr_5", 1.0),
             flag("lda-last", 4, "stale_tpr_5", 0.0), flag("lda-last", 4, "stale_fpr_5", 0.0)]  # fmt: skip
    found = cohorts.unfit(cohorts.single_monitors(labelled({ALIGNED: start, NF4: after})))
    told = found[found["precision"] == "nf4"].set_index("layer")["value"]
    assert told.to_dict() == {1: 1.0, 2: 1.0, 4: 0.0}


def test_what_is_said_of_unfit_monitors_is_traced_to_the_rows_that_decide():
    """The fault: the numbers of rows were counted anew, and a share's link led to other monitors."""
    rows = [flag("lda-last", layer, name, float(layer == 2 and name == "stale_fpr_5")) for layer in (1, 2)
            for name in ("stale_tpr_5", "stale_fpr_5")]  # fmt: skip
    start = [flag("lda-last", layer, name, 0.0) for layer in (1, 2) for name in ("stale_tpr_5", "stale_fpr_5")]
    table = labelled({ALIGNED: start, NF4: rows}).sample(frac=1, random_state=0)
    found = cohorts.unfit(cohorts.single_monitors(table))
    assert (table.loc[found.index, "value"] == found["value"]).all()
    assert (table.loc[found.index, ["layer", "precision"]] == found[["layer", "precision"]]).all(axis=None)


def test_a_group_is_the_mean_of_its_variants_and_no_row_is_about_both_poolings():
    drops = {NF4: 0.02, INT8: 0.0, RTN: 0.4, DOSE: 0.9}
    more = {"last": 0.1, "mean": 0.0}
    rows = {v: [(f"all-{pool}", 0, "mean_auroc_drop", x + own, x - 0.1, x + 0.2, 80) for pool, own in more.items()]
            for v, x in drops.items()}  # fmt: skip
    found = cohorts.by_group(labelled(rows), "mean_auroc_drop").set_index(["group", "pooling"])
    assert set(found.index) == {(name, pool) for name in (verdicts.FINE, verdicts.COARSE) for pool in cohorts.POOLINGS}
    e = mean_of([Estimate(0.12, -0.08, 0.22, 80), Estimate(0.1, -0.1, 0.2, 80)], shared=True)
    row = found.loc[(verdicts.FINE, "last")]
    assert row[["value", "low", "high", "n"]].tolist() == pytest.approx([e.value, e.low, e.high, 80])
    assert found.loc[(verdicts.COARSE, "mean"), "value"] == pytest.approx(0.4)
    alone = cohorts.by_group(labelled(rows), "mean_auroc_drop", "label")
    assert len(alone) == 2 * len(drops)  # of single variants, doses too


def test_a_share_has_places_as_units_and_leaves_the_weak_out():
    start = [
        (f"{kind}-last", layer, "tpr_5", 0.2 if layer == 3 else 0.9, 0.1, 1.0, 80)
        for kind in ("lda", "mlp")
        for layer in (1, 2, 3)
    ]
    after = [flag(f"{kind}-last", layer, "stale_auroc_05", float(layer != 2)) for kind in ("lda", "mlp") for layer in (1, 2, 3)]
    table = labelled({ALIGNED: start, NF4: after, INT8: after})
    (row,) = cohorts.by_group(table, "stale_auroc_05").itertuples()
    e = rate_interval([1, 0, 1, 0, 1, 0, 1, 0], [1, 2, 1, 2, 1, 2, 1, 2])  # the variants of one layer are one unit
    assert (row.group, row.pooling, row.n) == (verdicts.FINE, "last", 8)
    assert (row.value, row.low, row.high) == pytest.approx((e.value, e.low, e.high))
    assert cohorts.single_monitors(table).query("weak")["layer"].unique().tolist() == [3]
    assert set(cohorts.shares(table)["metric"]) == {"stale_auroc_05"}  # no other flag is in the table


def test_the_best_of_a_pooling_is_chosen_on_validation():
    rows = [("lda-last", 2, 0.9), ("mlp-last", 1, 0.9), ("lda-last", 1, 0.8), ("lda-mean", 1, 0.7), ("attention", 1, 0.99),
            ("shuffled-labels-mean", 1, 0.95), ("simulated-updates-last", 1, 0.95), ("bag-of-words", 0, 0.99)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["probe", "layer", "value"]).assign(task="toxicity", metric="auroc_validation")
    worse = table.assign(metric="auroc", value=1 - table["value"])  # on test: nobody looks
    found = cohorts.best_by_pooling(pd.concat([table, worse]))
    assert found == {"toxicity": {"last": "toxicity/mlp-last/1", "mean": "toxicity/lda-mean/1"}}
