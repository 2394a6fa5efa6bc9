"""Runs of a profile: which count as finished, and the file beside them."""

import pandas as pd
import pytest

from helpers import folders, results
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, StudyError
from helpers.results import Run
from helpers.study import statuses

CHAPTERS = ("01_models", "02_quantization", "11_findings")


def made(root, model: str, seed: int, chapters=CHAPTERS[:2]) -> Run:
    folder = root / "cpu" / model / f"seed-{seed}"
    (folder / "status").mkdir(parents=True)
    (folder / "tables").mkdir()
    for name in chapters:
        (folder / "status" / f"{name}.json").write_text("{}")
    pd.DataFrame({"value": [float(seed)]}).to_parquet(folder / "tables" / "behaviour.parquet")
    return Run("cpu", model, seed, folder)


def test_runs_count_where_they_have_all_that_this_one_has_before_the_chapter(tmp_path):
    own = made(tmp_path, "embedded", 10)
    made(tmp_path, "embedded", 2, CHAPTERS)
    made(tmp_path, "another", 0)
    made(tmp_path, "embedded", 1, CHAPTERS[:1])  # still running
    found = results.finished(own, "11_findings")
    assert [(run.model, run.seed, run.profile) for run in found] == [
        ("another", 0, "cpu"),
        ("embedded", 2, "cpu"),
        ("embedded", 10, "cpu"),
    ]


def test_where_nothing_is_finished_the_command_to_run_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"no chapter of profile 'cpu' is finished; .* make study PROFILE=cpu") as caught:
        results.finished(Run("cpu", "embedded", 0, tmp_path / "cpu" / "embedded" / "seed-0"), "11_findings")
    assert caught.value.code == NOT_COMPARABLE


def test_what_stands_after_the_chapter_does_not_count(tmp_path):
    own = made(tmp_path, "embedded", 0, CHAPTERS)  # it runs again
    made(tmp_path, "embedded", 1)
    assert [run.seed for run in results.finished(own, "11_findings")] == [0, 1]


def test_findings_stand_beside_the_models_whole_or_not_at_all(tmp_path, monkeypatch):
    run = made(tmp_path, "embedded", 0)
    table = pd.DataFrame({"claim": ["M1", "M2"], "estimate": [0.1, float("nan")]}, index=[5, 6])
    path = results.write_findings(run, table)
    assert path == tmp_path / "cpu" / "findings.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(path), table.reset_index(drop=True))

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(StudyError, match="No space left") as caught:
        results.write_findings(run, table.head(1))
    assert caught.value.code == ENVIRONMENT
    monkeypatch.undo()
    assert len(pd.read_parquet(path)) == 2
    assert sorted(item.name for item in path.parent.iterdir()) == ["embedded", "findings.parquet"]


def rows(n: int, restoration: str) -> pd.DataFrame:
    key = dict.fromkeys(results.KEY, "") | {"model": "m", "seed": 0, "strength": None, "restoration": restoration}
    own = [{"corpus": f"c{i}", "metric": "perplexity", "value": 1.0, "low": 0.5, "high": 2.0, "n": 4} for i in range(n)]
    return pd.DataFrame([key | row for row in own])


def test_a_chapter_that_will_run_again_takes_its_rows_with_it_and_the_others_are_as_they_recorded(tmp_path):
    run = Run("cpu", "m", 0, tmp_path / "cpu" / "m" / "seed-0")
    results.write_table(run, "01_models", "utility", rows(3, ""))
    shared = run.folder / "tables" / "utility.parquet"
    recorded = folders.file_hash(shared)
    results.write_table(run, "07_projection", "utility", rows(2, "safelora"))
    results.write_table(run, "07_projection", "behaviour", rows(1, "zero").assign(judge="phrases", prompt_set="s"))
    assert len(pd.read_parquet(shared)) == 5
    statuses.forget(run.folder, ["07_projection"])
    assert folders.file_hash(shared) == recorded
    assert not (run.folder / "tables" / "behaviour.parquet").exists()
