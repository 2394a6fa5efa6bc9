"""Folders: of the project, of its results, of each run in them; and the hash by which a file there is known."""

import hashlib
import json
import os
from pathlib import Path

RUNNER = "AFTER_UPDATE_PROGRESS"  # the environment variable that the runner's kernels have, and no notebook opened by hand
SHOWN = ("published", "cpu", "quick", "smoke")  # profiles whose results are shown where none is named: the first that has some
LEAN = "lean.json"  # beside the tables of a run: what it leaves out


def project_root() -> Path:
    """The folder of the project: AFTER_UPDATE_ROOT, else the nearest parent that holds `_toc.yml`, else this folder."""
    if os.environ.get("AFTER_UPDATE_ROOT"):
        return Path(os.environ["AFTER_UPDATE_ROOT"]).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "_toc.yml").is_file()), here).resolve()


def results_place() -> Path:
    """Where results lie as seen from the project's folder: AFTER_UPDATE_RESULTS, else `results`."""
    return Path(os.environ.get("AFTER_UPDATE_RESULTS") or "results")


def results_root() -> Path:
    """The folder of all results."""
    return project_root() / results_place()


def run_folders(profile_folder: Path) -> list[Path]:
    """The folders <model>/seed-<n> of a profile's runs, finished or not: the embedded model first, then by model and seed."""
    found = {folder: folder.name.removeprefix("seed-") for folder in profile_folder.glob("*/seed-*")}
    runs = [(folder.parent.name, int(seed), folder) for folder, seed in found.items() if seed.isdecimal()]
    return [folder for _, _, folder in sorted(runs, key=lambda run: (run[0] != "embedded", *run[:2]))]


def left_out(folder: Path) -> frozenset[str]:
    """The chapters that a lean run leaves out; none where all are run."""
    try:
        return frozenset(json.loads((folder / LEAN).read_text(encoding="utf-8"))["left_out"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def file_hash(path: Path) -> str:
    """sha256 of a file, or an empty string where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
