"""The book as it is published: built once for all tests of a session, from committed results, by the project's own code."""

import functools
import shutil
import tempfile
from pathlib import Path

from helpers import pages

ROOT = Path(__file__).parents[1]
OWN = {"build", "logs"}  # of the project; a build for tests writes into folders of its own


@functools.cache
def book() -> Path:
    """The folder of the built pages."""
    root = Path(tempfile.mkdtemp(prefix="published-"))
    for entry in ROOT.iterdir():
        if entry.name not in OWN and not entry.name.startswith("."):
            (root / entry.name).symlink_to(entry)
    profile, folder = pages.find_run(ROOT, ROOT / "results", "")
    return (root / pages.build(root, profile, folder)[0]).parent


def forget() -> None:
    """Removes what `book` has built, if it was built."""
    if book.cache_info().currsize:
        shutil.rmtree(book().parents[3], ignore_errors=True)
