"""Slurm and Kubernetes: every key of the worked profiles is snakemake's, every job of a plan is planned, and jobs really run.

The plugins are no part of the environment. Where one is there, its profile is dry-run whole; elsewhere without what it adds.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from support.tiers import mostly_slow
from test_jobs import notebook

from helpers.errors import ENVIRONMENT, USAGE, StudyError
from helpers.runner import jobs as study_jobs
from helpers.runner import plans, workflow

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted(path.name for path in (ROOT / "profiles" / "clusters").iterdir())
PLUGIN = {"slurm": "slurm", "kubernetes": "cluster_generic"}


def needs(name: str):
    """Marks a test that needs the plugin of that cluster."""
    package = f"snakemake_executor_plugin_{PLUGIN[name]}"
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package.replace('_', '-')} is not installed")


def settings(name: str) -> dict:
    return yaml.safe_load((ROOT / "profiles" / "clusters" / name / "config.yaml").read_text())


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Path:
    """A project of two chapters with the plan of two seeds, as the runner writes it; the folder of the plan."""
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    notebook(root / "notebooks" / "01_first.ipynb", "first")
    notebook(root / "notebooks" / "02_second.ipynb", "second")
    shutil.copy(ROOT / "Snakefile", root)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    (root / "_toc.yml").write_text("format: jb-book\n")
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(root))
    monkeypatch.delenv("AFTER_UPDATE_RESULTS", raising=False)
    (root / "profiles" / "toy.yaml").write_text("seed: [0, 1]\n")
    plan, place = plans.check(root, "toy"), root / "build" / "runs" / "toy-1"
    listed = [
        job for each in plan.runs for job in workflow._write_jobs(plan, each, dict.fromkeys(plan.notebooks, ""), None, place)
    ]
    workflow._in_order_of_runs(listed)
    (place / "plan.json").write_text(json.dumps({"python": sys.executable, "root": str(root), "jobs": listed}))
    return place


def snakemake(place: Path, cluster: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """What snakemake says with the study's own profile and the cluster's on top, called as the runner calls it."""
    root = place.parents[2]
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(root / "Snakefile"),
        "--directory",
        str(place),
        "--cores",
        "4",
    ]
    command += [
        "--nolock",
        "--runtime-source-cache-path",
        str(place / "sources"),
        "--profile",
        str(root / "profiles" / "snakemake"),
    ]
    return subprocess.run(
        [*command, "--workflow-profile", str(cluster), *words],
        cwd=root, env={**os.environ, "HOME": str(root), **environment}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def planned_jobs(done: subprocess.CompletedProcess) -> int:
    assert done.returncode == 0, done.stderr[-2000:]
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("total"))


DRY = ("--dry-run", "--quiet", "rules")


@mostly_slow("snakemake plans twice for each cluster", "slurm")
@pytest.mark.parametrize("name", CLUSTERS)
def test_all_but_the_executor_is_snakemakes_own_and_plans_every_job(planned, name, tmp_path):
    """The control: a key that snakemake does not have is refused."""
    prefix = f"{settings(name)['executor']}-"
    common = {key: value for key, value in settings(name).items() if key != "executor" and not key.startswith(prefix)}
    assert {"jobs", "default-resources"} <= set(common)
    folder = tmp_path / "common"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(common))
    assert planned_jobs(snakemake(planned, folder, *DRY)) == 5  # two chapters, two seeds, and the goal
    (folder / "config.yaml").write_text(yaml.safe_dump({**common, "latency-wayt": 3}))
    assert snakemake(planned, folder, *DRY).returncode != 0


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in CLUSTERS])
def test_the_whole_profile_plans_every_job(planned, name):
    cluster = planned.parents[2] / "profiles" / "clusters" / name
    assert planned_jobs(snakemake(planned, cluster, *DRY)) == 5
    text = (cluster / "config.yaml").read_text()
    (cluster / "config.yaml").write_text(f"{text}\n{settings(name)['executor']}-no-such-thing: 1\n")
    assert snakemake(planned, cluster, *DRY).returncode != 0


def test_the_profiles_of_a_study_are_none_of_clusters():
    """A study's profile is a file in profiles/, and a cluster's a folder below: neither is taken for the other."""
    assert not [path for path in (ROOT / "profiles").glob("*.yaml") if path.stem in CLUSTERS]
    assert {name: settings(name)["executor"] for name in CLUSTERS} == {"kubernetes": "cluster-generic", "slurm": "slurm"}


# ---------------------------------------------------------------- Kubernetes: the three commands, and a whole study through them

KUBECTL = r"""#!/usr/bin/env python3
# A stand-in for kubectl on one machine: a Job is a process, its state a file.
import os, subprocess, sys, yaml
from pathlib import Path
folder = Path(os.environ["JOBS"])
words = sys.argv[1:]
if words[0] == "create":
    job = yaml.safe_load(sys.stdin)
    name = job["metadata"]["generateName"] + str(len(list(folder.glob("*.yaml"))))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(job))
    box = job["spec"]["template"]["spec"]["containers"][0]
    if os.environ.get("RUN"):
        script = '"$@" >"$0.log" 2>&1 && echo -n "SuccessCriteriaMet Complete " >"$0" || echo -n "FailureTarget Failed " >"$0"'
        words = ["sh", "-c", script, str(folder / name), *box["command"]]
        subprocess.Popen(words, cwd=box["workingDir"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"job.batch/{name}")
elif words[0] == "get":
    name = words[1].split("/")[1]
    if not (folder / f"{name}.yaml").exists():
        sys.exit("Error from server (NotFound)")
    state = folder / name
    print(state.read_text() if state.exists() else "", end="")
elif words[0] == "delete":
    for word in words[1:]:
        if not word.startswith("-"):
            (folder / f"{word.split('/')[1]}.yaml").unlink(missing_ok=True)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Path:
    """A folder of Jobs, and a kubectl first in the path that works on it."""
    tools, folder = tmp_path / "bin", tmp_path / "jobs"
    tools.mkdir()
    folder.mkdir()
    (tools / "kubectl").write_text(KUBECTL.replace("/usr/bin/env python3", sys.executable))
    (tools / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(folder))
    return folder


def kubernetes(script: str, *words: str, cwd: Path) -> str:
    command = ROOT / "profiles" / "clusters" / "kubernetes" / f"{script}.sh"
    assert command.stat().st_mode & stat.S_IXUSR
    return subprocess.run([command, *words], cwd=cwd, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_a_job_is_made_from_the_template_watched_and_deleted(jobs, tmp_path):
    place = tmp_path / "a b&c"
    place.mkdir()
    (place / "job|1.sh").write_text("true\n")
    name = kubernetes("submit", "2", "8000", "job|1.sh", cwd=place)
    (written,) = jobs.glob("*.yaml")
    made = yaml.safe_load(written.read_text())
    box = made["spec"]["template"]["spec"]["containers"][0]
    assert name == f"job.batch/{written.stem}"
    assert box["command"] == ["sh", str(place / "job|1.sh")]
    assert box["workingDir"] == str(place)
    assert box["resources"] == {"requests": {"cpu": "2", "memory": "8000Mi"}, "limits": {"memory": "8000Mi"}}
    assert not {word for word in ("THREADS", "MEMORY", "JOBSCRIPT", "FOLDER") if word in written.read_text()}
    (mount,), (volume,) = box["volumeMounts"], made["spec"]["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    assert box["env"][0]["value"].startswith(mount["mountPath"])
    assert kubernetes("status", name, cwd=place) == "running"
    for state, said in (
        ("SuccessCriteriaMet Complete ", "success"),
        ("FailureTarget Failed ", "failed"),
        ("Suspended ", "running"),
    ):
        (jobs / written.stem).write_text(state)
        assert kubernetes("status", name, cwd=place) == said
    kubernetes("cancel", name, cwd=place)
    assert not written.exists()
    assert kubernetes("status", name, cwd=place) == "failed"


@needs("kubernetes")
@pytest.mark.parametrize("broken", [False, True], ids=["all well", "a chapter fails"])
def test_a_study_runs_through_the_cluster(planned, jobs, broken):
    """Each chapter of each seed as a Job of its own, and a failed one says which."""
    root = planned.parents[2]
    if broken:
        notebook(root / "notebooks" / "02_second.ipynb", "second", "1/0")
    cluster = root / "profiles" / "clusters" / "kubernetes"
    done = snakemake(
        planned, cluster, "--latency-wait", "5", "--max-status-checks-per-second", "20", RUN="1", OMP_NUM_THREADS="1"
    )
    status = {str(path.relative_to(root / "results")) for path in (root / "results").rglob("status/*.json")}
    chapters = ("01_first",) if broken else ("01_first", "02_second")
    assert (done.returncode != 0) == broken, done.stderr[-2000:]
    assert len(list(jobs.glob("*.yaml"))) == 4
    assert status == {f"toy/tiny/seed-{seed}/status/{chapter}.json" for seed in (0, 1) for chapter in chapters}
    assert len(list(planned.glob("*/*/*.failed"))) == 2 * broken


# ---------------------------------------------------------------- the option of the study


def test_an_unknown_cluster_and_a_missing_package_are_one_line_each(planned, monkeypatch):
    plan = plans.check(planned.parents[2], "toy")
    with pytest.raises(StudyError, match=r"unknown cluster 'slurn'; did you mean 'slurm'\?") as caught:
        study_jobs.study(plan, cluster="slurn")
    assert caught.value.code == USAGE
    monkeypatch.setattr(workflow, "find_spec", lambda name: None)
    for name in CLUSTERS:
        with pytest.raises(StudyError, match=f"cluster '{name}' needs the package snakemake-executor-plugin-") as caught:
            study_jobs.study(plan, cluster=name)
        assert caught.value.code == ENVIRONMENT


@pytest.mark.parametrize("name", ["", *CLUSTERS])
def test_the_option_hands_the_profile_to_snakemake_and_without_it_none(planned, name, monkeypatch):
    given = []
    monkeypatch.setattr(workflow, "find_spec", lambda package: package)
    monkeypatch.setattr(workflow, "make", lambda plan, todo, outlooks, jobs, cluster: given.append(cluster) or 0)
    study_jobs.study(plans.check(planned.parents[2], "toy"), cluster=name)
    assert given == [planned.parents[2] / "profiles" / "clusters" / name if name else None]
