"""Files of a user: their kind, size and encoding, checked before a line is read; each refusal says what to do with that kind."""

from collections.abc import Sequence
from pathlib import Path

from helpers.errors import REFUSED, StudyError, shown

LARGEST = 500 * 2**20  # bytes: half a million texts
LONGEST_LINE = 2**20  # bytes: a text of a million letters is a file in the wrong place
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
OTHERWISE = {  # what to do with files of other kinds, by the end of their names
    ".tsv": "it is separated by tabs; save it with commas: pandas.read_csv(path, sep='\\t').to_csv('{stem}.csv', index=False)",
    ".tab": "it is separated by tabs; save it with commas: pandas.read_csv(path, sep='\\t').to_csv('{stem}.csv', index=False)",
    ".json": "it is one JSON document; write an object a line: "
             "pandas.read_json(path).to_json('{stem}.jsonl', orient='records', lines=True)",
    ".ndjson": "it is JSON lines under another name; rename it to {stem}.jsonl",
    ".parquet": "it is a table of columns; write an object a line: "
                "pandas.read_parquet(path).to_json('{stem}.jsonl', orient='records', lines=True)",
    ".feather": "it is a table of columns; write an object a line: "
                "pandas.read_feather(path).to_json('{stem}.jsonl', orient='records', lines=True)",
    ".arrow": "it is a table of columns; write an object a line: datasets.Dataset.from_file(path).to_json('{stem}.jsonl')",
    ".xlsx": "it is a spreadsheet; save it with commas: pandas.read_excel(path).to_csv('{stem}.csv', index=False)",
    **dict.fromkeys((".pkl", ".pickle", ".pt"), "it is a pickle, which can run code; write an object a line as .jsonl"),
    **dict.fromkeys(PACKED, "it is packed; unpack it first"),
}  # fmt: skip


def checked_file(path: Path, what: str, kinds: Sequence[str]) -> Path:
    """The path of a file that can be read line by line."""
    end = path.suffix.lower()
    if end not in kinds:
        how = OTHERWISE.get(end, "save it as one").format(stem=what)
        raise StudyError(f"{what} {shown(path.name)} is not a {' or '.join(kinds)} file; {how}")
    if not path.is_file():
        raise StudyError(f"{what} file {shown(path.name)} does not exist; give the path of a {' or '.join(kinds)} file")
    if path.stat().st_size > LARGEST:
        raise StudyError(f"{path.name} has {path.stat().st_size} bytes; give at most {LARGEST}, such as a sample of it", REFUSED)
    try:
        with path.open("rb") as file:
            long = next((number for number, line in enumerate(file, start=1) if len(line) > LONGEST_LINE), None)
    except OSError as error:
        raise StudyError(f"{path.name} cannot be read ({error.strerror}); check its permissions", REFUSED) from error
    if long:
        raise StudyError(f"{path.name} line {long} is longer than {LONGEST_LINE} bytes; cut or remove it", REFUSED)
    return path


def whole_text(path: Path) -> str:
    """The text of a file in UTF-8, without the mark that some programs begin it with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8", REFUSED) from error
