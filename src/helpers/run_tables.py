"""The runs behind the book as tables: machine, seconds, versions, commits, hashes, and how far seeds lie apart."""

from pathlib import Path

from helpers import findings
from helpers.claims import CLAIMS, UNITS
from helpers.manifests import Finished, commits, duration, finished, machines, span, tokens, versions
from helpers.markup import block, chapter_link, code, folded, table, text

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
    said = "From an empty cache. A chapter that runs again finds most of its work done.\n\n" if all(e.cold for e in found) else ""
    return said + table(("chapter", *(text(each.label) for each in found), "spread"), rows)


def _versions(found: list[Finished]) -> str:
    return table(("package", "version"), [(code(name), ", ".join(map(code, some))) for name, some in versions(found).items()])


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
    dots = findings.by_seed([(each.model, each.seed, findings.run_tables(each.folder)) for each in found])
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
    return table(("claim", "measured", *(text(e.label) for e in found), "apart"), rows) if rows else NONE
