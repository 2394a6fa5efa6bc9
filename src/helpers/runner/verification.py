"""Verification: chapters measured again from an empty cache, elsewhere, and every table held against the stored one.

It is the proof for what golden values miss, and the one way to say of older results that they are still what would be
measured: with `stamp`, and after equality alone, their status files are given today's fingerprints.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import cache
from helpers.console import say
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.folders import run_folders
from helpers.runner import jobs, manifests, plans
from helpers.runner.guards import locked
from helpers.runner.plans import StudyPlan
from helpers.study import chapters, fingerprints, statuses

GIVEN = ("sources", "judgements")  # what a cache holds that is not computed: pinned files, and what servers answered
MACHINE = ("compute", "device", "threads", "processor")  # what of a machine may move last digits


def verify(
    root: Path,
    profile: str,
    models: Sequence[str] = (),
    seeds: Sequence[int] = (),
    names: Sequence[str] = (),
    stamp: bool = False,
) -> dict[str, Any]:
    """One row a compared table. Errors: tables that differ (12), a chapter that was never run (13), one that failed now."""
    plan = plans.check(root, profile, models, seeds)
    asked = comparable(plan, names)
    (root / "build" / "verify").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root / "build" / "verify", prefix=f"{profile}-") as place, elsewhere(root, Path(place)):
        again = replace(plans.check(root, profile, models, seeds), notebooks=with_needs(plan, asked))
        code = jobs.study(again)["code"]
        if code:
            raise StudyError("a chapter could not be measured again; mend the cause above and verify again", int(code))
        pairs = [(root / old.folder, root / new.folder) for old, new in zip(plan.runs, again.runs, strict=True)]
        rows = [row for old, new in pairs for name in asked for row in compared(old, new, name)]
        judge(rows, [(old, new, name) for old, new in pairs for name in asked])
        if stamp:
            for (old, new), one in zip(pairs, plan.runs, strict=True):
                with locked(old, f"results/{one.profile}/{one.place}"):
                    restamp(old, new, [name for name in asked if name in plan.chapters(one)], list(plan.chapters(one)))
            say(f"stamped: {', '.join(asked)}")
    return {"profile": profile, "code": 0, "tables": rows}


def comparable(plan: StudyPlan, names: Sequence[str]) -> list[str]:
    """The chapters that are asked for (all, where none is named) and can be compared; those that need runs which are not in the
    plan are left out, and a line says so. Errors: one that was never run."""
    asked = [chapters.find(name, plan.notebooks) for name in names] or list(plan.notebooks)
    for name in _short_of_runs(plan):
        without = [other for other in asked if other == name or name in chapters.needs(other, plan.notebooks)]
        asked = [other for other in asked if other not in without]
        if without:
            say(f"note: {', '.join(without)}: not compared, for {name} read runs that are not asked for; name them with --seed")
    for one in plan.runs:
        absent = [name for name in asked if name in plan.chapters(one) and not statuses.status(plan.root / one.folder, name)]
        if absent:
            raise StudyError(
                f"{one.label} has no {absent[0]} to compare with; run it: make study PROFILE={one.profile}", NOT_COMPARABLE
            )
    if not asked:
        raise StudyError("nothing is left to compare; name all seeds of the profile with --seed", NOT_COMPARABLE)
    return sorted(asked)


def _short_of_runs(plan: StudyPlan) -> list[str]:
    """The chapters that read other runs of the profile, where the plan lacks one of these."""
    profile = (plan.root / plan.runs[0].folder).parents[1]
    present = {(one.slug, one.seed) for one in plan.runs}
    stored = {(folder.parent.name, int(folder.name[5:])) for folder in run_folders(profile)}
    lower = {(model, seed) for model, seed in stored if any(model == one.slug and seed < one.seed for one in plan.runs)}
    short = {
        **dict.fromkeys(chapters.READS_EARLIER_SEEDS, lower - present),
        **dict.fromkeys(chapters.READS_ALL_RUNS, stored - present),
    }
    return [name for name in plan.notebooks if short.get(name[:2])]


def with_needs(plan: StudyPlan, names: Sequence[str]) -> dict[str, Path]:
    """The notebooks of those chapters and of all that they need: from an empty cache, nothing less gives them."""
    wanted = {*names, *(need for name in names for need in chapters.needs(name, plan.notebooks))}
    return {name: path for name, path in plan.notebooks.items() if name in wanted}


@contextmanager
def elsewhere(root: Path, place: Path) -> Iterator[None]:
    """Runs the block with results and a cache of its own; what was fetched and not computed is shared with the user's cache."""
    own, names = cache.cache_folder(), ("AFTER_UPDATE_CACHE", "AFTER_UPDATE_RESULTS")
    before = {name: os.environ.get(name) for name in names}
    (place / "cache").mkdir()
    for name in GIVEN:
        (own / name).mkdir(parents=True, exist_ok=True)
        (place / "cache" / name).symlink_to(own / name, target_is_directory=True)
    # relative to the project, like all folders of results: no path of this machine may enter what is written
    os.environ.update(AFTER_UPDATE_CACHE=str(place / "cache"), AFTER_UPDATE_RESULTS=os.path.relpath(place / "results", root))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


# ---------------------------------------------------------------- comparing


def compared(old: Path, new: Path, chapter: str) -> list[dict[str, Any]]:
    """One row a table of a chapter: its name, its rows, and in words how it differs ("" where not), with the largest distance."""
    tables = {path.name for folder in (old, new) for path in (folder / "parts" / chapter).glob("*.parquet")}
    places = [f"parts/{chapter}/{name}" for name in sorted(tables)]
    places += [chapters.READS_ALL_RUNS[chapter[:2]]] if chapter[:2] in chapters.READS_ALL_RUNS else []
    return [
        {"run": old.name, "chapter": chapter, "table": Path(place).stem, **_difference(old / place, new / place)}
        for place in places
    ]


def _difference(old: Path, new: Path) -> dict[str, Any]:
    if not (old.is_file() and new.is_file()):
        return {"rows": 0, "differs": "is not written any more" if old.is_file() else "is new", "largest": 0.0}
    before, after = pd.read_parquet(old), pd.read_parquet(new)
    return {"rows": len(after), **difference(before, after)}


def difference(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """How a table differs from the stored one, in words, and the largest distance of its numbers; "" and 0 where it does not."""
    if list(before.columns) != list(after.columns):
        return {"differs": f"has columns {', '.join(after)} in place of {', '.join(before)}", "largest": 0.0}
    if len(before) != len(after):
        return {"differs": f"has {len(after)} rows in place of {len(before)}", "largest": 0.0}
    wrong = {
        name: ~((before[name] == after[name]) | (before[name].isna() & after[name].isna())).to_numpy(bool) for name in before
    }
    columns = [name for name, places in wrong.items() if places.any()]
    if not columns:
        return {"differs": "", "largest": 0.0}
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(before[name])]
    gaps = [(before[name] - after[name]).abs()[wrong[name]].fillna(np.inf).max() for name in numeric]
    largest = max(map(float, gaps), default=0.0)
    name, row = columns[0], int(wrong[columns[0]].argmax())
    count = int(sum(places.sum() for places in wrong.values()))
    text = f"column {name!r}, row {row}: {before[name].iloc[row]!r} is now {after[name].iloc[row]!r} ({count} value(s) differ)"
    return {"differs": text, "largest": largest}


def judge(rows: Sequence[Mapping[str, Any]], where: Sequence[tuple[Path, Path, str]]) -> None:
    """Says of each table whether it is equal. Raises StudyError where one is not, naming the first and what ran elsewhere."""
    for row in rows:
        said = row["differs"] or f"equal, {row['rows']} rows"
        say(f"{row['run']} {row['chapter']} {row['table']}: {said}")
    wrong = [row for row in rows if row["differs"]]
    if not wrong:
        return
    first, most = wrong[0], max(float(row["largest"]) for row in wrong)
    other = [text for old, new, name in where for text in other_machine(statuses.status(old, name), statuses.status(new, name))]
    made = f"; the stored ones were made with {', '.join(dict.fromkeys(other))}" if other else ""
    raise StudyError(
        f"{len(wrong)} of {len(rows)} tables differ, by at most {most:.3g}; the first is {first['table']!r} of "
        f"{first['chapter']}: {first['differs']}{made}; raise the number of the definition that moved, or mend it",
        REFUSED,
    )


def other_machine(before: Mapping, after: Mapping) -> list[str]:
    """What the stored results were made with that is another now: packages, compute, device, threads."""
    pairs = [
        (before.get(part, {}), after.get(part, {}), names)
        for part, names in (("versions", fingerprints.NUMERIC), ("machine", MACHINE))
    ]
    return [
        f"{name} {old[name]} (here {new[name]})"
        for old, new, names in pairs
        for name in names
        if name in old and name in new and old[name] != new[name]
    ]


# ---------------------------------------------------------------- the stamp


def restamp(old: Path, new: Path, names: Sequence[str], every: Sequence[str]) -> None:
    """Gives the stored chapters what the new status says they are made of, and the notes that name things in today's cache.

    Tables and executed chapters stay as they are, and so does when and on what they ran.
    """
    for name in names:
        entry, fresh = statuses.status(old, name), statuses.status(new, name)
        for note in (new / "parts" / name).glob("*.json"):
            shutil.copyfile(note, old / "parts" / name / note.name)
        notes = {place: digest for place, digest in fresh["files"].items() if place.endswith(".json")}
        entry["files"] = {**{place: digest for place, digest in entry["files"].items() if not place.endswith(".json")}, **notes}
        entry |= {field: fresh[field] for field in ("fingerprint", "definitions", "parameters")}
        entry["verified"] = {field: fresh[field] for field in ("finished", "code", "versions", "machine")}
        cache.write_json(statuses.status_path(old, name), entry)
    if (old / "manifest.json").is_file():
        manifests.write_manifest(old, every)
