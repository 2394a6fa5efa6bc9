"""Freezing: thresholds keep their promise where it was made, the table holds what it says, and the same data give the same."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support import planted

from helpers import results, seeding
from helpers.data import tasks
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.figures import monitors
from helpers.models import loading
from helpers.monitors import fitting, probes, readings
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors.baselines import BASELINES
from helpers.monitors.probes import PROBES
from helpers.monitors.readings import TURNED
from helpers.monitors.readouts import Moved
from helpers.stats.roc import RATES
from helpers.updates import lora, measurements
from helpers.updates import names as update_names
from helpers.updates.names import CONTROL, SIMULATED, Variant
from helpers.updates.quantizers import linear_names
from helpers.updates.variants import Parts

TASKS = ("toxicity", "jailbreak")


@pytest.fixture(scope="module")
def reading():
    return planted.plan(*TASKS, pairs=(20, 110, 40), attention=True)


@pytest.fixture(scope="module")
def seen(reading):
    return planted.activations(reading, strength=2.0)


@pytest.fixture(scope="module")
def frozen(seen, reading, tiny):
    return planted.monitors(seen, reading, tiny)


@pytest.fixture(scope="module")
def table(frozen, seen, reading):
    return fitting.monitor_rows(frozen, seen, reading)


def of(table, monitor) -> pd.DataFrame:
    rows = table[(table["task"] == monitor.task) & (table["probe"] == monitor.probe) & (table["layer"] == monitor.layer)]
    return rows.set_index("metric")


# ---------------------------------------------------------------- frozen monitors


def test_thresholds_keep_their_promise_on_validation(frozen, seen, reading):
    for monitor in frozen:
        held = readings.rows_of(reading, monitor.task, "validation")
        harmless = readings.scores([monitor], seen, reading, held.index)[0][held.labels == 0]
        assert set(monitor.thresholds) == set(RATES)
        for level, cut in monitor.thresholds.items():
            assert (harmless > cut).mean() <= RATES[level]
        assert (harmless > monitor.thresholds["5"]).mean() > 0.02  # and no more cautious than it needs to be


def test_a_monitor_says_what_it_was_frozen_on(frozen, reading, tiny):
    assert len(frozen) == fitting.count(Parts(tiny, tiny), reading, list(PROBES)) == 2 * 2 * 2 * 5 + 1
    assert len({monitor.name for monitor in frozen}) == len(frozen)
    assert {(m.layers, m.width, m.model, m.negatives) for m in frozen} == {(planted.DEPTH, planted.D, tiny.name, 110)}
    assert len({m.reads for m in frozen}) == 1
    assert len({m.seed for m in frozen}) == len(frozen)  # no two draws of a study are the same draw


def test_progress_names_every_monitor(seen, reading, tiny):
    steps = []
    found = fitting.fit_monitors(seen, reading, ["lda"], 0, Parts(tiny, tiny), steps.append)
    assert steps == [monitor.name for monitor in found]


def test_two_runs_give_the_same_monitors_and_tables(frozen, table, seen, reading, tiny):
    again = planted.monitors(seen, reading, tiny)
    assert [m.hash for m in again] == [m.hash for m in frozen]
    pd.testing.assert_frame_equal(fitting.monitor_rows(again, seen, reading), table, check_exact=True)


def test_a_seed_moves_what_is_drawn_and_nothing_else(frozen, seen, reading, tiny):
    other = {m.name: m for m in planted.monitors(seen, reading, tiny, seed=1)}
    same = {m.kind for m in frozen if all((m.tensors[k] == other[m.name].tensors[k]).all() for k in m.tensors)}
    assert same == {"logistic", "mean-difference", "lda"}


def test_test_texts_have_no_part_in_a_monitor(frozen, seen, reading, tiny):
    """Whatever the test texts look like, the frozen monitors are the same ones."""
    places = np.concatenate([readings.rows_of(reading, task, "test").index for task in TASKS])
    pooled = {name: rows.clone().index_fill_(0, torch.from_numpy(places), 7.0) for name, rows in seen.pooled.items()}
    found = planted.monitors(replace(seen, pooled=pooled), reading, tiny)
    assert [m.hash for m in found] == [m.hash for m in frozen]


# ---------------------------------------------------------------- seeds


def test_a_named_seed_differs_by_name_and_by_seed():
    names = [f"{task}/{kind}/{pool}/{layer}" for task in tasks.TASKS for kind in PROBES for pool in "ab" for layer in range(9)]
    found = {(seed, name): seeding.named_seed(seed, name) for seed in range(5) for name in names}
    assert len(set(found.values())) == len(found)
    assert all(0 <= value < 2**32 for value in found.values())  # what numpy, torch and scikit-learn all take
    assert seeding.named_seed(1, "2/a") != seeding.named_seed(12, "/a")
    assert seeding.named_seed(0, "a") == 0xD3216B8D  # the head of sha256("0/a"), on every machine


# ---------------------------------------------------------------- kept


def test_stored_monitors_come_back_bit_for_bit(frozen):
    key = fitting.store(frozen)
    assert [m.hash for m in fitting.load_fitted(key)] == [m.hash for m in frozen]
    assert fitting.store(frozen) == key
    assert fitting.store(frozen[:3]) != key


def test_monitors_that_left_the_cache_name_the_chapter_that_makes_them():
    with pytest.raises(
        StudyError, match=r"^the monitors 0123 are not in the cache; run chapter 04_monitors again[^\n]*$"
    ) as error:
        fitting.load_fitted("0123")
    assert error.value.code == NOT_COMPARABLE


# ---------------------------------------------------------------- the table


def test_the_rows_keep_to_the_schema(table):
    valid = results.checked("monitors", update_names.keyed(Variant("tiny"), table))
    assert len(valid) == len(table)


def test_the_rows_of_a_monitor(table, frozen, seen, reading):
    for monitor in frozen:
        rows = of(table, monitor)
        names = {
            "auroc",
            "auroc_validation",
            *(f"{what}_{level}" for what in ("threshold", "promised", "tpr", "fpr") for level in ("5", "1")),
        }
        names |= {"resampled_drop", "resampled_angle"} if monitor.kind in TURNED else set()
        assert set(rows.index) == names
        test = readings.rows_of(reading, monitor.task, "test")
        scores = readings.scores([monitor], seen, reading, test.index)[0]
        cut = monitor.thresholds["5"]
        assert rows.loc["auroc", "value"] == pytest.approx(roc_auc_score(test.labels, scores))
        assert rows.loc["threshold_5", "value"] == cut
        assert rows.loc["tpr_5", "value"] == pytest.approx((scores[test.labels == 1] > cut).mean())
        assert rows.loc["fpr_5", "value"] == pytest.approx((scores[test.labels == 0] > cut).mean())
        assert (rows.loc["auroc", "n"], rows.loc["auroc_validation", "n"], rows.loc["threshold_5", "n"]) == (80, 220, 110)


def test_planted_signals_are_read_and_shuffled_labels_are_not(table):
    found = table[table["metric"] == "auroc"].set_index("probe")["value"]
    real = found[~found.index.str.startswith(CONTROL) & ~found.index.isin(BASELINES)]
    assert real.median() > 0.8
    control = found[found.index.str.startswith(CONTROL)]
    assert abs(control.mean() - 0.5) < 0.15
    assert control.max() < real.median()


def test_another_draw_of_texts_moves_a_direction_but_less_than_a_right_angle(table):
    angles = table[table["metric"] == "resampled_angle"]
    assert angles["value"].between(3, 60).all()
    drops = table[table["metric"] == "resampled_drop"]
    assert (drops["value"].abs() < 0.1).all()
    assert (drops["value"] != 0).any()
    shown = monitors.another_draw(table)
    assert set(shown["probe"]) == {f"{kind}-{pool}" for kind in TURNED for pool in ("mean", "last")}
    assert (shown["depths"] == 2).all()
    first = angles[(angles["task"] == shown.loc[0, "task"]) & (angles["probe"] == shown.loc[0, "probe"])]["value"]
    assert shown.loc[0, "angle in degrees, max"] == first.max()
    assert shown.loc[0, "angle in degrees, median"] == first.median()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_baselines(table, reading, task):
    rows = table[(table["task"] == task) & (table["layer"] == 0)].set_index("probe")
    assert set(rows.index) == set(BASELINES)
    test, train = ([e for e in reading.examples if (e.task, e.split) == (task, split)] for split in ("test", "train"))
    for name, baseline in BASELINES.items():
        scores = baseline(train, test, words=fitting.BASELINE_WORDS)
        assert rows.loc[name, "value"] == pytest.approx(roc_auc_score([e.label for e in test], scores))


# ---------------------------------------------------------------- two test sets, and harmless texts of another source


@pytest.fixture(scope="module")
def wider(tiny):
    """Plan, activations, monitors and table with a second test in which the signal is weaker, and 150 general harmless texts."""
    plan = planted.plan("toxicity", pairs=(20, 25, 40), second=30, harmless=150)
    found = planted.activations(plan, strength=2.0)
    far = torch.tensor([e.split == "elsewhere" and e.label == 1 for e in plan.examples])
    pooled = {name: rows - 1.5 * far[:, None] * torch.eye(planted.D)[0] for name, rows in found.pooled.items()}
    found = replace(found, pooled=pooled)
    frozen = planted.monitors(found, plan, tiny, ["logistic", "lda"])
    return plan, found, frozen, fitting.monitor_rows(frozen, found, plan)


def test_a_second_test_set_has_the_same_measures_under_its_own_names(wider):
    plan, found, frozen, table = wider
    second = readings.rows_of(plan, "toxicity", "elsewhere")
    for monitor in frozen:
        rows = of(table, monitor)
        names = {f"{name}_elsewhere" for name in ("auroc", "tpr_5", "fpr_5", "tpr_1", "fpr_1")}
        assert {name for name in rows.index if name.endswith("_elsewhere")} == names
        scores = readings.scores([monitor], found, plan, second.index)[0]
        assert rows.loc["auroc_elsewhere", "value"] == pytest.approx(roc_auc_score(second.labels, scores))
        caught = scores[second.labels == 1] > monitor.thresholds["5"]
        assert rows.loc["tpr_5_elsewhere", "value"] == pytest.approx(caught.mean())
        assert rows.loc["auroc_elsewhere", "n"] == 60
    own = table[table["layer"] > 0].pivot(index=["probe", "layer"], columns="metric", values="value")
    assert (own["auroc"] - own["auroc_elsewhere"]).min() > 0.1
    words = table[table["layer"] == 0]
    assert set(words["probe"]) == set(BASELINES)
    assert set(words["metric"]) == {"auroc", "auroc_elsewhere"}


def test_thresholds_rest_on_own_and_other_harmless_texts_and_say_what_they_promise(wider):
    plan, found, frozen, table = wider
    own, others = readings.harmless(plan, "toxicity")
    assert (len(own), len(others)) == (25, 150)
    assert {plan.examples[i].split for i in own} == {"validation"}
    for monitor in frozen:
        scores = readings.scores([monitor], found, plan, np.concatenate([own, others]))[0]
        assert monitor.thresholds == frozen_monitors.thresholds(scores[:25], scores[25:])
        rows = of(table, monitor)
        assert (rows.loc["threshold_5", "n"], rows.loc["promised_5", "n"], monitor.negatives) == (175, 25, 175)
        assert rows.loc["promised_5", "value"] <= 0.05
        assert rows.loc["promised_1", "value"] == pytest.approx(1 / 26)  # 25 texts can promise no less


def test_the_aligned_model_is_read_once_with_all_and_once_for_itself(monkeypatch, tiny):
    plan = readings.plan(["toxicity"], [0.5], [], (6, 14, 8, 5, 40), 16, "tiny")
    asked, parts = [], Parts(tiny, tiny)
    stored = measurements.stored
    monkeypatch.setattr(measurements, "stored", lambda parts, variant, part: asked.append(part) or stored(parts, variant, part))
    found = fitting.read(parts, Variant("tiny"), plan)
    assert asked == [readings.on_variants(plan), readings.aligned_alone(plan)]
    shared = stored(parts, Variant("tiny"), asked[0])
    test = [i for i, e in enumerate(plan.examples) if e.split == "test"]
    same = [i for i, e in enumerate(asked[0].examples) if e.split == "test"]
    torch.testing.assert_close(found.pooled["last/2"][test], shared.pooled["last/2"][same], rtol=0, atol=0)


# ---------------------------------------------------------------- simulated updates


KINDS = ("logistic", "simulated-updates", "simulated-removed", "simulated-noise")


@pytest.fixture(scope="module")
def foreseen(tiny):
    """A small plan, its activations on the tiny model, and those under two kinds of simulated updates."""
    plan = readings.plan(["privacy-pii", "toxicity"], [0.5, 1.0], [], (10, 12, 10), 24, "tiny")
    parts, aligned = Parts(tiny, tiny), Variant("tiny")
    under = fitting.under_simulated(parts, aligned, plan, ["rtn-4", "random-lowrank"], 2, 0.05, [0.5], seed=3)
    return plan, parts, fitting.read(parts, aligned, plan), under


def test_simulated_updates_move_the_training_texts_and_each_otherwise(foreseen):
    plan, _, found, under = foreseen
    train = [i for i, e in enumerate(plan.examples) if e.split == "train"]
    assert len(under) == 3
    for one in under:
        assert set(one.pooled) == {"last/2", "mean/2"}
        moved = (one.pooled["mean/2"] - found.pooled["mean/2"][train]).norm(dim=1) / found.pooled["mean/2"][train].norm(dim=1)
        assert moved.min() > 0
        assert moved.max() < 1
    assert (under[1].pooled["mean/2"] - under[2].pooled["mean/2"]).abs().max() > 1e-3


def test_probes_that_foresee_are_fitted_where_updates_were_simulated_and_nowhere_else(foreseen):
    plan, parts, found, under = foreseen
    frozen = fitting.fit_monitors(found, plan, KINDS, 0, parts, simulated=under)
    assert len(frozen) == fitting.count(parts, plan, KINDS, under) == 2 * 2 * (2 + 3)
    assert {m.layer for m in frozen if m.kind.startswith(SIMULATED)} == {2}
    first = next(m for m in frozen if m.name == "toxicity/simulated-updates-mean/2")
    rows, train = readings.rows_of(plan, "toxicity", "train"), [e for e in plan.examples if e.split == "train"]
    own = [i for i, e in enumerate(train) if e.task == "toxicity"]
    x = found.pooled["mean/2"][rows.index]
    features = Moved(x, tuple(one.pooled["mean/2"][own] for one in under))
    again = probes.refit(first.readout, features, rows.labels)
    np.testing.assert_allclose(first.tensors["w"], again.tensors["w"], rtol=1e-9)
    table = fitting.monitor_rows(frozen, found, plan)
    assert not fitting.real(table)["probe"].str.startswith(SIMULATED).any()
    assert "simulated" not in str(fitting.monitors_in_use(table, ["toxicity"]))


@pytest.mark.parametrize("size", [0.01, 0.2])
def test_a_random_change_is_as_large_as_asked_of_low_rank_and_in_every_linear_module(tiny, size):
    model = loading.load(tiny).model
    change = fitting.random_change(model, size, 5)
    assert set(change) == set(linear_names(model))
    for name, pair in change.items():
        assert pair.norm() == pytest.approx(size * float(model.get_submodule(name).weight.float().norm()), rel=1e-4)
        assert pair.right.shape[0] <= fitting.SIMULATED_RANK
    other = fitting.random_change(model, size, 6)
    assert all(abs(lora.cosine(change[name], other[name])) < 0.5 for name in change)


@pytest.mark.parametrize("name", ["gptq-4", "none", "lora", ""])
def test_an_update_that_cannot_be_simulated_is_refused_with_those_that_can(name):
    with pytest.raises(StudyError, match=r"^unknown simulated update .*random-lowrank.*rtn-4"):
        fitting.parse_simulated(name)


# ---------------------------------------------------------------- what the chapter shows


def ranked(*rows) -> pd.DataFrame:
    """A table `monitors` of (probe, layer, AUROC on validation)."""
    return pd.DataFrame([("toxicity", *row[:2], 0.5, "auroc_validation", row[2], 0, 1, 9) for row in rows], columns=fitting.OWN)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("lda-mean", 2, 0.8), ("lda-mean", 4, 0.9)], "toxicity/lda-mean/4"),
        ([("lda-mean", 4, 0.9), ("mlp-last", 2, 0.9), ("lda-mean", 3, 0.9)], "toxicity/mlp-last/2"),  # the shallower layer
        ([("mlp-mean", 2, 0.9), ("lda-mean", 2, 0.9)], "toxicity/lda-mean/2"),
        ([("shuffled-labels-mean", 2, 0.99), ("length", 0, 1.0), ("attention", 10, 0.6)], "toxicity/attention/10"),
    ],
)
def test_the_monitor_in_use_is_the_best_on_validation(rows, expected):
    found = fitting.monitors_in_use(ranked(*rows), ["toxicity"])
    real = [row for row in rows if row[1] and not row[0].startswith(CONTROL)]
    assert found == {"toxicity": {"monitor": expected, "of": len(real)}}


def test_without_a_ranking_no_monitor_is_chosen():
    with pytest.raises(StudyError, match="task 'jailbreak' has no monitor that ranks its texts; fit") as error:
        fitting.monitors_in_use(ranked(("lda-mean", 2, 0.8)), ["toxicity", "jailbreak"])
    assert error.value.code == NOT_COMPARABLE


def test_the_choice_does_not_see_the_test(table):
    worse = table.copy()
    worse.loc[worse["metric"] == "auroc", "value"] = 0.0
    assert fitting.monitors_in_use(worse, TASKS) == fitting.monitors_in_use(table, TASKS)


def test_the_table_of_monitors_in_use(table):
    chosen = fitting.monitors_in_use(table, TASKS)
    shown = monitors.in_use(table, chosen).set_index("task")
    assert list(shown.index) == list(TASKS)
    assert (shown["test texts"] == 80).all()
    for task, choice in chosen.items():
        assert choice["monitor"] == f"{task}/{shown.loc[task, 'probe']}/{shown.loc[task, 'layer']}"
        assert shown.loc[task, "best of"] == choice["of"] == (17 if task == "toxicity" else 16)
    few = table[~table["metric"].str.endswith("_5")]
    assert (monitors.in_use(few, chosen)["caught at 5 %"] == "(too few texts)").all()


def test_every_registered_task_has_its_sentence(table):
    found = monitors.monitor_sentences(table, fitting.monitors_in_use(table, TASKS))
    assert set(found) == {f"auroc-{task}" for task in tasks.TASKS}
    for task in tasks.TASKS:
        assert (found[f"auroc-{task}"] == "(not in this run)") == (task not in TASKS)
    _, probe, layer = fitting.monitors_in_use(table, TASKS)["toxicity"]["monitor"].split("/")
    mine = (
        (table["task"] == "toxicity") & (table["probe"] == probe) & (table["layer"] == int(layer)) & (table["metric"] == "auroc")
    )
    assert found["auroc-toxicity"].startswith(f"{table.loc[mine, 'value'].item():.2f}")


def test_by_hand_is_the_probe_of_the_same_kind(frozen, seen, reading):
    (monitor,) = [m for m in frozen if m.name == "toxicity/mean-difference-mean/2"]
    found = monitors.monitor_by_hand(seen, reading, "toxicity", 2).set_index("what")
    test = readings.rows_of(reading, "toxicity", "test")
    scores = readings.scores([monitor], seen, reading, test.index)[0]
    assert found.loc["AUROC on test", "value"] == pytest.approx(roc_auc_score(test.labels, scores))
    assert found.loc["false positives, validation", "value"] <= 0.05
    assert found.loc["false positives, test", "value"] == pytest.approx(
        (scores[test.labels == 0] > monitor.thresholds["5"]).mean()
    )
