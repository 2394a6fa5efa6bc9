"""The diff of two reports: what changed is said, what did not is not, and what cannot be compared is refused."""

import copy

import pytest
from markdown_it import MarkdownIt
from support import sample_reports
from test_report_files import planted

from helpers.errors import StudyError
from helpers.revalidation.report import diff as report_diff
from helpers.revalidation.report import wording

STALE, MENDED = "harmful-request/logistic-mean/14", "refusal-compliance/mlp-mean/14"


def pair():
    """A stale report, and one of a later update: one monitor mended, one worse, one gone, one new."""
    old, new = (wording.plain(sample_reports.stale()) for _ in range(2))
    found = {monitor["name"]: monitor for monitor in new["monitors"]}
    mended, worse = found[MENDED], found["jailbreak/logistic-mean/18"]
    mended.update(state="fine", tests=sample_reports.measured((0.973, 0.972), (0.93, 0.93), (0.05, 0.05), 0.008))
    worse.update(state="stale", tests=sample_reports.measured((0.992, 0.99), (0.97, 0.97), (0.05, 0.28), 0.01))
    new["monitors"].remove(found["harmful-request/attention/18"])
    new["monitors"].append(found["toxicity/logistic-last/22"] | {"name": "toxicity/lda-last/22", "hash": "other"})
    new["compared"]["update"] |= {"name": "lora-dialogue-2", "fingerprint": sample_reports.digest("update 2")}
    new["compared"]["versions"]["torch"] = "2.14.0"
    return old, new


def rows(diff):
    """What the diff says of each monitor."""
    return {monitor["name"]: monitor for monitor in diff["monitors"]}


def test_a_report_compared_with_itself_changed_in_nothing():
    for make in sample_reports.ALL.values():
        report = wording.plain(make())
        found = report_diff.compare(report, copy.deepcopy(report))
        assert found["verdict"]["change"] == "same"
        assert (found["fingerprints"], found["notes"]) == ([], [])
        assert {(m["change"], m["before"] == m["after"], len(m["thresholds"])) for m in found["monitors"]} == {("same", True, 0)}
        assert not any(measure["beyond"] for m in found["monitors"] for measure in m["measures"])
        assert report_diff.diff_lines(found)[-1] == "nothing else is other than before"


def test_states_that_changed_are_named_and_the_worse_come_first():
    found = report_diff.compare(*pair())
    assert [(m["name"], m["change"], m["before"], m["after"]) for m in found["monitors"] if m["change"] != "same"] == [
        ("jailbreak/logistic-mean/18", "worsened", "fine", "stale"),
        ("harmful-request/attention/18", "gone", "fine", None),
        ("toxicity/lda-last/22", "new", None, "inconclusive"),
        (MENDED, "improved", "stale", "fine"),
    ]
    assert sum(m["change"] == "same" for m in found["monitors"]) == 3


def test_the_other_direction_is_the_opposite():
    old, new = pair()
    first, second = rows(report_diff.compare(old, new)), rows(report_diff.compare(new, old))
    opposite = {"worsened": "improved", "improved": "worsened", "new": "gone", "gone": "new", "same": "same"}
    assert {name: opposite[m["change"]] for name, m in first.items()} == {name: m["change"] for name, m in second.items()}


def test_measures_count_only_beyond_their_intervals():
    found = rows(report_diff.compare(*pair()))
    changes = {m["measure"]: (m["beyond"], m["change"]) for m in found[MENDED]["measures"]}
    assert changes == {"tpr_5": (True, "improved"), "fpr_5": (False, "same"), "auroc": (True, "improved")}
    changes = {m["measure"]: (m["beyond"], m["change"]) for m in found["jailbreak/logistic-mean/18"]["measures"]}
    assert changes == {
        "tpr_5": (False, "same"),
        "fpr_5": (True, "worsened"),
        "auroc": (False, "same"),
    }  # more false alarms are worse


@pytest.mark.parametrize(("step", "beyond"), [(0.049, False), (0.061, True)])
def test_intervals_that_touch_are_not_beyond(step, beyond):
    old, new = (wording.plain(sample_reports.fine()) for _ in range(2))
    for report, after in ((old, 0.05), (new, 0.05 + step)):
        report["monitors"][0]["tests"][2] = sample_reports.checked("fpr_5", 0.05, after, 0.0275, 1)
    assert rows(report_diff.compare(old, new))[new["monitors"][0]["name"]]["measures"][1]["beyond"] == beyond


def test_an_undefined_measure_is_never_beyond():
    old, new = (wording.plain(sample_reports.fine()) for _ in range(2))
    new["monitors"][0]["tests"][0].update(after=None, change={"value": None, "low": None, "high": None})
    assert not any(m["beyond"] for m in rows(report_diff.compare(old, new))[new["monitors"][0]["name"]]["measures"])


def test_other_fingerprints_versions_margins_and_thresholds_are_named():
    old, new = pair()
    monitor = next(m for m in new["monitors"] if m["name"] == STALE)
    monitor["tests"][0]["margin"], monitor["thresholds"] = 0.05, {"5": 1.25}
    next(m for m in old["monitors"] if m["name"] == STALE)["thresholds"] = {"5": 1.0, "1": 2.0}
    found = report_diff.compare(old, new)
    assert {row["what"]: (row["before"][:4], row["after"][:4]) for row in found["fingerprints"]} == {
        "update": (sample_reports.digest("update")[:4], sample_reports.digest("update 2")[:4]), "torch": ("2.13", "2.14"),
    }  # fmt: skip
    assert rows(found)[STALE]["thresholds"] == [
        {"what": "margin of auroc", "before": 0.03, "after": 0.05},
        {"what": "threshold 5", "before": 1.0, "after": 1.25},
        {"what": "threshold 1", "before": 2.0, "after": None},
    ]
    assert "margin of auroc 0.030 -> 0.050; threshold 5 1.000 -> 1.250" in " ".join(
        " ".join(report_diff.diff_lines(found)).split()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda new: new["compared"]["base"].update(fingerprint="f" * 64), "not the same base: states are not comparable"),
        (lambda new: new["compared"].update(template="f" * 64), "not the same tokenizer and template: states are not"),
        (lambda new: new["monitors"][1].update(hash="f" * 64), f"not the same monitor {STALE}: states are not"),
    ],
)
def test_reports_on_another_base_template_or_monitor_are_refused(change, words):
    old, new = pair()
    change(new)
    with pytest.raises(StudyError, match=words) as error:
        report_diff.compare(old, new)
    assert error.value.code == 13


def test_what_is_not_known_and_other_labels_are_said_but_not_refused():
    old, new = pair()
    old["monitors"][1]["hash"] = new["compared"]["base"]["fingerprint"] = None
    new["compared"]["labels"]["sha256"] = "f" * 64
    notes = report_diff.compare(old, new)["notes"]
    assert [note.split(" is not")[0] for note in notes[:2]] == ["The fingerprint of base", f"The fingerprint of monitor {STALE}"]
    assert notes[2].startswith("The labelled texts are others")
    assert len(notes) == 3


def test_the_lines_name_what_changed_and_only_count_the_rest():
    said = report_diff.diff_lines(report_diff.compare(*pair()))
    assert max(map(len, said)) <= 100
    assert said[:3] == [
        "verdict: stale -> stale (same)",
        "monitors: 1 worsened, 1 gone, 1 new, 1 improved, 3 same",
        "  WORSENED  jailbreak/logistic-mean/18: fine -> stale; FPR 5.0 -> 28.0 % (worsened)",
    ]
    assert not any(STALE in line for line in said)
    assert "  torch: 2.13.0 -> 2.14.0" in said


def test_markdown_holds_both_tables_and_nothing_nasty():
    old, new = (wording.plain(planted()) for _ in range(2))
    new["compared"]["serving"] = "a|b <script>"
    new["monitors"][1]["state"] = "fine"
    text = report_diff.diff_markdown(report_diff.compare(old, new))
    found = MarkdownIt("gfm-like", {"html": True}).parse(text)
    kinds = {child.type for token in found for child in [token, *(token.children or [])]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence", "code_block", "code_inline"}
    assert sum(token.type == "table_open" for token in found) == 2
    assert (
        len(report_diff.diff_markdown(report_diff.compare(*(wording.plain(sample_reports.many(900)) for _ in range(2)))).encode())
        <= 60_000
    )
