"""Launch: what the public address of the repository switches on, and a notebook a chapter that clones it and runs there.

`repository.url` in `_config.yml` is the only place where the address stands. While it is empty nothing here leaves a trace.
With it, the theme's own buttons are on (repository, issue, edit), the page Run it again says how to clone, and on GitHub each
chapter opens its launcher `launch/NN_name.ipynb` in Colab. Launchers are committed, because Colab reads them from there:
`make launch` writes them, and a book whose launchers are not those of its address and chapters is refused.
"""

import json
import re
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.book import exercises
from helpers.book.exercise_form import Exercise, read
from helpers.book.markup import block
from helpers.cache import write_whole
from helpers.console import say
from helpers.errors import REFUSED, StudyError, shown
from helpers.folders import project_root
from helpers.runner.doctor import PYTHONS
from helpers.study import chapters

FOLDER = "launch"
COLAB = "https://colab.research.google.com"
SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
ADDRESS = re.compile(rf"https://((?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{{2,}})((?:/{SEGMENT}){{2,}})")
BRANCH = re.compile(rf"{SEGMENT}(?:/{SEGMENT})*")
FORM = "give the public https address of a git repository, such as https://github.com/owner/name, or leave it empty"
BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")
FENCE = re.compile(r"\n*```python\n.*?```\s*", re.DOTALL)
LIGHT = "build/python"  # the environment of the light path; `make env` makes the whole one in .venv
FIRST = """WAY = "light"  # "light": tables and exercises on the committed results; "chapter": {anew}

import os
import shutil
import subprocess
import sys
from pathlib import Path


def run(*words):
    print("$", *words, flush=True)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
    if child.returncode:
        raise RuntimeError(f"{{words[0]}} ended with {{child.returncode}}; its last lines say why")


if not Path("_toc.yml").is_file():  # else this cell ran before, and stands in the clone
    run("git", "clone", "--quiet", "--depth", "1", "--branch", {branch!r}, {url!r}, {name!r})
    os.chdir({name!r})
if not shutil.which("uv"):
    run(sys.executable, "-m", "pip", "install", "--quiet", "uv")
if not Path({python!r}).exists():
    run("uv", "venv", "--quiet", "--python", {version!r}, {light!r})
run("uv", "pip", "install", "--quiet", "--python", {python!r}, "-c", "requirements.lock", "-e", ".")
if WAY == "chapter":
    run("make", "env", "PYTHON={python}")
    for chapter in {needed!r}:
        run(".venv/bin/python", "-m", "helpers", "chapter", chapter, "--profile", "quick")
    print("the chapter as it ran:", *Path("results/quick").glob("*/seed-*/executed/{chapter}.ipynb"))
else:
    run({python!r}, "-c", {look!r})
"""
LOOK = """from helpers import study
from helpers.book import exercises

shown = exercises.shown_run("{number}")  # the committed run that the book shows
run = study.open(shown.profile, shown.model, shown.seed)  # study.open("quick"): the one that WAY = "chapter" makes
"""


@dataclass(frozen=True)
class Repository:
    """Where the project is published: `url` without a slash or `.git` at its end, and `branch`."""

    url: str
    branch: str

    @property
    def host(self) -> str:
        """The name of the server."""
        return self.url.split("/")[2]

    @property
    def name(self) -> str:
        """The last part of the address: the folder of a clone."""
        return self.url.rpartition("/")[2]

    @property
    def provider(self) -> str:
        """What the theme knows buttons for: github, gitlab, or nothing for another server."""
        return next((name for name in ("github", "gitlab") if name in self.host.split(".")), "")

    @property
    def colab(self) -> str:
        """Where Colab reads files of the repository; empty for what it cannot read."""
        return f"{COLAB}/github{self.url.removeprefix('https://github.com')}" if self.host == "github.com" else ""


def repository(root: Path) -> Repository | None:
    """The repository that `_config.yml` names, or None while its address is empty. Errors: either has no valid form."""
    given = (yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}).get("repository") or {}
    url, branch = given.get("url") or "", given.get("branch") or "main"
    if url == "":
        return None
    plain = url.strip().rstrip("/").removesuffix(".git") if isinstance(url, str) else ""
    match = ADDRESS.fullmatch(plain)
    if not match or (match[1] == "github.com" and match[2].count("/") != 2):
        raise StudyError(f"repository url {shown(url)} in _config.yml cannot be cloned by everybody; {FORM}")
    if not isinstance(branch, str) or not BRANCH.fullmatch(branch) or ".." in branch:
        raise StudyError(f"repository branch {shown(branch)} in _config.yml is no name of a branch; give one such as main")
    return Repository(plain, branch)


# ---------------------------------------------------------------- the site


def with_buttons(settings: Mapping[str, Any], found: Repository | None) -> dict[str, Any]:
    """The settings of the book with the buttons that its repository allows; without one, with none."""
    new = deepcopy(dict(settings))
    new["html"] = {**(new.get("html") or {}), **dict.fromkeys(BUTTONS, bool(found and found.provider))}
    new["repository"] = {"url": found.url, "branch": found.branch} if found and found.provider else {"url": ""}
    new["launch_buttons"] = {"colab_url": COLAB if found and found.colab else ""}
    if found and found.provider:
        config = new.setdefault("sphinx", {}).setdefault("config", {})
        config.setdefault("html_theme_options", {})["repository_provider"] = found.provider
    return new


def stage_settings(root: Path, target: Path) -> None:
    """Writes the settings of the staged book with its buttons. Errors: the launchers are not those of address and chapters."""
    found = repository(root)
    if found is None:
        return
    check_current(root, found)
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    target.write_text(yaml.safe_dump(with_buttons(settings, found), sort_keys=False, allow_unicode=True), encoding="utf-8")


def lead_to_launchers(root: Path, html: Path) -> None:
    """Lets each chapter's Colab button open its launcher: the theme can only name the chapter itself."""
    found = repository(root)
    if found is None or not found.colab:
        return
    old, new = (f"{found.colab}/blob/{found.branch}/{folder}/" for folder in ("notebooks", FOLDER))
    for path in (html / "notebooks").glob("*.html"):
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def clone_part(root: Path, run: Path) -> str:
    """How to clone, for the page Run it again; empty without an address."""
    found = repository(root)
    if found is None:
        return ""
    branch = f"--branch {found.branch} " if found.branch != "main" else ""
    said = "Or open a chapter in Colab: the rocket above each of them runs it there.\n" if found.colab else ""
    return f"{block([f'git clone {branch}{found.url}', f'cd {found.name}'], 'bash')}\n{said}"


# ---------------------------------------------------------------- launchers


def launchers(root: Path, found: Repository | None) -> dict[str, str]:
    """The text of each launcher by the name of its file; none where Colab cannot read the repository."""
    if found is None or not found.colab:
        return {}
    names = list(chapters.discover(root))
    return {f"{name}.ipynb": _launcher(root, name, names, found) for name in names}


def check_current(root: Path, found: Repository) -> None:
    """Errors: a launcher is missing, left over or another than address, branch and chapters make it."""
    wanted = launchers(root, found)
    there = {path.name: path.read_text(encoding="utf-8") for path in (root / FOLDER).glob("*.ipynb")}
    wrong = sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))
    if wrong:
        raise StudyError(
            f"{FOLDER}/{wrong[0]} is not made from this address and these chapters; run make launch and commit {FOLDER}/", REFUSED
        )


def write(root: Path) -> list[str]:
    """The names of the launchers, written anew; what is left over is removed."""
    wanted = launchers(root, repository(root))
    for path in (root / FOLDER).glob("*.ipynb"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        write_whole(root / FOLDER / name, text)
    return list(wanted)


def _launcher(root: Path, chapter: str, names: list[str], found: Repository) -> str:
    tasks = read(chapter[:2], root)
    title = re.sub(r"^#+\s*", "", _first_line(root, chapter))
    cells = [
        _cell(f"{chapter[:2]}-launch", "markdown", _opening(title, chapter, found)),
        _cell(f"{chapter[:2]}-first", "code", _first(root, chapter, names, found)),
    ]
    for task in tasks:
        cells += [_cell(f"{task.name}-task", "markdown", _task(task)), _cell(f"{task.name}-answer", "code", _answer(task))]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def _first_line(root: Path, chapter: str) -> str:
    cell = json.loads((root / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"][0]
    return "".join(cell["source"]).partition("\n")[0]


def _opening(title: str, chapter: str, found: Repository) -> str:
    return (
        f"# {title}\n\nThis notebook is made by `make launch`. Its first cell clones <{found.url}>, makes an environment of its "
        f"own with Python {_version()} (this notebook's kernel stays as it is), and shows the tables of the committed results. "
        "Then come the exercises.\n\n"
        f'With `WAY = "chapter"` it measures chapter {chapter[:2]} anew in the profile `quick`, after those that it needs.'
    )


def _version() -> str:
    """The Python that everything was run with."""
    return ".".join(map(str, PYTHONS[0]))


def _first(root: Path, chapter: str, names: list[str], found: Repository) -> str:
    """The first cell: clone, environment, and one of two ways."""
    needed: list[str] = [chapter]
    for name in needed:  # grows on the way, until nothing more is needed
        needed += [other for other in chapters.needs(name, names) if other not in needed]
    read_tables = sorted({table for task in read(chapter[:2], root) for table in exercises.READS.findall(task.code)})
    prints = "".join(f'print({name!r}, *run.read_table({name!r})["metric"].unique(), sep="\\n  ")\n' for name in read_tables)
    listed = sorted(name[:2] for name in needed)
    own = {"branch": found.branch, "url": found.url, "name": found.name, "chapter": chapter, "needed": listed}
    made = {"python": f"{LIGHT}/bin/python", "light": LIGHT, "version": _version()}
    said = {"anew": f"chapters {', '.join(listed)} measured anew", "look": LOOK.format(number=chapter[:2]) + prints}
    return FIRST.format(**own, **made, **said).rstrip("\n")


def _task(task: Exercise) -> str:
    """An exercise in plain Markdown: no role, and no code, which stands in the next cell."""
    plain = exercises.ROLE.sub(r"\1", FENCE.sub("\n", task.text)).strip()
    wants = f"\n\nIt asks for a run with `{task.wants}`: write a profile, and open its run below." if task.wants else ""
    return f"### Exercise {task.name}. {task.title}\n\n{plain}{wants}"


def _answer(task: Exercise) -> str:
    """The cell of an answer, in the environment that the first cell made."""
    tables = sorted(set(exercises.READS.findall(task.code)))
    shown_tables = "".join(
        f'{name} = run.read_table("{name}")\nprint(len({name}), "rows of {name}:", *{name}.columns)\n' for name in tables
    )
    return (
        f"%%script {LIGHT}/bin/python\n{LOOK.format(number=task.name[:2])}{shown_tables}\n"
        f'answer = ...  # yours, in place of the dots\nexercises.check("{task.name}", answer, run)'
    )


def _cell(name: str, kind: str, source: str) -> dict[str, Any]:
    code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True), **code}


def make() -> int:
    """The exit code of `make launch`."""
    try:
        names = write(project_root())
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    say(f"{FOLDER}/: {len(names)} notebooks" if names else "no launchers: _config.yml has no GitHub address (repository: url)")
    return 0


if __name__ == "__main__":
    sys.exit(make())
