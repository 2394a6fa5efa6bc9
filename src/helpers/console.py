"""Progress: text bars on stderr with the time that is left, and a small file from which the runner says where a chapter stands.

A static book shows no bars. Bars may be nested: the file holds those that are at work, the outermost first, and loops that
would fill a page with lines are only found there (`over`). A file that cannot be written is no error: nobody then reads it.
"""

import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from helpers.errors import ENVIRONMENT, StudyError
from helpers.folders import RUNNER

SECONDS = 5.0  # between two lines of a bar: an executed chapter keeps every one of them
VARIABLE, FILE = RUNNER, "progress.json"  # the environment variable that names the file, and its name
PAUSE = 0.5  # seconds between two writings of the file


# ---------------------------------------------------------------- bars


@dataclass
class Bar:
    """Work that can be counted: so much of it is done, `detail` last."""

    title: str
    total: int = 0  # 0: not known yet
    done: int = 0
    detail: str = ""
    began: float = field(default_factory=time.time)


_at_work: list[Bar] = []
_written = -PAUSE


def training(title: str) -> Callable[[int, int, float], None]:
    """A callback for `training.tune`: one bar, its steps and the loss of the last one."""
    from tqdm import tqdm  # no part of the light path, where nothing takes long enough for a bar

    bar = tqdm(desc=title, unit="step", file=sys.stderr, mininterval=SECONDS, ascii=True, position=0)
    state = _begin(title)

    def advance(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
        bar.update(step - bar.n)
        _move(state, step, f"loss {loss:.2f}", steps)
        if step == steps:
            bar.close()

    return advance


def counting(title: str, total: int) -> Callable[[str], None]:
    """A callback that moves one bar by one and names what was done last."""
    from tqdm import tqdm

    bar = tqdm(desc=title, total=total, unit=" done", file=sys.stderr, mininterval=SECONDS, ascii=True, position=0)
    state = _begin(title, total)

    def advance(name: str = "") -> None:
        bar.set_postfix_str(name, refresh=False)
        bar.update(1)
        _move(state, bar.n, name)
        if bar.n >= total:
            bar.close()

    return advance


def over(title: str, items: Iterable, total: int = 0) -> Generator:
    """The items one by one, counted in the file alone; `total` where they have no length."""
    state = _begin(title, total or (len(items) if isinstance(items, Collection) else 0))
    try:
        for done, item in enumerate(items, 1):
            yield item
            _move(state, done)
    finally:
        _end(state)


# ---------------------------------------------------------------- the file


def _begin(title: str, total: int = 0) -> Bar:
    """A new bar inside those at work; one of the same title that was never brought to its end makes way for it."""
    for bar in [bar for bar in _at_work if bar.title == title]:
        _end(bar)
    _at_work.append(Bar(title, total))
    _write()
    return _at_work[-1]


def _move(bar: Bar, done: int, detail: str = "", total: int = 0) -> None:
    bar.done, bar.detail, bar.total = done, detail, total or bar.total
    if bar.done >= bar.total > 0:
        _end(bar)
    else:
        _write()


def _end(bar: Bar) -> None:
    """Takes a bar, and what is left inside it, from those at work; the file always learns when nothing is left."""
    places = [i for i, other in enumerate(_at_work) if other is bar]
    if places:
        del _at_work[places[0] :]
        _write(at_once=not _at_work)


def _write(at_once: bool = False) -> None:
    """Writes the file whole, where one is asked for, at most every half second."""
    global _written
    path, now = os.environ.get(VARIABLE), time.monotonic()
    if not path or (now - _written < PAUSE and not at_once):
        return
    _written = now
    with suppress(OSError):
        temporary = Path(f"{path}.tmp")
        temporary.write_text(json.dumps([asdict(bar) for bar in _at_work]), encoding="utf-8", errors="replace")
        os.replace(temporary, path)


def state(path: Path, since: float = 0.0) -> list[Bar]:
    """The bars at work by the file, the outermost first, without those that began before `since`; none without a file."""
    try:
        bars = [Bar(**bar) for bar in json.loads(path.read_text(encoding="utf-8"))]
        return [bar for bar in bars if bar.began >= since]
    except (OSError, ValueError, TypeError):
        return []


# ---------------------------------------------------------------- in words


def shares(bars: Sequence[Bar]) -> float | None:
    """The share of the outermost bar's work that is done, the inner ones as parts of its next step; None where it is unknown."""
    if not bars or bars[0].total <= 0:
        return None
    return (bars[0].done + (shares(bars[1:]) or 0.0)) / bars[0].total


def words(bars: Sequence[Bar]) -> str:
    """The outermost and the innermost bar, as in `variants 3 of 10 (nf4): prompts 64 of 128`."""
    return ": ".join(_one(bar) for bar in [*bars[:1], *bars[1:][-1:]])


def _one(bar: Bar) -> str:
    counted = f" {bar.done:,} of {bar.total:,}" if bar.total else ""
    return f"{bar.title}{counted}{f' ({bar.detail})' if bar.detail else ''}"


def took(seconds: float) -> str:
    """A time as people say it: `40 s`, `2 min 10 s`, `1 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def left(done: float, total: float, seconds: float) -> str:
    """The time left where so much of the total took so many seconds, as `about 4 min left`; nothing where none can be said."""
    if not 0 < done < total:
        return ""
    rest = seconds * (total - done) / done
    if rest < 10:
        return "a few seconds left"
    if rest < 90:
        return f"about {10 * round(rest / 10)} s left"
    return f"about {round(rest / 60)} min left" if rest < 90 * 60 else f"about {rest / 3600:.1f} h left"


ANSI = re.compile(r"\x1b\[[0-9;]*m")


# The folder before it is looked for from the start of a word alone: from every letter of it, a long word took minutes
CELL = re.compile(r"(?:(?<![^\s\"'\x1b])[^\s\"'\x1b]*/)?ipykernel_\d+/\d+\.py")


# What looks like a path of some machine, after the known folders are replaced: only its last part stays.
PATH = re.compile(
    r"(^|[\s\"'(=\[<>:,;`]|\x1b\[[0-9;]*m)/(?:home|root|Users|tmp|var|opt|usr|mnt|srv|private|work|data)((?:/[\w.@+~-]+)+)"
)


@lru_cache
def _known(root: str) -> tuple[tuple[str, str], ...]:
    """The folders of this machine with what stands for them, the longest first."""
    named = {
        os.environ.get("AFTER_UPDATE_CACHE", ""): "cache",
        os.environ.get("AFTER_UPDATE_RESULTS", ""): "results",
        sys.base_prefix: "python",
        sys.prefix: "environment",
        str(Path.home()) if os.environ.get("HOME") else "": "~",
        tempfile.gettempdir(): "tmp",
        root: ".",
    }
    both = {**{os.path.realpath(folder): word for folder, word in named.items() if folder}, **named}
    return tuple(sorted(((folder, word) for folder, word in both.items() if len(folder) > 4), key=lambda pair: -len(pair[0])))


def scrub(text: str, root: Path) -> str:
    """The text without this machine's folders and name; relative paths stay."""
    text = CELL.sub("cell", text)
    for folder, word in _known(str(root)):
        text = text.replace(folder, word)
    text = PATH.sub(lambda match: match[1] + match[2].rsplit("/", 1)[-1], text)
    host = socket.gethostname()
    return re.sub(rf"\b{re.escape(host)}\b", "host", text) if len(host) > 5 and host != "localhost" else text


def _in(value: object, root: Path) -> object:
    if isinstance(value, str):
        return scrub(value, root)
    if isinstance(value, list):
        return [_in(item, root) for item in value]
    if isinstance(value, dict):  # pictures are data, not text
        return {key: item if key.startswith("image/") and "svg" not in key else _in(item, root) for key, item in value.items()}
    return value


def notebook_text(path: Path, root: Path) -> str:
    """The executed notebook as text for keeping: no times, no paths, no host, no random ids; the same run gives the same text."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell.update(id="injected-parameters", source=_in(cell["source"], root))
        if "outputs" in cell:
            cell["outputs"] = _in(cell["outputs"], root)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def say(text: str) -> None:
    """Prints one line at once; a reader who went away is no error."""
    with suppress(OSError):
        print(text, flush=True)


def peak_gb() -> float:
    """The largest memory of any child that has ended, in GB; 0 where the system keeps no such record, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def check_supported(what: str) -> None:
    """Raises StudyError where `what` cannot be run on this system."""
    if sys.platform == "win32":
        can = "exercises, tables and revalidate --scores run here"
        raise StudyError(f"{what} needs Linux or macOS; on Windows run it in WSL ({can})", ENVIRONMENT)
