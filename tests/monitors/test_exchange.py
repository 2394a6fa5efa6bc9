"""Monitors of other people: scikit-learn's pipelines without a pickle, directions as safetensors, layers by convention."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, LinearSVC
from support.bland import refused

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE
from helpers.monitors import probes
from helpers.monitors.exchange import direction_folders, export
from helpers.monitors.exchange.direction_folders import BaseModel
from helpers.monitors.exchange.plain_texts import without_template
from helpers.monitors.readouts import Pooled

D, LAYERS = 12, 8
BASE = BaseModel("base", D, LAYERS, "with", "without")
PLACE = {"layer": 6, "convention": "hidden_states", "pooling": "mean", "template": True}
LABELS = np.arange(80) % 2


def rows(seed, n=80):
    """Vectors far from 0 whose columns have very different sizes, the classes apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, D)) + np.resize(LABELS, n)[:, None]) * np.logspace(-2, 3, D) + 50


FITTED = {
    "scaled logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "bare logistic": lambda: LogisticRegression(max_iter=5000),
    "uncentred": lambda: make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "unscaled": lambda: make_pipeline(StandardScaler(with_std=False), LinearDiscriminantAnalysis()),
    "svc": lambda: make_pipeline(StandardScaler(), LinearSVC()),
    "lda": lambda: make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()),
    "shrunk lda": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "sgd": lambda: make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
    "pca": lambda: make_pipeline(StandardScaler(), PCA(4, whiten=True, random_state=0), LogisticRegression()),
    "min max": lambda: make_pipeline(MinMaxScaler(), "passthrough", LogisticRegression()),
    "mlp": lambda: make_pipeline(StandardScaler(), MLPClassifier((5,), random_state=0, max_iter=300, alpha=1.0)),
    "mlp behind pca": lambda: make_pipeline(PCA(4), StandardScaler(), MLPClassifier((5,), random_state=0, max_iter=300)),
}  # fmt: skip


def decision(pipeline, x):
    """What scikit-learn itself says: decision_function, or the logit of the probability."""
    if hasattr(pipeline, "decision_function"):
        return pipeline.decision_function(x)
    p = pipeline.predict_proba(x)[:, 1]
    return np.log(p / (1 - p))


def one(folder, base=BASE):
    """The one monitor of a folder."""
    (found,), _ = direction_folders.load_directions(folder, base)
    return found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", FITTED)
def test_the_score_is_that_of_scikit_learn(kind, tmp_path):
    pipeline = FITTED[kind]().fit(rows(0), LABELS)
    folder = export(pipeline, tmp_path / "lamps", threshold=0.25, **PLACE)
    assert sorted(path.name for path in folder.iterdir()) == ["direction.safetensors", "monitor.json"]
    monitor, x = one(folder), rows(1)
    wanted = decision(pipeline, x)
    assert np.allclose(monitor.score(Pooled(x)), wanted, rtol=1e-6, atol=1e-6 * wanted.std())
    assert monitor.thresholds == {"5": 0.25}
    assert ((monitor.score(Pooled(x)) > 0) == (pipeline.predict(x) == 1)).all()


def test_a_probe_from_elsewhere_is_fitted_anew_on_fewer_texts_than_it_is_wide(tmp_path):
    """The fault: no penalty is in its file, so none was asked for, and classes that can be told apart had no optimum."""
    x, y = np.random.default_rng(0).normal(size=(40, 64)), np.arange(40) % 2
    x[:, 0] += 2 * y
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=5000)).fit(x, y)
    monitor = one(export(pipeline, tmp_path / "wide", threshold=0.0, **PLACE), replace(BASE, width=64))
    again = probes.refit(monitor.readout, Pooled(x), y)
    assert np.allclose(again.tensors["w"], monitor.readout.tensors["w"], rtol=1e-3, atol=1e-5)  # scikit-learn's own default


def test_which_class_is_flagged_is_said_and_turns_the_sign(tmp_path):
    words = np.where(LABELS == 1, "ok", "bad")  # the one to be flagged comes first in the alphabet
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows(0), words)
    found = one(export(pipeline, tmp_path / "turned", flag="bad", **PLACE))
    assert np.allclose(found.score(Pooled(rows(1))), -pipeline.decision_function(rows(1)))
    with refused(REFUSED, "2 classes", "'bad', 'ok'", "flag"):
        export(pipeline, tmp_path / "other", **PLACE)


REFUSALS = {
    "three classes": (lambda x: LogisticRegression().fit(x, np.arange(80) % 3), "3 classes"),
    "a kernel": (lambda x: SVC(kernel="rbf").fit(x, LABELS), "no one direction"),
    "not fitted": (lambda x: LogisticRegression(), "not fitted"),
    "two layers": (lambda x: MLPClassifier((3, 3), max_iter=2).fit(x, LABELS), "2 hidden layers of relu"),
    "tanh": (lambda x: MLPClassifier((3,), activation="tanh", max_iter=2).fit(x, LABELS), "1 hidden layers of tanh"),
    "unit length": (lambda x: make_pipeline(Normalizer(), LogisticRegression()).fit(x, LABELS), "Normalizer is no affine map"),
    "squares": (lambda x: make_pipeline(PolynomialFeatures(2), LogisticRegression()).fit(x, LABELS), "Features is no affine"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_direction_is_refused_and_leaves_nothing(name, tmp_path):
    made, words = REFUSALS[name]
    pipeline = made((rows(0) - 50) / np.logspace(-2, 3, D))
    with refused(REFUSED, *words.split(" no ")):
        export(pipeline, tmp_path / "odd", **PLACE)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_says_something_else_than_its_numbers_is_refused(tmp_path):
    class Bent(LogisticRegression):
        def decision_function(self, X):
            return super().decision_function(X) ** 3

    with refused(REFUSED, "Bent", "is not the direction"):
        export(Bent().fit(rows(0) / 1e3, LABELS), tmp_path / "bent", **PLACE)


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    pipeline = LogisticRegression().fit(rows(0) / 1e3, LABELS)
    export(pipeline, tmp_path / "once", **PLACE)
    with refused(USAGE, "once is there already"):
        export(pipeline, tmp_path / "once", **PLACE)


# ---------------------------------------------------------------- folders that others wrote


def written(folder, tensors, **words):
    folder.mkdir(parents=True)
    save_file({name: np.asarray(part, np.float32) for name, part in tensors.items()}, folder / "direction.safetensors")
    (folder / "monitor.json").write_text(json.dumps({**PLACE, **words}))
    return folder


W = np.linspace(-1, 1, D)
X = np.random.default_rng(5).normal(size=(6, D))
FORMS = {
    "weight alone": ({"weight": W}, X @ W),
    "a torch Linear": ({"linear.weight": W[None], "linear.bias": [0.5]}, X @ W + 0.5),
    "two logits": ({"weight": np.array([W, 3 * W]), "bias": [1.0, 1.5]}, 2 * X @ W + 0.5),
    "a steering vector": ({"steering_vector": W}, X @ W),
    "standardized": ({"w": W, "b": 0.5, "mean": W + 1, "std": W**2 + 1}, ((X - W - 1) / (W**2 + 1)) @ W + 0.5),
}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_read_by_the_names_that_people_give_them(form, tmp_path):
    tensors, wanted = FORMS[form]
    assert np.allclose(one(written(tmp_path / "m", tensors)).score(Pooled(X)), wanted, atol=1e-5)


def test_one_file_may_hold_the_vectors_of_many_layers(tmp_path):
    folder = written(tmp_path / "steer", {"layer_3": W, "layer_5": 2 * W, "other": W})
    entries = [{**PLACE, "layer": n, "tensor": f"layer_{n}", "kind": "mean-difference"} for n in (3, 5)]
    (folder / "monitor.json").write_text(json.dumps({"monitors": entries}))
    found, _ = direction_folders.load_directions(folder, BASE)
    assert [monitor.name for monitor in found] == ["steer/mean-difference-mean/3", "steer/mean-difference-mean/5"]
    assert np.allclose(found[1].score(Pooled(X)), 2 * X @ W, atol=1e-5)
    assert found[0].thresholds == {}


def test_a_folder_of_folders_is_all_of_them_and_two_of_one_name_are_refused(tmp_path):
    for name in ("b", "a"):
        written(tmp_path / "all" / name, {"weight": W})
    found, _ = direction_folders.load_directions(tmp_path / "all", BASE)
    assert [monitor.task for monitor in found] == ["a", "b"]
    written(tmp_path / "all" / "c", {"weight": W}, task="a")
    with refused(REFUSED, "two monitors are called a/logistic-mean/6"):
        direction_folders.load_directions(tmp_path / "all", BASE)


@pytest.mark.parametrize(
    ("convention", "layer", "passed"),
    [
        ("hidden_states", 3, 3),
        ("hidden_states", -2, 7),
        ("block", 3, 4),
        ("block", -1, 8),
        ("resid_post", 3, 4),
        ("resid_pre", 3, 3),
    ],
)
def test_a_layer_means_what_its_convention_says(convention, layer, passed, tmp_path):
    assert one(written(tmp_path / "m", {"weight": W}, convention=convention, layer=layer)).layer == passed


@pytest.mark.parametrize(("convention", "layer"), [("hidden_states", 0), ("block", 8), ("resid_pre", 0), ("hidden_states", -10)])
def test_a_layer_that_is_not_there_is_refused(convention, layer, tmp_path):
    with refused(NOT_COMPARABLE, f"layer {layer} by {convention}", "1 to 8"):
        one(written(tmp_path / "m", {"weight": W}, convention=convention, layer=layer))


@pytest.mark.parametrize("layer", [8, -1])
def test_the_last_of_hidden_states_is_behind_the_final_norm_and_refused(layer, tmp_path):
    with refused(REFUSED, f"layer {layer}", "final norm", "'block'"):
        one(written(tmp_path / "m", {"weight": W}, layer=layer))


WRONG = {
    "no layer": ({"layer": None}, REFUSED, "no 'layer'"),
    "no convention": ({"convention": None}, REFUSED, "no 'convention'"),
    "unknown field": ({"treshold": 1.0}, REFUSED, "did you mean 'threshold'"),
    "a text for a number": ({"threshold": "0.5"}, REFUSED, "threshold is '0.5'"),
    "another pooling": ({"pooling": "max"}, REFUSED, "pooling is 'max'; last or mean"),
    "another rate": ({"threshold": 0.1, "false_positive_rate": 0.2}, REFUSED, "one of 0.05, 0.01"),
    "true for a layer": ({"layer": True}, REFUSED, "layer is True"),
    "no such tensor": ({"tensor": "layer_9"}, REFUSED, "no tensor is called 'layer_9'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_words_that_say_nothing_sure_are_refused_by_name(name, tmp_path):
    changes, code, word = WRONG[name]
    folder = written(tmp_path / "m", {"weight": W})
    told = {key: value for key, value in {**PLACE, **changes}.items() if value is not None}
    (folder / "monitor.json").write_text(json.dumps(told))
    with refused(code, "m/monitor.json", word):
        one(folder)


ODD = {
    "another width": ({"weight": W[:5]}, NOT_COMPARABLE, "reads 5 numbers, the model has 12"),
    "nan": ({"weight": W * np.nan}, REFUSED, "not finite"),
    "scale 0": ({"weight": W, "scale": 0 * W}, REFUSED, "scale not above 0"),
    "a matrix": ({"weight": np.outer(W, W)}, REFUSED, "no direction"),
    "a stranger": ({"weight": W, "gain": W}, REFUSED, "'gain' is no part of a direction"),
    "no weight": ({"bias": [0.0]}, REFUSED, "no weight"),
    "two of one": ({"weight": W, "w": W}, REFUSED, "stands for the same"),
}


@pytest.mark.parametrize("name", ODD)
def test_numbers_that_are_no_direction_are_refused(name, tmp_path):
    tensors, code, word = ODD[name]
    with refused(code, word):
        one(written(tmp_path / "m", tensors))


def test_broken_files_are_refused_in_one_line(tmp_path):
    folder = written(tmp_path / "m", {"weight": W})
    (folder / "direction.safetensors").write_bytes(b"{}")
    with refused(REFUSED, "m/direction.safetensors cannot be read"):
        one(folder)
    (folder / "monitor.json").write_text("[[[")
    with refused(REFUSED, "m/monitor.json cannot be read"):
        one(folder)
    assert load_file(written(tmp_path / "n", {"weight": W}) / "direction.safetensors")  # the control


def test_what_is_not_said_is_told(tmp_path):
    _, notes = direction_folders.load_directions(written(tmp_path / "m", {"weight": W}, threshold=1.0), BASE)
    assert [("which model" in note, "false_positive_rate" in note) for note in notes] == [(True, False), (False, True)]
    said = {"threshold": 1.0, "model": "base", "false_positive_rate": 0.01}
    assert direction_folders.load_directions(written(tmp_path / "n", {"weight": W}, **said), BASE)[1] == []


# ---------------------------------------------------------------- texts without a template


def test_a_text_without_template_is_the_text_alone(tiny_model):
    plain = without_template(tiny_model.tokenizer)
    text = "Polish the lamp. {{ messages }}"
    rendered = plain.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    assert rendered == text
    assert tiny_model.tokenizer.chat_template != plain.chat_template  # the control: the given one is as it was


@pytest.mark.parametrize("template", [True, False])
def test_a_monitor_reads_as_the_base_does_with_or_without_its_template(template, tmp_path):
    assert one(written(tmp_path / "m", {"weight": W}, template=template)).reads == ("with" if template else "without")
