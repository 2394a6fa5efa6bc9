"""A user's own task from a .jsonl or .csv file, refused in one line that names a row by its number and shows no text."""

from collections.abc import Collection
from pathlib import Path

from helpers import corpora
from helpers.errors import REFUSED, StudyError
from helpers.rowfiles import LARGEST_FILE, MOST_ROWS
from helpers.parameters import checked_name
from helpers.splits import SPLITS, Example, check, in_splits, linked





def is_file_name(name: str) -> bool:
    """Whether a name is that of a file that may hold a task, be it there or not."""
    return Path(name).suffix.lower() in {".jsonl", ".csv"}


def read(path: Path, taken: Collection[str] = ()) -> list[Example]:
    """The rows of a file, checked: `text` (or `prompt`), `label` (0, 1, true, false), optional `reply`, `group`, `split`.

    Without `split` the groups are dealt out by hash (`SHARES`); without `group` near duplicates share one. The task is called
    as the file is, which must be none of the names that are `taken`.
    """
    task = checked_name(path.stem.lower(), "task file")
    if task in taken:
        raise StudyError(f"task file {path.name} has the name of a task of the study; give it another name", REFUSED)
    if path.stat().st_size > LARGEST_FILE:
        raise StudyError(f"{path.name} has {path.stat().st_size} bytes; a task file has at most {LARGEST_FILE}", REFUSED)
    # no columns are asked for here: the error would list the first line, which is a text where the header is missing
    try:
        table = corpora.read_csv(path) if path.suffix.lower() == ".csv" else corpora.read_jsonl(path)
    except OSError as error:
        raise StudyError(f"{path.name} cannot be read ({error.strerror}); check its permissions", REFUSED) from error
    if len(table) > MOST_ROWS:
        raise StudyError(f"{path.name} has {len(table)} rows; a task file has at most {MOST_ROWS}", REFUSED)
    rows = [_row(line, task, f"{path.name} row {number}") for number, line in enumerate(table, start=1)]
    for column in ("group", "split"):
        filled_in = [bool(getattr(row, column)) for row in rows]
        if any(filled_in) and not all(filled_in):
            place = f"{path.name} row {filled_in.index(False) + 1}"
            raise StudyError(f"{place} has no {column}, others have one; fill the column or remove it", REFUSED)
    rows = _groups(rows)
    check(rows, path.name)
    return rows


def _groups(rows: list[Example]) -> list[Example]:
    if not rows[0].split:
        return in_splits(linked(rows))
    return rows if rows[0].group else linked(rows)


def _row(line: dict, task: str, place: str) -> Example:
    if None in line:
        raise StudyError(f"{place} has more fields than the header; quote texts that hold a comma", REFUSED)
    labels = {"0": 0, "1": 1, "false": 0, "true": 1}
    label = labels.get(str(line.get("label")).strip().lower())
    if label is None:
        raise StudyError(f"{place} has no label 0, 1, true or false; give one in a column 'label'", REFUSED)
    prompt = _field(line, "text" if "text" in line else "prompt", place)
    if not prompt.strip():
        raise StudyError(f"{place} has no text; give one in a column 'text' or 'prompt'", REFUSED)
    group, split = (str(line.get(column) if line.get(column) is not None else "").strip() for column in ("group", "split"))
    if split and split not in SPLITS:
        raise StudyError(f"{place} has another split than {', '.join(SPLITS)}; use these names", REFUSED)
    return Example(task, split, label, _encodable(group, place), prompt, _field(line, "reply", place))


def _field(line: dict, column: str, place: str) -> str:
    value = line.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StudyError(f"{place}: its {column} is a {type(value).__name__}; write a text in quotes", REFUSED)
    return _encodable(value, place)


def _encodable(text: str, place: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise StudyError(f"{place} holds half a character (a lone surrogate); write the character itself", REFUSED)
    return text
