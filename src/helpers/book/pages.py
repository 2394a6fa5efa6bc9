"""Pages: the committed prose and the executed chapters, staged side by side and built strictly into a static site.

No model is touched and no cell is run here. A build whose staged inputs are those of the last one is skipped.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from helpers.book import appendices, chapter_cells, provenance, site
from helpers.book.away import launch
from helpers.cache import write_whole
from helpers.console import ANSI, scrub
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.figures.drawing import export
from helpers.folders import SHOWN, run_folders
from helpers.study import statuses

STAGED = ("book", "notebooks", "_config.yml", "_toc.yml")
BUILD = [
    sys.executable,
    "-c",
    "from jupyter_book.cli.main import main; main()",
    "build",
    ".",
    "-W",
    "-n",
    "--keep-going",
    "--path-output",
]


def book_chapters(root: Path) -> list[str]:
    """The chapters that the book shows, in its order."""

    def files(node: object) -> list[str]:
        if isinstance(node, dict):
            return [found for key, value in node.items() for found in ([value] if key in {"file", "root"} else files(value))]
        return [found for item in node for found in files(item)] if isinstance(node, list) else []

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [name.removeprefix("notebooks/").removesuffix(".ipynb") for name in files(toc) if name.startswith("notebooks/")]


def missing(root: Path, folder: Path) -> list[str]:
    """The chapters of the book that this run has not finished: no status, or no executed form."""
    names = book_chapters(root)
    return [name for name in names if not statuses.status(folder, name) or not (folder / "executed" / f"{name}.ipynb").is_file()]


def find_run(root: Path, results: Path, profile: str, first: Path | None = None) -> tuple[str, Path]:
    """The profile and the run whose chapters the book shows: the named profile's, else the first that has them all."""
    for name in (profile,) if profile else SHOWN:
        folders = [first] if first else run_folders(results / name)
        for folder in folders:
            if not missing(root, folder):
                return name, folder
    if first and all(statuses.status(first, name) for name in book_chapters(root)):
        raise StudyError(f"{undrawn(first)}; the book needs its chapters", NOT_COMPARABLE)
    name = profile or "quick"
    lacking = missing(root, first or (results / name / "none"))
    text = f"no finished {', '.join(lacking)} in results/{profile or '{' + ','.join(SHOWN) + '}'}"
    raise StudyError(f"{text}; the book needs them: run make study PROFILE={name}", NOT_COMPARABLE)


def undrawn(folder: Path) -> str:
    """What to say of a finished run that keeps its tables alone: how its chapters are made again."""
    profile, model, seed = folder.parts[-3:]
    again = f"make study PROFILE={profile} MODEL={model} SEED={seed.removeprefix('seed-')} FORCE=1"
    return f"{profile}/{model}/{seed} keeps its tables, not its chapters, which {again} makes again"


def stage(root: Path, profile: str, folder: Path) -> Path:
    """The folder of the book's inputs: pages with what is generated in them, and chapters with the outputs of the run."""
    target = root / "build" / "site" / profile
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in STAGED:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy2
        copy(root / name, target / name)
    launch.stage_settings(root, target / "_config.yml")
    for name in book_chapters(root):
        _stage_chapter(root, folder, name, target)
    for page in sorted((target / "book").rglob("*.md")):
        text = filled(page.read_text(encoding="utf-8"), root, folder)
        page.write_text(provenance.linked(text, str(page.relative_to(target).with_suffix(""))), encoding="utf-8")
    write_whole(target / site.FEED.replace("_static", "book/_static"), _verdict_feed(root, folder))
    return target


def filled(text: str, root: Path, folder: Path) -> str:
    """The page with each line `<!-- generated: NAME -->` replaced by what GENERATED[NAME] makes of the project and the run."""

    def made(match: re.Match) -> str:
        if match[1] not in GENERATED:
            raise StudyError(f"unknown generated part {match[1]!r} in a page; choose one of {', '.join(GENERATED)}", REFUSED)
        return GENERATED[match[1]](root, folder)

    return MARK.sub(made, text)


def _explore(root: Path, folder: Path) -> str:
    from helpers.book import explore  # which knows the claims, and with them torch: slow to import, and seldom needed

    return explore.explore_page(root, folder)


def _explore_part(name: str, root: Path, folder: Path) -> str:
    from helpers.book import explore  # for the same reason

    return explore.explore_part(root, folder, name)


def _claims(name: str, root: Path, folder: Path) -> str:
    from helpers.book import claim_pages  # for the same reason

    return claim_pages.CLAIM_PARTS[name](root, folder)


def _in_short(folder: Path, chapter: str) -> str:
    from helpers.book.answers import parts

    return parts.in_short(folder, chapter)


def _answers(name: str, root: Path, folder: Path) -> str:
    from helpers.book.answers import parts  # and for the same

    return parts.PAGES[name](root, folder)


def _verdict_changes(root: Path, folder: Path) -> str:
    from helpers.book.verdict_history import shown

    return shown.section(root, folder)


def _verdict_feed(root: Path, folder: Path) -> str:
    from helpers.book.verdict_history import shown

    return shown.feed(root, folder)


def _quick_run(root: Path, folder: Path) -> str:
    from helpers.book.lesson import quick_run

    return quick_run.part(root, folder)


def _provenance(root: Path, folder: Path) -> str:
    from helpers.book.answers import origins

    own = provenance.provenance_page(root, folder, book_chapters(root))
    return f"{origins.answer_origins(root, folder)}\n{own}"


MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
GENERATED: dict[str, Callable[[Path, Path], str]] = {  # what stands in the place of a mark, from the project and the run
    **appendices.APPENDICES,
    **{name: partial(_claims, name) for name in ("rules", "reasons", "power", "coverage", "decisions", "gate", "table-one")},
    "explore": _explore,
    **{f"explore-{name}": partial(_explore_part, name) for name in ("threshold", "projection", "subspace", "budget", "bound")},
    "clone": launch.clone_part,
    "first-look": lambda root, folder: figure(folder, "11_findings", "11-14"),
    **{name: partial(_answers, name) for name in ("on-monday", "look-message", "claims-by-verdict", "claims-in-words", "faq")},
    "provenance": _provenance,
    "verdict-changes": _verdict_changes,
    "quick-run": _quick_run,
}


def figure(folder: Path, chapter: str, cell_id: str) -> str:
    """The figure of one cell of an executed chapter, as it stands on the chapter's own page; nothing where it has none."""
    executed = json.loads((folder / "executed" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    with TemporaryDirectory() as place:  # the chapter's own page brings the files
        staged = export.staged_chapter(executed, chapter, Path(place) / "figures")
    outputs = [output for cell in staged["cells"] if cell["id"] == cell_id for output in cell["outputs"]]
    return "\n".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)


def _stage_chapter(root: Path, folder: Path, name: str, target: Path) -> None:
    source = json.loads((root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    executed = json.loads((folder / "executed" / f"{name}.ipynb").read_text(encoding="utf-8"))
    notebook = export.staged_chapter(with_outputs(source, executed), name, target / "book" / "_static" / "figures")
    notebook["cells"] = chapter_cells.shown_cells(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = filled(provenance.linked("".join(cell["source"]), f"notebooks/{name}"), root, folder)
    first = notebook["cells"][0]
    first["source"] = with_boxes("".join(first["source"]), _in_short(folder, name), appendices.run_box(root, folder, name))
    (target / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def with_boxes(source: str, short: str, run: str) -> str:
    """The first cell of a chapter with its box *In short* right below the title, and the box on running it at the end."""
    title, _, rest = source.partition("\n")
    return f"{title}\n\n{short}\n{rest.strip()}\n\n{run}"


def with_outputs(source: dict, executed: dict) -> dict:
    """The chapter's present words with the outputs of its run; the executed chapter as it is where its code was another.

    Words may be mended after a run, code may not: a chapter whose code changed is shown whole as it was run. The cell of
    parameters is shown as it ran, whatever its defaults are now.
    """
    ran = {cell["id"]: cell for cell in executed["cells"]}
    cells = []
    for cell in source["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        done, asks = ran.pop(cell["id"], None), "parameters" in cell["metadata"].get("tags", [])
        if done is None or (not asks and "".join(done["source"]) != "".join(cell["source"])):
            return executed
        cells.append(done)
        injected = [other for other in ran.values() if "injected-parameters" in other["metadata"].get("tags", [])]
        if asks:
            cells += [ran.pop(other["id"]) for other in injected]
    left = any(cell["cell_type"] == "code" for cell in ran.values())
    return executed if left else {**executed, "cells": cells}


def inputs_hash(staged: Path, root: Path) -> str:
    """A hash of all that a build depends on: names and contents of what is staged, the pins, and how pages are finished."""
    digest = hashlib.sha256()
    lock = root / "requirements.lock"
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    for path in [*files, *([lock] if lock.is_file() else []), Path(site.__file__), Path(launch.__file__)]:
        content = path.read_bytes()
        digest.update(f"{os.path.relpath(path, staged)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def build(root: Path, profile: str, folder: Path, force: bool = False) -> tuple[Path, bool]:
    """The book's first page, relative to the project, and whether it was built anew; any warning is an error.

    One build of a profile at a time: a second one waits.
    """
    from filelock import FileLock

    (root / "build").mkdir(parents=True, exist_ok=True)
    with FileLock(root / "build" / f".book-{profile}.lock"):
        return _built(root, profile, folder, force)


def _built(root: Path, profile: str, folder: Path, force: bool) -> tuple[Path, bool]:
    staged = stage(root, profile, folder)
    place = root / "build" / "book" / profile
    index, mark, fresh = place / "html" / "index.html", place / "inputs.sha256", inputs_hash(staged, root)
    if not force and index.is_file() and mark.is_file() and mark.read_text(encoding="utf-8") == fresh:
        return index.relative_to(root), False
    mark.unlink(missing_ok=True)
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    done = _jupyter_book(staged, work)
    (place / "build.log").write_text(scrub(done, root), encoding="utf-8")
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    description = settings.get("description", settings["title"])
    launch.lead_to_launchers(root, work / "_build" / "html")
    site.finish(work / "_build" / "html", settings["title"], description, settings.get("address", ""))
    faults = site.problems(work / "_build" / "html")
    if faults:
        raise StudyError(f"the book has {len(faults)} fault(s), the first: {faults[0][:300]}; mend that page", REFUSED)
    shutil.rmtree(place / "html", ignore_errors=True)
    os.replace(work / "_build" / "html", place / "html")
    shutil.rmtree(work, ignore_errors=True)
    mark.write_text(fresh, encoding="utf-8")
    return index.relative_to(root), True


def _jupyter_book(staged: Path, work: Path) -> str:
    # PYTHONHASHSEED: without it sphinx sees a changed configuration each time, and pages differ between builds
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        [*BUILD, str(work)], cwd=staged, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            said = child.communicate()[0]
        finally:
            child.kill()
    said = ANSI.sub("", said).replace(f"{staged}/", "")
    if child.returncode:
        problems = [
            line.strip() for line in said.splitlines() if re.search(r"\b(WARNING|ERROR|Error)\b", line)
        ] or said.splitlines()[-1:]
        raise StudyError(
            f"the book has {len(problems)} warning(s), the first: {' '.join(problems[:1])[:300]}; mend that page", REFUSED
        )
    return said
