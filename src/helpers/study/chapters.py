"""Chapters: which there are, what each needs, and what the runner is handed of one."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import StudyError, nearest

# What a chapter reads of others, by number; a chapter that is not listed needs all earlier ones. Whatever does not stand
# between two chapters may run beside one another.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "01": (),
    "02": ("01",),
    "03": ("01",),
    "04": ("01",),
    "05": ("01", "02", "03", "04"),
    "06": ("01", "02", "03", "04", "05"),
    "07": ("01", "03", "04"),
    "08": ("01", "03", "04"),
    "09": ("01", "04"),
    "10": ("01", "02", "03", "04", "05", "06", "07"),
}

# GB that a chapter takes at most, by model; of another model nobody knows, and its chapters run one at a time.
ROOM = {"embedded": 5.0, "tiny": 1.0}
# Chapters that pass texts through models; the others work on what these have stored.
READ_MODELS = (
    *("01_models", "02_quantization", "03_finetuning", "04_monitors", "05_staleness"),
    *("07_projection", "08_subspaces", "09_neurons"),
)
# Chapters that also read what the same chapter of lower seeds wrote, where it is there.
READS_EARLIER_SEEDS = frozenset({"06"})
# Chapters that read every finished run of the profile, and a file of theirs that stands beside the runs' folders.
READS_ALL_RUNS = {"11": "../../findings.parquet"}


@dataclass(frozen=True)
class PlannedRun:
    """One run of the study, profile x model x seed; `folder` is relative to the project root, so that no path leaks."""

    profile: str
    model: str
    slug: str
    seed: int
    folder: Path

    @property
    def place(self) -> str:
        """The run's folder within those of its profile."""
        return f"{self.slug}/seed-{self.seed}"

    @property
    def label(self) -> str:
        """The run in words, for lines on the screen."""
        return f"{self.profile}, {self.slug}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """One chapter of one run, as the runner hands it over in a file."""

    chapter: str
    run: PlannedRun
    parameters: dict[str, Any]
    fingerprint: str
    seconds: float  # the chapter's limit
    runner: dict[str, Any]  # pid, host, created: when that process is gone, the chapter ends itself
    marks: dict[str, Any]  # what its status bears beside the fingerprint: see `fingerprints.marks`
    compute: str = "auto"
    planned: float = 0.0  # what its passes will cost, in tokens forward; 0 where that is not known


# ---------------------------------------------------------------- names


def discover(root: Path) -> dict[str, Path]:
    """The notebooks by chapter name, in the order of their numbers."""
    found = {path.stem: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise StudyError(
            "no chapter in notebooks/ (NN_name.ipynb); start the command in the project's folder or set AFTER_UPDATE_ROOT"
        )
    return found


def find(name: str, names: Iterable[str]) -> str:
    """The chapter meant by `02`, `quantization` or `02_quantization`."""
    names = list(names)
    meant = [chapter for chapter in names if name in {chapter, chapter[:2], chapter[3:]}]
    if not meant:
        words = [*names, *(chapter[3:] for chapter in names)]
        raise StudyError(f"unknown chapter {name!r}; {nearest(name, words)}choose one of {', '.join(names)}")
    return meant[0]


def needs(chapter: str, names: Iterable[str]) -> list[str]:
    """The chapters that must be done before this one."""
    earlier = [name for name in names if name < chapter]
    numbers = CHAPTERS.get(chapter[:2])
    return earlier if numbers is None else [name for name in earlier if name[:2] in numbers]
