"""The command `revalidate`: what it takes, and what it leaves behind, so that it can stand before a deployment as a gate."""

import argparse
from pathlib import Path
from typing import Any

from helpers.folders import project_root
from helpers.revalidation.options import TOKENS, Options

DEFAULTS = Options()
OUT = "revalidation"

FILES = {
    "--base": "the model that the monitors were frozen on: embedded, a folder, or owner/name@revision",
    "--update": "the folder of an adapter, of a merged model, or of checkpoints of either; or a quantizer such as nf4",
    "--monitors": "a folder of saved monitors",
    "--fit": "instead of --monitors: a labelled .jsonl or .csv on which monitors are fitted and frozen",
    "--texts": "unlabelled .jsonl, .csv or .txt, one text a row",
    "--labels": "labelled .jsonl or .csv; without it no monitor can be shown fit",
    "--scores": "instead of models and texts: a table of scores, for monitors that are not ours",
    "--prompts": "prompts with a column kind, harmful or safe; or embedded, those of verified packages",
    "--policy": "what monitors must do: revalidate.toml, or a pyproject.toml with [tool.after-the-update]",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command takes; what goes together is checked with the inputs."""
    what = command.add_argument_group("what to look at")
    for name, text in FILES.items():
        what.add_argument(name, default="", help=text)
    what.add_argument("--evidence", default="", help="a report to be judged anew, under --policy or its own; no model is read")
    what.add_argument("--diff", nargs=2, metavar=("OLD", "NEW"), help="compare two reports, named by folder; nothing is run")
    how = command.add_argument_group("how")
    how.add_argument("--out", default="", help=f"folder of the report (default: {OUT}; with --evidence none is written)")
    how.add_argument("--comment", default="", metavar="FILE", help="write a summary for a pull request there, in Markdown")
    how.add_argument(
        "--steps", default=DEFAULTS.steps, choices=("bisect", "all"),
        help="where --update holds checkpoints: which of them are looked at (default: %(default)s)",
    )  # fmt: skip
    replied = "with --prompts: tokens of a reply, at most (default: %(default)s)"
    how.add_argument("--reply-tokens", type=int, default=DEFAULTS.reply_tokens, help=replied, metavar="N")
    plain: dict[str, Any] = {"metavar": "N"}
    how.add_argument(
        "--precision", default=DEFAULTS.precision, help="what an adapter is served on: bf16 or a quantizer (default: %(default)s)"
    )
    how.add_argument("--required", default="", help="monitors that must be fit, with commas (default: the policy's, else all)")
    how.add_argument(
        "--budget", type=int, default=DEFAULTS.budget, help="texts that can be labelled next (default: %(default)s)", **plain
    )
    read = f"tokens of a text that are read; 0: as many as the monitors were frozen at, else {TOKENS}"
    how.add_argument("--texts-limit", type=int, default=DEFAULTS.texts_limit, help=read, **plain)
    depth = "with --fit: where to read, a share of the network (default: %(default)s)"
    how.add_argument("--depth", type=float, default=DEFAULTS.depths[0], help=depth)
    how.add_argument("--seed", type=int, default=DEFAULTS.seed, **plain)
    how.add_argument("--device", default=DEFAULTS.device)
    how.add_argument("--instant", default="", help="what chat templates see as now (default: what the monitors were frozen at)")
    how.add_argument("--threads", type=int, default=DEFAULTS.threads, **plain)


def project_path(name: str) -> Path:
    """A path as it stands, or where there is no such thing and it is relative, the same in the project's folder."""
    path = Path(name)
    return path if path.is_absolute() or path.exists() else project_root() / path


def in_project(**given: str) -> dict[str, str]:
    """What was given, each file found also from a folder within the project, such as notebooks/."""
    return {name: str(project_path(value)) if value and project_path(value).exists() else value for name, value in given.items()}


def revalidate(options: argparse.Namespace) -> dict[str, Any]:
    """The report, whose `code` is the exit code; its files and the monitors that came out are written below `--out`."""
    from helpers.console import say

    if options.diff:
        return compare_files(*map(Path, options.diff))
    say("revalidate: starting")  # before anything heavy is loaded, which takes seconds
    from helpers.revalidation.report import files as report_files

    asked = _asked(options)
    folder = Path(options.out or OUT)
    written = bool(options.out or not asked.evidence)
    if written:
        _apart(folder, asked.evidence)
        report_files.ready(folder, asked.monitors)
    make = _of_evidence if asked.evidence else _of_scores if asked.scores else _of_models
    report = make(asked, folder if written else None)
    for line in report_files.report_lines(report):
        say(line)
    if options.comment:
        report_files.write_comment(report, Path(options.comment))
    if written:
        say(f"report: {folder / 'report.html'}")
    return report


def _asked(options: argparse.Namespace) -> Options:
    """What was asked for."""
    required = tuple(name.strip() for name in options.required.split(",") if name.strip())
    files = {name.strip("-"): getattr(options, name.strip("-")) for name in FILES}
    return Options(**files, required=required, precision=options.precision, seed=options.seed, evidence=options.evidence,
                   budget=options.budget, depths=(options.depth,), texts_limit=options.texts_limit, device=options.device,
                   threads=options.threads, instant=options.instant, steps=options.steps,
                   reply_tokens=options.reply_tokens)  # fmt: skip


def _apart(folder: Path, evidence: str) -> None:
    """Raises StudyError where a new report would replace the evidence that it is made of."""
    from helpers.errors import StudyError

    path = Path(evidence)
    if evidence and folder.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise StudyError(f"--out {folder.name} holds the evidence, which a new report would replace; name another folder")


def _of_evidence(asked: Options, folder: Path | None) -> dict[str, Any]:
    """The report of evidence alone, written where there is a folder."""
    from helpers.console import say
    from helpers.revalidation.evidence import replay
    from helpers.revalidation.report import files as report_files

    report = replay.replay(asked, say)
    if folder:
        report_files.write(report, folder)
    return report


def _of_scores(asked: Options, folder: Path | None) -> dict[str, Any]:
    """The report of scores alone, written; no torch and no transformers are needed for it."""
    from helpers.console import say
    from helpers.revalidation import score_file
    from helpers.revalidation.report import files as report_files

    report = score_file.run_scores(asked, say)
    report_files.write(report, folder or Path(OUT))
    return report


def _of_models(asked: Options, folder: Path | None) -> dict[str, Any]:
    """The report of two models, written with the monitors that came out."""
    from helpers.console import say
    from helpers.revalidation import run
    from helpers.revalidation.report import files as report_files

    found = run.run(asked, say)
    report_files.write(found.report, folder or Path(OUT))
    run.save(found, folder or Path(OUT))
    return found.report


def compare_files(old: Path, new: Path) -> dict[str, Any]:
    """What changed between two reports; it ends with 0, since it is no verdict."""
    from helpers.console import say
    from helpers.revalidation.report import diff as report_diff
    from helpers.revalidation.report import files as report_files

    diff = report_diff.compare(*(report_files.read(path) for path in (old, new)))
    for line in report_diff.diff_lines(diff):
        say(line)
    return {**diff, "code": 0}
