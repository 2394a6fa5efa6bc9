"""The light path: exercises, tables, findings and `revalidate` on scores, where torch and what only Unix has cannot be imported.

Nothing here needs more than `pip install .` and pytest: the hosted workflow runs this file alone on Windows and macOS, as
`python -m pytest --noconftest tests/rules/test_light.py`.
"""

import csv
import json
import os
import random
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ROOT / "results" / "cpu" / "embedded" / "seed-0"
BLOCKED = {
    *("torch", "transformers", "bitsandbytes", "peft", "accelerate", "tokenizers", "safetensors", "fcntl", "resource"),
    *("tqdm", "psutil", "matplotlib", "seaborn", "papermill", "nbformat", "nbclient", "IPython", "ipykernel", "snakemake", "bs4"),
    *("huggingface_hub", "gguf", "rouge_score", "faker", "beartype"),
}  # what the extra `study` brings, and what Windows lacks
LIGHT = (
    *("errors", "console", "results"),
    *("study.session", "study.parameters", "study.evidence.behaviour", "study.claims", "study.findings", "study.chapters"),
    *("stats.intervals", "stats.roc", "stats.paired_rates"),
    *("data.sources", "data.corpora", "data.splits", "data.user_files", "data.pii_templates", "data.tasks"),
    *("updates.names",),
    *("figures.tables",),
    *("monitors.baselines",),
    *("staleness.drift_signals", "staleness.predictors", "staleness.threshold_rules", "staleness.triage"),
    *("book.exercises", "book.markup", "book.parameter_table", "book.appendices", "book.provenance"),
    *("book.verdict_history.command", "book.verdict_history.shown"),
    *(
        "revalidation.options",
        "revalidation.hypotheses",
        "revalidation.screening",
        "revalidation.error_rates",
        "revalidation.verdict",
        "revalidation.score_file",
        "revalidation.report.schema",
        "revalidation.report.wording",
        "revalidation.report.svg",
        "revalidation.report.html_detail",
        "revalidation.report.html",
        "revalidation.report.markdown",
        "revalidation.report.files",
        "revalidation.report.diff",
        "revalidation.report.comment",
        "revalidation.evidence.replay",
        "revalidation.cli",
    ),
    *("runner.manifests", "runner.doctor", "runner.installing"),
)
PRELUDE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(BLOCKED)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
for name in {sorted(BLOCKED)!r}:
    sys.modules.pop(name, None)
"""


def lightly(code: str, *words: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """What Python says and returns where the blocked packages are not there; its console knows Western letters alone."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "AFTER_UPDATE_ROOT": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    return subprocess.run(
        [sys.executable, "-W", "ignore:only soft file lock", "-c", PRELUDE + code, *words],
        cwd=folder, env=settings, capture_output=True, encoding="cp1252", check=False, timeout=300,
    )  # fmt: skip


def command(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """The command line, lightly."""
    return lightly(
        'import runpy; sys.argv[0] = "helpers"; runpy.run_module("helpers", run_name="__main__")', *words, folder=folder
    )


def test_every_light_module_can_be_imported_and_one_that_trains_cannot():
    done = lightly(f"""
from importlib import import_module
for name in {LIGHT!r}:
    import_module(f"helpers.{{name}}")
print([name for name in {sorted(BLOCKED)!r} if name in sys.modules])
import helpers.updates.training
""")
    assert done.stdout.strip() == "[]", done.stderr
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'torch'")  # the control: they are blocked indeed


def test_solutions_are_checked_on_committed_tables():
    done = lightly(f"""
from pathlib import Path
from helpers.book import exercises
from helpers.results import Run
run = Run("cpu", "embedded", 0, Path({str(RUN)!r}))
for name in ("02-1", "05-1", "09-1", "10-1"):
    exercises.check(name, exercises.solve(name, run), run)
    exercises.check(name, "none of these", run)
""")
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said == ["Right.", "Not"] * 4, done.stdout + done.stderr  # of runs as they are, without a changed parameter


def test_tables_and_findings_of_the_book_are_read_and_judged_anew():
    done = lightly(f"""
from pathlib import Path
import pandas as pd
from helpers import results
from helpers.book import appendices
from helpers.figures import tables
from helpers.study import findings
root, folder = Path({str(ROOT)!r}), Path({str(RUN)!r})
read = results.read_table(results.Run("cpu", "embedded", 0, folder), "behaviour")
shown = tables.with_intervals(read)
stored = pd.read_parquet(root / "results/cpu/findings.parquet")
runs = [("embedded", seed, findings.run_tables(folder.parent / f"seed-{{seed}}")) for seed in (0, 1, 2)]
judged, _ = findings.collect(runs)
both = stored.merge(judged, on="claim", suffixes=("", "_new"))
print(len(shown) == len(read) > 0, len(both) == len(stored) > 10, (judged["verdict"] != "not run").any())
print(appendices.runs(root, folder).count("|") > 100)
""")
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_verdicts_are_printed_and_two_folders_of_them_compared(tmp_path):
    done = command("findings", "--profile", "cpu", folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["claim", "verdict", "seeds", "chapter", "ours"]
    done = lightly(
        """
import runpy
from pathlib import Path
import pandas as pd
table = pd.read_parquet(Path(sys.argv[1]) / "results/cpu/findings.parquet")
for name, verdict in (("old", "supported"), ("new", "mixed")):
    Path(name).mkdir()
    table.assign(verdict=[verdict, *table["verdict"][1:]]).to_parquet(Path(name) / "findings.parquet")
sys.argv = ["helpers", "findings", "--diff", "old", "new", "--record", "2026-12-01", "--json"]
runpy.run_module("helpers", run_name="__main__")
""",
        str(ROOT),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["before"]["verdict"], one["after"]["verdict"]) for one in found["moved"]] == [("supported", "mixed")]
    assert json.loads((tmp_path / "new" / "verdicts.json").read_text(encoding="utf-8"))["changes"][0]["date"] == "2026-12-01"


# ---------------------------------------------------------------- the gate


def scores(path: Path, lost: bool) -> Path:
    """Scores of two monitors on 400 labelled texts, before and after; one tells nothing any more where it is `lost`."""
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["monitor", "id", "before", "after", "label", "threshold"])
        for name in ("m0", "m1"):
            for i in range(400):
                score = draw.gauss(3 * (i % 2), 1)
                after = draw.gauss(0, 1) if lost and name == "m0" else score + draw.gauss(0, 0.01)
                rows.writerow([name, f"r{i}", score, after, i % 2, 1.6])
    return path


def test_scores_are_judged_and_two_reports_compared(tmp_path):
    codes = {}
    for name, lost in (("old", False), ("new", True)):
        file = scores(tmp_path / f"{name}.csv", lost)
        done = command("revalidate", "--scores", str(file), "--out", name, folder=tmp_path)
        codes[name] = done.returncode
        assert (tmp_path / name / "report.html").is_file(), done.stderr
    assert codes == {"old": 0, "new": 10}
    report = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert {monitor["name"]: monitor["state"] for monitor in report["monitors"]} == {"m0": "stale", "m1": "fine"}
    done = command("revalidate", "--diff", "old", "new", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any("m0" in line and "stale" in line for line in done.stdout.splitlines())


def test_models_without_torch_are_refused_in_one_line_that_names_the_extra(tmp_path):
    words = ("revalidate", "--base", "embedded", "--update", "nf4", "--monitors", "m", "--texts", "t.txt")
    done = command(*words, "--out", "report", folder=tmp_path)
    assert done.returncode == 14
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this needs the package torch, which is not installed")
    assert 'pip install "after-the-update[study]"' in line
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_help_and_the_console_script_need_nothing_heavy(tmp_path):
    done = command("--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "revalidate" in done.stdout
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = settings["scripts"]["after-the-update"].partition(":")
    assert callable(getattr(import_module(module), function))
    plain = {line.partition("==")[0] for line in settings["dependencies"]}
    assert not plain & {"torch", "transformers", "peft", "bitsandbytes", "safetensors"}
    assert any(line.startswith("torch==") for line in settings["optional-dependencies"]["study"])
