"""Each exit code of the command, from the outside: a process of its own, whose JSON has the form that its code promises."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from support import given
from support.tiers import mostly_slow
from test_floors import scored, scores_file

from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, USAGE
from helpers.revalidation.report import files, schema

ROOT = Path(__file__).parents[2]


def other_scale(path: Path) -> str:
    """Scores that are a hundred times as large after the update."""
    panel = scored(3, 1.645, n=200)
    rows = [{"monitor": "m", "id": f"r{i}", "before": a, "after": 100 * b, "label": int(label), "threshold": 1.645}
            for i, (a, b, label) in enumerate(zip(panel.before[0], panel.after[0], panel.labels, strict=True))]  # fmt: skip
    return given.write(path, rows)


def command(*words: str, folder: Path, limit: str = "") -> tuple[int, dict, str]:
    """Exit code, JSON and errors of `python -m helpers revalidate --json` in a process of its own."""
    line = shlex.join([sys.executable, "-m", "helpers", "revalidate", *words, "--json"])
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "AFTER_UPDATE_ROOT": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-c", f"{limit} exec {line}"], cwd=folder, env=settings, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, json.loads(done.stdout), done.stderr


CASES = {
    0: lambda at: (["--scores", scores_file(at / "s.csv", scored(3, 1.645, n=400))], ""),
    10: lambda at: (["--scores", scores_file(at / "s.csv", scored(3, -99.0, n=200))], ""),
    11: lambda at: (["--scores", scores_file(at / "s.csv", scored(3, 2.4, n=24))], ""),
    USAGE: lambda at: (["--scores", "nowhere.csv"], ""),
    REFUSED: lambda at: (["--scores", given.write(at / "s.csv", "monitor,id\n")], ""),
    NOT_COMPARABLE: lambda at: (["--scores", other_scale(at / "s.csv")], ""),
    ENVIRONMENT: lambda at: (["--scores", scores_file(at / "s.csv", scored(3, 1.645, n=400))], "ulimit -f 0;"),  # no file grows
}


@mostly_slow("a process each; the codes are reached in process in test_cli, test_floors and test_inputs", "14")
@pytest.mark.parametrize("code", CASES, ids=str)
def test_each_exit_code_is_reached_and_its_json_has_its_form(tmp_path, code):
    words, limit = CASES[code](tmp_path)
    found, told, errors = command(*words, "--out", "out", folder=tmp_path, limit=limit)
    assert (found, told["code"]) == (code, code), errors
    assert "Traceback" not in errors
    if code in {0, 10, 11}:
        schema.check_report(told)
        assert files.read(tmp_path / "out") == told
        stored = json.loads((tmp_path / "out" / "schema.json").read_text())
        assert Draft202012Validator(stored).is_valid(told)
        return
    assert Draft202012Validator(schema.FAILURE).is_valid(told)
    assert errors.splitlines()[-1] == f"error: {told['error']}"
    assert not (tmp_path / "out").exists()


def test_a_failure_is_no_report_and_a_report_no_failure():
    failure = {"code": 12, "error": "s.csv holds no rows; add some"}
    assert Draft202012Validator(schema.FAILURE).is_valid(failure)
    assert not Draft202012Validator(schema.SCHEMA).is_valid(failure)
    assert not Draft202012Validator(schema.FAILURE).is_valid({**failure, "code": 10})
    assert not Draft202012Validator(schema.FAILURE).is_valid({**failure, "error": "two\nlines"})
