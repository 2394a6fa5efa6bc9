"""Scrubbing: paths of this machine and its name are taken out of what a run keeps, so that results can be committed."""

import json
import os
import re
import socket
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

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
