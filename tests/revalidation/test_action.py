"""The gate in CI: the GitHub Action and the GitLab job have their forms, and a shell runs them to the verdict's exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.tiers import mostly_slow, slow
from test_floors import scored, scores_file
from test_workflow import ACTIONS

from helpers.revalidation import cli
from helpers.revalidation.report import comment

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
PAGE = (ROOT / "book" / "revalidate.md").read_text(encoding="utf-8")
REFERENCE = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")


def block(language: str, holds: str) -> str:
    """The one code block of the page in that language that holds some words."""
    found = [text for text in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if holds in text]
    (text,) = found
    return text


def step(name: str) -> dict:
    return next(one for one in ACTION["runs"]["steps"] if one["name"] == name)


def run(script: str, folder: Path, **variables: str) -> tuple[int, dict[str, str], str]:
    """Exit code, outputs and summary of a step's script in a shell as its host calls it."""
    summary, output = folder / "summary.md", folder / "output.txt"
    for path in (summary, output):
        path.write_text("")
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"),
        "AFTER_UPDATE_ROOT": str(ROOT), "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output), **variables,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=folder, env=settings, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    pairs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return done.returncode, pairs, summary.read_text() + done.stdout + done.stderr


def given(**values: str) -> dict[str, str]:
    """The variables of the step, as the host fills them from the inputs."""
    inputs = {name: str(one["default"]) for name, one in ACTION["inputs"].items()} | values
    return {key: REFERENCE.sub(lambda found: inputs[found[1].removeprefix("inputs.")], text)
            for key, text in step("Revalidate")["env"].items()}  # fmt: skip


def test_the_action_is_composite_and_refers_to_what_it_declares():
    assert {"name", "description", "inputs", "outputs", "runs"} == set(ACTION)
    assert ACTION["runs"]["using"] == "composite"
    assert all({"description", "default"} <= set(one) for one in ACTION["inputs"].values())
    for one in ACTION["runs"]["steps"]:
        assert one["shell"] == "bash"
        assert "${{" not in one["run"]  # what a stranger writes into an input is never part of a script
        for text in one["env"].values():
            (name,) = REFERENCE.findall(text)
            assert name == "github.action_path" or name.removeprefix("inputs.") in ACTION["inputs"]
    ids = {one.get("id") for one in ACTION["runs"]["steps"]}
    for one in ACTION["outputs"].values():
        (name,) = REFERENCE.findall(one["value"])
        assert name.split(".")[1] in ids


def test_every_file_that_the_command_takes_is_an_input():
    own = {"precision", "out", "allow-inconclusive", "install", "evidence"}
    assert set(ACTION["inputs"]) - own == {name.strip("-") for name in cli.FILES}


RUNS = {
    "fine": (1.645, "false", 0, "fine"), "unfit": (-99.0, "true", 10, "unfit"),
    "inconclusive": (2.4, "false", 11, "inconclusive"), "inconclusive, allowed": (2.4, "true", 0, "inconclusive"),
}  # fmt: skip


@mostly_slow("a process each; one verdict stays", "inconclusive, allowed")
@pytest.mark.parametrize("name", RUNS)
def test_a_shell_runs_it_to_the_verdict(tmp_path, name):
    cut, allow, code, word = RUNS[name]
    panel = scored(3, cut, n=400 if word != "inconclusive" else 24)
    scores_file(tmp_path / "s.csv", panel)
    out = "reports of today/first"
    found, outputs, said = run(
        step("Revalidate")["run"], tmp_path, **given(scores="s.csv", out=out, **{"allow-inconclusive": allow})
    )
    assert (found, outputs["verdict"]) == (code, word), said
    assert outputs["code"] == str(11 if word == "inconclusive" else code)
    assert (tmp_path / outputs["comment"]).read_text().startswith(comment.MARK)
    assert word.upper() in said
    assert ("::warning::" in said) == (allow == "true" and word == "inconclusive")
    assert json.loads((tmp_path / out / "report.json").read_text())["verdict"]["word"] == word


def test_what_is_refused_has_a_code_and_no_verdict_and_an_input_is_never_run(tmp_path):
    nasty = '$(touch ran); "; touch ran; #'
    found, outputs, said = run(step("Revalidate")["run"], tmp_path, **given(scores=nasty))
    assert (found, outputs) == (2, {"code": "2", "verdict": ""}), said
    assert not (tmp_path / "ran").exists()


def test_the_page_s_workflow_uses_the_action_with_its_inputs():
    found = yaml.safe_load(block("yaml", "after-the-update@"))
    (job,) = found["jobs"].values()
    (used,) = [one for one in job["steps"] if "after-the-update@" in one.get("uses", "")]
    assert set(used["with"]) <= set(ACTION["inputs"])
    assert {one["uses"].split("@")[0] for one in job["steps"] if "uses" in one} - ACTIONS <= {used["uses"].split("@")[0]}
    assert found["permissions"] == {"contents": "read", "pull-requests": "write"}
    posted = [one for one in job["steps"] if "gh pr comment" in one.get("run", "")]
    assert len(posted) == 1
    assert "${{" not in posted[0]["run"]


@slow("a process; the same command is run by the action's step above")
def test_a_shell_runs_the_gitlab_job_to_the_verdict(tmp_path):
    found = yaml.safe_load(block("yaml", "artifacts:"))
    (job,) = found.values()
    assert {"script", "artifacts"} <= set(job)
    assert job["allow_failure"] == {"exit_codes": [11]}
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"] == {"junit": "revalidation/junit.xml"}
    commands = "\n".join(line for line in job["script"] if "pip install" not in line)
    scores_file(tmp_path / "s.csv", scored(3, -99.0, n=200))
    assert "--base" in commands
    with_scores = re.sub(r"--base .*?(?=--out)", "--scores s.csv ", commands, flags=re.DOTALL)
    code, _, said = run(with_scores, tmp_path)
    assert code == 10, said
    assert (tmp_path / "revalidation" / "junit.xml").is_file()
