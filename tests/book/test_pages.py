"""Staging: present words over the outputs of a run, generated parts in their places, and nothing shown that was not run."""

import json
import re
from pathlib import Path

import pytest

from helpers.book import pages
from helpers.errors import StudyError

ROOT = Path(__file__).resolve().parents[2]


def cell(name, source, kind="code", outputs=(), tags=()):
    own = {"outputs": [{"text": text} for text in outputs]} if kind == "code" else {}
    return {"id": name, "cell_type": kind, "source": source, "metadata": {"tags": list(tags)}, **own}


def notebook(*cells):
    return {"cells": list(cells), "metadata": {"nb": 1}}


SOURCE = notebook(
    cell("a", "new words", "markdown"),
    cell("p", "x = 1", tags=["parameters"]),
    cell("b", "print(x)"),
    cell("n", "more", "markdown"),
)
RUN = notebook(cell("a", "old words", "markdown"), cell("p", "x = 1", tags=["parameters"]),
               cell("i", "x = 2", tags=["injected-parameters"]), cell("b", "print(x)", outputs=["2"]))  # fmt: skip


def test_words_are_the_present_ones_and_outputs_those_of_the_run():
    shown = pages.with_outputs(SOURCE, RUN)
    assert [c["id"] for c in shown["cells"]] == ["a", "p", "i", "b", "n"]
    assert shown["cells"][0]["source"] == "new words"
    assert shown["cells"][3]["outputs"] == [{"text": "2"}]
    assert RUN["cells"][0]["source"] == "old words"


@pytest.mark.parametrize("change", ["code", "a cell more", "a cell less"])
def test_a_chapter_whose_code_changed_is_shown_as_it_was_run(change):
    cells = {
        "code": [*SOURCE["cells"][:2], cell("b", "print(-x)")],
        "a cell more": [*SOURCE["cells"], cell("c", "print(3)")],
        "a cell less": SOURCE["cells"][:2],
    }[change]
    assert pages.with_outputs(notebook(*cells), RUN) == RUN


def test_a_generated_part_stands_in_its_place_and_an_unknown_one_is_refused(monkeypatch):
    monkeypatch.setitem(pages.GENERATED, "runs", lambda root, folder: f"made of {folder}")
    assert pages.filled("a\n\n<!-- generated: runs -->\n\nb", ROOT, Path("f")) == "a\n\nmade of f\n\nb"
    with pytest.raises(StudyError, match=r"unknown generated part 'rums' in a page; choose one of .*runs"):
        pages.filled("<!-- generated: rums -->", ROOT, Path("f"))


def test_every_page_asks_for_parts_that_exist_and_every_part_is_asked_for():
    asked = {name for page in (ROOT / "book").rglob("*.md") for name in pages.MARK.findall(page.read_text(encoding="utf-8"))}
    notebooks = (path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    in_chapters = {name for text in notebooks for name in re.findall(r"<!-- generated: ([a-z-]+) -->", text)}
    assert asked | in_chapters == set(pages.GENERATED)


def test_every_page_of_the_book_is_in_its_contents_and_no_other():
    staged = {f"book/{path.relative_to(ROOT / 'book').with_suffix('')}" for path in (ROOT / "book").rglob("*.md")}
    staged = {name for name in staged if not name.startswith("book/_static/")}
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    left = {name for name in staged if name not in contents and not name.startswith("book/teach/")}
    assert left == set()
    assert all(json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text()) for name in pages.book_chapters(ROOT))
