"""Jobs: what of a plan is not done is found and made, all of it or one chapter, and what that took is told.

All decisions about what is done are ours (`study.statuses`); what is to do goes to the workflow, or into one kernel.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.cache import write_json, write_whole
from helpers.console import peak_gb, say
from helpers.errors import StudyError
from helpers.folders import LEAN, project_root
from helpers.models.meter import Tokens
from helpers.runner import outlook, workflow
from helpers.runner.guards import locked, orphaned, prepare, protect
from helpers.runner.plans import StudyPlan, fetch
from helpers.study import chapters, fingerprints, parameters, statuses
from helpers.study.chapters import Job, PlannedRun

# ---------------------------------------------------------------- the study


def study(plan: StudyPlan, force: bool = False, jobs: int = 0, cluster: str = "") -> dict[str, Any]:
    """What was run and what it took; `code` is the exit code. Only what is not done runs, all of it with `force`.

    jobs: chapters at a time; 0: as many as the machine has room for.
    """
    begun, where, jobs = time.monotonic(), workflow.cluster_profile(plan.root, cluster), jobs or workflow.at_once(plan)
    os.environ[parameters.FIGURE_FORMS] = plan.figures
    with ExitStack() as locks:
        for run in plan.runs:
            prepare(plan.root / run.folder)
            locks.enter_context(locked(plan.root / run.folder, f"results/{run.profile}/{run.place}"))
            _leave_out(plan, run, force)
        todo = {run: _to_do(plan, run, force) for run in plan.runs}
        for run, names in todo.items():
            for name in (name for name in plan.chapters(run) if name not in names):
                say(f"{name:<20} {run.label}: unchanged")
            for name, reason in names.items():
                if statuses.status(plan.root / run.folder, name):
                    say(f"note: {name} runs again: {reason}")
            _tell_older_figures(plan, run, names)
        code = 0
        if any(todo.values()):
            fetch(plan)
            outlooks = _outlooks(plan, todo, jobs)
            if (ahead := outlook.together(outlooks)) is not None:
                say(f"profile {plan.profile}: {ahead.words}")
            for run, names in ((run, names) for run, names in todo.items() if names):
                statuses.forget(plan.root / run.folder, names)
            code = workflow.make(plan, todo, outlooks, jobs, where)
        states = {run: _finish(plan, run, todo[run]) for run in plan.runs}
    runs = [{"model": run.slug, "seed": run.seed, "chapters": states[run]} for run in plan.runs]
    took = round(time.monotonic() - begun, 1)
    done = [state["tokens"] for states_of_run in states.values() for state in states_of_run.values() if "tokens" in state]
    tokens = asdict(sum((Tokens(**found) for found in done), Tokens()))
    found = {"profile": plan.profile, "code": code, "runs": runs, "seconds": took, "peak_gb": round(peak_gb(), 3)}
    return {**found, "tokens": tokens}


def _leave_out(plan: StudyPlan, run: PlannedRun, force: bool) -> None:
    """Notes beside the tables of a lean run which chapters it does without, and takes away what these left before."""
    folder, without = plan.root / run.folder, sorted(plan.left_out.get(run, ()))
    gone = {name: "lean seeds do without it" for name in without if statuses.status(folder, name)}
    if gone and not protect(plan.root, run, gone, force):
        statuses.forget(folder, gone)
    if without:
        write_json(folder / LEAN, {"left_out": without})
    else:
        (folder / LEAN).unlink(missing_ok=True)


def _tell_older_figures(plan: StudyPlan, run: PlannedRun, todo: Mapping[str, str]) -> None:
    kept = {name: path for name, path in plan.chapters(run).items() if name not in todo}
    older = statuses.older_figures(plan.root / run.folder, kept)
    if older:
        say(f"note: figures of {', '.join(older)} are older than the code that draws them; FORCE=1 draws them from what is kept")


def _to_do(plan: StudyPlan, run: PlannedRun, force: bool) -> dict[str, str]:
    prints = plan.fingerprints(run)
    todo = dict.fromkeys(prints, "asked for by --force") if force else statuses.stale(run, plan.root, prints)
    if protect(plan.root, run, todo, force):
        say(f"note: the old results of {run.label} are in results/.old")
    return todo


def _finish(plan: StudyPlan, run: PlannedRun, todo: Mapping[str, str]) -> dict[str, dict]:
    """The state of each chapter of the run; the manifest is written where all are done."""
    folder = plan.root / run.folder
    entries = {name: statuses.status(folder, name) for name in plan.chapters(run)}
    if all(entries.values()) and not (folder / "manifest.json").is_file():
        from helpers.runner import manifests

        manifests.write_manifest(folder, list(entries))
    states: dict[str, dict] = {}
    for name, entry in entries.items():
        states[name] = {"state": "unchanged" if name not in todo else "run" if entry else "not done"}
        if name in todo and entry:
            states[name] |= {"seconds": entry["seconds"], "peak_gb": entry["machine"]["peak_gb"], "tokens": entry["tokens"]}
    return states


def _outlooks(plan: StudyPlan, todo: Mapping[PlannedRun, Iterable[str]], at_once: int = 1) -> dict[PlannedRun, outlook.Outlook]:
    folders = {run: plan.root / run.folder for run in plan.runs}
    return outlook.of(plan.compute, plan.values, todo, folders, at_once)


def planned(plan: StudyPlan) -> dict[str, Any]:
    """What all chapters of a plan would cost from an empty cache, by run and chapter; a plan over its budget is refused."""
    from helpers.runner import budget  # and with it all that reads texts

    fetch(plan)
    todo = {run: list(plan.chapters(run)) for run in plan.runs}
    ahead = outlook.of(plan.compute, plan.values, todo, {}, workflow.at_once(plan))
    total = outlook.together(ahead)
    if total is None:
        raise StudyError("the notebooks of this project are not the study's own, so nothing is known of their passes")
    for one, part in ahead.items():
        for name, tokens in part.tokens[one].items():
            say(f"{name:<20} {one.label}: {tokens.words if tokens.cost else 'no model is read'}")
    say(f"profile {plan.profile}: {total.words}")
    heavy = max(ahead, key=lambda one: ahead[one].total.cost)
    over = budget.over(plan.profile, ahead[heavy].total.cost)
    if over:
        name, saved = budget.heaviest(plan.values[heavy])
        raise StudyError(f"profile {plan.profile} plans {over}; {name!r} weighs most: half of it saves {saved / 1e6:.2f} M")
    counted = {one.label: {name: asdict(t) for name, t in part.tokens[one].items()} for one, part in ahead.items()}
    return {"profile": plan.profile, "compute": total.compute.name, "tokens": counted, "minutes": round(total.minutes, 1)}


# ---------------------------------------------------------------- one chapter


def chapter(plan: StudyPlan, name: str, force: bool = False) -> dict[str, Any]:
    """What running one chapter in all runs of the plan took; the chapters it needs must be done."""
    name = chapters.find(name, plan.notebooks)
    states = []
    os.environ[parameters.FIGURE_FORMS] = plan.figures
    for run in plan.runs:
        prepare(plan.root / run.folder)
        with locked(plan.root / run.folder, f"results/{run.profile}/{run.place}"):
            _leave_out(plan, run, force)
            states.append({"model": run.slug, "seed": run.seed, **_one(plan, run, name, force)})
    return {"profile": plan.profile, "chapter": name, "code": 0, "runs": states}


def _one(plan: StudyPlan, run: PlannedRun, name: str, force: bool) -> dict[str, Any]:
    from helpers.runner import execution

    folder, prints = plan.root / run.folder, plan.fingerprints(run)
    if name not in prints:
        raise StudyError(
            f"{run.label} is lean and does without {name}; mend `lean` in profiles/{run.profile}.yaml, or leave it out"
        )
    todo = statuses.stale(run, plan.root, prints)
    before = [need for need in chapters.needs(name, prints) if need in todo]
    if before:
        text = f"chapter {name} needs {before[0]} ({todo[before[0]]})"
        raise StudyError(f"{text}; run: python -m helpers chapter {before[0]} --profile {run.profile}")
    if name not in todo and not force:
        say(f"{name:<20} {run.label}: unchanged")
        return {"state": "unchanged"}
    later = {
        other: todo.get(other, f"{name} runs again") for other in prints if other == name or name in chapters.needs(other, prints)
    }
    if protect(plan.root, run, later, force):
        raise StudyError(
            f"the old results of {run.label} are in results/.old; now run them all: make study PROFILE={run.profile}"
        )
    statuses.forget(folder, later)
    ahead = _outlooks(plan, {run: [other for other in later if other == name or other in chapters.READ_MODELS]}).get(run)
    marks = fingerprints.marks(plan.notebooks[name])
    job = Job(name, run, plan.values[run][name], prints[name], plan.seconds, {}, marks, *outlook.of_job(ahead, run, name))
    entry = execution.execute(job, plan.root, plan.notebooks[name], lambda: (folder / ".lock").unlink(missing_ok=True))
    report(job, entry)
    _finish(plan, run, later)
    return {"state": "run", "seconds": entry["seconds"], "peak_gb": entry["machine"]["peak_gb"]}


def report(job: Job, entry: Mapping[str, Any]) -> None:
    """Prints the one line of a finished chapter."""
    tokens = f"{Tokens(**entry['tokens']).words}, " if any(entry["tokens"].values()) else ""
    took = f"{entry['seconds']:.1f} s, peak {entry['machine']['peak_gb']:.2f} GB"
    say(f"{job.chapter:<20} {job.run.label}: {tokens}{took}")


def execute_job(path: Path) -> int:
    """The exit code of one job of a plan, which a file describes: what the Snakefile calls."""
    from helpers.runner import execution

    found = json.loads(path.read_text(encoding="utf-8"))
    run = PlannedRun(**{**found["run"], "folder": Path(found["run"]["folder"])})
    job, failed = Job(**{**found, "run": run}), path.resolve().with_suffix(".failed")
    if orphaned(job.runner):
        return 143
    try:
        report(job, execution.execute(job, project_root(), Path("notebooks") / f"{job.chapter}.ipynb"))
    except StudyError as error:
        say(f"error: {error}")
        write_whole(failed, json.dumps({"code": error.code, "error": str(error)}))
        return error.code
    return 0
