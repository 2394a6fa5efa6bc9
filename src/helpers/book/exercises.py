"""Exercises: a solution is run on a run's own tables, and the reader's answer is held against it.

What the reader finds folded on the page is what computes the right answer here, what the tests run on the committed results,
and what runs in the chapter's own notebook: it takes nothing but `run` and the chapter's parameters.
"""

import ast
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import results
from helpers.book import judging
from helpers.book.exercise_form import Exercise, read
from helpers.errors import NOT_COMPARABLE, StudyError, nearest
from helpers.folders import file_hash, project_root, results_root, run_folders
from helpers.results import Run
from helpers.study import chapters, statuses
from helpers.study.parameters import declared, read_notebook, source

ROLE = re.compile(r"\{[\w:]+\}`([^`<]+?)(?:\s*<[^`>]*>)?`")
PROFILES = ("published", "cpu", "quick")  # whose pages show a run: the one that is taken where none is named
READS = re.compile(r"""read_table\(\s*["'](\w+)["']""")
_WRONG: Counter[tuple[str, str]] = Counter()  # wrong answers to each exercise so far: the second hint comes after the first


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
    exercise = find(name, root)
    values = {**run_parameters(run, name[:2], root), "run": _Tables(run.profile, run.model, run.seed, run.folder, root)}
    exec(compile(exercise.code, f"solution of exercise {name}", "exec"), values)  # the project's own code
    return values.get("answer")


def check(name: str, answer: object, run: Run | None = None, root: Path | None = None) -> None:
    """Prints whether the reader's answer is right on that run, or else a hint; never the answer.

    Without a run it is the one that the published pages show. A parameter that the exercise wants changed must be changed.
    """
    exercise, run = find(name, root), run or shown_run(name[:2])
    if answer is ...:
        print(f"Put your own answer to exercise {name} in place of the three dots.")
    elif lacks := _unchanged(exercise, run, root):
        print(f"Not yet. {lacks}")
    elif judging.nothing(truth := solve(name, run, root)):
        print(f"The run {_label(run)} cannot tell: its tables lack what exercise {name} asks for. Do what the exercise says,")
        print(f"then run chapter {name[:2]} again, or take a larger run: make study PROFILE=cpu.")
    elif judging.agrees(answer, truth):
        print(f"Right. (On the run {_label(run)}.) Compare your reason with the solution's.")
    else:
        said = judging.form(answer, truth, exercise.text, _names(exercise, run, root))
        print(f"Not yet. (On the run {_label(run)}.) {said}{_hint(exercise, run)}")


def _hint(exercise: Exercise, run: Run) -> str:
    """The first hint to a first wrong answer, the second to any later one; as plain text."""
    place = (exercise.name, str(run.folder))
    level, words = min(_WRONG[place], 1), ("Hint", "Second hint")
    _WRONG[place] += 1
    plain = re.sub(r"[$*]", "", ROLE.sub(r"\1", exercise.hints[level]))
    return f"{words[level]}: {' '.join(plain.split())}"


def _names(exercise: Exercise, run: Run, root: Path | None) -> set[str]:
    """All names that the tables of an exercise hold, and their parts, such as q_proj of model.layers.0.self_attn.q_proj."""
    found: set[str] = set()
    for table in {match: _table(run, match, root) for match in READS.findall(exercise.code)}.values():
        text = table.select_dtypes(exclude="number")
        found |= {str(value) for column in text for value in text[column].unique()}
    return found | {part for name in found for part in re.split(r"[.@:]", name)}


# ---------------------------------------------------------------- the run


def _label(run: Run) -> str:
    return f"{run.profile}, {run.model}, seed {run.seed}"


def shown_run(chapter: str) -> Run:
    """The run whose chapters the published pages show, in the first of the profiles that has a finished one.

    Of the other seeds git keeps the tables alone, so the one with its chapter as it ran is it, else the lowest seed.
    """
    for profile in PROFILES:
        done = [folder for folder in run_folders(results_root() / profile) if (folder / "manifest.json").is_file()]
        drawn = [folder for folder in done if any((folder / "executed").glob(f"{chapter}_*.ipynb"))]
        for folder in drawn or done:
            return Run(profile, folder.parent.name, int(folder.name.removeprefix("seed-")), folder)
    raise StudyError(f"no finished run of {' or '.join(PROFILES)} in the results; run make study first", NOT_COMPARABLE)


@dataclass(frozen=True)
class _Tables(Run):
    """A run as a notebook has it, for what a solution asks of it."""

    root: Path | None

    def read_table(self, name: str) -> pd.DataFrame:
        return _table(self, name, self.root)


def _table(run: Run, name: str, root: Path | None) -> pd.DataFrame:
    """A table of the run, or the findings of all runs beside it; where it is missing, the error names the chapter to run."""
    if name in {*results.table_names(run.folder), *(["findings"] if results.findings_path(run).is_file() else [])}:
        return results.read_table(run, name)  # as a table, or in parts
    if name not in {*results.OWN, "findings"}:
        raise StudyError(f"unknown table {name!r}; {nearest(name, [*results.OWN, 'findings'])}see README, results")
    writer = _writer(name, root)
    how = f"python -m helpers chapter {writer} --profile {run.profile}"
    raise StudyError(f"table {name!r} is not in the run {_label(run)}; run chapter {writer} first: {how}", NOT_COMPARABLE)


def _writer(name: str, root: Path | None) -> str:
    """The first chapter that writes a table, by the words with which it does so."""
    writes = re.compile(rf'write_table\(\s*(?:run,\s*)?"(\d\d_\w+)",\s*"{re.escape(name)}"')
    notebooks = chapters.discover(root or project_root())
    cells = (source(cell) for path in notebooks.values() for cell in read_notebook(path)["cells"])
    found = (match[1] for match in map(writes.search, cells) if match)
    return next(found, next(reversed(notebooks)))


# ---------------------------------------------------------------- its parameters


def run_parameters(run: Run, chapter: str, root: Path | None = None) -> dict[str, Any]:
    """The parameters that a chapter was run with: this kernel's own, else as recorded, else as the notebook declares them.

    Run by hand in Jupyter, a chapter leaves no record, and an older record no longer fits what was written since.
    """
    notebooks = chapters.discover(root or project_root())
    chapter = chapters.find(chapter, notebooks)
    entry, own = statuses.status(run.folder, chapter), f"parts/{chapter}/"
    files = {path: digest for path, digest in entry.get("files", {}).items() if path.startswith(own)}
    recorded = files and all(file_hash(run.folder / path) == digest for path, digest in files.items())
    values = declared(notebooks[chapter])
    return {**values, **(entry["parameters"] if recorded else _of_kernel(run, values))}


def _of_kernel(run: Run, names: dict[str, Any]) -> dict[str, Any]:
    """The values that a notebook's kernel has now, where `run` is its own: what is typed in a cell need not be saved yet."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    space = getattr(shell, "user_ns", {})
    return {name: space[name] for name in names if name in space} if space.get("run") is run else {}


def suits(exercise: Exercise, run: Run, root: Path | None = None) -> bool:
    """Whether a run was made with the parameters that the exercise wants changed first."""
    if not exercise.wants:
        return True
    wanted = compile(exercise.wants, f"what exercise {exercise.name} wants", "eval")
    return bool(eval(wanted, dict(run_parameters(run, exercise.name[:2], root))))  # the project's own code


def _unchanged(exercise: Exercise, run: Run, root: Path | None) -> str:
    """What to change first, where the run is not the one that the exercise asks for; empty where it is."""
    if suits(exercise, run, root):
        return ""
    values = run_parameters(run, exercise.name[:2], root)
    named = [node.id for node in ast.walk(ast.parse(exercise.wants)) if isinstance(node, ast.Name) and node.id in values]
    has = ", ".join(f"{name} = {values[name]!r}" for name in named)
    return (
        f"Change {' and '.join(named)} in the parameters cell first, and run chapter {exercise.name[:2]} again: exercise "
        f"{exercise.name} asks for {exercise.wants}, and the run {_label(run)} has {has}."
    )
