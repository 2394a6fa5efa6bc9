"""Tables are written whole or not at all, checked before they are written, and found again at a fixed address."""

import errno
import json
import os
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import cache as cache_files
from helpers import folders, results
from helpers.cache import write_json
from helpers.data import sources
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, StudyError
from helpers.results import KEY, OWN, VALUES, Run, cached_table, open_run, read_note, read_table, write_note, write_table
from helpers.runner import manifests
from helpers.runner.manifests import write_manifest

FRONT = {"model": "tiny", "seed": 0, "precision": "bf16", "adapter": "", "trained_on": "", "serving": "", "restoration": ""}


def rows(*names, value=0.5, **changes):
    """One valid row of `behaviour` a prompt set, with its columns in no particular order."""
    found = [{"n": 10, "metric": "non_refusal", "judge": "phrases", "prompt_set": name, "value": value, "low": value - 0.1,
              "high": value + 0.1, "strength": np.nan, **FRONT, **changes} for name in names]  # fmt: skip
    return pd.DataFrame(found)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", str(tmp_path / "mes résultats"))
    return open_run("smoke", "tiny", 3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path / "cache"))


def one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# --- the cache ---


def test_a_cached_table_is_made_once(cache):
    made = []
    for _ in range(2):
        table = cached_table("things", "key", lambda: made.append(1) or rows("a"))
    assert len(made) == 1
    assert table["prompt_set"].tolist() == ["a"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table at all", "half"])
def test_a_torn_cached_table_is_made_again(cache, content):
    cached_table("things", "key", lambda: rows("a"))
    path = cache_files.cache_path("things", "key.parquet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    assert cached_table("things", "key", lambda: rows("b"))["prompt_set"].tolist() == ["b"]
    assert [p.name for p in path.parent.iterdir()] == ["key.parquet"]


def test_what_two_ask_for_at_once_is_made_by_one_of_them(cache):
    made = []

    def make() -> pd.DataFrame:
        made.append(1)
        time.sleep(0.2)
        return rows("a")

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: cached_table("things", "key", make), range(2)))
    pd.testing.assert_frame_equal(*found)
    assert len(made) == 1


def test_beside_a_cache_in_which_no_lock_can_be_written_each_makes_its_own(cache, monkeypatch):
    cache_files.cache_path("things", "").with_name("locks").write_text("no folder")
    assert cached_table("things", "key", lambda: rows("a"))["prompt_set"].tolist() == ["a"]


def test_two_chapters_that_write_one_table_at_once_leave_the_rows_of_both(run, monkeypatch):
    """Each merges all parts; whoever merges first may not write last what it read before the other's part was there."""
    plain, begun = results.merged, threading.Event()

    def slowly(folder: Path, name: str) -> pd.DataFrame:
        table = plain(folder, name)
        if not begun.is_set():  # the first one has read and takes its time
            begun.set()
            time.sleep(0.3)
        return table

    monkeypatch.setattr(results, "merged", slowly)
    with ThreadPoolExecutor(2) as both:
        first = both.submit(write_table, run, "01_models", "behaviour", rows("advbench"))
        begun.wait(10)
        both.submit(write_table, run, "02_quantization", "behaviour", rows("xstest")).result()
        first.result()
    assert set(read_table(run, "behaviour")["prompt_set"]) == {"advbench", "xstest"}


# --- addresses ---


def test_tables_stand_at_their_address_even_with_a_space_and_an_accent_in_it(run, tmp_path):
    written = write_table(run, "01_models", "behaviour", rows("advbench"))
    path = tmp_path / "mes résultats/smoke/tiny/seed-3/tables/behaviour.parquet"
    assert path.is_file()
    pd.testing.assert_frame_equal(read_table(run, "behaviour"), written)


def test_a_long_folder_name_works(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", str(tmp_path / ("x" * 200)))
    write_table(open_run("smoke", "tiny", 0), "01_models", "behaviour", rows("advbench"))


def test_behaviour_and_utility_have_the_columns_of_the_contract():
    key = ("model", "seed", "precision", "adapter", "trained_on", "serving", "restoration", "strength")
    values = ("metric", "value", "low", "high", "n")
    assert tuple(results.schema("behaviour").columns) == (*key, "judge", "prompt_set", *values)
    assert tuple(results.schema("utility").columns) == (*key, "corpus", *values)
    assert (key, values) == (KEY, VALUES)


def test_a_written_table_has_its_columns_in_order_and_its_types(run):
    table = write_table(run, "01_models", "behaviour", rows("advbench").iloc[:, ::-1])
    assert tuple(table.columns) == (*KEY, *OWN["behaviour"], *VALUES)
    assert table.dtypes[["seed", "n"]].tolist() == [np.dtype("int64")] * 2
    assert table.dtypes[["strength", "value", "low", "high"]].tolist() == [np.dtype("float64")] * 4


# --- the schema ---


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"value": np.nan}, "value"),
        ({"low": np.nan}, "low"),
        ({"high": np.nan}, "high"),
        ({"low": 0.9}, "low <= value"),
        ({"high": 0.1}, "low <= value"),
        ({"n": 0}, "n >= 1"),
        ({"n": "many"}, "n"),
        ({"value": "much"}, "value"),
        ({"seed": "first"}, "seed"),
        ({"adapter": None}, "adapter"),
        ({"judge": np.nan}, "judge"),
    ],
)
def test_a_row_that_breaks_the_schema_is_refused_and_nothing_is_written(run, changes, word):
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behaviour", rows("a", "b").assign(**changes))
    one_line(error, "behaviour", word)
    assert not run.folder.exists()


@pytest.mark.parametrize("column", ["judge", "low", "n", "serving"])
def test_a_missing_column_is_named(run, column):
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behaviour", rows("a").drop(columns=column))
    one_line(error, f"lacks column {column!r}")


def test_two_rows_for_the_same_number_are_refused(run):
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behaviour", pd.concat([rows("a"), rows("a", value=0.7)]))
    one_line(error, "behaviour")


def test_an_unknown_table_is_refused(run):
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behavior", rows("a"))
    one_line(error, "behavior", "behaviour")


# --- parts of chapters ---


def sets_of(table):
    return dict(zip(table["prompt_set"], table["value"], strict=True))


def test_a_chapter_run_again_replaces_its_own_rows_and_keeps_the_others(run):
    write_table(run, "01_models", "behaviour", rows("a", "b"))
    write_table(run, "02_quantization", "behaviour", rows("c"))
    write_table(run, "01_models", "behaviour", rows("b", value=0.7))
    assert sets_of(read_table(run, "behaviour")) == {"b": 0.7, "c": 0.5}
    assert sets_of(read_table(run, "behaviour", "02_quantization")) == {"c": 0.5}


def test_the_merged_table_has_the_same_bytes_whatever_the_order_of_writing(tmp_path):
    found = []
    for number, order in enumerate((["01_a", "02_b"], ["02_b", "01_a"], ["01_a", "02_b", "01_a"])):
        run = Run("smoke", "tiny", 0, tmp_path / str(number))
        for chapter in order:
            write_table(run, chapter, "behaviour", rows(chapter, "shared").sample(frac=1, random_state=number))
        found.append((run.folder / "tables/behaviour.parquet").read_bytes())
    assert found[0] == found[1] == found[2]


# --- faults while writing and reading ---


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_full(self, path, *_, **__):
    Path(path).write_bytes(b"PAR1 half a table")
    full_disk()


def test_a_full_disk_leaves_the_old_table_and_no_temporary_file(run, monkeypatch):
    write_table(run, "01_models", "behaviour", rows("a"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(pd.DataFrame, "to_parquet", half_then_full)
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behaviour", rows("a", "b"))
    one_line(error, "behaviour.parquet", "No space left", "free some disk space")
    assert error.value.code == ENVIRONMENT
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    write_table(run, "01_models", "behaviour", rows("a", "b"))  # the same command afterwards goes through


def test_a_full_disk_at_the_last_moment_is_the_same(run, monkeypatch):
    write_json(run.folder / "note.json", {"a": 1})
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StudyError) as error:
        write_json(run.folder / "note.json", {"a": 2})
    assert error.value.code == ENVIRONMENT
    assert json.loads((run.folder / "note.json").read_text()) == {"a": 1}
    assert [path.name for path in run.folder.iterdir()] == ["note.json"]


def test_an_error_without_a_reason_of_its_own_still_says_one(run, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError("could not write\nmany lines follow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", refuse)
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behaviour", rows("a"))
    one_line(error, "could not write")
    assert "None" not in str(error.value)


def test_a_results_path_that_is_a_file_is_named(run):
    run.folder.parent.mkdir(parents=True)
    run.folder.write_text("in the way", encoding="utf-8")
    with pytest.raises(StudyError) as error:
        write_table(run, "01_models", "behaviour", rows("a"))
    one_line(error, "behaviour.parquet")
    assert error.value.code == ENVIRONMENT
    assert run.folder.read_text(encoding="utf-8") == "in the way"


def test_a_missing_table_or_note_names_what_to_run(run):
    with pytest.raises(StudyError) as error:
        read_table(run, "behaviour", "01_models")
    one_line(error, "behaviour", "01_models", "smoke")
    assert error.value.code == NOT_COMPARABLE
    with pytest.raises(StudyError) as error:
        read_table(run, "utility")
    one_line(error, "utility", "make study PROFILE=smoke")
    with pytest.raises(StudyError) as error:
        read_note(run, "01_models", "aligned")
    one_line(error, "aligned", "01_models")
    assert error.value.code == NOT_COMPARABLE


def test_a_torn_table_says_to_run_the_chapter_again(run):
    write_table(run, "01_models", "behaviour", rows("a"))
    for path in run.folder.rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    for act in (lambda: read_table(run, "behaviour"), lambda: write_table(run, "02_quantization", "behaviour", rows("b"))):
        with pytest.raises(StudyError) as error:
            act()
        one_line(error, "behaviour.parquet", "run the chapter")
        assert error.value.code == REFUSED


def test_notes_come_back_as_they_were(run):
    note = {"folder": "é ü", "values": [1, 2.5, None], "nested": {"a": True}}
    write_note(run, "01_models", "aligned", note)
    assert read_note(run, "01_models", "aligned") == note
    assert [path.name for path in (run.folder / "parts" / "01_models").iterdir()] == ["aligned.json"]
    assert [path.name for path in (run.folder / "parts" / "01_models").iterdir()] == ["aligned.json"]


# --- the manifest ---


def test_a_notebook_opened_by_hand_writes_nothing_into_a_finished_run_of_another_profile(run, monkeypatch):
    write_table(run, "01_models", "behaviour", rows("advbench"))
    (run.folder / "manifest.json").write_text("{}")
    before = {path: path.read_bytes() for path in run.folder.parents[1].rglob("*") if path.is_file()}
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(user_ns={}))

    def write(to: Run) -> dict:
        assert write_table(to, "01_models", "behaviour", rows("advbench", value=0.7))["value"].tolist() == [0.7]
        write_note(to, "01_models", "a", 1)
        results.write_findings(to, pd.DataFrame({"claim": ["M1"]}))
        return {path: path.read_bytes() for path in to.folder.parents[1].rglob("*") if path.is_file()}

    monkeypatch.setitem(sys.modules, "IPython", kernel)
    assert write(run) == before
    quick = replace(run, profile="quick")  # whose parameters a notebook has: there it writes, as a changed parameter asks
    assert write(quick) != before
    monkeypatch.setenv(folders.RUNNER, "progress.json")  # the runner's own kernel writes
    assert not results.only_read(run)


def test_the_manifest_tells_what_ran_and_what_it_gave(run):
    write_table(run, "01_models", "behaviour", rows("a", "b"))
    statuses = {name: {"seconds": 1.5, "parameters": {"seed": 3}} for name in ("01_models", "02_quantization")}
    for name, status in statuses.items():
        write_json(run.folder / "status" / f"{name}.json", status)
    manifest = write_manifest(run.folder, list(statuses))
    path = run.folder / "tables/behaviour.parquet"
    assert manifest == json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["chapters"] == statuses
    assert manifest["tables"] == {"behaviour": {"rows": 2, "sha256": folders.file_hash(path)}}
    assert {name: entry["sha256"] for name, entry in manifest["sources"].items()} == {
        n: s.sha256 for n, s in sources.SOURCES.items()
    }
    assert manifest["schema"] == manifests.SCHEMA_VERSION


def test_without_every_chapter_there_is_no_manifest(run):
    write_json(run.folder / "status/01_models.json", {})
    with pytest.raises(StudyError) as error:
        write_manifest(run.folder, ["01_models", "02_quantization"])
    one_line(error, "02_quantization")
    assert not (run.folder / "manifest.json").exists()


def test_the_state_of_the_code_outside_of_git_is_unknown(tmp_path):
    assert manifests.code_state(tmp_path) == {"commit": "unknown", "clean": False}
