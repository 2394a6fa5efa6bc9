"""Appendices: the parts of the book's pages that are written from the project itself, so that they cannot drift from it.

A line `<!-- generated: NAME -->` in a page of `book/` stands for APPENDICES[NAME], given the project's folder and the folder
of the run that the book shows. Whatever comes from a notebook, a profile or a manifest is shown as text, never as Markdown.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from helpers import chapters
from helpers.errors import REFUSED, StudyError
from helpers.manifests import Finished, commits, duration, finished, machines, span
from helpers.markup import block, chapter_link, code, table, text
from helpers.parameter_table import ORDER, parameter_table
from helpers.run_tables import SHORT, runs, spread

UNKNOWN = "not measured"


# ---------------------------------------------------------------- profiles and chapters


def profiles(root: Path, run: Path) -> str:
    """What each profile is for, and what its finished runs took: time a seed, memory, machine."""
    order = ["smoke", "quick", *ORDER[1:]]
    paths = sorted(
        (root / "profiles").glob("*.yaml"), key=lambda p: (p.stem not in order, [*order, p.stem].index(p.stem), p.stem)
    )
    heads = ("profile", "what for", "finished runs", "time a run", "peak memory", "machine")
    return table(heads, [_profile(path, finished(run.parents[1].parent / path.stem)) for path in paths])


def _profile(path: Path, found: list[Finished]) -> tuple[str, ...]:
    first = " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    purpose = re.split(r"\. |\.$", first.removeprefix(f"{path.stem}: "))[0]
    if not found:
        return code(path.stem), text(purpose), "none here", *[UNKNOWN] * 3
    took = duration([sum(each.seconds.values()) for each in found])
    memory = f"{span([each.peak for each in found], '.1f')} GB"
    return code(path.stem), text(purpose), str(len(found)), text(took), text(memory), text("; ".join(machines(found)))


def chapter_table(root: Path, run: Path) -> str:
    """Each chapter: what it builds on, the tables that it writes, and its seconds over the finished runs of the profile."""
    found, names = finished(run.parents[1]), list(chapters.discover(root))
    rows = []
    for name in names:
        needs = ", ".join(need[:2] for need in chapters.needs(name, names))
        took = [each.seconds[name] for each in found if name in each.seconds]
        tables = dict.fromkeys(stem for each in found for stem in _tables(each, name))
        rows.append((chapter_link(name), needs, ", ".join(map(code, tables)), text(f"{span(took)} s") if took else UNKNOWN))
    return table(("chapter", "builds on", "writes the tables", "time a run"), rows)


def _tables(run: Finished, chapter: str) -> list[str]:
    files = run.chapters.get(chapter, {}).get("files", {})
    return [Path(file).stem for file in files if file.startswith(("parts/", "../")) and file.endswith(".parquet")]


def run_box(root: Path, run: Path, chapter: str) -> str:
    """The box `Run this chapter`: its one local command, what it needs first, and what it took in the runs shown."""
    names, found = list(chapters.discover(root)), [each for each in finished(run.parents[1]) if chapter in each.seconds]
    needs = ", ".join(need[:2] for need in chapters.needs(chapter, names))
    first = f"It needs chapters {needs} of the same profile first" if needs else "It needs no other chapter"
    took = f"{UNKNOWN} here"
    if found:
        memory = max(each.memory[chapter] for each in found)
        took = f"{duration([each.seconds[chapter] for each in found])}, {memory:.1f} GB at most ({'; '.join(machines(found))})"
    command = block([f".venv/bin/python -m helpers chapter {chapter[:2]} --profile quick"], "bash")
    return (
        f":::{{admonition}} Run this chapter\n:class: tip run-this-chapter\n{command}\n"
        f"{first}; `make study` makes the environment and runs all chapters in order. Or open `notebooks/{chapter}.ipynb` in "
        "Jupyter with the kernel of `.venv`: its defaults are the profile `quick`.\n\n"
        f"Time in the profile shown here, {code(run.parents[1].name)}: {text(took)}. {{doc}}`More <../book/reproduce>`\n:::\n"
    )


# ---------------------------------------------------------------- how to cite, what changed


def citation(root: Path, run: Path) -> str:
    """How to cite the book, from CITATION.cff, and what to name along with it: the runs that the book shows."""
    entry = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    authors = [a.get("name") or f"{a.get('given-names', '')} {a.get('family-names', '')}".strip() for a in entry["authors"]]
    year = str(entry.get("date-released", ""))[:4]
    fields = {
        "title": entry["title"], "author": " and ".join(f"{{{_tex(name)}}}" for name in authors), "version": entry["version"],
        "year": year, "doi": entry.get("doi", ""), "url": entry.get("repository-code", ""), "note": entry["license"],
    }  # fmt: skip
    plain = {name: value if name in {"author", "url", "doi"} else _tex(value) for name, value in fields.items() if value}
    lines = ["@software{after-the-update,", *(f"  {name} = {{{value}}}," for name, value in plain.items()), "}"]
    said = f"{', '.join(authors)}{f' ({year})' if year else ''}. {entry['title']}. Version {entry['version']}."
    return (
        f":::{{admonition}} Cite this book\n:class: seealso citation\n{text(said)}\n\n{block(lines, 'bibtex')}\n"
        f"{text(entry['message'])} {_shown(finished(run.parents[1]))}\n:::\n"
    )


def _tex(value: object) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in str(value))


def _shown(found: Iterable[Finished]) -> str:
    found = list(found)
    if not found:
        return ""
    names = sorted({commit for each in found for commit, _, _ in commits(each)})
    seeds = "; ".join(text(each.label) for each in found)
    return (
        f"This book shows the profile {code(found[0].profile)} ({seeds}), made from {', '.join(code(n[:SHORT]) for n in names)}."
    )


def changelog(root: Path, run: Path) -> str:
    """CHANGELOG.md as it stands; its first heading is the page's."""
    path = root / "CHANGELOG.md"
    if not path.is_file():
        raise StudyError("CHANGELOG.md is not there; restore it from the repository", REFUSED)
    return path.read_text(encoding="utf-8")


APPENDICES: dict[str, Callable[[Path, Path], str]] = {
    "parameters": lambda root, run: parameter_table(root),
    "profiles": profiles,
    "chapters": chapter_table,
    "runs": runs,
    "spread": spread,
    "citation": citation,
    "changelog": changelog,
}
