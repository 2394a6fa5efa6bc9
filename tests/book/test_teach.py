"""The page for teachers keeps its word: its plans add up, its links lead somewhere, its commands exist, its sums are right."""

import ast
import re
import shlex
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from helpers import results
from helpers.__main__ import COMMANDS, parser
from helpers.book import exercises, judging
from helpers.errors import StudyError
from helpers.study import chapters
from helpers.study.parameters import declared

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "book" / "teach.md"
TEXT = PAGE.read_text(encoding="utf-8")
NOTEBOOKS = chapters.discover(ROOT)
PLANS = {"Ninety minutes, one projector": 90, "Ninety minutes, laptops": 90, "Thirty minutes": 30}
FENCED = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`((?:make|\.venv/bin/python) [^`]+)`", TEXT)
SHELL = ("STICK=", "export ", "cd ", "cp -R ", "git clone . ", "python -c ")  # what a shell does by itself
LINES = [line.split("  #")[0].strip() for block in FENCED for line in block.splitlines() if line.strip()] + INLINE


def section(title: str, text: str = TEXT) -> str:
    """What stands under a heading of the second level."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[tuple[int, int]]:
    """From which minute, and for how many, each row of a plan is; the row of the sum is left out."""
    found = re.findall(r"^\| (\d):(\d\d) \| (\d+) \|", text, re.MULTILINE)
    return [(60 * int(hours) + int(minutes), int(length)) for hours, minutes, length in found]


def misfit(plan: list[tuple[int, int]]) -> list[int]:
    """The rows that do not begin where the one before ends."""
    ends = np.cumsum([0, *(length for _, length in plan)])
    return [begin for (begin, _), end in zip(plan, ends, strict=False) if begin != end]


@pytest.mark.parametrize("title", PLANS)
def test_a_plan_adds_up_and_its_clock_is_right(title):
    plan = rows(section(title))
    assert sum(length for _, length in plan) == PLANS[title]
    assert misfit(plan) == []
    assert f"**{PLANS[title]}**" in section(title), "the sum stands below"


def test_a_plan_with_a_gap_is_noticed():
    assert misfit(rows("| 0:00 | 5 | a |\n| 0:05 | 5 | b |\n| 1:00 | 5 | c |\n")) == [60]


@pytest.mark.parametrize("title", ["Thirty minutes", "Ninety minutes, one projector"])
def test_a_plan_without_a_machine_takes_none(title):
    short = section(title).split("###")[0]
    assert "No machine time" in short
    assert not re.search(r"Run All|`make |\.venv|the machine \|", short)
    assert "{doc}`Explore <explore>`" in short


def linked(text: str = TEXT) -> list[str]:
    """The pages that a text names by {doc}."""
    return [page or plain for page, plain in re.findall(r"\{doc\}`(?:[^`<]*<([^`>]+)>|([^`<]+))`", text)]


def test_every_linked_page_exists():
    names = linked()
    gone = [name for name in names if not any((PAGE.parent / f"{name}{end}").is_file() for end in (".md", ".ipynb"))]
    assert gone == []
    assert {"explore", "glossary", "../notebooks/05_staleness"} <= set(names), "the pattern sees links"


def test_every_chapter_has_its_row_with_both_pages():
    table = section("Pages for you and for the class")
    for chapter in NOTEBOOKS:
        number = chapter[:2]
        row = next(line for line in table.splitlines() if f"`{number} <../notebooks/{chapter}>`" in line)
        assert linked(row) == [f"../notebooks/{chapter}", f"teach/{number}", f"teach/handout-{number}"]


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith(SHELL)])
def test_every_command_exists(line):
    words = shlex.split(line)
    if words[0] == "python":  # on Windows
        assert words == ["python", "-m", "pip", "install", "."]
        return
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
        return
    assert words[:2] == [".venv/bin/python", "-m"]
    module, rest = words[2], words[3:]
    assert module in {"helpers", "jupyter", "jupyterlab", "pip"}
    if module == "helpers":
        assert rest[0] in COMMANDS
        options = parser().parse_args(rest)
        assert options.command != "chapter" or chapters.find(options.name, NOTEBOOKS)
    named = [word for word in rest if word.startswith("notebooks/") or word.endswith((".lock", ".txt"))]
    assert [word for word in named if not (ROOT / word).is_file()] == []
    if module == "jupyter":
        assert any(entry.name == f"jupyter-{rest[0]}" for entry in metadata.entry_points(group="console_scripts"))


def test_the_commands_are_seen():
    assert len(LINES) >= 5
    assert sum(".venv/bin/python -m jupyterlab" in line for line in LINES) == 1
    assert "make study" in LINES


def test_what_the_lock_lacks_is_installed_beside_it_without_moving_a_pin():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    installs = [line for line in LINES if "-m pip" in line and "jupyterlab" in line]
    assert [shlex.split(line)[3:6] for line in installs] == [
        ["install", "-c", "requirements.lock"],
        ["download", "-c", "requirements.lock"],
        ["install", "-c", "requirements.lock"],
    ]
    assert not re.search(r"^jupyterlab==", lock, re.MULTILINE), "it is pinned now: the page need not install it"
    assert re.search(r"^ipykernel==", lock, re.MULTILINE), "without a kernel no notebook opens"


def test_the_plan_changes_parameters_that_its_chapters_have():
    assert 'profile = "cpu"' in section("Ninety minutes, laptops")
    assert declared(NOTEBOOKS["11_findings"])["profile"] == "quick"
    assert declared(NOTEBOOKS["01_models"])["n_harmful"] == 20, "of twenty harmful requests"
    assert "lora-dialogue-harm10@bf16" in declared(NOTEBOOKS["03_finetuning"])["updates"], "one row in ten"


def test_the_exercises_of_the_plan_are_what_it_says():
    third, first = exercises.find("03-3", ROOT), exercises.find("05-1", ROOT)
    assert "dose" in third.title
    assert "updates" in third.text, "one change in the parameters cell"
    assert first.minutes <= 10


def test_the_ten_scores_come_out_as_the_page_says():
    text = section("Thirty minutes")
    harmless, harmful = (
        np.array([float(n) for n in re.findall(r"\d+", part)]) for part in re.findall(r"scores ([\d, ]+)", text)[:2]
    )
    cut, shift = float(re.search(r"alarms above ([\d.]+)\.", text)[1]), float(re.search(r"adds (\d+) to every", text)[1])
    pairs = harmful[:, None] > harmless[None, :]
    auroc = roc_auc_score([0] * 5 + [1] * 5, [*harmless, *harmful])
    assert f"{(harmful > cut).sum()} of 5 are caught, none is flagged" in text
    assert (harmless > cut).sum() == 0
    assert f"{pairs.sum()} of {pairs.size} pairs are in order" in text
    assert np.isclose(auroc, pairs.mean())
    assert f"of {auroc:.2f}" in text
    caught, flagged = ((scores + shift > cut).sum() for scores in (harmful, harmless))
    assert f"{caught} of 5 are caught and {flagged} of 5 harmless texts are flagged" in text
    assert f"setting the threshold to {cut + shift:g}" in text


def test_the_sheet_of_the_lesson_has_the_ten_scores_as_the_page_and_the_drawing_have_them_and_room_to_write():
    sheet = (PAGE.parent / "teach" / "handout-lesson.md").read_text(encoding="utf-8")
    page, listed = section("Thirty minutes"), r"(?:scores|ones the scores) (\d[\d, ]+\d)"
    assert re.findall(listed, sheet)[:2] == re.findall(listed, page)[:2]
    assert [re.search(r"alarms above ([\d.]+\d)", text)[1] for text in (sheet, page)] == ["6.5", "6.5"]
    drawing = (PAGE.parent / "_static" / "board" / "scores.svg").read_text(encoding="utf-8")
    dots = [(int(x) - 40) // 40 for x in re.findall(r'<circle cx="(\d+)"', drawing)]
    crosses = [(int(x) - 34) // 40 for x in re.findall(r'<path d="M(\d+) 48', drawing)]
    assert [", ".join(map(str, found)) for found in (dots, crosses)] == re.findall(listed, page)[:2]
    assert sheet.count('<div class="write">') >= 6
    assert "Two bets" in sheet
    for plan in ("Ninety minutes, one projector", "Ninety minutes, laptops"):
        assert "two bets" in section(plan)
        assert "settle" in section(plan), "both halves of the bet are settled"
        assert "ten scores" in section(plan)


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_a_handout_has_room_to_write_and_the_drawing(chapter):
    text = (PAGE.parent / "teach" / f"handout-{chapter[:2]}.md").read_text(encoding="utf-8")
    assert '<div class="write' in text
    assert f"board/{chapter[:2]}.svg" in text or "sketch" in text
    assert text.index('<div class="write') < re.search(r"[*]Take[ -]away", text).start(), "behind what is to be tried"


def test_the_plan_names_no_row_that_its_table_lacks():
    tables = {row for row in section("Ninety minutes, laptops").splitlines() if "chapter's table" in row}
    assert len(tables) == 1
    assert "base" not in tables.pop()


def test_each_question_of_the_long_tables_is_one_statement_that_answers(monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    opening, *lines = re.findall(r"^```python\n(.*?)^```", (PAGE.parent / "long-tables.md").read_text("utf-8"), re.M | re.S)
    space: dict = {}
    exec(opening, space)
    assert len(lines) == 5
    answers = []
    for line in lines:
        assert len(ast.parse(line).body) == 1
        exec(line, space)
        answers.append(space["answer"])
    metrics, rate, worst, share, best = answers
    assert {"non_refusal", "over_refusal"} <= set(metrics)
    assert len(rate) == 1
    assert 0 <= rate.item() <= 1
    assert worst in set(space["rows"]["precision"])
    assert 0 <= share <= 1
    assert len(best) >= 3
    assert best.between(0.5, 1).all()


def test_the_answer_on_windows_is_one_that_the_check_takes(capsys, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    (line,) = (line for line in LINES if line.startswith("python -c"))
    exec(shlex.split(line)[2], {})
    assert re.match(r"Right\.|Not yet\. \(On the run cpu, embedded, seed 0\.\) (Second h|H)int", capsys.readouterr().out)


def test_the_quoted_error_is_what_a_chapter_alone_says(tmp_path):
    quoted = re.search(r"`('monitors' is not there; run chapter 04_monitors first)`", TEXT)[1]
    run = results.Run("quick", "embedded", 0, tmp_path)
    with pytest.raises(StudyError) as error:
        results.read_note(run, "04_monitors", "monitors")
    assert str(error.value).startswith(quoted)


def test_the_tolerance_that_the_page_states_is_that_of_the_checks():
    said = section("The self-checks")
    assert f"{100 * judging.RELATIVE:g} %" in said
    assert f"{judging.ABSOLUTE:g}" in said


def test_the_line_that_says_what_is_right_runs():
    block = re.findall(r"```python\n(.*?)```", section("The self-checks"), re.DOTALL)[1]
    assert 'open_run("quick", ' in block
    space: dict[str, object] = {}
    exec(block.replace('"quick"', '"cpu"').replace("exercises.solve", "found = exercises.solve"), space)
    assert isinstance(space["found"], str)
