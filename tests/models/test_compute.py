"""Compute: one setting, the same model in either, weights on the grid of their precision whatever multiplies them."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from support.bland import example, refused

from helpers.data.text_rows import Row
from helpers.errors import USAGE
from helpers.models import activations, compute, loading
from helpers.models.encoding import Plan
from helpers.updates import lora, quantized_models, quantizers, training
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant

BOTH = ("bf16", "fp32")
TEXTS = tuple(f"The {noun} stands by the door and somebody will paint it. " * 4 for noun in ("lamp", "river", "garden", "boat"))
PLAN = Plan(
    tuple(example(f"polish the {noun}", number=i) for i, noun in enumerate(("lamp", "chair", "boat", "door"))), (0.5, 1.0), 24
)


@pytest.fixture(scope="module")
def parts(tiny) -> Parts:
    """The tiny model as its own aligned one, with the same calibration texts of every kind."""
    return Parts(tiny, tiny, TEXTS, more_texts=lambda kind: TEXTS)


@pytest.fixture(scope="module")
def adapter(tiny):
    """A random adapter of every linear module, large enough to be seen through rounding."""
    draw, model = torch.Generator().manual_seed(1), loading.load(tiny, "fp32").model
    shapes = {name: model.get_submodule(name).weight.shape for name in quantizers.linear_names(model)}
    return {
        name: lora.LowRank(0.1 * torch.randn(m, 4, generator=draw), 0.1 * torch.randn(4, n, generator=draw))
        for name, (m, n) in shapes.items()
    }


def weights(parts, variant, asked):
    """The linear weights of a variant in a compute, by module; LLM.int8's as the codes it multiplies by."""
    with compute.using(asked):
        model = build_variant(parts, variant).model
    found = {name: model.get_submodule(name).weight for name in quantizers.linear_names(model)}
    return {name: getattr(weight, "CB", None) if weight.dtype == torch.int8 else weight.data for name, weight in found.items()}


# ---------------------------------------------------------------- the setting


def test_auto_is_bf16_where_the_machine_has_units_for_it(monkeypatch):
    for has, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(compute, "native", lambda device, has=has: has)
        assert compute.resolve("auto") == compute.Compute(name, has)
        assert compute.resolve("bf16").name == "bf16"
        assert compute.resolve("fp32").name == "fp32"


def test_the_setting_is_the_environments_and_using_restores_it(monkeypatch):
    monkeypatch.setenv(compute.VARIABLE, "fp32")
    assert compute.current().name == "fp32"
    with compute.using("bf16"):
        assert os.environ[compute.VARIABLE] == "bf16"
    assert os.environ[compute.VARIABLE] == "fp32"
    monkeypatch.delenv(compute.VARIABLE)
    with compute.using("fp32"):
        assert compute.current().name == "fp32"
    assert compute.VARIABLE not in os.environ


def test_an_unknown_compute_is_refused_by_name(monkeypatch):
    with refused(USAGE, "'fp8'", "auto, bf16, fp32"):
        compute.resolve("fp8")
    monkeypatch.setenv(compute.VARIABLE, "half")
    with refused(USAGE, "'half'"):
        compute.current()


def test_bf16_without_units_works_and_warns_once_with_the_factor(monkeypatch, tiny):
    monkeypatch.setattr(compute, "native", lambda device: False)
    compute._warn.cache_clear()
    with compute.using("bf16"), pytest.warns(UserWarning, match=f"bf16 without fast units, up to {compute.EMULATED} times"):
        assert loading.load(tiny).model.dtype == torch.bfloat16
    with compute.using("bf16"), warnings.catch_warnings():
        warnings.simplefilter("error")
        loading.load(tiny)
    compute._warn.cache_clear()


def test_a_machine_without_units_is_told_by_what_onednn_may_use():
    """The detection in a process that may use AVX2 at most, where nothing needs to be timed."""
    code = "from helpers.models import compute; compute.seconds = None; print(compute.resolve('auto').name)"
    kept = {k: v for k, v in os.environ.items() if k != compute.VARIABLE}
    limited = {**kept, "DNNL_MAX_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    assert subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True).stdout.strip() == "fp32"


@pytest.mark.parametrize(("half", "name"), [(0.25, "bf16"), (0.6, "bf16"), (0.8, "fp32"), (1.7, "fp32")])
def test_auto_is_what_a_product_is_clearly_faster_in(monkeypatch, half, name):
    """Two machines with the same instructions were seen at a quarter and at 1.7 times of float32's time."""
    monkeypatch.setattr(compute, "seconds", lambda dtype: half if dtype == torch.bfloat16 else 1.0)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    compute.native.cache_clear()
    assert compute.resolve("auto").name == name
    compute.native.cache_clear()


def test_the_timed_product_takes_time_in_either_format():
    assert all(0 < compute.seconds(dtype, repeats=2) < 10 for dtype in (torch.bfloat16, torch.float32))


# ---------------------------------------------------------------- the same model in either


@pytest.mark.parametrize("precision", ["bf16", *quantizers.QUANTIZERS])
def test_weights_have_the_same_values_in_either_compute(parts, precision):
    """Module by module: float32 holds the quantizer's own values, which bf16 rounds once; GPTQ also sees other activations."""
    half, full = (weights(parts, Variant("tiny", precision=precision), asked) for asked in BOTH)
    assert half.keys() == full.keys()
    for name, weight in full.items():
        if weight.dtype == torch.int8:
            assert torch.equal(weight, half[name]), name
        elif precision.startswith("gptq"):
            assert len(weight[0].unique()) <= 16 * -(-weight.shape[1] // quantizers.GROUP), name  # 16 values a group, no more
        else:
            assert weight.dtype == torch.float32
            assert torch.equal(weight.bfloat16(), half[name]), name
            assert not torch.equal(weight, weight + 1e-3), name  # control: a step of that size would be seen


@pytest.mark.parametrize("serving", ["attached", "merged", "merged-requantized", "merged-into-nf4"])
def test_a_served_update_has_the_same_values_in_either_compute(parts, adapter, tmp_path, serving):
    lora.save_adapter(adapter, tmp_path / "update", {})
    own = parts.with_update("lora-dialogue", "bf16", tmp_path / "update")
    precision = "bf16" if serving == "merged" else "nf4"
    variant = Variant("tiny", precision=precision, adapter="lora-dialogue", trained_on="bf16", serving=serving)
    half, full = ({n: p.data for n, p in _model(own, variant, asked).named_parameters()} for asked in BOTH)
    assert half.keys() == full.keys()
    for name, weight in full.items():
        assert torch.equal(weight.bfloat16(), half[name]), name
        if serving == "merged" or "lora_" in name:
            assert torch.equal(weight, weight.bfloat16().float()), name  # on the bf16 grid


def _model(parts, variant, asked):
    with compute.using(asked):
        return build_variant(parts, variant).model


@pytest.mark.parametrize("asked", BOTH)
def test_the_identity_control_is_exactly_zero(parts, asked):
    with compute.using(asked):
        before, after = (
            activations.read(build_variant(parts, Variant("tiny", adapter=adapter)), PLAN).pooled for adapter in ("", "identity")
        )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_dtype_control_measures_arithmetic_alone_and_is_small(parts):
    def read(precision, asked):
        with compute.using(asked):
            return torch.cat(
                list(activations.read(build_variant(parts, Variant("tiny", precision=precision)), PLAN).pooled.values())
            )

    half, control, full = read("bf16", "bf16"), read("fp32", "bf16"), read("bf16", "fp32")
    assert torch.equal(control, full)  # the same values in the same arithmetic: the tiny model's weights lie on the grid
    moved = float((half - control).norm() / control.norm())
    assert 1e-5 < moved < 0.03


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("asked", BOTH)
def test_four_bit_modules_give_what_dequantized_weights_give(tiny, name, asked):
    ids = torch.arange(3, 27)[None]
    with compute.using(asked), torch.no_grad():
        real, plain = loading.load(tiny).model, loading.load(tiny).model
        quantizers.to_bitsandbytes_(real, name)
        quantizers.apply_dequantized(plain, quantizers.quantize_model(plain, name))
        one, other = (model.model(input_ids=ids).last_hidden_state for model in (real, plain))
    assert one.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[asked]
    torch.testing.assert_close(one, other, atol=1e-5 if asked == "fp32" else 0.0, rtol=0.0)


@pytest.mark.parametrize("asked", BOTH)
@pytest.mark.parametrize("kind", ["lora", "full", "qat"])
def test_every_kind_of_training_computes_in_the_setting(tiny, asked, kind):
    rows = [Row(f"What is {i}?", f"It is {i}, and it stays {i}.") for i in range(4)]
    seen = []
    with compute.using(asked):
        language = loading.load(tiny, "bf16" if kind == "lora" else "fp32")
        last = language.model.model.layers[-1].mlp.down_proj
        last.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        recipe = training.Recipe(kind=kind, epochs=1, batch=4, lr=1e-2)
        tuned = training.tune(language, rows, recipe)
    assert set(seen) == {{"bf16": torch.bfloat16, "fp32": torch.float32}[asked]}
    assert all(tensor.dtype == torch.float32 for tensor in tuned.tensors.values())


def test_the_compute_is_in_the_keys_of_what_a_model_computed(parts):
    variant, found = Variant("tiny", precision="gptq-4"), []
    for asked in BOTH:
        with compute.using(asked):
            found.append(compute.machine())
            language = loading.load(parts.aligned)
            found[-1]["file"] = quantized_models.gptq_file(language, variant.precision, TEXTS).name
    assert found[0] != found[1]
    assert found[0]["file"] != found[1]["file"]
