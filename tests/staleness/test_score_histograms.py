"""Histograms: bars hold every text once, and what lies above an edge is what a threshold there flags, with its interval."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support import planted

from helpers import results
from helpers.monitors import readings
from helpers.monitors.frozen import Monitor
from helpers.staleness import score_histograms
from helpers.staleness.drops import Observed, Reference
from helpers.staleness.score_histograms import BINS, SIDES
from helpers.stats import roc
from helpers.updates.names import Variant

ALIGNED = Variant("tiny", 3)
SHIFTED, BROKEN = replace(ALIGNED, precision="nf4"), replace(ALIGNED, precision="rtn-2")
CHOSEN = {task: {"monitor": f"{task}/logistic-mean/2", "of": 2} for task in ("toxicity", "jailbreak")}
CUT = 1.25


def monitor(task: str, layer: int, cut: float | None = CUT) -> Monitor:
    cuts = {} if cut is None else {"5": cut}
    return Monitor(task, "logistic", "mean", layer, layer / 4, 1, 4, 0.0, cuts, 0, 0, "", 0, "tiny", {})


def observed(pairs: int = 60, cut: float | None = CUT) -> Observed:
    """Two monitors a task, the second in use: scores on the aligned model, shifted by 1, and blown up a thousandfold."""
    references, scores, rng = {}, {variant: {} for variant in (ALIGNED, SHIFTED, BROKEN)}, np.random.default_rng(2)
    for task in CHOSEN:
        rows = readings.rows_of(planted.plan(task, pairs=(2, 2, pairs)), task, "test")
        before = np.round(rng.normal(size=(2, 2 * pairs)) + 2 * rows.labels, 2)  # rounded: some lie on an edge
        references[task] = Reference(task, (monitor(task, 1, cut), monitor(task, 2, cut)), rows, rows, np.zeros(0), before, {})
        for variant, after in ((ALIGNED, before), (SHIFTED, before + 1), (BROKEN, 1000 * before)):
            scores[variant][task] = after
    return Observed(pd.DataFrame(), references, scores)


@pytest.fixture(scope="module")
def seen() -> Observed:
    return observed()


@pytest.fixture(scope="module")
def table(seen) -> pd.DataFrame:
    return results.checked("histograms", score_histograms.table(seen, CHOSEN))


def test_the_table_holds_the_monitors_in_use_on_all_variants_in_both_classes(table):
    assert len(table) == len(CHOSEN) * 3 * len(SIDES) * BINS * 2
    assert set(table["layer"]) == {2}
    assert set(table["task"]) == set(CHOSEN)
    assert set(table["precision"]) == {"bf16", "nf4", "rtn-2"}
    assert set(table["n"]) == {60}


def test_every_text_is_in_one_bar(table):
    bars = table[table["metric"] == "share"]
    assert bars.groupby(["task", "precision", "label"])["value"].sum().to_numpy() == pytest.approx(1)


@pytest.mark.parametrize("variant", [ALIGNED, SHIFTED, BROKEN], ids=lambda variant: variant.label)
def test_above_an_edge_lies_what_a_threshold_there_flags(table, seen, variant):
    for task in CHOSEN:
        reference = seen.references[task]
        rows = table[(table["task"] == task) & (table["precision"] == variant.precision)]
        edges = np.sort(rows["edge"].unique())
        assert CUT in edges
        for i in (1, 7, int(np.flatnonzero(edges == CUT)[0]), BINS - 1):
            found = roc.rates(reference.test.labels, seen.scores[variant][task][1], edges[i], reference.test.groups)
            for label, e in zip(("flagged", "harmless"), found, strict=True):
                own = rows[rows["label"] == label]
                above = own[(own["metric"] == "above") & (own["edge"] == edges[i])].iloc[0]
                assert [above["value"], above["low"], above["high"], above["n"]] == pytest.approx([e.value, e.low, e.high, e.n])
                bars = own[(own["metric"] == "share") & (own["edge"] >= edges[i])]
                assert bars["value"].sum() == pytest.approx(e.value)


def test_another_score_gives_other_bars(table):
    rows = table[(table["metric"] == "share") & (table["label"] == "harmless") & (table["task"] == "toxicity")]
    bars = rows.pivot(index="edge", columns="precision", values="value")
    assert (bars["nf4"] - bars["bf16"]).abs().max() > 0.02


def test_one_broken_variant_does_not_squeeze_the_others(table, seen):
    edges = np.sort(table.loc[table["task"] == "toxicity", "edge"].unique())
    low, high = np.quantile(seen.references["toxicity"].scores[1], [0.005, 0.995])
    assert np.ptp(edges) <= 1.06 * 3 * (high - low)
    broken = table[(table["precision"] == "rtn-2") & (table["metric"] == "share") & (table["task"] == "toxicity")]
    outermost = broken[broken["edge"].isin([edges[0], edges[-1]])].groupby("label")["value"].sum()
    assert (outermost > 0.9).all()  # the broken one's own scores stand in the bars at the ends


@pytest.mark.parametrize("cut", [-50.0, 0.0, 3.3, 50.0])
def test_bins_cover_the_scores_and_begin_one_at_the_threshold(cut):
    scores = np.random.default_rng(0).normal(size=400)
    edges = score_histograms.bins(scores, [scores, scores + 1], cut)
    assert len(edges) == BINS
    assert cut in edges
    assert np.ptp(np.diff(edges)) < 1e-9
    assert edges[0] < min(np.quantile(scores, 0.005), cut)
    assert edges[-1] + edges[1] - edges[0] > max(np.quantile(scores + 1, 0.98), cut)
    assert cut in edges[1:]  # so that a threshold can be moved to both sides


def test_scores_that_are_all_alike_still_have_bins():
    edges = score_histograms.bins(np.ones(8), [np.ones(8)], 1.0)
    assert len(set(edges)) == BINS
    assert 1.0 in edges[1:]


def test_a_monitor_without_a_threshold_is_left_out():
    found = observed(pairs=6)
    one = found.references["jailbreak"]
    bare = Observed(found.table, {**found.references, "jailbreak": replace(one, monitors=(monitor("jailbreak", 1, None),
                    monitor("jailbreak", 2, None)))}, found.scores)  # fmt: skip
    assert set(score_histograms.table(bare, CHOSEN)["task"]) == {"toxicity"}
    none = results.checked("histograms", score_histograms.table(bare, {"jailbreak": CHOSEN["jailbreak"]}))
    assert none.empty
