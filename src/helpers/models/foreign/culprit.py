"""Culprits: which field of which foreign file makes a library fail, found by leaving out one field after the other.

Only asked after a failure: each try reads a copy of the small files of a folder in which one field is missing or replaced.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.errors import shown

# What stands in for a field that nothing works without
REPLACED: Mapping[str, Any] = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens", "truncation", "padding", "version")
HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
MOST, SECONDS = 60, 5.0  # fields of a file that are tried, and how long


def field_at_fault(folder: Path, files: Sequence[str], works: Callable[[Path], object], message: str = "") -> str:
    """`folder/file: field is value` for the first field without which `works(copy of the folder)` raises nothing; else "".

    A file that is no JSON object is itself at fault. Fields that the library's message names are tried first; after SECONDS
    none is tried any more.
    """
    until = time.monotonic() + SECONDS
    for name in files:
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return f"{folder.name}/{name} is no JSON file"
        if not isinstance(found, dict):
            return f"{folder.name}/{name} is a {type(found).__name__}, no JSON object"
        for field, without in sorted(_without_one(found, name), key=lambda pair: pair[0] not in message):
            if time.monotonic() > until:
                return ""
            if _works(folder, name, without, works):
                return f"{folder.name}/{name}: {field} is {_told(found[field])}"
    return ""


def _without_one(found: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file's content without one field, for each of them; what cannot be missing has another value."""
    fields = [field for field in PARTS if field in found] if name == "tokenizer.json" else list(found)[:MOST]
    for field in fields:
        rest = {key: value for key, value in found.items() if key != field}
        yield field, {**rest, field: REPLACED[field]} if field in REPLACED else rest
    for field in fields:  # a number that must be there, and whose default does not go with the others
        if isinstance(found[field], int | float) and not isinstance(found[field], bool):
            yield field, {**found, field: 1}


def _works(folder: Path, name: str, content: dict[str, Any], works: Callable[[Path], object]) -> bool:
    """Whether a copy of the folder with another content of one file can be read."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / folder.name
        copy.mkdir()
        for path in folder.iterdir():
            if path.is_file() and path.name != name and not path.name.endswith(HEAVY):
                os.symlink(path.resolve(), copy / path.name)
        (copy / name).write_text(json.dumps(content), encoding="utf-8")
        try:
            works(copy)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # Rust code panics with something that is no Exception
            return False
    return True


def _told(value: Any) -> str:
    """The value of a field; of a part of a tokenizer its type, since the whole may be megabytes."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return f"of type {shown(value['type'])}"
    return shown(value)
