"""scikit-learn's pipelines as direction folders: the numbers of what was fitted, and no pickle that could run code.

Anything affine may stand before a linear classifier (scalers, PCA, feature selection): it is folded into the direction. What was
written is compared with what the pipeline itself says before the folder is there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from helpers.cache import atomic_folder
from helpers.errors import REFUSED, StudyError
from helpers.monitors.exchange.direction_folders import TENSORS, WORDS, check_entry

TRIED = 64  # random rows on which the written direction must say what the pipeline says
NEAR = 1e-6  # of the spread of its scores
KINDS = {"LinearDiscriminantAnalysis": "lda", "MLPClassifier": "mlp"}

Affine = tuple[Float[np.ndarray, "d_out d_in"], Float[np.ndarray, " d_out"]]


def export(
    pipeline: Any, folder: Path | str, *, layer: int, convention: str, pooling: str, template: bool,
    threshold: float | None = None, false_positive_rate: float | None = None, flag: object = 1, **more: Any,
) -> Path:  # fmt: skip
    """The folder, holding a fitted scikit-learn classifier as `direction.safetensors` and `monitor.json`, never a pickle.

    Its score is the classifier's `decision_function` (of an MLPClassifier, the logit of its probability), signed so that the
    class `flag` scores high. layer, convention: where it reads, such as 14 of `hidden_states`. pooling: `last` or `mean`.
    template: whether the texts stood in the chat template. threshold: of that score; false_positive_rate: what it promises.
    more: `task`, `limit`, `model`. Refused: several classes, kernels, steps that are not affine, networks of more than one layer.
    """
    if Path(folder).exists():
        raise StudyError(f"{Path(folder).name} is there already; remove it, or export into another folder")
    steps = [step for _, step in pipeline.steps] if hasattr(pipeline, "steps") else [pipeline]
    *before, last = [step for step in steps if step not in (None, "passthrough")]
    name, sign = type(last).__name__, _sign(last, flag)
    tensors = {key: np.ascontiguousarray(part, dtype=np.float64) for key, part in _tensors(before, last, sign).items()}
    told = {"threshold": threshold, "false_positive_rate": false_positive_rate, **more}
    words = {
        "layer": int(layer), "convention": convention, "pooling": pooling, "template": template,
        "kind": KINDS.get(name, "logistic"), "made_by": "+".join(type(step).__name__ for step in (*before, last)),
        **{key: value for key, value in told.items() if value is not None},
    }  # fmt: skip
    check_entry(WORDS, words)
    _check_same(pipeline, last, tensors, sign)

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / TENSORS)
        (temporary / WORDS).write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")

    return atomic_folder(Path(folder), write)


def _sign(classifier: Any, flag: object) -> int:
    """1 where the classifier's score is high for the class that is to be flagged, -1 where it is low."""
    classes = list(getattr(classifier, "classes_", [0, 1]))
    if len(classes) != 2 or flag not in classes:
        known = ", ".join(repr(str(one)) for one in classes[:5])
        raise StudyError(
            f"{type(classifier).__name__} knows {len(classes)} classes ({known}); export one of two, and flag it", REFUSED
        )
    return 1 if classes[1] == flag else -1


def _tensors(before: Sequence[Any], last: Any, sign: int) -> dict[str, np.ndarray]:
    """The direction: standardization kept apart where it alone stands before, anything else affine folded in."""
    scaler = before[0] if len(before) == 1 and type(before[0]).__name__ == "StandardScaler" else None
    if scaler is not None:
        size = scaler.n_features_in_
        mean = scaler.mean_ if scaler.with_mean else np.zeros(size)
        return {**_head(last, sign), "mean": mean, "scale": scaler.scale_ if scaler.with_std else np.ones(size)}
    head = _head(last, sign)
    if not before:
        return head
    matrix, offset = _affine(before)
    first = "hidden.weight" if "hidden.weight" in head else "weight"
    bias = first.replace("weight", "bias")
    return {**head, first: head[first] @ matrix, bias: head[bias] + head[first] @ offset}


def _head(classifier: Any, sign: int) -> dict[str, np.ndarray]:
    """Weight and bias of a fitted linear classifier, or those of both layers of a network."""
    name = type(classifier).__name__
    if hasattr(classifier, "coefs_"):
        if len(classifier.coefs_) != 2 or classifier.activation != "relu":
            form = f"{len(classifier.coefs_) - 1} hidden layers of {classifier.activation}"
            raise StudyError(f"{name} has {form}; one hidden layer of relu can be read here", REFUSED)
        w1, w2 = classifier.coefs_
        b1, b2 = classifier.intercepts_
        return {"hidden.weight": w1.T, "hidden.bias": b1, "weight": sign * w2[:, 0], "bias": np.array(sign * b2[0])}
    if not hasattr(classifier, "coef_") or not hasattr(classifier, "decision_function"):
        how = "refit a linear one (LogisticRegression, LinearSVC, LDA), or give its scores by --scores"
        raise StudyError(f"{name} is not fitted or has no one direction; {how}", REFUSED)
    return {"weight": sign * np.ravel(classifier.coef_), "bias": np.array(sign * np.ravel(classifier.intercept_)[0])}


def _affine(steps: Sequence[Any]) -> Affine:
    """Matrix and offset of what the steps do to a row, read off what they do to the axes; refused where they are not affine."""
    size = int(steps[0].n_features_in_)

    def through(rows: np.ndarray) -> np.ndarray:
        for step in steps:
            rows = np.asarray(step.transform(rows), dtype=np.float64)
        return rows

    offset = through(np.zeros((1, size)))[0]
    matrix = (through(np.eye(size)) - offset).T
    rows = np.random.default_rng(0).normal(size=(TRIED, size))
    wanted = through(rows)
    if not np.allclose(rows @ matrix.T + offset, wanted, rtol=1e-6, atol=1e-6 * float(np.abs(wanted).max())):
        names = "+".join(type(step).__name__ for step in steps)
        raise StudyError(f"{names} is no affine map; leave it out, or give the pipeline's scores by --scores", REFUSED)
    return matrix, offset


def _check_same(pipeline: Any, last: Any, tensors: dict[str, np.ndarray], sign: int) -> None:
    """Raises StudyError where the direction would say something else than the pipeline, on random rows around its own mean."""
    size = tensors["hidden.weight" if "hidden.weight" in tensors else "weight"].shape[-1]
    mean, scale = tensors.get("mean", np.zeros(size)), tensors.get("scale", np.ones(size))
    rows = mean + scale * np.random.default_rng(1).normal(size=(TRIED, size))
    if hasattr(last, "coefs_"):
        p = pipeline.predict_proba(rows)[:, 1]
        told = p > 1e-9, p < 1 - 1e-9
        rows, p = rows[told[0] & told[1]], p[told[0] & told[1]]
        wanted = np.log(p / (1 - p))
    else:
        wanted = np.asarray(pipeline.decision_function(rows), dtype=np.float64)
    if len(rows) and not np.allclose(
        _scores(tensors, rows), sign * wanted, atol=max(NEAR * float(wanted.std()), 1e-9), rtol=NEAR
    ):
        raise StudyError(
            f"{type(last).__name__}: its score is not the direction that was read from it; give it by --scores", REFUSED
        )


def _scores(tensors: dict[str, np.ndarray], rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    z = (rows - tensors.get("mean", 0.0)) / tensors.get("scale", 1.0)
    if "hidden.weight" in tensors:
        z = np.maximum(z @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0.0)
    return z @ tensors["weight"] + tensors["bias"]
