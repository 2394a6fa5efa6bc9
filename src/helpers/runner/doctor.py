"""The doctor: what in this environment differs from what the study was made with."""

import re
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.errors import ENVIRONMENT, StudyError
from helpers.models import compute
from helpers.runner import outlook

PYTHONS = ((3, 11), (3, 12), (3, 13))


def pins(lock: Path) -> dict[str, str]:
    """The version of every package in requirements.lock, by normalized name."""
    if not lock.is_file():
        raise StudyError("requirements.lock is missing; restore it from the repository, or run make lock", ENVIRONMENT)
    lines = [line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def normal(name: str) -> str:
    """A package name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def differences(pinned: dict[str, str]) -> list[str]:
    """One line for Python and for each package whose installed version is not the pinned one."""
    fits = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[-1]
    found = [] if fits else [f"Python: 3.11, 3.12 or 3.13 is needed, {sys.version.split()[0]} is running"]
    installed = {normal(each.metadata["Name"]): each.version for each in metadata.distributions() if each.metadata["Name"]}
    for name, version in pinned.items():
        have = installed.get(name, "")
        if have.partition("+")[0] != version:  # a local part, as in 2.13.0+cpu, says which build it is
            found.append(f"{name}: {version} is pinned, {have or 'nothing'} is installed")
    return found


def examine(root: Path) -> dict[str, Any]:
    """Differences from the pins, free disk, the cache, and the sources that a run would download."""
    from helpers import cache
    from helpers.data import sources

    return {
        "differences": differences(pins(root / "requirements.lock")),
        "python": sys.version.split()[0],
        "torch": metadata.version("torch") if find_spec("torch") else "none: the extra `study` is not installed",
        "compute": compute.current().words if find_spec("torch") else "",
        "free_gb": round(shutil.disk_usage(root).free / 1e9, 1),
        "cache": str(cache.cache_folder()),
        "missing_sources": sources.missing(),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The findings, differences first."""
    differing = list(found["differences"]) or ["packages: all as in requirements.lock"]
    remedy = ["remedy: make env"] if found["differences"] else []
    made = "" if str(found["python"]).startswith("3.11.") else " (what is committed was made with 3.11)"
    lacking = ", ".join(found["missing_sources"]) or "none"
    return [
        *differing,
        *remedy,
        f"Python: {found['python']}{made}",
        f"torch build: {found['torch']}",
        *([f"machine: {outlook.cores()} cores, {found['compute']}"] if found["compute"] else []),
        f"free disk: {found['free_gb']} GB",
        f"cache: {found['cache']}",
        f"sources to download: {lacking}",
    ]
