"""Probes: light readouts fitted on hidden states. `PROBES` names the kinds; `fit`, `refit` and `score` are the same for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.metrics import roc_auc_score

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.monitors import readouts
from helpers.monitors.readouts import Features, Labels, Pooled, Ragged, Strengths, Tensors

# of Pooled or Ragged features, as the kind reads them: `_check_features` sees to that
Fit = Callable[[Any, Labels, Strengths, int], list[Tensors]]
Score = Callable[[Tensors, Any], Float[np.ndarray, " n"]]
READS: dict[str, type] = {"pooled": Pooled, "tokens": Ragged}


def _as_given(y: Labels, seed: int) -> Labels:
    return y


def _shuffled(y: Labels, seed: int) -> Labels:
    """The labels over the rows in another order.

    What learns from them has AUROC 1/2 on average over seeds. One draw scatters far more than the interval of its test rows
    says (0.01 to 0.97 on real hidden states): read this control as the mean and the spread of many seeds.
    """
    return np.random.default_rng(seed).permutation(y)


@dataclass(frozen=True)
class Kind:
    """One kind of probe: how it is fitted and scored, the axes of its tensors (d: d_model), and its formula for a reader.

    strengths: the penalties that validation chooses from (0: there is none to choose). labels: what the labels of training
    and validation go through first; a control shuffles both, or the choice of the strength would see the truth.
    """

    fit: Fit
    score: Score
    axes: dict[str, tuple[str, ...]]
    formula: str
    strengths: tuple[float, ...] = (0.0,)
    labels: Callable[[Labels, int], Labels] = _as_given
    reads: str = "pooled"


_LINEAR = (readouts.score_linear, {"w": ("d",), "b": ()}, "x @ w + b")
_MLP = (readouts.score_mlp, {"W1": ("h", "d"), "b1": ("h",), "w2": ("h",), "b2": ()}, "relu(x @ W1.T + b1) @ w2 + b2")
_ATTENTION = (readouts.score_attention, {"q": ("d",), "v": ("d",), "b": ()}, "sum over tokens h of softmax(h @ q) * (h @ v), + b")
_GRID = (10.0, 1.0, 0.1, 0.01)

PROBES: dict[str, Kind] = {
    "logistic": Kind(readouts.logistic, *_LINEAR, strengths=_GRID),
    "mean-difference": Kind(readouts.mean_difference, *_LINEAR),
    "lda": Kind(readouts.lda, *_LINEAR),
    "mlp": Kind(readouts.mlp, *_MLP, strengths=_GRID[1:]),
    "attention": Kind(readouts.attention, *_ATTENTION, strengths=_GRID[1:], reads="tokens"),
    "simulated-updates": Kind(readouts.simulated_updates, *_LINEAR, strengths=_GRID),
    "simulated-removed": Kind(readouts.simulated_removed, *_LINEAR, strengths=_GRID),
    "simulated-noise": Kind(readouts.simulated_noise, *_LINEAR, strengths=_GRID),
    "shuffled-labels": Kind(readouts.logistic, *_LINEAR, strengths=_GRID, labels=_shuffled),
}


@dataclass(frozen=True)
class Readout:
    """A fitted probe: float64 tensors that read raw hidden states, and the strength of the penalty it was fitted with."""

    kind: str
    tensors: Tensors
    strength: float

    @property
    def width(self) -> int:
        """The d_model that it reads."""
        name, axes = next((name, axes) for name, axes in PROBES[self.kind].axes.items() if "d" in axes)
        return self.tensors[name].shape[axes.index("d")]


# ---------------------------------------------------------------- what is refused


def _known(kind: str) -> Kind:
    if kind not in PROBES:
        raise StudyError(f"unknown probe {kind!r}; choose one of {', '.join(PROBES)}")
    return PROBES[kind]


def _check_features(kind: str, features: Features, name: str) -> None:
    wanted = READS[_known(kind).reads]
    if not isinstance(features, wanted):
        raise StudyError(
            f"{name}: probe {kind!r} reads {wanted.__name__}, not {type(features).__name__}; pass the right features"
        )
    values = features.values
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise StudyError(f"{name}: {bad} of {len(values)} rows hold NaN or infinity; run the model in bf16 or fp32", REFUSED)


def _check_labelled(kind: str, features: Features, y: np.ndarray, name: str) -> Labels:
    _check_features(kind, features, name)
    labels = np.asarray(y)
    if labels.shape != (len(features),):
        raise StudyError(f"{name}: labels of shape {labels.shape} for {len(features)} texts; pass one label per text")
    found = sorted(set(labels.tolist()))
    if not set(found) <= {0, 1}:
        raise StudyError(f"{name}: a label is neither 0 nor 1; label 1 is what is to be flagged")
    if len(found) < 2:
        raise StudyError(f"{name}: only label {found[0] if found else 'none'} is there; give both classes", REFUSED)
    return labels.astype(np.int64)


def _check_varies(features: Features, name: str) -> None:
    if not np.ptp(features.values, axis=0).any():
        raise StudyError(f"{name}: all features are constant; nothing can be told apart at this place", REFUSED)


# ---------------------------------------------------------------- fit, refit, score


def fit_probe(
    kind: str, train: Features, y: np.ndarray, validation: Features, yv: np.ndarray, seed: int = 0, name: str = "features"
) -> Readout:
    """The probe of that kind fitted on `train`, its strength the one with the best AUROC on `validation` (ties: the strongest).

    `name` says in an error where the features come from. Errors: NaN or infinity, one class only, all features constant.
    """
    y = _check_labelled(kind, train, y, f"{name}, train")
    yv = _check_labelled(kind, validation, yv, f"{name}, validation")
    _check_varies(train, f"{name}, train")
    probe = PROBES[kind]
    candidates = probe.fit(train, probe.labels(y, seed), probe.strengths, seed)
    target = probe.labels(yv, seed)
    aurocs = [roc_auc_score(target, probe.score(tensors, validation)) for tensors in candidates]
    _, strength, best = max(zip(aurocs, probe.strengths, range(len(candidates)), strict=True))
    return Readout(kind, candidates[best], strength)


def refit(readout: Readout, features: Features, y: np.ndarray, seed: int = 0, name: str = "features") -> Readout:
    """A probe of the same kind and strength fitted on other activations: is the signal still there? Errors as in `fit`."""
    y = _check_labelled(readout.kind, features, y, name)
    _check_varies(features, name)
    probe = PROBES[readout.kind]
    (tensors,) = probe.fit(features, probe.labels(y, seed), (readout.strength,), seed)
    return Readout(readout.kind, tensors, readout.strength)


def score(readout: Readout, features: Features, name: str = "features") -> Float[np.ndarray, " n"]:
    """The score of every text in float64, higher where label 1 is more likely. Errors: NaN or infinity, another width."""
    _check_features(readout.kind, features, name)
    width = features.values.shape[1]
    if width != readout.width:
        raise StudyError(
            f"{name}: width {width}, the probe reads {readout.width}; use the model it was fitted on", NOT_COMPARABLE
        )
    return PROBES[readout.kind].score(readout.tensors, features)


def direction(readout: Readout) -> Float[np.ndarray, " d_model"] | None:
    """The unit vector along which a linear readout reads raw hidden states; None for kinds that are not linear, or w = 0."""
    if "w" not in readout.tensors:
        return None
    norm = np.linalg.norm(readout.tensors["w"])
    return readout.tensors["w"] / norm if norm > 0 else None


def angle(a: Float[np.ndarray, " d_model"], b: Float[np.ndarray, " d_model"]) -> float:
    """Angle between two directions in degrees, 0 .. 180: 2 atan2(|a - b|, |a + b|) of unit vectors, exact near 0 (Kahan 2006)."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))))
