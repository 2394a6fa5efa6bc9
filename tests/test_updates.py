"""Updates by name: what a name stands for, and that a wrong one is refused with the names there are."""

import pandas as pd
import pytest

from helpers import updates
from helpers.errors import StudyError
from helpers.records import KEY, Run


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
    named = updates.parse(name)
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
        updates.parse(name)


def test_a_serving_is_taken_apart_and_a_wrong_one_refused(run):
    served = updates.served(run, "lora-dialogue@bf16>nf4:merged-requantized")
    assert (served.adapter, served.trained_on, served.precision, served.serving) == (
        "lora-dialogue",
        "bf16",
        "nf4",
        "merged-requantized",
    )
    for wrong in ("lora-dialogue@bf16", "lora-dialogue@bf16>nf4", "lora-dialogue@bf16>nf4:glued"):
        with pytest.raises(StudyError):
            updates.served(run, wrong)


def test_lora_and_qlora_differ_in_nothing_but_precision():
    plain, quantized = (updates.recipe(updates.parse(f"lora-dialogue@{p}"), 2, 1e-3, 8, 16, 0) for p in ("bf16", "nf4"))
    assert plain == quantized
    assert updates.recipe(updates.parse("qat-dialogue@rtn-3"), 2, 1e-3, 8, 16, 0).bits == 3
    assert updates.recipe(updates.parse("full-dialogue@bf16"), 2, 1e-3, 8, 16, 0).lr == pytest.approx(1e-4)


def test_a_dose_changes_rank_or_steps_and_keeps_the_scale():
    named = updates.parse("lora-dialogue-harm10-rank2-steps5@nf4")
    assert (named.adapter, named.series) == ("lora-dialogue-harm10-rank2-steps5", "lora-dialogue-harm10")
    assert (named.mix, named.percent, named.rank, named.steps) == ("dialogue", 10, 2, 5)
    whole, dose = (updates.recipe(n, 2, 1e-3, 8, 16, 0) for n in (updates.parse("lora-dialogue-harm10@nf4"), named))
    assert (dose.rank, dose.steps, dose.alpha / dose.rank) == (2, 5, whole.alpha / whole.rank)
    assert (dose.lr, dose.batch, dose.epochs, dose.seed) == (whole.lr, whole.batch, whole.epochs, whole.seed)


def test_the_figure_of_doses_sees_each_arm_in_its_own_serving_only(run):
    names = ["lora-dialogue@bf16", "lora-dialogue-harm10@nf4", "lora-identity-shift@bf16", "lora-dialogue-rank2@bf16"]
    variants = [updates.home(run, name) for name in names] + [updates.served(run, "lora-dialogue@bf16>bf16:merged")]
    variants.append(updates.Variant("tiny"))
    table = pd.DataFrame([{key: getattr(v, key) for key in KEY} for v in variants])
    found = updates.with_arms(table, "dialogue")
    assert list(zip(found["arm"], found["percent"], strict=True)) == [("LoRA", 0), ("QLoRA", 10), ("aligned", -1)]
