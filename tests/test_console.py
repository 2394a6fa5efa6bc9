"""Bars on stderr and in a file; what the runner reads of them and says; a file that cannot be written harms nobody."""

import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from helpers import console
from helpers.console import Bar


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The file of a kernel, written without a pause, with no bar at work."""
    path = tmp_path / console.FILE
    monkeypatch.setenv(console.VARIABLE, str(path))
    monkeypatch.setattr(console, "PAUSE", 0.0)
    monkeypatch.setattr(console, "_at_work", [])
    return path


def seen(path: Path) -> list[tuple]:
    return [(bar.title, bar.done, bar.total, bar.detail) for bar in console.state(path)]


# ---------------------------------------------------------------- the file


def test_a_bar_says_what_is_done_and_leaves_when_all_is_done(file):
    bar = console.counting("variants", 2)
    assert seen(file) == [("variants", 0, 2, "")]
    bar("nf4")
    assert seen(file) == [("variants", 1, 2, "nf4")]
    bar("int8")
    assert seen(file) == []


def test_a_training_learns_its_number_of_steps_on_the_way(file):
    bar = console.training("safety tuning")
    assert seen(file) == [("safety tuning", 0, 0, "")]
    bar(1, 3, 2.5)
    assert seen(file) == [("safety tuning", 1, 3, "loss 2.50")]
    bar(3, 3, 0.1)
    assert seen(file) == []


def test_bars_nest_and_an_inner_one_ends_with_its_loop(file):
    bar = console.counting("variants", 2)
    for turn, _ in enumerate(console.over("prompts", "abc")):
        assert seen(file) == [("variants", 0, 2, ""), ("prompts", turn, 3, "")]
    assert seen(file) == [("variants", 0, 2, "")]
    bar()
    loop = console.over("prompts", "abc")
    next(loop)
    with pytest.raises(ZeroDivisionError):
        loop.throw(ZeroDivisionError)
    assert seen(file) == [("variants", 1, 2, "")]


def test_a_bar_that_was_left_makes_way_for_the_next_of_its_name(file):
    console.counting("variants", 5)("base")
    console.training("tuning")(1, 4, 1.0)
    console.counting("variants", 3)
    assert seen(file) == [("variants", 0, 3, "")]


def test_the_items_of_a_loop_are_those_that_were_given():
    assert list(console.over("letters", iter("abc"))) == ["a", "b", "c"]
    assert list(console.over("nothing", [])) == []


def test_the_file_is_written_twice_a_second_at_most_and_at_the_end(file, monkeypatch):
    monkeypatch.setattr(console, "PAUSE", 0.5)
    monkeypatch.setattr(console, "_written", -1.0)
    now, written, replace = [0.0], [], os.replace
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.os, "replace", lambda one, other: (written.append(now[0]), replace(one, other)))
    for _ in console.over("rows", range(100)):  # one second and a half
        now[0] += 0.015
    assert seen(file) == []
    assert written[-1] == pytest.approx(1.5)
    assert len(written) == 4
    assert min(b - a for a, b in pairwise(written[:-1])) >= 0.5


@pytest.mark.parametrize("place", ["missing/progress.json", "folder"])
def test_a_file_that_cannot_be_written_stops_no_work(tmp_path, monkeypatch, place):
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv(console.VARIABLE, str(tmp_path / place))
    assert list(console.over("rows", [1, 2])) == [1, 2]
    console.counting("variants", 1)("one")


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", '[{"title": "x"', '[{"name": "x"}]'])
def test_a_file_that_says_nothing_gives_no_bars(tmp_path, text):
    (tmp_path / "state").write_text(text)
    assert console.state(tmp_path / "state") == [] == console.state(tmp_path / "none")


def test_a_killed_process_leaves_a_whole_file_that_the_next_cell_does_not_believe(tmp_path):
    path = tmp_path / console.FILE
    code = "import os, signal\nfrom helpers import console\nconsole.PAUSE = 0\nconsole.counting('variants', 3)('nf4')\n"
    code += "os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, console.VARIABLE: str(path)}, check=False,
                          capture_output=True)  # fmt: skip
    assert done.returncode == -9
    assert seen(path) == [("variants", 1, 3, "nf4")]
    assert console.state(path, since=time.time()) == []


# ---------------------------------------------------------------- in words


def bars(*counts: tuple[str, int, int]) -> list[Bar]:
    return [Bar(title, total, done) for title, done, total in counts]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], None),
        ([("tuning", 0, 0)], None),
        ([("variants", 3, 10)], 0.3),
        ([("variants", 3, 10), ("prompts", 1, 2)], 0.35),
        ([("variants", 3, 10), ("prompts", 0, 0)], 0.3),
        ([("a", 0, 2), ("b", 1, 2), ("c", 1, 2)], 0.375),
    ],
)
def test_an_inner_bar_counts_as_part_of_the_next_step(counts, expected):
    assert console.shares(bars(*counts)) == (None if expected is None else pytest.approx(expected))


def test_the_words_name_the_outermost_and_the_innermost_bar():
    assert console.words([]) == ""
    assert console.words([Bar("variants", 10, 3, "nf4")]) == "variants 3 of 10 (nf4)"
    assert console.words([Bar("tuning")]) == "tuning"
    nested = [Bar("variants", 10, 3, "nf4"), Bar("sets", 4, 1), Bar("prompts", 1280, 64)]
    assert console.words(nested) == "variants 3 of 10 (nf4): prompts 64 of 1,280"


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, "0 s"), (40, "40 s"), (130, "2 min 10 s"), (3599.7, "1 h 0 min")])
def test_times_in_words(seconds, expected):
    assert console.took(seconds) == expected


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (0, 10, 5, ""),
        (10, 10, 5, ""),
        (1, 2, 4, "a few seconds left"),
        (1, 2, 38, "about 40 s left"),
        (0.3, 1, 103, "about 4 min left"),
        (1, 100, 100, "about 2.8 h left"),
    ],
)
def test_the_time_left_is_in_proportion(done, total, seconds, expected):
    assert console.left(done, total, seconds) == expected


# ---------------------------------------------------------------- the line of a running chapter


def test_the_line_of_a_chapter_says_its_bar_its_cell_and_the_time(tmp_path):
    from helpers.runner.kernels import Heartbeat
    from helpers.study.chapters import Job, PlannedRun

    job = Job("05_staleness", PlannedRun("quick", "tiny", "tiny", 0, tmp_path), {}, "", 3600.0, {}, {})
    watch = Heartbeat(job, tmp_path / console.FILE, started=time.monotonic() - 130, cell=9, cells=27, entered=time.time() - 103)
    assert watch.line() == "05_staleness: cell 9 of 27, 2 min 10 s"
    state = [{"title": "variants", "total": 10, "done": 3, "detail": "nf4", "began": time.time() - 103}]
    (tmp_path / console.FILE).write_text(json.dumps(state))
    assert watch.line() == "05_staleness: variants 3 of 10 (nf4), cell 9 of 27, 2 min 10 s, about 4 min left"
    watch.entered = time.time()
    assert watch.line() == "05_staleness: cell 9 of 27, 2 min 10 s"


# ---------------------------------------------------------------- what may be printed


def test_paths_and_hosts_are_scrubbed():
    root, home = Path("/somewhere/project"), "/" + "home/me"
    text = f"in {root}/src/x.py and {sys.prefix}/lib and {home}/deep/secret.txt at https://example.org/home/page, "
    clean = console.scrub(f"{text}/tmp/ipykernel_12/3.py", root)
    assert clean == "in ./src/x.py and environment/lib and secret.txt at https://example.org/home/page, cell"


def test_the_name_of_a_cell_is_found_as_a_search_from_every_letter_finds_it():
    plain = re.compile(r"(?:[^\s\"'\x1b]*/)?ipykernel_\d+/\d+\.py")
    name = "ipykernel_1/2.py"
    texts = [name, f"x{name}", f"/a/b/{name}:4", f"{name}/{name}", f"{name}a/b/{name}", f"'c/{name}' d/{name}z/{name}", "a/" * 99]
    texts += [f"\x1b[31m/a/{name}", f"\x1b/a/{name}", f'"/a/{name}"\n{name}', f"/a/{name[:-1]}", f"{'a/' * 99}{name} {name}"]
    for text in texts:
        assert console.CELL.sub("cell", text) == plain.sub("cell", text)


def test_scrubbing_a_long_word_takes_time_in_proportion_to_its_length():
    def seconds(length: int) -> float:
        begun = time.process_time()
        console.scrub("a/b" * (length // 3), Path("/somewhere/project"))
        return time.process_time() - begun

    short = min(seconds(10_000) for _ in range(5))
    assert min(seconds(200_000) for _ in range(2)) < 100 * short  # 20 times the length; a search from every letter: 400 times
