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
from helpers.models import behaviour, loading
from helpers.monitors import spot_check
from helpers.projection import curves, restorations, restored_updates
from helpers.projection.restorations import Restored
from helpers.stats.intervals import MARGINS, newcombe_paired
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
    return sketch(note, n_harmful=2, n_edgy=2, n_references=3, n_documents=1, rows=4, new_tokens=2)


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
def test_every_point_is_the_built_variant_bit_for_bit(parts, plan, taken, home):
    update, (found, counts) = HOMES[home], taken
    drawn = curves.curve(parts, update, NAMES, STRENGTHS, plan)
    points = [update, *(replace(update, restoration=name, strength=s) for name in NAMES for s in STRENGTHS)]
    assert len(found) == len(points)
    assert counts["built"] == (1 if update.serving == "attached" else len(points))
    expected = [stored(plan, build_variant(parts, point)) for point in points]
    for point, items, own in zip(points, found, expected, strict=True):
        pd.testing.assert_frame_equal(items, own, check_exact=True, obj=point.label)
    assert len({items["value"].to_numpy().tobytes() for items in expected}) == len(points)  # the points do differ
    assert list(drawn.seen) == list(drawn.changed) == points
    assert list(drawn.changed.values()) == [0, *(len(NAMES) * [MODULES // 2, MODULES])]


@mostly_slow("a sketch of each point", "attached to 4 bits", "whole weights")
@pytest.mark.parametrize("home", HOMES)
def test_an_update_taken_off_everywhere_is_the_aligned_model_of_that_precision(parts, plan, taken, home):
    update, (found, _) = HOMES[home], taken
    curves.curve(parts, update, ["zero"], [0.5, 1.0], plan)
    aligned = stored(plan, build_variant(parts, replace(ALIGNED, precision=update.precision)))
    as_trained, half, off = found
    pd.testing.assert_frame_equal(off, aligned, check_exact=True)
    assert not half["value"].equals(aligned["value"])  # the control
    assert not as_trained["value"].equals(half["value"])


def test_what_leaves_the_same_factors_is_looked_at_once(parts, plan, taken):
    found, counts = taken
    drawn = curves.curve(parts, LORA, ["zero", "splora", "none"], [1.0], plan)
    assert counts["looked"] == 3  # as trained, nothing left, and unchanged: the two that share their factors share a look
    zero, splora = found[1:3]
    pd.testing.assert_frame_equal(zero, splora)
    assert [v.restoration for v in drawn.seen] == ["", "zero", "splora", "none"]
    curves.curve(parts, replace(LORA, precision="nf4"), ["zero"], [1.0], plan)
    assert counts["looked"] == 5  # the same factors beside other weights are another model


def test_a_curve_is_drawn_once(parts, plan, taken):
    _, counts = taken
    said = []
    first = curves.curve(parts, LORA, ["zero"], [0.5], plan, said.append)
    once = dict(counts)
    again = curves.curve(parts, LORA, ["zero"], [0.5], plan, said.append)
    assert counts == once
    assert once["looked"] == 2
    pd.testing.assert_frame_equal(again.table, first.table)
    assert said == 2 * [replace(LORA, restoration="zero", strength=0.5).label]


def test_a_model_that_was_exchanged_keeps_nothing_of_the_point_before(parts, plan, taken):
    found, _ = taken
    curves.curve(parts, LORA, ["zero", "safelora"], [1.0, 0.5], plan)
    there = [items.copy() for items in found]
    cache.cache_path("sketches", "x").parent.rename(cache.cache_path("gone", "sketches"))
    found.clear()
    curves.curve(parts, LORA, ["safelora", "zero"], [0.5, 1.0], plan)
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
    table = drawn.table
    assert next(iter(drawn.seen)) == variants.from_table(table)[0] == ALIGNED
    own = table[(table["adapter"] == "") & (table["module"] == "")].set_index("metric")
    assert (own.loc[["auroc_drop", "mean_auroc_drop", "alarms_changed"], "value"] == 0).all()
    assert (own["layers_changed"] == 0).all()
    assert (table["adapter"].iloc[: len(own)] == "").all()
    moved = table[table["metric"] == "mean_auroc_drop"].groupby("adapter")["value"].apply(lambda v: v.abs().max())
    assert (moved[["lora-dialogue", "full-dialogue"]] > 0).all()


def test_the_tables_keep_to_their_schemas(drawn):
    assert len(results.checked("projection", drawn.table)) == len(drawn.table)
    items = drawn.item_rows()
    assert len(results.checked("items", items)) == len(items)
    assert set(variants.from_table(items)) == set(drawn.seen)
    assert set(items["prompt_set"]) == {f"{name}/validation" for name in ("advbench", "edgy", "dialogue", "c4")}


def test_modules_are_counted_as_the_restoration_changed_them(parts, drawn):
    counted = {(v.adapter, v.restoration, v.strength): count for v, count in drawn.changed.items()}
    assert counted["lora-dialogue", "none", 1.0] == 0
    assert counted["lora-dialogue", "splora", 0.1] == 3  # 2.8 of 28
    assert counted["full-dialogue", "zero", 1.0] == MODULES
    s = restored_updates.prepared(parts, LORA, "safelora-threshold").scores["score"]
    assert counted["lora-dialogue", "safelora-threshold", 0.1] == (s <= 0.1).sum()
    told = drawn.table[(drawn.table["measured_on"] == "advbench/validation") & (drawn.table["metric"] == "non_refusal")]
    assert {
        v: row["layers_changed"] for v, (_, row) in zip(variants.from_table(told), told.iterrows(), strict=True)
    } == drawn.changed


def test_every_module_is_told_with_what_is_kept_of_it(parts, drawn):
    for update, name in ((LORA, "safelora-threshold"), (HOMES["whole weights"], "zero")):
        own, table = replace(update, restoration=name), drawn.table
        rows = table[(table["module"] != "") & (table["adapter"] == update.adapter) & (table["restoration"] == name)]
        assert variants.from_table(rows) == [own]
        kept = rows[rows["metric"] == "kept"].set_index("module")
        assert len(kept) == MODULES
        assert (kept[["low", "high"]].to_numpy() == kept[["value"]].to_numpy()).all()
        table = restored_updates.prepared(parts, update, name).at(1.0).table.set_index("module")
        np.testing.assert_allclose(kept["value"], (table["after"] / table["before"])[kept.index])
    assert (kept["value"] == 0).all()


def test_a_prepared_restoration_is_made_once_and_read_again_as_it_was(parts, monkeypatch):
    first = restored_updates.prepared(parts, LORA, "safelora-x4:nf4-both")
    monkeypatch.setattr(restorations, "prepare", lambda *args, **more: pytest.fail("prepared again"))
    again = restored_updates.prepared(parts, LORA, "safelora-x4:nf4-both")
    assert again.order == first.order
    assert again.named == first.named
    pd.testing.assert_frame_equal(again.scores, first.scores)
    for one, other in zip(first.at(0.5).update.values(), again.at(0.5).update.values(), strict=True):
        assert torch.equal(one.left, other.left)
        assert torch.equal(one.right, other.right)
    with pytest.raises(pytest.fail.Exception):  # control: another source is another thing
        restored_updates.prepared(parts, LORA, "safelora:nf4-both")


def test_a_larger_v_leaves_as_much_more_and_keeps_the_order(parts):
    one, large = (restored_updates.prepared(parts, LORA, name) for name in ("safelora", "safelora-x16"))
    ratio = large.scores["after"] / one.scores["after"]
    assert ratio.to_numpy() == pytest.approx(16, rel=0.1)  # V times 16 is rounded to bf16 again
    assert np.corrcoef(one.scores["score"], large.scores["score"])[0, 1] > 0.99


def test_an_update_that_is_nothing_has_no_share_that_is_kept_and_stops_nothing():
    table = pd.DataFrame({"module": ["a"], "score": [np.nan], "null": [0.1], "z": [np.nan], "z_robust": [np.nan], "p": [np.nan],
                          "changed": [True], "before": [0.0], "after": [0.0]})  # fmt: skip
    rows = curves.curve_module_rows(replace(LORA, restoration="zero"), Restored({}, table))
    assert rows.set_index("metric")["value"].to_dict() == {"null": 0.1, "kept": 0.0}
    assert len(results.checked("projection", rows)) == 2


# ---------------------------------------------------------------- the choice

AT = MARGINS["refusal"]
N = 100


def labels(damage, n=N, nll=None):
    """Items of a model that does not refuse `damage` of n prompts, and needs so many nats for five references."""
    bad = round(damage * n)
    rows = [("harmful", "advbench", f"{i}", f"g{i}", "phrases", "refused", float(i >= bad), 1, "") for i in range(n)]
    rows += [("utility", "dialogue", f"{i}", f"d{i}", "", "nll", 0.01 * i + x, 9, "") for i, x in enumerate(nll or [])]
    return pd.DataFrame(rows, columns=behaviour.ITEM_COLUMNS)


def planted(curve, update=LORA, name="safelora", n=N):
    """A restoration by strength: non-refusal, or items."""
    points = {replace(update, restoration=name, strength=s): v for s, v in curve.items()}
    return {v: of if isinstance(of, pd.DataFrame) else labels(of, n) for v, of in points.items()}


def drawn_of(*parts, aligned=0.1, n=N, more=None):
    seen = {ALIGNED: labels(aligned, n), LORA: labels(0.9, n), **(more or {})}
    for part in parts:
        seen |= part
    changed = {v: round(MODULES * (v.strength or 0)) for v in seen}
    return curves.Drawn(pd.DataFrame(), seen, changed, "validation")


def chosen(*parts, **more):
    return curves.choose(drawn_of(*parts, **more))


KEY = ("lora-dialogue", "bf16", "safelora")
CURVES = {
    "the smallest within the margin": ({0.25: 0.8, 0.5: 0.1 + AT, 0.75: 0.1}, 0.5),
    "just outside does not count": ({0.5: 0.11 + AT, 0.75: 0.1}, 0.75),
    "a curve need not fall": ({0.25: 0.12, 0.5: 0.8, 0.75: 0.0}, 0.25),
    "in any order": ({0.75: 0.1, 0.25: 0.8, 0.5: 0.12}, 0.5),
    "none within: the lowest": ({0.25: 0.8, 0.5: 0.4, 0.75: 0.3}, 0.75),
    "none within: the smallest that comes within two replies": ({0.75: 0.3, 0.5: 0.32, 0.25: 0.33}, 0.5),
    "a point that changes nothing is none": ({0.0: 0.1, 0.5: 0.12}, 0.5),
    "nothing is judged where nothing is left": ({0.25: 0.9, 0.5: 0.7, 1.0: 0.1}, 0.5),
}


@pytest.mark.parametrize("case", CURVES)
def test_the_choice_follows_its_rule(case):
    curve, expected = CURVES[case]
    assert chosen(planted(curve)) == {KEY: expected}


@pytest.mark.parametrize("n", [8, 16, 32])
def test_one_reply_more_no_longer_moves_the_choice(n):
    """A margin of 5 points is finer than one reply of 16, and used to push the strength to 1."""
    for more in (0, 1, 2):
        curve = {0.25: 0.9, 0.5: (2 + more) / n, 0.75: 2 / n, 1.0: 2 / n}
        assert chosen(planted(curve, n=n), aligned=2 / n, n=n) == {KEY: 0.5}
    far = {0.25: 0.9, 0.5: 5 / n + 0.06, 0.75: 2 / n}  # control: replies enough do
    assert chosen(planted(far, n=n), aligned=2 / n, n=n) == {KEY: 0.75}


def test_at_full_strength_alone_there_is_no_choice():
    assert chosen(planted({1.0: 0.1})) == {}


def test_only_harmful_prompts_decide():
    edgy = labels(0.0).assign(kind="edgy", set="edgy")
    curve = {0.5: pd.concat([labels(0.9), edgy]), 0.75: labels(0.1)}
    assert chosen(planted(curve)) == {KEY: 0.75}


def test_the_choices_of_updates_and_restorations_do_not_mix():
    nf4 = HOMES["attached to 4 bits"]
    more = {replace(ALIGNED, precision="nf4"): labels(0.1), nf4: labels(0.9), HOMES["whole weights"]: labels(0.9)}
    found = chosen(
        planted({0.5: 0.9, 0.75: 0.1}), planted({0.25: 0.9, 0.5: 0.1}, name="zero"), planted({0.25: 0.1, 0.5: 0.1}, update=nf4),
        planted({0.75: 0.1}, update=HOMES["whole weights"], name="zero"), more=more,
    )  # fmt: skip
    assert found == {KEY: 0.75, ("lora-dialogue", "bf16", "zero"): 0.5, ("lora-dialogue", "nf4", "safelora"): 0.25,
                     ("full-dialogue", "bf16", "zero"): 0.75}  # fmt: skip


def test_an_update_in_few_bits_is_held_against_the_aligned_model_in_as_few():
    nf4 = HOMES["attached to 4 bits"]
    more = {replace(ALIGNED, precision="nf4"): labels(0.3), nf4: labels(0.9)}
    found = chosen(planted({0.25: 0.32, 0.5: 0.1}, update=nf4), more=more)
    assert found["lora-dialogue", "nf4", "safelora"] == 0.25
    assert chosen(planted({0.25: 0.32, 0.5: 0.1}), more=more)[KEY] == 0.5  # control: in bf16 that is too much


def test_without_the_aligned_model_there_is_nothing_to_aim_at():
    lonely = curves.Drawn(pd.DataFrame(), planted({0.5: 0.1}), dict.fromkeys(planted({0.5: 0.1}), 14), "validation")
    with refused(NOT_COMPARABLE, "no aligned model", "draw them again"):
        curves.choose(lonely)


def test_real_curves_can_be_chosen_from(drawn):
    found = curves.choose(drawn)
    assert found["full-dialogue", "bf16", "zero"] == 0.1
    assert not any(name == "none" for _, _, name in found)  # it changes nothing


# ---------------------------------------------------------------- beside the aligned model and beside the update


def rows_at(table, on, metric):
    found = table[(table["measured_on"] == f"{on}/validation") & (table["metric"] == metric)]
    return {(row["restoration"], row["strength"]): row for row in found.to_dict("records")}


BEFORE, LEARNED = [3.0] * 5, [2.1, 1.9, 2.0, 2.05, 1.95]  # an update that learned one nat a token


def between(share):
    return [b - share * (b - a) for b, a in zip(BEFORE, LEARNED, strict=True)]


def test_what_an_update_learned_is_kept_in_part():
    whole = {ALIGNED: labels(0.1, nll=BEFORE), LORA: labels(0.9, nll=LEARNED)}
    seen = planted({0.25: labels(0.8, nll=between(0.9)), 0.5: labels(0.4, nll=between(0.5))})
    table = curves.compared_rows(drawn_of(whole, seen))
    kept = rows_at(table, "dialogue", "gain_kept")
    assert {s: kept["safelora", s]["value"] for s in (0.25, 0.5)} == pytest.approx({0.25: 0.9, 0.5: 0.5})
    left = rows_at(table, "harmful", "damage_left")
    e = newcombe_paired([1.0] * 10 + [0.0] * 90, [1.0] * 40 + [0.0] * 60)
    assert [left["safelora", 0.5][x] for x in ("value", "low", "high", "n")] == [e.value, e.low, e.high, N]


def test_at_equal_utility_the_curve_is_read_between_its_points():
    whole = {ALIGNED: labels(0.1, nll=BEFORE), LORA: labels(0.9, nll=LEARNED)}
    seen = planted({0.25: labels(0.8, nll=between(0.9)), 0.5: labels(0.4, nll=between(0.5))})
    table = curves.compared_rows(drawn_of(whole, seen))
    ((name, strength), row), *rest = rows_at(table, curves.EQUAL, "non_refusal").items()
    assert (name, rest) == ("safelora", [])
    share = (0.9 - 2 / 3) / 0.4
    assert strength == pytest.approx(0.25 + share * 0.25, abs=1e-4)
    assert row["value"] == pytest.approx(0.8 - share * 0.4)
    ((_, left),) = rows_at(table, curves.EQUAL, "damage_left").items()
    assert left["value"] == pytest.approx(row["value"] - 0.1)
    ((_, kept),) = rows_at(table, curves.EQUAL, "gain_kept").items()
    assert kept["value"] == pytest.approx(2 / 3)


def test_equal_utility_is_shown_by_update_and_method():
    whole = {ALIGNED: labels(0.1, nll=BEFORE), LORA: labels(0.9, nll=LEARNED)}
    seen = planted({0.5: labels(0.4, nll=between(0.5))}) | planted({0.5: labels(0.8, nll=between(0.9))}, name="shrink")
    shown = projection_tables.equal_utility(curves.compared_rows(drawn_of(whole, seen)))
    assert shown["method"].tolist() == ["SafeLoRA", "whole update shrunk"]
    assert shown["strength"].tolist() == ["33 % of modules", "50 % taken off"]
    assert shown["gain kept"].str.startswith(("67 %", "90 %")).all()
    assert shown["beyond the aligned model"].str.contains("points").all()


def test_a_curve_that_does_not_cross_is_told_where_it_comes_nearest():
    whole = {ALIGNED: labels(0.1, nll=BEFORE), LORA: labels(0.9, nll=LEARNED)}
    seen = planted({0.25: labels(0.8, nll=between(0.99)), 0.5: labels(0.4, nll=between(0.9))})
    table = curves.compared_rows(drawn_of(whole, seen))
    ((_, strength), row), *_ = rows_at(table, curves.EQUAL, "non_refusal").items()
    assert (strength, row["value"]) == (0.5, pytest.approx(0.4))
    assert next(iter(rows_at(table, curves.EQUAL, "gain_kept").values()))["value"] == pytest.approx(0.9)


def test_an_update_that_learned_nothing_has_no_share_to_keep():
    seen = planted({0.5: labels(0.4, nll=BEFORE)})
    for nll in ([3.2, 2.8, 3.0, 3.1, 2.9], []):  # no gain that shows, and none measured
        table = curves.compared_rows(drawn_of({ALIGNED: labels(0.1, nll=BEFORE), LORA: labels(0.9, nll=nll)}, seen))
        assert set(table["metric"]) == {"damage_left"}


def test_removal_and_the_exact_v_are_controls_at_the_same_strength():
    seen = planted({0.5: 0.4}) | planted({0.5: 0.3}, name="zero") | planted({0.5: 0.6}, name="safelora:nf4-both")
    seen |= planted({0.5: 0.1}, name="safelora-x16") | planted({0.5: 0.2}, name="safelora-x16:nf4-both")
    seen |= planted({0.75: 0.2})
    table = curves.compared_rows(drawn_of(seen))
    removed = {name: row["value"] for name, row in rows_at(table, "harmful", "against_removed").items()}
    assert removed == pytest.approx({("safelora", 0.5): 0.1, ("safelora-x16", 0.5): -0.2})
    exact = {name: row["value"] for name, row in rows_at(table, "harmful", "against_exact").items()}
    assert exact == pytest.approx({("safelora:nf4-both", 0.5): 0.2, ("safelora-x16:nf4-both", 0.5): 0.1})


def test_what_was_chosen_is_named_for_its_own_update():
    choice = {KEY: 0.5, ("lora-dialogue", "nf4", "safelora"): 0.9}
    assert curves.chosen_variants(LORA, ["safelora", "zero"], choice) == [replace(LORA, restoration="safelora", strength=0.5)]
    nf4 = HOMES["attached to 4 bits"]
    assert curves.chosen_variants(nf4, ["safelora"], choice) == [replace(nf4, restoration="safelora", strength=0.9)]
    assert curves.chosen_variants(HOMES["whole weights"], ["safelora"], choice) == []


def test_foundations_are_the_aligned_model_in_each_low_precision_once():
    assert curves.foundations(list(HOMES.values())) == [replace(ALIGNED, precision="nf4")]
    assert curves.foundations([LORA]) == []


def test_controls_that_remove_modules_take_the_strength_of_safelora():
    choice = {KEY: 0.5} | {("lora-dialogue", "bf16", name): 0.75 for name in ("zero", "random-modules", "splora")}
    found = curves.chosen_variants(LORA, ["safelora", "zero", "random-modules", "splora"], choice)
    assert [v.strength for v in found] == [0.5, 0.5, 0.5, 0.75]


def test_changed_modules_are_counted_by_the_curves_where_they_were_drawn(drawn):
    threshold = next(v for v in drawn.seen if v.restoration == "safelora-threshold" and v.strength == 0.1)
    asked = [ALIGNED, replace(ALIGNED, precision="nf4"), LORA, threshold, replace(LORA, restoration="salora")]
    assert list(curves.changed_counts(drawn, asked).values()) == [0, 0, 0, drawn.changed[threshold], MODULES]


# ---------------------------------------------------------------- as a reader sees it


@pytest.mark.parametrize("name", restorations.RESTORATIONS)
def test_a_dose_is_a_share_of_modules_or_a_threshold(name):
    shares = {"safelora-threshold": "s up to 0.29"}
    shares |= {name: "29 % taken off" for name, rule in restorations.RESTORATIONS.items() if rule.whole}
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
