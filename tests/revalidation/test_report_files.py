"""Reports: their form is checked, nothing odd or private enters a file, and the five files are written together or not at all."""

import copy
import errno
import json
import math
import os
import re
import xml.etree.ElementTree as ET

import jsonschema
import numpy as np
import pytest
from markdown_it import MarkdownIt
from support import sample_reports

from helpers.errors import StudyError
from helpers.revalidation.report import files, markdown, wording
from helpers.revalidation.report import schema as report_schema

HOME = "/ho" + "me/someone"  # in parts: no file of the project names a folder of some machine
NASTY = (
    "<script>alert(1)</script>", '" onerror="alert(1)', "' onload='x", "javascript:alert(1)", "</style><img src=x>", "&amp;&lt;",
    "[a](https://evil.example) ![i](x) www.evil.example", "`*_~#", "\x1b[31mred\x1b]0;t\x07", "\u202eabc\u200b\u2066", "a|b",
    "half \ud83d", "family \U0001f469\u200d\U0001f527", "漢字" * 30, "line\nbreak\r\n\u2028", "\0\x08\x7f\ufffe", "]]>",
    f"{HOME}/model/x.bin",
)  # fmt: skip


def places(value, path=()):
    """Every path to a string of a report, where any other string would be right as well."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in places(item, (*path, key))]
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in places(item, (*path, i))]
    return [path] if isinstance(value, str) and path[-1] not in {"word", "state", "measure", "answer"} else []


def planted(make=sample_reports.stale):
    """A report with something nasty in every string; the names of monitors differ still."""
    found = make()
    for i, path in enumerate(places(found)):
        at(found, path[:-1])[path[-1]] = f"{NASTY[i % len(NASTY)]}{i}"
    found["behaviour"] |= {f"key {nasty}": nasty for nasty in NASTY}
    return found


def at(value, path):
    """The part of a report at a path."""
    for key in path:
        value = value[key]
    return value


@pytest.fixture(params=sample_reports.ALL)
def sample(request):
    return sample_reports.ALL[request.param]()


# ---------------------------------------------------------------- the form


def test_the_schema_is_one_and_every_sample_has_its_form(sample):
    jsonschema.Draft202012Validator.check_schema(report_schema.SCHEMA)
    report_schema.check_report(wording.plain(sample))


def required(schema, value, path=()):
    """Paths of all keys that the schema requires, as far as the sample holds something there."""
    if isinstance(value, dict):
        found = [(*path, key) for key in schema.get("required", [])]
        return found + [
            deep for key, part in schema.get("properties", {}).items() for deep in required(part, value.get(key), (*path, key))
        ]
    return required(schema["items"], value[0], (*path, 0)) if isinstance(value, list) and value else []


def test_a_report_without_any_one_required_key_is_refused_and_the_key_is_named():
    whole = sample_reports.stale()
    whole["monitors"].insert(0, whole["monitors"].pop(1))  # one that has everything, a repair too
    paths = required(report_schema.SCHEMA, whole)
    assert len(paths) > 80
    for path in paths:
        broken = copy.deepcopy(whole)
        del at(broken, path[:-1])[path[-1]]
        with pytest.raises(StudyError, match=rf"lacks {path[-1]}; make") as error:
            report_schema.check_report(broken)
        assert error.value.code == 12


def test_other_keys_may_stand_beside_the_required_ones():
    found = sample_reports.stale()
    found["extra"] = found["monitors"][0]["extra"] = found["compared"]["extra"] = {"anything": [1, 2]}
    report_schema.check_report(found)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("monitors", 1, "state"), "broken", "monitors[1].state is a str"),
        (("monitors", 1, "n"), -1, "monitors[1].n is a int that breaks minimum"),
        (("monitors", 2, "n"), True, "monitors[2].n is a bool"),
        (("monitors", 0, "tests", 1, "p_worse"), 1.5, "monitors[0].tests[1].p_worse"),
        (("monitors", 0, "tests", 1, "margin"), 0, "monitors[0].tests[1].margin"),
        (("monitors", 0, "tests", 1, "measure"), "f1", "monitors[0].tests[1].measure"),
        (("monitors", 0, "tests", 0, "change"), None, "monitors[0].tests[0].change"),
        (("schema_version",), 3, "schema_version is a int"),
        (("next", 0, "action"), "x" * 3000, "next[0].action"),
        (("controls", 0, "passed"), "yes", "controls[0].passed"),
        (("compared", "versions", "torch"), 2.13, "compared.versions.torch"),
        (("verdict", "word"), "good", "verdict.word"),
    ],
)
def test_what_has_the_wrong_form_is_named_by_its_path(path, value, named):
    broken = sample_reports.stale()
    at(broken, path[:-1])[path[-1]] = value
    with pytest.raises(StudyError, match=re.escape(named)) as error:
        report_schema.check_report(broken)
    assert error.value.code == 12
    assert "\n" not in str(error.value)


def contradiction(change):
    """The refusal of a stale report after something was changed in it."""
    broken = sample_reports.stale()
    change(broken)
    with pytest.raises(StudyError) as error:
        report_schema.check_report(broken)
    assert error.value.code == 12
    return str(error.value)


def test_what_cannot_be_true_is_refused():
    def same_name(found):
        found["monitors"][3]["name"] = found["monitors"][1]["name"]

    def turned(found):  # a drop where a change belongs: all intervals would be drawn on the wrong side
        change = found["monitors"][3]["tests"][0]["change"]
        change.update(value=-change["value"], low=-change["high"], high=-change["low"])

    def outside(found):
        found["sureness"]["miss"]["high"] = 0.1

    assert "monitors[3].name stands twice" in contradiction(same_name)
    assert "monitors[3].tests[0].change.value is 0.052, but after - before is -0.052" in contradiction(turned)
    assert "sureness.miss has the value 0.118 outside its interval" in contradiction(outside)
    assert "code is 0, but verdict.code is 10" in contradiction(lambda found: found.update(code=0))


@pytest.mark.parametrize("value", ["Some words of a person", ["one", "two"]])
def test_a_text_has_no_place_in_a_report_and_does_not_enter_the_message(value):
    said = contradiction(lambda found: found["behaviour"].update(worst={"reply": value}))
    assert "behaviour.worst.reply would hold a text" in said
    assert "Some words" not in said
    report_schema.check_report(sample_reports.stale() | {"worst": {"reply": {"sha256": "ab", "length": 3}}})


def test_numbers_of_numpy_and_undefined_ones_become_plain_json():
    found = wording.plain({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": math.nan, "e": (1.0, -math.inf),
                                "f": np.array([1.0, np.nan]), 7: None})  # fmt: skip
    assert found == {"a": 0.5, "b": 3, "c": True, "d": None, "e": [1.0, None], "f": [1.0, None], "7": None}
    assert [type(found[key]) for key in "abc"] == [float, int, bool]


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x1b[1;31mb\x1b[0mc", "abc"),
        ("a\x9b2Jb", "ab"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("a\x1bMb\x1b", "ab"),
        ("a\0b\x08c\x7f\x85d", "abc d"),
        ("\u202eright\u2066\u200f\u200b\ufeff", "right"),
        ("\ud83d half \udc00", "\ufffd half \ufffd"),
        ("\ufdd0a\ufffe\U0001ffff", "a"),
        ("one\r\ntwo\tthree\u2028four", "one two three four"),
        ("family \U0001f469\u200d\U0001f527 漢字 é", "family \U0001f469\u200d\U0001f527 漢字 é"),
        ("harmful-request/mean/14 and 1/2 of https://a.example/b/c", "harmful-request/mean/14 and 1/2 of https://a.example/b/c"),
        ("see /scratch/someone/run/model.bin now", "see model.bin now"),
        (f"({HOME}/secret/x.json)", "(x.json)"),
        ("file:///mnt/disk/a/b.txt", "b.txt"),
        ("C:\\Users\\someone\\x.json", "x.json"),
    ],
)
def test_a_text_is_cleaned(text, kept):
    assert wording.clean(text) == kept
    assert wording.clean(kept) == kept


def test_a_long_text_is_cut():
    found = wording.clean("x" * 5000)
    assert len(found) == wording.LONGEST
    assert found.endswith("…")


def test_nothing_nasty_enters_any_file(tmp_path):
    texts = files.rendered(planted())
    for name, text in texts.items():
        text.encode()  # no lone surrogate
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", text), (
            name
        )
        assert HOME not in text
        assert "someone" not in text
    assert "<script" not in texts["junit.xml"] + texts["report.md"] + texts["report.html"]


def test_no_folder_of_this_machine_enters_any_file(tmp_path):
    found = sample_reports.stale()
    found["notes"] = [f"read from {tmp_path / 'model' / 'x.safetensors'}", f"under {os.getcwd()}/results/cpu"]
    found["compared"]["update"]["name"] = str(tmp_path / "adapter")
    for path in files.write(found, tmp_path / "out"):
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert os.getcwd() not in text


# ---------------------------------------------------------------- Markdown


def tokens(text):
    """All tokens of the text as GitHub's Markdown reads it."""
    found = MarkdownIt("gfm-like", {"html": True}).parse(text)
    return [*found, *(child for token in found for child in token.children or [])]


def test_markdown_holds_tables_and_nothing_else_of_a_nasty_report():
    found = tokens(files.rendered(planted())["report.md"])
    kinds = {token.type for token in found}
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
        "code_block",
        "code_inline",
        "em_open",
        "s_open",
    }
    assert sum(token.type == "table_open" for token in found) == 3
    rows = "".join({"tr_open": "r", "th_open": "c", "td_open": "c"}.get(token.type, "") for token in found).split("r")[1:]
    assert {len(row) for row in rows} == {3, 7}  # no pipe of a name makes a cell


def test_markdown_shows_the_words_as_they_are():
    name = "a|b_c*d* <b> [x](y) `z` \\ #1 www.x.example https://x.example @me $1$ ~~n~~ &amp;"
    found = tokens(f"| {markdown.escaped(name)} | 2 |\n| --- | --- |\n")
    assert [token.content for token in found if token.type == "inline"] != []
    assert "".join(token.content for token in found if token.type in {"text", "text_special"}) == f"{name}2"


def test_the_summary_is_in_the_order_of_the_first_screen_and_stale_comes_first():
    text = files.rendered(sample_reports.stale())["report.md"]
    heads = ["STALE", "### What was compared", "### Monitors: 2 stale", "### What to do next", "### Controls", "### How sure"]
    assert sorted(heads, key=text.index) == heads
    rows = [line for line in text.split("### Monitors")[1].split("###")[0].splitlines() if line.startswith("| ") and "/" in line]
    assert [row.split(" |")[0][2:] for row in rows] == ["✗ stale"] * 2 + ["? inconclusive"] + ["✓ fine"] * 3


@pytest.mark.parametrize("n", [200, 1000])
def test_a_summary_of_many_monitors_stays_small_and_says_what_is_left_out(n):
    text = files.rendered(sample_reports.many(n))["report.md"]
    assert len(text.encode()) <= 60_000
    assert ("more in report.json" in text) == (n > 300)
    assert "7 stale, 7 inconclusive" in text


# ---------------------------------------------------------------- JUnit


def outcomes(report):
    """What JUnit says of each test case, and its root."""
    root = ET.fromstring(files.rendered(report)["junit.xml"])
    return {case.get("name"): [(part.tag, part.get("type")) for part in case] for case in root.iter("testcase")}, root


def test_junit_fails_what_the_gate_fails():
    found = sample_reports.stale()
    found["monitors"][2]["required"] = True
    found["monitors"].append(found["monitors"][2] | {"name": "other/lda-mean/3", "required": False})
    found["controls"][1]["passed"] = False
    cases, root = outcomes(found)
    assert {name: said for name, said in cases.items() if said} == {
        "harmful-request/logistic-mean/14": [("failure", "stale")],
        "refusal-compliance/mlp-mean/14": [("failure", "stale")],
        "toxicity/logistic-last/22": [("failure", "inconclusive")],
        "other/lda-mean/3": [("skipped", None)],
        "shuffled labels": [("failure", "control")],
    }
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in root] == [
        ("monitors", "7", "3", "1"), ("controls", "3", "1", "0"),
    ]  # fmt: skip
    assert (root.get("tests"), root.get("failures"), root.get("time")) == ("10", "4", "41.700")


def test_junit_passes_what_is_fine_or_unchanged_and_keeps_nasty_names():
    for make in (sample_reports.fine, sample_reports.no_update):
        assert not any(outcomes(make())[0].values())
    report = planted()
    cases, _ = outcomes(report)
    assert {wording.clean(monitor["name"]) for monitor in report["monitors"]} <= set(cases)


# ---------------------------------------------------------------- the terminal


def test_the_lines_are_narrow_and_in_the_order_of_the_first_screen(sample):
    said = files.report_lines(sample)
    assert max(map(len, said)) <= 100
    text = "\n".join(said)
    heads = [f"{sample['verdict']['word'].upper()}: ", "\ncompared:", "\nmonitors:", "\nnext:", "\ncontrols:", "\nhow sure:"]
    assert sorted(heads, key=text.index) == heads
    states = [word for line in said for word in re.findall(r"^  (STALE|UNFIT|INCONCLUSIVE|FINE|NO UPDATE)\s", line)]
    assert sorted(states, key=lambda word: wording.URGENCY.index(word.lower())) == states
    assert len(states) == len(sample["monitors"])


def test_lines_of_a_nasty_report_are_narrow_and_harmless():
    for line in files.report_lines(planted()):
        assert line.replace("\u200d", "").isprintable()  # the joiner of emoji stays
        assert sum(2 if "\u2e80" < letter < "\ufe00" else 1 for letter in line) <= 100


def test_a_line_says_what_was_and_what_is_without_labels_too():
    assert any(
        "TPR 90.0 -> 91.0 %, FPR 5.0 -> 31.0 %, AUROC 0.958 -> 0.953" in line
        for line in files.report_lines(sample_reports.stale())
    )
    said = "\n".join(files.report_lines(sample_reports.unlabelled()))
    assert "alarms 5.2 % -> 11.8 %; agreement 94.0 %" in said
    assert "(n 0; would take 400)" in said
    assert "Not simulated for this run" in said


def test_failed_controls_are_said():
    found = sample_reports.fine()
    found["controls"][2]["passed"] = False
    text = "\n".join(files.report_lines(found))
    assert "controls: 1 of 3 controls FAILED\n  FAILED order of texts: another" in text


# ---------------------------------------------------------------- writing


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_five_files_are_written_and_the_same_report_gives_the_same_bytes(sample, tmp_path):
    paths = files.write(sample, tmp_path / "new" / "out")
    assert {path.name for path in paths} == set(contents(tmp_path / "new" / "out")) == set(files.FILES)
    found = json.loads((tmp_path / "new" / "out" / "report.json").read_bytes())
    assert found == wording.plain(sample)
    jsonschema.validate(found, json.loads((tmp_path / "new" / "out" / "schema.json").read_bytes()))
    files.write(sample, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "new" / "out")
    assert files.read(tmp_path / "again") == files.read(tmp_path / "again" / "report.json") == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "new"]


def test_an_older_report_is_replaced_and_other_files_stay(tmp_path):
    files.write(sample_reports.stale(), tmp_path)
    (tmp_path / "repaired.safetensors").write_bytes(b"kept")
    files.write(sample_reports.fine(), tmp_path)
    assert files.read(tmp_path)["verdict"]["word"] == "fine"
    assert set(contents(tmp_path)) == {*files.FILES, "repaired.safetensors"}
    assert "✓" in (tmp_path / "report.md").read_text()


def is_file(folder):
    folder.write_text("mine")


def is_dangling(folder):
    folder.symlink_to("nowhere")


def is_foreign(folder):
    folder.mkdir()
    (folder / "report.html").write_text("mine")


def is_other_json(folder):
    folder.mkdir()
    (folder / "report.json").write_text('{"schema_version": 1}')


@pytest.mark.parametrize(("make", "words"), [(is_file, "is a file"), (is_dangling, "is a file"), (is_foreign, "other files"),
                                             (is_other_json, "other files")])  # fmt: skip
def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_was(make, words, tmp_path):
    make(tmp_path / "out")
    before = contents(tmp_path)
    for call in (files.ready, lambda folder: files.write(sample_reports.fine(), folder)):
        with pytest.raises(StudyError, match=words) as error:
            call(tmp_path / "out")
        assert error.value.code == 2
    assert contents(tmp_path) == before


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for folder in (tmp_path / "new", tmp_path, tmp_path / "file" / "out"):
        with pytest.raises(StudyError, match="cannot be written") as error:
            files.ready(folder)
        assert error.value.code == 14


def test_a_faulty_report_leaves_nothing(tmp_path):
    broken = copy.deepcopy(sample_reports.fine())
    del broken["controls"]
    with pytest.raises(StudyError, match="lacks controls"):
        files.write(broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_all_files_are_written_or_none_wherever_it_stops(old, at, stop, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    if old:
        files.write(sample_reports.stale(), folder)
    before, steps = contents(tmp_path), iter(range(1, 99))

    def failing(real):
        def call(*args, **kwargs):
            if next(steps) == at:
                raise stop
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(files.Path, "write_text", failing(files.Path.write_text))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    if not old and at > 6:  # five files and one move: such a step never comes
        files.write(sample_reports.fine(), folder)
        return
    with pytest.raises((StudyError, KeyboardInterrupt)) as error:
        files.write(sample_reports.fine(), folder)
    assert isinstance(stop, KeyboardInterrupt) or error.value.code == 14
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob(".*tmp"))


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "half").write_text("")
    files.write(sample_reports.fine(), tmp_path / "out")
    assert set(contents(tmp_path)) == {f"out/{name}" for name in files.FILES}


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("{", "not JSON", 12),
        ("[" * 100_000, "not JSON", 12),
        ("[]", "is a list", 12),
        ("{}", "lacks schema_version", 12),
        (None, "cannot be read", 2),
    ],
)
def test_what_is_no_report_is_not_read(text, words, code, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(StudyError, match=words) as error:
        files.read(tmp_path / "report.json")
    assert error.value.code == code
