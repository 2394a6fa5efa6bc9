"""Splits: what is alike is one group, every group lies in one split, and rows that no monitor can be judged on are refused."""

from collections import Counter
from dataclasses import replace

import pytest
from support.bland import refused, row, sound, things

from helpers.data.splits import SPLITS, Example, check, in_splits, leaks, linked
from helpers.errors import REFUSED

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
