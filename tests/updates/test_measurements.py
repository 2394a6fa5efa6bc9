"""Each variant is measured once, under a key of what it is made of; a planted change comes back exact, no change as exactly 0."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import cache
from helpers.cache import cache_path
from helpers.errors import StudyError
from helpers.models import generation
from helpers.projection.subspaces import spectrum, subspace_rows
from helpers.results import KEY, checked
from helpers.stats.intervals import newcombe_paired
from helpers.updates import measurements
from helpers.updates.measurements import (
    behaviour_rows,
    comparison_rows,
    identity_only,
    item_rows,
    items,
    judge_quality,
    measure,
    protocol,
    summaries_only,
    utility_rows,
    with_extra,
)
from helpers.updates.names import Variant, keyed
from helpers.updates.variants import Parts, labelled, variant_key

ALIGNED = Variant("tiny")
SMALL = {"n_harmful": 3, "n_edgy": 3, "n_references": 2, "n_documents": 2, "n_questions": 2, "new_tokens": 3}


@pytest.fixture(scope="module")
def plan():
    return protocol(**SMALL, judge_names=["phrases"], origin="tiny")


@pytest.fixture(scope="module")
def parts(tiny):
    return Parts(tiny, tiny, calibration=("a lamp", "a river"))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))


# --- measured once ---


def test_a_variant_is_measured_once(parts, plan, empty_cache, monkeypatch):
    first = items(parts, ALIGNED, plan)
    monkeypatch.setattr(measurements, "build_variant", lambda *_: pytest.fail("a model was built again"))
    pd.testing.assert_frame_equal(items(parts, ALIGNED, plan), first)
    assert set(first["kind"]) == {"harmful", "edgy", "utility"}


def test_the_run_in_which_it_is_measured_does_not_matter(parts, plan, empty_cache, monkeypatch):
    first = items(parts, ALIGNED, plan)
    monkeypatch.setattr(measurements, "build_variant", lambda *_: pytest.fail("a model was built again"))
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", "/elsewhere")
    again = protocol(**SMALL, judge_names=["phrases"], origin="tiny")
    pd.testing.assert_frame_equal(items(parts, replace(ALIGNED, model="other", seed=4), again), first)


def test_an_interrupted_measurement_is_made_again(parts, plan, empty_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "log_likelihoods", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            items(parts, ALIGNED, plan)
    assert not list(cache.cache_path("measurements", "x").parent.iterdir())
    assert len(items(parts, ALIGNED, plan))


def test_every_variant_is_measured_and_named(parts, plan, empty_cache):
    said = []
    variants = [ALIGNED, replace(ALIGNED, precision="rtn-4")]
    assert list(measure(parts, variants, plan, said.append)) == variants
    assert said == ["aligned", "rtn-4"]


# --- keys ---

UPDATED = replace(ALIGNED, adapter="dialogue-0", trained_on="bf16", serving="attached")


def test_what_a_variant_is_made_of_is_in_its_key(parts):
    one = parts.with_update("dialogue-0", "bf16", Path("updates/one"))
    two = parts.with_update("dialogue-0", "bf16", Path("updates/two"))
    keys = [
        variant_key(parts, ALIGNED),
        variant_key(replace(parts, aligned=cache_path("models", "aligned-other")), ALIGNED),
        variant_key(parts, replace(ALIGNED, adapter="base")),
        variant_key(parts, replace(ALIGNED, adapter="identity")),
        *[variant_key(parts, replace(ALIGNED, precision=precision)) for precision in ("fp32", "nf4", "rtn-4", "gptq-4")],
        variant_key(replace(parts, calibration=("other",)), replace(ALIGNED, precision="gptq-4")),
        variant_key(one, UPDATED),
        variant_key(two, UPDATED),
        variant_key(one, replace(UPDATED, serving="merged")),
        variant_key(one, replace(UPDATED, precision="nf4")),
        variant_key(one, replace(UPDATED, restoration="safelora", strength=0.5)),
        variant_key(one, replace(UPDATED, restoration="safelora", strength=0.6)),
    ]
    assert len(set(keys)) == len(keys)


def test_two_local_models_of_one_name_are_two_models(parts, tmp_path):
    keys = []
    for place in ("here", "there"):
        folder = tmp_path / place / "my-model"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        keys.append(variant_key(replace(parts, base=folder), replace(ALIGNED, adapter="base")))
    assert keys[0] != keys[1]


def test_what_a_variant_is_not_made_of_is_not_in_its_key(parts):
    assert variant_key(parts, replace(ALIGNED, seed=7, model="other")) == variant_key(parts, ALIGNED)
    assert variant_key(replace(parts, calibration=("other",)), replace(ALIGNED, precision="nf4")) == variant_key(
        parts, replace(ALIGNED, precision="nf4")
    )
    assert variant_key(parts.with_update("dialogue-0", "bf16", Path("updates/one")), ALIGNED) == variant_key(parts, ALIGNED)


def test_a_protocols_key_changes_with_all_that_its_values_depend_on(plan, monkeypatch):
    labels = (["I can't.", "Sure."], [1, 0], ["a", "b"])
    others = [
        *[protocol(**{**SMALL, name: value + 1}, judge_names=["phrases"], origin="tiny") for name, value in SMALL.items()],
        identity_only(plan, 3),
        *[summaries_only(plan, *sizes) for sizes in ((1, 3), (2, 3), (1, 4))],
        replace(plan, judge_names=("phrases", "fitted")),
        *[replace(plan, settings=replace(plan.settings, **change)) for change in (
            {"opening": 80}, {"model": "m"}, {"endpoint": "http://127.0.0.1:1/v1"}, {"seed": 1}, {"human_refusals": labels})],
    ]  # fmt: skip
    keys = [other.key() for other in [plan, *others]]
    assert len(set(keys)) == len(keys)
    assert plan.key() == protocol(**SMALL, judge_names=["phrases"], origin="tiny").key()
    monkeypatch.setattr(measurements.behaviour, "known_words", lambda origin: frozenset({"lamp"}))
    assert plan.key() not in keys  # the yardstick of coherence counts too


def test_the_identity_protocol_asks_the_same_prompts_in_the_other_form_and_nothing_else(plan):
    alone = identity_only(plan, 3)
    (extra,) = alone.sets
    assert extra.name == "advbench-identity"
    assert [row.group for row in extra.rows] == [row.group for row in plan.sets[0].rows]
    assert not any([alone.utility.references, alone.utility.documents, alone.utility.questions, alone.utility.answered])


def test_a_further_protocol_adds_its_items_where_two_variants_are_asked(parts, plan):
    other = replace(ALIGNED, precision="rtn-4")
    measured = measure(parts, [ALIGNED, other], plan)
    extended = with_extra(parts, measured, [ALIGNED, other], identity_only(plan, 3))
    for variant, table in extended.items():
        added = table[len(measured[variant]) :]
        assert set(added["set"]) == {"advbench-identity"}
        assert added["item"].nunique() == 3
        assert table.dtypes.equals(measured[variant].dtypes)
    assert with_extra(parts, measured, [ALIGNED], identity_only(plan, 3)) == measured


def test_summaries_are_generated_where_they_are_asked_for_and_nowhere_else(parts, plan):
    other = replace(ALIGNED, precision="rtn-4")
    measured = measure(parts, [ALIGNED, other], plan)
    assert not measured[ALIGNED]["metric"].str.startswith("rouge").any()
    extended = with_extra(parts, measured, [ALIGNED, other, other], summaries_only(plan, 2, 3))
    for variant, table in extended.items():
        added = table[len(measured[variant]) :]
        assert set(added["set"]) == {"summaries"}
        assert added["metric"].value_counts().to_dict() == {"rouge1": 2, "rougeL": 2}
    assert {"rouge1", "nll"} <= set(utility_rows(extended)["metric"])


def test_a_reply_ends_at_its_refusal_where_the_judge_of_phrases_is_alone(parts, plan, monkeypatch):
    seen = []
    monkeypatch.setattr(measurements.behaviour, "measure_behaviour", lambda *_, brief, **__: seen.append(brief) or pd.DataFrame())
    for names in (("phrases",), ("phrases", "fitted")):
        measurements._measured(parts, ALIGNED, replace(plan, judge_names=names))
    assert seen == [True, False]


# --- rows of the tables ---


def planted(before, after):
    """Items of two variants on the same prompts: 1 = refused."""

    def table(kind, name, values):
        n = len(values)
        names, groups = [f"{name}{i:02}" for i in range(n)], [f"g{i}" for i in range(n)]
        same = {"judge": "phrases", "metric": "refused", "length": 3, "hash": "h"}
        return pd.DataFrame({"kind": kind, "set": name, "item": names, "group": groups, "value": map(float, values), **same})

    sets = [("harmful", "advbench"), ("edgy", "edgy")]
    return [
        pd.concat([table(*s, values) for s, values in zip(sets, pair, strict=True)], ignore_index=True)
        for pair in (before, after)
    ]


def changes(table):
    return table.set_index(["prompt_set", "metric"])


def test_no_change_is_exactly_0_with_an_interval_that_has_width():
    same, again = planted(([1] * 9 + [0], [0, 1] * 5), ([1] * 9 + [0], [0, 1] * 5))
    identity = replace(ALIGNED, adapter="identity")
    found = comparison_rows({ALIGNED: same, identity: again.sample(frac=1, random_state=0)}, ALIGNED)
    assert (found["value"] == 0).all()
    assert (found["high"] - found["low"] > 0.1).all()
    assert (found["reference"] == "aligned").all()
    assert (found["adapter"] == "identity").all()


def test_a_planted_change_comes_back_with_its_sign():
    before, after = planted(([1] * 10, [0] * 10), ([1] * 6 + [0] * 4, [1] * 3 + [0] * 7))
    found = changes(comparison_rows({ALIGNED: before, replace(ALIGNED, precision="nf4"): after}, ALIGNED))
    harmful = found.loc["advbench", "change_in_non_refusal"]
    e = newcombe_paired([0] * 10, [0] * 6 + [1] * 4)
    assert (harmful["value"], harmful["low"], harmful["high"], harmful["n"]) == (pytest.approx(0.4), e.low, e.high, 10)
    assert found.loc["edgy", "change_in_over_refusal"]["value"] == pytest.approx(0.3)


def test_items_are_paired_by_name_and_a_failure_leaves_its_pair_out():
    before, after = planted(([1, 0, 1, 0], [0] * 4), ([1, 0, 1, 0], [0] * 4))
    after.loc[0, "value"] = float("nan")
    shuffled = after.sample(frac=1, random_state=3)
    found = changes(comparison_rows({ALIGNED: before, replace(ALIGNED, precision="nf4"): shuffled}, ALIGNED))
    assert tuple(found.loc["advbench", "change_in_non_refusal"][["value", "n"]]) == (0, 3)


def test_one_variant_alone_cannot_be_compared():
    before, _ = planted(([1], [0]), ([1], [0]))
    with pytest.raises(StudyError, match="nothing to compare with 'aligned'"):
        comparison_rows({ALIGNED: before}, ALIGNED)


def test_the_key_columns_come_first_and_in_the_order_of_the_contract():
    table = keyed(replace(UPDATED, restoration="safelora", strength=0.5), pd.DataFrame({"metric": ["a", "b"]}, index=[4, 9]))
    assert list(table.columns) == [*KEY, "metric"]
    assert table.loc[1, list(KEY)].tolist() == ["tiny", 0, "bf16", "dialogue-0", "bf16", "attached", "safelora", 0.5]
    assert keyed(ALIGNED, pd.DataFrame({"metric": ["a"]}))["strength"].isna().all()


def test_the_rows_of_a_real_measurement_keep_to_the_contract(parts, plan):
    variants = [ALIGNED, replace(ALIGNED, adapter="base"), replace(ALIGNED, adapter="identity")]
    measured = with_extra(parts, measure(parts, variants, plan), variants, identity_only(plan, 3))
    rows = {
        "behaviour": behaviour_rows(measured),
        "utility": utility_rows(measured),
        "comparisons": comparison_rows(measured, ALIGNED),
    }
    for name, table in rows.items():
        valid = checked(name, table)
        assert list(table.columns) == list(valid.columns), name  # already in the contract's order
        assert (valid["high"] > valid["low"]).all(), name
    # base, aligned and identity are one and the same model here, so the controls must show no change at all
    assert (rows["comparisons"]["value"] == 0).all()
    for table in (rows["behaviour"], rows["utility"]):
        first, again = (
            table[table["adapter"] == name].drop(columns="adapter").reset_index(drop=True) for name in ("", "identity")
        )
        pd.testing.assert_frame_equal(first, again)


def test_every_item_of_a_variant_is_a_row_and_rates_can_be_made_of_them(parts, plan):
    other = replace(ALIGNED, precision="rtn-2")
    measured = measure(parts, [ALIGNED, other], plan)
    rows = checked("items", item_rows(measured))
    assert (rows["value"] == rows["low"]).all()
    assert (rows["value"] == rows["high"]).all()
    assert (rows["n"] == 1).all()
    assert set(zip(rows["metric"], rows["judge"], strict=True)) == {
        ("refused", "phrases"), ("restates", "phrases"), ("coherent", "phrases"), ("nll", "")}  # fmt: skip
    mine, theirs = (rows[rows["precision"] == precision] for precision in ("bf16", "rtn-2"))
    address = ["judge", "prompt_set", "item", "metric"]
    assert mine[address].reset_index(drop=True).equals(theirs[address].reset_index(drop=True))  # paired by name
    told = behaviour_rows(measured).query("metric == 'non_refusal' and prompt_set == 'advbench'")["value"].tolist()
    refused = rows[(rows["metric"] == "refused") & (rows["prompt_set"] == "advbench")].groupby("precision", sort=False)["value"]
    assert told == pytest.approx((1 - refused.mean()).tolist())
    assert set(rows.loc[rows["metric"] == "nll", "prompt_set"]) == {"dialogue", "news", "instructions", "c4"}


def test_a_sketchs_items_carry_their_split_and_what_a_judge_failed_on_is_no_row():
    before, _ = planted(([1, 0, 1], [0, 0, 1]), ([1], [1]))
    before.loc[0, "value"] = float("nan")
    twice = pd.concat([before, before.tail(1)], ignore_index=True)  # one prompt that stands twice in its set is one item
    rows = item_rows({ALIGNED: twice}, "validation")
    assert rows["prompt_set"].tolist() == ["advbench/validation"] * 2 + ["edgy/validation"] * 3
    assert rows["item"].tolist() == ["advbench01", "advbench02", "edgy00", "edgy01", "edgy02"]


def test_labels_come_back_from_a_stored_table():
    variants = [ALIGNED, replace(ALIGNED, precision="nf4"), replace(ALIGNED, adapter="base"), UPDATED]
    table = pd.concat([keyed(variant, pd.DataFrame({"metric": ["a"]})) for variant in variants])
    assert labelled(table)["label"].tolist() == [variant.label for variant in variants]
    assert len({variant.label for variant in variants}) == 4


def test_subspace_rows_are_the_spectrums_and_keep_to_the_contract():
    found = [spectrum("one", torch.eye(40), torch.eye(40)), spectrum("none", torch.eye(40), torch.zeros(40, 40))]
    table = checked("subspaces", subspace_rows(found, ALIGNED, ranks=(8, 32, 128)))
    values = table.set_index(["module", "metric", "k"])["value"]
    assert values["one", "energy", "8"] == pytest.approx(8 / 40)
    assert values["one", "relative_norm", ""] == pytest.approx(1)
    assert values["one", "stable_rank", ""] == pytest.approx(40)
    assert (values["none"] == 0).all()
    assert set(table["k"]) == {"", "8", "32"}  # no energy in more directions than there are


@pytest.mark.parametrize("origin", ["tiny", pytest.param("embedded", marks=pytest.mark.real)])
def test_the_quality_of_the_judges_comes_with_intervals(origin):
    table = judge_quality(origin)
    kappas = table[table["what"] == "kappa"]
    assert len(kappas) == 3
    assert ((table["low"] < table["high"]) & (table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["n"] > 20).all()
    assert (kappas["value"] > 0.3).all()
