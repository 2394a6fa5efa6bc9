"""The workflow that publishes the book: its syntax, its rights, and each of its commands. Its deploy cannot be tried here."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.book import pages
from helpers.study import chapters

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
KEYS = {"name", "on", "permissions", "concurrency", "jobs"}
ACTIONS = {"actions/checkout", "actions/setup-python", "actions/upload-pages-artifact", "actions/deploy-pages"}


def workflow(path: Path = ROOT / ".github" / "workflows" / "book.yml") -> dict:
    """The workflow as its host reads it: YAML 1.1 takes the key `on` for true."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def commands() -> list[str]:
    return [step["run"] for step in workflow()["jobs"]["build"]["steps"] if "run" in step]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_workflow_has_the_form_of_one_and_least_rights(path):
    found = workflow(path)
    assert set(found) <= KEYS
    assert found["permissions"] == {"contents": "read"}  # what a job needs beyond, the job says
    for job in found["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        for step in job["steps"]:
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step
            assert step.get("uses", "actions/checkout").split("@")[0] in ACTIONS
        before = job.get("needs", [])
        assert set([before] if isinstance(before, str) else before) <= set(found["jobs"])


def test_pull_requests_build_and_only_main_is_published():
    found = workflow()
    build, deploy = found["jobs"]["build"], found["jobs"]["deploy"]
    assert set(found["on"]) == {"push", "pull_request", "workflow_dispatch"}
    assert found["on"]["push"] == {"branches": ["main"]}
    assert deploy["needs"] == "build"
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}
    assert "permissions" not in build
    upload = next(step for step in build["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    assert deploy["if"] == upload["if"] == "github.ref == 'refs/heads/main' && github.event_name != 'pull_request'"
    assert deploy["environment"]["name"] == "github-pages"
    assert deploy["environment"]["url"] == f"${{{{ steps.{deploy['steps'][0]['id']}.outputs.page_url }}}}"
    assert found["concurrency"]["group"]


def test_the_steps_are_commands_of_this_project_and_the_book_lies_where_it_is_uploaded_from(tmp_path):
    make_env, make_book, check = commands()
    for command in (make_env, make_book):
        done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert '-m helpers book --profile "cpu"' in done.stdout
    steps = workflow()["jobs"]["build"]["steps"]
    (python,) = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert python == "3.11"
    (place,) = [step["with"]["path"] for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    profile = re.search(r"PROFILE=(\w+)", make_book)[1]
    assert place == f"build/book/{profile}/html"
    assert subprocess.run(["bash", "-euc", check], cwd=tmp_path, check=False).returncode != 0  # no book, no publication
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "index.html").write_text("<!doctype html>")
    subprocess.run(["bash", "-euc", check], cwd=tmp_path, check=True)


def test_what_is_built_is_committed_with_every_chapter():
    """The book's run is in git, not only on this disk: a clean clone has nothing else."""
    profile = re.search(r"PROFILE=(\w+)", " ".join(commands()))[1]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", f"results/{profile}"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    names = listed.stdout.splitlines()
    runs = {name.split("/executed/")[0] for name in names if "/executed/" in name}
    assert any(all(f"{run}/executed/{chapter}.ipynb" in names for chapter in chapters.discover(ROOT)) for run in runs)
    assert pages.book_chapters(ROOT) == list(chapters.discover(ROOT))


def test_pull_requests_run_the_tests_and_the_night_runs_all_of_them():
    folder = ROOT / ".github" / "workflows"
    ci, nightly = workflow(folder / "ci.yml")["jobs"]["test"], workflow(folder / "nightly.yml")["jobs"]["test-all"]
    assert re.search(r"^make test ", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert [step["run"] for step in ci["steps"] if "run" in step] == [".ci/run"]
    assert [step["run"] for step in nightly["steps"] if "run" in step] == ["make test-all"]
    assert set(workflow(folder / "nightly.yml")["on"]) == {"schedule", "workflow_dispatch"}
    recipes = dict(re.findall(r"^([a-z-]+):[^\n]*\n((?:\t[^\n]*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    quick = {name: '-m pytest -m "not slow"' in recipes[name] for name in ("test", "test-all", "cover")}
    assert quick == {"test": True, "test-all": False, "cover": True}
    assert "-m pytest" in recipes["test-all"]


def test_the_page_says_that_the_deploy_was_not_tried():
    assert re.search(r"deploy[^.]*has not been tried", (ROOT / "book" / "reproduce.md").read_text())
