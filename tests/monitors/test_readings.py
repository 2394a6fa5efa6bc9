"""Readings: which texts a task's splits are, and that every monitor is given just the vectors of its place and rows."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support import planted

from helpers.data import tasks
from helpers.data.splits import SPLITS
from helpers.errors import NOT_COMPARABLE, USAGE, StudyError
from helpers.models import built_in, loading
from helpers.models.activations import POOLINGS, Activations
from helpers.monitors import readings
from helpers.monitors.probes import PROBES
from helpers.monitors.readings import Place
from helpers.monitors.readouts import Pooled, Ragged
from helpers.updates.names import SIMULATED

SIZES = {"rows": (4, 3, 5), "limit": 16, "origin": "tiny"}


def refused(code, *words):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


@pytest.fixture(scope="module")
def reading():
    return planted.plan("toxicity", "jailbreak", pairs=(5, 4, 6), attention=True)


@pytest.fixture(scope="module")
def seen(reading):
    return planted.activations(reading)


# ---------------------------------------------------------------- the plan


def test_a_plan_holds_the_rows_of_its_tasks_in_order():
    found = readings.plan(["toxicity", "jailbreak"], [0.25, 1.0], ["jailbreak:0.5"], **SIZES)
    parts = [tasks.examples(name, "tiny", 4, 3, 5) for name in ("toxicity", "jailbreak")]
    assert found.examples == (*parts[0], *parts[1])
    assert (found.depths, found.limit, found.tokens) == ((0.25, 1.0), 16, (("jailbreak", 0.5),))
    assert readings.task_names(found) == ["toxicity", "jailbreak"]


def test_a_plan_comes_back_from_its_note():
    asked = {"monitor_tasks": ["toxicity"], "depths": [0.5], "attention": ["toxicity:0.5"], **SIZES}
    assert readings.plan(**json.loads(json.dumps(asked))) == readings.plan(**asked)


def test_what_is_named_twice_is_read_once():
    twice = readings.plan(["toxicity", "toxicity"], [0.5], ["toxicity:0.5", "toxicity:0.50"], **SIZES)
    assert twice == readings.plan(["toxicity"], [0.5], ["toxicity:0.5"], **SIZES)


@pytest.mark.parametrize(
    "name", ["toxicity", "toxicity:", ":", "", "toxicity:half", "toxicity:0", "toxicity:1.01", "toxicity:nan"]
)
def test_a_wrong_depth_of_attention_is_refused(name):
    with refused(USAGE, "attention", "is not <task>:<depth>", r"give a depth in \(0, 1\]"):
        readings.plan(["toxicity"], [0.5], [name], **SIZES)


def test_attention_for_a_task_that_is_not_there_is_refused():
    with refused(USAGE, "names task 'jailbreak'", "monitor_tasks; add it"):
        readings.plan(["toxicity"], [0.5], ["jailbreak:0.5"], **SIZES)
    with refused(USAGE, "unknown task 'toxicty'", "toxicity"):
        readings.plan(["toxicity"], [0.5], ["toxicty:0.5"], **SIZES)


def test_a_task_file_is_read_under_its_own_name(tmp_path):
    words = [
        f"{first}{second}" for first in ("lamp", "river", "garden", "engine") for second in ("stone", "side", "post", "house")
    ]
    lines = [{"text": f"{w} {v} {w} stands {i}", "label": i % 2} for i, (w, v) in enumerate(zip(words, words[::-1], strict=True))]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    found = readings.plan([str(path)], [0.5], [f"{path}:0.5"], (9, 9, 9), 16, "tiny")
    assert readings.task_names(found) == ["mine"]
    assert found.tokens == (("mine", 0.5),)
    assert {place.task for place in readings.places(found, ["logistic", "attention"], 4)} == {"mine"}


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("task", ["toxicity", "jailbreak"])
@pytest.mark.parametrize("split", SPLITS)
def test_the_rows_of_a_split(reading, task, split):
    found = readings.rows_of(reading, task, split)
    mine = [reading.examples[i] for i in found.index]
    assert [(e.task, e.split) for e in mine] == [(task, split)] * len(mine)
    assert len(mine) == 2 * dict(zip(SPLITS, (5, 4, 6), strict=True))[split]
    assert (found.labels == [e.label for e in mine]).all()
    assert (found.groups == [e.group for e in mine]).all()


def test_every_text_is_in_one_split(reading):
    parts = [readings.rows_of(reading, task, split) for task in readings.task_names(reading) for split in SPLITS]
    assert sorted(np.concatenate([part.index for part in parts])) == list(range(len(reading.examples)))
    groups = [group for part in parts for group in set(part.groups)]
    assert len(groups) == len(set(groups))


def test_a_split_without_rows_is_refused(reading):
    short = dataclasses.replace(reading, examples=tuple(e for e in reading.examples if e.split != "validation"))
    with refused(NOT_COMPARABLE, "'toxicity' has no rows in split 'validation'", "raise rows_validation"):
        readings.rows_of(short, "toxicity", "validation")


# ---------------------------------------------------------------- places and features


def test_the_places_are_tasks_by_layers_by_poolings_by_kinds(reading):
    found = list(readings.places(reading, list(PROBES), planted.DEPTH))
    pooled = [kind for kind in PROBES if kind != "attention" and not kind.startswith(SIMULATED)]
    expected = {(t, k, p, layer) for t in ("toxicity", "jailbreak") for k in pooled for p in POOLINGS for layer in (2, 4)}
    assert {(p.task, p.kind, p.pooling, p.layer) for p in found} == expected | {("toxicity", "attention", "", 2)}
    assert len(found) == 2 * 2 * 2 * len(pooled) + 1
    assert all(place.depth == place.layer / planted.DEPTH for place in found)
    assert not list(readings.places(dataclasses.replace(reading, tokens=()), ["attention"], planted.DEPTH))
    foreseen = [p for p in readings.places(reading, list(PROBES), planted.DEPTH, (2,)) if p.kind.startswith(SIMULATED)]
    assert {(p.pooling, p.layer) for p in foreseen} == {(pooling, 2) for pooling in POOLINGS}
    assert len(foreseen) == 2 * 2 * 3


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [2, 4])
def test_pooled_features_are_the_rows_of_their_layer(reading, seen, pooling, layer):
    index = readings.rows_of(reading, "jailbreak", "test").index
    found = readings.features(seen, reading, Place("jailbreak", "lda", pooling, layer, layer / 4), index)
    assert isinstance(found, Pooled)
    np.testing.assert_array_equal(found.values, seen.pooled[f"{pooling}/{layer}"].double().numpy()[index])


def test_ragged_features_are_the_tokens_of_their_texts(seen, reading):
    for task in ("toxicity", "jailbreak"):  # the second one does not begin with the plan
        plan = dataclasses.replace(reading, tokens=((task, 0.5),))
        held = planted.activations(plan)
        index = readings.rows_of(plan, task, "validation").index[::-1]
        found = readings.features(held, plan, Place(task, "attention", "", 2, 0.5), index)
        assert isinstance(found, Ragged)
        first = [e.task for e in plan.examples].index(task)
        tokens, offsets = held.tokens[f"{task}/2"], held.offsets[f"{task}/2"]
        for text, i in enumerate(index - first):
            mine = found.values[found.offsets[text] : found.offsets[text + 1]]
            np.testing.assert_array_equal(mine, tokens[offsets[i] : offsets[i + 1]].double().numpy())
        assert len(found) == len(index) == 8


def test_what_was_not_read_is_named(reading, seen):
    index = np.arange(3)
    for place in (Place("toxicity", "lda", "mean", 3, 0.75), Place("jailbreak", "attention", "", 2, 0.5)):
        with refused(NOT_COMPARABLE, f"hold no '{place.pooling or place.task}/{place.layer}'", "read them with"):
            readings.features(seen, reading, place, index)


def test_scores_are_those_of_each_monitor(tiny, reading, seen):
    monitors = planted.monitors(seen, reading, tiny, ["logistic", "attention"])
    index = readings.rows_of(reading, "toxicity", "test").index
    own = [monitor for monitor in monitors if monitor.task == "toxicity"]
    found = readings.scores(own, seen, reading, index)
    assert found.shape == (5, 12)
    for row, monitor in zip(found, own, strict=True):
        if monitor.kind == "logistic":
            vectors = seen.pooled[f"{monitor.pooling}/{monitor.layer}"][index].double().numpy()
            np.testing.assert_allclose(row, vectors @ monitor.tensors["w"] + monitor.tensors["b"], rtol=1e-12)
    assert len({row.tobytes() for row in found}) == 5


def test_the_angle_of_a_probe_without_a_direction_is_undefined(tiny, reading, seen):
    first, second = (m.readout for m in planted.monitors(seen, reading, tiny, ["lda"])[:2])
    flat = dataclasses.replace(first, tensors={"w": np.zeros(planted.D), "b": np.zeros(())})
    cosine = first.tensors["w"] @ second.tensors["w"] / np.linalg.norm(first.tensors["w"]) / np.linalg.norm(second.tensors["w"])
    assert readings.readout_angle(first, second) == pytest.approx(np.degrees(np.arccos(cosine)))
    assert readings.readout_angle(first, first) == 0
    assert np.isnan(readings.readout_angle(first, flat))
    assert np.isnan(readings.readout_angle(flat, first))


# ---------------------------------------------------------------- the fingerprint


def template(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("user", "reader") + " "


def special(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})


def vocabulary(tokenizer):
    tokenizer.add_tokens(["lamp"])


def padding(tokenizer):
    tokenizer.pad_token = "<|endoftext|>"


def backend(tokenizer, **parts):
    """The tokenizer's own description with other parts, put in its place."""
    from tokenizers import Tokenizer

    found = json.loads(tokenizer.backend_tokenizer.to_str())
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**found, **parts}))


def normalizer(tokenizer):
    backend(tokenizer, normalizer={"type": "Lowercase"})


def pre_tokenizer(tokenizer):
    backend(tokenizer, pre_tokenizer={"type": "Whitespace"})


def merges(tokenizer):
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    letters = sorted(token for token in model["vocab"] if len(token) == 1)[:2]
    joined = {**model["vocab"], "".join(letters): len(tokenizer) + 5}
    backend(tokenizer, model={**model, "vocab": joined})
    backend(tokenizer, model={**model, "vocab": joined, "merges": [letters]})


CHANGES = {f.__name__: f for f in (template, special, vocabulary, padding, normalizer, pre_tokenizer, merges)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_sees_what_changes_the_reading(change):
    tokenizer = built_in.tiny_tokenizer()
    before = readings.fingerprint(tokenizer)
    change(tokenizer)
    assert readings.fingerprint(tokenizer) != before


def test_the_fingerprint_sees_two_tokens_exchanged():
    class Exchanged:
        """The same tokenizer, with the ids of two tokens exchanged that the rendered text does not hold."""

        def __getattr__(self, name):
            return getattr(real, name)

        def __call__(self, *args, **kwargs):
            return real(*args, **kwargs)

        def get_vocab(self):
            known = real.get_vocab()
            return {**known, "Q": known["Z"], "Z": known["Q"]}

        def __len__(self):
            return len(real)

    real = built_in.tiny_tokenizer()
    assert readings.fingerprint(Exchanged()) != readings.fingerprint(real)


def test_the_fingerprint_is_stable(tiny, tmp_path):
    language = loading.load(tiny)
    first = readings.fingerprint(language.tokenizer)
    language.tokenizer("some text", truncation=True, max_length=2)  # use leaves no trace
    assert readings.fingerprint(language.tokenizer) == first
    saved = loading.save(language, tmp_path / "again")
    assert readings.fingerprint(loading.load(saved).tokenizer) == first
    assert readings.fingerprint(built_in.tiny_tokenizer()) == first


# ---------------------------------------------------------------- what all read, and what the aligned model reads alone


def asked(seed=0, **more):
    return {"monitor_tasks": ["toxicity", "jailbreak"], "depths": [0.5, 1.0], "attention": ["jailbreak:0.5"], "origin": "tiny",
            "rows": (6, 14, 8, 5, 40), "limit": 16, "long": {"jailbreak": 24}, "seed": seed, **more}  # fmt: skip


def test_a_plan_holds_a_second_test_and_harmless_texts_and_cuts_named_tasks_later():
    found = readings.plan(**json.loads(json.dumps(asked())))
    splits = {task: [e.split for e in found.examples if e.task == task] for task in readings.task_names(found)}
    for own in splits.values():
        assert {name: own.count(name) for name in dict.fromkeys(own)} == {
            "train": 12, "validation": 28, "test": 16, "elsewhere": 10, "threshold": 40 - 14,
        }  # fmt: skip
    assert (found.limit_of("toxicity"), found.limit_of("jailbreak")) == (16, 24)
    assert found.key() != readings.plan(**asked(long={})).key()
    with refused(USAGE, "long_tasks names task 'privacy-pii'", "add it there"):
        readings.plan(**asked(long={"privacy-pii": 24}))


def test_variants_read_all_that_they_are_judged_and_refitted_on_and_nothing_that_sets_a_threshold():
    whole = readings.plan(**asked())
    shared, alone = readings.on_variants(whole), readings.aligned_alone(whole)
    counts = [{name: sum(e.split == name for e in part.examples) for name in (*SPLITS, "elsewhere", "threshold")}
              for part in (whole, shared, alone)]  # fmt: skip
    assert counts[1] == counts[0] | {"validation": 2 * 2 * readings.FEW, "threshold": 0}
    assert counts[2] == {"train": 0, "validation": 2 * 2 * 4, "test": 0, "elsewhere": 0, "threshold": 2 * 26}
    assert sorted(map(repr, (*shared.examples, *alone.examples))) == sorted(map(repr, whole.examples))
    assert readings.on_variants(shared) == shared


def test_the_two_parts_of_a_reading_are_put_together_text_by_text():
    whole = readings.plan(**asked())
    shared, alone = readings.on_variants(whole), readings.aligned_alone(whole)
    place = {repr(example): i for i, example in enumerate(whole.examples)}
    parts = [_named(part, place) for part in (shared, alone)]
    found, expected = readings.merged(whole, *parts), _named(whole, place)
    for group in ("pooled", "tokens"):
        for name, values in getattr(expected, group).items():
            np.testing.assert_array_equal(getattr(found, group)[name].numpy(), values.numpy())
    np.testing.assert_array_equal(found.offsets["jailbreak/2"], expected.offsets["jailbreak/2"])
    assert found.counts["texts"] == len(whole.examples)


def _named(plan, place):
    """Activations that say of every text, and token, which text of the whole plan it is; text i of them has 1 + i % 3 tokens."""
    numbers = np.array([place[repr(example)] for example in plan.examples])
    own = numbers[[example.task == "jailbreak" for example in plan.examples]]
    lengths = 1 + own % 3
    pooled = {f"{pool}/{layer}": torch.tensor(numbers[:, None] + 0.5) for pool in POOLINGS for layer in (2, 4)}
    tokens, offsets = torch.tensor(np.repeat(own, lengths)[:, None] + 0.5), np.cumsum([0, *lengths])
    return Activations((2, 4), pooled, {"jailbreak/2": tokens}, {"jailbreak/2": offsets}, {"texts": len(numbers), "prefix": 3})


def test_halves_cut_no_group_and_each_has_both_classes(reading):
    rows = readings.rows_of(reading, "toxicity", "test")
    side = readings.hashed_halves(rows)
    for half in (0, 1):
        assert set(rows.labels[side == half]) == {0, 1}
        assert not set(rows.groups[side == half]) & set(rows.groups[side != half])
    assert abs(int(side.sum()) * 2 - len(side)) <= 2
    flipped = readings.Rows(rows.index[::-1], rows.labels[::-1], rows.groups[::-1])
    np.testing.assert_array_equal(readings.hashed_halves(flipped), side[::-1])
