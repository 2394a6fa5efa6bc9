"""All runs of a profile together: which are finished, and the one file that is written beside them."""

from pathlib import Path

import pandas as pd

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import atomic_file
from helpers.records import Run


def finished(run: Run, before: str) -> list[Run]:
    """The runs of this run's profile, itself among them, that have all chapters before `before` which this one has."""
    wanted = {path.name for path in (run.folder / "status").glob("*.json") if path.stem < before}
    found = []
    for folder in run.folder.parents[1].glob("*/seed-*"):
        if wanted <= {path.name for path in (folder / "status").glob("*.json")}:
            found.append(Run(run.profile, folder.parent.name, int(folder.name.removeprefix("seed-")), folder))
    if not found:
        raise StudyError(
            f"no chapter of profile {run.profile!r} is finished; run the study first: make study PROFILE={run.profile}",
            NOT_COMPARABLE,
        )
    return sorted(found, key=lambda other: (other.model, other.seed))


def write_findings(run: Run, table: pd.DataFrame) -> Path:
    """The file `findings.parquet` beside the models' folders: one row a claim, over all runs of the profile."""
    return atomic_file(run.folder.parents[1] / "findings.parquet", table.reset_index(drop=True).to_parquet)
