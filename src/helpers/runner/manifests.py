"""Manifests: what is known of the finished runs of a profile, and the few words in which it is said."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import results
from helpers.cache import write_json
from helpers.data import sources
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.folders import file_hash, left_out, run_folders
from helpers.models.meter import Tokens


@dataclass(frozen=True)
class Finished:
    """A finished run: where it lies, and what its manifest says of its chapters, its tables and their sources."""

    profile: str
    model: str
    seed: int
    folder: Path
    schema: int
    chapters: dict[str, dict]
    tables: dict[str, dict]
    sources: dict[str, dict]
    seconds: dict[str, float]  # of each chapter, from an empty cache where that is known
    memory: dict[str, float]  # of each chapter at its peak, in GB, likewise
    cold: bool  # whether it is known

    @property
    def peak(self) -> float:
        """The largest memory of a chapter, in GB."""
        return max(self.memory.values())

    @property
    def label(self) -> str:
        """The run as a reader names it."""
        return f"{self.model}, seed {self.seed}"


def finished(profile_folder: Path) -> list[Finished]:
    """The finished runs below `results/<profile>`, the embedded model first, then by model and seed."""
    paths = (folder / "manifest.json" for folder in run_folders(profile_folder))
    return [_read(path) for path in paths if path.is_file()]


def _read(path: Path) -> Finished:
    folder, names = path.parent, ("schema", "chapters", "tables", "sources")
    try:
        schema, chapters, tables, sources = map(json.loads(path.read_text(encoding="utf-8")).__getitem__, names)
        first = _cold(folder)
        took = {name: {"seconds": entry["seconds"], "peak_gb": entry["machine"]["peak_gb"]} for name, entry in chapters.items()}
        took = {name: first.get(name, took[name]) for name in sorted(took)}
        seconds, memory = ({name: float(own[kind]) for name, own in took.items()} for kind in ("seconds", "peak_gb"))
        max(memory.values())  # a manifest without chapters is none
        seed = int(folder.name.removeprefix("seed-"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        place = "/".join(path.parts[-4:])
        raise StudyError(f"{place} cannot be read ({type(error).__name__}); run that profile again", REFUSED) from error
    profile, cold = folder.parents[1].name, set(first) >= set(chapters)
    return Finished(profile, folder.parent.name, seed, folder, schema, chapters, tables, sources, seconds, memory, cold)


def _cold(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds and memory of each chapter from an empty cache, kept beside the runs: a chapter that runs again finds work done."""
    path = folder.parents[1] / "cold.json"
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))["runs"].get(f"{folder.parent.name}/{folder.name}", {})


def span(values: Iterable[float], form: str = ".0f") -> str:
    """`98 to 153`, or one number where both ends are the same once they are written."""
    ends = list(values)
    low, high = f"{min(ends):{form}}", f"{max(ends):{form}}"
    return low if low == high else f"{low} to {high}"


def duration(seconds: Sequence[float]) -> str:
    """The span of some times in the unit that suits the longest: seconds, minutes or hours."""
    unit, name = next((u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if max(seconds) >= 2 * u or u == 1)
    return f"{span([second / unit for second in seconds], '.1f' if unit == 3600 else '.0f')} {name}"


def machines(runs: Iterable[Finished]) -> list[str]:
    """The machines in words, the one with the most chapters first; no name of a host is known."""
    entries = [entry["machine"] for run in runs for entry in run.chapters.values()]
    return [name for name, _ in Counter(_machine(entry) for entry in entries).most_common()]


def _machine(entry: dict) -> str:
    threads, cpus = entry.get("threads"), entry.get("cpus")
    used = f"{threads} thread{'s' * (threads != 1)} on " if threads else ""
    processors = f"{cpus} {entry.get('processor', '')} processor{'s' * (cpus != 1)}"
    computed = f", computed in {entry['compute']}" if entry.get("compute") else ""
    return f"{entry.get('device', 'cpu')}, {used}{processors}, {entry.get('system', '')}{computed}"


def tokens(run: Finished) -> Tokens:
    """The tokens that the chapters of a run counted; zero in runs that were made before they did."""
    return sum((Tokens(**entry["tokens"]) for entry in run.chapters.values() if entry.get("tokens")), Tokens())


def commits(run: Finished) -> list[tuple[str, bool, int]]:
    """Each commit that chapters of the run were made from: its name, whether the tree was clean, how many chapters."""
    states = [entry["code"] for _, entry in sorted(run.chapters.items())]
    return [(*state, n) for state, n in Counter((str(s["commit"]), bool(s["clean"])) for s in states).most_common()]


def versions_of_runs(runs: Iterable[Finished]) -> dict[str, list[str]]:
    """The versions of each package over all chapters of all runs; one, where nothing was changed in between."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for entry in run.chapters.values():
            for name, version in entry["versions"].items():
                found.setdefault(name, set()).add(str(version))
    return {name: sorted(found[name]) for name in sorted(found, key=lambda name: (name != "python", name))}


SCHEMA_VERSION = 1


def code_state(root: Path) -> dict[str, Any]:
    """The commit of the code and whether the tree was clean; `unknown` outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = [line[3:] for line in git("status", "--porcelain").splitlines() if not line[3:].startswith("results/")]
        return {"commit": git("rev-parse", "HEAD"), "clean": not changed}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "clean": False}


def write_manifest(folder: Path, chapters: Sequence[str]) -> dict[str, Any]:
    """The manifest of a finished run: what ran, with which parameters, from which sources, and what it gave; written last."""
    absent = [name for name in chapters if not (folder / "status" / f"{name}.json").is_file()]
    if absent:
        raise StudyError(
            f"chapter {absent[0]} is not finished, so there is no manifest yet; run it: python -m helpers chapter {absent[0]}",
            NOT_COMPARABLE,
        )
    statuses = {name: json.loads((folder / "status" / f"{name}.json").read_text(encoding="utf-8")) for name in chapters}
    results.put_together(folder)
    tables = {
        path.stem: {"rows": len(pd.read_parquet(path)), "sha256": file_hash(path)}
        for path in sorted((folder / "tables").glob("*.parquet"))
    }
    counted = [status.get("tokens", {}) for status in statuses.values()]
    manifest = {
        "schema": SCHEMA_VERSION,
        "chapters": statuses,
        "tokens": {kind: sum(tokens.get(kind, 0) for tokens in counted) for kind in ("forward", "trained")},
        "tables": tables,
        "left_out": sorted(left_out(folder)),
        "sources": {name: {"version": source.version, "sha256": source.sha256} for name, source in sources.SOURCES.items()},
    }
    write_json(folder / "manifest.json", manifest)
    return manifest
