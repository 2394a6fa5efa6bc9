"""The walks of CONTRIBUTING.md work as written: pasted into a copy of the project, the tests that they name pass."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiers import slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.compile(r"```python\n# in (\S+)\n(.*?)```", re.DOTALL)
WALKS = {
    title: (CODE.findall(body), re.findall(r"```bash\n.venv/bin/python (.*?)\n```", body))
    for title, body in re.findall(r"^### I want to add an? (\w+)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.fixture
def copy(tmp_path) -> Path:
    """The code and the tests of the project, to be written into."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def walk(root: Path, *kinds: str) -> None:
    """Pastes the blocks of all walks that go into these folders, each at the end of its file."""
    for blocks, _ in WALKS.values():
        for file, code in blocks:
            if file.startswith(kinds):
                with open(root / file, "a", encoding="utf-8") as out:
                    out.write("\n\n" + code)


def outcome(root: Path, command: str) -> tuple[int, str]:
    """The exit code of a walk's command in the copy, and what it said last."""
    words = re.findall(r'"([^"]*)"|(\S+)', command)
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(
        [sys.executable, *(a or b for a, b in words), "-p", "no:cacheprovider"],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout[-2000:] + done.stderr[-2000:]


def test_there_are_four_walks_each_through_one_file_of_src_and_one_of_tests():
    assert list(WALKS) == ["quantizer", "task", "restoration", "figure"]
    for blocks, commands in WALKS.values():
        assert [file.split("/")[0] for file, _ in blocks] == ["src", "tests"]
        (command,) = commands
        assert blocks[1][0] in command


@slow("copies of the project and pytest in them; the form of the walks is looked at each time")
@pytest.mark.parametrize("name", WALKS)
def test_every_walk_works_and_the_tests_speak_where_its_second_half_is_left_out(copy, name):
    walk(copy, "src")
    code, said = outcome(copy, WALKS[name][1][0])
    assert code not in {0, 5} or name == "task", said  # a task's own line counts its real texts, which not every machine has
    walk(copy, "tests")
    code, said = outcome(copy, WALKS[name][1][0])
    assert code == 0, said
    assert re.search(r"[1-9]\d* passed", said), said
