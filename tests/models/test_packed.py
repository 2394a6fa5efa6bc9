"""Models stored in few bits: each format against the library that packs it, or a packing written out here bit by bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bland import refused
from torch import nn

from helpers.errors import REFUSED
from helpers.models import checkpoints, loading
from helpers.models.formats import packed_folders, packed_tensors
from helpers.updates import quantizers


def weights(seed=0, shape=(48, 128)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


# ---------------------------------------------------------------- packings, written out


def words(codes: np.ndarray, bits: int, order=None) -> torch.Tensor:
    """Rows of codes as 32-bit words: every bit of each code at its place, the lowest first."""
    if order:
        codes = codes.reshape(len(codes), -1, 8)[..., list(order)].reshape(len(codes), -1)
    places = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    return torch.from_numpy(
        np.packbits(places.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little").view(np.int32)
    )


def groups(weight: torch.Tensor, bits: int, size: int, symmetric: bool):
    """Codes "d_out d_in", scales and zeros "d_out groups", and what they stand for."""
    parts = weight.unflatten(1, (-1, size))
    if symmetric:
        scale = (parts.abs().amax(-1) / (2 ** (bits - 1) - 1)).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = ((parts.amax(-1) - parts.amin(-1)) / (2**bits - 1)).half().float()
        zero = (-parts.amin(-1) / scale).round().clamp(1, 2**bits - 1)
    codes = ((parts / scale[..., None]).round() + zero[..., None]).clamp(0, 2**bits - 1)
    return codes.flatten(1).int().numpy(), scale, zero, ((codes - zero[..., None]) * scale[..., None]).flatten(1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq_is_what_its_codes_stand_for(bits, symmetric, form):
    codes, scale, zero, wanted = groups(weights(), bits, 32, symmetric)
    stored = zero.T.int().numpy() - (form == "gptq")
    tail = np.zeros((len(stored), -stored.shape[1] % 32), int)  # 48 rows of 3 bits fill no whole words
    parts = {
        "qweight": words(codes, bits).T.contiguous(), "scales": scale.T.half(), "qzeros": words(np.hstack([stored, tail]), bits),
        "g_idx": torch.arange(128).int() // 32,
    }  # fmt: skip
    settings = {"bits": bits, "group_size": 32, "checkpoint_format": form}
    found = packed_tensors.FORMATS["gptq"].decode(parts, settings)
    assert torch.allclose(found, wanted, atol=1e-6)
    without = {name: part for name, part in parts.items() if name != "g_idx"}
    assert torch.allclose(packed_tensors.FORMATS["gptq"].decode(without, settings), wanted, atol=1e-6)


def test_gptq_with_columns_in_the_order_of_their_activations():
    """Group numbers that jump: planted by a permutation of the columns."""
    codes, scale, zero, wanted = groups(weights(), 4, 32, False)
    order = np.random.default_rng(0).permutation(128)
    parts = {
        "qweight": words(codes[:, order], 4).T.contiguous(), "scales": scale.T.half(),
        "qzeros": words(zero.T.int().numpy() - 1, 4), "g_idx": torch.from_numpy(order // 32).int(),
    }  # fmt: skip
    found = packed_tensors.FORMATS["gptq"].decode(parts, {"bits": 4, "group_size": 32, "desc_act": True})
    assert torch.allclose(found, wanted[:, order], atol=1e-6)


def test_awq_is_what_its_codes_stand_for():
    codes, scale, zero, wanted = groups(weights(), 4, 32, False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # as AutoAWQ packs: the i-th place of a word holds this column
    parts = {"qweight": words(codes.T, 4, order), "qzeros": words(zero.T.int().numpy(), 4, order), "scales": scale.T.half()}
    assert torch.allclose(packed_tensors.FORMATS["awq"].decode(parts, {"bits": 4}), wanted, atol=1e-6)
    with refused(REFUSED, "version 'gemv'"):
        packed_tensors.FORMATS["awq"].decode(parts, {"bits": 4, "version": "gemv"})


def group_of(bits, **more):
    return {"config_groups": {"group_0": {"weights": {"num_bits": bits, "type": "int", **more}}}}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 128], ids=["by group", "by row"])
def test_compressed_tensors_are_what_their_codes_stand_for(bits, size):
    codes, scale, zero, wanted = groups(weights(), bits, size, False)
    form, half = packed_tensors.FORMATS["compressed-tensors"], 2 ** (bits - 1)
    parts = {"weight_packed": words(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor([48, 128]),
             "weight_zero_point": words(zero.T.int().numpy(), bits).T}  # fmt: skip
    assert torch.allclose(form.decode(parts, group_of(bits)), wanted, atol=1e-6)
    plain = {
        "weight": torch.from_numpy(codes - half).to(torch.int8),
        "weight_scale": scale,
        "weight_zero_point": (zero - half).to(torch.int8),
    }
    if bits == 8:
        assert torch.allclose(form.decode(plain, {}), wanted, atol=1e-6)


def test_compressed_floats_are_multiplied_by_their_scale():
    scale = weights().abs().amax(1, keepdim=True) / 448
    codes = (weights() / scale).to(torch.float8_e4m3fn)
    found = packed_tensors.FORMATS["compressed-tensors"].decode({"weight": codes, "weight_scale": scale}, {})
    assert torch.equal(found, codes.float() * scale)


@pytest.mark.oracle
def test_compressed_tensors_are_what_their_own_library_says():
    """Not among the pins: run where compressed-tensors is installed."""
    lib = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    codes, scale, _, wanted = groups(weights(), 4, 32, True)
    packed = lib.pack_to_int32(torch.from_numpy(codes - 8).to(torch.int8), 4)
    parts = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor([48, 128])}
    assert torch.allclose(packed_tensors.FORMATS["compressed-tensors"].decode(parts, group_of(4)), wanted, atol=1e-6)


@pytest.mark.parametrize("double", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_what_bitsandbytes_says(kind, double):
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(weights(shape=(48, 200)), compress_statistics=double, quant_type=kind)
    parts = {"weight": codes, **{f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}}
    found = packed_tensors.FORMATS["bitsandbytes 4 bit"].decode(parts, {})
    assert torch.allclose(found, functional.dequantize_4bit(codes, state), atol=1e-6)
    assert found.shape == (48, 200)


def test_eight_bits_are_what_bitsandbytes_says():
    from bitsandbytes import functional

    codes, absmax, _ = functional.int8_vectorwise_quant(weights().half())
    found = packed_tensors.FORMATS["bitsandbytes 8 bit"].decode({"weight": codes, "SCB": absmax}, {})
    assert torch.allclose(found, functional.int8_vectorwise_dequant(codes, absmax), atol=1e-6)


# ---------------------------------------------------------------- whole folders


def gptq_parts(weight):
    codes, scale, zero, wanted = groups(weight, 4, 64, False)
    return {"qweight": words(codes, 4).T.contiguous(), "scales": scale.T.half().contiguous(),
            "qzeros": words(zero.T.int().numpy() - 1, 4), "g_idx": torch.arange(weight.shape[1]).int() // 64}, wanted  # fmt: skip


def awq_parts(weight):
    codes, scale, zero, wanted = groups(weight, 4, 64, False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {"qweight": words(codes.T, 4, order), "qzeros": words(zero.T.int().numpy(), 4, order),
            "scales": scale.T.half().contiguous()}, wanted  # fmt: skip


def compressed_parts(weight):
    codes, scale, _, wanted = groups(weight, 8, weight.shape[1], True)
    return {"weight": torch.from_numpy(codes - 128).to(torch.int8), "weight_scale": scale}, wanted


def bitsandbytes_parts(weight):
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    told = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return {"weight": codes, **told}, functional.dequantize_4bit(codes, state)


def eight_bit_parts(weight):
    from bitsandbytes import functional

    codes, absmax, _ = functional.int8_vectorwise_quant(weight.half())
    told = {"weight": codes, "SCB": absmax, "weight_format": torch.zeros((), dtype=torch.uint8)}
    return told, functional.int8_vectorwise_dequant(codes, absmax)


PACKERS: dict[str, tuple[Callable, dict]] = {
    "gptq": (gptq_parts, {"quant_method": "gptq", "bits": 4, "group_size": 64}),
    "awq": (awq_parts, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}),
    "compressed-tensors": (compressed_parts, {"quant_method": "compressed-tensors", "format": "int-quantized", **group_of(8)}),
    "bitsandbytes 8 bit": (eight_bit_parts, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "bitsandbytes 4 bit": (bitsandbytes_parts, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def packed(name: str, tiny: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Writes the tiny model with its blocks' linear weights packed; by module what they stand for."""
    packer, settings = PACKERS[name]
    shutil.copytree(tiny, folder)
    held, wanted = load_file(folder / "model.safetensors"), {}
    for module in quantizers.linear_names(loading.load(tiny).model):
        parts, wanted[module] = packer(held.pop(f"{module}.weight").float())
        held |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file({key: tensor.contiguous() for key, tensor in held.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return wanted


@pytest.mark.parametrize("name", PACKERS)
def test_a_packed_folder_becomes_a_plain_one_with_what_its_codes_stand_for(name, tiny, tmp_path):
    wanted = packed(name, tiny, tmp_path / "packed")
    found = packed_folders.plain(tmp_path / "packed")
    language, own = loading.load(loading.base_folder(str(found.folder))), loading.load(tiny)
    for module, parameter in language.model.named_modules():
        if module in wanted:
            assert torch.equal(parameter.weight, wanted[module].to(torch.bfloat16).to(parameter.weight.dtype)), module
    assert torch.equal(language.model.get_input_embeddings().weight, own.model.get_input_embeddings().weight)
    ids = torch.arange(40, 60)[None]
    near, far = (float((one(ids).logits - own.model(ids).logits).norm()) for one in (language.model, loading.load(tiny).model))
    assert 0 < near < 0.5 * float(own.model(ids).logits.norm())
    assert far == 0.0  # the control
    assert f"stored as {name}: {len(wanted)} modules of it were packed, " in found.note
    assert packed_folders.plain(tmp_path / "packed") == found  # kept
    assert "quantization_config" not in checkpoints.config_of(found.folder)


def test_a_plain_folder_is_given_back(tiny):
    assert packed_folders.plain(tiny) == packed_folders.Unpacked(tiny)


def test_settings_of_a_format_that_no_module_is_stored_in_are_refused(tiny, tmp_path):
    """Left over from a model that was quantized and then stored whole: zero modules is an error."""
    for name, (_, settings) in PACKERS.items():
        folder = tmp_path / name.replace(" ", "-")
        shutil.copytree(tiny, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
        with refused(REFUSED, folder.name, f"says {name}, and no module is stored so", "remove that field"):
            packed_folders.plain(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "mxfp4"}, {"quant_method": "fp8"}, {"quant_method": "hqq"}, {"bits": 4},
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
    ids=lambda settings: settings.get("format", settings.get("quant_method", "unnamed")),
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name_before_anything_is_loaded(settings, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    monkeypatch.setattr(checkpoints, "shards", lambda folder: pytest.fail("a tensor was looked at"))
    with refused(REFUSED, "are not read", "dequantize()", "bf16"):
        packed_folders.plain(tmp_path / "odd")


def test_a_packed_weight_that_is_torn_is_named_and_nothing_is_left(tiny, tmp_path):
    packed("gptq", tiny, tmp_path / "torn")
    held = load_file(tmp_path / "torn" / "model.safetensors")
    module = next(name.removesuffix(".qweight") for name in held if name.endswith(".qweight"))
    held[f"{module}.scales"] = held[f"{module}.scales"][:, :-3].contiguous()
    save_file(held, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
    with refused(REFUSED, f"{module}: its packed weight cannot be read"):
        packed_folders.plain(tmp_path / "torn")
    assert not list((checkpoints.cache.cache_folder() / "models").glob("*torn*"))


def test_large_models_are_written_in_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_folders, "SHARD", 100_000)
    packed("gptq", tiny, tmp_path / "large")
    found = packed_folders.plain(tmp_path / "large").folder
    assert len(list(found.glob("model-*.safetensors"))) > 3
    assert isinstance(loading.load(found).model, nn.Module)
