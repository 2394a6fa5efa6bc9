"""Installing: pip's or uv's own lines while the environment is made, as one count that moves. Standard library alone.

The Makefile runs this file before anything is installed: `python -I src/helpers/installing.py COMMAND ...`.
"""

import re
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Where an index is unusual, pip says this once a package and index; the package is found elsewhere, or an error follows.
NOISE = re.compile(
    r"WARNING: Location '[^']*' is ignored: it is neither a file nor a directory\.$"
    r"|Looking in (indexes|links): |\s*Requirement already satisfied: |Installing collected packages: |Successfully installed "
    r"|\s+Running command | [+~-] \S+==\S+|\s*$"
)
STEP = re.compile(
    r"\s*(Collecting|Downloading|Using cached|Processing|Obtaining|Building|Preparing|Installing build|Getting|Created wheel"
    r"|Checking if build backend|Stored in|Attempting|Found existing|Uninstalling|Successfully (?:built|uninstalled)|Resolved"
    r"|Prepared|Installed|Audited|Using Python)\b"
)
COLLECTED = re.compile(r"Collecting (\S+)")
SECONDS, PATIENCE = 5.0, 30.0  # between two lines where the last one cannot be written over: if it moved, if it did not


class Count:
    """How many packages were collected and how many lie in the environment, of about as many as the lock has."""

    def __init__(self, total: int, folder: Path):
        self.total, self.folder, self.begun = total, folder, time.monotonic()
        self.before, self.collected, self.name = len(self._installed()), 0, "the first"
        self.last, self.said = self.begun, ""

    def _installed(self) -> list[Path]:
        return sorted(self.folder.glob("*.dist-info"), key=lambda path: path.name)

    def state(self) -> str:
        """The count in words, with the package at hand."""
        found = self._installed()
        if len(found) <= self.before:
            return f"collected {self.collected} of about {self.total} packages, now {self.name}"
        newest = max(found, key=lambda path: path.stat().st_mtime).name.removesuffix(".dist-info").replace("-", " ")
        return f"{len(found)} of about {self.total} packages are installed, the last is {newest}"

    def show(self) -> None:
        """Writes the count over itself on a terminal; elsewhere a line where it moved, and now and then where it did not."""
        now, state = time.monotonic(), self.state()
        line = f"  {now - self.begun:3.0f} s: {state}"
        if sys.stdout.isatty():
            print(f"\r{line[:100]}\033[K", end="", flush=True)
        elif now - self.last >= (SECONDS if state != self.said else PATIENCE):
            self.last, self.said = now, state
            print(line, flush=True)

    def watch(self, over: threading.Event) -> None:
        """Shows the count until it is over; a folder that is gone between two looks is looked for again."""
        while not over.wait(0.5):
            with suppress(OSError):
                self.show()

    def passed(self, line: str) -> str | None:
        """The line, if a person should see it: every warning and error but the known noise; None for steps and noise."""
        if found := COLLECTED.match(line.strip()):
            self.collected, self.name = self.collected + 1, found[1]
        silent = NOISE.match(line) or (STEP.match(line) and "error" not in line.lower())
        return None if silent else line


def run(command: Sequence[str], count: Count) -> int:
    """The exit code of an installer whose lines are counted; what is neither step nor noise is printed at once, on stderr."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    over = threading.Event()
    clock = threading.Thread(target=count.watch, args=(over,), daemon=True)
    clock.start()
    for line in child.stdout or ():
        if (shown := count.passed(line.rstrip())) is not None:
            print(f"\r\033[K{shown}" if sys.stderr.isatty() else shown, file=sys.stderr, flush=True)
    over.set()
    clock.join()
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)
    return child.wait()


def main(words: Sequence[str]) -> int:
    """The exit code of the command."""
    lock = Path("requirements.lock").read_text(encoding="utf-8")
    return run(words, Count(lock.count("=="), Path(sysconfig.get_path("purelib"))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
