"""Readouts: folding and the small basis are exact, and the kinds agree with scikit-learn where it has them."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from helpers.errors import REFUSED, StudyError
from helpers.monitors import readouts
from helpers.monitors.readouts import Pooled, Ragged

SHAPES = {"wide": (40, 96), "tall": (200, 24)}  # fewer rows than columns, and more


@pytest.fixture(params=SHAPES)
def data(request) -> tuple[np.ndarray, np.ndarray]:
    """Features of unlike scale and offset, a constant column among them, that correlate and tell the labels apart a little."""
    n, d = SHAPES[request.param]
    rng = np.random.default_rng(0)
    y = (np.arange(n) % 5 > 1).astype(int)  # unequal classes: a prior, or a midpoint, is seen
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + np.outer(y, rng.normal(size=d))
    x = x * rng.lognormal(sigma=2, size=d) + 10 * rng.normal(size=d)
    x[:, 3] = 0.1
    return x, y


def standardized(x: np.ndarray) -> np.ndarray:
    """By scikit-learn's own scaler, and divided as the module's head says."""
    return StandardScaler().fit_transform(x) / np.sqrt(x.shape[1])


def close(ours: np.ndarray, theirs: np.ndarray, share: float = 1e-6) -> bool:
    return np.abs(ours - theirs).max() <= share * np.abs(theirs).max()


def ragged(n: int, d: int, seed: int) -> Ragged:
    rng = np.random.default_rng(seed)
    ends = np.cumsum([0, *rng.integers(1, 12, size=n)])
    return Ragged(rng.normal(size=(ends[-1], d)), ends)


# ---------------------------------------------------------------- against scikit-learn


@pytest.mark.parametrize("strength", [10.0, 1.0, 0.1, 0.01])
def test_logistic_in_the_small_basis_and_folded_is_the_plain_fit_on_standardized_features(data, strength):
    x, y = data
    plain = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-13).fit(standardized(x), y)
    (tensors,) = readouts.logistic(Pooled(x), y, (strength,), 0)
    assert close(readouts.score_linear(tensors, Pooled(x)), plain.decision_function(standardized(x)))
    scale = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0) * np.sqrt(x.shape[1])
    assert close(tensors["w"] * scale, plain.coef_[0])


@pytest.mark.parametrize("strength", [1e-4, 1.0])
@pytest.mark.parametrize("spread", [0.1, 30.0])
def test_newtons_steps_end_at_the_optimum_also_where_a_whole_step_would_leave_it(spread, strength):
    rng = np.random.default_rng(1)
    x, y = spread * rng.standard_t(2, size=(50, 4)), np.arange(50) % 5 > 0
    found = readouts._newton(x, y.astype(int), strength)
    plain = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-13, max_iter=1000).fit(x, y)
    assert close(found, np.append(plain.coef_[0], plain.intercept_), 1e-8)
    p = 1 / (1 + np.exp(-(x @ found[:-1] + found[-1])))  # there the gradient is 0, the bias has no penalty
    assert np.abs(x.T @ (p - y) + strength * found[:-1]).max() < 1e-7 * spread
    assert abs((p - y).sum()) < 1e-7


def test_the_weight_of_the_shrinkage_is_that_of_scikit_learn(data):
    x, y = data
    z = standardized(x)
    residuals = z - np.array([z[y == label].mean(axis=0) for label in (0, 1)])[y]
    rows, _ = readouts._span(residuals)
    covariance, weight, mu = readouts.ledoit_wolf(rows, x.shape[1])
    assert weight == pytest.approx(ledoit_wolf_shrinkage(residuals, assume_centered=True), rel=1e-9)
    assert 0 < weight < 1
    assert mu == pytest.approx(np.square(residuals).sum() / residuals.size)
    assert np.trace(covariance) == pytest.approx(np.square(residuals).sum() / len(residuals))


def test_lda_is_that_of_scikit_learn_with_the_same_shrinkage(data):
    x, y = data
    z = standardized(x)
    residuals = z - np.array([z[y == label].mean(axis=0) for label in (0, 1)])[y]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=ledoit_wolf_shrinkage(residuals, assume_centered=True)).fit(z, y)
    (tensors,) = readouts.lda(Pooled(x), y, (0.0,), 0)
    assert close(readouts.score_linear(tensors, Pooled(x)), theirs.decision_function(z))


def test_mean_difference_is_the_difference_of_means_and_zero_lies_midway(data):
    x, y = data
    (tensors,) = readouts.mean_difference(Pooled(x), y, (0.0,), 0)
    low, high = x[y == 0].mean(axis=0), x[y == 1].mean(axis=0)
    assert np.allclose(tensors["w"], high - low)
    middle, end = readouts.score_linear(tensors, Pooled(np.array([(low + high) / 2, high])))
    assert abs(middle) < 1e-9 * end
    assert end == pytest.approx(np.square(high - low).sum() / 2)


def test_the_folded_network_scores_as_the_one_that_was_fitted(data):
    x, y = data
    (tensors,) = readouts.mlp(Pooled(x), y, (0.1,), 7)
    rows, _, _ = readouts._standardized(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        plain = MLPClassifier((16,), solver="lbfgs", alpha=0.1, max_iter=200, random_state=7).fit(rows, y)
    chance = plain.predict_proba(rows)[:, 1]
    assert np.allclose(1 / (1 + np.exp(-readouts.score_mlp(tensors, Pooled(x)))), chance, atol=1e-8)


def test_attention_in_numpy_and_folded_is_the_pooling_by_torch_on_standardized_tokens():
    features = ragged(30, 16, seed=3)
    features = Ragged(features.tokens * 5 + 2, features.offsets)
    rng = np.random.default_rng(4)
    q, v, b = rng.normal(size=16) * 9, rng.normal(size=16), 0.3
    centre, scale = readouts._centre_and_scale(features.tokens)
    z = torch.from_numpy((features.tokens - centre) / scale)
    expected = [
        float(torch.softmax(z[i:j] @ torch.from_numpy(q), 0) @ (z[i:j] @ torch.from_numpy(v))) + b
        for i, j in zip(features.offsets[:-1], features.offsets[1:], strict=True)
    ]
    folded = {"q": q / scale, "v": v / scale, "b": np.array(b - centre @ (v / scale))}
    assert np.allclose(readouts.score_attention(folded, features), expected, rtol=1e-10)


@pytest.mark.parametrize("strength", [1.0, 0.1, 0.01])
def test_attention_ends_where_the_loss_of_its_docstring_is_flat(strength):
    """Written out text by text, without padding: at the fitted q, v and b its gradient is all but gone."""
    features, y = ragged(60, 16, seed=5), np.arange(60) % 2
    features.tokens[features.offsets[:-1]] += 2 * y[:, None]  # the first token of a text tells
    (tensors,) = readouts.attention(features, y, (strength,), 0)
    centre, scale = readouts._centre_and_scale(features.tokens)
    z = torch.from_numpy((features.tokens - centre) / scale)
    texts = list(zip(features.offsets[:-1], features.offsets[1:], strict=True))

    def gradient(q: np.ndarray, v: np.ndarray, b: float) -> float:
        at = [torch.tensor(part, requires_grad=True) for part in (q, v, b)]
        pooled = [torch.softmax(z[i:j] @ at[0], 0) @ (z[i:j] @ at[1]) + at[2] for i, j in texts]
        loss = sum(torch.nn.functional.softplus(-s if label else s) for s, label in zip(pooled, y, strict=True))
        (loss + strength / 2 * (at[0].square().sum() + at[1].square().sum())).backward()
        return float(torch.cat([part.grad.ravel() for part in at]).norm())

    found = gradient(tensors["q"] * scale, tensors["v"] * scale, tensors["b"] + centre @ tensors["v"])
    assert found < 0.01 * gradient(0 * scale, 0 * scale, 0.0)


def test_attention_of_huge_keys_does_not_overflow_and_takes_the_largest():
    features = Ragged(np.array([[1.0, 5.0], [2.0, 7.0], [3.0, 1.0]]), np.array([0, 2, 3]))
    tensors = {"q": np.array([1e5, 0.0]), "v": np.array([0.0, 1.0]), "b": np.array(0.0)}
    assert readouts.score_attention(tensors, features).tolist() == [7.0, 1.0]


# ---------------------------------------------------------------- the small basis


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7)])
def test_the_small_basis_keeps_every_row_and_every_product(shape):
    z = np.random.default_rng(1).normal(size=shape)
    z[2] = z[1]  # of lower rank than it has rows
    rows, basis = readouts._span(z)
    assert rows.shape == (shape[0], min(shape))
    assert np.allclose(rows @ basis.T, z)
    assert np.allclose(basis.T @ basis, np.eye(min(shape)))


@pytest.mark.parametrize("kind", [readouts.logistic, readouts.lda])
def test_a_constant_column_gets_no_weight_even_where_it_moves_later(data, kind):
    x, y = data
    (tensors,) = kind(Pooled(x), y, (1.0,), 0)
    assert abs(tensors["w"][3]) < 1e-10
    assert np.isfinite(tensors["w"]).all()


def test_lda_without_scatter_within_the_classes_is_the_difference_of_means():
    x, y = np.repeat([[0.0, 1.0, 5.0], [2.0, 1.0, 3.0]], 4, axis=0), np.repeat([0, 1], 4)
    (tensors,) = readouts.lda(Pooled(x), y, (0.0,), 0)
    scores = readouts.score_linear(tensors, Pooled(x))
    assert tensors["w"][0] > 0 > tensors["w"][2]
    assert np.allclose(scores, np.where(y, scores[-1], -scores[-1]))


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_come_in_any_precision_of_torch_or_numpy(dtype):
    tokens = torch.arange(12).reshape(6, 2).to(dtype)
    expected = np.arange(12.0).reshape(6, 2)
    for features in (Pooled(tokens), Ragged(tokens, np.array([0, 2, 6])), Pooled(expected.astype(np.float32))):
        assert features.values.dtype == np.float64
        assert (features.values == expected).all()
        assert features.width == 2


@pytest.mark.parametrize("make", [lambda t: t.numpy(), lambda t: t, lambda t: t.bfloat16()], ids=["numpy", "torch", "bf16"])
def test_taking_texts_takes_their_tokens_in_the_order_asked_for(make):
    features = Ragged(make(torch.arange(10.0)[:, None]), np.array([0, 1, 4, 6, 10]))
    taken = features.take(np.array([2, 0, 2]))
    assert len(features) == 4
    assert len(taken) == 3
    assert taken.values.ravel().tolist() == [4, 5, 0, 4, 5]
    assert taken.offsets.tolist() == [0, 2, 3, 5]
    assert Pooled(features.tokens).take(np.array([3, 1])).values.ravel().tolist() == [3, 1]
    assert len(features.take(np.array([], dtype=int))) == 0


@pytest.mark.parametrize("ends", [[0, 2, 2, 6], [1, 6], [0, 4], [0, 4, 3, 6], [0, 7], []], ids=str)
def test_offsets_that_do_not_cut_the_tokens_into_texts_are_refused(ends):
    with pytest.raises(StudyError, match="offsets", check=lambda error: error.code == REFUSED):
        Ragged(np.zeros((6, 2)), np.array(ends, dtype=int))
