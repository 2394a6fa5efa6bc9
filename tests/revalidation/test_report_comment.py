"""The comment of a pull request: short, whole, harmless, and with the hashes by which it can be checked."""

import pytest
from support import sample_reports
from test_report_files import planted

from helpers.errors import ENVIRONMENT, StudyError
from helpers.revalidation.report import comment, files, wording


@pytest.mark.parametrize("name", [*sample_reports.ALL, "planted"])
def test_a_comment_is_short_and_says_the_verdict_first(name):
    report = wording.plain({**sample_reports.ALL, "planted": planted}[name]())
    said = comment.comment_markdown(report)
    assert len(said.encode()) <= comment.LIMIT
    lines = said.splitlines()
    assert lines[0] == comment.MARK
    assert report["verdict"]["word"].upper() in lines[1]
    assert f"exit code {report['code']}" in lines[-1]
    assert said.count("<") == 1  # the mark; nothing of the report is HTML
    shown = sum(line.startswith("| ") and " --- " not in line for line in lines) > 0
    assert shown == bool(report["monitors"])


def test_many_monitors_are_cut_the_stale_ones_stay_and_the_rest_is_counted():
    said = comment.comment_markdown(wording.plain(sample_reports.many()))
    assert said.count("✗ stale") == 7
    assert "more in report.json" in said


def test_a_comment_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError) as error:
        files.write_comment(sample_reports.fine(), tmp_path / "file" / "c.md")
    assert error.value.code == ENVIRONMENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
