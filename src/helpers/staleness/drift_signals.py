"""Signals: what can be known of a (monitor, update) cell before anybody labels a test set, in three classes of price.

Free signals are known before any forward pass of the updated model, forward signals need unlabelled texts through both
models, labels signals need 10 to 20 labelled rows. Each is one number per cell; what is undefined is nan, never a guess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.stats import roc

Scores = Sequence[float] | np.ndarray
Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Signal:
    """What a signal costs ("free", "forward" or "labels") and what it says, in one phrase."""

    price: str
    words: str


SIGNALS: dict[str, Signal] = {
    "family": Signal("free", "kind of update: quantization, LoRA, QLoRA, full fine-tune, QAT"),
    "pooling": Signal("free", "what the monitor reads: the last token, the mean over tokens, or attention"),
    "bits": Signal("free", "bits per weight that the model is served in"),
    "rank": Signal("free", "rank of the adapter; 0 without one"),
    "scale": Signal("free", "alpha / r of the adapter; 0 without one"),
    "steps": Signal("free", "training steps of the update; 0 without training"),
    "lr": Signal("free", "learning rate of the update; 0 without training"),
    "relative_change": Signal("free", "relative size of the weight change below the monitor's layer"),
    "output_overlap": Signal("free", "overlap of the probe direction with what the changed modules write; 1 by chance"),
    "separation": Signal("free", "standardized distance of the class means before the update"),
    "base_auroc": Signal("free", "AUROC of the monitor before the update"),
    "principal_share": Signal("free", "share of the probe direction in the top principal components"),
    "mean_shift": Signal("forward", "shift of the mean along the probe direction, in sd of the score before"),
    "cka": Signal("forward", "linear CKA of the activations before and after; 1 where nothing moved"),
    "covariance_distance": Signal("forward", "relative distance of the covariances before and after"),
    "score_ks": Signal("forward", "largest gap between the score distributions before and after (KS)"),
    "score_psi": Signal("forward", "population stability index of the scores before and after"),
    "score_correlation": Signal("forward", "rank correlation of the scores of the same texts before and after"),
    "few_drop": Signal("labels", "AUROC drop on a few labelled rows"),
    "few_accuracy": Signal("labels", "change of accuracy at the frozen threshold on a few labelled rows"),
}


# ---------------------------------------------------------------- activations


def _double(values: Float[np.ndarray, "..."], name: str) -> np.ndarray:
    """The values, of a tensor too, in float64: sums over thousands of texts, and differences of nearly equal sums, follow."""
    array = np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values, dtype=float)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
        raise StudyError(f"{name}: {bad} of {len(array)} rows are not finite; measure that variant again", REFUSED)
    return array


def _centred(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    before, after = _double(x, "activations before"), _double(y, "activations after")
    if before.ndim != 2 or before.shape != after.shape or len(before) < 2:
        shapes = f"{before.shape} and {after.shape}"
        raise StudyError(f"activations have shapes {shapes}; pass the same texts, two or more, at one layer", NOT_COMPARABLE)
    return before - before.mean(axis=0), after - after.mean(axis=0)


def linear_cka(x: Float[np.ndarray, "n d_model"], y: Float[np.ndarray, "n d_model"]) -> float:
    """Linear CKA of the activations of the same texts before and after, 0 to 1; nan where one side is constant.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) with centred columns (Kornblith et al. 2019), or the same from the n x n Gram
    matrices, <XX^T, YY^T> / (||XX^T||_F ||YY^T||_F): whichever matrices are smaller. Blind to rotations and one common scale.
    """
    before, after = _centred(x, y)
    if len(before) <= before.shape[1]:
        left, right = before @ before.T, after @ after.T
        shared, sizes = float((left * right).sum()), np.linalg.norm(left) * np.linalg.norm(right)
    else:
        shared = float(np.square(after.T @ before).sum())
        sizes = np.linalg.norm(before.T @ before) * np.linalg.norm(after.T @ after)
    return min(shared / float(sizes), 1.0) if sizes > 0 else math.nan


def covariance_distance(x: Float[np.ndarray, "n d_model"], y: Float[np.ndarray, "n d_model"]) -> float:
    """||C_Y - C_X||_F / ||C_X||_F of the covariances before (X) and after (Y); nan where the activations before are constant.

    With S = (X + Y) / 2 and D = Y - X, Y^T Y - X^T X = S^T D + D^T S, whose squared norm is 2 <SS^T, DD^T> + 2 tr((D S^T)^2):
    n x n only, and nothing cancels where the two are nearly equal. The distance that CORAL aligns (Sun and Saenko 2016).
    """
    before, after = _centred(x, y)
    if len(before) > before.shape[1]:
        own = before.T @ before
        moved, size = float(np.linalg.norm(after.T @ after - own)), float(np.linalg.norm(own))
    else:
        middle, step = (before + after) / 2, after - before
        cross = step @ middle.T
        squared = 2 * ((middle @ middle.T) * (step @ step.T)).sum() + 2 * (cross * cross.T).sum()
        moved, size = math.sqrt(max(float(squared), 0.0)), float(np.linalg.norm(before @ before.T))
    return moved / size if size > 0 else math.nan


def mean_shift(x: Float[np.ndarray, "n d_model"], y: Float[np.ndarray, "n d_model"], w: Float[np.ndarray, " d_model"]) -> float:
    """(mean Y - mean X) . w / sd(X w): how far the mean moved along the probe direction, in sd of the score before; signed.

    For a monitor without a direction pass its scores as n x 1 activations and w = [1]. nan where the score before is constant.
    """
    direction = _double(w, "probe direction")
    before, after = (_double(values, "activations") @ direction for values in (x, y))
    spread = before.std(ddof=1) if len(before) > 1 else 0.0
    return float((after.mean() - before.mean()) / spread) if spread > 0 else math.nan


def principal_share(x: Float[np.ndarray, "n d_model"], w: Float[np.ndarray, " d_model"], k: int = 10) -> float:
    """||P_k w||^2 / ||w||^2: share of the probe direction in the top k principal components before; k / d by chance.

    With K = X X^T (centred) = U L U^T the components are X^T u_j / sqrt(l_j), so the share is sum_j (u_j . X w)^2 / l_j: the
    smaller of n x n and d x d is decomposed. Components below 1e-10 of the largest are noise and left out.
    """
    rows, direction = _double(x, "activations"), _double(w, "probe direction")
    if k < 1 or rows.shape[1:] != direction.shape:
        raise StudyError(f"k = {k}, activations {rows.shape}, direction {direction.shape}; k is at least 1, and d must agree")
    rows, size = rows - rows.mean(axis=0), float(direction @ direction)
    wide = rows.shape[0] <= rows.shape[1]
    values, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    top = [j for j in np.argsort(values)[::-1][:k] if values[j] > 1e-10 * values[-1] and values[j] > 0]
    if not top or size == 0:
        return math.nan
    along = vectors[:, top].T @ (rows @ direction if wide else direction)
    return float((along**2 / (values[top] if wide else 1.0)).sum() / size)


# ---------------------------------------------------------------- scores


def _pair(before: Scores, after: Scores) -> tuple[np.ndarray, np.ndarray]:
    first, second = (_double(np.atleast_1d(values), "scores") for values in (before, after))
    if first.ndim != 1 or second.ndim != 1 or not first.size or not second.size:
        raise StudyError(f"scores have shapes {first.shape} and {second.shape}; pass one number per text, and one text or more")
    return first, second


def score_ks(before: Scores, after: Scores) -> float:
    """Largest gap between the two distributions of scores, 0 to 1: the two-sample statistic of Kolmogorov and Smirnov (1939)."""
    first, second = map(np.sort, _pair(before, after))
    points = np.concatenate([first, second])
    shares = [np.searchsorted(side, points, side="right") / side.size for side in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def score_psi(before: Scores, after: Scores, bins: int = 10) -> float:
    """Population stability index sum_k (q_k - p_k) ln(q_k / p_k) of the scores after (q) against before (p); Siddiqi (2006).

    Bins are the deciles of the scores before, open at both ends. Half a count is added to each bin of either side, so that
    an empty bin is finite and equal counts give 0. Without any change its mean is about (bins - 1) (1/n + 1/m) for unlike
    texts. Industry reads 0.1 as a change and 0.25 as a large one. nan where all scores before are equal.
    """
    first, second = _pair(before, after)
    if np.ptp(first) == 0:
        return math.nan
    edges = np.unique(np.quantile(first, np.arange(1, bins) / bins))
    counts = [np.bincount(np.searchsorted(edges, s, side="left"), minlength=edges.size + 1) + 0.5 for s in (first, second)]
    p, q = (count / count.sum() for count in counts)
    return float(((q - p) * np.log(q / p)).sum())


def score_correlation(before: Scores, after: Scores) -> float:
    """Spearman's rank correlation of the scores of the same texts before and after; nan where one side is constant."""
    first, second = _pair(before, after)
    if first.size != second.size:
        raise StudyError(f"scores of {first.size} and {second.size} texts; pass the same texts in the same order", NOT_COMPARABLE)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def _classes(labels: Labels, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    numbers, truth = _double(np.asarray(scores, dtype=float), "scores"), np.asarray(labels)
    if truth.shape != numbers.shape or set(truth.tolist()) != {0, 1}:
        raise StudyError(
            f"{truth.size} labels for {numbers.size} scores hold {sorted(set(truth.tolist()))}; both 0 and 1 are needed"
        )
    return truth.astype(bool), numbers


def separation(scores: Scores, labels: Labels) -> float:
    """(mean_1 - mean_0) / pooled sd of the base's scores on the training rows (Cohen's d, 1988); nan where the sd is 0."""
    truth, numbers = _classes(labels, scores)
    sides = [numbers[truth], numbers[~truth]]
    spread = math.sqrt(sum(np.square(side - side.mean()).sum() for side in sides) / max(len(numbers) - 2, 1))
    return float((sides[0].mean() - sides[1].mean()) / spread) if spread > 0 else math.nan


def few_labels(labels: Labels, base_scores: Scores, variant_scores: Scores, threshold: float) -> dict[str, float]:
    """Signals `few_drop` (AUROC before - after) and `few_accuracy` (accuracy after - before at the frozen threshold).

    Meant for 10 to 20 rows of both classes: at 10 + 10 rows the drop has a standard error near 0.1, so it is a hint, no test.
    A text is flagged where score > threshold; the drop is nan where all scores of one side are tied.
    """
    truth, before = _classes(labels, base_scores)
    _, after = _classes(labels, variant_scores)
    right = [float(((scores > threshold) == truth).mean()) for scores in (before, after)]
    drop = float(roc.auroc(truth, before)) - float(roc.auroc(truth, after))
    return {"few_drop": drop, "few_accuracy": right[1] - right[0]}
