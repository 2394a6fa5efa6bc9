"""Where results are written and found again: the only file that writes tables, and what is kept under a content key.

A table is checked against its schema, written whole or not at all, and kept in one part a chapter: when a chapter runs
again, its rows are replaced and the others stay. The manifest comes last; its presence means that the run is finished.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.cache import alone, atomic_file, cache_path, write_file, write_json
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.folders import RUNNER, left_out, results_root, run_folders

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
KEY = ("model", "seed", "precision", "adapter", "trained_on", "serving", "restoration", "strength")
VALUES = ("metric", "value", "low", "high", "n")
OWN: dict[str, tuple[str, ...]] = {  # the columns of each table between the key and the values
    "behaviour": ("judge", "prompt_set"),
    "utility": ("corpus",),
    "subspaces": ("source", "module", "k"),
    "weights": ("module",),
    "comparisons": ("reference", "judge", "prompt_set"),
    "items": ("judge", "prompt_set", "item"),
    "monitors": ("task", "probe", "layer", "depth"),
    "staleness": ("task", "probe", "layer", "depth"),
    "interaction": ("task", "probe", "layer"),
    "replies": ("task", "probe", "layer", "depth"),
    "histograms": ("task", "probe", "layer", "depth", "label", "edge"),
    "triage": ("predictor", "split", "budget"),
    "projection": ("module", "layers_changed", "measured_on"),
    "neurons": ("score", "fraction", "layer", "measured_on"),
    "realignment": ("task", "probe", "layer", "method"),
    "components": ("claim", "component", "of_seed"),
}
NUMERIC = {
    "seed": int,
    "strength": float,
    "layer": int,
    "depth": float,
    "edge": float,
    "budget": float,
    "layers_changed": int,
    "fraction": float,
    "value": float,
    "low": float,
    "high": float,
    "n": int,
}


# ---------------------------------------------------------------- runs and their tables


def slug(model: str) -> str:
    """The name of a model as a folder: a registry name as it is, a path or hub id in lower case with dashes."""
    name = re.sub(r"[^a-z0-9._-]+", "-", (Path(model).name if os.path.isdir(model) else model).lower()).strip("-.")[:64]
    if not NAME.fullmatch(name):
        raise StudyError(f"model {model!r} has no usable name; use letters, digits, dots and dashes")
    return name


@dataclass(frozen=True)
class Run:
    """One run: profile x model x seed, and the folder of its results."""

    profile: str
    model: str
    seed: int
    folder: Path


def open_run(profile: str, model: str, seed: int) -> Run:
    """The run of that profile, model and seed."""
    return Run(profile, slug(model), seed, results_root() / profile / slug(model) / f"seed-{seed}")


def only_read(run: Run) -> bool:
    """Whether nothing is written into the run: a finished one of another profile than `quick`, in a notebook opened by hand.

    Such a notebook has the parameters of `quick` whatever profile it names, so what it computes is not what that profile says;
    and thirty readers may share one folder of results. The runner sets the parameters, and writes.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    by_hand = shell is not None and not os.environ.get(RUNNER)
    return by_hand and run.profile != "quick" and (run.folder / "manifest.json").is_file()


def schema(name: str):
    """The schema of a table: key, own columns, values; an interval holds its value and n is at least 1."""
    import pandera.pandas as pa  # a quarter of this module's time to import, and most who read tables write none

    names = (*KEY, *OWN[name], *VALUES)
    columns = {column: pa.Column(NUMERIC.get(column, str), nullable=column == "strength", coerce=True) for column in names}
    holds = pa.Check(lambda t: (t["low"] <= t["value"]) & (t["value"] <= t["high"]), error="low <= value <= high")
    counted = pa.Check(lambda t: t["n"] >= 1, error="n >= 1")
    return pa.DataFrameSchema(columns, checks=[holds, counted], unique=[*KEY, *OWN[name], "metric"], strict=True, ordered=True)


def checked(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns in order, if every row keeps to the schema; else an error that names the first fault."""
    if name not in OWN:
        raise StudyError(f"unknown table {name!r}; choose one of {', '.join(OWN)}")
    names = [*KEY, *OWN[name], *VALUES]
    absent = [column for column in names if column not in table]
    if absent:
        raise StudyError(f"table {name!r} lacks column {absent[0]!r}; it needs {', '.join(names)}")
    # before coercion, which would write a missing name as "nan" and cut 2.7 items to 2
    empty = [column for column in names if column != "strength" and table[column].isna().any()]
    if empty:
        row = int(table[empty[0]].isna().to_numpy().argmax())
        raise StudyError(f"table {name!r} has an empty {empty[0]!r} in row {row}; give every row its value")
    from pandera.errors import SchemaError, SchemaErrors

    try:
        return schema(name).validate(table[names].reset_index(drop=True))
    except (SchemaError, SchemaErrors) as error:  # the second is what a failed coercion raises
        first = next(iter(getattr(error, "schema_errors", [])), error)
        raise StudyError(
            f"table {name!r} breaks its schema: {str(first).splitlines()[0]}; mend the rows before writing them"
        ) from error


def write_table(run: Run, chapter: str, name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The checked table, stored as the chapter's part and merged into `tables/<name>.parquet`; not where it is `only_read`."""
    valid = checked(name, table)
    if not only_read(run):
        write_file(run.folder / "parts" / chapter / f"{name}.parquet", valid.to_parquet)
        with alone(cache_path("runs", sha256(str(run.folder.absolute()).encode()).hexdigest())):  # another chapter may merge it
            write_file(run.folder / "tables" / f"{name}.parquet", merged(run.folder, name).to_parquet)
    return _named(valid, name, chapter)


def _named(table: pd.DataFrame, name: str, part: str) -> pd.DataFrame:
    """The table with its name, and whose part it is, in `attrs`; selections keep them, so that a number knows its rows."""
    table.attrs |= {"table": name, "part": part}
    return table


def merged(folder: Path, name: str) -> pd.DataFrame:
    """A table from its parts, each address once: the rows of the first chapter that has it."""
    parts = [_read(path) for path in sorted((folder / "parts").glob(f"*/{name}.parquet"))]
    identity = [*KEY, *OWN[name], "metric"]
    return pd.concat(parts, ignore_index=True).drop_duplicates(identity).sort_values(identity, kind="stable", ignore_index=True)


def put_together(folder: Path) -> None:
    """Writes the tables that a run does without, from the parts of its chapters."""
    for name in table_names(folder):
        if not (path := folder / "tables" / f"{name}.parquet").is_file():
            write_file(path, merged(folder, name).to_parquet)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow says ArrowInvalid, a ValueError, of a torn file
        raise StudyError(
            f"{'/'.join(path.parts[-2:])} cannot be read; delete it and run the chapter that writes it again", REFUSED
        ) from error


def joined(name: str, *parts: pd.DataFrame) -> pd.DataFrame:
    """The rows of several parts of a table, each address once; the parts may still lack key columns."""
    table = pd.concat(parts, ignore_index=True)
    address = [column for column in (*KEY, *OWN[name], "metric") if column in table]
    return table.drop_duplicates(address, ignore_index=True)


def table_names(folder: Path) -> list[str]:
    """The tables of a run: those that lie there, and those that can be put together from the parts of its chapters."""
    return sorted({path.stem for place in ("tables", "parts/*") for path in folder.glob(f"{place}/*.parquet")})


def read_table(run: Run, name: str, chapter: str = "") -> pd.DataFrame:
    """A table of a run (or one chapter's part of it); where it is missing, the error names the chapter to run.

    `findings` is the table of claims that lies beside the models' folders: one for all runs of a profile.
    """
    path = run.folder / ("parts/" + chapter if chapter else "tables") / f"{name}.parquet"
    if name == "findings":
        path = findings_path(run)
    if not path.is_file() and not chapter and name in table_names(run.folder):
        return _named(merged(run.folder, name), name, chapter)
    if not path.is_file():
        needed = chapter or "the chapter that writes it"
        raise StudyError(
            f"table {name!r} of profile {run.profile!r} is not there; run {needed} first: make study PROFILE={run.profile}",
            NOT_COMPARABLE,
        )
    return _named(_read(path), name, chapter)


def write_note(run: Run, chapter: str, name: str, value: object) -> None:
    """Stores a small JSON value that later chapters need, beside the chapter's tables."""
    if not only_read(run):
        write_json(run.folder / "parts" / chapter / f"{name}.json", value)


def read_note(run: Run, chapter: str, name: str) -> Any:
    """A value that an earlier chapter stored; where it is missing, the error says which chapter to run."""
    path = run.folder / "parts" / chapter / f"{name}.json"
    if not path.is_file():
        raise StudyError(
            f"{name!r} is not there; run chapter {chapter} first: python -m helpers chapter {chapter} --profile {run.profile}",
            NOT_COMPARABLE,
        )
    return json.loads(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- beside the tables of one run


def cached_table(kind: str, key: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table stored under a content key, made and stored first where it is not there or cannot be read."""
    path = cache_path(kind, f"{key}.parquet")
    with alone(path):
        if path.is_file():
            try:
                return pd.read_parquet(path)
            except (OSError, ValueError):  # torn by a crash or a full disk: made again
                path.unlink(missing_ok=True)
        write_file(path, make().to_parquet)
        return pd.read_parquet(path)


def finished(run: Run, before: str) -> list[Run]:
    """The runs of this run's profile, itself among them, that have all chapters before `before` which this one has."""
    wanted = {path.name for path in (run.folder / "status").glob("*.json") if path.stem < before}
    found = []
    for folder in run_folders(run.folder.parents[1]):
        done = {path.name for path in (folder / "status").glob("*.json")}
        if done and wanted <= done | {f"{name}.json" for name in left_out(folder)}:
            found.append(Run(run.profile, folder.parent.name, int(folder.name.removeprefix("seed-")), folder))
    if not found:
        raise StudyError(
            f"no chapter of profile {run.profile!r} is finished; run the study first: make study PROFILE={run.profile}",
            NOT_COMPARABLE,
        )
    return sorted(found, key=lambda other: (other.model, other.seed))


def findings_path(run: Run) -> Path:
    """Where the findings of all runs of a profile lie: beside the models' folders."""
    return run.folder.parents[1] / "findings.parquet"


def write_findings(run: Run, table: pd.DataFrame) -> Path:
    """The file `findings.parquet` beside the models' folders: one row a claim, over all runs of the profile."""
    path = findings_path(run)
    return path if only_read(run) else atomic_file(path, table.reset_index(drop=True).to_parquet)
