"""Appendices: the parts of the book's pages that are written from the project itself, so that they cannot drift from it.

A line `<!-- generated: NAME -->` in a page of `book/` stands for APPENDICES[NAME], given the project's folder and the folder
of the run that the book shows. Whatever comes from a notebook, a profile or a manifest is shown as text, never as Markdown.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from helpers.book.answers.numbers import gathered
from helpers.book.markup import block, chapter_link, code, folded, table, text
from helpers.book.parameter_table import ORDER, parameter_table
from helpers.errors import REFUSED, StudyError
from helpers.runner.manifests import Finished, commits, duration, finished, machines, span, tokens, versions_of_runs
from helpers.study import chapters
from helpers.study.claims import CLAIMS, UNITS

SHORT = 12  # characters of a hash that stand in a table; all of them are folded below


NONE = "No run of this profile is finished here: none has a manifest yet.\n"


def runs(root: Path, run: Path) -> str:
    """The finished runs of the profile shown: machine, seconds, versions, commits, sources, rows and hashes of tables."""
    found = finished(run.parents[1])
    if not found:
        return NONE
    parts = {
        f"Runs of the profile {found[0].profile}": _overview(found),
        "Seconds of each chapter": _seconds(found),
        "Versions": _versions(found),
        "Tables and their hashes": _hashes(found),
        "Where models and texts came from": _sources(found),
    }
    return "\n".join(f"## {text(title)}\n\n{body}" for title, body in parts.items())


def _overview(found: list[Finished]) -> str:
    rows = []
    for each in found:
        ended = max(str(entry["finished"]) for entry in each.chapters.values())[:10]
        made = [f"{code(name[:SHORT])} {'clean' if clean else 'changed tree'} ({n})" for name, clean, n in commits(each)]
        total = duration([sum(each.seconds.values())])
        counted = tokens(each)
        passed = text(counted.words) if counted.cost else "not counted then"
        rows.append(
            (text(each.label), text(ended), text(total), passed, f"{each.peak:.1f} GB", "<br>".join(made), str(each.schema))
        )
    heads = ("run", "finished", "time", "tokens", "peak memory", "commit (chapters made from it)", "schema")
    where = "; ".join(machines(found))
    return f"{table(heads, rows)}\nMachine: {text(where)}. The seed of a run is the start of every random number in it.\n"


def _seconds(found: list[Finished]) -> str:
    names = sorted({name for each in found for name in each.seconds})
    rows = [
        (
            chapter_link(name),
            *(f"{each.seconds[name]:.0f}" if name in each.seconds else "" for each in found),
            span(each.seconds[name] for each in found if name in each.seconds),
        )
        for name in names
    ]
    return _first_or_again(found) + table(("chapter", *(text(each.label) for each in found), "spread"), rows)


def _first_or_again(found: list[Finished]) -> str:
    """Which runs' seconds are those of an empty cache; of the others it is not known."""
    first, again = ([text(each.label) for each in found if each.cold == cold] for cold in (True, False))
    if not again:
        return "From an empty cache. A chapter that runs again finds most of its work done.\n\n"
    if not first:
        return ""
    return f"From an empty cache: {', '.join(first)}. Of the others a part of the work may have been done before.\n\n"


def _versions(found: list[Finished]) -> str:
    return table(
        ("package", "version"), [(code(name), ", ".join(map(code, some))) for name, some in versions_of_runs(found).items()]
    )


def _hashes(found: list[Finished]) -> str:
    names = sorted({name for each in found for name in each.tables})
    rows = [(code(name), *(_hash(each.tables.get(name)) for each in found)) for name in names]
    lists = [block(f"{entry['sha256']}  tables/{name}.parquet" for name, entry in each.tables.items()) for each in found]
    whole = "\n".join(
        f"{code(each.folder.name)} of {text(each.model)}\n\n{body}" for each, body in zip(found, lists, strict=True)
    )
    said = (
        "Rows, and the first characters of the sha256. All of it stands below, as `sha256sum --check` reads it in a run's folder."
    )
    return f"{said}\n\n{table(('table', *(text(each.label) for each in found)), rows)}\n{folded('All hashes', whole)}"


def _hash(entry: dict | None) -> str:
    return f"{entry['rows']}<br>{code(str(entry['sha256'])[:SHORT])}" if entry else ""


def _sources(found: list[Finished]) -> str:
    entries = {(name, str(s["version"]), str(s["sha256"])) for each in found for name, s in each.sources.items()}
    rows = [(code(name), code(version), code(digest[:SHORT])) for name, version, digest in sorted(entries)]
    whole = block(f"{digest}  {name} {version}" for name, version, digest in sorted(entries))
    return f"{table(('package', 'version', 'sha256'), rows)}\n{folded('All hashes of sources', whole)}"


def spread(root: Path, run: Path) -> str:
    """How far seeds lie apart: the headline of every claim in each finished run of the profile shown."""
    found = finished(run.parents[1])
    dots = gathered(run.parents[1]).dots
    rows = []
    for claim, told in dots[dots["component"] == 1].groupby("claim", sort=False):
        head, values = CLAIMS[claim].components[0], {(d.model, d.seed): d.value for d in told.itertuples()}
        unit = UNITS[head.unit]
        cells = [unit.written(values[key])[0] if (key := (e.model, e.seed)) in values else "" for e in found]
        apart = unit.written(max(values.values()) - min(values.values()))[0].lstrip("+") if len(values) > 1 else ""
        rows.append(
            (
                text(f"{claim} {CLAIMS[claim].short}"),
                text(f"{head.name} ({unit.words.strip() or head.unit})"),
                *map(text, cells),
                text(apart),
            )
        )
    if not rows:
        return NONE
    lacking = [claim for claim in CLAIMS if claim not in set(dots["claim"])]
    said = f"\nNot measured in these runs: {text(', '.join(lacking))}.\n" if lacking else ""
    return table(("claim", "measured", *(text(e.label) for e in found), "apart"), rows) + said


UNKNOWN = "not measured"


# ---------------------------------------------------------------- profiles and chapters


def profile_times(root: Path, run: Path) -> str:
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
    needs = [need[:2] for need in chapters.needs(chapter, names)]
    listed = f"{', '.join(needs[:-1])} and {needs[-1]}" if needs[1:] else "".join(needs)
    first = (
        f"It needs chapter{'s' * (len(needs) > 1)} {listed} of the same profile first" if needs else "It needs no other chapter"
    )
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
        f":::{{admonition}} Cite this book\n:class: seealso citation\n{text(said)}\n\n{text(entry['message'])}\n\n"
        f"{block(lines, 'bibtex')}\n{_shown(finished(run.parents[1]))}\n:::\n"
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


def changelog_opening(root: Path, run: Path) -> str:
    """What stands in CHANGELOG.md above its versions: the heading, which is the page's, and what the file holds."""
    return _changelog(root)[0]


def changelog(root: Path, run: Path) -> str:
    """The versions of CHANGELOG.md as they stand."""
    return _changelog(root)[1]


def _changelog(root: Path) -> tuple[str, str]:
    path = root / "CHANGELOG.md"
    if not path.is_file():
        raise StudyError("CHANGELOG.md is not there; restore it from the repository", REFUSED)
    opening, mark, versions = path.read_text(encoding="utf-8").partition("\n## ")
    return f"{opening}\n", mark.lstrip() + versions


APPENDICES: dict[str, Callable[[Path, Path], str]] = {
    "parameters": lambda root, run: parameter_table(root),
    "profiles": profile_times,
    "chapters": chapter_table,
    "runs": runs,
    "spread": spread,
    "citation": citation,
    "changelog-opening": changelog_opening,
    "changelog": changelog,
}
