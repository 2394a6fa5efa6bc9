"""Seeds of one profile at the same time in one results folder, one of them killed on its way; and seeds that are lean."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from support.tiers import slow
from test_study import copied

from helpers.runner import plans
from helpers.study import statuses

LEAN = """lean:
  from_seed: 1
  skip: ["05", "06", "08", "09", "10"]
  changes:
    quantizers: [nf4]
    updates: [lora-dialogue@bf16, lora-dialogue-harm10@bf16, lora-dialogue-harm10@nf4]
"""
TWO_STUDIES = slow("two studies side by side; locks, lean seeds and what is stale are decided on toys")


def started(root: Path, cache: Path, *words: str) -> subprocess.Popen:
    """A study of the profile `pair`, started."""
    places = {"ROOT": root, "RESULTS": root / "results", "CACHE": cache}
    environment = {**os.environ, **{f"AFTER_UPDATE_{name}": str(place) for name, place in places.items()}}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "helpers", "study", "--no-book", "--profile", "pair", *words]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(child: subprocess.Popen) -> str:
    """What a study said, which ended well."""
    said = child.communicate(timeout=1800)[0]
    assert child.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the profile `pair`: smoke, from seed 1 on lean."""
    root = copied(tmp_path_factory.mktemp("project"))
    (root / "profiles" / "pair.yaml").write_text((root / "profiles" / "smoke.yaml").read_text() + LEAN)
    return root


@pytest.fixture(scope="module")
def runs(project, tmp_path_factory) -> tuple[Path, list[Path]]:
    """The project, and the folders of its two seeds: run side by side, seed 1 killed once chapter 02 is done, then once more."""
    root, cache = project, tmp_path_factory.mktemp("cache")
    folders = [root / "results" / "pair" / "tiny" / f"seed-{seed}" for seed in (0, 1)]
    first, second = (started(root, cache, "--seed", str(seed)) for seed in (0, 1))
    while second.poll() is None and not (folders[1] / "status" / "02_quantization.json").is_file():
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    second.wait()
    again = ended(started(root, cache, "--seed", "1"))  # while seed 0 goes on
    assert again.count("unchanged") >= 2  # what was done stays done
    ended(first)
    ended(started(root, cache, "--seed", "0-1"))  # what one seed reads of the other is put right
    return root, folders


def test_the_plan_of_the_profile_leaves_the_lean_seed_without_what_it_skips(project):
    plan = plans.check(project, "pair", seeds=[0, 1])
    whole, lean = plan.runs
    skipped = set(plan.chapters(whole)) - set(plan.chapters(lean))
    assert {name[:2] for name in skipped} == {"05", "06", "08", "09", "10"}
    found = [plan.values[run]["02_quantization"]["quantizers"] for run in plan.runs]
    assert found[1] == ["nf4"] != found[0]


@TWO_STUDIES
def test_both_seeds_are_whole_and_nothing_is_left_to_do(runs, monkeypatch):
    root, folders = runs
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", str(root / "results"))
    plan = plans.check(root, "pair", seeds=[0, 1])
    for run, folder in zip(plan.runs, folders, strict=True):
        assert statuses.stale(run, root, plan.fingerprints(run)) == {}
        assert not (folder / ".lock").exists()
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["chapters"]) == set(plan.chapters(run))


@TWO_STUDIES
def test_a_lean_seed_counts_where_it_measured_and_nowhere_else(runs):
    root, folders = runs
    assert not (folders[1] / "tables" / "triage.parquet").exists()
    assert set(pd.read_parquet(folders[1] / "tables" / "behaviour.parquet")["precision"]) >= {"bf16", "nf4"}
    parts = pd.read_parquet(folders[0] / "tables" / "components.parquet")
    seeds = parts[parts["of_seed"] != "all"].groupby("claim")["of_seed"].agg(set)
    assert seeds["S1"] == {"0", "1"}
    assert seeds["M5"] == {"0"}  # triage is left out
    findings = pd.read_parquet(root / "results" / "pair" / "findings.parquet").set_index("claim")["seeds"]
    assert (findings["S1"], findings["M5"]) == (2, 1)
