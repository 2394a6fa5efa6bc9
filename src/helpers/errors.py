"""The one error that this package raises on purpose, and the exit codes that go with it.

Every message is one line: the thing, the value, the remedy. The command line prints it without a traceback and ends
with `code`; 1 is never used on purpose, so that a crash can never be mistaken for a verdict.
"""

import difflib
import re
from collections.abc import Iterable

USAGE = 2
REFUSED = 12
NOT_COMPARABLE = 13
ENVIRONMENT = 14


class StudyError(Exception):
    """An expected failure, said in one line; `code` is the exit code of the command that meets it."""

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


NAME = re.compile(r"(?!\.)[a-z0-9._-]{1,64}")


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the closest of the names, or nothing where none is close."""
    found = difflib.get_close_matches(name, [*names], 1, 0.5)
    return f"did you mean {found[0]!r}? " if found else ""


def shown(value: object, longest: int = 60) -> str:
    """The value as it stands in an error: one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def checked_name(name: str, what: str = "profile") -> str:
    """The name, if it can safely be part of a path."""
    if not NAME.fullmatch(name):
        raise StudyError(
            f"{what} {shown(name)} is no valid name; use 1 to 64 of a-z 0-9 . _ - and no leading dot: [a-z0-9._-]{{1,64}}"
        )
    return name
