"""The runner: checks a profile, finds what is not done, has snakemake make it in order, and builds the book.

All decisions about what is done are ours (chapters.py); snakemake only orders the jobs of one plan, in a folder that is
thrown away afterwards, so that no state of its own can disagree with the results.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

from helpers import errors
from helpers.cache import write_whole
from helpers.console import peak_gb, say
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.models.compute import VARIABLE as COMPUTE
from helpers.models.meter import Tokens
from helpers.runner import outlook
from helpers.runner.guards import locked, orphaned, prepare, process_identity, protect
from helpers.study import chapters, parameters
from helpers.study.chapters import Job, PlannedRun

GRAVEST = (ENVIRONMENT, REFUSED, NOT_COMPARABLE, 10, 11, USAGE)  # when several codes hold, the first of these


@dataclass(frozen=True)
class StudyPlan:
    """A checked profile: its runs, the parameters of each chapter in each run, and the fingerprints that follow from them."""

    root: Path
    profile: str
    notebooks: dict[str, Path]
    runs: tuple[PlannedRun, ...]
    values: dict[PlannedRun, dict[str, dict[str, object]]]
    seconds: float
    figures: str = "all"  # the forms in which they are kept
    compute: str = "auto"  # what was asked for

    def fingerprints(self, run: PlannedRun) -> dict[str, str]:
        """What the status of each chapter of the run must bear."""
        return chapters.fingerprints(self.notebooks, self.values[run], self._others(run))

    def _others(self, run: PlannedRun) -> dict[str, str]:
        """What the profile's other runs hold, or will hold once this plan is carried out."""
        found = chapters.finished_runs((self.root / run.folder).parents[1], self.notebooks)
        found |= {_name(other): chapters.holds(chapters.fingerprints(self.notebooks, self.values[other])) for other in self.runs}
        return {name: held for name, held in found.items() if name != _name(run)}


def _name(run: PlannedRun) -> str:
    return f"{run.slug}/seed-{run.seed}"


# ---------------------------------------------------------------- checking


def project_root() -> Path:
    """The project's folder, from AFTER_UPDATE_ROOT or the nearest parent with a `_toc.yml`."""
    from helpers import results

    return results.project_root().resolve()


def check(root: Path, profile: str, models: Sequence[str] = (), seeds: Sequence[int] = (), compute: str = "") -> StudyPlan:
    """The plan of a profile, every name, type and range checked; nothing is run or written.

    compute: what the command asks for; else the environment, the profile and `auto` are asked in this order.
    """
    notebooks = chapters.discover(root)
    defaults = parameters.consistent(notebooks)
    overrides = parameters.profile(profile, root / "profiles")
    where, limits = f"profiles/{profile}.yaml", chapters.limits()
    models = list(models or ()) or _several(overrides.pop("model", defaults.get("model", "embedded")))
    seeds = list(seeds or ()) or _several(overrides.pop("seed", defaults.get("seed", 0)))
    runs, values = [], {}
    for model in models:
        slug = checked_model(model, where)
        for seed in seeds:
            seed = parameters.checked("seed", seed, 0, limits["seed"], where)
            run = PlannedRun(profile, model, slug, seed, results_root() / profile / slug / f"seed-{seed}")
            own = {"profile": profile, "model": model, "seed": seed}
            chosen = {**overrides, **{name: value for name, value in own.items() if name in defaults}}
            values[run] = parameters.resolve(notebooks, chosen, limits, where)
            runs.append(run)
    _check_devices(values.values())
    own = {
        name: parameters.checked(name, overrides.get(name, default), default, limits[name], where)
        for name, default in parameters.RUNNER.items()
    }
    asked = compute or os.environ.get(COMPUTE, "")
    asked = asked and parameters.checked("compute", asked, "auto", limits["compute"], "--compute" if compute else COMPUTE)
    return StudyPlan(
        root, profile, notebooks, tuple(runs), values, float(own["chapter_seconds"]), str(own["figure_forms"]),
        str(asked or own["compute"]),
    )  # fmt: skip


def _several(value: object) -> list:
    """A profile may name one model or seed, or a list of them: one run each."""
    if value == []:
        raise StudyError("parameter 'model' or 'seed' is an empty list; name at least one")
    return value if isinstance(value, list) else [value]


def results_root() -> Path:
    """The folder of results, relative to the project where it lies inside."""
    return Path(os.environ.get("AFTER_UPDATE_RESULTS") or "results")


def checked_model(model: object, where: str = "the command") -> str:
    """The folder name of a model that exists by name, as a folder, or as a pinned hub id."""
    names = chapters.registry_names("models.loading", "MODELS")
    if not isinstance(model, str):
        raise StudyError(
            f"parameter 'model': expected str, got {type(model).__name__} {errors.shown(model)} (from {where}); quote it"
        )
    if model in names:
        return model
    from helpers import results
    from helpers.models import loading  # imports torch, so only where a path or a hub id is to be judged

    if Path(model).is_dir():
        loading.check_folder(Path(model))
        return results.slug(model)
    if len(parts := model.partition("@")[0].split("/")) != 2 or not all(parts) or model.startswith((".", "/")):
        close = errors.nearest(model, names)
        raise StudyError(
            f"unknown model {errors.shown(model)}; {close}choose one of {', '.join(names)}, a folder, or owner/name@revision"
        )
    if "@" not in model:
        raise StudyError(f"hub model {model!r} has no revision; pin one: {model}@<commit>", REFUSED)
    return results.slug(model)


def _check_devices(values: object) -> None:
    for device in {own.get("device", "cpu") for run in values for own in run.values()}:
        if device != "cpu":
            from helpers.models import loading

            loading.device(str(device))


# ---------------------------------------------------------------- the study


def study(plan: StudyPlan, force: bool = False, jobs: int = 1, cluster: str = "") -> dict[str, object]:
    """What was run and what it took; `code` is the exit code. Only what is not done runs, all of it with `force`."""
    begun, where = time.monotonic(), _cluster(plan.root, cluster)
    os.environ[parameters.FIGURE_FORMS] = plan.figures
    with ExitStack() as locks:
        for run in plan.runs:
            prepare(plan.root / run.folder)
            locks.enter_context(locked(plan.root / run.folder, f"results/{run.profile}/{run.slug}/seed-{run.seed}"))
        todo = {run: _to_do(plan, run, force) for run in plan.runs}
        for run, names in todo.items():
            for name in (name for name in plan.notebooks if name not in names):
                say(f"{name:<20} {run.label}: unchanged")
            for name, reason in names.items():
                if chapters.status(plan.root / run.folder, name):
                    say(f"note: {name} runs again: {reason}")
            _tell_older_figures(plan, run, names)
        code = 0
        if any(todo.values()):
            fetch(plan)
            outlooks = _outlooks(plan, todo)
            if (ahead := outlook.together(outlooks)) is not None:
                say(f"profile {plan.profile}: {ahead.words}")
            for run, names in ((run, names) for run, names in todo.items() if names):
                chapters.forget(plan.root / run.folder, names)
            code = _make(plan, todo, outlooks, jobs, where)
        states = {run: _finish(plan, run, todo[run]) for run in plan.runs}
    runs = [{"model": run.slug, "seed": run.seed, "chapters": states[run]} for run in plan.runs]
    took = round(time.monotonic() - begun, 1)
    done = [state["tokens"] for states_of_run in states.values() for state in states_of_run.values() if "tokens" in state]
    tokens = asdict(sum((Tokens(**found) for found in done), Tokens()))
    found = {"profile": plan.profile, "code": code, "runs": runs, "seconds": took, "peak_gb": round(peak_gb(), 3)}
    return {**found, "tokens": tokens}


def _tell_older_figures(plan: StudyPlan, run: PlannedRun, todo: Mapping[str, str]) -> None:
    kept = {name: path for name, path in plan.notebooks.items() if name not in todo}
    older = chapters.older_figures(plan.root / run.folder, kept)
    if older:
        say(f"note: figures of {', '.join(older)} are older than the code that draws them; FORCE=1 draws them from what is kept")


def fetch(plan: StudyPlan) -> None:
    """Brings the sources that are missing before any chapter runs: here a progress bar can be seen."""
    if "embedded" in {own.get(name) for run in plan.values.values() for own in run.values() for name in ("model", "texts")}:
        from helpers.data import sources

        sources.ensure()


def _to_do(plan: StudyPlan, run: PlannedRun, force: bool) -> dict[str, str]:
    prints = plan.fingerprints(run)
    todo = dict.fromkeys(prints, "asked for by --force") if force else chapters.stale(run, plan.root, prints)
    if protect(plan.root, run, todo, force):
        say(f"note: the old results of {run.label} are in results/.old")
    return todo


def _finish(plan: StudyPlan, run: PlannedRun, todo: Mapping[str, str]) -> dict[str, dict]:
    """The state of each chapter of the run; the manifest is written where all are done."""
    folder = plan.root / run.folder
    entries = {name: chapters.status(folder, name) for name in plan.notebooks}
    if all(entries.values()) and not (folder / "manifest.json").is_file():
        from helpers.runner import manifests

        manifests.write_manifest(folder, list(plan.notebooks))
    states: dict[str, dict] = {}
    for name, entry in entries.items():
        states[name] = {"state": "unchanged" if name not in todo else "run" if entry else "not done"}
        if name in todo and entry:
            states[name] |= {"seconds": entry["seconds"], "peak_gb": entry["machine"]["peak_gb"], "tokens": entry["tokens"]}
    return states


def _outlooks(plan: StudyPlan, todo: Mapping[PlannedRun, Mapping[str, str]]) -> dict[PlannedRun, outlook.Outlook]:
    folders = {run: plan.root / run.folder for run in plan.runs}
    return outlook.of(plan.compute, plan.values, todo, folders)


def _make(
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


def _write_jobs(
    plan: StudyPlan, run: PlannedRun, names: Mapping[str, str], ahead: outlook.Outlook | None, place: Path
) -> list[dict[str, object]]:
    """What the Snakefile needs to know of the jobs of one run; each job's own file holds its parameters."""
    prints, runner, listed = plan.fingerprints(run), process_identity(), []
    folder = f"{run.slug}/seed-{run.seed}"
    for name in names:
        own = plan.values[run][name]
        job = Job(
            name, run, own, prints[name], plan.seconds, runner, chapters.marks(plan.notebooks[name]), *_ahead(ahead, run, name)
        )
        write_whole(place / folder / f"{name}.json", json.dumps(asdict(job), default=str))
        before = [f"{folder}/{need}" for need in chapters.needs(name, plan.notebooks) if need in names]
        listed.append({"stem": f"{folder}/{name}", "needs": before, "threads": int(own.get("threads", 1))})
    return listed


def _ahead(found: outlook.Outlook | None, run: PlannedRun, name: str) -> tuple[str, float]:
    """The compute and the planned cost of one chapter's job."""
    if found is None:
        return "auto", 0.0
    planned = found.tokens.get(run, {}).get(name)
    return found.compute.name, planned.cost if planned else 0.0


def _in_order_of_runs(listed: Sequence[dict[str, object]]) -> None:
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


def _cluster(root: Path, name: str) -> Path | None:
    """The profile of a cluster by its name in profiles/clusters/; None: the jobs run here."""
    known = sorted(path.name for path in (root / "profiles" / "clusters").glob("*") if path.is_dir())
    if name and name not in known:
        raise StudyError(f"unknown cluster {name!r}; {errors.nearest(name, known)}choose one of {', '.join(known)}")
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


# ---------------------------------------------------------------- one chapter


def chapter(plan: StudyPlan, name: str, force: bool = False) -> dict[str, object]:
    """What running one chapter in all runs of the plan took; the chapters it needs must be done."""
    name = chapters.find(name, plan.notebooks)
    states = []
    os.environ[parameters.FIGURE_FORMS] = plan.figures
    for run in plan.runs:
        prepare(plan.root / run.folder)
        with locked(plan.root / run.folder, f"results/{run.profile}/{run.slug}/seed-{run.seed}"):
            states.append({"model": run.slug, "seed": run.seed, **_one(plan, run, name, force)})
    return {"profile": plan.profile, "chapter": name, "code": 0, "runs": states}


def _one(plan: StudyPlan, run: PlannedRun, name: str, force: bool) -> dict[str, object]:
    from helpers.runner import execution

    folder, prints = plan.root / run.folder, plan.fingerprints(run)
    todo = chapters.stale(run, plan.root, prints)
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
    chapters.forget(folder, later)
    ahead = _outlooks(plan, {run: [other for other in later if other == name or other in chapters.READ_MODELS]}).get(run)
    marks = chapters.marks(plan.notebooks[name])
    job = Job(name, run, plan.values[run][name], prints[name], plan.seconds, {}, marks, *_ahead(ahead, run, name))
    entry = execution.execute(job, plan.root, plan.notebooks[name], lambda: (folder / ".lock").unlink(missing_ok=True))
    report(job, entry)
    _finish(plan, run, later)
    return {"state": "run", "seconds": entry["seconds"], "peak_gb": entry["machine"]["peak_gb"]}


def report(job, entry: Mapping[str, object]) -> None:
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
