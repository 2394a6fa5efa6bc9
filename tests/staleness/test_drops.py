"""Staleness: what is planted is found (turned, shifted, lost), what did not change is exactly 0, every row keeps its interval."""

from dataclasses import replace

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
from helpers.monitors.readings import LINEAR, TURNED, Rows
from helpers.staleness import cohorts
from helpers.staleness import drops as staleness_drops
from helpers.stats import intervals, paired_aurocs
from helpers.stats.intervals import MARGINS, rate_interval
from helpers.updates import measurements
from helpers.updates import names as update_names
from helpers.updates import variants as model_variants
from helpers.updates.names import CONTROL, SIMULATED, Variant
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
    for split in ("", "_split"):  # all of them are stale on either half
        names = {m: set(table.loc[table["metric"] == f"{m}{split}", "probe"]) for m in ("refit_drop", "direction_angle")}
        assert names["refit_drop"] == {f"{kind}-{pool}" for kind in LINEAR for pool in ("mean", "last")}
        assert names["direction_angle"] == {f"{kind}-{pool}" for kind in TURNED for pool in ("mean", "last")}
    assert not compared["copy"][0]["metric"].str.endswith("_split").any()  # none of which is stale


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
    found = staleness_drops._ranking(reference.test, reference.scores[0], drop)
    for name, size in stale.DROPS.items():
        flag = found[f"stale_auroc_{name}"]
        assert flag.low <= flag.value <= flag.high
        assert flag.value == (value >= size and value - half > 0)
        assert (flag.low, flag.high) == (value - half >= size, value + half >= size)


# ---------------------------------------------------------------- all monitors of a task


def cohort(reference, pooling: str, weak: bool = False) -> list[int]:
    """The monitors that a row about many speaks of: of one pooling, controls left out, the weak apart."""
    keep = [m.pooling == pooling and m.kind != CONTROL for m in reference.monitors]
    return [j for j, kept in enumerate(keep) if kept and reference.weak[j] == weak]


@pytest.mark.parametrize("pooling", cohorts.POOLINGS)
@pytest.mark.parametrize("variant", ["copy", "turned", "up", "lost"])
def test_means_and_shares_are_those_of_one_pooling_without_the_control(compared, reference, variant, pooling):
    table = compared[variant][0]
    every = table[table["probe"] == f"all-{pooling}"].set_index("metric")
    assert (every[["layer", "depth"]] == 0).all(axis=None)
    mine = [one(table, reference.monitors[j]) for j in cohort(reference, pooling)]
    assert len(mine) == 2 * 4  # two layers, four kinds that are no control
    assert every.loc["mean_auroc_drop", "value"] == pytest.approx(np.mean([rows.loc["auroc_drop", "value"] for rows in mine]))
    layers = [reference.monitors[j].layer for j in cohort(reference, pooling)]
    for flag in cohorts.FLAGS:
        e = rate_interval([rows.loc[flag, "value"] for rows in mine], layers)  # probes of one layer and pooling are relatives
        row = every.loc[f"share_{flag}", ["value", "low", "high", "n"]]
        assert row.tolist() == pytest.approx([e.value, e.low, e.high, e.n])


def test_no_row_is_about_both_poolings_or_about_attention(compared):
    for table, _ in compared.values():
        assert set(table.loc[table["layer"] == 0, "probe"]) <= {f"{name}-{pool}" for name in ("all", "weak") for pool in
                                                              cohorts.POOLINGS}  # fmt: skip


def test_poolings_that_lose_unlike_things_are_never_averaged(tiny):
    """What reads the last token loses its signal, what reads the mean keeps it: either row says so, and no row lies between."""
    reading = planted.plan(TASK, pairs=(40, 40, 60), depths=(0.5,))
    before, gone = planted.activations(reading), planted.activations(reading, strength=0.0)
    after = replace(before, pooled=before.pooled | {name: gone.pooled[name] for name in gone.pooled if name.startswith("last/")})
    frozen = planted.monitors(before, reading, tiny, ["logistic", "lda"])
    (reference,) = staleness_drops.references(frozen, before, reading).values()
    table = staleness_drops.compare(reference, after, reading)[0]
    means = table[table["metric"] == "mean_auroc_drop"].set_index("probe")
    assert means.loc["all-last", "low"] > 0.3
    assert means.loc["all-mean", ["value", "low", "high"]].tolist() == [0, 0, 0]
    assert set(means.index) == {"all-last", "all-mean"}


def test_monitors_that_caught_little_before_are_counted_apart(reference, frozen):
    """The threshold of one monitor put above nearly everything: it is weak, and no longer among the others."""
    cut = float(np.quantile(reference.scores[0][reference.test.labels == 1], 0.8))
    weak = replace(frozen[0], thresholds=dict.fromkeys(frozen[0].thresholds, cut))
    changed = replace(reference, monitors=(weak, *reference.monitors[1:]))
    assert {frozen[j].kind for j in np.flatnonzero(reference.weak)} == {CONTROL}
    assert changed.weak[0]
    assert changed.members[f"weak-{weak.pooling}"] == [0]
    assert 0 not in changed.members[f"all-{weak.pooling}"]
    table = staleness_drops.compare(changed, SEEN["turned"], READING)[0].set_index(["probe", "metric"])
    assert table.loc[(f"weak-{weak.pooling}", "share_stale_auroc_05"), "n"].item() == 1
    assert table.loc[(f"all-{weak.pooling}", "share_stale_auroc_05"), "n"].item() == 7
    unset = replace(changed, monitors=(replace(weak, thresholds={}), *reference.monitors[1:]))
    assert not unset.weak[0]  # nothing is known of what it catches


def test_probes_of_simulated_updates_have_rows_and_stand_in_no_mean(reference, frozen):
    named = replace(frozen[0], kind=f"{SIMULATED}-updates")
    changed = replace(reference, monitors=(named, *reference.monitors[1:]))
    assert all(0 not in places for places in changed.members.values())
    assert staleness_drops.mean_drop(changed, reference.scores, np.vstack([reference.scores[:1] * -1, reference.scores[1:]])) == (
        staleness_drops.mean_drop(changed, reference.scores, reference.scores)
    )


def test_the_mean_is_surer_than_its_monitors_and_wider_than_none(compared):
    row = compared["copy"][0].query("metric == 'mean_auroc_drop'").iloc[0]
    single = of(compared, "copy", "auroc_drop")
    assert 0 < row["high"] - row["low"] < (single["high"] - single["low"]).mean()


# ---------------------------------------------------------------- a second test set


def with_second_test(reading):
    """The plan with other texts of the same task behind, as the second test set, and harmless ones for a threshold."""
    names = {"validation": "elsewhere", "test": "threshold"}
    more = [replace(e, split=names[e.split], group=f"other {e.group}") for e in planted.plan(TASK, pairs=(0, 50, 20)).examples]
    return replace(reading, examples=(*reading.examples, *(e for e in more if e.split == "elsewhere" or e.label == 0)))


def test_the_second_test_set_has_its_own_rows_and_changes_none_of_the_first(tiny):
    """The signal is there on its own texts and lost on those from elsewhere: only the rows of the latter say so."""
    reading = planted.plan(TASK, pairs=(40, 40, 60), depths=(0.5,))
    both = with_second_test(reading)
    before, after = planted.activations(both), planted.activations(both, strength=0.0)
    away = torch.tensor([e.split == "elsewhere" for e in both.examples])[:, None]
    after = replace(before, pooled={name: torch.where(away, after.pooled[name], x) for name, x in before.pooled.items()})
    first = {name: rows[: len(reading.examples)] for name, rows in before.pooled.items()}
    frozen = planted.monitors(replace(before, pooled=first), reading, tiny, ["logistic", "lda", "mlp"])
    (reference,) = staleness_drops.references(frozen, before, both).values()
    table, scores = staleness_drops.compare(reference, after, both)
    assert scores.shape == (len(frozen), 120)
    rows = table[table["layer"] > 0].pivot(index=["probe", "layer"], columns="metric", values="value")
    assert (rows["auroc_drop"] == 0).all()
    assert (rows["auroc_drop_elsewhere"] > 0.25).all()
    assert (rows[["stale_auroc_05_elsewhere", "stale_tpr_5_elsewhere"]] == 1).all(axis=None)
    assert (rows[["stale_auroc_05", "stale_tpr_5"]] == 0).all(axis=None)
    assert {"auroc_elsewhere", "tpr_loss_5_elsewhere", "stale_fpr_5_elsewhere"} <= set(rows)
    assert not rows.columns.str.contains("refit.*elsewhere|angle.*elsewhere").any()
    means = table[table["layer"] == 0].pivot(index="probe", columns="metric", values="value")
    assert (means["mean_auroc_drop_elsewhere"] > 0.25).all()
    assert (means["share_stale_auroc_05_elsewhere"] == 1).all()
    (alone,) = staleness_drops.references(frozen, replace(before, pooled=first), reading).values()
    seen = {name: rows[: len(reading.examples)] for name, rows in after.pooled.items()}
    without = staleness_drops.compare(alone, replace(after, pooled=seen), reading)[0]
    assert not without["metric"].str.contains("elsewhere").any()
    kept = table[~table["metric"].str.contains("elsewhere")].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, without)


def test_a_variant_may_be_read_by_a_smaller_plan(compared, reference):
    """Validation and threshold texts serve the aligned model alone: without them, the rows of a variant are the same."""
    kept = np.array([e.split in {"train", "test"} for e in READING.examples])
    smaller = replace(READING, examples=tuple(e for e, keep in zip(READING.examples, kept, strict=True) if keep))
    found = SEEN["turned"]
    pooled = {name: rows[torch.from_numpy(kept)] for name, rows in found.pooled.items()}
    tokens = {name: rows[np.repeat(kept, np.diff(found.offsets[name]))] for name, rows in found.tokens.items()}
    offsets = {name: np.cumsum([0, *np.diff(places)[kept]]) for name, places in found.offsets.items()}
    table, scores = staleness_drops.compare(reference, replace(found, pooled=pooled, tokens=tokens, offsets=offsets), smaller)
    pd.testing.assert_frame_equal(table, compared["turned"][0])
    np.testing.assert_array_equal(scores, compared["turned"][1])


# ---------------------------------------------------------------- picked on one half, judged on the other


def test_what_is_picked_and_judged_on_the_same_texts_seems_to_have_lost_signal_and_on_other_texts_does_not():
    """A planted null: the variant ranks as well as before, and so does the refit. Picked for their bad luck, the monitors look
    as if they had lost something that a refit lacks as well; on the half they were not picked on they have not."""
    rng, pairs, naive, split, weights = np.random.default_rng(0), 60, [], [], []
    rows = readings.rows_of(planted.plan(TASK, pairs=(2, 2, pairs)), TASK, "test")
    for _ in range(1500):
        before, after, refit = rng.normal(size=(3, 2 * pairs)) + 1.2 * rows.labels
        (drop,) = paired_aurocs.many_contrasts(rows.labels, before[None], after[None], rows.groups)
        if stale.by_loss(drop.estimate, 0.05)[0]:
            lacking = paired_aurocs.auroc_contrast(rows.labels, np.array([before, refit]), (1, -1), rows.groups)
            naive.append(lacking.estimate.value)
        picked = staleness_drops.picked_by_halves(rows, before[None], after[None])[:, 0]
        if picked.any():
            e = staleness_drops.on_other_half(rows, before, refit, picked)
            split.append(e.value)
            weights.append(e.n)
    error = np.std(split) / np.sqrt(len(split))
    assert min(len(naive), len(split)) > 30
    assert np.mean(naive) > 0.03  # the control: without splitting, biased
    assert abs(np.average(split, weights=weights)) < 2.5 * error < 0.03


def test_a_monitor_that_lost_its_signal_is_seen_on_the_other_half_too(compared):
    rows = of(compared, "lost", "refit_drop_split", LINEAR)
    whole = of(compared, "lost", "refit_drop", LINEAR)
    np.testing.assert_allclose(rows["value"], whole["value"], atol=0.05)
    assert (rows["low"] > 0.05).all()
    assert rows["n"].tolist() == whole["n"].tolist()  # both halves found all of them stale
    turned = of(compared, "turned", "refit_drop_split", LINEAR)
    assert (turned["value"].abs() < 0.05).all()
    angles = [of(compared, "turned", f"direction_angle{name}", TURNED)["value"] for name in ("", "_split")]
    np.testing.assert_array_equal(*angles)


def test_where_one_half_lacks_a_class_nothing_is_picked():
    rows = Rows(np.arange(6), np.array([1, 0, 0, 0, 0, 0]), np.array(list("abcdef")))
    before, after = np.arange(6.0)[None, ::-1], np.arange(6.0)[None]
    assert not staleness_drops.picked_by_halves(rows, before, after).any()


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
