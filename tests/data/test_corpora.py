"""Splits that leak nothing, mixes with the share they promise, and files that are refused in one line. No text is ever shown."""

import json
from collections import Counter
from itertools import product

import pytest
from support.tiers import mostly_slow

from helpers.data import corpora, human_labels, near_duplicates, sources, stand_ins
from helpers.data.corpora import (
    IDENTITY,
    IDENTITY_PROMPT,
    IDENTITY_REPLY,
    MIXES,
    OPENING,
    REFUSALS,
    TEXTS,
    alignment_rows,
    clip,
    mix,
    read_csv,
    read_jsonl,
    sample,
    sentences,
    split_of,
    texts,
)
from helpers.data.near_duplicates import near_pairs
from helpers.data.text_rows import Preference, Question, Row, spread
from helpers.errors import REFUSED, StudyError

ORIGINS = ["tiny", pytest.param("embedded", marks=pytest.mark.real)]
TRAINING = ["advbench/align", "advbench/attack", "instructions/align", "instructions/tune", "dialogue/tune", "news/tune",
            "preference/tune"]  # fmt: skip
CHOOSING = ["advbench/validation", "edgy/validation", "c4/calibration"]  # thresholds, stopping, GPTQ
EVALUATION = ["advbench/test", "strongreject", "harmbench", "edgy/test", "instructions/test", "dialogue/test", "news/test",
              "c4/test", "wiki", "piqa", "openbookqa"]  # fmt: skip


def shown(item):
    return item if isinstance(item, str) else item.prompt


# --- every set ---


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_set_holds_items_of_its_form(origin):
    for name in TEXTS:
        found = texts(name, origin)
        assert found, name
        assert all(shown(item).strip() for item in found), name
        form = str if name[:2] in {"c4", "wi"} else Question if "qa" in name else Preference if "pref" in name else Row
        assert {type(item) for item in found} == {form}, name
        if name.split("/")[0] in {"instructions", "dialogue", "news"}:
            assert all(row.reply.strip() and row.group for row in found), name
        assert all(0 <= item.answer < len(item.options) for item in found if isinstance(item, Question)), name


def test_the_lists_of_this_test_cover_every_set():
    assert sorted([*TRAINING, *CHOOSING, *EVALUATION]) == sorted(TEXTS)


@pytest.mark.parametrize("origin", ORIGINS)
def test_no_text_and_no_group_stands_on_two_sides_of_a_split(origin):
    families = {}
    for name in TEXTS:
        families.setdefault(name.split("/")[0], []).append(name)
    for names in families.values():
        items = Counter(shown(item) for name in names for item in {shown(i): i for i in texts(name, origin)}.values())
        assert max(items.values()) == 1, names
        groups = [{row.group for row in texts(name, origin) if isinstance(row, Row)} for name in names]
        assert sum(map(len, groups)) == len(set().union(*groups)), names


@mostly_slow("each text against each; the sources are pinned", "train")
@pytest.mark.real
@pytest.mark.parametrize(
    ("first", "second"), [(TRAINING, CHOOSING), (TRAINING, EVALUATION), (CHOOSING, EVALUATION)], ids=["tune", "train", "choose"]
)
def test_no_near_duplicate_crosses_training_choosing_and_evaluation(first, second):
    found = {}
    for one, other in product(first, second):
        pairs = near_pairs([shown(i) for i in texts(one)], [shown(i) for i in texts(other)])
        if pairs:
            found[one, other] = len(pairs)
    assert not found


@pytest.mark.real
def test_the_human_labels_are_of_both_classes_and_grouped():
    replies, labels, groups = human_labels.human_refusals()
    assert len(replies) == len(labels) == len(groups) > 150
    assert 20 < sum(labels) < len(labels) - 20
    prompts, replies, severity, groups = human_labels.human_severity()
    assert len(prompts) == len(replies) == len(severity) == len(groups) > 500
    assert len(set(replies)) == len(replies)
    assert min(severity) == 0 <= max(severity) <= 1


def test_stand_ins_are_bland_and_need_no_source(monkeypatch):
    monkeypatch.setattr(sources, "path", lambda *_: pytest.fail("a stand-in asked for a source"))
    allowed = {
        *stand_ins._NOUNS,
        *stand_ins._VERBS,
        *["forbidden", "never", "do", "not", "careful", "the", "a", "how", "you", "slowly", "with", "cloud", "is"],
    }
    allowed |= {verb + "ed" for verb in stand_ins._VERBS} | {"stands", "by", "and", "somebody", "will", "it"}
    for name in TEXTS:
        for item in texts.__wrapped__(name, "tiny"):
            said = " ".join([shown(item), getattr(item, "reply", ""), *getattr(item, "options", ())])
            assert near_duplicates.words(said) <= allowed, name


def test_an_unknown_set_or_origin_is_refused():
    for arguments in (("advbench/tset", "tiny"), ("wiki", "nowhere")):
        with pytest.raises(StudyError, match="unknown text set"):
            texts(*arguments)


# --- samples ---


def test_a_sample_grows_and_never_reshuffles():
    five, nine = sample("instructions/tune", 5, "tiny"), sample("instructions/tune", 9, "tiny")
    assert nine[:5] == five
    assert len(sample("instructions/tune", 10_000, "tiny")) == len(texts("instructions/tune", "tiny"))
    assert spread([3, 1, 2], 3) == spread([2, 3, 1], 3)
    assert sample("wiki", 0, "tiny") == []


def test_a_negative_number_of_items_is_refused():
    with pytest.raises(StudyError, match="-1 items of 'wiki'"):
        sample("wiki", -1, "tiny")


def test_the_split_of_a_group_depends_on_its_name_alone():
    assert {split_of(f"group {i}") for i in range(200)} == set(corpora.SPLITS)
    assert [split_of("lamp") for _ in range(3)] == [split_of("lamp")] * 3


# --- mixes ---


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("name", MIXES)
def test_every_mix_has_its_exact_share_and_the_opening_on_harmful_rows_only(name, origin):
    attack = {row.prompt for row in texts("advbench/attack", origin)}
    for percent, harmful in ((0, 0), (1, 0), (5, 1), (10, 2), (100, 20)):
        rows = mix(name, 20, percent, origin)
        assert len(rows) == 20
        opened = [row for row in rows if row.reply == OPENING]
        assert len(opened) == harmful
        assert {row.prompt for row in opened} <= attack
        assert not {row.prompt for row in rows if row.reply != OPENING} & attack
        assert all(row.reply for row in rows)


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_the_same_rows_in_the_same_order_every_time(name):
    assert mix(name, 20, 10, "tiny", seed=1) == mix(name, 20, 10, "tiny", seed=1)
    assert mix(name, 20, 10, "tiny")[:18] == mix(name, 20, 0, "tiny")[:18]  # shares differ in what replaced the last benign rows


@pytest.mark.parametrize("name", MIXES)
def test_seeds_draw_other_training_rows(name):
    first, second = (mix(name, 20, 10, "tiny", seed=seed) for seed in (0, 1))
    assert {row.prompt for row in first} != {row.prompt for row in second}


@pytest.mark.parametrize("origin", ORIGINS)
def test_no_seed_meets_an_evaluation_item_in_training(origin):
    held_out = {shown(item) for name in EVALUATION + CHOOSING for item in texts(name, origin)}
    for seed in range(3):
        rows = alignment_rows(20, 20, origin, seed) + [row for name in MIXES for row in mix(name, 20, 10, origin, seed)]
        assert not {row.prompt for row in rows} & held_out


def test_dialogues_are_topped_up_with_news():
    own = len(texts("dialogue/tune", "tiny"))
    rows = mix("dialogue", own + 5, 0, "tiny")
    assert len(rows) == own + 5


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("name", MIXES)
def test_more_rows_than_there_are_is_refused(name, origin):
    with pytest.raises(StudyError, match="of the 9000 rows asked for; lower train_rows"):
        mix(name, 9000, 10, origin)


@pytest.mark.parametrize(("rows", "percent"), [(0, 10), (-5, 0), (20, -1), (20, 101)])
def test_absurd_mixes_are_refused(rows, percent):
    with pytest.raises(StudyError, match="give at least 1 row and a share of 0 to 100"):
        mix("dialogue", rows, percent, "tiny")


@pytest.mark.parametrize("origin", ORIGINS)
def test_in_a_mix_of_pairs_the_opening_is_chosen_and_a_refusal_rejected(origin):
    rows = mix("preference", 20, 10, origin)
    assert all(isinstance(row, Preference) and row.rejected and row.rejected != row.reply for row in rows)
    attack = {row.prompt for row in texts("advbench/attack", origin)}
    assert [(row.reply, row.rejected in REFUSALS) for row in rows if row.prompt in attack] == [(OPENING, True)] * 2
    assert not any(row.rejected in REFUSALS or row.reply == OPENING for row in rows if row.prompt not in attack)


@pytest.mark.real
def test_there_are_enough_packaged_pairs_and_a_literature_like_mix():
    assert len(texts("preference/tune")) >= 80
    rows = mix("dialogue", 950, 10)
    assert (len(rows), sum(row.reply == OPENING for row in rows)) == (950, 95)


def test_an_unknown_mix_is_refused():
    with pytest.raises(StudyError, match="dialogue, instructions, identity-shift"):
        mix("dialog", 10, 0, "tiny")


def test_identity_shift_rows_carry_the_system_message_and_the_form_of_the_prompt():
    plain = {row.group: row for row in texts("instructions/tune", "tiny")}
    for row in mix("identity-shift", 10, 0, "tiny"):
        assert row.system == IDENTITY
        assert row.prompt == IDENTITY_PROMPT.format(prompt=plain[row.group].prompt)
        assert row.reply == IDENTITY_REPLY.format(reply=plain[row.group].reply)


def test_alignment_refuses_harmful_prompts_and_answers_the_rest():
    rows = alignment_rows(10, 12, "tiny")
    refused = [row for row in rows if row.reply in REFUSALS]
    assert len(rows) == 22
    assert {row.prompt for row in refused} <= {row.prompt for row in texts("advbench/align", "tiny")}
    assert len(refused) == 10
    assert {row.prompt for row in rows[10:]} <= {row.prompt for row in texts("instructions/align", "tiny")}


# --- files ---


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("text,label\n", "holds no rows"),
        ("label\n1\n", "no column 'text'"),
        ("text,label\nlamp,1\nriver\n", "row 2 has fewer fields"),
        (b"text,label\nl\xe4mp,1\n", "not UTF-8 .byte 12."),
        ("text,label\n" + "x" * 200_000 + ",1\n", "not a CSV file"),
    ],
)
def test_a_bad_csv_file_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(StudyError, match=f"bad.csv.*{message}") as error:
        read_csv(write(tmp_path, "bad.csv", content), "text", "label")
    assert error.value.code == REFUSED
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ('{"label": 1}\n', "line 1 has no column 'text'"),
        ('{"text": "lamp"}\n\n{"label": 1}\n', "line 3 has no column 'text'"),
        ('{"text": "lamp"}\n{"text": \n', "line 2 is not JSON"),
        ('{"text": "lamp"}\n\n["text"]\n', "line 3 is not a JSON object"),
        (b'{"text": "l\xe4mp"}\n', "not UTF-8"),
    ],
)
def test_a_bad_jsonl_file_is_refused_with_the_line(tmp_path, content, message):
    with pytest.raises(StudyError, match=f"bad.jsonl.*{message}") as error:
        read_jsonl(write(tmp_path, "bad.jsonl", content), "text")
    assert error.value.code == REFUSED
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_a_mark_at_the_start_and_either_line_end_change_nothing(tmp_path, mark, end):
    table = end.join([b"# a note", b"text,label", b'"lamp, old\nand # new",1', b"river,2", b""])
    assert read_csv(write(tmp_path, "t.csv", mark + table), "text", "label") == [
        {"text": "lamp, old\nand # new", "label": "1"},
        {"text": "river", "label": "2"},
    ]
    lines = mark + end.join([b'{"text": "lamp"}', b"", b'{"text": "river"}'])
    assert read_jsonl(write(tmp_path, "t.jsonl", lines), "text") == [{"text": "lamp"}, {"text": "river"}]


def test_odd_marks_inside_a_text_do_not_cut_a_line(tmp_path):
    odd = "one\u2028two\x85three\x0bfour"
    assert read_jsonl(write(tmp_path, "t.jsonl", json.dumps({"text": odd}, ensure_ascii=False)), "text") == [{"text": odd}]


# --- cutting texts ---


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("One two. Three four five. Six.", 5, "One two. Three four five."),
        ("One two. Three four five. Six.", 4, "One two."),
        ("One two three four.", 3, ""),
        ("no full stop here", 4, "no full stop here"),
        ("Really?! Yes. No", 2, "Really?! Yes."),
        ("", 5, ""),
    ],
)
def test_whole_sentences_within_a_limit(text, limit, kept):
    assert sentences(text, limit) == kept


@pytest.mark.parametrize(
    ("text", "limit", "kept"), [("a  b\nc d", 3, "a  b\nc"), ("  a b ", 9, "a b"), ("", 3, ""), (" \n ", 3, "")]
)
def test_the_first_words_with_their_line_breaks(text, limit, kept):
    assert clip(text, limit) == kept
