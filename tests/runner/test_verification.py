"""`verify` measures again from an empty cache: equal tables pass, a moved one is named, and equality alone may stamp."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from helpers import __main__, cache, folders
from helpers.errors import StudyError
from helpers.runner import guards, manifests, plans, verification
from helpers.runner.verification import compared, difference, other_machine
from helpers.study import chapters, statuses

ROOT = Path(__file__).parents[2]
SHARED = 'profile = "quick"\nmodel = "tiny"\nseed = 0\nthreads = 1\n'
# what a chapter writes: a part, a table, and a note that names a thing in the cache
PUT = """import os
from pathlib import Path
import pandas as pd
folder = Path(os.environ.get("AFTER_UPDATE_RESULTS") or "results") / profile / model / f"seed-{seed}"
for place in (folder / "parts" / CHAPTER, folder / "tables"):
    place.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"metric": ["a", "b"], "value": [VALUE, 2.0]}).to_parquet(place / f"{CHAPTER[3:]}.parquet")
(folder / "parts" / CHAPTER / "key.json").write_text('"KEY"')
"""


def notebook(root: Path, name: str, value: str = "1.0", key: str = "old") -> str:
    """Writes a toy chapter; what its last cell does, as text."""
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    text = f"CHAPTER = {name!r}\n{PUT.replace('VALUE', value).replace('KEY', key)}"
    cells = [(f"{SHARED}size = 1", ["parameters"]), (text, [])]
    made.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in cells]
    for index, cell in enumerate(made.cells):
        cell["id"] = f"cell-{index}"
    nbformat.write(made, root / "notebooks" / f"{name}.ipynb")
    return text


def stored(root: Path, name: str) -> None:
    """The results of a chapter as they were made before definitions had numbers, and without a kernel."""
    exec(SHARED + notebook(root, name), {})
    entry = {"fingerprint": "old", "parameters": {}, "finished": name, "files": statuses.written(folder_of(root), name)}
    cache.write_json(statuses.status_path(folder_of(root), name), entry)


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A project of two chapters."""
    root = tmp_path / "toy"
    for folder in ("notebooks", "profiles"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "Snakefile", root)
    shutil.copytree(ROOT / "profiles" / "snakemake", root / "profiles" / "snakemake")
    (root / "profiles" / "quick.yaml").write_text("")
    (root / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(root))
    monkeypatch.delenv("AFTER_UPDATE_RESULTS", raising=False)
    monkeypatch.chdir(root)
    for name in ("01_first", "02_second"):
        stored(root, name)
    manifests.write_manifest(folder_of(root), ["01_first", "02_second"])
    return root


def folder_of(root: Path) -> Path:
    return root / "results" / "quick" / "tiny" / "seed-0"


def call(capfd, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command line, in this process."""
    code = __main__.main(["verify", *words])
    said = capfd.readouterr()
    return code, said.out, said.err


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stale(root: Path) -> dict[str, str]:
    plan = plans.check(root, "quick")
    return statuses.stale(plan.runs[0], root, plan.fingerprints(plan.runs[0]))


def test_a_moved_table_is_named_and_nothing_stamped(toy, capfd):
    folder, before = folder_of(toy), content(folder_of(toy))
    notebook(toy, "02_second", "1.0 + 1e-9")
    code, out, err = call(capfd, "--stamp")
    assert code == 12
    assert "seed-0 01_first first: equal, 2 rows" in out
    assert "1 of 2 tables differ, by at most 1e-09; the first is 'second' of 02_second: column 'value', row 0" in err
    assert content(folder) == before
    assert list((toy / "build" / "verify").iterdir()) == []


def test_equal_tables_pass_and_are_stamped_with_the_notes_of_today(toy, capfd):
    """Other code, the same numbers, another name in the cache; the first chapter runs too: an empty cache holds nothing of it."""
    folder, before = folder_of(toy), content(folder_of(toy))
    notebook(toy, "02_second", "0.5 + 0.5", key="new")
    code, out, err = call(capfd, "--chapters", "second", "--stamp", "--json")
    assert (code, [row["table"] for row in json.loads(out)["tables"]]) == (0, ["second"])
    assert "01_first             quick, tiny, seed 0: " in err
    assert stale(toy) == {"01_first": "it was made under older keys", "02_second": "01_first runs again"}
    after, note = content(folder), "parts/02_second/key.json"
    assert (before[note], after[note]) == (b'"old"', b'"new"')
    assert {name for name in before if before[name] != after[name]} == {"status/02_second.json", "manifest.json", note}
    assert set(statuses.status(folder, "02_second")["verified"]) == {"finished", "code", "versions", "machine"}
    statuses.status_path(folder, "01_first").write_text(json.dumps(stamped(toy, "01_first")))
    assert stale(toy) == {}  # what was stamped bears the fingerprint of what would run


def stamped(root: Path, name: str) -> dict:
    """The status of a chapter with today's fingerprint."""
    plan = plans.check(root, "quick")
    return statuses.status(folder_of(root), name) | {"fingerprint": plan.fingerprints(plan.runs[0])[name]}


def test_what_was_never_run_is_said_before_anything_runs(toy, capfd):
    shutil.rmtree(folder_of(toy))
    code, out, err = call(capfd, "--chapters", "02")
    assert (code, out, content(folder_of(toy))) == (13, "", {})
    assert "quick, tiny, seed 0 has no 02_second to compare with; run it: make study PROFILE=quick" in err


# ---------------------------------------------------------------- which chapters can be compared


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """A plan of some seeds of a profile of which seeds 0 to 2 are stored, without anything run."""

    def plan(*seeds: int) -> plans.StudyPlan:
        names = ("01_models", "06_triage", "10_realignment", "11_findings")
        runs = tuple(chapters.PlannedRun("cpu", "tiny", "tiny", seed, Path(f"results/cpu/tiny/seed-{seed}")) for seed in seeds)
        return plans.StudyPlan(tmp_path, "cpu", dict.fromkeys(names, tmp_path), runs, {}, 1.0)

    for seed in range(3):
        for name in plan(0).notebooks:
            path = tmp_path / f"results/cpu/tiny/seed-{seed}/status/{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"fingerprint": "x"}')
    return plan


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ((0, 1, 2), ["01_models", "06_triage", "10_realignment", "11_findings"]),
        ((0,), ["01_models", "06_triage", "10_realignment"]),
        ((1,), ["01_models"]),  # chapter 06 reads seed 0, and chapter 10 reads chapter 06
        ((0, 1), ["01_models", "06_triage", "10_realignment"]),
    ],
)
def test_a_chapter_that_read_other_runs_is_compared_only_with_these(seeds, asked, kept, capfd):
    assert verification.comparable(seeds(*asked), []) == kept
    said = capfd.readouterr().out
    assert ("not compared" in said) == (len(kept) < 4)
    if asked == (1,):
        with pytest.raises(StudyError, match="nothing is left to compare"):
            verification.comparable(seeds(1), ["11"])


def test_a_lean_seed_is_compared_in_the_chapters_that_it_has(seeds, tmp_path):
    (tmp_path / "results/cpu/tiny/seed-2/status/06_triage.json").unlink()
    plan = seeds(0, 1, 2)
    with pytest.raises(StudyError, match="cpu, tiny, seed 2 has no 06_triage to compare with"):
        verification.comparable(plan, ["06"])
    lean = replace(plan, left_out={plan.runs[2]: frozenset({"06_triage"})})
    assert verification.comparable(lean, ["06"]) == ["06_triage"]


def test_what_a_chapter_needs_runs_with_it(seeds):
    assert list(verification.with_needs(seeds(0), ["06_triage"])) == ["01_models", "06_triage"]


# ---------------------------------------------------------------- differences

TABLE = pd.DataFrame({"metric": ["a", "b", "c"], "value": [1.0, np.nan, 3.0], "n": [1, 2, 3]})


@pytest.mark.parametrize(
    ("change", "said", "largest"),
    [
        (lambda t: t, "", 0.0),
        (lambda t: t.assign(value=[1.0, np.nan, 3.0 + 2**-40]), "column 'value', row 2", 2**-40),
        (lambda t: t.assign(value=[1.0, 2.0, 3.0]), "column 'value', row 1", np.inf),  # a number where there was none
        (lambda t: t.assign(metric=["a", "b", "d"], n=[1, 2, 5]), "column 'metric', row 2: 'c' is now 'd' (2 value(s)", 2.0),
        (lambda t: t[:2], "has 2 rows in place of 3", 0.0),
        (lambda t: t[["value", "metric", "n"]], "has columns value, metric, n in place of metric, value, n", 0.0),
    ],
)  # fmt: skip
def test_a_difference_is_named_by_its_first_place_and_its_largest_size(change, said, largest):
    found = difference(TABLE, change(TABLE.copy()))
    assert found["differs"].startswith(said)
    assert bool(found["differs"]) == bool(said)
    assert found["largest"] == largest


def test_a_table_that_came_or_went_is_a_difference(tmp_path):
    for run_name, tables in (("old", ("kept", "gone")), ("new", ("kept", "come"))):
        for name in tables:
            path = tmp_path / run_name / "parts" / "01_first" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            TABLE.to_parquet(path)
    found = {row["table"]: row["differs"] for row in compared(tmp_path / "old", tmp_path / "new", "01_first")}
    assert found == {"kept": "", "gone": "is not written any more", "come": "is new"}


def test_another_machine_is_named():
    before = {"versions": {"torch": "1", "numpy": "2"}, "machine": {"compute": "bf16", "threads": 2, "cpus": 2}}
    after = {"versions": {"torch": "1", "numpy": "3"}, "machine": {"compute": "fp32", "threads": 2, "cpus": 8}}
    assert other_machine(before, after) == ["numpy 2 (here 3)", "compute bf16 (here fp32)"]
    assert other_machine(before, before) == []


# ---------------------------------------------------------------- committed results


def test_the_committed_results_make_the_book_and_are_seen_as_older_and_never_overwritten_unasked(monkeypatch):
    """They bear fingerprints of the text of helpers: good enough to be shown, never to be mixed with what is measured now."""
    from helpers.book import pages

    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(ROOT))
    monkeypatch.delenv("AFTER_UPDATE_RESULTS", raising=False)
    profile, folder = pages.find_run(ROOT, ROOT / "results", "")
    plan = plans.check(ROOT, profile, [folder.parent.name], [int(folder.name.removeprefix("seed-"))])
    (one,) = plan.runs
    assert ROOT / one.folder == folder
    reasons = statuses.stale(one, ROOT, plan.fingerprints(one))
    marked = [name for name in plan.notebooks if "definitions" in statuses.status(folder, name)]
    assert pages.missing(ROOT, folder) == []
    if not marked:  # measured before definitions had numbers
        assert reasons["01_models"] == "it was made under older keys"
        with pytest.raises(
            StudyError, match=r"is committed and would be overwritten \(01_models: it was made under older keys\)"
        ):
            guards.protect(ROOT, one, reasons, force=False)
    assert folders.project_root() == ROOT
    assert os.environ.get("AFTER_UPDATE_RESULTS") is None
