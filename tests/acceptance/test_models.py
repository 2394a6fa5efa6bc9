"""Whole studies on models of other families, by the command that a reader would give, and what is found over all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support import families
from support.tiers import slow
from test_study import copied, run_in

from helpers.errors import REFUSED
from helpers.runner import plans
from helpers.study import chapters

WHOLE = ("qwen2", "gemma3", "olmo2")
WHOLE_STUDIES = slow("whole studies of eleven kernels each; test_families takes every family through every wing")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(project, cache, tmp_path_factory) -> dict[str, Path]:
    """The folder of the run of each family: one command for all."""
    models = tmp_path_factory.mktemp("models")
    named = ",".join(str(families.write(name, models / name)) for name in WHOLE)
    run_in(project, cache, "-m", "helpers", "study", "--no-book", "--profile", "smoke", "--model", named)
    return {name: project / "results" / "smoke" / name / "seed-0" for name in WHOLE}


def test_the_study_of_all_families_is_one_plan(project, tmp_path):
    plan = plans.check(project, "smoke", models=[str(families.write(name, tmp_path / name)) for name in WHOLE])
    assert [Path(run.model).name for run in plan.runs] == list(WHOLE)
    assert all(set(plan.chapters(run)) == set(chapters.discover(project)) for run in plan.runs)


@WHOLE_STUDIES
@pytest.mark.parametrize("name", WHOLE)
def test_every_chapter_runs_on_a_model_of_another_family(finished, project, name):
    manifest = json.loads((finished[name] / "manifest.json").read_text())
    assert set(manifest["chapters"]) == set(chapters.discover(project))
    behaviour, neurons = (pd.read_parquet(finished[name] / "tables" / f"{table}.parquet") for table in ("behaviour", "neurons"))
    assert set(behaviour["model"]) == {name}
    assert {"", "base", "lora-dialogue", "full-dialogue"} <= set(behaviour["adapter"])
    assert {"int8", "nf4", "rtn-2"} <= set(behaviour["precision"])
    assert len(neurons)


@WHOLE_STUDIES
def test_findings_are_over_all_models_and_few_seeds_decide_none(finished):
    place = finished[WHOLE[0]].parents[1] / "findings.parquet"
    table = pd.read_parquet(place)
    assert set(table["verdict"]) <= {"inconclusive", "not run"}
    last = max(finished.values(), key=lambda folder: (folder / "status" / "11_findings.json").stat().st_mtime)
    parts = pd.read_parquet(last / "tables" / "components.parquet")
    assert set(parts["model"]) == set(WHOLE)
    assert (table.loc[table["verdict"] != "not run", "seeds"] <= len(WHOLE)).all()


@WHOLE_STUDIES
def test_an_alignment_that_does_not_hold_is_one_line_with_its_reason(project, cache, tmp_path):
    """Planted: a random model, which cannot be aligned, and a profile that asks for it."""
    text = (project / "profiles" / "smoke.yaml").read_text().replace("must_hold: false", "must_hold: true")
    (project / "profiles" / "held.yaml").write_text(text)
    places = {"ROOT": project, "RESULTS": project / "results", "CACHE": cache}
    environment = {**os.environ, **{f"AFTER_UPDATE_{name}": str(place) for name, place in places.items()}}
    words = ["-m", "helpers", "chapter", "01", "--profile", "held", "--model", str(families.write("qwen2", tmp_path / "qwen"))]
    done = subprocess.run([sys.executable, *words], cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == REFUSED, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "misses its target on validation" in line
    assert "it has hardly learned: raise align_steps" in line
