"""The runner on a toy project of two chapters: real kernels, real signals, no model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from support.tiers import mostly_slow, slow

from helpers import __main__, results
from helpers.book import pages
from helpers.errors import StudyError
from helpers.runner import guards, plans, workflow
from helpers.runner import jobs as study_jobs
from helpers.study import parameters, statuses
from helpers.study.chapters import PlannedRun

ROOT = Path(__file__).parents[2]
SHARED = 'profile = "quick"\nmodel = "tiny"\nseed = 0\nthreads = 1\ntext = "plain"\n'
# what a chapter does, without a model: a part and a table, by hand
PUT = """import json
from pathlib import Path
import pandas as pd
folder = Path("results") / profile / model / f"seed-{seed}"
for place in (folder / "parts" / CHAPTER, folder / "tables"):
    place.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"value": [number], "text": [text]}).to_parquet(place / f"{CHAPTER[3:]}.parquet")
(folder / "parts" / CHAPTER / "text.json").write_text(json.dumps(text))
"""
# a bar is at work and the runner can see it
BAR = """from pathlib import Path
from helpers import console
rows = console.over("rows", "ab"); next(rows)
print("bars in the file:", Path(os.environ[console.VARIABLE]).read_text().count("rows"))
"""


def notebook(path: Path, number: str, *cells: str) -> None:
    """Writes a toy chapter: parameters, the given cells, and the cell that writes its table."""
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    put = f"CHAPTER = {path.stem!r}; number = {number}\n{PUT}"
    made.cells = [
        nbformat.v4.new_markdown_cell("# A chapter"),
        nbformat.v4.new_code_cell(f"{SHARED}{number} = 1", metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, (*cells, put)),
    ]
    for index, cell in enumerate(made.cells):
        cell["id"] = f"cell-{index}"
    nbformat.write(made, path)


def settings() -> dict:
    """The book's own settings, without the files that a toy has not."""
    found = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    for name in ("logo", "bibtex_bibfiles", "repository"):
        found.pop(name)
    found["html"].pop("favicon")
    absent = ("html_static_path", "html_css_files", "html_js_files", "html_search_scorer", "mathjax_path")
    for name in (*absent, "bibtex_reference_style", "bibtex_default_style"):
        found["sphinx"]["config"].pop(name)
    found["sphinx"]["config"]["extensions"].remove("sphinxcontrib.bibtex")
    return found


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A project of two chapters, the second of which needs the first; its path has a space, an accent and braces."""
    root = tmp_path / "a tóy {project}"
    for folder in ("notebooks", "profiles", "book"):
        (root / folder).mkdir(parents=True)
    notebook(root / "notebooks" / "01_first.ipynb", "first", f"import os; print(os.getcwd())\n{BAR}")
    notebook(root / "notebooks" / "02_second.ipynb", "second")
    shutil.copy(ROOT / "Snakefile", root)
    shutil.copytree(ROOT / "profiles" / "snakemake", root / "profiles" / "snakemake")
    (root / "profiles" / "quick.yaml").write_text("")
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/01_first\n- file: notebooks/02_second\n"
        "- file: book/reproduce\n"  # the box of every chapter leads there
    )
    (root / "_config.yml").write_text(yaml.safe_dump(settings()))
    (root / "book" / "index.md").write_text("# Toy\n")
    (root / "book" / "reproduce.md").write_text("# Again\n")
    return root


def start(root: Path, *words: str) -> subprocess.Popen:
    """The command line, started in the toy project."""
    environment = {**os.environ, "AFTER_UPDATE_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("AFTER_UPDATE_RESULTS", None)
    command = [sys.executable, "-m", "helpers", *words]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(root: Path, *words: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of one command in the toy project; a traceback is never right."""
    child = start(root, *words)
    out, err = child.communicate(timeout=120)
    assert "Traceback" not in out + err, out + err
    return child.returncode, out, err


@pytest.fixture
def told(toy: Path, monkeypatch, capfd):
    """The same in this process, whose imports are done: for what is refused before anything runs."""
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(toy))
    monkeypatch.setenv(parameters.FIGURE_FORMS, "")
    monkeypatch.delenv("AFTER_UPDATE_RESULTS", raising=False)
    monkeypatch.chdir(toy)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def tell(*words: str) -> tuple[int, str, str]:
        try:
            code = __main__.main(words)
        except SystemExit as stop:  # argparse's own
            code = stop.code
        said = capfd.readouterr()
        return code, said.out, said.err

    yield tell
    for number, handler in handlers.items():
        signal.signal(number, handler)


def kernels(root: Path) -> list[psutil.Process]:
    """The processes that run in the toy project."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(root) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(condition, seconds: float = 30) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def folder_of(root: Path, profile: str = "quick") -> Path:
    """The results folder of the toy's one run."""
    return root / "results" / profile / "tiny" / "seed-0"


def content(folder: Path) -> dict[str, bytes]:
    """What must be the same after every way to get there: parts, tables and executed chapters."""
    wanted = ("parts", "tables", "executed")
    return {str(p.relative_to(folder)): p.read_bytes() for w in wanted for p in sorted((folder / w).rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- the whole way


@slow("three more studies; the smoke study skips, and its statuses say what a change runs again")
def test_study_runs_skips_and_reruns_only_what_changed(toy):
    code, out, err = call(toy, "study")
    assert (code, err) == (0, ""), out + err
    assert [line.split()[0] for line in out.splitlines()][:5] == ["01_first:", "01_first", "02_second:", "02_second", "book:"]
    assert out.splitlines()[0] == "01_first: 4 cells, quick, tiny, seed 0"
    folder = folder_of(toy)
    assert "bars in the file: 1" in (folder / "executed/01_first.ipynb").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["chapters"]) == {"01_first", "02_second"}
    assert manifest["tables"]["first"]["rows"] == 1
    assert (toy / "build/book/quick/html/notebooks/02_second.html").is_file()
    kept = "".join(path.read_text() for path in [*folder.glob("executed/*"), *folder.glob("status/*"), folder / "manifest.json"])
    assert str(toy) not in kept
    assert sys.prefix not in kept
    assert not (folder / ".lock").exists()
    assert not list((toy / "build/runs").iterdir())

    before = content(folder)
    begun = time.monotonic()
    code, out, _ = call(toy, "study", "--json")
    assert code == 0
    states = json.loads(out)["runs"][0]["chapters"]
    assert {state["state"] for state in states.values()} == {"unchanged"}
    assert time.monotonic() - begun < 15

    later = time.time() + 10_000  # a fresh clone has other times: they decide nothing
    for path in (toy / "notebooks").iterdir():
        os.utime(path, (later, later))
    (toy / "profiles" / "quick.yaml").write_text("second: 5\n")
    code, out, _ = call(toy, "study", "--no-book", "--json")
    states = json.loads(out)["runs"][0]["chapters"]
    assert (code, states["01_first"]["state"], states["02_second"]["state"]) == (0, "unchanged", "run")
    after = content(folder)
    assert [name for name in before if "first" in name and before[name] != after[name]] == []

    (folder / "tables" / "first.parquet").write_bytes(b"torn")  # what damaged the first chapter sends both round again
    (toy / "profiles" / "quick.yaml").write_text("")
    code, out, _ = call(toy, "study", "--no-book", "--json")
    states = json.loads(out)["runs"][0]["chapters"]
    assert (code, states["01_first"]["state"], states["02_second"]["state"]) == (0, "run", "run")
    assert content(folder) == before  # byte for byte, the executed notebooks included


def test_a_changed_first_parameter_changes_all_fingerprints_and_a_second_only_its_own(toy):
    plan = plans.check(toy, "quick")
    old = plan.fingerprints(plan.runs[0])
    (toy / "profiles" / "quick.yaml").write_text("second: 2\n")
    new = plans.check(toy, "quick").fingerprints(plan.runs[0])
    assert (old["01_first"] == new["01_first"], old["02_second"] == new["02_second"]) == (True, False)
    (toy / "profiles" / "quick.yaml").write_text("first: 2\n")
    new = plans.check(toy, "quick").fingerprints(plan.runs[0])
    assert (old["01_first"] == new["01_first"], old["02_second"] == new["02_second"]) == (False, False)


def test_one_chapter_alone_and_strings_arrive_byte_equal(toy):
    text = 'a "quote", \'another\', """three""", a\nnewline, \\n, {braces}, $HOME, 🦎, ü, %s'
    (toy / "profiles" / "odd.yaml").write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    code, _, err = call(toy, "chapter", "second", "--profile", "odd")
    assert (code, "needs 01_first (not run yet)" in err) == (2, True)
    code, out, err = call(toy, "chapter", "01", "--profile", "odd")
    assert code == 0, out + err
    assert json.loads((folder_of(toy, "odd") / "parts/01_first/text.json").read_text()) == text
    assert not (folder_of(toy, "odd") / "manifest.json").exists()


# ---------------------------------------------------------------- failing cells and kernels

FAILURES = {
    "raises": ("1 / 0", 14, "01_first, cell 3 of 4: ZeroDivisionError: division by zero"),
    "study-error": (
        "from helpers.errors import StudyError\nraise StudyError('adapter x: no; do y', 13)",
        13,
        "cell 3 of 4: adapter x: no; do y",
    ),
    "exit": ("import sys\nsys.exit(0)", 14, "called sys.exit(0), which counts as a failure"),
    "killed": ("import os\nos.kill(os.getpid(), 9)", 14, "kernel killed (signal 9), likely memory: peak 0."),
    "segfault": ("import os\nos.kill(os.getpid(), 11)", 14, "killed (signal 11, SIGSEGV)"),
    "hangs": ("import time\ntime.sleep(1000)", 14, "cell 3 of 4: stopped at the chapter's limit of 3 s"),
}


@mostly_slow("a kernel each; how each failure is told", "killed")
@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_cell_is_one_line_with_its_code_and_leaves_nothing_behind(toy, name):
    cell, expected, text = FAILURES[name]
    notebook(toy / "notebooks" / "01_first.ipynb", "first", cell)
    (toy / "profiles" / "quick.yaml").write_text("chapter_seconds: 3\n" if name == "hangs" else "")
    begun = time.monotonic()
    code, _, err = call(toy, "chapter", "01")
    assert time.monotonic() - begun < 15
    assert (code, err.count("\n"), text in err) == (expected, 1, True), err
    folder = folder_of(toy)
    assert not list(folder.glob("status/*"))
    assert list((folder / "executed").iterdir()) == []
    assert not (folder / ".lock").exists()
    kept = toy / "logs/failed/quick-tiny-seed-0-01_first.ipynb"
    assert str(toy) not in kept.read_text()
    assert kernels(toy) == []


def test_a_failure_in_a_study_stops_what_depends_on_it_and_the_code_is_passed_on(toy):
    notebook(toy / "notebooks" / "01_first.ipynb", "first", FAILURES["study-error"][0])
    code, out, _ = call(toy, "study")
    assert code == 13
    assert "error: 01_first, cell 3 of 4: adapter x: no; do y" in out
    assert "0 chapter(s) done, 2 not" in out
    assert not (folder_of(toy) / "manifest.json").exists()


def test_a_flood_of_output_is_cut(toy):
    notebook(toy / "notebooks" / "01_first.ipynb", "first", "for _ in range(430):\n    print('x' * 9_999)", "print('small')")
    code, _, err = call(toy, "chapter", "01")
    assert code == 0, err
    executed = folder_of(toy) / "executed" / "01_first.ipynb"
    assert executed.stat().st_size < 1_100_000
    assert "output cut: more than 4 MB" in executed.read_text()
    assert "small" in executed.read_text()


# ---------------------------------------------------------------- signals and locks

SLOW = "from pathlib import Path\nimport time\nif Path('slow').exists():\n    Path('begun').touch()\n    time.sleep(1000)"


def test_an_interrupted_chapter_leaves_no_orphan_and_no_lock(toy):
    notebook(toy / "notebooks" / "01_first.ipynb", "first", SLOW)
    (toy / "slow").touch()
    child = start(toy, "chapter", "01")
    wait_until((toy / "begun").exists)
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130
    wait_until(lambda: not kernels(toy), 10)
    assert [path for path in folder_of(toy).rglob("*") if path.is_file()] == []


@slow("kill points of a whole study; one interrupted chapter stays")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_study_leaves_no_orphan_and_goes_on(toy, number, expected):
    notebook(toy / "notebooks" / "02_second.ipynb", "second", SLOW)
    (toy / "slow").touch()
    child = start(toy, "study", "--no-book")
    wait_until((toy / "begun").exists)
    if number == signal.SIGTERM:  # a second run is refused at once, and says by whom
        code, _, err = call(toy, "study")
        assert (code, f"process {child.pid} on " in err, " since 20" in err) == (14, True, True), err
    child.send_signal(number)
    assert child.wait(30) == expected
    wait_until(lambda: not kernels(toy), 10)
    assert number == signal.SIGKILL or not (folder_of(toy) / ".lock").exists()
    (toy / "slow").unlink()
    code, out, err = call(toy, "study", "--no-book", "--json")
    assert code == 0, err
    assert json.loads(out)["runs"][0]["chapters"]["01_first"]["state"] == "unchanged"
    assert ("took over the lock of process" in err) == (number == signal.SIGKILL)
    assert (folder_of(toy) / "manifest.json").is_file()


def test_a_lock_is_exclusive_and_one_left_behind_is_taken_over(tmp_path, capsys):
    with (
        guards.locked(tmp_path, "this run"),
        pytest.raises(StudyError, match=f"this run is being run by process {os.getpid()} on") as caught,
    ):
        guards.locked(tmp_path, "this run").__enter__()
    assert caught.value.code == 14
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "h", "started": "2026"}')
    with guards.locked(tmp_path, "this run"):
        assert "took over the lock of process 1 on h since 2026" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- refusals before anything runs


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["study", "--profile", "quik"], "unknown profile 'quik'; did you mean 'quick'?"),
        (["study", "--profile", "../../x"], "[a-z0-9._-]{1,64}"),
        (["chapter", "03"], "unknown chapter '03'"),
        (["chapter"], "chapter needs a name"),
        (["study", "--seed", "x"], "--seed 'x' is not a whole number"),
        (["study", "--seed", "3-1"], "--seed '3-1' is not a whole number; give one such as 0, or several: 0,1,2 or 0-2"),
        (["study", "--seed", "-1"], "--seed '-1' is not a whole number"),
        (["study", "--seed", "9999999999"], "parameter 'seed' is 9999999999"),
        (["study", "--jobs", "0"], "--jobs 0 is not possible"),
        (["book", "--profile", "none"], "unknown profile 'none'"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_words_are_refused(toy, told, words, text):
    code, out, err = told(*words)
    assert (code, out, text in err) == (2, "", True), err
    assert not (toy / "results").exists()


def test_a_profile_with_several_models_and_seeds_is_several_runs(toy):
    (toy / "profiles" / "many.yaml").write_text("model: [tiny, embedded]\nseed: [0, 1, 2]\n")
    plan = plans.check(toy, "many")
    assert [(each.model, each.seed) for each in plan.runs] == [(m, s) for m in ("tiny", "embedded") for s in range(3)]
    assert [each.seed for each in plans.check(toy, "many", ["tiny"], [7]).runs] == [7]
    assert (
        plan.values[plan.runs[1]]["01_first"] | {"model": "tiny", "seed": 1, "profile": "many"}
        == plan.values[plan.runs[1]]["01_first"]
    )


MEET = """import time
from pathlib import Path
Path(f"met-{own}").touch()
until = time.monotonic() + 60
while not Path(f"met-{other}").exists():
    assert time.monotonic() < until, "nobody else was at work"
    time.sleep(0.05)
"""


def test_chapters_that_do_not_wait_for_one_another_run_side_by_side(toy):
    """02 and 04 need 01 alone: each ends only when the other has begun."""
    notebook(toy / "notebooks" / "02_second.ipynb", "second", f"own, other = 2, 4\n{MEET}")
    notebook(toy / "notebooks" / "04_fourth.ipynb", "fourth", f"own, other = 4, 2\n{MEET}")
    code, out, err = call(toy, "study", "--no-book", "--jobs", "2")
    assert code == 0, out + err
    assert sorted(path.stem for path in (toy / "results" / "quick" / "tiny" / "seed-0" / "status").glob("*.json")) == [
        "01_first", "02_second", "04_fourth",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cores", "memory", "changes", "wanted"),
    [
        (2, 24, {}, 2), (2, 5, {}, 1), (1, 24, {}, 1), (64, 500, {}, workflow.MOST), (4, 11, {}, 2),
        (8, 64, {"threads": 4}, 2), (8, 64, {"device": "cuda"}, 1), (8, 64, {"model": "a/model@1"}, 1),
    ],
)  # fmt: skip
def test_as_many_chapters_run_at_once_as_there_are_cores_and_memory_for(monkeypatch, cores, memory, changes, wanted):
    run = PlannedRun("quick", str(changes.get("model", "embedded")), "embedded", 0, Path("results"))
    values = {run: {"01_first": {"threads": 1, "device": "cpu"} | changes}}
    plan = plans.StudyPlan(Path(), "quick", {}, (run,), values, 60.0)
    monkeypatch.setattr(workflow.outlook, "cores", lambda: cores)
    monkeypatch.setattr(workflow.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * 1e9))
    assert workflow.at_once(plan) == wanted


COUNT_RUNS = """top = Path("results/quick")
names = sorted(str(path.relative_to(top)) for path in top.glob("*/seed-*/parts/02_second"))
(top / "findings.parquet").write_text(" ".join(names))
"""


def by_hand(plan: plans.StudyPlan, todo, outlooks, jobs: int, cluster: Path | None = None) -> int:
    """Stands for snakemake and its kernels: what each chapter leaves, in an order that keeps to the needs of the jobs."""
    place = plan.root / "build" / "runs" / "plan"
    listed = [job for each, names in todo.items() for job in workflow._write_jobs(plan, each, names, outlooks.get(each), place)]
    workflow._in_order_of_runs(listed)
    done: list[str] = []
    while waiting := [job for job in listed if job["stem"] not in done]:
        stem = next(str(job["stem"]) for job in waiting if set(job["needs"]) <= set(done))
        folder, name = plan.root / "results" / plan.profile / Path(stem).parent, Path(stem).name
        part = folder / "parts" / name / "text.json"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("{}")
        if name == "11_all":
            top = plan.root / "results" / plan.profile
            (top / "findings.parquet").write_text(" ".join(str(path) for path in sorted(top.glob("*/seed-*/parts/02_second"))))
        entry = {
            "fingerprint": json.loads((place / f"{stem}.json").read_text())["fingerprint"],
            "seconds": 0,
            "finished": stem,
            "tokens": {},
        }
        statuses.status_path(folder, name).parent.mkdir(exist_ok=True)
        statuses.status_path(folder, name).write_text(
            json.dumps({**entry, "files": statuses.written(folder, name), "machine": {"peak_gb": 0}})
        )
        done.append(stem)
    return 0


def in_process(toy: Path, monkeypatch):
    """The states of chapter 11 after a study whose chapters are done by hand."""
    monkeypatch.setattr(workflow, "make", by_hand)
    monkeypatch.chdir(toy)

    def states(*words: str) -> list[str]:
        answer = study_jobs.study(plans.check(toy, "quick", seeds=[int(word) for word in words[1:]]))
        assert answer["code"] == 0
        return [entry["chapters"]["11_all"]["state"] for entry in answer["runs"]]

    return states


def with_kernels(toy: Path, monkeypatch):
    """The same by the command, with real kernels."""

    def states(*words: str) -> list[str]:
        code, out, err = call(toy, "study", "--no-book", "--json", *words)
        assert code == 0, err
        return [entry["chapters"]["11_all"]["state"] for entry in json.loads(out)["runs"]]

    return states


@pytest.mark.parametrize(
    "way", [in_process, pytest.param(with_kernels, marks=slow("fourteen kernels; who runs when is decided before"))]
)
def test_a_chapter_that_reads_all_runs_comes_last_and_runs_again_when_a_run_joins_or_its_file_is_gone(toy, monkeypatch, way):
    notebook(toy / "notebooks" / "11_all.ipynb", "eleventh", "from pathlib import Path", COUNT_RUNS)
    (toy / "profiles" / "quick.yaml").write_text("seed: [0, 1]\n")
    beside, states = toy / "results" / "quick" / "findings.parquet", way(toy, monkeypatch)
    assert states() == ["run", "run"]
    assert beside.read_text().count("seed-") == 2  # each waited for what the other run writes
    assert states() == ["unchanged", "unchanged"]
    assert states("--seed", "2") == ["run"]
    assert beside.read_text().count("seed-") == 3
    assert states("--seed", "0") == ["run"]  # a run has joined
    beside.unlink()
    assert states("--seed", "0") == ["run"]
    assert states("--seed", "0") == ["unchanged"]


def test_lean_seeds_run_less_and_count_with_the_others(toy, monkeypatch):
    notebook(toy / "notebooks" / "11_all.ipynb", "eleventh", "from pathlib import Path", COUNT_RUNS)
    profile, states = toy / "profiles" / "quick.yaml", in_process(toy, monkeypatch)
    profile.write_text("seed: [0, 3]\nlean:\n  from_seed: 3\n  skip: [second]\n  changes: {text: short}\n")
    assert states() == ["run", "run"]
    whole, lean = (toy / "results" / "quick" / "tiny" / f"seed-{seed}" for seed in (0, 3))
    assert sorted(path.stem for path in (lean / "status").iterdir()) == ["01_first", "11_all"]
    manifest = json.loads((lean / "manifest.json").read_text())
    assert (manifest["left_out"], set(manifest["chapters"])) == (["02_second"], {"01_first", "11_all"})
    assert json.loads((whole / "manifest.json").read_text())["left_out"] == []
    run = results.Run("quick", "tiny", 0, whole)
    assert [found.seed for found in results.finished(run, "11_all")] == [0, 3]  # the chapter over all runs counts it
    assert states() == ["unchanged", "unchanged"]
    profile.write_text("seed: [0, 3]\n")  # no longer lean: what it left out is run, and counted
    assert states("--seed", "3") == ["run"]
    assert (lean / "status" / "02_second.json").is_file()
    assert not (lean / "lean.json").exists()
    profile.write_text("seed: [0, 3]\nlean: {from_seed: 3, skip: [second]}\n")  # and lean again: it is gone
    assert states("--seed", "3") == ["run"]
    assert not (lean / "status" / "02_second.json").exists()
    assert not (lean / "parts" / "02_second").exists()


def test_a_chapter_that_a_lean_seed_does_without_is_not_run_alone(toy, told):
    (toy / "profiles" / "quick.yaml").write_text("lean: {from_seed: 3, skip: [second]}\n")
    code, out, err = told("chapter", "02", "--seed", "3")
    assert (code, out, "quick, tiny, seed 3 is lean and does without 02_second" in err) == (2, "", True), err


def test_a_run_that_keeps_no_chapters_and_no_tables_is_done_and_read_from_its_parts(toy, told, monkeypatch):
    """As a fresh clone has the seeds that the book does not show."""
    monkeypatch.setattr(workflow, "make", by_hand)
    assert told("study")[0] == 0
    folder = folder_of(toy)
    run = results.Run("quick", "tiny", 0, folder)
    key = {**dict.fromkeys(results.KEY, ""), "model": "tiny", "seed": 0, "strength": None}
    rows = pd.DataFrame([{**key, "corpus": c, "metric": "m", "value": 1.0, "low": 0.5, "high": 2.0, "n": 3} for c in "ba"])
    results.write_table(run, "01_first", "utility", rows)
    whole = results.read_table(run, "utility")
    for place in ("executed", "tables"):
        shutil.rmtree(folder / place, ignore_errors=True)
    assert results.table_names(folder) == ["utility"]
    pd.testing.assert_frame_equal(results.read_table(run, "utility"), whole)
    code, out, err = told("study")
    assert (code, out.count("unchanged"), err) == (0, 2, "")
    assert "no book: quick/tiny/seed-0 keeps its tables" in out
    code, _, err = told("book", "--profile", "quick", "--seed", "0")
    assert (code, "make study PROFILE=quick MODEL=tiny SEED=0 FORCE=1 makes again" in err) == (13, True), err
    results.put_together(folder)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "tables" / "utility.parquet"), whole)
    (folder / "tables" / "utility.parquet").unlink()  # one of them gone while others may be there is damage
    assert not statuses.replaceable(folder, "tables/utility.parquet")


def test_several_seeds_are_named_by_their_ends(toy, told):
    code, out, err = told("check", "--seed", "0-2,7,1", "--json")
    assert code == 0, err
    assert [run["seed"] for run in json.loads(out)["runs"]] == [0, 1, 2, 7]


def test_results_that_cannot_be_written_are_refused_before_anything_runs(toy, told):
    (toy / "results").write_text("a file")
    code, _, err = told("study")
    assert (code, "cannot be written" in err) == (14, True), err
    (toy / "results").unlink()
    (toy / "results").symlink_to("nowhere/else")
    code, _, err = told("study")
    assert (code, "cannot be written" in err) == (14, True), err


def test_no_disk_space_is_refused(toy, monkeypatch):
    monkeypatch.setattr(guards.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StudyError, match=r"only 0\.00 GB of disk are free") as caught:
        guards.prepare(toy / "results")
    assert caught.value.code == 14


def test_committed_results_are_overwritten_only_by_force_which_keeps_the_old(toy):
    one = plans.check(toy, "quick").runs[0]
    folder = toy / one.folder
    (folder / "status").mkdir(parents=True)
    (folder / "status" / "01_first.json").write_text("{}\n")
    (folder / "status" / "02_second.json").write_text('{"fingerprint": "old"}')
    (folder / "manifest.json").write_text("{}")
    todo = {"02_second": "its code or parameters changed"}
    assert guards.protect(toy, one, todo, force=False) is False  # not under git
    git = ["git", "-C", str(toy), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-f", "results"], check=True)
    assert guards.protect(toy, one, {"03_new": "not run yet"}, force=False) is False  # merely missing
    with pytest.raises(
        StudyError, match=r"is committed and would be overwritten \(02_second: its code or parameters changed\)"
    ) as caught:
        guards.protect(toy, one, todo, force=False)
    assert caught.value.code == 2
    assert guards.protect(toy, one, todo, force=True) is True
    assert list(folder.iterdir()) == []
    assert len(list((toy / "results/.old").glob("quick-*/tiny/seed-0/manifest.json"))) == 1


def test_a_book_without_its_chapters_says_which_and_how(told):
    code, _, err = told("book", "--profile", "quick")
    assert (code, "no finished 01_first, 02_second" in err, "make study PROFILE=quick" in err) == (13, True, True), err


@slow("two kernels and a book; the book of the smoke study is built as strictly")
def test_a_book_with_a_warning_is_refused(toy):
    folder = folder_of(toy)
    for name in ("01_first", "02_second"):
        for place in ("executed", "status"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(toy / "notebooks" / f"{name}.ipynb", folder / "executed")
        (folder / "status" / f"{name}.json").write_text('{"fingerprint": "x"}')
    assert pages.find_run(toy, toy / "results", "") == ("quick", folder)
    (toy / "book" / "index.md").write_text("# Toy\n\n[nowhere](nowhere.md)\n")
    code, _, err = call(toy, "book")
    assert (code, "warning(s), the first: book/index.md" in err, str(toy) in err) == (12, True, False), err


# ---------------------------------------------------------------- small parts


def test_help_is_fast_and_imports_no_torch():
    code = "import sys\ntry:\n    import helpers.__main__ as m; m.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for name in ("study", "chapter", "book", "check", "doctor", "clean"):
        assert name in done.stdout


def test_clean_keeps_committed_results(toy, told):
    for name in ("build/x", "logs/x", "results/quick/x", "results/smoke/x", "results/cpu/x"):
        (toy / name).mkdir(parents=True)
    code, out, _ = told("clean")
    assert (code, out) == (0, "removed: build, logs, results/quick, results/smoke\n")
    assert (toy / "results/cpu/x").is_dir()


def test_doctor_names_what_differs(tmp_path):
    from helpers.runner import doctor

    (tmp_path / "requirements.lock").write_text("# pins\nPyYAML==0.1\nno.such_package==1\n")
    found = doctor.differences(doctor.pins(tmp_path / "requirements.lock"))
    assert [line.split(":")[0] for line in found] == ["pyyaml", "no-such-package"]
    assert found[1].endswith("nothing is installed")
    with pytest.raises(StudyError, match=r"requirements\.lock is missing"):
        doctor.pins(tmp_path / "nothing")
