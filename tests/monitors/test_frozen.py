"""Monitors: thresholds by hand, files that come back bit for bit, that numpy alone can read, and that refuse every change."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import special, stats

from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.monitors import frozen, probes
from helpers.monitors.frozen import METADATA, TENSORS, Monitor, threshold
from helpers.monitors.probes import PROBES, Readout
from helpers.monitors.readouts import Features, Moved, Pooled, Ragged
from helpers.stats.roc import RATES
from helpers.updates.names import SIMULATED

D, LAYERS = 12, 8
LABELS = np.arange(60) % 2


def data(kind: str, seed: int) -> Features:
    """60 texts whose classes lie apart, as vectors or as 1 to 5 tokens each."""
    rng = np.random.default_rng(seed)
    if PROBES[kind].reads == "pooled":
        rows = (rng.normal(size=(60, D)) + LABELS[:, None]).astype(np.float32)
        return Moved(rows, (rows + 1,)) if kind.startswith(SIMULATED) else Pooled(rows)
    ends = np.cumsum([0, *rng.integers(1, 6, size=60)])
    return Ragged((rng.normal(size=(ends[-1], D)) + np.repeat(LABELS, np.diff(ends))[:, None]).astype(np.float32), ends)


def freeze(kind: str, **changes) -> Monitor:
    readout = probes.fit_probe(kind, data(kind, 1), LABELS, data(kind, 2), LABELS, seed=3)
    negatives = probes.score(readout, data(kind, 2))[LABELS == 0]
    place = {"task": "toxicity", "pooling": "mean" if PROBES[kind].reads == "pooled" else "", "layer": 6, "layers": LAYERS}
    return frozen.freeze(readout, negatives, **{**place, "seed": 3, "reads": "abc123", "model": "tiny", **changes})


@pytest.fixture(scope="module")
def every() -> list[Monitor]:
    """One monitor of each kind."""
    return [freeze(kind) for kind in PROBES]


@pytest.fixture
def folder(every, tmp_path):
    frozen.save(every, tmp_path / "monitors")
    return tmp_path / "monitors"


def refused(code, *words):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("scores", "rate", "expected"),
    [
        (range(1, 101), 0.05, 96),  # 97 .. 100 lie above: (4 + 1) / 101 is the most within 5 %
        (range(1, 101), 0.01, 100),
        (range(1, 100), 0.29, 72 - 1),  # 0.29 * 100 is 28.999... in floating point
        (range(1, 21), 0.05, 20),
        (range(1, 40), 0.05, 38),  # 39 negatives allow one above
        ([0.0] * 90 + [1.0] * 10, 0.05, 1.0),  # a tie cannot be cut: above it nothing, below it ten
        ([0.0] * 96 + [1.0] * 4, 0.05, 0.0),
        ([7.0] * 100, 0.05, 7.0),
        ([-3.0, -2.0], 0.5, -2.0),
    ],
)
def test_the_threshold_by_hand(scores, rate, expected):
    assert threshold(np.array(scores, dtype=float), rate) == expected


@pytest.mark.parametrize(("n", "rate"), [(18, 0.05), (98, 0.01), (0, 0.5), (0, 0.05)])
def test_too_few_negatives_give_no_threshold(n, rate):
    assert threshold(np.arange(float(n)), rate) is None


@pytest.mark.parametrize("rate", RATES.values())
def test_it_is_the_smallest_that_keeps_the_rate(rate):
    for seed in range(20):
        scores = np.round(np.random.default_rng(seed).normal(size=100 + 7 * seed), 1 + seed % 3)  # with ties
        cut = threshold(scores, rate)
        assert ((scores > cut).sum() + 1) / (scores.size + 1) <= rate
        lower = scores[scores < cut].max()
        assert ((scores > lower).sum() + 1) / (scores.size + 1) > rate


@pytest.mark.parametrize("n", [20, 100, 400])
def test_the_rate_expected_on_new_texts_is_that_of_the_docstring(n):
    rng, repeats = np.random.default_rng(n), 4000
    found = [1 - threshold(rng.random(n), 0.05) for _ in range(repeats)]  # uniform scores: the share above t is 1 - t
    assert np.mean(found) == pytest.approx(int(0.05 * (n + 1)) / (n + 1), abs=4 * np.std(found) / np.sqrt(repeats))
    assert np.mean(found) < 0.05 + 4 * np.std(found) / np.sqrt(repeats)


# own texts score `gap` higher than general ones: with 30 of 200 own, and with 12, too few for a rate of 5 % by themselves
@pytest.mark.parametrize(("own", "gap"), [(30, 0.0), (30, 1.5), (100, 1.5), (12, 1.5), (30, -1.5)])
def test_thresholds_keep_the_promise_on_the_own_kind_and_on_all(own, gap):
    rng, found = np.random.default_rng(own), []
    for _ in range(3000):
        mine, others = rng.normal(gap, size=own), rng.normal(size=200 - own)
        cut = frozen.thresholds(mine, others)["5"]
        expected, _, most, _ = vars(frozen.promised(mine, cut)).values()
        true = special.ndtr(gap - cut)
        found.append((true, (own * true + (200 - own) * special.ndtr(-cut)) / 200, expected, true <= most))
    true, overall, expected, held = np.mean(found, axis=0)
    margin = 3 * np.std(found, axis=0)[0] / np.sqrt(3000)
    assert true <= max(0.05, 1 / (own + 1)) + margin
    assert overall <= 0.05 + margin
    assert true <= expected + margin
    assert held >= 0.965  # the upper end of a two-sided 95 %: 97.5 % of draws lie below


def test_a_threshold_set_on_all_texts_alone_breaks_its_promise_on_the_own_kind():
    """The control: pooled with general texts that score lower, the own ones are flagged four times as often as promised."""
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        mine, others = rng.normal(1.5, size=30), rng.normal(size=170)
        found.append(special.ndtr(1.5 - threshold(np.concatenate([mine, others]), 0.05)))
    assert np.mean(found) > 0.15


def test_many_harmless_texts_steady_a_threshold_where_own_ones_ask_for_no_more():
    rng = np.random.default_rng(0)
    few = [special.ndtr(-threshold(rng.normal(size=30), 0.05)) for _ in range(2000)]
    many = [special.ndtr(-frozen.thresholds(rng.normal(-1, size=30), rng.normal(size=400))["5"]) for _ in range(2000)]
    assert np.std(many) < 0.6 * np.std(few)


def test_without_other_texts_the_thresholds_are_those_of_the_own_and_a_level_needs_enough_of_all():
    own, others = np.arange(30.0), np.arange(100.0) - 200
    assert frozen.thresholds(own, np.empty(0)) == {"5": threshold(own, 0.05)}
    assert frozen.thresholds(own, others) == {"5": threshold(own, 0.05), "1": 29.0}  # 1 in 31 is the least that 30 can promise
    assert frozen.thresholds(np.empty(0), others) == {level: threshold(others, rate) for level, rate in RATES.items()}
    assert frozen.thresholds(np.arange(5.0), np.arange(5.0)) == {}


@pytest.mark.parametrize(("n", "above"), [(20, 0), (30, 0), (200, 9), (3, 3)])
def test_the_promise_is_the_beta_distribution_of_an_order_statistic(n, above):
    e = frozen.promised(np.arange(float(n)), n - 1.0 - above)
    exact = stats.beta(above + 1, max(n - above, 1))
    assert (e.value, e.low, e.high) == pytest.approx((exact.mean(), exact.ppf(0.025), exact.ppf(0.975)))
    assert e.n == n


# ---------------------------------------------------------------- freezing


@pytest.mark.parametrize("kind", PROBES)
def test_a_monitor_says_where_it_reads_and_scores_like_its_probe(kind):
    monitor = freeze(kind)
    assert monitor.probe == ("attention" if kind == "attention" else f"{kind}-mean")
    assert monitor.name == f"toxicity/{monitor.probe}/6"
    assert (monitor.depth, monitor.width, monitor.layers, monitor.negatives, monitor.seed) == (0.75, D, LAYERS, 30, 3)
    assert set(monitor.thresholds) == {"5"}  # 30 negatives are too few for 1 %
    scores = monitor.score(data(kind, 2))
    assert (scores == probes.score(monitor.readout, data(kind, 2))).all()
    assert (scores[LABELS == 0] > monitor.thresholds["5"]).mean() <= 0.05


def test_a_monitor_is_frozen():
    readout = probes.fit_probe("lda", data("lda", 1), LABELS, data("lda", 2), LABELS)
    monitor = frozen.freeze(readout, np.arange(100.0), task="t", pooling="last", layer=1, layers=2, seed=0, reads="", model="m")
    before = monitor.hash
    readout.tensors["w"][0] += 1  # the readout may still be changed; the monitor holds a copy
    assert monitor.hash == before
    with pytest.raises(ValueError, match="read-only"):
        monitor.tensors["w"][0] = 1
    with pytest.raises(AttributeError):
        monitor.layer = 2
    assert set(monitor.thresholds) == {"5", "1"}


CHANGES = {
    "task": "other", "pooling": "last", "layer": 5, "depth": 0.7, "layers": 9, "strength": 2.0, "thresholds": {"5": 0.0},
    "negatives": 31, "seed": 4, "reads": "abc124", "model": "other", "kind": "lda",
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_the_hash_sees_every_field(every, field):
    assert replace(every[0], **{field: CHANGES[field]}).hash != every[0].hash
    assert replace(every[0]).hash == every[0].hash


def test_the_hash_sees_the_last_bit_of_a_tensor_and_its_name(every):
    w, b = every[0].tensors["w"], every[0].tensors["b"]
    hashes = {every[0].hash, replace(every[0], tensors={"b": b, "w": w}).hash}
    assert len(hashes) == 1  # the order in which they lie does not matter
    changed = np.array(w)
    changed[0] = np.nextafter(changed[0], 9)
    for tensors in ({"w": changed, "b": b}, {"v": w, "b": b}, {"w": w[:, None], "b": b}):
        hashes.add(replace(every[0], tensors=tensors).hash)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooling": ""}, "pooling"), ({"layer": 9}, "layer"), ({"layer": 0}, "layer"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_cannot_be_frozen(changes, words):
    with refused(REFUSED, "toxicity/logistic", words):
        freeze("logistic", **changes)


def test_nan_scores_cannot_make_a_threshold():
    readout = Readout("lda", {"w": np.ones(D), "b": np.array(0.0)}, 0.0)
    with refused(REFUSED, "t/lda-last/1", "NaN"):
        frozen.freeze(readout, np.full(100, np.nan), task="t", pooling="last", layer=1, layers=2, seed=0, reads="", model="m")


def test_a_monitor_fits_its_own_model_and_no_other(every):
    frozen.check_fits(every[0], D, LAYERS)
    frozen.check_fits(every[0], D, LAYERS, "abc123")
    for wrong, words in [
        ((D + 1, LAYERS), "width is 12.* 13"),
        ((D, 9), "layers is 8.* 9"),
        ((D, LAYERS, "zzz"), "reads is 'abc123'.*'zzz'"),
    ]:
        with refused(NOT_COMPARABLE, every[0].name, words):
            frozen.check_fits(every[0], *wrong)


# ---------------------------------------------------------------- files


def test_saved_and_loaded_is_equal_bit_for_bit(every, folder):
    again = frozen.load(folder)
    assert [monitor.metadata for monitor in again] == [monitor.metadata for monitor in every]
    assert [monitor.hash for monitor in again] == [monitor.hash for monitor in every]
    for one, other in zip(every, again, strict=True):
        assert {n: t.tobytes() for n, t in one.tensors.items()} == {n: t.tobytes() for n, t in other.tensors.items()}
        assert not any(tensor.flags.writeable for tensor in other.tensors.values())
        assert (one.score(data(one.kind, 5)) == other.score(data(one.kind, 5))).all()
    assert sorted(path.name for path in folder.iterdir()) == [METADATA, TENSORS]


def test_the_same_monitors_make_the_same_files_and_others_replace_them(every, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    frozen.save(frozen.load(folder), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    frozen.save(every[:2], folder)
    assert [monitor.name for monitor in frozen.load(folder)] == [monitor.name for monitor in every[:2]]


def test_a_name_twice_is_not_saved(every, tmp_path):
    with refused(USAGE, every[0].name, "twice"):
        frozen.save([*every, replace(every[0], seed=9)], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_old_pair(every, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen, "save_file", full)
    with refused(ENVIRONMENT, TENSORS, "No space left"):
        frozen.save(every[:1], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


READER = """
import json, struct, sys
for name in ("torch", "sklearn", "safetensors", "scipy", "helpers"):
    sys.modules[name] = None
import numpy as np

folder, inputs, output = sys.argv[1:]
blob = open(folder + "/monitors.safetensors", "rb").read()
size = struct.unpack("<Q", blob[:8])[0]
header, body, tensors = json.loads(blob[8:8 + size]), blob[8 + size:], {}
for name, entry in header.items():
    if name != "__metadata__":
        start, end = entry["data_offsets"]
        assert entry["dtype"] == "F64"
        tensors[name] = np.frombuffer(body[start:end], "<f8").reshape(entry["shape"])

def linear(t, x, ends): return x @ t["w"] + t["b"]
def mlp(t, x, ends): return np.maximum(x @ t["W1"].T + t["b1"], 0) @ t["w2"] + t["b2"]
def attention(t, x, ends):
    found = []
    for i, j in zip(ends[:-1], ends[1:]):
        h = x[i:j]; a = np.exp(h @ t["q"] - (h @ t["q"]).max())
        found.append(a @ (h @ t["v"]) / a.sum() + t["b"])
    return np.array(found)

scorers, found = {"mlp": mlp, "attention": attention}, {}
given = json.load(open(inputs))
for m in json.load(open(folder + "/monitors.json"))["monitors"]:
    probe = m["kind"] + ("-" + m["pooling"] if m["pooling"] else "")
    name = f"{m['task']}/{probe}/{m['layer']}"
    own = {k.rsplit("/", 1)[1]: v for k, v in tensors.items() if k.rsplit("/", 1)[0] == name}
    x, ends = (np.array(part) for part in given[m["kind"]])
    scores = scorers.get(m["kind"], linear)(own, x, ends)
    found[name] = [scores.tolist(), (scores > m["thresholds"]["5"]).tolist()]
json.dump(found, open(output, "w"))
"""


def test_numpy_json_and_struct_are_enough_to_use_the_files(every, folder, tmp_path):
    given = {}
    for monitor in every:
        features = data(monitor.kind, 5)
        ends = features.offsets.tolist() if isinstance(features, Ragged) else []
        given[monitor.kind] = [features.values.tolist(), ends]
    (tmp_path / "in.json").write_text(json.dumps(given))
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, "-I", tmp_path / "reader.py", folder, tmp_path / "in.json", tmp_path / "out.json"]
    subprocess.run(command, check=True, timeout=60, env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"})
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == [monitor.name for monitor in every]
    for monitor in every:
        ours = monitor.score(data(monitor.kind, 5))
        scores, flags = found[monitor.name]
        assert np.allclose(ours, scores, rtol=1e-12, atol=1e-12)
        assert flags == (ours > monitor.thresholds["5"]).tolist()


# ---------------------------------------------------------------- what is refused


def edit(folder, change):
    path = folder / METADATA
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def rewrite(folder, change):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


FIRST = "toxicity/logistic-mean/6"
EDITS = {
    "a threshold": (lambda m: m["thresholds"].update({"5": 99.0}), f"{FIRST} was changed"),
    "a strength": (lambda m: m.update(strength=3.0), f"{FIRST} was changed"),
    "the fingerprint": (lambda m: m.update(reads="zzz"), f"{FIRST} was changed"),
    "the hash": (lambda m: m.update(hash="0" * 64), f"{FIRST} was changed"),
    "a number as text": (lambda m: m["thresholds"].update({"5": "1"}), "thresholds cannot be"),
    "another level": (lambda m: m["thresholds"].update({"7": 1.0}), "thresholds cannot be"),
    "an infinite threshold": (lambda m: m["thresholds"].update({"5": float("inf")}), f"{FIRST} holds NaN or infinity"),
    "a depth that is no number": (lambda m: m.update(depth=float("nan")), f"{FIRST} holds NaN or infinity"),
    "the width": (lambda m: m.update(width=13), rf"{FIRST}.*'w'.*\(12,\).*13"),
    "the width as text": (lambda m: m.update(width="12"), "width is not of type int"),
    "a layer that is not there": (lambda m: m.update(layer=7), "lacks or has too much of tensor 'b'"),
    "a layer beyond the last": (lambda m: m.update(layer=9), "layer cannot be 9"),
    "an unknown kind": (lambda m: m.update(kind="ridge"), "kind cannot be 'ridge'"),
    "a list as kind": (lambda m: m.update(kind=["lda"]), "kind is not of type str"),
    "another pooling": (lambda m: m.update(pooling=""), "pooling cannot be ''"),
    "no seed": (lambda m: m.pop("seed"), "'seed'"),
    "a field more": (lambda m: m.update(extra=1), "'extra'"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_monitor_is_refused(folder, what):
    change, words = EDITS[what]
    edit(folder, lambda document: change(document["monitors"][0]))
    with refused(REFUSED, words):
        frozen.load(folder)


DOCUMENTS = {
    "another format": (lambda d: d.update(format=1), "format 1"),
    "no list": (lambda d: d.update(monitors={}), "lists no monitors"),
    "no monitors": (lambda d: d.pop("monitors"), "cannot be read"),
    "something else in the list": (lambda d: d["monitors"].append("x"), "'fields'"),
    "one monitor left out": (lambda d: d["monitors"].pop(0), f"{FIRST}/b"),
    "one monitor twice": (lambda d: d["monitors"].append(d["monitors"][0]), "twice"),
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_an_edited_document_is_refused(folder, what):
    change, words = DOCUMENTS[what]
    edit(folder, change)
    with refused(REFUSED, words):
        frozen.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\udcff", "[" * 100_000])
def test_a_document_that_is_no_json_object_is_refused(folder, text):
    (folder / METADATA).write_bytes(text.encode("utf-8", "surrogateescape"))
    with refused(REFUSED, METADATA, "cannot be read"):
        frozen.load(folder)


def flip(tensors):
    tensors[f"{FIRST}/w"][0] = np.nextafter(tensors[f"{FIRST}/w"][0], 9)


DAMAGES = {
    "the last bit": (flip, f"{FIRST} was changed"),
    "no tensor": (lambda t: t.pop(f"{FIRST}/b"), "'b'"),
    "a tensor more": (lambda t: t.update({f"{FIRST}/c": np.zeros(3)}), f"{FIRST}/c"),
    "another width": (lambda t: t.update({f"{FIRST}/w": np.zeros(13)}), rf"{FIRST}.*'w'.*\(13,\)"),
    "an axis more": (lambda t: t.update({f"{FIRST}/w": np.zeros((12, 1))}), rf"{FIRST}.*'w'.*\(12, 1\)"),
    "a hidden layer that does not meet": (lambda t: t.update({"toxicity/mlp-mean/6/w2": np.zeros(5)}), r"mlp.*'w2'.*\(5,\)"),
    "half precision": (lambda t: t.update({f"{FIRST}/w": t[f"{FIRST}/w"].astype(np.float16)}), f"{FIRST} was changed"),
    "NaN": (lambda t: t.update({f"{FIRST}/w": np.full(12, np.nan)}), f"{FIRST} holds NaN"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_tensors_are_refused(folder, what):
    change, words = DAMAGES[what]
    rewrite(folder, change)
    with refused(REFUSED, words):
        frozen.load(folder)


def test_what_is_not_safetensors_by_content_is_refused(folder):
    good = (folder / TENSORS).read_bytes()
    huge = (2**62).to_bytes(8, "little") + good[8:]
    for content in (pickle.dumps({"w": [1.0]}), b"", good[:-8], good + b"12345678", huge, b"\0" * 64):
        (folder / TENSORS).write_bytes(content)
        with refused(REFUSED, TENSORS, "is not safetensors"):
            frozen.load(folder)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.parametrize("name", ["monitors.pkl", "probe.joblib", "probe.pt", "probe.npy"])
def test_a_folder_of_pickles_is_refused_unopened_with_how_to_convert(tmp_path, monkeypatch, name):
    monkeypatch.setenv("BOMB", str(tmp_path / "boom"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / name).write_bytes(pickle.dumps(Bomb()))
    with refused(REFUSED, name, "run code", "exchange.export"):
        frozen.load(tmp_path / "old")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("name", [METADATA, TENSORS])
def test_a_missing_file_or_folder_is_named(folder, tmp_path, name):
    (folder / name).unlink()
    with refused(REFUSED, name, "chapter 04"):
        frozen.load(folder)
    with refused(REFUSED, "nowhere", METADATA):
        frozen.load(tmp_path / "nowhere")
