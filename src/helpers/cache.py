"""The cache: its folder, files and folders that are whole or absent, and values as a JSON file holds them."""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from helpers.errors import ENVIRONMENT, StudyError


def cache_path(kind: str, name: str) -> Path:
    """The address of a cached thing; its folder exists afterwards."""
    folder = cache_folder() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes through a temporary neighbour, so that `path` holds the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]  # pyarrow's errors carry no strerror
        raise StudyError(
            f"cannot write {path.name}: {reason}; free some disk space or check the folder's rights", ENVIRONMENT
        ) from error
    finally:
        with suppress(OSError):  # not there, or its folder is a file: the error above says so
            temporary.unlink()


def finite(value: float) -> float | None:
    """The number, without the sign of a zero; None where it is undefined."""
    return value + 0.0 if math.isfinite(value) else None


def plain(value: Any, text: Callable[[str], str] = str, number: Callable[[float], float | None] = finite) -> Any:
    """The value in JSON's own types; `text` says what becomes of a string, names of fields among them, `number` of a float."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), text, number)
    if hasattr(value, "tolist"):  # arrays, and single numbers out of them
        return plain(value.tolist(), text, number)
    if isinstance(value, Mapping):
        return {text(str(name)): plain(part, text, number) for name, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(part, text, number) for part in value]
    if isinstance(value, float):
        return number(value)
    return value if value is None or isinstance(value, bool | int) else text(str(value))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file whole or not at all."""
    write_file(
        path,
        lambda temporary: temporary.write_text(
            json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        ),
    )


def cache_folder() -> Path:
    """The cache: AFTER_UPDATE_CACHE, else the user's cache folder if it can be written, else the project's `.cache`."""
    chosen = os.environ.get("AFTER_UPDATE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    with suppress(RuntimeError):  # no HOME and no entry for the user
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
        if _writable(base / "after-the-update"):
            return base / "after-the-update"
    project = Path(__file__).resolve().parents[2]
    return (project if (project / "pyproject.toml").is_file() else Path.cwd()) / ".cache"


def _writable(folder: Path) -> bool:
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Runs the block; a full disk or a missing right becomes one line (safetensors raises an error of its own for it)."""
    loaded = sys.modules.get("safetensors")  # where it was never imported, nothing can have raised its error
    full = (OSError, loaded.SafetensorError) if loaded else (OSError,)
    try:
        yield
    except full as error:
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise StudyError(
            f"cannot write {target.name}: {reason}; free some disk space or set AFTER_UPDATE_CACHE", ENVIRONMENT
        ) from error


def atomic_file(target: Path, write: Callable[[Path], object]) -> Path:
    """`target`, written by `write` into a neighbour first: afterwards it holds the old content or the new, never half."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def atomic_folder(target: Path, write: Callable[[Path], None]) -> Path:
    """`target`, written by `write` into a neighbour first and renamed at the end, so that it is whole or absent."""
    if target.is_dir():
        return target
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _writing(target):
            write(temporary)
            if not target.is_dir():  # else another process was faster: its copy is as good as ours
                _rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _rename(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():
            raise


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Runs the block while no other process makes the same cached thing: what two chapters need is made by one of them.

    The system lets a lock go when its process ends, however it ends. Where no lock can be written, as beside a shared cache that
    is only read, the block runs without: twice the work, and the same bytes.
    """
    from filelock import FileLock

    lock = FileLock(cache_folder() / "locks" / f"{path.parent.name}-{path.name}")
    with suppress(OSError):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()  # also of a lock that was never held


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
