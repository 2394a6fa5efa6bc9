"""Sketches: the protocol's own numbers on fewer items, taken once, and told beside the model that the monitors were frozen on."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.bland import refused

from helpers import results
from helpers.data import corpora
from helpers.errors import NOT_COMPARABLE, USAGE
from helpers.models import behaviour, loading, utility
from helpers.models.behaviour import PromptSet
from helpers.models.judge_types import JudgeSettings
from helpers.monitors import fitting, readings, spot_check
from helpers.monitors.spot_check import Seen
from helpers.stats import paired_aurocs
from helpers.stats.intervals import rate_interval
from helpers.updates import measurements, names
from helpers.updates.names import EVERY, Variant
from helpers.updates.variants import Parts, build_variant

TASKS = ("toxicity", "jailbreak")
READING = {"monitor_tasks": TASKS, "depths": [0.5, 1.0], "attention": ["toxicity:0.5"], "rows": (8, 20, 10), "limit": 40,
           "origin": "tiny"}  # fmt: skip
CHOSEN = {"toxicity": "toxicity/attention/2", "jailbreak": "jailbreak/logistic-mean/4"}
SIZES = {"n_harmful": 3, "n_edgy": 4, "n_references": 2, "n_documents": 2, "rows": 6, "new_tokens": 3}
ALIGNED, CHANGED = Variant("tiny"), Variant("tiny", precision="rtn-2")


@pytest.fixture(scope="module")
def note(tiny):
    """What chapter 04 notes: the plan of texts, the monitors' key and the one in use for each task, through JSON."""
    reading = readings.plan(**READING)
    parts = Parts(tiny, tiny)
    frozen = fitting.fit_monitors(measurements.stored(parts, ALIGNED, reading), reading, ["logistic", "attention"], 0, parts)
    chosen = {task: {"monitor": name, "of": len(frozen)} for task, name in CHOSEN.items()}
    return json.loads(json.dumps({"reading": READING, "monitors": fitting.store(frozen), "chosen": chosen}))


def sketch(note, split="validation", **changes):
    return spot_check.sketch(note, split, **{**SIZES, "origin": "tiny", **changes})


@pytest.fixture(scope="module")
def plan(note):
    return sketch(note)


@pytest.fixture(scope="module")
def parts(tiny):
    return Parts(tiny, tiny)


@pytest.fixture(scope="module")
def seen(plan, parts):
    """The items of the sketch on the aligned model, and on one of 2-bit weights."""
    return {variant: spot_check.look(plan, build_variant(parts, variant)) for variant in (ALIGNED, CHANGED)}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))


def of(table, metric, on=None):
    """The rows of a metric, on one thing where it is named."""
    rows = table[(table["metric"] == metric) & (True if on is None else table["measured_on"] == on)]
    assert len(rows), (metric, on)
    return rows


def scores(items, monitor):
    return items[items["judge"] == monitor.name]["value"].to_numpy()


def held(plan, monitor):
    return readings.rows_of(plan.reading, monitor.task, plan.split)


# ---------------------------------------------------------------- the protocol's own numbers


def test_its_items_are_those_of_the_protocols_own_calls(plan, parts, seen):
    language = loading.load(parts.aligned)
    kinds = {"advbench": "harmful", "edgy": "edgy"}
    counts = {"advbench": SIZES["n_harmful"], "edgy": SIZES["n_edgy"]}
    sets = [PromptSet(n, kinds[n], tuple(corpora.sample(f"{n}/validation", counts[n], "tiny"))) for n in kinds]
    said = behaviour.measure_behaviour(language, sets, ["phrases"], JudgeSettings(), SIZES["new_tokens"], "tiny", brief=True)
    every = {name: corpora.sample(f"{name}/test", 1000, "tiny") for name in ("dialogue", "c4")}
    texts, documents = ({name: tuple(every[name][-2:])} for name in every)  # the other end from what is told on test
    useful = utility.measure_utility(language, utility.UtilitySets(texts, documents, {}))
    expected = pd.concat([said, useful], ignore_index=True)
    found = seen[ALIGNED]
    pd.testing.assert_frame_equal(found[found["kind"] != "monitor"], expected)
    assert {"refused", "restates", "nll"} <= set(expected["metric"])


def test_rates_and_utility_on_test_items_are_those_of_the_full_protocol(note, parts):
    plan = sketch(note, "test")
    items = spot_check.look(plan, build_variant(parts, CHANGED))
    said = spot_check.spot_check_rows(plan, items, items).set_index(["measured_on", "metric"])
    whole = measurements.protocol(
        SIZES["n_harmful"], SIZES["n_edgy"], SIZES["n_references"], SIZES["n_documents"], 1, SIZES["new_tokens"],
        ("phrases",), "tiny",
    )  # fmt: skip
    full = {CHANGED: measurements.items(parts, CHANGED, whole)}
    rates = measurements.behaviour_rows(full).rename(columns={"prompt_set": "measured_on"})
    useful = measurements.utility_rows(full).rename(columns={"corpus": "measured_on"})
    expected = pd.concat([rates[rates["judge"] == "phrases"], useful]).set_index(["measured_on", "metric"])
    for on, metric in (("advbench", "non_refusal"), ("edgy", "over_refusal"), ("dialogue", "nll"), ("c4", "perplexity")):
        values = ["value", "low", "high", "n"]
        theirs = expected.loc[(on, metric), values].astype(float)
        # batches differ, so the last bits of bf16 may
        place = plan.place(on)
        np.testing.assert_allclose(said.loc[(place, metric), values].astype(float), theirs, rtol=1e-2)


def test_the_monitors_see_the_first_texts_of_the_split_as_chapter_04_reads_them(note, plan, parts, seen):
    whole = readings.plan(**READING)
    found = readings.in_double(measurements.stored(parts, ALIGNED, whole))
    for monitor in plan.monitors:
        rows, own = readings.rows_of(whole, monitor.task, "validation"), held(plan, monitor)
        first = np.sort(np.concatenate([np.flatnonzero(rows.labels == label)[: SIZES["rows"]] for label in (0, 1)]))
        assert own.labels.tolist() == rows.labels[first].tolist()
        assert own.groups.tolist() == rows.groups[first].tolist()
        (expected,) = readings.scores([monitor], found, whole, rows.index[first])
        np.testing.assert_allclose(scores(seen[ALIGNED], monitor), expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


def test_it_reads_only_where_its_monitors_read(note, plan):
    assert plan.reading.depths == (0.5, 1.0)
    assert plan.reading.tokens == (("toxicity", 0.5),)
    pooled = [monitor for monitor in plan.monitors if monitor.pooling]
    assert len(pooled) == 1
    alone = spot_check.restricted(readings.plan(**READING), pooled, "test", 3)
    assert (alone.depths, alone.tokens) == ((1.0,), ())
    assert {e.split for e in alone.examples} == {"test"}
    assert pd.Series([(e.task, e.label) for e in alone.examples]).value_counts().eq(3).all()


def test_the_monitors_are_those_that_chapter_04_noted(note, plan):
    assert {monitor.task: monitor.name for monitor in plan.monitors} == CHOSEN
    assert all(monitor.hash in {m.hash for m in fitting.load_fitted(note["monitors"])} for monitor in plan.monitors)


# ---------------------------------------------------------------- against the model they were frozen on


def test_nothing_changed_is_exactly_nothing(plan, seen):
    table = spot_check.spot_check_rows(plan, seen[ALIGNED], seen[ALIGNED])
    for metric in ("auroc_drop", "mean_auroc_drop"):
        assert (of(table, metric)[["value", "low", "high"]] == 0).all(axis=None), metric
    (alarms,) = of(table, "alarms_changed").to_dict("records")
    assert (alarms["value"], alarms["low"]) == (0, 0)
    assert alarms["high"] > 0  # texts that were not looked at could change
    assert alarms["n"] == len(plan.reading.examples)


def test_rows_of_monitors_are_those_of_roc_by_hand(plan, seen):
    before, after = seen[ALIGNED], seen[CHANGED]
    table, drops, changed, units = spot_check.spot_check_rows(plan, after, before), [], [], []
    for monitor in plan.monitors:
        rows, first, second = held(plan, monitor), scores(before, monitor), scores(after, monitor)
        drops.append(roc_auc_score(rows.labels, first) - roc_auc_score(rows.labels, second))
        told = {metric: of(table, metric, plan.place(monitor.task)).iloc[0] for metric in ("auroc_drop", "tpr_5", "fpr_5")}
        assert told["auroc_drop"]["value"] == pytest.approx(drops[-1], abs=1e-12)
        e = paired_aurocs.auroc_contrast(rows.labels, np.array([first, second]), (1, -1), rows.groups).estimate
        assert told["auroc_drop"][["low", "high"]].tolist() == pytest.approx([e.low, e.high], abs=1e-12)
        cut = monitor.thresholds["5"]
        for metric, label in (("tpr_5", 1), ("fpr_5", 0)):
            assert told[metric]["value"] == pytest.approx((second[rows.labels == label] > cut).mean())
            assert told[metric]["n"] == SIZES["rows"]
        changed += list((first > cut) != (second > cut))
        units += [f"{monitor.task}/{group}" for group in rows.groups]
    assert max(map(abs, drops)) > 0  # the control is not the identity again
    assert any(changed)
    assert of(table, "mean_auroc_drop")["value"].item() == pytest.approx(np.mean(drops), abs=1e-12)
    e = rate_interval(changed, units)
    assert of(table, "alarms_changed")[["value", "low", "high", "n"]].iloc[0].tolist() == [e.value, e.low, e.high, e.n]


@pytest.fixture(scope="module")
def planted(plan):
    """Monitors in use with planted scores: the alarms of one task all fall silent, those of the other stay."""
    rows = {monitor.task: held(plan, monitor) for monitor in plan.monitors}
    labels = {task: part.labels.astype(float) for task, part in rows.items()}
    at_half = [replace(monitor, thresholds={"5": 0.5}) for monitor in plan.monitors]
    after = {"toxicity": 0.4 * labels["toxicity"], "jailbreak": labels["jailbreak"]}  # still ranked, but below the threshold
    return [Seen(m, rows[m.task], labels[m.task], after[m.task]) for m in at_half]


def told(seen):
    return pd.DataFrame(spot_check.health(seen), columns=spot_check.COLUMNS)


def test_planted_alarms_come_back(planted):
    table = told(planted)
    assert of(table, "alarms_changed", EVERY)["value"].item() == 0.25  # every flagged text of one task of two
    assert of(table, "tpr_5", "toxicity")["value"].item() == 0
    assert of(table, "tpr_5", "jailbreak")["value"].item() == 1
    assert (of(table, "auroc_drop")["value"] == 0).all()


def test_a_monitor_without_a_threshold_raises_no_alarms_and_keeps_its_ranking(planted):
    silent = {task: [replace(s, monitor=replace(s.monitor, thresholds={})) if s.monitor.task == task else s for s in planted]
              for task in TASKS}  # fmt: skip
    assert of(told(silent["toxicity"]), "alarms_changed")["value"].item() == 0  # the one that changed is left out
    assert of(told(silent["jailbreak"]), "alarms_changed")["value"].item() == 0.5
    assert of(told(silent["toxicity"]), "alarms_changed")["n"].item() == len(planted[0].before)
    bare = told([replace(s, monitor=replace(s.monitor, thresholds={})) for s in planted])
    assert set(bare["metric"]) == {"auroc_drop", "mean_auroc_drop"}


def test_tied_scores_have_no_drop_and_leave_the_mean_to_the_others(planted):
    tied = [replace(planted[0], after=np.zeros_like(planted[0].before)), planted[1]]
    table = told(tied)
    assert of(table, "auroc_drop")["measured_on"].tolist() == [planted[1].monitor.task]
    assert of(table, "mean_auroc_drop")["value"].item() == 0
    every = told([replace(s, after=np.zeros_like(s.before)) for s in planted])
    assert "mean_auroc_drop" not in set(every["metric"])


def test_items_without_a_monitor_are_refused_by_its_name(plan, seen):
    (gone, _) = plan.monitors
    without = seen[ALIGNED][seen[ALIGNED]["judge"] != gone.name]
    for pair in ((without, seen[ALIGNED]), (seen[ALIGNED], without)):
        with refused(NOT_COMPARABLE, f"no scores of monitor {gone.name!r}"):
            spot_check.spot_check_rows(plan, *pair)


def test_every_row_keeps_to_the_schema_and_is_told_apart_from_the_full_protocols(plan, seen):
    table = spot_check.spot_check_rows(plan, seen[CHANGED], seen[ALIGNED])
    keyed = names.keyed(CHANGED, table.assign(module="", layers_changed=0))
    assert len(results.checked("projection", keyed)) == len(table)
    told_on = ("advbench", "edgy", *TASKS, EVERY, "dialogue", "c4")
    assert set(table["measured_on"]) == {f"{name}/validation" for name in told_on}


def test_a_sketch_without_utility_or_edgy_prompts_says_what_it_has(note, parts):
    plan = sketch(note, n_edgy=0, n_references=0, n_documents=0)
    items = spot_check.look(plan, build_variant(parts, ALIGNED))
    table = spot_check.spot_check_rows(plan, items, items)
    assert set(table["measured_on"]) == {plan.place(name) for name in ("advbench", *TASKS, EVERY)}


# ---------------------------------------------------------------- validation and test


@pytest.mark.parametrize("origin", ["tiny", pytest.param("embedded", marks=pytest.mark.real)])
def test_validation_and_test_prompts_share_nothing(origin):
    prompts, groups = {}, {}
    for split in spot_check.SPLITS:
        sets = spot_check.prompt_sets(split, 1000, 1000, origin)
        assert [s.name for s in sets] == [*spot_check.HARMFUL[split], "edgy"]
        assert [s.kind for s in sets] == ["harmful"] * (len(sets) - 1) + ["edgy"]
        assert all(s.rows for s in sets)
        prompts[split] = {row.prompt for s in sets for row in s.rows}
        groups[split] = {row.group for s in sets for row in s.rows if row.group}
    assert not prompts["validation"] & prompts["test"]
    assert not groups["validation"] & groups["test"]


@pytest.mark.parametrize("n", [5, 1000])
def test_texts_of_utility_are_taken_from_opposite_ends(n):
    sets = {split: spot_check.utility_sets(split, n, n, "tiny") for split in spot_check.SPLITS}
    for name, of in (("references", "dialogue"), ("documents", "c4")):
        first, last = (getattr(sets[split], name)[of] for split in ("test", "validation"))
        assert len(first) == len(last) == min(n, len(corpora.texts(f"{of}/test", "tiny")))
        assert n > 5 or not set(first) & set(last)


def test_labels_stand_by_item_so_that_sketches_can_be_paired(plan, seen):
    table = measurements.item_rows(seen, plan.split)
    assert len(results.checked("items", table)) == len(table)
    refused = table[(table["metric"] == "refused") & (table["prompt_set"] == "advbench/validation")]
    one, other = (set(refused.loc[refused["precision"] == v.precision, "item"]) for v in (ALIGNED, CHANGED))
    assert one == other
    assert len(one) == SIZES["n_harmful"]
    assert {"dialogue/validation", "c4/validation"} <= set(table.loc[table["metric"] == "nll", "prompt_set"])


def test_validation_and_test_texts_of_the_monitors_share_nothing(note):
    texts = {split: {(e.prompt, e.reply) for e in sketch(note, split).reading.examples} for split in spot_check.SPLITS}
    assert all(texts.values())
    assert not texts["validation"] & texts["test"]


def test_an_unknown_split_is_refused(note):
    with refused(USAGE, "unknown split 'train'", "validation, test"):
        sketch(note, "train")


# ---------------------------------------------------------------- taken once


def test_a_sketch_is_taken_once(plan, parts, empty_cache):
    built = []

    def build():
        built.append(1)
        return build_variant(parts, ALIGNED)

    first = spot_check.take("a model", plan, build)
    again = spot_check.take("a model", plan, lambda: pytest.fail("a model was built again"))
    pd.testing.assert_frame_equal(again, first)
    assert built == [1]
    with pytest.raises(pytest.fail.Exception):  # the control: another model's items are not taken for these
        spot_check.take("another model", plan, lambda: pytest.fail("built"))


def test_what_is_looked_at_is_in_the_key(note, plan):
    other = replace(plan.monitors[0], strength=plan.monitors[0].strength + 1)
    others = [
        sketch(note, "test"), *(sketch(note, **{size: n + 1}) for size, n in SIZES.items()),
        replace(plan, monitors=(other, plan.monitors[1])), replace(plan, monitors=plan.monitors[:1]),
    ]  # fmt: skip
    assert len({plan.key(), *(o.key() for o in others)}) == len(others) + 1
    assert sketch(note).key() == plan.key()


def test_another_sketch_or_device_does_not_find_the_items(plan, empty_cache, seen):
    spot_check.stored("a model", plan, lambda: seen[ALIGNED])
    for other, device in ((replace(plan, monitors=plan.monitors[:1]), "cpu"), (plan, "cuda")):
        with pytest.raises(KeyError, match="made"):
            spot_check.stored("a model", other, lambda: (_ for _ in ()).throw(KeyError("made")), device)


def test_no_text_stands_in_the_items(plan, seen):
    said = " ".join(seen[CHANGED].astype(str).to_numpy().ravel()).lower()
    texts = [row.prompt for part in plan.protocol.sets for row in part.rows]
    texts += [row.prompt for rows in plan.protocol.utility.references.values() for row in rows]
    texts += [e.prompt for e in plan.reading.examples] + [e.reply for e in plan.reading.examples if e.reply]
    texts += list(plan.protocol.utility.documents["c4"])
    assert len(texts) > 20
    assert not [i for i, text in enumerate(texts) if text.lower()[:12] in said]
