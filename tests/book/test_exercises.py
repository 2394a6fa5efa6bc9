"""Exercises: read in one form, solved on tables, right and wrong answers told apart; and all of the book's on three seeds."""

import ast
import json
import re
import sys
import time
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.tiers import slow

from helpers import folders
from helpers.book import exercise_form, exercises, judging
from helpers.book.claim_pages import older_rules
from helpers.errors import StudyError
from helpers.figures import projection_tables
from helpers.figures.drawing import layout
from helpers.results import Run
from helpers.study import chapters, statuses
from helpers.study.parameters import read_notebook, source
from helpers.study.session import Session

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
NOTEBOOKS = chapters.discover(ROOT)
PARAMETERS = 'share = 0.4\nseed = 0\nwords = ["a"]'
WRITES = 'records.write_table(run, "01_first", "behaviour", rows)'
EXERCISE = """### Exercise {number}. A title

*About 5 minutes · difficulty 1 of 3 · importance 3 of 3*

**Predict** the rate. **Then** read it.

```python
from helpers import exercises
answer = ...
exercises.check("01-{number}", answer, run)
```

<details class="hint">
<summary>Hint</summary>

Look at the {{term}}`rates <non-refusal>` of `behaviour`.

</details>

<details class="hint">
<summary>Second hint</summary>

It is the *largest* $v$ of them.

</details>

<details class="solution">
<summary>Solution</summary>

Because.

```python
shown = run.read_table("behaviour")  # an earlier block, which is not the one that counts
answer = "the wrong block"
```

```python
{code}
```

</details>
"""
QUIZ = """## Quiz

**1. Which?**

- (a) This, with
  a second line.
- (b) That.
- (c) Neither.

<details class="answer">
<summary>Answer</summary>

**(b)** Since.

</details>

**2. And now?**

- (a) Yes.
- (b) No.

<details class="answer">
<summary>Answer</summary>

**(a)** So it is.

</details>
"""
RATE = 'rows = run.read_table("behaviour")\nanswer = rows["value"].max()'


def write(root: Path, *cells: str, name: str = "01_first") -> Path:
    """A project of one chapter with these markdown cells."""
    code = [{"cell_type": "code", "source": PARAMETERS, "metadata": {"tags": ["parameters"]}}]
    code.append({"cell_type": "code", "source": WRITES, "metadata": {}})
    found = [{"cell_type": "markdown", "source": cell, "metadata": {}} for cell in cells]
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": [*code, *found]}), encoding="utf-8")
    return root


def planted(root: Path, *codes: str) -> tuple[Path, Run]:
    """A project whose exercises have these solutions, and a run of it with one table."""
    write(root, *(EXERCISE.format(number=i + 1, code=code) for i, code in enumerate(codes)), QUIZ)
    folder = root / "results" / "quick" / "embedded" / "seed-0"
    (folder / "tables").mkdir(parents=True)
    rows = pd.DataFrame({"precision": ["nf4", "int8"], "value": [0.4, 0.1]})
    rows.to_parquet(folder / "tables" / "behaviour.parquet")
    return root, Run("quick", "embedded", 0, folder)


@pytest.fixture
def said(tmp_path, capsys):
    """What `check` says to each of some answers, where the solution is `code`."""

    def ask(code: str, *answers: object) -> list[str]:
        root, run = planted(tmp_path, code)
        for answer in answers:
            exercises.check("01-1", answer, run, root)
            print("\0")
        return [text.strip() for text in capsys.readouterr().out.split("\0")[:-1]]

    return ask


# ---------------------------------------------------------------- the form


def test_an_exercise_is_read_with_all_its_parts(tmp_path):
    root, _ = planted(tmp_path, RATE, "answer = 2")
    first, second = exercise_form.read("01", root)
    assert (first.name, second.name, first.title) == ("01-1", "01-2", "A title")
    assert (first.minutes, first.difficulty, first.importance) == (5, 1, 3)
    assert first.text.startswith("**Predict** the rate.")
    assert first.hints[0].startswith("Look at")
    assert first.hints[1].startswith("It is")
    assert first.wants == ""
    assert first.code.strip() == RATE  # the last block, not the first
    assert "details" not in first.text + "".join(first.hints) + first.solution


def test_a_quiz_is_read_with_options_letter_and_reason(tmp_path):
    root, _ = planted(tmp_path, RATE)
    first, second = exercise_form.quiz("first", root)
    assert first == exercise_form.QuizQuestion(1, "Which?", ("This, with a second line.", "That.", "Neither."), "b", "Since.")
    assert (second.number, second.answer, second.options) == (2, "a", ("Yes.", "No."))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("### Exercise 1. A title", "### Exercise One", "its number, its title"),
        ("### Exercise 1", "### Exercise 2", 'exercises.check("01-2"'),
        ("### Exercise 1", "### Task 1", "missing"),
        ("*About 5 minutes", "*5 minutes", "line of minutes"),
        ("difficulty 1 of 3", "difficulty 4 of 3", "line of minutes"),
        ('check("01-1"', 'check("01-2"', 'exercises.check("01-1"'),
        ('class="hint"', 'class="tip"', "two folded hints, or its solution"),
        ("answer = ...\n", "", "`answer = ...`"),
        ("of 3*\n", "of 3 · with `share ==`*\n", "no expression"),
        ("</details>\n\n<details", "<details", "out of turn"),
        ("<summary>Hint</summary>\n\n", "<summary>Hint</summary>\n", "blank line"),
        ("\n\n</details>\n", "\n", "out of turn"),
        ('answer = rows["value"].max()', "rows", "sets no answer"),
    ],
)
def test_a_broken_exercise_is_refused_by_chapter_and_part(tmp_path, old, new, says):
    whole = EXERCISE.format(number=1, code=RATE)
    assert old in whole
    write(tmp_path, whole.replace(old, new, 1))
    with pytest.raises(StudyError, match=r"chapter 01_first: ") as caught:
        exercise_form.read("01", tmp_path)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_exercises_that_are_not_numbered_from_one_are_refused(tmp_path):
    write(tmp_path, EXERCISE.format(number=2, code=RATE))
    with pytest.raises(StudyError, match="its exercises are 01-2, not numbered from 1"):
        exercise_form.read("01", tmp_path)


def test_an_unclosed_solution_is_refused(tmp_path):
    whole = EXERCISE.format(number=1, code=RATE)
    write(tmp_path, whole[: whole.rindex("</details>")])
    with pytest.raises(StudyError, match="not closed"):
        exercise_form.read("01", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("## Quiz", "## Questions", "'## Quiz' is missing"),
        ("**1. Which?**", "1. Which?", "question 1"),
        ("**2. And", "**3. And", "question 2"),
        ("- (b) That.\n", "", "question 1"),
        ("**(b)** Since.", "Since.", "question 1"),
        ("**(b)** Since.", "**(d)** Since.", "question 1"),
        ("**(a)** So", "**(c)** So", "question 2"),
        ('<details class="answer">\n<summary>Answer</summary>\n\n**(a)** So it is.\n\n</details>', "", "after each"),
    ],
)
def test_a_broken_quiz_is_refused_by_its_question(tmp_path, old, new, says):
    assert old in QUIZ
    write(tmp_path, QUIZ.replace(old, new, 1))
    with pytest.raises(StudyError, match=r"chapter 01_first: ") as caught:
        exercise_form.quiz("01", tmp_path)
    assert says in str(caught.value)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("code", "right", "wrong"),
    [
        (RATE, [0.4, np.float64(0.4), 0.404, "0.4", [0.4]], [0.41, 0.39, -0.4, float("nan"), None, "nf4", [0.4, 0.1]]),
        ("answer = 0.0", [0, 0.0049, -0.0049], [0.006, ""]),
        ("import numpy as np\nanswer = np.int64(300)", [300, 305, 295], [307, 3.0]),
        ('answer = "Lora-Dialogue@nf4"', ["lora-dialogue@NF4", " Lora-Dialogue@nf4 ", ["lora-dialogue@nf4"]], ["nf4", "", 1]),
        ('answer = ["b", "a", "a"]', [["a", "b"], ("B", "a "), {"a", "b"}, pd.Series(["a", "b"])], [["a"], "a", "ab", []]),
        ('answer = run.read_table("behaviour")["precision"]', [["int8", "nf4"]], [["int8"], ["int8", "nf4", "fp4"]]),
        ("answer = []", [[]], [["a"], 0]),
        ("import numpy as np\nanswer = np.bool_(True)", [True, "yes"], [False, "no", 1]),
        ('answer = "32"', [32, "32"], [320, "3"]),
        ("answer = share", [0.4], [0.5]),
    ],
)
def test_right_answers_are_right_and_others_are_not(said, code, right, wrong):
    words = said(code, *right, *wrong)
    assert [text.startswith("Right.") for text in words] == [True] * len(right) + [False] * len(wrong)
    assert all(text.startswith("Not yet.") for text in words[len(right) :])
    hints = [text.rpartition("int: ")[2] for text in words[len(right) :]]
    assert hints == ["Look at the rates of `behaviour`.", *["It is the largest v of them."] * (len(wrong) - 1)]


def test_a_percent_is_told_apart_from_a_wrong_number_and_the_answer_is_never_said(said):
    percent, wrong, name, right = said("answer = 0.37", 37, 50, "nf4", 0.37)
    assert percent.startswith("Not yet. (On the run quick, embedded, seed 0.) Give the rate as a share, 0.4, not 40. Hint:")
    assert wrong.startswith("Not yet. (On the run quick, embedded, seed 0.) Second hint:")
    assert name.startswith("Not yet. (On the run quick, embedded, seed 0.) The answer is a number. Second hint:")
    assert not [text for text in (percent, wrong, name, right) if "37" in text]


def test_what_is_no_share_is_never_taken_for_a_percent(said):
    assert said("answer = 3.0", 300)[0].startswith("Not yet. (On the run quick, embedded, seed 0.) Hint:")


@pytest.mark.parametrize("code", ["answer = None", "import numpy\nanswer = numpy.nan", "if False:\n    answer = 1"])
def test_a_run_that_cannot_tell_says_so_and_what_to_run(said, code):
    for text in said(code, 0.4, None):
        assert text.startswith("The run quick, embedded, seed 0 cannot tell")
        assert "run chapter 01 again" in text
        assert "make study PROFILE=cpu" in text


def test_an_unknown_exercise_is_refused_with_the_nearest(tmp_path):
    root, run = planted(tmp_path, RATE, "answer = 1")
    for name in ("01-7", "02-1", "1-1", ""):
        with pytest.raises(StudyError, match=f"unknown exercise '{name}'"):
            exercises.check(name, 1, run, root)
    with pytest.raises(StudyError, match="did you mean '01-"):
        exercises.solve("01-7", run, root)


def test_a_missing_table_names_the_chapter_to_run(tmp_path):
    root, run = planted(tmp_path, RATE, 'answer = len(run.read_table("triag"))', 'answer = len(run.read_table("findings"))')
    (run.folder / "tables" / "behaviour.parquet").unlink()
    with pytest.raises(StudyError, match="run chapter 01_first first: python -m helpers chapter 01_first --profile quick"):
        exercises.solve("01-1", run, root)
    with pytest.raises(StudyError, match="unknown table 'triag'; did you mean 'triage'"):
        exercises.solve("01-2", run, root)
    with pytest.raises(StudyError, match="table 'findings' is not in the run"):
        exercises.solve("01-3", run, root)
    pd.DataFrame({"claim": ["M1"] * 3}).to_parquet(run.folder.parents[1] / "findings.parquet")
    assert exercises.solve("01-3", run, root) == 3


def test_a_parameter_is_the_recorded_one_while_the_record_fits_what_is_there(tmp_path):
    root, run = planted(tmp_path, "answer = share")
    part = run.folder / "parts" / "01_first" / "note.json"
    part.parent.mkdir(parents=True)
    part.write_text("{}")
    entry = {"parameters": {"share": 0.9}, "files": {"parts/01_first/note.json": folders.file_hash(part), "tables/x": "other"}}
    (run.folder / "status").mkdir()
    statuses.status_path(run.folder, "01_first").write_text(json.dumps(entry))
    assert exercises.solve("01-1", run, root) == 0.9
    part.write_text("[]")  # the chapter was run by hand since, and left no record
    assert exercises.solve("01-1", run, root) == 0.4


def test_a_kernels_own_parameters_count_where_the_run_is_its_own_and_no_record_fits(tmp_path, monkeypatch):
    root, run = planted(tmp_path, "answer = share")
    kernel = types.SimpleNamespace(user_ns={"run": run, "share": 0.7, "shelf": 1})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    assert exercises.solve("01-1", run, root) == 0.7
    assert exercises.solve("01-1", replace(run), root) == 0.4  # another run than the kernel's


def test_a_parameter_that_has_to_be_changed_comes_first(tmp_path, capsys):
    root, run = planted(tmp_path, "answer = share")
    page = root / "notebooks" / "01_first.ipynb"
    page.write_text(page.read_text().replace("of 3*", "of 3 \u00b7 with `share >= 0.5 and seed == 0`*"))
    exercises.check("01-1", 0.4, run, root)
    assert capsys.readouterr().out.startswith("Not yet. Change share and seed in the parameters cell first, and run chapter 01")
    page.write_text(page.read_text().replace("share = 0.4", "share = 0.6"))
    exercises.check("01-1", 0.6, run, root)
    assert capsys.readouterr().out.startswith("Right.")


def test_the_three_dots_of_the_page_are_no_answer(tmp_path, capsys):
    root, run = planted(tmp_path, RATE)
    exercises.check("01-1", ..., run, root)
    assert capsys.readouterr().out == "Put your own answer to exercise 01-1 in place of the three dots.\n"


def test_without_a_run_the_published_one_counts_whichever_finished_last(tmp_path, capsys, monkeypatch):
    root, _ = planted(tmp_path, 'answer = len(run.read_table("behaviour"))')
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", str(root / "results"))
    with pytest.raises(StudyError, match="no finished run of published or cpu or quick"):
        exercises.check("01-1", 1, root=root)
    for rows, place in ((3, "quick/embedded/seed-0"), (4, "cpu/embedded/seed-0"), (5, "cpu/embedded/seed-1")):
        folder = root / "results" / place
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"value": range(rows)}).to_parquet(folder / "tables" / "behaviour.parquet")
        (folder / "manifest.json").write_text("{}")
        exercises.check("01-1", rows, root=root)
    (folder / "executed").mkdir()
    (folder / "executed" / "01_first.ipynb").write_text("{}")
    exercises.check("01-1", 5, root=root)  # git keeps its chapters: it is what the pages show
    words = capsys.readouterr().out.splitlines()
    assert words[0].startswith("Right. (On the run quick, embedded, seed 0.)")
    assert words[1].startswith("Right. (On the run cpu, embedded, seed 0.)")
    assert words[2].startswith("Not yet. (On the run cpu, embedded, seed 0.)")  # of two with tables alone the lowest seed
    assert words[3].startswith("Right. (On the run cpu, embedded, seed 1.)")


# ---------------------------------------------------------------- what readers wrote


def in_words(names: list[str]) -> list[str]:
    """Tables' names as figures have them."""
    words = {name: shown for shown, name in judging.SHOWN.items()}
    return [words[name] for name in names]


WROTE = {  # exercise, what a reader wrote (made of the right answer), on a run with the change that it wants, what is said
    "a slip in a name": ("02-1", lambda _: "rtn4", True, r"Not yet\. .*No table that it takes has the name 'rtn4'"),
    "a frame": ("02-1", lambda _: pd.DataFrame({"precision": ["rtn-4"]}), True, r"Not yet\. .*The answer is one name\. Hint"),
    "the first guess": ("02-2", lambda _: 10, True, r"Not yet\. \(On the run .*\) Hint: Is the step"),
    "the unchanged run": ("02-3", lambda right: right, False, r"Not yet\. Change quantizers .* first, .*'int8', 'nf4'"),
    "an empty list": ("02-3", lambda _: [], True, r"(Right\.|Not yet\. \(On the run [^)]*\) Hint)"),
    "another mix": ("03-3", lambda right: right, False, r"Not yet\. Change updates .* first"),
    "a name in words": ("05-1", lambda right: in_words([right])[0], True, r"Right\."),
    "a rate in per cent": ("05-2", lambda right: f"{100 * right:.1f} %", True, r"Not yet\. .*Give the rate as a share"),
    "the other share": ("05-2", lambda right: 1 - right, True, r"Not yet\. \(On the run [^)]*\) Hint"),
    "as many texts": ("05-3", lambda right: right, False, r"Not yet\. Change calibration_rows .* first.*calibration_rows = \d+"),
    "a share for per cent": ("07-1", lambda right: right / 100, True, r"Not yet\. .*Give it in per cent"),
    "a list of one": ("07-2", lambda _: ["harmful-request"], True, r"Not yet\. \(On the run [^)]*\) Hint"),
    "names in words": ("07-2", in_words, True, r"Right\."),
    "one method in words": ("07-3", lambda _: ["same modules removed"], True, r"Not yet\. \(On the run [^)]*\) Hint"),
}


@pytest.mark.parametrize("case", WROTE)
def test_what_readers_wrote_gets_the_right_word(case, capsys, monkeypatch):
    name, wrote, changed, said = WROTE[case]
    monkeypatch.setattr(exercises, "_WRONG", Counter())
    if changed:
        monkeypatch.setattr(exercises, "_unchanged", lambda *_: "")
    exercises.check(name, wrote(exercises.solve(name, committed(0), ROOT)), committed(0), ROOT)
    assert re.match(said, capsys.readouterr().out, re.DOTALL)


def test_without_a_run_the_book_s_own_answers_are_right_and_its_run_is_named(capsys, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    exercises.check("07-2", exercises.solve("07-2", committed(0)))
    exercises.check("07-2", ["toxicity"])
    right, wrong = capsys.readouterr().out.splitlines()
    assert right.startswith("Right. (On the run cpu, embedded, seed 0.)")
    assert wrong.startswith("Not yet. (On the run cpu, embedded, seed 0.)")


def test_names_in_words_are_those_of_the_figures():
    figures_own = {**layout.TASK_WORDS, **projection_tables.METHODS}
    ours = {name: words for words, name in judging.SHOWN.items() if words in figures_own.values()}
    assert {name: words for name, words in figures_own.items() if name not in {"all", "toxicity", "jailbreak"}} == ours
    asked = exercises.find("05-1", ROOT).text
    assert all(f"`{name}` ({words})" in asked for words, name in judging.SHOWN.items() if name.startswith("stale_"))


# ---------------------------------------------------------------- the book's own


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_solutions_and_checks_run_where_they_stand(chapter):
    """A solution takes `run` and the parameters, and trips over nothing that its own notebook binds."""
    values = exercises.run_parameters(committed(0), chapter, ROOT)
    for exercise in exercise_form.read(chapter, ROOT):
        space = {name: Trap(name) for name in bound(chapter)} | values
        space["run"] = Session("cpu", "embedded", 0, committed(0).folder)
        alone = exercises.solve(exercise.name, committed(0), ROOT)
        try:
            exec(exercise.code, space)
        except StudyError as error:  # a table that the committed run does not have
            pytest.skip(str(error))
        assert type(space["answer"]) is type(alone)
        assert space["answer"] == alone or alone is None
        assert f'answer = ...  # yours, in place of the dots\nexercises.check("{exercise.name}", answer, run)\n' in exercise.text


class Trap:
    """What a notebook has bound, and no solution may take."""

    def __init__(self, name: str):
        self.name = name

    def __getattr__(self, what: str) -> object:
        raise AssertionError(f"{self.name} is the notebook's own")

    def __call__(self, *_: object) -> object:
        raise AssertionError(f"{self.name} is the notebook's own")


def bound(chapter: str) -> set[str]:
    """The names that a notebook's cells bind, but for `run` and what they import."""
    cells = [cell for cell in read_notebook(NOTEBOOKS[chapter])["cells"] if cell["cell_type"] == "code"]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(source(cell)))]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)} - {"run"}


def test_a_solution_that_takes_the_notebook_s_own_table_would_be_caught():
    assert "table" in bound("05_staleness")
    with pytest.raises(AssertionError, match="table is the notebook's own"):
        exec('table("staleness")', {name: Trap(name) for name in bound("05_staleness")})


def test_hints_are_plain_where_they_are_printed():
    for exercise in (each for chapter in NOTEBOOKS for each in exercise_form.read(chapter, ROOT)):
        assert not re.search(r"[\\$]", exercise.hints[0]), exercise.name
        assert "\\" not in exercise.hints[1], exercise.name


def committed(seed: int) -> Run:
    return Run("cpu", "embedded", seed, ROOT / "results" / "cpu" / "embedded" / f"seed-{seed}")


def changed(answer: object) -> object:
    """An answer of the same form that is not right."""
    if isinstance(answer, str | bool | np.bool_):
        return f"not {answer}"
    if isinstance(answer, int | float | np.number):
        return float(answer) * 1.5 + 1
    return [*answer, "one more"]


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_every_chapter_has_three_exercises_and_a_quiz(chapter):
    assert len(exercise_form.read(chapter, ROOT)) == 3
    assert len(exercise_form.quiz(chapter, ROOT)) == 5


EVERY = pytest.param(True, marks=slow("the other seeds of every exercise"), id="every seed")


@pytest.mark.parametrize("every", [pytest.param(False, id="a seed"), EVERY])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_each_solution_answers_on_the_committed_runs_and_a_changed_answer_is_refused(chapter, number, every, capsys, monkeypatch):
    name, told = f"{chapter[:2]}-{number}", 0
    exercises.find(name, ROOT)
    for seed in SEEDS:
        begun = time.process_time()
        answer = exercises.solve(name, committed(seed), ROOT)
        assert time.process_time() - begun < 2
        if answer is None:
            continue
        told += 1
        exercises.check(name, answer, committed(seed), ROOT)
        if (out := capsys.readouterr().out).startswith("Not yet. Change"):  # the run is not the one that it asks for
            assert exercises.find(name, ROOT).wants in out
            monkeypatch.setattr(exercises, "_unchanged", lambda *_: "")
            exercises.check(name, answer, committed(seed), ROOT)
            out = capsys.readouterr().out
        assert out.startswith("Right.")
        exercises.check(name, changed(answer), committed(seed), ROOT)
        assert capsys.readouterr().out.startswith("Not yet.")
        if not every:
            break
    if not told and (older := older_rules(ROOT / "results" / "cpu")):
        pytest.skip(f"results/cpu was judged by the rules of {', '.join(older)}, without what {name} asks for; run it again")
    assert told, "no seed can tell"
