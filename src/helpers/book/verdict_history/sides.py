"""Sides: one folder of a profile's results as it is compared with another, its verdicts as stored and its parts judged anew."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from helpers import results
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.results import KEY, OWN, VALUES
from helpers.runner.manifests import SCHEMA_VERSION, Finished, finished
from helpers.study import findings
from helpers.study.claims import RULES_SET

NUMBERS = ("estimate", "low", "high", "n", "seeds")
NEEDED = ("claim", "verdict", *NUMBERS)
WORDS = ("source", "statement", "literature", "chapter", "reason")  # some were not written by older versions
FILE = "findings.parquet"


@dataclass(frozen=True, eq=False)
class Side:
    """A folder of a profile's results: the name it was given, its finished runs, the rules that judged them, what was stored."""

    name: str
    folder: Path
    runs: tuple[Finished, ...]
    rules: tuple[str, ...]
    stored: pd.DataFrame | None

    @cached_property
    def judged(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Findings and their components, made from the tables of the runs by the present rules; seconds for each run."""
        runs = [(run.model, run.seed, _checked_tables(self.name, run)) for run in self.runs]
        return findings.collect(runs)

    @property
    def findings(self) -> pd.DataFrame:
        """One row a claim: as stored, else judged anew."""
        return self.judged[0] if self.stored is None else self.stored

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each claim."""
        return dict(zip(self.findings["claim"], self.findings["verdict"], strict=True))

    @property
    def profiles(self) -> set[str]:
        """The profiles that the runs say they are of; the folder may have been renamed."""
        said = [entry.get("parameters", {}).get("profile") for run in self.runs for entry in run.chapters.values()]
        return {str(name) for name in said if name}


def rules_of(folder: Path) -> list[str]:
    """The sets of rules, by date, that judged the stored runs of a profile."""
    notes = folder.glob("*/seed-*/parts/11_findings/rules.json")
    return sorted({str(json.loads(note.read_text(encoding="utf-8"))["set"]) for note in notes})


def read_side(name: str) -> Side:
    """The side in a folder such as results/cpu of any checkout.

    Raises StudyError where there is no such folder (2), where it holds no results or those of an older schema (13), and where
    its findings cannot be read or contradict themselves (12).
    """
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise StudyError(f"{name} is no folder; name the results of a profile, such as results/cpu of a checkout", USAGE)
    runs = tuple(finished(folder))
    stored = _stored(name, folder) if (folder / FILE).is_file() else None
    if stored is None and not runs:
        raise StudyError(f"{name} holds no results, neither {FILE} nor a finished run; {_remedy(name, folder)}", NOT_COMPARABLE)
    other = next((run for run in runs if run.schema != SCHEMA_VERSION), None)
    if other:
        raise StudyError(
            f"{name}: the manifest of {other.label} has schema {other.schema}, and {SCHEMA_VERSION} is read here; "
            "compare it with the version that wrote it, or run the profile again",
            NOT_COMPARABLE,
        )
    rules = rules_of(folder) or ([RULES_SET] if stored is None else [])
    return Side(name, folder, runs, tuple(rules), stored)


def _remedy(name: str, folder: Path) -> str:
    """Where the results may lie instead."""
    inside = next((path for path in sorted(folder.glob("*")) + sorted(folder.glob("results/*")) if (path / FILE).is_file()), None)
    if inside:
        return f"did you mean {Path(name) / inside.relative_to(folder)}?"
    return "name the folder of a profile, such as results/cpu, or run it first: make study PROFILE=cpu"


def _stored(name: str, folder: Path) -> pd.DataFrame:
    """The checked findings of a folder, with the columns of today."""
    run = results.Run(folder.name, "", 0, folder / "model" / "seed-0")  # findings lie beside the folders of the models
    table = results.read_table(run, "findings")
    absent = [column for column in NEEDED if column not in table]
    if absent:
        raise StudyError(
            f"{name}: {FILE} lacks the column {absent[0]!r}, so it is of another schema; "
            "move the file away, and the runs are judged anew",
            NOT_COMPARABLE,
        )
    for fault in _faults(table):
        raise StudyError(f"{name}: {FILE} {fault}; write it again: python -m helpers chapter 11", REFUSED)
    return table.assign(**{column: "" for column in WORDS if column not in table})


def _faults(table: pd.DataFrame) -> Iterator[str]:
    if not len(table):
        yield "has no claim"
    twice = table.loc[table["claim"].duplicated(), "claim"]
    if len(twice):
        yield f"has the claim {twice.iloc[0]!r} twice"
    strange = table.loc[~table["verdict"].isin(findings.VERDICTS), "verdict"]
    if len(strange):
        yield f"has the verdict {strange.iloc[0]!r}, which is none of {', '.join(findings.VERDICTS)}"


def _checked_tables(name: str, run: Finished) -> findings.RunTables:
    """The tables of a run, if each has today's columns."""
    tables = findings.run_tables(run.folder)
    for table in tables:
        columns, wanted = list(tables[table].columns), [*KEY, *OWN[table], *VALUES]
        if columns != wanted:
            other = next(iter([*(set(wanted) - set(columns)), *(set(columns) - set(wanted))]), "their order")
            raise StudyError(
                f"{name}: table {table!r} of {run.label} has other columns than today ({other}), so it is of another schema; "
                "run that profile again",
                NOT_COMPARABLE,
            )
    return tables
