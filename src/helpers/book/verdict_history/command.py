"""The command `findings`: the verdicts of a profile, or which of them moved between two folders of results."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.book.verdict_history import lines, moves, record
from helpers.book.verdict_history.sides import FILE, read_side
from helpers.cache import plain
from helpers.console import say
from helpers.errors import NOT_COMPARABLE, USAGE, StudyError, checked_name
from helpers.folders import SHOWN, results_root


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command takes."""
    command.add_argument("--profile", default="", help="whose verdicts (default: the first profile that has some)")
    command.add_argument(
        "--diff", nargs=2, metavar=("OLD", "NEW"), help="which verdicts moved between two folders such as results/cpu"
    )
    command.add_argument("--record", default="", metavar="DATE", help="with --diff: keep what moved in NEW/verdicts.json")


def findings(options: argparse.Namespace) -> dict[str, Any]:
    """The verdicts of a profile, or what moved between two folders, in JSON's own types."""
    if options.diff and options.profile:
        raise StudyError("--profile and --diff do not go together; --diff names its folders itself", USAGE)
    if options.record and not options.diff:
        raise StudyError("--record keeps what moved between two folders; name them: --diff OLD NEW", USAGE)
    return _moved(options.diff, options.record) if options.diff else _table(options.profile)


def _moved(names: Sequence[str], day: str) -> dict[str, Any]:
    if day:
        record.checked_date(day)
    old, new = map(read_side, names)
    found = moves.compare(old, new)
    for line in lines.move_lines(found):
        say(line)
    if not day:
        return found
    path = record.append(old, new, found, day)
    say(f"recorded: {Path(new.name) / record.RECORD}" if path else "nothing is recorded")
    return {**found, "recorded": str(Path(new.name) / record.RECORD) if path else ""}


def _table(profile: str) -> dict[str, Any]:
    side = read_side(str(_folder(profile)))
    for line in lines.table_lines(side.findings):
        say(line)
    if side.stored is None:
        say(f"note: there is no {FILE}, so the runs were judged anew")
    rows = side.findings.to_dict("records")
    return plain({"profile": side.folder.name, "rules": side.rules, "runs": [run.label for run in side.runs], "findings": rows})


def _folder(profile: str) -> Path:
    """The results of the named profile, or of the first that has some."""
    root = results_root()
    if profile:
        checked_name(profile)
    for name in (profile,) if profile else SHOWN:
        if (root / name / FILE).is_file() or any((root / name).glob("*/seed-*/manifest.json")):
            return root / name
    text = f"no verdict in results/{profile or '{' + ','.join(SHOWN) + '}'}"
    raise StudyError(f"{text}; run it first: make study PROFILE={profile or 'quick'}", NOT_COMPARABLE)
