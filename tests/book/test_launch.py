"""Launch: an address switches buttons, clone line and launchers on, none switches nothing on; a launcher does what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.tiers import slow

from helpers.book import exercises, pages, site
from helpers.book.away import launch
from helpers.errors import StudyError

ROOT = Path(__file__).parents[2]
URL, LAB, OTHER = "https://github.com/owner/name", "https://gitlab.com/group/below/name", "https://git.example.org/owner/name"
CHAPTER = "01_first"
BUTTONS = re.compile(r'<a[^>]*href="(https://(?:[a-z]+\.)*(?:github|gitlab|google|example)\.[^"]*)"')


def project(folder: Path, url: object = "", branch: str = "main") -> Path:
    """A project of one page and one chapter, with the real settings but for the address; its chapter is the real first one."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    settings["repository"] = {"url": url, "branch": branch}
    del settings["bibtex_bibfiles"]
    settings["sphinx"]["config"]["extensions"].remove("sphinxcontrib.bibtex")
    for name in ("bibtex_reference_style", "bibtex_default_style"):
        del settings["sphinx"]["config"][name]
    (folder / "book").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    (folder / "_config.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/index\nchapters:\n  - file: notebooks/{CHAPTER}\n", encoding="utf-8"
    )
    (folder / "book" / "index.md").write_text("# A book\n\nA first paragraph that is long enough to say what it is.\n\n{clone}\n")
    real = json.loads((ROOT / "notebooks" / "01_models.ipynb").read_text(encoding="utf-8"))
    (folder / "notebooks" / f"{CHAPTER}.ipynb").write_text(json.dumps(real), encoding="utf-8")
    return folder


def given(url: object, tmp_path: Path, branch: str = "main") -> launch.Repository | None:
    tmp_path.joinpath("_config.yml").write_text(yaml.safe_dump({"repository": {"url": url, "branch": branch}}), encoding="utf-8")
    return launch.repository(tmp_path)


# ---------------------------------------------------------------- the address


@pytest.mark.parametrize("url", ["", None])
def test_without_an_address_there_is_no_repository_and_nothing_is_written(url, tmp_path):
    assert given(url, tmp_path) is None
    assert launch.clone_part(tmp_path, tmp_path) == ""
    assert launch.launchers(ROOT, None) == {}
    launch.stage_settings(tmp_path, tmp_path / "staged.yml")
    assert not (tmp_path / "staged.yml").exists()
    (tmp_path / "_config.yml").write_text("title: x\n")
    assert launch.repository(tmp_path) is None


@pytest.mark.parametrize("end", ["", "/", ".git", ".git/"])
def test_an_address_is_known_by_its_plain_form(end, tmp_path):
    found = given(URL + end, tmp_path)
    assert (found.url, found.host, found.name, found.provider) == (URL, "github.com", "name", "github")
    assert found.colab == "https://colab.research.google.com/github/owner/name"


@pytest.mark.parametrize(("url", "provider"), [(LAB, "gitlab"), ("https://gitlab.example.org/a/b", "gitlab"), (OTHER, "")])
def test_colab_reads_from_github_alone(url, provider, tmp_path):
    found = given(url, tmp_path)
    assert (found.provider, found.colab) == (provider, "")
    assert launch.launchers(ROOT, found) == {}
    assert f"git clone {url}\ncd {found.name}" in launch.clone_part(tmp_path, tmp_path)
    assert "Colab" not in launch.clone_part(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/owner/name",
        "git@github.com:owner/name.git",
        "github.com/owner/name",
        "https://github.com/owner",
        "https://github.com/owner/name/tree/main",
        "https://user:word@github.com/owner/name",
        "https://github.com/owner/name; rm -rf x",
        "https://github.com/../name",
        "https://github.com/owner/-name",
        "https://localhost/owner/name",
        "https://github.com/owner/name\nx",
        'https://github.com/owner/name"onclick=x',
        3,
        ["https://github.com/owner/name"],
    ],
)
def test_a_malformed_address_is_one_line_with_the_remedy(url, tmp_path):
    with pytest.raises(StudyError, match=r"repository url .* in _config\.yml .*leave it empty") as caught:
        given(url, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("branch", ["a b", "-x", "a..b", "a;b", 3])
def test_a_malformed_branch_is_refused_as_well(branch, tmp_path):
    with pytest.raises(StudyError, match="repository branch"):
        given(URL, tmp_path, branch)


# ---------------------------------------------------------------- launchers


def test_the_committed_launchers_are_those_of_the_committed_address():
    found = launch.repository(ROOT)
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / launch.FOLDER).glob("*.ipynb")}
    assert there == launch.launchers(ROOT, found), "run make launch, and commit launch/"


def test_launchers_that_are_missing_changed_or_left_over_are_refused_until_they_are_written(tmp_path):
    root = project(tmp_path / "project", URL)
    found = launch.repository(root)
    with pytest.raises(StudyError, match=rf"launch/{CHAPTER}.ipynb is not made from .* run make launch"):
        launch.check_current(root, found)
    assert launch.write(root) == [f"{CHAPTER}.ipynb"]
    launch.check_current(root, found)
    (root / "launch" / "02_old.ipynb").write_text("{}")
    with pytest.raises(StudyError, match=r"launch/02_old.ipynb"):
        launch.check_current(root, found)
    launch.write(root)
    launch.check_current(root, found)
    with pytest.raises(StudyError, match=CHAPTER):
        launch.check_current(root, launch.Repository(URL, "other"))


def test_a_launcher_is_a_whole_notebook_whose_cells_are_python_and_whose_exercises_are_the_chapters():
    import nbformat

    found = launch.launchers(ROOT, launch.Repository(URL, "main"))
    assert list(found) == [path.name for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    for name, text in found.items():
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert [text for text in code if URL in text] == code[:1]  # the first cell clones
        for source in code:
            compile(re.sub(r"\A%%script .*\n", "", source), name, "exec")
        checked = [re.findall(r'exercises\.check\("([\d-]+)"', source) for source in code[1:]]
        assert checked == [[exercise.name] for exercise in exercises.read(name[:2], ROOT)]
        words = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "{term}" not in words
        assert "<details" not in words


def fake(folder: Path, log: Path) -> str:
    """A path on which git, uv and make only note what they are asked, and git makes the folder of a clone."""
    folder.mkdir()
    for name, more in {
        "git": 'for last; do :; done; mkdir "$last"; touch "$last/_toc.yml"',
        "uv": f'case $1 in venv) for last; do :; done; mkdir -p "$last/bin" .venv/bin; for p in "$last" .venv; do '
        f'printf "#!/bin/sh\\necho python \\$0 \\$* >> {log}\\n" > "$p/bin/python"; chmod +x "$p/bin/python"; done;; esac',
        "make": ":",
    }.items():
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{log}"\n{more}\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("way", ["light", "chapter"])
def test_the_first_cell_clones_makes_the_environment_and_goes_its_way_once(way, tmp_path):
    text = launch.launchers(ROOT, launch.Repository(URL, "main"))["05_staleness.ipynb"]
    first = next("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    code, log = first.replace('WAY = "light"', f"WAY = {way!r}"), tmp_path / "log"
    twice = f"code = {code!r}\nexec(code, {{}})\nexec(code, {{}})"
    path = fake(tmp_path / "tools", log)
    done = subprocess.run(
        [sys.executable, "-c", twice], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = log.read_text().splitlines()
    assert said[0] == f"git clone --quiet --depth 1 --branch main {URL} name"
    assert [line for line in said if line.startswith("git")] == said[:1]  # the second time there is the clone
    assert [line for line in said if line.startswith("uv venv")] == ["uv venv --quiet --python 3.11 build/python"]
    assert "uv pip install --quiet --python build/python/bin/python -c requirements.lock -e ." in said
    ran = [line.split()[2:] for line in said if line.startswith("python .venv")]
    numbers = ["01", "02", "03", "04", "05"]
    assert [words[3] for words in ran if words[2:3] == ["chapter"]] == (numbers * 2 if way == "chapter" else [])
    assert ("make env PYTHON=build/python/bin/python" in said) == (way == "chapter")
    assert any(line.startswith("python build/python/bin/python -c from helpers") for line in said) == (way == "light")


def test_a_step_that_fails_stops_the_first_cell(tmp_path):
    text = launch.launchers(ROOT, launch.Repository(URL, "main"))["01_models.ipynb"]
    first = next("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").write_text("#!/bin/sh\necho no such repository\nexit 128\n")
    (tools / "git").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", first], cwd=tmp_path, env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "no such repository" in done.stdout
    assert "git ended with 128" in done.stderr
    assert done.stdout.count("$ ") == 1


def test_the_cells_of_answers_run_on_the_committed_results():
    """In the environment of these tests in place of the one that the first cell makes."""
    text = launch.launchers(ROOT, launch.Repository(URL, "main"))["05_staleness.ipynb"]
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    code = re.sub(r"\A%%script .*\n", "", cells[1]).replace("answer = ...", 'answer = "no such thing"')
    settings = {**os.environ, "AFTER_UPDATE_ROOT": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rows of staleness: model seed precision adapter" in done.stdout
    assert "Not yet. (On the run cpu, embedded, seed 0.)" in done.stdout


# ---------------------------------------------------------------- the built book


def built(root: Path) -> Path:
    """The small book, built as the whole one is: settings staged, chapter as it stands, Colab led to the launchers."""
    index = root / "book" / "index.md"
    index.write_text(index.read_text().replace("{clone}", launch.clone_part(root, root)))
    staged = root / "staged"
    shutil.copytree(root, staged, ignore=shutil.ignore_patterns("staged", "launch"))
    short = json.loads((staged / "notebooks" / f"{CHAPTER}.ipynb").read_text())
    short["cells"] = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A chapter\n\nWords of a chapter."}]
    (staged / "notebooks" / f"{CHAPTER}.ipynb").write_text(json.dumps(short))
    launch.stage_settings(root, staged / "_config.yml")
    pages._jupyter_book(staged, root / "work")
    html = root / "work" / "_build" / "html"
    launch.lead_to_launchers(root, html)
    site.finish(html, "A Book", "About.")
    return html


def linked(html: Path, place: str) -> set[str]:
    """The addresses elsewhere that a page links to."""
    return set(BUTTONS.findall((html / place).read_text(encoding="utf-8")))


PLACES = ("book/index.html", f"notebooks/{CHAPTER}.html", "search.html")


def test_a_book_with_an_address_on_github_has_every_button_and_each_leads_to_what_is_there(tmp_path):
    root = project(tmp_path / "project", URL + ".git")
    launch.write(root)
    html = built(root)
    page, chapter, search = (linked(html, place) for place in PLACES)
    new = f"{URL}/issues/new?title=Issue%20on%20page%20%2F"
    assert {URL, f"{URL}/edit/main/book/index.md"} <= page
    assert any(address.startswith(f"{new}book/index.html") for address in page)
    assert not any("colab" in address for address in page)
    assert f"https://colab.research.google.com/github/owner/name/blob/main/launch/{CHAPTER}.ipynb" in chapter
    assert f"{URL}/edit/main/notebooks/{CHAPTER}.ipynb" in chapter
    for address in chapter:  # whatever is named in the repository is a file of it
        inside = re.match(r"https://[^/]+/.*?/(?:blob|edit)/main/(.*)", address)
        assert inside is None or (root / inside[1]).is_file(), address
    assert not any("/edit/" in address for address in search)
    assert f"git clone {URL}" in re.sub(r"<[^>]+>", "", (html / PLACES[0]).read_text())
    assert site.problems(html) == []


@slow("two more small books; the one on GitHub and the one without an address stay")
@pytest.mark.parametrize(("url", "buttons"), [(LAB, True), (OTHER, False)])
def test_a_book_on_another_server_has_the_buttons_that_the_theme_knows_and_no_colab(url, buttons, tmp_path):
    root = project(tmp_path / "project", url)
    html = built(root)
    page, chapter, _ = (linked(html, place) for place in PLACES)
    assert not any("colab" in address for address in page | chapter)
    assert (f"{url}/edit/main/notebooks/{CHAPTER}.ipynb" in {a.replace("/-/", "/") for a in chapter}) == buttons
    assert any("/issues/new" in address for address in page) == buttons
    assert f"git clone {url}" in re.sub(r"<[^>]+>", "", (html / PLACES[0]).read_text())
    assert site.problems(html) == []


def test_a_book_without_an_address_has_no_button_and_no_link_for_it(tmp_path):
    html = built(project(tmp_path / "project"))
    assert [linked(html, place) for place in PLACES] == [set()] * 3
    text = "".join((html / place).read_text(encoding="utf-8") for place in PLACES)
    assert not re.search("git clone|fa-rocket|source-(?:repository|edit|issues|buttons)|launch-buttons", text)
    assert site.problems(html) == []


def test_a_book_of_a_malformed_address_is_not_built(tmp_path):
    with pytest.raises(StudyError, match="repository url 'nowhere'"):
        built(project(tmp_path / "project", "nowhere"))
