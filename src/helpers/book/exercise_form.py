"""The form of exercises and quizzes: what the cells of a chapter say, read into plain values, or refused by chapter and part."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from helpers.errors import REFUSED, StudyError
from helpers.folders import project_root
from helpers.study import chapters
from helpers.study.parameters import read_notebook, source

HEAD = re.compile(
    r"### Exercise (?P<number>\d)\. (?P<title>[^\n]+)\n\s*\n"
    r"\*About (?P<minutes>\d+) minutes · difficulty (?P<difficulty>[123]) of 3 · importance (?P<importance>[123]) of 3"
    r"(?: · with `(?P<wants>[^`\n]+)`)?\*\n"
    r"(?P<text>.*)",
    re.DOTALL,
)
ASKED = re.compile(r"\*\*(\d)\. ([^\n]+?)\*\*\s*\n(.*)", re.DOTALL)
OPTION = re.compile(r"^- \(([a-z])\) (.+(?:\n +\S.*)*)$", re.MULTILINE)
DETAILS = re.compile(r'<details class="(\w+)">\s*<summary>[^<\n]+</summary>\s*')
FORM = "write it in the form of the other chapters' exercises"


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter.

    `hints` are two, the second says more; `code` is the last python block of its solution; `wants` is what must hold of the
    chapter's parameters before its answer counts, as Python says it, and empty where any run will do.
    """

    name: str
    title: str
    minutes: int
    difficulty: int
    importance: int
    text: str
    hints: tuple[str, str]
    solution: str
    code: str
    wants: str


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
    if [kind for kind, _ in parts[1:]] != ["hint", "hint", "solution"] or not all(text for _, text in parts[1:]):
        raise _broken(chapter, f"{title!r} lacks one of its two folded hints, or its solution")
    name, hints, solution = f"{chapter[:2]}-{head['number']}", (parts[1][1], parts[2][1]), parts[3][1]
    if not any(f'exercises.check("{name}", ' in block for block in _python(head["text"])):
        raise _broken(chapter, f'{title!r} lacks its python block with exercises.check("{name}", answer, run)')
    code = next(reversed(_python(solution)), "")
    if not re.search(r"^ *answer = ", code, re.MULTILINE):
        raise _broken(chapter, f"{title!r}: the last python block of its solution sets no answer")
    if "answer = ..." not in head["text"]:
        raise _broken(chapter, f"{title!r} lacks the line `answer = ...` before its check")
    minutes, difficulty, importance = (int(head[key]) for key in ("minutes", "difficulty", "importance"))
    known = (name, head["title"].strip(), minutes, difficulty, importance, head["text"].strip())
    return Exercise(*known, hints, solution, code, _wanted(chapter, title, head["wants"] or ""))


def _wanted(chapter: str, title: str, wants: str) -> str:
    """What an exercise wants of the parameters; refused where it is no expression of Python."""
    try:
        return wants and ast.unparse(ast.parse(wants, mode="eval"))
    except SyntaxError as error:
        raise _broken(chapter, f"{title!r} wants {wants!r} of its parameters, which is no expression") from error


def _question(chapter: str, number: int, asked: str, answered: str) -> QuizQuestion:
    head, answer = ASKED.fullmatch(asked), re.fullmatch(r"\*\*\(([a-z])\)\*\*\s+(.+)", answered, re.DOTALL)
    options = OPTION.findall(head[3]) if head else []
    letters = "".join(letter for letter, _ in options)
    if not head or int(head[1]) != number or len(options) < 2 or not "abcdef".startswith(letters):
        raise _broken(chapter, f"question {number} of the quiz lacks its number, its text or its options (a), (b), (c)")
    if not answer or answer[1] not in letters:
        raise _broken(chapter, f"question {number} of the quiz has no answer that starts with one of its letters")
    return QuizQuestion(number, head[2], tuple(" ".join(text.split()) for _, text in options), answer[1], answer[2])
