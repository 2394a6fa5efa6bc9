"""Curves: a point drawn cheaply is the model that its variant names, bit for bit, and the choice is made by the rule alone."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from support.bland import refused
from support.tiers import mostly_slow
from test_spot_check import note, sketch  # noqa: F401

from helpers import cache, results
from helpers.errors import NOT_COMPARABLE
from helpers.figures import projection_tables
from helpers.models import loading
from helpers.monitors import spot_check
from helpers.projection import curves, restorations, restored_updates
from helpers.projection.restorations import Restored
from helpers.stats.intervals import MARGINS
from helpers.updates import lora, quantizers, variants
from helpers.updates.lora import LowRank
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

RANK, MODULES = 4, 28
ALIGNED = Variant("tiny")
LORA = Variant("tiny", adapter="lora-dialogue", trained_on="bf16", serving="attached")
HOMES = {
    "attached": LORA,
    "attached to 4 bits": replace(LORA, precision="nf4", trained_on="nf4"),
    "merged": replace(LORA, serving="merged"),
    "merged, 4 bits": replace(LORA, precision="nf4", serving="merged-requantized"),
    "whole weights": Variant("tiny", adapter="full-dialogue", trained_on="bf16", serving="merged"),
}
NAMES, STRENGTHS = ("safelora", "random-subspace-k4"), (0.5, 1.0)
NUMBERS = itertools.count()


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    """Two checkpoints that differ, and three updates of them that stand where trained ones would."""
    folder, language = tmp_path_factory.mktemp("parts"), loading.load(tiny)
    with torch.no_grad():
        for p in language.model.parameters():
            p.add_(0.02 * gaussian(*p.shape, seed=p.numel()).to(p.dtype))
    parts = Parts(tiny, loading.save(language, folder / "aligned"))
    weights = {name: language.model.get_submodule(name).weight for name in quantizers.linear_names(language.model)}
    assert len(weights) == MODULES
    for seed, precision in enumerate(("bf16", "nf4")):
        adapter = {
            name: LowRank(0.2 * gaussian(w.shape[0], RANK, seed=seed), 0.2 * gaussian(RANK, w.shape[1], seed=10 + seed))
            for name, w in weights.items()
        }
        lora.save_adapter(adapter, folder / precision, {"losses": []})
        parts = parts.with_update("lora-dialogue", precision, folder / precision)
    (folder / "full").mkdir()
    tuned = {f"{name}.weight": w.float() + 0.05 * gaussian(*w.shape, seed=30) for name, w in weights.items()}
    save_file(tuned, folder / "full" / "weights.safetensors")
    (folder / "full" / "recipe.json").write_text("{}")
    return restored_updates.with_restorations(parts.with_update("full-dialogue", "bf16", folder / "full"))


@pytest.fixture(scope="module")
def plan(note):  # noqa: F811
    return sketch(note, n_harmful=2, n_edgy=2, n_summaries=1, n_documents=1, rows=4, new_tokens=2, summary_tokens=2)


@pytest.fixture(scope="module")
def before(parts, plan):
    return spot_check.look(plan, build_variant(parts, ALIGNED))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))


@pytest.fixture
def taken(monkeypatch):
    """The items of every sketch, in the order in which they are taken, and how often a model was built and looked at."""
    found, counts = [], {"built": 0, "looked": 0}
    take, build, look = spot_check.take, variants.build_variant, spot_check.look

    def count(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    def keep(*args):
        found.append(take(*args))
        return found[-1]

    monkeypatch.setattr(spot_check, "take", keep)
    monkeypatch.setattr(spot_check, "look", count("looked", look))
    monkeypatch.setattr(curves, "build_variant", count("built", build))
    return found, counts


def stored(plan, language):
    """The items as they come back from the cache."""
    return spot_check.stored(f"expected {next(NUMBERS)}", plan, lambda: spot_check.look(plan, language))


# ---------------------------------------------------------------- a point is the model it stands for


@mostly_slow("a sketch of each point, twice", "attached", "merged")
@pytest.mark.parametrize("home", HOMES)
def test_every_point_is_the_built_variant_bit_for_bit(parts, plan, before, taken, home):
    update, (found, counts) = HOMES[home], taken
    table = curves.curve(parts, update, NAMES, STRENGTHS, plan, before)
    points = [update, *(replace(update, restoration=name, strength=s) for name in NAMES for s in STRENGTHS)]
    assert len(found) == len(points)
    assert counts["built"] == (1 if update.serving == "attached" else len(points))
    expected = [stored(plan, build_variant(parts, point)) for point in points]
    for point, items, own in zip(points, found, expected, strict=True):
        pd.testing.assert_frame_equal(items, own, check_exact=True, obj=point.label)
    assert len({items["value"].to_numpy().tobytes() for items in expected}) == len(points)  # the points do differ
    whole = table[table["module"] == ""]
    assert variants.from_table(whole) == points
    counted = whole.drop_duplicates(list(results.KEY))["layers_changed"].tolist()
    assert counted == [0, *(len(NAMES) * [MODULES // 2, MODULES])]


@mostly_slow("a sketch of each point", "attached to 4 bits", "whole weights")
@pytest.mark.parametrize("home", HOMES)
def test_an_update_taken_off_everywhere_is_the_aligned_model_of_that_precision(parts, plan, before, taken, home):
    update, (found, _) = HOMES[home], taken
    curves.curve(parts, update, ["zero"], [0.5, 1.0], plan, before)
    aligned = stored(plan, build_variant(parts, replace(ALIGNED, precision=update.precision)))
    as_trained, half, off = found
    pd.testing.assert_frame_equal(off, aligned, check_exact=True)
    assert not half["value"].equals(aligned["value"])  # the control
    assert not as_trained["value"].equals(half["value"])


def test_what_leaves_the_same_factors_is_looked_at_once(parts, plan, before, taken):
    found, counts = taken
    table = curves.curve(parts, LORA, ["zero", "splora", "none"], [1.0], plan, before)
    assert counts["looked"] == 3  # as trained, nothing left, and unchanged: the two that share their factors share a look
    zero, splora = found[1:3]
    pd.testing.assert_frame_equal(zero, splora)
    assert [v.restoration for v in variants.from_table(table[table["module"] == ""])] == ["", "zero", "splora", "none"]
    curves.curve(parts, replace(LORA, precision="nf4"), ["zero"], [1.0], plan, before)
    assert counts["looked"] == 5  # the same factors beside other weights are another model


def test_a_curve_is_drawn_once(parts, plan, before, taken):
    _, counts = taken
    said = []
    first = curves.curve(parts, LORA, ["zero"], [0.5], plan, before, said.append)
    once = dict(counts)
    again = curves.curve(parts, LORA, ["zero"], [0.5], plan, before, said.append)
    assert counts == once
    assert once["looked"] == 2
    pd.testing.assert_frame_equal(again, first)
    assert said == 2 * [replace(LORA, restoration="zero", strength=0.5).label]


def test_a_model_that_was_exchanged_keeps_nothing_of_the_point_before(parts, plan, before, taken):
    found, _ = taken
    curves.curve(parts, LORA, ["zero", "safelora"], [1.0, 0.5], plan, before)
    there = [items.copy() for items in found]
    cache.cache_path("sketches", "x").parent.rename(cache.cache_path("gone", "sketches"))
    found.clear()
    curves.curve(parts, LORA, ["safelora", "zero"], [0.5, 1.0], plan, before)
    for mine, theirs in ((0, 0), (1, 4), (2, 3), (3, 2), (4, 1)):
        pd.testing.assert_frame_equal(found[mine], there[theirs], check_exact=True)


# ---------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def drawn(parts, plan, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTER_UPDATE_CACHE", str(tmp_path_factory.mktemp("drawn")))
        asked = {LORA: ["none", "safelora-threshold", "splora"], HOMES["whole weights"]: ["zero"]}
        return curves.curves(parts, asked, [0.1, 1.0], plan, ALIGNED)


def test_the_aligned_model_comes_first_and_compares_with_itself(drawn):
    assert variants.from_table(drawn)[0] == ALIGNED
    own = drawn[(drawn["adapter"] == "") & (drawn["module"] == "")].set_index("metric")
    assert (own.loc[["auroc_drop", "mean_auroc_drop", "alarms_changed"], "value"] == 0).all()
    assert (own["layers_changed"] == 0).all()
    assert (drawn["adapter"].iloc[: len(own)] == "").all()
    moved = drawn[drawn["metric"] == "mean_auroc_drop"].groupby("adapter")["value"].apply(lambda v: v.abs().max())
    assert (moved[["lora-dialogue", "full-dialogue"]] > 0).all()


def test_the_table_keeps_to_its_schema(drawn):
    assert len(results.checked("projection", drawn)) == len(drawn)


def test_modules_are_counted_as_the_restoration_changed_them(parts, drawn):
    whole = drawn[drawn["module"] == ""].drop_duplicates(list(results.KEY)).set_index(["adapter", "restoration", "strength"])
    counted = whole["layers_changed"]
    assert counted["lora-dialogue", "none", 1.0] == 0
    assert counted["lora-dialogue", "splora", 0.1] == 3  # 2.8 of 28
    assert counted["full-dialogue", "zero", 1.0] == MODULES
    s = restored_updates.prepared(parts, LORA, "safelora-threshold").scores["score"]
    assert counted["lora-dialogue", "safelora-threshold", 0.1] == (s <= 0.1).sum()


def test_every_module_is_told_with_what_is_kept_of_it(parts, drawn):
    for update, name in ((LORA, "safelora-threshold"), (HOMES["whole weights"], "zero")):
        own = replace(update, restoration=name)
        rows = drawn[(drawn["module"] != "") & (drawn["adapter"] == update.adapter) & (drawn["restoration"] == name)]
        assert variants.from_table(rows) == [own]
        kept = rows[rows["metric"] == "kept"].set_index("module")
        assert len(kept) == MODULES
        assert (kept[["low", "high"]].to_numpy() == kept[["value"]].to_numpy()).all()
        table = restored_updates.prepared(parts, update, name).at(1.0).table.set_index("module")
        np.testing.assert_allclose(kept["value"], (table["after"] / table["before"])[kept.index])
    assert (kept["value"] == 0).all()


def test_an_update_that_is_nothing_has_no_share_that_is_kept_and_stops_nothing():
    table = pd.DataFrame({"module": ["a"], "score": [np.nan], "null": [0.1], "z": [np.nan], "z_robust": [np.nan], "p": [np.nan],
                          "changed": [True], "before": [0.0], "after": [0.0]})  # fmt: skip
    rows = curves.curve_module_rows(replace(LORA, restoration="zero"), Restored({}, table))
    assert rows.set_index("metric")["value"].to_dict() == {"null": 0.1, "kept": 0.0}
    assert len(results.checked("projection", rows)) == 2


# ---------------------------------------------------------------- the choice

AT = MARGINS["refusal"]


def point(value, variant, changed=1, on="advbench/validation", metric="non_refusal"):
    row = pd.DataFrame([(metric, value, value, value, 9)], columns=results.VALUES).assign(measured_on=on)
    return curves.keyed_rows(variant, changed, row)


def planted(curve, update=LORA, name="safelora", **more):
    """Non-refusal of one restoration by strength."""
    return [point(v, replace(update, restoration=name, strength=s), round(MODULES * s), **more) for s, v in curve.items()]


def chosen(*parts, aligned=0.1):
    rows = [point(aligned, ALIGNED, 0), point(0.9, LORA, 0), *(row for part in parts for row in part)]
    return curves.choose(pd.concat(rows, ignore_index=True))


KEY = ("lora-dialogue", "bf16", "safelora")
CURVES = {
    "the smallest within the margin": ({0.25: 0.8, 0.5: 0.1 + AT, 0.75: 0.1, 1.0: 0.0}, 0.5),
    "just outside does not count": ({0.5: 0.1 + AT + 1e-9, 0.75: 0.1, 1.0: 0.0}, 0.75),
    "a curve need not fall": ({0.25: 0.12, 0.5: 0.8, 1.0: 0.0}, 0.25),
    "in any order": ({1.0: 0.0, 0.75: 0.1, 0.25: 0.8, 0.5: 0.12}, 0.5),
    "none within: the lowest": ({0.25: 0.8, 0.5: 0.4, 0.75: 0.3, 1.0: 0.5}, 0.75),
    "none within and a tie: the smallest of the lowest": ({1.0: 0.3, 0.75: 0.3, 0.5: 0.3, 0.25: 0.8}, 0.5),
    "a point that changes nothing is none": ({0.0: 0.1, 0.5: 0.12}, 0.5),
}


@pytest.mark.parametrize("case", CURVES)
def test_the_choice_follows_its_rule(case):
    curve, expected = CURVES[case]
    assert chosen(planted(curve)) == {KEY: expected}


def test_the_choice_is_made_on_validation_prompts_alone():
    curve = planted({0.5: 0.9, 1.0: 0.1})
    others = [planted({0.25: 0.0, 0.5: 0.0}, on=on) for on in ("advbench/test", "advbench", "edgy/validation")]
    others.append(planted({0.25: 0.0, 0.5: 0.0}, metric="over_refusal"))
    assert chosen(curve, *others) == {KEY: 1.0}
    assert chosen(*others) == {}


def test_the_choices_of_updates_and_restorations_do_not_mix():
    nf4 = HOMES["attached to 4 bits"]
    found = chosen(
        planted({0.5: 0.9, 1.0: 0.1}), planted({0.25: 0.9, 0.5: 0.1}, name="zero"), planted({0.25: 0.1, 0.5: 0.1}, update=nf4),
        planted({0.75: 0.1}, update=HOMES["whole weights"], name="zero"),
    )  # fmt: skip
    assert found == {KEY: 1.0, ("lora-dialogue", "bf16", "zero"): 0.5, ("lora-dialogue", "nf4", "safelora"): 0.25,
                     ("full-dialogue", "bf16", "zero"): 0.75}  # fmt: skip


def test_quantized_models_and_updates_are_not_what_is_aimed_at():
    low = [point(0.9, replace(ALIGNED, precision="nf4"), 0)]
    rows = pd.concat([*low, point(0.1, ALIGNED, 0), *planted({0.5: 0.8, 1.0: 0.1})], ignore_index=True)
    assert curves.choose(rows) == {KEY: 1.0}


def test_without_the_aligned_model_there_is_nothing_to_aim_at():
    with refused(NOT_COMPARABLE, "no aligned model", "draw them again"):
        curves.choose(pd.concat(planted({0.5: 0.1}), ignore_index=True))


def test_real_curves_can_be_chosen_from(drawn):
    found = curves.choose(drawn)
    assert ("full-dialogue", "bf16", "zero") in found
    assert not any(name == "none" for _, _, name in found)  # it changes nothing
    assert set(found.values()) <= {0.1, 1.0}


def test_what_was_chosen_is_named_for_its_own_update():
    choice = {KEY: 0.5, ("lora-dialogue", "nf4", "safelora"): 0.9}
    assert curves.chosen_variants(LORA, ["safelora", "zero"], choice) == [replace(LORA, restoration="safelora", strength=0.5)]
    nf4 = HOMES["attached to 4 bits"]
    assert curves.chosen_variants(nf4, ["safelora"], choice) == [replace(nf4, restoration="safelora", strength=0.9)]
    assert curves.chosen_variants(HOMES["whole weights"], ["safelora"], choice) == []


def test_foundations_are_the_aligned_model_in_each_low_precision_once():
    assert curves.foundations(list(HOMES.values())) == [replace(ALIGNED, precision="nf4")]
    assert curves.foundations([LORA]) == []


def test_changed_modules_are_counted_by_the_curves_where_they_were_drawn(drawn):
    threshold = next(v for v in variants.from_table(drawn) if v.restoration == "safelora-threshold" and v.strength == 0.1)
    found = curves.changed_counts(
        drawn, [ALIGNED, replace(ALIGNED, precision="nf4"), LORA, threshold, replace(LORA, restoration="salora")]
    )
    rows = drawn[(drawn["restoration"] == "safelora-threshold") & (drawn["strength"] == 0.1)]
    assert list(found.values()) == [0, 0, 0, rows["layers_changed"].iloc[0], MODULES]


# ---------------------------------------------------------------- as a reader sees it


@pytest.mark.parametrize("name", restorations.RESTORATIONS)
def test_a_dose_is_a_share_of_modules_or_a_threshold(name):
    shares = {"safelora-threshold": "s up to 0.29"}
    assert projection_tables.strength_words(name, 0.29) == shares.get(name, "29 % of modules")


def test_the_choice_is_shown_by_update_and_restoration():
    choice = {KEY: 0.9, ("lora-dialogue", "bf16", "safelora-threshold"): 0.5, ("a", "nf4", "safelora"): 1.0}
    table = projection_tables.choice_table(choice)
    assert table.columns.tolist() == ["update", "safelora", "safelora-threshold"]
    assert table["update"].tolist() == ["lora-dialogue on bf16", "a on nf4"]
    assert table["safelora"].tolist() == ["90 % of modules", "100 % of modules"]
    assert table["safelora-threshold"].tolist()[0] == "s up to 0.5"
    assert pd.isna(table["safelora-threshold"].tolist()[1])


def test_modules_by_hand_are_those_of_the_restoration(parts):
    table = restored_updates.prepared(parts, LORA, "safelora").at(1.0).table
    shown = projection_tables.restoration_by_hand(table)
    assert shown["module"].is_unique
    assert not shown["module"].str.contains("model|self_attn|mlp").any()
    np.testing.assert_array_equal(shown["norm before"], table["before"])
    np.testing.assert_array_equal(shown["a random update's"], table["null"])
    assert len(shown) == MODULES
