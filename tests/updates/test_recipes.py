"""Updates by name: what a name stands for, and that a wrong one is refused with the names there are."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from helpers.data import corpora
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.figures import models
from helpers.models import loading
from helpers.projection import restorations
from helpers.results import KEY, Run
from helpers.updates import lora, recipes, salora, training
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
        ("full-dialogue-rank4@bf16", "only lora has a rank"),
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
    plain, quantized = (recipes.update_recipe(recipes.parse(f"lora-dialogue@{p}"), 2, 1e-3, 8, 16, 0) for p in ("bf16", "nf4"))
    assert plain == quantized
    assert recipes.update_recipe(recipes.parse("qat-dialogue@rtn-3"), 2, 1e-3, 8, 16, 0).bits == 3
    assert recipes.update_recipe(recipes.parse("full-dialogue@bf16"), 2, 1e-3, 8, 16, 0).lr == pytest.approx(1e-4)


def test_a_dose_changes_rank_or_steps_and_keeps_the_scale():
    named = recipes.parse("lora-dialogue-harm10-rank2-steps5@nf4")
    assert (named.adapter, named.series) == ("lora-dialogue-harm10-rank2-steps5", "lora-dialogue-harm10")
    assert (named.mix, named.percent, named.rank, named.steps) == ("dialogue", 10, 2, 5)
    whole, dose = (recipes.update_recipe(n, 2, 1e-3, 8, 16, 0) for n in (recipes.parse("lora-dialogue-harm10@nf4"), named))
    assert (dose.rank, dose.steps, dose.alpha / dose.rank) == (2, 5, whole.alpha / whole.rank)
    assert (dose.lr, dose.batch, dose.epochs, dose.seed) == (whole.lr, whole.batch, whole.epochs, whole.seed)


def test_the_figure_of_doses_sees_each_arm_in_its_own_serving_only(run):
    names = ["lora-dialogue@bf16", "lora-dialogue-harm10@nf4", "lora-identity-shift@bf16", "lora-dialogue-rank2@bf16"]
    variants = [recipes.home(run, name) for name in names] + [recipes.served(run, "lora-dialogue@bf16>bf16:merged")]
    variants.append(update_names.Variant("tiny"))
    table = pd.DataFrame([{key: getattr(v, key) for key in KEY} for v in variants])
    found = models.with_arms(table, "dialogue")
    assert list(zip(found["arm"], found["percent"], strict=True)) == [("LoRA", 0), ("QLoRA", 10), ("aligned", -1)]


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
    with pytest.raises(StudyError, match=f"update '{name}' is no LoRA.*lora-"):
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
