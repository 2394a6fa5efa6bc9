"""Interaction: effects that add up give an interval around 0, more than the sum does not, and each number is its AUROCs' sum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri
from support import planted
from support.simulated import coverage
from support.tiers import mostly_slow

from helpers import results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.monitors import readings
from helpers.monitors.frozen import Monitor
from helpers.staleness import interaction
from helpers.staleness.drops import Observed, Reference
from helpers.staleness.interaction import MEASURES
from helpers.stats import p_values, roc
from helpers.stats.intervals import Estimate
from helpers.updates.names import CONTROL, Variant

ALIGNED = Variant("tiny", 3)
LORA = replace(ALIGNED, adapter="lora-dialogue", trained_on="bf16", serving="attached")
QLORA = replace(LORA, precision="nf4", trained_on="nf4")
NF4 = replace(ALIGNED, precision="nf4")
CROSSED = replace(LORA, precision="nf4")  # trained on bf16, served on nf4
BACK = replace(QLORA, precision="bf16")  # trained on nf4, served on bf16
ADDITIVE = {"aligned": 0.95, "lora": 0.88, "quantized": 0.91, "qlora": 0.84}
SUPER = {**ADDITIVE, "qlora": 0.72}
WEIGHTS = MEASURES["interaction"]


def monitor(task: str, kind: str, layer: int, pooling: str = "mean", cut: float | None = None) -> Monitor:
    """A monitor of which only the name and the threshold count here."""
    cuts = {} if cut is None else {"5": cut}
    where = {"task": task, "pooling": pooling, "layer": layer, "depth": layer / 4, "width": 1, "layers": 4}
    known = {"thresholds": cuts, "negatives": 0, "seed": 0, "reads": "", "limit": 0, "model": "tiny", "tensors": {}}
    return Monitor(kind=kind, strength=0.0, **where, **known)


def reference(
    task: str = "toxicity", kinds=("logistic", "lda", "mlp"), pairs: int = 60, poolings=("mean",), cut: float | None = None
) -> Reference:
    reading = planted.plan(task, pairs=(2, 2, pairs))
    rows = readings.rows_of(reading, task, "test")
    monitors = tuple(monitor(task, kind, 1 + i, poolings[i % len(poolings)], cut) for i, kind in enumerate(kinds))
    return Reference(task, monitors, rows, rows, np.zeros(0), np.zeros((len(kinds), 2 * pairs)), {})


def draw(rng, aurocs, found: Reference) -> dict[str, np.ndarray]:
    """Scores of each model with the given AUROCs; models share most of the noise, monitors and pairs a part of it."""
    labels, groups = found.test.labels, np.unique(found.test.groups, return_inverse=True)[1]
    text = rng.normal(size=len(labels)) * 0.6 + rng.normal(size=groups.max() + 1)[groups] * 0.4
    single = text + rng.normal(size=(len(found.monitors), len(labels))) * 0.5
    size = np.sqrt(2 * (0.36 + 0.16 + 0.25 + 0.09))
    return {role: single + 0.3 * rng.normal(size=single.shape) + ndtri(a) * size * labels for role, a in aurocs.items()}


def truth(aurocs) -> float:
    """drop(QLoRA) - drop(LoRA) - drop(quantized)."""
    drops = {role: aurocs["aligned"] - a for role, a in aurocs.items()}
    return drops["qlora"] - drops["lora"] - drops["quantized"]


# ---------------------------------------------------------------- planted effects


@mostly_slow("the same simulation at other sizes", "mean")
@pytest.mark.parametrize("which", ["one monitor", "mean"])
def test_effects_that_add_up_are_covered_as_often_as_promised(which):
    found = reference()

    def estimate(rng) -> Estimate:
        single, mean = interaction.contrasts(found, draw(rng, ADDITIVE, found), WEIGHTS)
        return (single[0] if which == "one monitor" else mean["all-mean"]).estimate

    share = coverage(estimate, lambda rng: (rng,), 0.0, repeats=300, seed=1)
    assert truth(ADDITIVE) == pytest.approx(0)
    assert 0.93 <= share.value <= 0.985  # nominal 0.95


def test_more_than_the_sum_is_seen():
    found, rng = reference(), np.random.default_rng(2)
    drawn = [interaction.contrasts(found, draw(rng, SUPER, found), WEIGHTS)[1]["all-mean"].estimate for _ in range(60)]
    assert np.mean([e.value for e in drawn]) == pytest.approx(truth(SUPER), abs=0.015)
    assert np.mean([e.low > 0 for e in drawn]) > 0.9
    added = [interaction.contrasts(found, draw(rng, ADDITIVE, found), WEIGHTS)[1]["all-mean"].estimate for _ in range(60)]
    assert np.mean([e.low > 0 for e in added]) < 0.1


def test_models_that_say_the_same_have_no_interaction_at_all():
    found = reference()
    same = draw(np.random.default_rng(3), {"aligned": 0.9}, found)["aligned"]
    single, mean = interaction.contrasts(found, dict.fromkeys(WEIGHTS, same), WEIGHTS)
    for contrast in (*single, *mean.values()):
        e = contrast.estimate
        assert (e.value, e.low, e.high) == (0, 0, 0)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_is_a_contrast_of_drops(measure):
    """Its weights sum to 0, so what moves all models alike is no effect."""
    assert sum(MEASURES[measure].values()) == pytest.approx(0)
    found = reference()
    aurocs = dict(zip(MEASURES[measure], (0.95, 0.9, 0.85, 0.7), strict=False))
    scores = draw(np.random.default_rng(4), aurocs, found)
    single, mean = interaction.contrasts(found, scores, MEASURES[measure])
    by_hand = sum(w * roc.auroc(found.test.labels, scores[role]) for role, w in MEASURES[measure].items())
    np.testing.assert_allclose([c.estimate.value for c in single], by_hand, atol=1e-12)
    assert list(mean) == ["all-mean"]
    assert mean["all-mean"].estimate.value == pytest.approx(by_hand.mean(), abs=1e-12)


def test_controls_and_tied_scores_stay_out_of_the_mean():
    found = reference(kinds=("logistic", CONTROL, "lda"))
    scores = draw(np.random.default_rng(5), ADDITIVE, found)
    scores["lora"][2] = 1.0
    single, mean = interaction.contrasts(found, scores, WEIGHTS)
    assert np.isnan(single[2].estimate.value)
    assert mean["all-mean"].estimate.value == pytest.approx(single[0].estimate.value, abs=1e-12)
    assert interaction.contrasts(reference(kinds=(CONTROL,)), {r: s[:1] for r, s in scores.items()}, WEIGHTS)[1] == {}


# ---------------------------------------------------------------- which models


def test_the_arms_of_a_qlora_variant():
    found = interaction.arms([NF4, LORA, QLORA, CROSSED, BACK], ALIGNED)
    assert found == {QLORA: {"qlora": QLORA, "quantized": NF4, "lora": LORA, "lora on quantized": CROSSED, "qlora on bf16": BACK}}
    assert interaction.arms([NF4, LORA, QLORA], ALIGNED) == {QLORA: {"qlora": QLORA, "quantized": NF4, "lora": LORA}}


@pytest.mark.parametrize("absent", [NF4, LORA, QLORA])
def test_without_a_part_there_are_no_arms(absent):
    assert interaction.arms([v for v in (NF4, LORA, QLORA, CROSSED, BACK) if v != absent], ALIGNED) == {}


@pytest.mark.parametrize(
    "other",
    [
        replace(QLORA, serving="merged-requantized"),
        replace(QLORA, restoration="safe-lora", strength=0.5),
        replace(QLORA, precision="rtn-4"),  # served in other bits than it was trained on
        replace(QLORA, precision="bf16", trained_on="bf16"),
        replace(NF4, adapter="identity"),
        replace(QLORA, adapter="lora-identity"),  # whose LoRA part was not trained
        replace(QLORA, precision="rtn-4", trained_on="rtn-4"),  # whose quantizer was not measured
    ],
)
def test_only_adapters_served_as_they_were_trained_qualify(other):
    assert interaction.arms([NF4, LORA, other], ALIGNED) == {}


def test_adapters_on_two_quantizers_have_their_own_parts():
    rtn = replace(QLORA, precision="rtn-4", trained_on="rtn-4")
    found = interaction.arms([NF4, LORA, QLORA, rtn, replace(ALIGNED, precision="rtn-4")], ALIGNED)
    assert {qlora: roles["quantized"].precision for qlora, roles in found.items()} == {QLORA: "nf4", rtn: "rtn-4"}
    assert {roles["lora"] for roles in found.values()} == {LORA}


# ---------------------------------------------------------------- the table


def observed(variants, tasks=("toxicity", "jailbreak"), seed=6, **more) -> Observed:
    """Planted scores of every variant; the two tasks have different numbers of texts."""
    rng, references, scores = np.random.default_rng(seed), {}, {v: {} for v in variants}
    names = {ALIGNED: 0.95, LORA: 0.88, NF4: 0.91, QLORA: 0.75, CROSSED: 0.8, BACK: 0.86}
    for task, pairs in zip(tasks, (60, 40), strict=True):
        found = reference(task, pairs=pairs, **more)
        drawn = draw(rng, {v: names[v] for v in (ALIGNED, *variants)}, found)
        references[task] = replace(found, scores=drawn[ALIGNED])
        for variant in variants:
            scores[variant][task] = drawn[variant]
    return Observed(None, references, scores)


EVERY = (NF4, LORA, QLORA, CROSSED, BACK)
INNER = [f"{measure}_90" for measure in MEASURES]


def test_the_rows_are_the_algebra_of_drops():
    seen = observed(EVERY)
    table = results.checked("interaction", interaction.interaction_rows(seen, ALIGNED))
    assert set(table["metric"]) == {*MEASURES, *INNER}  # no monitor has a threshold here
    for task, ref in seen.references.items():
        labels = ref.test.labels
        drop = {v: roc.auroc(labels, ref.scores) - roc.auroc(labels, seen.scores[v][task]) for v in EVERY}
        expected = {
            "interaction": drop[QLORA] - drop[LORA] - drop[NF4],
            "serving_interaction": drop[CROSSED] - drop[LORA] - drop[NF4],
            "training_effect": drop[BACK] - drop[LORA],
            "training_by_serving": drop[QLORA] - drop[BACK] - drop[CROSSED] + drop[LORA],
        }
        for measure, values in expected.items():
            rows = table[(table["task"] == task) & (table["metric"] == measure)]
            single = rows[rows["layer"] > 0].sort_values("layer")["value"]
            np.testing.assert_allclose(single, values, atol=1e-12)
            assert rows.loc[rows["probe"] == "all-mean", "value"].item() == pytest.approx(values.mean(), abs=1e-12)


def test_all_tasks_are_the_mean_of_the_tasks():
    table = interaction.interaction_rows(observed(EVERY), ALIGNED)
    mean = table[(table["probe"] == "all-mean")]
    for measure, rows in mean.groupby("metric"):
        single, overall = rows[rows["task"] != "all"], rows[rows["task"] == "all"].iloc[0]
        assert len(single) == 2, measure
        assert overall["value"] == pytest.approx(single["value"].mean())
        assert overall["n"] == single["n"].sum() == 200
        assert overall["high"] - overall["low"] < (single["high"] - single["low"]).max()  # independent texts add up


def test_poolings_have_means_of_their_own():
    """What reads the last token has the interaction, what reads the mean has not: neither row is about both."""
    seen = observed(EVERY, kinds=("logistic", "lda", "mlp", "logistic"), poolings=("last", "mean"))
    for task, reference_ in seen.references.items():
        for variant in EVERY:
            seen.scores[variant][task][1::2] = reference_.scores[1::2]  # the means over tokens: as before any update
    table = interaction.interaction_rows(seen, ALIGNED)
    rows = table[(table["metric"] == "interaction") & (table["task"] == "all")].set_index("probe")
    assert set(rows.index) == {"all-last", "all-mean"}
    assert rows.loc["all-last", "low"] > 0
    assert rows.loc["all-mean", ["value", "low", "high"]].tolist() == [0, 0, 0]


def test_the_inner_interval_is_that_of_two_one_sided_tests():
    """An interval of 90 % lies within a margin just where the two tests at 5 % both pass (`p_values.tost`)."""
    seen = observed(EVERY)
    reference_ = seen.references["toxicity"]
    scores = {role: seen.scores[v]["toxicity"] for role, v in {"qlora": QLORA, "lora": LORA, "quantized": NF4}.items()}
    _, together = interaction.contrasts(reference_, {"aligned": reference_.scores, **scores}, WEIGHTS)
    contrast = together["all-mean"]
    e, outer = interaction.inner(contrast), contrast.estimate
    assert outer.low < e.low < e.value < e.high < outer.high
    for factor, passes in ((0.999, False), (1.001, True)):
        margin = max(abs(e.low), abs(e.high)) * factor
        assert (p_values.tost(e.value, contrast.se, margin, contrast.df) <= 0.05) == passes


def test_what_is_caught_has_its_own_interaction():
    """By hand from flags of the same texts; at a threshold that all pass or none passes, there is nothing to lose."""
    seen = observed(EVERY, cut=1.5)
    table = results.checked("interaction", interaction.interaction_rows(seen, ALIGNED))
    assert set(table["metric"]) == {f"{m}{kind}" for m in MEASURES for kind in ("", "_tpr", "_90", "_tpr_90")}
    for task, ref in seen.references.items():
        caught = {v: (s[:, ref.test.labels == 1] > 1.5).mean(axis=1) for v, s in [(ALIGNED, ref.scores),
                  *((v, seen.scores[v][task]) for v in EVERY)]}  # fmt: skip
        drop = {v: caught[ALIGNED] - caught[v] for v in EVERY}
        rows = table[(table["task"] == task) & (table["metric"] == "interaction_tpr")]
        expected = drop[QLORA] - drop[LORA] - drop[NF4]
        np.testing.assert_allclose(rows[rows["layer"] > 0].sort_values("layer")["value"], expected, atol=1e-12)
        assert rows.loc[rows["probe"] == "all-mean", "value"].item() == pytest.approx(expected.mean(), abs=1e-12)
        assert rows["n"].eq((ref.test.labels == 1).sum()).all()
    for cut in (-99.0, 99.0):
        rows = interaction.interaction_rows(observed(EVERY, cut=cut), ALIGNED).query("metric == 'interaction_tpr'")
        assert (rows["value"] == 0).all()
        assert (rows["low"] < 0).all()  # what an unseen share of texts could do


def test_means_of_shares_are_covered_as_often_as_promised():
    """Effects that add up in what is caught: the interval over groups holds 0 as often as it says."""
    groups = np.arange(80) // 2

    def drawn(rng):
        common = rng.random((40, 1))[groups] < 0.5
        flags = {role: np.where(common, rng.random((80, 3)) < p, rng.random((80, 3)) < p - 0.2).mean(axis=1)
                 for role, p in {"aligned": 0.8, "lora": 0.6, "quantized": 0.7, "qlora": 0.5}.items()}  # fmt: skip
        return (sum(w * flags[role] for role, w in WEIGHTS.items()),)

    found = coverage(lambda values: interaction.mean_contrast(values, groups, 2.0).estimate, drawn, 0.0, repeats=400, seed=4)
    assert 0.925 <= found.value <= 0.975


@pytest.mark.parametrize("extra", [set(found) for n in range(3) for found in itertools.combinations((CROSSED, BACK), n)])
def test_cross_served_measures_stand_only_where_their_models_do(extra):
    table = interaction.interaction_rows(observed((NF4, LORA, QLORA, *extra)), ALIGNED)
    expected = {"interaction"}
    expected |= {"serving_interaction"} if CROSSED in extra else set()
    expected |= {"training_effect"} if BACK in extra else set()
    expected |= {"training_by_serving"} if {CROSSED, BACK} <= extra else set()
    assert set(table["metric"].str.removesuffix("_90")) == expected
    assert set(table["precision"] + table["adapter"] + table["trained_on"]) == {"nf4lora-dialoguenf4"}


def test_adapters_of_unequal_steps_are_no_pair_and_doses_are():
    dosed, home = (replace(v, adapter="lora-dialogue-x2") for v in (QLORA, LORA))
    recipes = {"lora-dialogue@bf16": {"steps": 24}, "lora-dialogue@nf4": {"steps": 30}, "lora-dialogue-x2@bf16": {"steps": 24}}
    variants = [NF4, LORA, QLORA, dosed, home]
    assert list(interaction.arms(variants, ALIGNED)) == [QLORA, dosed]
    assert list(interaction.arms(variants, ALIGNED, recipes)) == [dosed]  # of whose other part no steps are known
    equal = recipes | {"lora-dialogue@nf4": {"steps": 24}}
    assert list(interaction.arms(variants, ALIGNED, equal)) == [QLORA, dosed]


def test_without_any_qlora_the_remedy_is_named():
    with pytest.raises(StudyError, match=r"no QLoRA variant has both of its parts; add .*nf4") as error:
        interaction.interaction_rows(observed((LORA, NF4)), ALIGNED)
    assert error.value.code == NOT_COMPARABLE
    assert "\n" not in str(error.value)
