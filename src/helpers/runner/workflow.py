"""The workflow: the jobs of a plan as files, and snakemake, which makes them in order.

Snakemake only orders the jobs of one plan, in a folder that is thrown away afterwards, so that no state of its own can
disagree with the results.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from helpers.cache import write_whole
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, USAGE, StudyError, nearest
from helpers.runner import outlook
from helpers.runner.guards import process_identity
from helpers.runner.plans import StudyPlan
from helpers.study import chapters, fingerprints
from helpers.study.chapters import Job, PlannedRun

MOST = 4  # chapters at once, of which more seldom can: on a machine with more cores somebody else may be at work
GRAVEST = (ENVIRONMENT, REFUSED, NOT_COMPARABLE, 10, 11, USAGE)  # when several codes hold, the first of these


def make(
    plan: StudyPlan, todo: Mapping[PlannedRun, Mapping[str, str]], outlooks: Mapping[PlannedRun, outlook.Outlook], jobs: int,
    cluster: Path | None = None,
) -> int:  # fmt: skip
    """The exit code of running all that is to do, by snakemake in a folder of this invocation."""
    (plan.root / "build" / "runs").mkdir(parents=True, exist_ok=True)
    (plan.root / "logs").mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{plan.profile}-", dir=plan.root / "build" / "runs"))
    try:
        listed = [job for run, names in todo.items() for job in _write_jobs(plan, run, names, outlooks.get(run), place)]
        _in_order_of_runs(listed)
        write_whole(place / "plan.json", json.dumps({"python": sys.executable, "root": str(plan.root), "jobs": listed}))
        code = _snakemake(plan.root, place, jobs * max(job["threads"] for job in listed), cluster)
        failed = [json.loads(path.read_text(encoding="utf-8"))["code"] for path in place.glob("*/*/*.failed")]
        if code and not failed:
            shutil.copyfile(place / "snakemake.log", plan.root / "logs" / "snakemake.log")
            raise StudyError("a chapter's process ended without a word; see logs/snakemake.log, then run this again", ENVIRONMENT)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return next((grave for grave in GRAVEST if grave in failed), failed[0] if failed else 0)


def at_once(plan: StudyPlan) -> int:
    """How many chapters to run beside one another where nobody says: a core and some memory for each, and few.

    Of a model that is not ours nobody knows what it needs, and a GPU is one: these run one chapter at a time.
    """
    asked = [own for values in plan.values.values() for own in values.values()]
    if {run.model for run in plan.runs} - set(chapters.ROOM) or {own.get("device", "cpu") for own in asked} != {"cpu"}:
        return 1
    threads = max(int(own.get("threads", 1)) for own in asked)
    room = psutil.virtual_memory().available / 1e9 / max(chapters.ROOM[run.model] for run in plan.runs)
    return max(1, min(outlook.cores() // threads, int(room), MOST))


def _write_jobs(
    plan: StudyPlan, run: PlannedRun, names: Mapping[str, str], ahead: outlook.Outlook | None, place: Path
) -> list[dict[str, Any]]:
    """What the Snakefile needs to know of the jobs of one run; each job's own file holds its parameters."""
    prints, runner, listed = plan.fingerprints(run), process_identity(), list[dict[str, Any]]()
    for name in names:
        own = plan.values[run][name]
        job = Job(
            name,
            run,
            own,
            prints[name],
            plan.seconds,
            runner,
            fingerprints.marks(plan.notebooks[name]),
            *outlook.of_job(ahead, run, name),
        )
        write_whole(place / run.place / f"{name}.json", json.dumps(asdict(job), default=str))
        before = [f"{run.place}/{need}" for need in chapters.needs(name, plan.chapters(run)) if need in names]
        listed.append({"stem": f"{run.place}/{name}", "needs": before, "threads": int(own.get("threads", 1))})
    for one in listed:  # what many others wait for goes first
        one["priority"] = sum(one["stem"] in other["needs"] for other in listed)
    return listed


def _in_order_of_runs(listed: Sequence[dict[str, Any]]) -> None:
    """Adds to the needs of a chapter what it reads of other runs: its own of lower seeds, or all that they write."""
    for job in listed:
        model, seed, name = str(job["stem"]).split("/")
        if name[:2] in chapters.READS_EARLIER_SEEDS:
            earlier = [other["stem"] for other in listed if _earlier(str(other["stem"]).split("/"), model, seed, name)]
            job["needs"] = [*job["needs"], *earlier]
        if name[:2] in chapters.READS_ALL_RUNS:
            apart = [str(other["stem"]) for other in listed if not str(other["stem"]).startswith(f"{model}/{seed}/")]
            job["needs"] = [*job["needs"], *(stem for stem in apart if stem.split("/")[2] < name)]


def _earlier(other: Sequence[str], model: str, seed: str, name: str) -> bool:
    return other[0] == model and other[2] == name and int(other[1][5:]) < int(seed[5:])


def cluster_profile(root: Path, name: str) -> Path | None:
    """The profile of a cluster by its name in profiles/clusters/; None: the jobs run here."""
    known = sorted(path.name for path in (root / "profiles" / "clusters").glob("*") if path.is_dir())
    if name and name not in known:
        raise StudyError(f"unknown cluster {name!r}; {nearest(name, known)}choose one of {', '.join(known)}")
    if not name:
        return None
    found = root / "profiles" / "clusters" / name
    package = f"snakemake-executor-plugin-{yaml.safe_load((found / 'config.yaml').read_text(encoding='utf-8'))['executor']}"
    if find_spec(package.replace("-", "_")) is None:
        raise StudyError(
            f"cluster {name!r} needs the package {package}; install it: .venv/bin/python -m pip install {package}", ENVIRONMENT
        )
    return found


def _snakemake(root: Path, place: Path, cores: int, cluster: Path | None = None) -> int:
    profile = root / "profiles" / "snakemake"
    words = ["--snakefile", str(root / "Snakefile"), "--directory", str(place), "--cores", str(cores), "--nolock"]
    words += ["--runtime-source-cache-path", str(place / "sources"), *(["--profile", str(profile)] if profile.is_dir() else [])]
    words += ["--workflow-profile", str(cluster)] if cluster else []
    (root / "logs").mkdir(exist_ok=True)
    with open(place / "snakemake.log", "w", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *words], stdout=sys.stdout.fileno(), stderr=log, start_new_session=True
        )
        try:
            return child.wait()
        finally:
            _end_group(child)


def _end_group(child: subprocess.Popen) -> None:
    """Ends a child and all that it started: asked first, so that kernels are taken down in order, then killed."""
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        if child.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience)
