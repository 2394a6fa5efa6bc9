"""The command `revalidate` as a user meets it: exit codes, one-line errors, files, JSON alone, and the same as a notebook."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from support.tiers import slow

from helpers import __main__
from helpers.revalidation import cli, error_rates
from helpers.revalidation import run as revalidation_run
from helpers.revalidation.report import files, schema

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "book" / "_static" / "example"
NOTEBOOK = ROOT / "notebooks" / "revalidate.ipynb"
FILES = ["--fit", str(EXAMPLE / "fit.jsonl"), "--texts", str(EXAMPLE / "texts.jsonl"), "--labels", str(EXAMPLE / "labels.jsonl")]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """A report on the tiny random model in 3 bits: its folder, exit code, stdout, and what the command asked for and found.

    With fewer simulated runs: how many are right is told in test_assessment.
    """
    folder, said, runs = tmp_path_factory.mktemp("reports") / "first", io.StringIO(), []

    def run(asked, say, real=revalidation_run.run):
        runs.append((asked, real(asked, say)))
        return runs[-1][1]

    words = ["revalidate", "--base", str(tiny), "--update", "rtn-3", *FILES, "--threads", "1", "--out", str(folder), "--json"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(error_rates, "DRAWS", 20)
        patch.setattr(error_rates, "LEAST", 20)
        patch.setattr(revalidation_run, "run", run)
        code = __main__.main(words)
    (once,) = runs
    return folder, code, said.getvalue(), *once


def test_the_exit_code_is_the_verdict_and_the_report_lies_whole_in_the_folder(made):
    folder, code, *_ = made
    report = files.read(folder)
    assert code == report["code"] == report["verdict"]["code"]
    assert code in {0, 10, 11}
    assert {"report.html", "report.json", "report.md", "junit.xml", "schema.json"} <= {path.name for path in folder.iterdir()}
    assert len(report["monitors"]) == 6
    texts = [json.loads(line)["text"] for path in EXAMPLE.glob("*.jsonl") for line in path.read_text().splitlines()]
    for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
        said = path.read_text(encoding="utf-8")
        assert not [text for text in texts if text in said], path.name
        assert str(folder) not in said


def test_under_json_stdout_carries_the_report_alone(made):
    found = json.loads(made[2])
    schema.check_report(found)
    assert found == files.read(made[0])


def test_two_reports_are_compared_and_that_is_no_verdict(made, capsys):
    folder = made[0]
    assert __main__.main(["revalidate", "--diff", str(folder), str(folder)]) == 0
    assert "same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "--update is missing"),
        (["--update", "nf4"], 2, "either --monitors"),
        (["--update", "nf4", *FILES, "--monitors", "x"], 2, "either --monitors"),
        (["--update", "nf5", *FILES], 2, "nf5"),
        (["--update", "nf4", *FILES[:2]], 2, "--texts and --labels"),
        (["--update", "nf4", *FILES, "--precision", "nf9"], 2, "nf9"),
        (["--update", "nf4", "--monitors", str(EXAMPLE), *FILES[2:]], 12, "monitors.json"),
        (["--update", str(EXAMPLE), *FILES], 12, ""),
        (["--scores", "scores.csv", "--update", "nf4"], 2, "--scores"),
        (["--diff", "nowhere", "there"], 2, "nowhere"),
    ],
)
def test_a_wrong_command_is_one_line_with_its_code_and_leaves_nothing(tiny, tmp_path, capsys, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    base = [] if "--diff" in words or "--scores" in words else ["--base", str(tiny)]
    found = __main__.main(["revalidate", *base, *words, "--out", "out"])
    error = [line for line in capsys.readouterr().err.splitlines() if line]
    assert (found, len(error)) == (code, 1), error
    assert error[0].startswith("error: ")
    assert said in error[0]
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_what_a_library_raised_of_a_foreign_file(tiny, tmp_path, capsys):
    shutil.copytree(tiny, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    words = ["revalidate", "--base", str(tmp_path / "broken"), "--update", "nf4", *FILES, "--out", str(tmp_path / "out")]
    assert __main__.main(words) == 12
    plain = capsys.readouterr().err
    assert __main__.main([*words, "--debug"]) == 12
    shown = capsys.readouterr().err
    assert "Traceback" not in plain
    assert "JSONDecodeError" in shown
    assert shown.endswith(plain)  # the line stands last all the same


def test_a_folder_with_other_things_in_it_is_refused_before_any_work(tiny, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    code = __main__.main(["revalidate", "--base", str(tiny), "--update", "nf4", *FILES, "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert code == 2
    assert "checking" not in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_files_are_found_from_a_folder_within_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    found = cli.in_project(fit="book/_static/example/fit.jsonl", update="nf4", labels="")
    assert found == {"fit": str(EXAMPLE / "fit.jsonl"), "update": "nf4", "labels": ""}


def test_the_notebook_asks_for_what_the_command_asks_for_and_leaves_the_same_report(made, tiny, tmp_path, monkeypatch):
    folder, code, _, asked, found = made
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        revalidation_run, "run", lambda given: found if given == asked else pytest.fail(f"{given} is not {asked}")
    )
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    there = {"base": str(tiny), "update": "rtn-3", "out": str(tmp_path / "report"), "threads": 1}
    names = {}
    exec(cells[0], names)
    assert set(there) <= set(names)
    names |= there
    for cell in cells[1:-1]:
        exec(cell, names)
    assert eval(cells[-1], names) == code
    assert files.read(tmp_path / "report") == files.read(folder)


@slow("a kernel and a whole revalidation; what it asks for and writes is checked above")
def test_the_notebook_runs_from_its_folder_and_says_the_same(tiny, tmp_path, monkeypatch):
    import papermill

    given = {"base": str(tiny), "update": "rtn-3", "out": str(tmp_path / "report"), "threads": 1}
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    executed = papermill.execute_notebook(
        NOTEBOOK, tmp_path / "executed.ipynb", given, kernel_name="python3", cwd=tmp_path, progress_bar=False
    )
    code = int(executed.cells[-1]["outputs"][0]["data"]["text/plain"])
    assert code == files.read(tmp_path / "report")["code"]
    assert any("text/markdown" in out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", []))
