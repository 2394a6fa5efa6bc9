"""A user's texts, labels and scores from .jsonl, .csv and .txt files, refused in one line that names a row and shows no text."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from helpers.data import corpora
from helpers.data.intake.files import checked_file, whole_text
from helpers.data.intake.samples import MOST_ROWS, Say, sampled, unsaid
from helpers.data.splits import SPLITS, Example, check, in_splits, linked
from helpers.data.text_rows import Preference, with_exchange
from helpers.errors import REFUSED, StudyError, checked_name, shown

LARGEST_FILE = 50 * 2**20  # bytes of a task file
MOST_READ = 1_000_000  # rows that a sample may be drawn of
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,29}")  # what a column may be called, to be shown
LABELS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}


class ScoreRow(NamedTuple):
    """One line of a score file: what one monitor said of one item before and after; nan and "" where a column is absent."""

    monitor: str
    id: str
    before: float
    after: float
    label: float
    group: str
    threshold: float
    place: str


# ---------------------------------------------------------------- files


def table_rows(path: Path, *needed: str, most: int = MOST_ROWS) -> Iterator[tuple[str, dict]]:
    """Place and columns of every row, at most `most`; `needed`: columns that must be there, `a|b` where either will do."""
    csv = path.suffix.lower() == ".csv"
    # no columns are asked for here: the error would list the first line, which is a text where the header is missing
    try:
        table = corpora.read_csv(path) if csv else corpora.read_jsonl(path)
    except RecursionError as error:
        raise StudyError(f"{path.name} holds brackets within brackets without end; write plain rows", REFUSED) from error
    signs = [sign for sign in (";", "\t") if csv and len(table[0]) == 1 and sign in next(iter(table[0]))]
    if signs:
        raise StudyError(f"{path.name} is separated by {signs[0]!r}, not by commas; save it as comma-separated values", REFUSED)
    if len(table) > most:
        raise StudyError(f"{path.name} has {len(table)} rows; give at most {most}", REFUSED)
    for number, line in enumerate(table, start=1):
        place = f"{path.name} row {number}"
        row = dict(with_exchange(line, place))
        for column in needed:
            if not any(row.get(name) is not None for name in column.split("|")):
                raise StudyError(f"{place} has no {column.replace('|', ' or ')}; {_columns(row)}", REFUSED)
        if None in row:
            what = "quote texts that hold a comma, and write 0.5 for a decimal comma"
            raise StudyError(f"{place} has more fields than the header; {what}", REFUSED)
        yield place, row


def _columns(row: dict) -> str:
    """The columns found, where they are names: a missing header would show a text."""
    names = [str(name) for name in row if name is not None]
    if not all(COLUMN.fullmatch(name) for name in names) or len(names) > 20:
        return f"the file's {len(names)} column(s) are not all plain names, so perhaps its header is missing; add it"
    return f"it has {', '.join(names) or 'no column'}; name the column as asked"


def _text(row: dict, column: str, place: str) -> str:
    """The text of a column, "" where it is absent; half characters have no UTF-8, and no tokenizer takes them."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise StudyError(f"{place}: its {column} is a {type(value).__name__}; write a text in quotes", REFUSED)
    if any("\ud800" <= letter <= "\udfff" for letter in value or ""):
        raise StudyError(f"{place} holds half a character (a lone surrogate); write the character itself", REFUSED)
    return value or ""


def word_in(row: dict, column: str, place: str) -> str:
    """A short name in a column, also where it is written as a number."""
    value = row.get(column)
    return _text({column: value if value is None else str(value)}, column, place).strip()


def prompt_and_reply(row: dict, place: str) -> tuple[str, str]:
    """Prompt and reply of a row."""
    prompt, reply = _text(row, "text" if row.get("text") is not None else "prompt", place), _text(row, "reply", place)
    if not prompt.strip() or (reply and not reply.strip()):
        raise StudyError(f"{place} has an empty text; fill or remove that row", REFUSED)
    return prompt, reply


# ---------------------------------------------------------------- what is read


def unlabelled(path: Path, seed: int = 0, say: Say = unsaid) -> list[Example]:
    """The texts of a file, each once, without labels: lines of a .txt, or columns `text` (or `prompt`) and `reply`.

    Of more than MOST_ROWS a random sample is drawn, and `say` is told.
    """
    path = checked_file(path, "texts", (".jsonl", ".csv", ".txt"))
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in whole_text(path).split("\n")]
        pairs = [prompt_and_reply({"text": line}, f"{path.name} line {n}") for n, line in enumerate(lines, start=1) if line]
    else:
        pairs = [prompt_and_reply(row, place) for place, row in table_rows(path, "text|prompt", most=MOST_READ)]
    if not pairs:
        raise StudyError(f"{path.name} holds no text; give at least one", REFUSED)
    return [Example("", "", 0, "", *pair) for pair in sampled(list(dict.fromkeys(pairs)), path.name, seed, say)]


def labelled(path: Path, seed: int = 0, say: Say = unsaid) -> list[Example]:
    """The rows of a file: `text` (or `prompt`), `label` (0, 1, true, false), optional `reply`, `group`, `task`.

    Without `group` near duplicates share one. Each task needs both labels. Of more than MOST_ROWS a random sample is drawn, and
    `say` is told.
    """
    path = checked_file(path, "labels", (".jsonl", ".csv"))
    rows = [_labelled(row, place) for place, row in table_rows(path, "text|prompt", "label", most=MOST_READ)]
    for column in ("group", "task"):
        filled = [bool(getattr(row, column)) for row in rows]
        if any(filled) and not all(filled):
            place = f"{path.name} row {filled.index(False) + 1}"
            raise StudyError(f"{place} has no {column}, others have one; fill the column or remove it", REFUSED)
    of_task: dict[str, list[int]] = {}
    for row in rows:
        of_task.setdefault(row.task, []).append(row.label)
    _need_both(path.name, of_task)
    _one_label(path.name, rows)
    rows = sampled(rows, path.name, seed, say, lambda row: (row.task, row.label))
    # texts that stand twice are one text, whatever groups they were given
    return rows if rows[0].group and not repeated([f"{row.task}\0{bare(row)}" for row in rows]) else linked(rows)


def _one_label(name: str, rows: Sequence[Example]) -> None:
    """Raises StudyError where one text of a task has both labels: neither can be right."""
    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        before = first.setdefault((row.task, bare(row)), i)
        if rows[before].label != row.label:
            raise StudyError(f"{name}: rows {before + 1} and {i + 1} are one text with both labels; keep the right one", REFUSED)


def _labelled(row: dict, place: str) -> Example:
    return Example(
        word_in(row, "task", place), "", _label(row, place), word_in(row, "group", place), *prompt_and_reply(row, place)
    )


def _label(row: dict, place: str) -> int:
    label = LABELS.get(str(row.get("label")).strip().lower())
    if label is None:
        raise StudyError(f"{place} has no label 0, 1, true or false; give one in a column 'label'", REFUSED)
    return label


def _need_both(name: str, labels: dict[str, list[int]]) -> None:
    """Raises StudyError where a task or monitor has labels of one class: nothing can be told apart."""
    for of, found in labels.items():
        if len(set(found)) < 2:
            which = f" of {shown(of)}" if of else ""
            raise StudyError(f"{name}: all {len(found)} labels{which} are {found[0]}; give rows of both labels", REFUSED)


def scores(path: Path) -> dict[str, list[ScoreRow]]:
    """By monitor, the rows of a score file: `monitor`, `id`, `before`, `after`, optional `label`, `group`, `threshold`.

    A monitor's threshold is one, and labels stand in all of its rows or in none.
    """
    path = checked_file(path, "scores", (".jsonl", ".csv"))
    found: dict[str, list[ScoreRow]] = {}
    for place, row in table_rows(path, "monitor", "id", "before", "after", most=20 * MOST_ROWS):
        one = _score(row, place)
        found.setdefault(one.monitor, []).append(one)
    for monitor, rows in found.items():
        _same(monitor, rows, lambda one: one.threshold, "thresholds")
        _same(monitor, rows, lambda one: math.isnan(one.label), "rows with and without a label")
        _same(monitor, rows, lambda one: not one.group, "rows with and without a group")
        twice = repeated([one.id for one in rows])
        if twice:
            raise StudyError(f"{rows[twice[0]].place}: its id stands {len(twice) + 1} times for one monitor; keep one", REFUSED)
    _spelled_alike([one for rows in found.values() for one in rows])
    _need_both(path.name, {m: [int(one.label) for one in rows] for m, rows in found.items() if not math.isnan(rows[0].label)})
    return found


def _spelled_alike(rows: Sequence[ScoreRow]) -> None:
    """Raises StudyError where two ids differ in their spelling alone, such as 1, 01 and 1.0: are they one item or two?"""
    first: dict[str, ScoreRow] = {}
    for one in rows:
        try:
            number = float(one.id)
        except ValueError:
            number = math.nan
        other = first.setdefault(repr(number) if math.isfinite(number) else one.id.casefold(), one)
        if other.id != one.id:
            what = f"its id {shown(one.id)} and {shown(other.id)} of {other.place} differ in spelling alone"
            raise StudyError(f"{one.place}: {what}; write one item's id in one way", REFUSED)


def _score(row: dict, place: str) -> ScoreRow:
    monitor, name, group = (word_in(row, column, place) for column in ("monitor", "id", "group"))
    if not monitor or not name:
        raise StudyError(f"{place} has an empty monitor or id; fill or remove that row", REFUSED)
    label, cut = (
        float(read(row, place)) if word_in(row, column, place) else math.nan
        for column, read in (("label", _label), ("threshold", partial(_number, column="threshold")))
    )
    before, after = (_number(row, place, side) for side in ("before", "after"))
    return ScoreRow(monitor, name, before, after, label, group, cut, place)


def _number(row: dict, place: str, column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        comma = re.fullmatch(r"\s*[+-]?[\d.]*,\d+\s*", str(row[column]))
        how = "write 0.5, not 0,5" if comma else "leave that row out and count it"
        raise StudyError(f"{place}: its {column} is not a finite number; {how}", REFUSED)
    return value


def _same(monitor: str, rows: Sequence[ScoreRow], of: Callable[[ScoreRow], object], what: str) -> None:
    kinds = {repr(of(row)) for row in rows}
    if len(kinds) > 1:
        raise StudyError(f"monitor {shown(monitor)} has {what} that differ within one file; make them the same", REFUSED)


# ---------------------------------------------------------------- duplicates


def bare(row: Example) -> str:
    """A text as it is compared: case and blanks say nothing."""
    return "\0".join(" ".join(part.casefold().split()) for part in (row.prompt, row.reply))


def repeated(names: Sequence[str], known: Sequence[str] | None = None) -> list[int]:
    """Places of names that are among `known`, or, without it, that stand earlier already."""
    seen, found = set(known or ()), []
    for place, name in enumerate(names):
        if name in seen:
            found.append(place)
        elif known is None:
            seen.add(name)
    return found


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file that may hold a task, be it there or not."""
    return Path(name).suffix.lower() in {".jsonl", ".csv"}


def read_labelled(path: Path, taken: Collection[str] = (), seed: int = 0, say: Say | None = None) -> list[Example]:
    """The rows of a file, checked: `text` (or `prompt`), `label` (0, 1, true, false), optional `reply`, `group`, `split`.

    Without `split` the groups are dealt out by hash (`SHARES`); without `group` near duplicates share one. The task is called
    as the file is, which must be none of the names that are `taken`. More than MOST_ROWS are refused, or where there is a `say`,
    which is then told, a random sample is drawn of them.
    """
    task = checked_name(path.stem.lower(), "task file")
    if task in taken:
        raise StudyError(f"task file {path.name} has the name of a task of the study; give it another name", REFUSED)
    if path.stat().st_size > LARGEST_FILE and say is None:
        raise StudyError(f"{path.name} has {path.stat().st_size} bytes; a task file has at most {LARGEST_FILE}", REFUSED)
    # no columns are asked for here: the error would list the first line, which is a text where the header is missing
    try:
        table = corpora.read_csv(path) if path.suffix.lower() == ".csv" else corpora.read_jsonl(path)
    except OSError as error:
        raise StudyError(f"{path.name} cannot be read ({error.strerror}); check its permissions", REFUSED) from error
    if len(table) > MOST_ROWS and say is None:
        raise StudyError(f"{path.name} has {len(table)} rows; a task file has at most {MOST_ROWS}", REFUSED)
    rows = [_row(line, task, f"{path.name} row {number}") for number, line in enumerate(table, start=1)]
    for column in ("group", "split"):
        filled_in = [bool(getattr(row, column)) for row in rows]
        if any(filled_in) and not all(filled_in):
            place = f"{path.name} row {filled_in.index(False) + 1}"
            raise StudyError(f"{place} has no {column}, others have one; fill the column or remove it", REFUSED)
    rows = _groups(sampled(rows, path.name, seed, say or unsaid, lambda row: (row.split, row.label)))
    check(rows, path.name)
    return rows


def _groups(rows: list[Example]) -> list[Example]:
    if not rows[0].split:
        return in_splits(linked(rows))
    return rows if rows[0].group else linked(rows)


def _row(line: dict, task: str, place: str) -> Example:
    line = dict(with_exchange(line, place))
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


def preferences(file: str) -> list[Preference]:
    """The pairs of a file of one's own, JSON lines with prompt, chosen and rejected; none where no file is named."""
    rows = []
    for place, row in (
        table_rows(checked_file(Path(file), "preferences", (".jsonl",)), "prompt", "chosen", "rejected") if file else ()
    ):
        prompt, chosen, rejected = (_text(row, column, place) for column in ("prompt", "chosen", "rejected"))
        if not all(text.strip() for text in (prompt, chosen, rejected)):
            raise StudyError(f"{place} has an empty text; fill or remove that row", REFUSED)
        rows.append(Preference(prompt, chosen, place, rejected=rejected))
    return rows
