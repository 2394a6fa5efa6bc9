"""Readouts: the mathematics of each kind of probe, from features and labels to tensors, and from tensors to scores.

Features are standardized while fitting, and the standardization is folded into the weights: what comes out reads raw hidden
states, a linear readout is just x @ w + b, and scoring needs numpy alone. A standardized row is also divided by the root of
d_model, so that a strength (a penalty on squared weights) means the same at every width.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from helpers.errors import REFUSED, StudyError


def _float64(array: np.ndarray | Tensor) -> np.ndarray:
    # float64: the order in which d_model products are added shall not carry a score across a threshold
    return torch.as_tensor(array).detach().double().cpu().numpy()


@dataclass(frozen=True)
class Pooled:
    """One vector a text: what the pooled kinds read. Arrays of numpy or torch in any precision."""

    rows: Float[np.ndarray, "n d_model"] | Float[Tensor, "n d_model"]

    @property
    def values(self) -> Float[np.ndarray, "n d_model"]:
        return _float64(self.rows)

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Int[np.ndarray, " chosen"]) -> "Pooled":
        """The texts at these places, in this order."""
        return Pooled(self.rows[index])


@dataclass(frozen=True)
class Moved(Pooled):
    """Vectors of texts, and those of the same texts under simulated updates: what a probe that foresees updates is fitted on."""

    under: tuple[Float[np.ndarray, "n d_model"] | Float[Tensor, "n d_model"], ...] = ()

    @property
    def moves(self) -> Float[np.ndarray, "k n d_model"]:
        """By how much each simulated update moved each text."""
        return np.array([_float64(rows) for rows in self.under]) - self.values


@dataclass(frozen=True)
class Ragged:
    """The tokens of several texts, end to end: text i is rows offsets[i] up to offsets[i + 1]. What attention pooling reads."""

    tokens: Float[np.ndarray, "tokens d_model"] | Float[Tensor, "tokens d_model"]
    offsets: Int[np.ndarray, " n_plus_one"]

    def __post_init__(self):
        ends = np.asarray(self.offsets)
        if ends.ndim != 1 or ends.size < 1 or ends[0] != 0 or ends[-1] != len(self.tokens) or (np.diff(ends) < 1).any():
            raise StudyError(
                f"offsets do not cut {len(self.tokens)} tokens into texts of one token or more; leave empty texts out", REFUSED
            )

    @property
    def values(self) -> Float[np.ndarray, "tokens d_model"]:
        return _float64(self.tokens)

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, index: Int[np.ndarray, " chosen"]) -> "Ragged":
        """The texts at these places, in this order."""
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in index]
        return Ragged(self.tokens[np.concatenate([np.empty(0, int), *spans])], np.cumsum([0, *map(len, spans)]))


REMOVED = 8  # directions of simulated updates that are taken out

Features = Pooled | Ragged
Tensors = dict[str, np.ndarray]
Labels = Int[np.ndarray, " n"]
Strengths = Sequence[float]

# ---------------------------------------------------------------- coordinates to fit in


def _centre_and_scale(x: Float[np.ndarray, "n d_model"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sqrt(d_model) * standard deviation of each column; a constant column, which says nothing, keeps deviation 1."""
    spread = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)
    return x.mean(axis=0), spread * np.sqrt(x.shape[1])


def _span(z: Float[np.ndarray, "n d_model"]) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "d_model r"]]:
    """The rows in an orthonormal basis of what they span, and the basis; r = min(n, d_model).

    With a penalty on ||w||^2 the optimum lies in that span (Kimeldorf and Wahba 1971), so fitting r numbers is exact.
    """
    if len(z) >= z.shape[1]:
        return z, np.eye(z.shape[1])
    basis, rows = np.linalg.qr(z.T)
    return rows.T, basis


def _standardized(x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """The rows to fit on, the map that takes weights on them to weights on raw features, and the mean of the raw features."""
    centre, scale = _centre_and_scale(x)
    rows, basis = _span((x - centre) / scale)
    return rows, lambda weights: (basis @ weights).T / scale, centre


def _class_means(x: np.ndarray, y: Labels) -> Float[np.ndarray, "2 d_model"]:
    return np.array([x[y == label].mean(axis=0) for label in (0, 1)])


# ---------------------------------------------------------------- linear kinds: x @ w + b


def _linear(w: np.ndarray, b: float) -> Tensors:
    return {"w": np.ascontiguousarray(w), "b": np.array(b, dtype=np.float64)}


def score_linear(tensors: Tensors, features: Pooled) -> Float[np.ndarray, " n"]:
    """x @ w + b of every row x."""
    # einsum sums every row in the same order; a product of matrices does not, and equal texts would not tie
    return np.einsum("nd,d->n", features.values, tensors["w"]) + tensors["b"]


def logistic(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """Logistic regression: the summed log loss + strength / 2 * ||w||^2, one readout a strength; `seed` is not used."""
    rows, unfold, centre = _standardized(features.values)
    found = []
    for strength in strengths:
        weights = _newton(rows, y, strength)
        w = unfold(weights[:-1])
        found.append(_linear(w, weights[-1] - centre @ w))
    return found


def _newton(x: Float[np.ndarray, "n r"], y: Labels, strength: float) -> Float[np.ndarray, " r_plus_one"]:
    """The optimum by Newton's steps from 0, halved where the loss would not fall: weights, and the bias, which has no penalty.

    scikit-learn's newton-cholesky takes the same steps; around a small basis like this one it spends six times as long on checks.
    """
    z, penalty, sides = np.column_stack([x, np.ones(len(x))]), np.append(np.full(x.shape[1], strength), 0.0), 2 * y - 1

    def loss(at: np.ndarray) -> float:
        return float(np.logaddexp(0, -sides * (z @ at)).sum() + penalty @ np.square(at) / 2)

    found = np.zeros(z.shape[1])
    for _ in range(100):
        p = special.expit(z @ found)
        gradient = z.T @ (p - y) + penalty * found
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty), gradient)
        fall, size, now = float(gradient @ step), 1.0, loss(found)  # `fall`: twice what the step gains where the loss is a bowl
        while fall > 1e-6 and size > 1e-8 and loss(found - size * step) > now - 1e-4 * size * fall:
            size /= 2
        found = found - size * step
        if fall < 1e-12:  # the step squared what was missing
            break
    return found


def simulated_updates(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """`logistic` on the vectors and on the same texts' vectors under each simulated update, all with their labels."""
    return _on_copies(features, _moves(features), y, strengths)


def simulated_noise(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """`simulated_updates` with each move turned into a random direction of the same length: the control of wrong moves."""
    moves = _moves(features)
    noise, lengths = np.random.default_rng(seed).normal(size=moves.shape), np.linalg.norm(moves, axis=-1, keepdims=True)
    return _on_copies(features, noise * lengths / np.linalg.norm(noise, axis=-1, keepdims=True), y, strengths)


def _moves(features: Pooled) -> Float[np.ndarray, "k n d_model"]:
    if not isinstance(features, Moved) or not features.under:
        raise StudyError("a probe that foresees updates needs states under simulated ones; name some in simulated")
    return features.moves


def _on_copies(features: Pooled, moves: Float[np.ndarray, "k n d_model"], y: Labels, strengths: Strengths) -> list[Tensors]:
    """The penalty grows with the copies, so that a strength means the same as on the vectors alone."""
    copies = 1 + len(moves)
    rows = np.concatenate([features.values, *(features.values + move for move in moves)])
    return logistic(Pooled(rows), np.tile(y, copies), [copies * strength for strength in strengths], 0)


def simulated_removed(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """`logistic` on what is left of the vectors without the directions in which the simulated updates move them most.

    In standardized features z it is fitted on (I - U U^T) z, and its weights are projected likewise: U are the REMOVED leading
    right singular vectors of the moves in these units. The moves are not centred: a shift of all texts is what breaks a
    threshold first.
    """
    centre, scale = _centre_and_scale(features.values)
    _, sizes, vectors = np.linalg.svd(_moves(features).reshape(-1, features.width) / scale, full_matrices=False)
    basis = vectors[:REMOVED][sizes[:REMOVED] > 1e-9 * sizes[0]].T

    def left(z: np.ndarray) -> np.ndarray:
        return z - (z @ basis) @ basis.T

    rows, span = _span(left((features.values - centre) / scale))
    found = []
    for strength in strengths:
        weights = _newton(rows, y, strength)
        w = left(span @ weights[:-1]) / scale
        found.append(_linear(w, weights[-1] - centre @ w))
    return found


def mean_difference(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """w = mu1 - mu0 of the raw features, as in the literature (Marks and Tegmark 2023; Arditi et al. 2024); 0 lies midway."""
    means = _class_means(features.values, y)
    w = means[1] - means[0]
    return [_linear(w, -means.mean(axis=0) @ w)]


def ledoit_wolf(residuals: Float[np.ndarray, "n r"], d: int) -> tuple[Float[np.ndarray, "r r"], float, float]:
    """Covariance S of centred rows, the optimal weight of its target mu * I, and mu (Ledoit and Wolf 2004), in d dimensions.

    All of it is left alone by a rotation, so the rows may be given in a basis of their span while d counts all dimensions.
    """
    n = len(residuals)
    covariance = residuals.T @ residuals / n
    mu, square = float(np.trace(covariance)) / d, float(np.square(covariance).sum())
    distance = square - d * mu**2
    noise = (np.square(np.square(residuals).sum(axis=1)).sum() / n - square) / n
    return covariance, float(np.clip(noise / distance, 0, 1)) if distance > 0 else 1.0, mu


def lda(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """w = S^-1 (mu1 - mu0): S the pooled covariance of the standardized features, shrunk by Ledoit and Wolf's own formula."""
    x = features.values
    rows, unfold, centre = _standardized(x)
    means = _class_means(rows, y)
    covariance, weight, mu = ledoit_wolf(rows - means[y], x.shape[1])
    # the floor keeps S invertible; without any scatter within the classes w becomes the difference of means
    ridge = max(weight * mu, 1e-12 * float(np.trace(covariance))) or 1.0
    inner = np.linalg.solve((1 - weight) * covariance + ridge * np.eye(rows.shape[1]), means[1] - means[0])
    w = unfold(inner)
    return [_linear(w, np.log(y.mean() / (1 - y.mean())) - means.mean(axis=0) @ inner - centre @ w)]


# ---------------------------------------------------------------- a small network


def mlp(features: Pooled, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """One hidden layer of 16 rectified units, penalty strength / (2 n) * ||W||^2 on the mean log loss; starts from `seed`."""
    rows, unfold, centre = _standardized(features.values)
    found = []
    for strength in strengths:
        model = MLPClassifier((16,), solver="lbfgs", alpha=strength, max_iter=200, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are the budget, and part of the kind
            model.fit(rows, y)
        w1 = np.ascontiguousarray(unfold(model.coefs_[0]))
        b1 = model.intercepts_[0] - w1 @ centre
        found.append({"W1": w1, "b1": b1, "w2": model.coefs_[1][:, 0].copy(), "b2": np.array(model.intercepts_[1][0])})
    return found


def score_mlp(tensors: Tensors, features: Pooled) -> Float[np.ndarray, " n"]:
    """relu(x @ W1.T + b1) @ w2 + b2 of every row x."""
    hidden = np.maximum(features.values @ tensors["W1"].T + tensors["b1"], 0.0)
    return hidden @ tensors["w2"] + tensors["b2"]


# ---------------------------------------------------------------- attention pooling


def attention(features: Ragged, y: Labels, strengths: Strengths, seed: int) -> list[Tensors]:
    """One query q and one value direction v: sum_t softmax_t(h_t . q) (h_t . v) + b, fitted together; starts from `seed`.

    The summed log loss + strength / 2 * (||q||^2 + ||v||^2), as the attention probe of McKenzie et al. (2025).
    """
    tokens = features.values
    centre, scale = _centre_and_scale(tokens)
    # float32: reading z is all the time there is, and it resolves the loss far below what validation can tell apart
    z = torch.from_numpy(((tokens - centre) / scale).astype(np.float32))
    found = []
    for strength in strengths:
        q, v, b = _fit_attention(z, _padded(features.offsets), torch.from_numpy(y).float(), strength, seed)
        q, v = q / scale, v / scale  # what centring adds to h . q is the same for all tokens, and softmax drops it
        found.append({"q": q, "v": v, "b": np.array(b - centre @ v)})
    return found


def _padded(offsets: np.ndarray) -> tuple[Int[Tensor, "n longest"], Bool[Tensor, "n longest"]]:
    """Where each token stands in the flat rows, one text a line, and which places hold a token."""
    lengths = np.diff(offsets)[:, None]
    place = np.arange(lengths.max())
    real = place < lengths
    return torch.from_numpy(np.where(real, offsets[:-1, None] + place, 0)), torch.from_numpy(real)


def _fit_attention(
    z: Float[Tensor, "tokens d_model"], padded: tuple[Tensor, Tensor], y: Float[Tensor, " n"], strength: float, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """q, v and b by L-BFGS; from small random vectors, since larger ones were seen to settle on a token by chance."""
    index, real = padded
    generator = torch.Generator().manual_seed(seed)
    q, v = ((0.01 * torch.randn(z.shape[1], generator=generator)).requires_grad_() for _ in range(2))
    b = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [q, v, b], max_iter=100, history_size=10, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        # z @ q and z @ v apart: two matrix-vector products were 4 to 7 times faster than one thin matrix product
        weights = torch.softmax((z @ q)[index].masked_fill(~real, -torch.inf), dim=1)
        logits = (weights * (z @ v)[index]).sum(dim=1) + b
        penalty = strength / 2 * (q.square().sum() + v.square().sum())
        value = binary_cross_entropy_with_logits(logits, y, reduction="sum") + penalty
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return q.detach().double().numpy(), v.detach().double().numpy(), float(b.detach())


def score_attention(tensors: Tensors, features: Ragged) -> Float[np.ndarray, " n"]:
    """sum_t softmax_t(h_t . q) (h_t . v) + b of every text with tokens h_t."""
    tokens, starts = features.values, features.offsets[:-1]
    keys = tokens @ tensors["q"]
    # each text's largest key is taken off, so that exp cannot overflow
    weights = np.exp(keys - np.repeat(np.maximum.reduceat(keys, starts), np.diff(features.offsets)))
    scores = np.add.reduceat(weights * (tokens @ tensors["v"]), starts) / np.add.reduceat(weights, starts) + tensors["b"]
    return np.round(scores, 12)  # texts that hold the same tie, whatever order their sums were rounded in
