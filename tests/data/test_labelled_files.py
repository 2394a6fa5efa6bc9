"""A user's file becomes a task, or is refused in one line that shows no text of it."""

import json
from collections import Counter

import pytest
from support.bland import of, refused, sound, things

from helpers.data import user_files
from helpers.data.splits import seen
from helpers.data.tasks import examples, known, read_task
from helpers.errors import REFUSED, StudyError


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
    assert {(r.prompt, r.label) for r in read_task(path)} == {(r["text"], r["label"]) for r in lines()}
    assert rows == examples(str(write(tmp_path, lines()[::-1], name)), "tiny", train=3)  # the order of the file says nothing


@pytest.mark.parametrize("label", [(0, 1), ("0", "1"), (False, True), ("FALSE", "True ")])
def test_labels_may_be_written_in_these_ways(tmp_path, label):
    rows = read_task(write(tmp_path, [{**r, "label": label[r["label"]]} for r in lines()]))
    assert [r.label for r in rows] == [r["label"] for r in lines()]


def test_near_duplicates_of_a_users_file_share_a_group_and_a_split(tmp_path):
    rows = [*lines(), *[{"text": r["text"].upper() + "!", "label": r["label"]} for r in lines()]]
    found = read_task(write(tmp_path, rows))
    assert len({r.group for r in found}) == 24
    assert [(r.group, r.split) for r in found[:24]] == [(r.group, r.split) for r in found[24:]]


def test_a_users_own_groups_splits_and_replies_are_kept(tmp_path):
    rows = [{"prompt": r.prompt, "reply": "", "label": r.label, "group": i // 2, "split": r.split} for i, r in enumerate(sound())]
    found = read_task(write(tmp_path, rows))
    assert [(r.group, r.split) for r in found] == [(str(i // 2), r.split) for i, r in enumerate(sound())]
    paired = [{**r, "reply": things(f"reply {i}"), "group": i // 2} for i, r in enumerate(lines())]
    found = read_task(write(tmp_path, paired))
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
        read_task(write(tmp_path, content, name))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    with path.open("wb") as file:
        file.truncate(user_files.LARGEST_FILE + 1)
    with refused(REFUSED, "mine.jsonl", "52428801 bytes"):
        read_task(path)


@pytest.mark.parametrize("name", ["toxicity.jsonl", "a b.jsonl", ".jsonl.csv"])
def test_a_file_whose_name_cannot_name_a_task_is_refused(tmp_path, name):
    with pytest.raises(StudyError, match=r"give it another name|is no valid name"):
        read_task(write(tmp_path, lines(), name))


# --- pairs ---


def test_own_pairs_are_read_and_no_file_gives_none(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "a lamp", "chosen": "yes", "rejected": "no"}\n')
    (pair,) = user_files.preferences(str(tmp_path / "own.jsonl"))
    assert (pair.prompt, pair.reply, pair.rejected) == ("a lamp", "yes", "no")
    assert user_files.preferences("") == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a lamp", "chosen": "yes"}', "own.jsonl row 1 has no rejected"),
        ('{"prompt": "a lamp", "rejected": "no"}', "own.jsonl row 1 has no chosen"),
        ('{"prompt": "a lamp", "chosen": " ", "rejected": "no"}', "own.jsonl row 1 has an empty text"),
        ('{"prompt": "a lamp", "chosen": "yes", "rejected": 3}', "own.jsonl row 1: its rejected is a int"),
    ],
)
def test_a_file_without_chosen_and_rejected_is_refused_by_name(tmp_path, line, says):
    (tmp_path / "own.jsonl").write_text(line + "\n")
    with pytest.raises(StudyError, match=says) as caught:
        user_files.preferences(str(tmp_path / "own.jsonl"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(StudyError, match=r"'gone\.jsonl' does not exist"):
        user_files.preferences(str(tmp_path / "gone.jsonl"))
