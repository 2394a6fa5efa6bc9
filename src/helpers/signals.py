"""Signals: what can be known of a (monitor, update) cell before anybody labels a test set, in three classes of price.

Free signals are known before any forward pass of the updated model, forward signals need unlabelled texts through both
models, labels signals need 10 to 20 labelled rows. Each is one number per cell; what is undefined is nan, never a guess.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from scipy import stats
from torch import Tensor, nn

from helpers import roc
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.lowrank import LowRank
from helpers.quantizers import linear_names, read_linear4bit

WRITERS = ("o_proj", "down_proj")  # the linear modules whose output is added to the residual stream
Scores = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Signal:
    """What a signal costs ("free", "forward" or "labels") and what it says, in one phrase."""

    price: str
    words: str


SIGNALS: dict[str, Signal] = {
    "family": Signal("free", "kind of update: quantization, LoRA, QLoRA, full fine-tune, QAT"),
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


def _double(values: Float[Tensor, "..."], name: str) -> np.ndarray:
    """The values in float64: sums over thousands of texts, and differences of nearly equal sums, follow."""
    array = torch.as_tensor(values).detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
        raise StudyError(f"{name}: {bad} of {len(array)} rows are not finite; measure that variant again", REFUSED)
    return array


def _centred(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    before, after = _double(x, "activations before"), _double(y, "activations after")
    if before.ndim != 2 or before.shape != after.shape or len(before) < 2:
        shapes = f"{before.shape} and {after.shape}"
        raise StudyError(f"activations have shapes {shapes}; pass the same texts, two or more, at one layer", NOT_COMPARABLE)
    return before - before.mean(axis=0), after - after.mean(axis=0)


def linear_cka(x: Float[Tensor, "n d_model"], y: Float[Tensor, "n d_model"]) -> float:
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


def covariance_distance(x: Float[Tensor, "n d_model"], y: Float[Tensor, "n d_model"]) -> float:
    """||C_Y - C_X||_F / ||C_X||_F of the covariances before (X) and after (Y); nan where the activations before are constant.

    With S = (X + Y) / 2 and D = Y - X, Y^T Y - X^T X = S^T D + D^T S, whose squared norm is 2 <SS^T, DD^T> + 2 tr((D S^T)^2):
    n x n only, and nothing cancels where the two are nearly equal. The distance that CORAL aligns (Sun and Saenko 2016).
    """
    before, after = _centred(x, y)
    if len(before) > before.shape[1]:
        own = before.T @ before
        moved, size = np.linalg.norm(after.T @ after - own), np.linalg.norm(own)
    else:
        middle, step = (before + after) / 2, after - before
        cross = step @ middle.T
        squared = 2 * ((middle @ middle.T) * (step @ step.T)).sum() + 2 * (cross * cross.T).sum()
        moved, size = math.sqrt(max(float(squared), 0.0)), np.linalg.norm(before @ before.T)
    return float(moved / size) if size > 0 else math.nan


def mean_shift(x: Float[Tensor, "n d_model"], y: Float[Tensor, "n d_model"], w: Float[Tensor, " d_model"]) -> float:
    """(mean Y - mean X) . w / sd(X w): how far the mean moved along the probe direction, in sd of the score before; signed.

    For a monitor without a direction pass its scores as n x 1 activations and w = [1]. nan where the score before is constant.
    """
    direction = _double(w, "probe direction")
    before, after = (_double(values, "activations") @ direction for values in (x, y))
    spread = before.std(ddof=1) if len(before) > 1 else 0.0
    return float((after.mean() - before.mean()) / spread) if spread > 0 else math.nan


def principal_share(x: Float[Tensor, "n d_model"], w: Float[Tensor, " d_model"], k: int = 10) -> float:
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


def _classes(labels: Sequence[int], scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    numbers, truth = _double(np.asarray(scores, dtype=float), "scores"), np.asarray(labels)
    if truth.shape != numbers.shape or set(truth.tolist()) != {0, 1}:
        raise StudyError(
            f"{truth.size} labels for {numbers.size} scores hold {sorted(set(truth.tolist()))}; both 0 and 1 are needed"
        )
    return truth.astype(bool), numbers


def separation(scores: Scores, labels: Sequence[int]) -> float:
    """(mean_1 - mean_0) / pooled sd of the base's scores on the training rows (Cohen's d, 1988); nan where the sd is 0."""
    truth, numbers = _classes(labels, scores)
    sides = [numbers[truth], numbers[~truth]]
    spread = math.sqrt(sum(np.square(side - side.mean()).sum() for side in sides) / max(len(numbers) - 2, 1))
    return float((sides[0].mean() - sides[1].mean()) / spread) if spread > 0 else math.nan


def few_labels(labels: Sequence[int], base_scores: Scores, variant_scores: Scores, threshold: float) -> dict[str, float]:
    """Signals `few_drop` (AUROC before - after) and `few_accuracy` (accuracy after - before at the frozen threshold).

    Meant for 10 to 20 rows of both classes: at 10 + 10 rows the drop has a standard error near 0.1, so it is a hint, no test.
    A text is flagged where score > threshold; the drop is nan where all scores of one side are tied.
    """
    truth, before = _classes(labels, base_scores)
    _, after = _classes(labels, variant_scores)
    right = [float(((scores > threshold) == truth).mean()) for scores in (before, after)]
    drop = float(roc.auroc(truth, before)) - float(roc.auroc(truth, after))
    return {"few_drop": drop, "few_accuracy": right[1] - right[0]}


# ---------------------------------------------------------------- weights


def effective_weights(model: nn.Module) -> Iterator[tuple[str, Float[Tensor, "d_out d_in"]]]:
    """Name and float32 weight of each linear module inside the blocks, one at a time, as the model multiplies by it.

    Understands plain linear modules, bitsandbytes' 8 and 4 bit (dequantized), and PEFT's LoRA beside any of them, as
    base + scale * B A under the names of the unwrapped model. Rounding of activations, as in LLM.int8, is not a weight.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    owners = dict.fromkeys(name.partition(".lora_")[0].removesuffix(".base_layer") for name in linear_names(inner))
    for name in owners:
        module = inner.get_submodule(name)
        weight = _dense(module.get_base_layer() if isinstance(module, LoraLayer) else module)
        if isinstance(module, LoraLayer) and not module.disable_adapters:
            for adapter in (a for a in module.active_adapters if a in module.lora_A and a not in module.merged_adapters):
                weight = weight + _added(name, module, adapter)
        yield name, weight


@torch.no_grad()
def _dense(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    bnb = sys.modules.get("bitsandbytes")  # where nothing has imported it, no module is one of its own
    if bnb and isinstance(module, bnb.nn.Linear4bit):
        return read_linear4bit(module).dequantize(torch.float32)
    if bnb and isinstance(module, bnb.nn.Linear8bitLt):
        scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB  # the first forward pass moves them
        return bnb.functional.int8_vectorwise_dequant(module.weight.data, scales).float()
    return module.weight.detach().float()


@torch.no_grad()
def _added(name: str, module: LoraLayer, adapter: str) -> Float[Tensor, "d_out d_in"]:
    if adapter in module.lora_magnitude_vector or module.lora_bias[adapter]:
        raise StudyError(f"{name} holds more than plain LoRA (DoRA or a bias); merge it first", REFUSED)
    return LowRank(module.scaling[adapter] * module.lora_B[adapter].weight.float(), module.lora_A[adapter].weight).dense()


def along(layer: int, position: int) -> str:
    """The column of `weight_changes` for one direction: its layer and its place among that layer's directions."""
    return f"along_{layer}_{position}"


@torch.no_grad()
def weight_changes(
    before: Mapping[str, Float[Tensor, "d_out d_in"]],
    after: Iterable[tuple[str, Float[Tensor, "d_out d_in"]]],
    directions: Mapping[int, Float[Tensor, "d_model p"]],
) -> pd.DataFrame:
    """One row per module: block, writes (into the residual stream), d_out, change = ||dW||_F^2, weight = ||W||_F^2, and for
    writers ||dW^T w||^2 for the unit direction w of every column of `directions` (0 for the others).

    `before` are the aligned model's weights by module name, `after` comes from `effective_weights` of the variant. One dense
    difference is alive at a time, in float32; squares are summed in float64, where float32 was seen to be off by 1e-3.
    """
    columns = [along(layer, j) for layer, matrix in directions.items() for j in range(matrix.shape[1])]
    unit = torch.cat([m.float() / m.float().norm(dim=0, keepdim=True) for m in directions.values()], dim=1) if columns else None
    rows = {}
    for name, weight in after:
        if name not in before or before[name].shape != weight.shape:
            raise StudyError(
                f"module {name!r} is missing or of another shape before; compare variants of one model", NOT_COMPARABLE
            )
        rows[name] = _change_row(name, before[name], weight, unit, columns)
    if missing := [name for name in before if name not in rows]:
        raise StudyError(f"module {missing[0]!r} is missing after; compare variants of one model", NOT_COMPARABLE)
    return pd.DataFrame(list(rows.values()))


def _change_row(name: str, old: Tensor, new: Tensor, unit: Tensor | None, columns: Sequence[str]) -> dict:
    change, writes = new - old, name.rpartition(".")[2] in WRITERS  # bf16 and float32 meet in float32
    found = [0.0] * len(columns)
    if writes and unit is not None:
        if len(unit) != len(change):
            raise StudyError(f"directions have {len(unit)} entries, {name!r} writes {len(change)}; use this model's probes")
        found = (change.T @ unit).double().square().sum(dim=0).tolist()
    block = int(next(part for part in name.split(".") if part.isdigit()))
    sizes = {"change": _squares(change), "weight": _squares(old.float())}
    return {
        "module": name,
        "block": block,
        "writes": writes,
        "d_out": len(change),
        **sizes,
        **dict(zip(columns, found, strict=True)),
    }


def _squares(matrix: Tensor) -> float:
    return float(matrix.square().sum(dim=1, dtype=torch.float64).sum())


def relative_change(changes: pd.DataFrame, layer: int) -> float:
    """sqrt(sum ||dW||_F^2) / sqrt(sum ||W||_F^2) over the modules of the first `layer` blocks, those that the monitor reads."""
    below = changes[changes["block"] < layer]
    return math.sqrt(below["change"].sum() / below["weight"].sum()) if below["weight"].sum() > 0 else math.nan


def output_overlap(changes: pd.DataFrame, layer: int, position: int = 0) -> float:
    """sum ||dW^T w||^2 / (sum ||dW||_F^2 / d_model) over the residual writers of the first `layer` blocks, w of unit length.

    1 is what a random direction gets in the mean, 0 what a direction off the change's output space gets, d_model the most.
    Ours: the energy of a projection, as in subspace overlap. nan where those modules did not change.
    """
    if (column := along(layer, position)) not in changes:
        raise StudyError(f"no direction {position} at layer {layer} among the weight changes; pass it to weight_changes")
    below = changes[changes["writes"] & (changes["block"] < layer)]
    size = (below["change"] / below["d_out"]).sum()
    return float(below[column].sum() / size) if size > 0 else math.nan
