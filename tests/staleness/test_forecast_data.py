"""Cells: no text serves both a forecast and its judgement, and weights, recipes, texts and labels each give their own signals."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support import planted

from helpers import cache, results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.figures import triage
from helpers.models import activations, loading
from helpers.monitors import fitting, probes, readings
from helpers.monitors.probes import PROBES
from helpers.staleness import drops, forecast_data, moved_weights, predictors
from helpers.staleness.drift_signals import SIGNALS
from helpers.updates import lora, measurements, quantizers
from helpers.updates.names import CONTROL, Variant, keyed
from helpers.updates.variants import Parts, build_variant

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

TASK = "toxicity"
ALIGNED = Variant("tiny")
IDENTITY, BASE = replace(ALIGNED, adapter="identity"), replace(ALIGNED, adapter="base")
RTN = replace(ALIGNED, precision="rtn-3")
LORA = replace(ALIGNED, adapter="lora-dialogue", trained_on="bf16", serving="attached")
QLORA = replace(LORA, precision="nf4")
RECIPES = {"lora-dialogue@bf16": {"rank": 4, "scale": 2.0, "steps": 30, "lr": 1e-3}}


# ---------------------------------------------------------------- planted activations


@pytest.fixture(scope="module")
def reading():
    return planted.plan(TASK, "jailbreak", pairs=(30, 30, 30), attention=True)


@pytest.fixture(scope="module")
def seen(reading):
    return planted.activations(reading)


@pytest.fixture(scope="module")
def after(reading):
    return planted.activations(reading, strength=1.0, seed=1)


@pytest.fixture(scope="module")
def frozen(seen, reading, tiny):
    return planted.monitors(seen, reading, tiny)


def spoiled(found: activations.Activations, reading, split: str) -> activations.Activations:
    """The activations with other vectors for the texts of one split."""
    rows = np.array([e.split == split for e in reading.examples])
    tokens = {}
    for name, values in found.tokens.items():
        own = rows[[e.task == name.split("/")[0] for e in reading.examples]]
        tokens[name] = torch.where(torch.from_numpy(np.repeat(own, np.diff(found.offsets[name])))[:, None], -3 * values, values)
    pooled = {name: torch.where(torch.from_numpy(rows)[:, None], -3 * values, values) for name, values in found.pooled.items()}
    return replace(found, pooled=pooled, tokens=tokens)


def every_signal(monitor, before, after, reading) -> dict[str, dict[str, float]]:
    """The signals of one cell that look at activations, by the split whose texts they may read."""
    return {
        "train": forecast_data.forward_signals(monitor, before, after, reading)
        | forecast_data.place_signals(monitor, before, after, reading),
        "validation": forecast_data.label_signals(monitor, before, after, reading, 20),
    }


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_each_signal_reads_its_own_split_only(frozen, seen, after, reading, split):
    others = [spoiled(found, reading, split) for found in (seen, after)]
    changed = {"train": [], "validation": []}
    for monitor in frozen:
        first, second = every_signal(monitor, seen, after, reading), every_signal(monitor, *others, reading)
        for name in changed:
            changed[name].append(not pd.Series(first[name]).equals(pd.Series(second[name])))
    assert {name: np.mean(found) for name, found in changed.items()} == pytest.approx(
        {"train": float(split == "train"), "validation": float(split == "validation")}, abs=0.2
    )
    for name, found in changed.items():
        assert name == split or not any(found)


def test_forward_signals_need_no_labels(frozen, seen, after, reading):
    swapped = replace(reading, examples=tuple(replace(e, label=1 - e.label) for e in reading.examples))
    for monitor in frozen:
        first, second = (every_signal(monitor, seen, after, plan)["train"] for plan in (reading, swapped))
        assert first == second


def test_what_is_known_before_an_update_needs_no_test_text(frozen, seen, reading):
    for monitor in frozen:
        first = forecast_data.base_signals(monitor, seen, reading)
        assert first == pytest.approx(
            forecast_data.base_signals(monitor, spoiled(seen, reading, "test"), reading), rel=0, nan_ok=True
        )
        assert np.isnan(first["principal_share"]) == (probes.direction(monitor.readout) is None)
        assert monitor.kind == CONTROL or first["separation"] > 1


def test_nothing_moved_gives_signals_of_nothing(frozen, seen, reading):
    for monitor in frozen:
        found = every_signal(monitor, seen, seen, reading)
        assert found["train"] == pytest.approx({
            "mean_shift": 0, "score_ks": 0, "score_psi": 0, "score_correlation": 1, "cka": 1, "covariance_distance": 0,
        })  # fmt: skip
        assert found["validation"] == {"few_drop": 0, "few_accuracy": 0}


def test_a_planted_shift_is_seen_in_the_scores_not_in_the_covariance(frozen, seen, reading):
    up = planted.changed(seen, lambda x: x + 8 * torch.eye(planted.D)[0])
    for monitor in (m for m in frozen if m.kind in readings.LINEAR):
        found = every_signal(monitor, seen, up, reading)
        assert found["train"]["mean_shift"] > 2
        assert found["train"]["score_ks"] > 0.5
        assert found["train"]["score_correlation"] == pytest.approx(1)
        assert found["train"]["cka"] == pytest.approx(1, abs=1e-5)
        assert found["train"]["covariance_distance"] < 1e-5
        assert found["validation"]["few_drop"] == 0
        rows = forecast_data.few_rows(reading, monitor.task, 20)
        flagged = readings.scores([monitor], seen, reading, rows.index)[0] > monitor.thresholds["5"]
        assert found["validation"]["few_accuracy"] == pytest.approx(0.5 - (flagged == rows.labels).mean())  # now all are flagged


def test_attention_is_compared_through_the_mean_where_that_was_read(frozen, seen, after, reading):
    (monitor,) = [m for m in frozen if m.kind == "attention"]
    (mean,) = [m for m in frozen if m.name == f"{TASK}/logistic-mean/2"]
    assert forecast_data.place_signals(monitor, seen, after, reading) == forecast_data.place_signals(mean, seen, after, reading)
    elsewhere = forecast_data.place_signals(replace(monitor, layer=3), seen, after, reading)
    assert np.isnan(list(elsewhere.values())).all()


@pytest.mark.parametrize("count", [2, 10, 11, 18])
def test_a_few_rows_are_half_of_each_class(reading, count):
    found, every = forecast_data.few_rows(reading, "jailbreak", count), readings.rows_of(reading, "jailbreak", "validation")
    assert np.bincount(found.labels).tolist() == 2 * [count // 2]
    assert set(found.index) <= set(every.index)
    assert (np.diff(found.index) > 0).all()
    assert [(reading.examples[i].label, reading.examples[i].group) for i in found.index] == list(
        zip(found.labels, found.groups, strict=True)
    )
    larger = forecast_data.few_rows(reading, "jailbreak", count + 2)
    assert set(found.index) <= set(larger.index)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("variant", "family", "bits", "recipe"),
    [
        (ALIGNED, "control", 16.0, False),
        (IDENTITY, "control", 16.0, False),
        (replace(ALIGNED, precision="fp32"), "control", 32.0, False),
        (BASE, "before alignment", 16.0, False),
        (RTN, "quantization", 3.25, False),
        (LORA, "LoRA", 16.0, True),
        (QLORA, "QLoRA", 4.5, True),
        (replace(LORA, adapter="full-dialogue", serving="merged"), "full fine-tune", 16.0, False),
        (replace(RTN, adapter="qat-dialogue", trained_on="rtn-3", serving="merged-requantized"), "QAT", 3.25, False),
    ],
)  # fmt: skip
def test_the_recipe_of_every_family(variant, family, bits, recipe):
    found = forecast_data.recipe_signals(variant, RECIPES, {"rtn-3": 3.25, "nf4": 4.5, "bf16": 16.0})
    expected = (
        {"rank": 4.0, "scale": 2.0, "steps": 30.0, "lr": 1e-3} if recipe else dict.fromkeys(("rank", "scale", "steps", "lr"), 0.0)
    )
    assert found == {"family": family, "bits": bits, **expected}


# ---------------------------------------------------------------- real variants of the tiny model


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory) -> Parts:
    """The tiny model with a small random adapter on every linear module."""
    language, generator = loading.load(tiny), torch.Generator().manual_seed(0)
    adapter = {}
    for name in quantizers.linear_names(language.model):
        rows, columns = language.model.get_submodule(name).weight.shape
        left, right = (0.05 * torch.randn(size, generator=generator) for size in ((rows, 4), (4, columns)))
        adapter[name] = lora.LowRank(left, right)
    folder = tmp_path_factory.mktemp("updates") / "lora"
    lora.save_adapter(adapter, folder, {})
    return Parts(tiny, tiny).with_update("lora-dialogue", "bf16", folder)


@pytest.fixture(scope="module")
def real(parts):
    """A plan and monitors frozen on the tiny model."""
    plan = readings.plan([TASK], [0.5, 1.0], [f"{TASK}:0.5"], (8, 20, 10), 60, "tiny")
    found = measurements.stored(parts, ALIGNED, plan)
    return plan, fitting.fit_monitors(found, plan, list(PROBES), 0, parts)


def weights(parts, variant) -> dict[str, torch.Tensor]:
    return dict(moved_weights.effective_weights(build_variant(parts, variant).model))


@pytest.mark.parametrize("variant", [IDENTITY, RTN, LORA, QLORA])
def test_the_weights_tell_how_far_they_moved(parts, real, variant):
    _, frozen = real
    found = forecast_data.weight_signals(parts, variant, frozen).set_index("monitor")
    linear = [m for m in frozen if m.kind in readings.LINEAR]
    assert list(found.index) == [m.name for layer in (2, 4) for m in linear if m.layer == layer]
    before, after = weights(parts, ALIGNED), weights(parts, variant)
    for monitor in linear:
        below = [name for name in before if int(name.split(".")[2]) < monitor.layer]
        change, size = (
            sum(float(d[n].double().square().sum()) for n in below) for d in ({n: after[n] - before[n] for n in below}, before)
        )
        row = found.loc[monitor.name]
        assert row["layer"] == monitor.layer
        assert row["relative_change"] == pytest.approx((change / size) ** 0.5, rel=1e-5)
        assert (row["relative_change"] > 0) == (variant != IDENTITY)
        if variant == IDENTITY:
            assert np.isnan(row["output_overlap"])  # nothing changed that could lie along anything
            continue
        w = torch.from_numpy(probes.direction(monitor.readout)).float()
        moved = {n: after[n] - before[n] for n in below if n.endswith(("o_proj", "down_proj"))}
        along = sum(float((d.T @ w).double().square().sum()) for d in moved.values())
        chance = sum(float(d.double().square().sum()) / len(d) for d in moved.values())
        assert row["output_overlap"] == pytest.approx(along / chance, rel=1e-4)


def test_weights_are_looked_at_once(parts, real):
    _, frozen = real
    variant, built = replace(ALIGNED, precision="rtn-2"), []

    def build():
        built.append(variant)
        return build_variant(parts, variant)

    first, second = (forecast_data.weight_signals(parts, variant, frozen, build) for _ in range(2))
    assert built == [variant]
    pd.testing.assert_frame_equal(first, second)
    forecast_data.weight_signals(parts, variant, frozen[:3], build)  # other monitors are another question
    assert len(built) == 2


def test_without_a_direction_the_weights_say_nothing(parts, real):
    _, frozen = real
    assert forecast_data.weight_signals(parts, RTN, [m for m in frozen if m.kind in {"mlp", "attention", CONTROL}]).empty


@pytest.fixture(scope="module")
def study(parts, real, tmp_path_factory):
    """A run with what earlier chapters leave, and the table `staleness` of five variants."""
    plan, frozen = real
    run = results.Run("smoke", "tiny", 0, tmp_path_factory.mktemp("results") / "seed-0")
    worth = fitting.monitor_rows(frozen, measurements.stored(parts, ALIGNED, plan), plan)
    results.write_table(run, "04_monitors", "monitors", keyed(ALIGNED, worth))
    results.write_note(run, "03_finetuning", "recipes", RECIPES)
    bits = pd.DataFrame([("m", "bits_per_weight", b, b, b, 9) for b in (3.25, 4.5)], columns=["module", *results.VALUES])
    rows = [keyed(replace(ALIGNED, precision=name), bits[i : i + 1]) for i, name in enumerate(("rtn-3", "nf4"))]
    results.write_table(run, "02_quantization", "weights", pd.concat(rows))
    variants = [ALIGNED, IDENTITY, RTN, LORA, QLORA]
    observed = drops.observe(parts, ALIGNED, variants, frozen, plan)
    table = results.write_table(run, "05_staleness", "staleness", observed.table)
    return run, variants, table


def test_a_cell_is_a_monitor_on_an_update_with_every_signal(parts, real, study):
    (plan, frozen), (run, variants, table), steps = real, study, []
    found = forecast_data.collect(run, parts, variants, frozen, plan, table, 10, steps.append)
    assert steps == [variant.label for variant in variants]
    monitors = [m for m in frozen if m.kind != CONTROL]
    assert set(zip(found["monitor"], found["variant"], strict=True)) == {
        (m.name, v.label) for m in monitors for v in variants[2:]
    }
    assert len(found) == 3 * len(monitors)
    names = {"monitor", "task", "probe", "layer", "depth", "variant", "drop", "drop_low", "stale", "seed"}
    assert set(found) == names | set(SIGNALS)
    assert {name for name in SIGNALS if found[name].notna().any()} == set(SIGNALS)
    linear = found[found["probe"].str.startswith(readings.LINEAR)]
    assert linear[list(SIGNALS)].notna().all(axis=None)
    assert set(zip(found["probe"], found["pooling"], strict=True)) == {(m.probe, m.pooling or "attention") for m in monitors}
    for monitor in monitors:  # from all validation texts, of which variants read but a few
        held = readings.rows_of(plan, monitor.task, "validation")
        scores = readings.scores([monitor], measurements.stored(parts, ALIGNED, plan), plan, held.index)[0]
        own = found.loc[found["monitor"] == monitor.name, "base_auroc"]
        assert own.to_numpy() == pytest.approx(roc_auc_score(held.labels, scores), abs=1e-6)
    assert dict(zip(found["variant"], found["bits"], strict=True)) == {RTN.label: 3.25, LORA.label: 16.0, QLORA.label: 4.5}
    predictors.check_forecast_data(found.assign(stale=True))  # the form that chapter 06 asks for


def test_outcomes_are_those_of_the_table(parts, real, study):
    (plan, frozen), (run, variants, table) = real, study
    found = forecast_data.collect(run, parts, variants, frozen, plan, table, 10)
    for row in found.itertuples():
        mine = table[(table["task"] + "/" + table["probe"] + "/" + table["layer"].astype(str)) == row.monitor]
        mine = mine[[v.label == row.variant for v in map(_variant, mine.to_dict("records"))]].set_index("metric")
        assert (row.drop, row.drop_low) == tuple(mine.loc["auroc_drop", ["value", "low"]])
        assert row.stale == (mine.loc["stale_auroc_05", "value"] == 1)


def _variant(row: dict) -> Variant:
    return Variant(**{name: row[name] for name in ("model", "seed", "precision", "adapter", "trained_on", "serving")})


def test_a_monitor_without_a_ranking_is_no_cell(parts, real, study):
    (plan, frozen), (run, variants, table) = real, study
    lost = table[~((table["precision"] == "rtn-3") & (table["metric"] == "auroc_drop"))]
    found = forecast_data.collect(run, parts, variants, frozen, plan, lost, 10)
    assert set(found["variant"]) == {LORA.label, QLORA.label}


def test_more_labels_than_variants_read_are_refused(reading):
    with pytest.raises(StudyError, match=r"^few_labels 22: variants read 20 labelled .*; give at most 20$"):
        forecast_data.few_rows(reading, "jailbreak", 22)


def test_without_an_update_there_is_nothing_to_forecast(parts, real, study):
    (plan, frozen), (run, _, table) = real, study
    with pytest.raises(StudyError, match=r"^there is no update to forecast; measure [^\n]*$") as error:
        forecast_data.collect(run, parts, [ALIGNED, IDENTITY], frozen, plan, table, 10)
    assert error.value.code == NOT_COMPARABLE


# ---------------------------------------------------------------- seeds and the table


def test_higher_seeds_find_the_cells_of_lower_ones(tmp_path):
    runs = [results.Run("smoke", "tiny", seed, tmp_path / f"seed-{seed}") for seed in (0, 1, 2)]
    own = [pd.DataFrame({"monitor": ["a", "b"], "drop": [0.1 * seed, np.nan], "seed": seed}) for seed in (0, 1, 2)]
    pd.testing.assert_frame_equal(forecast_data.with_lower_seeds(runs[0], own[0]), own[0])
    pd.testing.assert_frame_equal(forecast_data.with_lower_seeds(runs[2], own[2]), pd.concat([own[0], own[2]], ignore_index=True))
    pd.testing.assert_frame_equal(
        forecast_data.with_lower_seeds(runs[1], own[1]), pd.concat(own[:2], ignore_index=True)
    )  # not seed 2
    pd.testing.assert_frame_equal(forecast_data.with_lower_seeds(runs[2], own[2]), pd.concat(own, ignore_index=True))
    note = json.loads((tmp_path / "seed-0" / "parts" / "06_triage" / "cells.json").read_text())
    cache.cache_path("cells", f"{note}.parquet").unlink()
    pd.testing.assert_frame_equal(forecast_data.with_lower_seeds(runs[1], own[1]), own[1])  # what left the cache is left out


def test_where_the_stale_cells_lie_is_counted_by_variant():
    table = pd.DataFrame({"variant": ["a", "b", "b", "c", "b"], "stale": [False, True, True, True, False]})
    assert triage.where_stale(table, most=2).to_dict("records") == [
        {"variant": "b", "stale": 2, "cells": 3, "share of all stale": "67 %"},
        {"variant": "c", "stale": 1, "cells": 1, "share of all stale": "33 %"},
    ]
    assert set(triage.where_stale(table.assign(stale=False))["share of all stale"]) == {"0 %"}


def test_rows_of_triage_belong_to_the_run(tmp_path):
    run = results.Run("smoke", "tiny", 3, tmp_path)
    columns = ["predictor", "split", "budget", *results.VALUES]
    first, second = ([(name, "monitor", 0.2, "recall", 0.5, 0.4, 0.7, 30)] for name in ("ridge, free", "random"))
    table = forecast_data.keyed(run, pd.DataFrame(first, columns=columns), pd.DataFrame(second, columns=columns).assign(extra=1))
    valid = results.checked("triage", table)
    assert valid["predictor"].tolist() == ["ridge, free", "random"]
    assert (valid["model"] == "tiny").all()
    assert (valid["seed"] == 3).all()
    assert (valid[["precision", "adapter", "serving"]] == "").all(axis=None)
