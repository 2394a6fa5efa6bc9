"""The operating system: what is asked of it that differs from one to another, and what cannot be done on Windows.

Windows runs the light path: exercises, tables, and `revalidate` on scores. It gives neither the memory of processes that have
ended nor process groups that can be ended whole, so the study itself asks for Linux or macOS.
"""

import sys
from contextlib import suppress

from helpers.errors import ENVIRONMENT, StudyError


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


def check(what: str) -> None:
    """Raises StudyError where `what` cannot be run on this system."""
    if sys.platform == "win32":
        can = "exercises, tables and revalidate --scores run here"
        raise StudyError(f"{what} needs Linux or macOS; on Windows run it in WSL ({can})", ENVIRONMENT)
