"""Planted spectra and directions come back; estimates keep their stated errors; angles and noise follow their theory."""

import math

import pytest
import torch
from safetensors.torch import save_file
from support.angles import principal_angles

from helpers.errors import NOT_COMPARABLE, USAGE, StudyError
from helpers.projection import subspaces
from helpers.projection.alignment_matrix import Change
from helpers.projection.subspaces import (
    Spectrum,
    at_depths,
    directions_above,
    gram_norm,
    leading,
    noise,
    noise_edge,
    null_cosine,
    singular_values,
    spectra,
    spectrum,
)
from helpers.updates import quantizers

MODULE, OTHER = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
RANK = 3


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frame(d, k, seed=0):
    return torch.linalg.qr(gaussian(d, k, seed=seed).double())[0]


def planted(shape, values, seed=0):
    """A matrix with these singular values and random directions, and its left directions."""
    left = frame(shape[0], len(values), seed)
    return ((left * torch.as_tensor(values)) @ frame(shape[1], len(values), seed + 1).T).float(), left


def halves(rank=RANK):
    return (2.0 ** -torch.arange(rank).double()).tolist()


def change_to(v):
    return Change("blocks.3.up", torch.zeros_like(v), v)


@pytest.fixture
def randomized(monkeypatch):
    """Every matrix counts as big."""
    monkeypatch.setattr(subspaces, "SMALL", 0)


def refused(act, code, *words):
    with pytest.raises(StudyError) as error:
        act()
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


# --- the spectrum


def folder_of(path, tensors):
    path.mkdir()
    save_file({f"{name}.weight": tensor for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def test_the_planted_spectrum_comes_back_with_its_summaries(tmp_path):
    weights = {MODULE: gaussian(128, 256), OTHER: gaussian(64, 64)}
    base = folder_of(tmp_path / "base", weights)
    aligned = folder_of(tmp_path / "aligned", {**weights, MODULE: weights[MODULE] + planted((128, 256), halves())[0]})
    said = []
    found, unchanged = spectra(base, aligned, [MODULE, OTHER], said.append)
    assert said == [found.module, unchanged.module] == [MODULE, OTHER]
    assert found.values[:RANK].tolist() == pytest.approx([1, 0.5, 0.25], rel=1e-4)
    assert (found.values[RANK:] < 1e-4).all()
    total = 1 + 0.25 + 0.0625
    assert found.norm == pytest.approx(total**0.5, rel=1e-4)
    assert found.stable_rank == pytest.approx(total, rel=1e-4)
    assert [found.energy(k) for k in (0, 1, 2, 3, 500)] == pytest.approx([0, 1 / total, 1.25 / total, 1, 1], rel=1e-4)
    assert found.base_norm == pytest.approx(float(weights[MODULE].norm()), rel=1e-5)
    assert found.entries == weights[MODULE].numel()
    assert (unchanged.norm, unchanged.stable_rank, unchanged.energy(1), unchanged.energy(99)) == (0, 0, 0, 0)
    assert unchanged.base_norm > 0


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (1, 7)])
def test_singular_values_are_those_of_torch(shape):
    weight, change = gaussian(*shape), gaussian(*shape, seed=1)
    found, oracle = spectrum("m", weight, change), torch.linalg.svdvals(change.double())
    torch.testing.assert_close(found.values.double(), oracle, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(singular_values(change_to(change)), oracle, rtol=1e-6, atol=1e-6)
    assert found.norm == pytest.approx(float(change.norm()), rel=1e-5)
    assert (found.values[:-1] >= found.values[1:]).all()
    assert 1 - 1e-6 <= found.stable_rank <= min(shape)


def test_equal_directions_have_a_stable_rank_of_their_number():
    assert spectrum("m", torch.eye(8), torch.eye(8)).stable_rank == pytest.approx(8)
    one = spectrum("m", torch.eye(8), planted((8, 8), [1.0])[0])
    assert one.stable_rank == pytest.approx(1)
    assert one.energy(1) == pytest.approx(1)


def test_a_tiny_change_is_not_lost_in_rounding():
    found = Spectrum("m", 1.0, torch.full((4,), 1e-30), 16)
    assert found.norm == pytest.approx(2e-30, rel=1e-4)
    assert found.stable_rank == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize(("depths", "blocks"), [(1, {0}), (2, {0, 3}), (3, {0, 2, 3}), (99, {0, 1, 2, 3})])
def test_depths_are_spread_over_the_blocks(tiny_model, depths, blocks):
    names = at_depths(tiny_model.model, depths)
    assert {int(name.split(".")[2]) for name in names} == blocks
    assert len(names) == len(blocks) * len(quantizers.linear_names(tiny_model.model)) / 4


# --- leading directions


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
def test_the_planted_directions_come_back(shape):
    v, left = planted(shape, [8.0, 4.0, 2.0, 0.01])
    found = leading(change_to(v), 3)
    torch.testing.assert_close(found.values, torch.tensor([8.0, 4.0, 2.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(principal_angles(found.vectors, left[:, :3].float()), torch.ones(3).double(), rtol=0, atol=1e-8)
    assert found.error < 1e-4


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
def test_the_planted_directions_come_back_from_thin_products_alone(shape, randomized, monkeypatch):
    v, left = planted(shape, [8.0, 4.0, 2.0, 0.01])
    monkeypatch.setattr(Change, "dense", lambda self: pytest.fail("a big V was formed"))
    found = leading(change_to(v), 3)
    torch.testing.assert_close(found.values, torch.tensor([8.0, 4.0, 2.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(principal_angles(found.vectors, left[:, :3].float()), torch.ones(3).double(), rtol=0, atol=1e-8)


SPECTRA = {
    "fast": 0.5 ** torch.arange(200),
    "slow": 0.97 ** torch.arange(200),
    "power": 1 / torch.arange(1, 201),
    "flat": torch.linspace(1, 0.9, 200),
}


@pytest.mark.parametrize("small", [0, 10_000])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_the_stated_error_holds_and_says_something(name, small, monkeypatch):
    monkeypatch.setattr(subspaces, "SMALL", small)
    v, _ = planted((200, 300), SPECTRA[name].tolist())
    for k, seed in ((1, 0), (10, 1), (15, 2)):
        found, true = leading(change_to(v), k, seed), torch.linalg.svdvals(v.double())[:k]
        assert float((found.values - true).abs().max()) <= found.error
        assert (found.values <= true + 1e-6).all()
        assert found.error < 0.6  # of a largest value of 1
        if small or name == "fast":
            assert found.error < 2e-4
        torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(k), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["slow", "power"])
def test_the_true_directions_lie_within_wedins_angle(name, randomized):
    values = SPECTRA[name].tolist()
    v, left = planted((200, 300), values)
    for k in (2, 5):
        found = leading(change_to(v), k)
        sine = math.sqrt(max(0.0, 1 - float(principal_angles(found.vectors, left[:, :k].float()).min()) ** 2))
        assert sine <= found.error / (float(found.values[-1]) - values[k])


def test_one_seed_gives_one_result_and_another_only_moves_within_the_error(randomized):
    change = change_to(gaussian(150, 150))
    first, again, other = (leading(change, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    assert float((first.values - other.values).abs().max()) <= max(first.error, other.error)


@pytest.mark.parametrize("small", [0, 10_000])
def test_k_beyond_the_spectrum_is_refused(small, monkeypatch):
    monkeypatch.setattr(subspaces, "SMALL", small)
    change = change_to(planted((20, 30), halves())[0])
    assert leading(change, RANK).vectors.shape == (20, RANK)
    refused(lambda: leading(change, RANK + 1), NOT_COMPARABLE, "k 4", "rank 3", "blocks.3.up")
    refused(lambda: leading(change, 21), USAGE, "k 21", "20", "blocks.3.up")
    refused(lambda: leading(change, 0), USAGE, "k 0")
    refused(lambda: leading(change_to(torch.zeros(20, 30)), 1), NOT_COMPARABLE, "rank 0", "blocks.3.up")


# --- the null of the cosine


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
def test_the_gram_norm_is_the_dense_one_and_its_estimate_keeps_its_error(shape, monkeypatch):
    v = gaussian(*shape)
    oracle = float((v.double() @ v.double().T).norm())
    assert gram_norm(change_to(v)).value == pytest.approx(oracle, rel=1e-6)
    assert gram_norm(change_to(v)).error == 0
    monkeypatch.setattr(subspaces, "SMALL", 0)
    found = [gram_norm(change_to(v), seed) for seed in range(60)]
    scores = torch.tensor([(estimate.value - oracle) / estimate.error for estimate in found])
    assert 0.7 < float(scores.square().mean().sqrt()) < 1.4  # 1 where the standard error is right
    assert abs(float(scores.mean())) < 0.5
    assert all(estimate.error < 0.1 * oracle for estimate in found)


@pytest.mark.parametrize(("shape", "expected"), [((500, 500), 0.7071), ((192, 576), 0.8660), ((900, 300), 0.5)])
def test_the_null_of_independent_entries_is_known(shape, expected):
    """1 / sqrt(1 + d_out / d_in): 0.707 for a square V."""
    assert null_cosine(change_to(gaussian(*shape))) == pytest.approx(expected, abs=0.005)


def test_the_null_is_the_cosine_of_a_generic_update():
    v = planted((300, 200), (0.97 ** torch.arange(200)).tolist())[0]
    projector, update = v @ v.T / v.norm(), gaussian(300, 2000, seed=9)
    cosine = torch.nn.functional.cosine_similarity((projector @ update).flatten(), update.flatten(), dim=0)
    assert null_cosine(change_to(v)) == pytest.approx(float(cosine), abs=0.01)
    refused(lambda: null_cosine(change_to(torch.zeros(3, 4))), NOT_COMPARABLE, "blocks.3.up", "V = 0")


# --- noise


@pytest.mark.parametrize("shape", [(300, 300), (192, 576), (700, 200)])
def test_the_largest_singular_value_of_gaussian_noise_lies_at_the_edge(shape):
    errors = change_to(0.01 * gaussian(*shape))
    assert noise_edge(errors) == pytest.approx(float(singular_values(errors)[0]), rel=0.03)


def test_only_planted_directions_above_the_edge_are_counted():
    exact = change_to(planted((300, 400), [3.0, 2.0, 1.0, 0.05, 0.04])[0])
    noisy = change_to(exact.dense() + 0.01 * gaussian(300, 400, seed=5))
    errors = noise(noisy, exact)
    torch.testing.assert_close(errors.dense(), 0.01 * gaussian(300, 400, seed=5), rtol=0, atol=1e-6)
    edge = noise_edge(errors)
    assert 0.05 < edge < 1
    assert directions_above(singular_values(exact), edge) == 3
    assert directions_above(singular_values(noisy), 1.02 * edge) == 3


def test_quantizing_leaves_of_a_small_change_what_lies_above_the_noise():
    base = 0.02 * gaussian(256, 512)
    v, left = planted((256, 512), [1.0, 0.8, 1e-3])
    aligned = base + v
    exact = Change("m", base, aligned)
    served = Change("m", *(quantizers.QUANTIZERS["nf4"](w, None).dequantize(torch.float32) for w in (base, aligned)))
    edge = noise_edge(noise(served, exact))
    assert directions_above(singular_values(exact), edge) == 2
    kept = principal_angles(leading(served, 2).vectors, left[:, :2].float())
    assert float(kept.min()) > 0.95
    lost = principal_angles(leading(served, 3).vectors, left[:, 2:].float())
    assert float(lost.max()) < 0.5
