"""What is said while the environment is made: a count that moves; errors and warnings pass, known noise does not."""

import sys

import pytest

from helpers.runner import installing
from helpers.runner.installing import Count

NOISE = [
    "WARNING: Location 'file:///some/index/simple/numpy/' is ignored: it is neither a file nor a directory.",
    "Looking in indexes: somewhere",
    "Requirement already satisfied: numpy==2.4.6 in ./x",
    "Installing collected packages: numpy, scipy",
    "Successfully installed numpy-2.4.6",
    "  Downloading numpy-2.4.6-cp311.whl (16.8 MB)",
    "Collecting numpy==2.4.6 (from -r requirements.lock (line 90))",
    "Resolved 187 packages in 2.1s",
    "  Checking if build backend supports build_editable: finished with status 'done'",
    " + numpy==2.4.6",
    "",
]
SEEN = [
    "ERROR: Could not find a version that satisfies the requirement no-such-package==1 (from versions: none)",
    "ERROR: No matching distribution found for no-such-package==1",
    "WARNING: Retrying after connection broken by 'NewConnectionError'",
    "WARNING: Location 'file:///some/index' is ignored: it is neither a file nor a directory. But there is more to say",
    "  error: subprocess-exited-with-error",
    "  × Building wheel for odd (pyproject.toml) did not run successfully.",
    "  Building wheel for odd (pyproject.toml): finished with status 'error'",
    "error: Failed to fetch: some wheel",
    "  × No solution found when resolving dependencies:",
    "OSError: [Errno 28] No space left on device",
]


@pytest.fixture
def count(tmp_path):
    return Count(3, tmp_path)


@pytest.mark.parametrize("line", NOISE)
def test_noise_and_steps_are_not_shown(count, line):
    assert count.passed(line) is None


@pytest.mark.parametrize("line", SEEN)
def test_every_other_line_is_shown_as_it_is(count, line):
    assert count.passed(line) == line


def test_the_count_says_what_is_collected_and_then_what_is_there(count, tmp_path):
    count.passed("Collecting numpy==2.4.6 (from -r requirements.lock (line 90))")
    assert count.state() == "collected 1 of about 3 packages, now numpy==2.4.6"
    (tmp_path / "scipy-1.17.1.dist-info").mkdir()
    assert count.state() == "1 of about 3 packages are installed, the last is scipy 1.17.1"


def test_an_error_survives_with_its_exit_code_and_the_count_moves(count, monkeypatch, capfd):
    lines = [*NOISE, SEEN[0]]
    script = f"import time; [print(line, flush=True) for line in {lines!r}]; time.sleep(1.6); raise SystemExit(23)"
    monkeypatch.setattr(installing, "SECONDS", 0.4)
    monkeypatch.setattr(installing, "PATIENCE", 0.4)
    assert installing.run([sys.executable, "-c", script], count) == 23
    out, err = capfd.readouterr()
    assert err.splitlines() == [SEEN[0]]
    assert len(out.splitlines()) >= 2  # the control: while it was silent, something was said
    assert "collected 1 of about 3 packages" in out
