"""Each signal equals a second formulation, keeps its invariances, and is moved by what it is meant to see."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from sklearn.metrics import roc_auc_score

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import loading
from helpers.staleness import drift_signals, moved_weights, predictors
from helpers.staleness.drift_signals import SIGNALS
from helpers.updates import lora, quantizers
from helpers.updates.lora import LowRank

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
SHAPES = [(40, 90), (90, 40), (50, 50)]  # more dimensions than texts, fewer, as many


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(shape, seed=0, noise=0.5):
    x = gaussian(*shape, seed=seed) * torch.linspace(3, 0.1, shape[1]) + 2
    return x, x + noise * gaussian(*shape, seed=seed + 100)


def rotation(d, seed=0):
    return torch.linalg.qr(gaussian(d, d, seed=seed).double())[0]


def refused(code, *words):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_has_a_price_and_a_phrase(name):
    assert SIGNALS[name].price in {"free", "forward", "labels"}
    assert len(SIGNALS[name].words) > 10
    assert "\n" not in SIGNALS[name].words


def cell():
    """One cell, with every signal by the function that makes it, or from the recipe."""
    x, y = pair((40, 16))
    w, labels = gaussian(16, seed=3), np.arange(40) % 2
    before, after = (x @ w).numpy(), (y @ w).numpy()
    changes = moved_weights.weight_changes(
        WEIGHTS, [(n, t + 0.1 * gaussian(*t.shape, seed=9)) for n, t in WEIGHTS.items()], {2: w[:, None]}
    )
    few = drift_signals.few_labels(labels[:20], before[:20], after[:20], 0.0)
    return few | {
        "family": "LoRA", "pooling": "mean", "bits": 16.0, "rank": 8.0, "scale": 2.0, "steps": 60.0, "lr": 1e-4,
        "relative_change": moved_weights.relative_change(changes, 2), "output_overlap": moved_weights.output_overlap(changes, 2),
        "separation": drift_signals.separation(before, labels), "base_auroc": roc_auc_score(labels, before),
        "principal_share": drift_signals.principal_share(x, w), "mean_shift": drift_signals.mean_shift(x, y, w),
        "cka": drift_signals.linear_cka(x, y), "covariance_distance": drift_signals.covariance_distance(x, y),
        "score_ks": drift_signals.score_ks(before, after), "score_psi": drift_signals.score_psi(before, after),
        "score_correlation": drift_signals.score_correlation(before, after),
    }  # fmt: skip


WEIGHTS = {
    "model.layers.0.self_attn.o_proj": gaussian(16, 12, seed=1),
    "model.layers.1.mlp.up_proj": gaussian(20, 16, seed=2),
    "model.layers.1.mlp.down_proj": gaussian(16, 20, seed=3),
    "model.layers.2.mlp.down_proj": gaussian(16, 20, seed=4),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_is_one_number_of_a_cell(name):
    value = cell()[name]
    assert isinstance(value, str) if name in predictors.NAMED else math.isfinite(value)


# ---------------------------------------------------------------- activations


def cka_by_columns(x, y):
    x, y = (m.double().numpy() - m.double().numpy().mean(axis=0) for m in (x, y))
    return np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


def cka_by_hsic(x, y):
    """HSIC with the centring matrix written out, as in the paper."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = (z.double().numpy() @ z.double().numpy().T for z in (x, y))

    def hsic(a, b):
        return np.trace(a @ centre @ b @ centre)

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("oracle", [cka_by_columns, cka_by_hsic])
def test_cka_equals_both_forms_of_the_paper(shape, oracle):
    x, y = pair(shape, noise=2.0)
    assert drift_signals.linear_cka(x, y) == pytest.approx(oracle(x, y), rel=1e-10)
    assert 0.05 < drift_signals.linear_cka(x, y) < 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_cka_is_blind_to_rotation_shift_and_scale_and_not_to_other_maps(shape):
    x = pair(shape)[0].double()
    turned = 3.7 * x @ rotation(shape[1]) + 11
    stretched = x * torch.linspace(0.01, 3, shape[1])
    assert drift_signals.linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert drift_signals.linear_cka(x, turned) == pytest.approx(1, abs=1e-10)
    assert drift_signals.linear_cka(x, stretched) < 0.9


@pytest.mark.parametrize("noise", [2.0, 1e-3, 1e-6])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_covariance_distance_equals_the_direct_one_down_to_tiny_changes(shape, noise):
    x, y = (m.double() for m in pair(shape, noise=noise))
    direct = np.linalg.norm(np.cov(y.T.numpy()) - np.cov(x.T.numpy())) / np.linalg.norm(np.cov(x.T.numpy()))
    assert drift_signals.covariance_distance(x, y) == pytest.approx(direct, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_covariance_distance_is_blind_to_a_shift_and_sees_a_scale(shape):
    x = pair(shape)[0].double()
    assert drift_signals.covariance_distance(x, x + 5) == pytest.approx(0, abs=1e-12)
    assert drift_signals.covariance_distance(x, 2 * x) == pytest.approx(3, rel=1e-9)


def test_the_mean_shift_gives_back_a_planted_one_with_its_sign():
    x, w = pair((60, 30))[0], gaussian(30, seed=5)
    sd = float((x @ w).std())
    off = gaussian(30, seed=6)
    off -= (off @ w) / (w @ w) * w
    assert drift_signals.mean_shift(x, x - 1.5 * sd * w / (w @ w), w) == pytest.approx(-1.5, rel=1e-4)
    assert drift_signals.mean_shift(x, x + 40 * off, w) == pytest.approx(0, abs=1e-3)  # control: a shift off the direction
    assert drift_signals.mean_shift((x @ w)[:, None], (x @ w + 2 * sd)[:, None], torch.ones(1)) == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_the_principal_share_equals_that_of_the_singular_vectors(shape, k):
    x, w = pair(shape)[0].double(), gaussian(shape[1], seed=7).double()
    right = np.linalg.svd((x - x.mean(dim=0)).numpy(), full_matrices=False)
    vectors = right[2][right[1] > 1e-9 * right[1][0]][:k]
    expected = np.square(vectors @ w.numpy()).sum() / float(w @ w)
    assert drift_signals.principal_share(x, w, k) == pytest.approx(expected, rel=1e-8)


def test_a_planted_direction_lies_in_the_principal_components_and_another_does_not():
    strong, weak = rotation(30)[:2]
    x = 20 * gaussian(200, 1).double() * strong + 0.1 * gaussian(200, 30, seed=1).double()
    assert drift_signals.principal_share(x, strong, 1) > 0.99
    assert drift_signals.principal_share(x, weak, 1) < 0.01
    chance = [drift_signals.principal_share(x, gaussian(30, seed=s), 10) for s in range(60)]
    assert np.mean(chance) == pytest.approx(10 / 30, abs=0.04)


def test_what_is_undefined_is_nan():
    x, flat = pair((20, 8))[0], torch.ones(20, 8)
    w = gaussian(8)
    assert math.isnan(drift_signals.linear_cka(x, flat))
    assert math.isnan(drift_signals.covariance_distance(flat, x))
    assert math.isnan(drift_signals.mean_shift(flat, x, w))
    assert math.isnan(drift_signals.principal_share(flat, w))
    assert math.isnan(drift_signals.principal_share(x, torch.zeros(8)))
    assert math.isnan(drift_signals.score_psi([1, 1, 1], [1, 2, 3]))
    assert math.isnan(drift_signals.score_correlation([1, 1, 1], [1, 2, 3]))
    assert math.isnan(drift_signals.separation([1, 1, 0, 0], [1, 1, 0, 0]))


@pytest.mark.parametrize("function", [drift_signals.linear_cka, drift_signals.covariance_distance])
def test_other_texts_and_non_finite_activations_are_refused(function):
    x, y = pair((20, 8))
    with refused(NOT_COMPARABLE, r"\(20, 8\)", r"\(19, 8\)", "same texts"):
        function(x, y[:19])
    with refused(NOT_COMPARABLE, "two or more"):
        function(x[:1], y[:1])
    y[3, 2] = math.inf
    with refused(REFUSED, "1 of 20 rows"):
        function(x, y)


# ---------------------------------------------------------------- scores

SCORES = {
    "shifted": (gaussian(150).numpy(), gaussian(120, seed=1).numpy() + 0.4),
    "tied": (np.round(gaussian(150).numpy()), np.round(1.5 * gaussian(90, seed=1).numpy())),
    "apart": (gaussian(30).numpy(), gaussian(30, seed=1).numpy() + 50),
    "same": (gaussian(30).numpy(), gaussian(30).numpy()),
}


@pytest.mark.parametrize("kind", SCORES)
def test_ks_is_scipys(kind):
    assert drift_signals.score_ks(*SCORES[kind]) == pytest.approx(stats.ks_2samp(*SCORES[kind]).statistic, abs=1e-12)


def psi_by_loop(before, after, bins=10):
    edges = sorted({np.quantile(before, k / bins) for k in range(1, bins)})
    bounds, total = [-math.inf, *edges, math.inf], 0.0
    for low, high in pairwise(bounds):
        p, q = ((sum(low < v <= high for v in side) + 0.5) / (len(side) + 0.5 * (len(edges) + 1)) for side in (before, after))
        total += (q - p) * math.log(q / p)
    return total


@pytest.mark.parametrize("kind", SCORES)
def test_psi_equals_the_sum_bin_by_bin_and_is_finite_with_empty_bins(kind):
    before, after = SCORES[kind]
    assert drift_signals.score_psi(before, after) == pytest.approx(psi_by_loop(before, after), rel=1e-10, abs=1e-12)
    assert math.isfinite(drift_signals.score_psi(before, after))


def test_psi_without_a_change_has_the_mean_that_its_docstring_says():
    rng = np.random.default_rng(0)
    found = [drift_signals.score_psi(rng.standard_normal(400), rng.standard_normal(300)) for _ in range(300)]
    assert np.mean(found) == pytest.approx(9 * (1 / 400 + 1 / 300), rel=0.15)
    assert drift_signals.score_psi(*SCORES["same"]) == 0
    assert drift_signals.score_psi(*SCORES["apart"]) > 1


def test_the_rank_correlation_is_blind_to_monotone_maps_only():
    before = gaussian(80).numpy()
    assert drift_signals.score_correlation(before, np.exp(before) + 3) == pytest.approx(1)
    assert drift_signals.score_correlation(before, -before) == pytest.approx(-1)
    noisy = np.round(before + gaussian(80, seed=1).numpy(), 1)
    assert drift_signals.score_correlation(before, noisy) == pytest.approx(stats.spearmanr(before, noisy).statistic)
    with refused(NOT_COMPARABLE, "80 and 79"):
        drift_signals.score_correlation(before, noisy[:79])


@pytest.mark.parametrize("function", [drift_signals.score_ks, drift_signals.score_psi, drift_signals.score_correlation])
def test_no_scores_and_scores_that_are_not_finite_are_refused(function):
    with refused(2, r"\(0,\)", "one text or more"):
        function([], [1.0])
    with refused(REFUSED, "scores: 1 of 2"):
        function([1.0, math.nan], [1.0, 2.0])


def test_the_margin_gives_back_a_planted_distance():
    rng, labels = np.random.default_rng(0), np.arange(20_000) % 2
    assert drift_signals.separation(rng.standard_normal(20_000) * 3 + 4.5 * labels, labels) == pytest.approx(1.5, abs=0.05)
    assert drift_signals.separation([0, 2, 4, 6], [0, 0, 1, 1]) == pytest.approx(4 / math.sqrt(2))


def test_few_labels_give_the_drop_and_the_change_of_accuracy():
    labels, before = np.arange(16) % 2, np.arange(16) % 2 + 0.1 * gaussian(16).numpy()
    shifted, noise = before + 5, gaussian(16, seed=2).numpy()
    assert drift_signals.few_labels(labels, before, before, 0.5) == {"few_drop": 0, "few_accuracy": 0}
    # a shift keeps the order and fools the threshold: the two signals see different harm
    assert drift_signals.few_labels(labels, before, shifted, 0.5) == {"few_drop": 0, "few_accuracy": pytest.approx(-0.5)}
    drop = roc_auc_score(labels, before) - roc_auc_score(labels, noise)
    assert drift_signals.few_labels(labels, before, noise, 0.5)["few_drop"] == pytest.approx(drop)
    assert math.isnan(drift_signals.few_labels(labels, before, np.zeros(16), 0.5)["few_drop"])  # all tied: no AUROC, not 0.5


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1], [0, 1, 2]])
def test_labels_of_one_class_or_another_length_are_refused(labels):
    for call in (
        lambda: drift_signals.separation([1, 2, 3], labels),
        lambda: drift_signals.few_labels(labels, [1, 2, 3], [1, 2, 3], 0),
    ):
        with refused(2, "both 0 and 1"):
            call()


# ---------------------------------------------------------------- weights


@pytest.fixture
def adapter(tiny_model):
    found = {}
    for seed, name in enumerate(quantizers.linear_names(tiny_model.model)):
        d_out, d_in = tiny_model.model.get_submodule(name).weight.shape
        found[name] = LowRank(0.1 * gaussian(d_out, 4, seed=seed), 0.1 * gaussian(4, d_in, seed=1000 + seed))
    return found


def plain(model):
    return {name: model.get_submodule(name).weight.detach().clone() for name in quantizers.linear_names(model)}


def test_attached_weights_are_the_merged_ones_in_float32(tiny, tiny_model, adapter):
    merged = loading.load(tiny, "fp32").model
    before = plain(merged)
    lora.merge(merged, adapter)
    found = dict(moved_weights.effective_weights(lora.attach(tiny_model.model, adapter)))
    assert list(found) == list(before)  # the names of the unwrapped model, in its order
    for name, weight in moved_weights.effective_weights(merged):
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-6)
        assert (weight - before[name]).norm() > 1e-3  # control: the adapter does something


def test_an_adapter_on_some_modules_with_its_own_scale_is_added_there_only(tiny_model):
    before = plain(tiny_model.model)
    wrapped = get_peft_model(tiny_model.model, LoraConfig(r=4, lora_alpha=12, target_modules=["down_proj"]))
    name = "model.layers.1.mlp.down_proj"
    layer = wrapped.get_base_model().get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(gaussian(128, 4))
    added = 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    found = dict(moved_weights.effective_weights(wrapped))
    torch.testing.assert_close(found[name], (before[name] + added).detach())
    assert all(torch.equal(found[other], before[other]) for other in before if other != name)
    with wrapped.disable_adapter():
        assert torch.equal(dict(moved_weights.effective_weights(wrapped))[name], before[name])
    wrapped.merge_adapter()  # the base holds it now: it must not be added twice
    torch.testing.assert_close(dict(moved_weights.effective_weights(wrapped))[name], found[name])


@pytest.mark.parametrize("name", quantizers.BITSANDBYTES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after a forward pass"])
def test_bitsandbytes_modules_give_their_dequantized_weight(tiny, name, used):
    model = loading.load(tiny).model
    expected = {n: q.dequantize(torch.float32) for n, q in quantizers.quantize_model(model, name).items()}
    quantizers.to_bitsandbytes_(model, name).eval()
    if used:
        with torch.no_grad():
            model(input_ids=torch.arange(5)[None])
    found = dict(moved_weights.effective_weights(model))
    assert found.keys() == expected.keys()
    for module, weight in found.items():
        torch.testing.assert_close(weight, expected[module], atol=1e-3, rtol=1e-2)
        assert weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_an_adapter_beside_quantized_modules_is_added_to_the_dequantized_weight(tiny, name):
    model = quantizers.to_bitsandbytes_(loading.load(tiny).model, name)
    bare = dict(moved_weights.effective_weights(model))
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"]))
    layers = {n: wrapped.get_base_model().get_submodule(n) for n in bare if n.endswith("o_proj")}
    for layer in layers.values():
        with torch.no_grad():
            layer.lora_B["default"].weight.copy_(gaussian(128, 4))
    found = dict(moved_weights.effective_weights(wrapped))
    assert list(found) == list(bare)
    for module, weight in found.items():
        layer = layers.get(module)
        added = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight if layer else torch.zeros(())
        torch.testing.assert_close(weight - bare[module], added.detach().expand_as(weight), atol=1e-5, rtol=1e-4)


def test_dora_is_refused_because_its_weight_is_no_sum(tiny_model):
    wrapped = get_peft_model(tiny_model.model, LoraConfig(r=2, target_modules=["o_proj"], use_dora=True))
    with refused(REFUSED, "o_proj", "merge it first"):
        list(moved_weights.effective_weights(wrapped))


# ---------------------------------------------------------------- changes of weights


def changed(updates):
    return [(name, weight + updates.get(name, 0)) for name, weight in WEIGHTS.items()]


def test_the_changes_equal_the_dense_ones_module_by_module():
    updates = {name: 0.3 * gaussian(*weight.shape, seed=20) for name, weight in WEIGHTS.items()}
    directions = {1: gaussian(16, 2, seed=21), 3: gaussian(16, 1, seed=22)}
    found = moved_weights.weight_changes(WEIGHTS, changed(updates), directions).set_index("module")
    assert found["block"].tolist() == [0, 1, 1, 2]
    assert found["writes"].tolist() == [True, False, True, True]
    for name, update in updates.items():
        assert found.loc[name, "change"] == pytest.approx(float(update.norm() ** 2), rel=1e-5)
        assert found.loc[name, "weight"] == pytest.approx(float(WEIGHTS[name].norm() ** 2), rel=1e-5)
        for layer, matrix in directions.items():
            for j, w in enumerate(matrix.T):
                expected = float((update.T @ (w / w.norm())).norm() ** 2) if found.loc[name, "writes"] else 0.0
                assert found.loc[name, moved_weights.along(layer, j)] == pytest.approx(expected, rel=1e-4)


def test_only_blocks_below_the_layer_count():
    updates = {"model.layers.1.mlp.up_proj": 0.5 * WEIGHTS["model.layers.1.mlp.up_proj"]}
    found = moved_weights.weight_changes(WEIGHTS, changed(updates), {})
    size = {name: float(weight.norm() ** 2) for name, weight in WEIGHTS.items()}
    assert moved_weights.relative_change(found, 1) == 0
    inside = sum(list(size.values())[:3])
    expected = math.sqrt(0.25 * size["model.layers.1.mlp.up_proj"] / inside)
    assert moved_weights.relative_change(found, 2) == pytest.approx(expected, rel=1e-5)
    assert moved_weights.relative_change(found, 3) < moved_weights.relative_change(found, 2)


def test_a_probe_inside_what_the_update_writes_overlaps_and_one_off_it_does_not():
    basis = rotation(16).float()
    update = basis[:, :2] @ gaussian(2, 20, seed=5)  # writes two directions
    inside, off = basis[:, 0] + basis[:, 1], basis[:, 7]
    many = torch.stack([inside, off, 9 * off], dim=1)
    found = moved_weights.weight_changes(WEIGHTS, changed({"model.layers.1.mlp.down_proj": update}), {2: many, 1: many})
    assert moved_weights.output_overlap(found, 2, 0) > 2
    assert moved_weights.output_overlap(found, 2, 0) <= 16
    assert moved_weights.output_overlap(found, 2, 1) == pytest.approx(0, abs=1e-10)
    assert math.isnan(moved_weights.output_overlap(found, 1, 0))  # below layer 1 nothing changed


def test_a_random_direction_overlaps_by_one_in_the_mean():
    update = rotation(16)[:, :2].float() @ gaussian(2, 20, seed=5)
    found = moved_weights.weight_changes(WEIGHTS, changed({"model.layers.1.mlp.down_proj": update}), {2: gaussian(16, 2000)})
    assert np.mean([moved_weights.output_overlap(found, 2, j) for j in range(2000)]) == pytest.approx(1, abs=0.1)


def test_overlap_of_a_rank_one_update_with_its_own_direction_is_d_model():
    w = gaussian(16)
    update = torch.outer(w, gaussian(20, seed=1))
    found = moved_weights.weight_changes(WEIGHTS, changed({"model.layers.1.mlp.down_proj": update}), {3: w[:, None]})
    assert moved_weights.output_overlap(found, 3) == pytest.approx(16, rel=1e-4)


def test_nothing_given_is_changed_and_bf16_before_is_compared_exactly():
    before = {name: weight.bfloat16() for name, weight in WEIGHTS.items()}
    copies = {name: weight.clone() for name, weight in before.items()}
    found = moved_weights.weight_changes(before, ((n, w.float()) for n, w in before.items()), {1: gaussian(16, 1)})
    assert (found["change"] == 0).all()
    assert all(torch.equal(before[name], copies[name]) for name in before)
    assert isinstance(found, pd.DataFrame)


def test_another_model_a_missing_module_and_a_foreign_probe_are_refused():
    rows = changed({})
    with refused(NOT_COMPARABLE, "layers.2.mlp.down_proj", "missing after"):
        moved_weights.weight_changes(WEIGHTS, rows[:3], {})
    with refused(NOT_COMPARABLE, "other", "missing or of another shape"):
        moved_weights.weight_changes(WEIGHTS, [*rows, ("other", torch.zeros(2, 2))], {})
    with refused(NOT_COMPARABLE, "o_proj", "another shape"):
        moved_weights.weight_changes(WEIGHTS, [(rows[0][0], torch.zeros(2, 2))], {})
    with refused(2, "17 entries", "writes 16"):
        moved_weights.weight_changes(WEIGHTS, rows, {1: torch.ones(17, 1)})
    found = moved_weights.weight_changes(WEIGHTS, rows, {1: torch.ones(16, 1)})
    with refused(2, "no direction 0 at layer 2"):
        moved_weights.output_overlap(found, 2)
