"""The command line: `python -m helpers study|chapter|book|revalidate|check|doctor|...`. Exit codes are those of errors.py."""

import argparse
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from helpers import console
from helpers.errors import ENVIRONMENT, StudyError
from helpers.folders import project_root, results_root

SCRIPT = "after-the-update"
BUILT = ("build", "logs", ".snakemake", "results/quick", "results/smoke")  # what `clean` removes; committed results never


class Interrupted(SystemExit):
    """SIGTERM or SIGINT reached the command; its code is 143 or 130."""


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    called = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m helpers"
    top = argparse.ArgumentParser(called, description="After the Update: run the study, build the book.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        _options(name, commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + "."))
    return top


COMMANDS = {
    "study": "run all chapters of a profile that are not done, then build the book",
    "chapter": "run one chapter of a profile",
    "book": "build the book from executed chapters; no model is touched",
    "findings": "print the verdicts of a profile, or with --diff which of them moved between two folders of results",
    "pdf": "print the whole book to one file; needs chromium",
    "verify": "measure chapters again from an empty cache and compare every table with the stored one",
    "revalidate": "say which frozen monitors an update of your own model broke, and what mends them",
    "check": "check a profile; nothing is run",
    "plan": "count the tokens that a profile will read and train, and the minutes that takes here; nothing is run",
    "doctor": "compare the installed packages with requirements.lock; disk, cache and missing sources",
    "headline": "draw the README's figure from the tables of a finished profile",
    "lesson": "keep what a finished run of quick gave, for the page on what a class will see",
    "clean": "remove build/, logs/ and the results of the quick and smoke profiles",
}


def _options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "chapter":
        command.add_argument("name", nargs="?", help="02, quantization or 02_quantization")
        command.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    if name == "revalidate":
        from helpers.revalidation.cli import add_options

        add_options(command)
    if name == "findings":
        from helpers.book.verdict_history.command import add_options as add_findings_options

        add_findings_options(command)
    if name in {"study", "chapter", "check", "plan", "book", "pdf", "verify", "headline"}:
        default = None if name in {"book", "pdf", "headline"} else "quick"
        command.add_argument(
            "--profile", default=default, help=f"a file in profiles/ (default: {default or 'the first finished one'})"
        )
        command.add_argument("--model", default="", help="a name, a folder or owner/name@revision; several with commas")
        command.add_argument("--seed", default="", help="a whole number; several as 0,1,2 or 0-2")
    if name in {"study", "chapter", "plan", "verify", "revalidate"}:
        command.add_argument("--compute", default="", help="auto, bf16 or fp32 (default: auto, which asks the machine)")
    if name in {"study", "chapter", "book", "pdf"}:
        command.add_argument(
            "--force", action="store_true", help="run or build again; committed results are kept in results/.old"
        )
    if name == "study":
        command.add_argument("--jobs", type=int, help="how many chapters at a time (default: what cores and memory allow)")
        command.add_argument("--cluster", default="", help="slurm or kubernetes (profiles/clusters/); default: run here")
        command.add_argument("--no-book", action="store_true", help="chapters only")
    if name == "verify":
        command.add_argument("--chapters", default="", help="such as 04,06; with them runs what they need (default: all)")
        command.add_argument(
            "--stamp", action="store_true", help="where all tables are equal, mark the stored results as today's"
        )
    command.add_argument("--json", action="store_true", help="print JSON alone")
    command.add_argument("--debug", action="store_true", help="after an error print also where it comes from")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for word in _words(text):
        first, _, last = word.partition("-")
        if not first.isdecimal() or ("-" in word and not (last.isdecimal() and int(first) <= int(last) < int(first) + 1000)):
            raise StudyError(f"--seed {word!r} is not a whole number; give one such as 0, or several: 0,1,2 or 0-2")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def _plan(options: argparse.Namespace):
    from helpers.runner import plans

    compute, profile = getattr(options, "compute", ""), options.profile or "quick"
    return plans.check(project_root(), profile, _words(options.model), _seeds(options.seed), compute)


# ---------------------------------------------------------------- commands


def study(options: argparse.Namespace) -> dict[str, Any]:
    """What was run, what it took, and where the book is."""
    console.check_supported("the study")
    from helpers.book import pages
    from helpers.console import say, took
    from helpers.models.meter import Tokens
    from helpers.runner import jobs

    if options.jobs is not None and options.jobs < 1:
        raise StudyError(f"--jobs {options.jobs} is not possible; give 1 or more, or leave it out")
    plan = _plan(options)
    found = jobs.study(plan, options.force, options.jobs or 0, options.cluster)
    states = [chapter["state"] for entry in found["runs"] for chapter in entry["chapters"].values()]
    if not found["code"] and not options.no_book and (plan.root / "_toc.yml").is_file():
        folders = [plan.root / run.folder for run in plan.runs]
        shown = next((folder for folder in folders if not pages.missing(plan.root, folder)), None)
        if shown is None:
            say(f"note: no book: {pages.undrawn(folders[0])}")
        else:
            index, new = pages.build(plan.root, plan.profile, shown)
            found["book"] = str(index)
            say(f"book: {index}{'' if new else ' (unchanged)'}")
    failed = states.count("not done")
    counted = f"{len(states) - failed} chapter(s) done, {failed} not: {Tokens(**found['tokens']).words}"
    say(f"{counted}, {took(found['seconds'])}, peak {found['peak_gb']:.2f} GB")
    if failed:
        say("mend the cause above and run the same command again; what is done stays done")
    return found


def chapter(options: argparse.Namespace) -> dict[str, Any]:
    """What running one chapter took."""
    console.check_supported("a chapter")
    from helpers.runner import jobs

    if options.job:
        return {"code": jobs.execute_job(options.job)}
    if not options.name:
        raise StudyError("chapter needs a name, such as 02; see python -m helpers chapter --help")
    return jobs.chapter(_plan(options), options.name, options.force)


def _finished(options: argparse.Namespace) -> tuple[Path, str, Path]:
    """The project, and profile and folder of the finished run that was asked for."""
    from helpers.book import pages
    from helpers.study.parameters import profile as checked_profile

    root, first = project_root(), None
    if options.profile:
        checked_profile(options.profile, root / "profiles")
    if options.model or options.seed:
        first = root / _plan(options).runs[0].folder
    return root, *pages.find_run(root, results_root(), options.profile or "", first)


def headline(options: argparse.Namespace) -> dict[str, Any]:
    """Where the README's figure is."""
    import pandas as pd

    from helpers.console import say
    from helpers.figures import models
    from helpers.figures.drawing import theme

    root, profile, folder = _finished(options)
    tables = [pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in ("behaviour", "utility")]
    target = root / "book" / "_static" / "headline.png"
    theme.style()
    models.refusals_by_harm(*(models.with_arms(table, "dialogue") for table in tables)).savefig(target, dpi=110)
    say(f"drawn from profile {profile}: {target.relative_to(root)}")
    return {"profile": profile, "figure": str(target.relative_to(root))}


def lesson(options: argparse.Namespace) -> dict[str, Any]:
    """Where what a class will see is kept."""
    from helpers.book.lesson import quick_run
    from helpers.console import say

    kept = quick_run.keep(project_root())
    say(f"kept: {kept}; make book shows it")
    return {"kept": kept.as_posix()}


def book(options: argparse.Namespace) -> dict[str, Any]:
    """Where the book is."""
    from helpers.book import pages
    from helpers.console import say

    root, profile, folder = _finished(options)
    index, new = pages.build(root, profile, folder, options.force)
    say(f"book of profile {profile}: {index}{'' if new else ' (unchanged)'}")
    return {"profile": profile, "book": str(index), "built": new}


def findings(options: argparse.Namespace) -> dict[str, Any]:
    """The verdicts of a profile, or what moved between two folders of results."""
    from helpers.book.verdict_history import command

    return command.findings(options)


def pdf(options: argparse.Namespace) -> dict[str, Any]:
    """Where the book as one PDF is."""
    from helpers.book.away import pdf as printing

    return printing.pdf(*_finished(options), options.force)


def check(options: argparse.Namespace) -> dict[str, Any]:
    """The checked parameters of every chapter."""
    from helpers.console import say

    plan = _plan(options)
    say(f"profile {plan.profile}: {len(plan.notebooks)} chapter(s), {len(plan.runs)} run(s), all parameters are valid")
    return {
        "profile": plan.profile,
        "runs": [{"model": run.slug, "seed": run.seed, "parameters": plan.values[run]} for run in plan.runs],
    }


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """What was compared, table by table."""
    from helpers.runner import verification

    named = (_words(options.model), _seeds(options.seed), _words(options.chapters))
    return verification.verify(project_root(), options.profile, *named, options.stamp)


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """The tokens that a profile plans, by run and chapter, from an empty cache."""
    from helpers.runner import jobs

    return jobs.planned(_plan(options))


def revalidate(options: argparse.Namespace) -> dict[str, Any]:
    """The report on an update of the user's own model."""
    from helpers.models import compute as computing
    from helpers.revalidation import cli

    if not options.compute:
        return cli.revalidate(options)
    with computing.using(options.compute):
        return cli.revalidate(options)


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """What differs from the pins, and what a run would lack."""
    from helpers.console import say
    from helpers.runner.doctor import examine, lines

    found = examine(project_root())
    for line in lines(found):
        say(line)
    return {**found, "code": ENVIRONMENT if found["differences"] else 0}


def clean(options: argparse.Namespace) -> dict[str, Any]:
    """The names of what was removed."""
    from helpers.console import say

    root = project_root()
    removed = [name for name in BUILT if (root / name).exists()]
    for name in removed:
        shutil.rmtree(root / name)
    say(f"removed: {', '.join(removed) or 'nothing'}")
    return {"removed": removed}


# ---------------------------------------------------------------- running them


def _interrupted(number: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # what follows is the clearing up
    raise Interrupted(128 + number)


def _remedy(error: ModuleNotFoundError) -> str:
    """What to install where a package is missing, as after a plain `pip install .`; a module of ours that is missing is a bug."""
    package = (error.name or "helpers").partition(".")[0]
    if package == "helpers":
        raise error
    how = 'pip install "after-the-update[study]"; in a clone: pip install ".[study]", or make env'
    return f"this needs the package {package}, which is not installed; install the extra `study`: {how}"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of one command; expected failures are one line on stderr."""
    # before torch is imported: a waiting thread gives its core away, or on a busy machine a pass takes many times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = parser().parse_args(words)
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)
    out = sys.stdout
    try:
        with redirect_stdout(sys.stderr if options.json else out):
            found = globals()[options.command](options)
    except StudyError as error:
        if options.debug:
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        found = {"code": error.code, "error": str(error)}
    except ModuleNotFoundError as error:
        found = {"code": ENVIRONMENT, "error": _remedy(error)}
        print(f"error: {found['error']}", file=sys.stderr)
    except Interrupted as stop:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        found = {"code": stop.code, "error": "interrupted"}
    if options.json:
        print(json.dumps(found, indent=1), file=out)
    return int(found.get("code", 0))


def script() -> int:
    """The same for the console script `after-the-update` and for `python -m helpers`."""
    for stream in (sys.stdout, sys.stderr):  # a console that lacks a letter, as on Windows, shows its code instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except BrokenPipeError:  # the reader of our lines went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(script())
