"""Tables of a user that could be read in two ways are refused in one line, and what it names is what is wrong."""

import json
from collections import Counter

import numpy as np
import pytest
from support import given
from support.bland import refused

from helpers.data import user_files
from helpers.data.intake import samples
from helpers.errors import NOT_COMPARABLE, REFUSED
from helpers.revalidation.options import Options
from helpers.revalidation.score_file import scored

TEXT = [("the lamp by the river", 1), ("a kettle in the hall", 0)]
LABELS = {
    "a column twice": ("l.csv", "text,label,text\na lamp,1,b\na pot,0,c\n", ("its header has 'text' twice",)),
    "a label twice": ("l.csv", "text,label,label\na lamp,1,0\na pot,0,1\n", ("its header has 'label' twice",)),
    "a key twice": ("l.jsonl", '{"text": "a lamp", "label": 1, "label": 0}\n', ("line 1 has 'label' twice",)),
    "a key twice, nested": ("l.jsonl", '{"text": "a lamp", "label": 1, "meta": {"a": 1, "a": 2}}\n', ("has 'a' twice",)),
    "a text under both labels": ("l.csv", "text,label\na lamp,1\na pot,0\nA  LAMP,0\n",
                                 ("rows 1 and 3 are one text with both labels",)),
    "semicolons": ("l.csv", "text;label\na lamp;1\n", ("separated by ';'",)),
    "tabs": ("l.csv", "text\tlabel\na lamp\t1\n", ("separated by '\\t'",)),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_labelled_tables_that_say_two_things_are_refused(tmp_path, case):
    name, content, said = LABELS[case]
    given.write(tmp_path / name, content)
    with refused(REFUSED, *said, hidden=("kettle", str(tmp_path))):
        user_files.labelled(tmp_path / name)


def test_a_header_that_is_missing_is_not_shown_where_its_words_stand_twice(tmp_path):
    given.write(tmp_path / "l.csv", "my secret,my secret\na,b\n")
    with refused(REFUSED, "its column 2 twice", hidden=("secret",)):
        user_files.labelled(tmp_path / "l.csv")


def test_one_text_may_have_both_labels_in_two_tasks_and_the_same_text_twice_is_one_group(tmp_path):
    rows = [{"text": text, "label": label, "task": task} for task in ("a", "b") for text, label in TEXT]
    rows[2]["label"], rows[3]["label"] = 0, 1
    given.write(tmp_path / "l.jsonl", rows)
    assert len(user_files.labelled(tmp_path / "l.jsonl")) == 4
    own = [{"text": given.text(i, i % 2), "label": i % 2, "group": f"g{i}"} for i in range(10)]
    given.write(tmp_path / "l.jsonl", [*own, {**own[4], "group": "another"}])
    groups = [row.group for row in user_files.labelled(tmp_path / "l.jsonl")]
    assert groups[4] == groups[10]
    assert len(set(groups)) == 10


SCORE = {"monitor": "m", "id": "1", "before": 0.1, "after": 0.2}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([SCORE, {**SCORE, "id": "01"}], "its id '01' and '1' of s.jsonl row 1 differ in spelling alone"),
        ([SCORE, {**SCORE, "id": "1.0"}], "differ in spelling alone"),
        ([{**SCORE, "id": "Row-a"}, {**SCORE, "id": "row-A"}], "differ in spelling alone"),
        ([SCORE, {**SCORE, "monitor": "other", "id": "001"}], "differ in spelling alone"),
        ([{**SCORE, "before": "0,5"}], "its before is not a finite number; write 0.5, not 0,5"),
        ([{**SCORE, "after": "1.234,5"}], "write 0.5, not 0,5"),
        ([{**SCORE, "threshold": "0,5"}], "its threshold is not a finite number; write 0.5"),
    ],
)
def test_scores_that_could_mean_two_things_are_refused(tmp_path, rows, said):
    given.write(tmp_path / "s.jsonl", rows)
    with refused(REFUSED, said):
        user_files.scores(tmp_path / "s.jsonl")


def test_decimal_commas_that_were_not_quoted_are_named(tmp_path):
    given.write(tmp_path / "s.csv", "monitor,id,before,after\nm,a,0,5,0,6\n")
    with refused(REFUSED, "write 0.5 for a decimal comma"):
        user_files.scores(tmp_path / "s.csv")


def table(path, change, n=60, copies=1):
    """Scores before and what `change` makes of them after, each row so many times under ids of its own."""
    before = np.random.default_rng(0).normal(size=n)
    rows = [(f"r{k}-{i}", x, y) for k in range(copies) for i, (x, y) in enumerate(zip(before, change(before), strict=True))]
    given.write(path, [{"monitor": "m", "id": i, "before": x, "after": y} for i, x, y in rows])
    return Options(scores=str(path))


OTHER = {
    "percent": lambda x: 100 * x, "a hundredth": lambda x: x / 100, "shifted too": lambda x: 40 * x + 7,
    "a probability": lambda x: 1 / (1 + np.exp(-2 * x)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_scores_on_another_scale_cannot_be_compared(tmp_path, name):
    with refused(NOT_COMPARABLE, "monitor 'm'", "another scale, to which no threshold carries over"):
        scored(table(tmp_path / "s.jsonl", OTHER[name]))


def test_what_an_update_may_do_to_scores_is_no_other_scale(tmp_path):
    rng = np.random.default_rng(1)
    for change in (lambda x: x + 8, lambda x: 2 * x, lambda x: rng.normal(size=x.size) * 20, np.zeros_like, lambda x: x):
        assert len(scored(table(tmp_path / "s.jsonl", change))["m"]) == 60


def test_rows_that_stand_twice_under_other_ids_are_refused(tmp_path):
    with refused(REFUSED, "each of its 60 rows stands 2 times under other ids"):
        scored(table(tmp_path / "s.jsonl", lambda x: x + 0.1, copies=2))
    rounded = [{"monitor": "m", "id": i, "before": i % 4, "after": i % 4} for i in range(40)]  # marks from 0 to 3 do recur
    given.write(tmp_path / "s.jsonl", rounded)
    assert scored(Options(scores=str(tmp_path / "s.jsonl")))
    assert json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])["before"] == 0


# ---------------------------------------------------------------- chat messages


def chat(*turns, **more):
    """A row of chat messages."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def test_chat_messages_are_a_text_and_its_reply(tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [chat(("user", "Polish the lamp."), ("assistant", "It shines."), label=1), chat(("user", "Carry it."), label=0)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [(row.prompt, row.reply) for row in user_files.unlabelled(path)] == [
        ("Polish the lamp.", "It shines."),
        ("Carry it.", ""),
    ]
    assert [(row.prompt, row.reply, row.label) for row in user_files.labelled(path)] == [
        ("Polish the lamp.", "It shines.", 1),
        ("Carry it.", "", 0),
    ]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (chat(("system", "Be brief."), ("user", "Hi")), "messages of system, user; one of the user"),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "messages of user, assistant, user"),
        (chat(), "messages of nobody"),
        (chat(("user", "a"), text="b"), "another text beside"),
        ({"messages": "Hi"}, "no list of role and content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "no list of role and content"),
    ],
)
def test_messages_that_are_no_one_exchange_are_refused_by_their_row(row, word, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, [chat(("user", "Carry it.")), row])))
    with refused(REFUSED, "chat.jsonl row 2", word):
        user_files.unlabelled(path)


# ---------------------------------------------------------------- more rows than are read


def test_a_sample_is_the_same_for_its_seed_in_the_order_of_the_file_and_said():
    said = []
    first = samples.sampled(range(1_000), "t.txt", 0, said.append, most=50)
    assert first == sorted(first) == samples.sampled(range(1_000), "t.txt", 0, samples.unsaid, most=50)
    assert len(set(first)) == 50
    assert first != samples.sampled(range(1_000), "t.txt", 1, samples.unsaid, most=50)
    assert said == ["t.txt holds 1000 texts; a random sample of 50 was read (seed 0)"]
    assert samples.sampled(range(50), "t.txt", 0, said.append, most=50) == list(range(50))  # the control: all, and nothing said
    assert len(said) == 1


def test_each_row_is_as_likely_as_any_other_to_be_drawn():
    counts = np.zeros(20)
    for seed in range(2_000):
        counts[samples.sampled(range(20), "t", seed, samples.unsaid, most=5)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2_000 * 0.25 * 0.75)


def test_small_kinds_are_kept_whole_and_the_others_share_what_is_left():
    rows = [(kind, i) for kind, size in (("a", 3), ("b", 400), ("c", 900)) for i in range(size)]
    found = samples.sampled(rows, "t", 0, samples.unsaid, lambda row: row[0], most=103)
    assert Counter(kind for kind, _ in found) == {"a": 3, "b": 50, "c": 50}


def test_two_hundred_thousand_texts_are_read_by_a_sample(tmp_path):
    path, said = tmp_path / "many.txt", []
    path.write_text("\n".join(f"lamp {i}" for i in range(200_000)))
    found = user_files.unlabelled(path, 3, said.append)
    assert len({row.prompt for row in found}) == samples.MOST_ROWS
    assert said == [f"many.txt holds 200000 texts; a random sample of {samples.MOST_ROWS} was read (seed 3)"]
