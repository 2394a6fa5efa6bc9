"""V of planted checkpoints in thin products equals V dense; sharded or not; what is torn or foreign is refused by name."""

import json
import math
import pickle
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.models.checkpoints import checkpoint, shards, stored
from helpers.projection import alignment_matrix
from helpers.projection.alignment_matrix import Change, Pair, projected, quantized
from helpers.updates.quantizers import QUANTIZERS

# the embedded model's shapes, of one block and of more; prime ones; as high as wide; and a vector
SHAPES = [(192, 576), (1536, 576), (576, 1536), (131, 89), (1031, 1031), (64, 64), (1, 7)]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MAPS = Path("/proc/self/maps")
FIRST, SECOND = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def gaussian(*shape, seed=0, size=1.0):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change_of(shape, dtype=torch.bfloat16, size=1e-3):
    base = gaussian(*shape, size=0.02)
    return Change("m", base.to(dtype), (base + gaussian(*shape, seed=1, size=size)).to(dtype))


def exact(change):
    """V in float64: the oracle."""
    return change.aligned.double() - change.base.double()


def write(folder, tensors, file="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file({f"{name}.weight": tensor for name, tensor in tensors.items()}, folder / file)
    return folder


def write_shards(folder, tensors):
    """The same tensors, one file each, beside an index."""
    files = {name: f"model-{i:05}-of-{len(tensors):05}.safetensors" for i, name in enumerate(tensors, 1)}
    for name, file in files.items():
        write(folder, {name: tensors[name]}, file)
    weight_map = {f"{name}.weight": file for name, file in files.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder


@pytest.fixture
def weights():
    return {FIRST: gaussian(24, 30, size=0.02), SECOND: gaussian(30, 50, seed=3, size=0.02)}


@pytest.fixture
def planted(weights):
    """V of each module: nothing at the first, rank 2 at the second."""
    return {FIRST: torch.zeros(24, 30), SECOND: gaussian(30, 2, seed=4) @ gaussian(2, 50, seed=5)}


@pytest.fixture
def base(weights, tmp_path):
    return write(tmp_path / "base", weights)


@pytest.fixture
def aligned(weights, planted, tmp_path):
    return write(tmp_path / "aligned", {name: weight + planted[name] for name, weight in weights.items()})


@pytest.fixture
def split(weights, planted, tmp_path):
    return write_shards(tmp_path / "split", {name: weight + planted[name] for name, weight in weights.items()})


def pair_of(base, aligned):
    return Pair(checkpoint(base), checkpoint(aligned), (FIRST, SECOND))


def refused(act, code, *words):
    with pytest.raises(StudyError) as error:
        act()
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


# --- V in blocks and thin products


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_blocks_are_v_and_all_of_it(shape, dtype):
    change = change_of(shape, dtype)
    whole = torch.full(shape, torch.nan)
    for rows, block in change.blocks():
        assert block.numel() <= alignment_matrix.ENTRIES
        whole[rows] = block
    assert torch.equal(whole, change.aligned.float() - change.base.float())
    assert torch.equal(whole, change.dense())


@pytest.mark.parametrize("held", [0, 2**20])
@pytest.mark.parametrize("entries", [1, 89, 1000, 131 * 89, 2**20])
def test_the_size_of_a_block_changes_nothing(entries, held, monkeypatch):
    monkeypatch.setattr(alignment_matrix, "ENTRIES", entries)
    monkeypatch.setattr(alignment_matrix, "HELD", held)
    change, left = change_of((131, 89)), gaussian(131, 5, seed=7)
    assert len(list(change.blocks())) == math.ceil(131 / max(1, entries // 89))
    v = exact(change)
    torch.testing.assert_close(projected(change, left).double(), v @ (v.T @ left.double()) / v.norm(), rtol=1e-5, atol=1e-6)


def test_a_difference_of_bf16_weights_is_not_rounded_to_bf16():
    change = Change("m", torch.full((1, 1), 1.0).bfloat16(), torch.full((1, 1), 2.0**-12 * 1.5).bfloat16())
    assert float(change.dense()) == 2.0**-12 * 1.5 - 1  # 13 bits
    assert float(next(change.blocks())[1]) == 2.0**-12 * 1.5 - 1


@pytest.mark.parametrize("columns", [1, 3, 8, 16, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_thin_products_equal_the_dense_ones(shape, columns):
    change, v = change_of(shape), exact(change_of(shape))
    left, right = gaussian(shape[0], columns, seed=7), gaussian(shape[1], columns, seed=8)
    near = {"rtol": 1e-5, "atol": 1e-5 * float(v.norm())}
    torch.testing.assert_close(change.onto_inputs(left).double(), v.T @ left.double(), **near)
    torch.testing.assert_close(change.times(right).double(), v @ right.double(), **near)
    assert change.norm() == pytest.approx(float(v.norm()), rel=1e-7)


@pytest.mark.parametrize("columns", [1, 3, 8, 16, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_projected_is_the_dense_projection(shape, columns):
    change, left = change_of(shape), gaussian(shape[0], columns, seed=7)
    v = exact(change)
    dense = v @ v.T / v.norm() @ left.double()
    assert float((projected(change, left).double() - dense).norm() / dense.norm()) < 2e-6


def test_the_norm_is_right_where_one_float32_sum_is_not():
    v = gaussian(2048, 2048, seed=2).square() + 1  # all of one sign, as bad as it gets
    change = Change("m", torch.zeros_like(v), v)
    assert change.norm() == pytest.approx(float(v.double().norm()), rel=1e-7)


@pytest.mark.parametrize("factor", [2.0, -4.0, 0.125])
def test_v_times_c_makes_the_projection_times_the_size_of_c(factor):
    change, left = change_of((192, 576), torch.float32), gaussian(192, 8, seed=7)
    scaled = Change("m", torch.zeros(192, 576), factor * change.dense())
    torch.testing.assert_close(projected(scaled, left), abs(factor) * projected(change, left), rtol=1e-4, atol=1e-7)


def test_c_is_no_projector_but_grows_with_v():
    """V of 4 orthonormal directions, 6 long each: C = 36 P / ||V|| = 3 P, where a projector would give P."""
    frame = torch.linalg.qr(gaussian(64, 4))[0]
    change = Change("m", torch.zeros(64, 4), 6 * frame)
    torch.testing.assert_close(projected(change, frame), 3 * frame, rtol=1e-5, atol=1e-6)


def test_neither_factors_nor_weights_are_changed_and_no_buffer_is_shared():
    change, left = change_of((300, 20)), gaussian(300, 3).requires_grad_()
    kept = [tensor.clone() for tensor in (change.base, change.aligned, left)]
    first, second = projected(change, left), projected(change, 2 * left)
    assert all(torch.equal(now, before) for now, before in zip((change.base, change.aligned, left), kept, strict=True))
    torch.testing.assert_close(second, 2 * first)
    assert not first.requires_grad


def test_a_module_without_change_is_refused_by_name_where_c_divides_by_it():
    change = Change("blocks.3.up", torch.ones(4, 5), torch.ones(4, 5))
    assert change.norm() == 0
    assert not change.onto_inputs(torch.ones(4, 1)).any()
    refused(lambda: projected(change, torch.ones(4, 1)), NOT_COMPARABLE, "blocks.3.up", "V = 0")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["base", "aligned"])
def test_weights_that_are_not_finite_are_refused_by_module_and_side(side, value):
    tensors = {"base": torch.zeros(200, 6), "aligned": torch.ones(200, 6)}
    tensors[side][150, 2] = value
    change = Change("blocks.3.up", **tensors)
    products = (
        lambda: projected(change, torch.zeros(200, 1)),
        lambda: change.onto_inputs(torch.zeros(200, 2)),
        lambda: change.times(torch.zeros(6, 2)),
        change.norm,
        change.dense,
    )
    for product in products:
        refused(product, REFUSED, "blocks.3.up", f"{side} weight", "NaN or Inf")


def test_an_overflow_is_not_blamed_on_the_checkpoint():
    change = Change("blocks.3.up", torch.zeros(4, 5), torch.full((4, 5), 1e30))
    refused(lambda: projected(change, torch.ones(4, 1)), REFUSED, "blocks.3.up", "overflows")


def test_a_factor_of_another_size_is_refused():
    change = change_of((6, 4))
    for product in (lambda: change.onto_inputs(torch.ones(4, 1)), lambda: projected(change, torch.ones(5, 1))):
        refused(product, NOT_COMPARABLE, "'m'", "(6, 4)")
    refused(lambda: change.times(torch.ones(6, 1)), NOT_COMPARABLE, "(6, 1)", "(6, 4)")


# --- read from checkpoints


def test_the_planted_change_comes_back_and_the_other_module_has_none(base, aligned, planted):
    pair = pair_of(base, aligned)
    for module in pair.modules:
        change = pair.change(module)
        assert (change.module, change.shape) == (module, tuple(planted[module].shape))
        torch.testing.assert_close(change.dense(), planted[module], atol=1e-6, rtol=0)
    assert not pair.change(FIRST).dense().any()


def test_shards_give_the_same_as_one_file(base, aligned, split):
    assert len(set(shards(split).values())) == 2
    assert torch.equal(pair_of(base, aligned).change(SECOND).dense(), pair_of(base, split).change(SECOND).dense())


def test_what_a_caller_does_to_a_weight_is_not_seen_by_the_next_read(base, weights):
    read = checkpoint(base)
    read(FIRST).zero_()
    assert torch.equal(read(FIRST), weights[FIRST])


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux' list of mapped files")
def test_a_file_is_mapped_only_while_its_weight_is_held(base, aligned):
    pair = pair_of(base, aligned)
    change = pair.change(SECOND)
    assert f"{aligned}/" in MAPS.read_text()  # other tests may hold files of other models
    change.norm()
    del change
    assert f"{aligned}/" not in MAPS.read_text()


def test_stored_reads_a_file_that_is_keyed_by_module(weights, tmp_path):
    save_file(weights, tmp_path / "kept.safetensors")
    read = stored(tmp_path / "kept.safetensors")
    assert torch.equal(read(SECOND), weights[SECOND])
    refused(lambda: read("model.layers.9.up"), REFUSED, "kept.safetensors", "model.layers.9.up")
    refused(lambda: stored(tmp_path / "absent.safetensors")(SECOND), REFUSED, "absent.safetensors")


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if not name.startswith("gptq")])
def test_quantized_weights_are_those_of_the_quantizer(name):
    weight = gaussian(48, 128, size=0.02).bfloat16()
    found = quantized({FIRST: weight}.__getitem__, name)(FIRST)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, QUANTIZERS[name](weight, None).dequantize())
    assert torch.equal(found, weight) == (name == "none")


def test_quantizers_that_cannot_be_used_are_refused_at_once():
    refused(lambda: quantized({}.__getitem__, "gptq-4"), USAGE, "gptq-4", "stored")
    refused(lambda: quantized({}.__getitem__, "nf5"), USAGE, "nf5", "nf4")
    bad = quantized({FIRST: torch.full((4, 64), torch.nan)}.__getitem__, "nf4")
    refused(lambda: bad(FIRST), REFUSED, FIRST)


# --- checkpoints that are refused


def test_a_missing_shard_is_named(split):
    (split / "model-00002-of-00002.safetensors").unlink()
    refused(lambda: checkpoint(split), REFUSED, "model-00002-of-00002.safetensors", "missing")


@pytest.mark.parametrize("file", ["../other.safetensors", "sub/other.safetensors"])
def test_a_shard_outside_of_the_folder_is_refused(split, file):
    (split / "sub").mkdir()
    save_file({"a": torch.zeros(1)}, split / file)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}), encoding="utf-8")
    refused(lambda: checkpoint(split), REFUSED, "other.safetensors", "outside")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_refused(split, content):
    (split / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    refused(lambda: checkpoint(split), REFUSED, "not a shard index")


def test_a_torn_shard_and_one_without_its_tensor_are_refused(base, split):
    path = shards(split)[f"{SECOND}.weight"]
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:4], b"", whole + b"0", pickle.dumps([1])):
        path.write_bytes(content)
        refused(lambda: pair_of(base, split), REFUSED, path.name, "fetch")
    save_file({"other": torch.zeros(1)}, path)
    refused(lambda: pair_of(base, split).change(SECOND), REFUSED, path.name, SECOND)


def test_a_torn_checkpoint_without_an_index_is_refused(base):
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:1000])
    refused(lambda: checkpoint(base), REFUSED, "model.safetensors", "fetch")


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(lambda: checkpoint(tmp_path), REFUSED, tmp_path.name, "safetensors")


def test_checkpoints_of_two_architectures_are_not_compared(base, tmp_path):
    other = write(tmp_path / "other", {FIRST: torch.zeros(4, 5)})
    refused(lambda: pair_of(base, other).change(FIRST), NOT_COMPARABLE, FIRST, "(24, 30)", "(4, 5)")
    refused(lambda: pair_of(base, other).change(SECOND), NOT_COMPARABLE, SECOND, "other", "one architecture")
    refused(lambda: pair_of(other, base).change(SECOND), NOT_COMPARABLE, SECOND, "other", "one architecture")


@pytest.mark.parametrize("tensor", [torch.zeros(24, 30, dtype=torch.int8), torch.zeros(24)])
def test_what_is_no_float_matrix_is_refused(tensor, tmp_path):
    folder = write(tmp_path / "packed", {FIRST: tensor})
    code = NOT_COMPARABLE if tensor.ndim == 1 else REFUSED
    refused(lambda: pair_of(folder, folder).change(FIRST), code, FIRST)


# --- the benchmark


def run_benchmark(monkeypatch, folder):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["projections.py", "--model", "tiny", "--repeats", "1"])
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    runpy.run_path(str(BENCHMARKS / "projections.py"), run_name="__main__")


def test_the_benchmark_runs_on_the_tiny_model_and_leaves_nothing_behind(monkeypatch, capsys, tmp_path):
    run_benchmark(monkeypatch, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == 18
    assert all(float(line[68:78]) >= 0 for line in lines if "memory" not in line)  # memory: NaN where it is not told
    assert [line.endswith("met") for line in lines if "ours" in line and "error" in line] == [True, True]
    assert not list(tmp_path.iterdir())


def test_the_benchmark_says_so_where_the_disk_is_too_small(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    run_benchmark(monkeypatch, tmp_path)
    assert "left out" in capsys.readouterr().out.splitlines()[-1]
    assert not list(tmp_path.iterdir())
