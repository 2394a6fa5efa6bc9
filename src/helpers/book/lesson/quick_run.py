"""What a run of `quick` gave, for the page on what a class will see.

A class runs `quick`, and the pages show a larger profile. So what one run of it gave is kept in a file of the book: the chapters'
own sentences with their numbers, the answers to the exercises, three figures, and what each chapter took. `keep` writes it from
a finished run, `python -m helpers lesson` calls that, and `part` makes the page.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from helpers.book import exercise_form, exercises, provenance
from helpers.book.exercise_form import Exercise
from helpers.book.markup import chapter_link, entities, text
from helpers.cache import write_json
from helpers.console import took
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.figures.drawing import export
from helpers.models.meter import Tokens
from helpers.results import Run, open_run
from helpers.study import chapters, statuses
from helpers.study.parameters import read_notebook, source

FILE = Path("book/teach/quick.json")
DRAWN = {"03_finetuning": "03-13", "05_staleness": "05-07", "07_projection": "07-20"}  # the cell of a chapter's leading figure
FIGURES = "quick"  # their folder in book/_static
MOST = 12  # parts of an answer that are written out
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z*])")
KEPT = {"profile", "model", "seed", "commit", "compute", "cpus", "chapters"}


# ---------------------------------------------------------------- what is kept


def keep(root: Path, profile: str = "quick") -> Path:
    """The file, written from the finished run of the profile on the embedded model, seed 0; its figures lie in book/_static."""
    run = open_run(profile, "embedded", 0)
    names = [name for name in chapters.discover(root) if statuses.status(run.folder, name)]
    if len(names) < len(chapters.discover(root)):
        raise StudyError(f"profile {profile} is not finished; run it first: make study PROFILE={profile}", NOT_COMPARABLE)
    first = statuses.status(run.folder, names[0])
    kept = {
        "profile": profile, "model": run.model, "seed": run.seed, "commit": first["code"]["commit"],
        "compute": first["machine"]["compute"], "cpus": first["machine"]["cpus"],
        "chapters": [_chapter(root, run, name) for name in names],
    }  # fmt: skip
    write_json(root / FILE, kept)
    return FILE


def _chapter(root: Path, run: Run, name: str) -> dict[str, Any]:
    entry = statuses.status(run.folder, name)
    return {
        "chapter": name, "seconds": entry["seconds"], "tokens": entry["tokens"], "sentences": _sentences(root, run, name),
        "answers": [[each.name, each.title, _answer(root, run, each)] for each in exercise_form.read(name[:2], root)],
        "figure": _figure(root, run, name),
    }  # fmt: skip


def _answer(root: Path, run: Run, exercise: Exercise) -> str:
    """The right answer of a run, or what must be changed before there is one."""
    if not exercises.suits(exercise, run, root):
        return f"asks for a run with {exercise.wants}"
    return answer_words(exercises.solve(exercise.name, run, root))


def _sentences(root: Path, run: Run, name: str) -> list[str]:
    """The sentences of a chapter that hold numbers of its run, in plain words."""
    said = {number.key: number.text for number in provenance.glued_numbers(run.folder, name)}
    prose = (source(cell) for cell in read_notebook(chapters.discover(root)[name])["cells"] if cell["cell_type"] == "markdown")
    found = (sentence for text in prose for line in text.split("\n") for sentence in SENTENCE.split(line))
    return [_filled(sentence, said) for sentence in found if provenance.GLUED.search(sentence)]


def _filled(sentence: str, said: Mapping[str, str]) -> str:
    told = provenance.GLUED.sub(lambda match: said.get(match["key"], "(not measured)"), sentence.strip(" -"))
    return re.sub(r"[*`]", "", exercises.ROLE.sub(r"\1", told))


def answer_words(answer: object) -> str:
    """What an exercise asks for, in words: numbers to three digits, and of a long list the beginning."""
    if answer is None:
        return "this run cannot tell"
    if isinstance(answer, Mapping):
        return _joined(f"{key}: {answer_words(value)}" for key, value in answer.items())
    if isinstance(answer, str | bool | np.bool_):
        return {"True": "yes", "False": "no"}.get(str(answer), str(answer))
    if isinstance(answer, Iterable):
        return _joined(map(answer_words, answer)) or "none"
    return f"{answer:.3g}" if isinstance(answer, float | np.floating) else str(answer)


def _joined(parts: Iterable[str]) -> str:
    listed = list(parts)
    more = f" and {len(listed) - MOST} more" if len(listed) > MOST else ""
    return ", ".join(listed[:MOST]) + more


def _figure(root: Path, run: Run, name: str) -> str:
    """The HTML of the chapter's leading figure, its files written; empty for the other chapters."""
    if name not in DRAWN:
        return ""
    executed = read_notebook(run.folder / "executed" / f"{name}.ipynb")
    outputs = [output for cell in executed["cells"] if cell["id"] == DRAWN[name] for output in cell["outputs"]]
    staged = export.staged(outputs, name, root / "book" / "_static" / FIGURES)
    shown = ["".join(output["data"]["text/html"]) for output in staged if "text/html" in output.get("data", {})]
    return "".join(shown[:1])


# ---------------------------------------------------------------- the page


def part(root: Path, run: Path) -> str:
    """What a class will see in `quick`, chapter by chapter, for a page in `book/teach/`; `run` is the one shown elsewhere."""
    found = kept_run(root)
    spent = sum((Tokens(**each["tokens"]) for each in found["chapters"]), Tokens())
    lines = [
        f"One run of the profile `{text(found['profile'])}`, seed {found['seed']}, at commit `{text(found['commit'][:10])}`, "
        f"computed in {text(found['compute'])} on {found['cpus']} cores: {spent.words}. Another compute or processor rounds "
        "otherwise, and its training ends elsewhere. Rates of so few prompts and monitors then move as if another seed were "
        "drawn, and an answer may turn: compare intervals and large effects.\n"
    ]
    return "\n".join([*lines, *map(_section, found["chapters"])])


def kept_run(root: Path) -> dict[str, Any]:
    """What was kept; a file that is not as `keep` writes it is refused."""
    try:
        found = json.loads((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{FILE} cannot be read; write it anew: python -m helpers lesson", REFUSED) from error
    if not isinstance(found, dict) or set(found) != KEPT:
        raise StudyError(f"{FILE} is not as this version writes it; write it anew: python -m helpers lesson", REFUSED)
    return found


def _section(each: Mapping[str, Any]) -> str:
    name = each["chapter"]
    head = f"## {name[:2]} {text(name[3:])}\n\n{chapter_link(name).replace('<../', '<../../')} took {took(each['seconds'])}."
    said = "".join(f"- {text(sentence)}\n" for sentence in each["sentences"])
    rows = "".join(f"<tr><td>{entities(key)} {entities(title)}</td><td>{entities(words)}</td></tr>"
                   for key, title, words in each["answers"])  # fmt: skip
    heads = "<thead><tr><th>exercise</th><th>right answer</th></tr></thead>"
    answers = f'<div class="results-table">\n<table class="results">{heads}<tbody>{rows}</tbody></table>\n</div>\n'
    return "\n\n".join(filter(None, [head, said, _up(each["figure"]), answers]))


def _up(figure: str) -> str:
    """A figure's HTML one folder further down than a chapter."""
    return figure.replace('"../_static', '"../../_static')
