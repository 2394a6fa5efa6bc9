"""The sources come whole, verified and once, or not at all; offline here, against tiny packages made on the spot."""

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from helpers import cache as cache_files
from helpers.data import archives, downloads, source_list, sources
from helpers.data.source_list import Source
from helpers.errors import ENVIRONMENT, REFUSED, USAGE, StudyError

SRC = Path(sources.__file__).resolve().parents[2]
FILES = {"a.txt": "tiny/data/a.txt", "sub/b.txt": "tiny/data/b.txt"}
TEXTS = {"tiny/data/a.txt": b"first\n", "tiny/data/b.txt": b"second\n", "tiny/other.py": b"raise SystemExit\n"}
INFO = "tiny-1.0.dist-info"
META = {f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n", f"{INFO}/WHEEL": b"Wheel-Version: 1.0\n"}
# nothing in this sdist can be built: its backend is not installed and what it requires does not exist
PYPROJECT = b"[build-system]\nrequires = ['absent-on-purpose']\nbuild-backend = 'absent.on.purpose'\n"
FAKE_PIP = """
import os, pathlib, shutil, sys
if archive := os.environ.get("FAKE_ARCHIVE"):
    dest = pathlib.Path(next(a for a in sys.argv if a.startswith("--dest="))[7:])
    dest.mkdir()
    shutil.copy(archive, dest)
else:
    sys.exit("ERROR: " + os.environ.get("FAKE_WORD", "No matching distribution found"))
"""


def _zip(file: Path, members: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            out.writestr(info, data)
    return file


def _tar(file: Path, members: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(file, "w:gz") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(f"tiny-1.0/{name}")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(f"tiny-1.0/{link}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            out.addfile(info)
    return file


def _source(archive: Path, **changes) -> Source:
    fields = {
        "package": "tiny",
        "version": "1.0",
        "kind": "wheel" if archive.suffix == ".whl" else "sdist",
        "size": archive.stat().st_size,
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "licence": "MIT",
        "upstream": "its own",
        "use": "tests",
        "files": FILES,
        "backend": "absent.on.purpose",
    }
    return Source(**(fields | changes))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a pip that sees only the folder `index`."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path / "cache é"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "cache é"


@pytest.fixture
def wheel(cache):
    return _zip(cache.parent / "index" / "tiny-1.0-py3-none-any.whl", TEXTS | META | {f"{INFO}/RECORD": b""})


@pytest.fixture
def sdist(cache):
    return _tar(
        cache.parent / "index" / "tiny-1.0.tar.gz", TEXTS | {"pyproject.toml": PYPROJECT, "PKG-INFO": META[f"{INFO}/METADATA"]}
    )


@pytest.fixture
def use(monkeypatch):
    """Make one source the whole table, brought by a stand-in for pip that hands over the given archive."""

    def choose(source: Source, archive: Path | None = None, real_pip: bool = False) -> Source:
        monkeypatch.setattr(sources, "SOURCES", {source.package: source})
        if not real_pip:
            monkeypatch.setattr(downloads, "_pip", lambda: [sys.executable, "-S", "-c", FAKE_PIP])
            monkeypatch.setenv("FAKE_ARCHIVE", str(archive or ""))
        return source

    return choose


def _left(cache: Path) -> list[str]:
    return [f.name for f in cache.rglob("*") if f.is_file() and f.parent.name != ".locks"]


def _refusal(code: int, *words: str) -> str:
    with pytest.raises(StudyError) as caught:
        sources.ensure()
    message = str(caught.value)
    assert caught.value.code == code
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_pip_brings_the_named_files_and_nothing_else(form, request, cache, use, capfd):
    use(_source(request.getfixturevalue(form)), real_pip=True)
    found = sources.fetch("tiny")
    assert {short: file.read_bytes() for short, file in found.items()} == {"a.txt": b"first\n", "sub/b.txt": b"second\n"}
    assert sources.path("tiny", "a.txt") == found["a.txt"]
    assert sorted(_left(cache)) == ["VERIFIED.json", "a.txt", "b.txt"]
    assert capfd.readouterr() == ("", "")


def test_pip_finding_another_hash_is_refused_with_both(wheel, cache, use):
    source = use(_source(wheel, sha256="0" * 64), real_pip=True)
    _refusal(REFUSED, wheel.name, source.sha256, hashlib.sha256(wheel.read_bytes()).hexdigest(), "index")
    assert _left(cache) == []


def test_our_own_hash_check_does_not_trust_pip(wheel, cache, use):
    other = _zip(cache.parent / wheel.name, {"x": b"y"})
    source = use(_source(wheel), other)
    _refusal(REFUSED, source.sha256, hashlib.sha256(other.read_bytes()).hexdigest())
    assert _left(cache) == []


def test_a_pinned_file_is_checked_too(wheel, cache, use):
    use(_source(wheel, file_sha256={"a.txt": "0" * 64}), wheel)
    _refusal(REFUSED, "a.txt", "0" * 64, hashlib.sha256(b"first\n").hexdigest())
    assert _left(cache) == []


def _lying(file: Path) -> Path:
    """A zip that declares one byte for a member of six."""
    data = _zip(file, TEXTS).read_bytes()
    start = data.index(b"PK\x01\x02")
    file.write_bytes(data[: start + 24] + (1).to_bytes(4, "little") + data[start + 28 :])
    return file


def _doubled(file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("tiny/data/a.txt", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("tiny/data/a.txt", b"two")
    return file


def _cut(file: Path) -> Path:
    _tar(file, TEXTS)
    file.write_bytes(file.read_bytes()[:-40])
    return file


def _garbage(file: Path) -> Path:
    file.write_bytes(b"no archive")
    return file


ZEROS = {"tiny/data/a.txt": bytes(2**21)}
BAD = {
    "file missing": ("t.whl", lambda f: _zip(f, {"tiny/data/a.txt": b""}), "no file 'tiny/data/b.txt'"),
    "path out": ("t.whl", lambda f: _zip(f, TEXTS | {"../../evil.txt": b"x"}), "points outside"),
    "path absolute": ("t.whl", lambda f: _zip(f, TEXTS | {"/tmp/evil.txt": b"x"}), "points outside"),
    "tar path out": ("t.tar.gz", lambda f: _tar(f, TEXTS | {"../../evil.txt": b"x"}), "points outside"),
    "tar link": ("t.tar.gz", lambda f: _tar(f, {"tiny/data/b.txt": b""}, link="tiny/data/a.txt"), "no regular file"),
    "zip link": ("t.whl", lambda f: _zip(f, TEXTS, links=("tiny/data/a.txt",)), "no regular file"),
    "twice": ("t.whl", _doubled, "twice"),
    "one file too big": ("t.whl", lambda f: _zip(f, TEXTS | ZEROS), "the limit is"),
    "bomb": ("t.tar.gz", lambda f: _tar(f, TEXTS | {"bomb": bytes(2**23)}), "unpacks to more"),
    "lying size": ("t.whl", _lying, "broken archive"),
    "cut": ("t.tar.gz", _cut, "broken archive"),
    "garbage": ("t.whl", _garbage, "broken archive"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_unsafe_archive_is_refused_and_leaves_nothing(kind, cache, use, monkeypatch):
    name, make, words = BAD[kind]
    monkeypatch.setattr(archives, "MAX_FILE", 2**20)
    monkeypatch.setattr(archives, "MAX_UNPACKED", 2**22)
    archive = make(cache.parent / name)
    use(_source(archive), archive)
    _refusal(REFUSED, "tiny 1.0", words)
    assert _left(cache) == []
    assert not list(cache.parent.rglob("evil.txt"))


def _script(body: str) -> str:
    """A process of its own that knows the same tiny source, described in TINY."""
    lines = "import json, os, sys, time", "from helpers.data import sources", "from helpers.data.source_list import Source"
    table = "sources.SOURCES = {'tiny': Source(**json.loads(os.environ['TINY']))}"
    return "\n".join([*lines, table, body])


def _spawn(body: str, source: Source) -> subprocess.Popen:
    extra = {"PYTHONPATH": str(SRC), "TINY": json.dumps(vars(source))}
    return subprocess.Popen([sys.executable, "-c", _script(body)], env=os.environ | extra, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_download_once(wheel, cache):
    slow = "def slow(*a, real=sources.extract):\n    print('extracting', file=sys.stderr)\n    time.sleep(1.5)\n    real(*a)\n"
    slow += "sources.extract = slow\n"
    both = [_spawn(slow + "sources.fetch('tiny')", _source(wheel)) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(said) == ["extracting\n", "waiting for another process that fetches tiny 1.0\n"]
    assert sorted(_left(cache)) == ["VERIFIED.json", "a.txt", "b.txt"]


def test_killed_halfway_starts_again_cleanly(wheel, cache, use):
    source = use(_source(wheel), wheel)
    process = _spawn("sources.extract = lambda *a: time.sleep(60)\nsources.fetch('tiny')", source)
    for _ in range(200):
        if "tiny-1.0-py3-none-any.whl" in _left(cache):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "tiny-1.0-py3-none-any.whl" in _left(cache)
    assert sources.missing() == ["tiny"]
    sources.ensure()
    assert sorted(_left(cache)) == ["VERIFIED.json", "a.txt", "b.txt"]


def _flip(file: Path) -> None:
    file.write_bytes(b"F" + file.read_bytes()[1:])
    os.utime(file, ns=(1, 1))


DAMAGE = {
    "byte flipped": lambda home: _flip(home / "a.txt"),
    "cut": lambda home: (home / "a.txt").write_bytes(b""),
    "gone": lambda home: (home / "a.txt").unlink(),
    "record torn": lambda home: (home / "VERIFIED.json").write_text("{"),
    "record of another shape": lambda home: (home / "VERIFIED.json").write_text("[1]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_fetched_again_with_one_note(kind, wheel, cache, use, capsys):
    use(_source(wheel), wheel)
    home = sources.fetch("tiny")["a.txt"].parent
    DAMAGE[kind](home)
    assert sources.fetch("tiny")["a.txt"].read_bytes() == b"first\n"
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert "fetched again" in note


def test_a_touched_file_is_read_once_and_a_silent_flip_is_found_by_full_reading(wheel, cache, use):
    use(_source(wheel), wheel)
    file = sources.fetch("tiny")["a.txt"]
    before = file.stat().st_mtime_ns
    os.utime(file, ns=(1, 1))
    assert sources.missing() == []
    assert file.stat().st_mtime_ns == before
    _flip(file)
    os.utime(file, ns=(before, before))
    assert sources.missing() == []
    assert sources.missing(full=True) == ["tiny"]


def test_a_new_pin_or_a_new_file_makes_the_cache_stale(wheel, cache, use):
    use(_source(wheel, files={"a.txt": FILES["a.txt"]}), wheel)
    sources.ensure()
    use(_source(wheel), wheel)
    assert sources.missing() == ["tiny"]
    assert sources.fetch("tiny")["sub/b.txt"].read_bytes() == b"second\n"
    use(_source(wheel, sha256="0" * 64), wheel)
    assert sources.missing() == ["tiny"]


def test_a_full_cache_needs_neither_network_nor_pip_nor_a_lock(wheel, cache, use, monkeypatch):
    use(_source(wheel), wheel)
    sources.ensure()
    shutil.rmtree(cache / "sources" / ".locks")

    def blocked(*_, **__):
        raise AssertionError("a full cache asks nobody")

    monkeypatch.setattr(socket, "socket", blocked)
    monkeypatch.setattr(subprocess, "Popen", blocked)
    assert sources.path("tiny", "a.txt").read_bytes() == b"first\n"
    assert not (cache / "sources" / ".locks").exists()


def test_offline_with_an_empty_cache_lists_everything_that_lacks(cache, wheel, use, monkeypatch):
    first = use(_source(wheel), real_pip=True)
    wheel.unlink()
    monkeypatch.setattr(sources, "SOURCES", {"tiny": first, "more": _source_named("more", first)})
    message = _refusal(ENVIRONMENT, "tiny 1.0 (a.txt, sub/b.txt)", "more 1.0 (a.txt, sub/b.txt)", "PIP_FIND_LINKS", str(cache))
    assert "No matching distribution" in message
    assert _left(cache) == []


def _source_named(package: str, like: Source) -> Source:
    return Source(**(vars(like) | {"package": package}))


def test_a_full_disk_says_how_much_is_needed(wheel, cache, use, monkeypatch):
    source = use(_source(wheel), wheel)
    need = str(3 * source.size + 32 * 2**20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
        _refusal(ENVIRONMENT, "disk full", need)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_take", _no_space)
        _refusal(ENVIRONMENT, "disk full", need)
    use(source)
    monkeypatch.setenv("FAKE_WORD", "[Errno 28] No space left on device")
    _refusal(ENVIRONMENT, "disk full", need)
    assert _left(cache) == []


def _no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_that_is_a_file_is_named(wheel, cache, use):
    use(_source(wheel), wheel)
    cache.write_text("in the way")
    _refusal(ENVIRONMENT, str(cache), "AFTER_UPDATE_CACHE")
    assert cache.read_text() == "in the way"


def test_without_any_pip_the_remedy_is_said(wheel, cache, use, monkeypatch):
    use(_source(wheel), real_pip=True)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(cache))
    _refusal(ENVIRONMENT, "pip", "install it")


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("AFTER_UPDATE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_files.cache_folder() == tmp_path / "after-the-update"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_files.cache_folder() == tmp_path / ".cache" / "after-the-update"
    (tmp_path / ".cache").write_text("a file in the way")
    assert cache_files.cache_folder() == SRC.parent / ".cache"


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(StudyError, match="'garak'") as caught:
        sources.fetch("garack")
    assert caught.value.code == USAGE
    with pytest.raises(StudyError, match=r"'adv_bench.prompt'"):
        sources.path("pyrit", "advbench.prompt")


def test_the_table_is_sound():
    for name, source in sources.SOURCES.items():
        assert name == source.package
        assert source.kind in ("wheel", "sdist")
        assert (source.kind == "sdist") == bool(source.backend)
        assert set(source.file_sha256) <= set(source.files)
        assert all(len(bytes.fromhex(digest)) == 32 for digest in (source.sha256, *source.file_sha256.values()))
        suffixes = {Path(inside).suffix for inside in source.files.values()}
        assert suffixes <= {".gguf", ".prompt", ".yaml", ".csv", ".json", ".jsonl", ".txt"}
        assert all((source.licence, source.upstream, source.use, source.files))
    for module in (sources, source_list, downloads, archives):
        assert "://" not in Path(module.__file__).read_text("utf-8")


def _readable(file: Path) -> bool:
    """Whether the file is of the format that its name promises; its texts are neither shown nor kept."""
    if file.suffix == ".gguf":
        with open(file, "rb") as stream:
            return stream.read(4) == b"GGUF"
    text = file.read_text("utf-8")
    if file.suffix == ".json":
        return len(json.loads(text)) > 0
    if file.suffix == ".jsonl":
        return all(isinstance(json.loads(line), dict) for line in text.splitlines())
    if file.suffix == ".csv":
        return len({len(row) for row in csv.reader(line for line in _uncommented(file))}) == 1
    return len(text) > 0


def _uncommented(file: Path):
    """The lines after the leading comments; a `#` further down is part of an answer."""
    with open(file, encoding="utf-8-sig", newline="") as lines:
        head = next(line for line in lines if not line.startswith("#"))
        yield head
        yield from lines


@pytest.mark.real
@pytest.mark.parametrize("name", sources.SOURCES)
def test_real_sources_are_as_pinned(name):
    found = sources.fetch(name)
    assert sources.missing([name], full=True) == []
    assert list(found) == list(sources.SOURCES[name].files)
    for short, file in found.items():
        if pinned := sources.SOURCES[name].file_sha256.get(short):
            assert hashlib.sha256(file.read_bytes()).hexdigest() == pinned
        assert _readable(file), short
