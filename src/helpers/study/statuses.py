"""Statuses: whether what a chapter wrote still holds, and what goes where it does not.

A chapter is done if its status file bears the fingerprint of what would run now (its code cells, its parameters, the
definitions that its helpers carry out, the numeric packages, and the same of the chapters it needs) and the files it wrote
have the hashes recorded there. Neither times of files nor the text of helpers decide anything: a fresh clone with committed
results is done, and stays so when the house is mended. Where only the code that draws changed, figures are older than it.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from helpers.cache import write_file
from helpers.definitions import DEFINITIONS
from helpers.folders import file_hash, left_out, run_folders
from helpers.study.chapters import READS_ALL_RUNS, PlannedRun, needs
from helpers.study.fingerprints import holds, marks

REPLACEABLE = ("executed", "tables")  # folders of a run that can be made again: drawn by the chapters, put together from parts


def status_path(folder: Path, chapter: str) -> Path:
    """Where the status of a chapter stands."""
    return folder / "status" / f"{chapter}.json"


def status(folder: Path, chapter: str) -> dict[str, Any]:
    """What the chapter's status file says; empty where there is none that can be read."""
    try:
        found = json.loads(status_path(folder, chapter).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def finished_runs(profile_folder: Path, names: Iterable[str]) -> dict[str, str]:
    """What each run of a profile holds, by <model>/seed-<n>, where all chapters that other runs may read are done."""
    wanted, found = [name for name in names if name[:2] not in READS_ALL_RUNS], {}
    for folder in run_folders(profile_folder):
        own = [name for name in wanted if name not in left_out(folder)]
        prints = {name: str(status(folder, name).get("fingerprint", "")) for name in own}
        if prints and all(prints.values()):
            found[f"{folder.parent.name}/{folder.name}"] = holds(prints)
    return found


def written(folder: Path, chapter: str) -> dict[str, str]:
    """The files that a chapter wrote and the tables it is part of, with their hashes."""
    parts = sorted(path for path in (folder / "parts" / chapter).glob("*") if not path.name.startswith("."))
    tables = [folder / "tables" / path.name for path in parts if path.suffix == ".parquet"]
    executed = folder / "executed" / f"{chapter}.ipynb"
    found = {path.relative_to(folder).as_posix(): file_hash(path) for path in (*parts, *tables, executed)}
    beside = READS_ALL_RUNS.get(chapter[:2])
    return {**found, **({beside: file_hash(folder / beside)} if beside else {})}


def expected(statuses: Iterable[dict]) -> dict[str, str]:
    """The hash that each file should have: of the tables that several chapters write, the last writer's."""
    found: dict[str, str] = {}
    for entry in sorted(statuses, key=lambda entry: str(entry.get("finished", ""))):
        found.update(entry.get("files", {}))
    return found


def stale(run: PlannedRun, root: Path, prints: Mapping[str, str]) -> dict[str, str]:
    """The chapters that must run, in order, each with the reason."""
    folder = root / run.folder
    statuses = {chapter: status(folder, chapter) for chapter in prints}
    hashes = expected(statuses.values())
    found: dict[str, str] = {}
    for chapter, fresh in prints.items():
        reason = _reason(folder, statuses[chapter], fresh, hashes)
        before = [name for name in needs(chapter, prints) if name in found]
        if reason or before:
            found[chapter] = reason or f"{before[0]} runs again"
    return found


def _reason(folder: Path, entry: dict, fresh: str, hashes: Mapping[str, str]) -> str:
    if not entry:
        return "not run yet"
    if entry.get("fingerprint") != fresh:
        return _changed(entry)
    recorded = [name for name in entry.get("files", {}) if not replaceable(folder, name)]
    damaged = [name for name in recorded if file_hash(folder / name) != hashes[name]]
    return f"{damaged[0]} is missing or damaged" if damaged else ""


def replaceable(folder: Path, name: str) -> bool:
    """Whether a file belongs to what a run can do without, all of it: its chapters as they ran, its tables beside their parts."""
    place = name.partition("/")[0]
    return place in REPLACEABLE and not (folder / place).is_dir()


def _changed(entry: dict) -> str:
    """What is known of why a chapter's fingerprint is not that of its status."""
    if "definitions" not in entry:
        return "it was made under older keys"
    present = {str(one) for one in DEFINITIONS.values()}
    raised = [one for one in entry["definitions"] if one not in present]
    return f"{raised[0]} is no longer what that name means" if raised else "its cells, parameters or packages changed"


def older_figures(folder: Path, notebooks: Mapping[str, Path]) -> list[str]:
    """The chapters whose figures were drawn by other code than today's; their numbers stand."""
    statuses = {name: status(folder, name) for name in notebooks}
    return [name for name, entry in statuses.items() if entry.get("drawn", "") not in {"", marks(notebooks[name])["drawn"]}]


def forget(folder: Path, stale_chapters: Iterable[str]) -> None:
    """Removes the manifest, and the status, parts and rows of the chapters that will run: what is no longer true is not there."""
    (folder / "manifest.json").unlink(missing_ok=True)
    tables: set[str] = set()
    for chapter in stale_chapters:
        status_path(folder, chapter).unlink(missing_ok=True)
        tables |= {path.stem for path in (folder / "parts" / chapter).glob("*.parquet")}
        shutil.rmtree(folder / "parts" / chapter, ignore_errors=True)
    if tables:
        _merge(folder, tables)


def _merge(folder: Path, names: Iterable[str]) -> None:
    """The named tables written anew from the parts that are left, so that they are what the chapters left recorded."""
    from helpers import results  # and with it pandas, which a study with nothing to do can spare

    for name in names:
        path = folder / "tables" / f"{name}.parquet"
        if any((folder / "parts").glob(f"*/{name}.parquet")):
            write_file(path, results.merged(folder, name).to_parquet)
        else:
            path.unlink(missing_ok=True)
