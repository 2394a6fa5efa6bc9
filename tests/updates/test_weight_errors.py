"""Chapter 02's arithmetic: the hand-made block, bits over modules of unequal size, and the controls."""

import pandas as pd
import pytest
import torch

from helpers.errors import StudyError
from helpers.figures import models
from helpers.results import Run, checked
from helpers.updates import lora, quantized_models, quantizers, variants, weight_errors
from helpers.updates.names import Variant
from helpers.updates.variants import Parts


@pytest.fixture
def parts(tiny):
    texts = tuple("The lamp stands by the river and somebody will carry it home again. " * 6 for _ in range(4))
    return Parts(tiny, tiny, texts)


def test_the_block_by_hand_reads_back_what_bitsandbytes_reads_back():
    torch.manual_seed(0)
    weight = torch.randn(4, 64, dtype=torch.bfloat16)
    table = models.block_by_hand(weight, shown=8)
    served = quantizers.QUANTIZERS["nf4"](weight, None).dequantize(torch.float32)
    assert torch.tensor(table["read back"]) == pytest.approx(served.flatten()[:8], rel=1e-6)
    assert table["weight / absmax"].abs().max() <= 1


def test_every_row_of_the_weights_has_its_interval_and_bits_are_weighted_by_size(parts):
    rows = weight_errors.weight_rows(parts, Variant("tiny"), ["nf4", "rtn-3"])
    assert (rows[["low", "high"]].to_numpy() == rows[["value", "value"]].to_numpy()).all()
    bits = weight_errors.bits(rows)
    assert bits["bf16"] == 16
    assert bits["nf4"] == pytest.approx(4.5, abs=0.01)
    table = models.format_table(rows).set_index("format")
    assert table.loc["rtn-3", "median error"] > table.loc["nf4", "median error"] > table.loc["bf16", "median error"] == 0


def test_planted_sizes_weigh_the_bits():
    rows = pd.DataFrame({"precision": ["a", "a"], "metric": ["bits_per_weight"] * 2, "value": [4.0, 8.0], "n": [300, 100]})
    assert weight_errors.bits(rows)["a"] == pytest.approx(5.0)


def test_gptq_is_measured_as_it_is_served(parts):
    quality = quantized_models.weight_quality(parts.aligned, "gptq-4", parts.calibration)
    language = variants.build_variant(parts, Variant("tiny", precision="gptq-4"))
    original = variants.build_variant(parts, Variant("tiny"))
    for name, (bits, error, size) in quality.items():
        before, after = original.model.get_submodule(name).weight.double(), language.model.get_submodule(name).weight.double()
        assert error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
        assert 4 < bits < 5
        assert size == before.numel()


def test_controls_are_named_and_unknown_ones_refused(tmp_path):
    run = Run("smoke", "tiny", 0, tmp_path)
    made = weight_errors.variants_of(run, ["identity", "dtype"], ["nf4"])
    assert [(v.adapter, v.precision) for v in made] == [("identity", "bf16"), ("", "fp32"), ("", "nf4")]
    with pytest.raises(StudyError, match="unknown control 'dtyp'"):
        weight_errors.variants_of(run, ["dtyp"], [])


# ---------------------------------------------------------------- updates


@pytest.fixture
def tuned(parts, tmp_path, monkeypatch):
    """The parts with one planted adapter: rank 2 on every module, of a tenth of each weight's size."""
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    generator, model = torch.Generator().manual_seed(3), variants.build_variant(parts, Variant("tiny")).model
    planted = {}
    for name in quantizers.linear_names(model):
        weight = model.get_submodule(name).weight.float()
        pair = lora.LowRank(
            torch.randn(weight.shape[0], 2, generator=generator), torch.randn(2, weight.shape[1], generator=generator)
        )
        planted[name] = pair.scaled(0.1 * float(weight.norm()) / pair.norm())
    folder = tmp_path / "updates" / "planted"
    lora.save_adapter(planted, folder, {})
    return parts.with_update("lora-dialogue", "bf16", folder), planted


def served(precision, serving):
    return Variant("tiny", 0, precision, "lora-dialogue", "bf16", serving)


def test_the_planted_size_comes_back_for_every_module_and_all(tuned):
    parts, _ = tuned
    found = checked("weights", weight_errors.size_rows(parts, [served("bf16", "attached")]))
    assert found["value"].to_numpy() == pytest.approx(0.1, rel=1e-3)
    assert (found["module"] == "all").sum() == 1
    assert found.loc[found["module"] == "all", "n"].item() == found.loc[found["module"] != "all", "n"].sum()


@pytest.mark.parametrize(
    ("precision", "serving"),
    [("bf16", "merged"), ("nf4", "merged-requantized"), ("nf4", "merged-into-nf4"), ("rtn-4", "merged-into-nf4")],
)
def test_what_is_left_is_read_off_the_very_models_that_are_served(tuned, precision, serving):
    """The oracle: the served model's weights minus those of the bare model in that precision, both built as they are measured."""
    parts, planted = tuned
    (told,) = weight_errors.left_rows(parts, [served(precision, serving)])["value"]
    bare, merged = (variants.build_variant(parts, v).model for v in (Variant("tiny", 0, precision), served(precision, serving)))
    along = size = 0.0
    for name, pair in planted.items():
        moved = merged.get_submodule(name).weight.double() - bare.get_submodule(name).weight.double()
        along += float((moved * pair.dense().double()).sum())
        size += pair.norm() ** 2
    assert told == pytest.approx(along / size, abs=1e-3)


def test_an_update_below_half_a_step_is_erased_by_merging_into_nf4_and_not_by_requantizing(tuned):
    parts, planted = tuned
    for factor, low, high in ((0.01, -0.05, 0.05), (4.0, 0.8, 1.2)):  # the control: one of several steps survives
        folder = parts.updates["lora-dialogue", "bf16"].with_name(f"x{factor}")
        lora.save_adapter({name: pair.scaled(factor) for name, pair in planted.items()}, folder, {})
        small = parts.with_update("lora-dialogue", "bf16", folder)
        into, again = (
            weight_errors.left_rows(small, [served("nf4", serving)])["value"].item()
            for serving in ("merged-into-nf4", "merged-requantized")
        )
        assert low <= into <= high
    folder = parts.updates["lora-dialogue", "bf16"].with_name("x0.01")
    again = weight_errors.left_rows(parts.with_update("lora-dialogue", "bf16", folder), [served("nf4", "merged-requantized")])
    assert abs(again["value"].item()) > 0.2  # weights between the levels are tipped over


def test_servings_without_rounding_of_one_sum_tell_nothing(tuned):
    parts, _ = tuned
    assert weight_errors.left_rows(parts, [served("bf16", "attached"), served("gptq-4", "merged-requantized")]).empty
