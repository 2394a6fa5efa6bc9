"""Every chapter is a lesson of one form: the same parts in the same order, short enough, and with what a teacher needs."""

import ast
import json
import re
from functools import lru_cache
from importlib import import_module
from inspect import signature
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from helpers.book import exercise_form
from helpers.study import chapters, parameters

ROOT = Path(__file__).parents[2]
NOTEBOOKS = chapters.discover(ROOT)
TEACH, BOARDS = ROOT / "book" / "teach", ROOT / "book" / "_static" / "board"
END = ["Controls", "Limits", "Exercises", "Exercise 1", "Exercise 2", "Exercise 3", "Quiz", "Summary"]
MARKDOWN = MarkdownIt("commonmark").enable("table")
every_chapter = pytest.mark.parametrize("chapter", NOTEBOOKS)


@lru_cache
def cells(chapter: str) -> list[tuple[str, str, list[str]]]:
    """Kind, text and tags of each cell."""
    found = json.loads(NOTEBOOKS[chapter].read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"]).strip(), cell["metadata"].get("tags", [])) for cell in found]


def prose(chapter: str) -> str:
    """All markdown of a chapter."""
    return "\n\n".join(text for kind, text, _ in cells(chapter) if kind == "markdown")


def headings(text: str) -> list[tuple[int, str]]:
    """Level and text of each heading."""
    tokens = MARKDOWN.parse(text)
    pairs = pairwise(tokens)
    return [(int(token.tag[1]), after.content) for token, after in pairs if token.type == "heading_open"]


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def words(text: str) -> int:
    """How many words a reader sees: without code, formulas, and the markers of directives, roles and links."""
    text = re.sub(r"^```.*?^```$", " ", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$(?:\s*\([\w-]+\))?|\$[^$\n]+\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"^:::+.*$|^:[\w-]+:.*$|^\([\w-]+\)=$|<[^>\n]+>", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\{[\w:]+\}`([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return len(re.findall(r"\w[\w'’.,%@/-]*", text))


def test_only_the_words_a_reader_sees_are_counted():
    text = "## A title\n\n:::{note}\n:class: tip\nOne **two** {term}`three <x y>` [four](a b.md).\n:::\n\n$$ a b $$ (eq-a)\n"
    assert words(text) == 6
    assert words(text + "\n```python\na = 1\n```\n and $x + y$ <b>seven</b>") == 8


# ---------------------------------------------------------------- the chapter


def named(needs: str) -> set[int]:
    """The numbers of the chapters that are linked, ranges such as `[01](x) to [04](y)` included."""
    ranges = re.findall(r"\[(\d\d)\]\([^)]*\)(?: to \[(\d\d)\])?", needs)
    return {number for first, last in ranges for number in range(int(first), int(last or first) + 1)}


@every_chapter
def test_a_chapter_opens_with_its_question_and_what_it_needs(chapter):
    kind, first, _ = cells(chapter)[0]
    assert kind == "markdown"
    assert re.match(rf"# {int(chapter[:2])}\. \S", first)
    assert re.search(r"^\*\*Question\.\*\* .*\?", first, re.MULTILINE)
    learned = first.split("You will learn")[1].split("**Needs**")[0]
    assert len(re.findall(r"^- ", learned, re.MULTILINE)) >= 3
    needs = first.split("**Needs**")[1]
    assert re.search(r"\bminutes?\b", needs)
    assert "CPU" in needs or "o model is touched" in needs
    assert "GPU" in needs
    if chapters.CHAPTERS.get(chapter[:2]) is not None:
        listed = re.split(r"[;.] ", needs)[0]
        assert named(listed) == needed(chapter), "**Needs** names the chapters that are needed, and no other"


def needed(chapter: str) -> set[int]:
    """The numbers of the chapters that must be done before this one, as the runner has it."""
    return {int(name[:2]) for name in chapters.needs(chapter, NOTEBOOKS)}


@every_chapter
def test_the_teachers_page_tells_of_the_same_chapters_before(chapter):
    text = (TEACH / f"{chapter[:2]}.md").read_text(encoding="utf-8")
    said = r"[Cc]hapters? ([\d, andto]+) must have been run|needs the results of chapters? ([\d, andto]+)\."
    for numbers in (first or second for first, second in re.findall(said, text)):
        if ends := re.fullmatch(r"(\d+) to (\d+)", numbers):
            assert set(range(int(ends[1]), int(ends[2]) + 1)) == needed(chapter)
        else:
            assert {int(number) for number in re.findall(r"\d+", numbers)} == needed(chapter)
    assert not re.search(r"needs the (earlier|other|previous) chapters", text), "say which"


@every_chapter
def test_a_value_that_is_to_be_replaced_stands_in_its_parameter(chapter):
    names = (chapter[:2], f"handout-{chapter[:2]}")
    pages = [prose(chapter), *((TEACH / f"{name}.md").read_text(encoding="utf-8") for name in names)]
    own = parameters.declared(NOTEBOOKS[chapter])
    for new, old, name in re.findall(r"[Pp]ut `([^`]+)` in place of `([^`]+)` in the parameter `(\w+)`", "\n".join(pages)):
        assert ast.literal_eval(old) in own[name], f"{old} is not in `{name}`"
        assert ast.literal_eval(new) not in own[name]


@every_chapter
def test_each_parameter_says_what_it_is(chapter):
    [parameters] = [text for kind, text, tags in cells(chapter) if kind == "code" and "parameters" in tags]
    lines = parameters.splitlines()
    statements = [(node.lineno - 1, node.end_lineno) for node in ast.parse(parameters).body]
    assert [lines[a] for a, b in statements if not re.search(r"\S  # \S", "\n".join(lines[a:b]))] == []
    assert cells(chapter)[1][1] == parameters


@every_chapter
def test_the_headings_are_in_order_and_end_alike(chapter):
    found = headings(prose(chapter))
    levels = [level for level, _ in found]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(levels) <= 3
    assert [b for a, b in pairwise(levels) if b > a + 1] == []
    names = [re.sub(r"^(Exercise \d)\..*", r"\1", name) for _, name in found]
    assert names[-len(END) :] == END
    assert len(set(names)) == len(names)


@every_chapter
def test_the_text_before_the_exercises_is_short(chapter):
    assert words(prose(chapter).split("\n## Exercises")[0]) <= 1500


@every_chapter
def test_three_exercises_grow_in_time_and_tell_what_form_the_answer_has(chapter):
    found = exercise_form.read(chapter, ROOT)
    minutes = [exercise.minutes for exercise in found]
    assert len(found) == 3
    assert minutes == sorted(set(minutes))
    assert sum(minutes) <= 40
    for exercise in found:
        assert "**Predict**" in exercise.text
        assert all(len(hint.split()) >= 5 for hint in exercise.hints)
        assert words(exercise.solution) >= 20


@every_chapter
def test_the_quiz_has_five_questions_whose_letters_differ(chapter):
    found = exercise_form.quiz(chapter, ROOT)
    assert len(found) == 5
    assert len({question.answer for question in found}) >= 2
    assert all(len(question.options) >= 3 == len(set(question.options[:3])) for question in found)
    assert all(len(question.why.split()) >= 8 for question in found)


@every_chapter
def test_the_summary_has_a_sentence_to_take_away_and_a_way_on(chapter):
    summary = section(prose(chapter) + "\n", "Summary")
    assert re.search(r"\*\*[A-Z][^*]{20,}[.?!]\*\*", summary)
    after = summary.split("Next")[1]
    ways = re.findall(r"\]\(([^)#]+)\)|\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", after)
    assert ways
    for link, page in ways:
        target = NOTEBOOKS[chapter].parent / (link or page)
        assert target.is_file() or any(target.with_suffix(kind).is_file() for kind in (".md", ".ipynb")), target.name


def drawing(chapter: str) -> list[bool | str]:
    """The cells in order: True for one that calls `figures.<file>.<function>` for a figure, False for other code, or the text."""
    found: list[bool | str] = []
    for kind, text, _ in cells(chapter):
        calls = re.findall(r"\bfigures\.(\w+)\.(\w+)\(", text) if kind != "markdown" else []
        asked = [getattr(import_module(f"helpers.figures.{file}"), name) for file, name in calls]
        draws = any(signature(function).return_annotation is Figure for function in asked)
        found.append(text if kind == "markdown" else draws)
    return found


@every_chapter
def test_each_figure_is_read_in_prose_before_the_next_is_drawn(chapter):
    found = drawing(chapter)
    for place, cell in enumerate(found):
        if cell is True:
            after = next((other for other in found[place + 1 :] if other), "")
            assert isinstance(after, str), f"cell {place + 1} draws, and the next figure comes without a word between"
            assert re.match(r"[\w*{$\[]", after), f"cell {place + 1} draws, and no sentence follows: {after[:40]!r}"


def test_every_chapter_but_those_of_tables_draws():
    assert sum(True in drawing(chapter) for chapter in NOTEBOOKS) >= len(NOTEBOOKS) - 1  # the check above sees figures


# ---------------------------------------------------------------- what the teacher has


def title(chapter: str) -> str:
    """The chapter's name as its first heading has it, without number and without what follows a colon."""
    return headings(prose(chapter))[0][1].split(". ", 1)[1]


def span(cell: str) -> int:
    """Minutes as a table has them: `10`, `10 min` or `5-15`."""
    numbers = [int(number) for number in re.findall(r"\d+", cell)]
    return numbers[1] - numbers[0] if len(numbers) == 2 else numbers[0]


def minutes(text: str) -> int:
    """The sum of the column `minutes` of a page's timing table; a row with the total, in bold or so called, is left out."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")]
    head = next(row for row in rows if "minutes" in [cell.lower() for cell in row])
    place = [cell.lower() for cell in head].index("minutes")
    body = [row for row in rows[rows.index(head) + 2 :] if len(row) == len(head) and re.search(r"\d", row[place])]
    total = re.compile(r"^\*\*\d+|\b(total|sum|together)\b", re.IGNORECASE | re.MULTILINE)
    return sum(span(row[place]) for row in body if not total.search("\n".join(row)))


def test_minutes_are_summed_from_the_timing_table():
    assert minutes("x\n\n| minutes | what |\n|---|---|\n| 10 | a |\n| 10-25 min | b |\n| **25** | |\n") == 25


@every_chapter
def test_the_teachers_page_has_what_a_lesson_of_45_minutes_needs(chapter):
    text = (TEACH / f"{chapter[:2]}.md").read_text(encoding="utf-8")
    assert re.search(rf"^# Teaching chapter {int(chapter[:2])}: \S", text, re.MULTILINE)
    assert minutes(text) == 45
    assert f"../../notebooks/{chapter}" in text
    assert re.search(r"wrong answers?", text, re.IGNORECASE)
    assert re.search(r"^## .*short", text, re.MULTILINE | re.IGNORECASE), "what to skip when time is short"
    drawn = rf"!\[[^\]]{{20,}}\]\(\.\./_static/board/{chapter[:2]}\.svg\)"
    directive = rf"\{{(?:image|figure)\}} \.\./_static/board/{chapter[:2]}\.svg\n(?::[\w-]+:.*\n)*:alt: .{{20,}}"
    assert re.search(f"{drawn}|{directive}", text), "the board drawing, with a text instead of it"


@every_chapter
def test_the_handout_is_one_page(chapter):
    text = (TEACH / f"handout-{chapter[:2]}.md").read_text(encoding="utf-8")
    assert re.search(r"^# Handout: \S", text, re.MULTILINE)
    assert words(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)) <= 350
    assert "$" in text, "the key formula"
    assert f"../../notebooks/{chapter}" in text
    assert re.search(r"does\s+not\s+show", text, re.IGNORECASE)


@every_chapter
def test_the_board_drawing_is_plain_and_small(chapter):
    path = BOARDS / f"{chapter[:2]}.svg"
    text = path.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text)
    assert path.stat().st_size < 8192
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(tree.get("viewBox", "").split()) == 4
    kinds = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert not kinds & {"script", "foreignObject", "image", "a", "use", "animate", "set", "iframe"}
    assert "text" in kinds
    names = {name.rpartition("}")[2].lower() for element in tree.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or name == "href"]
    assert "url(http" not in text
    assert "@import" not in text
    sizes = [float(size) for size in re.findall(r"font-size\s*[:=]\s*\"?([\d.]+)", text)]
    assert sizes
    assert min(sizes) >= 14
