"""Checkpoints of one training: the first stale one is found, by bisection or by looking at all, and drawn."""

import pytest
from support import given, sample_reports
from support.bland import refused
from support.tiers import slow
from test_report_page import Seen, page
from test_revalidation_run import files, quick, run  # noqa: F401

from helpers.errors import REFUSED
from helpers.revalidation.candidate import steps
from helpers.revalidation.candidate.steps import Checkpoint
from helpers.revalidation.report import markdown, schema, wording


@pytest.mark.parametrize("n", [2, 3, 7, 16])
def test_bisection_finds_the_first_stale_step_in_few_looks(n):
    for first in [*range(n), None]:
        for how in ("bisect", "all"):
            looked = []

            def is_stale(i, first=first, looked=looked):
                looked.append(i)
                return first is not None and i >= first

            assert steps.search(n, is_stale, how) == first
            assert len(looked) == len(set(looked))
            assert looked[0] == n - 1  # the one that would be deployed
            assert len(looked) == n if how == "all" else len(looked) <= 1 + n.bit_length()


def test_all_sees_what_recovers_and_bisection_asks_the_last():
    stale = {2, 3}
    assert steps.search(6, lambda i: i in stale, "all") == 2
    assert steps.search(6, lambda i: i in stale, "bisect") is None


def test_checkpoints_are_ordered_by_their_steps(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "step_3", "runs", "checkpoint-x"):
        given.adapter(tmp_path / name)
    (tmp_path / "checkpoint-7").mkdir()
    assert [one.step for one in steps.steps_in(tmp_path)] == [3, 20, 100]
    assert steps.steps_in(tmp_path / "runs") == []
    given.adapter(tmp_path / "epoch-3")
    with refused(REFUSED, "of one step"):
        steps.steps_in(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert steps.steps_in(tmp_path) == []  # a model with checkpoints beside it is the update itself


def test_one_checkpoint_alone_is_none_to_search(tmp_path):
    given.adapter(tmp_path / "checkpoint-1")
    assert steps.steps_in(tmp_path) == []


def stepped(first=300):
    """The sample report as the last of three checkpoints, stale from the second on."""
    fine, stale = (wording.plain(make()) for make in (sample_reports.fine, sample_reports.stale))
    found = {Checkpoint(step, None): stale if step >= first else fine for step in (100, 300, 400)}
    at = next((one for one in sorted(found) if one.step >= first), None)
    return wording.plain(steps.with_steps(stale, steps.looked_at(found, 7, at, "bisect")))


def test_the_report_says_from_which_step_on_and_what_to_take_instead():
    report = stepped()
    schema.check_report(report)
    assert report["steps"]["first_stale"] == 300
    assert report["steps"]["last_fit"] == 100
    assert report["next"][0]["action"] == "take an earlier checkpoint"
    assert "step 100" in report["next"][0]["detail"]
    said = markdown.report_markdown(report)
    assert "stale from step 300 on, the last shown fit is step 100; 3 of 7 checkpoints looked at, by bisect" in said
    none = stepped(first=100)
    assert none["next"][0]["action"] == "train otherwise, or save earlier"


def test_the_steps_are_drawn_and_hostile_names_do_not_enter_the_drawing():
    report, plain = stepped(), page(sample_reports.stale())
    for one in report["steps"]["looked_at"]:
        one["monitors"][0]["name"] = '"><script>alert(1)</script>'
    drawn = page(report)
    dots = sum(bool(m["required"]) for one in report["steps"]["looked_at"] for m in one["monitors"])
    assert drawn.count("<circle") == plain.count("<circle") + dots
    assert "<script" not in drawn
    assert Seen(drawn).wrong == []
    assert "Which step" in drawn
    assert "Which step" not in plain


@slow("two whole runs; the search, its report and its drawing are tested above")
def test_a_folder_of_checkpoints_ends_with_the_last_and_names_the_first_stale(files, tmp_path):  # noqa: F811
    given.adapter(tmp_path / "steps" / "checkpoint-100", size=0.0)
    given.adapter(tmp_path / "steps" / "checkpoint-200", size=0.5)
    report = run(files, update=str(tmp_path / "steps"), texts="").report
    assert [(row["step"], row["word"]) for row in report["steps"]["looked_at"]] == [(100, "no update"), (200, "stale")]
    assert (report["steps"]["first_stale"], report["steps"]["last_fit"]) == (200, 100)
    assert report["code"] == 10
    assert report["compared"]["update"]["name"].endswith("checkpoint-200")
