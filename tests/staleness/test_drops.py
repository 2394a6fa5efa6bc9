"""Staleness: what is planted is found (turned, shifted, lost), what did not change is exactly 0, every row keeps its interval."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support import planted

from helpers import results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.figures import staleness_tables
from helpers.models import loading
from helpers.monitors import fitting, readings, stale
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import PROBES
from helpers.monitors.readings import LINEAR, TURNED
from helpers.staleness import drops as staleness_drops
from helpers.stats import intervals, paired_aurocs
from helpers.stats.intervals import MARGINS, rate_interval
from helpers.updates import measurements
from helpers.updates import names as update_names
from helpers.updates import variants as model_variants
from helpers.updates.names import CONTROL, Variant
from helpers.updates.variants import Parts

TASK = "toxicity"
READING = planted.plan(TASK, attention=True)
BASE = planted.activations(READING)
NOISE = torch.Generator().manual_seed(5)


def along(size: float):
    """Moves everything along the planted axis."""
    return lambda x: x + size * torch.eye(planted.D)[0]


def quarter_turn(x):
    """Turns the plane of the axes 0 and 5 by 90 degrees."""
    turned = x.clone()
    turned[:, 0], turned[:, 5] = x[:, 5], -x[:, 0]
    return turned


SEEN = {
    "same": BASE,
    "copy": planted.changed(BASE, lambda x: x + 0.05 * torch.randn(x.shape, generator=NOISE)),
    "turned": planted.changed(BASE, quarter_turn),
    "rolled": planted.changed(BASE, lambda x: x.roll(1, dims=1)),
    "elsewhere": planted.activations(READING, axis=3),
    "up": planted.changed(BASE, along(16.0)),
    "down": planted.changed(BASE, along(-16.0)),
    "lost": planted.activations(READING, strength=0.0),
    "constant": planted.changed(BASE, torch.ones_like),
}


@pytest.fixture(scope="module")
def frozen(tiny):
    return planted.monitors(BASE, READING, tiny)


@pytest.fixture(scope="module")
def reference(frozen):
    return staleness_drops.references(frozen, BASE, READING)[TASK]


@pytest.fixture(scope="module")
def compared(reference):
    """Rows and scores of every planted variant."""
    return {name: staleness_drops.compare(reference, found, READING) for name, found in SEEN.items()}


def of(compared, variant: str, metric: str, kinds=tuple(k for k in PROBES if k != CONTROL)) -> pd.DataFrame:
    """The rows of one metric for single monitors of some kinds."""
    table = compared[variant][0]
    mine = table["probe"].str.replace(r"-(mean|last)$", "", regex=True).isin(kinds)
    found = table[mine & (table["metric"] == metric)]
    assert len(found), (variant, metric)
    return found


def one(table: pd.DataFrame, monitor: Monitor) -> pd.DataFrame:
    """The rows of one monitor by metric."""
    return table[(table["probe"] == monitor.probe) & (table["layer"] == monitor.layer)].set_index("metric")


# ---------------------------------------------------------------- nothing changed


def test_without_a_change_every_drop_loss_and_angle_is_exactly_zero(compared, reference):
    table, scores = compared["same"]
    for metric in ("auroc_drop", "tpr_loss_5", "refit_drop", "direction_angle", "mean_auroc_drop", "p_preserved"):
        rows = table[table["metric"] == metric]
        assert len(rows)
        assert (rows["value"] == 0).all(), metric
    assert (table.loc[table["metric"] == "p_worse", "value"] == 1).all()
    exact = table[table["metric"].isin(["auroc_drop", "refit_drop", "direction_angle", "mean_auroc_drop"])]
    assert (exact[["low", "high"]] == 0).all(axis=None)
    flags = table[table["metric"].str.contains("stale_(?:auroc|tpr)")]
    assert (flags["value"] == 0).all()
    assert set(of(compared, "same", "auroc_drop", tuple(PROBES))["probe"]) == {m.probe for m in reference.monitors}
    assert (scores == reference.scores).all()


def test_alarms_of_an_unchanged_model_are_those_it_had(compared, reference):
    for j, monitor in enumerate(reference.monitors):
        row = one(compared["same"][0], monitor)
        flagged = reference.scores[j][reference.test.labels == 0] > monitor.thresholds["5"]
        assert row.loc["fpr_5", "value"] == pytest.approx(flagged.mean())
        assert row.loc["stale_fpr_5", "value"] == (flagged.mean() > MARGINS["fpr_ratio"] * 0.05)


def test_a_noisy_copy_is_not_stale(compared):
    assert of(compared, "copy", "auroc_drop")["value"].abs().max() > 0  # the control is not the identity again
    assert of(compared, "copy", "auroc_drop")["value"].abs().max() < 0.03
    for flag in ("stale_auroc_05", "stale_auroc_10", "stale_tpr_5"):
        assert (of(compared, "copy", flag)["value"] == 0).all()
    assert (of(compared, "copy", "stale_auroc_05")["high"] == 0).all()
    assert (of(compared, "copy", "refit_drop")["value"].abs() < 0.03).all()


# ---------------------------------------------------------------- turned


@pytest.mark.parametrize("variant", ["turned", "rolled", "elsewhere"])
def test_a_turned_signal_makes_monitors_stale_and_leaves_the_refit_whole(compared, frozen, variant):
    stale = of(compared, variant, "stale_auroc_05")
    assert (stale["value"] == 1).all()
    assert (stale["low"] == 1).all()  # surely: the whole interval of the drop lies above 0.05
    refit = of(compared, variant, "refit_drop", LINEAR)
    assert (refit["value"].abs() < 0.05).all()
    if variant != "elsewhere":  # a rotation of the very same vectors
        assert ((refit["low"] <= 0) & (refit["high"] >= 0)).all()
        same = of(compared, "same", "refit_auroc", LINEAR)["value"].to_numpy()
        np.testing.assert_allclose(of(compared, variant, "refit_auroc", LINEAR)["value"], same, atol=2e-3)
    rows = fitting.monitor_rows([m for m in frozen if m.kind in TURNED], BASE, READING)
    noise = max(staleness_tables.resampled_angles(rows).values())
    angles = of(compared, variant, "direction_angle", TURNED)
    assert 5 < noise < 40
    assert (angles["low"] > noise).all()
    assert (of(compared, "copy", "direction_angle", TURNED)["high"] < noise).all()


def test_only_kinds_with_a_direction_have_refits_and_angles(compared):
    table = compared["turned"][0].query("layer > 0")
    names = {metric: set(table.loc[table["metric"] == metric, "probe"]) for metric in ("refit_drop", "direction_angle")}
    assert names["refit_drop"] == {f"{kind}-{pool}" for kind in LINEAR for pool in ("mean", "last")}
    assert names["direction_angle"] == {f"{kind}-{pool}" for kind in TURNED for pool in ("mean", "last")}


# ---------------------------------------------------------------- shifted, lost


def test_a_shift_keeps_the_ranking_and_breaks_the_threshold(compared):
    for variant in ("up", "down"):
        drops = of(compared, variant, "auroc_drop", LINEAR)
        assert (drops["value"] == 0).all()
        assert (drops["low"] < 0).all()  # the scores are not the same, so an unseen share could differ
    assert (of(compared, "up", "fpr_5", LINEAR)["value"] > 0.99).all()
    assert (of(compared, "up", "stale_fpr_5", LINEAR)[["value", "low"]] == 1).all(axis=None)
    assert (of(compared, "up", "stale_tpr_5", LINEAR)["value"] == 0).all()
    assert (of(compared, "down", "tpr_5", LINEAR)["value"] < 0.01).all()
    assert (of(compared, "down", "stale_tpr_5", LINEAR)[["value", "low"]] == 1).all(axis=None)
    assert (of(compared, "down", "stale_fpr_5", LINEAR)["value"] == 0).all()
    for variant in ("up", "down"):
        assert (of(compared, variant, "stale_auroc_05", LINEAR)["value"] == 0).all()


def test_a_lost_signal_is_lost_to_the_refit_too(compared):
    assert (of(compared, "lost", "stale_auroc_10")["value"] == 1).all()
    assert (of(compared, "lost", "refit_drop", LINEAR)["low"] > 0.1).all()
    assert (of(compared, "lost", "refit_auroc", LINEAR)["value"] < 0.75).all()


# ---------------------------------------------------------------- every row


@pytest.mark.parametrize("variant", SEEN)
def test_every_row_keeps_to_the_schema(compared, variant):
    table = update_names.keyed(Variant("tiny", precision="nf4"), compared[variant][0])
    valid = results.checked("staleness", table)
    assert len(valid) == len(table) > 50
    flags = valid[valid["metric"].str.startswith("stale_")]
    assert flags[["value", "low", "high"]].isin([0, 1]).all(axis=None)
    shares = valid[valid["metric"].str.startswith(("share_", "tpr_5", "fpr_5", "p_"))]
    assert shares[["value", "low", "high"]].stack().between(0, 1).all()


@pytest.mark.parametrize("variant", [name for name in SEEN if name != "constant"])
def test_aurocs_and_drops_are_those_of_scikit_learn(compared, reference, variant):
    labels = reference.test.labels
    for j, monitor in enumerate(reference.monitors):
        row = one(compared[variant][0], monitor)["value"]
        before, after = (roc_auc_score(labels, scores[j]) for scores in (reference.scores, compared[variant][1]))
        assert row["auroc"] == pytest.approx(after)
        assert row["auroc_drop"] == pytest.approx(before - after, abs=1e-12)
        assert row["stale_auroc_05"] <= (before - after >= 0.05 - 1e-12)


def test_tied_scores_have_no_ranking_and_stop_nothing(compared, reference):
    table, scores = compared["constant"]
    assert (np.ptp(scores, axis=1) < 1e-9).all()
    undefined = table[table["metric"] == "auroc_undefined"]
    assert len(undefined) == len(reference.monitors)
    assert not table["metric"].isin(["auroc", "auroc_drop", "p_worse", "mean_auroc_drop", "refit_auroc", "direction_angle"]).any()
    assert {"tpr_5", "fpr_5", "share_stale_tpr_5"} <= set(table["metric"])  # a threshold still alarms, or does not


def test_one_monitor_without_a_ranking_leaves_the_others_theirs(reference):
    scores = reference.scores.copy()
    scores[0] = 1.0
    mean = staleness_drops.mean_drop(reference, reference.scores, scores)
    assert (mean.value, mean.n) == (0.0, len(reference.test.labels))
    assert np.isnan(staleness_drops.mean_drop(reference, scores * 0, scores).value)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("value", np.linspace(-0.05, 0.25, 31))
@pytest.mark.parametrize("half", [0.0, 0.02, 0.08])
def test_a_flag_lies_between_the_answers_of_its_ends(reference, value, half):
    drop = paired_aurocs.Contrast(intervals.Estimate(value, value - half, value + half, 120), max(half / 2, 1e-3), 59.0)
    found = staleness_drops._ranking(reference, reference.scores[0], drop)
    for name, size in stale.DROPS.items():
        flag = found[f"stale_auroc_{name}"]
        assert flag.low <= flag.value <= flag.high
        assert flag.value == (value >= size and value - half > 0)
        assert (flag.low, flag.high) == (value - half >= size, value + half >= size)


# ---------------------------------------------------------------- all monitors of a task


@pytest.mark.parametrize("variant", ["copy", "turned", "up", "lost"])
def test_means_and_shares_are_those_of_the_monitors_without_the_control(compared, reference, variant):
    table = compared[variant][0]
    every = table[table["probe"] == "all"].set_index("metric")
    assert (every[["layer", "depth"]] == 0).all(axis=None)
    drops = of(compared, variant, "auroc_drop")
    assert len(drops) == len(reference.monitors) - 4  # two layers, two poolings of shuffled labels
    assert every.loc["mean_auroc_drop", "value"] == pytest.approx(drops["value"].mean(), abs=1e-12)
    for flag in ("stale_auroc_05", "stale_auroc_10", "stale_tpr_5", "stale_fpr_5"):
        mine = of(compared, variant, flag)
        assert every.loc[f"share_{flag}", "value"] == pytest.approx(mine["value"].mean())
        assert every.loc[f"share_{flag}", "n"] == len(mine)
        units = [f"{probe.rpartition('-')[2]}/{layer}" for probe, layer in zip(mine["probe"], mine["layer"], strict=True)]
        e = rate_interval(mine["value"], units)  # probes of one layer and pooling are relatives
        assert (every.loc[f"share_{flag}", "low"], every.loc[f"share_{flag}", "high"]) == pytest.approx((e.low, e.high))


def test_the_mean_is_surer_than_its_monitors_and_wider_than_none(compared):
    row = compared["copy"][0].query("metric == 'mean_auroc_drop'").iloc[0]
    single = of(compared, "copy", "auroc_drop")
    assert 0 < row["high"] - row["low"] < (single["high"] - single["low"]).mean()


def test_too_few_negatives_give_no_threshold_and_no_alarm_rows(tiny):
    reading = planted.plan(TASK, pairs=(20, 18, 20), depths=(0.5,))  # no text of 18 stands for 5 %
    found = planted.activations(reading)
    frozen = planted.monitors(found, reading, tiny, ["logistic", "lda"])
    (reference,) = staleness_drops.references(frozen, found, reading).values()
    table, _ = staleness_drops.compare(reference, found, reading)
    assert {"auroc_drop", "share_stale_auroc_05"} <= set(table["metric"])
    assert not table["metric"].str.contains("tpr|fpr").any()


def test_tasks_are_compared_apart_and_repeat_exactly(tiny):
    reading = planted.plan(TASK, "jailbreak", pairs=(20, 20, 20), depths=(0.5,))
    found, after = planted.activations(reading), planted.activations(reading, axis=3)
    frozen = planted.monitors(found, reading, tiny, ["logistic", "mlp"])
    references = staleness_drops.references(frozen, found, reading)
    assert list(references) == [TASK, "jailbreak"]
    alone = staleness_drops.references([m for m in frozen if m.task == "jailbreak"], found, reading)
    assert list(alone) == ["jailbreak"]
    tables = [staleness_drops.compare(r["jailbreak"], after, reading)[0] for r in (references, alone)]
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0]["task"]) == {"jailbreak"}


# ---------------------------------------------------------------- real variants of the tiny model


@pytest.fixture(scope="module")
def small(tiny):
    """Parts, aligned variant, a plan, and monitors frozen on the tiny model."""
    parts, aligned = Parts(tiny, tiny), Variant("tiny")
    reading = readings.plan([TASK], [0.5, 1.0], [f"{TASK}:0.5"], (8, 20, 10), 60, "tiny")
    found = measurements.stored(parts, aligned, reading)
    kinds = ["logistic", "mean-difference", "attention"]
    return parts, aligned, reading, fitting.fit_monitors(found, reading, kinds, 0, parts)


def test_a_variant_is_built_once_and_then_read_from_the_cache(small, monkeypatch):
    parts, aligned, reading, frozen = small
    variants, built, steps = [Variant("tiny", adapter="identity"), Variant("tiny", precision="rtn-2")], [], []
    real = model_variants.build_variant
    monkeypatch.setattr(staleness_drops, "build_variant", lambda parts, variant: built.append(variant) or real(parts, variant))
    first, second = (staleness_drops.observe(parts, aligned, variants, frozen, reading, progress=steps.append) for _ in range(2))
    assert built == variants  # the second time nothing is built
    assert steps == 2 * ["identity", "rtn-2"]
    pd.testing.assert_frame_equal(first.table, second.table)
    table = results.checked("staleness", first.table)
    drops = table[table["metric"].isin(["auroc_drop", "refit_drop", "direction_angle"])]
    assert (drops.loc[drops["adapter"] == "identity", ["value", "low", "high"]] == 0).all(axis=None)
    assert drops.loc[drops["precision"] == "rtn-2", "value"].abs().max() > 0
    assert list(first.scores) == variants
    assert first.scores[variants[1]][TASK].shape == (len(frozen), 20)


def test_classes_of_equal_means_have_no_direction_and_stop_nothing(tiny):
    parts, aligned = Parts(tiny, tiny), Variant("tiny")
    reading = readings.plan([TASK], [0.5], [], (8, 20, 10), 8, "tiny")  # so short that the two texts of a pair are the same
    found = measurements.stored(parts, aligned, reading)
    frozen = fitting.fit_monitors(found, reading, ["mean-difference", "logistic"], 0, parts)
    rows = fitting.monitor_rows(frozen, found, reading)
    assert not rows.query("probe == 'mean-difference-mean'")["metric"].isin(["auroc", "resampled_angle"]).any()
    (reference,) = staleness_drops.references(frozen, found, reading).values()
    table, _ = staleness_drops.compare(reference, found, reading)
    assert "auroc_undefined" in set(table.query("probe == 'mean-difference-mean'")["metric"])
    assert "direction_angle" not in set(table.query("probe == 'mean-difference-mean'")["metric"])


def test_the_monitors_refuse_a_model_that_reads_otherwise(small, monkeypatch):
    parts, _, _, frozen = small

    def other(parts, variant):
        language = loading.load(parts.aligned)
        language.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        return language

    monkeypatch.setattr(staleness_drops, "build_variant", other)
    with pytest.raises(StudyError, match=r"reads is .*; fit it on this model") as error:
        staleness_drops._built(parts, Variant("tiny"), frozen)
    assert error.value.code == NOT_COMPARABLE
    assert "\n" not in str(error.value)
