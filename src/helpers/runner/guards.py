"""Guards of the results folders: one run at a time, only where it can write, and never over committed results."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from helpers.console import say
from helpers.errors import ENVIRONMENT, StudyError
from helpers.study import statuses
from helpers.study.chapters import PlannedRun

NEEDED_DISK = 1e9  # bytes that a run may write
PATIENCE = 0.3  # seconds for a lock: its holder may be just about to remove the file


def process_identity() -> dict[str, Any]:
    """Who this process is, so that another can tell whether it still lives."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "created": psutil.Process().create_time()}


def orphaned(runner: Mapping[str, Any]) -> bool:
    """Whether the runner that asked for this work is gone; unknown for a runner on another machine."""
    if not runner or runner["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(runner["pid"]))
        return process.create_time() != runner["created"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def locked(folder: Path, label: str) -> Iterator[None]:
    """Holds the results folder of one run; a second process is refused, a dead one's lock is taken over with a note."""
    path = folder / ".lock"
    lock = FileLock(path, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise StudyError(f"{label} is being run by {_holder(path)}; wait for it or stop it", ENVIRONMENT) from error
    try:
        if path.stat().st_size:
            say(f"note: took over the lock of {_holder(path)}, which is no longer running")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        path.write_text(json.dumps({**process_identity(), "started": started}), encoding="utf-8")
        yield
    finally:
        _let_go(lock, path)


def _let_go(lock: FileLock, path: Path) -> None:
    """Removes the lock's file while it is still held, so that nobody else's is removed; Windows removes no open file."""
    with suppress(PermissionError):
        path.unlink(missing_ok=True)
    lock.release()


def _holder(path: Path) -> str:
    """Who wrote the lock's file; Windows lets nobody read what another holds."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return f"process {info['pid']} on {info['host']} since {info['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def prepare(folder: Path) -> None:
    """Makes the results folder and tries to write there, before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        shown = os.path.relpath(error.filename or folder)
        raise StudyError(
            f"results folder {shown} cannot be written ({error.strerror}); mend its rights or set AFTER_UPDATE_RESULTS",
            ENVIRONMENT,
        ) from error
    if free < NEEDED_DISK:
        raise StudyError(
            f"only {free / 1e9:.2f} GB of disk are free; a run may need {NEEDED_DISK / 1e9:.0f} GB: free some", ENVIRONMENT
        )


def protect(root: Path, run: PlannedRun, todo: Mapping[str, str], force: bool) -> bool:
    """Whether the old results were moved away. Committed results are never overwritten: refused, or with force kept in `.old`."""
    folder = root / run.folder
    overwritten = [name for name in todo if statuses.status(folder, name)]
    if not overwritten or not (folder / "manifest.json").is_file() or not _tracked(root, folder):
        return False
    if not force:
        reason = f"{overwritten[0]}: {todo[overwritten[0]]}"
        raise StudyError(
            f"{run.folder} is committed and would be overwritten ({reason}); --force (FORCE=1) keeps the old folder and runs anew"
        )
    old = folder.parents[2] / ".old"
    target = old / f"{run.profile}-{datetime.now(UTC):%Y%m%dT%H%M%S}" / run.slug / f"seed-{run.seed}"
    target.mkdir(parents=True)
    (old / ".gitignore").write_text("*\n", encoding="utf-8")
    for item in folder.iterdir():
        if item.name != ".lock":
            os.replace(item, target / item.name)
    return True


def _tracked(root: Path, folder: Path) -> bool:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "ls-files", "--", str(folder)], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(found.stdout.strip())
