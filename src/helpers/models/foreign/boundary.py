"""The boundary: whatever somebody else's files make transformers, tokenizers or jinja raise becomes one line and an exit code.

Files of other people can make a library raise anything: assertions, key errors, recursion, panics of Rust code, which are no
`Exception`. All of it is caught here and nowhere else; the original is kept as the cause, and `--debug` prints it.
"""

import errno
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from helpers.errors import ENVIRONMENT, REFUSED, StudyError

OURS = (StudyError, KeyboardInterrupt, SystemExit, GeneratorExit)
FULL = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.EDQUOT})
LONGEST = 160  # characters of a library's message that are shown


@contextmanager
def foreign(what: str, remedy: str, culprit: Callable[[str], str] | None = None, code: int = REFUSED) -> Iterator[None]:
    """Runs a block that reads foreign files; what it raises becomes `what (reason); remedy` with that exit code.

    culprit: given the message after a failure, a better `what`, which names file, field and value; "" if it finds none. A full
    memory or disk is no fault of a file and ends with ENVIRONMENT.
    """
    try:
        yield
    except OURS:
        raise
    except BaseException as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in FULL):
            raise StudyError(f"{what}: no room for it ({reason(error)}); free memory or disk space", ENVIRONMENT) from error
        named = culprit(str(error)) if culprit else ""
        raise StudyError(f"{named or what} ({reason(error)}); {remedy}", code) from error


@contextmanager
def at_most(seconds: float, late: str) -> Iterator[None]:
    """Ends a block that takes longer with the line `late`, where the system has the timer and nobody else uses it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        raise StudyError(late, REFUSED)

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reason(error: BaseException) -> str:
    """The message of an exception as one short line of printable signs, with its type where it says little by itself."""
    text = one_line(str(error).removesuffix(" Error:"))
    if isinstance(error, KeyError | IndexError | AssertionError | ArithmeticError | RecursionError) or len(text) < 3:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def one_line(text: str) -> str:
    """The text with its blanks and line breaks as single blanks, and signs that would steer a terminal as question marks."""
    return " ".join("".join(sign if sign.isprintable() or sign.isspace() else "?" for sign in text).split())


def read_json(path: Path) -> Any:
    """What a JSON file holds; one that is no UTF-8, no JSON, or nested without end is refused by name."""
    what = f"{path.parent.name}/{path.name} cannot be read as JSON"
    with foreign(what, "save or fetch the file again"):
        return json.loads(path.read_text(encoding="utf-8"))
