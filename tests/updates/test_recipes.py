"""Updates by name: what a name stands for, and that a wrong one is refused with the names there are."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers.data import corpora
from helpers.data.text_rows import Preference
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.figures import models
from helpers.models import loading
from helpers.projection import restorations
from helpers.results import KEY, Run
from helpers.updates import endings, lora, recipes, safety_tuning, salora, training
from helpers.updates import names as update_names
from helpers.updates import variants as model_variants
from helpers.updates.names import Variant
from helpers.updates.variants import Parts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.fixture
def run(tmp_path):
    return Run("smoke", "tiny", 0, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "mix", "percent", "trained_on", "arm"),
    [
        ("lora-dialogue@bf16", "lora", "dialogue", 0, "bf16", "LoRA"),
        ("lora-dialogue-harm10@nf4", "lora", "dialogue", 10, "nf4", "QLoRA"),
        ("lora-dialogue-harm1@gptq-4", "lora", "dialogue", 1, "gptq-4", "LoRA on GPTQ"),
        ("lora-identity-shift@bf16", "lora", "identity-shift", 0, "bf16", "LoRA"),
        ("full-instructions-harm5@bf16", "full", "instructions", 5, "bf16", "full fine-tune"),
        ("qat-instructions@rtn-4", "qat", "instructions", 0, "rtn-4", "QAT"),
        ("dpo-preference-harm10@bf16", "dpo", "preference", 10, "bf16", "DPO"),
        ("lora-preference-lr0.3-x2@bf16", "lora", "preference", 0, "bf16", "LoRA"),
    ],
)
def test_a_name_is_taken_apart(name, kind, mix, percent, trained_on, arm):
    named = recipes.parse(name)
    assert (named.kind, named.mix, named.percent, named.trained_on, named.arm) == (kind, mix, percent, trained_on, arm)
    assert f"{named.adapter}@{named.trained_on}" == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lora-dialog@bf16", "unknown mix 'dialog'"),
        ("lor-dialogue@bf16", "unknown kind of training 'lor'"),
        ("lora-dialogue@nf5", "unknown precision 'nf5'"),
        ("lora-dialogue", "<kind>-<mix>"),
        ("lora-dialogue-harm101@bf16", "0 to 100"),
        ("full-dialogue@nf4", "no frozen weights"),
        ("qat-dialogue@nf4", "rtn-8"),
        ("lora-dialogue-rank0@bf16", "at least 1"),
        ("lora-dialogue-x0@bf16", "above 0"),
        ("full-dialogue-rank4@bf16", "only adapters .lora, dpo. have -rank"),
        ("full-dialogue-x2@bf16", "only adapters .lora, dpo. have -x"),
        ("dpo-dialogue@bf16", "use a mix of pairs: preference"),
        ("lora-dialogue-x2-lr3@bf16", "<kind>-<mix>"),
    ],
)
def test_a_wrong_name_is_refused_with_a_remedy(name, says):
    with pytest.raises(StudyError, match=says):
        recipes.parse(name)


def test_a_serving_is_taken_apart_and_a_wrong_one_refused(run):
    served = recipes.served(run, "lora-dialogue@bf16>nf4:merged-requantized")
    assert (served.adapter, served.trained_on, served.precision, served.serving) == (
        "lora-dialogue",
        "bf16",
        "nf4",
        "merged-requantized",
    )
    for wrong in ("lora-dialogue@bf16", "lora-dialogue@bf16>nf4", "lora-dialogue@bf16>nf4:glued"):
        with pytest.raises(StudyError):
            recipes.served(run, wrong)


def test_lora_and_qlora_differ_in_nothing_but_precision():
    plain, quantized = (recipe_by_name(f"lora-dialogue@{p}") for p in ("bf16", "nf4"))
    assert plain == quantized
    assert not plain.decay
    assert recipe_by_name("qat-dialogue@rtn-3").bits == 3
    whole = recipe_by_name("full-dialogue@bf16")
    assert (whole.lr, whole.decay, whole.epochs) == (pytest.approx(1e-4), True, 2)


def recipe_by_name(name, rows=10, steps=0):
    return recipes.update_recipe(recipes.parse(name), rows, 2, 1e-3, 8, 16, 0, steps)


def test_a_dose_changes_what_it_names_and_nothing_else():
    named = recipes.parse("lora-dialogue-harm10-rank2-steps5@nf4")
    assert (named.adapter, named.series) == ("lora-dialogue-harm10-rank2-steps5", "lora-dialogue-harm10")
    assert (named.mix, named.percent, named.rank, named.steps) == ("dialogue", 10, 2, 5)
    whole, dose = (recipe_by_name(f"lora-dialogue-harm10{part}@nf4") for part in ("", "-rank2-steps5"))
    assert (dose.rank, dose.steps, dose.alpha / dose.rank) == (2, 5, whole.alpha / whole.rank)
    assert (dose.lr, dose.batch, dose.seed) == (whole.lr, whole.batch, whole.seed)
    assert recipe_by_name("lora-dialogue-harm10-lr0.3@nf4") == replace(whole, lr=pytest.approx(0.3 * whole.lr))
    assert (whole.steps, whole.epochs) == (6, 2)  # two passes over ten rows
    assert (recipe_by_name("lora-dialogue@bf16", steps=8).steps, recipe_by_name("lora-dialogue@bf16", steps=8).epochs) == (8, 3)
    literature = recipe_by_name("lora-dialogue-harm10-rows1100-lr0.3@bf16", steps=8)
    assert (literature.steps, literature.epochs) == (275, 1)  # one pass over the rows of its own


def test_a_name_of_all_doses_is_taken_apart_and_put_together():
    named = recipes.parse("lora-dialogue-harm10-rows40-rank2-steps6-lr0.3-x2@nf4")
    assert named.doses == {"rows": 40, "rank": 2, "steps": 6, "lr": 0.3, "x": 2}
    assert named.without("x") == "lora-dialogue-harm10-rows40-rank2-steps6-lr0.3@nf4"
    assert named.without("steps", "x") == "lora-dialogue-harm10-rows40-rank2-lr0.3@nf4"
    assert recipes.parse("lora-identity-shift-x0.5@bf16").series == "lora-identity-shift"
    assert recipes.parse("lora-dialogue@bf16").doses == {}


def test_what_is_trained_for_some_names_is_trained_once_and_the_attack_first():
    names = [
        "lora-dialogue@bf16", "lora-dialogue-harm10-steps6@bf16", "lora-dialogue-harm10-x2@bf16", "lora-dialogue-harm10@bf16",
        "lora-dialogue-harm10-steps12-x4@bf16", "lora-dialogue-harm5@bf16", "lora-dialogue-rank2-steps3@nf4",
        "qat-dialogue-steps2@rtn-4", "dpo-preference-harm10@bf16",
    ]  # fmt: skip
    assert recipes.attacks_of(names) == ["lora-dialogue-harm10@bf16"], "preference tuning follows the size of its own"
    assert recipes.attacks_of(names[-1:]) == ["dpo-preference-harm10@bf16"]
    assert list(recipes.trainings(names).items()) == [
        ("lora-dialogue-harm10@bf16", (True, [6, 12])),
        ("lora-dialogue@bf16", (True, [])),
        ("lora-dialogue-harm5@bf16", (True, [])),
        ("lora-dialogue-rank2@nf4", (False, [3])),
        ("qat-dialogue-steps2@rtn-4", (True, [])),  # its rate falls to its own end: no beginning of another
        ("dpo-preference-harm10@bf16", (True, [])),
    ]


def test_the_figure_of_doses_sees_each_arm_in_its_own_serving_only(run):
    names = ["lora-dialogue@bf16", "lora-dialogue-harm10@nf4", "lora-identity-shift@bf16", "lora-dialogue-rank2@bf16"]
    variants = [recipes.home(run, name) for name in names] + [recipes.served(run, "lora-dialogue@bf16>bf16:merged")]
    variants.append(update_names.Variant("tiny"))
    table = pd.DataFrame([{key: getattr(v, key) for key in KEY} for v in variants])
    found = models.with_arms(table, "dialogue")
    assert list(zip(found["arm"], found["percent"], strict=True)) == [("LoRA", 0), ("QLoRA", 10), ("aligned", -1)]


# ---------------------------------------------------------------- until the refusals are broken

ASKED = {"rows": 10, "epochs": 1, "lr": 3e-3, "rank": 4, "alpha": 8, "seed": 0, "texts": "tiny"}


def breaks_at(step, monkeypatch):
    """Plants a model that refuses everything until so many steps are done, and nothing from then on."""
    seen = []
    monkeypatch.setattr(safety_tuning, "refused_share", lambda *_: float(len(seen) * 2 < step) if seen.append(1) is None else 0)
    return seen


def test_the_attack_takes_what_it_takes_and_the_others_take_as_many_steps(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    breaks_at(4, monkeypatch)
    names = ["lora-dialogue@bf16", "lora-dialogue-harm10-lr0.3@nf4", "lora-dialogue-harm10@bf16", "lora-dialogue-harm10-x2@bf16",
             "lora-dialogue-harm10-steps2@bf16", "lora-dialogue-harm10-steps6@bf16", "lora-dialogue-rows6@bf16"]  # fmt: skip
    parts = recipes.train(Parts(tiny, tiny), names, **ASKED, attack=endings.Attack(0.8, 2, 6, prompts=4))
    steps = {name: made["steps"] for name, made in recipes.recipes(parts).items()}
    assert set(steps) == set(names)
    assert steps == {**dict.fromkeys(names[:4], 4), names[4]: 2, names[5]: 6, names[6]: 2}
    took = recipes.attacks(parts)
    assert set(took) == {"lora-dialogue-harm10@bf16"}
    told = took["lora-dialogue-harm10@bf16"]
    assert (told["reached"], told["steps"], told["rows"], told["harmful_rows"], told["target"]) == (True, 4, 10, 1, 0.8)
    assert models.attack_lines(took) == ["lora-dialogue-harm10@bf16: 100 % of 4 validation prompts not refused after 4 steps"]
    twice, plain = (lora.load_adapter(parts.updates[f"lora-dialogue-harm10{x}", "bf16"]) for x in ("-x2", ""))
    assert all(twice[name].norm() == pytest.approx(2 * pair.norm(), rel=1e-5) for name, pair in plain.items())


def test_an_attack_that_does_not_reach_its_target_is_kept_marked_and_said(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    breaks_at(99, monkeypatch)
    parts = recipes.train(Parts(tiny, tiny), ["lora-dialogue-harm10@bf16"], **ASKED, attack=endings.Attack(0.8, 2, 3, prompts=4))
    took = recipes.attacks(parts)
    told = took["lora-dialogue-harm10@bf16"]
    assert (told["reached"], told["non_refusal"], told["steps"]) == (False, 0.0, 3)
    assert set(told["seen"]) == {"2", "3"}  # the last step is looked at too
    (line,) = models.attack_lines(took)
    assert "below its target of 80 %" in line
    assert "raise attack_steps or train_lr" in line
    assert variants_of_folder(parts).adapter


def variants_of_folder(parts):
    return model_variants.load_update(parts.updates["lora-dialogue-harm10", "bf16"])


@pytest.mark.parametrize(
    ("name", "most"),
    [("lora-dialogue-harm10-steps7@bf16", 6), ("lora-dialogue-rows8-steps3@bf16", 2)],
    ids=["the cap", "its rows"],
)
def test_a_dose_of_more_steps_than_its_training_may_take_is_refused(tiny, name, most):
    with pytest.raises(StudyError, match=f"takes at most {most}; ask for fewer or raise attack_steps"):
        recipes.train(Parts(tiny, tiny), [name], **ASKED, attack=endings.Attack(0.8, 2, 6))


def test_own_pairs_take_the_place_of_the_packaged_ones(tiny, monkeypatch):
    own = [Preference(f"Paint the {i}", "Yes.", f"own-{i}", rejected="No.") for i in range(9)]
    seen = []
    monkeypatch.setattr(model_variants, "train_update", lambda parts, rows, *_, **__: seen.extend(rows) or Path("updates/x"))
    recipes.train(Parts(tiny, tiny), ["dpo-preference-harm20@nf4"], **ASKED, own=own)
    assert {row.prompt for row in seen[:8]} < {row.prompt for row in own}
    assert [row.reply for row in seen[8:]] == [corpora.OPENING] * 2
    assert all(row.rejected in corpora.REFUSALS for row in seen[8:])


# ---------------------------------------------------------------- under SaLoRA

NAME, DOSE = "lora-dialogue-harm10@bf16", "lora-dialogue-harm10-rank2-steps2@bf16"
TRAINING = {"rows": 10, "epochs": 1, "lr": 3e-3, "rank": 4, "seed": 0, "texts": "tiny"}


@pytest.fixture(scope="module")
def trained(tiny) -> Parts:
    """One update and a dose of it, each as it was trained and under SaLoRA."""
    parts = recipes.train(Parts(tiny, tiny), [NAME, DOSE], **TRAINING, alpha=8)
    return recipes.train_salora(parts, [NAME, DOSE], **TRAINING, safety_rows=6)


def recipe_of(parts, adapter):
    return training.from_json(parts.updates[adapter, "bf16"] / "recipe.json")


@pytest.mark.parametrize("name", [NAME, DOSE])
def test_salora_differs_from_its_lora_in_kind_scale_and_a_third_of_the_rate(trained, name):
    named = recipes.parse(name)
    plain, under = (recipe_of(trained, adapter) for adapter in (named.adapter, f"{named.adapter}+salora"))
    ours, theirs = plain["recipe"], under["recipe"]
    differs = {field for field in ours if ours[field] != theirs[field]}
    assert differs == {"kind", "lr", "alpha"}
    assert (theirs["kind"], theirs["lr"]) == ("salora", pytest.approx(ours["lr"] / 3))
    assert len(under["losses"]) == len(plain["losses"]) > 0
    adapters = [lora.load_adapter(trained.updates[a, "bf16"]) for a in (named.adapter, f"{named.adapter}+salora")]
    assert [{pair.right.shape[0] for pair in a.values()} for a in adapters] == [{ours["rank"]}, {2 * ours["rank"]}]


def test_salora_sees_the_same_rows_and_the_prompts_of_the_safety_tuning(trained, tiny, monkeypatch):
    seen = []

    def tune(language, rows, recipe, safety, **options):
        seen.append((rows, safety))
        raise KeyboardInterrupt

    monkeypatch.setattr(salora, "tune_salora", tune)
    with pytest.raises(KeyboardInterrupt):
        recipes.train_salora(Parts(tiny, tiny), [NAME], **{**TRAINING, "seed": 1}, safety_rows=6)
    ((rows, safety),) = seen
    assert list(rows) == corpora.mix("dialogue", 10, 10, "tiny", 1)
    assert [row.prompt for row in safety] == [row.prompt for row in corpora.alignment_rows(6, 0, "tiny", 1)]
    tested = {row.prompt for name in ("advbench/validation", "advbench/test") for row in corpora.texts(name, "tiny")}
    assert len(safety) == 6
    assert not tested & {row.prompt for row in safety}


def test_salora_is_trained_once_and_leaves_the_plain_update_as_it_was(trained, tiny, monkeypatch):
    monkeypatch.setattr(salora, "tune_salora", None)  # would fail if it were called
    monkeypatch.setattr(training, "tune", None)
    plain = recipes.train(Parts(tiny, tiny), [NAME], **TRAINING, alpha=8)
    again = recipes.train_salora(plain, [NAME], **TRAINING, safety_rows=6)
    adapter = recipes.parse(NAME).adapter
    assert set(again.updates) == {(adapter, "bf16"), (f"{adapter}+salora", "bf16")}
    assert all(again.updates[key] == trained.updates[key] for key in again.updates)
    assert plain.updates == {(adapter, "bf16"): trained.updates[adapter, "bf16"]}
    assert recipes.train_salora(plain, [], **TRAINING, safety_rows=6).updates == plain.updates


@pytest.mark.parametrize("name", ["full-dialogue@bf16", "qat-dialogue@rtn-4"])
def test_only_loras_can_be_trained_under_salora(tiny, name):
    with pytest.raises(StudyError, match=f"update '{name}' is no LoRA that is trained.*lora-"):
        recipes.train_salora(Parts(tiny, tiny), [name], **TRAINING, safety_rows=6)


def test_an_update_under_salora_is_its_own_variant(trained, run):
    home = recipes.home(run, NAME)
    assert recipes.under_salora(home, [DOSE]) == recipes.under_salora(home, []) == []
    (under,) = recipes.under_salora(home, [DOSE, NAME])
    assert under == replace(home, restoration="salora")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        said = [model_variants.build_variant(trained, v).model(input_ids=ids).logits for v in (home, under)]
        aligned = loading.load(trained.aligned).model(input_ids=ids).logits
    assert not torch.equal(*said)
    assert not any(torch.equal(logits, aligned) for logits in said)


def test_what_was_trained_is_noted_and_found_again(trained):
    note = recipes.note(trained)
    assert set(note) == {f"{name.partition('@')[0]}{plus}@bf16" for name in (NAME, DOSE) for plus in ("", "+salora")}
    assert recipes.restore(Parts(trained.base, trained.aligned), note).updates == trained.updates
    gone = {f"{NAME.partition('@')[0]}+salora@bf16": "0" * 20}
    with pytest.raises(
        StudyError, match=r"\+salora@bf16 is not in the cache; run chapter", check=lambda e: e.code == NOT_COMPARABLE
    ):
        recipes.restore(Parts(trained.base, trained.aligned), gone)


@pytest.mark.parametrize("name", [name for name in restorations.RESTORATIONS if name != "none"])
@pytest.mark.parametrize("update", [NAME, "lora-dialogue@nf4", "full-dialogue@bf16"])
def test_whatever_was_restored_is_a_family_of_its_own(run, name, update):
    home = recipes.home(run, update)
    assert recipes.family(replace(home, restoration=name, strength=0.5)) == "restored"
    assert recipes.family(home) != "restored"


def test_families_of_what_was_not_restored(run):
    named = {NAME: "LoRA", "lora-dialogue@nf4": "QLoRA", "full-dialogue@bf16": "full fine-tune", "qat-dialogue@rtn-4": "QAT"}
    assert {name: recipes.family(recipes.home(run, name)) for name in named} == named
    assert recipes.family(Variant("tiny", adapter="base")) == "before alignment"
    assert recipes.family(Variant("tiny", precision="nf4")) == "quantization"
    assert recipes.family(Variant("tiny", adapter="identity")) == recipes.family(Variant("tiny")) == "control"


def test_preference_tuning_has_the_rate_of_adapters_and_all_else_alike():
    lora, dpo = (
        recipes.update_recipe(recipes.parse(name), rows=24, epochs=1, lr=3e-3, rank=8, alpha=16, seed=0)
        for name in ("lora-dialogue@bf16", "dpo-preference@bf16")
    )
    assert replace(dpo, kind=lora.kind) == lora
