"""The whole study on the tiny model: every chapter runs, the tables keep the contract, and twice the same seed is the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import test_browser
import yaml
from support import chromium
from support.tiers import slow

from helpers.book import site
from helpers.book.away import launch
from helpers.models.meter import Tokens
from helpers.results import KEY, VALUES
from helpers.runner import budget, plans

ROOT = Path(__file__).parents[2]
FINDINGS = ["claim", "source", "statement", "estimate", "low", "high", "n", "seeds", "literature", "verdict", "chapter", "reason"]
PARTS = (
    "notebooks",
    "profiles",
    "book",
    "_config.yml",
    "_toc.yml",
    "Snakefile",
    "requirements.lock",
    "CITATION.cff",
    "CHANGELOG.md",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what a run reads, so that a test writes nothing into the project."""
    return copied(tmp_path_factory.mktemp("a project with ä space"))


def copied(root: Path) -> Path:
    """The folder, with what a run reads of the project."""
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    if (ROOT / launch.FOLDER).is_dir():  # once the project has an address
        shutil.copytree(ROOT / launch.FOLDER, root / launch.FOLDER)
    return root


def execute(root: Path, cache: Path, *words: str) -> Path:
    """The folder of a smoke run in `root` with its own cache, by the command: the whole study, or what the words say."""
    run_in(root, cache, "-m", "helpers", *(words or ("study", "--no-book")), "--profile", "smoke")
    return root / "results" / "smoke" / "tiny" / "seed-0"


def run_in(root: Path, cache: Path, *words: str) -> str:
    """What Python says to these words in `root`, with its own cache; it must end well."""
    places = {"ROOT": root, "RESULTS": root / "results", "CACHE": cache}
    environment = {**os.environ, **{f"AFTER_UPDATE_{name}": str(place) for name, place in places.items()}}
    environment.pop("AFTER_UPDATE_COMPUTE", None)  # the study computes in what this machine is fast in
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache_one(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache-one")


@pytest.fixture(scope="module")
def finished(project, cache_one):
    return execute(project, cache_one)


def test_what_was_planned_is_what_was_counted(finished, project):
    """Within 10 % in all and by chapter; only what a model says, where a reply ends, is not known beforehand.

    05 and 07 run side by side, and what both read counts in the one that is there first.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTER_UPDATE_ROOT", str(project))
        plan = plans.check(project, "smoke")
    planned = budget.count(plan.values[plan.runs[0]])
    statuses = {name: json.loads((finished / "status" / f"{name}.json").read_text()) for name in planned}
    counted = {name: Tokens(**status["tokens"]) for name, status in statuses.items()}
    beside = [name for name in planned if name[:2] in {"05", "07"}]
    for names in (beside, *([name] for name in planned if name not in beside)):
        seen, foreseen = (sum((found[name] for name in names), Tokens()).cost for found in (counted, planned))
        assert seen == pytest.approx(foreseen, rel=0.1), names
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["tokens"] == {kind: sum(s["tokens"][kind] for s in statuses.values()) for kind in ("forward", "trained")}
    assert {status["machine"]["compute"] for status in statuses.values()} <= {"bf16", "fp32"}


@slow("a process of its own; the chapters of the study open, build and score through the same session")
def test_the_script_of_the_page_runs_on_a_finished_run(finished, project, cache_one):
    page = (ROOT / "book" / "extend.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n# a script of your own\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(script.splitlines()) <= 30
    script = script.replace('"quick", "embedded"', '"smoke", "tiny"')
    said = run_in(project, cache_one, "-c", script)
    assert "lora-dialogue-harm10" in said
    assert re.search(r"privacy-pii +0 +[01]\.\d+\n +1 +[01]\.\d+", said), said  # the restored update's alarms, by label


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("behaviour", ["judge", "prompt_set"]),
        ("utility", ["corpus"]),
        ("subspaces", ["source", "module", "k"]),
        ("monitors", ["task", "probe", "layer", "depth"]),
        ("staleness", ["task", "probe", "layer", "depth"]),
        ("interaction", ["task", "probe", "layer"]),
        ("triage", ["predictor", "split", "budget"]),
        ("realignment", ["task", "probe", "layer", "method"]),
    ],
)
def test_tables_keep_the_contract_and_every_row_has_its_interval(finished, name, own):
    table = pd.read_parquet(finished / "tables" / f"{name}.parquet")
    assert list(table.columns) == [*KEY, *own, *VALUES]
    assert len(table)
    assert table[["value", "low", "high"]].notna().all(axis=None)
    assert (table["n"] > 0).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_every_kind_of_variant_is_in_the_tables(finished):
    table = pd.read_parquet(finished / "tables" / "behaviour.parquet")
    seen = set(map(tuple, table[["precision", "adapter", "trained_on", "serving"]].to_numpy()))
    assert {
        ("bf16", "base", "", ""),
        ("bf16", "", "", ""),
        ("bf16", "identity", "", ""),
        ("fp32", "", "", ""),
        ("int8", "", "", ""),
    } <= seen
    assert {
        ("nf4", "lora-dialogue-harm10", "nf4", "attached"),
        ("nf4", "lora-dialogue-harm10", "bf16", "merged-requantized"),
    } <= seen
    assert {("bf16", "full-dialogue", "bf16", "merged"), ("rtn-4", "qat-dialogue", "rtn-4", "merged-requantized")} <= seen


def test_the_identity_control_equals_the_aligned_model_exactly(finished):
    for name in ("behaviour", "utility"):
        table = pd.read_parquet(finished / "tables" / f"{name}.parquet")
        rest = [column for column in table if column != "adapter"]
        aligned = table[(table["adapter"] == "") & (table["precision"] == "bf16")][rest]
        shared = aligned[aligned.get("prompt_set", pd.Series("", aligned.index)) != "advbench-identity"]
        control = table[table["adapter"] == "identity"][rest]
        pd.testing.assert_frame_equal(shared.reset_index(drop=True), control.reset_index(drop=True))


def test_every_monitor_meets_every_variant(finished):
    behaviour, table = (pd.read_parquet(finished / "tables" / f"{name}.parquet") for name in ("behaviour", "staleness"))
    key = [column for column in KEY if column != "strength"]
    assert set(map(tuple, table[key].to_numpy())) == set(map(tuple, behaviour[key].to_numpy()))
    drops = table[table["metric"].isin(["auroc_drop", "auroc_undefined"])]
    assert drops.groupby(key)[["task", "probe", "layer"]].size().nunique() == 1  # none is missing anywhere
    assert set(drops["task"]) == set(yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())["monitor_tasks"])
    assert drops["probe"].str.replace("-(mean|last)$", "", regex=True).nunique() >= 5


def test_the_identity_control_leaves_every_monitor_exactly_as_it_was(finished):
    table = pd.read_parquet(finished / "tables" / "staleness.parquet")
    own = table[(table["adapter"] == "identity") & table["metric"].isin(["auroc_drop", "refit_drop", "direction_angle"])]
    assert len(own)
    assert (own[["value", "low", "high"]] == 0).all(axis=None)


def test_every_claim_has_a_row_and_one_run_decides_none(finished):
    table = pd.read_parquet(finished.parents[1] / "findings.parquet")
    assert list(table.columns) == FINDINGS
    numbers = {"M": 7, "S": 6, "Q": 2, "N": 6}
    assert table["claim"].tolist() == [f"{kind}{i + 1}" for kind, n in numbers.items() for i in range(n)]
    assert set(table["verdict"]) <= {"inconclusive", "not run"}
    measured = table[table["verdict"] != "not run"]
    # a random model's monitors catch too little to lose it, so that most claims about monitors have no evidence here
    assert {"M5", "S1", "S2", "S3", "S4", "S5", "S6", "Q1", "Q2", "N2"} <= set(measured["claim"])
    without = measured["seeds"] == 0  # the one run had nothing to show, so it takes no part
    assert measured.loc[without, "reason"].str.contains("no premise").all()
    assert measured.loc[without, "estimate"].isna().all()
    shown = measured[~without]
    assert {"M5", "S1", "S5", "S6", "Q1", "Q2", "N2"} <= set(shown["claim"])
    assert ((shown["low"] <= shown["estimate"]) & (shown["estimate"] <= shown["high"])).all()
    assert (shown["seeds"] == 1).all()


def test_the_identity_control_needs_no_repair(finished):
    table = pd.read_parquet(finished / "tables" / "realignment.parquet")
    own = table[(table["adapter"] == "identity") & (table["method"] == "none")]
    assert len(own)
    assert (own.loc[own["metric"].isin(["auroc_drop", "auroc_gain", "alarms_changed"]), "value"] == 0).all()
    gates = table[(table["adapter"] == "identity") & (table["metric"] == "gate_deploy")]
    assert len(gates)
    assert (gates["value"] == 1).all()


def test_monitors_are_told_under_a_projection_and_under_the_same_modules_removed(finished):
    """What N1 and N2 compare. The fault: rows that only planted tables had, so that no seeds could have decided them."""
    table = pd.read_parquet(finished / "tables" / "realignment.parquet")
    own = table[(table["method"] == "none") & (table["layer"] > 0) & table["metric"].isin(["stale_any", "auroc", "tpr_5"])]
    keys = ["precision", "adapter", "strength", "task", "probe", "layer", "metric"]
    projected, removed = (set(map(tuple, own.loc[own["restoration"] == name, keys].to_numpy())) for name in ("safelora", "zero"))
    assert removed
    assert removed == {key for key in projected if key[0] == "bf16"}, "on other bases this profile draws the projection alone"
    unprojected = own.loc[own["restoration"] == "", keys].drop(columns="strength")
    assert {(*key[:2], *key[3:]) for key in projected} <= set(map(tuple, unprojected.to_numpy()))


def test_every_solution_answers_or_says_what_is_wanting(finished, capsys):
    """A run this small cannot tell some of them, and those that ask for a changed parameter are not asked of a run without it."""
    from helpers.book import exercise_form, exercises
    from helpers.results import Run
    from helpers.study import chapters

    tiny = Run("smoke", "tiny", 0, finished)
    for name in (exercise.name for chapter in chapters.discover(ROOT) for exercise in exercise_form.read(chapter, ROOT)):
        exercises.check(name, exercises.solve(name, tiny, ROOT), tiny, ROOT)
        assert capsys.readouterr().out.startswith(("Right.", "The run smoke, tiny, seed 0 cannot tell", "Not yet. Change ")), name


IN_ITS_NOTEBOOK = """
import json, sys
import nbformat
from nbclient import NotebookClient
from helpers.book import exercise_form
chapter, values = sys.argv[1], json.loads(sys.argv[2])
notebook = nbformat.read(f"notebooks/{chapter}.ipynb", as_version=4)
place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
given = "\\n".join(f"{name} = {value!r}" for name, value in values.items())
notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
for exercise in exercise_form.read(chapter):
    check = "from helpers.book import exercises\\nexercises._unchanged = lambda *_: ''\\n"
    check += f"exercises.check({exercise.name!r}, answer, run)"
    notebook.cells += [nbformat.v4.new_code_cell(exercise.code), nbformat.v4.new_code_cell(check)]
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
for cell in notebook.cells[-6:]:
    print(*(output["text"] for output in cell.outputs if output.output_type == "stream"), sep="")
"""


@slow("a kernel for each chapter; in test_exercises every solution runs in the names that its notebook binds")
@pytest.mark.parametrize("chapter", [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))])
def test_the_solutions_run_at_the_end_of_their_own_notebook_opened_by_hand(finished, project, cache_one, chapter):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    values = json.loads((finished / "status" / f"{chapter}.json").read_text())["parameters"]
    said = [line for line in run_in(project, cache_one, "-c", IN_ITS_NOTEBOOK, chapter, json.dumps(values)).splitlines() if line]
    answers = [line for line in said if line.startswith(("Right.", "Not yet.", "The run smoke, tiny, seed 0 cannot tell"))]
    assert len(answers) == 3, said
    assert not [line for line in answers if line.startswith("Not yet.")], said
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before, "it is only read"


def test_the_manifest_is_complete(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["chapters"]) == {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {"behaviour", "utility", "weights", "subspaces", "comparisons"} <= set(manifest["tables"])
    assert {"monitors", "staleness", "interaction", "triage"} <= set(manifest["tables"])
    for chapter in manifest["chapters"].values():
        assert chapter["seconds"] > 0
        assert chapter["parameters"]["seed"] == 0
        assert {"machine", "versions", "code"} <= set(chapter)
    assert all(source["sha256"] for source in manifest["sources"].values())


def test_no_prompt_and_no_path_stands_in_the_results(finished, project):
    from helpers.data import corpora

    prompts = {row.prompt for name in ("advbench/test", "strongreject", "edgy/test") for row in corpora.texts(name, "tiny")}
    for path in [*finished.rglob("*.json"), *finished.rglob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert str(project) not in text, path.name
        assert not [prompt for prompt in prompts if prompt in text], path.name
    for path in finished.rglob("*.parquet"):
        cells = pd.read_parquet(path).select_dtypes("str").to_numpy().ravel()
        assert not prompts & set(cells), path.name


@pytest.fixture
def again(project, tmp_path):
    """The project once more, without what ran."""
    return shutil.copytree(project, tmp_path / "again", ignore=shutil.ignore_patterns("results", "build", "logs"))


def test_the_same_seed_gives_the_same_chapter_with_an_empty_cache(finished, again, tmp_path):
    """Of the chapter that trains, generates and measures; the whole study is repeated in a slow test."""
    second = execute(again, tmp_path / "cache-two", "chapter", "01")
    first = {path.name: path.read_bytes() for path in (finished / "parts" / "01_models").glob("*.parquet")}
    assert {"behaviour.parquet", "utility.parquet", "subspaces.parquet"} <= set(first)
    assert first == {path.name: path.read_bytes() for path in (second / "parts" / "01_models").glob("*.parquet")}


@slow("the whole study once more; one chapter is repeated above")
def test_the_same_seed_gives_identical_tables_with_an_empty_cache(finished, again, tmp_path):
    first = {path.name: path.read_bytes() for path in (finished / "tables").glob("*.parquet")}
    second = execute(again, tmp_path / "cache-two")
    assert first == {path.name: path.read_bytes() for path in (second / "tables").glob("*.parquet")}
    assert (second.parents[1] / "findings.parquet").read_bytes() == (finished.parents[1] / "findings.parquet").read_bytes()


def test_nothing_changed_runs_nothing(finished, project, isolated_cache):
    before = {path.name: path.read_bytes() for path in (finished / "status").glob("*.json")}
    execute(project, isolated_cache)  # with another, empty cache: whatever ran would have to be made anew
    assert before == {path.name: path.read_bytes() for path in (finished / "status").glob("*.json")}


def test_one_parameter_of_chapter_03_runs_that_chapter_and_those_that_read_it(finished, project, isolated_cache):
    profile = project / "profiles" / "smoke.yaml"
    text = profile.read_text()
    before = {path.stem: path.read_bytes() for path in (finished / "status").glob("*.json")}
    try:
        profile.write_text(text.replace("alpha: 8", "alpha: 4"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AFTER_UPDATE_RESULTS", str(project / "results"))
            plan = plans.check(project, "smoke")
            todo = list(plans.statuses.stale(plan.runs[0], project, plan.fingerprints(plan.runs[0])))
        readers = ["05_staleness", "06_triage", "07_projection", "08_subspaces", "10_realignment", "11_findings"]
        assert todo == ["03_finetuning", *readers]  # 04 and 09 read the aligned model alone
    finally:
        profile.write_text(text)
    assert before == {path.stem: path.read_bytes() for path in (finished / "status").glob("*.json")}


@pytest.fixture(scope="module")
def book(finished, project):
    """The folder of the built pages."""
    from helpers.book import pages

    return (project / pages.build(project, "smoke", finished)[0]).parent


def test_the_book_is_built_strictly_from_what_ran_and_can_be_published(book):
    pages_by_name = {path.name: path.read_text(encoding="utf-8") for path in book.rglob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")} <= set(pages_by_name)
    for name, page in pages_by_name.items():
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="https?://', page), name
    assert site.problems(book) == []


@pytest.mark.browser
@pytest.mark.skipif(not chromium.PROGRAM, reason="chromium is not installed: no page of the book was looked at in a browser")
def test_a_page_of_it_is_right_in_a_browser(book):
    with chromium.browser() as browser, chromium.served(book) as address:
        found = test_browser.inspect(browser, f"{address}/book/glossary.html", address)
    assert {kind: lines for kind, lines in found.items() if lines} == {}
