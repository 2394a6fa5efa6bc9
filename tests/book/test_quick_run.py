"""What is kept of a run of quick says what that run gave, and the page made of it can hold nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.bland import refused

from helpers.book import exercise_form, provenance
from helpers.book.lesson import quick_run
from helpers.errors import NOT_COMPARABLE, REFUSED
from helpers.study import chapters

ROOT = Path(__file__).parents[2]
RUN = ROOT / "results" / "cpu" / "embedded" / "seed-0"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A project with the chapters alone, and what is kept there of the committed run."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    (root / "book" / "teach").mkdir(parents=True)
    assert quick_run.keep(root, "cpu") == quick_run.FILE
    return root


def test_every_number_that_a_chapter_says_is_kept(kept):
    for each in quick_run.kept_run(kept)["chapters"]:
        numbers = {number.key: number.text for number in provenance.glued_numbers(RUN, each["chapter"])}
        cells = json.loads((ROOT / "notebooks" / f"{each['chapter']}.ipynb").read_text(encoding="utf-8"))["cells"]
        prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        wanted = [match["key"] for match in provenance.GLUED.finditer(prose)]
        said = " ".join(each["sentences"])
        assert wanted
        assert [key for key in wanted if re.sub(r"[*`]", "", numbers[key]) not in said] == []
        assert not re.search(r"\{\w+(:\w+)?\}", said)


def test_every_exercise_has_its_answer(kept):
    for each in quick_run.kept_run(kept)["chapters"]:
        wanted = [exercise.name for exercise in exercise_form.read(each["chapter"][:2], ROOT)]
        assert [name for name, *_ in each["answers"]] == wanted
        assert all(words for *_, words in each["answers"])


def test_three_chapters_bring_their_figure_for_light_and_dark_pages(kept):
    figures = {each["chapter"]: each["figure"] for each in quick_run.kept_run(kept)["chapters"] if each["figure"]}
    assert set(figures) == set(quick_run.DRAWN)
    for html in figures.values():
        for name in re.findall(r'src="\.\./_static/([^"]+)"', html):
            assert (kept / "book" / "_static" / name).read_text(encoding="utf-8").startswith("<svg")
        assert "only-dark" in html


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "this run cannot tell"), (0.123456, "0.123"), (np.float64(2), "2"), (7, "7"), (True, "yes"),
        (np.bool_(False), "no"),
        ("nf4", "nf4"), (["a", "b"], "a, b"), ({"b": 1.5}, "b: 1.5"), ([], "none"), (np.array([0.5, 1.0]), "0.5, 1"),
        (range(20), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more"),
    ],
)  # fmt: skip
def test_an_answer_in_words(answer, words):
    assert quick_run.answer_words(answer) == words


def test_the_page_shows_texts_as_they_are(kept, tmp_path):
    found = quick_run.kept_run(kept)
    found["chapters"] = [{**found["chapters"][2], "sentences": ["<b>5</b> `x`"], "answers": [["03-1", "<i>", "a|b<script>"]]}]
    (tmp_path / "book" / "teach").mkdir(parents=True)
    (tmp_path / quick_run.FILE).write_text(json.dumps(found))
    page = quick_run.part(tmp_path, RUN)
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "../../_static/quick/" in page


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"profile": "quick"}'])
def test_a_file_of_another_form_is_refused_with_what_to_do(tmp_path, content):
    (tmp_path / "book" / "teach").mkdir(parents=True)
    (tmp_path / quick_run.FILE).write_text(content)
    with refused(REFUSED, "book/teach/quick.json", "python -m helpers lesson"):
        quick_run.kept_run(tmp_path)


def test_a_run_that_is_not_finished_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", str(tmp_path))
    with refused(NOT_COMPARABLE, "profile quick is not finished", "make study PROFILE=quick"):
        quick_run.keep(ROOT)


def test_what_is_committed_is_of_todays_chapters_and_exercises():
    found = quick_run.kept_run(ROOT)
    assert [each["chapter"] for each in found["chapters"]] == list(chapters.discover(ROOT))
    for each in found["chapters"]:
        wanted = [(exercise.name, exercise.title) for exercise in exercise_form.read(each["chapter"][:2], ROOT)]
        assert [(name, title) for name, title, _ in each["answers"]] == wanted
        for name in re.findall(r'"\.\./_static/([^"]+)"', each["figure"]):
            assert (ROOT / "book" / "_static" / name).is_file()
