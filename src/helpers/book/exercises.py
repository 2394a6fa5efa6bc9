"""Exercises: a solution is run on a run's own tables, and the reader's answer is held against it.

What the reader finds folded on the page is what computes the right answer here, and what the tests run on the committed
results, so page and check cannot drift apart.
"""

import json
import math
import re
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import results
from helpers.book.exercise_form import Exercise, read
from helpers.errors import NOT_COMPARABLE, StudyError, nearest
from helpers.folders import file_hash, project_root, results_root, run_folders
from helpers.results import Run
from helpers.study import chapters, statuses
from helpers.study.parameters import declared, read_notebook, source

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
    if name in results.table_names(run.folder):  # as a table, or in parts
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
