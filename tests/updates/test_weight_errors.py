"""Chapter 02's arithmetic: the hand-made block, bits over modules of unequal size, and the controls."""

import pandas as pd
import pytest
import torch

from helpers.errors import StudyError
from helpers.figures import models
from helpers.results import Run
from helpers.updates import quantized_models, quantizers, variants, weight_errors
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
