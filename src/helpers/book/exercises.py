"""Exercises: a solution is run on a run's own tables, and the reader's answer is held against it.

What the reader finds folded on the page is what computes the right answer here, and what the tests run on the committed
results, so page and check cannot drift apart.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt

from helpers import results
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, nearest
from helpers.folders import file_hash, project_root, results_root, run_folders
from helpers.results import Run
from helpers.study import chapters, statuses
from helpers.study.parameters import declared, read_notebook, source

HEAD = re.compile(
    r"### Exercise (?P<number>\d)\. (?P<title>[^\n]+)\n\s*\n"
    r"\*About (?P<minutes>\d+) minutes · difficulty (?P<difficulty>[123]) of 3 · importance (?P<importance>[123]) of 3\*\n"
    r"(?P<text>.*)",
    re.DOTALL,
)


ASKED = re.compile(r"\*\*(\d)\. ([^\n]+?)\*\*\s*\n(.*)", re.DOTALL)


OPTION = re.compile(r"^- \(([a-z])\) (.+(?:\n +\S.*)*)$", re.MULTILINE)


DETAILS = re.compile(r'<details class="(\w+)">\s*<summary>[^<\n]+</summary>\s*')


FORM = "write it in the form of the other chapters' exercises"


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter; `code` is the last python block of its solution."""

    name: str
    title: str
    minutes: int
    difficulty: int
    importance: int
    text: str
    hint: str
    solution: str
    code: str


@dataclass(frozen=True)
class QuizQuestion:
    """One question of a chapter's quiz; `answer` is the letter of the right option."""

    number: int
    text: str
    options: tuple[str, ...]
    answer: str
    why: str


def read(chapter: str, root: Path | None = None) -> tuple[Exercise, ...]:
    """The exercises of a chapter, in order; what breaks their form is refused by chapter and part."""
    name, cells = _markdown(chapter, root)
    found = tuple(_exercise(name, cell) for cell in cells if cell.startswith("### Exercise"))
    numbers = [exercise.name for exercise in found]
    if not found or numbers != [f"{name[:2]}-{i}" for i in range(1, len(found) + 1)]:
        raise _broken(name, f"its exercises are {', '.join(numbers) or 'missing'}, not numbered from 1 on")
    return found


def quiz(chapter: str, root: Path | None = None) -> tuple[QuizQuestion, ...]:
    """The questions of a chapter's quiz, in order; what breaks their form is refused by chapter and number."""
    name, cells = _markdown(chapter, root)
    text = next((cell for cell in cells if cell.startswith("## Quiz\n")), "")
    parts = list(_segments(name, text.removeprefix("## Quiz\n")))
    if not parts:
        raise _broken(name, "its cell '## Quiz' is missing or empty")
    if [kind for kind, _ in parts] != ["", "answer"] * (len(parts) // 2):
        raise _broken(name, "the quiz is not one folded answer after each question")
    return tuple(_question(name, i + 1, parts[2 * i][1], parts[2 * i + 1][1]) for i in range(len(parts) // 2))


def _markdown(chapter: str, root: Path | None) -> tuple[str, list[str]]:
    notebooks = chapters.discover(root or project_root())
    name = chapters.find(chapter, notebooks)
    cells = read_notebook(notebooks[name])["cells"]
    return name, [source(cell).strip() for cell in cells if cell["cell_type"] == "markdown"]


def _broken(chapter: str, what: str) -> StudyError:
    return StudyError(f"chapter {chapter}: {what}; {FORM}", REFUSED)


def _segments(chapter: str, text: str) -> Iterator[tuple[str, str]]:
    """The text in order, as (kind, content): kind is the class of a <details>, or empty between them."""
    lines, kind, start = text.split("\n"), "", 0
    for token in MarkdownIt().parse(text):
        head, ends = DETAILS.fullmatch(token.content), token.content.strip() == "</details>"
        if token.type != "html_block" or token.map is None or not (head or ends):
            continue
        if bool(kind) != ends:
            what = "is opened or closed out of turn, or the one before lacks its class or the blank line after its summary"
            raise _broken(chapter, f"a <details> at line {token.map[0] + 1} of its cell {what}")
        if found := _content(chapter, lines[start : token.map[0]], kind):
            yield found
        kind, start = head[1] if head else "", token.map[1]
    if kind:
        raise _broken(chapter, "the last <details> of a cell is not closed")
    if found := _content(chapter, lines[start:], ""):
        yield found


def _content(chapter: str, lines: list[str], kind: str) -> tuple[str, str] | None:
    text = "\n".join(lines).strip()
    if "<details" in text or "</details" in text:
        raise _broken(chapter, "a <details> lacks its class, its summary, or the blank line before or after it")
    return (kind, text) if kind or text else None


def _python(text: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(text) if token.type == "fence" and token.info.strip() == "python"]


def _exercise(chapter: str, cell: str) -> Exercise:
    title = cell.splitlines()[0].removeprefix("### ")
    parts = list(_segments(chapter, cell))
    head = HEAD.fullmatch(parts[0][1])
    if not head:
        raise _broken(chapter, f"{title!r} lacks its number, its title or the line of minutes, difficulty and importance")
    if [kind for kind, _ in parts[1:]] != ["hint", "solution"] or not all(text for _, text in parts[1:]):
        raise _broken(chapter, f"{title!r} lacks its folded hint or solution")
    name, hint, solution = f"{chapter[:2]}-{head['number']}", parts[1][1], parts[2][1]
    if not any(f'exercises.check("{name}", ' in block for block in _python(head["text"])):
        raise _broken(chapter, f'{title!r} lacks its python block with exercises.check("{name}", answer, run)')
    code = next(reversed(_python(solution)), "")
    if not re.search(r"^ *answer = ", code, re.MULTILINE):
        raise _broken(chapter, f"{title!r}: the last python block of its solution sets no answer")
    minutes, difficulty, importance = (int(head[key]) for key in ("minutes", "difficulty", "importance"))
    return Exercise(name, head["title"].strip(), minutes, difficulty, importance, head["text"].strip(), hint, solution, code)


def _question(chapter: str, number: int, asked: str, answered: str) -> QuizQuestion:
    head, answer = ASKED.fullmatch(asked), re.fullmatch(r"\*\*\(([a-z])\)\*\*\s+(.+)", answered, re.DOTALL)
    options = OPTION.findall(head[3]) if head else []
    letters = "".join(letter for letter, _ in options)
    if not head or int(head[1]) != number or len(options) < 2 or not "abcdef".startswith(letters):
        raise _broken(chapter, f"question {number} of the quiz lacks its number, its text or its options (a), (b), (c)")
    if not answer or answer[1] not in letters:
        raise _broken(chapter, f"question {number} of the quiz has no answer that starts with one of its letters")
    return QuizQuestion(number, head[2], tuple(" ".join(text.split()) for _, text in options), answer[1], answer[2])


__all__ = ["Exercise", "QuizQuestion", "check", "find", "quiz", "read", "solve"]

RELATIVE, ABSOLUTE = 0.02, 0.005  # how far a number may be off: about what rounding costs
ROLE = re.compile(r"\{[\w:]+\}`([^`<]+?)(?:\s*<[^`>]*>)?`")
PROFILES = ("quick", "cpu")  # whose newest finished run is taken where none is named


def find(name: str, root: Path | None = None) -> Exercise:
    """The exercise of that name, such as 05-1; an unknown one is refused with the nearest."""
    numbers = [chapter[:2] for chapter in chapters.discover(root or project_root())]
    known = {exercise.name: exercise for exercise in (read(name[:2], root) if name[:2] in numbers else ())}
    if name not in known:
        names = list(known) or [f"{number}-{i}" for number in numbers for i in (1, 2, 3)]
        raise StudyError(f"unknown exercise {name!r}; {nearest(name, names)}name it by chapter and number, such as {names[0]}")
    return known[name]


def solve(name: str, run: Run, root: Path | None = None) -> object:
    """What the solution of an exercise answers on that run; None where the run's tables cannot tell."""
    space = {
        "table": lambda wanted: _table(run, wanted, root),
        "parameter": lambda chapter, wanted: _parameter(run, chapter, wanted, root),
        **{"pd": pd, "np": np},
    }
    exec(compile(find(name, root).code, f"solution of exercise {name}", "exec"), space)  # the project's own code
    return space.get("answer")


def check(name: str, answer: object, run: Run | None = None, root: Path | None = None) -> None:
    """Prints whether the reader's answer is right on that run, and the hint where it is not; never the answer."""
    exercise, run = find(name, root), run or _newest()
    truth = _plain(solve(name, run, root))
    if truth is None:
        print(f"The run {_label(run)} cannot tell: its tables lack what exercise {name} asks for. Do what the exercise says,")
        print(f"then run chapter {name[:2]} again, or take a larger run: make study PROFILE=cpu.")
    elif _agrees(_plain(answer), truth):
        print(f"Right. (On the run {_label(run)}.) Compare your reason with the solution's.")
    else:
        hint = ROLE.sub(r"\1", exercise.hint)
        print(f"Not yet. {_form(_plain(answer), truth)}Hint: {hint}")


# ---------------------------------------------------------------- the reader's answer


def _plain(value: object) -> object:
    """A number, a word, or a frozenset of words; a collection of one thing is that thing, and no number is None."""
    if isinstance(value, str):
        return value.strip().casefold()
    if isinstance(value, Iterable):
        items = [_plain(item) for item in value]
        return items[0] if len(items) == 1 else frozenset(_word(item) for item in items)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Real):
        return None if math.isnan(value) else float(value)
    return value


def _word(item: object) -> str:
    return f"{item:.6g}" if isinstance(item, float) else str(item)


def _number(answer: Any) -> float:
    """The answer as a number; `nan` where it is none."""
    try:
        return float(answer.removesuffix("%") if isinstance(answer, str) else answer)
    except (TypeError, ValueError):
        return math.nan


def _near(number: float, truth: float) -> bool:
    return abs(number - truth) <= max(RELATIVE * abs(truth), ABSOLUTE)


def _agrees(answer: object, truth: object) -> bool:
    if isinstance(truth, float):
        return _near(_number(answer), truth)
    return (_word(answer) if isinstance(truth, str) else answer) == truth


def _form(answer: object, truth: Any) -> str:
    """What is wrong with the form of a wrong answer, if that is what is wrong."""
    if isinstance(truth, frozenset):
        return "" if isinstance(answer, frozenset) else "The answer is a list of names. "
    if isinstance(truth, str):
        return "" if isinstance(answer, str) else "The answer is one name. "
    number = _number(answer)
    if math.isnan(number):
        return "The answer is a number. "
    if abs(truth) <= 1 and _near(number / 100, truth):
        return "Give the rate as a share, 0.4, not 40. "
    return ""


# ---------------------------------------------------------------- the run


def _label(run: Run) -> str:
    return f"{run.profile}, {run.model}, seed {run.seed}"


def _newest() -> Run:
    """The run that finished last in the first of the profiles that has one."""
    for profile in PROFILES:
        manifests = (folder / "manifest.json" for folder in run_folders(results_root() / profile))
        found = [(_finished(path), path.parent) for path in manifests if path.is_file()]
        if found:
            folder = max(found)[1]
            return Run(profile, folder.parent.name, int(folder.name.removeprefix("seed-")), folder)
    raise StudyError(f"no finished run of {' or '.join(PROFILES)} in the results; run make study first", NOT_COMPARABLE)


def _finished(manifest: Path) -> str:
    entries = json.loads(manifest.read_text(encoding="utf-8"))["chapters"].values()
    return max(entry["finished"] for entry in entries)


def _table(run: Run, name: str, root: Path | None) -> pd.DataFrame:
    """A table of the run, or the findings of all runs beside it; where it is missing, the error names the chapter to run."""
    beside = run.folder.parents[1] / "findings.parquet"
    if name == "findings" and beside.is_file():
        return pd.read_parquet(beside)
    if (run.folder / "tables" / f"{name}.parquet").is_file():
        return results.read_table(run, name)
    if name not in {*results.OWN, "findings"}:
        raise StudyError(f"unknown table {name!r}; {nearest(name, [*results.OWN, 'findings'])}see README, results")
    writer = _writer(name, root)
    how = f"python -m helpers chapter {writer} --profile {run.profile}"
    raise StudyError(f"table {name!r} is not in the run {_label(run)}; run chapter {writer} first: {how}", NOT_COMPARABLE)


def _writer(name: str, root: Path | None) -> str:
    """The first chapter that writes a table, by the words with which it does so."""
    writes = re.compile(rf'write_table\(\s*run,\s*"(\d\d_\w+)",\s*"{re.escape(name)}"')
    notebooks = chapters.discover(root or project_root())
    cells = (source(cell) for path in notebooks.values() for cell in read_notebook(path)["cells"])
    found = (match[1] for match in map(writes.search, cells) if match)
    return next(found, next(reversed(notebooks)))


def _parameter(run: Run, chapter: str, name: str, root: Path | None) -> object:
    """A parameter that the chapter was run with: as the runner recorded it, else as the notebook's own cell has it.

    Run by hand in Jupyter, a chapter leaves no record, and an older record no longer fits what was written since.
    """
    notebooks = chapters.discover(root or project_root())
    chapter = chapters.find(chapter, notebooks)
    entry, own = statuses.status(run.folder, chapter), f"parts/{chapter}/"
    files = {path: digest for path, digest in entry.get("files", {}).items() if path.startswith(own)}
    recorded = files and all(file_hash(run.folder / path) == digest for path, digest in files.items())
    values = entry["parameters"] if recorded else declared(notebooks[chapter])
    if name not in values:
        raise StudyError(f"unknown parameter {name!r} of chapter {chapter}; {nearest(name, values)}see its parameters cell")
    return values[name]
